"""Rounds of fits, each with weights and offsets from what the one before left: outliers, and offsets fitted with X.

Outliers get the weights of Huber's loss (``outliers``) from the residuals of the last fit. Joint offsets are refitted,
shrunken anew, to what X leaves of the values, and X to what they leave (backfitting). Any method can be the fit. Flow:
``completion`` -> here -> ``runs`` or ``automatic``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from fastrfm.blocks import RowBlocks
from fastrfm.kernels.residual import predict_pairs
from fastrfm.observations import Observations
from fastrfm.options import JOINT, CompletionOptions
from fastrfm.results import Offsets
from fastrfm.solvers.checkpoint import Checkpoint
from fastrfm.solvers.choice import counting_on, joined
from fastrfm.solvers.monitor import Iteration
from fastrfm.solvers.offsets import fit_offsets
from fastrfm.solvers.outliers import huber_weights
from fastrfm.solvers.runs import Outcome
from fastrfm.solvers.side_information import check_in_memory

_MOST_ROUNDS = 30


class Fit(Protocol):
    """One fit of a round: observations with that round's weights, offsets to take instead of fitting them."""

    def __call__(
        self, observations: RowBlocks, offsets: Offsets | None, callback: Callable[[Iteration], Any] | None
    ) -> Outcome: ...


def fit_in_rounds(
    fit: Fit,
    observations: RowBlocks,
    options: CompletionOptions,
    callback: Callable[[Iteration], Any] | None,
    keeper: Checkpoint | None,
) -> Outcome:
    """Return the fit at which weights and offsets have settled; the only one where neither is asked for.

    Rounds end when the estimate at the observed entries moves by less than the tolerance, relative to its norm.
    """
    if options.huber is None and options.offsets != JOINT:
        return fit(observations, None, callback)
    entries = check_in_memory(observations, "huber and joint offsets need")
    weighted, offsets, before = entries, None, np.zeros(entries.n_observed)
    history: dict[str, np.ndarray] = {}
    if keeper is not None and "round" in keeper.frame:
        weighted, offsets, before, history = _restored(entries, keeper.frame["round"])
    for _ in range(_MOST_ROUNDS):
        outcome = fit(weighted, offsets, counting_on(callback, history) if history else callback)
        history = joined([history, outcome.history]) if history else outcome.history
        low_rank, estimate = _at_entries(entries, outcome)
        change = float(np.linalg.norm(estimate - before))
        if outcome.stop_reason == "callback" or change <= options.effective_tol * float(np.linalg.norm(estimate)):
            break
        before = estimate
        if options.huber is not None:
            weights = huber_weights(entries.values - estimate, options.huber)
            weighted = entries.with_weights(weights * entries.entry_weights)
        if outcome.offsets is not None:
            offsets = fit_offsets(weighted.with_values(entries.values - low_rank)) if options.offsets == JOINT else None
        if keeper is not None:
            keeper.frame = {"round": _kept(weighted, offsets, before, history), **_chosen(keeper)}
    return replace(outcome, observations=observations, history=history)


def _at_entries(entries: Observations, outcome: Outcome) -> tuple[np.ndarray, np.ndarray]:
    """Return the low-rank part and the whole estimate at the observed entries, (n_observed,) float64."""
    rows, cols, _ = entries.to_coo()
    low_rank = np.empty(rows.size)
    predict_pairs(rows, cols.astype(np.int64), outcome.left, outcome.right, low_rank)
    return low_rank, low_rank if outcome.offsets is None else low_rank + outcome.offsets.at(rows, cols)


# --- what a checkpoint keeps ------------------------------------------------------------------------------------------


def _kept(
    weighted: Observations, offsets: Offsets | None, before: np.ndarray, history: dict[str, np.ndarray]
) -> dict[str, Any]:
    kept = {"weights": weighted.weights, "before": before, "history": history}
    return kept if offsets is None else {**kept, "offsets": vars(offsets)}


def _restored(
    entries: Observations, kept: dict[str, Any]
) -> tuple[Observations, Offsets | None, np.ndarray, dict[str, np.ndarray]]:
    weighted = entries.with_weights(kept["weights"]) if kept["weights"].size else entries
    offsets = Offsets(**kept["offsets"]) if "offsets" in kept else None
    return weighted, offsets, kept["before"], kept["history"]


def _chosen(keeper: Checkpoint) -> dict[str, Any]:
    """Return what was chosen, which holds in further rounds; what a round tried first does not."""
    return {name: keeper.frame[name] for name in ("choice", "n_choices") if name in keeper.frame}
