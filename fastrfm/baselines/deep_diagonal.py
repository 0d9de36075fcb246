"""Deep diagonal linear networks for sparse regression: gradient descent on β = u^L − v^L from a small start u = v.

Loss ½ ‖A β − y‖². Without any penalty a small start leads to sparse coefficients, in its limit those of least ℓ1 norm
(T. Vaskevicius et al., "Implicit regularization for optimal sparse recovery", 2019; B. Woodworth et al., "Kernel and
rich regimes in overparametrized models", 2020, whose parametrisation this is). With g = Aᵀ(A β − y) a step is

    u ← u − η L u^(L−1) g,   v ← v + η L v^(L−1) g

Products with A are BLAS's, the rest is one kernel. Not here: the search of depth, step and start (``search``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastrfm._interrupt import check, deferred
from fastrfm._numba import check_thread_count, thread_limit
from fastrfm.baselines.inputs import Clock, check_number, check_whole, positive, warn_unless_done
from fastrfm.errors import InputError
from fastrfm.kernels.networks import step_coordinates
from fastrfm.regression_inputs import read_features, read_targets

# Of u^depth at the start to the largest coefficient as estimated. Beyond depth 2 plateaus last a power of 1 / scale.
INIT_SCALES = {2: 1e-16, 3: 1e-6}
DEEPER_INIT_SCALE = 1e-5
_DIVERGED = 2.0  # times ‖y‖: descent never rises above its start, which is ‖y‖
_RISES, _RISE = 50, 1e-6  # so many rises, each by that share, since the least loss: the step bounces across a valley
_HALVINGS = 20
_WORTH_THREADS = 1 << 16  # coordinates
_POWER_STEPS = 30
_NORMAL, _MOST_NOISE = 1.4826, 0.9  # standard deviations to a normal variable's median magnitude


@dataclass(frozen=True, eq=False)
class DiagonalNetworkResult:
    """Coefficients that a deep diagonal network found.

    Attributes
    ----------
    coef : (n_features,) float64
    history : dict of (n_iter,) float64 arrays
        ``residual`` (‖A β − y‖ / ‖y‖), ``step`` (as given: it shows halvings) and ``seconds``.
    stop_reason : str
        "converged", "max_iter", "max_seconds", "callback" or "diverged".
    n_iter, depth : int
    step, init_scale : float
        As used in the end, in the units of :func:`deep_diagonal_network`.
    """

    coef: np.ndarray
    history: dict[str, np.ndarray] = field(repr=False)
    stop_reason: str
    n_iter: int
    depth: int
    step: float
    init_scale: float


def deep_diagonal_network(
    A: Any,
    y: Any,
    *,
    depth: int = 2,
    step: float | str = "auto",
    init_scale: float | str = "auto",
    tol: float = 1e-4,
    max_iter: int = 100_000,
    max_seconds: float | None = None,
    n_threads: int | None = None,
    callback: Callable[[int, np.ndarray], Any] | None = None,
) -> DiagonalNetworkResult:
    """Return the coefficients that a deep diagonal linear network finds by full-batch gradient descent.

    Parameters
    ----------
    A : (n_samples, n_features) array_like of float, dense
    y : (n_samples,) array_like of float
    depth : int
        L, at least 2.
    step : float or "auto"
        Multiple of the automatic step, which is 1 over the loss's largest curvature at the scale of the solution (see
        Notes); "auto" is 1. Where the loss exceeds its start, or rises 50 times without a new least, the step is
        halved and training starts again.
    init_scale : float or "auto"
        u^L at the start over the largest coefficient as estimated. "auto" is 1e-16 at depth 2, 1e-6 at depth 3 and
        1e-5 beyond.
    tol : float
        Stop when ‖A β − y‖ ≤ tol ‖y‖.
    max_iter : int
    max_seconds : float or None
    n_threads : int or None
        Of the elementwise kernel; None is all there are, one below 65 536 features. BLAS runs on one.
    callback : callable, optional
        Called with the number of the iteration and the coefficients; True stops.

    Returns
    -------
    DiagonalNetworkResult

    Raises
    ------
    InputError
        If an option is out of range, A and y do not fit, are not finite or not dense, or Aᵀy is zero.

    Warns
    -----
    NotConvergedWarning
        If `max_iter` came before `tol`, or the step was halved 20 times in vain.

    Notes
    -----
    The largest coefficient c is estimated from each column alone, b = Aᵀy / ‖a_j‖², c = max |b|. Where u or v is
    near |β|^(1/L), the curvature is L² ‖A diag(|β|^(1 − 1/L))‖²; it is taken at β² = (b² − s²)_+ with s the median
    |b| as a standard deviation, by power iteration (own rule).
    Since b has the unit of β, scaling y by a constant scales the coefficients by it and changes nothing else.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> A = rng.standard_normal((30, 60))
    >>> result = deep_diagonal_network(A, 2.0 * A[:, 3] - A[:, 9])
    >>> np.flatnonzero(np.abs(result.coef) > 0.01).tolist(), result.coef[[3, 9]].round(2).tolist()
    ([3, 9], [2.0, -1.0])
    """
    result = _train(A, y, depth, step, init_scale, tol, max_iter, max_seconds, n_threads, callback)
    warn_unless_done(result.stop_reason, "gradient descent on a diagonal network")
    return result


def read_problem(A: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return A and y as float64 arrays, C order, or raise InputError."""
    table = read_features(A).table
    if not isinstance(table, np.ndarray):
        raise InputError("A must be a dense array in memory for a diagonal network: use A.toarray()")
    target, _ = read_targets(y, table.shape[0])
    if target.shape[1] != 1:
        raise InputError(f"y must be one target, got {target.shape[1]}: call it for each")
    return np.ascontiguousarray(table, dtype=np.float64), np.ascontiguousarray(target[:, 0], dtype=np.float64)


def _train(
    A: Any, y: Any, depth: int, step: float | str, init_scale: float | str, tol: float, max_iter: int,
    max_seconds: float | None, n_threads: int | None, callback: Callable[[int, np.ndarray], Any] | None,
) -> DiagonalNetworkResult:  # fmt: skip
    """Do the work of :func:`deep_diagonal_network` without its warning."""
    check_whole("depth", depth, 2)
    check_whole("max_iter", max_iter, 1)
    check_number("tol", tol, 0.0, above=True)
    multiple = positive("step", step, 1.0)
    share = positive("init_scale", init_scale, INIT_SCALES.get(depth, DEEPER_INIT_SCALE))
    matrix, target = read_problem(A, y)
    clock = Clock(max_seconds)
    threads = check_thread_count(n_threads)
    if n_threads is None and matrix.shape[1] < _WORTH_THREADS:
        threads = 1  # waking others takes longer than what they would do
    with deferred(), thread_limit(threads):
        unit, curvature = solution_scale(matrix, target, depth)
        run = _Run(matrix, target, unit, depth, tol, max_iter, clock)
        for _ in range(_HALVINGS):
            with np.errstate(over="ignore", invalid="ignore"):  # of a step that is too long
                run.descend(multiple, curvature, share, callback)
            if run.stop_reason != "diverged":
                break
            multiple *= 0.5
    if run.stop_reason == "diverged":
        run.coef[...] = 0.0  # the start; what is there may be infinite
    residual, steps, seconds = np.array(run.records).T.copy()
    history = {"residual": residual, "step": steps, "seconds": seconds}
    return DiagonalNetworkResult(
        unit * run.coef, history, run.stop_reason, len(run.records), depth, float(steps[-1]), share
    )


def solution_scale(matrix: np.ndarray, target: np.ndarray, depth: int) -> tuple[float, float]:
    """Return the estimated largest coefficient and the loss's curvature, for targets divided by it (see Notes)."""
    squares = np.einsum("ij,ij->j", matrix, matrix)
    marginal = np.abs(target @ matrix) / np.where(squares > 0.0, squares, 1.0)
    unit = float(marginal.max())
    if unit == 0.0:
        raise InputError("no column of A is correlated with y: there is nothing to regress on")
    # Most columns do not matter, and show the noise of their marginal coefficients.
    noise = _NORMAL * float(np.median(marginal))
    signal = np.sqrt(np.maximum(np.square(marginal) - min(noise, _MOST_NOISE * unit) ** 2, 0.0)) / unit
    slopes = signal ** (1.0 - 1.0 / depth)
    direction, size = slopes / np.linalg.norm(slopes), 1.0
    for _ in range(_POWER_STEPS):
        direction = slopes * ((matrix @ (slopes * direction)) @ matrix)
        size = float(np.linalg.norm(direction))
        direction /= size
    return unit, depth * depth * size


class _Run:
    """Weights, records and the loop of one problem, in the unit of its coefficients."""

    def __init__(
        self, matrix: np.ndarray, target: np.ndarray, unit: float, depth: int, tol: float, max_iter: int, clock: Clock
    ) -> None:
        self._matrix, self._target, self._unit, self._depth = matrix, target / unit, unit, depth
        self._tol, self._max_iter, self._clock = tol, max_iter, clock
        self._norm = float(np.linalg.norm(self._target))
        self.coef = np.empty(matrix.shape[1])
        self.records: list[tuple[float, float, float]] = []
        self.stop_reason = ""

    def descend(
        self, multiple: float, curvature: float, share: float, callback: Callable[[int, np.ndarray], Any] | None
    ) -> None:
        """Train from the small start; ``stop_reason`` says how it ended."""
        positive_part = np.full(self.coef.size, share ** (1.0 / self._depth))
        negative_part = positive_part.copy()
        residual, gradient = -self._target, np.empty_like(self.coef)
        least, last, n_rises = math.inf, math.inf, 0
        while True:
            check()  # Ctrl-C
            np.matmul(residual, self._matrix, out=gradient)
            step_coordinates(gradient, multiple / curvature, self._depth, positive_part, negative_part, self.coef)
            np.matmul(self._matrix, self.coef, out=residual)
            residual -= self._target
            misfit = float(np.linalg.norm(residual)) / self._norm
            self.records.append((misfit, multiple, self._clock.seconds))
            n_rises = 0 if misfit < least else n_rises + (misfit > (1.0 + _RISE) * last)
            least, last = min(least, misfit), misfit
            asked = callback is not None and callback(len(self.records), self._unit * self.coef)
            if misfit <= self._tol:
                self.stop_reason = "converged"
            elif asked:
                self.stop_reason = "callback"
            elif not misfit <= _DIVERGED or n_rises >= _RISES:  # NaN too
                self.stop_reason = "diverged"
            elif len(self.records) >= self._max_iter:
                self.stop_reason = "max_iter"
            elif self._clock.is_over:
                self.stop_reason = "max_seconds"
            else:
                continue
            return
