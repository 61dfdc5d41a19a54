"""The kernels of any Flax model as its widths go to infinity: the front door."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_jax.checks import as_example_trees, check_integer, check_option, working_dtype
from ntk_jax.examples import Examples, as_batch, num_rows
from ntk_jax.infinite.flax.compiled_model import CompiledModel
from ntk_jax.infinite.flax.reading import LearningRates, Reading
from ntk_jax.infinite.flax.traced_model import Program
from ntk_jax.types import BOTH, WHICH, K, Kernels, Which


@overload
def infinite_width(
    model: object, *, kernels: Literal["both"] = "both", **options: object
) -> "LimitKernel[Kernels]": ...
@overload
def infinite_width(
    model: object, *, kernels: Literal["nngp", "ntk"], **options: object
) -> "LimitKernel[Array]": ...
def infinite_width(  # type: ignore[misc]  # the overloads name what decides about the result
    model: Any,
    *,
    init_stats: Mapping[str, tuple[float, float]] | None = None,
    learning_rates: LearningRates = None,
    call: Mapping[str, Any] | None = None,
    inner_products: str = "error",
    dropout: str = "error",
    memory_limit: int | None = None,
    num_samples: int | None = None,
    key: Array | None = None,
    kernels: str = "both",
    positions: str = "mean",
    batch_coupled: bool = False,
) -> "LimitKernel[Any]":
    """The NNGP and NTK of a model as it is written, in the limit of infinite width.

    The model is traced and read as a tensor program: an axis is infinitely wide exactly if it is
    the output axis of a product with a random weight. Means over such axes are numbers (so
    normalization layers need no rule of their own), and everything else is a covariance of
    Gaussians, followed backwards from the outputs. The limit is that of Gaussian weights: Flax's
    default initializer is a truncated normal, and differs from it in a first layer with few inputs.

    Example:
        >>> kernel_fn = ntk_jax.infinite_width(ntk_jax.MLP((64,), 1, "relu", 2**0.5))
        >>> kernels = kernel_fn(np.eye(2, dtype=np.float32))
        >>> print(round(float(kernels.nngp[0, 0]), 3), round(float(kernels.ntk[0, 0]), 3))
        1.0 2.0

    Args:
        model: a Flax Linen module; an NNX module (with `init_stats`), or a function `rngs ->
            module`, such as its class; or a pair `(init_fn(key, x) -> params, apply_fn(params,
            x))`.
        init_stats: (mean, variance) of one entry by parameter path, such as {"Dense_0/kernel":
            (0.0, 0.5)}, in place of what the initializers say.
        learning_rates: the learning-rate multiplier of each parameter in the NTK: None for 1
            (gradient descent on the model as written, at its own widths), "variance" for the
            variance of its entries (the "ntk" parameterization of the same model), or a function of
            its path and statistics; 0 freezes a parameter.
        call: keyword arguments of the model's call, such as {"train": False}.
        inner_products: "error" refuses inner products of wide vectors that are not divided by their
            width, "mean" takes their law of large numbers.
        dropout: "error" refuses random numbers of the model's own; "expectation" takes the mean
            over the masks of dropout that the model applies, each with its own mask for every
            example: turn it on by `call`, such as {"train": True} (an NNX module's dropout is
            turned on here). An example with itself, on the diagonal for x2=None and in the
            variances of all later layers, meets its own mask, and counts 1 / (1 - rate) times;
            different rows, equal or not, do not.
        memory_limit: bytes for temporary arrays; larger problems are done in tiles. None: a quarter
            of the free memory.
        num_samples: estimate what has no closed form (max pooling, other maxima over positions,
            attention with scores over the root of the width and infinitely many heads,
            nonlinearities after pooling, normalization by a batch) from this many samples of the
            Gaussians below it, at all positions of both examples of a pair. None refuses such
            models.
        key: a random key, for those samples.
        kernels: "both", or "nngp" or "ntk" for one of them, in half the memory.
        positions: of outputs at several (pixels, tokens, nodes): "mean" averages both kernels over
            equal positions, "full" keeps all pairs: (n1, n2, P, P), where P counts the positions
            of one example, all axes of an output but those of its units, in their order.
        batch_coupled: the rows of x depend on each other, as in batch normalization in training
            mode: they are one batch, and `kernel_fn(x)` is its kernel at these n rows, (n, n);
            rows of other batches do not meet them, so that there is no x2. Functions of their
            variance are sampled: see `num_samples`. Linen modules are told to use the batch, as in
            training (`use_running_average=False`, or through `call`); what they would update is
            dropped.

    Returns:
        `kernel_fn(x1, x2=None) -> Kernels(nngp, ntk)`, of arrays of examples, or of pytrees of them
        (see `empirical_ntk`), each (n1, n2) or (n1, n2, P, P), per output unit; or the one array
        that was asked for. With x2=None both are symmetric to the bit: so is k[i, j, p, q], which
        is k[j, i, q, p].

        With samples: all pairs share their normals, so that one key gives one kernel, continuous in
        the examples. But pairs are sampled one by one: of n examples the smallest eigenvalue can
        fall below 0 by about sqrt(n) times `kernel_fn.standard_error(x1, x2)`; regularize by more
        than that. Nonlinear layers above a sampled one add a bias of the order of the error's
        square. Derivatives are those of the estimate: right in the mean for the NNGP, but in the
        NTK of a maximum they miss that its own derivative jumps.

    Raises:
        NoLimitError: (when the kernel is asked for) an operation without a limit or a rule: the
            message names the operation and the line of the model, says why, and what to do.
        ValueError: bad examples or options; rows that depend on each other; a kernel that overflows
            its dtype.

    Warns:
        UserWarning: an activation whose series misses its tolerance.

    Reference: Yang 2019, 2020 (Tensor Programs I, II); Novak et al. 2020; Hron et al. 2020
    (attention); Yang et al. 2019 (arXiv:1902.08129, batch normalization).
    """
    check_option("inner_products", inner_products, ("error", "mean"))
    check_option("dropout", dropout, ("error", "expectation"))
    check_option("kernels", kernels, WHICH)
    check_option("positions", positions, ("mean", "full"))
    if (num_samples is None) != (key is None):
        raise ValueError(
            "num_samples and key: expected both (samples for what has no closed form) or neither; "
            f"got num_samples={num_samples}, key={key}."
        )
    if num_samples is not None:
        check_integer("num_samples", num_samples, minimum=2)
    if memory_limit is not None:
        check_integer("memory_limit", memory_limit, minimum=1)
    if learning_rates is not None and not callable(learning_rates):
        check_option("learning_rates", learning_rates, ("variance", None))
    options = {"inner_products": inner_products, "dropout": dropout}
    how = options, positions, batch_coupled
    reading = Reading(model, dict(call or {}), init_stats, learning_rates, *how)
    compiled = CompiledModel(reading, num_samples)
    return LimitKernel(compiled, memory_limit, num_samples, key, WHICH[kernels])


@dataclass(frozen=True, eq=False)
class LimitKernel(Generic[K]):
    """`kernel_fn(x1, x2=None)`: `model` keeps what was compiled, the rest are options."""

    model: CompiledModel
    memory_limit: int | None
    num_samples: int | None
    key: Array | None
    which: Which = BOTH

    def __call__(self, x1: Any, x2: Any = None) -> K:
        """NNGP and NTK between the rows of x1 and those of x2 (None: of x1)."""
        return self._kernels(x1, x2, self.num_samples, [self.key])[0]

    def _kernels(
        self,
        x1: object,
        x2: object,
        num_samples: int | None,
        keys: Sequence[Array | None],
    ) -> list[Any]:
        a1, a2 = _example_pair(x1, x2)
        reading, examples = self.model.reading, self.examples(a1)
        if reading.batch_coupled and a2 is not None:
            raise ValueError(
                "x2: expected None, as with batch_coupled=True the rows of x1 are one batch; got "
                "more rows. Doors that take a kernel row by row or in tiles (tile, shard, "
                "kernel_operator) have none of a batch: call the kernel function itself, "
                "kernel_fn(x), on all rows that are normalized together."
            )
        program = self.model.program(examples)
        how = num_samples, keys, self.memory_limit, self.which
        found: list[Any] = program.kernels(examples, a2, *how)
        if not reading.batch_coupled:
            return found
        return jax.tree.map(partial(_of_rows, num_rows(a1), reading.positions), found)

    def standard_error(self, x1: Any, x2: Any = None, *, num_groups: int = 16) -> K:
        """The standard error of both kernels as estimates from `num_samples`, entry by entry; 0
        where none were needed.

        It is the spread of `num_groups` independent estimates from num_samples / num_groups samples
        each, over the root of their number: about the cost of the kernels. Errors of different
        entries are correlated.

        Raises:
            ValueError: a kernel without samples, or fewer than two groups, or than two samples in
                each.
        """
        if self.num_samples is None or self.key is None:
            raise ValueError(
                "standard_error: expected a kernel with num_samples= and key=; got one without "
                "samples."
            )
        check_integer("num_groups", num_groups, minimum=2)
        each = self.num_samples // num_groups
        if each < 2:
            raise ValueError(
                f"num_groups: expected at most half of num_samples = {self.num_samples}; got "
                f"{num_groups}."
            )
        keys = [jax.random.fold_in(self.key, g) for g in range(num_groups)]
        found = self._kernels(x1, x2, each, keys)
        spread = lambda *k: jnp.std(jnp.stack(k), axis=0, ddof=1) / num_groups**0.5
        return jax.tree.map(spread, *found)

    def program(self, x: Examples) -> Program:
        """The network traced for examples like the rows of x."""
        return self.model.program(self.examples(x)).program

    def examples(self, x: Examples) -> Examples:
        """The rows of x, or all of them as one example."""
        return as_batch(x) if self.model.reading.batch_coupled else x


@partial(jax.jit, static_argnums=(0, 1))
def _of_rows(n: int, positions: str, k: Array) -> Array:
    """From one example of n rows, (1, 1, n P, n P), to n rows of P positions."""
    k = k.reshape(n, k.shape[-1] // n, n, -1).swapaxes(1, 2)
    return k if positions == "full" else jnp.trace(k, axis1=2, axis2=3) / k.shape[-1]


def _example_pair(x1: object, x2: object) -> tuple[Examples, Examples | None]:
    """Both sides in one dtype, by the rule of `mlp_kernels`; integers alone stay integers, as they
    may be indices.
    """
    a1, a2 = as_example_trees(x1, x2)
    if a2 is None:
        return a1, a2
    pairs = zip(*map(jax.tree.leaves, (a1, a2)), strict=True)
    sides = zip(*(_in_one_dtype(*pair) for pair in pairs), strict=True)
    first, second = (jax.tree.unflatten(jax.tree.structure(a1), side) for side in sides)
    return first, second


def _in_one_dtype(a1: Array, a2: Array) -> tuple[Array, Array]:
    if a1.dtype == a2.dtype:
        return a1, a2
    floating = any(jnp.issubdtype(a.dtype, jnp.floating) for a in (a1, a2))
    dtype = working_dtype(a1.dtype, a2.dtype) if floating else np.promote_types(a1.dtype, a2.dtype)
    return a1.astype(dtype), a2.astype(dtype)
