"""The network as a polynomial in its parameters."""

import math

import jax
import numpy as np
from jax import Array

from ntk_jax.checks import check_integer, check_params
from ntk_jax.closures.programs import compiled
from ntk_jax.examples import Examples
from ntk_jax.networks.apply_fn import as_arrays, check_apply_fn, check_outputs, forward_mode
from ntk_jax.types import ApplyFn, Params

MAX_DEGREE = 10


def linearize(apply_fn: ApplyFn, params_0: Params) -> ApplyFn:
    """The first-order Taylor expansion in the parameters.

        f_lin(params, x) = f(params_0, x) + J(x) (params - params_0)

    The result is an ordinary apply function of the same parameters: value and gradient at
    `params_0` equal those of the network, its tangent kernel is constant, and it trains with Optax
    like any other.

    Example:
        >>> square = lambda w, x: w**2 * x
        >>> apply_lin = ntk_jax.linearize(square, jnp.array(1.0))
        >>> apply_lin(jnp.array(1.5), jnp.ones(1)).tolist()  # 1 + 2 * 0.5
        [2.0]

    Args:
        apply_fn: `apply_fn(params, x)`.
        params_0: the point of expansion.

    Returns:
        `apply_lin(params, x)`; it costs one forward-mode pass.

    Raises:
        ValueError: as `taylor_expand`.

    Reference: Lee et al. 2019, eq. 3.
    """
    return taylor_expand(apply_fn, params_0, 1)


def taylor_expand(apply_fn: ApplyFn, params_0: Params, degree: int) -> ApplyFn:
    """The Taylor expansion of any degree in the parameters around `params_0`.

        f(params, x) ≈ Σ_k (1/k!) d^k/ds^k f(params_0 + s (params - params_0), x) at s = 0

    with k = 0, ..., degree.

    Only directional derivatives are taken, by nested forward mode: no Jacobian, and memory like
    that of a few forward passes. The result is an ordinary apply function and trains with Optax
    like any other.

    Example:
        >>> square = lambda w, x: w**2 * x
        >>> apply_2 = ntk_jax.taylor_expand(square, jnp.array(1.0), degree=2)
        >>> apply_2(jnp.array(1.5), jnp.ones(1)).tolist()
        [2.25]

    Args:
        apply_fn: `apply_fn(params, x)`.
        params_0: the point of expansion.
        degree: at most 10; 0 is the network at `params_0`, 1 is `linearize`, 2 adds the first
            effect of a changing kernel. Networks of ReLU are linear between kinks: higher terms
            come from the products of layers alone.

    Returns:
        `apply_taylor(params, x)`; the cost grows as 2^degree forward passes.

    Raises:
        ValueError: degree is not an integer from 0 to 10; of `apply_taylor`: parameters of other
            shapes than params_0, a network without forward-mode derivative, NaN or infinite values.

    Reference: Huang, Yau 2020; Hanin, Nica 2020 (first corrections to the kernel).
    """
    check_integer("degree", degree, minimum=0)
    if degree > MAX_DEGREE:
        raise ValueError(
            f"degree: expected at most {MAX_DEGREE}; got {degree}. Each degree takes twice the "
            "time of the one before: 2^degree forward passes."
        )
    check_apply_fn(apply_fn, params_0)
    check_params(params_0)

    def apply_taylor(params: Params, x: Examples) -> Array:
        _check_shapes(params, params_0)
        with forward_mode("linearize"):
            out = _expanded(apply_fn, as_arrays(params), as_arrays(params_0), x, degree=degree)
        return check_outputs(out, "outputs and derivatives")

    return apply_taylor


@compiled
def _expanded(
    apply_fn: ApplyFn, params: Params, params_0: Params, x: Examples, *, degree: int
) -> Array:
    displacement = jax.tree.map(lambda p, p_0: (p - p_0).astype(p_0.dtype), params, params_0)

    def derivatives(order: int, at: Params) -> tuple[Array, ...]:
        """The outputs and their directional derivatives up to `order`."""
        if order == 0:
            return (apply_fn(at, x),)
        # The last tangent is the next derivative; the others repeat what `lower` has.
        lower, tangents = jax.jvp(lambda p: derivatives(order - 1, p), (at,), (displacement,))
        return (*lower, tangents[-1])

    terms = derivatives(degree, params_0)
    return sum((term / math.factorial(k) for k, term in enumerate(terms[1:], start=1)), terms[0])


def _check_shapes(params: Params, params_0: Params) -> None:
    shapes, shapes_0 = (jax.tree.map(np.shape, tree) for tree in (params, params_0))
    if shapes != shapes_0:
        raise ValueError(
            f"params: expected the structure and shapes of the point of expansion, {shapes_0}; got "
            f"{shapes}. Broadcasting one against the other would be silently wrong."
        )
