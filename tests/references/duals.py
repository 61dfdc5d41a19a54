"""Writes duals.json: closed-form duals by Gauss-Legendre in 40-digit arithmetic, independent of the
library's formulas.

k(rho) = E[phi(s1 x) phi(s2 (rho x + sqrt(1-rho²) y))] by the angular form for rectifiers, nested
quadrature for smooth functions. Run: python tests/references/duals.py
"""

import json
from pathlib import Path

import mpmath as mp

mp.mp.dps = 40
PAIRS = [
    ("0.5", "0.3", "2"),
    ("1", "-0.95", "1"),
    ("1.7", "0.999", "0.6"),
    ("1", "0", "1"),
    ("3", "-0.5", "0.2"),
]


def nested(f, q11, rho, q22):
    s1, s2, c = mp.sqrt(q11), mp.sqrt(q22), mp.sqrt(1 - rho * rho)
    weight = lambda x: mp.exp(-x * x / 2) / mp.sqrt(2 * mp.pi)
    h = (
        mp.mpf(1) / 5
    )  # the trapezoidal rule: exponentially convergent for entire functions with Gaussian weight
    grid = [h * i for i in range(-60, 61)]
    w = [h * weight(x) for x in grid]
    f1 = [f(s1 * x) for x in grid]
    return mp.fsum(
        w[i] * f1[i] * mp.fsum(w[j] * f(s2 * (rho * grid[i] + c * grid[j])) for j in range(121))
        for i in range(121)
    )


def relu(q11, rho, q22):
    theta = mp.acos(rho)
    return mp.sqrt(q11 * q22) * (mp.sin(theta) + (mp.pi - theta) * rho) / (2 * mp.pi), (
        mp.pi - theta
    ) / (2 * mp.pi)


def relu2(q11, rho, q22):
    t = mp.acos(rho)
    k = q11 * q22 * (3 * mp.sin(t) * rho + (mp.pi - t) * (1 + 2 * rho**2)) / (2 * mp.pi)
    return k, 4 * relu(q11, rho, q22)[0]


cdf = mp.ncdf
SMOOTH = {
    "erf": (mp.erf, lambda u: 2 / mp.sqrt(mp.pi) * mp.exp(-u * u)),
    "gelu": (lambda u: u * cdf(u), lambda u: cdf(u) + u * mp.npdf(u)),
    "sin": (mp.sin, mp.cos),
    "cos": (mp.cos, lambda u: -mp.sin(u)),
    "exp": (mp.exp, mp.exp),
    "gaussian": (lambda u: mp.exp(-u * u), lambda u: -2 * u * mp.exp(-u * u)),
}

if __name__ == "__main__":
    out = {}
    for triple in PAIRS:
        moments = [mp.mpf(t) for t in triple]
        for name, f in {"relu": relu, "rectified_square": relu2}.items():
            out.setdefault(name, []).append([*map(float, moments), *map(float, f(*moments))])
        for name, pair in SMOOTH.items():
            out.setdefault(name, []).append(
                [*map(float, moments), *(float(nested(f, *moments)) for f in pair)]
            )
    Path(__file__).with_name("duals.json").write_text(json.dumps(out, indent=1) + "\n")
