"""Low-rank recovery from linear measurements by lin-RFM: the loop over reweighted regressions, and how ε falls.

Each step solves (𝒜 W⁻¹ 𝒜* + λ I) a = y and sets X = W⁻¹ 𝒜*(a) (``low_rank_systems``), with W⁻¹ from the last X and ε
(``low_rank_weights``); the first has W = I. Without a ridge ε follows the first singular value beyond the rank: the one
given, or the one that shows as a gap in the spectrum while ε falls by a constant factor; where none shows, a few likely
ranks are tried. With a ridge ε falls to where the smoothed penalty is sharp. X is kept as a whole, (n_rows, n_cols).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import numpy as np

from fastrfm._interrupt import check
from fastrfm.agop import gram_unit, least_smoothing
from fastrfm.factors import numerical_rank, svd
from fastrfm.low_rank_options import LowRankOptions
from fastrfm.measurements import Measurements
from fastrfm.solvers.low_rank_systems import CholeskySystems, ConjugateGradients
from fastrfm.solvers.low_rank_weights import weights_of
from fastrfm.solvers.smoothing import CHANGE_SHARE, ERROR_SHARE, ridge_smoothing

DROP = 1.3  # factor by which ε falls where no singular value says how far
_FIRST_SHARE = 0.3  # of σ_1: the first ε where no rank is given
_GAP, _NEAR = 1e-2, 2.0  # σ_{j+1} / σ_j of a rank that shows; σ_{j+1} may lie this much above ε
_LEAST = 1e-15  # of ε beside σ_1
_AT_FLOOR = 20  # steps at the smallest ε, after which rounding is what moves the estimate
_INNER_TOL, _FIRST_TOL = 1e-3, 1e-8  # the first system also tells whether measurements contradict
_CROWDED_SPAN = 8  # steps on end with more directions above ε than the measurements can tell apart
_MOST_TRIED = 3  # ranks tried where none has shown
_SHOWN = 1e-6  # ε beside the norm at which a rank on trial is one
_REST_SPAN, _REST = 40, 0.7  # steps in which ε of a rank on trial must fall below this share
_RATE_SPANS = {"both": 2, "columns": 6}  # steps over which the rate of convergence is measured
_SLOWEST_RATE = 0.9999
_NAMES = ("smoothing", "change", "error_estimate", "rank", "inner_steps", "seconds")


@dataclass
class LowRankFit:
    """The whole estimate, how it was found, and a record for each step.

    Attributes
    ----------
    matrix : (n_rows, n_cols) float64
    smoothing : float
        The last ε, in the unit of the matrix.
    stop_reason : str
        "converged", "floor" (rounding ended the descent of epsilon), "unique" (only one matrix fits best), "zero"
        (nothing was measured but zeros) or "max_iter".
    history : dict of lists
    """

    matrix: np.ndarray
    smoothing: float = 0.0
    stop_reason: str = ""
    history: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in _NAMES})

    @property
    def n_iter(self) -> int:
        return len(self.history["change"])


def solve_low_rank(
    measurements: Measurements,
    values: np.ndarray,
    options: LowRankOptions,
    solver: CholeskySystems | ConjugateGradients,
) -> LowRankFit:
    """Return X with 𝒜X ≈ y, of low rank but for what ε leaves.

    Parameters
    ----------
    measurements : Measurements
    values : (n,) float64
    options : LowRankOptions
    solver : CholeskySystems or ConjugateGradients
        For the same measurements and values.
    """
    fit = LowRankFit(np.zeros(measurements.shape[1:]))
    size = _size(measurements, values)
    if size == 0.0:
        fit.stop_reason = "zero"
        return fit
    begun = time.perf_counter()
    first = solver.solve(None, options.ridge / gram_unit(options.agop_power, size), np.zeros(values.size), _FIRST_TOL)
    assert first.matrix is not None
    # A vector a in no unit: W⁻¹ of the next step is another multiple of what it was.
    fit.matrix, dual = first.matrix, first.dual / gram_unit(options.agop_power, size)
    _record(fit, size, math.inf, first.inner_steps, 0, begun, options)
    run = _Run(solver, options, begun, fit, dual)
    path = _Path(options, measurements, solver.least_weight, size)
    if not path.may_be_stuck:
        run.descend(path)
        return fit
    start = fit.matrix, dual
    if run.descend(path):
        return fit
    # The rank did not show: more directions came up than the measurements can tell apart. Ranks that were likely on the
    # way are tried as if they had been given, from the first estimate on.
    halfway = fit.matrix, run.dual
    for rank in path.likely_ranks():
        fit.matrix, run.dual = start
        attempt = _Path(options, measurements, solver.least_weight, size, rank)
        if run.descend(attempt) in ("converged", "max_iter", "zero"):
            return fit
    fit.matrix, run.dual = halfway
    path.may_be_stuck = path.is_stuck = False
    run.descend(path)
    return fit


@dataclass
class _Run:
    """What attempts share: they go on from `fit.matrix` and its `dual` vector."""

    solver: CholeskySystems | ConjugateGradients
    options: LowRankOptions
    begun: float
    fit: LowRankFit
    dual: np.ndarray

    def descend(self, path: _Path) -> str:
        """Iterate until `path` ends and return why, "" where it is stuck."""
        fit, options = self.fit, self.options
        fit.stop_reason, change, error = "", math.inf, math.inf
        n_before = fit.n_iter
        while not fit.stop_reason and not path.is_stuck:
            check()
            sigma = np.linalg.svd(fit.matrix, compute_uv=False)
            if sigma[0] == 0.0:
                fit.stop_reason = "zero"
                break
            fit.smoothing = path.advance(sigma, change, error)
            weights = weights_of(fit.matrix, fit.smoothing, options.agop_power, options.sides == "both")
            unit = gram_unit(options.agop_power, weights.unit)
            found = self.solver.solve(weights, options.ridge / unit, self.dual * unit, _INNER_TOL)
            if found.matrix is None:
                fit.stop_reason = "floor"
                break
            norm = float(np.linalg.norm(found.matrix))
            change = float(np.linalg.norm(found.matrix - fit.matrix)) / norm if norm > 0.0 else 0.0
            fit.matrix, self.dual = found.matrix, found.dual / unit
            rank = int(np.count_nonzero(sigma > fit.smoothing))
            is_first = fit.n_iter == n_before and n_before > 1
            recorded = math.inf if is_first else change
            error = _record(fit, fit.smoothing, recorded, found.inner_steps, rank, self.begun, options)
            fit.stop_reason = path.reason_to_stop(error, norm)
            if not fit.stop_reason and fit.n_iter >= options.max_iter:
                fit.stop_reason = "max_iter"
        return fit.stop_reason


def low_rank_factors(fit: LowRankFit, options: LowRankOptions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return left (n_rows, k), right (n_cols, k) and σ (k,): the directions of the answer, left @ right.T in all."""
    left, sigma, right = svd(fit.matrix, full_matrices=False)
    k = numerical_rank(sigma, options.effective_tol)
    if fit.stop_reason != "unique":
        k = min(k, int(np.count_nonzero(sigma > fit.smoothing)))
    k = min(k, options.rank or k)
    right = right[:k].T
    largest = right[np.argmax(np.abs(right), axis=0), np.arange(k)] if k else np.ones(0)
    signs = np.where(largest < 0.0, -1.0, 1.0)
    return left[:, :k] * (sigma[:k] * signs), right * signs, sigma[:k]


class _Path:
    """ε of each step, and when to stop: from the singular values alone."""

    def __init__(
        self,
        options: LowRankOptions,
        measurements: Measurements,
        least_weight: float,
        size: float,
        tried_rank: int | None = None,
    ) -> None:
        n, n_rows, n_cols = measurements.shape
        self._options, self._least_weight = options, least_weight
        self._smoothing = math.inf
        self._is_exact = options.ridge == 0.0 and options.smoothing == "auto"
        self._holds_back = options.ridge > 0.0 and options.smoothing == "auto"
        rank = options.rank if options.rank is not None and options.rank < min(n_rows, n_cols) else None
        follows = options.smoothing == "sigma_next" or (self._is_exact and rank is not None)
        self._followed = (options.rank if follows else None) if tried_rank is None else tried_rank
        self._is_tried = tried_rank is not None
        self.may_be_stuck = self._is_exact and self._followed is None and options.rank is None
        self.is_stuck, self._n_crowded = False, 0
        self._narrowest, self._trail = np.ones(min(n_rows, n_cols) - 1), [math.inf]
        total = n_rows + n_cols
        # The largest rank with no more unknowns than measurements.
        identifiable = int((total - math.sqrt(max(total * total - 4.0 * n, 0.0))) / 2.0)
        self._cap = max(1, min(identifiable, n_rows - 1, n_cols - 1))
        mean_weight = measurements.square_sum / (n_rows * n_cols)
        self._sharp = ridge_smoothing(options.ridge, options.agop_power, options.effective_tol, mean_weight, norm=size)
        self._floor, self._n_at_floor = 0.0, 0

    def advance(self, sigma: np.ndarray, change: float, error: float) -> float:
        """Return ε of the next step, from the last estimate: σ, its relative step and distance to the limit."""
        rule = self._options.smoothing
        if not isinstance(rule, str):
            self._smoothing = float(rule)
            return self._smoothing
        largest = float(sigma[0])
        least = least_smoothing(self._options.agop_power, largest, self._least_weight)
        self._floor = max(self._sharp, least, _LEAST * largest)
        before = self._smoothing
        self._look_for_stalls(sigma)
        if self._followed is not None:
            wanted = float(sigma[self._followed]) if self._followed < sigma.size else 0.0
        else:
            wanted = before / DROP if math.isfinite(before) else _FIRST_SHARE * float(sigma[0])
            if self._is_exact:
                wanted = min(wanted, self._below_gap(sigma, before))
            elif self._holds_back and math.isfinite(change):
                # Where ε falls below what is still wrong, the misfit that could mend it is left to the noise.
                norm = float(np.linalg.norm(sigma))
                wanted = max(wanted, change * norm / CHANGE_SHARE)
                wanted = max(wanted, ERROR_SHARE * error * norm) if math.isfinite(error) else wanted
        self._smoothing = min(before, max(wanted, self._floor))
        self._n_at_floor += self._smoothing <= 1.01 * self._floor
        return self._smoothing

    def reason_to_stop(self, error: float, norm: float) -> str:
        """Return why the run is over, "" if it is not; `error` is the relative distance to the limit."""
        tol = self._options.effective_tol
        is_fixed = not isinstance(self._options.smoothing, str)
        is_settled = is_fixed or self._followed is not None or self._smoothing <= 1.01 * self._floor
        is_settled = is_settled or (self._options.ridge == 0.0 and self._smoothing <= tol * norm)
        is_settled = is_settled and not (self._is_tried and self._smoothing > _SHOWN * norm)
        if is_settled and error <= tol:
            return "converged"
        return "floor" if self._n_at_floor > _AT_FLOOR and self._options.ridge == 0.0 else ""

    def likely_ranks(self) -> list[int]:
        """Return the few ranks behind which the spectrum was steepest on the way, no more than can be told."""
        order = np.argsort(self._narrowest[: self._cap], kind="stable")
        return [int(place) + 1 for place in order[:_MOST_TRIED]]

    def _look_for_stalls(self, sigma: np.ndarray) -> None:
        """Note where an attempt gets nowhere: too many directions above ε, or an ε that rests for a rank on trial."""
        above = np.maximum(sigma[:-1], np.finfo(np.float64).tiny)
        self._narrowest = np.minimum(self._narrowest, sigma[1:] / above)
        if self.may_be_stuck:
            self._n_crowded = self._n_crowded + 1 if np.count_nonzero(sigma > self._smoothing) > self._cap else 0
            self.is_stuck = self._n_crowded > _CROWDED_SPAN
        if self._is_tried:
            self._trail.append(self._smoothing)
            self.is_stuck = len(self._trail) > _REST_SPAN and self._smoothing > _REST * self._trail[-1 - _REST_SPAN]

    def _below_gap(self, sigma: np.ndarray, before: float) -> float:
        """Return σ_{j+1} where the spectrum falls steeply behind σ_j, near ε or below; infinity where it does not."""
        last = min(self._cap, sigma.size - 1)
        if last < 1:
            return math.inf
        above = np.maximum(sigma[:last], np.finfo(np.float64).tiny)
        ratios = np.where(sigma[1 : last + 1] < _NEAR * before, sigma[1 : last + 1] / above, 1.0)
        place = int(np.argmin(ratios))
        return float(sigma[place + 1]) if ratios[place] < _GAP else math.inf


def _size(measurements: Measurements, values: np.ndarray) -> float:
    """Return what σ_1 would be if the A_i pointed in all directions alike, the unit before there is an estimate."""
    if measurements.square_sum == 0.0:
        return 0.0
    _, n_rows, n_cols = measurements.shape
    largest = float(np.linalg.norm(measurements.adjoint(values), 2))
    return largest * n_rows * n_cols / measurements.square_sum


def _record(
    fit: LowRankFit, smoothing: float, change: float, inner_steps: int, rank: int, begun: float, options: LowRankOptions
) -> float:
    """Note one step and return the estimated relative distance to the limit, infinite while unknown."""
    changes, span = fit.history["change"], _RATE_SPANS[options.sides]
    changes.append(change)
    error = math.inf
    if len(changes) > span and math.isfinite(changes[-1 - span]):
        then = changes[-1 - span]
        rate = min((change / then) ** (1.0 / span), _SLOWEST_RATE) if then > 0.0 else 0.0
        error = change * max(rate / (1.0 - rate), 1.0)
    seconds = time.perf_counter() - begun
    others = (("smoothing", smoothing), ("error_estimate", error), ("rank", rank), ("inner_steps", inner_steps))
    for name, value in (*others, ("seconds", seconds)):
        fit.history[name].append(value)
    return error
