"""The kernel of a wide network for `sklearn.gaussian_process`."""

from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from jax import Array
from jaxtyping import Float
from sklearn.gaussian_process.kernels import Hyperparameter, Kernel

from ntk_jax.checks import check_option
from ntk_jax.compat import double_precision
from ntk_jax.estimators.kernels import cross_kernel, filled, kernel_of_rows, training_kernel
from ntk_jax.estimators.settings import KERNELS
from ntk_jax.estimators.sources import MLPSource
from ntk_jax.infinite.mlp.kernels import mlp_kernels


class NTKKernel(Kernel):
    """The NTK or NNGP of the infinitely wide MLP, as a kernel of scikit-learn.

    `GaussianProcessRegressor(ConstantKernel() * NTKKernel() + WhiteKernel())` fits the scales by
    the evidence, with exact derivatives. Of a ReLU network W_std is hardly more than a factor of
    the kernel: beside a `ConstantKernel`, W_std_bounds="fixed" leaves that to it.

    Args:
        W_std: weight scale, above 0.
        b_std: bias scale, above 0 (0 only with b_std_bounds="fixed").
        depth: hidden layers.
        activation: a name of `duals`, or an elementwise function.
        kernel: "ntk" or "nngp".
        W_std_bounds: where the optimizer may go, or "fixed".
        b_std_bounds: likewise.

    Reference: Jacot, Gabriel, Hongler 2018; Lee et al. 2018.

    Example:
        >>> from ntk_jax.estimators import NTKKernel
        >>> NTKKernel(depth=1)(np.eye(3)).shape
        (3, 3)
    """

    def __init__(
        self,
        W_std: float = 2**0.5,
        b_std: float = 0.3,
        depth: int = 2,
        activation: str | Callable = "relu",
        kernel: str = "ntk",
        W_std_bounds: object = (0.1, 10.0),
        b_std_bounds: object = (1e-3, 10.0),
    ) -> None:
        self.W_std = W_std
        self.b_std = b_std
        self.depth = depth
        self.activation = activation
        self.kernel = kernel
        self.W_std_bounds = W_std_bounds
        self.b_std_bounds = b_std_bounds

    @property
    def hyperparameter_W_std(self) -> Hyperparameter:
        """Of scikit-learn, which finds it by this name."""
        return Hyperparameter("W_std", "numeric", self.W_std_bounds)

    @property
    def hyperparameter_b_std(self) -> Hyperparameter:
        """Likewise."""
        return Hyperparameter("b_std", "numeric", self.b_std_bounds)

    def __call__(
        self, X: object, Y: object = None, eval_gradient: bool = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """K(X, Y), or K(X, X) with its derivatives (n, n, p) by the logarithms of what is free."""
        x = np.atleast_2d(np.asarray(X, np.float64))
        if Y is not None:
            if eval_gradient:
                raise ValueError("eval_gradient: expected Y=None with it; got both.")
            return cross_kernel(self._source(), x, np.atleast_2d(np.asarray(Y, np.float64)))
        k = training_kernel(self._source(), x)
        return (k, self._gradient(x)) if eval_gradient else k

    def diag(self, X: object) -> np.ndarray:
        """K of every row with itself."""
        return kernel_of_rows(self._source(), np.atleast_2d(np.asarray(X, np.float64)))

    def is_stationary(self) -> bool:
        """No: it depends on more than differences."""
        return False

    def _source(self) -> MLPSource:
        check_option("kernel", self.kernel, KERNELS)
        return MLPSource(
            self.kernel, self.activation, self.depth, float(self.W_std), float(self.b_std)
        )

    def _gradient(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n n p"]:
        source = self._source()
        stds = np.array([source.W_std, source.b_std])
        with double_precision():
            both = _derivatives(filled(x, source), stds, *source[:3])
        logarithmic = [
            np.asarray(d)[: len(x), : len(x)] * s for d, s in zip(both, stds, strict=True)
        ]
        # In the order of `theta`: alphabetical.
        free = [
            logarithmic[i]
            for i, h in enumerate((self.hyperparameter_W_std, self.hyperparameter_b_std))
            if not h.fixed
        ]
        return np.stack(free, axis=2) if free else np.empty((len(x), len(x), 0))


@partial(jax.jit, static_argnums=(2, 3, 4))
def _derivatives(
    x: Float[Array, "n d"],
    stds: Float[Array, "2"],
    kind: str,
    activation: str | Callable,
    depth: int,
) -> tuple[Float[Array, "n n"], Float[Array, "n n"]]:
    """By W_std and by b_std."""

    def kernel(W_std: Array, b_std: Array) -> Array:
        kernels = mlp_kernels(x, depth=depth, activation=activation, W_std=W_std, b_std=b_std)
        return getattr(kernels, kind)

    return jax.jacfwd(kernel, argnums=(0, 1))(stds[0], stds[1])
