"""How sure an estimate is: standard errors of entries, and prediction intervals with a stated coverage.

Flow: ``CompletionResult`` and the observations it was fitted to -> ``leverages`` of the row's regression on the right
factor and of the column's on the left one -> standard errors; entries that a fit did not see -> split-conformal scores
-> intervals. Not here: the fit, and the choice of its options.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastrfm._checks import check_range, index_array
from fastrfm._interrupt import deferred
from fastrfm.blocks import RowBlocks
from fastrfm.errors import InputError
from fastrfm.leverages import Regressions, pair_leverages, regressions_of
from fastrfm.observations import Observations
from fastrfm.results import CompletionResult

_ROUNDING = 1e-9  # of (n + 1) coverage, so that 0.9 of 10 scores is 9 of them


# --- standard errors ----------------------------------------------------------------------------------------------


def standard_errors(
    result: CompletionResult, observations: RowBlocks, rows: Any, cols: Any, *, noise: float | None = None
) -> np.ndarray:
    """Return standard errors of the estimate at pairs of positions.

    Parameters
    ----------
    result : CompletionResult
    observations : Observations or StoredObservations
        The entries that it was fitted to. They are read in row blocks, twice, once of them transposed.
    rows, cols : array_like of int, broadcast against each other
        Zero-based positions.
    noise : float, optional
        Standard deviation of the observations' noise, data's unit; by default :func:`noise_level`.

    Returns
    -------
    float64 array of the broadcast shape, in the data's unit
        Of the estimate, not of a new observation, whose variance is larger by ``noise**2``. Without a ridge infinite
        in rows and columns with fewer entries than the estimate has directions.

    Raises
    ------
    InputError
        If a position is none of the matrix, the observations are not those that were fitted, `noise` is no number of
        at least 0, or the fit leaves no degrees of freedom to tell the noise from.

    Notes
    -----
    The delta method, one factor at a time. Given the right vectors V, row i is a ridge regression with the posterior
    covariance σ² (V_JᵀV_J + λ diag(1/d))⁻¹, d_a = σ_a^(4α), J its observed columns; given the left vectors U, column j
    is one with σ² (U_IᵀU_I + λ diag(1/d))⁻¹. The fixed point P_Ω(X − Y) + λ U diag(σ^(1−4α)) Vᵀ = 0 is that of both.

        se² = σ² (v_jᵀ (V_JᵀV_J + λ/d)⁻¹ v_j + u_iᵀ (U_IᵀU_I + λ/d)⁻¹ u_i)

    The sum is the variance over the tangent space of the matrices of rank r but for a term of second order. With
    offsets a constant joins V and U, with the shrinkage of the offsets as its penalty. A row without observations has
    the variance of the prior, σ² Σ_a d_a v_ja² / λ. The bias of the penalty, error of a wrong rank and of noise that
    is not the same everywhere are not in it (weights are), nor what `count_power`, `huber` and joint offsets change;
    :func:`prediction_intervals` hold all the same.
    """
    _check_fitted(result, observations)
    if noise is not None and not (math.isfinite(noise) and noise >= 0.0):
        raise InputError(f"noise must be a finite number of at least 0, got {noise!r}")
    flat_rows, flat_cols, shape = _pairs(result, rows, cols)
    with deferred():
        sides = regressions_of(result, observations)
        sigma = _noise_level(result, sides) if noise is None else float(noise)
        roots: np.ndarray = np.sqrt(pair_leverages(sides, flat_rows, flat_cols))
    # An undetermined entry stays so where there is no noise: 0 times infinity would be NaN.
    np.multiply(roots, sigma, out=roots, where=np.isfinite(roots))
    return roots.reshape(shape)


def noise_level(result: CompletionResult, observations: RowBlocks) -> float:
    """Return the standard deviation of the observations' noise, estimated from what the fit leaves, data's unit.

    Parameters
    ----------
    result : CompletionResult
    observations : Observations or StoredObservations
        The entries that it was fitted to.

    Raises
    ------
    InputError
        If the observations are not those that were fitted, or the fit uses as many degrees of freedom as there are.

    Notes
    -----
    σ² = Σw masked_rmse² / (n − df), of an entry of weight 1; df is the sum of tr(A⁻¹ V_JᵀV_J) over rows and columns,
    less what both count: the mean of a row times the mean of a column, r² without a penalty, where
    df = r (n_rows + n_cols − r).
    """
    _check_fitted(result, observations)
    with deferred():
        return _noise_level(result, regressions_of(result, observations))


def _noise_level(result: CompletionResult, sides: tuple[Regressions, Regressions]) -> float:
    n = result.n_observed
    freedoms = [side.freedom() for side in sides]
    seen = [int(np.count_nonzero(side.observations.row_counts)) for side in sides]
    used = sum(freedoms) - freedoms[0] / seen[0] * (freedoms[1] / seen[1])
    if n - used < 1.0:
        raise InputError(
            f"the noise cannot be told: the fit of rank {result.rank} uses {used:.0f} degrees of freedom of {n} "
            "entries: complete with a ridge or a smaller rank, or give the noise"
        )
    total_weight = float(sides[0].observations.row_weights.sum())
    return math.sqrt(total_weight * result.masked_rmse**2 / (n - used))


# --- prediction intervals -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Calibration:
    """How far predictions were off at entries that the fit did not see.

    Attributes
    ----------
    scores : (n_held_out,) float64
        Ascending: absolute errors in the data's unit, or over √(1 + leverage) if `is_normalised`.
    is_normalised : bool
    """

    scores: np.ndarray
    is_normalised: bool

    def quantile(self, coverage: float) -> float:
        """Return the score that a new entry's stays below with probability `coverage` at least.

        Raises
        ------
        InputError
            If `coverage` is not between 0 and 1, or so high that there are too few scores to tell.

        Notes
        -----
        The ⌈(n + 1) coverage⌉-th smallest of n scores, where they and the new one come in any order alike.
        """
        if not 0.0 < coverage < 1.0:
            raise InputError(f"coverage must lie between 0 and 1, such as 0.9, got {coverage!r}")
        n = self.scores.size
        place = max(math.ceil((n + 1) * coverage - _ROUNDING), 1)
        if place > n:
            least = math.ceil(coverage / (1.0 - coverage) - _ROUNDING)
            raise InputError(
                f"a coverage of {coverage:g} needs at least {least} entries held out, got {n}: "
                "hold out more, or ask for less"
            )
        return float(self.scores[place - 1])


def calibrate(
    result: CompletionResult, held_out: Observations | None = None, *, observations: RowBlocks | None = None
) -> Calibration:
    """Return the errors of a result at entries that its fit did not see.

    Parameters
    ----------
    result : CompletionResult
    held_out : Observations, optional
        Such entries, of the result's shape. By default those of ``result.selection``, with what the chosen fit
        predicts there: the result itself, fitted to them as well, is then a little better, and intervals are wide
        enough.
    observations : Observations or StoredObservations, optional
        The entries that the result was fitted to: errors are then taken relative to √(1 + leverage) of each entry
        (see :func:`standard_errors`), the entries held out left out of it. Intervals become wider in sparse rows and
        columns and narrower elsewhere.

    Raises
    ------
    InputError
        If nothing was held out, shapes differ, or `observations` are not those that were fitted.
    """
    if observations is not None:
        _check_fitted(result, observations)
    if held_out is not None:
        if held_out.shape != result.shape:
            raise InputError(f"held_out must have the result's shape {result.shape}, got {held_out.shape}")
        rows, cols, values = held_out.to_coo()
        predicted = result.predict(rows, cols)
    elif result.selection is not None:
        chosen = result.selection
        rows, cols, values, predicted = chosen.rows, chosen.cols, chosen.values, chosen.predicted
    else:
        raise InputError(
            "the result holds no entries that its fit did not see: complete with options chosen by hold-out, "
            "or give entries that were held out"
        )
    errors = np.abs(np.subtract(predicted, values, dtype=np.float64))
    if observations is not None:
        errors /= _spreads(result, observations, rows.astype(np.int64), cols.astype(np.int64), is_left_out=True)
    return Calibration(np.sort(errors), observations is not None)


def prediction_intervals(
    result: CompletionResult,
    rows: Any,
    cols: Any,
    coverage: float = 0.9,
    *,
    observations: RowBlocks | None = None,
    held_out: Observations | None = None,
    calibration: Calibration | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return intervals that hold what would be observed at pairs of positions.

    Parameters
    ----------
    result : CompletionResult
        With a `selection`, or with `held_out` or `calibration` given.
    rows, cols : array_like of int, broadcast against each other
        Zero-based positions.
    coverage : float
        Share of the values that the intervals hold, above 0 and below 1.
    observations : Observations or StoredObservations, optional
        The entries that the result was fitted to: widths then follow the standard errors. Without them all intervals
        have one width.
    held_out : Observations, optional
        Entries that the fit did not see, see :func:`calibrate`.
    calibration : Calibration, optional
        What :func:`calibrate` returned for the same result, which saves doing it again; then `held_out` is not used.

    Returns
    -------
    low, high : float64 arrays of the broadcast shape, in the data's unit
        Around :meth:`CompletionResult.predict`, cut to ``result.bounds``.

    Raises
    ------
    InputError
        As :func:`calibrate` and :meth:`Calibration.quantile`; if a position is none of the matrix; or if `calibration`
        was made with observations and there are none here, or the other way round.

    Notes
    -----
    Split conformal prediction (V. Vovk, A. Gammerman, G. Shafer, "Algorithmic Learning in a Random World", 2005):
    ŷ ± q, q the ⌈(n + 1) coverage⌉-th smallest of the n scores |y − ŷ|; or ŷ ± q √(1 + leverage) for scores
    |y − ŷ| / √(1 + leverage), as √(σ² + se²) is σ √(1 + leverage). The coverage is that of entries drawn like those
    held out, on average over them, whatever the distribution of the noise; not for each row or column.
    """
    if calibration is None:
        calibration = calibrate(result, held_out, observations=observations)
    elif calibration.is_normalised != (observations is not None):
        has, made = ("no observations", "with") if observations is None else ("observations", "without")
        raise InputError(f"{has} are given, but the calibration was made {made} them: do both in one way")
    half = calibration.quantile(coverage)
    flat_rows, flat_cols, shape = _pairs(result, rows, cols)
    middle = result.predict(flat_rows, flat_cols)
    widths = np.full(middle.size, half)
    if observations is not None and half > 0.0:
        widths *= _spreads(result, observations, flat_rows, flat_cols)
    low, high = middle - widths, middle + widths
    if result.bounds is not None:
        low, high = np.clip(low, *result.bounds), np.clip(high, *result.bounds)
    return low.reshape(shape), high.reshape(shape)


def _spreads(
    result: CompletionResult, observations: RowBlocks, rows: np.ndarray, cols: np.ndarray, *, is_left_out: bool = False
) -> np.ndarray:
    """Return √(1 + leverage) at pairs, (n,); `is_left_out`: as if those pairs were not observed."""
    with deferred():
        sides = regressions_of(result, observations, (rows, cols) if is_left_out else None)
        return np.asarray(np.sqrt(1.0 + pair_leverages(sides, rows, cols)))


def _pairs(result: CompletionResult, rows: Any, cols: Any) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Return checked positions, int64 and 1-D, and the shape that they were broadcast to."""
    wide_rows, wide_cols = np.broadcast_arrays(index_array(rows, "rows"), index_array(cols, "cols"))
    flat_rows, flat_cols = (np.array(part, dtype=np.int64).ravel() for part in (wide_rows, wide_cols))
    check_range(flat_rows, result.shape[0], "row")
    check_range(flat_cols, result.shape[1], "column")
    return flat_rows, flat_cols, wide_rows.shape


def _check_fitted(result: CompletionResult, observations: RowBlocks) -> None:
    got, wanted = (observations.shape, observations.n_observed), (result.shape, result.n_observed)
    if got != wanted:
        raise InputError(
            f"observations must be those that were fitted, {wanted[1]} entries of a {wanted[0][0]} x {wanted[0][1]} "
            f"matrix, got {got[1]} of {got[0][0]} x {got[0][1]}"
        )
