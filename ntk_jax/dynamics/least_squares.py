"""What every closed form starts from: a least-squares problem, checked once, in the basis of modes.

The linearized network is f = f_0 + K_* α + β J_* θ_0: α moves the parameters by Jᵀ α, and weight
decay shrinks the initial ones by the share -β. With α = U a, the modes of K move one by one.
"""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Float

from ntk_jax.checks import as_outputs, check_number
from ntk_jax.linalg import matmul, null_rcond
from ntk_jax.matrix_functions.basis import Basis, SpectralFunction, fixed
from ntk_jax.matrix_functions.functions import apply
from ntk_jax.modes.kind import (
    Kind,
    as_columns,
    as_matrices,
    from_columns,
    initial_test_outputs,
)
from ntk_jax.modes.modes import Modes, Prediction
from ntk_jax.modes.targets import as_test_kernel_of, rows_in_modes, targets_of

Axes: TypeAlias = Any
"""Where a pytree of parameters has an axis of times, as `jax.vmap` takes it."""


class Problem(NamedTuple):
    """Checked arguments by name: everything that does not depend on time."""

    modes: Modes
    y_train: Float[Array, "n *O"]
    fx_train_0: Array
    radial_train_0: Array | None  # with weight decay
    k_test_train: Array | None
    fx_test_0: Array | None
    radial_test_0: Array | None

    @property
    def inputs(self) -> dict[str, Array | None]:
        """What is looked at: all but the modes."""
        return {name: part for name, part in self._asdict().items() if name != "modes"}

    @property
    def num_entries(self) -> int:
        """n·O."""
        return self.y_train.size


class OutputMap(NamedTuple):
    """From the modes to the outputs on train or test examples: f = f_0 + rows a + β radial."""

    rows: Float[Array, "B N n"]  # K_* U
    f_0: Array
    radial: Array | None  # J_* θ_0


class LeastSquares(NamedTuple):
    """The problem in the basis of its modes, in a compiled program."""

    basis: Basis  # every part with an axis B in front
    residual: Float[Array, "B n m"]  # Uᵀ (y - f_0)
    radial: Float[Array, "B n m"] | None  # Uᵀ J θ_0, with weight decay
    train: OutputMap | None
    test: OutputMap | None
    kind: Kind

    def predict(
        self,
        weights: Float[Array, "B n T m"],
        shrink: Float[Array, " T"] | None,
        times: tuple[int, ...],
    ) -> Prediction:
        """Outputs for weights a of the modes and shrinking β, all times in one flat product."""

        def outputs(to: OutputMap | None) -> Array | None:
            if to is None:
                return None
            return _outputs(to, weights, shrink, self.kind).reshape(*times, *to.f_0.shape)

        return Prediction(outputs(self.train), outputs(self.test))


def _outputs(
    to: OutputMap, weights: Array, shrink: Array | None, kind: Kind
) -> Float[Array, "T ..."]:
    # Times and columns in one axis: one large product, which matmul is fast at, for all times.
    change = matmul(to.rows, weights.reshape(*weights.shape[:2], -1))
    change = jnp.moveaxis(change.reshape(*change.shape[:2], *weights.shape[2:]), 2, 0)
    f_0 = to.f_0[None]
    if shrink is not None and to.radial is not None:
        f_0 = f_0 + shrink.reshape(-1, *(1,) * to.f_0.ndim) * to.radial[None]
    return f_0 + from_columns(change, kind, to.f_0.shape)


def apply_batch(
    f: SpectralFunction,
    basis: Basis,
    columns: Float[Array, "B n m"],
    parameters: Any,
    constants: tuple[Array, ...] = (),
    *,
    over: Axes,
) -> Float[Array, "B n T m"]:
    """`matrix_functions.apply` on every basis of a batch, at every time.

    `over` says where (parameters, constants) have an axis of times. The first constant of f is what
    rounding does to an eigenvalue of 0: below, a mode is not known to be at rest.
    """
    levels = null_rcond(basis.eigenvalues.dtype) * basis.eigenvalues[:, 0]

    def one(basis: Basis, columns: Array, level: Array) -> Array:
        at = lambda parameters, constants: apply(f, basis, columns, parameters, (level, *constants))
        return jax.vmap(at, over, 1)(parameters, constants)

    return jax.vmap(one)(basis, columns, levels)


def least_squares(
    modes: Modes,
    y_train: ArrayLike,
    fx_train_0: ArrayLike,
    k_test_train: ArrayLike | None,
    fx_test_0: ArrayLike | None,
    *,
    diag_reg: ArrayLike = 0.0,
    weight_decay: ArrayLike = 0.0,
    radial_train_0: ArrayLike | None = None,
    radial_test_0: ArrayLike | None = None,
    predict_train: bool = True,
) -> Problem:
    """The problem of these targets, initial outputs and kernels; raise where they do not fit."""
    check_number("diag_reg", diag_reg, max_ndim=0)
    check_number("weight_decay", weight_decay, max_ndim=0)
    y, dtype = targets_of(modes, y_train), modes.eigenvalues.dtype
    decays = not (isinstance(weight_decay, int | float) and weight_decay == 0)
    radial = _radial("radial_train_0", radial_train_0, y.shape, dtype, decays)
    f_0 = as_outputs("fx_train_0", fx_train_0, y.shape, dtype)
    if k_test_train is not None:
        k = as_test_kernel_of(modes, k_test_train)
        coupled = modes.kind.coupled if k.ndim == 2 else 1
        shape = (k.shape[0] // coupled, *y.shape[1:])
        radial_test = _radial("radial_test_0", radial_test_0, shape, dtype, decays)
        f_test_0 = initial_test_outputs(fx_train_0, fx_test_0, shape, dtype)
        return Problem(modes, y, f_0, radial, k, f_test_0, radial_test)
    if (fx_test_0 is not None and np.ndim(fx_test_0)) or radial_test_0 is not None:
        raise ValueError(
            "k_test_train: expected the test kernel together with fx_test_0; got None."
        )
    if not predict_train:
        raise ValueError(
            "k_test_train: expected the test kernel with predict_train=False; got None, so nothing "
            "to predict."
        )
    return Problem(modes, y, f_0, radial, None, None, None)


def in_modes(problem: Problem, traced: bool, predict_train: bool) -> LeastSquares:
    """The problem in the basis of its modes, for compiled programs; `modes.bases` has `traced`."""
    y, kind, basis = problem.y_train, problem.modes.kind, problem.modes.bases(traced)
    U = fixed(basis.eigenvectors)
    to_modes = lambda f: matmul(jnp.swapaxes(U, 1, 2), as_columns(f, kind))
    train = OutputMap(
        _training_rows(basis), *_filled(problem.fx_train_0, problem.radial_train_0, y.shape)
    )
    test = None
    if problem.k_test_train is not None:
        matrices = as_matrices(problem.k_test_train)
        shape = (matrices.shape[1] // kind.coupled, *y.shape[1:])
        starts = _filled(problem.fx_test_0, problem.radial_test_0, shape)
        test = OutputMap(rows_in_modes(matrices, basis), *starts)
    residual, forced = to_modes(y - train.f_0), None
    if train.radial is not None:
        forced = to_modes(train.radial)
    return LeastSquares(basis, residual, forced, train if predict_train else None, test, kind)


def _filled(
    f_0: Array | None, radial: Array | None, shape: tuple[int, ...]
) -> tuple[Array, Array | None]:
    """Initial outputs and their radial part, in full shape."""
    fill = lambda f: jnp.broadcast_to(f, shape)
    return fill(jnp.asarray(f_0)), None if radial is None else fill(radial)


def _training_rows(basis: Basis) -> Float[Array, "B n n"]:
    """K U."""
    if basis.kernel is not None:
        return rows_in_modes(basis.kernel, basis)
    return fixed(basis.eigenvectors) * basis.eigenvalues[:, None, :]


def _radial(
    name: str, value: ArrayLike | None, shape: tuple[int, ...], dtype: DTypeLike, decays: bool
) -> Array | None:
    """J θ_0, which nothing depends on without weight decay."""
    if value is None and decays:
        raise ValueError(
            f"{name}: expected J(x) θ_0 of shape {shape} together with weight_decay; got None. It "
            "is `jax.jvp(lambda p: apply_fn(p, x), (params,), (params,))[1]`, and 0 where θ_0 is 0."
        )
    if value is None:
        return None
    radial = as_outputs(name, value, shape, dtype)
    return radial if decays else None
