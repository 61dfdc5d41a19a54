"""What a closed form of a dual is, and its derivatives.

Formulas are in `closed_forms.py` and `polynomials.py`: functions `(q11, q12, q22, *options)`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ntk_jax.duals.dual_rule import Dual, DualRule


class Form(NamedTuple):
    """What is known of one function, or of a family of functions with options.

    `dual(q11, q12, q22, *options)` and `mean(q, *options)` = E[phi(sqrt(q) z)];
    `slope(q11, q12, q22)` is dk/dq11, where differentiating the dual's own expression would
    cancel; `partials(k_dot, q11, q12, q22)` are all of `partial_derivatives`, where they are so
    short that nested ones stay short too.
    """

    dual: Callable[..., Dual]
    mean: Callable[..., Array]
    slope: Callable[..., Array] | None = None
    partials: Callable[..., list[list[Array]]] | None = None


@dataclass(frozen=True)
class ClosedForm(DualRule):
    """The dual of a form with hashable options."""

    form: Form
    options: tuple[Any, ...] = ()
    unroll = 4

    def mean(self, q: Array) -> Array:
        return self.form.mean(q, *self.options)

    @property
    def description(self) -> str:
        return f"closed form: {self.form.dual.__name__}"

    def pair(self, rows1: Array, q12: Array, rows2: Array) -> Dual:
        return Dual(*_pair(self, rows1, q12, rows2))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _pair(rule: ClosedForm, q11: Array, q12: Array, q22: Array) -> tuple[Array, Array]:
    k, k_dot = rule.form.dual(q11, q12, q22, *rule.options)
    return k, k_dot


@_pair.defjvp
def _pair_jvp(rule: ClosedForm, primals: Any, tangents: Any) -> tuple[Any, Any]:
    """Partial derivatives first, then their products with the tangents: in reverse, cotangents of
    size k would overflow.
    """
    out = _pair(rule, *primals)
    partials = partial_derivatives(rule, out[1], *primals)
    return out, tuple(sum(g * t for g, t in zip(row, tangents, strict=True)) for row in partials)


def partial_derivatives(
    rule: ClosedForm, k_dot: Array, q11: Array, q12: Array, q22: Array
) -> list[list[Array]]:
    """Of k and of k_dot, by (q11, q12, q22); that of k by q12 is k_dot (Price's theorem)."""
    if rule.form.partials is not None:
        return rule.form.partials(k_dot, q11, q12, q22)
    f = lambda *q: tuple(rule.form.dual(*q, *rule.options))
    # one pass with three tangents: nested derivatives double the code once where three passes would
    # do so three times
    ones = [
        jnp.stack([jnp.full_like(q, i == j) for i in range(3)])
        for j, q in enumerate((q11, q12, q22))
    ]
    of_k, of_k_dot = jax.vmap(lambda *along: jax.jvp(f, (q11, q12, q22), along)[1])(*ones)
    k = [of_k[0], k_dot, of_k[2]]
    if rule.form.slope is not None:
        k[0], k[2] = rule.form.slope(q11, q12, q22), rule.form.slope(q22, q12, q11)
    return [k, list(of_k_dot)]
