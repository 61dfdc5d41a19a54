"""The polynomials of `ntk_jax/duals/angle.py`: R2(u) = (arccos(1-u) / sqrt(u (2-u)) - 1 - u/3) / u²
on [0, 1].

Chebyshev interpolation with 60 digits, turned into powers of u. Prints the coefficients, lowest
power first, and the largest relative error that R = 1 + u/3 + u² R2 inherits. Run: python
tests/references/angle_coefficients.py
"""

import mpmath as mp

mp.mp.dps = 60


def r2(u):
    if u < mp.mpf(10) ** -12:
        return mp.mpf(2) / 15 + 2 * u / 35
    return (mp.acos(1 - u) / mp.sqrt(u * (2 - u)) - 1 - u / 3) / u**2


def fit(degree):
    nodes = [(1 + mp.cos(mp.pi * (2 * i + 1) / (2 * degree + 2))) / 2 for i in range(degree + 1)]
    return mp.lu_solve(
        mp.matrix([[x**k for k in range(degree + 1)] for x in nodes]),
        mp.matrix([r2(x) for x in nodes]),
    )


if __name__ == "__main__":
    for degree in (7, 8, 9, 18, 20):
        c = fit(degree)
        grid = [mp.mpf(i) / 500 for i in range(501)]
        error = max(
            u**2 * abs(mp.polyval(list(c)[::-1], u) - r2(u)) / (1 + u / 3 + u**2 * r2(u))
            for u in grid
        )
        print(degree, mp.nstr(error, 3), [float(x) for x in c])
