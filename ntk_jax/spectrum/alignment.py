"""How alike two kernels are, or a kernel and the targets; and the geometry of the examples."""

from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Num

from ntk_jax.checks import (
    Look,
    as_coupled_kernel,
    as_single_kernel,
    as_targets,
    check_looks,
    look,
    looks,
)
from ntk_jax.compat import is_concrete, outside_traces
from ntk_jax.linalg import as_matrix, matmul
from ntk_jax.norms import magnitude, norm
from ntk_jax.small_programs import jit_by_size

Looks: TypeAlias = dict[str, Look | None]
Norms: TypeAlias = dict[str, Array]


def alignment(
    k: Float[ArrayLike, "n n *outputs"], y: Num[ArrayLike, "n *O"], *, centered: bool = False
) -> Float[Array, ""]:
    """How well a kernel fits the targets: 1 if K is a multiple of y yᵀ.

        A = yᵀ K y / (|K|_F |y yᵀ|_F)

    Args:
        k: symmetric, (n, n) or full (n, n, O, O), which is aligned with all n·O targets as one
            vector.
        y: targets, (n,) or (n, O); the target kernel y yᵀ is summed over outputs.
        centered: subtract from kernel and targets their means over examples first, so that a
            constant in either does not count; only for (n, n).

    Returns:
        A scalar, between 0 and 1 for a positive semi-definite kernel, whatever the scale of kernel
        and targets. What is zero, or after centering rounding, has none: an error, and NaN inside
        jit.

    Raises:
        ValueError: shapes that do not fit, a kernel that is not symmetric, or is zero (after
            centering), like y.

    Reference: Cristianini et al. 2001; centered: Cortes, Mohri, Rostamizadeh 2012.

    Example:
        >>> y = jnp.array([1.0, -1.0, 2.0])
        >>> round(float(ntk_jax.alignment(jnp.outer(y, y), y)), 3)
        1.0
        >>> round(float(ntk_jax.alignment(jnp.eye(3), y)), 3)
        0.577
    """
    kernel = (as_single_kernel if centered else as_coupled_kernel)("k", k)
    inputs = {"k": kernel, "y": as_targets("y", y, kernel.shape[0], kernel.dtype)}
    value, norms, seen = _alignment(inputs, centered)
    check_looks(seen, inputs)
    return _checked(value, norms)


def centered_alignment(
    k1: Float[ArrayLike, "n n"], k2: Float[ArrayLike, "n n"]
) -> Float[Array, ""]:
    """Centered kernel alignment (CKA), with H = I - 1 1ᵀ / n.

        CKA = <H K1 H, H K2 H>_F / (|H K1 H|_F |H K2 H|_F)

    It is blind to the scale of the kernels and to what they add to all features of all examples.

    Args:
        k1: a symmetric kernel (n, n).
        k2: another one on the same examples.

    Returns:
        A scalar, between 0 and 1 for positive semi-definite kernels; 1 if they are multiples of
        each other. Kernels that are zero after centering (of one example, constant ones) have none:
        an error, and NaN inside jit.

    Raises:
        ValueError: shapes differ, not symmetric, or zero after centering.

    Reference: Cortes, Mohri, Rostamizadeh 2012, eq. 2; Kornblith et al. 2019, eq. 3.

    Example:
        >>> x = jnp.array([[0.0], [1.0], [3.0]])
        >>> round(float(ntk_jax.centered_alignment(x @ x.T, 5 * x @ x.T + 2)), 3)
        1.0
    """
    a, b = as_single_kernel("k1", k1), as_single_kernel("k2", k2)
    if a.shape != b.shape:
        raise ValueError(
            f"k2: expected the shape of k1, {a.shape}; got {b.shape}. Use the same examples for "
            "both."
        )
    inputs = {"k1": a, "k2": b}
    value, norms, seen = _centered_alignment(inputs)
    check_looks(seen, inputs)
    return _checked(value, norms)


def cosine(k: Float[ArrayLike, "n n"]) -> Float[Array, "n n"]:
    """The cosine of the angle between the features of two examples.

        K(x, x') / sqrt(K(x, x) K(x', x'))

    Args:
        k: symmetric positive semi-definite kernel of examples with themselves (n, n).

    Returns:
        (n, n), with ones on the diagonal.

    Raises:
        ValueError: not square or symmetric; a diagonal entry that is not above 0 has no direction;
            cosines above 1.

    Example:
        >>> k = jnp.array([[4.0, 1.0], [1.0, 1.0]])
        >>> print(np.round(ntk_jax.cosine(k), 3))
        [[1.  0.5]
         [0.5 1. ]]
    """
    k = as_single_kernel("k", k)
    cosines, facts, seen = _cosine(k)
    check_looks({"k": seen}, {"k": k})
    _check_pairs(k, facts)
    if is_concrete(k) and is_concrete(facts.smallest) and not float(facts.smallest) > 0:
        raise ValueError(
            f"k: expected positive diagonal entries; got {float(facts.smallest):.6g}. A zero input "
            "without biases has no direction: drop it, or use biases."
        )
    return cosines


class _Pairs(NamedTuple):
    """How far pairs of examples show that a kernel is not PSD, and its smallest diagonal entry."""

    excess: Float[Array, ""]
    smallest: Float[Array, ""]


@jit_by_size
def _cosine(k: Float[Array, "n n"]) -> tuple[Float[Array, "n n"], _Pairs, Look | None]:
    root = jnp.sqrt(jnp.diagonal(k))
    return k / root[:, None] / root[None, :], _pairs(k), look(k, symmetric=True)


def kernel_distance(k: Float[ArrayLike, "n n"]) -> Float[Array, "n n"]:
    """The distance between the features of two examples.

        sqrt(K(x, x) + K(x', x') - 2 K(x, x'))

    Args:
        k: symmetric positive semi-definite kernel of examples with themselves (n, n).

    Returns:
        (n, n), with zeros on the diagonal.

    Raises:
        ValueError: not square or symmetric; pairs whose squared distance would be negative.

    Example:
        >>> k = jnp.array([[4.0, 1.0], [1.0, 1.0]])
        >>> print(np.round(ntk_jax.kernel_distance(k), 3))
        [[0.    1.732]
         [1.732 0.   ]]
    """
    k = as_single_kernel("k", k)
    distances, facts, seen = _distance(k)
    check_looks({"k": seen}, {"k": k})
    _check_pairs(k, facts)
    return distances


@jit_by_size
def _distance(k: Float[Array, "n n"]) -> tuple[Float[Array, "n n"], _Pairs, Look | None]:
    scale = magnitude(k)
    norms = jnp.diagonal(k) / scale
    squares = jnp.maximum(norms[:, None] + norms[None, :] - 2 * (k / scale), 0)
    distances = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
    return distances * jnp.sqrt(scale), _pairs(k), look(k, symmetric=True)


def _check_pairs(k: Array, facts: _Pairs) -> None:
    """Raise if a pair of examples, K(x, x')² above K(x, x) K(x', x'), shows that K is not PSD."""
    if not is_concrete(k):
        return
    if not is_concrete(facts.excess):  # a constant inside someone's jit can still be looked at
        facts = outside_traces(jax.jit(_pairs), k)
    if not float(facts.excess) <= float(jnp.finfo(k.dtype).eps) ** 0.5:
        raise ValueError(
            "k: expected a positive semi-definite kernel; got |K(x, x')| above sqrt(K(x, x) "
            f"K(x', x')), by {float(facts.excess):.3g} of the largest entry. Compute it in "
            "float64, or check that it is a kernel at all."
        )


def _pairs(k: Array) -> _Pairs:
    k = jax.lax.stop_gradient(k)
    smallest = jnp.min(jnp.diagonal(k))
    k = k / magnitude(k)
    diagonal = jnp.diagonal(k)
    root = jnp.sqrt(jnp.maximum(diagonal, 0))
    excess = jnp.maximum(jnp.max(jnp.abs(k) - root[:, None] * root[None, :]), -jnp.min(diagonal))
    return _Pairs(excess, smallest)


@partial(jit_by_size, static_argnums=1)
def _alignment(inputs: dict[str, Array], centered: bool) -> tuple[Array, Norms, Looks]:
    """The alignment, and the norms of both."""
    matrix = as_matrix(inputs["k"])
    targets = inputs["y"].reshape(matrix.shape[0], -1)
    matrix, targets = matrix / magnitude(matrix), targets / magnitude(targets)
    if centered:
        matrix, targets = _center(matrix, (0, 1)), _center(targets, (0, 0))
    norms = {"k": norm(matrix), "y": norm(targets)}
    # Norms are divided out before the product: it stays near 1 at any scale.
    matrix, targets = matrix / norms["k"], targets / norms["y"]
    gram = matmul(targets.T, targets)  # |y yᵀ| = |yᵀ y|
    value = jnp.sum(targets * matmul(matrix, targets)) / norm(gram)
    return value, norms, looks(inputs, symmetric=("k",))


@jit_by_size
def _centered_alignment(inputs: dict[str, Array]) -> tuple[Array, Norms, Looks]:
    """The alignment, and the norms of both."""
    centered = {name: _center(k / magnitude(k), (0, 1)) for name, k in inputs.items()}
    norms = {name: norm(k) for name, k in centered.items()}
    a, b = (k / norms[name] for name, k in centered.items())
    return jnp.sum(a * b), norms, looks(inputs, symmetric=("k1", "k2"))


def _center(values: Array, axes: tuple[int, int]) -> Array:
    """Without the means over both axes, one after the other: zero where all that is left is
    rounding.
    """
    rows = values - jnp.mean(values, axis=axes[0], keepdims=True)
    # Where both axes are the same, the second mean is what rounding left of the first.
    centered = rows - jnp.mean(rows, axis=axes[1], keepdims=True)
    return jnp.where(norm(centered) > 8 * jnp.finfo(values.dtype).eps * norm(values), centered, 0)


def _checked(value: Array, norms: Norms) -> Array:
    """The alignment, unless one of the two has no direction."""
    for name, length in norms.items():
        if is_concrete(length) and not float(length) > 0:
            raise ValueError(
                f"alignment: expected {name} that is not zero and, where centered, not constant; "
                "got neither."
            )
    return value
