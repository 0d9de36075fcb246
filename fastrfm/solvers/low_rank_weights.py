"""The weights W⁻¹ of one reweighted regression of a matrix X: in the basis of X's singular vectors they are a table.

With X = U diag(σ) Vᵀ, both bases complete, and φ the feature weights of the AGOP's eigenvalues σ² + ε² (at α their
power), W⁻¹ Z = U (D ∘ (Uᵀ Z V)) Vᵀ:

    two-sided   D_ij = φ_i φ_j      M of the rows ⊗ M of the columns: (XXᵀ + ε²)^α ⊗ (XᵀX + ε²)^α
    one-sided   D_ij = φ_j²         I ⊗ K,   K = (XᵀX + ε²)^(2α)

Everything is in units in which σ_1 = 1, so that no power overflows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastrfm.agop import feature_weights, gram_unit
from fastrfm.factors import svd
from fastrfm.options import Power


@dataclass(frozen=True)
class Weights:
    """W⁻¹ as a table of products, rows[i] · cols[j], in orthonormal bases.

    Attributes
    ----------
    left, right : (n_rows, n_rows) and (n_cols, n_cols) float64
        U and V.
    rows, cols : (n_rows,) and (n_cols,) float64, descending
    sigma : (min(n_rows, n_cols),) float64
        In the unit of X.
    unit : float
        σ_1, what W⁻¹ was divided by, to the power 4α.
    smoothing : float
        ε in the unit of X.
    """

    left: np.ndarray
    right: np.ndarray
    rows: np.ndarray
    cols: np.ndarray
    sigma: np.ndarray
    unit: float
    smoothing: float

    @property
    def table(self) -> np.ndarray:
        """D, (n_rows, n_cols)."""
        return np.asarray(self.rows[:, None] * self.cols)

    @property
    def least(self) -> float:
        """δ, W⁻¹ in directions that X does not have."""
        return float(self.rows[-1] * self.cols[-1])

    @property
    def is_one_sided(self) -> bool:
        return bool(self.rows[0] == self.rows[-1] == 1.0)  # descending; two-sided rows may be alike, too

    def rotated(self, matrix: np.ndarray) -> np.ndarray:
        """Return Uᵀ Z V."""
        return np.asarray(self.left.T @ matrix @ self.right)

    def restored(self, matrix: np.ndarray) -> np.ndarray:
        """Return U Z Vᵀ."""
        return np.asarray(self.left @ matrix @ self.right.T)

    def applied(self, matrix: np.ndarray) -> np.ndarray:
        """Return W⁻¹ Z."""
        return self.restored(self.rows[:, None] * self.rotated(matrix) * self.cols)


def weights_of(matrix: np.ndarray, smoothing: float, agop_power: Power, is_two_sided: bool) -> Weights:
    """Return the weights that an estimate X, (n_rows, n_cols) and not zero, gives to the next regression."""
    left, sigma, right = svd(matrix, full_matrices=True)
    unit = float(sigma[0])
    # At the side that is longer further directions have an eigenvalue of zero.
    eigenvalues = np.zeros(max(matrix.shape))
    eigenvalues[: sigma.size] = (sigma / unit) ** 2
    eigenvalues += (smoothing / unit) ** 2
    if callable(agop_power):  # which is given the unit of the data
        features = feature_weights(eigenvalues * unit**2, agop_power) / math.sqrt(gram_unit(agop_power, unit))
    else:
        features = feature_weights(eigenvalues, agop_power)
    n_rows, n_cols = matrix.shape
    if is_two_sided:
        rows, cols = features[:n_rows], features[:n_cols]
    else:
        rows, cols = np.ones(n_rows), features[:n_cols] ** 2
    return Weights(left, right.T, rows, cols, sigma, unit, smoothing)
