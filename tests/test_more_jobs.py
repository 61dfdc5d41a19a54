"""More jobs that people bring: attribution, graphs, a vision transformer, tables, many rows.

Each takes at most 15 lines of their code (`test_jobs.py` counts).
"""

from contextlib import nullcontext
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_digits
from sklearn.model_selection import cross_val_score

import ntk_jax
from cases.compilations import optimized
from ntk_jax.estimators import NTKRegressor

SCALES = {"W_std": 2**0.5, "b_std": 0.1, "kernels": "ntk"}


@pytest.fixture
def lenient():
    """Flax's layers and users' code promote ranks and dtypes."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def digits(n):
    x, labels = load_digits(return_X_y=True)
    return x[:n].astype(np.float32) / 16, labels[:n].copy()


def attribution(x, labels, x_test):
    """Training examples by how much the others contradict them; how each moves test outputs."""
    ntk = partial(ntk_jax.mlp_kernels, depth=2, **SCALES)
    modes = ntk_jax.diagonalize(ntk(x))
    y = np.eye(10, dtype=x.dtype)[labels]
    left_out = ntk_jax.leave_one_out(modes, y, diag_reg=0.1, k_test_train=ntk(x_test, x))
    suspects = np.argsort(left_out.predictions[np.arange(len(x)), labels])
    return suspects, left_out.test_change


def test_attribution_finds_wrong_labels_and_what_moves_a_prediction():
    rng, (x, labels) = np.random.default_rng(0), digits(310)
    x, x_test, right = x[:300].astype(float), x[300:].astype(float), labels[:300]
    labels = right.copy()
    wrong = rng.choice(300, 15, replace=False)
    labels[wrong] = (labels[wrong] + rng.integers(1, 10, 15)) % 10
    suspects, change = attribution(x, labels, x_test)
    assert len(set(suspects[:15].tolist()) & set(wrong.tolist())) >= 13
    first = int(np.argmax(np.linalg.norm(change[:, 0], axis=1)))
    k, k_test = (
        np.asarray(ntk_jax.mlp_kernels(*rows, depth=2, **SCALES)) for rows in ((x,), (x_test, x))
    )
    fit = lambda rows: (
        k_test[:, rows]
        @ np.linalg.solve(k[np.ix_(rows, rows)] + 0.1 * np.eye(len(rows)), np.eye(10)[labels[rows]])
    )
    moved = fit(np.delete(np.arange(300), first)) - fit(np.arange(300))
    np.testing.assert_allclose(change[first], moved, atol=1e-9)


class GCN(nn.Module):
    """Graph convolutions; one output per node, or one of their mean."""

    by_node: bool

    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Dense(64, param_dtype=float)(x["mixing"] @ x["nodes"]))
        h = x["mixing"] @ h
        return nn.Dense(1, param_dtype=float)(h if self.by_node else h.mean(1))


def label_nodes(nodes, adjacency, labels, known):
    """Labels of the other nodes of one graph, by the kernel of all pairs of its nodes."""
    mixing = adjacency + np.eye(len(adjacency))
    x = {"mixing": (mixing / mixing.sum(1)[:, None])[None], "nodes": nodes[None]}
    kernel_fn = ntk_jax.infinite_width(GCN(by_node=True), kernels="ntk", positions="full")
    k = kernel_fn(x)[0, 0]
    fit = ntk_jax.kernel_regression(k[known][:, known], labels[known], k[:, known], diag_reg=0.1)
    return jnp.sign(fit.test)


def test_a_kernel_of_nodes_labels_them_from_a_few(lenient):
    rng, labels = np.random.default_rng(1), np.repeat([-1.0, 1.0], 30)
    linked = rng.random((60, 60)) < np.where(labels[:, None] == labels, 0.2, 0.03)
    adjacency = (np.triu(linked, 1) + np.triu(linked, 1).T).astype(float)
    nodes = rng.standard_normal((60, 16)) + 0.4 * labels[:, None]
    found = label_nodes(nodes, adjacency, labels, np.arange(0, 60, 10))
    assert np.mean(found == labels) > 0.9


def classify_graphs(adjacency, labels, num_train):
    """Labels of the last graphs, by the kernel of graphs whose nodes know how many they meet."""
    mixing = adjacency + np.eye(adjacency.shape[-1])
    degree = mixing.sum(2, keepdims=True)
    x = {"mixing": mixing / degree, "nodes": np.concatenate([degree, np.ones_like(degree)], 2)}
    k = ntk_jax.infinite_width(GCN(by_node=False), kernels="ntk")(x)
    train, test = np.s_[:num_train], np.s_[num_train:]
    fit = ntk_jax.kernel_regression(k[train, train], labels[train], k[test, train], diag_reg=1e-3)
    return jnp.sign(fit.test)


@pytest.mark.slow
def test_a_kernel_of_graphs_tells_hubs_from_chance(lenient):
    rng, labels = np.random.default_rng(2), np.tile([-1.0, 1.0], 40)
    weights = np.where(labels[:, None] > 0, (np.arange(9) < 2) * 0.7 + 0.1, 0.28)
    chance = np.maximum(weights[:, :, None], weights[:, None])
    upper = np.triu(rng.random((80, 9, 9)) < chance, 1)
    found = classify_graphs((upper + upper.swapaxes(1, 2)).astype(float), labels, 50)
    assert np.mean(found == labels[50:]) > 0.8


class ViT(nn.Module):
    """A vision transformer of one block, whose queries are its keys, with scores over the width."""

    width: int = 64

    @nn.compact
    def __call__(self, x):
        dense = lambda z: nn.Dense(self.width)(z)
        h = nn.Conv(self.width, (4, 4), (4, 4))(x).reshape(len(x), -1, self.width)
        place = nn.initializers.normal(0.5)
        h += self.param("place", place, h.shape[1:])
        z = nn.LayerNorm()(h)
        q, v = dense(z), dense(z)
        h += dense(nn.softmax(4 * q @ q.swapaxes(1, 2) / self.width) @ v)
        h += dense(nn.gelu(dense(nn.LayerNorm()(h))))
        return nn.Dense(10)(nn.LayerNorm()(h).mean(1))


def vision_transformer(images, labels, num_train):
    """Classes of the last images, by the kernel of an infinitely wide vision transformer."""
    k = ntk_jax.infinite_width(ViT(), kernels="ntk")(images)
    train, test = np.s_[:num_train], np.s_[num_train:]
    y = np.eye(10, dtype=images.dtype)[labels[train]] - 0.1
    ridge = ntk_jax.select_diag_reg(ntk_jax.diagonalize(k[train, train]), y).diag_reg
    fit = ntk_jax.kernel_regression(k[train, train], y, k[test, train], diag_reg=ridge)
    return np.argmax(fit.test, axis=1)


@pytest.mark.slow
def test_a_vision_transformer_reads_digits(lenient):
    x, labels = digits(160)
    found = vision_transformer(x.reshape(-1, 8, 8, 1), labels, 120)
    assert np.mean(found == labels[120:]) > 0.75


def tabular(x, y, folds):
    """R² of rows that no fit saw; depth, scales and ridge are chosen inside of each fold."""
    return cross_val_score(NTKRegressor(), x, y, cv=folds)


@pytest.mark.slow
def test_a_table_is_cross_validated(lenient):
    assert tabular(*load_diabetes(return_X_y=True), 3).mean() > 0.42


def many_rows(x, y, x_test, storage):
    """Regression by products alone: the kernel is held, or computed anew for each, tile by tile."""
    ntk = partial(ntk_jax.mlp_kernels, depth=1, **SCALES)
    op = ntk_jax.kernel_operator(ntk, x, storage=storage)
    op_test = ntk_jax.kernel_operator(ntk, x_test, x, storage="recompute")
    return ntk_jax.kernel_regression(op, y, op_test, diag_reg=1.0).test


@pytest.mark.parametrize(("n", "storage"), [(400, "recompute"), (20_000, "memory")])
def test_regression_on_many_rows(n, storage):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((n + 200, 6)).astype(np.float32)
    y = np.sin(x[:, 0]) * x[:, 1]
    with optimized(True) if n > 1000 else nullcontext():  # 200 million pairs
        found = many_rows(x[:n], y[:n], x[n:], storage)
    error = np.mean((found - y[n:]) ** 2) / np.var(y)
    assert error < (0.05 if n > 1000 else 0.15)


JOBS = [attribution, label_nodes, classify_graphs, vision_transformer, tabular, many_rows]
