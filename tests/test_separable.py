"""Cotangents that all outputs share up to weights: found where they are, and the kernel stays that
of dense Jacobians.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases.networks import dense_ntk
from ntk_jax import empirical_ntk, from_linen
from ntk_jax.finite.contraction import gram as contraction
from ntk_jax.finite.features.features import FactoredBlock
from ntk_jax.finite.features.tangents import features_jit

F64 = {"dtype": jnp.float64, "param_dtype": jnp.float64}


class Dense(nn.Module):
    phi: object = nn.relu
    depth: int = 1

    @nn.compact
    def __call__(self, x):
        for _ in range(self.depth):
            x = self.phi(nn.Dense(8, **F64)(x))
        return nn.Dense(3, **F64)(x)


class Images(nn.Module):
    """Residual blocks; the head averages over pixels, or sees each of them through weights of its
    own.
    """

    flat: bool = False

    @nn.compact
    def __call__(self, x):
        for stride in (1, 2):
            conv = nn.Conv(6, (3, 3), strides=stride, **F64)(x)
            y = conv * self.param(
                f"scale_{stride}", nn.initializers.normal(1.0), (1, 1, 1, 6), jnp.float64
            )
            x = nn.relu(y + nn.Conv(6, (1, 1), strides=stride, **F64)(x))
        return nn.Dense(3, **F64)(x.reshape(x.shape[0], -1) if self.flat else x.mean((1, 2)))


def case(model, shape):
    x = jax.device_put(np.random.default_rng(0).standard_normal((6, *shape)))
    return *from_linen(model, jax.jit(model.init)(jax.random.key(0), x)), x


def shared(apply_fn, params, x):
    blocks = features_jit(apply_fn, params, x, for_mean=True).blocks
    return {
        b.leaves[0].strip("[']").split("'")[0]
        for b in blocks
        if isinstance(b, FactoredBlock) and b.scales is not None
    }


CASES = [
    *(
        (f"dense {phi.__name__}", Dense(phi), (5,), {"Dense_0", "Dense_1"})
        for phi in (nn.relu, nn.gelu, jnp.tanh)
    ),
    *(
        (f"dense {phi.__name__}", Dense(phi), (5,), {"Dense_0", "Dense_1"})
        for phi in (nn.silu, nn.elu, nn.leaky_relu)
    ),
    ("deep", Dense(jnp.tanh, 3), (5,), {"Dense_2", "Dense_3"}),
    ("averaged pixels", Images(), (6, 6, 2), {"Conv_2", "Conv_3", "Dense_0"}),
    ("weighted pixels", Images(flat=True), (6, 6, 2), {"Dense_0"}),
]


@pytest.mark.parametrize("name, model, shape, expected", CASES, ids=[c[0] for c in CASES])
def test_shared_cotangents_give_the_kernel_of_dense_jacobians(name, model, shape, expected):
    apply_fn, params, x = case(model, shape)
    assert shared(apply_fn, params, x) == expected
    exact = np.asarray(dense_ntk(apply_fn, params, x, x)["mean"])
    for k, truth in (
        (empirical_ntk(apply_fn, params, x, method="layerwise"), exact),
        (empirical_ntk(apply_fn, params, x, x[::-1], method="layerwise"), exact[:, ::-1]),
    ):
        np.testing.assert_allclose(k, truth, rtol=1e-10, atol=1e-10 * np.max(exact))


def test_second_derivatives_pass_a_zero_readout():
    apply_fn, params, x = case(Dense(jnp.tanh), (5,))
    params["Dense_1"]["kernel"] = jnp.zeros_like(params["Dense_1"]["kernel"])

    def total(kernel, method):
        filled = {**params, "Dense_1": {**params["Dense_1"], "kernel": kernel}}
        return jnp.sum(empirical_ntk(apply_fn, filled, x[:2], method=method))

    hessians = [
        jax.hessian(total)(params["Dense_1"]["kernel"], m) for m in ("layerwise", "jacobian")
    ]
    assert np.max(np.abs(hessians[1])) > 0.01
    np.testing.assert_allclose(*hessians, rtol=1e-10, atol=1e-12)


def test_the_half_that_is_copied_is_the_half_that_is_computed(monkeypatch):
    monkeypatch.setattr(contraction, "HALF", 100)
    apply_fn, params, _ = case(Dense(), (5,))
    x = jax.device_put(np.random.default_rng(1).standard_normal((600, 5)))  # tiles of 300, halved
    for outputs in ("mean", "diagonal", "full"):
        k = np.asarray(empirical_ntk(apply_fn, params, x, outputs=outputs, method="layerwise"))
        block = empirical_ntk(
            apply_fn, params, x[:260], x[250:], outputs=outputs, method="layerwise"
        )
        np.testing.assert_allclose(k[:260, 250:], block, rtol=1e-10, atol=1e-12)
        assert np.array_equal(k, k.swapaxes(0, 1) if k.ndim < 4 else k.transpose(1, 0, 3, 2))
