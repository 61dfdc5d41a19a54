"""The nodes of `ntk_jax/duals/mixtures.py`: sigmoid(u) = E[Phi(u / S)], S = 2 K, K of Kolmogorov's
distribution.

A Gauss rule for the law of log S, from its moments in 60 digits (Stieltjes); prints scales,
weights, and the largest errors of sigmoid, its slope and softplus. Run: python
tests/references/logistic_mixture.py
"""

import mpmath as mp
import numpy as np
from scipy.special import expit, ndtr

mp.mp.dps = 60


def density(x):
    """Of Kolmogorov's distribution, by whichever of its two series converges faster."""
    if x > 1:
        return (
            8 * x * mp.fsum((-1) ** (k - 1) * k**2 * mp.exp(-2 * k**2 * x**2) for k in range(1, 12))
        )
    terms = (
        mp.exp(-((j * mp.pi) ** 2) / (8 * x**2)) * ((j * mp.pi) ** 2 / (4 * x**4) - 1 / x**2)
        for j in range(1, 24, 2)
    )
    return mp.sqrt(2 * mp.pi) * mp.fsum(terms)


def gauss(points, weights, count):
    """Nodes and weights for a discrete measure, by its three-term recurrence."""
    diagonal, beside = [], []
    before, p, norm = points * 0, points * 0 + 1, mp.fsum(weights)
    mass = norm
    for k in range(count):
        diagonal.append(mp.fsum(weights * points * p * p) / norm)
        after = (points - diagonal[-1]) * p - (beside[-1] if k else 0) * before
        following = mp.fsum(weights * after * after)
        beside.append(following / norm)
        before, p, norm = p, after, following
    J = mp.diag(diagonal)
    for i in range(count - 1):
        J[i, i + 1] = J[i + 1, i] = mp.sqrt(beside[i])
    nodes, vectors = mp.eigsy(J)
    return [nodes[i] for i in range(count)], [mass * vectors[0, i] ** 2 for i in range(count)]


def main():
    step = mp.mpf(1) / 40
    logs = np.array([step * i for i in range(-130, 80)])
    weights = np.array([step * mp.exp(t) * density(mp.exp(t)) for t in logs])
    u = np.linspace(0, 60, 6001)
    for count in (6, 10):
        nodes, w = gauss(logs + mp.log(2), weights, count)
        s, w = (np.array([float(v) for v in a]) for a in ([mp.exp(t) for t in nodes], w))
        z = u[:, None] / s
        bell = np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
        errors = (
            ndtr(-z) @ w - expit(-u),
            bell @ (w / s) - expit(u) * expit(-u),
            (s * bell - u[:, None] * ndtr(-z)) @ w,
        )
        softplus = errors[2] - np.log1p(np.exp(-u))
        print(count, [f"{np.max(np.abs(e)):.1e}" for e in (*errors[:2], softplus)])
        print(tuple(map(float, s)), tuple(map(float, w)), sep="\n")


if __name__ == "__main__":
    main()
