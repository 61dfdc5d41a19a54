"""From what users pass as a model to an initializer and a function of parameters and examples."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.random import define_prng_impl

from ntk_jax.compat import NnxModule, flax_modules, is_concrete, nnx, outside_traces
from ntk_jax.examples import Examples
from ntk_jax.initializers.interpreter import any_key
from ntk_jax.networks.adapters import from_linen, from_nnx
from ntk_jax.types import ApplyFn, Params


class Network(NamedTuple):
    """`init_fn(key, x)` -> params, or None if only their shapes are known; `build(x)` -> (apply_fn,
    params or their shapes); `content`: what it was made from, to be compared.
    """

    init_fn: Callable[[Array, Examples], Params] | None
    build: Callable[[Examples], tuple[ApplyFn, Params]]
    content: object


def network(
    model: Any, call: Mapping[str, Any], *, with_dropout: bool = False, batch_coupled: bool = False
) -> Network:
    """The network of what `infinite_width` takes as a model.

    With dropout its random numbers are drawn, from keys whose bits are all 0: masks that keep
    everything when evaluated. Of a coupled batch it may update statistics, and takes those of the
    batch itself.

    Raises:
        ValueError: something else.
    """
    if isinstance(model, nn.Module):
        return _linen(model, call, {"dropout": zero_key} if with_dropout else {}, batch_coupled)
    if isinstance(model, flax_modules("nnx")):
        module = _dropping(model, batch_coupled) if with_dropout else model
        apply_fn, params = from_nnx(module, **call)
        return Network(None, lambda x: (apply_fn, params), _by_content(model))
    if isinstance(model, tuple) and len(model) == 2 and all(map(callable, model)):
        init_fn, apply_fn = model
        return Network(
            lambda key, x: init_fn(key, x),
            lambda x: (
                lambda p, y: apply_fn(p, y, **call),
                _drawn(jax.eval_shape(init_fn, any_key(), x)),
            ),
            model,
        )
    if callable(model):
        return _nnx_constructor(model, call, with_dropout, batch_coupled)
    raise ValueError(
        "model: expected a Flax Linen module, an NNX module, a function rngs -> NNX module, or a "
        f"pair (init_fn(key, x), apply_fn(params, x)); got {type(model).__name__}."
    )


def _drawn(shapes: Params) -> Params:
    """Parameters of these shapes and the right sizes: only the check that rows do not depend on
    each other looks at them.
    """
    # By NumPy, for which nothing is compiled.
    rng = np.random.default_rng(0)

    def draw(s: jax.ShapeDtypeStruct) -> np.ndarray | np.floating:
        fan_in = s.shape[-2] if len(s.shape) > 1 else 1
        return (rng.standard_normal(s.shape) / fan_in**0.5).astype(s.dtype)

    return jax.tree.map(draw, shapes)


def _linen(
    model: nn.Module,
    call: Mapping[str, Any],
    keys: Mapping[str, Callable[[], Array]],
    updates: bool,
) -> Network:
    @jax.jit  # traced once: for the shapes, and for the laws of the parameters
    def init(key: Array, x: Examples) -> Params:
        return model.init(key, x, **call)

    def build(x: Examples) -> tuple[ApplyFn, Params]:
        shapes = jax.eval_shape(init, any_key(), x)
        variables = {"params": _drawn(shapes["params"])} if "params" in shapes else {}
        if others := [name for name in shapes if name != "params"]:
            draw = jax.jit(lambda: {name: init(jax.random.key(0), x)[name] for name in others})
            variables |= outside_traces(draw)
        mutable = tuple(others) if updates else False
        apply_fn, params = from_linen(model, variables, mutable=mutable, **call)
        if not keys:
            return apply_fn, params
        fixed = {name: value for name, value in variables.items() if name != "params"}

        def with_keys(params: Params, x: Examples) -> Any:
            rngs = {name: key() for name, key in keys.items()}
            out = model.apply({"params": params, **fixed}, x, mutable=mutable, rngs=rngs, **call)
            return out[0] if updates else out

        return with_keys, params

    return Network(lambda key, x: init(key, x)["params"], build, model)


def _nnx_constructor(
    make: Callable[..., Any], call: Mapping[str, Any], with_dropout: bool, updates: bool
) -> Network:
    def init(key: Array, x: Examples) -> Params:
        return nnx().state(make(rngs=nnx().Rngs(key)), nnx().Param).to_pure_dict()

    def build(x: Examples) -> tuple[ApplyFn, Params]:
        def evaluated() -> Any:
            module = make(rngs=nnx().Rngs(0))
            module.eval()
            if updates:
                module.set_attributes(use_running_average=False, raise_if_not_found=False)
            return _dropping(module, updates) if with_dropout else module

        return from_nnx(outside_traces(evaluated), **call)

    return Network(init, build, make)


def _by_content(module: NnxModule) -> NnxModule:
    """A copy that holds no arrays: shapes of parameters, bytes of everything else."""
    graph, *states = nnx().split(module, nnx().Param, ...)
    params, rest = states
    shape = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype)

    def content(a: Array) -> object:
        if not is_concrete(a):
            return a
        is_key = jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
        values = np.asarray(jax.random.key_data(a) if is_key else a)
        return str(a.dtype), values.shape, values.tobytes()

    return nnx().merge(graph, jax.tree.map(shape, params), jax.tree.map(content, rest))


def _zero_bits(key: Array, bit_width: int, shape: tuple[int, ...]) -> Array:
    return jnp.zeros(shape, f"uint{bit_width}")


ZEROS = "zero_bits"
_ZEROS = define_prng_impl(
    key_shape=(1,),
    seed=lambda seed: jnp.zeros((1,), np.uint32),
    split=lambda key, shape: jnp.zeros((*shape, 1), np.uint32),
    random_bits=_zero_bits,
    fold_in=lambda key, data: key,
    name="ntk_jax_zero_bits",
    tag=ZEROS,
)


def zero_key() -> Array:
    """A random key whose bits are all 0: uniform numbers are 0, and masks keep everything."""
    return jax.random.key(0, impl=_ZEROS)


def is_sampled_key(dtype: Any) -> bool:
    """Whether random keys of this dtype are those over whose numbers a mean is taken; numbers of
    any other key are constants.
    """
    return str(dtype) == f"key<{ZEROS}>"


def _dropping(module: NnxModule, updates: bool) -> NnxModule:
    """A copy of a module with dropout turned on and keys of zero bits, in evaluation mode unless it
    updates statistics of its batch.
    """
    graph, state = nnx().split(module)
    is_key = lambda a: jnp.issubdtype(getattr(a, "dtype", np.float32), jax.dtypes.prng_key)
    copy = nnx().merge(graph, jax.tree.map(lambda a: zero_key() if is_key(a) else a, state))
    if not updates:
        copy.eval()
    copy.set_attributes(deterministic=False, raise_if_not_found=False)
    return copy
