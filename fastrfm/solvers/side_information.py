"""Side information: what is known about rows and columns beside the entries, as further columns and rows of the matrix.

Row features become columns and column features become rows of an augmented matrix whose last corner is not observed,

    [ Y         w s F_rows ]
    [ w s F_colsᵀ     .    ],   s the root mean square of Y,

so that one low-rank estimate explains both; w, the `side_weight`, says how much they count. Which entries were observed
is information too (people watch the films that they expect to like): the leading directions of the pattern B with
B_ij / √(n_i n_j), n the counts of rows and columns, serve as features of both sides (``implicit``). Own construction,
after collective matrix factorisation (Singh and Gordon, 2008). Flow: ``completion`` augments, solves and cuts off.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastrfm.blocks import RowBlocks
from fastrfm.errors import InputError
from fastrfm.factors import svd, tall_qr
from fastrfm.observations import Observations

_SPARE_DIRECTIONS, _POWER_STEPS = 8, 8  # of the pattern: only the span matters, and not to many digits
_PATTERN_WEIGHT = 1.8


@dataclass(frozen=True, eq=False)
class SideInformation:
    """Features of rows and columns: those given, of zero mean and unit root mean square, and those of the pattern.

    Attributes
    ----------
    rows, cols : (n_rows, n_row_features) and (n_cols, n_col_features) float64
        NaN where a feature is not known.
    """

    rows: np.ndarray
    cols: np.ndarray

    @classmethod
    def of(cls, shape: tuple[int, int], row_features: Any = None, col_features: Any = None) -> SideInformation:
        """Return the features given, standardised; constant ones are left out.

        Raises
        ------
        InputError
            If features are no 2-D table of numbers with a line for each row (or column), or hold infinities.
        """
        given = ("row_features", row_features, shape[0]), ("col_features", col_features, shape[1])
        rows, cols = (_standardised(name, features, n) for name, features, n in given)
        return cls(rows, cols)

    def with_pattern(self, observations: Observations, n_directions: int, random_state: int) -> SideInformation:
        """Return these features and the leading directions of which entries were observed."""
        if n_directions == 0:
            return self
        rows, cols = pattern_directions(observations, n_directions, random_state)
        return SideInformation(np.column_stack([self.rows, rows]), np.column_stack([self.cols, cols]))

    def digest(self) -> str:
        """Return a digest of the features."""
        both = self.rows.tobytes() + self.cols.tobytes()
        return hashlib.blake2b(both, digest_size=16).hexdigest()

    def __bool__(self) -> bool:
        return bool(self.rows.shape[1] or self.cols.shape[1])


def _standardised(name: str, features: Any, n: int) -> np.ndarray:
    if features is None:
        return np.zeros((n, 0))
    try:
        table = np.array(features, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be numbers: encode categories, such as one column of 0 and 1 for each") from None
    if table.ndim != 2 or len(table) != n:
        raise InputError(f"{name} must be a 2-D table with {n} lines, one for each, got shape {table.shape}")
    if np.isinf(table).any():
        raise InputError(f"{name} hold infinities: give finite numbers, or NaN where nothing is known")
    known = ~np.isnan(table)
    counts = np.maximum(known.sum(axis=0), 1)
    table -= np.where(known, table, 0.0).sum(axis=0) / counts
    spread = np.sqrt(np.square(np.where(known, table, 0.0)).sum(axis=0) / counts)
    varies = spread > 0.0
    standardised: np.ndarray = table[:, varies] / spread[varies]
    return standardised


def pattern_directions(
    observations: Observations, n_directions: int, random_state: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the leading directions of the scaled pattern, (n_rows, q) and (n_cols, q).

    Columns are orthogonal, their root mean squares in proportion to the singular values: equal ones let the weak
    directions, which are noise, spoil the rest (on MovieLens, judged on entries held out). The first tells little but
    how many entries a row or column has, so it is the second whose RMS is ``_PATTERN_WEIGHT``. q is `n_directions`, or
    the smaller side if that is less.
    """
    import scipy.sparse

    rows, cols = observations.row_counts, observations.col_counts
    scale = 1.0 / np.sqrt(np.maximum(rows, 1))
    values = np.repeat(scale, rows) / np.sqrt(cols[observations.indices])
    pattern = scipy.sparse.csr_matrix((values, observations.indices, observations.indptr), shape=observations.shape)
    q = min(n_directions, *observations.shape)
    wide = min(q + _SPARE_DIRECTIONS, *observations.shape)
    right = np.random.default_rng(random_state).standard_normal((observations.n_cols, wide))
    for _ in range(_POWER_STEPS):
        left = tall_qr(pattern @ right)[0]
        right, upper = tall_qr(pattern.T @ left)
    # Xᵀ left = right · upper, so the singular directions come from those of the small triangle.
    within, strength, turned = svd(upper)
    weights = _PATTERN_WEIGHT * strength[:q] / strength[min(1, q - 1)]
    rows_out, cols_out = left @ (turned[:q].T * weights), right @ (within[:, :q] * weights)
    return rows_out * np.sqrt(observations.n_rows), cols_out * np.sqrt(observations.n_cols)


def augmented(observations: Observations, side: SideInformation, weight: float) -> Observations:
    """Return the observations with the features as further columns and rows, scaled by `weight` times the RMS.

    Where entries have weights, features have their geometric mean.
    """
    scale = weight * observations.norm / np.sqrt(observations.n_observed)
    upper = _with_columns(observations, scale * side.rows)
    known = ~np.isnan(side.cols.T)
    indptr = np.concatenate((upper.indptr, upper.indptr[-1] + np.cumsum(known.sum(axis=1))))
    indices = np.concatenate((upper.indices, np.nonzero(known)[1].astype(upper.indices.dtype)))
    values = np.concatenate((upper.values, (scale * side.cols.T)[known]))
    shape = observations.n_rows + side.cols.shape[1], upper.n_cols
    whole = Observations.from_csr(indptr, indices, values, shape)
    if not upper.is_weighted:
        return whole
    added = np.full(whole.n_observed - upper.n_observed, observations.mean_weight)
    return whole.with_weights(np.concatenate((upper.weights, added)))


def _with_columns(observations: Observations, columns: np.ndarray) -> Observations:
    """Return the observations with further columns, those that are not NaN observed; values become float64."""
    known = ~np.isnan(columns)
    added = known.sum(axis=1)
    indptr = observations.indptr + np.concatenate(([0], np.cumsum(added)))
    n = int(indptr[-1])
    shape = observations.n_rows, observations.n_cols + columns.shape[1]
    indices, values = np.empty(n, dtype=observations.indices.dtype), np.empty(n)
    # Each row's own entries come first, then its features.
    is_added = np.zeros(n, dtype=bool)
    ends = np.repeat(indptr[1:], added)
    is_added[ends - _countdown(added)] = True
    indices[~is_added], values[~is_added] = observations.indices, observations.values
    indices[is_added] = np.nonzero(known)[1] + observations.n_cols
    values[is_added] = columns[known]
    whole = Observations.from_csr(indptr, indices, values, shape)
    if not observations.is_weighted:
        return whole
    weights = np.full(n, observations.mean_weight)
    weights[~is_added] = observations.weights
    return whole.with_weights(weights)


def _countdown(counts: np.ndarray) -> np.ndarray:
    """Return n, …, 2, 1 for each n of `counts`, one after the other."""
    ends = np.cumsum(counts)
    return np.repeat(ends, counts) - np.arange(int(counts.sum()))


def check_in_memory(observations: RowBlocks, what: str) -> Observations:
    """Return the observations if they are in memory; InputError otherwise."""
    if not isinstance(observations, Observations):
        raise InputError(f"{what} the observations in memory: raise memory, or do without")
    return observations
