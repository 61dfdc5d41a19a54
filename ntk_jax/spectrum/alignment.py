"""How alike two kernels are, or a kernel and the targets; and the geometry of the examples."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Num

from ntk_jax.checks import as_kernel, as_single_kernel, as_targets, check_symmetric
from ntk_jax.compat import is_concrete
from ntk_jax.linalg import as_matrix, matmul
from ntk_jax.norms import magnitude, norm


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
    kernel = as_kernel("k", k)
    matrix = as_matrix(kernel)
    check_symmetric("k", matrix)
    targets = as_targets("y", y, kernel.shape[0], kernel.dtype)
    targets = (
        targets.reshape(matrix.shape[0], -1)
        if kernel.ndim == 4
        else targets.reshape(kernel.shape[0], -1)
    )
    if centered:
        as_single_kernel("k", kernel)
    return _checked(*_alignment(matrix, targets, centered), names=("k", "y"))


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
    return _checked(*_centered_alignment(a, b), names=("k1", "k2"))


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
    _check_pairs("k", k)
    scale = jnp.diagonal(k)
    if is_concrete(scale) and not bool(jnp.all(scale > 0)):
        raise ValueError(
            f"k: expected positive diagonal entries; got {float(scale.min()):.6g}. A zero input "
            "without biases has no direction: drop it, or use biases."
        )
    root = jnp.sqrt(scale)
    return k / root[:, None] / root[None, :]


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
    _check_pairs("k", k)
    scale = magnitude(k)
    norms = jnp.diagonal(k) / scale
    squares = jnp.maximum(norms[:, None] + norms[None, :] - 2 * (k / scale), 0)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0) * jnp.sqrt(scale)


def _check_pairs(name: str, k: Array) -> None:
    """Raise if a pair of examples, K(x, x')² above K(x, x) K(x', x'), shows that K is not PSD."""
    if not is_concrete(k):
        return
    with jax.ensure_compile_time_eval():
        excess = float(_excess(k))
    if not excess <= float(jnp.finfo(k.dtype).eps) ** 0.5:
        raise ValueError(
            f"{name}: expected a positive semi-definite kernel; got |K(x, x')| above sqrt(K(x, x) "
            f"K(x', x')), by {excess:.3g} of the largest entry. Compute it in float64, or check "
            "that it is a kernel at all."
        )


@jax.jit
def _excess(k: Array) -> Array:
    k = k / magnitude(k)
    diagonal = jnp.diagonal(k)
    root = jnp.sqrt(jnp.maximum(diagonal, 0))
    return jnp.maximum(jnp.max(jnp.abs(k) - root[:, None] * root[None, :]), -jnp.min(diagonal))


@partial(jax.jit, static_argnums=2)
def _alignment(matrix: Array, targets: Array, centered: bool) -> tuple[Array, Array, Array]:
    """The alignment, and the norms of both."""
    matrix, targets = matrix / magnitude(matrix), targets / magnitude(targets)
    if centered:
        matrix, targets = _center(matrix, (0, 1)), _center(targets, (0, 0))
    norms = norm(matrix), norm(targets)
    # Norms are divided out before the product: it stays near 1 at any scale.
    matrix, targets = matrix / norms[0], targets / norms[1]
    gram = matmul(targets.T, targets)  # |y yᵀ| = |yᵀ y|
    return jnp.sum(targets * matmul(matrix, targets)) / norm(gram), *norms


@jax.jit
def _centered_alignment(k1: Array, k2: Array) -> tuple[Array, Array, Array]:
    """The alignment, and the norms of both."""
    a, b = (_center(k / magnitude(k), (0, 1)) for k in (k1, k2))
    norms = norm(a), norm(b)
    return jnp.sum(a / norms[0] * (b / norms[1])), *norms


def _center(values: Array, axes: tuple[int, int]) -> Array:
    """Without the means over both axes, one after the other: zero where all that is left is
    rounding.
    """
    rows = values - jnp.mean(values, axis=axes[0], keepdims=True)
    # Where both axes are the same, the second mean is what rounding left of the first.
    centered = rows - jnp.mean(rows, axis=axes[1], keepdims=True)
    return jnp.where(norm(centered) > 8 * jnp.finfo(values.dtype).eps * norm(values), centered, 0)


def _checked(value: Array, *norms: Array, names: tuple[str, str]) -> Array:
    """The alignment, unless one of the two has no direction."""
    for name, length in zip(names, norms, strict=True):
        if is_concrete(length) and not float(length) > 0:
            raise ValueError(
                f"alignment: expected {name} that is not zero and, where centered, not constant; "
                "got neither."
            )
    return value
