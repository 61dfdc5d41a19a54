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

    The NTK is that of the first output. The NNGP kernel is averaged over 128 outputs, which costs
    little beside it.
    """
    init_fn, apply_fn = network(width, 128)
    kernels = _samples(
        gaussian_initializer(init_fn), apply_fn, x, jax.random.key(seed), num_samples
    )
    error = lambda k: k.std(axis=0, ddof=1) / num_samples**0.5
    return Estimate(*(k.mean(axis=0) for k in kernels), *map(error, kernels))


@partial(jax.jit, static_argnums=(0, 1, 4))
def _samples(init_fn: Any, apply_fn: Any, x: Any, key: Any, num_samples: int) -> Any:
    return jax.lax.map(
        lambda k: _kernels(apply_fn, init_fn(k), x), jax.random.split(key, num_samples)
    )


def _kernels(apply_fn: Any, params: Any, x: Any) -> tuple[Any, Any]:
    """The NTK from the Jacobian of the network's first output, written in the plainest way."""

    def first(params: Any) -> tuple[Any, Any]:
        f = apply_fn(params, x)
        return f[:, 0], f

    jacobian, f = jax.jacrev(first, has_aux=True)(params)
    flat = [j.reshape(x.shape[0], -1) for j in jax.tree.leaves(jacobian)]
    product = partial(jnp.matmul, precision="highest")
    return product(f, f.T) / f.shape[1], sum(product(j, j.T) for j in flat)
