"""Jobs that people bring, each in at most 15 lines of their code (`test_no_job_is_long` counts)."""

import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ntk_jax


def pinn(steps):
    """-u'' = 16 pi² sin(4 pi x) with u = 0 at both ends: weights that balance traces of kernels."""
    model = ntk_jax.MLP((64, 64), 1, "tanh", 1.0, 1.0, "standard")
    params = model.init(jax.random.key(0), jnp.ones((1, 1)))["params"]
    u = lambda p, t: model.apply({"params": p}, t.reshape(1, 1)).sum()
    value = lambda p, x: jax.vmap(u, (None, 0))(p, x["t"])
    residual = lambda p, x: -jax.vmap(jax.grad(jax.grad(u, 1), 1), (None, 0))(p, x["t"])
    ends, inside = jnp.array([0.0, 1.0]), jnp.linspace(0.0, 1.0, 64)
    source = (4 * jnp.pi) ** 2 * jnp.sin(4 * jnp.pi * inside)
    trace = lambda f, t: jnp.trace(ntk_jax.empirical_ntk(f, params, {"t": t}))
    scale = jnp.sqrt(trace(residual, inside) / trace(value, ends))  # of the ends' share
    both = lambda p, x: jnp.where(x["end"], scale * value(p, x), residual(p, x))
    x = {"t": jnp.append(ends, inside), "end": jnp.arange(66) < 2}
    adam = optax.adam(optax.cosine_decay_schedule(1e-2, steps))
    y = jnp.append(jnp.zeros(2), source)
    trained = ntk_jax.train(both, params, x, y, optimizer=adam, num_steps=steps, progress=False)
    return jnp.max(jnp.abs(value(trained.params, {"t": inside}) - jnp.sin(4 * jnp.pi * inside)))


@pytest.mark.slow
def test_a_pinn_with_adaptive_weights_finds_the_solution():
    assert pinn(4000) < 0.02


def nodes(features, adjacency, labels, known):
    """Labels of the other nodes of one graph, from the kernel of all pairs of its nodes."""
    mixing = adjacency + np.eye(len(adjacency))
    x = (features[None], (mixing / mixing.sum(1)[:, None])[None])
    rng = np.random.default_rng(0)
    params = {"W": rng.standard_normal((features.shape[1], 256)), "V": rng.standard_normal(256)}

    def gcn(p, x):
        hidden = jax.nn.relu(x[1] @ x[0] @ p["W"] / x[0].shape[-1] ** 0.5)
        return x[1] @ hidden @ p["V"] / 16

    k = ntk_jax.empirical_ntk(gcn, params, x, outputs="full")[0, 0]
    fit = ntk_jax.kernel_regression(k[known][:, known], labels[known], k[:, known], diag_reg=1e-2)
    return jnp.sign(fit.test)


def test_a_graph_network_labels_nodes_from_a_few():
    rng = np.random.default_rng(1)
    labels = np.repeat([-1.0, 1.0], 40)
    linked = rng.random((80, 80)) < np.where(labels[:, None] == labels, 0.2, 0.03)
    adjacency = np.triu(linked, 1) + np.triu(linked, 1).T
    features = rng.standard_normal((80, 16)) + 0.3 * labels[:, None]
    found = nodes(features, adjacency.astype(float), labels, np.arange(0, 80, 10))
    assert np.mean(found == labels) > 0.9


class Reader(nn.Module):
    """One block of attention over tokens, of which a mask hides some."""

    @nn.compact
    def __call__(self, batch):
        tokens, mask = batch["tokens"], batch["mask"]
        h = nn.Embed(12, 16, param_dtype=float)(tokens)
        seen = nn.make_attention_mask(mask, mask)
        h += nn.MultiHeadDotProductAttention(num_heads=2, param_dtype=float)(h, mask=seen)
        mean = (h * mask[..., None]).sum(1) / mask.sum(1)[:, None]
        return nn.Dense(1, param_dtype=float)(mean)


def sentences(train, y, test):
    """Signs of test sentences from the kernel of a BERT-like model with tokens and masks."""
    model = Reader()
    variables = model.init(jax.random.key(0), train)
    apply_fn, params = ntk_jax.from_linen(model, variables)
    features = ntk_jax.tangent_features(apply_fn, params, train)
    k = ntk_jax.contract(features)
    k_test = ntk_jax.contract(ntk_jax.tangent_features(apply_fn, params, test), features)
    out = ntk_jax.gradient_descent("hinge", k, y, 400, 1.0, k_test_train=k_test)
    return jnp.sign(out.test)


def test_sentences_with_masks_are_told_apart():
    rng = np.random.default_rng(0)
    length = rng.integers(4, 9, 120)
    mask = (np.arange(8) < length[:, None]).astype(np.int32)
    tokens = rng.integers(0, 12, (120, 8))
    y = np.where((mask * (tokens < 6)).sum(1) * 2 >= length, 1.0, -1.0)[:, None]
    part = lambda rows, t: {"tokens": t[rows], "mask": mask[rows]}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = sentences(part(np.s_[:90], tokens), y[:90], part(np.s_[90:], tokens))
        assert np.mean(found == y[90:]) > 0.85


@pytest.mark.parametrize("job", [pinn, nodes, sentences])
def test_no_job_is_long(job):
    lines = inspect.getsource(job).splitlines()[2:]
    assert sum(bool(line.strip()) for line in lines) <= 15
