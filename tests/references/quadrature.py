"""A slow, independent reference for duals: nested panel quadrature in NumPy float64, with breaks at
every kink.
"""

import numpy as np

NODES, WEIGHTS = np.polynomial.legendre.leggauss(16)


def _rule(breaks):
    half = np.diff(breaks, axis=-1)[..., None] / 2
    u = breaks[..., :-1, None] + half * (1 + NODES)
    w = half * WEIGHTS * np.exp(-u * u / 2) / np.sqrt(2 * np.pi)
    return u.reshape(*u.shape[:-2], -1), w.reshape(*w.shape[:-2], -1)


def dual(phi, slope, q11, rho, q22, kinks=(0.0,)):
    """(E[phi(u) phi(v)], E[phi'(u) phi'(v)]): v given u is sigma2 (rho x + sqrt(1 - rho²) y)."""
    s1, s2, c = np.sqrt(q11), np.sqrt(q22), np.sqrt(1 - rho * rho)
    base = np.arange(-12, 12.1, 1.0)
    ridges = [k / s1 for k in kinks] + [
        k / s2 / rho for k in kinks if abs(rho) > 1e-3
    ]  # sharp at scale c about a ridge
    near = [
        r + sign * max(c, 1e-6) * 2.0**j for r in ridges for sign in (-1, 1) for j in range(-2, 5)
    ]
    x, wx = _rule(np.sort(np.clip(np.concatenate([base, ridges, near]), -12, 12)))
    moved = np.clip(np.stack([(k / s2 - rho * x) / c for k in kinks], axis=1), -12, 12)
    y, wy = _rule(
        np.sort(np.concatenate([np.broadcast_to(base, (len(x), len(base))), moved], axis=1), axis=1)
    )
    v = s2 * (rho * x[:, None] + c * y)
    return tuple(float(wx @ (f(s1 * x) * np.sum(wy * f(v), axis=1))) for f in (phi, slope))
