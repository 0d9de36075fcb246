"""Nuclear-norm completion: minimise ½ ‖P_Ω(X − Y)‖² + λ ‖X‖_*, the convex problem that lin-RFM has at α = ¼.

R. Mazumder, T. Hastie, R. Tibshirani, "Spectral regularization algorithms for learning large incomplete matrices",
2010 (soft-impute): fill the missing entries from the estimate, soft-threshold the singular values. That is a proximal
gradient step of length 1, and is accelerated as such (A. Beck, M. Teboulle, 2009), with momentum dropped where it
points uphill (B. O'Donoghue, E. Candès, 2015):

    Z = P_Ω*(y) + P_Ω⊥(E),   X_{t+1} = U (Σ − λ)_+ Vᵀ of Z = U Σ Vᵀ,   E = X_{t+1} + β (X_{t+1} − X_t)

The matrix is dense; where few singular values exceed λ only they are computed, by subspace steps from the last V.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastrfm._interrupt import check, deferred
from fastrfm._numba import check_thread_count, thread_limit
from fastrfm.baselines.inputs import Clock, as_result, check_number, check_observations, check_whole, warn_unless_done
from fastrfm.errors import InputError
from fastrfm.factors import svd
from fastrfm.observations import Observations
from fastrfm.options import LARGEST_SEED
from fastrfm.results import CompletionResult

_FULL_SIDE, _FEW = (
    150,
    5,
)  # up to this side, or for more than a fifth of all directions, LAPACK's decomposition is faster
_SPARE, _SUBSPACE_STEPS = 10, 2  # directions below the threshold that are followed, and steps an iteration
LEAST_SHARE = 1e-4


def nuclear_norm(
    observations: Observations,
    *,
    ridge: float,
    rank_max: int | None = None,
    tol: float = 1e-6,
    max_iter: int = 10_000,
    max_seconds: float | None = None,
    start: CompletionResult | None = None,
    n_threads: int | None = None,
    callback: Callable[[int, np.ndarray], Any] | None = None,
) -> CompletionResult:
    """Return the minimiser of ½ ‖P_Ω(X − Y)‖² + ridge ‖X‖_*.

    Parameters
    ----------
    observations : Observations
        In memory, without weights.
    ridge : float
        λ > 0, the same as in ``fastrfm.complete(agop_power=0.25, ridge=...)``.
    rank_max : int or None
        Largest rank; a limit makes the problem another, not convex one. None is none.
    tol : float
        Stop when ‖X_{t+1} − E‖_F ≤ tol ‖X_{t+1}‖_F; the distance of zero from the subgradients at X_{t+1} is at most
        twice the left side.
    max_iter : int
    max_seconds : float or None
    start : CompletionResult or None
        Of the same shape, such as that of a larger ridge.
    n_threads : int or None
    callback : callable, optional
        Called with the number of the iteration and the dense estimate, which is used again; True stops.

    Returns
    -------
    CompletionResult
        ``history`` has ``objective``, ``masked_rmse``, ``change`` (as of `tol`), ``rank`` and ``seconds``;
        ``stop_reason`` is "converged", "max_iter", "max_seconds" or "callback".

    Raises
    ------
    InputError
        If an option is out of range, `start` has another shape, or the observations are weighted, not in memory or
        all zero.

    Warns
    -----
    NotConvergedWarning
        If `max_iter` came before `tol`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrfm import Observations
    >>> matrix = np.outer([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0])
    >>> matrix[0, 2] = np.nan
    >>> nuclear_norm(Observations.from_dense(matrix), ridge=1e-4).predict(0, 2).round(2).tolist()
    4.0
    """
    observations = check_observations(observations)
    check_number("ridge", ridge, 0.0, above=True)
    _check_limits(observations, rank_max, tol, max_iter)
    if start is not None and start.shape != observations.shape:
        raise InputError(f"start must be of shape {observations.shape}, got {start.shape}")
    clock = Clock(max_seconds)
    with deferred(), thread_limit(check_thread_count(n_threads)):
        solver = SoftImpute(observations, rank_max)
        if start is not None:
            solver.estimate[...] = start.to_dense()
        stop_reason = solver.solve(ridge, tol, max_iter, clock, callback)
        result = solver.result(stop_reason, tol, {"ridge": ridge, "max_iter": max_iter, "max_seconds": max_seconds})
    warn_unless_done(stop_reason, "soft-impute")
    return result


def nuclear_norm_path(
    observations: Observations,
    *,
    n_ridges: int = 25,
    least_share: float = LEAST_SHARE,
    holdout: float = 0.1,
    rank_max: int | None = None,
    tol: float = 1e-6,
    max_iter: int = 10_000,
    max_seconds: float | None = None,
    random_state: int = 0,
    n_threads: int | None = None,
) -> tuple[CompletionResult, dict[str, np.ndarray]]:
    """Return the nuclear-norm completion at the ridge that is best on entries held out, and the path to it.

    Ridges fall geometrically, each fit from the one before, on the entries kept and then, to the best one, on all.

    Parameters
    ----------
    observations, rank_max, tol, max_iter, n_threads
        As in :func:`nuclear_norm`; `max_iter` for each ridge.
    n_ridges : int
        At least 2; from the smallest ridge that leaves nothing, σ_1(P_Ω*(y)), down to `least_share` of it, by
        default almost interpolation.
    least_share : float
        Above 0, below 1.
    holdout : float
        Share of the entries held out.
    max_seconds : float or None
        For both walks together; the second one gets half of it.
    random_state : int
        Draws the entries held out.

    Returns
    -------
    result : CompletionResult
        Its history is that of the last ridge; ``seconds`` count from the start of the second walk.
    path : dict of (n_solved,) arrays
        ``ridge``, ``rmse`` on the entries held out (data's unit), ``seconds`` (float64), ``rank``, ``n_iter`` (int64).

    Raises
    ------
    InputError
        As :func:`nuclear_norm`, or if `n_ridges`, `least_share` or `holdout` are out of range.

    Warns
    -----
    NotConvergedWarning
        If the last fit ended at `max_iter`.

    Notes
    -----
    The ridge chosen on the entries kept stands for the same share of σ_1(P_Ω*(y)) on all.
    """
    observations = check_observations(observations)
    check_whole("n_ridges", n_ridges, 2)
    check_number("least_share", least_share, 0.0, 1.0, above=True)
    check_whole("random_state", random_state, 0, LARGEST_SEED)
    _check_limits(observations, rank_max, tol, max_iter)
    kept, held = observations.split(holdout, random_state=random_state)
    shares = np.geomspace(1.0, least_share, n_ridges)
    with deferred(), thread_limit(check_thread_count(n_threads)):
        clock = Clock(None if max_seconds is None else 0.5 * max_seconds)
        rows, cols, values = held.to_coo()
        solver, records = SoftImpute(kept, rank_max), []
        for ridge in solver.largest_ridge() * shares:
            before = len(solver.records)
            solver.solve(float(ridge), tol, max_iter, clock)
            rmse = float(np.sqrt(np.mean(np.square(solver.estimate[rows, cols] - values))))
            records.append((ridge, rmse, clock.seconds, solver.singular_values.size, len(solver.records) - before))
            if clock.is_over:
                break
        names = ("ridge", "rmse", "seconds", "rank", "n_iter")
        path = {name: np.array(column) for name, column in zip(names, zip(*records, strict=True), strict=True)}
        clock = Clock(None if max_seconds is None else 0.5 * max_seconds)
        solver = SoftImpute(observations, rank_max)
        ridges = solver.largest_ridge() * shares[: int(np.argmin(path["rmse"])) + 1]
        for ridge in ridges.tolist():
            solver.records.clear()
            stop_reason = solver.solve(ridge, tol, max_iter, clock)
            if clock.is_over and ridge > ridges[-1]:
                stop_reason = "max_seconds"
                break
        result = solver.result(stop_reason, tol, {"ridge": ridge, "max_iter": max_iter, "max_seconds": max_seconds})
    warn_unless_done(stop_reason, "soft-impute")
    return result, path


def _check_limits(observations: Observations, rank_max: int | None, tol: float, max_iter: int) -> None:
    check_number("tol", tol, 0.0, above=True)
    check_whole("max_iter", max_iter, 1)
    if rank_max is not None:
        check_whole("rank_max", rank_max, 1, min(observations.shape))


class SoftImpute:
    """The dense estimate, its factors, and the accelerated iteration at one ridge after another.

    Attributes
    ----------
    estimate : (n_rows, n_cols) float64
    singular_values : (rank,) float64
    records : list of tuples
        objective, masked_rmse, change, rank and seconds of each iteration.
    """

    def __init__(self, observations: Observations, rank_max: int | None) -> None:
        self._observations, self._rank_max = observations, rank_max
        rows, cols, values = observations.to_coo()
        self._where, self._values = rows * observations.n_cols + cols, values.astype(np.float64)
        self.estimate = np.zeros(observations.shape)
        self.singular_values, self._left, self._right = np.zeros(0), np.zeros((0, 0)), np.zeros((0, 0))
        self._basis: np.ndarray | None = None
        self._rng = np.random.default_rng(0)
        self.records: list[tuple[float, float, float, int, float]] = []

    def largest_ridge(self) -> float:
        """Return σ_1(P_Ω*(y)), the smallest ridge that leaves nothing."""
        whole = np.zeros(self._observations.shape)
        whole.ravel()[self._where] = self._values
        return float(np.linalg.norm(whole, 2))

    def solve(
        self,
        ridge: float,
        tol: float,
        max_iter: int,
        clock: Clock,
        callback: Callable[[int, np.ndarray], Any] | None = None,
    ) -> str:
        """Iterate from the estimate as it is; return how that ended."""
        extrapolated, momentum, first = self.estimate.copy(), 1.0, len(self.records)
        filled = np.empty_like(extrapolated)
        while True:
            check()  # Ctrl-C
            filled[...] = extrapolated
            filled.ravel()[self._where] = self._values
            before, self.estimate = self.estimate, self._thresholded(filled, ridge)
            extrapolated -= self.estimate  # E − X, which also tells whether momentum points uphill
            change, moved = float(np.linalg.norm(extrapolated)), self.estimate - before
            is_uphill = float(np.vdot(extrapolated, moved)) > 0.0
            following = 0.5 * (1.0 + math.sqrt(1.0 + 4.0 * momentum * momentum))
            moved *= 0.0 if is_uphill else (momentum - 1.0) / following
            momentum = 1.0 if is_uphill else following
            np.add(self.estimate, moved, out=extrapolated)
            norm = float(np.linalg.norm(self.singular_values))
            self._record(ridge, change / norm if norm else 0.0, clock)
            n_iter = len(self.records) - first
            if change <= tol * norm:
                return "converged"
            if callback is not None and callback(n_iter, self.estimate):
                return "callback"
            if n_iter >= max_iter:
                return "max_iter"
            if clock.is_over:
                return "max_seconds"

    def result(self, stop_reason: str, tol: float, options: dict[str, Any]) -> CompletionResult:
        """Return the estimate as a completion."""
        names = ("objective", "masked_rmse", "change", "rank", "seconds")
        history = {name: np.array(column) for name, column in zip(names, zip(*self.records, strict=True), strict=True)}
        return as_result(
            self._observations, (self._left * self.singular_values, self._right), method="nuclear-norm",
            tol=min(tol, 1e-9), stop_reason=stop_reason, history=history,
            options={**options, "tol": tol, "rank_max": self._rank_max},
        )  # fmt: skip

    def _record(self, ridge: float, change: float, clock: Clock) -> None:
        misfit = self.estimate.ravel()[self._where] - self._values
        square_sum = float(misfit @ misfit)
        objective = 0.5 * square_sum + ridge * float(self.singular_values.sum())
        rmse = math.sqrt(square_sum / misfit.size)
        self.records.append((objective, rmse, change, self.singular_values.size, clock.seconds))

    def _thresholded(self, matrix: np.ndarray, ridge: float) -> np.ndarray:
        """Return the matrix with `ridge` taken off its singular values, and keep its factors."""
        left, singular_values, right = self._triplets(matrix, ridge)
        k = int(np.count_nonzero(singular_values > ridge))
        self._basis = right[:, : k + _SPARE]
        k = k if self._rank_max is None else min(k, self._rank_max)
        self._left, self._right = left[:, :k], right[:, :k]
        self.singular_values = singular_values[:k] - ridge
        estimate: np.ndarray = (self._left * self.singular_values) @ self._right.T
        return estimate

    def _triplets(self, matrix: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return all singular triplets above `least`, and some below."""
        side, basis = min(matrix.shape), self._basis
        while basis is not None and side > _FULL_SIDE and _FEW * basis.shape[1] <= side:
            for _ in range(_SUBSPACE_STEPS):
                left = np.linalg.qr(matrix @ basis)[0]
                basis, upper = np.linalg.qr(matrix.T @ left)
            turned_right, singular_values, turned_left = svd(upper)
            if singular_values[-1] <= least:
                return left @ turned_left.T, singular_values, basis @ turned_right
            more = self._rng.standard_normal((matrix.shape[1], basis.shape[1]))
            basis = np.linalg.qr(np.hstack([basis, more]))[0]
        full, singular_values, right = svd(matrix, full_matrices=False)
        return full, singular_values, np.ascontiguousarray(right.T)
