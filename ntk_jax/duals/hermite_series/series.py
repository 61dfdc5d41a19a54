"""The dual of any scalar function, by the Hermite (Mehler) series: E[f(u) g(v)] = sum_k a_k(f, q11)
a_k(g, q22) rho^k.

The coefficients a_k = E[f(sigma z) h_k(z)] cost one quadrature per example, a pair costs one
multiplication and addition per term. Kinks are split off as sums of one-sided powers, whose
coefficients and duals are exact (`kinks.py`): what remains is smooth and converges fast; of a
piecewise polynomial, a polynomial remains and nothing is left out.

(Mehler 1866; Daniely, Frostig, Singer 2016, section 4.)
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from ntk_jax.compat import is_concrete
from ntk_jax.duals.angle import beyond_cusp
from ntk_jax.duals.content import by_content
from ntk_jax.duals.dual_rule import Dual, DualOfGap, DualRule, Gap, PoleGaps
from ntk_jax.duals.gaussian_pair import as_moments
from ntk_jax.duals.hermite_series import nearly_parallel
from ntk_jax.duals.hermite_series.expansion import Expansion
from ntk_jax.duals.hermite_series.fit import (
    enough_terms,
    errors,
    find_kinks,
    fitted_to,
    is_piecewise,
    relative_error,
)
from ntk_jax.duals.hermite_series.sums import (
    Rows,
    coefficients,
    pair_moments,
    second_moment,
)
from ntk_jax.duals.kinks import kinks
from ntk_jax.duals.numerics import ratio, root, ulps, with_derivative


@dataclass(frozen=True)
class Series(Expansion, DualRule):
    """The dual of a scalar function by its Hermite series. Called on values, it takes as many terms
    as their variances ask for.

    Warns:
        UserWarning: (when called on values) the tolerance is not met.
    """

    unroll = 1
    adaptive = True
    exact = False

    @property
    def cusp(self) -> bool:
        return any(any(kink.jumps[:2]) for kink in self.kinks)

    def __call__(self, q11: ArrayLike, q12: ArrayLike, q22: ArrayLike) -> Dual:
        moments = as_moments(q11, q12, q22)
        fitted = self if self.terms is not None else fitted_to(self, moments)
        return DualRule.__call__(fitted, *moments)

    @property
    def own(self) -> DualRule:
        return replace(self, terms=None, tolerance=None)

    def fitted(self, q_max: float, dtype: Any) -> DualRule:
        return self if self.terms else enough_terms(self, q_max, dtype)

    def shortfall(self, q_max: float, dtype: Any) -> str | None:
        worst, asked = (
            relative_error(self, q_max, dtype),
            self.tolerance or (1e-9 if dtype == jnp.float64 else 1e-5),
        )
        if worst <= max(asked, (1e-6 if dtype == jnp.float64 else 2e-5) if self.kinks else 0):
            return None
        return (
            f"the series of {self.phi!r} with {self.count} terms is within {worst:.1e} of the dual "
            "(relative, at variance "
            f"{q_max:.3g} and correlations near +-1, much closer elsewhere); asked for "
            f"{asked:.0e}. "
            "Use smaller weights, an activation with a closed form, or name the points other than "
            "0 where the function is not "
            "smooth: duals.series(phi, kinks=(...))."
        )

    def rows(self, q: Array) -> Rows:
        s = root(q)
        phi, slope = coefficients(self, 0, q), coefficients(self.slope, 1, q)
        return Rows(q, ratio(jnp.ones_like(s), s), kinks.view(self.kinks, q), phi, slope)

    def pair(self, rows1: Rows, q12: Array, rows2: Rows) -> Dual:
        return Dual(*pair_moments(self, rows1, q12, rows2, None))

    def mean(self, q: Array) -> Array:
        return coefficients(self, 0, q).all[0]

    @property
    def description(self) -> str:
        """With the bound on its relative error at unit variance."""
        at = jnp.asarray(1.0)
        error = max(float(self.bound(at, at).k / self.diagonal(at).k), ulps(1, at.dtype))
        return f"series of {self.count} terms, error below {error:.0e}"

    def diagonal(self, q: Array) -> Dual:
        return Dual(*(second_moment(self, order, q) for order in (0, 1)))

    @property
    def far(self) -> DualRule:
        return replace(self, chords=False) if self.cusp else self

    def gap_rows(self, q: Array, second: Array) -> nearly_parallel.Side:
        rows = self.rows(q)
        summed = self.pair(rows, q, rows).k if self.chords and not self.complete else second
        return nearly_parallel.side(rows, second, summed)

    def of_gap(
        self, gap: Gap, rows1: nearly_parallel.Side, rows2: nearly_parallel.Side
    ) -> DualOfGap:
        one, other = rows1.rows, rows2.rows
        q12 = gap.rho * (root(one.q) * root(other.q))
        k, k_dot = pair_moments(self, one, q12, other, beyond_cusp(gap.pole_gap))
        rho = k * (rows1.r * rows2.r)
        gaps = PoleGaps(1 - rho, 1 + rho)
        if self.chords:
            far = gaps.nearer.signed
            exact = nearly_parallel.where_near(self.kinks, far, gap, rows1, rows2)
            gaps = Gap(with_derivative(exact, far)).both
        return DualOfGap(gaps, rho, k_dot)

    def bound(self, q11: ArrayLike, q22: ArrayLike) -> Dual:
        """A bound on the error of k and k_dot at any correlation: Cauchy-Schwarz on what is left
        out and what is not seen.

        Raises:
            ValueError: inside jit, where variances are not known; what calling the series raises.
        """
        q11, _, q22 = as_moments(q11, 0, q22)
        if not (is_concrete(q11) and is_concrete(q22)):
            raise ValueError(
                "bound: expected variances that are known; got some inside jit. Take the bound "
                "outside of it."
            )
        pairs = np.stack(np.broadcast_arrays(np.asarray(q11, float), np.asarray(q22, float)))
        at = {q: errors(self, q, q11.dtype) for q in np.unique(pairs).tolist()}
        second, share = np.moveaxis(
            np.array([at[q] for q in pairs.ravel().tolist()]).reshape(*pairs.shape, 2, 2), -1, 0
        )
        return Dual(
            *jnp.asarray(
                np.moveaxis(np.sqrt(second[0] * second[1]) * share.max(axis=0), -1, 0), q11.dtype
            )
        )


def series_rule(
    phi: Callable[[Array], Array], kinks: tuple[float, ...] = (), tolerance: float | None = None
) -> Series:
    """The series of a scalar function; a kink at 0 is found, others are named."""
    phi = by_content(phi)
    found = find_kinks(phi, (0.0, *kinks))
    return Series(phi, found, piecewise=is_piecewise(phi, found), tolerance=tolerance)
