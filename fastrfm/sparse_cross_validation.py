"""``SparseRegressionCV``: sparse regression with ridge and AGOP power chosen by cross-validation.

Every fold walks the same ridges down for every power, warm-started; the winner is fitted to all samples alike.
A ridge λ for all samples stands for λ (n_fold / n)^(p/2) in a fold: that keeps the noise that a column must exceed to
enter at the same multiple of its standard deviation.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from fastrfm._interrupt import deferred
from fastrfm._numba import check_thread_count, thread_limit
from fastrfm._regressor import LinearRegressor
from fastrfm.errors import InputError, NotConvergedWarning
from fastrfm.regression_inputs import Features, read_features, read_targets, read_weights
from fastrfm.solvers.sparse import prepare, solve_sparse, sparse_path, suggested_ridges
from fastrfm.sparse_options import SparseOptions
from fastrfm.sparse_regression import Problem, check_ridges, make_problem, with_device

POWERS = (0.25, 0.375, 0.5, 1.0)
N_RIDGES, LEAST_SHARE = 60, 1e-4  # folds of correlated features are often told best by a very small ridge


class SparseRegressionCV(LinearRegressor):
    """Sparse linear regression whose ridge and AGOP power are chosen by cross-validation.

    Parameters
    ----------
    agop_powers : sequence of float
        Those to try, each at least 1/4.
    ridges : (n,) array_like or None
        Falling; the last may be 0, which interpolates, or is least squares where samples outnumber features. None lets
        the data suggest `n_ridges` for each power, see :func:`sparse_regression_path`.
    n_ridges, least_share, max_features
        As there; by default 60 ridges, down to an entry threshold of 1e-4 of the first.
    cv : int, splitter or iterable of (train, test) index arrays
        A number of folds, drawn with `random_state`.
    one_standard_error : bool
        Take the setting that selects fewest features among those within one standard error of the least error.
    fit_intercept, tol, max_iter, n_threads
        As in :class:`SparseRegression`.
    random_state : int
    device : {"cpu", "cuda", "auto"}
        As in :class:`SparseRegression`; every fold goes to the device for itself.

    Attributes
    ----------
    coef_, intercept_, n_features_in_, feature_names_in_
        As in :class:`SparseRegression`.
    ridge_, agop_power_ : float
        The setting chosen; the ridge is that for all samples.
    cv_results_ : dict of (n_settings,) float64 arrays
        agop_power, ridge, mean_error (mean squared error of samples left out, infinite where a fold's path ended
        before), standard_error (over folds) and n_active (mean number of nonzero coefficients).
    n_iter_ : int
        Ridges solved for the final fit.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((80, 200))
    >>> y = X[:, 3] - X[:, 9] + 0.3 * rng.standard_normal(80)
    >>> model = SparseRegressionCV(n_ridges=20, one_standard_error=True).fit(X, y)
    >>> np.flatnonzero(model.coef_).tolist()
    [3, 9]
    """

    _defaults: ClassVar[dict[str, Any]] = {
        "agop_powers": POWERS,
        "ridges": None,
        "n_ridges": N_RIDGES,
        "least_share": LEAST_SHARE,
        "max_features": None,
        "cv": 5,
        "one_standard_error": False,
        "fit_intercept": SparseOptions.fit_intercept,
        "tol": 1e-6,
        "max_iter": SparseOptions.max_iter,
        "random_state": 0,
        "n_threads": None,
        "device": SparseOptions.device,
    }

    def __init__(
        self,
        agop_powers: Any = POWERS,
        *,
        ridges: Any = None,
        n_ridges: int = N_RIDGES,
        least_share: float = LEAST_SHARE,
        max_features: int | None = None,
        cv: Any = 5,
        one_standard_error: bool = False,
        fit_intercept: bool = SparseOptions.fit_intercept,
        tol: float = 1e-6,
        max_iter: int = SparseOptions.max_iter,
        random_state: int = 0,
        n_threads: int | None = None,
        device: str = SparseOptions.device,
    ) -> None:
        self.agop_powers = agop_powers
        self.ridges = ridges
        self.n_ridges = n_ridges
        self.least_share = least_share
        self.max_features = max_features
        self.cv = cv
        self.one_standard_error = one_standard_error
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state
        self.n_threads = n_threads
        self.device = device

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> SparseRegressionCV:
        """Choose ridge and power, fit all samples with them and return the estimator itself.

        Parameters
        ----------
        X, y, sample_weight
            As in :meth:`SparseRegression.fit`; several targets share one setting. `X` is held in memory.

        Raises
        ------
        InputError
            As there; also for an agop_power below 1/4, a ridge of 0 that is not the last, fewer than two folds or
            samples, or an X that stays in a file.
        DeviceError
            As there.

        Warns
        -----
        NotConvergedWarning
            If the final fit did not converge.
        DeviceWarning
            As there.
        """
        features = read_features(X)
        if features.is_stored:
            raise InputError(
                "cross-validation holds X in memory: read it first (X[...] of a dataset), or fit single ridges"
            )
        targets, is_single = read_targets(y, features.shape[0])
        weights = read_weights(sample_weight, features.shape[0])
        options = self._options(features)
        with deferred(), thread_limit(check_thread_count(self.n_threads)):
            folds = make_folds(self.cv, features.table, targets, self.random_state)
            data = (features.table, targets, weights)
            grids = [self._grid(data, option) for option in options]
            tables = [self._errors(data, option, grid, folds) for option, grid in zip(options, grids, strict=True)]
            self._choose(options, grids, tables)
            self._refit(data, options, grids, is_single)
        self._note_columns(features)
        return self

    def _options(self, features: Features) -> list[SparseOptions]:
        shared: dict[str, Any] = {"fit_intercept": self.fit_intercept, "tol": self.tol, "max_iter": self.max_iter}
        shared["device"] = with_device(SparseOptions(device=self.device), features).device
        powers = list(self.agop_powers) if isinstance(self.agop_powers, Iterable) else []
        options = [SparseOptions(ridge=1.0, agop_power=power, **shared) for power in powers]
        if not options or not all(option.is_sharp for option in options):
            raise InputError(f"agop_powers must be a list of numbers of at least 0.25, got {self.agop_powers!r}")
        return options

    def _grid(self, data: tuple[Any, ...], options: SparseOptions) -> np.ndarray:
        if self.ridges is not None:
            return check_ridges(self.ridges, may_end_at_zero=True)
        problem = make_problem(data[0], data[1], data[2], options.fit_intercept)
        return suggested_ridges(problem.design, problem.targets, options.penalty_power, self.n_ridges, self.least_share)

    def _most(self, n_samples: int, n_features: int) -> int:
        return int(self.max_features) if self.max_features is not None else max(1, min(n_samples, n_features) // 2)

    def _errors(self, data: tuple[Any, ...], options: SparseOptions, grid: np.ndarray, folds: Any) -> np.ndarray:
        """Return mean squared errors and nonzero counts, (2, n_folds, n_ridges)."""
        table, targets, weights = data
        out = np.full((2, len(folds), grid.size), np.inf)
        for place, (train, test) in enumerate(folds):
            part = None if weights is None else weights[train]
            problem = make_problem(table[train], targets[train], part, options.fit_intercept)
            share = float(problem.design.roots @ problem.design.roots) / _total(weights, len(targets))
            errors, most = np.zeros((2, grid.size)), self._most(len(train), table.shape[1])
            paths = _paths(problem, options, grid * share ** (0.5 * options.penalty_power), most)
            for t, (places, coefs, _) in enumerate(paths):
                predicted = np.asarray(table[test] @ coefs.T)
                predicted += problem.target_means[t] - coefs @ problem.means
                misfit = (targets[test, t, None] - predicted) ** 2
                shares = np.ones(len(test)) if weights is None else weights[test]
                errors[0, places] += (shares @ misfit) / max(float(shares.sum()), 1e-300)
                errors[1, places] += np.count_nonzero(coefs, axis=1)
                errors[:, np.setdiff1d(np.arange(grid.size), places)] = np.inf
            out[:, place] = errors
        return out

    def _choose(self, options: list[SparseOptions], grids: list[np.ndarray], tables: list[np.ndarray]) -> None:
        n_folds = tables[0].shape[1]
        means = np.concatenate([table[0].mean(axis=0) for table in tables])
        counts = np.concatenate([table[1].mean(axis=0) for table in tables])
        spreads = []
        for table in tables:
            finite = np.where(np.isfinite(table[0]), table[0], 0.0)
            is_whole = np.isfinite(table[0]).all(axis=0)
            spreads.append(np.where(is_whole, finite.std(axis=0, ddof=1) / np.sqrt(n_folds), np.inf))
        deviations = np.concatenate(spreads)
        best = int(np.argmin(means))
        if self.one_standard_error:
            near = np.flatnonzero(means <= means[best] + deviations[best])
            best = int(near[np.lexsort((means[near], counts[near]))[0]])
        powers = np.repeat([option.agop_power for option in options], [grid.size for grid in grids])
        self.cv_results_ = {
            "agop_power": powers,
            "ridge": np.concatenate(grids),
            "mean_error": means,
            "standard_error": deviations,
            "n_active": counts,
        }
        self.agop_power_, self.ridge_ = float(powers[best]), float(self.cv_results_["ridge"][best])

    def _refit(
        self, data: tuple[Any, ...], options: list[SparseOptions], grids: list[np.ndarray], is_single: bool
    ) -> None:
        place = [option.agop_power for option in options].index(self.agop_power_)
        ridges = grids[place][grids[place] >= self.ridge_]
        problem = make_problem(data[0], data[1], data[2], self.fit_intercept)
        if self.ridge_ == 0.0:  # stands alone: no path leads there
            ridges = ridges[-1:]
        paths = list(_paths(problem, options[place], ridges, problem.design.shape[1]))
        coefs, has_converged = [found[-1] for _, found, _ in paths], all(is_good for *_, is_good in paths)
        self.n_iter_ = int(ridges.size)
        chosen = np.array(coefs)
        intercepts = problem.intercepts(chosen)
        self.coef_, self.intercept_ = (chosen[0], float(intercepts[0])) if is_single else (chosen, intercepts)
        if not has_converged:
            warnings.warn("the final fit did not converge: raise max_iter or tol", NotConvergedWarning, stacklevel=3)


def _paths(
    problem: Problem, options: SparseOptions, ridges: np.ndarray, most: int
) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """Yield for each target the places in `ridges` that were solved, their coefficients, and whether all converged.

    A path goes down the ridges above 0 until it has more than `most` features; a ridge of 0 is interpolated on its own.
    """
    n_positive = int(np.count_nonzero(ridges))
    design, reduced = prepare(problem.design, problem.targets, options)
    at_zero = replace(options, ridge=0.0)
    fits = solve_sparse(problem.design, problem.targets, at_zero) if n_positive < ridges.size else []
    for t, target in enumerate(reduced.T):
        coefs, _, has_converged = sparse_path(design, target.copy(), options, ridges[:n_positive], most)
        places = np.arange(len(coefs))
        if fits:
            coefs, places = np.vstack([coefs, fits[t].coef]), np.append(places, n_positive)
            has_converged &= fits[t].stop_reason != "max_iter"
        yield places, coefs, has_converged


def make_folds(cv: Any, table: Any, targets: np.ndarray, random_state: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (train, test) index arrays from a number of folds, a splitter or pairs.

    Raises
    ------
    InputError
        If there are fewer than two folds, or fewer samples than folds.
    """
    n_samples = len(targets)
    if hasattr(cv, "split"):
        folds = list(cv.split(table, targets))
    elif isinstance(cv, Iterable):
        folds = [(np.asarray(train), np.asarray(test)) for train, test in cv]
    else:
        n_folds = operator.index(cv)
        if n_samples < 2:
            raise InputError(f"cross-validation needs at least 2 samples, got 1 sample (n_samples = {n_samples})")
        if n_folds < 2:
            raise InputError(f"cv must be at least 2 folds, got {cv!r}")
        order = np.random.default_rng(random_state).permutation(n_samples)
        tests = [np.sort(part) for part in np.array_split(order, min(n_folds, n_samples))]
        folds = [(np.setdiff1d(np.arange(n_samples), test), test) for test in tests]
    if len(folds) < 2:
        raise InputError(f"cv must give at least 2 folds, got {len(folds)}")
    return folds


def _total(weights: np.ndarray | None, n_samples: int) -> float:
    return float(n_samples) if weights is None else float(weights.sum())
