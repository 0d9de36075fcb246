"""HM-IRLS: reweighted least squares with the harmonic mean of the weights of rows and columns, for small problems.

C. Kümmerle, J. Sigl, "Harmonic mean iteratively reweighted least squares for low-rank matrix recovery", 2018. The
inverse of the harmonic mean of two weights is the mean of their inverses, so that with K_l = (X Xᵀ + ε² I)^(1 − p/2)
and K_r = (XᵀX + ε² I)^(1 − p/2) the weighted least squares problem that meets the data is

    X ← ½ (K_l A + A K_r),   A = P_Ω*(a),   M a = y,   M_st = ½ (K_l[i_s, i_t] [j_s = j_t] + [i_s = i_t] K_r[j_s, j_t])

with one unknown for each observed entry. ε ← min(ε, σ_{rank+1}(X)). M is factorised whole, which limits the size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg

from fastrfm._interrupt import check, deferred
from fastrfm._numba import check_thread_count, thread_limit
from fastrfm.baselines.inputs import Clock, as_result, check_number, check_observations, check_whole, warn_unless_done
from fastrfm.errors import InputError
from fastrfm.factors import svd
from fastrfm.observations import Observations
from fastrfm.results import CompletionResult
from fastrfm.solvers.dense import smoothing_floor

MOST_OBSERVED = 8192  # M has 512 MB then
_AT_FLOOR = 1.01


def hm_irls(
    observations: Observations,
    rank: int,
    *,
    schatten_p: float = 0.0,
    tol: float = 1e-8,
    max_iter: int = 300,
    max_seconds: float | None = None,
    n_threads: int | None = None,
    callback: Callable[[int, np.ndarray], Any] | None = None,
) -> CompletionResult:
    """Return the completion of a given rank by harmonic-mean IRLS.

    Parameters
    ----------
    observations : Observations
        In memory, without weights, at most 8192 entries.
    rank : int
        Below the smaller side of the matrix; ε follows σ_{rank+1}.
    schatten_p : float
        At least 0, at most 1.
    tol : float
        Stop when the relative change of X falls below it and ε below tol ‖X‖_F or its floor.
    max_iter : int
    max_seconds : float or None
    n_threads : int or None
        BLAS and LAPACK run on one thread.
    callback : callable, optional
        Called with the number of the iteration and the dense estimate; True stops.

    Returns
    -------
    CompletionResult
        ``history`` has ``smoothing``, ``change``, ``masked_rmse`` and ``seconds``; ``stop_reason`` is "converged",
        "max_iter", "max_seconds" or "callback". The answer is cut at `rank`.

    Raises
    ------
    InputError
        If an option is out of range, or the observations are too many, weighted, not in memory or all zero.

    Warns
    -----
    NotConvergedWarning
        If `max_iter` came before `tol`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrfm import Observations
    >>> matrix = np.outer([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0])
    >>> matrix[0, 2] = matrix[3, 0] = np.nan
    >>> hm_irls(Observations.from_dense(matrix), 1).predict([0, 3], [2, 0]).round(4).tolist()
    [4.0, 4.0]
    """
    observations = check_observations(observations)
    check_whole("rank", rank, 1, min(observations.shape) - 1)
    check_number("schatten_p", schatten_p, 0.0, 1.0)
    check_number("tol", tol, 0.0, above=True)
    check_whole("max_iter", max_iter, 1)
    if observations.n_observed > MOST_OBSERVED:
        raise InputError(
            f"HM-IRLS factorises a matrix with a row for each observed entry: at most {MOST_OBSERVED}, got "
            f"{observations.n_observed}; use fastrfm.complete(method='two-sided')"
        )
    clock, records = Clock(max_seconds), []
    with deferred(), thread_limit(check_thread_count(n_threads)):
        step = _Step(observations, 1.0 - schatten_p / 2.0)
        estimate, smoothing, stop_reason = np.zeros(observations.shape), observations.norm, ""
        while not stop_reason:
            check()  # Ctrl-C
            before, estimate = estimate, step.next_estimate(estimate, smoothing)
            misfit = step.misfit(estimate)
            norm = float(np.linalg.norm(estimate))
            change = float(np.linalg.norm(estimate - before)) / norm
            records.append((smoothing, change, misfit, clock.seconds))
            floor = smoothing_floor((2.0 - schatten_p) / 4.0, norm)
            is_small = smoothing <= max(tol * norm, _AT_FLOOR * floor)
            sigma_next = float(np.linalg.svd(estimate, compute_uv=False)[rank])
            smoothing = min(smoothing, max(sigma_next, floor))
            if change <= tol and is_small:
                stop_reason = "converged"
            elif callback is not None and callback(len(records), estimate):
                stop_reason = "callback"
            elif len(records) >= max_iter:
                stop_reason = "max_iter"
            elif clock.is_over:
                stop_reason = "max_seconds"
        left, singular_values, right = svd(estimate, full_matrices=False)
        names = ("smoothing", "change", "masked_rmse", "seconds")
        result = as_result(
            observations, ((left * singular_values)[:, :rank], np.ascontiguousarray(right[:rank].T)), method="hm-irls",
            tol=tol, stop_reason=stop_reason, history=dict(zip(names, np.array(records).T.copy(), strict=True)),
            options={"rank": rank, "schatten_p": schatten_p, "max_iter": max_iter, "max_seconds": max_seconds},
        )  # fmt: skip
    warn_unless_done(stop_reason, "HM-IRLS")
    return result


class _Step:
    """The weighted least squares problem of one iteration after another."""

    def __init__(self, observations: Observations, power: float) -> None:
        self._power = power
        self._rows, self._cols, values = observations.to_coo()
        self._values = values.astype(np.float64)
        by_col = np.argsort(self._cols, kind="stable")
        self._in_rows = np.split(np.arange(self._values.size), np.cumsum(observations.row_counts)[:-1])
        self._in_cols = np.split(by_col, np.cumsum(observations.col_counts)[:-1])

    def misfit(self, estimate: np.ndarray) -> float:
        """Return the root mean square of the residuals."""
        return float(np.sqrt(np.mean(np.square(estimate[self._rows, self._cols] - self._values))))

    def next_estimate(self, estimate: np.ndarray, smoothing: float) -> np.ndarray:
        """Return X of the next iteration, (n_rows, n_cols) float64."""
        of_rows, of_cols = self._inverse_weights(estimate, smoothing)
        system = np.zeros((self._values.size, self._values.size))
        for places in self._in_rows:
            system[np.ix_(places, places)] += 0.5 * of_cols[np.ix_(self._cols[places], self._cols[places])]
        for places in self._in_cols:
            system[np.ix_(places, places)] += 0.5 * of_rows[np.ix_(self._rows[places], self._rows[places])]
        scale = 1.0 / np.sqrt(np.diagonal(system))
        system *= scale
        system *= scale[:, None]
        duals = np.zeros(estimate.shape)
        duals[self._rows, self._cols] = scale * _solve(system, scale * self._values)
        weighted: np.ndarray = 0.5 * (of_rows @ duals + duals @ of_cols)
        return weighted

    def _inverse_weights(self, estimate: np.ndarray, smoothing: float) -> tuple[np.ndarray, np.ndarray]:
        """Return K_l and K_r, divided by the power of ε that a direction not in X has."""
        left, singular_values, right = svd(estimate)
        weights = []
        for basis, n in ((left, len(left)), (right.T, len(right))):
            ratio = np.zeros(n)
            ratio[: singular_values.size] = singular_values / smoothing
            weights.append((basis * (1.0 + np.square(ratio)) ** self._power) @ basis.T)
        return weights[0], weights[1]


def _solve(system: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Solve a positive definite system that may be singular to rounding near convergence, and consistent."""
    shift = 0.0
    while True:
        try:
            factor = scipy.linalg.cho_factor(system + shift * np.eye(len(system)) if shift else system, lower=True)
        except np.linalg.LinAlgError:
            shift = max(10.0 * shift, np.finfo(np.float64).eps * len(system))
            continue
        solution: np.ndarray = scipy.linalg.cho_solve(factor, target)
        return solution
