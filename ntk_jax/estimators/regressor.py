"""Regression with a tangent kernel, as scikit-learn has it."""

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin

from ntk_jax.checks import check_integer
from ntk_jax.estimators.fitted import Influence
from ntk_jax.estimators.ridges import Candidates
from ntk_jax.estimators.rows import Rows, merged
from ntk_jax.estimators.scikit import as_features, as_weights, validated
from ntk_jax.estimators.settings import fit_rows


class NTKRegressor(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Kernel ridge regression, or a Gaussian process, with the kernel of a wide network.

        f(x) = mean + K(x, X) (K(X, X) + ridge W⁻¹)⁻¹ (y - mean)

    Without arguments it chooses depth, scales and ridge itself: by the leave-one-out error, which
    has a closed form for all ridges of a kernel at once. Inputs and targets are standardized
    inside. Of equal rows the mean target counts, with the sum of their weights.

    More rows than four matrices (n, n) of float64 fit in `memory_limit`: parameters that are "auto"
    are chosen on a random subset of at most 4,000 rows that fits, by the same closed form, and the
    fit of all rows goes through `kernel_operator` and `solve`, with the kernel held in float32 if
    that fits, and else computed anew in every product. Left-out predictions are then estimates from
    32 random probes (see `leave_one_out`), and `predict(return_std=True)` and `explain` take a
    solve for every 256 rows.

    Args:
        kernel: "ntk", gradient descent of a wide network, or "nngp", its prior.
        method: "ridge" chooses what is "auto" by the leave-one-out error, "gp" by the evidence
            (marginal likelihood) of a Gaussian process.
        depth: hidden layers of the `MLP`; "auto" tries 1 and 3.
        activation: a name of `duals`, or an elementwise function.
        W_std: weight scale; "auto" is the critical one of ReLU, where it is but a unit.
        b_std: bias scale; "auto" tries 0, 0.3 and 1.
        ridge: in units of the kernel's mean diagonal, above 0; "auto" tries 25.
        scale: inputs standardized by "columns", "all" by one scale (pixels), "none"; or "auto".
        width: units of a random network, whose finite-width kernel is taken (in float32).
        model: a Flax model, taken through `infinite_width` (in float32).
        input_shape: of one row for the model, such as (8, 8, 1).
        random_state: of the network of finite width.
        memory_limit: bytes that matrices of the training rows may take; None for the free memory.
            See below for what happens beyond.

    Attributes:
        kernel_, scale_, ridge_: what was chosen.
        selection_loss_: its leave-one-out error, in units of the targets' variance, or its
            negative log evidence.
        leave_one_out_predictions_: for every row, of the fit without it (and without equal ones).
        leave_one_out_score_: their R².
        solver_: "cholesky", or "conjugate_gradients" beyond `memory_limit`; then also
            selection_rows_: training rows by which parameters were chosen; n_iter_, residual_:
            steps, and the largest relative residual.
        n_features_in_, feature_names_in_: as everywhere in scikit-learn.

    Reference: Arora et al. 2020 (arXiv:1910.01663); Rasmussen, Williams 2006, sections 2.7, 5.4.

    Example:
        >>> from ntk_jax.estimators import NTKRegressor
        >>> x = np.linspace(-1, 1, 40)[:, None]
        >>> model = NTKRegressor().fit(x, np.abs(x[:, 0]))
        >>> bool(model.score(x, np.abs(x[:, 0])) > 0.99)
        True
    """

    def __init__(
        self,
        *,
        kernel: object = "ntk",
        method: object = "ridge",
        depth: object = "auto",
        activation: object = "relu",
        W_std: object = "auto",
        b_std: object = "auto",
        ridge: object = "auto",
        scale: object = "auto",
        width: object = None,
        model: object = None,
        input_shape: object = None,
        random_state: object = None,
        memory_limit: object = None,
    ) -> None:
        self.kernel = kernel
        self.method = method
        self.depth = depth
        self.activation = activation
        self.W_std = W_std
        self.b_std = b_std
        self.ridge = ridge
        self.scale = scale
        self.width = width
        self.model = model
        self.input_shape = input_shape
        self.random_state = random_state
        self.memory_limit = memory_limit

    def fit(self, X: object, y: object, sample_weight: object = None) -> "NTKRegressor":
        """Fit rows X (n, d) to targets y, (n,) or (n, O).

        Raises:
            ValueError: bad data or parameters.
        """
        x, targets = validated(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True)
        targets = np.asarray(targets, np.float64)
        columns = targets.reshape(len(x), -1)
        weights = as_weights(sample_weight, len(x))
        share = weights / weights.sum()
        mean = share @ columns
        std = np.sqrt(share @ np.square(columns - mean))
        self._y_mean, self._y_std = mean, np.where(std > 0, std, 1.0)
        self._y_shape = targets.shape[1:]
        rows = merged(x, (columns - mean) / self._y_std, weights)
        self.fitted_ = fit_rows(self, rows, mean_square)
        # A row of weight 0 was left out by everyone.
        left_out = (rows.y - self.fitted_.errors)[rows.owner]
        if np.any(outside := rows.owner < 0):
            left_out[outside] = self.fitted_.values(x[outside])
        self.leave_one_out_predictions_ = self._in_units(left_out)
        loss = share @ np.square((columns - mean) / self._y_std - left_out)
        variance = np.where(std > 0, 1.0, np.nan)
        self.leave_one_out_score_ = float(np.mean(1 - loss / variance))
        return self

    def predict(
        self, X: object, return_std: object = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """The targets of rows X.

        Args:
            X: (n, d).
            return_std: also the standard deviation of a new observation, noise included, under
                the Gaussian process of this kernel and ridge at its most probable amplitude.

        Returns:
            (n,) or (n, O), as the targets of the fit; with `return_std` two of them.
        """
        x = as_features(self, X)
        if not return_std:
            return self._in_units(self.fitted_.values(x))
        values, variances = self.fitted_.values_and_variances(x)
        std = np.sqrt(variances * self.fitted_.amplitude)[:, None] * self._y_std
        return self._in_units(values), std.reshape(-1, *self._y_shape)

    def explain(self, X: object, *, top: int = 5) -> Influence:
        """The training rows that move the predictions at X most.

        Args:
            X: (n, d).
            top: training rows of each.

        Returns:
            Influence(rows, change), each (n, top): positions in the training data, largest change
            first, and by how much the prediction would fall without that row, everything that
            was chosen being kept. Exact, without refits, unless `solver_` is iterative.

        Raises:
            ValueError: a fit of several targets.
        """
        check_integer("top", top, minimum=1)
        x = as_features(self, X)
        if len(self._y_std) > 1:
            raise ValueError(
                f"explain: expected a fit of one target; got {len(self._y_std)}. Fit them one by "
                "one."
            )
        found = self.fitted_.influence(x, np.zeros(len(x), int), top)
        return found._replace(change=found.change * self._y_std)

    def _in_units(self, values: Float[np.ndarray, "n O"]) -> np.ndarray:
        return (values * self._y_std + self._y_mean).reshape(-1, *self._y_shape)


def mean_square(rows: Rows, found: Candidates) -> Float[np.ndarray, " R"]:
    """The leave-one-out error: the weighted mean of squares over rows and targets."""
    share = rows.weights / rows.weights.sum()
    return np.square(found.errors).mean(axis=2) @ share
