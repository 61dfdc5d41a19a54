"""How a model is read: its parameters' laws and learning rates, and the trace of its outputs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from flax.errors import InvalidRngError, ModifyScopeVariableError

from ntk_jax.checks import check_number
from ntk_jax.closures.fingerprint import Reading as Fingerprint
from ntk_jax.closures.fingerprint import read
from ntk_jax.compat import is_concrete, on_device, outside_traces
from ntk_jax.examples import Examples, shapes_of_rows
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.interpreter import USER_RULES
from ntk_jax.infinite.flax.model import Network, network
from ntk_jax.infinite.flax.traced_model import Program, Rate, traced
from ntk_jax.initializers.stats import InitStats, as_given, given_stats, init_stats, leaf_path
from ntk_jax.networks.adapters import TrainingModeError
from ntk_jax.networks.per_example import check_per_example
from ntk_jax.types import Params

Given: TypeAlias = Mapping[str, tuple[float, float]] | None
LearningRates: TypeAlias = str | Rate | None


class Reading(NamedTuple):
    """What the user said of a model; the attributes are the arguments of `infinite_width`."""

    model: Any
    call: Mapping[str, Any]
    given: Given
    learning_rates: LearningRates
    options: Mapping[str, str]
    positions: str = "mean"
    batch_coupled: bool = False

    def network(self) -> Network:
        """The model as functions of parameters and examples."""
        dropout = self.options["dropout"] == "expectation"
        how = {"with_dropout": dropout, "batch_coupled": self.batch_coupled}
        return network(self.model, self.call, **how)

    def read(self, net: Network) -> Fingerprint:
        """All that programs depend on, to be compared."""
        rules = tuple(USER_RULES.items())
        return read((net.content, self.call, self.given, self.learning_rates, rules))

    def program(self, net: Network, x: Examples, num_samples: int | None) -> Program:
        """Its program for examples like the rows of x."""
        example = shapes_of_rows(x)
        batch = example if self.batch_coupled else shapes_of_rows(x, 1)
        zero = lambda leaf: on_device(np.zeros(leaf.shape, leaf.dtype))
        # Statistics of a blank batch are drawn outside of someone's jit.
        blank = outside_traces(jax.tree.map, zero, batch)
        apply_fn, params = net.build(blank)
        # Rows that depend on each other show in values only: not under someone's jit.
        if is_known(x) and not self.batch_coupled:
            with _refusals():
                check_per_example(apply_fn, params, x)
        if (init_fn := net.init_fn) is not None:
            stats = init_stats(lambda key: init_fn(key, blank), given=self.given)
        else:
            stats = _given_for_all(params, as_given(self.given))
        how = self.options, num_samples, self.batch_coupled
        with _refusals():
            found = traced(apply_fn, params, stats, self._rate, example, *how)
        return replace(found, positions=self.positions)

    def _rate(self, path: str, stats: InitStats) -> float:
        rates = self.learning_rates
        if rates is None:
            return 1.0
        rate = stats.variance if isinstance(rates, str) else rates(path, stats)
        check_number(f"learning_rates, of {path}", rate)
        return float(rate)


def is_known(x: Examples) -> bool:
    """Whether the values of examples can be looked at."""
    return all(map(is_concrete, jax.tree.leaves(x)))


@contextmanager
def _refusals() -> Iterator[None]:
    """Where a model in training mode is evaluated."""
    try:
        yield
    except (TrainingModeError, InvalidRngError, ModifyScopeVariableError) as error:
        if getattr(error, "draws", isinstance(error, InvalidRngError)):
            raise NoLimitError(
                "the model asks for random numbers of its own (dropout in training mode),",
                "Turn dropout off: deterministic=True or train=False, through the argument `call`; "
                'or take its mean over masks: infinite_width(..., dropout="expectation").',
            ) from error
        raise NoLimitError(
            "the model updates statistics of its batch, so that its outputs depend on the other "
            "examples,",
            "Use running averages (use_running_average=True, train=False, module.eval()), through "
            "the argument `call`. Or take the batch as a whole, whose limit (Yang et al. 2019, "
            "arXiv:1902.08129) is sampled: infinite_width(..., batch_coupled=True, num_samples=, "
            "key=); at finite width, ntk_jax.empirical_ntk(..., batch_coupled=True).",
        ) from error


def _given_for_all(params: Params, given: Mapping[str, tuple[float, float]]) -> Params:
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
