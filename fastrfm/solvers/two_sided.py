"""``method="two-sided"``: lin-RFM with the AGOP of rows and of columns, each at half the power.

A run is a row of attempts, each from large ε down: ``tangent_step`` regresses, ``estimate`` finds the next triplets by
block power steps on low-rank + sparse, started from the last ones (XᵀX is never formed), and ``continuation`` moves
ε and α, gives attempts up and says what comes next.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastrfm.arrays import HostArrays
from fastrfm.blocks import RowBlocks
from fastrfm.factors import numerical_rank
from fastrfm.options import CompletionOptions
from fastrfm.solvers.checkpoint import Checkpoint
from fastrfm.solvers.continuation import Continuation, Patience
from fastrfm.solvers.estimate import Estimate, Layout, Triplets, leading_triplets, start_estimate
from fastrfm.solvers.monitor import Iteration, Monitor
from fastrfm.solvers.tangent_step import tangent_step

EXTRA_DIRECTIONS = 8  # beyond the rank: on the way more directions than it are above ε
RANK_CAP = 40  # the largest rank looked for when none is given
_BARELY_ABOVE = 1.0 + 1e-10
_ROUNDING = 1e-15
_RIDGE_ACCURACY = 1e-4  # with a ridge every direction counts in the answer
_SPECTRUM_ACCURACY = 1e-2  # of singular values near ε


def rank_cap(observations: RowBlocks, rank: int | None, ridge: float = 0.0) -> int:
    """Return the largest rank to look for: the one given, and never more unknowns than observed entries.

    With a ridge neither limit counts on the way: the answer is cut to its rank at the end.
    """
    total, n = observations.n_rows + observations.n_cols, observations.n_observed
    identifiable = total if ridge > 0.0 else int((total - np.sqrt(max(total * total - 4.0 * n, 0.0))) / 2.0)
    wanted = max(rank or 0, RANK_CAP) if rank is None or ridge > 0.0 else rank
    return max(min(wanted, identifiable, *observations.shape), 1)


def solve_two_sided(
    observations: RowBlocks,
    options: CompletionOptions,
    callback: Callable[[Iteration], Any] | None = None,
    start: tuple[np.ndarray, np.ndarray] | None = None,
    patience: Patience | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[np.ndarray, np.ndarray, Monitor]:
    """Complete a matrix.

    Parameters
    ----------
    observations : RowBlocks
    options : CompletionOptions
        ``method`` and ``offsets`` are not looked at.
    callback : callable, optional
    start : (n_rows, k) and (n_cols, k) float64, optional
        Factors of an estimate to go on from.
    patience : Patience, optional
        What ends the run as stalled; by default it tries everything and takes noise for noise.
    checkpoint : Checkpoint, optional

    Returns
    -------
    left, right : (n_rows, k) and (n_cols, k) float64
        The leading directions of the estimate, cut to `options.rank` and to those above ε and the tolerance.
    monitor : Monitor
        ``stop_reason`` is "stalled" if every attempt of ``continuation`` was given up, or `patience` ran out.
    """
    data_norm = observations.norm
    monitor = Monitor(options, data_norm, callback, is_fast=options.ridge == 0.0)
    cap = rank_cap(observations, options.rank, options.ridge)
    path = Continuation(options, data_norm, cap, cap == min(observations.shape), patience)
    nothing = np.zeros((observations.n_rows, 0)), np.zeros((observations.n_cols, 0))
    factors = (observations.arrays.put(factor) for factor in (nothing if start is None else start))
    first = start_estimate(observations, Layout.of(observations), *factors)
    search = _Search(first, path, monitor)
    if checkpoint is not None and (state := checkpoint.take()) is not None:
        search.restore(state)
    while search.current is not None or (not monitor.stop_reason and path.has_next_attempt()):
        _attempt(search, options, data_norm, checkpoint)
    best, least, arrays = search.best, search.least, search.arrays
    if not monitor.stop_reason:
        monitor.stop_reason = "stalled"
    assert best is not None  # the first attempt always runs
    above = int(np.count_nonzero(best.singular_values > least))
    k = min(numerical_rank(best.singular_values, options.effective_tol, data_norm=data_norm), above)
    k = min(k, options.rank or k)
    if monitor.has_converged and path.shown_rank is not None:
        k = min(k, path.shown_rank)
    best = best.first(k, arrays)
    left = arrays.fetch(arrays.scaled(best.left, best.singular_values))
    return left, arrays.fetch(best.right), monitor


@dataclass
class _Search:
    """How far the attempts of a run are: what a checkpoint keeps.

    Attributes
    ----------
    first : Estimate
        What attempts begin from, unless it is a plateau.
    path : Continuation
    monitor : Monitor
    current : Triplets or None
        Of the attempt under way.
    best, least : Triplets or None, float
        The attempt that came furthest, and its ε.
    plateaus : dict of int to Estimate
        By rank.
    """

    first: Estimate
    path: Continuation
    monitor: Monitor
    current: Triplets | None = None
    best: Triplets | None = None
    least: float = math.inf
    plateaus: dict[int, Estimate] = field(default_factory=dict)

    @property
    def arrays(self) -> HostArrays:
        return self.first.observations.arrays

    def begin(self, random_state: int) -> None:
        """Start the next attempt of the path."""
        path = self.path
        estimate = self.plateaus[path.next_cap] if path.is_from_plateau else self.first
        rng, shape, arrays = np.random.default_rng(random_state), estimate.observations.shape, self.arrays
        width = min(path.next_cap + EXTRA_DIRECTIONS, *shape)
        begin = arrays.put(rng.standard_normal((shape[1], width)))
        known = min(estimate.coefficients.shape[1], width)
        begin = arrays.beside(arrays.first(estimate.coefficients, known), arrays.columns(begin, known, width))
        self.current = leading_triplets(estimate, begin, watched=path.next_cap + 1, accuracy=_SPECTRUM_ACCURACY)
        path.start_attempt(self.current.singular_values)

    def end(self) -> None:
        """Finish the attempt under way and keep it if it is the best so far."""
        if self.best is None or self.path.smoothing < self.least or self.monitor.has_converged:
            self.best, self.least = self.current, self.path.smoothing
        self.current = None

    def keep_plateau(self) -> None:
        assert self.current is not None
        kept = self.current.first(self.path.plateau, self.arrays)
        left = self.arrays.scaled(kept.left, kept.singular_values)
        estimate = start_estimate(self.first.observations, self.first.layout, left, kept.right)
        self.plateaus[self.path.plateau] = estimate

    def state(self) -> dict[str, Any]:
        assert self.current is not None  # offered inside attempts alone
        fetch = self.arrays.fetch
        plateaus = {
            str(place): {"left": fetch(plateau.left), "coefficients": fetch(plateau.coefficients)}
            for place, plateau in self.plateaus.items()
        }
        best, current = (
            {} if triplets is None else {name: fetch(array) for name, array in vars(triplets).items()}
            for triplets in (self.best, self.current)
        )
        state = {"path": self.path.state(), "monitor": self.monitor.state(), "plateaus": plateaus, "least": self.least}
        return {**state, "current": current, "best": best}

    def restore(self, state: dict[str, Any]) -> None:
        self.path.restore(state["path"])
        self.monitor.restore(state["monitor"])
        self.current, self.least = self._put(state["current"]), state["least"]
        self.best = self._put(state["best"]) if state["best"] else None
        for place, plateau in state["plateaus"].items():
            left, coefficients = (self.arrays.put(plateau[name]) for name in ("left", "coefficients"))
            self.plateaus[int(place)] = start_estimate(self.first.observations, self.first.layout, left, coefficients)

    def _put(self, kept: dict[str, Any]) -> Triplets:
        return Triplets(self.arrays.put(kept["left"]), kept["singular_values"], self.arrays.put(kept["right"]))


def _attempt(search: _Search, options: CompletionOptions, data_norm: float, checkpoint: Checkpoint | None) -> None:
    """Go on with the attempt under way, or begin the next one, until the monitor stops or the path gives up."""
    path, monitor = search.path, search.monitor
    observations, layout, arrays = search.first.observations, search.first.layout, search.arrays
    if search.current is None:
        search.begin(options.random_state)
    while search.current is not None:
        if checkpoint is not None and checkpoint.is_due(monitor.n_iter):
            checkpoint.write(monitor.n_iter, search.state())
        triplets = search.current
        above = int(np.count_nonzero(triplets.singular_values > path.step_smoothing * _BARELY_ABOVE))
        used = triplets.first(min(above, path.n_directions), arrays)
        k = used.singular_values.size
        step = tangent_step(
            observations,
            layout,
            used,
            smoothing=path.step_smoothing,
            agop_power=path.agop_power,
            ridge=options.ridge,
            tolerance=path.inner_tolerance,
        )
        norm = float(np.linalg.norm(used.singular_values)) if k else data_norm
        is_done = monitor.record(
            smoothing=path.smoothing,
            floor=path.floor,
            norm=norm,
            change=step.change,
            masked_rmse=float(np.sqrt(step.square_sum / observations.n_observed)),
            rank=k,
            inner_steps=step.inner_steps,
            inner_error=step.inner_error,
            is_settled=path.is_noisy,
        )
        search.current = leading_triplets(
            step.estimate,
            arrays.beside(
                arrays.first(step.image_of_left(), k), arrays.columns(triplets.right, k, triplets.right.shape[1])
            ),
            watched=(k if options.rank is None or options.ridge > 0.0 else path.cap) + 1,
            accuracy=_SPECTRUM_ACCURACY if options.ridge == 0.0 else _RIDGE_ACCURACY,
            floor=_ROUNDING * data_norm,
        )
        if is_done:
            search.end()
            return
        path.advance(
            search.current.singular_values,
            change=step.change,
            norm=norm,
            error=monitor.error_estimate * norm,
            n_directions=k,
            inner_steps=step.inner_steps,
        )
        if path.plateau:
            search.keep_plateau()
        if path.is_stuck:
            search.end()
        del step, used, triplets  # the next step can do without their memory
