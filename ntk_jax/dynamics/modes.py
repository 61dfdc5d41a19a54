"""Training under a fixed kernel with squared loss, in closed form, mode by mode.

The loss is half the mean over all n·O entries of (f - y)², and time is t = learning rate x number of steps. Then
df/dt = -K (f - y) / (nO), and the mode of eigenvalue s decays as exp(-s t / (nO)).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Num

from ntk_jax.checks import as_kernel, as_outputs, as_targets, check_integer, check_number, check_symmetric
from ntk_jax.compat import is_concrete
from ntk_jax.linalg import check_psd, default_rcond, matmul, symmetric_eigh


class Modes(NamedTuple):
    """The eigendecomposition of a training kernel, paid once: eigenvalues, largest first, and eigenvectors in columns.

    Null modes, whose eigenvalue is rounding, hold exactly 0: training never moves them.
    """

    eigenvalues: Float[Array, " n"]
    eigenvectors: Float[Array, "n n"]


class Prediction(NamedTuple):
    """Outputs on the training and test examples; `test` is None if no test kernel was given."""

    train: Float[Array, "..."]
    test: Float[Array, "..."] | None


def as_matrix(k: Float[Array, "n1 n2 ..."]) -> Float[Array, "n1_O n2_O"]:
    """A kernel (n1, n2) as it is, a full one (n1, n2, O, O) as the (n1·O, n2·O) matrix of flattened outputs."""
    if k.ndim == 2:
        return k
    return k.transpose(0, 2, 1, 3).reshape(k.shape[0] * k.shape[2], k.shape[1] * k.shape[3])


def diagonalize(k_train_train: Float[ArrayLike, "n n *outputs"], *, rcond: float | None = None) -> Modes:
    """The modes K = U diag(s) Uᵀ of a training kernel.

    Args:
        k_train_train: symmetric positive semi-definite, (n, n) shared by all outputs, or full (n, n, O, O).
        rcond: eigenvalues up to this fraction of the largest count as 0; default n eps of the dtype.

    Returns:
        Modes(eigenvalues (n,), eigenvectors (n, n)), or with n·O in place of n for a full kernel.

    Raises:
        ValueError: not square, symmetric, finite, or positive semi-definite beyond rounding (with the eigenvalues).

    Reference: Lee et al. 2019, section 2.2.
    """
    k = as_matrix(as_kernel("k_train_train", k_train_train))
    check_symmetric("k_train_train", k)
    if rcond is None:
        rcond = default_rcond(k.shape[0], k.dtype)
    check_number("rcond", rcond)
    values, vectors = symmetric_eigh(k)
    check_psd("k_train_train", values)
    return Modes(jnp.where(values > rcond * values[0], values, 0), vectors)


def max_learning_rate(modes: Modes, num_outputs: int = 1, momentum: float = 0.0) -> Float[Array, ""]:
    """The largest stable step of gradient descent under half-mean squared loss, 2 (1 + momentum) n O / s_max.

    Args:
        modes: of the training kernel.
        num_outputs: O for a kernel (n, n) shared by the outputs; 1 for the modes of a full kernel, which hold them.
        momentum: heavy-ball coefficient in [0, 1).

    Returns:
        A scalar; infinite for a kernel that is zero.

    Raises:
        ValueError: momentum outside [0, 1), num_outputs below 1.

    Reference: Lee et al. 2019, section 2.2; with momentum: Polyak 1964.
    """
    check_integer("num_outputs", num_outputs, minimum=1)
    _check_momentum(momentum)
    return 2 * (1 + momentum) * modes.eigenvalues.size * num_outputs / modes.eigenvalues[0]


def gradient_flow_mse(
    modes: Modes,
    y_train: Num[ArrayLike, "n *O"],
    t: Num[ArrayLike, "*T"] | Sequence[float],
    *,
    fx_train_0: ArrayLike = 0.0,
    k_test_train: ArrayLike | None = None,
    fx_test_0: ArrayLike = 0.0,
    diag_reg: float = 0.0,
) -> Prediction:
    """The outputs at time t of gradient flow on the half-mean squared loss.

        f_train(t) = f_0 + K α(t),  f_test(t) = f_0 + K_test α(t),
        α(t) = (K + r)⁻¹ (1 - exp(-(K + r) t / (nO))) (y - f_0)

    Args:
        modes: `diagonalize(k_train_train)`.
        y_train: targets, (n,) or (n, O).
        t: time = learning rate x steps: a scalar, an array of times (T,), or inf.
        fx_train_0: outputs of the network at initialization, 0 or shaped like y_train.
        k_test_train: kernel between test rows and training columns, to predict test outputs too.
        fx_test_0: outputs on the test examples at initialization, 0 or (n_test,) or (n_test, O).
        diag_reg: r, a pull of the parameters back to their start, (r / 2nO) |θ - θ_0|² added to the loss; at t = inf
            this is kernel ridge regression.

    Returns:
        Prediction(train, test), shaped like the targets, with the times T as leading axis if t is an array.

    Raises:
        ValueError: shapes that do not fit or would broadcast, NaN, negative t.

    Reference: Lee et al. 2019, eq. 8-11.
    """
    check_number("t", t, finite=False)
    check_number("diag_reg", diag_reg)
    problem = _Problem.check(modes, y_train, fx_train_0, k_test_train, fx_test_0)
    s = modes.eigenvalues
    times = _as_axis("t", t).astype(s.dtype)
    moving = s > 0  # t = inf times a null mode would be NaN
    rate = jnp.where(moving, s + diag_reg, 1)

    def coefficient(time: Array) -> Array:
        return jnp.where(moving, -jnp.expm1(-rate * time / problem.num_entries) / rate, 0)

    return problem.predict(jax.vmap(coefficient)(times.reshape(-1)), times.shape)


def gradient_descent_mse(
    modes: Modes,
    y_train: Num[ArrayLike, "n *O"],
    num_steps: Int[ArrayLike, "*T"] | Sequence[int],
    learning_rate: float,
    *,
    momentum: float = 0.0,
    fx_train_0: ArrayLike = 0.0,
    k_test_train: ArrayLike | None = None,
    fx_test_0: ArrayLike = 0.0,
    diag_reg: float = 0.0,
) -> Prediction:
    """The outputs after a number of full-batch gradient descent steps on the half-mean squared loss, exactly.

        v ← momentum v + ((y - f_0) - (K + r) α) / (nO),   α ← α + learning_rate v,   f = f_0 + K α

    which is `optax.sgd(learning_rate, momentum)` on the linearized network. The power of each mode's recursion is taken
    by repeated squaring, so that a million steps cost as much as twenty.

    Args:
        modes: `diagonalize(k_train_train)`.
        y_train: targets, (n,) or (n, O).
        num_steps: an integer, or an array of them (T,).
        learning_rate: step size, above 0.
        momentum: heavy-ball coefficient in [0, 1).
        fx_train_0: as in `gradient_flow_mse`, like the remaining arguments.
        k_test_train: kernel (n_test, n).
        fx_test_0: initial outputs on the test examples.
        diag_reg: pull to the initial parameters.

    Returns:
        Prediction(train, test), shaped as in `gradient_flow_mse`.

    Raises:
        ValueError: as `gradient_flow_mse`; a learning rate so far above `max_learning_rate` that the result overflows.

    Reference: Lee et al. 2019, section 2.2 (discrete steps).
    """
    check_number("learning_rate", learning_rate, strict=True)
    check_number("num_steps", num_steps)
    check_number("diag_reg", diag_reg)
    _check_momentum(momentum)
    problem = _Problem.check(modes, y_train, fx_train_0, k_test_train, fx_test_0)
    steps = _as_axis("num_steps", num_steps)
    if not jnp.issubdtype(steps.dtype, jnp.integer):
        raise ValueError(f"num_steps: expected integers; got {steps.dtype}. For continuous time use gradient_flow_mse.")
    s = jnp.where(modes.eigenvalues > 0, modes.eigenvalues + diag_reg, 0)
    coefficient = _descent_coefficients(s, steps.reshape(-1), learning_rate / problem.num_entries, momentum)
    out = problem.predict(coefficient, steps.shape)
    if is_concrete(out.train) and not bool(jnp.all(jnp.isfinite(out.train))):
        limit = float(max_learning_rate(modes, problem.num_entries // modes.eigenvalues.size, momentum))
        raise ValueError(
            f"learning_rate: expected at most {limit:.6g}, the largest stable step 2 (1 + momentum) nO / s_max; "
            f"got {float(learning_rate):.6g}, under which the outputs overflow."
        )
    return out


class _Problem(NamedTuple):
    """A checked problem: everything that does not depend on time."""

    modes: Modes
    residual: Array  # Uᵀ (y - f_0), (n, O) or (nO, 1)
    fx_train_0: Array
    k_test_train: Array | None
    fx_test_0: Array | None
    num_entries: int

    @classmethod
    def check(cls, modes: Modes, y_train: Any, fx_train_0: Any, k_test_train: Any, fx_test_0: Any) -> "_Problem":
        values, vectors = modes
        size, dtype = values.shape[0], values.dtype
        if vectors.shape != (size, size):
            raise ValueError(
                f"modes: expected diagonalize(k_train_train); got shapes {values.shape} and {vectors.shape}."
            )
        num_rows = jnp.shape(y_train)[0] if jnp.ndim(y_train) else 0
        full = jnp.size(y_train) == size != num_rows  # modes of a full kernel: one per example and output
        y = as_targets("y_train", y_train, num_rows if full else size, dtype)
        f_0 = as_outputs("fx_train_0", fx_train_0, y.shape, dtype)
        residual = matmul(vectors.T, (y - f_0).reshape(size, -1))
        if k_test_train is None:
            if jnp.ndim(fx_test_0):
                raise ValueError("k_test_train: expected the test kernel together with fx_test_0; got None.")
            return cls(modes, residual, f_0, None, None, y.size)
        k = as_kernel("k_test_train", k_test_train)
        num_test = k.shape[0]
        k = as_matrix(k).astype(dtype)
        if k.shape[1] != size:
            raise ValueError(
                f"k_test_train: expected test examples in rows and the {size} training modes in columns; got {k.shape}."
                + (" It is transposed." if k.shape[0] == size else "")
            )
        f_test_0 = as_outputs("fx_test_0", fx_test_0, (num_test, *y.shape[1:]), dtype)
        return cls(modes, residual, f_0, k, f_test_0, y.size)

    def predict(self, coefficients: Float[Array, "T n"], times: tuple[int, ...]) -> Prediction:
        """Outputs for alpha = U diag(coefficients) Uᵀ (y - f_0): all times in one flat product."""
        values, vectors = self.modes
        train = self._outputs(vectors, coefficients * values[None], self.fx_train_0, times)
        if self.k_test_train is None or self.fx_test_0 is None:
            return Prediction(train, None)
        basis = matmul(self.k_test_train, vectors)
        return Prediction(train, self._outputs(basis, coefficients, self.fx_test_0, times))

    def _outputs(self, basis: Array, coefficients: Array, f_0: Array, times: tuple[int, ...]) -> Array:
        weighted = coefficients.T[:, :, None] * self.residual[:, None, :]  # (n, T, O)
        change = matmul(basis, weighted.reshape(basis.shape[1], -1))
        change = jnp.moveaxis(change.reshape(-1, *weighted.shape[1:]), 0, 1)  # (T, n_out, O)
        return (f_0[None] + change.reshape(-1, *f_0.shape)).reshape(*times, *f_0.shape)


def _as_axis(name: str, t: Any) -> Array:
    t = jnp.asarray(t)
    if t.ndim > 1 or not t.size:
        raise ValueError(f"{name}: expected a scalar or a non-empty vector; got shape {t.shape}.")
    return t


def _check_momentum(momentum: Any) -> None:
    check_number("momentum", momentum)
    if is_concrete(momentum) and not momentum < 1:
        raise ValueError(f"momentum: expected a number in [0, 1); got {momentum!r}.")


def _descent_coefficients(s: Float[Array, " n"], steps: Int[Array, " T"], step_size: Any, momentum: Any) -> Array:
    """alpha of every mode after each number of steps (T, n), for a unit residual.

    The state (alpha, v, 1) moves by I + D, with D below; composing increments, D_ab = D_a + D_b + D_a D_b, keeps the
    digits of slow modes that powers of I + D would round away. Bits of the step count say which squarings to apply.
    """
    rate, mu = (jnp.full_like(s, value) for value in (step_size, momentum))
    zero = jnp.zeros_like(s)
    rows = [[-rate * s, mu, rate], [-rate * s, mu - 1, rate], [zero, zero, zero]]
    increment = jnp.stack([jnp.stack(row, -1) for row in rows], -2)  # (n, 3, 3)
    state = jnp.zeros((steps.size, s.size, 3), s.dtype).at[:, :, 2].set(1)

    def apply_bit(bit: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        state, increment = carry
        chosen = ((steps >> bit) & 1).astype(bool)[:, None, None]
        moved = state + jnp.einsum("nij,tnj->tni", increment, state, precision="highest")
        return jnp.where(chosen, moved, state), 2 * increment + matmul(increment, increment)

    num_bits = int(steps.max()).bit_length() if is_concrete(steps) else jnp.iinfo(steps.dtype).bits - 1
    return jax.lax.fori_loop(0, num_bits, apply_bit, (state, increment))[0][:, :, 0]
