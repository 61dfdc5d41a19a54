"""An order of the steps of a program in which all that a layer takes stands together."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from ntk_jax.loops.steps import Operand, Step, Value


def by_layer(
    steps: Sequence[Step], results: Sequence[Operand], first: Sequence[Operand] | None = None
) -> list[Step]:
    """The steps in the order in which the results ask for them, so that little is held between
    layers.

    Of the operands of a step, that goes first which takes most steps that `first` does without: a
    tangent kernel asks for that of the layer below before it asks for a covariance. Of results that
    are none of `first` and what follows it, but of all layers, those that take fewest steps.
    """
    makers = {r: step for step in steps for r in step.results}
    shared = _ancestors(makers, first or ())
    depth: dict[Value, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for step in steps:
        own, every = map(max, zip((0, 0), *map(depth.__getitem__, step.read), strict=True))
        depth |= dict.fromkeys(step.results, (own + (id(step) not in shared), every + 1))

    def asked(operands: Sequence[Operand], deepest_first: bool = True) -> Iterator[Step]:
        made = [o for o in operands if isinstance(o, Value) and o in makers]
        return iter([makers[v] for v in sorted(made, key=depth.__getitem__, reverse=deepest_first)])

    found: dict[int, Step] = {}
    waiting: list[tuple[Step | None, Iterator[Step]]] = [(None, asked(results, first is not None))]
    while waiting:
        reader, operands = waiting[-1]
        missing = next((maker for maker in operands if id(maker) not in found), None)
        if missing is not None:
            waiting.append((missing, asked(missing.operands)))
            continue
        waiting.pop()
        if reader is not None:
            found[id(reader)] = reader
    return list(found.values())


def _ancestors(makers: dict[Value, Step], operands: Sequence[Operand]) -> set[int]:
    """The steps that these take, by their identity."""
    found: set[int] = set()
    waiting = [o for o in operands if isinstance(o, Value)]
    while waiting:
        step = makers.get(waiting.pop())
        if step is not None and id(step) not in found:
            found.add(id(step))
            waiting += step.read
    return found
