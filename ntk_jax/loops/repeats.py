"""Where the same steps follow each other several times."""

from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from ntk_jax.jaxprs import same_value
from ntk_jax.loops.steps import Operand, Step, Value, identity

LEAST_TURNS = 3
LEAST_STEPS = 30  # of a turn: in powers of one number, few steps, a loop would only be slower
MOST_ALIKE = 8  # of one kind in a turn, for the rarest kind in it


class Repeat(NamedTuple):
    """Turns of `period` steps each, of which the first begins at step `start`, or by up to `slack`
    steps later.
    """

    period: int
    start: int
    slack: int
    turns: int

    @property
    def saved(self) -> int:
        """Steps that a loop does without."""
        return (self.turns - 1) * self.period


def repeats(kinds: np.ndarray) -> list[Repeat]:
    """Those in a list of steps of these kinds, the ones that save most steps first."""
    before: dict[int, deque[int]] = defaultdict(lambda: deque(maxlen=MOST_ALIKE))
    periods: Counter[int] = Counter()
    for i, kind in enumerate(kinds.tolist()):
        periods.update(i - j for j in before[kind])
        before[kind].append(i)
    found = []
    for period, count in periods.items():
        if period < LEAST_STEPS or count < LEAST_STEPS // MOST_ALIKE:
            continue
        same = np.concatenate([[False], kinds[:-period] == kinds[period:], [False]])
        ends = np.flatnonzero(same[1:] != same[:-1]).reshape(-1, 2)
        for start, end in ends.tolist():
            more, slack = divmod(end - start, period)
            found.append(Repeat(period, start, slack, more + 1))
    return sorted((r for r in found if r.turns >= LEAST_TURNS), key=lambda r: (-r.saved, r.period))


def kinds(steps: Sequence[Step]) -> np.ndarray:
    """A number for each step, the same for steps that differ in the values of operands alone."""
    known: dict[Hashable, list[tuple[object, int]]] = defaultdict(list)
    found: list[int] = []
    for step in steps:
        alike = known[step.eqn.primitive, *map(_kind, step.operands)]
        number = next((n for params, n in alike if same_value(params, step.eqn.params)), None)
        if number is None:
            number = len(found)
            alike.append((step.eqn.params, number))
        found.append(number)
    return np.array(found)


def _kind(operand: Operand) -> Hashable:
    if isinstance(operand, Value):
        return operand.like.aval
    if isinstance(operand, jax.Array) or (isinstance(operand, np.ndarray) and operand.size > 1):
        return operand.shape, operand.dtype
    return identity(operand)
