"""From what users pass as a model to an initializer and a function of parameters and examples."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax import nnx

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
        return Network(lambda key, x: init_fn(key, x), lambda x: (lambda p, y: apply_fn(p, y, **call), _drawn(init_fn, x)))
    if callable(model):
        return _nnx_constructor(model, call)
    raise ValueError(
        "model: expected a Flax Linen module, an NNX module, a function rngs -> NNX module, or a pair (init_fn(key, x), "
        f"apply_fn(params, x)); got {type(model).__name__}."
    )


def _drawn(init_fn: Callable[..., Any], x: Any) -> Any:
    with jax.ensure_compile_time_eval():
        return jax.jit(init_fn)(jax.random.key(0), x)


def _linen(model: nn.Module, call: Mapping[str, Any]) -> Network:
    def init(key, x):
        return model.init(key, x, **call)

    def build(x):
        return from_linen(model, _drawn(init, x), **call)

    return Network(lambda key, x: init(key, x)["params"], build)


def _nnx_constructor(make: Callable[..., Any], call: Mapping[str, Any]) -> Network:
    def init(key, x):
        return nnx.state(make(rngs=nnx.Rngs(key)), nnx.Param).to_pure_dict()

    def build(x):
        with jax.ensure_compile_time_eval():
            module = make(rngs=nnx.Rngs(0))
        module.eval()
        return from_nnx(module, **call)

    return Network(init, build)
