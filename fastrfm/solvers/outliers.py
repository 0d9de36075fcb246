"""Huber's loss: residuals beyond a threshold count linearly, by weights of squares (``rounds``) or as they are.

    ½ r² where |r| <= c, else c |r| − ½ c²,   c = huber · 1.4826 · median |r|

The minimiser is the fixed point of weighted least squares with w = min(1, c / |r|). Source: Huber, *Robust Statistics*,
1981. The scale of the residuals, unlike the fit, is not made better by minimising: it follows them.
"""

from __future__ import annotations

import numpy as np

_NORMAL = 1.4826  # median |r| of a standard normal is 1 / 1.4826


def huber_threshold(residuals: np.ndarray, huber: float) -> float:
    """Return c for residuals (n,) in the data's unit; above 0 unless all of them are 0."""
    sizes = np.abs(residuals)
    # Where most entries are met exactly only those count.
    return max(huber * _NORMAL * float(np.median(sizes)), np.finfo(np.float64).eps * float(sizes.max()))


def huber_weights(residuals: np.ndarray, huber: float) -> np.ndarray:
    """Return min(1, c / |r|), (n,) float64 above 0."""
    sizes, threshold = np.abs(residuals), huber_threshold(residuals, huber)
    if threshold == 0.0:
        return np.ones(sizes.size)
    return np.asarray(threshold / np.maximum(sizes, threshold))


def huber_losses(residuals: np.ndarray, huber: float) -> np.ndarray:
    """Return twice the losses, so that small residuals have their squares, (n,) float64."""
    sizes, threshold = np.abs(residuals), huber_threshold(residuals, huber)
    return np.asarray(np.where(sizes <= threshold, sizes**2, threshold * (2.0 * sizes - threshold)))
