"""Kernels of every kind as a batch of matrices, and outputs as the columns these act on.

| kind | kernel | outputs (n, O) | matrices | columns |
| --- | --- | --- | --- | --- |
| shared by all outputs | (n1, n2) | one system, O right-hand sides | (1, n1, n2) | (1, n, O) |
| diagonal: one per output | (n1, n2, O) | O systems | (O, n1, n2) | (O, n, 1) |
| full: outputs coupled | (n1, n2, O, O) | one system of n·O | (1, n1·O, n2·O) | (1, n·O, 1) |
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Float

from ntk_jax.checks import Number, as_array, as_dtype, as_kernel, as_number, as_outputs, as_targets
from ntk_jax.compat import is_concrete

T = TypeVar("T")


@dataclass(frozen=True)
class Kind:
    """How a kernel treats outputs, and how many it has: None where any number of them share it."""

    name: Literal["shared", "diagonal", "full"] = "shared"
    num_outputs: int | None = None

    @property
    def axes(self) -> tuple[int, ...]:
        """The output axes of such a kernel: (), (O,) or (O, O)."""
        num_axes = ("shared", "diagonal", "full").index(self.name)
        return () if self.num_outputs is None else (self.num_outputs,) * num_axes

    @property
    def coupled(self) -> int:
        """How many outputs of an example are rows of one matrix."""
        return self.num_outputs or 1 if self.name == "full" else 1


SHARED = Kind()


def kind_of(k: Array) -> Kind:
    """The kind of a kernel, by its axes: decided here, and held by its modes from then on."""
    return {2: SHARED, 3: Kind("diagonal", k.shape[-1]), 4: Kind("full", k.shape[-1])}[k.ndim]


def as_matrices(k: Float[Array, "n1 n2 *outputs"]) -> Float[Array, "B N1 N2"]:
    """A kernel of any shape as a batch of matrices."""
    if k.ndim == 2:
        return k[None]
    if k.ndim == 3:
        return jnp.moveaxis(k, 2, 0)
    return k.transpose(0, 2, 1, 3).reshape(1, k.shape[0] * k.shape[2], k.shape[1] * k.shape[3])


def of_each(f: Callable[..., T], *batches: Float[Array, "B ..."]) -> T:
    """`jax.vmap(f)`, but of a batch of one without its axis: XLA then solves in place, as LAPACK
    does.
    """
    if len(batches[0]) > 1:
        return jax.vmap(f)(*batches)
    return jax.tree.map(lambda part: part[None], f(*(batch[0] for batch in batches)))


def from_matrices(m: Float[Array, "*T B N1 N2"], kind: Kind) -> Float[Array, "..."]:
    """The inverse of `as_matrices`, with leading axes kept."""
    if kind.name == "shared":
        return m[..., 0, :, :]
    if kind.name == "diagonal":
        return jnp.moveaxis(m, -3, -1)
    (*lead, _, N1, N2), O = m.shape, kind.coupled
    return jnp.swapaxes(m.reshape(*lead, N1 // O, O, N2 // O, O), -3, -2)


def as_columns(f: Float[Array, "n *O"], kind: Kind) -> Float[Array, "B N m"]:
    """Outputs (n,) or (n, O) as the columns that the matrices of a kernel act on."""
    f = f if f.ndim == 2 else f[:, None]
    return {"shared": f[None], "diagonal": f.T[:, :, None], "full": f.reshape(1, -1, 1)}[kind.name]


def from_columns(
    c: Float[Array, "*T B N m"], kind: Kind, shape: tuple[int, ...]
) -> Float[Array, "..."]:
    """The inverse of `as_columns`, with leading axes kept; `shape` is that of the outputs."""
    lead = c.shape[:-3]
    if kind.name == "diagonal":
        c = jnp.swapaxes(c[..., 0], -1, -2)
    return c.reshape(*lead, *shape)


def apply_kernel(
    k: Float[Array, "n1 n2 *outputs"], f: Float[Array, "n2 *O"]
) -> Float[Array, "n1 *O"]:
    """K f: the kernel as a linear map of outputs."""
    columns = f if f.ndim == 2 else f[:, None]
    subscripts = {2: "ij,jo->io", 3: "ijo,jo->io", 4: "ijop,jp->io"}[k.ndim]
    out = jnp.einsum(subscripts, k, columns, precision="highest")
    return out.reshape(k.shape[0], *f.shape[1:])


def targets_of_kernel(y_train: ArrayLike, k: Float[Array, "n n *outputs"]) -> Float[Array, "n *O"]:
    """Targets with a row per example of a kernel and, if it has outputs, as many of them."""
    return as_targets(
        "y_train", y_train, len(k), k.dtype, kind_of(k).num_outputs, f"a kernel of shape {k.shape}"
    )


def as_test_kernel(
    k_test_train: object, k_train_train: Float[Array, "n n *outputs"]
) -> Float[Array, "n_test n *outputs"]:
    """The kernel between test rows and training columns, of the kind of the training kernel."""
    k = as_kernel("k_test_train", k_test_train)
    if k.shape[1:] != k_train_train.shape[1:]:
        hint = " It is transposed." if k.shape[0] == k_train_train.shape[1] else ""
        raise ValueError(
            "k_test_train: expected test rows and training columns, (n_test, "
            f"{', '.join(map(str, k_train_train.shape[1:]))}); got {k.shape}.{hint}"
        )
    return as_dtype("k_test_train", k, k_train_train.dtype)


def initial_test_outputs(
    fx_train_0: ArrayLike,
    fx_test_0: ArrayLike | None,
    shape: tuple[int, ...],
    dtype: DTypeLike,
) -> Array:
    """Initial outputs on the test examples: 0 by default only where those for training are."""
    if fx_test_0 is None and not (isinstance(fx_train_0, int | float) and fx_train_0 == 0):
        raise ValueError(
            "fx_test_0: expected the initial outputs on the test examples, as fx_train_0 has those "
            "on the training examples; got None. Pass 0.0 for a network that starts at 0 on them."
        )
    return as_outputs("fx_test_0", 0.0 if fx_test_0 is None else fx_test_0, shape, dtype)


def ridge_of_rows(name: str, value: ArrayLike, k: Float[Array, "n n *outputs"]) -> Number:
    """A ridge or noise, a number or one per example."""
    ridge = as_number(name, value, k.dtype, max_ndim=None)
    if jnp.shape(ridge) not in ((), k.shape[:1]):
        raise ValueError(
            f"{name}: expected a number, or one for each of the {len(k)} examples; got shape "
            f"{jnp.shape(ridge)}."
        )
    return ridge


def repeated(ridge: Float[Array, "*n"], kind: Kind) -> Float[Array, "*N"]:
    """The ridge of every row of a matrix, the same for outputs that are coupled."""
    return jnp.repeat(ridge, kind.coupled) if ridge.ndim else ridge


def as_test_test(
    k_test_test: ArrayLike, k_test_train: Float[Array, "n_test n *outputs"]
) -> tuple[Array, bool]:
    """The test-test kernel, and whether it is whole: else it is its diagonal."""
    num_test, outputs = k_test_train.shape[0], k_test_train.shape[2:]
    whole, diagonal = (num_test, num_test, *outputs), (num_test, *outputs[:1])
    k = as_array("k_test_test", k_test_test)
    if k.shape in (whole, diagonal):
        return as_dtype("k_test_test", k, k_test_train.dtype), k.shape == whole
    raise ValueError(
        f"k_test_test: expected shape {whole} for the whole covariance, or {diagonal} for its "
        f"diagonal alone; got {k.shape}."
    )


def check_variance(variance: Array, scale: Array) -> None:
    """Raise if the smallest variance is negative beyond rounding in kernels of that scale."""
    if not (is_concrete(variance) and is_concrete(scale)):
        return
    smallest, largest = float(variance), float(scale)
    if smallest < -(float(jnp.finfo(variance.dtype).eps) ** 0.5) * largest:
        raise ValueError(
            f"covariance: expected variances of at least 0; got {smallest:.3g} with kernels of "
            f"{largest:.3g}. Compute all three kernels from the same rows, in float64, or add "
            "noise."
        )
