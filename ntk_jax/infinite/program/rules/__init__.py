"""What each operation does to random values, one file per family; importing this package registers them all."""

from ntk_jax.infinite.program.rules import averages as averages
from ntk_jax.infinite.program.rules import control as control
from ntk_jax.infinite.program.rules import dropout as dropout
from ntk_jax.infinite.program.rules import joined as joined
from ntk_jax.infinite.program.rules import parameters as parameters
from ntk_jax.infinite.program.rules import pointwise as pointwise
from ntk_jax.infinite.program.rules import sampled as sampled
from ntk_jax.infinite.program.rules import stacking as stacking
from ntk_jax.infinite.program.rules import structure as structure
from ntk_jax.infinite.program.rules import weights as weights
