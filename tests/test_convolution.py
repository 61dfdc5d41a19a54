"""Convolutions rewritten for a CPU are the user's own, value and derivatives."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ntk_jax import empirical_ntk, from_linen
from ntk_jax.closures import programs
from ntk_jax.finite.strategy import choose, cost
from ntk_jax.finite.uses.convolution import by_offsets, convolve, unstrided

RNG = np.random.default_rng(0)

# spatial shape, kernel, strides, padding, kernel dilation
GEOMETRIES = [
    ((7,), (3,), (2,), "SAME", (1,)),
    ((6,), (2,), (3,), [(2, 1)], (1,)),
    ((6, 7), (3, 3), (2, 2), "SAME", (1, 1)),
    ((6, 7), (4, 1), (1, 3), [(-1, 2), (0, 1)], (1, 1)),
    ((5, 6), (1, 1), (2, 2), "VALID", (1, 1)),
    ((2, 2), (3, 3), (1, 1), "SAME", (1, 1)),
    ((3, 3), (3, 2), (2, 1), [(2, 1), (0, 3)], (1, 2)),
    ((4, 3, 3), (3, 3, 2), (2, 1, 2), "SAME", (1, 1, 1)),
]


def case(space, kernel, strides, padding, dilation, dtype=np.float64):
    h = jnp.asarray(RNG.standard_normal((2, *space, 3)).astype(dtype))
    w = jnp.asarray(RNG.standard_normal((*kernel, 3, 4)).astype(dtype))
    letters = "DHW"[-len(space) :]
    numbers = (f"N{letters}C", f"{letters}IO", f"N{letters}C")

    def conv(h, w):
        return lax.conv_general_dilated(
            h, w, strides, padding, rhs_dilation=dilation, dimension_numbers=numbers
        )

    eqns = jax.make_jaxpr(conv)(h, w).jaxpr.eqns
    return h, w, conv, next(eqn for eqn in eqns if eqn.primitive.name == "conv_general_dilated")


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_every_form_is_the_convolution(geometry):
    h, w, conv, eqn = case(*geometry)
    expected = conv(h, w)
    np.testing.assert_allclose(
        jax.jit(lambda h, w: by_offsets(eqn, h, w))(h, w), expected, atol=1e-12
    )
    if set(geometry[4]) == {1}:
        np.testing.assert_allclose(
            jax.jit(lambda h, w: unstrided(eqn, h, w))(h, w), expected, atol=1e-12
        )


@pytest.mark.parametrize(
    "geometry", [GEOMETRIES[2], GEOMETRIES[5]], ids=["strided", "kernel larger than image"]
)
def test_derivatives_in_both_modes_and_both_arguments(geometry):
    h, w, conv, eqn = case(*geometry)
    found, expected = (
        jax.linearize(jax.jit(f), h, w) for f in (lambda h, w: convolve(eqn, h, w), conv)
    )
    np.testing.assert_allclose(found[0], expected[0], atol=1e-12)
    tangents = jnp.flip(h, 1), jnp.flip(w, 0)
    np.testing.assert_allclose(found[1](*tangents), expected[1](*tangents), atol=1e-12)
    cotangent = jnp.cos(expected[0])
    for a, b in zip(
        *(jax.linear_transpose(f[1], h, w)(cotangent) for f in (found, expected)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-12)


class Narrowing(nn.Module):
    """Strides down to images smaller than the kernel."""

    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = nn.tanh(nn.Conv(3, (3, 3), strides=2, param_dtype=x.dtype)(x))
        return nn.Dense(2, param_dtype=x.dtype)(x.reshape(len(x), -1))


def dense_kernel(apply_fn, params, x1, x2):
    j1, j2 = (
        jnp.concatenate(
            [j.reshape(len(x), 2, -1) for j in jax.tree.leaves(jax.jacrev(apply_fn)(params, x))], 2
        )
        for x in (x1, x2)
    )
    return jnp.einsum("iop,jqp->ijoq", j1, j2)


def test_kernel_of_a_network_down_to_one_pixel_and_its_gradient():
    x = jnp.asarray(RNG.standard_normal((3, 6, 6, 2)))
    model = Narrowing()
    apply_fn, params = from_linen(model, jax.jit(model.init)(jax.random.key(0), x))
    k = empirical_ntk(apply_fn, params, x, outputs="full")
    truth = jax.jit(lambda x: dense_kernel(apply_fn, params, x, x))(x)
    np.testing.assert_allclose(k, truth, rtol=1e-10, atol=1e-10)
    scalar = lambda kernel: jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(kernel(x, x + 1)))))
    found = scalar(lambda a, b: empirical_ntk(apply_fn, params, a, b, outputs="full"))(x)
    expected = scalar(lambda a, b: dense_kernel(apply_fn, params, a, b))(x)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("outputs", ["mean", "full"])
def test_a_few_rows_at_a_time_give_the_same_kernel(monkeypatch, outputs):
    x = jnp.asarray(RNG.standard_normal((7, 8, 8, 2)))
    model = Narrowing()
    apply_fn, params = from_linen(model, jax.jit(model.init)(jax.random.key(0), x))
    whole = empirical_ntk(apply_fn, params, x, x[:5], outputs=outputs)
    monkeypatch.setattr(cost, "IN_THE_MAKING", 49152)
    programs.forget()
    options = choose.Options(outputs, "layerwise")
    strategy = choose.choose_strategy(apply_fn, params, x, None, options)
    assert "gradients" in strategy.forms and 1 < strategy.rows_at_once < 5
    few = empirical_ntk(apply_fn, params, x, outputs=outputs)
    np.testing.assert_allclose(few[:, :5], whole, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        empirical_ntk(apply_fn, params, x, x[:5], outputs=outputs), whole, rtol=1e-12, atol=1e-12
    )
    traced = jax.jit(lambda p: empirical_ntk(apply_fn, p, x, outputs=outputs))(
        params
    )  # all rows together
    np.testing.assert_allclose(traced, few, rtol=1e-12, atol=1e-12)
    programs.forget()
