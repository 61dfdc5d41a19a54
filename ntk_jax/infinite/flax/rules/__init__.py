"""What each operation does to random values, one file per family; importing this package registers
them all.
"""

from ntk_jax.infinite.flax.rules import (
    averages,
    control,
    convolutions,
    dropout,
    gains,
    indexing,
    inner_products,
    joined,
    norms,
    pointwise,
    sampled,
    stacking,
    structure,
    weights,
)

__all__ = [
    "averages",
    "control",
    "convolutions",
    "dropout",
    "gains",
    "indexing",
    "inner_products",
    "joined",
    "norms",
    "pointwise",
    "sampled",
    "stacking",
    "structure",
    "weights",
]
