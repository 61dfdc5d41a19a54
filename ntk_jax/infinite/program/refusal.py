"""The error for what has no limit, or no rule."""


class NoLimitError(ValueError):
    """An operation without an infinite-width limit, or without a rule for it: the message says where, why, and what to do."""

    def __init__(self, why: str, advice: str = ""):
        self.why, self.advice, self.where = why, advice or MONTE_CARLO, ""
        super().__init__(why)

    def __str__(self) -> str:
        return f"infinite_width: {self.why}{self.where} {self.advice}"


MONTE_CARLO = "Without a limit, ntk_jax.monte_carlo_kernels estimates the kernels of the finite network."
