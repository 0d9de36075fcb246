"""How the smoothing ε falls: rules that look at the iterates alone, all non-increasing and scale-free.

ε keeps directions alive that the estimate has lost. If it falls below the size of the directions that are still
wrong, those count as signal, and the iteration freezes with the data interpolated at too high a rank; so ε has to
follow the error down. Measured on 300 x 200, rank 3, oversampling 4: a geometric schedule freezes at errors of 1e-3
to 1e-1 whatever its factor; ``iterate_change`` and ``sigma_next`` reach machine-level accuracy.

- ``iterate_change``: ε = min(ε, max(ε / 2, ‖X_t − X_{t−1}‖_F / 0.1)). Needs neither rank nor spectrum.
- ``sigma_next``: ε = min(ε, σ_{rank+1}). Needs a given rank.
- ``geometric``: ε ← ε / 1.05.
- ``fixed``: ε stays at its start; for study of a single smoothed problem.
"""

from __future__ import annotations

import math

CHANGE_SHARE = 0.1  # ε stays above (change of the estimate) / CHANGE_SHARE
LARGEST_DROP = 2.0
ERROR_SHARE = 0.3
GEOMETRIC_FACTOR = 1.05


def next_smoothing(
    rule: str, smoothing: float, *, change: float, error: float, sigma_next: float, floor: float
) -> float:
    """Return ε for the next iteration, at most `smoothing`.

    Parameters
    ----------
    rule : str
        One of ``fastrfm.options.SMOOTHING_RULES``.
    smoothing : float
        ε of this iteration, in the data's unit.
    change : float
        ‖X_t − X_{t−1}‖_F, in the data's unit.
    sigma_next : float
        σ_{rank+1} of the estimate, in the data's unit; only ``sigma_next`` reads it.
    floor : float
        Smallest useful ε, in the data's unit: below it K is rank-deficient to working precision.
    """
    if rule == "iterate_change":
        wanted = max(smoothing / LARGEST_DROP, change / CHANGE_SHARE, ERROR_SHARE * error if math.isfinite(error) else 0.0)
    elif rule == "sigma_next":
        wanted = sigma_next
    elif rule == "geometric":
        wanted = smoothing / GEOMETRIC_FACTOR
    else:
        return smoothing
    return min(smoothing, max(wanted, floor))
