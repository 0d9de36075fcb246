"""Watching an iteration: history, convergence from observed data only, callbacks. Shared by all solvers.

Convergence is judged by the distance to the limit, not by the last step: with steps that shrink by a factor q an
iteration, what is still to come is step · q / (1 − q), which for a slow linear rate is many times the step itself.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from fastrfm.options import CompletionOptions

_RATE_SPAN = 6  # iterations over which q is measured; single steps are too uneven
_AT_FLOOR = 1.01  # the floor moves with the estimate's norm, a little even at the end
_SLOWEST_RATE = 0.9999
_WINDOW = 6  # iterations whose extrapolations must agree


@dataclass(frozen=True)
class Iteration:
    """What a callback sees after each iteration (units as in ``CompletionResult.history``).

    ``iteration`` counts from 1; ``progress`` runs from 0 to 1 on the way from the first error estimate to ``tol``.
    """

    iteration: int
    smoothing: float
    change: float
    error_estimate: float
    tol: float
    masked_rmse: float
    rank: int
    inner_steps: int
    inner_error: float
    seconds: float
    progress: float


class Monitor:
    """Collects one record per iteration and decides when to stop."""

    def __init__(
        self,
        options: CompletionOptions,
        data_norm: float,
        callback: Callable[[Iteration], Any] | None,
        *,
        is_fast: bool = False,
        n_planned: int | None = None,
    ) -> None:
        self._options = options
        self._n_planned = n_planned  # iterations of a schedule, which convergence does not cut short
        self._data_norm = data_norm
        self._callback = callback
        self._start = time.perf_counter()
        self._changes: list[float] = []
        self._rate_span = 1 if is_fast else _RATE_SPAN
        self._extrapolations: deque[float] = deque(maxlen=1 if is_fast else _WINDOW)
        self.error_estimate = math.inf
        self._records: list[Iteration] = []
        self.stop_reason = ""

    def record(
        self,
        *,
        smoothing: float,
        floor: float,
        norm: float,
        change: float,
        masked_rmse: float,
        rank: int,
        inner_steps: int = 0,
        inner_error: float = 0.0,
        is_settled: bool = False,
    ) -> bool:
        """Note one iteration and return whether to stop.

        Parameters
        ----------
        smoothing, floor : float
            ε of this iteration and its smallest useful value.
        norm, change : float
            ‖X_t‖_F and ‖X_t − X_{t−1}‖_F, in the data's unit.
        masked_rmse : float
        rank : int
            Directions above ε, 0 if not known.
        """
        tol = self._options.effective_tol
        # Where the penalty takes everything, the estimate fades to zero and its own norm is no scale any more.
        norm = max(norm, tol * self._data_norm)
        relative = change / norm if norm > 0.0 else 0.0
        self._changes.append(relative)
        estimate = self.error_estimate = self._error_estimate()
        # Under a large ε nothing moves yet, which is not convergence.
        enough = max(tol * norm, _AT_FLOOR * floor) if self._options.ridge == 0.0 else _AT_FLOOR * floor
        settled = (
            is_settled or smoothing <= enough or self._options.smoothing not in ("auto", "iterate_change", "geometric")
        )
        iteration = len(self._records) + 1
        if self._n_planned is None:
            converged = settled and estimate <= tol
            progress = 1.0 if converged else self._progress(estimate, tol)
        else:
            converged, progress = False, iteration / self._n_planned
        self._records.append(
            Iteration(
                iteration,
                smoothing,
                relative,
                estimate,
                tol,
                masked_rmse,
                rank,
                inner_steps,
                inner_error,
                time.perf_counter() - self._start,
                progress,
            )
        )
        asked_to_stop = self._callback is not None and self._callback(self._records[-1])
        if converged:
            self.stop_reason = "converged"
        elif asked_to_stop:
            self.stop_reason = "callback"
        elif iteration == self._n_planned:
            self.stop_reason = "schedule"
        elif iteration >= self._options.max_iter:
            self.stop_reason = "max_iter"
        return bool(self.stop_reason)

    @property
    def n_iter(self) -> int:
        return len(self._records)

    @property
    def seconds(self) -> float:
        """Time from the start to the last iteration."""
        return self._records[-1].seconds if self._records else 0.0

    def state(self) -> dict[str, Any]:
        """Return what :meth:`restore` goes on from."""
        records = {
            name.name: np.array([getattr(record, name.name) for record in self._records]) for name in fields(Iteration)
        }
        estimates = {"extrapolations": np.array(self._extrapolations), "error_estimate": np.array(self.error_estimate)}
        return {"changes": np.array(self._changes), **estimates, "records": records}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up where another monitor with the same options was; its time counts."""
        self._changes = state["changes"].tolist()
        self._extrapolations.extend(state["extrapolations"].tolist())
        self.error_estimate = float(state["error_estimate"])
        columns = {name: values.tolist() for name, values in state["records"].items()}
        n_records = len(columns["iteration"])
        self._records = [Iteration(**{name: columns[name][i] for name in columns}) for i in range(n_records)]
        self._start = time.perf_counter() - self.seconds

    @property
    def has_converged(self) -> bool:
        return self.stop_reason == "converged"

    def history(self) -> dict[str, np.ndarray]:
        """Return the records as arrays, one element per iteration."""
        names = (
            "smoothing",
            "change",
            "error_estimate",
            "masked_rmse",
            "rank",
            "inner_steps",
            "inner_error",
            "seconds",
        )
        return {name: np.array([getattr(record, name) for record in self._records]) for name in names}

    def _error_estimate(self) -> float:
        """Return the largest of the last few extrapolations: a single lucky one must neither stop nor drive ε."""
        raw = math.inf
        if len(self._changes) > self._rate_span:
            now, then = self._changes[-1], self._changes[-1 - self._rate_span]
            rate = min((now / then) ** (1.0 / self._rate_span), _SLOWEST_RATE) if then > 0.0 else _SLOWEST_RATE
            raw = now * max(rate / (1.0 - rate), 1.0)
        self._extrapolations.append(raw)
        return max(self._extrapolations)

    def _progress(self, estimate: float, tol: float) -> float:
        before = self._records[-1].progress if self._records else 0.0
        if not math.isfinite(estimate) or estimate <= 0.0 or tol <= 0.0:
            return before
        share = math.log(max(estimate, tol)) / math.log(tol) if 0.0 < tol < 1.0 else 0.0
        return min(max(before, share), 0.99)
