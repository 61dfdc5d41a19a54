import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_jax


def test_smoke(getkey):
    x = jax.random.normal(getkey(), (5, 3))
    m = ntk_jax.MLP((7, 8), num_outputs=2, W_std=1, b_std=0.1)
    f, p = ntk_jax.from_linen(m, m.init(getkey(), x))
    k = ntk_jax.empirical_ntk(f, p, np.asarray(x))
    ntk_jax.gradient_flow_mse(ntk_jax.diagonalize(k), np.ones((5, 2)), [0.0, 1.0])
    ntk_jax.mlp_kernels(x, x[:2], depth=2)


def test_bad(unchecked_shapes):
    with pytest.raises(ValueError):
        ntk_jax.mlp_kernels(jnp.ones(3), depth=2)
