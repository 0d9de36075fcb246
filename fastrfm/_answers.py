"""What a fitted table is asked: estimates at places, the best columns of rows, what is most similar. A base for
``estimators``.

Rows and columns are asked for by position, or by name where the table has names. The answers themselves come from
``results`` and ``similarity``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrfm._estimator import Transformer
from fastrfm._numba import check_thread_count, thread_limit
from fastrfm.errors import InputError, NotFittedError
from fastrfm.merging import positions_of
from fastrfm.observations import Observations
from fastrfm.results import CompletionResult
from fastrfm.similarity import most_similar
from fastrfm.solvers.new_rows import FittedColumns


class Answers(Transformer):
    """A base class for estimators with ``result_`` and ``observations_``."""

    result_: CompletionResult
    observations_: Observations
    n_threads: int | None

    _fitted_columns: FittedColumns

    def predict(self, rows: Any, cols: Any) -> np.ndarray:
        """Return the fitted estimate at pairs of positions; see :meth:`fastrfm.results.CompletionResult.predict`.

        Raises
        ------
        NotFittedError
            Before :meth:`fit`.
        InputError
            If a position is not a whole number or lies outside the fitted table.
        """
        self._check_fitted("predict")
        return self.result_.predict(rows, cols)

    def recommend(
        self, rows: Any = None, n: int = 10, *, exclude_observed: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the columns with the largest estimates in each row, largest first, ties by lower column.

        Parameters
        ----------
        rows : (n_wanted,) array_like of int or of str, or None for all rows
            Zero-based positions, or names where the fitted table has any.
        n : int
            How many columns; at most n_features_in_.
        exclude_observed : bool
            Whether to leave out the columns in which a row was observed.

        Returns
        -------
        cols : (n_wanted, n) int64
            Positions; -1 where fewer than n columns are left. Where the table named its columns,
            ``feature_names_in_[cols]`` are their names.
        values : (n_wanted, n) float64
            The estimates, in the data's unit; NaN where there is no column.

        Raises
        ------
        NotFittedError
            Before :meth:`fit`, or if `observations_` were deleted and are to be excluded.
        InputError
            If `n` is no whole number from 1 to n_features_in_, or `rows` holds what is no row of the fitted table.

        Notes
        -----
        As :meth:`fastrfm.results.CompletionResult.top`, in blocks of bounded memory. For rows that were not fitted,
        take them in by :meth:`partial_fit` first.

        Examples
        --------
        >>> import numpy as np
        >>> from fastrfm import MatrixCompletion
        >>> table = np.outer([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0])
        >>> table[3, :2] = np.nan
        >>> cols, values = MatrixCompletion(rank=1).fit(table).recommend([3], 3)
        >>> cols.tolist(), values.round(4).tolist()
        ([[1, 0, -1]], [[8.0, 4.0, nan]])
        """
        self._check_fitted("recommend")
        exclude = self._observed("recommend") if exclude_observed else None
        wanted = None if rows is None else self._positions(rows, "row")
        return self.result_.top(wanted, n, exclude)

    def similar_columns(self, cols: Any = None, n: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Return the columns whose estimates over all rows are most similar to those of some, largest cosine first.

        Parameters
        ----------
        cols : (n_wanted,) array_like of int or of str, or None for all columns
            Zero-based positions, or names where the fitted table has any.
        n : int
            How many; at most n_features_in_ - 1, for a column is not its own neighbour.

        Returns
        -------
        neighbours : (n_wanted, n) int64
            Positions, ties by the lower; -1 where fewer than n are left.
        cosines : (n_wanted, n) float64
            From -1 to 1; NaN where there is no neighbour.

        Raises
        ------
        NotFittedError
            Before :meth:`fit`.
        InputError
            If `n` is no whole number from 1 to n_features_in_ - 1, or `cols` holds what is no column.

        Notes
        -----
        Of the low-rank part ``left @ right.T``, without offsets: columns that go up and down in the same rows are
        similar, however high they are. Its columns have the cosines of the rows of ``right * singular_values``. A
        column without any observation, or that the fit found nothing in, has no neighbours and is nobody's.

        Examples
        --------
        >>> import numpy as np
        >>> from fastrfm import MatrixCompletion
        >>> table = np.outer([1.0, 2.0, 3.0], [1.0, 2.0, 0.0]) + np.outer([1.0, -1.0, 1.0], [0.0, 0.1, 1.0])
        >>> neighbours, cosines = MatrixCompletion().fit(table).similar_columns([0], 2)
        >>> neighbours.tolist(), cosines.round(2).tolist()
        ([[1, 2]], [[1.0, 0.31]])
        """
        self._check_fitted("similar_columns")
        vectors = self.result_.right[:, : self.result_.rank] * self.result_.singular_values
        return self._similar(vectors, self._fitted_columns.counts > 0, cols, n, "column")

    def similar_rows(self, rows: Any = None, n: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows whose estimates over all columns are most similar to those of some, largest cosine first.

        As :meth:`similar_columns`, with rows in place of columns.

        Examples
        --------
        >>> import numpy as np
        >>> from fastrfm import MatrixCompletion
        >>> model = MatrixCompletion().fit(np.outer([1.0, -2.0, 3.0, 4.0], [1.0, 2.0, 4.0]))
        >>> model.similar_rows([1], 3)[1].round(4).tolist()
        [[-1.0, -1.0, -1.0]]
        """
        self._check_fitted("similar_rows")
        vectors = self.result_.left[:, : self.result_.rank]
        return self._similar(vectors, np.ones(len(vectors), dtype=bool), rows, n, "row")

    def _similar(
        self, vectors: np.ndarray, is_known: np.ndarray, wanted: Any, n: int, what: str
    ) -> tuple[np.ndarray, np.ndarray]:
        most = len(vectors) - 1
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or not 1 <= n <= most:
            raise InputError(f"n must be a whole number from 1 to {most}, the {what}s beside each, got {n!r}")
        positions = np.arange(len(vectors)) if wanted is None else self._positions(wanted, what)
        with thread_limit(check_thread_count(self.n_threads)):
            return most_similar(np.where(is_known[:, None], vectors, 0.0), positions, int(n))

    def _positions(self, labels: Any, what: str) -> np.ndarray:
        axis = 0 if what == "row" else 1
        names = (self.result_.row_names, self.result_.col_names)[axis]
        return positions_of(labels, names, self.result_.shape[axis], what)

    def _observed(self, method: str) -> Observations:
        self._check_fitted(method)
        if not hasattr(self, "observations_"):
            raise NotFittedError(f"observations_ were deleted, and {method} needs them: call fit again")
        return self.observations_
