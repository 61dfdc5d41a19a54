"""`mlp_kernels` with residual connections, LayerNorm and scales per layer, against Flax networks:
read, and drawn at random.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_jax import infinite_width, mlp_kernels, monte_carlo_kernels

pytestmark = pytest.mark.slow

F64 = jnp.float64
CASES = {
    "residual": {"activation": "relu", "residual": True, "W_std": 1.3, "b_std": 0.4, "depth": 3},
    "layer_norm": {
        "activation": "tanh",
        "layer_norm": True,
        "W_std": 1.5,
        "b_std": 0.2,
        "depth": 2,
    },
    "both, one scale per layer": {
        "activation": "gelu",
        "residual": True,
        "layer_norm": True,
        "W_std": [1.1, 0.9, 1.4],
        "b_std": [0.3, 0.0, 0.5],
        "depth": 2,
    },
}
PHI = {"relu": nn.relu, "tanh": jnp.tanh, "gelu": lambda u: nn.gelu(u, approximate=False)}


class Network(nn.Module):
    """z <- z + Dense(phi(norm(z))), as the docstring of `mlp_kernels` says."""

    width: int
    options: tuple[tuple[str, object], ...]
    num_outputs: int = 1

    @nn.compact
    def __call__(self, x):
        options = dict(self.options)
        depth = options["depth"]
        W, b = (np.broadcast_to(options[name], depth + 1) for name in ("W_std", "b_std"))

        def dense(layer, num_units, z):
            scales = (
                nn.initializers.variance_scaling(W[layer] ** 2, "fan_in", "normal"),
                nn.initializers.normal(b[layer]),
            )
            return nn.Dense(
                num_units, dtype=F64, param_dtype=F64, kernel_init=scales[0], bias_init=scales[1]
            )(z)

        z = dense(0, self.width, x)
        for layer in range(1, depth + 1):
            inner = z
            if options.get("layer_norm"):
                inner = nn.LayerNorm(
                    epsilon=0.0,
                    use_scale=False,
                    use_bias=False,
                    dtype=F64,
                    param_dtype=F64,
                    force_float32_reductions=False,
                )(z)
            last = layer == depth
            out = dense(
                layer, self.num_outputs if last else self.width, PHI[options["activation"]](inner)
            )
            z = z + out if options.get("residual") and not last else out
        return z


def model_and_kernels(name, width, **more):
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in CASES[name].items()}
    x = np.random.default_rng(0).standard_normal((4, 5))
    x[3] = -x[0]
    return Network(width, tuple(options.items()), **more), x, mlp_kernels(x, **CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_the_limit_of_the_written_network_is_the_same(name):
    model, x, exact = model_and_kernels(name, 8)
    read = infinite_width(model, learning_rates="variance")(x)
    for a, b in zip(read, exact, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_wide_networks_drawn_at_random_agree(name):
    width, num_draws = 512, 24
    model, x, exact = model_and_kernels(name, width, num_outputs=16)
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    num_layers = CASES[name]["depth"] + 1
    W, b = (np.broadcast_to(CASES[name][option], num_layers) for option in ("W_std", "b_std"))
    scales = jax.tree.map(lambda p: 1.0, params)
    for layer in range(
        num_layers
    ):  # in place of learning rates: each parameter is its scale times a unit normal one
        fan_in = 5 if layer == 0 else width
        scales["params"][f"Dense_{layer}"] = {
            "kernel": float(W[layer]) / fan_in**0.5,
            "bias": float(b[layer]),
        }

    def unit(key):
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(key, len(leaves))
        return jax.tree.unflatten(
            tree, [jax.random.normal(k, p.shape, F64) for k, p in zip(keys, leaves, strict=True)]
        )

    apply_fn = lambda unit, x: model.apply(jax.tree.map(jnp.multiply, scales, unit), x)
    out = monte_carlo_kernels(unit, apply_fn, x, num_samples=num_draws, key=jax.random.key(1))
    for mean, error, k in zip(*out, exact, strict=True):
        # at finite width the mean is off by the order of 1/width, here below a hundredth of the
        # largest entry
        allowed = 4 * np.asarray(error) + 3 / width * float(jnp.max(k))
        assert np.all(np.abs(np.asarray(mean) - k) <= allowed), (mean, error, k)
