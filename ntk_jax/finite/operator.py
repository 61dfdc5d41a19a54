"""The kernel as a linear operator: products with vectors, without the kernel."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from ntk_jax.checks import as_array, check_finite, check_integer
from ntk_jax.closures.fingerprint import Reading
from ntk_jax.closures.programs import compiled
from ntk_jax.compat import is_concrete
from ntk_jax.devices.mesh import by_device, one_axis, place, share_rows
from ntk_jax.devices.processes import agreed, finished, same_everywhere
from ntk_jax.examples import Examples, num_rows, take_rows
from ntk_jax.finite.features.tangents import features_of, plan_features
from ntk_jax.finite.inputs import check_inputs
from ntk_jax.finite.jacobian_products import in_blocks
from ntk_jax.finite.shared_products import pulled_together, pushed_together, rows_together
from ntk_jax.memory import how_many, memory_budget, tree_bytes
from ntk_jax.networks.apply_fn import as_arrays, check_outputs, forward_mode
from ntk_jax.types import ApplyFn, Params

Arrays: TypeAlias = tuple[Params, Examples, Examples]
"""Parameters, x1, x2."""

# On a CPU. Vectors share one pass: each holds a gradient of all parameters meanwhile.
ROWS_AT_ONCE, VECTORS_AT_ONCE = 256, 8


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, eq=False)
class KernelOperator:
    """The tangent kernel as an (n1 O, n2 O) matrix that is never formed: K v = J(x1) (J(x2)ᵀ v).

    A pytree, so that it can be an argument of a jitted function. Make one with `ntk_operator`.

    Attributes:
        params: parameters of the network.
        x1: examples of the rows.
        x2: examples of the columns; None means x1.
        apply_fn: the network.
        num_outputs: O.
        dtype: of the products.
        block_size: rows that are evaluated at a time; None: a few on a CPU, on an accelerator as
            many as its memory holds.
        mesh: devices on one axis that share the examples; None for one device.
    """

    params: Params
    x1: Examples
    x2: Examples
    apply_fn: ApplyFn
    num_outputs: int
    dtype: jnp.dtype
    block_size: int | None
    mesh: Mesh | None = None

    def tree_flatten(self) -> tuple[Arrays, tuple[Reading, Mesh | None]]:
        """Arrays, and the network with what it reads now, without which no program fits."""
        network = self.apply_fn, self.num_outputs, self.dtype, self.block_size
        return (self.params, self.x1, self.x2), (Reading(network), self.mesh)

    @classmethod
    def tree_unflatten(cls, rest: tuple[Reading, Mesh | None], arrays: Arrays) -> "KernelOperator":
        """The operator of these arrays."""
        return replace(cls(*arrays, *rest[0].function), mesh=rest[1])

    @property
    def shape(self) -> tuple[int, int]:
        """(n1 O, n2 O)."""
        rows, columns = num_rows(self.x1), num_rows(self._columns)
        return rows * self.num_outputs, columns * self.num_outputs

    @property
    def T(self) -> "KernelOperator":
        """The transpose, K(x2, x1)."""
        x1, x2 = (self.x1, None) if self.x2 is None else (self.x2, self.x1)
        return replace(self, x1=x1, x2=x2)

    def __matmul__(self, v: ArrayLike) -> Array:
        """K v, in the shape of v: (n2, O), (n2, O, k), flat (n2 O,) or flat columns (n2 O, k)."""
        return finished(self.mesh, self._multiply(same_everywhere(self.mesh, v, self._checked)))

    def _checked(self, v: ArrayLike) -> Array:
        v = as_array("v", v)
        if jnp.issubdtype(v.dtype, jnp.complexfloating):
            raise ValueError(
                f"v: expected real values; got {v.dtype}. Multiply real and imaginary part one "
                "after another."
            )
        check_finite("v", v)
        n2, O = num_rows(self._columns), self.num_outputs
        is_flat = v.ndim in (1, 2) and v.shape[0] == n2 * O
        if is_flat or (v.ndim in (2, 3) and v.shape[:2] == (n2, O)):
            return v
        raise ValueError(
            f"v: expected shape ({n2}, {O}), ({n2}, {O}, k), ({n2 * O},) or ({n2 * O}, k); got "
            f"{v.shape}. One row per example of x2, one column per output."
        )

    def diagonal(self) -> Float[Array, " n1_O"]:
        """The diagonal, |d f_o(x) / d params|² for every example and output, without any pairs.

        Raises:
            ValueError: the operator has an x2.
        """
        if self.x2 is not None:
            raise ValueError(
                "diagonal: expected an operator with x2=None; got rows and columns of different "
                "examples."
            )
        diagonal = _diagonal(self.apply_fn, self._arrays, **self._options)
        return check_outputs(diagonal, "derivatives")

    def columns(self, indices: Int[ArrayLike, " k"]) -> Float[Array, "n1_O k"]:
        """The columns of flat indices, example · O + output; negative ones count from the end.

        Raises:
            ValueError: indices that are no integers, or out of range.
        """
        indices = as_array("indices", indices)
        if indices.ndim > 1 or not jnp.issubdtype(indices.dtype, jnp.integer):
            raise ValueError(
                f"indices: expected integers (k,); got shape {indices.shape} of {indices.dtype}."
            )
        size = self.shape[1]
        known = np.asarray(indices) if is_concrete(indices) else np.zeros(1, int)
        if not np.all((known >= -size) & (known < size)):
            raise ValueError(f"indices: expected columns 0 to {size - 1}; got {known.tolist()}.")
        with forward_mode("ntk_operator"):
            indices = place(indices, self.mesh)
            found = _chosen(self.apply_fn, self._arrays, indices, **self._options)
        return check_outputs(found, "derivatives")

    def as_lineax(self) -> Any:
        """The operator on flat vectors for the solvers of lineax, which must be installed."""
        try:
            import lineax
        except ImportError as error:
            raise ImportError(
                "as_lineax: expected the package lineax; install it with `pip install lineax`."
            ) from error
        structure = jax.ShapeDtypeStruct((self.shape[1],), self.dtype)
        tags = lineax.positive_semidefinite_tag if self.x2 is None else ()
        return lineax.FunctionLinearOperator(lambda v: self @ v, structure, tags)

    def _multiply(self, v: Array) -> Array:
        with forward_mode("ntk_operator"):
            product = _multiply(self.apply_fn, self._arrays, v, **self._options)
        return check_outputs(product, "derivatives")

    @property
    def _arrays(self) -> Arrays:
        return self.params, self.x1, self.x2

    @property
    def _options(self) -> dict[str, Any]:
        names = "num_outputs", "dtype", "block_size", "mesh"
        return {name: getattr(self, name) for name in names}

    @property
    def _columns(self) -> Examples:
        return self.x1 if self.x2 is None else self.x2


def ntk_operator(
    apply_fn: ApplyFn,
    params: Params,
    x1: Examples,
    x2: Examples | None = None,
    *,
    block_size: int | None = None,
    mesh: Mesh | None = None,
) -> KernelOperator:
    """The tangent kernel as a matrix-free operator, K v = J(x1) (J(x2)ᵀ v), for iterative solvers.

    Example:
        >>> op = ntk_jax.ntk_operator(lambda W, x: x @ W, jnp.ones((2, 1)), jnp.eye(2))
        >>> op.shape, (op @ jnp.array([3.0, 4.0])).tolist()
        ((2, 2), [3.0, 4.0])
        >>> x, _ = jax.scipy.sparse.linalg.cg(lambda v: op @ v, jnp.array([5.0, 6.0]))
        >>> print(np.round(x, 3))
        [5. 6.]

    A product costs one backward pass over x2 and one forward-mode pass over x1, whatever the number
    of outputs, and holds one gradient and the activations of `block_size` rows.

    Args:
        apply_fn: `apply_fn(params, x)` -> outputs (n, O), see `empirical_ntk`.
        params: parameters.
        x1: examples of the rows.
        x2: examples of the columns, or None for x1 again: then the operator is symmetric positive
            semi-definite.
        block_size: rows that are evaluated at a time. None is 256 on a CPU, and on an accelerator
            as many as its memory holds.
        mesh: devices that share the examples, of one process or many; a mesh of any shape counts as
            one axis. Every process passes the same arguments. A product sums one gradient over the
            mesh, and comes whole to every device. Examples are held in shares if the number of
            devices divides their number, and else whole on every device.

    Returns:
        A `KernelOperator` of shape (n1 O, n2 O): `op @ v`, `op.T`, `op.diagonal()`,
        `op.columns(indices)`.

    Raises:
        ValueError: as `empirical_ntk`.

    Reference: Novak, Sohl-Dickstein, Schoenholz 2022, section 3.2.
    """
    if block_size is not None:
        check_integer("block_size", block_size, minimum=1)
    mesh = one_axis(mesh)
    check = partial(check_inputs, apply_fn, params, x1, x2)
    a1, a2 = agreed(mesh, check, lambda examples: (examples, params, block_size))
    plan = plan_features(apply_fn, params, a1)
    params, (a1, a2) = place(as_arrays(params), mesh), share_rows((a1, a2), mesh)
    return KernelOperator(params, a1, a2, apply_fn, plan.num_outputs, plan.dtype, block_size, mesh)


@compiled
def _multiply(apply_fn: Reading, arrays: Arrays, v: Array, **options: Any) -> Array:
    """K v in the shape of v."""
    op = KernelOperator(*arrays, apply_fn, **options)
    n2, O = num_rows(op._columns), op.num_outputs
    out = _product(op, v.reshape(n2, O, -1))
    if v.ndim == 3:
        return out
    return out[..., 0] if v.shape == (n2, O) else out.reshape(-1, *v.shape[1:])


@compiled
def _chosen(apply_fn: Reading, arrays: Arrays, indices: Array, **options: Any) -> Array:
    """The columns of flat indices."""
    op = KernelOperator(*arrays, apply_fn, **options)
    indices, O = jnp.atleast_1d(indices), op.num_outputs
    rows, outputs, k = indices // O, indices % O, indices.shape[0]
    unit = jax.nn.one_hot(outputs, O, dtype=op.dtype)[:, :, None]
    chosen = unit * jnp.eye(k, dtype=op.dtype)[:, None, :]
    return _product(replace(op, x2=take_rows(op._columns, rows)), chosen).reshape(-1, k)


def _product(op: KernelOperator, v: Float[Array, "n2 O k"]) -> Float[Array, "n1 O k"]:
    """All vectors, a few at a time."""

    def run(on_cpu: bool, v: Array) -> Array:
        rows, vectors = _at_once(op, v.shape[2], on_cpu)

        def one(w: Array) -> Array:
            gradient = pulled_together(op.mesh, op.apply_fn, op.params, op._columns, w, rows)
            to = op.params, op.x1, gradient, rows, op.dtype
            return pushed_together(op.mesh, op.apply_fn, *to)

        # Few vectors need no loop, which would be slower and cannot be fused.
        if v.shape[2] <= vectors:
            return jax.vmap(one, 2, 2)(v)
        products = jax.lax.map(one, jnp.moveaxis(v, 2, 0), batch_size=vectors)
        return jnp.moveaxis(products, 0, 2)

    with jax.default_matmul_precision("highest"):
        return by_device(op.mesh, run, v)


def _at_once(op: KernelOperator, num_vectors: int, on_cpu: bool) -> tuple[int, int]:
    """How many rows and how many vectors."""
    if on_cpu:
        return op.block_size or ROWS_AT_ONCE, VECTORS_AT_ONCE
    taps = plan_features(op.apply_fn, op.params, op.x1).taps
    # Values, tangents and cotangents at every layer, and gradients that are summed.
    row, budget = 8 * tree_bytes((taps, take_rows(op.x1, slice(1)))), memory_budget(on_cpu=False)
    vectors = how_many(num_vectors, 4 * tree_bytes(op.params) + row, budget)
    most = max(num_rows(op.x1), num_rows(op._columns))
    return op.block_size or how_many(most, row * vectors, budget), vectors


@compiled
def _diagonal(apply_fn: Reading, arrays: Arrays, **options: Any) -> Float[Array, " n1_O"]:
    op = KernelOperator(*arrays, apply_fn, **options)

    def norms(params: Params, rows: Examples) -> Array:
        features = features_of(op.apply_fn, params, rows)
        parts = [block.squared_norms("highest").astype(op.dtype) for block in features.blocks]
        return sum(parts, jnp.zeros((num_rows(rows), op.num_outputs), op.dtype))

    def run(on_cpu: bool, x: Examples) -> Array:
        rows, _ = _at_once(op, op.num_outputs, on_cpu)  # features have cotangents of every output

        def of_share(x: Examples, params: Params) -> Array:
            found = jax.lax.map(partial(norms, params), in_blocks(x, rows))
            return found.reshape(-1)[: num_rows(x) * op.num_outputs]

        return rows_together(op.mesh, of_share, x, op.params)

    return by_device(op.mesh, run, op.x1)[: num_rows(op.x1) * op.num_outputs]
