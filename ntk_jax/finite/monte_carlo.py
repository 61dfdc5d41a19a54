"""Mean and standard error of finite-width kernels over random initializations."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ntk_jax.checks import as_example_trees, check_integer
from ntk_jax.closures.fingerprint import Reading, read
from ntk_jax.closures.programs import compiled
from ntk_jax.examples import Examples, num_rows
from ntk_jax.finite.empirical import empirical_nngp, empirical_ntk
from ntk_jax.finite.inputs import check_inputs
from ntk_jax.memory import how_many, memory_budget, tree_bytes
from ntk_jax.networks.apply_fn import check_outputs
from ntk_jax.types import ApplyFn, Kernels, Params


class MonteCarlo(NamedTuple):
    """Mean and standard error of the mean of both kernels."""

    mean: Kernels
    standard_error: Kernels


class Samples(NamedTuple):
    """What is known of the samples so far: how many, mean, and sum of squared deviations."""

    number: float | Array
    mean: Kernels
    deviations: Kernels


def monte_carlo_kernels(
    init_fn: Callable[[Array], Params],
    apply_fn: ApplyFn,
    x1: Examples,
    x2: Examples | None = None,
    *,
    key: Array,
    num_samples: int,
    memory_limit: int | None = None,
) -> MonteCarlo:
    """The empirical kernels averaged over `num_samples` initializations, with standard errors.

    Example:
        >>> init_fn = lambda key: jax.random.normal(key, (3, 2))
        >>> mean, standard_error = ntk_jax.monte_carlo_kernels(
        ...     init_fn, lambda W, x: x @ W, jnp.eye(3), key=jax.random.key(0), num_samples=50
        ... )
        >>> bool((abs(mean.nngp - jnp.eye(3)) < 5 * standard_error.nngp).all())
        True

    Args:
        init_fn: `init_fn(key)` -> params, for Flax `lambda key: model.init(key, x[:1])["params"]`.
        apply_fn: `apply_fn(params, x)` -> outputs (n, O), see `empirical_ntk`.
        x1: examples in rows.
        x2: more examples, or None for x1 again.
        key: a random key; the same key gives the same draws.
        num_samples: initializations, at least 2.
        memory_limit: bytes that initializations evaluated at the same time may take; None is a
            quarter of free memory.

    Returns:
        `(mean, standard_error)`, each `Kernels(nngp, ntk)` of shape (n1, n2), averaged over
        outputs.

    Raises:
        ValueError: fewer than 2 samples, and as `empirical_ntk`.

    Reference: Novak et al. 2019, section 4 (Monte-Carlo estimates of the infinite-width kernel).
    """
    *_, (_, last) = monte_carlo_estimates(
        init_fn, apply_fn, x1, x2, key=key, num_samples=num_samples, memory_limit=memory_limit
    )
    return last


def monte_carlo_estimates(
    init_fn: Callable[[Array], Params],
    apply_fn: ApplyFn,
    x1: Examples,
    x2: Examples | None = None,
    *,
    key: Array,
    num_samples: int,
    memory_limit: int | None = None,
) -> Iterator[tuple[int, MonteCarlo]]:
    """The running estimates of `monte_carlo_kernels`, `(samples so far, MonteCarlo)` per chunk.

    Example:
        >>> init_fn = lambda key: jax.random.normal(key, (3, 1))
        >>> estimates = ntk_jax.monte_carlo_estimates(
        ...     init_fn, lambda W, x: x @ W, jnp.eye(3), key=jax.random.key(0), num_samples=100
        ... )
        >>> for num_samples, estimate in estimates:
        ...     print(num_samples, float(estimate.mean.ntk[0, 0]))
        64 1.0
        100 1.0

    Args:
        init_fn: `init_fn(key)` -> params.
        apply_fn: `apply_fn(params, x)`.
        x1: examples in rows.
        x2: more examples, or None for x1 again.
        key: random key of the networks.
        num_samples: networks to draw.
        memory_limit: bytes for temporary arrays, as in `monte_carlo_kernels`.

    Returns:
        An iterator of `(s, MonteCarlo(mean, standard_error))`: Σ_i K_i / s over the first s
        networks, and the standard deviation of the K_i over sqrt(s).

    Raises:
        ValueError: as `monte_carlo_kernels`.
    """
    check_integer("num_samples", num_samples, minimum=2)
    a1, a2 = as_example_trees(x1, x2)
    # Of the parameters the structure is checked; values that are not finite are in the results.
    jax.eval_shape(lambda key: check_inputs(apply_fn, init_fn(key), a1, a2)[0], key)
    chunk = min(num_samples, _chunk_size(init_fn, key, a1, a2, memory_limit))
    samples, functions = None, read((init_fn, apply_fn))
    for start in range(0, num_samples, chunk):
        sizes = {"number": min(chunk, num_samples - start), "of": num_samples}
        part = Samples(float(sizes["number"]), *_sampled(functions, a1, a2, key, start, **sizes))
        samples = part if samples is None else _merged(samples, part)
        # One sample has no standard error.
        if samples.number > 1:
            yield int(samples.number), _estimate(samples)


def _chunk_size(
    init_fn: Callable[[Array], Params],
    key: Array,
    x1: Examples,
    x2: Examples | None,
    memory_limit: int | None,
) -> int:
    """Initializations at a time: each holds its parameters, a few kernels and its features within
    the budget.
    """
    weights = tree_bytes(jax.eval_shape(init_fn, key))
    n1, n2 = num_rows(x1), num_rows(x1 if x2 is None else x2)
    # A row's features are no larger than its gradient, and in a layer of width m about m times
    # smaller.
    each = 3 * weights + 8 * 6 * n1 * n2 + (n1 + n2) * min(weights, 2**20)
    return how_many(64, each, memory_budget(memory_limit))


@compiled
def _sampled(
    functions: Reading,
    x1: Examples,
    x2: Examples | None,
    key: Array,
    start: int | Array,
    *,
    number: int,
    of: int,
) -> tuple[Kernels, Kernels]:
    """Mean and sum of squared deviations over a chunk of initializations."""
    init_fn, apply_fn = functions.function
    keys = jax.lax.dynamic_slice_in_dim(jax.random.split(key, of), start, number)

    def one(key: Array) -> Kernels:
        params = init_fn(key)
        return Kernels(
            empirical_nngp(apply_fn, params, x1, x2), empirical_ntk(apply_fn, params, x1, x2)
        )

    samples = jax.vmap(one)(keys)
    mean = jax.tree.map(lambda k: jnp.mean(k, axis=0), samples)
    return mean, jax.tree.map(lambda k, m: jnp.sum((k - m[None]) ** 2, axis=0), samples, mean)


@jax.jit
def _merged(a: Samples, b: Samples) -> Samples:
    """Two sets of samples together (Chan, Golub, LeVeque 1979): no difference of large numbers."""
    n = a.number + b.number
    mean = jax.tree.map(lambda s, t: s + (t - s) * (b.number / n), a.mean, b.mean)
    gap = jax.tree.map(lambda s, t: (t - s) ** 2 * (a.number * b.number / n), a.mean, b.mean)
    deviations = jax.tree.map(lambda s, t, g: s + t + g, a.deviations, b.deviations, gap)
    return Samples(n, mean, deviations)


def _estimate(samples: Samples) -> MonteCarlo:
    for k in samples.mean:
        check_outputs(k, "kernels")
    scale = 1.0 / (samples.number * (samples.number - 1))
    return MonteCarlo(samples.mean, _standard_errors(samples.deviations, scale))


@jax.jit
def _standard_errors(deviations: Kernels, scale: float | Array) -> Kernels:
    return jax.tree.map(lambda s: jnp.sqrt(scale * s), deviations)
