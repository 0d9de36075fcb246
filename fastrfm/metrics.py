"""How far predictions are from values: RMSE, MAE and the relative error of a matrix."""

from __future__ import annotations

import numpy as np


def rmse(predicted: np.ndarray, observed: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the (weighted) root mean square of ``predicted - observed`` (same unit as the data).

    Examples
    --------
    >>> rmse(np.array([1.0, 2.0]), np.array([1.0, 4.0])) == 2.0**0.5
    True
    """
    return float(np.sqrt(np.average(np.square(np.subtract(predicted, observed, dtype=np.float64)), weights=weights)))


def mae(predicted: np.ndarray, observed: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the (weighted) mean of ``|predicted - observed|`` (same unit as the data)."""
    return float(np.average(np.abs(np.subtract(predicted, observed, dtype=np.float64)), weights=weights))


def relative_error(estimate: np.ndarray, truth: np.ndarray) -> float:
    """Return ``||estimate - truth||_F / ||truth||_F`` (no unit)."""
    return float(np.linalg.norm(np.subtract(estimate, truth, dtype=np.float64)) / np.linalg.norm(truth))
