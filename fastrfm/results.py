"""What a completion hands back: the estimate in factored form and the story of how it came about.

Flow: solvers make a ``CompletionResult``, ``store`` writes and reads it, the estimator and the command show it. The
estimate is ``left @ right.T`` plus, with offsets, ``mean + rows[i] + cols[j]``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrfm import ranking
from fastrfm._interrupt import check
from fastrfm.errors import InputError

if TYPE_CHECKING:
    from fastrfm.blocks import RowBlocks

_BLOCK_BYTES = 1 << 26  # of memory for a block of rows; larger gains nothing


@dataclass(frozen=True, eq=False)
class Offsets:
    """The additive part of an estimate: ``mean + rows[i] + cols[j]``, in the data's unit.

    Attributes
    ----------
    mean : float
    rows : (n_rows,) float64
        Zero for a row without observations.
    cols : (n_cols,) float64
        Zero for a column without observations.
    """

    mean: float
    rows: np.ndarray
    cols: np.ndarray

    def at(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """Return the offsets at pairs of positions, float64."""
        return np.asarray(self.mean + self.rows[rows] + self.cols[cols])


@dataclass(frozen=True, eq=False)
class Selection:
    """How the options of a result were chosen: by fits that did not see some of the entries.

    Attributes
    ----------
    fits : dict of (n_fits,) arrays
        One element per fit, in the order of the search: ``agop_power``, ``ridge``, ``offsets`` (bool), ``implicit``
        (int64), ``rank`` (int64), ``rmse`` on the entries held out and ``standard_error`` of its square (data's unit,
        and its square), ``n_iter`` (int64), ``seconds`` since the start.
    chosen : int
        Position of the fit whose options were taken.
    rows, cols : (n_held_out,) int64
        The entries held out.
    values, predicted : (n_held_out,) float64
        What was observed there, and what the chosen fit predicts without having seen it; in the data's unit.
    """

    fits: dict[str, np.ndarray]
    chosen: int
    rows: np.ndarray
    cols: np.ndarray
    values: np.ndarray
    predicted: np.ndarray

    @property
    def rmse(self) -> float:
        """Of the chosen fit, on the entries held out."""
        return float(self.fits["rmse"][self.chosen])


@dataclass(frozen=True, eq=False)
class CompletionResult:
    """A completed matrix in factored form.

    Attributes
    ----------
    left, right : (n_rows, k) and (n_cols, k) float64
        The estimate is ``left @ right.T`` (plus `offsets`). The first `rank` columns of `right` are orthonormal and
        ordered by singular value. Without offsets, k exceeds `rank` by one if some row has no observation and by one
        if some column has none: those last columns give such a row the column means of the observations, such a
        column the row means, and a cell of both the overall mean.
    offsets : Offsets or None
    rank : int
        Directions of the estimate that stand above the stopping tolerance.
    singular_values : (rank,) float64
        Of the low-rank part, descending, in the data's unit.
    history : dict of (n_iter,) arrays
        ``smoothing`` (ε), ``change`` (relative change of the estimate), ``error_estimate`` (that change extrapolated
        to the limit), ``masked_rmse`` (data's unit), ``rank`` (directions above ε; 0 where the method does not look)
        and ``seconds`` since the start, one element per iteration.
    stop_reason : str
        ``"converged"``, ``"max_iter"``, ``"callback"`` or, two-sided only, ``"stalled"``.
    masked_rmse : float
        Root mean square of (estimate - observed) on the observed entries, for the factors as returned.
    n_observed, n_empty_rows, n_empty_cols : int
        Of the observations that were fitted.
    options : dict
        Every option of the run as it was used (method, agop_power, ridge, ...).
    row_names, col_names : object arrays of str, or None
    bounds : (float, float) or None
        Predictions are cut to lie between them; in the data's unit.
    selection : Selection or None
        How the options were chosen, where they were.
    """

    left: np.ndarray
    right: np.ndarray
    offsets: Offsets | None
    rank: int
    singular_values: np.ndarray
    history: dict[str, np.ndarray]
    stop_reason: str
    masked_rmse: float
    n_observed: int
    n_empty_rows: int
    n_empty_cols: int
    options: dict[str, Any] = field(default_factory=dict)
    row_names: np.ndarray | None = None
    col_names: np.ndarray | None = None
    bounds: tuple[float, float] | None = None
    selection: Selection | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[0]

    @property
    def n_iter(self) -> int:
        return len(self.history["change"])

    @property
    def seconds(self) -> float:
        """Time from start to the last iteration, in seconds."""
        return float(self.history["seconds"][-1]) if self.n_iter else 0.0

    def predict(self, rows: Any, cols: Any) -> np.ndarray:
        """Return the estimate at pairs of positions, cut to `bounds`.

        Parameters
        ----------
        rows, cols : array_like of int, broadcast against each other
            Zero-based positions.

        Returns
        -------
        float64 array of the broadcast shape, in the data's unit

        Raises
        ------
        InputError
            If a position is not a whole number or lies outside the matrix.
        """
        rows, cols = np.broadcast_arrays(rows, cols)
        _check_positions(rows, self.shape[0], "row")
        _check_positions(cols, self.shape[1], "column")
        flat_rows = np.array(rows, dtype=np.int64).ravel()
        flat_cols = np.array(cols, dtype=np.int64).ravel()
        return self._bounded(self._unbounded(flat_rows, flat_cols)).reshape(rows.shape)

    def _unbounded(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        from fastrfm.kernels.residual import predict_pairs

        out = np.empty(rows.size)
        predict_pairs(rows, cols, self.left, self.right, out)
        if self.offsets is not None:
            out += self.offsets.at(rows, cols)
        return out

    def _bounded(self, estimate: np.ndarray) -> np.ndarray:
        """Cut an estimate to the bounds, in place."""
        return estimate if self.bounds is None else np.clip(estimate, *self.bounds, out=estimate)

    def to_dense(self) -> np.ndarray:
        """Return the whole estimate, (n_rows, n_cols) float64: needs 8 n_rows n_cols bytes."""
        return self.block(slice(None))

    def block(self, rows: Any, cols: Any = slice(None), out: np.ndarray | None = None) -> np.ndarray:
        """Return the estimate at whole rows (and columns), float64, cut to `bounds`.

        Parameters
        ----------
        rows, cols : slice or (n,) int array
            Of the matrix; the block has the shape of their product.
        out : float64 array of that shape, optional
            Written and returned; a loop over blocks is several times as fast with it.
        """
        return self._bounded(self._unbounded_block(rows, cols, out))

    def _unbounded_block(self, rows: Any, cols: Any = slice(None), out: np.ndarray | None = None) -> np.ndarray:
        block: np.ndarray = np.matmul(self.left[rows], self.right[cols].T, out=out)
        if self.offsets is not None:
            block += (self.offsets.mean + self.offsets.rows[rows])[:, None]
            block += self.offsets.cols[cols]
        return block

    def check_finite(self) -> None:
        """Raise InputError unless factors and offsets are finite: NaN would read as missing, and has no rank."""
        parts = [self.left, self.right]
        if self.offsets is not None:
            parts += [self.offsets.rows, self.offsets.cols, np.asarray(self.offsets.mean)]
        # NaN comes through both, and neither makes an array of flags.
        if not all(np.isfinite(part.min(initial=0.0)) and np.isfinite(part.max(initial=0.0)) for part in parts):
            raise InputError("the result holds NaN or infinite numbers: complete the matrix again")

    def top(
        self, rows: Any, n: int, exclude: RowBlocks | None = None, *, block_bytes: int = _BLOCK_BYTES
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the columns with the largest estimates in each row, largest first, ties by lower column.

        Parameters
        ----------
        rows : (n_wanted,) array_like of int, or None for all rows
            Zero-based positions.
        n : int
            How many columns; at most n_cols.
        exclude : Observations or StoredObservations, optional
            Entries that are not to be taken, such as those already known; of the matrix's shape.
        block_bytes : int
            About how much memory to use beside the answer; the answer does not depend on it.

        Returns
        -------
        cols : (n_wanted, n) int64
            -1 where fewer than n columns are left.
        values : (n_wanted, n) float64
            What :meth:`predict` gives there, in the data's unit; NaN where no column is left. The order is that
            of the estimate before it is cut to `bounds`.

        Raises
        ------
        InputError
            If `n` is no whole number from 1 to n_cols, a position is none of the matrix, `exclude` has another shape,
            or the result holds NaN or infinities.
        """
        rows = np.arange(self.shape[0]) if rows is None else np.asarray(rows)
        self._check_top(rows, n, exclude)
        rows = rows.astype(np.int64, copy=False)
        cols, values = np.empty((rows.size, n), dtype=np.int64), np.empty((rows.size, n))
        step = max(block_bytes // (ranking.BYTES_PER_ENTRY * self.shape[1]), 1)
        room = np.empty((min(step, rows.size), self.shape[1]))
        for start in range(0, rows.size, step):
            check()  # Ctrl-C
            span = slice(start, min(start + step, rows.size))
            cols[span], values[span] = self._top_of_block(rows[span], n, exclude, room[: span.stop - start])
        return cols, self._bounded(values)

    def _top_of_block(
        self, rows: np.ndarray, n: int, exclude: RowBlocks | None, block: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        self._unbounded_block(rows, out=block)
        if exclude is not None:
            for k, i in enumerate(rows):
                block[k, exclude.cols_of(int(i))] = -np.inf
        added = 0.0
        if self.offsets is not None:
            parts = self.offsets.rows, self.offsets.cols
            added = abs(self.offsets.mean) + sum(float(np.abs(part).max(initial=0.0)) for part in parts)
        margin = ranking.rounding_margin(self.left[rows], self.right, added)
        return ranking.largest(block, n, margin, lambda i, j: self._unbounded(rows[i], j))

    def _check_top(self, rows: np.ndarray, n: int, exclude: RowBlocks | None) -> None:
        n_cols = self.shape[1]
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
            raise InputError(f"n must be a whole number, at least 1, got {n!r}")
        if n > n_cols:
            raise InputError(f"n must be at most the number of columns, {n_cols}, got {n}: ask for fewer")
        if rows.ndim != 1:
            raise InputError(f"rows must be 1-D, got {rows.ndim} dimensions: give a list of positions")
        _check_positions(rows, self.shape[0], "row")
        if exclude is not None and exclude.shape != self.shape:
            raise InputError(
                f"the observations to exclude must have the result's shape {self.shape}, got {exclude.shape}"
            )
        self.check_finite()


def _check_positions(positions: np.ndarray, size: int, what: str) -> None:
    if positions.size and positions.dtype.kind not in "iu":
        raise InputError(f"{what} positions must be whole numbers, got dtype {positions.dtype}")
    if positions.size and (positions.min() < 0 or positions.max() >= size):
        raise InputError(f"{what} positions must lie in 0…{size - 1}, got {positions.min()}…{positions.max()}")
