"""What a series needs to know of its function: how many terms, and where it is not smooth."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_jax.infinite.series import Kink, Series, coefficients, derivative, second_moment


def fit(series: Series, q_max: float, dtype: jnp.dtype, most: int = 512) -> Series:
    """Enough terms, a multiple of 16, for the tails of phi and phi' to fall below the tolerance at variances up to `q_max`."""
    double = jnp.dtype(dtype) == jnp.float64
    tolerance = series.tolerance or (1e-10 if double else 1e-7)
    levels = int(np.clip(math.ceil(math.log2(max(q_max, 1e-30)) / 2) + 2, 6, 40))
    if series.kinks or not double:  # kinks away from 0 converge slowly at any number of terms
        most = min(most, 160)
    kinks = series.kinks
    if q_max > (100.0 if double else 2.0):  # relu(u)² and relu(u)³ grow faster than phi: subtracting them would cancel
        kinks = tuple(Kink(c, (*jumps[:2], 0.0, 0.0)) for c, jumps in kinks if any(jumps[:2]))
    trial = Series(series.phi, kinks, most, levels, series.tolerance)
    needed = 16
    for q in (q_max, q_max / 4):
        for order in (0, 1):
            c = coefficients(trial, order, jnp.asarray(q, dtype))
            energy = np.asarray(c.all, float) ** 2 - (0 if c.singular is None else np.asarray(c.singular, float) ** 2)
            rest = np.cumsum(np.abs(energy)[::-1])[::-1] + (0 if c.tail is None else float(jnp.sum(c.tail**2)))
            enough = np.nonzero(
                rest <= tolerance * max(float(second_moment(trial, order, jnp.asarray(q, dtype))), 1e-300)
            )[0]
            needed = max(needed, int(enough[0]) if enough.size else most)
    return Series(series.phi, kinks, -(-needed // 16) * 16, levels, series.tolerance)


def find_kink(phi: Callable[[Array], Array], at: float = 0.0) -> Kink | None:
    """The jumps of phi, phi', phi'' and phi''' at a point; None if all are 0."""
    gap = 1e-30 if at == 0.0 else abs(at) * 2.0**-8
    with jax.ensure_compile_time_eval():
        sides = [[float(derivative(phi, p)(jnp.asarray(at + side))) for p in range(4)] for side in (-gap, gap)]
    low, high = (
        [sum(d[p + i] * h**i / math.factorial(i) for i in range(4 - p)) for p in range(4)]
        for d, h in zip(sides, (gap, -gap), strict=True)
    )
    jumps = tuple(round(b - a, 12) for a, b in zip(low, high, strict=True))
    jumps = tuple(j if abs(j) > 1e-5 else 0.0 for j in jumps)
    return Kink(at, jumps) if any(jumps) else None
