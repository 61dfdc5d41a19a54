"""From what users pass as a model to an initializer and a function of parameters and examples."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax import nnx

from ntk_jax.compat import outside_traces
from ntk_jax.networks import from_linen, from_nnx


class Network(NamedTuple):
    """`init_fn(key, x)` -> params, or None if only their shapes are known; `build(x)` -> (apply_fn, params or their shapes)."""

    init_fn: Callable[[Any, Any], Any] | None
    build: Callable[[Any], tuple[Callable[..., Any], Any]]


def network(model: Any, call: Mapping[str, Any]) -> Network:
    """The network of a Linen module, an NNX module, a function that makes one from `rngs`, or an (init_fn, apply_fn) pair.

    Raises:
        ValueError: something else.
    """
    if isinstance(model, nn.Module):
        return _linen(model, call)
    if isinstance(model, nnx.Module):
        apply_fn, params = from_nnx(model, **call)
        return Network(None, lambda x: (apply_fn, params))
    if isinstance(model, tuple) and len(model) == 2 and all(map(callable, model)):
        init_fn, apply_fn = model
        return Network(
            lambda key, x: init_fn(key, x), lambda x: (lambda p, y: apply_fn(p, y, **call), _drawn(init_fn, x))
        )
    if callable(model):
        return _nnx_constructor(model, call)
    raise ValueError(
        "model: expected a Flax Linen module, an NNX module, a function rngs -> NNX module, or a pair (init_fn(key, x), "
        f"apply_fn(params, x)); got {type(model).__name__}."
    )


def _drawn(init_fn: Callable[..., Any], x: Any) -> Any:
    """Parameters of the right shapes and sizes: only the check that rows do not depend on each other looks at them."""
    shapes = jax.eval_shape(init_fn, jax.random.key(0), x)
    rng = np.random.default_rng(0)

    def draw(s):
        fan_in = s.shape[-2] if len(s.shape) > 1 else 1
        return (rng.standard_normal(s.shape) / fan_in**0.5).astype(s.dtype)

    return jax.tree.map(draw, shapes)


def _linen(model: nn.Module, call: Mapping[str, Any]) -> Network:
    def init(key, x):
        return model.init(key, x, **call)

    def build(x):
        shapes = jax.eval_shape(init, jax.random.key(0), x)
        variables = {"params": _drawn(lambda key, x: init(key, x)["params"], x)} if "params" in shapes else {}
        if others := [name for name in shapes if name != "params"]:
            fixed = jax.jit(lambda: {name: init(jax.random.key(0), x)[name] for name in others})
            variables |= outside_traces(fixed)
        return from_linen(model, variables, **call)

    return Network(lambda key, x: init(key, x)["params"], build)


def _nnx_constructor(make: Callable[..., Any], call: Mapping[str, Any]) -> Network:
    def init(key, x):
        return nnx.state(make(rngs=nnx.Rngs(key)), nnx.Param).to_pure_dict()

    def build(x):
        def evaluated():
            module = make(rngs=nnx.Rngs(0))
            module.eval()
            return module

        return from_nnx(outside_traces(evaluated), **call)

    return Network(init, build)
