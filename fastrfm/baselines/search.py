"""Depth, step and start of deep networks, searched for one problem by the error on observations held out.

Every combination is trained on the observations kept; the one with the least root mean square error on those held out
is trained again on all. Hidden truth takes no part. Flow: calls ``deep_linear`` and ``deep_diagonal``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from fastrfm.baselines import deep_diagonal, deep_linear
from fastrfm.baselines.inputs import Clock, check_number, check_observations, check_whole, positive, warn_unless_done
from fastrfm.errors import InputError
from fastrfm.observations import Observations
from fastrfm.options import LARGEST_SEED
from fastrfm.results import CompletionResult

DEPTHS, STEPS = (2, 3, 4), (1.0, 1.5)
# Starts by depth, the automatic one first and one that leaves its plateau soon.
LINEAR_STARTS, DEEPER_LINEAR_STARTS = {2: (1e-20, 1e-6), 3: (1e-6, 1e-3)}, (1e-5, 1e-2)
DIAGONAL_STARTS, DEEPER_DIAGONAL_STARTS = {2: (1e-16, 1e-6), 3: (1e-6, 1e-3)}, (1e-5, 1e-2)
_REFIT_SHARE = 0.25  # of the time, kept for the final training

Trials = dict[str, np.ndarray]
Train = Callable[[int, float, float, float | None], tuple[Any, float]]  # depth, step, start, limit: result, error


def search_deep_linear_network(
    observations: Observations,
    *,
    depths: Iterable[int] = DEPTHS,
    steps: Iterable[float] = STEPS,
    init_scales: Iterable[float] | str = "auto",
    holdout: float = 0.1,
    tol: float = 1e-4,
    max_iter: int = 100_000,
    max_seconds: float | None = None,
    random_state: int = 0,
    n_threads: int | None = None,
    dtype: str = "float64",
) -> tuple[CompletionResult, Trials]:
    """Return a deep linear network's completion with depth, step and start chosen on entries held out.

    Parameters
    ----------
    observations, tol, max_iter, random_state, n_threads, dtype
        As in :func:`~fastrfm.baselines.deep_linear_network`. `random_state` also draws the entries held out.
    depths, steps : iterable of int and of float
    init_scales : iterable of float or "auto"
        "auto" tries two for each depth: the automatic one and one that leaves its plateau soon.
    holdout : float
        Share of the entries held out.
    max_seconds : float or None
        For all trials and the final training together, a quarter of it kept for the latter; each trial gets a share of
        what is left, and pays for its set-up beside.

    Returns
    -------
    result : CompletionResult
        Trained on all entries.
    trials : dict of (n_trials,) arrays
        ``depth``, ``n_iter`` (int64), ``step``, ``init_scale``, ``rmse`` on the entries held out (data's unit),
        ``seconds`` (float64) and ``stop_reason`` (str), in the order of the search.

    Raises
    ------
    InputError
        As :func:`~fastrfm.baselines.deep_linear_network`, or if there is nothing to try or `holdout` leaves a side
        empty.

    Warns
    -----
    NotConvergedWarning
        If the final training ended at `max_iter`.
    """
    check_whole("random_state", random_state, 0, LARGEST_SEED)
    kept, held = check_observations(observations).split(holdout, random_state=random_state)
    rows, cols, values = held.to_coo()

    def train(entries: Observations, depth: int, step: float, start: float, limit: float | None) -> CompletionResult:
        return deep_linear._train(
            entries, depth, None, step, start, tol, max_iter, limit, random_state, n_threads, dtype, None
        )

    def attempt(depth: int, step: float, start: float, limit: float | None) -> tuple[CompletionResult, float]:
        result = train(kept, depth, step, start, limit)
        return result, float(np.sqrt(np.mean(np.square(result.predict(rows, cols) - values))))

    grid = _grid(depths, steps, init_scales, LINEAR_STARTS, DEEPER_LINEAR_STARTS)
    trials, chosen, limit = _search(attempt, grid, max_seconds)
    result = train(observations, *chosen, limit)
    warn_unless_done(result.stop_reason, "gradient descent on a deep linear network")
    return result, trials


def search_deep_diagonal_network(
    A: Any,
    y: Any,
    *,
    depths: Iterable[int] = DEPTHS,
    steps: Iterable[float] = STEPS,
    init_scales: Iterable[float] | str = "auto",
    holdout: float = 0.1,
    tol: float = 1e-4,
    max_iter: int = 100_000,
    max_seconds: float | None = None,
    random_state: int = 0,
    n_threads: int | None = None,
) -> tuple[deep_diagonal.DiagonalNetworkResult, Trials]:
    """Return a diagonal network's coefficients with depth, step and start chosen on samples held out.

    Parameters
    ----------
    A, y, tol, max_iter, n_threads
        As in :func:`~fastrfm.baselines.deep_diagonal_network`.
    depths, steps, init_scales, holdout, max_seconds
        As in :func:`search_deep_linear_network`; `holdout` is a share of the samples.
    random_state : int
        Draws the samples held out.

    Returns
    -------
    result : DiagonalNetworkResult
        Trained on all samples.
    trials : dict of (n_trials,) arrays
        As in :func:`search_deep_linear_network`; ``rmse`` is that of the samples held out, in the unit of `y`.

    Raises
    ------
    InputError
        As :func:`~fastrfm.baselines.deep_diagonal_network`, or if there is nothing to try or `holdout` leaves a side
        empty.

    Warns
    -----
    NotConvergedWarning
        If the final training ended at `max_iter`.
    """
    check_whole("random_state", random_state, 0, LARGEST_SEED)
    check_number("holdout", holdout, 0.0, 1.0, above=True)
    matrix, target = deep_diagonal.read_problem(A, y)
    n_held = int(holdout * target.size)
    if not 0 < n_held < target.size:
        raise InputError(f"holdout must leave samples on both sides, got {holdout!r} of {target.size}")
    order = np.random.RandomState(random_state).permutation(target.size)
    held, kept = np.sort(order[:n_held]), np.sort(order[n_held:])

    def attempt(
        depth: int, step: float, start: float, limit: float | None
    ) -> tuple[deep_diagonal.DiagonalNetworkResult, float]:
        result = deep_diagonal._train(
            matrix[kept], target[kept], depth, step, start, tol, max_iter, limit, n_threads, None
        )
        return result, float(np.sqrt(np.mean(np.square(matrix[held] @ result.coef - target[held]))))

    grid = _grid(depths, steps, init_scales, DIAGONAL_STARTS, DEEPER_DIAGONAL_STARTS)
    trials, (depth, step, start), limit = _search(attempt, grid, max_seconds)
    result = deep_diagonal._train(matrix, target, depth, step, start, tol, max_iter, limit, n_threads, None)
    warn_unless_done(result.stop_reason, "gradient descent on a diagonal network")
    return result, trials


def _grid(
    depths: Iterable[int],
    steps: Iterable[float],
    starts: Iterable[float] | str,
    by_depth: Mapping[int, tuple[float, ...]],
    deeper: tuple[float, ...],
) -> list[tuple[int, float, float]]:
    """Return the combinations of depth, step and start to try."""
    if isinstance(starts, str) and starts != "auto":
        raise InputError(f'init_scales must be numbers or "auto", got {starts!r}')
    steps, given = list(steps), None if isinstance(starts, str) else list(starts)
    grid = []
    for depth in depths:
        check_whole("depths", depth, 2)
        for step, start in itertools.product(steps, by_depth.get(depth, deeper) if given is None else given):
            grid.append((depth, positive("steps", step, 1.0), positive("init_scales", start, 1.0)))
    if not grid:
        raise InputError("there is nothing to try: give at least one of depths, steps and init_scales")
    return grid


def _search(
    attempt: Train, grid: list[tuple[int, float, float]], max_seconds: float | None
) -> tuple[Trials, tuple[int, float, float], float | None]:
    """Return all trials, the setting of the best one, and the seconds left for training with it (None: no limit)."""
    clock = Clock(max_seconds)

    reserve = 0.0 if max_seconds is None else _REFIT_SHARE * max_seconds

    def limit(n_left: int) -> float | None:
        # An attempt takes at least one step, whatever is left.
        return None if max_seconds is None else max((clock.left - reserve) / n_left, 1e-9)

    records = []
    for done, (depth, step, start) in enumerate(grid):
        before = clock.seconds
        result, rmse = attempt(depth, step, start, limit(len(grid) - done))
        rmse = rmse if math.isfinite(rmse) else math.inf
        records.append((depth, step, start, rmse, result.n_iter, clock.seconds - before, result.stop_reason))
    names = ("depth", "step", "init_scale", "rmse", "n_iter", "seconds", "stop_reason")
    trials = {name: np.array(column) for name, column in zip(names, zip(*records, strict=True), strict=True)}
    left = None if max_seconds is None else max(clock.left, reserve)
    return trials, grid[int(np.argmin(trials["rmse"]))], left
