"""Rows that coincide, nearly coincide, or are parallel: kernels and derivatives there are those of
the function.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from test_near import exact_kernels

from ntk_jax import infinite_width, kernel_diagonal, mlp_kernels

key, normal = jax.random.key, jax.random.normal
O = {"depth": 3, "W_std": 2**0.5, "b_std": 0.1}


class Net(nn.Module):
    phi: object = nn.relu
    depth: int = 3
    W_std: float = 2**0.5
    b_std: float = 0.1

    @nn.compact
    def __call__(self, x):
        dense = partial(
            nn.Dense,
            kernel_init=nn.initializers.variance_scaling(self.W_std**2, "fan_in", "normal"),
            bias_init=nn.initializers.normal(self.b_std),
            dtype=x.dtype,
            param_dtype=x.dtype,
        )
        for _ in range(self.depth):
            x = self.phi(dense(16)(x))
        return dense(1)(x)


LIMIT = infinite_width(Net(), learning_rates="variance")
ENTRIES = {
    "x2=None": lambda a: mlp_kernels(a, **O).ntk,
    "x2=x1": lambda a: mlp_kernels(a, a, **O).ntk,
    "infinite_width": lambda a: LIMIT(a, a).ntk,
    "infinite_width, x2=None": lambda a: LIMIT(a).ntk,
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("dtype, rtol", [(np.float64, 1e-6), (np.float32, 1e-3)])
def test_every_entry_gives_the_one_derivative(entry, dtype, rtol):
    s, v = (normal(key(i), (10, 5), np.float64).astype(dtype) for i in (0, 1))
    trace = lambda a: jnp.trace(ENTRIES[entry](a))
    forward = jax.jvp(trace, (s,), (v,))[1]
    np.testing.assert_allclose(forward, 14.383834, rtol=rtol)  # by central differences
    np.testing.assert_allclose(jnp.vdot(jax.grad(trace)(s), v), forward, rtol=rtol)


@pytest.mark.parametrize(
    "activation, depth, dtype",
    [
        ("relu", 3, np.float32),
        *(
            (*case, np.float64)
            for case in (
                ("relu", 6),
                ("abs", 4),
                ("hard_tanh", 2),
                *((a, 3) for a in ("leaky_relu", "sign", "relu6", "erf", "gelu")),
            )
        ),
    ],
)
def test_one_argument_has_half_the_derivative_of_the_diagonal(activation, depth, dtype):
    z = normal(key(2), (24 if activation in ("hard_tanh", "relu6") else 100, 4), dtype)
    options = {**O, "activation": activation, "depth": depth}
    one = jax.jit(jax.grad(lambda s: sum(jnp.trace(k) for k in mlp_kernels(z, s, **options))))(z)
    both = jax.jit(jax.grad(lambda s: sum(jnp.sum(k) for k in kernel_diagonal(s, **options))))(z)
    scale = np.linalg.norm(both, axis=1, keepdims=True) / 2
    assert np.all(
        np.abs(one - both / 2) <= (1e-3 if dtype == np.float32 else 1e-6) * np.maximum(scale, 1e-6)
    )


X, V, WEIGHTS = (
    np.random.default_rng(i).standard_normal((10, n)) for i, n in enumerate((5, 5, 10))
)
X[3:7] = X[1], -X[1], 2 * X[1], 0 * X[1]


def total(h, entry):
    """A combination of all entries, rows repeated, antipodal, parallel and zero at h = 0."""
    return jnp.vdot(WEIGHTS, ENTRIES[entry](X + h * V))


value_and_slope = jax.jit(jax.value_and_grad(total), static_argnums=1)


@pytest.mark.parametrize("entry", ["x2=None", "x2=x1"])
def test_derivatives_at_repeated_antipodal_parallel_and_zero_rows_are_central_differences(entry):
    step, slope = 1e-6, value_and_slope(0.0, entry)[1]
    numeric = (value_and_slope(step, entry)[0] - value_and_slope(-step, entry)[0]) / (2 * step)
    np.testing.assert_allclose(slope, numeric, rtol=1e-6)


@pytest.mark.slow
def test_derivatives_there_are_those_of_infinite_width_and_second_ones_are_finite():
    # `infinite_width` does not resolve rows that are a step apart
    slopes = [value_and_slope(0.0, entry)[1] for entry in ("infinite_width", "x2=x1")]
    np.testing.assert_allclose(*slopes, rtol=1e-6)
    assert jnp.isfinite(jax.jit(jax.hessian(total), static_argnums=1)(0.0, "x2=x1"))


@pytest.mark.parametrize(
    "options",
    [
        {"W_std": 1.3, "b_std": 0.2},
        *(
            pytest.param(options, marks=pytest.mark.slow)
            for options in (
                {"W_std": 2**0.5},
                {"W_std": 1.1, "b_std": 0.2, "residual": True},
                {"W_std": 1.2, "residual": True, "layer_norm": True},
            )
        ),
    ],
)
@pytest.mark.parametrize("dtype", [np.float64, pytest.param(np.float32, marks=pytest.mark.slow)])
def test_derivatives_at_nearly_parallel_rows_are_those_of_the_recursion_at_sixty_digits(
    options, dtype
):
    eps, angles = np.finfo(dtype).eps, [1e-1, 1e-3, 1e-5, *([1e-7] if dtype == np.float64 else [])]
    x, away, v = (np.asarray(normal(key(i), (6,)), dtype) for i in range(3))
    y = np.stack([s * (x + t * away) for t in angles for s in (1, -1, 2)]).astype(dtype)
    kernels = lambda x: mlp_kernels(x[None], y, depth=4, **options)
    ours = jax.jit(lambda x, v: jax.jvp(kernels, (x,), (v,))[1])(x, v)
    for i, row in enumerate(y):
        for k, exact in zip(ours, slopes_at_sixty_digits(x, v, row, options), strict=True):
            # what rounding leaves of a direction that is known by its distance
            assert abs(float(k[0, i]) - exact) <= 16 * eps * (
                1 + 1 / angles[i // 3]
            ) * np.linalg.norm(y[i])


def slopes_at_sixty_digits(x, v, y, options):
    with mpmath.workdps(60):
        step = mpmath.mpf(10) ** -25
        moved = [
            [
                mpmath.mpf(float(a)) + s * step * mpmath.mpf(float(b))
                for a, b in zip(x, v, strict=True)
            ]
            for s in (1, -1)
        ]
        (K, T), (K_, T_) = (exact_kernels(row, y, 4, rounded=False, **options) for row in moved)
        return [float((up[1] - down[1]) / (2 * step)) for up, down in ((K, K_), (T, T_))]


@pytest.mark.parametrize(
    "activation",
    ["gaussian", *(pytest.param(a, marks=pytest.mark.slow) for a in ("rbf", "sin", "cos", "erf"))],
)
def test_an_example_in_both_sets_is_the_same_example(activation):
    for options in ({"depth": 1}, {"depth": 2, "W_std": 1.3, "b_std": 0.4}):
        for scale in (1.0, 1e4):
            x = scale * normal(key(0), (5, 3), np.float32)
            own = kernel_diagonal(x, activation=activation, **options)
            for k, diagonal in zip(
                mlp_kernels(x, x, activation=activation, **options), own, strict=True
            ):
                np.testing.assert_allclose(jnp.diagonal(k), diagonal, rtol=1e-6)


@pytest.mark.parametrize("phi", [jnp.sin, pytest.param(jnp.cos, marks=pytest.mark.slow)])
def test_an_example_in_both_sets_is_the_same_example_to_infinite_width(phi):
    x = 1e4 * normal(key(0), (5, 3), np.float32)
    limit = infinite_width(Net(phi, 2, 1.3, 0.4), learning_rates="variance")
    for two, one in zip(limit(x, x), limit(x), strict=True):
        np.testing.assert_allclose(jnp.diagonal(two), jnp.diagonal(one), rtol=1e-6)
