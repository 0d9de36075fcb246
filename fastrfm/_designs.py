"""What every design matrix of linear regression offers, and the one in memory; the others are in ``designs``.

A design is A as the solvers see it: rows multiplied by s, the square roots of the sample weights, columns centred by
weighted means m where there is an intercept, so that A = diag(s) (X − 1 mᵀ).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
from scipy.linalg.blas import dsyrk

from fastrfm._numba import blas_threads

PANEL_BYTES = 64 << 20
_LARGE_PRODUCT = 4e9  # multiplications of a Gram from which it is shared among threads


class Design:
    """What all designs offer; arrays are float64.

    Attributes
    ----------
    shape : (int, int)
    roots : (n_samples,) float64
        s, the square roots of the sample weights.
    means : (n_features,) float64
        m, zero where nothing is centred.
    squared_norms : (n_features,) float64
        Of A's columns.
    is_centred : bool
        Whether sᵀ A = 0.
    is_dense : bool
        Whether every element of A is held, so that its columns together take no more room.
    """

    shape: tuple[int, int]
    roots: np.ndarray
    means: np.ndarray
    squared_norms: np.ndarray
    is_centred: bool
    is_dense: bool = False

    def forward(self, coef: np.ndarray) -> np.ndarray:
        """Return A β, (n_samples,)."""
        raise NotImplementedError

    def adjoint(self, residual: np.ndarray) -> np.ndarray:
        """Return Aᵀ r, (n_features,)."""
        raise NotImplementedError

    def columns(self, chosen: np.ndarray) -> np.ndarray:
        """Return the chosen columns of A, (n_samples, n_chosen) in Fortran order."""
        raise NotImplementedError

    def reweighted(self, weights: np.ndarray) -> np.ndarray:
        """Return A K Aᵀ, (n_samples, n_samples), of which only the lower triangle need be right."""
        raise NotImplementedError

    def restricted(self, chosen: np.ndarray) -> Design | None:
        """Return the design of some columns, or None where it would not pay."""
        return self.dense(self.columns(chosen), self.roots, self.is_centred)

    def dense(self, matrix: np.ndarray, roots: np.ndarray, is_centred: bool = False) -> Design:
        """Return the design of a weighted and centred matrix, (n_rows, n_columns), held where this one is used."""
        return DenseDesign(matrix, roots, is_centred)

    def diagonal(self, weights: np.ndarray) -> np.ndarray:
        """Return the diagonal of A K Aᵀ, (n_samples,)."""
        raise NotImplementedError

    def row_blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield spans of rows and these rows of A."""
        raise NotImplementedError

    def solve(
        self, weights: np.ndarray, ridge: float, shift: float, target: np.ndarray, tol: float, dual: np.ndarray
    ) -> int:
        """Solve (A K Aᵀ + ridge I + shift s sᵀ) a = y by conjugate gradients from `dual`, in place; give the steps."""
        diagonal = self.diagonal(weights) + ridge + shift * self.roots**2

        def apply(vector: np.ndarray) -> np.ndarray:
            product = self.forward(weights * self.adjoint(vector))
            return np.asarray(product + ridge * vector + shift * (self.roots @ vector) * self.roots)

        residual = target - apply(dual)
        goal, energy, direction = tol * float(np.linalg.norm(target)), 1.0, np.zeros_like(target)
        for n_steps in range(2 * target.size):
            if np.linalg.norm(residual) <= goal:
                return n_steps
            preconditioned = residual / diagonal
            before, energy = energy, float(residual @ preconditioned)
            direction = preconditioned + (energy / before if n_steps else 0.0) * direction
            product = apply(direction)
            size = energy / float(direction @ product)
            dual += size * direction
            residual -= size * product
        return 2 * target.size


class DenseDesign(Design):
    """A in memory, already weighted and centred."""

    is_dense = True

    def __init__(self, matrix: np.ndarray, roots: np.ndarray, is_centred: bool = False) -> None:
        self.is_centred = is_centred
        self.matrix = np.asfortranarray(matrix)
        self.shape = (matrix.shape[0], matrix.shape[1])
        self.roots, self.means = roots, np.zeros(self.shape[1])
        self.squared_norms = np.einsum("ij,ij->j", self.matrix, self.matrix)

    def forward(self, coef: np.ndarray) -> np.ndarray:
        return np.asarray(self.matrix @ coef)

    def adjoint(self, residual: np.ndarray) -> np.ndarray:
        return np.asarray(self.matrix.T @ residual)

    def columns(self, chosen: np.ndarray) -> np.ndarray:
        return np.asfortranarray(self.matrix[:, chosen])

    def reweighted(self, weights: np.ndarray) -> np.ndarray:
        scaled = self.matrix * np.sqrt(weights)
        # On a busy machine BLAS's threads wait for each other for longer than a small product takes.
        with blas_threads() if scaled.size * len(scaled) > _LARGE_PRODUCT else nullcontext():
            return np.asarray(dsyrk(1.0, scaled, lower=1))

    def diagonal(self, weights: np.ndarray) -> np.ndarray:
        return np.asarray((self.matrix**2) @ weights)

    def row_blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        yield slice(0, self.shape[0]), self.matrix


def spans(size: int, step: int) -> Iterator[slice]:
    """Return slices of at most `step`, at least one element, that cover 0…size."""
    step = max(1, step)
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def centred_norms(plain: np.ndarray, means: np.ndarray, roots: np.ndarray) -> np.ndarray:
    """Return Σ (A_ij − s_i m_j)² from the sums of squares; what is left by rounding counts as zero."""
    centred = plain - (roots @ roots) * means**2
    return np.where(centred > 1e-13 * plain, centred, 0.0)
