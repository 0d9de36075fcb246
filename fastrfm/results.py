"""What a completion hands back: the estimate in factored form and the story of how it came about.

Flow: solvers make a ``CompletionResult``, ``store`` writes and reads it, the estimator and the command show it. The
estimate is ``left @ right.T`` plus, with offsets, ``mean + rows[i] + cols[j]``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastrfm.errors import InputError


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
        """Return the estimate at pairs of positions.

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
        from fastrfm.kernels.residual import predict_pairs

        rows, cols = np.broadcast_arrays(rows, cols)
        for positions, size, what in ((rows, self.shape[0], "row"), (cols, self.shape[1], "column")):
            if positions.size and positions.dtype.kind not in "iu":
                raise InputError(f"{what} positions must be whole numbers, got dtype {positions.dtype}")
            if positions.size and (positions.min() < 0 or positions.max() >= size):
                raise InputError(f"{what} positions must lie in 0…{size - 1}, got {positions.min()}…{positions.max()}")
        flat_rows = np.array(rows, dtype=np.int64).ravel()
        flat_cols = np.array(cols, dtype=np.int64).ravel()
        out = np.empty(flat_rows.size)
        predict_pairs(flat_rows, flat_cols, self.left, self.right, out)
        if self.offsets is not None:
            out += self.offsets.at(flat_rows, flat_cols)
        return out.reshape(rows.shape)

    def to_dense(self) -> np.ndarray:
        """Return the whole estimate, (n_rows, n_cols) float64: needs 8 n_rows n_cols bytes."""
        dense: np.ndarray = self.left @ self.right.T
        if self.offsets is not None:
            dense += self.offsets.mean + self.offsets.rows[:, None] + self.offsets.cols
        return dense
