"""``complete``: observations and options in, ``CompletionResult`` out. The one entry to every completion method.

Checks the options, has them run (``runs``) or chosen and run (``automatic``) under the thread limit, and brings the
answer into canonical form. The iterations themselves live in ``dense``, ``factored``, ``two_sided`` and ``descent``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from fastrfm._interrupt import deferred
from fastrfm._numba import check_thread_count, thread_limit
from fastrfm.atomic import PathLike
from fastrfm.blocks import RowBlocks
from fastrfm.devices import resolve
from fastrfm.errors import InputError, NotConvergedWarning, RankWarning
from fastrfm.factors import canonical_factors
from fastrfm.kernels.residual import masked_residual
from fastrfm.observations import Observations
from fastrfm.options import AUTO, TWO_SIDED_POWER, CompletionOptions, Power
from fastrfm.results import CompletionResult, Offsets
from fastrfm.solvers.automatic import AutomaticFit, with_validation
from fastrfm.solvers.checkpoint import Checkpoint, digest, digest_of_mask, digest_of_power, digest_of_result
from fastrfm.solvers.monitor import Iteration
from fastrfm.solvers.rounds import Fit, fit_in_rounds
from fastrfm.solvers.runs import Outcome, run
from fastrfm.solvers.side_information import SideInformation

_LARGEST_DECADES = 100.0
_STRUCTURED, _POWER_STEPS = 2.0, 20  # times the spectral norm of noise: more is no noise
_ROUNDING = 1e-6  # of the norm, as of float32


def complete(
    observations: RowBlocks,
    rank: int | None = None,
    *,
    method: str = CompletionOptions.method,
    agop_power: Power | str = CompletionOptions.agop_power,
    ridge: float | str = CompletionOptions.ridge,
    offsets: bool | str = CompletionOptions.offsets,
    count_power: float = CompletionOptions.count_power,
    huber: float | None = CompletionOptions.huber,
    implicit: int | str = CompletionOptions.implicit,
    side_weight: float = CompletionOptions.side_weight,
    bounds: tuple[float, float] | str | None = CompletionOptions.bounds,
    one_standard_error: bool = CompletionOptions.one_standard_error,
    tol: float | None = CompletionOptions.tol,
    max_iter: int = CompletionOptions.max_iter,
    smoothing: str | float = CompletionOptions.smoothing,
    random_state: int = CompletionOptions.random_state,
    callback: Callable[[Iteration], Any] | None = None,
    n_threads: int | None = CompletionOptions.n_threads,
    device: str = CompletionOptions.device,
    row_features: Any = None,
    col_features: Any = None,
    validation: Observations | None = None,
    start: CompletionResult | None = None,
    checkpoint: PathLike | None = None,
    every: int = 10,
    resume: bool = False,
) -> CompletionResult:
    """Return the completed matrix in factored form.

    Parameters
    ----------
    observations : Observations or StoredObservations
        The known entries, with weights of their own if they have any (``Observations.with_weights``).
    rank, method, agop_power, ridge, offsets, count_power, huber, implicit, side_weight, bounds, one_standard_error, \
    tol, max_iter, smoothing, random_state, n_threads, device
        See :class:`fastrfm.options.CompletionOptions`.
    callback : callable, optional
        Called with an :class:`~fastrfm.solvers.monitor.Iteration` after each iteration; returning True stops.
    row_features, col_features : (n_rows, n) and (n_cols, n) array_like of numbers, optional
        What is known about rows and columns, NaN where it is not: side information (``solvers.side_information``). They
        are standardised and weighted by `side_weight`; the observations must be in memory.
    validation : Observations, optional
        Entries on which "auto" options are chosen: of the same shape, none of them in `observations`, such as the
        latest ones. All of both are fitted in the end. By default a tenth of the entries, drawn at random.
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
    DeviceError
        If `device` is "cuda" and none can be used; a DeviceMemoryError if it has too little memory.
    InputError
        If an option is out of its range, `rank` exceeds the matrix, `start` has another shape or goes with a method
        that cannot use it, or `checkpoint` is there without `resume`, or of another run; if side information has the
        wrong shape or the observations are not in memory; if `validation` goes with options that are all given.
    FileFormatError
        If `checkpoint` is there and is none.

    Warns
    -----
    NotConvergedWarning
        If `max_iter` came before `tol`, or two-sided iteration stalled; the result is the best iterate.
    RankWarning
        If two-sided iteration that was asked for a rank settled below it, though a direction is left in the residual,
        or without a rank there are more directions than ``factored`` follows.
    CheckpointWarning
        If the disk did not take a checkpoint.

    Notes
    -----
    Minimises ½ Σ w (X − Y)² over the observed entries + λ ψ(X), with ψ the smoothed Schatten-p penalty,
    p = 2 − 4 agop_power (what :func:`fastrfm.agop.penalty` says for a function in its place), and weights w of one
    unless the observations have others; with λ = 0, ψ(X) among the X that
    interpolate the data. The kernels' threads do not survive a fork: start worker processes by "spawn" or "forkserver"
    (joblib does). Source: Radhakrishnan, Belkin, Drusvyatskiy, arXiv 2401.04553.

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
        count_power=count_power,
        huber=huber,
        implicit=implicit,
        side_weight=side_weight,
        bounds=bounds,
        one_standard_error=one_standard_error,
        tol=tol,
        max_iter=max_iter,
        smoothing=smoothing,
        random_state=random_state,
        n_threads=n_threads,
        device=device,
    )
    options.check_shape(observations.shape)
    options = replace(options, device=resolve(options.device))
    side = SideInformation.of(observations.shape, row_features, col_features)
    is_automatic = options.is_automatic and start is None
    if not is_automatic:
        options = options.settled()
        if validation is not None:
            raise InputError('validation goes with a ridge that is "auto": give one of the two')
    is_held = None
    if validation is not None:
        observations, is_held = with_validation(observations, validation)
    if options.huber is not None and options.ridge == 0.0:
        raise InputError('huber needs a ridge, for without one every entry is met: give one, or ridge="auto"')
    is_number = options.agop_power != AUTO and not callable(options.agop_power)
    _check_size(observations, float(options.agop_power) if is_number else TWO_SIDED_POWER)
    needs_weights = observations.is_weighted or options.count_power > 0.0 or options.huber is not None
    if needs_weights and (options.method == "two-sided" or start is not None):
        raise InputError(
            'method="two-sided" and start know no weights, count_power and huber: use method="factored" or "dense"'
        )
    threads = check_thread_count(n_threads)
    with deferred(), thread_limit(threads):
        keeper = None
        if checkpoint is not None:
            about = {**options.as_dict(), "start": digest_of_result(start), "observations": digest(observations)}
            about["agop_power"] = digest_of_power(options.agop_power)
            about["bounds"] = (
                options.bounds if isinstance(options.bounds, str | None) else list(map(float, options.bounds))
            )
            about["side"] = side.digest() if side else ""
            about["validation"] = "" if is_held is None else digest_of_mask(is_held)
            keeper = Checkpoint.open(checkpoint, every, about, resume=resume)

        def fit_given(entries: RowBlocks, offsets: Offsets | None, watch: Callable[[Iteration], Any] | None) -> Outcome:
            return run(entries, options, side, watch, start, keeper, offsets)

        automatic = AutomaticFit(options, side, is_held, keeper)
        fit: Fit = automatic if is_automatic else fit_given  # type: ignore[assignment]
        outcome = fit_in_rounds(fit, observations, options, callback, keeper)
        result = result_of(outcome)
        if trouble := _trouble(outcome):
            warnings.warn(trouble, NotConvergedWarning, stacklevel=2)
        elif trouble := _rank_trouble(outcome, result):
            warnings.warn(trouble, RankWarning, stacklevel=2)
        return result


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


def _trouble(outcome: Outcome) -> str:
    options = outcome.options
    if outcome.stop_reason == "max_iter":
        last = outcome.history["error_estimate"][-1]
        return (
            f"stopped after max_iter = {options.max_iter} iterations at an estimated relative error of {last:.1e} "
            f"(tol = {options.effective_tol:.1e}): raise max_iter or tol"
        )
    if outcome.stop_reason == "stalled":
        wanted = "low rank" if options.rank is None else f"rank {options.rank}"
        return (
            f"two-sided iteration found no matrix of {wanted} through the observations: give the right rank, a ridge "
            "if the data are noisy, or use a one-sided method"
        )
    return ""


def _rank_trouble(outcome: Outcome, result: CompletionResult) -> str:
    """Return what is wrong where two-sided iteration was asked for a rank and left a direction out that is there."""
    options, observations = outcome.options, outcome.observations
    if (
        options.method != "two-sided"
        or result.rank >= (options.rank or 0)
        or not isinstance(observations, Observations)
    ):
        return ""
    rows, cols, values = observations.to_coo()
    residual = values - result.predict(rows, cols)
    strongest = _spectral_norm(observations, residual)
    # The spectral norm of as many entries of noise in the same places.
    expected = result.masked_rmse * (np.sqrt(observations.row_counts.max()) + np.sqrt(observations.col_counts.max()))
    if strongest <= max(_STRUCTURED * expected, _ROUNDING * observations.norm):
        return ""
    return (
        f"two-sided iteration settled at rank {result.rank}, not {options.rank}, though what is left has a direction "
        f"{strongest / expected:.2g} times as strong as noise would: if a mean dwarfs the rest take it off with "
        "offsets=True, else give a ridge or use a one-sided method"
    )


def _spectral_norm(observations: Observations, values: np.ndarray) -> float:
    import scipy.sparse

    matrix = scipy.sparse.csr_matrix((values, observations.indices, observations.indptr), shape=observations.shape)
    direction = np.random.default_rng(0).standard_normal(observations.n_cols)
    for _ in range(_POWER_STEPS):
        direction = matrix.T @ (matrix @ (direction / (np.linalg.norm(direction) or 1.0)))
    return float(np.sqrt(np.linalg.norm(direction)))


def result_of(outcome: Outcome) -> CompletionResult:
    """Return an outcome in canonical form."""
    observations = outcome.observations
    left, right, singular_values = canonical_factors(outcome.left, outcome.right, overwrite=True)
    rank = int(np.count_nonzero(singular_values))
    left, right, singular_values = left[:, :rank], right[:, :rank], singular_values[:rank]
    if outcome.offsets is None:
        left, right = _with_means(observations, left, right)
    left, right = np.ascontiguousarray(left), np.ascontiguousarray(right)
    return CompletionResult(
        left=left,
        right=right,
        offsets=outcome.offsets,
        rank=rank,
        singular_values=singular_values,
        history=outcome.history,
        stop_reason=outcome.stop_reason,
        masked_rmse=_masked_rmse(outcome.centred, left, right),
        n_observed=observations.n_observed,
        n_empty_rows=int(np.count_nonzero(observations.row_counts == 0)),
        n_empty_cols=int(np.count_nonzero(observations.col_counts == 0)),
        options={**outcome.options.as_dict(), "method": outcome.method},
        row_names=observations.row_names,
        col_names=observations.col_names,
        bounds=outcome.bounds,
        selection=outcome.selection,
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
        square = residual * residual
        np.add.at(row_sums, block.entry_rows(), square * entries.weights if observations.is_weighted else square)
    return float(np.sqrt(row_sums.sum() / observations.row_weights.sum()))


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
