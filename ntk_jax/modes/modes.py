"""The modes of a training kernel: paid for once, then training under squared loss is arithmetic."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Float, Int

from ntk_jax.checks import (
    Look,
    Number,
    as_number,
    as_square_kernel,
    check_integer,
    check_looks,
    look,
)
from ntk_jax.compat import is_concrete
from ntk_jax.linalg import (
    ascending_eigenvalues,
    check_psd,
    matmul,
    null_rcond,
    symmetric_eigh,
)
from ntk_jax.matrix_functions.basis import Basis
from ntk_jax.modes.kind import SHARED, Kind, as_matrices, kind_of
from ntk_jax.small_programs import jit_by_size


@dataclass(frozen=True)
class Modes:
    """The eigendecomposition of a training kernel: eigenvalues, largest first, and eigenvectors.

    Null modes, whose eigenvalue is rounding, hold exactly 0: training never moves them. A kernel
    (n, n, O) has O sets of modes, along a first axis; a full one (n, n, O, O) has n·O modes. The
    first two fields are `s, U = modes`.

    Attributes:
        eigenvalues: s, largest first, (*O, n).
        eigenvectors: U, in columns, (*O, n, n).
        kernel: K = U diag(s) Uᵀ itself while it is traced, else None: what depends on K as a whole
            is differentiated by K, not by U, whose columns turn freely where eigenvalues meet.
        kind: whether all outputs share the kernel, have one each, or are coupled by it.
        outputs: output axes of the kernel: (), (O,) or (O, O).
    """

    # `Any`, since JAX rebuilds pytrees of placeholders, too, and the run-time checks of the tests
    # (older jaxtyping) look at what `__init__` is given then.
    eigenvalues: Any
    eigenvectors: Any
    kernel: Any = None
    kind: Kind = SHARED

    def __iter__(self) -> Iterator[Array]:
        return iter((self.eigenvalues, self.eigenvectors))

    @property
    def outputs(self) -> tuple[int, ...]:
        """Output axes of the kernel."""
        return self.kind.axes

    @property
    def rank(self) -> Array:
        """The number of modes that training moves, one per set of modes."""
        return _rank(self.eigenvalues)

    @property
    def condition_number(self) -> Array:
        """The largest eigenvalue over the smallest: infinite with null modes."""
        return _condition_number(self.eigenvalues)

    @property
    def traced(self) -> bool:
        """Whether derivatives by the modes may be taken: whether they are traced."""
        return not (is_concrete(self.eigenvalues) and is_concrete(self.eigenvectors))

    def bases(self, traced: bool) -> Basis:
        """The modes as a batch of bases, one for each output that has a kernel of its own.

        For compiled programs: `traced` is what the modes were outside.
        """
        kernel = self.kernel
        if kernel is None and traced:
            U = self.eigenvectors  # modes of the caller's making: the kernel is what they make
            kernel = matmul(U * self.eigenvalues[..., None, :], jnp.swapaxes(U, -1, -2))
        basis = Basis(self.eigenvalues, self.eigenvectors, kernel)
        return (
            basis if self.kind.name == "diagonal" else jax.tree.map(lambda part: part[None], basis)
        )


@jit_by_size
def _rank(s: Float[Array, "*O n"]) -> Int[Array, "*O"]:
    return jnp.sum(s > 0, axis=-1)


@jit_by_size
def _condition_number(s: Float[Array, "*O n"]) -> Float[Array, "*O"]:
    return s[..., 0] / s[..., -1]


jax.tree_util.register_dataclass(Modes, ("eigenvalues", "eigenvectors", "kernel"), ("kind",))


class Prediction(NamedTuple):
    """Outputs on training and test examples; None without a test kernel, or `predict_train`."""

    train: Float[Array, "..."] | None
    test: Float[Array, "..."] | None


def diagonalize(
    k_train_train: Float[ArrayLike, "n n *outputs"], *, rcond: float | None = None
) -> Modes:
    """The modes K = U diag(s) Uᵀ of a training kernel.

    Args:
        k_train_train: symmetric positive semi-definite, (n, n) shared by all outputs, (n, n, O) one
            per output, or full (n, n, O, O).
        rcond: eigenvalues up to this fraction of the largest count as 0; default 5 eps of the
            dtype, the rounding of a kernel and of its decomposition, whatever n.

    Returns:
        Modes(eigenvalues (n,), eigenvectors (n, n)); with a first axis O for a kernel (n, n, O),
        and with n·O in place of n for a full one. `modes.rank` and `modes.condition_number` report
        on them. Functions of modes are differentiable in the kernel, also where eigenvalues meet;
        single eigenvectors are not there (their derivative leaves out turns within an eigenspace),
        nor is the largest of equal eigenvalues.

    Raises:
        ValueError: not square, symmetric, finite, or positive semi-definite beyond rounding (with
            the eigenvalues).

    Reference: Lee et al. 2019, section 2.2.

    Example:
        >>> modes = ntk_jax.diagonalize(jnp.array([[2.0, 1.0], [1.0, 2.0]]))
        >>> print(np.round(modes.eigenvalues, 3), int(modes.rank))
        [3. 1.] 2
    """
    k = as_square_kernel("k_train_train", k_train_train)
    cut = as_number("rcond", null_rcond(k.dtype) if rcond is None else rcond, k.dtype)
    modes, known, seen = _decompose(k, cut, not is_concrete(k))
    check_looks({"k_train_train": seen}, {"k_train_train": k})
    check_psd("k_train_train", known)
    return modes


@partial(jit_by_size, static_argnums=2)
def _decompose(
    k: Float[Array, "n n *outputs"], rcond: Array, traced: bool
) -> tuple[Modes, Float[Array, "B N"], Look | None]:
    return *modes_of(k, rcond, traced), look(k, symmetric=True)


def modes_of(
    k: Float[Array, "n n *outputs"], rcond: Array | float, traced: bool
) -> tuple[Modes, Float[Array, "B N"]]:
    """`diagonalize` for compiled programs, and the eigenvalues as they are, for `check_psd`.

    `traced` is what the kernel is outside.
    """
    matrices, kind = as_matrices(k), kind_of(k)
    s, U = jax.vmap(symmetric_eigh)(matrices)
    parts = jnp.where(s > rcond * s[:, :1], s, 0), U, matrices if traced else None
    if kind.name != "diagonal":
        parts = jax.tree.map(lambda part: part[0], parts)
    return Modes(*parts, kind), s


@jit_by_size
def spectrum_of(k: Float[Array, "n n *outputs"]) -> tuple[Float[Array, "B N"], Look | None]:
    """The eigenvalues of a kernel, largest first, and what checks see of it."""
    return ascending_eigenvalues(as_matrices(k))[:, ::-1], look(k, symmetric=True)


def max_learning_rate(
    modes: Modes,
    num_outputs: int | None = None,
    momentum: Float[ArrayLike, ""] = 0.0,
    *,
    nesterov: bool = False,
) -> Float[Array, ""]:
    """The largest stable step of gradient descent under half-mean squared loss.

        2 n O / s_max,  with heavy-ball momentum times 1 + μ,  Nesterov's times (1 + μ) / (1 + 2 μ)

    Args:
        modes: of the training kernel.
        num_outputs: O for a kernel (n, n) shared by the outputs, 1 by default; the modes of a
            kernel (n, n, O) or (n, n, O, O) know it.
        momentum: μ in [0, 1).
        nesterov: the variant of momentum that `optax.sgd(..., nesterov=True)` takes.

    Returns:
        A scalar; infinite for a kernel that is zero. Where the largest eigenvalue is repeated it
        has a kink in the kernel: the derivative is that of the mean of the equal ones.

    Raises:
        ValueError: momentum outside [0, 1), num_outputs below 1 or not that of the kernel.

    Reference: Lee et al. 2019, section 2.2; with momentum: Polyak 1964, Nesterov 1983.

    Example:
        >>> modes = ntk_jax.diagonalize(jnp.array([[2.0, 1.0], [1.0, 2.0]]))
        >>> round(float(ntk_jax.max_learning_rate(modes)), 3)  # 2 n O / 3
        1.333
    """
    sharing = 1 if num_outputs is None else num_outputs
    check_integer("num_outputs", sharing, minimum=1)
    if modes.kind.num_outputs is not None:  # all n·O entries have a mode of their own
        if sharing not in (1, modes.kind.num_outputs):
            raise ValueError(
                f"num_outputs: expected {modes.kind.num_outputs}, that of the kernel, or None; got "
                f"{num_outputs}."
            )
        sharing = 1
    s = modes.eigenvalues
    return _largest_step(s, as_momentum(momentum, s.dtype), sharing, nesterov)


@partial(jit_by_size, static_argnums=(2, 3))
def _largest_step(
    s: Float[Array, "*O n"], momentum: Array, sharing: int, nesterov: bool
) -> Float[Array, ""]:
    factor = (1 + momentum) / (1 + 2 * momentum) if nesterov else 1 + momentum
    return 2 * factor * (s.size * sharing) / jnp.max(s)


def as_momentum(momentum: ArrayLike, dtype: DTypeLike) -> Number:
    """Momentum as an argument of a compiled program; raise unless it is in [0, 1)."""
    number = as_number("momentum", momentum, dtype)
    if is_concrete(momentum) and not np.asarray(momentum) < 1:
        raise ValueError(f"momentum: expected a number in [0, 1); got {momentum!r}.")
    return number
