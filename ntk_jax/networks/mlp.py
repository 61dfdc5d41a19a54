"""Flax networks in the two parameterizations of the theory.

| parameterization | layer | initialization |
| --- | --- | --- |
| "ntk" | z = W_std / sqrt(fan_in) x W + b_std b | W, b ~ N(0, 1) |
| "standard" | z = x W + b | W ~ N(0, W_std² / fan_in), b ~ N(0, b_std²) |

Both draw the same functions at initialization; they differ in how gradient descent moves them.
(Jacot et al. 2018; Sohl-Dickstein et al. 2020.)
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from ntk_jax.checks import check_integer, check_option
from ntk_jax.draws import draw_flat
from ntk_jax.duals.catalogue import ACTIVATIONS
from ntk_jax.networks.scales import check_scales, per_layer, scales_of_layers
from ntk_jax.types import Params

Activation = str | Callable[[Array], Array]


def activation_function(activation: Activation) -> Callable[[Array], Array]:
    """The function of a name; functions pass through.

    Raises:
        ValueError: the name is not in `duals.catalogue.ACTIVATIONS`.
    """
    if callable(activation):
        return activation
    check_option("activation", activation, ACTIVATIONS)
    return ACTIVATIONS[activation]


class Dense(nn.Module):
    """A fully connected layer, x (..., fan_in) -> z (..., features); the formulas are in this
    file's heading.

    Attributes:
        features: number of outputs.
        W_std: standard deviation of the weights times sqrt(fan_in), above 0.
        b_std: standard deviation of the biases; None means no bias parameters.
        parameterization: "ntk" or "standard".
    """

    features: int
    W_std: ArrayLike = 1.0
    b_std: ArrayLike | None = 0.0
    parameterization: str = "ntk"

    def __post_init__(self) -> None:
        """Arrays become numbers: a module is compared and hashed by its attributes."""
        self.W_std, self.b_std = scales_of_layers(self.W_std), scales_of_layers(self.b_std)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: ArrayLike) -> Array:
        """Raises ValueError for unknown options or standard deviations out of range."""
        check_integer("features", self.features, minimum=1)
        check_scales(self.W_std, self.b_std, self.parameterization)
        x = _as_features(x)
        dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.result_type(float)
        x = x.astype(dtype)
        given = (self.W_std, 0.0 if self.b_std is None else self.b_std)
        W_std, b_std = (std.astype(dtype) if isinstance(std, Array) else std for std in given)
        scales: tuple[Any, Any] = (W_std / x.shape[-1] ** 0.5, b_std)
        forward, initial = (
            (scales, (1.0, 1.0)) if self.parameterization == "ntk" else ((1.0, 1.0), scales)
        )
        (W_scale, b_scale), (W_init, b_init) = forward, initial
        W = self.param("kernel", _normal(W_init), (x.shape[-1], self.features), dtype)
        z = W_scale * (x @ W)
        if self.b_std is None:
            return z
        b = self.param("bias", _normal(b_init), (self.features,), dtype)
        return z + jnp.broadcast_to(b_scale * b, z.shape)


def _as_features(x: ArrayLike) -> Array:
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise ValueError(
            f"x: expected real values; got {x.dtype}. Stack real and imaginary parts as features."
        )
    return x


def _normal(std: Any) -> Callable[[Array, Sequence[int], Any], Array]:
    """The initializer of that name."""
    return partial(draw_flat, nn.initializers.normal(std))


class MLP(nn.Module):
    """A multi-layer perceptron: len(widths) hidden layers, then a Dense readout; x (n, d) -> (n,
    num_outputs).

    Attributes:
        widths: units of each hidden layer; () is a linear model.
        num_outputs: output coordinates.
        activation: a name of `duals.catalogue.ACTIVATIONS` or a scalar JAX function.
        W_std: weight scale, one number or one per Dense layer (hidden layers, then readout).
        b_std: bias scale, likewise; None means no bias parameters.
        parameterization: "ntk" or "standard".
    """

    widths: Sequence[int]
    num_outputs: int = 1
    activation: Activation = "relu"
    W_std: Sequence[Any] | ArrayLike = 1.0
    b_std: Sequence[Any] | ArrayLike | None = 0.0
    parameterization: str = "ntk"

    def __post_init__(self) -> None:
        """Arrays become tuples: a module is compared and hashed by its attributes."""
        self.W_std, self.b_std = scales_of_layers(self.W_std), scales_of_layers(self.b_std)
        self.widths = scales_of_layers(self.widths)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: ArrayLike) -> Array:
        """Raises ValueError for inputs with more than one feature axis, and what `Dense` raises."""
        if jnp.ndim(x) > 2:
            raise ValueError(
                f"x: expected shape (n, d); got {jnp.shape(x)}. Flatten it: x.reshape(len(x), -1)."
            )
        x = _as_features(x)
        phi = activation_function(self.activation)
        features = (*self.widths, self.num_outputs)
        W_std, b_std = (
            per_layer(name, getattr(self, name), len(features)) for name in ("W_std", "b_std")
        )
        for i, layer in enumerate(zip(features, W_std, b_std, strict=True)):
            x = Dense(*layer, self.parameterization)(x)
            if i < len(self.widths):
                x = phi(x)
        return jnp.asarray(x)


def torch_init(params: Params, key: Array) -> Params:
    """Parameters of the same shapes, drawn as PyTorch's `Linear` and `Conv` layers draw theirs.

    Weights and biases of a layer are uniform on ±1/sqrt(fan_in), so the weights have variance 1/(3
    fan_in). For networks in standard parameterization: `MLP(..., parameterization="standard")`, or
    any Flax model of Dense and Conv layers.

    Example:
        >>> model = ntk_jax.MLP(widths=(8,), parameterization="standard")
        >>> params = model.init(jax.random.key(0), jnp.ones((1, 4)))["params"]
        >>> params = ntk_jax.torch_init(params, jax.random.key(1))
        >>> bool(abs(params["Dense_0"]["kernel"]).max() <= 0.5)  # 1 / sqrt(4)
        True

    Args:
        params: parameters of Linen, nested dictionaries whose layers hold a "kernel" (..., fan_in
            axes, features) and perhaps a "bias"; anything else is kept as it is.
        key: a random key.

    Returns:
        New parameters.

    Reference: He et al. 2015, in whose formula PyTorch sets a = sqrt(5).
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    kernels = [(path[:-1], leaf) for path, leaf in leaves if _name(path) == "kernel"]
    draws = {
        layer: (own, (kernel.size // kernel.shape[-1]) ** -0.5)
        for (layer, kernel), own in zip(
            kernels, jax.random.split(key, max(1, len(kernels))), strict=False
        )
    }

    def draw(path: Any, leaf: Any) -> Any:
        if path[:-1] not in draws or _name(path) not in ("kernel", "bias"):
            return leaf
        own, bound = draws[path[:-1]]
        own = jax.random.fold_in(own, 0 if _name(path) == "kernel" else 1)
        return draw_flat(jax.random.uniform, own, leaf.shape, leaf.dtype, -bound, bound)

    return jax.tree_util.tree_map_with_path(draw, params)


def _name(path: Any) -> Any:
    return getattr(path[-1], "key", None)
