"""``SparseRegression`` and ``sparse_regression_path``: sparse linear regression by lin-RFM, scikit-learn's way.

Flow: a table and targets -> ``regression_inputs`` -> ``designs`` (weights, centring) -> ``solvers.sparse`` ->
attributes ending in ``_``. Cross-validation is in ``sparse_cross_validation``.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse

from fastrfm._interrupt import deferred
from fastrfm._numba import check_thread_count, thread_limit
from fastrfm._regressor import LinearRegressor
from fastrfm.designs import Design, make_design
from fastrfm.devices import resolve
from fastrfm.errors import InputError, NotConvergedWarning
from fastrfm.regression_inputs import Features, read_features, read_targets, read_weights
from fastrfm.solvers.sparse import SparseFit, prepare, solve_sparse, sparse_path, suggested_ridges
from fastrfm.sparse_options import SPARSE_DEFAULTS, SparseOptions

N_RIDGES, LEAST_SHARE = 100, 1e-3


@dataclass(frozen=True)
class Problem:
    """A regression as the solver sees it, and what it takes to come back to the user's units."""

    design: Design
    targets: np.ndarray
    means: np.ndarray
    target_means: np.ndarray

    def intercepts(self, coefs: np.ndarray) -> np.ndarray:
        """Return the intercepts that go with rows of coefficients."""
        return np.asarray(self.target_means - coefs @ self.means)


def make_problem(
    features: Any, targets: np.ndarray, weights: np.ndarray | None, fit_intercept: bool, memory: int | None = None
) -> Problem:
    """Return the weighted, centred problem; samples of weight 0 are left out."""
    if weights is not None and not weights.all():
        if not (type(features) is np.ndarray or scipy.sparse.issparse(features)):
            raise InputError("sample_weight must be above 0 for features that stay in a file: leave such rows out")
        kept = weights > 0.0
        features, targets, weights = features[kept], targets[kept], weights[kept]
    design, means = make_design(features, weights, is_centred=fit_intercept, panel_bytes=memory)
    shares = design.roots**2 / (design.roots @ design.roots)
    target_means = shares @ targets if fit_intercept else np.zeros(targets.shape[1])
    return Problem(design, (targets - target_means) * design.roots[:, None], means, target_means)


def with_device(options: SparseOptions, features: Features) -> SparseOptions:
    """Return the options with a `device` that is there and can take the features, "cpu" or "cuda"."""
    if options.device == "auto" and features.is_stored:
        return replace(options, device="cpu")
    device = resolve(options.device)
    if device == "cuda" and features.is_stored:
        raise InputError(
            'device="cuda" takes dense and scipy.sparse features in memory, got features that stay in a file: raise '
            'memory above their size, or use device="cpu"'
        )
    return replace(options, device=device)


class SparseRegression(LinearRegressor):
    """Sparse linear regression by lin-RFM: ridge regression on features reweighted by the coefficients themselves.

    Parameters
    ----------
    ridge, agop_power, fit_intercept, tol, max_iter, smoothing, linear_solver, memory, n_threads
        See :class:`fastrfm.sparse_options.SparseOptions`. They are checked by :meth:`fit`.
    warm_start : bool
        With a ridge, go on from the coefficients of the fit before, if it had as many features and targets.
    device : {"cpu", "cuda", "auto"}
        See there.

    Attributes
    ----------
    coef_ : (n_features,) or (n_targets, n_features) float64
    intercept_ : float or (n_targets,) float64
    n_iter_ : int
        Linear systems solved, of the target with most.
    stop_reason_ : str or list of str
        See :class:`fastrfm.solvers.sparse.SparseFit`; a list for several targets.
    history_ : dict of arrays, or list of them
        smoothing, change and seconds of each system over all columns.
    n_features_in_ : int
    feature_names_in_ : (n_features,) object array of str
        Only where the fitted table named its columns.

    Notes
    -----
    Minimises ½ Σ w_i (y_i − intercept − x_i·β)² + ridge Σ |β_j|^p / p with p = 2 − 4 agop_power, log |β_j| at p = 0;
    with ridge 0 the penalty alone among all β that fit. Features are not scaled: bring columns of different units to
    one scale first (p = 0 does not mind). Arrays, frames and scipy.sparse matrices are read; ``numpy.memmap``, HDF5
    datasets and csr_matrix groups of anndata's beyond `memory` bytes stay in their file. Several targets are fitted one
    by one.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((40, 100))
    >>> y = 3 * X[:, 7] - 2 * X[:, 50] + 1
    >>> model = SparseRegression().fit(X, y)  # no noise: ridge 0 recovers what made the data
    >>> np.flatnonzero(model.coef_).tolist(), model.coef_[[7, 50]].round(6).tolist(), round(model.intercept_, 6)
    ([7, 50], [3.0, -2.0], 1.0)
    >>> noisy = y + 0.1 * rng.standard_normal(40)
    >>> np.flatnonzero(SparseRegression(ridge=1.0).fit(X, noisy).coef_).tolist()
    [7, 50]
    """

    _defaults = SPARSE_DEFAULTS | {"warm_start": False}

    def __init__(
        self,
        ridge: float = SparseOptions.ridge,
        *,
        agop_power: float = SparseOptions.agop_power,
        fit_intercept: bool = SparseOptions.fit_intercept,
        tol: float = SparseOptions.tol,
        max_iter: int = SparseOptions.max_iter,
        smoothing: str | float = SparseOptions.smoothing,
        linear_solver: str = SparseOptions.linear_solver,
        memory: int | None = SparseOptions.memory,
        n_threads: int | None = SparseOptions.n_threads,
        warm_start: bool = False,
        device: str = SparseOptions.device,
    ) -> None:
        self.ridge = ridge
        self.agop_power = agop_power
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.smoothing = smoothing
        self.linear_solver = linear_solver
        self.memory = memory
        self.n_threads = n_threads
        self.warm_start = warm_start
        self.device = device

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> SparseRegression:
        """Fit coefficients and return the estimator itself.

        Parameters
        ----------
        X : (n_samples, n_features) table
            Array, frame, scipy.sparse matrix, memory map, HDF5 dataset or HDF5 group laid out as anndata's csr_matrix.
        y : (n_samples,) or (n_samples, n_targets) array_like
        sample_weight : (n_samples,) array_like, optional
            Weights of the squared residuals, at least 0; as if samples were repeated.

        Raises
        ------
        InputError
            If something is not finite or does not fit together, or a parameter is out of its range.
        DeviceError
            If `device` is "cuda" and there is none, or its memory is too small.

        Warns
        -----
        NotConvergedWarning
            If `max_iter` came before `tol`.
        DeviceWarning
            If `device` is "auto" and there is none.
        """
        options = SparseOptions(**{name: getattr(self, name) for name in SPARSE_DEFAULTS})
        features = read_features(X, options.memory)
        options = with_device(options, features)
        targets, is_single = read_targets(y, features.shape[0])
        weights = read_weights(sample_weight, features.shape[0])
        with deferred(), thread_limit(check_thread_count(options.n_threads)):
            problem = make_problem(features.table, targets, weights, options.fit_intercept, options.memory)
            start = self._start(targets.shape[1], features.shape[1])
            fits = solve_sparse(problem.design, problem.targets, options, start)
        self._take(fits, problem, is_single)
        self._note_columns(features)
        return self

    def _start(self, n_targets: int, n_features: int) -> np.ndarray | None:
        if not (self.warm_start and hasattr(self, "coef_")):
            return None
        coefs = np.atleast_2d(self.coef_)
        return coefs if coefs.shape == (n_targets, n_features) else None

    def _take(self, fits: list[SparseFit], problem: Problem, is_single: bool) -> None:
        coefs = np.array([fit.coef for fit in fits])
        intercepts = problem.intercepts(coefs)
        self.n_iter_ = max(1, *(fit.n_iter for fit in fits))
        self.coef_, self.intercept_ = (coefs[0], float(intercepts[0])) if is_single else (coefs, intercepts)
        self.stop_reason_ = fits[0].stop_reason if is_single else [fit.stop_reason for fit in fits]
        self.history_ = fits[0].history if is_single else [fit.history for fit in fits]
        if any(fit.stop_reason == "max_iter" for fit in fits):
            warnings.warn(
                f"sparse regression did not converge in {self.max_iter} steps: raise max_iter or tol",
                NotConvergedWarning,
                stacklevel=3,
            )


def sparse_regression_path(
    X: Any,
    y: Any,
    *,
    ridges: Any = None,
    n_ridges: int = N_RIDGES,
    least_share: float = LEAST_SHARE,
    agop_power: float = SparseOptions.agop_power,
    fit_intercept: bool = SparseOptions.fit_intercept,
    sample_weight: Any = None,
    max_features: int | None = None,
    tol: float = SparseOptions.tol,
    max_iter: int = SparseOptions.max_iter,
    memory: int | None = SparseOptions.memory,
    n_threads: int | None = SparseOptions.n_threads,
    device: str = SparseOptions.device,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return coefficients along falling ridges, each fit from the one before.

    Parameters
    ----------
    X, y, sample_weight
        As in :meth:`SparseRegression.fit`, with one target.
    ridges : (n,) array_like, optional
        Falling. By default `n_ridges`, from the smallest at which nothing is selected down to where the size of
        inner product with the residual at which a column enters is `least_share` of what it was.
    agop_power : float
        At least 1/4.
    max_features : int, optional
        The path ends after the first fit with more nonzero coefficients; by default half the smaller of n_samples and
        n_features.
    fit_intercept, tol, max_iter, memory, n_threads, device
        As in :class:`SparseRegression`.

    Returns
    -------
    ridges : (n_solved,) float64
    coefs : (n_solved, n_features) float64
    intercepts : (n_solved,) float64

    Raises
    ------
    InputError
        As :meth:`SparseRegression.fit`, whose other errors and warnings there are too; also for an `agop_power` below
        1/4, more than one target, or ridges that do not fall.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((60, 200))
    >>> y = X[:, 3] - X[:, 9] + 0.1 * rng.standard_normal(60)
    >>> ridges, coefs, _ = sparse_regression_path(X, y, n_ridges=20, least_share=0.1)
    >>> np.count_nonzero(coefs, axis=1)[[0, 10]].tolist()
    [0, 2]
    """
    options = SparseOptions(
        ridge=1.0, agop_power=agop_power, fit_intercept=fit_intercept, tol=tol, max_iter=max_iter, memory=memory,
        n_threads=n_threads, device=device,
    )  # fmt: skip
    if not options.is_sharp:
        raise InputError(f"a path needs an agop_power of at least 0.25, got {agop_power!r}: fit single ridges instead")
    features = read_features(X, memory)
    options = with_device(options, features)
    targets, is_single = read_targets(y, features.shape[0])
    if not is_single and targets.shape[1] > 1:
        raise InputError(f"a path needs one target, got {targets.shape[1]}: call it for each")
    weights = read_weights(sample_weight, features.shape[0])
    most = max_features if max_features is not None else max(1, min(features.shape) // 2)
    with deferred(), thread_limit(check_thread_count(n_threads)):
        problem = make_problem(features.table, targets, weights, fit_intercept, memory)
        design, reduced = prepare(problem.design, problem.targets, options)
        if ridges is None:
            falling = suggested_ridges(design, reduced, options.penalty_power, n_ridges, least_share)
        else:
            falling = check_ridges(ridges)
        coefs, _, has_converged = sparse_path(design, reduced[:, 0].copy(), options, falling, most)
    if not has_converged:
        warnings.warn(f"a fit did not converge in {max_iter} steps: raise max_iter", NotConvergedWarning, stacklevel=2)
    return falling[: len(coefs)], coefs, problem.intercepts(coefs)


def check_ridges(ridges: Any, *, may_end_at_zero: bool = False) -> np.ndarray:
    """Return falling ridges above 0, the last perhaps 0, as float64, or say what is wrong with them."""
    falling = np.asarray(ridges, dtype=np.float64)
    if falling.ndim != 1 or not falling.size or not np.isfinite(falling).all() or (falling < 0.0).any():
        raise InputError(f"ridges must be finite numbers above 0, got {ridges!r}")
    if (np.diff(falling) > 0.0).any():
        raise InputError("ridges must fall, so that each fit can start from the one before: sort them")
    n_zero = int(np.count_nonzero(falling == 0.0))
    if n_zero > int(may_end_at_zero):
        wanted = "one ridge of 0 is enough" if may_end_at_zero else "no path leads to 0, fit SparseRegression(0)"
        raise InputError(f"ridges must be finite numbers above 0, got {ridges!r}: {wanted}")
    return falling
