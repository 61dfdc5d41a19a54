"""Gradient flow of losses with kinks, from kink to kink: in between the outputs move in lines.

The flow is that of a differential inclusion, df/dt ∈ -K ∂L(f), with an interval of slopes where an
output is at its kink. Of these the flow takes the g with the least gᵀ K g (Brezis 1973, theorem
3.1): outputs that would be driven back to the kink from both sides slide along it.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax import Array
from jaxtyping import Float

from ntk_jax.checks import check_number, check_vector
from ntk_jax.compat import on_device, scipy_linalg
from ntk_jax.losses import Kinks
from ntk_jax.modes.modes import Prediction

EVENTS = 100_000
EXACT = 1e-10  # of the size of what is added up: less is rounding


class Path(NamedTuple):
    """α at the times of its corners, f = f_0 + K α."""

    times: np.ndarray
    alphas: np.ndarray

    def at(self, t: np.ndarray) -> np.ndarray:
        """α at times up to the last."""
        i = np.clip(np.searchsorted(self.times, t, side="right"), 1, len(self.times) - 1)
        t0, t1 = self.times[i - 1], self.times[i]
        share = ((t - t0) / np.where(t1 > t0, t1 - t0, 1))[:, None]
        return (1 - share) * self.alphas[i - 1] + share * self.alphas[i]


def kinked_flow(
    inputs: dict[str, Array], kinks: Kinks, t: object, max_steps: int | None
) -> tuple[Callable[[object], Prediction], dict[str, int | Array]]:
    """The outputs as a function of times up to the last of t, and how many corners there were.

    Raises:
        ValueError: more corners than `max_steps`.
    """
    last, most = float(_times(t).max()), EVENTS if max_steps is None else max_steps
    known = {name: np.asarray(value, np.float64) for name, value in inputs.items()}
    k, shape = known["k_train_train"], known["y_train"].shape
    f_0 = np.broadcast_to(known["fx_train_0"], shape)
    matrices, parts = _matrices(k), [_columns(part, k.ndim) for part in (f_0, *kinks)]

    def one(b: int, j: int) -> Path:
        start, at, left, right = (part[b, :, j] for part in parts)
        return _path(matrices[b], start, (at, left, right), last, most)

    paths = [[one(b, j) for j in range(parts[0].shape[2])] for b in range(len(matrices))]

    def moved(k: np.ndarray, f_0: np.ndarray, times: np.ndarray) -> Array:
        alpha = np.stack([np.stack([p.at(times.reshape(-1)) for p in row], -1) for row in paths], 1)
        change = _outputs(np.einsum("bij,tbjm->tbim", _matrices(k), alpha), k.ndim, len(k))
        out = f_0 + change.reshape(*times.shape, len(k), *shape[1:])
        return on_device(out.astype(inputs["k_train_train"].dtype))

    def outputs(t: object) -> Prediction:
        times = _times(t)
        if times.max() > last:
            raise ValueError(f"t: expected times up to {last:g}; got {times.max():g}.")
        train, test = moved(k, f_0, times), None
        if "k_test_train" in known:
            test = moved(known["k_test_train"], known["fx_test_0"], times)
        return Prediction(train, test)

    corners = sum(len(p.times) - 2 for row in paths for p in row)
    stats: dict[str, int | Array] = {"num_steps": corners, "num_accepted_steps": corners}
    return outputs, stats | {"num_rejected_steps": 0}


def _matrices(k: np.ndarray) -> Float[np.ndarray, "B N1 N2"]:
    """As `modes.kind.as_matrices`, of NumPy's arrays."""
    if k.ndim == 4:
        return k.transpose(0, 2, 1, 3).reshape(1, k.shape[0] * k.shape[2], -1)
    return k[None] if k.ndim == 2 else k.transpose(2, 0, 1)


def _columns(f: np.ndarray, ndim: int) -> Float[np.ndarray, "B N m"]:
    """Outputs (n,) or (n, O) as what the matrices of a kernel of `ndim` axes act on."""
    f = f.reshape(len(f), -1)
    return {2: f[None], 3: f.T[:, :, None], 4: f.reshape(1, -1, 1)}[ndim]


def _outputs(c: Float[np.ndarray, "T B N m"], ndim: int, n: int) -> Float[np.ndarray, "T n O"]:
    """The inverse of `_columns`."""
    return c[..., 0].swapaxes(1, 2) if ndim == 3 else c[:, 0].reshape(len(c), n, -1)


def _times(t: object) -> np.ndarray:
    check_number("t", t)
    times = np.asarray(t, float)
    check_vector("t", times)
    return times


def _path(
    k: Float[np.ndarray, "N N"],
    f_0: Float[np.ndarray, " N"],
    kinks: tuple[np.ndarray, np.ndarray, np.ndarray],
    last: float,
    most: int,
) -> Path:
    """From corner to corner: where an output reaches its kink, the slopes are chosen anew."""
    at, left, right = kinks
    side, alpha, f, now = np.sign(f_0 - at), np.zeros_like(f_0), f_0, 0.0
    g = np.where(side < 0, left, right)
    times, alphas = [0.0], [alpha]
    for _ in range(most + 1):
        g = _least(k, side == 0, g, left, right)
        velocity, size = -k @ g, np.abs(k) @ np.abs(g)
        leaves = (side == 0) & ((g == left) | (g == right)) & (np.abs(velocity) > EXACT * size)
        side = np.where(leaves, np.sign(velocity), side)
        with np.errstate(divide="ignore", invalid="ignore"):
            wait = np.where(side * velocity < 0, (at - f) / velocity, np.inf)
        step = min(float(np.min(wait)), last - now)
        alpha, now = alpha - step * g, now + step
        times.append(now)
        alphas.append(alpha)
        if now >= last:
            return Path(np.array(times), np.array(alphas))
        side = np.where(wait <= step * (1 + EXACT), 0, side)
        f = np.where(side == 0, at, f_0 + k @ alpha)
    raise ValueError(
        f"gradient_flow: the outputs met more than {most} kinks before the last time. Raise "
        "max_steps, ask for earlier times, or take the steps of gradient_descent."
    )


def _least(
    k: Float[np.ndarray, "N N"],
    kinked: np.ndarray,
    g: Float[np.ndarray, " N"],
    left: np.ndarray,
    right: np.ndarray,
) -> Float[np.ndarray, " N"]:
    """The slopes g with the least gᵀ K g, those of `kinked` entries free between their bounds.

    A primal active-set method: entries inside their bounds solve (K g)_i = 0; one that meets a
    bound on the way stays there, and one that would rather leave it is freed.
    """
    g, free = g.copy(), kinked & (left < g) & (g < right)
    for _ in range(20 * int(kinked.sum()) + 20):
        wanted = g.copy()
        if free.any():
            wanted[free] = _solved(k[np.ix_(free, free)], -k[np.ix_(free, ~free)] @ g[~free])
        way = wanted - g
        with np.errstate(divide="ignore", invalid="ignore"):
            room = np.where(way < 0, (left - g) / way, (right - g) / way)
        room = np.where(free & (way != 0), room, np.inf)
        if np.min(room) < 1:
            first = int(np.argmin(room))
            g = g + room[first] * np.where(free, way, 0)
            g[first], free[first] = (left if way[first] < 0 else right)[first], False
            continue
        g = wanted
        slope, size = k @ g, np.abs(k) @ np.abs(g)
        pull = np.where(g == left, -slope, np.where(g == right, slope, 0))
        pull = np.where(kinked & ~free & (pull > EXACT * size) & (left < right), pull, 0)
        if not pull.any():
            return g
        free[int(np.argmax(pull))] = True
    raise ValueError(
        "gradient_flow: the slopes at a kink did not settle. Use float64 kernels, or take the "
        "steps of gradient_descent."
    )


def _solved(k: np.ndarray, b: np.ndarray) -> np.ndarray:
    """K⁻¹ b, or the least solution where K has no inverse, as of equal rows."""
    try:
        factor = scipy_linalg().cho_factor(k)
        if np.min(np.diag(factor[0])) ** 2 > EXACT * np.max(np.diag(k)):
            return scipy_linalg().cho_solve(factor, b)
    except np.linalg.LinAlgError:
        pass
    return np.linalg.lstsq(k, b, rcond=EXACT)[0]
