"""Networks whose examples are no single array: dicts, tuples, nested ones, with integer leaves.

Each case is a function `seed -> (apply_fn, params, x)` in float64 with `N` examples.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

N = 4
Made = tuple[Callable[[Any, Any], Array], Any, Any]


class Graph(NamedTuple):
    """Features of the nodes of a graph (n, 3, d), and its adjacency (n, 3, 3), 0 or 1."""

    nodes: Any
    adjacency: Any


def _drawn(rng: np.random.Generator, shapes: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    return {name: jax.device_put(0.6 * rng.standard_normal(s)) for name, s in shapes.items()}


def tokens_and_mask(seed: int) -> Made:
    """A dict of tokens, mask and lengths: embedded, averaged where the mask is 1, and read out."""
    rng = np.random.default_rng(seed)
    params = _drawn(rng, {"embed": (7, 4), "hidden": (4, 5), "out": (5, 2)})

    def apply_fn(p: Any, x: Any) -> Array:
        mask = x["mask"].astype(p["embed"].dtype)
        h = jnp.tanh(p["embed"][x["tokens"]] @ p["hidden"])
        mean = jnp.sum(h * mask[..., None], axis=1) / mask.sum(1)[:, None]
        return (mean + 0.1 * x["weight"][:, None]) @ p["out"]

    tokens = rng.integers(0, 7, (N, 6))
    mask = (np.arange(6)[None] < np.array([6, 3, 2, 5])[:, None]).astype(np.int32)
    x = {"tokens": tokens, "mask": mask, "weight": rng.standard_normal(N)}
    return apply_fn, params, jax.tree.map(jax.device_put, x)


def branch_and_trunk(seed: int) -> Made:
    """A DeepONet: a tuple of two arrays of equal shape, which must not be stacked."""
    rng = np.random.default_rng(seed)
    params = _drawn(rng, {"branch": (3, 4), "trunk": (3, 4), "b": (4,)})

    def apply_fn(p: Any, x: Any) -> Array:
        branch = jnp.tanh(x[0] @ p["branch"] + p["b"][None])
        return jnp.sum(branch * jnp.sin(x[1] @ p["trunk"]), axis=1)

    x = rng.standard_normal((N, 3)), rng.standard_normal((N, 3))
    return apply_fn, params, jax.tree.map(jax.device_put, x)


def graph(seed: int) -> Made:
    """A graph convolution on a NamedTuple, with outputs at every node."""
    rng = np.random.default_rng(seed)
    params = _drawn(rng, {"W": (2, 5), "V": (5, 2)})

    def apply_fn(p: Any, x: Any) -> Array:
        mixing = x.adjacency.astype(x.nodes.dtype)
        h = jnp.tanh(mixing @ (x.nodes @ p["W"]))
        return mixing @ (h @ p["V"])

    links = rng.integers(0, 2, (N, 3, 3)).astype(np.int32)
    x = Graph(rng.standard_normal((N, 3, 2)), links | links.transpose(0, 2, 1))
    return apply_fn, params, jax.tree.map(jax.device_put, x)


def nested(seed: int) -> Made:
    """Dicts in tuples in dicts, booleans among them."""
    rng = np.random.default_rng(seed)
    params = _drawn(rng, {"W": (2, 3), "V": (3, 3), "c": (3,)})

    def apply_fn(p: Any, x: Any) -> Array:
        (first, second), flag = x["pair"], x["more"]["flag"]
        h = jnp.tanh(first["a"] @ p["W"] + second @ p["V"])
        return jnp.where(flag[:, None], h * p["c"][None], h)

    flag = np.array([True, False, True, True])
    pair = ({"a": rng.standard_normal((N, 2))}, rng.standard_normal((N, 3)))
    return apply_fn, params, jax.tree.map(jax.device_put, {"pair": pair, "more": {"flag": flag}})


CASES: dict[str, Callable[[int], Made]] = {
    "tokens_and_mask": tokens_and_mask,
    "branch_and_trunk": branch_and_trunk,
    "graph": graph,
    "nested": nested,
}
