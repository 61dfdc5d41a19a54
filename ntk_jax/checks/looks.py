"""What checks see of arrays inside a compiled program: the check and the result are one launch.

A program returns `looks(inputs)` beside its result, and `check_looks` raises where that shows that
the inputs were wrong. Big arrays stay where they are, and nothing is compiled for the check alone.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from ntk_jax.checks.values import check_finite, is_inexact
from ntk_jax.compat import fetched, is_concrete, outside_traces


class Look(NamedTuple):
    """max |x|, not finite if any entry is not; of what should be symmetric, max |K - K.T| too.

    Kernels (n, n, O) have one of both for each output.
    """

    scale: Float[Array, "*O"]
    gap: Float[Array, "*O"] | None


def look(x: Array | None, symmetric: bool = False) -> Look | None:
    """What checks need to know of an array, or of a kernel (n, n), (n, n, O) or (n, n, O, O)."""
    if x is None or not is_inexact(x):
        return None
    x = jax.lax.stop_gradient(x)
    if not symmetric:
        return Look(jnp.max(jnp.abs(x)), None)
    over = (0, 1) if x.ndim == 3 else None
    transposed = x.transpose(1, 0, *reversed(range(2, x.ndim)))
    return Look(jnp.max(jnp.abs(x), over), jnp.max(jnp.abs(x - transposed), over))


_look = partial(jax.jit, static_argnums=1)(look)


def looks(
    inputs: Mapping[str, Array | None], symmetric: Sequence[str] = ()
) -> dict[str, Look | None]:
    """A look at every input, by name."""
    return {name: look(x, name in symmetric) for name, x in inputs.items()}


def check_looks(seen: Mapping[str, Look | None], inputs: Mapping[str, Array | None]) -> None:
    """Raise for the first of the inputs, by name, that is not finite, or not symmetric."""
    known: dict[str, Look] = {}
    for name, x in inputs.items():
        one = seen[name]
        if x is None or one is None or not is_concrete(x):
            continue
        if not is_concrete(one.scale):  # a constant inside someone's jit can still be looked at
            one = outside_traces(_look, x, one.gap is not None)
        known[name] = one
    for name, one in zip(known, fetched([*known.values()]), strict=True):
        _check(name, cast(Array, inputs[name]), *one)


def _check(name: str, x: Array, scales: np.ndarray, gaps: np.ndarray | None) -> None:
    if not np.isfinite(scales).all():
        check_finite(name, x)
    if gaps is None:
        return
    for gap, scale in zip(gaps.reshape(-1), scales.reshape(-1), strict=True):
        if gap > float(jnp.finfo(x.dtype).eps) ** 0.5 * scale:
            raise ValueError(
                f"{name}: expected a symmetric kernel; got max |K - K.T| = {gap:.3g} with max |K| ="
                f" {scale:.3g}. Build it with x2=None, or from the same rows in the same order on "
                "both sides."
            )
