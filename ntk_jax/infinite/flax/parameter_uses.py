"""How each parameter is used: once, or always in the same way, or in parts that do not overlap."""

from collections.abc import Hashable, Sequence

from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.values import Cut, Param


class Uses:
    """The uses met so far. Two uses of one leaf have equal keys, or cover disjoint parts of it."""

    def __init__(self):
        self.of_leaf: dict[str, list[tuple[Hashable, tuple[Cut, ...]]]] = {}

    def add(self, param: Param, kind: str, contracted: Hashable = ()) -> Hashable:
        """Record a use; its key.

        Raises:
            NoLimitError: another use of the same entries is different, as of W and of its
                transpose.
        """
        key = (kind, param.layout, contracted, param.box)
        for other, box in self.of_leaf.setdefault(param.leaf, []):
            if other != key and not _disjoint(box, param.box):
                raise NoLimitError(
                    f"parameter {param.leaf} is used in two different ways (as W and as its "
                    "transpose, or as a weight and by entries): the gradients are not independent "
                    "of the weights, and the usual limit is wrong (Yang 2020, arXiv:2006.14548),",
                    "Give each use a parameter of its own, or estimate with "
                    "ntk_jax.monte_carlo_kernels.",
                )
        if not any(other == key for other, _ in self.of_leaf[param.leaf]):
            self.of_leaf[param.leaf].append((key, param.box))
        return key


def _disjoint(box1: Sequence[Cut], box2: Sequence[Cut]) -> bool:
    """Whether two parts are cut apart along some axis of the same layout."""
    cuts = {(layout, axis): (start, stop) for layout, axis, start, stop in box1}
    return any(
        max(start, low) >= min(stop, high)
        for layout, axis, start, stop in box2
        for low, high in [cuts.get((layout, axis), (start, stop))]
    )
