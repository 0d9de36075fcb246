"""Naive numpy twin of low-rank recovery from general measurements: written for reading, imports no fastrfm.

X is the vector of its rows, 𝒜 an n x (n_rows · n_cols) matrix and W⁻¹ an explicit Kronecker product:
(𝒜 W⁻¹ 𝒜ᵀ + λ I) a = y, x = W⁻¹ 𝒜ᵀ a. At fixed ε one step decreases F(X) = ½ ‖y − 𝒜X‖² + λ ψ(X),
ψ = (1/p) Σ [(σ² + ε²)^(p/2) − ε^p], p = 2 − 4α; at p = 0 ½ Σ log(1 + σ²/ε²).
"""

from __future__ import annotations

import numpy as np


def power_of(gram: np.ndarray, exponent: float, smoothing: float) -> np.ndarray:
    """Return (G + ε² I)^exponent."""
    eigenvalues, vectors = np.linalg.eigh(gram)
    return (vectors * (np.maximum(eigenvalues, 0.0) + smoothing**2) ** exponent) @ vectors.T


def inverse_weights(matrix: np.ndarray, agop_power: float, smoothing: float, sides: str) -> np.ndarray:
    """Return W⁻¹ for vectors of rows on end."""
    if sides == "both":
        rows = power_of(matrix @ matrix.T, agop_power, smoothing)
        return np.kron(rows, power_of(matrix.T @ matrix, agop_power, smoothing))
    return np.kron(np.eye(len(matrix)), power_of(matrix.T @ matrix, 2.0 * agop_power, smoothing))


def step(
    stack: np.ndarray,
    values: np.ndarray,
    matrix: np.ndarray,
    *,
    agop_power: float,
    smoothing: float,
    ridge: float,
    sides: str = "both",
) -> np.ndarray:
    """Return the next X."""
    flat = stack.reshape(len(stack), -1)
    weights = inverse_weights(matrix, agop_power, smoothing, sides)
    dual = np.linalg.solve(flat @ weights @ flat.T + ridge * np.eye(len(flat)), values)
    return (weights @ flat.T @ dual).reshape(matrix.shape)


def least_norm(stack: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the smallest X that meets the measurements."""
    return np.linalg.lstsq(stack.reshape(len(stack), -1), values, rcond=None)[0].reshape(stack.shape[1:])


def objective(
    stack: np.ndarray, values: np.ndarray, matrix: np.ndarray, agop_power: float, smoothing: float, ridge: float
) -> float:
    """Return F(X)."""
    sigma, p = np.linalg.svd(matrix, compute_uv=False), 2.0 - 4.0 * agop_power
    if p == 0.0:
        penalty = 0.5 * np.log1p((sigma / smoothing) ** 2).sum()
    else:
        penalty = (((sigma**2 + smoothing**2) ** (p / 2.0) - smoothing**p) / p).sum()
    misfit = values - np.tensordot(stack, matrix, 2)
    return float(0.5 * misfit @ misfit + ridge * penalty)
