"""What a network reads besides its arguments may change: every function sees it, and keeps nothing
of it alive.
"""

import functools
import gc
import itertools
import types
import weakref

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ntk_jax
from cases.draws import normal
from ntk_jax import (
    empirical_nngp,
    empirical_ntk,
    empirical_ntk_by_layer,
    explain_ntk,
    jacobian_change,
    kernel_evolution,
    kernel_velocity,
    laziness,
    linearize,
    min_norm_displacement,
    monte_carlo_kernels,
    ntk_operator,
    single_step_influence,
    tangent_features,
    train,
    train_ensemble,
)
from ntk_jax.closures.fingerprint import Reading
from ntk_jax.closures.programs import compiled

x = normal(0, (3, 4))
w = normal(1, (4, 2))
y = np.ones((3, 2))
FULL, HALF = jax.device_put((np.array([[1.0, 1.0]]), np.array([[1.0, 0.0]])))

SCALE = FULL
settings = types.ModuleType("settings_of_the_user")
settings.scale = FULL


class Holder:
    """A network with state, equal to all others, and not hashable."""

    def __init__(self, mask):
        self.mask = mask

    def __eq__(self, other):
        return True

    def __call__(self, w, x):
        return jnp.tanh(x @ w) * self.mask

    def method(self, w, x):
        return self(w, x)


class Slots:
    __slots__ = ("mask",)


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.tanh(nn.Dense(2, use_bias=False)(x)) * SCALE


def in_closure():
    mask = FULL

    def change(new):
        nonlocal mask
        mask = new

    return lambda w, x: jnp.tanh(x @ w) * mask, change


def in_numpy_array():
    mask = np.array(FULL)
    return lambda w, x: jnp.tanh(x @ w) * mask, lambda new: np.copyto(mask, new)


def in_global():
    return lambda w, x: jnp.tanh(x @ w) * SCALE, lambda new: globals().update(SCALE=new)


def in_inner_function():
    inner, change = in_closure()
    one = functools.partial(lambda f, w, x: 1.0 * f(w, x[None])[0], inner)
    return jax.vmap(one, in_axes=(None, 0)), change


def in_module():
    return lambda w, x: jnp.tanh(x @ w) * settings.scale, lambda new: setattr(
        settings, "scale", new
    )


def in_default():
    def net(w, x, held=[FULL]):  # noqa: B006
        return jnp.tanh(x @ w) * held[0]

    return net, lambda new: net.__defaults__[0].__setitem__(0, new)


def in_attribute_of_a_function():
    def net(w, x):
        return jnp.tanh(x @ w) * helper.mask

    def helper():
        pass

    helper.mask = FULL
    return net, lambda new: setattr(helper, "mask", new)


def in_callable():
    net = Holder(FULL)
    return net, lambda new: setattr(net, "mask", new)


def in_self():
    net = Holder(FULL)
    return net.method, lambda new: setattr(net, "mask", new)


def in_partial():
    held = {"mask": FULL}
    return functools.partial(
        lambda held, w, x: jnp.tanh(x @ w) * held["mask"], held
    ), lambda new: held.update(mask=new)


def in_slots():
    held = Slots()
    held.mask = FULL
    return lambda w, x: jnp.tanh(x @ w) * held.mask, lambda new: setattr(held, "mask", new)


def in_iterator():  # changes cannot be told: traced in every call
    mask, change = [FULL], itertools.count()
    return (
        lambda w, x: jnp.tanh(x @ w) * mask[0] + 0.0 * next(change),
        lambda new: mask.__setitem__(0, new),
    )


def in_linen():
    net = lambda w, x: Model().apply({"params": {"Dense_0": {"kernel": w}}}, x)
    return net, lambda new: globals().update(SCALE=new)


PLACES = [
    in_closure,
    in_numpy_array,
    in_global,
    in_inner_function,
    in_module,
    in_default,
    in_attribute_of_a_function,
]
PLACES += [in_callable, in_self, in_partial, in_slots, in_iterator, in_linen]


@pytest.mark.parametrize("place", PLACES, ids=lambda p: p.__name__)
def test_the_kernel_follows_what_the_network_reads(place):
    net, change = place()
    try:
        change(FULL)
        full = empirical_ntk(net, w, x)
        change(HALF)
        half = empirical_ntk(net, w, x)
        change(FULL)
        again = empirical_ntk(net, w, x)
    finally:
        change(FULL)
    np.testing.assert_allclose(full, empirical_ntk(lambda w, x: jnp.tanh(x @ w), w, x), rtol=1e-10)
    np.testing.assert_allclose(
        half, empirical_ntk(lambda w, x: jnp.tanh(x @ w) * HALF, w, x), rtol=1e-10
    )
    assert jnp.max(jnp.abs(full - half)) > 0.1
    np.testing.assert_allclose(again, full, rtol=1e-10)


OPTIONS = {"optimizer": optax.sgd(0.1), "num_steps": 2, "progress": False}
v = np.ones((3, 2))
FUNCTIONS = {
    "empirical_nngp": lambda f: empirical_nngp(f, w, x),
    "by_layer": lambda f: empirical_ntk_by_layer(f, w, x),
    "vector_products": lambda f: empirical_ntk(f, w, x, method="vector_products"),
    "jacobian": lambda f: empirical_ntk(f, w, x, method="jacobian"),
    "tangent_features": lambda f: ntk_jax.contract(tangent_features(f, w, x)),
    "ntk_operator": lambda f: ntk_operator(f, w, x) @ v,
    "diagonal": lambda f: ntk_operator(f, w, x).diagonal(),
    "linearize": lambda f: linearize(f, w)(1.1 * w, x),
    "min_norm": lambda f: min_norm_displacement(f, w, x[:2], y[:2], max_steps=3).params,
    "influence": lambda f: single_step_influence(f, w, x, x, y),
    "laziness": lambda f: laziness(f, w, x, y).kappa,
    "frobenius": lambda f: laziness(f, w, x, y, norm="frobenius", num_samples=2).kappa,
    "jacobian_change": lambda f: jacobian_change(f, 1.1 * w, w, x),
    "velocity": lambda f: kernel_velocity(f, w, x, y),
    "evolution": lambda f: kernel_evolution(f, w, x)(w).effective_rank,
    "train": lambda f: train(f, w, x, y, **OPTIONS).loss,
    "train_ensemble": lambda f: (
        train_ensemble(
            lambda key: w, f, x, y, key=jax.random.key(0), num_networks=1, **OPTIONS
        ).loss
    ),
    "monte_carlo": lambda f: (
        monte_carlo_kernels(
            lambda key: w + jax.random.normal(key, w.shape),
            f,
            x,
            key=jax.random.key(0),
            num_samples=2,
        ).mean.ntk
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_sees_the_change(name):
    call, held = FUNCTIONS[name], {"mask": jnp.array([[1.0, 2.0]])}
    net = lambda w, x: jnp.tanh(x @ w) * held["mask"]
    before = call(net)
    held["mask"] = jnp.array([[2.0, 0.5]])
    after = call(net)
    fresh = call(lambda w, x: jnp.tanh(x @ w) * jnp.array([[2.0, 0.5]]))
    for a, b, c in zip(*map(jax.tree.leaves, (before, after, fresh)), strict=True):
        np.testing.assert_allclose(b, c, rtol=1e-9)
        assert np.max(np.abs(np.asarray(a) - np.asarray(b))) > 1e-3


def test_an_operator_and_a_record_see_later_changes():
    held = {"mask": FULL}
    net = lambda w, x: jnp.tanh(x @ w) * held["mask"]
    operator, record = ntk_operator(net, w, x), kernel_evolution(net, w, x, keep_kernels=True)
    multiply = jax.jit(lambda operator, v: operator @ v)
    before = operator @ v, multiply(operator, v), record(w).kernel
    held["mask"] = 2.0 * FULL
    for a, b in zip(before, (operator @ v, multiply(operator, v), record(w).kernel), strict=True):
        np.testing.assert_allclose(4 * a, b, rtol=1e-10)


def test_losses_and_initializers_are_closures_too():
    weight, spread = 1.0, 1.0
    loss = lambda f, y: weight * jnp.mean((f - y) ** 2)
    net = lambda w, x: jnp.tanh(x @ w)
    draw = lambda key: spread * jax.random.normal(key, w.shape)
    first = train(net, w, x, y, loss=loss, **OPTIONS).loss[0]
    kernels = monte_carlo_kernels(draw, net, x, key=jax.random.key(0), num_samples=2).mean
    weight, spread = 3.0, 0.5
    np.testing.assert_allclose(
        train(net, w, x, y, loss=loss, **OPTIONS).loss[0], 3 * first, rtol=1e-10
    )
    changed = monte_carlo_kernels(draw, net, x, key=jax.random.key(0), num_samples=2).mean
    assert jnp.max(jnp.abs(kernels.ntk - changed.ntk)) > 0.1


def count_compilations(monkeypatch):
    import ntk_jax.closures.programs as programs

    made, runner = [], programs._runner
    monkeypatch.setattr(
        programs, "_runner", lambda name, jaxpr: made.append(name) or runner(name, jaxpr)
    )
    return made


def test_a_changed_array_needs_no_new_program(monkeypatch):
    made = count_compilations(monkeypatch)
    kernels = [
        empirical_ntk(lambda w, x, m=m: jnp.sin(x @ w) * m, w, x) for m in (FULL, HALF, 3 * FULL)
    ]
    np.testing.assert_allclose(kernels[2], 9 * kernels[0], rtol=1e-10)
    assert made.count("features_jit") <= 3  # of one batch, and of one row in two methods


def test_a_changed_number_or_rule_is_another_program():
    def net(mask, power):
        @jax.custom_jvp
        def act(u):
            return jnp.tanh(u)

        act.defjvp(lambda primals, tangents: (act(*primals), mask[0, 0] * tangents[0]))
        return lambda w, x: act(x @ w) * float(power)

    base = empirical_ntk(net(FULL, 1), w, x)
    np.testing.assert_allclose(empirical_ntk(net(2 * FULL, 1), w, x), 4 * base, rtol=1e-10)
    np.testing.assert_allclose(
        empirical_ntk(net(FULL, np.float64(1 + 1e-9)), w, x), base * (1 + 1e-9) ** 2, rtol=1e-14
    )
    nngp = lambda f: jax.jvp(lambda w: empirical_nngp(f, w, x), (w,), (w,))[1]
    np.testing.assert_allclose(nngp(net(2 * FULL, 1)), 2 * nngp(net(FULL, 1)), rtol=1e-10)


def test_closures_and_their_arrays_are_given_back():
    def use(make, i):
        big = make(i)
        net = lambda w, x: jax.nn.relu(x @ w) * big[:, :2]
        empirical_ntk(net, w, x)
        ntk_operator(net, w, x) @ v
        return weakref.ref(big), weakref.ref(net)

    for make in (lambda i: jnp.full((1, 2**17), 1.0 + i), lambda i: np.full((1, 2**17), 1.0 + i)):
        refs = [ref for i in range(3) for ref in use(make, i)]
        gc.collect()
        assert all(ref() is None for ref in refs)


def test_memories_are_bounded():
    from ntk_jax.closures.cache import Cache as Memory

    class Value:
        pass

    memory, kept, gone = Memory(3), Value(), Value()
    memory.put("a", 1, [kept])
    memory.put("b", 2, [gone])
    del gone
    gc.collect()
    assert memory.get("a") == 1 and memory.get("b") is None
    for i in range(4):
        memory.put(i, i + 1, [])
    assert memory.get("a") is None and memory.get(0) is None and memory.get(3) == 4


def test_closures_over_traced_values_are_differentiated():
    kernel = lambda t: jnp.sum(empirical_ntk(lambda w, x: t * jnp.tanh(x @ w), w, x))
    for slope in (
        jax.grad(kernel),
        jax.jit(jax.grad(kernel)),
        lambda t: jax.vmap(jax.grad(kernel))(t[None])[0],
    ):
        np.testing.assert_allclose(slope(jnp.asarray(1.0)), 2 * kernel(1.0), rtol=1e-10)


def test_equal_functions_are_equal():
    assert Reading(optax.sgd(0.1)) == Reading(optax.sgd(0.1)) != Reading(optax.sgd(0.2))
    held = [1.0, True, "a", None, 2j, {"b": (1, 2)}, slice(1, 2), range(3), Slots]
    assert Reading(held) == Reading(list(held)) != Reading([1, *held[1:]])
    assert Reading(held) != Reading([1.0, 1, *held[2:]])


def test_settings_are_part_of_a_program():
    @compiled
    def half(function, a):
        return function(a)

    read_precision = lambda a: a * (float(jax.config.jax_default_matmul_precision == "highest"))
    assert half(read_precision, 1.0) == 0
    with jax.default_matmul_precision("highest"):
        assert half(read_precision, 1.0) == 1


def test_explain_sees_another_network():
    held = {"extra": False}
    net = lambda p, x: jnp.tanh(x @ p["w"]) + (jnp.sin(x @ p["v"]) if held["extra"] else 0)
    params = {"v": w, "w": w}
    assert explain_ntk(net, params, x).unused == ("['v']",)
    held["extra"] = True
    assert explain_ntk(net, params, x).unused == ()
