"""Descents: factored lin-RFM led along a schedule of powers and ridges, each stage a few iterations from the last.

With noise the best answer need not be a limit: how far to go is chosen with the rest (``selection``), on entries held
out, and ``follow`` repeats what was chosen on all of them. ε rests at ``ridge_smoothing``. The step is ``factored``'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastrfm.blocks import RowBlocks
from fastrfm.factors import tall_qr
from fastrfm.options import CompletionOptions
from fastrfm.solvers.checkpoint import Checkpoint
from fastrfm.solvers.factored import (
    EXTRA_DIRECTIONS,
    FIRST_BLOCK,
    FeatureFactors,
    LowRankPart,
    feature_factors,
    fit_width,
    regress_rows,
    subspace_step,
)
from fastrfm.solvers.monitor import Iteration, Monitor
from fastrfm.solvers.placement import placed
from fastrfm.solvers.smoothing import ridge_smoothing

_LARGEST_BLOCK = 128  # directions followed without a rank: a search cannot afford more, and predictions hardly gain
_FIRST_STEPS = 4  # block power steps on the observations themselves
# Share of them that those steps take, less where weights are large: with weights w the share of an entry is then w
# times this one, as it is where a ridge leaves next to nothing. A power of two, that changes no bit otherwise.
_FAINT = 2.0**-40


@dataclass(frozen=True)
class Stage:
    """Some iterations at one power and ridge."""

    agop_power: float
    ridge: float
    n_iter: int


class Descent:
    """The state of a descent: leading singular values and right vectors of the estimate, and its low-rank part.

    Parameters
    ----------
    observations : RowBlocks
        Taken along the longer side's rows by the caller.
    rank : int or None
        Directions used at most.
    random_state : int

    Attributes
    ----------
    singular_values : (b,) float64
        At first those of the observations with zeros elsewhere.
    largest_ridge : float
        Beyond it nothing is left at agop_power 1/4: the largest singular value of the observations times their weights.
    basis : (n_cols, b) float64
    part : LowRankPart or None
        Of the last iteration.
    change, square_sum, rank : float, float, int
        Of the last iteration: how far the part moved, misfit on the observed entries, directions in use.
    """

    def __init__(self, observations: RowBlocks, rank: int | None, random_state: int) -> None:
        self.observations, self._most = observations, rank
        wanted = FIRST_BLOCK if rank is None else rank + EXTRA_DIRECTIONS
        self._largest = min(_LARGEST_BLOCK if rank is None else wanted, *observations.shape)
        self._rng = np.random.default_rng(random_state)
        start = self._rng.standard_normal((observations.n_cols, min(wanted, self._largest)))
        self.basis = tall_qr(observations.arrays.put(start), arrays=observations.arrays)[0]
        self.singular_values = np.zeros(self.basis.shape[1])
        self.part: LowRankPart | None = None
        self.change = self.square_sum = self.largest_ridge = 0.0
        self.rank = 0

    def begin(self) -> Descent:
        """Start from the observations themselves, by block power steps."""
        share = _FAINT / max(1.0, 2.0 ** round(math.log2(self.observations.mean_weight)))
        for _ in range(_FIRST_STEPS):
            features = FeatureFactors(self.basis, np.zeros(0), share)
            regression = regress_rows(self.observations, features)
            self.singular_values, self.basis = subspace_step(self.observations, features, regression)
        self.singular_values /= share
        self.largest_ridge = float(self.singular_values[0])
        if self.observations.is_weighted:  # what comes next wants them in the data's unit
            self.singular_values *= self.observations.norm / (np.linalg.norm(self.singular_values) or 1.0)
        return self

    def copy(self) -> Descent:
        """Return a descent that goes on from here by itself."""
        other = Descent.__new__(Descent)
        vars(other).update(vars(self))
        other._rng = np.random.default_rng(0)
        other._rng.bit_generator.state = self._rng.bit_generator.state
        if self.part is not None:
            other.part = LowRankPart(self.observations.arrays.copy(self.part.coefficients), self.part.basis)
        return other

    def step(self, agop_power: float, ridge: float, smoothing: float) -> None:
        """Make one iteration."""
        features = feature_factors(
            self.singular_values[: self._most], self.basis, smoothing=smoothing, agop_power=agop_power, ridge=ridge
        )
        regression = regress_rows(self.observations, features, self.part)
        self.part, self.change, self.square_sum = regression.part, regression.change, regression.square_sum
        self.rank = features.penalty.size
        self.singular_values, self.basis = subspace_step(self.observations, features, regression)
        if self._most is None:
            self.singular_values, self.basis = fit_width(
                self.singular_values, self.basis, self.rank, self._largest, self._rng, self.observations.arrays
            )

    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the low-rank part as (n_rows, k) and (n_cols, k) float64, C order."""
        if self.part is None:
            return np.zeros((self.observations.n_rows, 0)), np.zeros((self.observations.n_cols, 0))
        arrays = self.observations.arrays
        left = arrays.first(self.part.coefficients, self.part.basis.shape[1])
        return arrays.fetch(left), arrays.fetch(self.part.basis)

    def state(self) -> dict[str, Any]:
        assert self.part is not None
        fetch = self.observations.arrays.fetch
        kept = {"singular_values": self.singular_values, "basis": fetch(self.basis), "rank": self.rank}
        part = {name: fetch(array) for name, array in vars(self.part).items()}
        return {**kept, "part": part, "random": dict(self._rng.bit_generator.state)}

    def restore(self, state: dict[str, Any]) -> None:
        put = self.observations.arrays.put
        self.singular_values, self.basis, self.rank = state["singular_values"], put(state["basis"]), state["rank"]
        self.part = LowRankPart(**{name: put(array) for name, array in state["part"].items()})
        self._rng.bit_generator.state = state["random"]


def follow(
    observations: RowBlocks,
    schedule: Sequence[Stage],
    options: CompletionOptions,
    callback: Callable[[Iteration], Any] | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[np.ndarray, np.ndarray, Monitor]:
    """Complete a matrix along a schedule.

    Parameters
    ----------
    observations : RowBlocks
    schedule : sequence of Stage
    options : CompletionOptions
        `rank`, `tol`, `max_iter` and `random_state` are looked at.
    callback : callable, optional
    checkpoint : Checkpoint, optional

    Returns
    -------
    left, right : (n_rows, k) and (n_cols, k) float64
    monitor : Monitor
        ``stop_reason`` is "schedule" at the end of it.
    """
    steps = [(stage.agop_power, stage.ridge) for stage in schedule for _ in range(stage.n_iter)]
    total_weight = float(observations.row_weights.sum())
    monitor = Monitor(options, observations.norm, callback, n_planned=len(steps))
    descent = Descent(placed(observations, options.device), options.rank, options.random_state)
    if checkpoint is not None and (state := checkpoint.take()) is not None:
        monitor.restore(state["monitor"])
        descent.restore(state["descent"])
    else:
        descent.begin()
    while not monitor.stop_reason:
        if checkpoint is not None and checkpoint.is_due(monitor.n_iter):
            checkpoint.write(monitor.n_iter, {"descent": descent.state(), "monitor": monitor.state()})
        agop_power, ridge = steps[monitor.n_iter]
        smoothing = ridge_smoothing(ridge, agop_power, options.effective_tol, observations.mean_weight)
        theta = 1.0 / (1.0 + ridge / smoothing ** (4.0 * agop_power))
        descent.step(agop_power, ridge, smoothing)
        assert descent.part is not None
        monitor.record(
            smoothing=smoothing,
            floor=smoothing,
            norm=descent.observations.arrays.norm(descent.part.coefficients),
            change=descent.change,
            masked_rmse=(1.0 - theta) * float(np.sqrt(descent.square_sum / total_weight)),
            rank=descent.rank,
        )
    left, right = descent.factors()
    return left, right, monitor
