"""``MatrixCompletion``: the solvers behind scikit-learn's conventions, with or without scikit-learn installed.

Flow: a table with gaps -> ``Observations`` -> ``complete`` -> attributes ending in ``_``; new rows go through
``solvers.new_rows``, new entries through ``merging`` and ``solvers.update``. What scikit-learn asks of a transformer is
in ``_estimator``. Not here: iterations and row solves (``solvers``), choice of options by hold-out.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np

from fastrfm._answers import Answers
from fastrfm._numba import check_thread_count, thread_limit
from fastrfm.errors import InputError
from fastrfm.merging import merged, rows_of
from fastrfm.observations import Observations
from fastrfm.options import AUTO, AUTOMATIC, CompletionOptions, Power
from fastrfm.results import CompletionResult
from fastrfm.solvers.completion import complete
from fastrfm.solvers.new_rows import complete_rows, fitted_columns
from fastrfm.solvers.update import update
from fastrfm.tables import observe_table

SCORE_SHARE = 0.2  # of the observed entries that ``score`` hides
_DEFAULTS = {option.name: getattr(CompletionOptions, option.name) for option in fields(CompletionOptions)} | AUTOMATIC


class MatrixCompletion(Answers):
    """Fill the gaps of a table by low-rank completion (lin-RFM); a scikit-learn transformer.

    Parameters
    ----------
    rank, method, agop_power, ridge, offsets, count_power, huber, implicit, side_weight, bounds, one_standard_error, \
    tol, max_iter, smoothing, random_state, n_threads, device
        See :class:`fastrfm.options.CompletionOptions`. They are checked by :meth:`fit`. With ``ridge="auto"``, the
        default here, everything that is "auto" is chosen on entries held out.

    Attributes
    ----------
    result_ : CompletionResult
        Everything about the fit.
    left_, right_ : (n_rows, k) and (n_features, k) float64
        Factors of the fitted estimate; see :class:`fastrfm.results.CompletionResult`.
    offsets_ : Offsets or None
    rank_, n_iter_, n_features_in_ : int
    stop_reason_ : str
    singular_values_ : (rank_,) float64
        In the data's unit.
    column_means_ : (n_features,) float64
        Means of the observed entries; the overall mean for a column without any. In the data's unit.
    feature_names_in_ : (n_features,) object array of str
        Only if the fitted table named its columns.
    observations_ : Observations
        The entries that were fitted, pickled with the rest. :meth:`partial_fit` and :meth:`recommend` need them;
        ``del model.observations_`` gives their memory back to those who do not.

    Notes
    -----
    Tables are 2-D arrays with NaN for missing, data frames, scipy.sparse matrices (every stored entry is observed,
    stored zeros too) or :class:`fastrfm.Observations`. They are never changed. Booleans and whole numbers, also
    pandas's nullable ones, count as numbers.

    Examples
    --------
    >>> import numpy as np
    >>> table = np.outer([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0])
    >>> table[0, 2] = table[3, 0] = np.nan
    >>> model = MatrixCompletion()
    >>> model.fit_transform(table)[[0, 3], [2, 0]].round(4).tolist()
    [4.0, 4.0]
    >>> model.transform([[5.0, np.nan, np.nan]]).round(4).tolist()
    [[5.0, 10.0, 20.0]]
    """

    _defaults = _DEFAULTS

    def __init__(
        self,
        rank: int | None = CompletionOptions.rank,
        *,
        method: str = CompletionOptions.method,
        agop_power: Power | str = AUTO,
        ridge: float | str = AUTO,
        offsets: bool | str = AUTO,
        count_power: float = CompletionOptions.count_power,
        huber: float | None = CompletionOptions.huber,
        implicit: int | str = AUTO,
        side_weight: float = CompletionOptions.side_weight,
        bounds: tuple[float, float] | str | None = AUTO,
        one_standard_error: bool = CompletionOptions.one_standard_error,
        tol: float | None = CompletionOptions.tol,
        max_iter: int = CompletionOptions.max_iter,
        smoothing: str | float = CompletionOptions.smoothing,
        random_state: int = CompletionOptions.random_state,
        n_threads: int | None = CompletionOptions.n_threads,
        device: str = CompletionOptions.device,
    ) -> None:
        self.rank = rank
        self.method = method
        self.agop_power = agop_power
        self.ridge = ridge
        self.offsets = offsets
        self.count_power = count_power
        self.huber = huber
        self.implicit = implicit
        self.side_weight = side_weight
        self.bounds = bounds
        self.one_standard_error = one_standard_error
        self.tol = tol
        self.max_iter = max_iter
        self.smoothing = smoothing
        self.random_state = random_state
        self.n_threads = n_threads
        self.device = device

    # --- fitting ----------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any = None, *, weights: Any = None) -> MatrixCompletion:
        """Complete the table `X` and return the estimator itself.

        Parameters
        ----------
        X : (n_rows, n_features) table
            See the class's notes. A data frame's index becomes ``result_.row_names``.
        y : ignored
        weights : (n_rows, n_features) or (n_observed,) array_like of float above 0, optional
            Of the entries' squared misfits, as inverse variances are; see :meth:`fastrfm.Observations.with_weights`.

        Raises
        ------
        InputError
            If `X` has no observation, holds infinities or is not a 2-D table, or if a parameter is out of its range.

        Warns
        -----
        NotConvergedWarning
            If `max_iter` came before `tol`.
        """
        self._fit(_weighted(observe_table(X), weights))
        return self

    def _fit(self, observations: Observations) -> None:
        parameters = self.get_params()
        self._take(complete(observations, **parameters), observations)
        self._fitted_parameters, self._regressed_counts = parameters, observations.col_counts

    def _take(self, result: CompletionResult, observations: Observations) -> None:
        """Make a result the fitted one."""
        self._fitted_columns = fitted_columns(observations, result.offsets)
        self.result_ = result
        self.observations_ = _bare(observations)
        self.left_, self.right_, self.offsets_ = result.left, result.right, result.offsets
        self.rank_, self.n_iter_, self.stop_reason_ = result.rank, result.n_iter, result.stop_reason
        self.singular_values_ = result.singular_values
        self.n_features_in_ = observations.n_cols
        self.column_means_ = self._fitted_columns.means
        self.__dict__.pop("feature_names_in_", None)
        if observations.col_names is not None:
            self.feature_names_in_ = observations.col_names

    def fit_transform(self, X: Any, y: Any = None, *, weights: Any = None) -> Any:
        """Complete the table `X`: observed entries stay as given, missing ones get the estimate.

        Parameters
        ----------
        X, y, weights
            As for :meth:`fit`.

        Returns
        -------
        (n_rows, n_features) float64 array, or what :meth:`set_output` asked for
            ``result_.to_dense()`` is the estimate at the observed entries too.

        Raises
        ------
        InputError
            As :meth:`fit`.
        MissingPackageError
            If a data frame was asked for and its package is not installed.
        """
        observations = _weighted(observe_table(X), weights)
        self._fit(observations)
        return self._as_asked(_impute(self.result_, observations), X)

    def partial_fit(self, X: Any, y: Any = None, *, rows: Any = None) -> MatrixCompletion:
        """Take in new entries of known rows, or new rows, and return the estimator itself; without :meth:`fit`, fit.

        Parameters
        ----------
        X : (n_lines, n_features_in_) table
            A line for each row that has something new; NaN says nothing. A value at a place that was observed before
            replaces the one there.
        y : ignored
        rows : (n_lines,) array_like of int or of str, optional
            The rows of the fitted table that the lines of `X` belong to: zero-based positions, or names if it has
            any. Names that it does not have are new rows. By default lines go by the names in the index of a data frame
            if the fitted table was one with names, and are new rows, appended in their order, if it was not.

        Raises
        ------
        NotFittedError
            If `rows` is given before :meth:`fit`, or `observations_` were deleted.
        InputError
            As :meth:`transform`; also if `rows` does not go with `X` or with the fitted table, or two lines are of the
            same row.

        Notes
        -----
        All rows are solved exactly against the columns, as :meth:`transform` does. Columns that have half as many new
        (or replaced) entries as they had when they were last solved are solved against the rows, and then the rows once
        more, in turn up to three times (``solvers.update``): a few passes over all entries. Options and rank stay those
        of the fit, chosen or given, also if parameters were set since, and so does ``stop_reason_``; offsets are
        computed again. Where the entries have multiplied, :meth:`fit` anew may choose better. It is done at once where
        the fit had found nothing, and where it had no ridge and its estimate does not explain the new entries as well
        as it did the old ones.

        Examples
        --------
        >>> import numpy as np
        >>> nan = np.nan
        >>> table = np.outer([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0])
        >>> table[0, 2] = table[3, 0] = nan
        >>> model = MatrixCompletion(rank=1).fit(table)
        >>> model.partial_fit([[5.0, nan, nan]]).predict(4, [1, 2]).round(4).tolist()  # a new row
        [10.0, 20.0]
        >>> model.partial_fit([[nan, nan, 4.0]], rows=[0]).result_.n_observed  # a new entry of the first one
        12
        """
        if not self.__sklearn_is_fitted__() and rows is None:
            return self.fit(X)
        fitted = self._observed("partial_fit")
        entries = self._observe_rows(X)
        observations = merged(fitted, entries, *rows_of(entries, rows, fitted))
        if entries.n_observed or observations.n_rows > fitted.n_rows:
            parameters = {**self._fitted_parameters, "n_threads": self.n_threads, "device": self.device}
            n_replaced = fitted.col_counts + entries.col_counts - observations.col_counts
            regressed = self._regressed_counts - n_replaced  # what was replaced is new again
            result, regressed = update(self.result_, observations, parameters, regressed)
            self._take(result, observations)
            self._regressed_counts = regressed
        return self

    # --- new rows ---------------------------------------------------------------------------------------------

    def transform(self, X: Any, *, weights: Any = None) -> Any:
        """Complete new rows without refitting: observed entries stay as given, missing ones get the estimate.

        Parameters
        ----------
        X : (n_new_rows, n_features_in_) table
            See the class's notes. Rows without any observation are welcome.
        weights : array_like, optional
            As for :meth:`fit`.

        Returns
        -------
        (n_new_rows, n_features_in_) float64 array, or what :meth:`set_output` asked for

        Raises
        ------
        NotFittedError
            Before :meth:`fit`.
        InputError
            If `X` has another number of columns or other column names than the fitted table, or is unusable.
        MissingPackageError
            If a data frame was asked for and its package is not installed.

        Notes
        -----
        Each row is the ridge regression of its observed entries on the first `rank_` columns of `right_`; with
        ``ridge=0`` least squares, and where entries are too few for that the solution of least Σ c_j²/d_j, which the
        solver's own rows tend to as ε fades. With offsets, the row's offset is estimated first, with the shrinkage
        of the fitted rows. What the data cannot tell is filled in as :meth:`fit` does: a row with no entry in any
        fitted column gets `column_means_` (with offsets: mean + column offsets), a column that was empty in the fitted
        table gets the mean of the new row's entries (with offsets: mean + row offset).

        Rows of the fitted table come out as :meth:`fit_transform` gives them as far as the fit has converged and `rank`
        did not cut it short. With a ridge the default `tol` stops early, and the two differ visibly. `count_power`,
        `huber` and joint offsets are not followed for new rows: theirs are regressions by squares with the plain ridge.
        """
        self._check_fitted("transform")
        observations = _weighted(self._observe_rows(X), weights)
        return self._as_asked(_impute(self._complete_rows(observations), observations), X)

    def _observe_rows(self, table: Any) -> Observations:
        observations = observe_table(table, allow_empty=True)
        if observations.n_cols != self.n_features_in_:
            raise InputError(
                f"X has {observations.n_cols} features, but {type(self).__name__} is expecting {self.n_features_in_} "
                "features as input: pass the columns of the fitted table, NaN where nothing was observed"
            )
        names, fitted = observations.col_names, getattr(self, "feature_names_in_", None)
        if names is not None and fitted is not None and not np.array_equal(names, fitted):
            where = int(np.flatnonzero(names != fitted)[0])
            raise InputError(
                f"X must have the fitted table's columns in their order: column {where} is {names[where]!r}, "
                f"wanted {fitted[where]!r}"
            )
        return observations

    def _complete_rows(self, observations: Observations) -> CompletionResult:
        with thread_limit(check_thread_count(self.n_threads)):
            return complete_rows(self.result_, self._fitted_columns, observations)

    # --- how good it is ---------------------------------------------------------------------------------------

    def score(self, X: Any, y: Any = None) -> float:
        """Return R² on hidden entries of the rows `X`: how well :meth:`transform` completes them.

        Parameters
        ----------
        X : (n_new_rows, n_features_in_) table
            Rows that :meth:`fit` has not seen: those it has seen come out too well.
        y : ignored

        Returns
        -------
        float
            1 − Σ (predicted − hidden)² / Σ (hidden − mean of hidden)²; 1 is perfect, a constant guess reaches at
            most 0. Where all hidden entries are equal: 1 if predicted exactly, else 0.

        Raises
        ------
        NotFittedError
            Before :meth:`fit`.
        InputError
            As :meth:`transform`; also if `X` has fewer than 5 observed entries.

        Notes
        -----
        A fifth of the entries of `X`, chosen by `random_state` over the whole table, is hidden, the rows are
        completed from the rest, and the hidden entries are compared. So ``cross_val_score`` and ``GridSearchCV``
        measure completion of unseen rows. For hidden entries of the fitted table itself use :meth:`predict` and
        ``fastrfm.metrics``.
        """
        self._check_fitted("score")
        observations = self._observe_rows(X)
        if int(SCORE_SHARE * observations.n_observed) < 1:
            raise InputError(
                f"score hides a fifth of the observed entries and needs at least 5, got {observations.n_observed}"
                ": pass more rows"
            )
        kept, hidden = observations.split(SCORE_SHARE, random_state=self.random_state)
        rows, cols, values = hidden.to_coo()
        error = self._complete_rows(kept).predict(rows, cols) - values
        spread = np.subtract(values, np.mean(values, dtype=np.float64), dtype=np.float64)
        misfit, total = float(error @ error), float(spread @ spread)
        if total == 0.0:
            return 1.0 if misfit == 0.0 else 0.0
        return 1.0 - misfit / total

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if "observations_" in state:
            state["observations_"] = _bare(state["observations_"])
        return state


# --- helpers ----------------------------------------------------------------------------------------------------


def _bare(observations: Observations) -> Observations:
    """Return the same observations without what they keep for the next pass, which is as large again."""
    return observations.with_values(observations.values)


def _weighted(observations: Observations, weights: Any) -> Observations:
    return observations if weights is None else observations.with_weights(weights)


def _impute(estimate: CompletionResult, observations: Observations) -> np.ndarray:
    dense = estimate.to_dense()
    rows, cols, values = observations.to_coo()
    dense[rows, cols] = values
    return dense
