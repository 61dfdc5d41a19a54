"""Does the kernel picture hold for this network? How far it moved, how far it could move, what its kernel can fit."""

from ntk_jax.laziness.change import RelativeChange as RelativeChange
from ntk_jax.laziness.change import TaylorGap as TaylorGap
from ntk_jax.laziness.change import jacobian_change as jacobian_change
from ntk_jax.laziness.change import kernel_change as kernel_change
from ntk_jax.laziness.change import relative_change as relative_change
from ntk_jax.laziness.change import taylor_gap as taylor_gap
from ntk_jax.laziness.definiteness import Definiteness as Definiteness
from ntk_jax.laziness.definiteness import definiteness as definiteness
from ntk_jax.laziness.kappa import Laziness as Laziness
from ntk_jax.laziness.kappa import laziness as laziness
