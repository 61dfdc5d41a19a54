"""What every closed form starts from: kernel, targets and initial outputs, checked once, in the
basis of the modes.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_jax.checks import as_kernel, as_outputs, as_targets, check_number
from ntk_jax.linalg import matmul, null_rcond
from ntk_jax.matrix_functions import Basis, apply, fixed
from ntk_jax.modes.kind import (
    Kind,
    as_columns,
    as_matrices,
    from_columns,
    initial_test_outputs,
    kind_of,
)
from ntk_jax.modes.modes import Modes, Prediction


class Side(NamedTuple):
    """Train or test examples: f = f_0 + basis a + shrink radial, with a the weights of the
    modes.
    """

    basis: Float[Array, "B N n"]
    f_0: Array
    radial: Array


class Problem(NamedTuple):
    """A checked problem: everything that does not depend on time."""

    basis: Basis  # every part with an axis B in front
    residual: Float[Array, "B n m"]  # Uᵀ (y - f_0)
    radial: Float[Array, "B n m"] | None  # Uᵀ J θ_0, with weight decay
    train: Side | None
    test: Side | None
    kind: Kind
    num_entries: int

    def predict(
        self, weights: Float[Array, "B n T m"], shrink: Float[Array, " T"], times: tuple[int, ...]
    ) -> Prediction:
        """Outputs for the coefficients alpha = U weights, all times in one flat product."""

        def outputs(side: Side | None) -> Array | None:
            return (
                None
                if side is None
                else _outputs(side, weights, shrink, self.kind).reshape(*times, *side.f_0.shape)
            )

        return Prediction(outputs(self.train), outputs(self.test))


@partial(jax.jit, static_argnums=3)
def _outputs(side: Side, weights: Array, shrink: Array, kind: Kind) -> Float[Array, "T ..."]:
    change = matmul(side.basis, weights.reshape(*weights.shape[:2], -1))
    change = jnp.moveaxis(
        change.reshape(*change.shape[:2], *weights.shape[2:]), 2, 0
    )  # (T, B, N, m)
    f_0 = side.f_0[None] + shrink.reshape(-1, *(1,) * side.f_0.ndim) * side.radial[None]
    return f_0 + from_columns(change, kind, side.f_0.shape)


def apply_batch(
    f: Any,
    basis: Basis,
    columns: Float[Array, "B n m"],
    parameters: Any,
    constants: tuple[Any, ...] = (),
    *,
    over: Any,
) -> Float[Array, "B n T m"]:
    """`matrix_functions.apply` on every basis of a batch, at every time: `over` says where
    (parameters, constants) have them.

    The first constant of f is what rounding does to an eigenvalue of 0: below, a mode is not known
    to be at rest.
    """
    levels = null_rcond(basis.eigenvalues.dtype) * basis.eigenvalues[:, 0]

    def one(basis: Basis, columns: Array, level: Array) -> Array:
        at = lambda parameters, constants: apply(f, basis, columns, parameters, (level, *constants))
        return jax.vmap(at, over, 1)(parameters, constants)

    return jax.vmap(one)(basis, columns, levels)


def check_problem(
    modes: Modes,
    y_train: Any,
    fx_train_0: Any,
    k_test_train: Any,
    fx_test_0: Any,
    *,
    diag_reg: Any = 0.0,
    weight_decay: Any = 0.0,
    radial_train_0: Any = None,
    radial_test_0: Any = None,
    predict_train: bool = True,
) -> Problem:
    """Raise for shapes that do not fit or would broadcast; move everything to the basis of the
    modes.
    """
    check_number("diag_reg", diag_reg, max_ndim=0)
    check_number("weight_decay", weight_decay, max_ndim=0)
    y = targets_of(modes, y_train)
    kind, basis, dtype = modes.kind, modes.bases(), modes.eigenvalues.dtype
    U = fixed(basis.eigenvectors)
    decays = not (isinstance(weight_decay, int | float) and weight_decay == 0)
    radial = _radial("radial_train_0", radial_train_0, y.shape, dtype, decays)
    f_0 = as_outputs("fx_train_0", fx_train_0, y.shape, dtype)
    to_modes = lambda f: matmul(jnp.swapaxes(U, 1, 2), as_columns(f, kind))
    train = Side(_training_rows(basis), f_0, radial) if predict_train else None
    test = None
    if k_test_train is not None:
        k, num_test = _test_matrices(k_test_train, kind, basis.eigenvalues, y)
        shape = (num_test, *y.shape[1:])
        radial_test = _radial("radial_test_0", radial_test_0, shape, dtype, decays)
        f_test_0 = initial_test_outputs(fx_train_0, fx_test_0, shape, dtype)
        test = Side(rows_in_modes(k.astype(dtype), basis), f_test_0, radial_test)
    elif (fx_test_0 is not None and jnp.ndim(fx_test_0)) or radial_test_0 is not None:
        raise ValueError(
            "k_test_train: expected the test kernel together with fx_test_0; got None."
        )
    elif not predict_train:
        raise ValueError(
            "k_test_train: expected the test kernel with predict_train=False; got None, so nothing "
            "to predict."
        )
    return Problem(
        basis, to_modes(y - f_0), to_modes(radial) if decays else None, train, test, kind, y.size
    )


def _training_rows(basis: Basis) -> Float[Array, "B n n"]:
    """K U."""
    U = fixed(basis.eigenvectors)
    return (
        U * basis.eigenvalues[:, None, :]
        if basis.kernel is None
        else rows_in_modes(basis.kernel, basis)
    )


def rows_in_modes(k: Float[Array, "B N n"], basis: Basis) -> Float[Array, "B N n"]:
    """K_test U, exactly 0 in null modes: features that no training example has are features that no
    test shares.

    Its derivative is not 0 there: examples that coincide may part.
    """
    rows = matmul(k, fixed(basis.eigenvectors))
    return jnp.where(basis.eigenvalues[:, None, :] > 0, rows, rows - fixed(rows))


def targets_of(modes: Modes, y_train: Any, name: str = "y_train") -> Float[Array, "n *O"]:
    """Targets with a row for each example of the modes and, if these tell outputs apart, as many
    outputs.
    """
    if not isinstance(modes, Modes):
        raise ValueError(f"modes: expected diagonalize(k_train_train); got {type(modes).__name__}.")
    s, vectors = modes
    kind = modes.kind
    if s.ndim != 1 + (kind.name == "diagonal") or vectors.shape != (*s.shape, s.shape[-1]):
        raise ValueError(
            f"modes: expected diagonalize(k_train_train); got shapes {s.shape} and {vectors.shape}."
        )
    rows = s.shape[-1] // kind.coupled
    if kind.name == "shared" and jnp.size(y_train) == rows != (jnp.shape(y_train) or (rows,))[0]:
        raise ValueError(
            f"{name}: expected {rows} rows, one for each mode of a kernel that all outputs share; "
            f"got {jnp.shape(y_train)}. "
            f"For a flattened kernel of all outputs use {name}.reshape(-1), or diagonalize the "
            "kernel (n, n, O, O)."
        )
    y = as_targets(name, y_train, rows, s.dtype)
    if kind.num_outputs is not None and y.size != rows * kind.num_outputs:
        what = {"diagonal": "one kernel per output", "full": "a kernel of coupled outputs"}
        raise ValueError(
            f"{name}: expected shape ({rows}, {kind.num_outputs}), for modes of "
            f"{what[kind.name]}; got {y.shape}."
        )
    return y


def _radial(name: str, value: Any, shape: tuple[int, ...], dtype: Any, decays: bool) -> Array:
    if value is None and decays:
        raise ValueError(
            f"{name}: expected J(x) θ_0 of shape {shape} together with weight_decay; got None. It "
            "is "
            "`jax.jvp(lambda p: apply_fn(p, x), (params,), (params,))[1]`, and 0 where θ_0 is 0."
        )
    return as_outputs(name, 0.0 if value is None else value, shape, dtype)


def _test_matrices(k_test_train: Any, kind: Kind, s: Array, y: Array) -> tuple[Array, int]:
    """The test kernel as matrices, and the number of test examples."""
    k = as_kernel("k_test_train", k_test_train)
    num_outputs = y.size // y.shape[0]
    flattened = kind.name == "full" and k.ndim == 2 and k.shape[0] % num_outputs == 0
    matrices = as_matrices(k)
    expected = {"shared": "2 axes", "diagonal": "3 axes", "full": "4 axes (or 2, flattened)"}
    if not flattened and (kind_of(k).name != kind.name or matrices.shape[0] != s.shape[0]):
        raise ValueError(
            f"k_test_train: expected a kernel of the kind of the training one, with "
            f"{expected[kind.name]}; "
            f"got shape {k.shape}."
        )
    if matrices.shape[2] != s.shape[1]:
        raise ValueError(
            f"k_test_train: expected test examples in rows and the {s.shape[1]} training modes in "
            "columns; "
            f"got {k.shape}." + (" It is transposed." if matrices.shape[1] == s.shape[1] else "")
        )
    return matrices, k.shape[0] // num_outputs if flattened else k.shape[0]
