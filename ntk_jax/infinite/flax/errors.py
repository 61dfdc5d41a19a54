"""The error for what has no limit, or no rule."""

from jax.typing import DTypeLike


class NoLimitError(ValueError):
    """An operation without an infinite-width limit, or without a rule for it.

    The message says where, why, and what to do.
    """

    def __init__(self, why: str, advice: str | None = None):
        self.why, self.advice = why, advice or MONTE_CARLO
        self.operation, self.where = "", ""
        super().__init__(why)

    def __str__(self) -> str:
        where = self.where or (f" at `{self.operation}`." if self.operation else "")
        why = self.why if where else self.why.rstrip(",") + "."
        return f"infinite_width: {why}{where} {self.advice}"


SAMPLES = (
    "estimate this operation with samples of its Gaussians (num_samples=, key= of infinite_width), "
    "or everything with ntk_jax.monte_carlo_kernels."
)
BY_SAMPLES = SAMPLES[0].upper() + SAMPLES[1:]
MONTE_CARLO = (
    "Without a limit, ntk_jax.monte_carlo_kernels estimates the kernels of the finite network."
)


def out_of_range(dtype: DTypeLike) -> ValueError:
    """The error for kernels that overflow."""
    return ValueError(
        f"infinite_width: expected kernels within the range of {dtype}; they overflow, or the "
        "model holds NaN. "
        "Use float64, smaller inputs, or smaller variances (init_stats) and learning rates."
    )
