"""The network as a polynomial in its parameters."""

import math

import jax
from jax import Array
from jax.typing import ArrayLike

from ntk_jax.checks import check_integer
from ntk_jax.types import ApplyFn, Params


def linearize(apply_fn: ApplyFn, params_0: Params) -> ApplyFn:
    """The first-order Taylor expansion in the parameters, f_lin(params, x) = f(params_0, x) + J(x) (params - params_0).

    The result is an ordinary apply function of the same parameters: value and gradient at `params_0` equal those of
    the network, its tangent kernel is constant, and it trains with Optax like any other.

    Args:
        apply_fn: `apply_fn(params, x)`.
        params_0: the point of expansion.

    Returns:
        `apply_lin(params, x)`; it costs one forward-mode pass.

    Reference: Lee et al. 2019, eq. 3.
    """
    return taylor_expand(apply_fn, params_0, 1)


def taylor_expand(apply_fn: ApplyFn, params_0: Params, degree: int) -> ApplyFn:
    """The Taylor expansion of any degree in the parameters around `params_0`.

        f(params, x) ≈ Σ_k (1/k!) d^k/ds^k f(params_0 + s (params - params_0), x) at s = 0,  k = 0, ..., degree

    Only directional derivatives are taken, by nested forward mode: no Jacobian, and memory like that of a few forward
    passes. The result is an ordinary apply function and trains with Optax like any other.

    Args:
        apply_fn: `apply_fn(params, x)`.
        params_0: the point of expansion.
        degree: 0 is the network at `params_0`, 1 is `linearize`, 2 adds the first effect of a changing kernel. Networks of
            ReLU are linear between kinks: higher terms come from the products of layers alone.

    Returns:
        `apply_taylor(params, x)`; the cost grows as 2^degree forward passes.

    Raises:
        ValueError: degree is not an integer of at least 0.

    Reference: Huang, Yau 2020; Hanin, Nica 2020 (first corrections to the kernel).
    """
    check_integer("degree", degree, minimum=0)

    def apply_taylor(params: Params, x: ArrayLike) -> Array:
        displacement = jax.tree.map(lambda p, p_0: p - p_0, params, params_0)

        def derivatives(order: int, at: Params) -> tuple[Array, ...]:
            """The outputs and their directional derivatives up to `order`."""
            if order == 0:
                return (apply_fn(at, x),)
            lower, tangents = jax.jvp(lambda p: derivatives(order - 1, p), (at,), (displacement,))
            return (*lower, tangents[-1])

        terms = derivatives(degree, params_0)
        return sum((term / math.factorial(k) for k, term in enumerate(terms[1:], start=1)), terms[0])

    return apply_taylor
