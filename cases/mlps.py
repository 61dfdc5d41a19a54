"""One fully connected network as a Linen module, for tests that write it in several ways."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

F64 = jnp.float64


class Twin(nn.Module):
    phi: Callable[[Array], Array]
    width: int

    @nn.compact
    def __call__(self, x):
        normal = nn.initializers.lecun_normal()
        x = self.phi(nn.Dense(self.width, dtype=F64, param_dtype=F64, kernel_init=normal)(x))
        return nn.Dense(1, dtype=F64, param_dtype=F64, kernel_init=normal)(x)


def flax_mlp(phi, width):
    return Twin(phi, width)
