"""Kernels of activations with kinks at 60 digits, which share no formula with the library's.

With (u, v) normal of deviations s1, s2 and correlation r, and p = s1 s2, Price's theorem reads

    d/dr E[f(u) g(v)] = p E[f'(u) g'(v)],

from r = 0, where means multiply. The second derivative of an activation is a function g and jumps J
delta(u - c), and g' = rate g + K delta(u - c): what is integrated is a density at two kinks, or
one at a kink with the mean of g given it. With r = sin t the densities have no pole at r = +-1.
"""

import itertools
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any, NamedTuple

from mpmath import erfc, exp, mp, mpf, workdps
from mpmath.calculus.quadrature import GaussLegendre

DIGITS = 60
GUARD = 24  # digits more, of which sums and differences may take some
Dual = tuple[Any, Any]


class Kink(NamedTuple):
    """A point, and the jumps there of phi' and of the function g in phi''."""

    at: Any
    slope: Any
    curvature: Any = 0


class Kinked(NamedTuple):
    """constant + slope u + sum of J relu(u - c) + K relu(u - c)² / 2 over the kinks; or, if g =
    `scale` e^u below 0 and nothing above (`rate` 1), selu.
    """

    constant: Any
    slope: Any
    kinks: tuple[Kink, ...]
    scale: Any = 0

    @property
    def rate(self) -> int:
        """g' = rate g, but for its jumps."""
        return 1 if self.scale else 0

    def curvature_mean(self, mean: Any, s: Any) -> Any:
        """E[g] of a normal input."""
        if self.scale:
            return self.scale * exp(mean + s**2 / 2) * beyond((mean + s**2) / s)
        parts = (k.curvature * beyond((k.at - mean) / s) for k in self.kinks if k.curvature)
        return sum(parts, mpf(0))

    def means(self, s: Any) -> tuple[Any, Any, Any]:
        """E[phi], E[phi'], E[g] of an input of mean 0 and deviation s."""
        g = self.curvature_mean(mpf(0), s)
        if self.scale:  # phi = scale (e^u - 1) below 0, (scale + J) u above
            above = self.scale + self.kinks[0].slope
            return above * s * normal_density(0) + g - self.scale / 2, above / 2 + g, g
        value, slope = mpf(self.constant), mpf(self.slope)
        for c, J, K in self.kinks:
            mass, first = beyond(c / s), s * normal_density(c / s) - c * beyond(c / s)
            value += J * first + K * (s**2 * mass - c * first) / 2
            slope += J * mass + K * first
        return value, slope, g


def beyond(x: Any) -> Any:
    """P(Z > x)."""
    return 1 - _tail(-x) if x < 0 else _tail(x)


@lru_cache(maxsize=16)  # kinks at both sides of 0 ask for the same
def _tail(x: Any) -> Any:
    return erfc(x / mp.sqrt(2)) / 2


def normal_density(x: Any) -> Any:
    """Of mean 0 and deviation 1."""
    return _peak(mp.prec) * exp(-x * x / 2)


@cache
def _peak(precision: int) -> Any:
    return 1 / mp.sqrt(2 * mp.pi)


_density_of_one = lru_cache(maxsize=16)(normal_density)


def rectifier(positive: Any, negative: Any) -> Kinked:
    """positive relu(u) + negative relu(-u)."""
    return Kinked(0, -negative, (Kink(mpf(0), positive + negative),))


def kinked(name: str) -> Kinked:
    """By the name of the catalogue, at its defaults and examples."""
    ramp = lambda low, high, height, slope, constant=0: Kinked(
        constant, 0, (Kink(mpf(low), slope), Kink(mpf(high), -slope))
    )
    sixth, scale = mpf(1) / 6, mpf("1.0507009873554804934193349852946")
    decay = scale * mpf("1.6732632423543772848170429916717")
    return {
        "abs": lambda: rectifier(1, 1),
        "hard_sigmoid": lambda: ramp(-3, 3, 1, sixth),
        "hard_swish": lambda: Kinked(
            0, 0, (Kink(mpf(-3), -mpf(1) / 2, 2 * sixth), Kink(mpf(3), -mpf(1) / 2, -2 * sixth))
        ),
        "hard_tanh": lambda: ramp(-1, 1, 2, 1, -1),
        "leaky_relu": lambda: rectifier(1, -mpf(0.01)),
        "rectifier": lambda: rectifier(1, mpf(0.5)),
        "relu": lambda: rectifier(1, 0),
        "relu6": lambda: ramp(0, 6, 6, 1),
        "selu": lambda: Kinked(0, 0, (Kink(mpf(0), scale - decay, -decay),), decay),
    }[name]()


def dual(name: str, q11: Any, q12: Any, q22: Any) -> Dual:
    """k = E[phi(u) phi(v)] and k_dot = E[phi'(u) phi'(v)]."""
    s1, s2 = mp.sqrt(q11), mp.sqrt(q22)
    rho = min(max(q12 / (s1 * s2), mpf(-1)), mpf(1))
    steps = {"sign": (-1, 1), "step": (0, 1)}
    if name in steps:
        low, high = steps[name]
        angle = mp.asin(rho) / (2 * mp.pi)
        return mpf(low + high) ** 2 / 4 + (high - low) ** 2 * angle, mpf(0)
    return _integrated(kinked(name), s1, s2, rho)


def _integrated(phi: Kinked, s1: Any, s2: Any, rho: Any) -> Dual:
    (a0, a1, g1), (b0, b1, g2) = phi.means(s1), phi.means(s2)
    p, G0 = s1 * s2, g1 * g2
    first, second = _growth(phi.rate, p, rho)
    k, k_dot = a0 * b0 + p * rho * a1 * b1 + p**2 * second * G0, a1 * b1 + p * first * G0
    seen = _pairs(phi, s1, s2)
    for t, weight in _nodes(phi, s1, s2, rho):
        cosine, sine = mp.cos_sin(t)
        W, H = _at_kinks(phi, s1, s2, seen, cosine, sine)
        left = rho - sine
        k_dot += weight * W
        k += weight * p * left * W
        if H:
            first, second = _growth(phi.rate, p, left)
            k_dot += weight * p * first * H
            k += weight * p**2 * second * H
    return k, k_dot


def _growth(rate: int, p: Any, r: Any) -> tuple[Any, Any]:
    """What E[g g], growing as e^(rate p r), is integrated to, once and twice."""
    return (mp.expm1(p * r) / p, (mp.expm1(p * r) - p * r) / p**2) if rate else (r, r**2 / 2)


def _pairs(phi: Kinked, s1: Any, s2: Any) -> dict[tuple[Any, Any], tuple[Any, Any]]:
    """Products of jumps over 2 pi, of pairs (c / s1, d / s2): mirrored pairs, whose densities are
    equal, are one.
    """
    found: dict[tuple[Any, Any], tuple[Any, Any]] = {}
    for (c, J, K), (d, J_, K_) in itertools.product(phi.kinks, phi.kinks):
        a, b = max((c / s1, d / s2), (-c / s1, -d / s2))
        W, H = found.get((a, b), (0, 0))
        found[a, b] = W + J * J_ / (2 * mp.pi), H + K * K_ / (2 * mp.pi)
    return found


def _at_kinks(
    phi: Kinked, s1: Any, s2: Any, pairs: dict[Any, Any], cosine: Any, sine: Any
) -> tuple[Any, Any]:
    """p cos t times E[phi'' phi''] without E[g g], and E[g' g'] without rate² E[g g]."""
    W = H = mpf(0)
    for (a, b), (J, K) in pairs.items():
        density = _density(a, b, cosine, sine)
        W += J * density
        H += K * density if K else 0
    if any(kink.curvature for kink in phi.kinks):
        for c, J, K in phi.kinks:
            for s, other in ((s1, s2), (s2, s1)):
                given = phi.curvature_mean(sine * c * other / s, other * cosine)
                seen = other * cosine * _density_of_one(c / s) * given
                W, H = W + J * seen, H + phi.rate * K * seen
    return W, H


def _density(a: Any, b: Any, cosine: Any, sine: Any) -> Any:
    """2 pi cos t times the density of a standard pair of correlation sin t, without
    cancellation.
    """
    pole = 1 if sine >= 0 else -1
    return exp(-((a - pole * b) ** 2) / (2 * cosine**2) - pole * a * b / (1 + abs(sine)))


def _nodes(phi: Kinked, s1: Any, s2: Any, rho: Any) -> Iterator[tuple[Any, Any]]:
    """Of t from 0 to arcsin(rho), by panels that halve towards the pole, as far as a density
    changes there, or an exponential of a variance up to 30.
    """
    pole, end = 1 if rho >= 0 else -1, mp.acos(abs(rho))
    apart = [abs(c.at / s1 - pole * d.at / s2) for c in phi.kinks for d in phi.kinks]
    apart = [a / 20 for a in apart if a > mpf(10) ** -DIGITS]
    lowest = max(end, min(apart, default=mp.pi / (32 if phi.scale else 2)))
    breaks = [mp.pi / 2]
    while breaks[-1] > lowest:
        breaks.append(breaks[-1] / 2)
    breaks = [b for b in breaks if b > end] + [end]
    for high, low in itertools.pairwise(breaks):
        for x, weight in _rule(mp.prec):
            half = (high - low) / 2
            yield pole * (mp.pi / 2 - low - half * (1 + x)), pole * half * weight


@cache
def _rule(precision: int) -> list[tuple[Any, Any]]:
    """48 nodes of Gauss and Legendre."""
    return GaussLegendre(mp).calc_nodes(5, precision)


def by_depth(
    name: str, x: Any, y: Any, depth: int, W_std: float, b_std: float
) -> list[tuple[list[Any], list[Any]]]:
    """Moments (xx, xy, yy) of K and Theta after 0, ..., `depth` hidden layers: the recursion of
    `mlp_kernels`' docstring, in the "ntk" parameterization.
    """
    with workdps(DIGITS + GUARD):
        W, b = mpf(W_std) ** 2, mpf(b_std) ** 2
        rows = [[mpf(float(v)) for v in row] for row in (x, y)]
        pairs = ((0, 0), (0, 1), (1, 1))
        products = [sum(u * v for u, v in zip(rows[i], rows[j], strict=True)) for i, j in pairs]
        K = [W * product / len(x) + b for product in products]
        layers = [(K, K)]
        for _ in range(depth):
            (xx, xy, yy), T = layers[-1]
            duals = _dual_of_one(name, xx), dual(name, xx, xy, yy), _dual_of_one(name, yy)
            K = [W * k + b for k, _ in duals]
            T = [new + W * k_dot * t for new, (_, k_dot), t in zip(K, duals, T, strict=True)]
            layers.append((K, T))
        return layers


@cache
def _dual_of_one(name: str, q: Any) -> Dual:
    return dual(name, q, q, q)
