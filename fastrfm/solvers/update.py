"""A fit brought up to date with entries that came later, by a few sweeps of exact regressions from where it was.

Rows are regressed on the right vectors V and columns on the left ones U, in turn, with the penalty of the fit:

    (V_JᵀV_J + λ diag(1/d)) c_i = V_Jᵀ y_i  over rows i,   (U_IᵀU_I + λ diag(1/d)) b_j = U_Iᵀ y_j  over columns j,

d_a = σ_a^(4α) of the estimate before: P_Ω(X − Y) + λ U diag(σ^(1−4α)) Vᵀ = 0 is the fixed point of both, and of the
methods themselves. Each side follows the other at once; the methods' own steps from a warm start, at their last ε,
would move V by the share δ / (λ + δ) of that. The row step is that of ``new_rows``. Flow: ``estimators`` -> here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastrfm._interrupt import deferred
from fastrfm._numba import check_thread_count, thread_limit
from fastrfm.blocks import RowBlocks
from fastrfm.factors import tall_qr
from fastrfm.kernels.residual import predict_pairs
from fastrfm.observations import Observations
from fastrfm.options import FACTORED_POWER, CompletionOptions
from fastrfm.results import CompletionResult
from fastrfm.solvers.choice import joined
from fastrfm.solvers.completion import _result, complete
from fastrfm.solvers.factored import FeatureFactors, LowRankPart, regress_rows, subspace_step
from fastrfm.solvers.monitor import Monitor
from fastrfm.solvers.new_rows import direction_penalty
from fastrfm.solvers.runs import Outcome, settled_bounds
from fastrfm.solvers.selection import Variant
from fastrfm.solvers.side_information import SideInformation
from fastrfm.solvers.smoothing import ridge_smoothing

MOST_SWEEPS = 10  # the first few make nearly all of the difference
_FADED = 1e-6  # of the largest singular value: directions below it are dropped
_EXACT, _WORSE = 1e-6, 2.0  # misfit of the values' root mean square, and times the one before, that will do
_LEAST_FRESH, _FRESH_STEPS = 8, 4  # directions that may come in, and the power steps that find them


def update(result: CompletionResult, observations: Observations, parameters: dict[str, Any]) -> CompletionResult:
    """Return the completion of observations that have more entries or rows than those of `result`.

    Parameters
    ----------
    result : CompletionResult
        Of the same columns and of the first rows.
    observations : Observations
        All entries, those that were fitted too.
    parameters : dict
        What :func:`fastrfm.complete` was asked for. Used where sweeps do not serve and all is fitted anew: no direction
        was found before, or without a ridge the new entries are explained worse than the old ones were.

    Returns
    -------
    CompletionResult
        With the options, the selection and the method of `result`, and its history before that of the sweeps.
        ``stop_reason`` is "converged", or "max_iter" after ``MOST_SWEEPS``.

    Notes
    -----
    Offsets and the pattern's directions are computed again. At powers up to 1/4 the penalty is convex and directions of
    what is left may come in; beyond, where limits depend on the way, they are those of the fit.
    """
    bounds = parameters["bounds"]
    options = CompletionOptions(**{**result.options, "n_threads": parameters["n_threads"]}, bounds=bounds)
    with deferred(), thread_limit(check_thread_count(options.n_threads)):
        if result.rank or options.agop_power <= FACTORED_POWER:
            updated = _swept(result, observations, options)
            if options.ridge > 0.0 or updated.masked_rmse <= _largest_misfit(result, observations, options):
                return updated
    return complete(observations, **parameters)


def _swept(result: CompletionResult, observations: Observations, options: CompletionOptions) -> CompletionResult:
    variant = Variant.of(observations, options, SideInformation.of(observations.shape))
    sweeps = _Sweeps.of(variant, result, options)
    monitor = Monitor(replace(options, max_iter=MOST_SWEEPS), sweeps.by_rows.norm, None, is_fast=True)
    while not sweeps.regress_rows(monitor):
        sweeps.regress_columns()
    left, right = sweeps.factors()
    outcome = Outcome(
        observations=observations,
        centred=variant.centred,
        method=options.method,
        options=options,
        offsets=variant.offsets,
        left=left[: observations.n_rows],
        right=right[: observations.n_cols],
        stop_reason=monitor.stop_reason,
        history=joined([result.history, monitor.history()]),
        bounds=settled_bounds(observations, options),
        selection=result.selection,
    )
    return _result(outcome)


def _largest_misfit(result: CompletionResult, observations: Observations, options: CompletionOptions) -> float:
    """Return the misfit up to which sweeps without a ridge tell the same story as the fit before."""
    root_mean_square = observations.norm / math.sqrt(observations.n_observed)
    return max(max(_EXACT, options.effective_tol) * root_mean_square, _WORSE * result.masked_rmse)


@dataclass
class _Sweeps:
    """An estimate that is swept over.

    Attributes
    ----------
    by_rows, by_cols : RowBlocks
        The observations (less offsets, with side information), and the same transposed.
    options : CompletionOptions
    part : LowRankPart
        Of the last row step.
    basis : (n_cols, k) float64
        Right singular vectors, orthonormal, for the next row step.
    singular_values : (k,) float64, descending
    """

    by_rows: RowBlocks
    by_cols: RowBlocks
    options: CompletionOptions
    part: LowRankPart
    basis: np.ndarray
    singular_values: np.ndarray

    @classmethod
    def of(cls, variant: Variant, result: CompletionResult, options: CompletionOptions) -> _Sweeps:
        """Begin with a fit; rows (and columns of side information) that it does not have are zero."""
        work, turned, k = variant.work, variant.work.transposed(), result.rank
        by_rows, by_cols = (turned, work) if variant.is_turned else (work, turned)
        coefficients, basis = np.zeros((by_rows.n_rows, k)), np.zeros((by_rows.n_cols, k))
        coefficients[: len(result.left)], basis[: len(result.right)] = result.left[:, :k], result.right[:, :k]
        sweeps = cls(by_rows, by_cols, options, LowRankPart(coefficients, basis), basis, result.singular_values)
        if options.agop_power <= FACTORED_POWER:
            sweeps.admit()
        return sweeps

    def regress_rows(self, monitor: Monitor) -> bool:
        """Make the row step and return whether to stop."""
        regression = regress_rows(self.by_rows, self._features(self.basis), self.part)
        self.part = regression.part
        smoothing = ridge_smoothing(self.options.ridge, self.options.agop_power, self.options.effective_tol)
        return monitor.record(
            smoothing=smoothing,
            floor=smoothing,
            norm=float(np.linalg.norm(self.part.coefficients)),
            change=regression.change,
            masked_rmse=float(np.sqrt(regression.square_sum / self.by_rows.n_observed)),
            rank=self.singular_values.size,
        )

    def regress_columns(self) -> None:
        """Make the column step."""
        left, self.singular_values = _leading(self.factors()[0])
        self.basis, self.singular_values = _leading(self._solved(self.by_cols, left))

    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the estimate of the last row step, (n_rows, k) and (n_cols, k)."""
        k = self.part.basis.shape[1]
        return np.ascontiguousarray(self.part.coefficients[:, :k]), self.part.basis

    def admit(self) -> None:
        """Add the leading directions of what the estimate leaves of the observations, as far as the rank allows."""
        k, rng = self.singular_values.size, np.random.default_rng(self.options.random_state)
        most = min(*self.by_rows.shape, *([] if self.options.rank is None else [self.options.rank]))
        n_fresh = min(max(_LEAST_FRESH, k // 2), most - k)
        if n_fresh <= 0:
            return
        coefficients = self._solved(self.by_rows, self.basis)
        rest = self.by_rows.shifted(lambda rows, cols: _predicted(rows, cols, coefficients, self.basis))
        fresh = rng.standard_normal((self.by_rows.n_cols, n_fresh))
        for _ in range(_FRESH_STEPS):
            fresh = tall_qr(fresh - self.basis @ (self.basis.T @ fresh))[0]
            features = FeatureFactors(fresh, np.zeros(0), 1.0)
            sizes, fresh = subspace_step(rest, features, regress_rows(rest, features))
        sizes = sizes[sizes > 0.0]
        self.singular_values = np.concatenate([self.singular_values, sizes])
        fresh = tall_qr(fresh - self.basis @ (self.basis.T @ fresh))[0]
        self.basis = np.column_stack([self.basis, fresh[:, : sizes.size]])

    def _solved(self, observations: RowBlocks, basis: np.ndarray) -> np.ndarray:
        coefficients = regress_rows(observations, self._features(basis)).part.coefficients
        return np.ascontiguousarray(coefficients[:, : basis.shape[1]])

    def _features(self, basis: np.ndarray) -> FeatureFactors:
        penalty = direction_penalty(self.singular_values, self.options.ridge, self.options.agop_power)
        return FeatureFactors(np.ascontiguousarray(basis), penalty, 0.0)


def _leading(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the left singular vectors and singular values of a tall matrix, without those that have faded."""
    q, r = tall_qr(matrix)
    u, singular_values, _ = np.linalg.svd(r)
    is_kept = singular_values > _FADED * singular_values.max(initial=0.0)
    return q @ u[:, is_kept], singular_values[is_kept]


def _predicted(rows: np.ndarray, cols: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    out = np.empty(rows.size)
    predict_pairs(rows.astype(np.int64), cols.astype(np.int64), left, right, out)
    return out
