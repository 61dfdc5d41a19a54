"""Networks of many equal blocks."""

from typing import Any

import flax.linen as nn
import numpy as np

WIDTH = 8
SHAPES = {"residual": (5,), "normalized": (5,), "convolutional": (4, 2), "attention": (4, 2)}


class Deep(nn.Module):
    """`depth` blocks of one kind between a first layer and a readout.

    Models that differ in their `tag` alone share no program.
    """

    kind: str
    depth: int
    tag: str = ""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Outputs, the mean over positions if there are any."""
        x = nn.Conv(WIDTH, (3,))(x) if x.ndim == 3 else nn.Dense(WIDTH)(x)
        for _ in range(self.depth):
            x = getattr(self, self.kind)(x)
        return nn.Dense(1)(x if x.ndim == 2 else x.mean(1))

    def residual(self, x: Any) -> Any:
        """A pre-activation block of two layers."""
        return x + nn.Dense(WIDTH)(nn.relu(nn.Dense(WIDTH)(nn.relu(x))))

    def normalized(self, x: Any) -> Any:
        """A pre-norm block of one layer."""
        return x + nn.Dense(WIDTH)(nn.relu(nn.LayerNorm()(x)))

    def convolutional(self, x: Any) -> Any:
        """A convolution and ReLU."""
        return nn.relu(nn.Conv(WIDTH, (3,))(x))

    def attention(self, x: Any) -> Any:
        """A pre-norm transformer block: softmax of scores over their width, and gelu."""
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        return x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(WIDTH)(nn.LayerNorm()(x))))


def deep_examples(kind: str, dtype: Any = np.float32) -> np.ndarray:
    """Three of them."""
    return np.random.default_rng(1).standard_normal((3, *SHAPES[kind])).astype(dtype)
