"""How the smoothing ε falls: rules that look at the iterates alone, all non-increasing and scale-free.

ε keeps directions alive that the estimate has lost. If it falls below the size of the directions that are still
wrong, those count as signal, and the iteration freezes with the data interpolated at too high a rank; so ε has to
follow the error down. Measured on 300 x 200, rank 3, oversampling 4: a geometric schedule freezes at errors of 1e-3
to 1e-1 whatever its factor; ``iterate_change`` and ``sigma_next`` go on converging.

- ``iterate_change``: ε = min(ε, max(ε / 2, ‖X_t − X_{t−1}‖_F / 0.1, 0.3 · estimated distance to the limit)). Needs
  neither rank nor spectrum. The last term holds ε back where convergence is slow and the step says little: without
  it, a 300 x 200 problem of rank 3 with 2.2 times as many entries as degrees of freedom freezes at 2e-3.
- ``sigma_next``: ε = min(ε, σ_{rank+1}). Needs a given rank.
- ``geometric``: ε ← ε / 1.05.
- a number: ε is that number throughout; for study of one smoothed problem.

With a ridge ε stops falling where the smoothed penalty is sharp enough (``ridge_smoothing``).
"""

from __future__ import annotations

import math

from fastrfm.agop import size_of_gram
from fastrfm.options import Power

CHANGE_SHARE = 0.1
ERROR_SHARE = 0.3
LARGEST_DROP = 2.0
GEOMETRIC_FACTOR = 1.05


def next_smoothing(
    rule: str | float, smoothing: float, *, change: float, error: float, sigma_next: float, floor: float
) -> float:
    """Return ε for the next iteration, at most `smoothing`.

    Parameters
    ----------
    rule : str or float
        One of ``fastrfm.options.SMOOTHING_RULES``, or a number for a fixed ε.
    smoothing : float
        ε of this iteration, in the data's unit.
    change, error : float
        ‖X_t − X_{t−1}‖_F and the estimated ‖X_t − X_∞‖_F, infinite while unknown; in the data's unit. Only
        ``iterate_change`` reads them.
    sigma_next : float
        σ_{rank+1} of the estimate, in the data's unit; only ``sigma_next`` reads it.
    floor : float
        Smallest useful ε, in the data's unit: below it K is rank-deficient to working precision.
    """
    if rule in ("auto", "iterate_change"):
        wanted = max(smoothing / LARGEST_DROP, change / CHANGE_SHARE)
        if math.isfinite(error):
            wanted = max(wanted, ERROR_SHARE * error)
    elif rule == "sigma_next":
        wanted = sigma_next
    elif rule == "geometric":
        wanted = smoothing / GEOMETRIC_FACTOR
    else:
        return smoothing
    return min(smoothing, max(wanted, floor))


def ridge_smoothing(
    ridge: float, agop_power: Power, tol: float, mean_weight: float = 1.0, *, norm: float = 1.0
) -> float:
    """Return the ε, in the data's unit, at which the smoothed penalty is sharp to within `tol`; 0 without ridge.

    A ridge removes directions up to about σ = (λ/w)^(1/(4α)), w the geometric mean of the weights (up to φ(σ²)² = λ/w
    for a function, looked for around `norm`); on those that stay,
    smoothing changes the penalty by about (ε/σ)². Below this ε nothing is won, and the iteration slows down in
    proportion: new directions enter through the share δ / (λ/w + δ) of the residual that the estimate keeps. A mean led
    by heavy entries would all but stop the light ones, one led by light entries cut off what the heavy ones tell.
    """
    if ridge == 0.0:
        return 0.0
    return math.sqrt(tol) * size_of_gram(agop_power, ridge / mean_weight, norm)
