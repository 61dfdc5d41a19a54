"""Wide random networks with Gaussian weights: what the infinite-width limit of a module is compared
with.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ntk_jax.initializers.stats import gaussian_initializer


class Estimate(NamedTuple):
    """Mean over networks and the standard error of the mean, each (n, n)."""

    nngp: Any
    ntk: Any
    nngp_error: Any
    ntk_error: Any


def estimate(
    network: Callable[[int, int], Any], x: Any, width: int, num_samples: int, seed: int = 0
) -> Estimate:
    """NNGP and NTK of `num_samples` networks; `network(width, num_outputs)` is an (init_fn,
    apply_fn) pair.

    The NTK is that of one output. The NNGP kernel is averaged over 128 outputs, which costs a
    forward pass.
    """
    ntk = _samples(
        *_gaussian(network(width, 1)), x, jax.random.key(seed), num_samples, _tangent_kernel
    )
    nngp = _samples(
        *_gaussian(network(width, 128)), x, jax.random.key(seed), num_samples, _output_covariance
    )
    error = lambda k: k.std(axis=0, ddof=1) / num_samples**0.5
    return Estimate(nngp.mean(axis=0), ntk.mean(axis=0), error(nngp), error(ntk))


def _gaussian(pair: tuple[Any, Any]) -> tuple[Any, Any]:
    init_fn, apply_fn = pair
    return gaussian_initializer(init_fn), apply_fn


@partial(jax.jit, static_argnums=(0, 1, 4, 5))
def _samples(init_fn: Any, apply_fn: Any, x: Any, key: Any, num_samples: int, kernel: Any) -> Any:
    return jax.lax.map(
        lambda k: kernel(apply_fn, init_fn(k), x), jax.random.split(key, num_samples)
    )


def _output_covariance(apply_fn: Any, params: Any, x: Any) -> Any:
    f = apply_fn(params, x)
    return jnp.matmul(f, f.T, precision="highest") / f.shape[1]


def _tangent_kernel(apply_fn: Any, params: Any, x: Any) -> Any:
    """From the Jacobian of the network's first output, written in the plainest way."""
    jacobian = jax.jacrev(lambda p: apply_fn(p, x)[:, 0])(params)
    flat = [j.reshape(x.shape[0], -1) for j in jax.tree.leaves(jacobian)]
    return sum(jnp.matmul(j, j.T, precision="highest") for j in flat)
