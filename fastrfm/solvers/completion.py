"""``complete``: observations and options in, ``CompletionResult`` out. The one entry to every completion method.

Checks the options, fits offsets, picks the method and the side to work on, runs the solver under the thread limit,
and brings its answer into canonical form. The iterations themselves live in ``dense``, ``factored`` and ``two_sided``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from fastrfm._interrupt import deferred
from fastrfm._numba import check_thread_count, thread_limit
from fastrfm.atomic import PathLike
from fastrfm.blocks import RowBlocks
from fastrfm.errors import InputError, NotConvergedWarning
from fastrfm.factors import canonical_factors
from fastrfm.kernels.residual import masked_residual
from fastrfm.options import CompletionOptions
from fastrfm.results import CompletionResult, Offsets
from fastrfm.solvers.checkpoint import Checkpoint, digest, digest_of_result
from fastrfm.solvers.choice import (
    PATIENCE,
    choose_method,
    counting_on,
    is_answer,
    joined,
    one_sided,
    options_of_rest,
    options_of_try,
)
from fastrfm.solvers.continuation import Patience
from fastrfm.solvers.dense import solve_dense
from fastrfm.solvers.factored import solve_factored
from fastrfm.solvers.monitor import Iteration, Monitor
from fastrfm.solvers.offsets import fit_offsets
from fastrfm.solvers.two_sided import solve_two_sided

_LARGEST_DECADES = 100.0


def complete(
    observations: RowBlocks,
    rank: int | None = None,
    *,
    method: str = CompletionOptions.method,
    agop_power: float = CompletionOptions.agop_power,
    ridge: float = CompletionOptions.ridge,
    offsets: bool = CompletionOptions.offsets,
    tol: float | None = CompletionOptions.tol,
    max_iter: int = CompletionOptions.max_iter,
    smoothing: str | float = CompletionOptions.smoothing,
    random_state: int = CompletionOptions.random_state,
    callback: Callable[[Iteration], Any] | None = None,
    n_threads: int | None = CompletionOptions.n_threads,
    device: str = CompletionOptions.device,
    start: CompletionResult | None = None,
    checkpoint: PathLike | None = None,
    every: int = 10,
    resume: bool = False,
) -> CompletionResult:
    """Return the completed matrix in factored form.

    Parameters
    ----------
    observations : Observations or StoredObservations
        The known entries.
    rank, method, agop_power, ridge, offsets, tol, max_iter, smoothing, random_state, n_threads, device
        See :class:`fastrfm.options.CompletionOptions`.
    callback : callable, optional
        Called with an :class:`~fastrfm.solvers.monitor.Iteration` after each iteration; returning True stops.
    start : CompletionResult, optional
        A completion of the same shape to go on from, for ``method="two-sided"`` (which "auto" then takes): of the same
        matrix with fewer entries or another ridge. Its low-rank part is used, its offsets are not. Without a ridge it
        saves few iterations: ε has to come down again.
    checkpoint : str or path, optional
        A file that takes the state of the run every so often, whole at any moment. It stays when the run is over.
    every : int
        Iterations between two states.
    resume : bool
        Go on from the state in `checkpoint`, if the file is there, and end with the bits of a run that was never
        interrupted. Observations, options and `start` must be the same, but for `n_threads` and `device`.

    Returns
    -------
    CompletionResult

    Raises
    ------
    InputError
        If an option is out of its range, `rank` exceeds the matrix, `start` has another shape or goes with a method
        that cannot use it, or `checkpoint` is there without `resume`, or of another run.
    FileFormatError
        If `checkpoint` is there and is none.

    Warns
    -----
    NotConvergedWarning
        If `max_iter` came before `tol`, or two-sided iteration stalled; the result is the best iterate.
    CheckpointWarning
        If the disk did not take a checkpoint.

    Notes
    -----
    Minimises ½‖P_Ω(X − Y)‖² + λ ψ(X) with ψ the smoothed Schatten-p penalty, p = 2 − 4 agop_power; with λ = 0, ψ(X)
    among the X that interpolate the data. The kernels' threads do not survive a fork: start worker processes by
    "spawn" or "forkserver" (joblib does). Source: Radhakrishnan, Belkin, Drusvyatskiy, arXiv 2401.04553.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrfm import Observations
    >>> matrix = np.outer([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0])
    >>> matrix[0, 2] = matrix[3, 0] = np.nan
    >>> result = complete(Observations.from_dense(matrix))
    >>> result.rank, result.predict([0, 3], [2, 0]).round(4).tolist()
    (1, [4.0, 4.0])
    """
    if not isinstance(observations, RowBlocks):
        raise InputError(
            f"observations must be fastrfm.Observations, got {type(observations).__name__}: "
            "make them with Observations.from_dense, from_coo, from_scipy or open_observations"
        )
    options = CompletionOptions(
        method=method,
        rank=rank,
        agop_power=agop_power,
        ridge=ridge,
        offsets=offsets,
        tol=tol,
        max_iter=max_iter,
        smoothing=smoothing,
        random_state=random_state,
        n_threads=n_threads,
        device=device,
    )
    options.check_shape(observations.shape)
    _check_size(observations, options.agop_power)
    threads = check_thread_count(n_threads)
    with deferred(), thread_limit(threads):
        fitted = fit_offsets(observations) if options.offsets else None
        centred = observations if fitted is None else observations.shifted(fitted.at)
        chosen = choose_method(centred, options, is_warm=start is not None)
        factors = None if start is None else _start_factors(start, observations.shape, chosen)
        keeper = None
        if checkpoint is not None:
            about = {**options.as_dict(), "start": digest_of_result(start), "observations": digest(observations)}
            keeper = Checkpoint.open(checkpoint, every, about, resume=resume)
        chosen, left, right, monitor, history = _run(centred, chosen, options, callback, factors, keeper)
        trouble = _trouble(monitor, options)
        if trouble:
            warnings.warn(trouble, NotConvergedWarning, stacklevel=2)
        used = {**options.as_dict(), "method": chosen}
        return _result(observations, centred, fitted, left, right, monitor.stop_reason, history, used)


def _run(
    observations: RowBlocks,
    chosen: str,
    options: CompletionOptions,
    callback: Callable[[Iteration], Any] | None,
    factors: tuple[np.ndarray, np.ndarray] | None,
    keeper: Checkpoint | None,
) -> tuple[str, np.ndarray, np.ndarray, Monitor, dict[str, np.ndarray]]:
    """Run the method chosen and, where "auto" does not keep its answer, a one-sided one after it.

    On the longer side's rows: the reweighted side is the smaller one, which takes less memory, and fewer iterations
    than the other way round. Left and right factors come back as the observations were given.
    """
    is_wide = observations.n_cols > observations.n_rows
    work = observations.transposed() if is_wide else observations
    turned = factors[::-1] if factors is not None and is_wide else factors
    is_tried = options.method == "auto" and chosen == "two-sided" and factors is None
    first, patience = (options_of_try(options), PATIENCE) if is_tried else (options, None)
    tried = None
    if keeper is not None and "tried" in keeper.frame:
        tried = Monitor(first, work.norm, None)
        tried.restore(keeper.frame["tried"])
    else:
        left, right, monitor = _solve(work, chosen, first, callback, keeper, turned, patience)
        if is_tried and not is_answer(monitor, work.norm) and monitor.n_iter < options.max_iter:
            tried = monitor
    if tried is not None:
        if keeper is not None:
            keeper.frame["tried"] = tried.state()
        chosen, rest = one_sided(work, options), options_of_rest(options, tried)
        left, right, monitor = _solve(work, chosen, rest, counting_on(callback, tried), keeper)
    if is_wide:
        left, right = right, left
    history = joined([part.history() for part in (tried, monitor) if part is not None])
    return chosen, left, right, monitor, history


def _check_size(observations: RowBlocks, agop_power: float) -> None:
    """Refuse data whose powers, up to the 4 agop_power of the feature Gram, come near the ends of float64."""
    largest = max(map(abs, observations.value_range))
    if largest == 0.0:
        return
    decades = abs(np.log10(largest)) + np.log10(observations.n_observed)  # of the norm, generously
    if decades * max(4.0 * agop_power, 1.0) > _LARGEST_DECADES:
        raise InputError(
            f"values reach {largest:.1e}, and their power 4 agop_power = {4.0 * agop_power:g} leaves the range of "
            "float64: multiply them by a constant first, or lower agop_power"
        )


def _trouble(monitor: Monitor, options: CompletionOptions) -> str:
    if monitor.stop_reason == "max_iter":
        last = monitor.history()["error_estimate"][-1]
        return (
            f"stopped after max_iter = {options.max_iter} iterations at an estimated relative error of {last:.1e} "
            f"(tol = {options.effective_tol:.1e}): raise max_iter or tol"
        )
    if monitor.stop_reason == "stalled":
        wanted = "low rank" if options.rank is None else f"rank {options.rank}"
        return (
            f"two-sided iteration found no matrix of {wanted} through the observations: give the right rank, a ridge "
            "if the data are noisy, or use a one-sided method"
        )
    return ""


def _start_factors(start: CompletionResult, shape: tuple[int, int], method: str) -> tuple[np.ndarray, np.ndarray]:
    if method != "two-sided":
        raise InputError(f'start goes with method="two-sided" and an agop_power of at most 1/2, got method {method!r}')
    if not isinstance(start, CompletionResult):
        raise InputError(f"start must be a CompletionResult, got {type(start).__name__}")
    if start.shape != shape:
        raise InputError(f"start must be a completion of a {shape[0]} x {shape[1]} matrix, got {start.shape}")
    k = start.rank  # further columns hold the means of empty rows and columns
    return np.ascontiguousarray(start.left[:, :k]), np.ascontiguousarray(start.right[:, :k])


def _solve(
    observations: RowBlocks,
    method: str,
    options: CompletionOptions,
    callback: Callable[[Iteration], Any] | None,
    keeper: Checkpoint | None,
    start: tuple[np.ndarray, np.ndarray] | None = None,
    patience: Patience | None = None,
) -> tuple[np.ndarray, np.ndarray, Monitor]:
    if method == "dense":
        return solve_dense(observations, options, callback, keeper)
    if method == "two-sided":
        return solve_two_sided(observations, options, callback, start, patience, keeper)
    return solve_factored(observations, options, callback, keeper)


def _result(
    observations: RowBlocks,
    centred: RowBlocks,
    offsets: Offsets | None,
    left: np.ndarray,
    right: np.ndarray,
    stop_reason: str,
    history: dict[str, np.ndarray],
    options: dict[str, Any],
) -> CompletionResult:
    left, right, singular_values = canonical_factors(left, right, overwrite=True)
    rank = int(np.count_nonzero(singular_values))
    left, right, singular_values = left[:, :rank], right[:, :rank], singular_values[:rank]
    if offsets is None:
        left, right = _with_means(observations, left, right)
    left, right = np.ascontiguousarray(left), np.ascontiguousarray(right)
    return CompletionResult(
        left=left,
        right=right,
        offsets=offsets,
        rank=rank,
        singular_values=singular_values,
        history=history,
        stop_reason=stop_reason,
        masked_rmse=_masked_rmse(centred, left, right),
        n_observed=observations.n_observed,
        n_empty_rows=int(np.count_nonzero(observations.row_counts == 0)),
        n_empty_cols=int(np.count_nonzero(observations.col_counts == 0)),
        options=options,
        row_names=observations.row_names,
        col_names=observations.col_names,
    )


def _masked_rmse(observations: RowBlocks, left: np.ndarray, right: np.ndarray) -> float:
    row_sums = np.zeros(observations.n_rows)  # summed by row first: the same bits whatever the row blocks are
    for block in observations.row_blocks():
        entries = block.by_row
        residual = np.empty(entries.values.size)
        masked_residual(
            entries.bounds,
            entries.indptr,
            entries.indices,
            entries.values,
            left[block.start : block.stop],
            right,
            residual,
        )
        np.add.at(row_sums, block.entry_rows(), residual * residual)
    return float(np.sqrt(row_sums.sum() / observations.n_observed))


def _with_means(observations: RowBlocks, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give rows and columns without observations the means of the other side, as one extra factor column each."""
    empty_rows, empty_cols = observations.row_counts == 0, observations.col_counts == 0
    if not empty_rows.any() and not empty_cols.any():
        return left, right
    row_sums, n = observations.row_sums(), observations.n_observed
    if empty_rows.any():
        means = observations.col_sums() / np.maximum(observations.col_counts, 1)
        means[empty_cols] = row_sums.sum() / n
        left = np.column_stack([left, empty_rows.astype(np.float64)])
        right = np.column_stack([right, means])
    if empty_cols.any():
        means = row_sums / np.maximum(observations.row_counts, 1)  # zero for an empty row: its cell is filled
        left = np.column_stack([left, means])
        right = np.column_stack([right, empty_cols.astype(np.float64)])
    return left, right
