"""The network as a function that is affine in its parameters."""

import jax
from jax import Array
from jax.typing import ArrayLike

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

    def apply_lin(params: Params, x: ArrayLike) -> Array:
        displacement = jax.tree.map(lambda p, p_0: p - p_0, params, params_0)
        f_0, df = jax.jvp(lambda p: apply_fn(p, x), (params_0,), (displacement,))
        return f_0 + df

    return apply_lin
