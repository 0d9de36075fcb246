"""``LowRankRegression``: a low-rank matrix from linear measurements of it by lin-RFM, scikit-learn's way.

Flow: measurements of any kind -> ``measurement_inputs`` -> ``solvers.low_rank_choice`` and ``solvers.low_rank`` ->
attributes ending in ``_``.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from fastrfm._interrupt import deferred
from fastrfm._numba import check_thread_count, thread_limit
from fastrfm._parameters import Parameters
from fastrfm._regressor import not_fitted_error
from fastrfm.errors import InputError, NotConvergedWarning
from fastrfm.low_rank_options import LOW_RANK_DEFAULTS, LowRankOptions
from fastrfm.measurement_inputs import read_measurements, read_values
from fastrfm.solvers.low_rank import low_rank_factors
from fastrfm.solvers.low_rank_choice import recover


class LowRankRegression(Parameters):
    """Low-rank matrix X from y_i = ⟨A_i, X⟩ + noise: ridge regression, reweighted by the AGOP of X itself.

    Parameters
    ----------
    ridge, rank, agop_power, sides, tol, max_iter, smoothing, linear_solver, shape, memory, random_state, n_threads
        See :class:`fastrfm.low_rank_options.LowRankOptions`. They are checked by :meth:`fit`.

    Attributes
    ----------
    left_, right_ : (n_rows, rank_) and (n_cols, rank_) float64
        The matrix is left_ @ right_.T; columns of right_ are orthonormal, those of left_ orthogonal.
    singular_values_ : (rank_,) float64, descending
    rank_ : int
    n_iter_ : int
        Linear systems solved.
    stop_reason_ : str
        See :class:`fastrfm.solvers.low_rank.LowRankFit`.
    history_ : dict of (n_iter_,) float64 arrays
        smoothing, change, error_estimate, rank (singular values above epsilon), inner_steps (of conjugate gradients)
        and seconds.

    Notes
    -----
    Minimises ½ Σ (y_i − ⟨A_i, X⟩)² + ridge Σ_k σ_k^p / p with p = 2 − 4 agop_power, log σ_k at p = 0; with ridge 0 the
    penalty alone among all X that fit. A_i are not scaled. X is dense while it is fitted, and an n_rows x n_rows and an
    n_cols x n_cols basis beside it.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> truth = np.outer(rng.standard_normal(12), rng.standard_normal(10))
    >>> measurements = rng.standard_normal((60, 12, 10))
    >>> model = LowRankRegression().fit(measurements, np.tensordot(measurements, truth, 2))
    >>> model.rank_, bool(np.allclose(model.coef_, truth, atol=1e-8))
    (1, True)
    >>> left, right = rng.standard_normal((60, 12)), rng.standard_normal((60, 10))
    >>> y = np.einsum("ij,jk,ik->i", left, truth, right)  # no 12 x 10 matrix for each measurement
    >>> bool(np.allclose(LowRankRegression().fit((left, right), y).coef_, truth, atol=1e-8))
    True
    """

    _defaults = LOW_RANK_DEFAULTS

    left_: np.ndarray
    right_: np.ndarray

    def __init__(
        self,
        ridge: float = LowRankOptions.ridge,
        *,
        rank: int | None = LowRankOptions.rank,
        agop_power: float = LowRankOptions.agop_power,
        sides: str = LowRankOptions.sides,
        tol: float | None = LowRankOptions.tol,
        max_iter: int = LowRankOptions.max_iter,
        smoothing: str | float = LowRankOptions.smoothing,
        linear_solver: str = LowRankOptions.linear_solver,
        shape: tuple[int, int] | None = LowRankOptions.shape,
        memory: int | None = LowRankOptions.memory,
        random_state: int = LowRankOptions.random_state,
        n_threads: int | None = LowRankOptions.n_threads,
    ) -> None:
        self.ridge = ridge
        self.rank = rank
        self.agop_power = agop_power
        self.sides = sides
        self.tol = tol
        self.max_iter = max_iter
        self.smoothing = smoothing
        self.linear_solver = linear_solver
        self.shape = shape
        self.memory = memory
        self.random_state = random_state
        self.n_threads = n_threads

    def fit(self, measurements: Any, y: Any) -> LowRankRegression:
        """Find the matrix and return the estimator itself.

        Parameters
        ----------
        measurements : (n, n_rows, n_cols) array, or pair of (n, n_rows) and (n, n_cols), or LinearOperator
            The A_i: as an array, ``numpy.memmap`` or HDF5 dataset of any real type; as vectors u_i and v_i with
            A_i = u_i v_iᵀ, in a tuple or :class:`fastrfm.RankOneMeasurements`; as a
            ``scipy.sparse.linalg.LinearOperator`` (n, n_rows · n_cols) on the matrix row by row, with `shape` given.
        y : (n,) array_like
            What was measured.

        Raises
        ------
        InputError
            If something is not finite or does not fit together, or a parameter is out of its range.

        Warns
        -----
        NotConvergedWarning
            If `max_iter` came before `tol`.
        """
        options = LowRankOptions(**{name: getattr(self, name) for name in LOW_RANK_DEFAULTS})
        with deferred(), thread_limit(check_thread_count(options.n_threads)):
            found = read_measurements(measurements, options)
            fit = recover(found, read_values(y, found.shape[0]), options)
            self.left_, self.right_, self.singular_values_ = low_rank_factors(fit, options)
        self.rank_ = int(self.singular_values_.size)
        self.n_iter_ = fit.n_iter
        self.stop_reason_ = fit.stop_reason
        self.history_ = {name: np.array(values) for name, values in fit.history.items()}
        if fit.stop_reason == "max_iter":
            warnings.warn(
                f"low-rank regression did not converge in {options.max_iter} steps: raise max_iter or tol",
                NotConvergedWarning,
                stacklevel=2,
            )
        return self

    @property
    def coef_(self) -> np.ndarray:
        """The matrix X, (n_rows, n_cols) float64."""
        if not self.__sklearn_is_fitted__():
            raise AttributeError("coef_ is there after fit")
        return np.asarray(self.left_ @ self.right_.T)

    def predict(self, measurements: Any) -> np.ndarray:
        """Return ⟨A_i, X⟩, (n,) float64.

        Parameters
        ----------
        measurements : as in :meth:`fit`
            Of a matrix of the same shape; their kind may be another one.

        Raises
        ------
        NotFittedError
            Before :meth:`fit`.
        InputError
            If the measurements are of a matrix of another shape or unusable.
        """
        if not self.__sklearn_is_fitted__():
            raise not_fitted_error()(f"this {type(self).__name__} is not fitted: call fit first, then predict")
        shape = (len(self.left_), len(self.right_))
        is_operator = hasattr(measurements, "matvec")  # nothing else needs to be told the shape
        options = LowRankOptions(shape=shape if is_operator else None, memory=self.memory)
        with deferred(), thread_limit(check_thread_count(self.n_threads)):
            found = read_measurements(measurements, options)
            if found.shape[1:] != shape:
                raise InputError(f"the measurements are of a matrix {found.shape[1:]}, but the one found is {shape}")
            return found.forward_factors(self.left_, self.right_)

    def score(self, measurements: Any, y: Any) -> float:
        """Return R² of the predictions; 1 is perfect, the mean guess reaches 0."""
        predicted = self.predict(measurements)
        values = read_values(y, predicted.size)
        misfit, spread = float(np.sum((values - predicted) ** 2)), float(np.sum((values - values.mean()) ** 2))
        if spread == 0.0:
            return 1.0 if misfit == 0.0 else 0.0
        return 1.0 - misfit / spread

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "left_")

    def __sklearn_tags__(self) -> Any:
        # Only scikit-learn calls this, so the import cannot fail where it matters.
        from sklearn.utils import InputTags, RegressorTags, Tags, TargetTags

        return Tags(
            estimator_type="regressor",
            target_tags=TargetTags(required=True),
            regressor_tags=RegressorTags(),
            input_tags=InputTags(two_d_array=False, three_d_array=True),
        )
