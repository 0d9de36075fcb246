"""What ``method="auto"`` stands for: which method runs first, whether its answer is kept, and what follows.

A two-sided run that is not kept leaves the rest of ``max_iter`` to a one-sided one; to the caller both are one run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from fastrfm.blocks import RowBlocks
from fastrfm.options import FACTORED_POWER, TWO_SIDED_POWER, CompletionOptions
from fastrfm.solvers.continuation import Patience
from fastrfm.solvers.monitor import Iteration, Monitor

# "auto" takes the dense form up to this length of the smaller side, where an iteration is cheap at any rank.
AUTO_DENSE_SIDE = 600
_SHARE_OF_TRY, _LEAST_TRY = 4, 300  # of max_iter, the most for trying two-sided; but so many iterations
_EXACT = 1e-12  # of the norm: error and epsilon of a run that ran out at the end
# float32 rounds to 1e-7, three decimals to 3e-4; the hardest exact problems that were solved took 30 000 inner steps.
PATIENCE = Patience(rounding=1e-6, noise=3e-4, inner_steps=40_000)


def choose_method(observations: RowBlocks, options: CompletionOptions, *, is_warm: bool = False) -> str:
    """Return what ``method="auto"`` stands for on these observations.

    Two-sided without a ridge, and where the run goes on from an earlier one; a one-sided method follows where it fails
    (see ``is_answer`` and ``PATIENCE``). Below an agop_power of 1/4 the limits are not of low rank, and two-sided
    iteration does not settle. With a ridge the one-sided methods hold their own (README, "What is exact").
    """
    if options.method != "auto":
        return options.method
    if callable(options.agop_power):
        return one_sided(observations, options)
    is_exact = options.ridge == 0.0 and options.smoothing == "auto" and options.agop_power >= FACTORED_POWER
    if options.agop_power <= TWO_SIDED_POWER and (is_exact or is_warm):
        return "two-sided"
    return one_sided(observations, options)


def one_sided(observations: RowBlocks, options: CompletionOptions) -> str:
    """Return the one-sided method that "auto" takes: dense for a short side without a rank, factored otherwise."""
    is_short = options.rank is None and min(observations.shape) <= AUTO_DENSE_SIDE
    is_low = not callable(options.agop_power) and options.agop_power < FACTORED_POWER
    return "dense" if is_short or is_low else "factored"


def options_of_try(options: CompletionOptions) -> CompletionOptions:
    """Return the options of a two-sided run that a one-sided one may follow: some of max_iter."""
    return replace(options, max_iter=max(options.max_iter // _SHARE_OF_TRY, min(options.max_iter, _LEAST_TRY)))


def options_of_rest(options: CompletionOptions, earlier: Monitor) -> CompletionOptions:
    """Return the options of the run that follows: what is left of max_iter."""
    return replace(options, max_iter=options.max_iter - earlier.n_iter)


def is_answer(monitor: Monitor, data_norm: float) -> bool:
    """Return whether "auto" keeps what two-sided iteration found: what converged, or is as exact as it can get."""
    if monitor.stop_reason in ("converged", "callback"):
        return True
    is_at_end = monitor.n_iter > 0 and monitor.history()["smoothing"][-1] <= _EXACT * data_norm
    return bool(is_at_end and monitor.error_estimate <= _EXACT)


def counting_on(
    callback: Callable[[Iteration], Any] | None, earlier: dict[str, np.ndarray]
) -> Callable[[Iteration], Any] | None:
    """Return a callback whose iterations and seconds count on from those of an earlier run, given its history."""
    if callback is None:
        return None
    n_before, seconds_before = len(earlier["seconds"]), float(earlier["seconds"][-1])

    def count_on(seen: Iteration) -> Any:
        return callback(replace(seen, iteration=seen.iteration + n_before, seconds=seen.seconds + seconds_before))

    return count_on


def joined(histories: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the histories of runs one after the other as one, with seconds since the start of the first."""
    whole = {name: np.concatenate([history[name] for history in histories]) for name in histories[0]}
    start = 0.0
    for seconds in np.split(whole["seconds"], np.cumsum([len(history["seconds"]) for history in histories])[:-1]):
        seconds += start  # a view: written into the whole
        start = seconds[-1] if seconds.size else start
    return whole
