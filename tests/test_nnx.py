"""Flax NNX modules as apply functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ntk_jax


class ConvNet(nnx.Module):
    """Convolution, batch normalization, dropout, a linear readout."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 3, (3,), rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(self.drop(jnp.tanh(self.norm(self.conv(x)))).mean(1))


def lenient(fn):
    def call(*args):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return fn(*args)

    return call


@pytest.fixture(scope="module")
def net():
    """A module and examples."""
    return ConvNet(nnx.Rngs(0)), jax.random.normal(jax.random.key(1), (4, 5, 2), jnp.float32)


def test_kernel_of_a_module(net):
    module, x = net
    module.eval()
    apply_fn, params = ntk_jax.from_nnx(module)
    apply_fn = lenient(apply_fn)
    np.testing.assert_allclose(apply_fn(params, x), lenient(module)(x), rtol=1e-5, atol=1e-6)
    jacobian = jax.tree.map(lambda j: j.reshape(4, 2, -1), jax.jit(jax.jacrev(apply_fn))(params, x))
    j = np.concatenate([leaf.astype(np.float64) for leaf in jax.tree.leaves(jacobian)], axis=2)
    truth = np.einsum("iop,jop->ij", j, j) / 2
    np.testing.assert_allclose(
        ntk_jax.empirical_ntk(apply_fn, params, x), truth, atol=1e-5 * np.abs(truth).max()
    )


def test_training_mode_is_refused(net, unchecked_shapes):
    module, x = net
    module.train()
    apply_fn, params = ntk_jax.from_nnx(module)
    with pytest.raises(ValueError, match="depend on row i of x alone"):
        ntk_jax.empirical_ntk(lenient(apply_fn), params, x)


def test_module_without_parameters(unchecked_shapes):
    with pytest.raises(ValueError, match=r"nnx\.Param"):
        ntk_jax.from_nnx(nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
