"""Row and column offsets, fitted before the completion: y_ij = μ + b_i + c_j + noise.

Offsets are shrunken means: b_i = Σ_j (y_ij − μ − c_j) / (n_i + s). How much to shrink is estimated from the observed
data by expectation-maximisation of the random-effects model (rows and columns taken as independent), s = (noise
variance) / (variance of the b_i), so there is nothing to set and the answer scales with the data. With weights w sums
are Σ w (…) and n_i is Σ w.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastrfm.blocks import RowBlocks
from fastrfm.results import Offsets

_MAX_SWEEPS = 100
_TOLERANCE = 1e-6  # of the data's standard deviation


@dataclass
class _Side:
    """The offsets of one side (rows or columns) and their shrinkage s."""

    counts: np.ndarray  # float64, sums of weights
    offsets: np.ndarray
    shrinkage: float

    def update(self, sums: np.ndarray) -> None:
        self.offsets = sums / np.maximum(self.counts + self.shrinkage, 1e-300)
        self.offsets[self.counts == 0] = 0.0

    def uncertainty(self) -> float:
        """Return Σ n_i / (n_i + s): how many entries' worth of noise variance the offsets carry."""
        return float(np.sum(self.counts / np.maximum(self.counts + self.shrinkage, 1e-300)))

    def update_shrinkage(self, noise: float) -> None:
        seen = self.counts > 0
        spread = float(np.mean(self.offsets[seen] ** 2 + noise / (self.counts[seen] + self.shrinkage)))
        self.shrinkage = noise / spread if spread > 0.0 else 0.0


def fit_offsets(observations: RowBlocks) -> Offsets:
    """Return mean, row and column offsets of the observed entries.

    Parameters
    ----------
    observations : RowBlocks

    Returns
    -------
    Offsets
        In the data's unit; zero for rows and columns without observations.

    Notes
    -----
    Alternates closed-form updates until none moves by more than 1e-6 of the data's standard deviation.
    """
    n = observations.n_observed
    # A shrinkage of one entry to begin with, in the unit of the weights.
    rows = _Side(observations.row_weights, np.zeros(observations.n_rows), observations.mean_weight)
    cols = _Side(observations.col_weights, np.zeros(observations.n_cols), observations.mean_weight)
    mean = float(row_residual_sums(observations, 0.0, cols.offsets).sum() / rows.counts.sum())
    spread = float(np.sqrt(observations.row_sums(lambda values: np.square(values - mean)).sum() / n))
    last_noise = 0.0
    for _ in range(_MAX_SWEEPS):
        before = rows.offsets, cols.offsets
        rows.update(row_residual_sums(observations, mean, cols.offsets))
        col_sums, square_sum = _col_residual_sums(observations, mean, rows.offsets)
        cols.update(col_sums)
        # square_sum still has the column offsets in; taking them out lowers it by known sums.
        noise = square_sum - 2.0 * cols.offsets @ col_sums + cols.counts @ cols.offsets**2
        # Offsets are estimates: the variance left in them belongs to the noise of a residual too.
        noise = max(noise / n, 0.0) + last_noise * (rows.uncertainty() + cols.uncertainty()) / n
        last_noise = noise
        rows.update_shrinkage(noise)
        cols.update_shrinkage(noise)
        mean += _recentre(rows) + _recentre(cols)
        moved = max(np.abs(rows.offsets - before[0]).max(), np.abs(cols.offsets - before[1]).max())
        if moved <= _TOLERANCE * spread:
            break
    return Offsets(mean, rows.offsets, cols.offsets)


def _recentre(side: _Side) -> float:
    """Move the mean of the offsets of seen rows (or columns) into the overall mean."""
    seen = side.counts > 0
    shift = float(side.offsets[seen].mean())
    side.offsets[seen] -= shift
    return shift


def row_residual_sums(observations: RowBlocks, mean: float, col_offsets: np.ndarray) -> np.ndarray:
    """Return Σ w (y − mean − column offset) over the entries of each row, (n_rows,) float64.

    Sums run entry by entry, here and for columns, so that their bits do not depend on row blocks.
    """
    sums = np.zeros(observations.n_rows)
    for block in observations.row_blocks():
        residual = np.subtract(block.by_row.values, mean, dtype=np.float64)
        residual -= col_offsets[block.by_row.indices]
        if observations.is_weighted:
            residual *= block.by_row.weights
        np.add.at(sums, block.entry_rows(), residual)
    return sums


def _col_residual_sums(observations: RowBlocks, mean: float, row_offsets: np.ndarray) -> tuple[np.ndarray, float]:
    """Return Σ w (y − mean − row offset) over the entries of each column, and the sum Σ w (…)² of all."""
    sums, square_sums = np.zeros(observations.n_cols), np.zeros(observations.n_rows)
    for block in observations.row_blocks():
        entry_rows = block.entry_rows()
        residual = np.subtract(block.by_row.values, mean, dtype=np.float64)
        residual -= row_offsets[entry_rows]
        weighted = residual * block.by_row.weights if observations.is_weighted else residual
        np.add.at(sums, block.by_row.indices, weighted)
        np.add.at(square_sums, entry_rows, weighted * residual)
    return sums, float(square_sums.sum())
