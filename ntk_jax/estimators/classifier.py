"""Classification with a tangent kernel, as scikit-learn has it."""

import numpy as np
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets

from ntk_jax.checks import check_integer
from ntk_jax.estimators.calibration import best_temperatures, smoothed, softmax
from ntk_jax.estimators.fitted import Influence
from ntk_jax.estimators.ridges import Candidates
from ntk_jax.estimators.rows import Rows, merged
from ntk_jax.estimators.scikit import as_features, as_weights, validated
from ntk_jax.estimators.settings import fit_rows


class NTKClassifier(ClassifierMixin, BaseEstimator):
    """Classes by ridge regression on their indicators, or by a Gaussian process on them.

    Decision values are those of `NTKRegressor` for one target per class. Probabilities are
    softmax(a values), where a is fitted to the values of rows left out, which have a closed form:
    no row is held out, and none is predicted by a fit that saw it. With method="gp" values are
    also divided by their posterior standard deviation as in MacKay's approximation, so that rows
    far from all training rows get the probabilities of ignorance.

    Without arguments depth, scales and ridge are chosen by the leave-one-out log loss. All
    arguments of `NTKRegressor` are those of this class, too, with the same meaning; method="gp"
    chooses by the evidence of the regression on indicators.

    More rows than four matrices (n, n) of float64 fit in `memory_limit`: parameters that are "auto"
    are chosen on a random subset of at most 4,000 rows that fits, by the same closed form, and the
    fit of all rows goes through `kernel_operator` and `solve`, with the kernel held in float32 if
    that fits, and else computed anew in every product. Left-out predictions are then estimates from
    32 random probes (see `leave_one_out`), and `explain` and probabilities of `method="gp"` take a
    solve for every 256 rows.

    Args:
        class_weight: None, "balanced", or a dictionary from class to weight (a list of them for
            several targets).

    Attributes:
        classes_: labels of any kind; a list of arrays for several targets.
        kernel_, scale_, ridge_, selection_loss_: what was chosen, and its loss.
        temperature_: a, one for each target.
        leave_one_out_predictions_, leave_one_out_proba_: for every row, of the fit without it
            (and without equal ones).
        leave_one_out_score_: their accuracy.
        solver_: "cholesky", or "conjugate_gradients" beyond `memory_limit`; then also
            selection_rows_: training rows by which parameters were chosen; n_iter_, residual_:
            steps, and the largest relative residual.
        n_features_in_, feature_names_in_: as everywhere in scikit-learn.

    Reference: Arora et al. 2020 (arXiv:1910.01663); Platt 2000; Guo et al. 2017; MacKay 1992.

    Example:
        >>> from ntk_jax.estimators import NTKClassifier
        >>> x = np.linspace(-1, 1, 40)[:, None]
        >>> model = NTKClassifier().fit(x, np.where(np.abs(x[:, 0]) > 0.5, "far", "near"))
        >>> print(*model.predict([[0.0], [0.9]]))
        near far
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
        class_weight: object = None,
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
        self.class_weight = class_weight
        self.width = width
        self.model = model
        self.input_shape = input_shape
        self.random_state = random_state
        self.memory_limit = memory_limit

    def __sklearn_tags__(self) -> object:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.classifier_tags.multi_label = True
        return tags

    def _more_tags(self) -> dict[str, bool]:
        # scikit-learn 1.5
        return {"multioutput": True, "multilabel": True}

    def fit(self, X: object, y: object, sample_weight: object = None) -> "NTKClassifier":
        """Fit rows X (n, d) to labels y, (n,), or (n, O) for several targets.

        Raises:
            ValueError: bad data or parameters; one class.
        """
        x, labels = validated(self, X, y, dtype=np.float64, multi_output=True)
        check_classification_targets(labels)
        self._y_ndim = labels.ndim
        columns = labels.reshape(len(x), -1)
        weights = as_weights(sample_weight, len(x))
        if self.class_weight is not None:
            weights = weights * compute_sample_weight(self.class_weight, labels)
        classes, codes = self._encode(columns, weights)
        onehot = np.concatenate(
            [np.eye(len(c))[code] for c, code in zip(classes, codes, strict=True)], axis=1
        )
        self._mean = weights @ onehot / weights.sum()
        rows = merged(x, onehot - self._mean, weights)
        self.fitted_ = fit_rows(self, rows, self._log_loss)
        self.classes_ = classes[0] if labels.ndim == 1 else classes
        left_out = rows.y - self.fitted_.errors + self._mean
        if self.method == "gp":
            left_out = self._doubted(left_out, self.fitted_.variances_left_out())
        self._calibrate(rows, left_out)
        logits = left_out[rows.owner]
        if np.any(outside := rows.owner < 0):  # left out by everyone
            logits[outside] = self._values(x[outside])
        self.leave_one_out_proba_ = self._by_target(self._probabilities(logits))
        predicted = self._labels(self._probabilities(logits))
        self.leave_one_out_predictions_ = predicted
        same = np.all(predicted.reshape(columns.shape) == columns, axis=1)
        self.leave_one_out_score_ = float(weights @ same / weights.sum())
        return self

    def predict(self, X: object) -> np.ndarray:
        """The most probable labels of rows X, shaped like the labels of the fit."""
        return self._labels(self._probabilities(self._values(as_features(self, X))))

    def predict_proba(self, X: object) -> np.ndarray | list[np.ndarray]:
        """Probabilities of the classes at rows X, (n, C); a list of such for several targets."""
        return self._by_target(self._probabilities(self._values(as_features(self, X))))

    @available_if(lambda self: getattr(self, "_y_ndim", 1) == 1)
    def decision_function(self, X: object) -> np.ndarray:
        """Logits (n, C), whose softmax the probabilities are; log odds (n,) of two classes.

        Not there for several targets.
        """
        values = self._values(as_features(self, X))
        logits = self.temperature_[0] * values
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def explain(self, X: object, *, top: int = 5) -> Influence:
        """The training rows that move the decision at X most.

        Args:
            X: (n, d).
            top: training rows of each.

        Returns:
            Influence(rows, change), each (n, top): positions in the training data, largest change
            first, and by how much the regression on the indicator of the predicted class would
            fall without that row, everything that was chosen being kept. Exact, without
            refits, unless `solver_` is iterative.

        Raises:
            ValueError: a fit of several targets.
        """
        check_integer("top", top, minimum=1)
        x = as_features(self, X)
        if self._y_ndim > 1:
            raise ValueError("explain: expected a fit of one target; got several.")
        return self.fitted_.influence(x, self._values(x).argmax(axis=1), top)

    def _encode(
        self, columns: np.ndarray, weights: Float[np.ndarray, " n"]
    ) -> tuple[list[np.ndarray], list[Int[np.ndarray, " n"]]]:
        """Labels of each target, and the number of every row's label."""
        pairs = [np.unique(column, return_inverse=True) for column in columns.T]
        classes, codes = [c for c, _ in pairs], [code.reshape(-1) for _, code in pairs]
        for found, code in zip(classes, codes, strict=True):
            if len(np.unique(code[weights > 0])) < 2 and self._y_ndim == 1:
                raise ValueError(
                    "y: expected at least two classes among rows of positive weight; got one "
                    f"class, {found[0]!r}."
                )
        self._ends = np.cumsum([len(c) for c in classes])[:-1]
        return classes, codes

    def _log_loss(self, rows: Rows, found: Candidates) -> Float[np.ndarray, " R"]:
        """The leave-one-out log loss at the best temperature, the mean over targets."""
        values = self._split(rows.y - found.errors + self._mean)
        targets = self._split(rows.y + self._mean)
        losses = [
            best_temperatures(v, smoothed(t, rows.weights), rows.weights)[1]
            for v, t in zip(values, targets, strict=True)
        ]
        return np.mean(losses, axis=0)

    def _calibrate(self, rows: Rows, left_out: Float[np.ndarray, "m C"]) -> None:
        pairs = zip(self._split(left_out), self._split(rows.y + self._mean), strict=True)
        self.temperature_ = np.array(
            [
                best_temperatures(v[None], smoothed(t, rows.weights), rows.weights)[0][0]
                for v, t in pairs
            ]
        )

    def _values(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n C"]:
        if self.method != "gp":
            return self.fitted_.values(x) + self._mean
        values, variances = self.fitted_.values_and_variances(x)
        return self._doubted(values + self._mean, variances)

    def _doubted(self, values: np.ndarray, variances: np.ndarray) -> np.ndarray:
        """Differences between classes over sqrt(1 + π v / 8), in units of the noise.

        The logit of a Gaussian with that variance, averaged (MacKay 1992, eq. 10).
        """
        ridge = self.fitted_.ridge
        return values / np.sqrt(1 + np.pi / 8 * (variances - ridge) / ridge)[:, None]

    def _split(self, values: np.ndarray) -> list[np.ndarray]:
        """Values of all classes, by target."""
        return np.split(values, self._ends, axis=-1)

    def _probabilities(self, values: np.ndarray) -> list[np.ndarray]:
        pairs = zip(self.temperature_, self._split(values), strict=True)
        return [softmax(a * v) for a, v in pairs]

    def _by_target(self, probabilities: list[np.ndarray]) -> np.ndarray | list[np.ndarray]:
        return probabilities[0] if self._y_ndim == 1 else probabilities

    def _labels(self, probabilities: list[np.ndarray]) -> np.ndarray:
        classes = [self.classes_] if self._y_ndim == 1 else self.classes_
        labels = [c[p.argmax(axis=1)] for c, p in zip(classes, probabilities, strict=True)]
        return labels[0] if self._y_ndim == 1 else np.stack(labels, axis=1)
