"""What the baselines share: checks of what is handed in, time limits, and factors turned into a result.

First in the flow of this package: every method begins with ``check_observations`` and ends with ``as_result``.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from typing import Any

import numpy as np

from fastrfm.errors import InputError, NotConvergedWarning
from fastrfm.factors import canonical_factors, numerical_rank
from fastrfm.observations import Observations
from fastrfm.options import CompletionOptions, _number, _whole
from fastrfm.results import CompletionResult
from fastrfm.solvers.completion import result_of
from fastrfm.solvers.runs import Outcome

check_number, check_whole = _number, _whole
LIMITS = {"max_iter": "max_iter", "diverged": "the number of halvings of the step"}


def check_observations(observations: Any) -> Observations:
    """Return observations in memory without weights, not all zero, or raise InputError."""
    if not isinstance(observations, Observations):
        raise InputError(
            f"observations must be fastrfm.Observations in memory, got {type(observations).__name__}: make them with "
            "Observations.from_dense, from_coo or from_scipy"
        )
    if observations.is_weighted:
        raise InputError("the baselines know no weights of entries: give observations without, or use fastrfm.complete")
    if observations.norm == 0.0:
        raise InputError("all observed values are zero: there is nothing to complete")
    return observations


def positive(name: str, value: float | str, automatic: float) -> float:
    """Return a number above 0, `automatic` for "auto", or raise InputError."""
    number = automatic if isinstance(value, str) and value == "auto" else value
    check_number(name, number, 0.0, above=True)
    return float(number)


class Clock:
    """Seconds since the start, and whether a limit has passed."""

    def __init__(self, max_seconds: float | None) -> None:
        if max_seconds is not None:
            check_number("max_seconds", max_seconds, 0.0, above=True)
        self._limit = np.inf if max_seconds is None else float(max_seconds)
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start

    @property
    def is_over(self) -> bool:
        return self.seconds >= self._limit

    @property
    def left(self) -> float:
        return max(self._limit - self.seconds, 0.0)


def as_result(
    observations: Observations,
    factors: tuple[np.ndarray, np.ndarray],
    *,
    method: str,
    tol: float,
    stop_reason: str,
    history: dict[str, np.ndarray],
    options: dict[str, Any],
    least: float = 0.0,
) -> CompletionResult:
    """Return a result in canonical form.

    Parameters
    ----------
    observations : Observations
    factors : (n_rows, k) and (n_cols, k) float64
    method : str
    tol : float
        Directions that together are below this share of the estimate's norm are left out.
    stop_reason : str
    history : dict of (n_iter,) arrays
    options : dict
        Of the method, with everything that was chosen.
    least : float
        Singular values up to this one are left out too; in the data's unit.
    """
    left, right, singular_values = canonical_factors(*factors)
    k = min(numerical_rank(singular_values, tol), int(np.count_nonzero(singular_values > least)))
    outcome = Outcome(
        observations=observations,
        centred=observations,
        method="dense",
        options=CompletionOptions(),
        offsets=None,
        left=np.ascontiguousarray(left[:, :k]),
        right=np.ascontiguousarray(right[:, :k]),
        stop_reason=stop_reason,
        history=history,
        bounds=None,
    )
    return replace(result_of(outcome), options={"method": method, "tol": tol, **options})


def warn_unless_done(stop_reason: str, what: str, stacklevel: int = 3) -> None:
    """Warn (NotConvergedWarning) where a run ended at a limit that it set itself; `max_seconds` was asked for."""
    if stop_reason in LIMITS:
        warnings.warn(f"{what} stopped at {LIMITS[stop_reason]} before tol", NotConvergedWarning, stacklevel=stacklevel)
