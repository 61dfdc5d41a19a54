"""How alike two kernels are, or a kernel and the targets; and the geometry that a kernel gives the examples."""

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Num

from ntk_jax.checks import as_kernel, as_targets, check_symmetric
from ntk_jax.compat import is_concrete
from ntk_jax.linalg import as_matrix, matmul


def alignment(
    k: Float[ArrayLike, "n n *outputs"], y: Num[ArrayLike, "n *O"], *, centered: bool = False
) -> Float[Array, ""]:
    """How well a kernel fits the targets, A = yᵀ K y / (|K|_F |y yᵀ|_F): 1 if K is a multiple of y yᵀ.

    Args:
        k: symmetric, (n, n) or full (n, n, O, O), which is aligned with all n·O targets as one vector.
        y: targets, (n,) or (n, O); the target kernel y yᵀ is summed over outputs.
        centered: subtract from kernel and targets their means over examples first, so that a constant in either does not
            count; only for (n, n).

    Returns:
        A scalar, between 0 and 1 for a positive semi-definite kernel.

    Raises:
        ValueError: shapes that do not fit, a kernel that is not symmetric, or is zero (after centering), like y.

    Reference: Cristianini et al. 2001; centered: Cortes, Mohri, Rostamizadeh 2012.
    """
    kernel = as_kernel("k", k)
    matrix = as_matrix(kernel)
    check_symmetric("k", matrix)
    targets = as_targets("y", y, kernel.shape[0], kernel.dtype)
    targets = targets.reshape(matrix.shape[0], -1) if kernel.ndim == 4 else targets.reshape(kernel.shape[0], -1)
    if centered:
        matrix, targets = _center(_plain("k", kernel)), targets - jnp.mean(targets, axis=0, keepdims=True)
    gram = matmul(targets.T, targets)  # |y yᵀ| = |yᵀ y|
    return _nonzero(jnp.sum(targets * matmul(matrix, targets)), jnp.linalg.norm(matrix), jnp.linalg.norm(gram))


def centered_alignment(k1: Float[ArrayLike, "n n"], k2: Float[ArrayLike, "n n"]) -> Float[Array, ""]:
    """Centered kernel alignment (CKA), <H K1 H, H K2 H>_F / (|H K1 H|_F |H K2 H|_F) with H = I - 1 1ᵀ / n.

    It is blind to the scale of the kernels and to what they add to all features of all examples.

    Args:
        k1: a symmetric kernel (n, n).
        k2: another one on the same examples.

    Returns:
        A scalar, between 0 and 1 for positive semi-definite kernels; 1 if they are multiples of each other.

    Raises:
        ValueError: shapes differ, not symmetric, or zero after centering.

    Reference: Cortes, Mohri, Rostamizadeh 2012, eq. 2; Kornblith et al. 2019, eq. 3.
    """
    a, b = _plain("k1", k1), _plain("k2", k2)
    if a.shape != b.shape:
        raise ValueError(f"k2: expected the shape of k1, {a.shape}; got {b.shape}. Use the same examples for both.")
    a, b = _center(a), _center(b)
    return _nonzero(jnp.sum(a * b), jnp.linalg.norm(a), jnp.linalg.norm(b))


def cosine(k: Float[ArrayLike, "n n"]) -> Float[Array, "n n"]:
    """The cosine of the angle between the features of two examples, K(x, x') / sqrt(K(x, x) K(x', x')).

    Args:
        k: symmetric positive semi-definite kernel of examples with themselves (n, n).

    Returns:
        (n, n), with ones on the diagonal.

    Raises:
        ValueError: not square or symmetric; a diagonal entry that is not above 0 has no direction.
    """
    k = _plain("k", k)
    scale = jnp.diagonal(k)
    if is_concrete(scale) and not bool(jnp.all(scale > 0)):
        raise ValueError(
            f"k: expected positive diagonal entries; got {float(scale.min()):.6g}. A zero input without biases has no "
            "direction: drop it, or use biases."
        )
    root = jnp.sqrt(scale)
    return k / root[:, None] / root[None, :]


def kernel_distance(k: Float[ArrayLike, "n n"]) -> Float[Array, "n n"]:
    """The distance between the features of two examples, sqrt(K(x, x) + K(x', x') - 2 K(x, x')).

    Args:
        k: symmetric positive semi-definite kernel of examples with themselves (n, n).

    Returns:
        (n, n), with zeros on the diagonal.

    Raises:
        ValueError: not square or symmetric.
    """
    k = _plain("k", k)
    scale = jnp.diagonal(k)
    return jnp.sqrt(jnp.maximum(scale[:, None] + scale[None, :] - 2 * k, 0))


def _plain(name: str, k: Any) -> Array:
    k = as_kernel(name, k)
    if k.ndim != 2:
        raise ValueError(f'{name}: expected a kernel (n, n); got {k.shape}. Compute it with outputs="mean".')
    check_symmetric(name, k)
    return k


def _center(k: Array) -> Array:
    rows = k - jnp.mean(k, axis=0, keepdims=True)
    return rows - jnp.mean(rows, axis=1, keepdims=True)


def _nonzero(inner: Array, norm1: Array, norm2: Array) -> Array:
    """inner / (norm1 norm2), refusing zero norms."""
    if is_concrete(norm1) and is_concrete(norm2) and not bool((norm1 > 0) & (norm2 > 0)):
        raise ValueError(
            f"alignment: expected kernels and targets that are not zero (after centering, not constant); got norms "
            f"{float(norm1):.6g} and {float(norm2):.6g}."
        )
    return inner / norm1 / norm2
