"""What a kernel can fit: its rank, and the examples that lower it."""

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from ntk_jax.checks import as_square_kernel, check_integer, check_looks, check_number
from ntk_jax.linalg import check_psd, default_rcond
from ntk_jax.modes.modes import spectrum_of


class Definiteness(NamedTuple):
    """Rank and eigenvalues of a kernel, and why it is singular where that shows in single rows or
    pairs.

    Attributes:
        rank: eigenvalues above the cutoff, out of `size`.
        size: n, or n·O for a kernel that tells outputs apart.
        smallest_eigenvalue: of all, not of those above the cutoff.
        largest_eigenvalue: of all.
        condition_number: largest / smallest; infinite if the rank is not full.
        zeros: examples without any tangent features, K(x, x) = 0.
        duplicates: pairs (i, j), i < j, that the network cannot tell apart, K(x, x) + K(x', x') - 2
            K(x, x') = 0.
        parallel: other pairs whose features are multiples of each other, K(x, x')² = K(x, x) K(x',
            x').
        too_few_parameters: whether P < nO, which bounds the rank; False if P was not given.
    """

    rank: int
    size: int
    smallest_eigenvalue: float
    largest_eigenvalue: float
    condition_number: float
    zeros: Int[np.ndarray, " k0"]
    duplicates: Int[np.ndarray, "k1 2"]
    parallel: Int[np.ndarray, "k2 2"]
    too_few_parameters: bool

    @property
    def positive_definite(self) -> bool:
        """Whether the numerical rank is full: then, and only then, gradient flow fits any
        targets.
        """
        return self.rank == self.size


def definiteness(
    k: Float[ArrayLike, "n n *outputs"],
    *,
    num_params: int | None = None,
    rcond: float | None = None,
) -> Definiteness:
    """Whether a tangent kernel is positive definite, and if not, which examples are to blame.

    A tangent kernel is always positive semi-definite. It is definite exactly if the Jacobian has
    full row rank: not with repeated examples, not with fewer parameters than outputs, for ReLU
    without biases not with x and 2x, nor with more than two points on a line. Conflicting targets
    of repeated examples leave a loss that no training removes.

    Args:
        k: symmetric kernel, (n, n), one per output, (n, n, O), or full, (n, n, O, O).
        num_params: P, to compare with n·O.
        rcond: eigenvalues up to this fraction of the largest count as 0, and so do such differences
            of entries; default 10 n eps of the dtype.

    Returns:
        A Definiteness; read `.positive_definite` first.

    Raises:
        ValueError: not a finite symmetric kernel, or not PSD beyond rounding.

    Reference: Jacot et al. 2018, proposition 2 (for which inputs the limit is definite).

    Example:
        >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> report = ntk_jax.definiteness(x @ x.T)
        >>> report.rank, report.positive_definite, report.duplicates.tolist()
        (2, False, [[1, 2]])
    """
    kernel = as_square_kernel("k", k)
    if num_params is not None:
        check_integer("num_params", num_params, minimum=1)
    found, seen = spectrum_of(kernel)
    check_looks({"k": seen}, {"k": kernel})
    size = found.size
    cutoff = 10 * default_rcond(size, kernel.dtype) if rcond is None else rcond
    check_number("rcond", cutoff, max_ndim=0)
    values = np.sort(np.asarray(found).reshape(-1))[::-1]
    check_psd("k", values)
    rank = int(np.sum(values > cutoff * values[0]))
    smallest, largest = float(values[-1]), float(values[0])
    zeros, duplicates, parallel = _pairs(kernel, cutoff)
    return Definiteness(
        rank, size, smallest, largest, largest / smallest if rank == size else float("inf"),
        zeros, duplicates, parallel, num_params is not None and num_params < size,
    )  # fmt: skip


def _pairs(kernel: ArrayLike, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Examples without features, pairs of equal ones, pairs of parallel ones, over all outputs."""
    k = np.asarray(kernel)
    k = {2: lambda: k, 3: lambda: k.sum(2), 4: lambda: np.trace(k, axis1=2, axis2=3)}[k.ndim]()
    k = k / (np.diag(k).max() or 1)
    norms = np.diag(k)
    zero = norms <= cutoff
    product = np.sqrt(np.maximum(norms[:, None] * norms[None], 0))
    candidates = np.triu(np.ones(k.shape, bool), 1) & ~zero[:, None] & ~zero[None]
    parallel = candidates & (product - np.abs(k) <= cutoff * product)
    # Of parallel features only those of equal length can be equal; |φ - φ'|² adds up 4 roundings.
    duplicate = parallel & (norms[:, None] + norms[None] - 2 * k <= 4 * cutoff * product)
    return np.flatnonzero(zero), np.argwhere(duplicate), np.argwhere(parallel & ~duplicate)
