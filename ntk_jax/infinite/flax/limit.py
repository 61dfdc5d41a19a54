"""The kernels of any Flax model as its widths go to infinity: the front door."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import InvalidRngError, ModifyScopeVariableError
from jax import Array

from ntk_jax.checks import (
    as_example_pair,
    check_finite,
    check_integer,
    check_number,
    check_option,
    working_dtype,
)
from ntk_jax.compat import is_concrete
from ntk_jax.duals.dual_rule import DualRule
from ntk_jax.infinite.flax.batch import Pairs
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.model import network
from ntk_jax.infinite.flax.moments.functions import rule_of
from ntk_jax.infinite.flax.observed import fitted, kind, observed, warn_tail
from ntk_jax.infinite.flax.traced_model import Program, trace
from ntk_jax.initializers.stats import InitStats, as_given, given_stats, leaf_path
from ntk_jax.initializers.stats import init_stats as statistics
from ntk_jax.networks.adapters import TrainingModeError
from ntk_jax.networks.per_example import check_per_example
from ntk_jax.types import Kernels

LearningRates = None | str | Callable[[str, InitStats], float]


def infinite_width(
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
) -> "LimitKernel":
    """The NNGP and NTK of a model as it is written, in the limit of infinite width.

    The model is traced and read as a tensor program: an axis is infinitely wide exactly if it is
    the output axis of a product with a random weight. Means over such axes are numbers (so
    normalization layers need no rule of their own), and everything else is a covariance of
    Gaussians, followed backwards from the outputs. The limit is that of Gaussian weights: Flax's
    default initializer is a truncated normal, and differs from it in a first layer with few inputs.

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
            nonlinearities after pooling) from this many samples of the Gaussians below it, at all
            positions of both examples of a pair. None refuses such models.
        key: a random key, for those samples.

    Returns:
        `kernel_fn(x1, x2=None) -> Kernels(nngp, ntk)`, each (n1, n2): per output coordinate,
        averaged over positions if the outputs have any. With x2=None both are symmetric to the bit.

        With samples: all pairs share their normals, so that one key gives one kernel, continuous in
            the examples. But pairs
        are sampled one by one: of n examples the smallest eigenvalue can fall below 0 by about
            sqrt(n) times
        `kernel_fn.standard_error(x1, x2)`; regularize by more than that. Nonlinear layers above a
        sampled one add a bias of the order of the error's square. Derivatives are those of the
        estimate: right in the mean for the NNGP, but in the NTK of a maximum they miss that its own
        derivative jumps.

    Raises:
        NoLimitError: (when the kernel is asked for) an operation without a limit or a rule: the
            message names the operation and the line of the model, says why, and what to do.
        ValueError: bad examples or options; rows that depend on each other; a kernel that overflows
            its dtype.

    Warns:
        UserWarning: an activation whose series misses its tolerance.

    Reference: Yang 2019, 2020 (Tensor Programs I, II); Novak et al. 2020; Hron et al. 2020
    (attention).
    """
    check_option("inner_products", inner_products, ("error", "mean"))
    check_option("dropout", dropout, ("error", "expectation"))
    if (num_samples is None) != (key is None):
        raise ValueError(
            "num_samples and key: expected both (samples for what has no closed form) or neither; "
            f"got num_samples={num_samples}, key={key}."
        )
    if num_samples is not None:
        check_integer("num_samples", num_samples, minimum=2)
    if memory_limit is not None:
        check_integer("memory_limit", memory_limit, minimum=1)
    options = {"inner_products": inner_products, "dropout": dropout}
    return LimitKernel(
        model,
        dict(call or {}),
        init_stats,
        learning_rates,
        options,
        memory_limit,
        (num_samples, key),
    )


class LimitKernel:
    """`kernel_fn(x1, x2=None)`; programs are traced once per shape of an example."""

    def __init__(
        self,
        model: Any,
        call: dict[str, Any],
        given: Any,
        learning_rates: LearningRates,
        options: dict[str, str],
        memory_limit: int | None,
        samples: tuple[int | None, Array | None],
    ):
        self.arguments = (model, call, given, learning_rates, options, memory_limit, samples)
        if learning_rates is not None and not callable(learning_rates):
            check_option("learning_rates", learning_rates, ("variance", None))
        self.net = network(model, call, with_dropout=options["dropout"] == "expectation")
        self.given, self.rates = given, learning_rates
        self.options = options
        self.memory_limit = memory_limit
        self.num_samples, self.key = samples
        self.programs: dict[Any, Pairs] = {}
        self.observers: dict[Any, Any] = {}
        self.exact: set[Any] = set()  # programs of closed forms only, which no variance changes

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied and pickled as what it was made from: what was traced and compiled is made
        again.
        """
        return LimitKernel, self.arguments

    def __call__(self, x1: Any, x2: Any = None) -> Kernels:
        """NNGP and NTK between the rows of x1 and those of x2 (None: of x1)."""
        a1, a2 = _example_pair(x1, x2)
        pairs = self._pairs(a1, self.num_samples)
        table = self.table(pairs.program, a1, a2)
        return _within_range(pairs(a1, a2, table, self.memory_limit, self.key))

    def standard_error(self, x1: Any, x2: Any = None, *, num_groups: int = 16) -> Kernels:
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
        a1, a2 = _example_pair(x1, x2)
        pairs = self._pairs(a1, each)
        table = self.table(pairs.program, a1, a2)
        keys = [jax.random.fold_in(self.key, g) for g in range(num_groups)]
        found = [_within_range(pairs(a1, a2, table, self.memory_limit, key)) for key in keys]
        scale = num_groups**0.5
        return Kernels(
            *(jnp.std(jnp.stack(k), axis=0, ddof=1) / scale for k in zip(*found, strict=True))
        )

    def program(self, x: Array) -> Program:
        """The network traced for examples like the rows of x."""
        return self._pairs(x, self.num_samples).program

    def _pairs(self, x: Array, num_samples: int | None) -> Pairs:
        key = (*kind(x), num_samples)
        if key not in self.programs:
            own = self.num_samples
            program = (
                self._traced(x)
                if num_samples == own
                else replace(self.program(x), num_samples=num_samples)
            )
            self.programs[key] = Pairs(program)
        return self.programs[key]

    def _traced(self, x: Array) -> Program:
        blank = np.zeros((1, *x.shape[1:]), x.dtype)
        apply_fn, params = self.net.build(blank)
        if is_concrete(x):
            self._check_rows(apply_fn, params, x)
        stats = self._stats(params, blank)
        example = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
        return trace(apply_fn, params, stats, self._eta, example, self.options, self.num_samples)

    def _check_rows(self, apply_fn: Any, params: Any, x: Array) -> None:
        try:
            check_per_example(apply_fn, params, x)
        except (TrainingModeError, InvalidRngError, ModifyScopeVariableError) as error:
            if getattr(error, "draws", isinstance(error, InvalidRngError)):
                raise NoLimitError(
                    "the model asks for random numbers of its own (dropout in training mode),",
                    "Turn dropout off: deterministic=True or train=False, through the argument "
                    "`call`; or take its mean over "
                    'masks: infinite_width(..., dropout="expectation").',
                ) from error
            raise NoLimitError(
                "the model updates statistics of its batch, so that its outputs depend on the "
                "other examples,",
                "Use running averages (use_running_average=True, train=False, module.eval()), "
                "through the argument `call`.",
            ) from error

    def _stats(self, params: Any, blank: Any) -> Any:
        init_fn = self.net.init_fn
        if init_fn is not None:
            return statistics(lambda key: init_fn(key, blank), given=self.given)
        return _given_for_all(params, as_given(self.given))

    def _eta(self, path: str, stats: InitStats) -> float:
        if self.rates is None:
            return 1.0
        rate = stats.variance if isinstance(self.rates, str) else self.rates(path, stats)
        check_number(f"learning_rates, of {path}", rate)
        return float(rate)

    def table(
        self, program: Program, x1: Array, x2: Array | None
    ) -> tuple[tuple[Any, DualRule], ...]:
        """Series with as many terms as the variances ask for, known only outside jit."""
        now = jnp.zeros(())  # traced under someone's jit, where even constants cannot be looked at
        scales = program.jaxpr.consts  # of the model, such as a W_std that it is differentiated by
        if not all(is_concrete(x) for x in (now, x1, x2, *scales) if x is not None):
            return ()
        if kind(x1) in self.exact:
            return ()
        functions, variances, tails = observed(self.observers, self.key, program, x1)
        if not tails and not any(rule_of(f).adaptive for f in functions):
            self.exact.add(kind(x1))
            return ()
        largest = [float(jnp.max(q)) for q in variances]
        if x2 is not None:
            _, more, more_tails = observed(self.observers, self.key, program, x2)
            largest = [max(q, float(jnp.max(r))) for q, r in zip(largest, more, strict=True)]
            tails = [*tails, *more_tails]
        if not np.isfinite(largest).all():
            raise _out_of_range(program.dtype)
        for names, tail in tails:
            warn_tail(names, float(jnp.max(tail)))
        return fitted(tuple(zip(functions, largest, strict=True)), program.dtype)


def _example_pair(x1: Any, x2: Any) -> tuple[Array, Array | None]:
    """Both sides in one dtype, by the rule of `mlp_kernels`; integers alone stay integers, as they
    may be indices.
    """
    a1, a2 = as_example_pair(x1, x2)
    if a2 is None or a1.dtype == a2.dtype:
        return a1, a2
    floating = any(jnp.issubdtype(a.dtype, jnp.floating) for a in (a1, a2))
    dtype = working_dtype(a1.dtype, a2.dtype) if floating else np.promote_types(a1.dtype, a2.dtype)
    return a1.astype(dtype), a2.astype(dtype)


def _within_range(kernels: Kernels) -> Kernels:
    try:
        for k in kernels:
            check_finite("kernel", k)
    except ValueError:
        raise _out_of_range(kernels.ntk.dtype) from None
    return kernels


def _out_of_range(dtype: Any) -> ValueError:
    return ValueError(
        f"infinite_width: expected kernels within the range of {dtype}; they overflow, or the "
        "model holds NaN. "
        "Use float64, smaller inputs, or smaller variances (init_stats) and learning rates."
    )


def _given_for_all(params: Any, given: dict[str, tuple[float, float]]) -> Any:
    """Statistics of a module that does not remember its initializers."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    paths = [leaf_path(path) for path, _ in leaves]
    if set(given) != set(paths):
        raise ValueError(
            f"init_stats: expected (mean, variance) for each of {', '.join(paths)}, as an NNX "
            "module does not remember its "
            f"initializers; got {', '.join(sorted(given)) or 'none'}. Or pass a function rngs -> "
            "module, such as its class."
        )
    return jax.tree.unflatten(tree, [given_stats(path, given[path]) for path in paths])
