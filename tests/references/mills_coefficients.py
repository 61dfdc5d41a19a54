"""The polynomials of `ntk_jax/duals/mills.py`: (c + 4) m(c) in powers of v = (c - 4) / (c + 4), of
Mills' ratio m(c) = exp(c² / 2) int_c^inf exp(-x² / 2) dx, for c >= 0.

Chebyshev interpolation with 50 digits, turned into powers. Prints the coefficients, lowest power
first, and the largest relative error. Run: python tests/references/mills_coefficients.py
"""

import mpmath as mp

mp.mp.dps = 50
CENTRE = 4


def mills(c):
    if c < 60:
        return mp.sqrt(mp.pi / 2) * mp.exp(c * c / 2) * mp.erfc(c / mp.sqrt(2))
    series = (mp.mpf(-1) ** n * mp.fac2(2 * n - 1) / c ** (2 * n) for n in range(16))
    return mp.fsum(series) / c


def at(v):
    """(c + 4) m(c), which is 1 at infinity."""
    if v == 1:
        return mp.mpf(1)
    c = CENTRE * (1 + v) / (1 - v)
    return (c + CENTRE) * mills(c)


def fit(degree):
    nodes = [mp.cos(mp.pi * (2 * i + 1) / (2 * degree + 2)) for i in range(degree + 1)]
    powers = mp.matrix([[x**k for k in range(degree + 1)] for x in nodes])
    return mp.lu_solve(powers, mp.matrix([at(x) for x in nodes]))


if __name__ == "__main__":
    for degree in (11, 24):
        c = fit(degree)
        grid = [mp.mpf(i) / 200 - 1 for i in range(401)]
        error = max(abs(mp.polyval(list(c)[::-1], v) / at(v) - 1) for v in grid)
        print(degree, mp.nstr(error, 3), [float(x) for x in c])
