"""What tests draw, by NumPy: `jax.random` compiles programs for every shape, and the initializer of
a model two dozen.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.typing import ArrayLike

import ntk_jax
from ntk_jax.types import ApplyFn

# For the twins of what is tested: compiled in half the time, and otherwise than what they hold.
UNOPTIMIZED: Any = {"xla_backend_optimization_level": 0}


def normal(seed: int, shape: Sequence[int]) -> np.ndarray:
    """Standard Gaussians."""
    return np.random.default_rng(seed).standard_normal(shape)


def drawn(model: nn.Module, x: ArrayLike, seed: int = 7) -> tuple[ApplyFn, Any]:
    """`from_linen` of a model of this library in its "ntk" parameterization, whose parameters are
    standard Gaussians.
    """
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x))
    put = lambda s: jax.device_put(rng.standard_normal(s.shape).astype(s.dtype))
    return ntk_jax.from_linen(model, jax.tree.map(put, shapes))
