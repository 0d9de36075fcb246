"""What makes a class a scikit-learn regressor, with or without scikit-learn installed: a base class.

Tags, R² and errors of the kinds that scikit-learn's own checks look for. It is imported only where
it asks for tags, or where it has been loaded by somebody else.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from fastrfm._designs import PANEL_BYTES
from fastrfm._parameters import Parameters
from fastrfm.compressed_rows import CompressedRows
from fastrfm.errors import InputError, NotFittedError
from fastrfm.regression_inputs import Features, check_names, read_features, read_targets, read_weights


class LinearRegressor(Parameters):
    """A base class for linear models; subclasses set ``coef_`` and ``intercept_`` and name their ``_defaults``.

    Attributes
    ----------
    coef_ : (n_features,) or (n_targets, n_features) float64
    intercept_ : float or (n_targets,) float64
    n_features_in_ : int
    feature_names_in_ : (n_features,) object array of str
        Only where the fitted table named its columns.
    """

    coef_: np.ndarray
    intercept_: Any
    n_features_in_: int

    def predict(self, X: Any) -> np.ndarray:
        """Return predictions, (n_samples,) or (n_samples, n_targets) as the targets of the fit were.

        Parameters
        ----------
        X : (n_samples, n_features_in_) table
            As in :meth:`fit`.

        Raises
        ------
        NotFittedError
            Before :meth:`fit`.
        InputError
            If `X` has other columns than the fitted table or is unusable.
        """
        self._check_fitted("predict")
        features = self._same_columns(X)
        coef = np.atleast_2d(self.coef_)
        if isinstance(features.table, CompressedRows):
            product = np.concatenate([block @ coef.T for _, block in features.table.blocks(PANEL_BYTES)])
        elif features.is_stored:
            step = max(1, PANEL_BYTES // (8 * features.shape[1]))
            starts = range(0, features.shape[0], step)
            parts = [np.asarray(features.table[at : at + step], dtype=np.float64) @ coef.T for at in starts]
            product = np.concatenate(parts)
        else:
            product = np.asarray(features.table @ coef.T)
        product = product + np.atleast_1d(self.intercept_)
        return np.asarray(product[:, 0] if self.coef_.ndim == 1 else product)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return R² of the predictions for `X`, the mean over targets; 1 is perfect, the mean guess reaches 0."""
        predicted = self.predict(X)
        n_samples = predicted.shape[0]
        targets, _ = read_targets(y, n_samples)
        weights = read_weights(sample_weight, n_samples)
        shares = np.ones(n_samples) if weights is None else weights
        misfit = shares @ (targets - predicted.reshape(targets.shape)) ** 2
        spread = shares @ (targets - shares @ targets / shares.sum()) ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            scores = np.where(spread > 0.0, 1.0 - misfit / spread, np.where(misfit == 0.0, 1.0, 0.0))
        return float(scores.mean())

    def _same_columns(self, X: Any) -> Features:
        features = read_features(X, getattr(self, "memory", None))
        name = type(self).__name__
        check_names(features.names, getattr(self, "feature_names_in_", None), name)
        if features.shape[1] != self.n_features_in_:
            raise InputError(
                f"X has {features.shape[1]} features, but {name} is expecting {self.n_features_in_} features as input"
            )
        return features

    def _note_columns(self, features: Features) -> None:
        self.n_features_in_ = features.shape[1]
        self.__dict__.pop("feature_names_in_", None)
        if features.names is not None:
            self.feature_names_in_ = features.names

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "coef_")

    def __sklearn_tags__(self) -> Any:
        # Only scikit-learn calls this, so the import cannot fail where it matters.
        from sklearn.utils import InputTags, RegressorTags, Tags, TargetTags

        return Tags(
            estimator_type="regressor",
            target_tags=TargetTags(required=True, multi_output=True, single_output=True),
            regressor_tags=RegressorTags(),
            input_tags=InputTags(sparse=True),
        )

    def _check_fitted(self, method: str) -> None:
        if not self.__sklearn_is_fitted__():
            raise not_fitted_error()(f"this {type(self).__name__} is not fitted: call fit first, then {method}")


def not_fitted_error() -> type[NotFittedError]:
    """Return our error, which is scikit-learn's as well where that is loaded."""
    sklearn = sys.modules.get("sklearn.exceptions")
    if sklearn is None:
        return NotFittedError
    return type("NotFittedError", (NotFittedError, sklearn.NotFittedError), {})
