"""IRLS-p for matrix completion, with the spectral decomposition that lin-RFM saves.

K. Mohan, M. Fazel, "Iterative reweighted algorithms for matrix rank minimization", 2012. Each iteration decomposes the
estimate X_t = U diag(σ) Vᵀ, or XᵀX, to form its weights, and solves the weighted least squares exactly:

    W = (X_tᵀ X_t + ε² I)^(p/2 − 1),   X_{t+1} = argmin tr(X W Xᵀ) among the X that meet the data,

row by row x_i = a K[J,:] with K[J,J] a = y_i and K = W⁻¹; with a ridge, (K[J,J] + λ I) a = y_i minimises
½ ‖P_Ω(X − Y)‖² + ½ λ tr(X W Xᵀ). Row systems, smoothing rules and stopping are those of ``method="dense"``: the two
differ in the decomposition alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastrfm._interrupt import deferred
from fastrfm._numba import check_thread_count, thread_limit
from fastrfm.baselines.inputs import as_result, check_number, check_observations, warn_unless_done
from fastrfm.errors import InputError
from fastrfm.factors import svd
from fastrfm.kernels.gram import accumulate_gram, shift_and_mirror
from fastrfm.observations import Observations
from fastrfm.options import CompletionOptions
from fastrfm.results import CompletionResult
from fastrfm.solvers.dense import GRAM_RESOLUTION, estimate_slabs, slab_buffer, smoothing_floor
from fastrfm.solvers.monitor import Iteration, Monitor
from fastrfm.solvers.smoothing import next_smoothing, ridge_smoothing

RULES = ("geometric", "iterate_change")
DECOMPOSITIONS = ("svd", "eigh")


def irls(
    observations: Observations,
    *,
    schatten_p: float = 1.0,
    ridge: float = 0.0,
    smoothing: str | float | Any = "geometric",
    max_iter: int = CompletionOptions.max_iter,
    tol: float | None = None,
    decomposition: str = "svd",
    n_threads: int | None = None,
    callback: Callable[[int, np.ndarray], Any] | None = None,
) -> CompletionResult:
    """Return the completion by iteratively reweighted least squares for the Schatten-p penalty.

    Parameters
    ----------
    observations : Observations
        In memory, without weights.
    schatten_p : float
        Below 2; 1 is the nuclear norm, 0 the log-determinant.
    ridge : float
        λ ≥ 0, as in :func:`fastrfm.complete`; 0 interpolates.
    smoothing : {"geometric", "iterate_change"}, float or (n,) array_like of float
        ε. "geometric" starts at the norm of the values and falls by 1.05 an iteration, down to where K is still regular
        in float64; "iterate_change" is the rule of :func:`fastrfm.complete`. A number is a fixed ε; an array has
        one for each iteration, and its length is the number of iterations.
    max_iter : int
    tol : float or None
        As in :func:`fastrfm.complete`: of the estimated distance to the limit; 1e-8, with a ridge 1e-2.
    decomposition : {"svd", "eigh"}
        Of X, or of XᵀX, which is faster but squares the condition number.
    n_threads : int or None
    callback : callable, optional
        Called with the number of the iteration and the dense estimate, which is used again; True stops.

    Returns
    -------
    CompletionResult
        ``history`` as of :func:`fastrfm.complete`; ``stop_reason`` is "converged", "max_iter", "callback" or "schedule"
        (the end of an array of ε). The estimate's directions below `tol` and, under a rule, below ε are cut off.

    Raises
    ------
    InputError
        If an option is out of range, or the observations are weighted, not in memory or all zero.

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
    >>> result = irls(Observations.from_dense(matrix), schatten_p=0.0)
    >>> result.rank, result.predict([0, 3], [2, 0]).round(4).tolist()
    (1, [4.0, 4.0])
    """
    observations = check_observations(observations)
    check_number("schatten_p", schatten_p, -100.0, 2.0)
    if schatten_p == 2.0:
        raise InputError("schatten_p must be below 2, where nothing is reweighted")
    if decomposition not in DECOMPOSITIONS:
        raise InputError(f"decomposition must be one of {', '.join(DECOMPOSITIONS)}, got {decomposition!r}")
    schedule, rule = _read_smoothing(smoothing)
    options = CompletionOptions(
        method="dense", agop_power=(2.0 - schatten_p) / 4.0, ridge=ridge, smoothing=rule, tol=tol, max_iter=max_iter
    )
    is_turned = observations.n_cols > observations.n_rows
    work = observations.transposed() if is_turned else observations
    watch = None

    if callback is not None:

        def watch(iteration: Iteration) -> Any:
            return callback(iteration.iteration, estimate.T if is_turned else estimate)

    estimate = np.zeros(work.shape)
    monitor = Monitor(options, work.norm, watch, n_planned=None if schedule is None else len(schedule))
    with deferred(), thread_limit(check_thread_count(n_threads)):
        last = _iterate(work, estimate, options, schedule, decomposition, monitor)
        left, singular_values, right = svd(estimate, full_matrices=False)
        factors = left * singular_values, np.ascontiguousarray(right.T)
        result = as_result(
            observations,
            (factors[1], factors[0]) if is_turned else factors,
            method="irls",
            tol=max(options.effective_tol, GRAM_RESOLUTION),
            stop_reason=monitor.stop_reason,
            history=monitor.history(),
            options={
                "schatten_p": schatten_p, "ridge": ridge, "smoothing": smoothing, "decomposition": decomposition,
                "max_iter": max_iter,
            },
            least=last if isinstance(rule, str) else 0.0,
        )  # fmt: skip
    warn_unless_done(result.stop_reason, "IRLS")
    return result


def _read_smoothing(smoothing: Any) -> tuple[np.ndarray | None, str | float]:
    """Return an array of ε or None, and the rule or number that stands for it in the options."""
    if isinstance(smoothing, str):
        if smoothing not in RULES:
            raise InputError(f"smoothing must be one of {', '.join(RULES)}, a number or an array, got {smoothing!r}")
        return None, smoothing
    if np.ndim(smoothing) == 0:
        return None, smoothing
    schedule = np.asarray(smoothing, dtype=np.float64)
    if schedule.ndim != 1 or not schedule.size or not np.all(np.isfinite(schedule) & (schedule > 0.0)):
        raise InputError("an array of smoothing must be 1-D, of finite numbers above 0, one for each iteration")
    return schedule, float(schedule[0])


def _iterate(
    work: Observations, estimate: np.ndarray, options: CompletionOptions, schedule: np.ndarray | None,
    decomposition: str, monitor: Monitor,
) -> float:  # fmt: skip
    """Run the iteration until the monitor ends it, X in `estimate`; return the last ε."""
    power = float(options.agop_power)
    least = ridge_smoothing(float(options.ridge), power, options.effective_tol)
    smoothing = work.norm if isinstance(options.smoothing, str) else float(options.smoothing)
    norm, buffer, change_square = work.norm, slab_buffer(work), 0.0
    while True:
        if schedule is not None:
            smoothing = float(schedule[monitor.n_iter])
        unit = norm or 1.0
        inverse = inverse_weights(estimate, 2.0 - 4.0 * power, smoothing, unit, decomposition)
        square_sum, change_square = 0.0, 0.0
        ridge = float(options.ridge) / unit ** (4.0 * power)
        for start, slab, slab_square_sum in estimate_slabs(work, inverse, ridge, buffer):
            before = estimate[start : start + len(slab)]
            before -= slab
            change_square += float(np.vdot(before, before))
            before[...] = slab
            square_sum += slab_square_sum
        norm, change = float(np.linalg.norm(estimate)), change_square**0.5
        floor = max(smoothing_floor(power, norm), least)
        if monitor.record(
            smoothing=smoothing, floor=floor, norm=norm, change=change,
            masked_rmse=(square_sum / work.n_observed) ** 0.5, rank=0,
        ):  # fmt: skip
            return smoothing
        smoothing = next_smoothing(
            options.smoothing, smoothing, change=change, error=monitor.error_estimate * norm, sigma_next=0.0,
            floor=floor,
        )  # fmt: skip


def inverse_weights(
    estimate: np.ndarray, schatten_p: float, smoothing: float, unit: float, decomposition: str
) -> np.ndarray:
    """Return W⁻¹ = ((XᵀX + ε² I) / unit²)^(1 − p/2), (n_cols, n_cols) float64, by a decomposition of X or of XᵀX."""
    n_cols = estimate.shape[1]
    if decomposition == "svd":
        _, singular_values, basis = svd(estimate, full_matrices=False)
        squares = np.square(singular_values / unit)
    else:
        gram = np.zeros((n_cols, n_cols))
        accumulate_gram(estimate, gram)
        eigenvalues, vectors = np.linalg.eigh(gram, UPLO="L")
        squares, basis = np.maximum(eigenvalues, 0.0) / unit**2, vectors.T
    powers = (squares + (smoothing / unit) ** 2) ** (1.0 - schatten_p / 2.0)
    product = np.zeros((n_cols, n_cols))
    accumulate_gram(np.ascontiguousarray(np.sqrt(powers)[:, None] * basis), product)
    shift_and_mirror(product, 1.0, 0.0, product)
    return product
