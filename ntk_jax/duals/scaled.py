"""The dual of a multiple of a function whose dual is known."""

from dataclasses import dataclass, replace
from typing import Any

from jax import Array

from ntk_jax.duals.dual_rule import Dual, DualOfGap, DualRule, Gap


@dataclass(frozen=True)
class Scaled(DualRule):
    """The dual of `scale` times the function of another rule."""

    rule: DualRule
    scale: float

    @property
    def unroll(self) -> int:  # type: ignore[override]
        """As the other rule."""
        return self.rule.unroll

    @property
    def exact(self) -> bool:  # type: ignore[override]
        """As the other rule."""
        return self.rule.exact

    @property
    def flat(self) -> bool:  # type: ignore[override]
        """As the other rule."""
        return self.rule.flat

    @property
    def by_terms(self) -> bool:  # type: ignore[override]
        """As the other rule."""
        return self.rule.by_terms

    @property
    def adaptive(self) -> bool:
        """As the other rule."""
        return self.rule.adaptive

    @property
    def cusp(self) -> bool:
        """As the other rule."""
        return self.rule.cusp

    @property
    def far(self) -> DualRule:
        """Likewise, scaled."""
        return replace(self, rule=self.rule.far)

    @property
    def own(self) -> DualRule:
        """Likewise, scaled."""
        return replace(self, rule=self.rule.own)

    def fitted(self, q_max: float, dtype: Any) -> DualRule:
        """Likewise, scaled."""
        return replace(self, rule=self.rule.fitted(q_max, dtype))

    def shortfall(self, q_max: float, dtype: Any) -> str | None:
        """Relative, hence that of the other rule."""
        return self.rule.shortfall(q_max, dtype)

    def rows(self, q: Array) -> Any:
        """Those of the other rule."""
        return self.rule.rows(q)

    def pair(self, rows1: Any, q12: Array, rows2: Any) -> Dual:
        """Both moments, times the square of the scale."""
        return Dual(*(self.scale**2 * k for k in self.rule.pair(rows1, q12, rows2)))

    def diagonal(self, q: Array) -> Dual:
        """Likewise."""
        return Dual(*(self.scale**2 * k for k in self.rule.diagonal(q)))

    def mean(self, q: Array) -> Array:
        """Times the scale, whose sign the moments do not see."""
        return self.scale * self.rule.mean(q)

    @property
    def description(self) -> str:
        """The scale and the other rule."""
        return f"{self.scale:.4g} × {self.rule.description}"

    def gap_rows(self, q: Array, second: Array) -> Any:
        """Those of the other rule."""
        return self.rule.gap_rows(q, second / self.scale**2)

    def of_gap(self, gap: Gap, rows1: Any, rows2: Any) -> DualOfGap:
        """Correlations do not see a scale."""
        gaps, correlation, k_dot = self.rule.of_gap(gap, rows1, rows2)
        return DualOfGap(gaps, correlation, self.scale**2 * k_dot)
