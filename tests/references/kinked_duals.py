"""Writes kinked_duals.json: duals of piecewise polynomials with kinks away from 0, by integration
in 30-digit arithmetic.

For each x, E[phi(v) | u = s1 x] is a sum of truncated normal moments; the integral over x goes by
Gauss-Legendre panels with breaks at the kinks of u and, dense at the scale of sqrt(1 - rho²), where
v given u crosses one. Each row: the moments as the floats that the library gets, then k and k_dot.
Run: python tests/references/kinked_duals.py
"""

import itertools
import json
from pathlib import Path

import mpmath as mp

mp.mp.dps = 30
INF = mp.inf
# name -> (from, to, coefficients, lowest power first)
PIECES = {
    "hard_tanh": [(-INF, -1, [-1]), (-1, 1, [0, 1]), (1, INF, [1])],
    "relu6": [(-INF, 0, [0]), (0, 6, [0, 1]), (6, INF, [6])],
    "hard_sigmoid": [(-INF, -3, [0]), (-3, 3, [mp.mpf(1) / 2, mp.mpf(1) / 6]), (3, INF, [1])],
    "hard_swish": [(-INF, -3, [0]), (-3, 3, [0, mp.mpf(1) / 2, mp.mpf(1) / 6]), (3, INF, [0, 1])],
}
TRIPLES = [
    (1.0, 0.3, 1.0),
    (1.3, -0.7, 0.4),
    (1.0, 1 - 1e-3, 1.0),
    (1.0, -1 + 1e-3, 2.0),
    (2.0, 1 - 1e-5, 0.3),
    (2.0, 1 - 1e-7, 2.0),
    (2.0, -1 + 1e-7, 1.5),
    (30.0, 0.999, 20.0),
    (0.01, 0.5, 9.0),
]


def derivative(coefficients):
    return [i * c for i, c in enumerate(coefficients)][1:]


def tail(z):
    return mp.erfc(z / mp.sqrt(2)) / 2


def conditional(pieces, mean, deviation):
    """E[f(v)] for v normal."""
    total = mp.mpf(0)
    for low, high, c in pieces:
        A, B = (low - mean) / deviation, (high - mean) / deviation
        mass = tail(A) - tail(B) if A > 0 else tail(-B) - tail(-A)
        a, b = (mp.npdf(z) if mp.isfinite(z) else mp.mpf(0) for z in (A, B))
        second = mass + (A * a if a else 0) - (B * b if b else 0)
        m = [mass, mean * mass + deviation * (a - b)]
        m.append(mean**2 * mass + 2 * mean * deviation * (a - b) + deviation**2 * second)
        total += mp.fsum(x * y for x, y in zip(c, m, strict=False))
    return total


def moment(pieces, q11, q12, q22):
    s1, s2 = mp.sqrt(q11), mp.sqrt(q22)
    rho = q12 / (s1 * s2)
    sine = mp.sqrt(1 - rho * rho)
    kinks = [high for _, high, _ in pieces[:-1]]
    breaks = [mp.mpf(i) for i in range(-11, 12)] + [k / s1 for k in kinks]
    for k in kinks:
        ridge = k / s2 / rho
        breaks += [ridge] + [
            ridge + sign * sine * mp.mpf(2) ** j for sign in (-1, 1) for j in range(-2, 6)
        ]
    breaks = sorted(b for b in set(breaks) if abs(b) <= 11)
    total = mp.mpf(0)
    for a, b in itertools.pairwise(breaks):
        c = next(c for low, high, c in pieces if low <= s1 * (a + b) / 2 <= high)
        f = lambda x, c=c: (
            mp.npdf(x)
            * mp.polyval(c[::-1] or [0], s1 * x)
            * conditional(pieces, s2 * rho * x, s2 * sine)
        )
        if any(c):
            total += mp.quad(f, [a, b], method="gauss-legendre", maxdegree=5)
    return total


if __name__ == "__main__":
    out = {name: [] for name in PIECES}
    for name, pieces in PIECES.items():
        slopes = [(low, high, derivative(c)) for low, high, c in pieces]
        for q11, rho, q22 in TRIPLES:
            q12 = rho * (q11 * q22) ** 0.5
            moments = [mp.mpf(q) for q in (q11, q12, q22)]
            out[name].append(
                [q11, q12, q22, float(moment(pieces, *moments)), float(moment(slopes, *moments))]
            )
    rows = (
        f' "{name}": [\n  ' + ",\n  ".join(map(json.dumps, values)) + "\n ]"
        for name, values in out.items()
    )
    Path(__file__).with_name("kinked_duals.json").write_text("{\n" + ",\n".join(rows) + "\n}\n")
