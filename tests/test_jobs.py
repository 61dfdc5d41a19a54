"""Jobs that people bring, each in at most 15 lines of their code (`test_no_job_is_long` counts)."""

import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits
from test_more_jobs import JOBS as MORE_JOBS

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


class Cell(nn.Module):
    """A cell of NAS-Bench-201: each of six edges is one of four operations, as `arch` says."""

    @nn.compact
    def __call__(self, batch):
        edges = iter(batch["arch"][0])
        norm = lambda h: nn.BatchNorm(use_running_average=False)(h)
        conv = lambda h, size: norm(nn.Conv(4, (size, size), use_bias=False)(nn.relu(h)))
        ways = lambda h: (h, conv(h, 1), conv(h, 3), nn.avg_pool(h, (3, 3), padding="SAME"))
        nodes = [norm(nn.Conv(4, (3, 3), use_bias=False)(batch["image"]))]
        for _ in range(3):
            nodes.append(sum(jnp.tensordot(next(edges), jnp.stack(ways(h)), 1) for h in nodes))
        return nn.Dense(1)(nodes[-1].mean((1, 2)))


def te_nas(images, num_cells):
    """TE-NAS's score of random cells, untrained: the condition number in training mode."""
    n, rng = len(images), np.random.default_rng(0)
    cells = np.eye(4, dtype=images.dtype)[rng.integers(0, 4, (num_cells, 6))]
    # A cell is part of the batch, so that all of them share one program.
    batches = [{"image": images, "arch": np.broadcast_to(c, (n, 6, 4))} for c in cells]
    variables = jax.jit(Cell().init)(jax.random.key(0), batches[0])
    apply_fn, params = ntk_jax.from_linen(Cell(), variables, mutable=["batch_stats"])
    ntk = lambda batch: ntk_jax.empirical_ntk(apply_fn, params, batch, batch_coupled=True)
    return [float(ntk_jax.definiteness(ntk(b)).condition_number) for b in batches]


@pytest.mark.slow
@pytest.mark.parametrize("n", [32, 64])
def test_cells_are_scored_before_they_are_trained(n):
    images = np.random.default_rng(1).standard_normal((n, 4, 4, 3)).astype(np.float32)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        scores = te_nas(images, 20)
    # Some cells learn some directions so slowly that float32 cannot tell them from never.
    finite = np.isfinite(scores)
    assert len(scores) == 20 and finite.sum() >= 15 and np.min(scores) >= 1
    assert np.max(np.array(scores)[finite]) > 3 * np.min(scores)  # they tell cells apart


def ground_state(spins, flipped, bonds, steps):
    """The energy of an Ising ring in a transverse field by minSR: a complex network, sampled."""
    rng, (num_states, num_spins) = np.random.default_rng(0), spins.shape
    W = 0.1 * rng.normal(size=(num_spins, 2 * num_spins, 2)) @ np.array([1, 1j])
    log_psi = lambda W, s: jnp.log(jnp.cosh(s @ W)).sum(1)
    for _ in range(steps):
        log = np.asarray(log_psi(W, spins))
        p = np.exp(2 * (log.real - log.real.max()))
        p, local = p / p.sum(), bonds - np.exp(log[flipped] - log[:, None]).sum(1)
        s = rng.choice(num_states, 200, p=p)
        k = ntk_jax.empirical_ntk(log_psi, W, spins[s], center=True)
        step = jnp.linalg.solve(k + 0.2 * np.eye(200), local[s] - local[s].mean())
        (gradient, _) = jax.vjp(log_psi, W, spins[s])[1](step.conj())
        W = W - 0.4 * gradient.conj()
    return (p @ local).real


@pytest.mark.slow
def test_min_sr_finds_the_ground_state_of_a_spin_chain():
    states, at = np.arange(256), np.arange(8)
    spins = 1.0 - 2 * (states[:, None] >> at & 1)
    flipped, bonds = states[:, None] ^ 1 << at, -(spins * np.roll(spins, 1, 1)).sum(1)
    hamiltonian = np.diag(bonds)
    hamiltonian[states[:, None], flipped] -= 1.0
    exact = np.linalg.eigvalsh(hamiltonian)[0]
    with jax.numpy_dtype_promotion("standard"):
        assert abs(ground_state(spins, flipped, bonds, 60) / exact - 1) < 1e-3


def distilled(x, y, few, steps):
    """Ten images and their targets, learned so that regression on them is right about all of x."""
    ntk = lambda a, b=None: ntk_jax.mlp_kernels(a, b, depth=1, W_std=2**0.5, b_std=0.1).ntk
    predict = lambda few, x: (
        ntk_jax.kernel_regression(ntk(few["x"]), few["y"], ntk(x, few["x"]), diag_reg=1e-3).test
    )
    loss = lambda few: jnp.mean((predict(few, x) - y) ** 2)
    adam = optax.adam(optax.cosine_decay_schedule(0.1, steps))

    @jax.jit
    def step(few, state):
        updates, state = adam.update(jax.grad(loss)(few), state)
        return optax.apply_updates(few, updates), state

    state = adam.init(few)
    for _ in range(steps):
        few, state = step(few, state)
    return few, predict


@pytest.mark.slow
def test_ten_images_stand_for_a_data_set():
    x, labels, x_test, labels_test = digits()
    y = np.eye(10, dtype=np.float32) - 0.1
    few = {"x": x[np.array([np.argmax(labels == digit) for digit in range(10)])], "y": y}
    accuracy = lambda out: np.mean(np.argmax(out, 1) == labels_test)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        learned, predict = distilled(x, y[labels], jax.tree.map(jnp.asarray, few), 500)
        assert accuracy(predict(few, x_test)) < 0.7
        assert accuracy(predict(learned, x_test)) > 0.95


def digits():
    x, labels = load_digits(return_X_y=True)
    rows = np.random.default_rng(0).permutation(len(x))
    x, labels = x[rows].astype(np.float32) / 16, labels[rows]
    return x[:1400], labels[:1400], x[1400:], labels[1400:]


def fine_tuned(x, y, x_new, y_new, x_test):
    """Outputs of a trained network before and after it is fine-tuned in its tangent space."""
    model = ntk_jax.MLP((128,), 10, W_std=2**0.5)
    apply_fn, params = ntk_jax.from_linen(model, model.init(jax.random.key(0), x))
    how = {"optimizer": optax.adam(1e-2), "num_steps": 200, "progress": False}
    params = ntk_jax.train(apply_fn, params, x, y, **how).params
    features = ntk_jax.tangent_features(apply_fn, params, x_new)
    k_test = ntk_jax.contract(ntk_jax.tangent_features(apply_fn, params, x_test), features)
    modes = ntk_jax.diagonalize(ntk_jax.contract(features))
    start = {"fx_train_0": apply_fn(params, x_new), "fx_test_0": apply_fn(params, x_test)}
    tuned = ntk_jax.gradient_flow_mse(modes, y_new, 1e4, k_test_train=k_test, **start)
    return start["fx_test_0"], tuned.test


@pytest.mark.slow
def test_a_network_is_fine_tuned_to_shifted_images():
    x, labels, x_test, labels_test = digits()
    shifted = lambda x: np.roll(x.reshape(-1, 8, 8), 1, 2).reshape(-1, 64)
    y = np.eye(10, dtype=np.float32)[labels]
    outs = fine_tuned(x[:600], y[:600], shifted(x[600:800]), y[600:800], shifted(x_test))
    before, after = (np.mean(np.argmax(out, 1) == labels_test) for out in outs)
    assert before < 0.6 and after > 0.85


JOBS = [pinn, nodes, sentences, te_nas, ground_state, distilled, fine_tuned]


@pytest.mark.parametrize("job", [*JOBS, *MORE_JOBS])
def test_no_job_is_long(job):
    lines = inspect.getsource(job).splitlines()[2:]
    assert sum(bool(line.strip()) for line in lines) <= 15
