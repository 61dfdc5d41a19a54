"""The infinite-width kernels of a fully connected network, written from the recursion."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Literal, overload

from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from ntk_jax.checks import (
    as_example_pair,
    check_integer,
    check_number,
    check_option,
    working_dtype,
)
from ntk_jax.compat import is_concrete
from ntk_jax.duals.catalogue import dual_rule
from ntk_jax.duals.dual_rule import DualRule
from ntk_jax.infinite.mlp import recursion
from ntk_jax.infinite.mlp.diagonal import Diagonals, diagonals, fitted
from ntk_jax.infinite.mlp.layers import Architecture, Layers, Network, as_rows, stack
from ntk_jax.networks.scales import check_scales, per_layer
from ntk_jax.tiling import cropped
from ntk_jax.types import WHICH, Kernels, Which, as_asked


@overload
def mlp_kernels(
    x1: ArrayLike,
    x2: ArrayLike | None = None,
    *,
    depth: int,
    kernels: Literal["both"] = "both",
    **options: object,
) -> Kernels: ...
@overload
def mlp_kernels(
    x1: ArrayLike,
    x2: ArrayLike | None = None,
    *,
    depth: int,
    kernels: Literal["nngp", "ntk"],
    **options: object,
) -> Array: ...
def mlp_kernels(  # type: ignore[misc]  # the overloads name what decides about the result
    x1: Float[ArrayLike, "n1 *d"],
    x2: Float[ArrayLike, "n2 *d"] | None = None,
    *,
    depth: int,
    activation: str | Callable[..., Any] | DualRule = "relu",
    W_std: Any = 1.0,
    b_std: Any = 0.0,
    parameterization: str = "ntk",
    width: Any = None,
    residual: bool = False,
    layer_norm: bool = False,
    trainable_from: int = 0,
    kernels: str = "both",
) -> Kernels | Array:
    """The NNGP and NTK of the infinitely wide `MLP` with `depth` hidden layers.

    With k, k_dot the dual activation of (q11, K, q22), K⁰ = b_std² + W_std² x·x'/d and Θ⁰ = K⁰,
    each hidden layer and the Dense layer after it give

        K ← b_std² + W_std² k,    Θ ← b_std² + W_std² k + W_std² k_dot Θ              ("ntk")
        K ← b_std² + W_std² k,    Θ ← 1 + width k + W_std² k_dot Θ                    ("standard";
        Θ⁰ = 1 + x·x')

    Args:
        x1: examples in rows; more than one feature axis is flattened.
        x2: more examples, or None for x1 again: then the result is symmetric to the bit and its
            diagonal exact.
        depth: number of hidden layers; 0 is a linear model.
        activation: a name of `duals`, an elementwise function, or `duals.rule(...)` for one with
            options.
        W_std: weight scale, a number or one per Dense layer (depth + 1: hidden layers, then
            readout).
        b_std: bias scale, likewise; None means no bias parameters. With 0.0 a "standard" network
            still trains them.
        parameterization: "ntk" or "standard", as in `MLP`.
        width: "standard" only: units of the hidden layers, a number or one each. It enters the
            tangent kernel because gradient descent on unscaled weights moves wide layers further.
        residual: every hidden layer after the first is z + Dense(phi(z)); the old K and Θ are added
            to the new.
        layer_norm: every activation sees (z - mean) / std over its layer's units: K and Θ are
            divided by sqrt(K_xx K_x'x') first (no learned scale and no epsilon).
        trainable_from: the first Dense layer that is trained, from 0 to depth: those before it are
            frozen, and only later ones add to Θ (Arora et al. 2020).
        kernels: "both", or "nngp" or "ntk" for one of them, in half the memory.

    Returns:
        Kernels(nngp, ntk), each (n1, n2), per output coordinate: outputs are independent and alike;
        or the one array that was asked for.

    Raises:
        ValueError: bad examples or options; a depth and scale for which the kernel overflows its
            dtype.

    Warns:
        UserWarning: an activation without closed form whose series misses its tolerance.

    Reference: Lee et al. 2018, eq. 5; Jacot, Gabriel, Hongler 2018, theorem 1; "standard":
    Sohl-Dickstein et al. 2020, eq. 19.

    Example:
        >>> x = np.array([[1.0, 0.0], [0.0, 1.0]])
        >>> kernels = ntk_jax.mlp_kernels(x, depth=2, activation="erf")
        >>> print(np.round(kernels.ntk, 3))
        [[0.846 0.   ]
         [0.    0.846]]
    """
    check_option("kernels", kernels, WHICH)
    network, known, shape = _network(
        x1,
        x2,
        depth,
        activation,
        W_std,
        b_std,
        parameterization,
        width,
        residual,
        layer_norm,
        trainable_from,
    )
    found = recursion.kernels(network, known, WHICH[kernels])
    return as_asked(cropped(found, shape))


def kernels_of(
    network: Network, which: Which, caller: str, overflow: ValueError, stacklevel: int
) -> list[Array]:
    """NNGP, NTK or both of a network whose examples are rows of features; see `fitted`."""
    shape = len(network.x1), len(network.x1 if network.x2 is None else network.x2)
    padded, known = fitted(network, caller, overflow, stacklevel + 1)
    return cropped(recursion.kernels(padded, known, which), shape)


def mlp_kernels_by_layer(
    x1: Float[ArrayLike, "n1 *d"],
    x2: Float[ArrayLike, "n2 *d"] | None = None,
    *,
    depth: int,
    **options: Any,
) -> Kernels:
    """`mlp_kernels` after every Dense layer; the last is `mlp_kernels` itself.

    Args:
        x1: examples in rows.
        x2: more examples, or None for x1 again.
        depth: number of hidden layers.
        **options: those of `mlp_kernels`, without `kernels`.

    Returns:
        Kernels(nngp, ntk), each (depth + 1, n1, n2): entry l is (Kˡ, Θˡ), the kernel of the network
        cut after its l-th Dense layer.

    Raises:
        ValueError: as `mlp_kernels`.

    Reference: Jacot, Gabriel, Hongler 2018, theorem 1.

    Example:
        >>> x = np.array([[1.0, 0.0], [0.0, 1.0]])
        >>> ntk_jax.mlp_kernels_by_layer(x, depth=2, activation="erf").ntk.shape
        (3, 2, 2)
    """
    network, known, shape = _network(x1, x2, depth, **{**_DEFAULTS, **options})
    found = recursion.kernels_by_layer(network, known)
    return Kernels(*cropped(found, (depth + 1, *shape)))


def kernel_diagonal(x: Float[ArrayLike, "n *d"], *, depth: int, **options: Any) -> Kernels:
    """The kernels of every example with itself, each (n,): the diagonal of `mlp_kernels`, without
    forming it.

    Args:
        x: examples in rows.
        depth: number of hidden layers.
        **options: those of `mlp_kernels`, without `kernels`.

    Returns:
        Kernels(nngp, ntk): E[f(x)²] and Θ(x, x), each (n,).

    Raises:
        ValueError: as `mlp_kernels`.

    Example:
        >>> x = np.array([[1.0, 0.0], [0.0, 1.0]])
        >>> print(np.round(ntk_jax.kernel_diagonal(x, depth=2, activation="erf").ntk, 3))
        [0.846 0.846]
    """
    network, known, (n, _) = _network(x, None, depth, **{**_DEFAULTS, **options})
    (diagonal,) = known or diagonals(network)
    return Kernels(*cropped((diagonal.nngp, diagonal.ntk), (n,)))


_DEFAULTS: dict[str, Any] = {
    "activation": "relu",
    "W_std": 1.0,
    "b_std": 0.0,
    "parameterization": "ntk",
    "width": None,
    "residual": False,
    "layer_norm": False,
    "trainable_from": 0,
}


def _network(
    x1: ArrayLike,
    x2: ArrayLike | None,
    depth: int,
    activation: str | Callable[..., Any] | DualRule,
    W_std: Any,
    b_std: Any,
    parameterization: str,
    width: Any,
    residual: bool,
    layer_norm: bool,
    trainable_from: int = 0,
) -> tuple[Network, Diagonals | None, tuple[int, int]]:
    """Checked arguments, what each example has with itself, None where that is traced, and how many
    examples there are: where nothing is traced, some more rows are padding.
    """
    check_integer("depth", depth, minimum=0)
    a1, a2 = as_example_pair(x1, x2)
    dtype = working_dtype(*(a.dtype for a in (a1, a2) if a is not None))
    a1, a2 = as_rows(a1, dtype), None if a2 is None else as_rows(a2, dtype)
    check_integer("trainable_from", trainable_from, minimum=0)
    if trainable_from > depth:
        raise ValueError(
            f"trainable_from: expected a Dense layer from 0 to depth = {depth}; got "
            f"{trainable_from}: nothing would be trained."
        )
    given = W_std, b_std, parameterization, width
    make = _layers_of_numbers if {*map(type, given)} <= {float, str, type(None)} else _layers
    layers = make(depth, *given, a1.shape[1], trainable_from, dtype)
    arch = Architecture(dual_rule(activation), bool(residual), bool(layer_norm))
    shape = len(a1), len(a1 if a2 is None else a2)
    overflow = ValueError(
        f"mlp_kernels: expected kernels within the range of {dtype}; they overflow at depth "
        f"{depth} with W_std = {W_std}. Use float64, smaller inputs, or the critical scale "
        "(W_std = sqrt(2), b_std = 0 for ReLU)."
    )
    return *fitted(Network(a1, a2, layers, arch), "mlp_kernels", overflow, 4), shape


def _layers(
    depth: int,
    W_std: Any,
    b_std: Any,
    parameterization: str,
    width: Any,
    num_features: int,
    trainable_from: int,
    dtype: Any,
) -> Layers:
    W = per_layer("W_std", W_std, depth + 1)
    b = per_layer("b_std", b_std, depth + 1)
    # one number for all layers is one object
    for W_l, b_l in {tuple(map(id, pair)): pair for pair in zip(W, b, strict=True)}.values():
        check_scales(W_l, b_l, parameterization)
    of_dtype = partial(stack, dtype=dtype)
    trained = lambda values: of_dtype([0.0] * trainable_from + [*values[trainable_from:]])
    W2, b2 = [*map(_square, W)], [0.0 if b_l is None else _square(b_l) for b_l in b]
    if parameterization == "ntk":
        if width is not None:
            raise ValueError(
                "width: expected None with parameterization='ntk', whose limit has none; drop it "
                "or use 'standard'."
            )
        return Layers(of_dtype(W2), of_dtype(b2), trained(W2), trained(b2))
    if width is None and depth:
        raise ValueError(
            "width: expected the units of the hidden layers with parameterization='standard'; got "
            "None."
        )
    fan_in = (num_features, *per_layer("width", width, depth))
    for units in fan_in:
        check_number("width", units, strict=True, max_ndim=0)
    b_eta = [0.0 if b_l is None else 1.0 for b_l in b]
    return Layers(of_dtype(W2), of_dtype(b2), trained(fan_in), trained(b_eta))


_layers_of_numbers = lru_cache(maxsize=256)(_layers)


def _square(value: Any) -> Any:
    """Numbers are squared in double precision: 2 for sqrt(2), where float32 would give
    1.9999999.
    """
    return float(value) ** 2 if is_concrete(value) else value * value
