"""Networks of any kind as functions of parameters and examples, and what is made of functions."""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import flax.errors
import flax.linen as nn
import jax
from jax import Array

from ntk_jax.compat import NnxModule, nnx
from ntk_jax.examples import Examples
from ntk_jax.types import ApplyFn, Params


class TrainingModeError(ValueError):
    """The call of a model draws masks (`draws`), or updates statistics of its batch."""

    def __init__(self, model: nn.Module, *, draws: bool) -> None:
        self.draws = draws
        super().__init__(
            f"model: expected one whose call draws and updates nothing; got {type(model).__name__} "
            "in training mode, with batch statistics that change or dropout. Pass what its call "
            "takes to evaluate, for example from_linen(model, variables, train=False), or build it "
            "with use_running_average=True, deterministic=True. For statistics of the batch, which "
            "then is one example: from_linen(model, variables, mutable=['batch_stats']) and "
            "empirical_ntk(..., batch_coupled=True)."
        )


def from_linen(
    model: nn.Module,
    variables: Any,
    *args: Any,
    mutable: bool | str | Sequence[str] = False,
    **kwargs: Any,
) -> tuple[ApplyFn, Params]:
    """`(apply_fn, params)` of a Flax Linen model: every collection but "params" is held fixed.

    Further arguments go to the model's call after x: `from_linen(model, variables, train=False)`
    turns dropout off and makes batch normalization use its running averages. Updates of `mutable`
    collections are dropped: with `mutable=["batch_stats"], train=True` batch normalization uses its
    batch, and `empirical_ntk` needs `batch_coupled=True`.

    Args:
        model: a Linen module.
        variables: what `model.init(key, x)` returned: {"params": ..., other collections}.
        *args: of the call, after x.
        mutable: collections that the call may update, as in Flax's `apply`.
        **kwargs: of the call, such as `train=False`.

    Returns:
        `apply_fn(params, x)` = `model.apply({"params": params, ...}, x)`, `variables["params"]`.

    Example:
        >>> model, x = ntk_jax.MLP(widths=(8,)), jnp.ones((3, 4))
        >>> apply_fn, params = ntk_jax.from_linen(model, model.init(jax.random.key(0), x))
        >>> apply_fn(params, x).shape
        (3, 1)

    Raises:
        ValueError: `variables` has no "params" collection; of `apply_fn`: the model is in training
            mode.
    """
    if "params" not in variables:
        raise ValueError(
            "variables: expected the result of model.init, with a 'params' collection; got "
            f"{sorted(variables)}. If these are the parameters themselves, pass "
            "{'params': params}."
        )
    fixed = {name: value for name, value in variables.items() if name != "params"}
    mutable = mutable if isinstance(mutable, bool | str) else tuple(mutable)
    return partial(_apply_linen, model, fixed, args, kwargs, mutable), variables["params"]


def _apply_linen(
    model: nn.Module,
    fixed: Any,
    args: tuple[object, ...],
    kwargs: Any,
    mutable: bool | str | tuple[str, ...],
    params: Params,
    x: Examples,
) -> Array:
    """The model as a function: at the top of a module, so that it can be pickled."""
    names = list(mutable) if isinstance(mutable, tuple) else mutable
    try:
        out = model.apply({"params": params, **fixed}, x, *args, mutable=names, **kwargs)
        return cast(Array, out if names is False else out[0])
    except (flax.errors.ModifyScopeVariableError, flax.errors.InvalidRngError) as error:
        draws = isinstance(error, flax.errors.InvalidRngError)
        raise TrainingModeError(model, draws=draws) from error


def from_nnx(module: NnxModule, *args: Any, **kwargs: Any) -> tuple[ApplyFn, Params]:
    """`(apply_fn, params)` of a Flax NNX module: all state but its `nnx.Param`s is held fixed.

    Call `module.eval()` first: it turns dropout off and makes batch normalization use its running
    averages. Further arguments go to the module's call after x. The module itself is neither
    changed nor kept up to date.

    Args:
        module: an NNX module.
        *args: of the call, after x.
        mutable: collections that the call may update, as in Flax's `apply`.
        **kwargs: of the call.

    Returns:
        `apply_fn(params, x)` = `module(x)` with these parameters, and `params`: its `nnx.Param`s as
        nested dictionaries.

    Example:
        >>> from flax import nnx
        >>> apply_fn, params = ntk_jax.from_nnx(nnx.Linear(4, 2, rngs=nnx.Rngs(0)))
        >>> apply_fn(params, jnp.ones((3, 4))).shape
        (3, 2)

    Raises:
        ValueError: the module has no parameters.
    """
    graphdef, *states = nnx().split(module, nnx().Param, ...)
    state, rest = states
    structure, params = jax.tree.structure(state), state.to_pure_dict()
    if not jax.tree.leaves(params):
        raise ValueError(
            f"module: expected one with nnx.Param variables; got {type(module).__name__} without "
            "any."
        )

    def apply_fn(params: Params, x: Examples) -> Array:
        state = jax.tree.unflatten(structure, jax.tree.leaves(params))
        fixed = jax.tree.map(lambda value: value, rest)  # calls may update statistics: a copy's
        return nnx().merge(graphdef, state, fixed)(x, *args, **kwargs)

    return apply_fn, params


def zero_output(apply_fn: ApplyFn, params_0: Params) -> ApplyFn:
    """The network minus itself at `params_0`, f(params, x) - f(params_0, x): 0 at initialization.

    The tangent kernel is unchanged.

    Args:
        apply_fn: `apply_fn(params, x)` -> f.
        params_0: parameters at initialization.

    Returns:
        `(params, x)` -> f(params, x) - f(params_0, x): an apply function.

    Example:
        >>> centred = ntk_jax.zero_output(lambda w, x: w * x, jnp.array(2.0))
        >>> [centred(jnp.array(w), jnp.ones(1)).tolist() for w in (2.0, 5.0)]
        [[0.0], [3.0]]

    Reference: Chizat, Oyallon, Bach 2019, section 1.2.
    """
    return partial(_apply_zero, apply_fn, params_0)


def _apply_zero(apply_fn: ApplyFn, params_0: Params, params: Params, x: Examples) -> Array:
    return apply_fn(params, x) - apply_fn(params_0, x)


def scale_output(apply_fn: ApplyFn, alpha: float | Array) -> ApplyFn:
    """The network times `alpha`: its tangent kernel is multiplied by alpha².

    Args:
        apply_fn: `apply_fn(params, x)` -> f.
        alpha: a number; training moves the weights the less, the larger it is.

    Returns:
        `(params, x)` -> alpha · f: an apply function.

    Example:
        >>> linear, x = lambda w, x: x @ w, jnp.ones((1, 3))
        >>> scaled = ntk_jax.scale_output(linear, 2.0)
        >>> ntk_jax.empirical_ntk(scaled, jnp.ones((3, 1)), x).tolist()  # 4 times x · x
        [[12.0]]

    Reference: Chizat, Oyallon, Bach 2019, eq. 1.
    """
    return partial(_apply_scaled, apply_fn, alpha)


def _apply_scaled(apply_fn: ApplyFn, alpha: float | Array, params: Params, x: Examples) -> Array:
    return alpha * apply_fn(params, x)
