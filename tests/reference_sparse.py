"""Naive numpy twin of sparse linear regression by lin-RFM (diagonal AGOP): written for reading, imports no fastrfm.

One step: K = diag((β² + ε²)^(2α)), (A K Aᵀ + λ I) a = y, β = K Aᵀ a. At fixed ε it decreases
F(β) = ½ ‖y − A β‖² + λ ψ(β), ψ = (1/p) Σ [(β² + ε²)^(p/2) − ε^p], p = 2 − 4α; at p = 0 ½ Σ log(1 + β²/ε²).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def step(
    design: np.ndarray, target: np.ndarray, coef: np.ndarray, agop_power: float, smoothing: float, ridge: float
) -> np.ndarray:
    """Return the next β."""
    gram = np.diag((coef**2 + smoothing**2) ** (2.0 * agop_power))
    dual = np.linalg.solve(design @ gram @ design.T + ridge * np.eye(len(target)), target)
    return gram @ design.T @ dual


def iterates(
    design: np.ndarray, target: np.ndarray, agop_power: float, smoothings: list[float], ridge: float
) -> Iterator[np.ndarray]:
    """Yield β after each iteration, one per ε, from K = I: the first is a plain ridge regression."""
    coef = step(design, target, np.zeros(design.shape[1]), agop_power, 1.0, ridge)
    for smoothing in smoothings:
        coef = step(design, target, coef, agop_power, smoothing, ridge)
        yield coef


def irls_step(
    design: np.ndarray, target: np.ndarray, coef: np.ndarray, agop_power: float, smoothing: float, ridge: float
) -> np.ndarray:
    """Return the same next β from the normal equations of reweighted least squares, (AᵀA + λ W) β = Aᵀ y."""
    weights = (coef**2 + smoothing**2) ** (-2.0 * agop_power)
    return np.linalg.solve(design.T @ design + ridge * np.diag(weights), design.T @ target)


def objective(
    design: np.ndarray, target: np.ndarray, coef: np.ndarray, agop_power: float, smoothing: float, ridge: float
) -> float:
    """Return F(β) at a fixed ε."""
    power = 2.0 - 4.0 * agop_power
    if abs(power) < 1e-12:
        penalty = 0.5 * np.sum(np.log1p((coef / smoothing) ** 2))
    else:
        penalty = np.sum((coef**2 + smoothing**2) ** (power / 2.0) - smoothing**power) / power
    return float(0.5 * np.sum((target - design @ coef) ** 2) + ridge * penalty)


def lasso(design: np.ndarray, target: np.ndarray, ridge: float, n_sweeps: int = 3000) -> np.ndarray:
    """Return the minimiser of ½ ‖y − A β‖² + λ Σ |β| by coordinate descent."""
    coef, residual = np.zeros(design.shape[1]), np.array(target, dtype=float)
    for _ in range(n_sweeps):
        for j, column in enumerate(design.T):
            size = column @ column
            inner = column @ residual + size * coef[j]
            following = np.sign(inner) * max(abs(inner) - ridge, 0.0) / size
            residual += column * (coef[j] - following)
            coef[j] = following
    return coef
