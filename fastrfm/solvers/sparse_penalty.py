"""The penalty Σ |b|^p / p (p = 2 − 4α; log |b| at p = 0) of one coefficient: where minima away from zero begin.

One column alone, of squared norm h, with inner product g with the residual that it would explain: the objective
½ h b² − g b + λ |b|^p / p has for p < 1 a second minimum only where |g| exceeds `entry_threshold`, and never below
`least_size`. At p = 1 both are the lasso's: λ and 0. *Own derivation*: the slope λ b^(p−1) + h b is least at
b = (λ (1 − p) / h)^(1/(2 − p)).
"""

from __future__ import annotations

import numpy as np


def least_size(power: float, ridge: float, squared_norms: np.ndarray) -> np.ndarray:
    """Return, for each column alone, the size below which no coefficient is a minimum."""
    return np.asarray((ridge * (1.0 - power) / squared_norms) ** (1.0 / (2.0 - power)))


def entry_threshold(power: float, ridge: float, squared_norms: np.ndarray) -> np.ndarray:
    """Return |Aᵀ r| above which a zero coefficient's column, alone, has a minimum away from zero; inf for h = 0."""
    is_something = squared_norms > 0.0
    norms = np.where(is_something, squared_norms, 1.0)
    thresholds = norms * (ridge / norms) ** (1.0 / (2.0 - power)) * _unit_threshold(power)
    return np.where(is_something, thresholds, np.inf)


def largest_ridge(power: float, correlations: np.ndarray, squared_norms: np.ndarray) -> float:
    """Return the smallest ridge at which no column enters, from |Aᵀ y|; 0 if nothing is correlated."""
    is_something = squared_norms > 0.0
    if not is_something.any():
        return 0.0
    norms = squared_norms[is_something]
    ratios = np.abs(correlations[is_something]) / (norms * _unit_threshold(power))
    return float(np.max(norms * ratios ** (2.0 - power)))


def penalty(power: float, coef: np.ndarray) -> float:
    """Return Σ |b|^p / p over the nonzero coefficients; Σ log |b| at p = 0."""
    sizes = np.abs(coef[coef != 0.0])
    if abs(power) < 1e-12:
        return float(np.log(sizes).sum())
    return float((sizes**power).sum() / power)


def _unit_threshold(power: float) -> float:
    """Return min over b of b + b^(p−1), the threshold at λ = h = 1."""
    if power >= 1.0:
        return 1.0
    size = (1.0 - power) ** (1.0 / (2.0 - power))
    return float(size + size ** (power - 1.0))
