"""What `infinite_width` returns, as an object: its dtypes, what it refuses, the memory it takes and
gives back, its copies.
"""

import copy
import gc
import importlib.util
import pickle
import weakref

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ntk_jax
from cases.architectures import lenient
from cases.compilations import compilations
from ntk_jax.infinite.flax.traced_model import Program
from ntk_jax.memory import memory_budget

X = np.random.default_rng(0).standard_normal((3, 4))
MLP = ntk_jax.MLP((8,), 1, "relu", 1.3, 0.2)
OPTIONS = {"depth": 1, "W_std": 1.3, "b_std": 0.2}


def draw(key, x):
    return {"W": jax.random.normal(key, (x.shape[-1], 6)), "V": jax.random.normal(key, (6, 1))}


def two_layers(params, x):
    return nn.relu(x @ params["W"].astype(x.dtype)) @ params["V"].astype(x.dtype)


class Wide(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.relu(nn.Dense(8)(x)))


class WideNNX(nnx.Module):
    def __init__(self, *, rngs):
        self.first, self.last = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.first(x)))


def kernel_of(model=MLP, **options):
    return lenient(ntk_jax.infinite_width(model, **options))


def test_both_sides_have_the_dtype_that_mlp_kernels_gives_them(unchecked_shapes):
    kernel = kernel_of()
    rounded = np.rint(3 * X)
    sides = [
        X.astype(np.float32),
        2 - X[:, ::-1],
        rounded.astype(np.int32),
        rounded > 0,
        rounded.astype(np.float16),
    ]
    for one, other in [(0, 1), (1, 0), (2, 1), (1, 3), (4, 1), (0, 4)]:
        found, expected = (
            f(sides[one], sides[other])
            for f in (kernel, lambda a, b: ntk_jax.mlp_kernels(a, b, **OPTIONS))
        )
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == b.dtype == (np.float32 if (one, other) == (0, 4) else np.float64)
            # eps of the largest entry: nearly orthogonal rows have small ones
            most = 1e-12 if a.dtype == np.float64 else 1e-6
            np.testing.assert_allclose(a, b, rtol=most, atol=most)


def test_integers_stay_integers_as_they_may_be_indices():
    class Embedded(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            return nn.Dense(1)(nn.Embed(5, 8)(tokens).mean(1))

    found = kernel_of(Embedded())(
        np.array([[0, 1], [2, 2]], np.int32), np.array([[0, 3], [2, 4]], np.int8)
    ).nngp
    np.testing.assert_allclose(found, found[0, 0] * np.array([[1.0, 0.0], [0.0, 2.0]]), atol=1e-12)


BAD = {
    "memory -1": ({"memory_limit": -1}, r"memory_limit: expected an integer of at least 1; got -1"),
    "memory 0": ({"memory_limit": 0}, r"memory_limit: expected an integer of at least 1; got 0"),
    "memory a": (
        {"memory_limit": "a"},
        r"memory_limit: expected an integer of at least 1; got 'a'",
    ),
    "negative variance": (
        {"init_stats": {"Dense_0/kernel": (0, -1)}},
        r"init_stats, Dense_0/kernel: .* at least 0",
    ),
    "NaN variance": (
        {"init_stats": {"Dense_0/kernel": (0, np.nan)}},
        r"init_stats, Dense_0/kernel: .* at least 0",
    ),
    "negative rate": (
        {"learning_rates": lambda path, stats: -1.0},
        r"learning_rates, of Dense_0/\w+: .* at least 0",
    ),
    "NaN rate": (
        {"learning_rates": lambda path, stats: np.nan},
        r"learning_rates, of Dense_0/\w+: expected finite",
    ),
    "no rate": (
        {"learning_rates": lambda path, stats: None},
        r"learning_rates, of Dense_0/\w+: expected a real number",
    ),
    "one rate": (
        {"learning_rates": 0.1},
        r"learning_rates: expected one of 'variance', None; got 0.1",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_options_that_cannot_be_are_refused(name, unchecked_shapes):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        kernel_of(Wide(), **options)(X)


def test_rules_without_a_name_or_a_function_are_refused(unchecked_shapes):
    for name, function, message in [
        (None, jnp.tanh, "primitive: expected the name"),
        ("tanh", None, "function: expected"),
    ]:
        with pytest.raises(ValueError, match=message):
            ntk_jax.register_rule(name, function)


@pytest.mark.parametrize("activation", ["relu", "elu"])
def test_kernels_beyond_the_range_of_their_dtype_are_refused(activation):
    x = (1e20 * X).astype(np.float32)
    kernel = kernel_of(ntk_jax.MLP((8,), 1, activation, 1.3, 0.2))
    for sides in ((x,), (x, x[:1])):
        with pytest.raises(
            ValueError, match="infinite_width: expected kernels within the range of float32"
        ):
            kernel(*sides)
    assert activation != "relu" or np.isfinite(kernel(x.astype(float)).ntk).all()


def test_programs_go_with_their_kernel():
    def seen():
        params = np.full(6, 0.5)
        kernel = ntk_jax.infinite_width((draw, lenient(lambda p, x: two_layers(p, x) * params[0])))
        kernel(X), kernel(X, X[:1])
        parts = kernel, kernel.program(jnp.asarray(X)), kernel.program(jnp.asarray(X)).jaxpr
        return [weakref.ref(part) for part in parts]

    alive = lambda: sum(isinstance(o, Program) for o in gc.get_objects())
    gc.collect()
    before = alive()
    references = seen() + seen()
    gc.collect()
    assert not any(reference() for reference in references)
    assert alive() <= before


def test_a_kernel_that_is_kept_keeps_its_programs():
    kernel = kernel_of()
    kernel(X)
    gc.collect()
    with compilations() as later:
        kernel(X + 1)
    assert not later


def test_small_changes_of_free_memory_compile_nothing(monkeypatch):
    def free(size):
        monkeypatch.setattr("ntk_jax.memory.free_bytes", lambda: size)
        return memory_budget()

    assert free(9_000_000_000) == free(16_000_000_000) == 2**31
    kernel, x = kernel_of(), np.random.default_rng(1).standard_normal((200, 4))
    limits = [free(4_400_000)]
    first = kernel(x)
    with compilations() as later:
        limits += [free(4_600_000)]
        second = kernel(x)
    assert limits == [2**20, 2**20]
    assert not later
    np.testing.assert_array_equal(first.ntk, second.ntk)


def test_copies_give_the_same_kernel():
    original = ntk_jax.infinite_width(Wide(), learning_rates="variance")
    expected = lenient(original)(X)
    for other in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        np.testing.assert_array_equal(lenient(other)(X).ntk, expected.ntk)


def test_whatever_can_be_pickled_can_be_in_a_kernel():
    key = jax.random.key(3)
    for model, options in [
        (WideNNX, {}),
        ((draw, two_layers), {}),
        (Wide(), {"num_samples": 8, "key": key}),
    ]:
        other = pickle.loads(pickle.dumps(ntk_jax.infinite_width(model, **options)))
        assert len(lenient(other.program)(jnp.asarray(X)).params) == (
            2 if model == (draw, two_layers) else 4
        )
    assert other.num_samples == 8
    np.testing.assert_array_equal(jax.random.key_data(other.key), jax.random.key_data(key))


@pytest.mark.parametrize("folder", ["program", "infinite/program", "jax", "flax"])
def test_the_line_of_the_model_is_found_whatever_its_folder_is_called(folder, tmp_path):
    path = tmp_path / folder / "model.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import jax\n\ndef f(p, x):\n    return jax.lax.stop_gradient(jax.nn.relu(x @ p['W'])) @ "
        "p['V']\n"
    )
    spec = importlib.util.spec_from_file_location("model", path)
    model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(model)
    with pytest.raises(ntk_jax.NoLimitError, match=rf"`stop_gradient` in {path}:4 \(f\)"):
        kernel_of((draw, model.f))(X.astype(np.float32))


class Pooled(nn.Module):
    layers: int

    @nn.compact
    def __call__(self, x):
        for _ in range(self.layers):
            x = nn.relu(nn.Conv(8, (3,))(x))
        return nn.Dense(1)(x.mean(1))


def test_every_convolution_costs_the_same():
    x = np.zeros((2, 4, 2), np.float32)

    def operations(layers):
        kernel = kernel_of(Pooled(layers))
        compiled = jax.jit(lambda x: kernel(x)).lower(x).compile()
        return compiled.cost_analysis()["flops"]

    one, two, three = map(operations, (1, 2, 3))
    # Computed anew for every tap, layers below would cost more with each layer above.
    assert three - two < 1.1 * (two - one)
