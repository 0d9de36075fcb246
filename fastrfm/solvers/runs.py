"""One run with all options given: offsets, side information, the method and the side to work on, then a solver.

Flow: ``completion`` and ``automatic`` call ``run`` and get an ``Outcome``: factors of the matrix as it was given, not
yet in canonical form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastrfm.blocks import RowBlocks
from fastrfm.errors import InputError
from fastrfm.options import CompletionOptions
from fastrfm.results import CompletionResult, Offsets, Selection
from fastrfm.solvers.checkpoint import Checkpoint
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
from fastrfm.solvers.placement import placed
from fastrfm.solvers.selection import Variant, scale_bounds
from fastrfm.solvers.side_information import SideInformation
from fastrfm.solvers.two_sided import solve_two_sided


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a run found.

    Attributes
    ----------
    observations, centred : RowBlocks
        What was fitted, and the same less the offsets.
    method : str
        The one that gave the answer.
    options : CompletionOptions
        With nothing left to choose.
    offsets : Offsets or None
    left, right : (n_rows, k) and (n_cols, k) float64
    stop_reason : str
    history : dict of (n_iter,) arrays
    bounds : (float, float) or None
    selection : Selection or None
    """

    observations: RowBlocks
    centred: RowBlocks
    method: str
    options: CompletionOptions
    offsets: Offsets | None
    left: np.ndarray
    right: np.ndarray
    stop_reason: str
    history: dict[str, np.ndarray]
    bounds: tuple[float, float] | None
    selection: Selection | None = None

    @classmethod
    def of(
        cls,
        observations: RowBlocks,
        variant: Variant,
        method: str,
        options: CompletionOptions,
        solved: tuple[np.ndarray, np.ndarray, Monitor],
        **more: Any,
    ) -> Outcome:
        """Return the outcome of a solver on a variant of the observations."""
        left, right = variant.factors(*solved[:2])
        story = {"stop_reason": solved[2].stop_reason, "history": solved[2].history(), **more}
        story.setdefault("bounds", settled_bounds(observations, options))
        return cls(observations, variant.centred, method, options, variant.offsets, left, right, **story)


def settled_bounds(observations: RowBlocks, options: CompletionOptions) -> tuple[float, float] | None:
    """Return the bounds of predictions that the options ask for."""
    if isinstance(options.bounds, str):
        return scale_bounds(observations)
    return None if options.bounds is None else (float(options.bounds[0]), float(options.bounds[1]))


def run(
    observations: RowBlocks,
    options: CompletionOptions,
    side: SideInformation,
    callback: Callable[[Iteration], Any] | None,
    start: CompletionResult | None,
    keeper: Checkpoint | None,
    offsets: Offsets | None = None,
) -> Outcome:
    """Run the method asked for and, where "auto" does not keep its answer, a one-sided one after it.

    On the longer side's rows: the reweighted side is the smaller one, which takes less memory, and fewer iterations
    than the other way round. Given `offsets` are taken off in place of fitted ones.
    """
    variant = Variant.of(observations, options, side, offsets)
    work = variant.work
    chosen = choose_method(work, options, is_warm=start is not None)
    factors = None if start is None else _start_factors(start, observations.shape, chosen)
    if factors is not None and work.n_rows + work.n_cols != sum(observations.shape):
        raise InputError("start does not go with side information: leave one of the two out")
    turned = factors[::-1] if factors is not None and variant.is_turned else factors
    is_tried = options.method == "auto" and chosen == "two-sided" and factors is None
    first, patience = (options_of_try(options), PATIENCE) if is_tried else (options, None)
    tried = None
    if keeper is not None and "tried" in keeper.frame:
        tried = Monitor(first, work.norm, None)
        tried.restore(keeper.frame["tried"])
    else:
        solved = _solve(work, chosen, first, callback, keeper, turned, patience)
        if is_tried and not is_answer(solved[2], work.norm) and solved[2].n_iter < options.max_iter:
            tried = solved[2]
    if tried is not None:
        if keeper is not None:
            keeper.frame["tried"] = tried.state()
        chosen, rest = one_sided(work, options), options_of_rest(options, tried)
        solved = _solve(work, chosen, rest, counting_on(callback, tried.history()), keeper)
    history = joined([part.history() for part in (tried, solved[2]) if part is not None])
    return Outcome.of(observations, variant, chosen, options, solved, history=history)


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
    observations = placed(observations, options.device)
    if method == "dense":
        return solve_dense(observations, options, callback, keeper)
    if method == "two-sided":
        return solve_two_sided(observations, options, callback, start, patience, keeper)
    return solve_factored(observations, options, callback, keeper)
