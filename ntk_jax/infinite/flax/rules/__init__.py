"""What each operation does to random values, one file per family; importing this package registers
them all.
"""

from ntk_jax.infinite.flax.rules import averages as averages
from ntk_jax.infinite.flax.rules import control as control
from ntk_jax.infinite.flax.rules import dropout as dropout
from ntk_jax.infinite.flax.rules import indexing as indexing
from ntk_jax.infinite.flax.rules import inner_products as inner_products
from ntk_jax.infinite.flax.rules import joined as joined
from ntk_jax.infinite.flax.rules import pointwise as pointwise
from ntk_jax.infinite.flax.rules import sampled as sampled
from ntk_jax.infinite.flax.rules import stacking as stacking
from ntk_jax.infinite.flax.rules import structure as structure
from ntk_jax.infinite.flax.rules import weights as weights
