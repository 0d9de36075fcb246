"""Completing rows that a fit has not seen, without refitting: the solver's own row step on the fitted right factor.

    (V_JᵀV_J + λ diag(1/d)) c = V_Jᵀ y,   d_j = σ_j^(4α),   row = c Vᵀ

with σ, V the fitted singular values and right vectors (own derivation: the factored row step of ``factored`` as ε
fades). What the factors cannot tell is filled in as ``completion`` does: means, or offsets. Used by ``estimators``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fastrfm.agop import feature_weights
from fastrfm.blocks import RowBlocks
from fastrfm.errors import InputError
from fastrfm.observations import Observations
from fastrfm.options import Power
from fastrfm.results import CompletionResult, Offsets
from fastrfm.solvers.factored import FeatureFactors, regress_rows
from fastrfm.solvers.offsets import row_residual_sums

# Without a ridge, rows with fewer entries than directions still need a rule. The solver's rule is the limit of a
# fading penalty; this much of it keeps the systems regular and costs a well-posed row no digits that matter.
_FADING_PENALTY = 1e-13
# Stronger directions are penalised less, but not below this share: in a short row's dual system the weights span
# 1 / share, and what the weaker directions add must survive rounding.
_LEAST_SHARE = 1e-8
_LARGEST_PENALTY = 1e100  # of a direction that vanishes; keeps its coefficient at zero without infinities


@dataclass(frozen=True, eq=False)
class FittedColumns:
    """What new rows need of the fitted observations beyond the factors.

    Attributes
    ----------
    counts : (n_cols,) int64
        Observed entries of each column.
    means : (n_cols,) float64
        Their means; the overall mean for a column without any. In the data's unit.
    row_shrinkage : float or None
        With offsets: a row's offset is the sum of its residuals over (their number + `row_shrinkage`).
    """

    counts: np.ndarray
    means: np.ndarray
    row_shrinkage: float | None


def fitted_columns(observations: Observations, offsets: Offsets | None) -> FittedColumns:
    """Return what new rows will need of the observations that were fitted with these offsets."""
    sums, counts = np.zeros(observations.n_cols), observations.col_counts
    for block in observations.row_blocks():
        np.add.at(sums, block.by_row.indices, block.by_row.values)  # entry by entry: blocks change no bit
    means = np.where(counts > 0, sums / np.maximum(counts, 1), sums.sum() / observations.n_observed)
    return FittedColumns(counts, means, None if offsets is None else row_shrinkage(observations, offsets))


def complete_rows(result: CompletionResult, columns: FittedColumns, observations: Observations) -> CompletionResult:
    """Return `result` with its rows replaced by the completion of other rows.

    Parameters
    ----------
    result : CompletionResult
        With n_cols columns.
    columns : FittedColumns
        Of the same fit.
    observations : Observations
        The new rows' known entries, (n_new_rows, n_cols); there may be none at all.

    Returns
    -------
    CompletionResult
        Factors, offsets and row names are the new rows'; everything else still tells of the fit.
    """
    right = np.ascontiguousarray(result.right[:, : result.rank])
    left, offsets, targets = np.zeros((observations.n_rows, result.rank)), None, observations
    if result.offsets is not None:
        sums = row_residual_sums(observations, result.offsets.mean, result.offsets.cols)
        weights = observations.row_weights + columns.row_shrinkage
        row_offsets = np.divide(sums, weights, out=np.zeros_like(sums), where=observations.row_counts > 0)
        offsets = Offsets(result.offsets.mean, row_offsets, result.offsets.cols)
        rows, cols, values = observations.to_coo()
        targets = observations.with_values(values - offsets.at(rows, cols))
    if result.rank and observations.n_observed:
        left = regress_rows(targets, FeatureFactors(right, row_penalty(result), 0.0)).part.coefficients
    if offsets is None:
        left, right = _with_means(columns, observations, left, right)
    return replace(result, left=left, right=right, offsets=offsets, row_names=observations.row_names)


def row_penalty(result: CompletionResult) -> np.ndarray:
    """Return λ / d for every direction of a fit, (rank,) float64, kept above what rounding cannot tell from zero."""
    return direction_penalty(result.singular_values, result.options["ridge"], result.options["agop_power"])


def direction_penalty(sigma: np.ndarray, ridge: float, agop_power: Power) -> np.ndarray:
    """Return λ / σ^(4α) for singular values, (k,) float64 descending and above 0, kept above rounding.

    Raises
    ------
    InputError
        If the power is but the name of a function, as results read from a file have it.
    """
    if isinstance(agop_power, str):
        raise InputError(
            f"the function {agop_power}, which stood for agop_power, is not in the file: put it into "
            'result.options["agop_power"] first'
        )
    if callable(agop_power):
        grams = feature_weights(sigma**2, agop_power) ** 2 if sigma.size else sigma
        fading = np.maximum(grams[-1:] / np.maximum(grams, np.finfo(np.float64).tiny), _LEAST_SHARE)
    else:
        power = 4.0 * agop_power
        fading = np.maximum((sigma[-1:] / sigma) ** power, _LEAST_SHARE)
        grams = sigma**power
    with np.errstate(over="ignore", divide="ignore"):  # infinities are clipped below
        penalty = ridge / grams if ridge > 0.0 else np.zeros(sigma.size)
    return np.clip(penalty, _FADING_PENALTY * fading, _LARGEST_PENALTY)


def _with_means(
    columns: FittedColumns, observations: Observations, left: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Append factor columns that give uninformed rows the column means, and unfitted columns the row means."""
    rows, cols, values = observations.to_coo()
    is_fitted = columns.counts > 0
    is_informed = np.bincount(rows, is_fitted[cols], observations.n_rows) > 0
    row_means = np.bincount(rows, values, observations.n_rows) / np.maximum(observations.row_counts, 1)
    # A row known only in unfitted columns gets column means like an empty one, the overall mean in those.
    left = np.column_stack([left, is_informed == 0, np.where(is_informed, row_means, 0.0)])
    return left, np.column_stack([right, columns.means, is_fitted == 0])


def row_shrinkage(observations: RowBlocks, offsets: Offsets) -> float:
    """Return the shrinkage s behind fitted row offsets b_i = Σ_i / (n_i + s), by least squares over the rows.

    The offsets are all that a fit keeps, but they determine s; so new rows are shrunken exactly as the fitted ones.
    """
    square_sum = float(offsets.rows @ offsets.rows)
    if square_sum == 0.0:
        return float("inf")  # the fitted rows do not differ, so nor do new ones
    shrunk = row_residual_sums(observations, offsets.mean, offsets.cols) - observations.row_weights * offsets.rows
    return max(float(offsets.rows @ shrunk) / square_sum, 0.0)
