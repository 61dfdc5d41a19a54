"""From merged rows to a fit: parameters of an estimator become a grid, of which one is chosen."""

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator

from ntk_jax.checks import check_option
from ntk_jax.estimators.choice import Criterion, choose
from ntk_jax.estimators.fitted import Fitted
from ntk_jax.estimators.ridges import Candidates
from ntk_jax.estimators.rows import Rows
from ntk_jax.estimators.settings import METHODS, Options, grid_of


def fit_rows(estimator: BaseEstimator, rows: Rows, criterion: Criterion) -> Fitted:
    """Choose and solve; sets `kernel_`, `scale_`, `ridge_` and `selection_loss_`."""
    check_option("method", estimator.method, METHODS)
    options = Options(**{name: getattr(estimator, name) for name in Options._fields})
    grid = grid_of(options, estimator.ridge, rows.x.shape[1])
    criterion = by_evidence if estimator.method == "gp" else criterion
    kernel, solution, choice = choose(rows, grid, criterion)
    estimator.kernel_, estimator.scale_ = choice.source, choice.scale
    estimator.ridge_, estimator.selection_loss_ = choice.ridge, choice.loss
    return Fitted(rows, kernel, solution)


def by_evidence(rows: Rows, found: Candidates) -> Float[np.ndarray, " R"]:
    """The negative log evidence."""
    return -found.evidence
