"""The shortest way to the targets in parameter space, without forming Jacobian or kernel."""

from typing import Any, NamedTuple

import jax
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Num

from ntk_jax.checks import as_number, as_targets_like, check_integer, check_number
from ntk_jax.closures.fingerprint import Reading
from ntk_jax.closures.programs import compiled
from ntk_jax.finite.operator import KernelOperator, ntk_operator
from ntk_jax.networks.apply_fn import check_outputs, forward_mode
from ntk_jax.operators.conjugate_residuals import conjugate_residuals
from ntk_jax.types import ApplyFn, Params


class Displacement(NamedTuple):
    """A displacement Jᵀα of the parameters, its coefficients α, and how the solver ended."""

    params: Params
    coefficients: Array
    residual: Array
    converged: Array
    num_steps: Array


def min_norm_displacement(
    apply_fn: ApplyFn,
    params_0: Params,
    x: Num[ArrayLike, "n *d"],
    y: Num[ArrayLike, "n *O"],
    *,
    tolerance: float = 1e-8,
    max_steps: int = 1000,
    block_size: int = 256,
) -> Displacement:
    """The smallest change of parameters, J⁺ (y - f_0), with which the linearized network fits.

    It is where gradient descent on the linearized network ends. Found as Jᵀα with K α = y - f_0, K
    = J Jᵀ, by conjugate residuals: a product with K costs one backward and one forward-mode pass,
    and neither J (n·O, P) nor K is formed. If the targets cannot be fitted (K singular), it is the
    least-squares solution of smallest norm.

    Args:
        apply_fn: `apply_fn(params, x)`.
        params_0: the point of linearization.
        x: training examples in rows.
        y: targets, of exactly the shape that the network returns.
        tolerance: stop when |Jᵀ residual| has fallen to this fraction of its start.
        max_steps: products with the kernel at most; about sqrt(condition number) times log(1 /
            tolerance) are needed.
        block_size: examples that are evaluated at a time.

    Returns:
        Displacement(params, coefficients, residual, converged, num_steps): `params` is shaped like
        params_0, to be added to it; `residual` is y - f_0 - J displacement; look at `converged`.

    Raises:
        ValueError: targets whose shape is not that of the outputs, and as `ntk_operator`.

    Reference: Hestenes, Stiefel 1952; Stiefel 1955 (conjugate residuals); Jacot, Gabriel, Hongler
    2018.

    Example:
        >>> network = lambda w, x: x @ w
        >>> x, y = jnp.array([[3.0, 4.0]]), jnp.array([5.0])
        >>> shortest = ntk_jax.min_norm_displacement(network, jnp.zeros(2), x, y)
        >>> print(np.round(shortest.params, 3), bool(shortest.converged))
        [0.6 0.8] True
    """
    check_number("tolerance", tolerance, strict=True, max_ndim=0)
    check_integer("max_steps", max_steps, minimum=1)
    op = ntk_operator(apply_fn, params_0, x, block_size=block_size)
    out = jax.eval_shape(apply_fn, op.params, op.x1)
    targets = as_targets_like("y", y, out.shape, op.dtype)
    arrays, limit = (op.params, op.x1, None), as_number("tolerance", tolerance, op.dtype)
    with forward_mode("min_norm_displacement"):
        found = _solve(
            apply_fn, arrays, targets, limit, max_steps=max_steps,
            num_outputs=op.num_outputs, dtype=op.dtype, block_size=block_size,
        )  # fmt: skip
    check_outputs(found.residual, "outputs and derivatives")
    return found


@compiled
def _solve(
    apply_fn: Reading, arrays: Any, y: Array, tolerance: Array, *, max_steps: int, **options: Any
) -> Displacement:
    # Built anew here, because `compiled` takes apart what the network reads.
    params, x1, x2 = arrays
    op = KernelOperator(params, x1, x2, apply_fn, **options)
    f_0 = op.apply_fn(op.params, op.x1).astype(op.dtype)
    found = conjugate_residuals(
        lambda v: op @ v, (y - f_0).reshape(-1), tolerance=tolerance, max_steps=max_steps
    )
    alpha, residual = (v.reshape(f_0.shape) for v in (found.value, found.residual))
    return Displacement(_pull_back(op, alpha), alpha, residual, found.converged, found.num_steps)


def _pull_back(op: KernelOperator, alpha: Array) -> Params:
    """Jᵀ alpha."""
    out, vjp = jax.vjp(lambda p: op.apply_fn(p, op.x1), op.params)
    return vjp(alpha.astype(out.dtype))[0]
