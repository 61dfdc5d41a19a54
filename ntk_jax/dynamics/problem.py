"""What every closed form starts from: kernel, targets and initial outputs, checked once, in the basis of the modes."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_jax.checks import as_kernel, as_outputs, as_targets, check_number
from ntk_jax.dynamics.blocks import Kind, as_columns, as_matrices, from_columns, kind_of
from ntk_jax.dynamics.modes import Modes, Prediction
from ntk_jax.linalg import matmul


class Side(NamedTuple):
    """Train or test examples: f = f_0 + basis a + shrink radial, with a the weights of the modes."""

    basis: Float[Array, "B N n"]
    f_0: Array
    radial: Array


class Problem(NamedTuple):
    """A checked problem: everything that does not depend on time."""

    eigenvalues: Float[Array, "B n"]
    residual: Float[Array, "B n m"]  # Uᵀ (y - f_0)
    radial: Float[Array, "B n m"]  # Uᵀ J θ_0
    train: Side | None
    test: Side | None
    kind: Kind
    num_entries: int

    def predict(
        self, weights: Float[Array, "B n T m"], shrink: Float[Array, " T"], times: tuple[int, ...]
    ) -> Prediction:
        """Outputs for the coefficients alpha = U weights, all times in one flat product."""

        def outputs(side: Side | None) -> Array | None:
            return None if side is None else _outputs(side, weights, shrink, self.kind).reshape(*times, *side.f_0.shape)

        return Prediction(outputs(self.train), outputs(self.test))


@partial(jax.jit, static_argnums=3)
def _outputs(side: Side, weights: Array, shrink: Array, kind: Kind) -> Float[Array, "T ..."]:
    change = matmul(side.basis, weights.reshape(*weights.shape[:2], -1))
    change = jnp.moveaxis(change.reshape(*change.shape[:2], *weights.shape[2:]), 2, 0)  # (T, B, N, m)
    f_0 = side.f_0[None] + shrink.reshape(-1, *(1,) * side.f_0.ndim) * side.radial[None]
    return f_0 + from_columns(change, kind, side.f_0.shape)


class Decay(NamedTuple):
    """Regularizers: r pulls to the initial parameters, λ to 0; `rate` is their sum in units of 1 / time."""

    diag_reg: Any
    weight_decay: Any
    num_entries: Any

    @property
    def rate(self) -> Any:
        """λ + r / (nO)."""
        return self.weight_decay + self.diag_reg / self.num_entries

    @property
    def share(self) -> Array:
        """λ / rate: how far the initial parameters are forgotten in the end."""
        rate = jnp.asarray(self.rate)
        return jnp.where(rate > 0, self.weight_decay / jnp.where(rate > 0, rate, 1), 0)


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
    """Raise for shapes that do not fit or would broadcast; move everything to the basis of the modes."""
    check_number("diag_reg", diag_reg)
    check_number("weight_decay", weight_decay)
    s, vectors = modes
    size, dtype = s.shape[-1], s.dtype
    if s.ndim > 2 or vectors.shape != (*s.shape, size):
        raise ValueError(f"modes: expected diagonalize(k_train_train); got shapes {s.shape} and {vectors.shape}.")
    kind = _kind(s, y_train)
    y = as_targets("y_train", y_train, jnp.shape(y_train)[0] if kind == "full" else size, dtype)
    if kind == "diagonal" and y.size != s.size:
        raise ValueError(
            f"y_train: expected shape ({size}, {s.shape[0]}), for modes of one kernel per output; got {y.shape}."
        )
    s, vectors = (s, vectors) if kind == "diagonal" else (s[None], vectors[None])
    decays = not (isinstance(weight_decay, int | float) and weight_decay == 0)
    radial = _radial("radial_train_0", radial_train_0, y.shape, dtype, decays)
    f_0 = as_outputs("fx_train_0", fx_train_0, y.shape, dtype)
    transposed = jnp.swapaxes(vectors, 1, 2)
    residual, radial_modes = (matmul(transposed, as_columns(f, kind)) for f in (y - f_0, radial))
    train = Side(vectors * s[:, None, :], f_0, radial) if predict_train else None
    test = None
    if k_test_train is not None:
        k, num_test = _test_matrices(k_test_train, kind, s, y)
        shape = (num_test, *y.shape[1:])
        radial_test = _radial("radial_test_0", radial_test_0, shape, dtype, decays)
        test = Side(matmul(k.astype(dtype), vectors), as_outputs("fx_test_0", fx_test_0, shape, dtype), radial_test)
    elif jnp.ndim(fx_test_0) or radial_test_0 is not None:
        raise ValueError("k_test_train: expected the test kernel together with fx_test_0; got None.")
    elif not predict_train:
        raise ValueError(
            "k_test_train: expected the test kernel with predict_train=False; got None, so nothing to predict."
        )
    return Problem(s, residual, radial_modes, train, test, kind, y.size)


def _kind(s: Array, y_train: Any) -> Kind:
    """Of the modes: n·O of them, more than rows of targets, are those of a full kernel."""
    if s.ndim == 2:
        return "diagonal"
    num_rows = jnp.shape(y_train)[0] if jnp.ndim(y_train) else 0
    return "full" if jnp.size(y_train) == s.size != num_rows else "shared"


def _radial(name: str, value: Any, shape: tuple[int, ...], dtype: Any, decays: bool) -> Array:
    if value is None and decays:
        raise ValueError(
            f"{name}: expected J(x) θ_0 of shape {shape} together with weight_decay; got None. It is "
            "`jax.jvp(lambda p: apply_fn(p, x), (params,), (params,))[1]`, and 0 where θ_0 is 0."
        )
    return as_outputs(name, 0.0 if value is None else value, shape, dtype)


def _test_matrices(k_test_train: Any, kind: Kind, s: Array, y: Array) -> tuple[Array, int]:
    """The test kernel as matrices, and the number of test examples."""
    k = as_kernel("k_test_train", k_test_train)
    num_outputs = y.size // y.shape[0]
    flattened = kind == "full" and k.ndim == 2 and k.shape[0] % num_outputs == 0
    matrices = as_matrices(k)
    expected = "3 axes" if kind == "diagonal" else "4 axes (or 2, flattened)" if kind == "full" else "2 axes"
    if not flattened and (kind_of(k) != kind or matrices.shape[0] != s.shape[0]):
        raise ValueError(
            f"k_test_train: expected a kernel of the kind of the training one, with {expected}; got shape {k.shape}."
        )
    if matrices.shape[2] != s.shape[1]:
        raise ValueError(
            f"k_test_train: expected test examples in rows and the {s.shape[1]} training modes in columns; "
            f"got {k.shape}." + (" It is transposed." if matrices.shape[1] == s.shape[1] else "")
        )
    return matrices, k.shape[0] // num_outputs if flattened else k.shape[0]
