"""The networks as ordinary Flax models: the same file runs on the peer's old JAX and on the
newest.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peer_processes.problems import B_STD, LIMITS, W_STD, Problem, examples


class MLP(nn.Module):
    """Hidden layers of equal width, ReLU."""

    width: int
    depth: int
    outputs: int

    @nn.compact
    def __call__(self, x):
        """(n, d) -> (n, outputs)."""
        for _ in range(self.depth):
            x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(self.outputs)(x)


class CNN(nn.Module):
    """Three 3 x 3 convolutions, two of them with stride 2, global mean, readout."""

    width: int
    outputs: int

    @nn.compact
    def __call__(self, x):
        """(n, h, w, 3) -> (n, outputs)."""
        for stride in (1, 2, 2):
            x = nn.relu(nn.Conv(self.width, (3, 3), strides=stride)(x))
        return nn.Dense(self.outputs)(x.mean((1, 2)))


class Block(nn.Module):
    """Two 3 x 3 convolutions and a skip, batch norm in evaluation mode."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x):
        """(n, h, w, c) -> (n, h / stride, w / stride, features)."""
        y = nn.Conv(self.features, (3, 3), strides=self.stride, use_bias=False)(x)
        y = nn.relu(nn.BatchNorm(use_running_average=True)(y))
        y = nn.BatchNorm(use_running_average=True)(
            nn.Conv(self.features, (3, 3), use_bias=False)(y)
        )
        if x.shape != y.shape:
            x = nn.Conv(self.features, (1, 1), strides=self.stride, use_bias=False)(x)
            x = nn.BatchNorm(use_running_average=True)(x)
        return nn.relu(x + y)


class ResNet18(nn.Module):
    """He et al. 2016, 11 million parameters."""

    outputs: int

    @nn.compact
    def __call__(self, x):
        """(n, h, w, 3) -> (n, outputs)."""
        x = nn.relu(
            nn.BatchNorm(use_running_average=True)(
                nn.Conv(64, (7, 7), strides=2, use_bias=False)(x)
            )
        )
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for stage in range(4):
            for block in range(2):
                x = Block(64 * 2**stage, 2 if stage and not block else 1)(x)
        return nn.Dense(self.outputs)(x.mean((1, 2)))


class LimitCNN(nn.Module):
    """`depth` 3 x 3 convolutions with ReLU, each with an average pool of 2 x 2 after it or none;
    flattened, readout.
    """

    width: int
    depth: int
    pools: bool

    @nn.compact
    def __call__(self, x):
        """(n, h, w, 3) -> (n, 1)."""
        for _ in range(self.depth):
            scales = _scales(9 * x.shape[-1])
            x = nn.relu(nn.Conv(self.width, (3, 3), **scales)(x))
            if self.pools:
                x = nn.avg_pool(x, (2, 2), (2, 2))
        x = x.reshape((x.shape[0], -1))
        return nn.Dense(1, **_scales(x.shape[-1]))(x)


def _scales(fan_in: int) -> dict[str, Any]:
    normal = nn.initializers.normal
    return {"kernel_init": normal(W_STD / fan_in**0.5), "bias_init": normal(B_STD)}


def model_of(p: Problem) -> nn.Module:
    """The module of a problem."""
    if p.kind in LIMITS:
        return LimitCNN(16, p.depth, p.kind == "limit_pool")
    if p.kind == "mlp":
        return MLP(p.width, p.depth, p.outputs)
    return CNN(p.width, p.outputs) if p.kind == "cnn" else ResNet18(p.outputs)


def shapes_of(p: Problem) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters by path."""
    leaves = jax.tree_util.tree_leaves_with_path(_variables(p)["params"])
    return {_name(path): leaf.shape for path, leaf in leaves}


def network(p: Problem, numbers: dict[str, np.ndarray]) -> tuple[Any, Any, jax.Array]:
    """`(apply_fn, params, x)` with the given numbers."""
    variables = dict(_variables(p))
    shapes = variables.pop("params")
    params = jax.tree_util.tree_map_with_path(
        lambda path, _: jnp.asarray(numbers[_name(path)]), shapes
    )
    # Running means are 0 and running variances 1.
    rest = jax.tree_util.tree_map_with_path(
        lambda path, s: jnp.full(s.shape, float(_name(path).endswith("var")), s.dtype), variables
    )
    model = model_of(p)
    return (
        (lambda params, x: model.apply({"params": params, **rest}, x)),
        params,
        jnp.asarray(examples(p)),
    )


def _variables(p: Problem) -> Any:
    return jax.eval_shape(
        model_of(p).init, jax.random.key(0), jnp.asarray(examples(p._replace(n=1)))
    )


def _name(path: Any) -> str:
    return "/".join(key.key for key in path)
