"""What people read about a completion: shapes, shares and reasons to stop in words.

Shared by the command and the report, so that both say the same. Imports nothing heavy; no maths.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastrfm.results import CompletionResult


def stop_in_words(result: CompletionResult) -> str:
    """Return why a completion ended, for people."""
    if not {"tol", "max_iter"} <= result.options.keys():
        return result.stop_reason
    tol, max_iter = result.options["tol"], result.options["max_iter"]
    reasons = {
        "converged": f"converged: the estimated distance to the limit is below tol = {tol:g}",
        "max_iter": f"not converged: {max_iter} iterations (max-iter) came before tol = {tol:g}",
        "stalled": "not converged: no matrix of the rank looked for was found through the observations",
        "callback": "stopped on request",
        "schedule": "after the iterations that served best on the entries held out",
    }
    return reasons.get(result.stop_reason, result.stop_reason)


def shape_in_words(shape: tuple[int, int]) -> str:
    """Return ``3 rows x 4 columns``."""
    return f"{count(shape[0], 'row')} x {count(shape[1], 'column')}"


def share_in_words(n_observed: int, shape: tuple[int, int]) -> str:
    """Return the share of observed entries in percent and their number."""
    return f"{100 * n_observed / (shape[0] * shape[1]):.4g} % ({n_observed})"


def count(number: int, noun: str) -> str:
    """Return number and noun, the noun in the plural unless the number is 1."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
