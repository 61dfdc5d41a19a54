"""How the tangent kernel of a model approaches its limit as the model grows wider."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jaxtyping import Float

from ntk_jax.checks import as_example_tree, check_integer, check_option
from ntk_jax.closures.fingerprint import Reading
from ntk_jax.closures.programs import compiled
from ntk_jax.compat import flax_modules, on_device
from ntk_jax.examples import Examples, take_rows
from ntk_jax.finite.empirical import empirical_ntk
from ntk_jax.infinite.flax.limit import infinite_width
from ntk_jax.infinite.flax.model import network
from ntk_jax.initializers.stats import gaussian_initializer, init_stats, leaf_path
from ntk_jax.norms import norm_ratio
from ntk_jax.types import KernelFn, Kernels, Params

FALLING = -0.25  # a fitted slope below it is taken for a fall like width^-1/2, above it for a level
UNDECIDED = -0.4  # above FALLING, but not by three standard errors away from a fall
CLOSE = 0.1


class LimitCheck(NamedTuple):
    """Distances |K - K_limit| / |K_limit| of random networks' tangent kernels from the limit, and
    what they say.
    """

    widths: tuple[int, ...]
    errors: Float[Array, "widths samples"]
    rms: Float[Array, " widths"]
    slope: float
    slope_error: float
    verdict: str


def check_limit(
    model: Callable[[int], Any],
    x: Examples,
    *,
    widths: Sequence[int] = (64, 128, 256, 512),
    key: Array,
    num_samples: int = 32,
    draw: str = "initializer",
    call: Mapping[str, Any] | None = None,
) -> LimitCheck:
    """Compare the tangent kernels of random networks of growing width with their limit.

    Nothing is trained. In the kernel regime the relative error falls like width^-1/2. A model whose
    error stays level has no such limit as it is built: something in it does not grow with its
    width, or its weights in a layer with few inputs are not Gaussian, which `draw="gaussian"` tells
    apart.

    Args:
        model: width -> a model as `infinite_width` takes it, such as `lambda width: MLP((width,
            width), 10)`; every layer but the outputs should grow with the width.
        x: a few examples in rows.
        widths: at least two, increasing.
        key: a random key.
        num_samples: networks of each width, at least 2.
        draw: "initializer", the weights that the model draws; "gaussian", normal ones of the same
            means and variances.
        call: keyword arguments of the model's call, such as {"train": False}.

    Returns:
        LimitCheck(widths, errors, rms, slope, slope_error, verdict): errors of every network,
        relative in the Frobenius norm; their root mean square at each width; the slope of its
        logarithm against that of the width, with its standard error; the verdict in words.

    Raises:
        ValueError: `model` is not a function of the width, or returns an NNX module instead of its
            constructor; fewer than two widths or samples, and as `infinite_width`.

    Reference: Jacot et al. 2018 (theorem 1), Arora et al. 2019 (theorem 3.1); the rate: Huang, Yau
    2020.

    Example:
        >>> model = lambda width: ntk_jax.MLP((width,))
        >>> x = jnp.array([[1.0, 0.0], [0.6, 0.8]])
        >>> check = ntk_jax.check_limit(model, x, widths=(8, 64), key=jax.random.key(0))
        >>> check.errors.shape, bool(check.rms[1] < check.rms[0])
        ((2, 32), True)
    """
    check_option("draw", draw, ("initializer", "gaussian"))
    check_integer("num_samples", num_samples, minimum=2)
    _check_widths(widths)
    x = as_example_tree("x", x)
    models = [_build(model, width) for width in widths]
    errors = np.stack([_errors(m, x, key, num_samples, draw, dict(call or {})) for m in models])
    rms = np.sqrt(np.mean(errors**2, axis=1))
    slope, slope_error = _slope(np.asarray(widths, float), errors)
    suspects = _not_gaussian(models[-1], x, dict(call or {})) if draw == "initializer" else []
    verdict = _verdict(widths[-1], float(rms[-1]), slope, slope_error, suspects)
    return LimitCheck(tuple(widths), on_device(errors), on_device(rms), slope, slope_error, verdict)


def _check_widths(widths: Sequence[int]) -> None:
    for width in widths:
        check_integer("widths", width, minimum=1)
    if len(widths) < 2 or any(a >= b for a, b in pairwise(widths)):
        raise ValueError(f"widths: expected at least two increasing widths; got {tuple(widths)}.")


def _build(model: Any, width: int) -> Any:
    made = isinstance(model, (tuple, *flax_modules("linen"), *flax_modules("nnx")))
    if made or not callable(model):
        raise ValueError(
            "model: expected a function width -> model, such as lambda width: "
            f"Net(features=width); got {type(model).__name__}."
        )
    return model(width)


def _errors(
    model: Any, x: Examples, key: Array, num_samples: int, draw: str, call: dict[str, Any]
) -> Array:
    kernel_fn: KernelFn[Kernels] = infinite_width(model, call=call)
    limit = kernel_fn(x).ntk
    net = network(model, call)
    if net.init_fn is None:
        raise ValueError(
            "model: expected a width -> model with an initializer; got an NNX module, which keeps "
            "none. Return a function instead: lambda width: lambda rngs: Net(width, rngs=rngs)."
        )
    apply_fn, _ = net.build(take_rows(x, slice(1)))
    init_fn = _initializer(net.init_fn, x)
    if draw == "gaussian":
        init_fn = gaussian_initializer(init_fn)
    return _distances((init_fn, apply_fn), x, key, limit, num_samples=num_samples)


def _initializer(init_fn: Callable[..., Params], x: Examples) -> Callable[[Array], Params]:
    """key -> params. Zeros will do for an example: initial parameters depend on shapes alone."""
    blank = jax.tree.map(lambda leaf: np.zeros((1, *leaf.shape[1:]), leaf.dtype), x)
    return lambda key: init_fn(key, blank)


@compiled
def _distances(
    functions: Reading, x: Examples, key: Array, limit: Array, *, num_samples: int
) -> Float[Array, " samples"]:
    """Relative distances of random networks' kernels from the limit."""
    init_fn, apply_fn = functions.function

    def distance(key: Array) -> Array:
        return norm_ratio(empirical_ntk(apply_fn, init_fn(key), x) - limit, limit)

    return jax.lax.map(distance, jax.random.split(key, num_samples))


def _slope(widths: np.ndarray, errors: np.ndarray) -> tuple[float, float]:
    """Least squares of log rms error on log width; its standard error from the spread over
    networks.
    """
    squares = errors**2
    values = 0.5 * np.log(squares.mean(axis=1))
    # The error of a logarithm is the relative error; of a root, half of that of the square.
    spread = 0.5 * squares.std(axis=1, ddof=1) / squares.mean(axis=1) / errors.shape[1] ** 0.5
    t = np.log(widths) - np.log(widths).mean()
    weights = t / np.sum(t**2)
    return float(weights @ values), float(np.sqrt(np.sum((weights * spread) ** 2)))


def _not_gaussian(model: Any, x: Examples, call: dict[str, Any]) -> list[str]:
    """Parameters whose entries are neither normal nor constant."""
    net = network(model, call)
    if net.init_fn is None:
        return []
    stats = init_stats(_initializer(net.init_fn, x))
    leaves = jax.tree_util.tree_leaves_with_path(
        stats, is_leaf=lambda s: hasattr(s, "distribution")
    )
    usual = ("normal", "constant", "orthogonal")
    return [
        f"{leaf_path(path)} ({s.distribution})" for path, s in leaves if s.distribution not in usual
    ]


def _verdict(
    width: int, error: float, slope: float, slope_error: float, suspects: list[str]
) -> str:
    law = (
        f"its relative error changes like width^({slope:.2f} ± {slope_error:.2f}) "
        f"and is {error:.2g} at width {width}"
    )
    if slope < FALLING and error <= CLOSE:
        return f"In the kernel regime: the tangent kernel approaches its limit, {law}."
    if slope < FALLING:
        enough = width * (error / CLOSE) ** (-1 / slope)
        return (
            f"Approaches the kernel regime: {law}; "
            f"about width {enough:.1g} would bring it to {CLOSE}."
        )
    if slope - 3 * slope_error < UNDECIDED:
        return (
            f"Undecided: {law}; -0.5 is within its error. Draw more networks (num_samples) or "
            "spread the widths."
        )
    hint = f' Not Gaussian: {", ".join(suspects[:3])}; compare draw="gaussian".' if suspects else ""
    return (
        f"Not in the kernel regime as built: {law}, where -0.5 was expected. Look for layers that "
        "do not grow with the width." + hint
    )
