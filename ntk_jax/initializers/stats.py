"""Mean and variance of every parameter, read from the trace of its initializer: exact, nothing is
drawn.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_jax.draws import draw_flat
from ntk_jax.initializers.interpreter import any_key, laws_of
from ntk_jax.initializers.rules import constant
from ntk_jax.initializers.values import Constant, Entries, Random, Unknown, Value
from ntk_jax.types import Params

Given: TypeAlias = Mapping[str, tuple[float, float]]


class InitStats(NamedTuple):
    """The law of one parameter's independent entries: floats, or arrays of its shape where entries
    differ.
    """

    mean: float | np.ndarray
    variance: float | np.ndarray
    distribution: str = "given"


def init_stats(
    init_fn: Callable[[Array], Params],
    *,
    given: Given | None = None,
) -> Params:
    """Mean E[w], variance E[w²] - E[w]² and name of the distribution of every entry w that
    `init_fn` draws.

    The jaxpr of `init_fn` is interpreted with laws in place of arrays: random bits become uniform
    variables, the inverse error function of those normal ones, scalars shift and scale them
    exactly, and any other elementwise function of one variable has its moments integrated to 1e-12.
    Orthogonal matrices count as independent entries, as do entries divided by their norm.

    Example:
        >>> layer = lambda key: {"W": jax.nn.initializers.he_normal()(key, (8, 4))}
        >>> stats = ntk_jax.init_stats(layer)["W"]
        >>> print(stats.distribution, round(stats.mean, 3), round(stats.variance, 3))
        truncated normal 0.0 0.25

    Args:
        init_fn: `init_fn(key)` -> params, such as `lambda key: model.init(key, x)["params"]`, or
            for NNX `lambda key: nnx.state(Model(rngs=nnx.Rngs(key)), nnx.Param).to_pure_dict()`.
        given: (mean, variance) by path, such as `{"Dense_0/kernel": (0.0, 0.5)}`: used instead of
            what the trace says.

    Returns:
        A pytree like params with an `InitStats(mean, variance, distribution)` for every leaf.
        distribution is "normal", "truncated normal", "uniform", "constant", "orthogonal", "given",
        or says what the entries are made of.

    Raises:
        ValueError: a distribution is not known and not given; a given path is not a parameter.
    """
    values, shapes = laws_of(init_fn)
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    by_path = {leaf_path(path): leaf for path, leaf in leaves}
    numbers = as_given(given)
    if wrong := sorted(set(numbers) - set(by_path)):
        raise ValueError(
            f"init_stats: expected paths among {', '.join(by_path)}; got {', '.join(wrong)}."
        )
    found = [
        given_stats(path, numbers[path]) if path in numbers else _stats(path, leaf.shape, value)
        for (path, leaf), value in zip(by_path.items(), values, strict=True)
    ]
    return jax.tree.unflatten(tree, found)


def gaussian_initializer(init_fn: Callable[[Array], Params]) -> Callable[[Array], Params]:
    """An initializer of normal entries with the means and variances of those `init_fn` draws.

    Wide networks of such weights are what an infinite-width limit describes: in a layer with few
    inputs the sum over truncated normal or uniform weights is not Gaussian, however many units the
    layer has.

    Args:
        init_fn: `init_fn(key)` -> params.

    Returns:
        A function key -> params, whose entries are mean + sqrt(variance) z, z ~ N(0, 1).

    Example:
        >>> uniform = lambda key: {"W": jax.random.uniform(key, (1000,), minval=-1.0)}
        >>> draw = ntk_jax.gaussian_initializer(uniform)
        >>> W = draw(jax.random.key(0))["W"]
        >>> print(W.shape, bool(abs(W.std() - 3**-0.5) < 0.05), bool(abs(W).max() > 1))
        (1000,) True True

    Raises:
        ValueError: as `init_stats`.
    """
    leaves, tree = jax.tree.flatten(jax.eval_shape(init_fn, any_key()))
    stats = jax.tree.leaves(init_stats(init_fn), is_leaf=lambda s: isinstance(s, InitStats))

    def entries(key: Array, leaf: jax.ShapeDtypeStruct, s: InitStats) -> Array:
        mean, scale = (
            jnp.broadcast_to(jnp.asarray(a, leaf.dtype), leaf.shape)
            for a in (s.mean, np.sqrt(s.variance))
        )
        # Without a draw: integers and other constants have no normal entries.
        if not np.any(s.variance):
            return mean
        return mean + scale * draw_flat(jax.random.normal, key, leaf.shape, leaf.dtype)

    def draw(key: Array) -> Params:
        keys = jax.random.split(key, len(leaves))
        return jax.tree.unflatten(tree, list(map(entries, keys, leaves, stats)))

    return draw


def leaf_path(path: tuple[Any, ...]) -> str:
    """A parameter's path as "Dense_0/kernel"."""
    return "/".join(jax.tree_util.keystr((key,), simple=True) for key in path)


def _stats(path: str, shape: tuple[int, ...], value: Value) -> InitStats:
    reason = value.reason if isinstance(value, Unknown) else "it holds raw random bits"
    if isinstance(value, Random | Constant):
        entries = (
            (value.value, 0.0) if isinstance(value, Constant) else (value.mean, value.variance)
        )
        name = "constant" if isinstance(value, Constant) else value.law.name
        mean, variance = (_entry(a, shape) for a in entries)
        if np.isfinite(mean).all() and np.isfinite(variance).all():
            return InitStats(mean, variance, name)
        reason = f"its entries are {name}, without a finite mean and variance"
    raise ValueError(
        f"init_stats: expected an initializer of known distribution for {path}; its trace does not "
        f"tell: {reason}. "
        f'Pass init_stats={{"{path}": (mean, variance)}} with the mean and variance of one entry.'
    )


def as_given(given: Given | None) -> dict[str, tuple[float, float]]:
    """What the user gave as a dictionary."""
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(
            f'init_stats: expected a mapping such as {{"Dense_0/kernel": (0.0, 0.5)}}; got '
            f"{given!r}."
        )
    return dict(given or {})


def given_stats(path: str, pair: tuple[float, float]) -> InitStats:
    """The statistics that the user gave for a parameter.

    Raises:
        ValueError: anything but a finite mean and a finite variance of at least 0.
    """
    try:
        mean, variance = map(float, pair)
    except (TypeError, ValueError):
        mean = variance = math.nan
    if not (math.isfinite(mean) and math.isfinite(variance) and variance >= 0):
        raise ValueError(
            f"init_stats, {path}: expected (mean, variance), finite numbers with a variance of at "
            f"least 0; got {pair!r}."
        )
    return InitStats(mean, variance)


def _entry(value: Entries, shape: tuple[int, ...]) -> float | np.ndarray:
    value = constant(value).value
    return float(value) if np.ndim(value) == 0 else np.broadcast_to(value, shape)
