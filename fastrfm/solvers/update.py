"""A fit brought up to date with entries that came later, by exact regressions from where it was.

All rows are regressed on the right vectors V, as in ``new_rows``. Where enough is new, columns follow, and rows again:

    (V_JᵀV_J + λ diag(1/d)) c_i = V_Jᵀ y_i  over rows i,   (U_IᵀU_I + λ diag(1/d)) b_j = U_Iᵀ y_j  over columns j,

with U = C diag(1/σ), V = B diag(1/σ), d = σ^(4α): P_Ω(X − Y) + λ U diag(σ^(1−4α)) Vᵀ = 0 is the fixed point of both,
and of the methods themselves. The methods' own steps from a warm start, at their last ε, would move V by the share
δ / (λ + δ) of that. σ stays that of the fit: options that were chosen with their number of iterations want an answer
near to the one chosen, and more steps, or steps that move σ, end far from it. Flow: ``estimators`` -> here.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from fastrfm._interrupt import deferred
from fastrfm._numba import check_thread_count, thread_limit
from fastrfm.blocks import RowBlocks
from fastrfm.devices import resolve
from fastrfm.observations import Observations
from fastrfm.options import JOINT, CompletionOptions
from fastrfm.results import CompletionResult
from fastrfm.solvers.choice import joined
from fastrfm.solvers.completion import complete, result_of
from fastrfm.solvers.factored import FeatureFactors, regress_rows
from fastrfm.solvers.monitor import Monitor
from fastrfm.solvers.new_rows import direction_penalty
from fastrfm.solvers.runs import Outcome, settled_bounds
from fastrfm.solvers.selection import Variant
from fastrfm.solvers.side_information import SideInformation
from fastrfm.solvers.smoothing import ridge_smoothing

# A column is regressed again when it has half as many entries again as when it last was: small updates in a row must
# not add up to many steps, each of which fits some noise (on MovieLens with the pattern, 20 updates did).
DUE = 0.5
# Column steps, each with a row step after it: what three leave is small, but a fit that uses the pattern and was chosen
# with its number of iterations stopped short of its limit for good reason, and further steps lead there.
COLUMN_STEPS, CHOSEN_COLUMN_STEPS = 3, 1
_FADED = 1e-6  # of the largest singular value: directions below it are left out
_EXACT, _WORSE = 1e-6, 2.0  # misfit of the values' root mean square, and times the one before, that will do


def update(
    result: CompletionResult, observations: Observations, parameters: dict[str, Any], regressed: np.ndarray
) -> tuple[CompletionResult, np.ndarray]:
    """Return the completion of observations that have more entries or rows than those of `result`.

    Parameters
    ----------
    result : CompletionResult
        Of the same columns and of the first rows.
    observations : Observations
        All entries, those that were fitted too.
    parameters : dict
        What :func:`fastrfm.complete` was asked for, by which all is fitted anew where steps do not serve: no direction
        was found before, or without a ridge the new entries are explained worse than the old ones were. Outliers, joint
        offsets and penalties by counts are fitted anew by the options of `result`, without a search unless data were
        exact.
    regressed : (n_cols,) int64
        How many of the entries each column had already, with the same value, when it was last regressed (fitted).

    Returns
    -------
    result : CompletionResult
        With the options, the selection, the method and the stop reason of `result`; its history goes on.
    regressed : (n_cols,) int64
    """
    bounds, counts = parameters["bounds"], observations.col_counts
    here = {name: parameters[name] for name in ("n_threads", "device")}
    options = CompletionOptions(**{**result.options, **here}, bounds=bounds)
    options = replace(options, device=resolve(options.device))
    if result.rank and (options.huber is not None or options.offsets == JOINT or options.count_power):
        # Exact data were interpolated without any of this: whether they still are exact is asked again.
        again = {**options.as_dict(), "bounds": bounds} if options.ridge > 0.0 else parameters
        return complete(observations, **again), counts
    with deferred(), thread_limit(check_thread_count(options.n_threads)):
        if result.rank:
            is_due = counts > (1.0 + DUE) * regressed
            updated = _swept(result, observations, options, is_due)
            if options.ridge > 0.0 or updated.masked_rmse <= _largest_misfit(result, observations, options):
                return updated, np.where(is_due, counts, regressed)
    return complete(observations, **parameters), counts


def _largest_misfit(result: CompletionResult, observations: Observations, options: CompletionOptions) -> float:
    """Return the misfit up to which sweeps without a ridge tell the same story as the fit before."""
    root_mean_square = observations.norm / math.sqrt(observations.n_observed)
    return max(max(_EXACT, options.effective_tol) * root_mean_square, _WORSE * result.masked_rmse)


def _swept(
    result: CompletionResult, observations: Observations, options: CompletionOptions, is_due: np.ndarray
) -> CompletionResult:
    """Return the completion after a row step and, where columns are due, column steps with row steps after them."""
    # Offsets and the directions of the pattern are computed again, from all entries.
    variant = Variant.of(observations, options, SideInformation.of(observations.shape))
    work, turned = variant.work, variant.work.transposed()
    by_rows, by_cols = (turned, work) if variant.is_turned else (work, turned)
    sigma = result.singular_values[result.singular_values > _FADED * result.singular_values[0]]
    penalty = direction_penalty(sigma, options.ridge, options.agop_power)
    # Rows that are new, and rows and columns of side information, are zero at first.
    left = _lengthened(result.left[:, : sigma.size], by_rows.n_rows)
    right = _lengthened(result.right[:, : sigma.size], by_rows.n_cols)
    moves = _lengthened(is_due, by_rows.n_cols, True)[:, None]
    is_early = result.selection is not None and options.implicit > 0
    n_steps = 1 + (CHOSEN_COLUMN_STEPS if is_early else COLUMN_STEPS) * bool(is_due.any())
    monitor = Monitor(options, by_rows.norm, None, n_planned=n_steps)
    for step in range(n_steps):
        before = left, right
        if step:
            right = np.where(moves, _regressed(by_cols, left / sigma, penalty)[0] / sigma, right)
        left, square_sum = _regressed(by_rows, right, penalty)
        _record(monitor, options, by_rows, before, (left, right), square_sum)
    outcome = Outcome(
        observations=observations,
        centred=variant.centred,
        method=options.method,
        options=options,
        offsets=variant.offsets,
        left=left[: observations.n_rows],
        right=right[: observations.n_cols],
        stop_reason=result.stop_reason,
        history=joined([result.history, monitor.history()]),
        bounds=settled_bounds(observations, options),
        selection=result.selection,
    )
    return result_of(outcome)


def _lengthened(rows: np.ndarray, n: int, value: Any = 0.0) -> np.ndarray:
    """Return an array with `value` in rows beyond its own, up to `n`."""
    return np.concatenate([rows, np.full((n - len(rows), *rows.shape[1:]), value, dtype=rows.dtype)])


def _regressed(observations: RowBlocks, features: np.ndarray, penalty: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the coefficients of all rows on features, and the sum of squares that they leave of the entries."""
    regression = regress_rows(observations, FeatureFactors(np.ascontiguousarray(features), penalty, 0.0))
    return regression.part.coefficients, regression.square_sum


def _record(
    monitor: Monitor,
    options: CompletionOptions,
    observations: RowBlocks,
    before: tuple[np.ndarray, np.ndarray],
    after: tuple[np.ndarray, np.ndarray],
    square_sum: float,
) -> None:
    weight = observations.mean_weight
    smoothing = ridge_smoothing(
        options.ridge, options.agop_power, options.effective_tol, weight, norm=observations.norm
    )
    difference = (np.column_stack([after[0], -before[0]]), np.column_stack([after[1], before[1]]))
    monitor.record(
        smoothing=smoothing,
        floor=smoothing,
        norm=_norm(*after),
        change=_norm(*difference),
        masked_rmse=math.sqrt(square_sum / observations.row_weights.sum()),
        rank=after[0].shape[1],
    )


def _norm(left: np.ndarray, right: np.ndarray) -> float:
    """Return ‖left rightᵀ‖_F."""
    return math.sqrt(max(float(np.sum((left.T @ left) * (right.T @ right))), 0.0))
