"""Tall matrices of a solver, (n_rows, k) and (n_cols, k), and what is done with them: on the processor or a device.

Solvers ask ``observations.arrays`` for these operations, so that one loop serves both. Matrices of k x k are always
numpy's: they are small, and their decompositions are LAPACK's. ``twin`` gives a kernel where the arrays are: the
processor's, or the device's of the same name and arguments. Not here: how a device does it (``device_arrays``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastrfm._lanes import padded

_RUN = 1 << 16  # rows that are worked on at a time, for their memory


class HostArrays:
    """Operations on numpy arrays; every tall matrix is C-contiguous float64.

    Attributes
    ----------
    scratch_bytes : float
        What a step may keep for itself, to save computing it anew.
    """

    scratch_bytes: float = 2.0**27

    def twin(self, kernel: Callable[..., Any]) -> Callable[..., Any]:
        """Return the kernel that works on these arrays."""
        return kernel

    def put(self, array: np.ndarray) -> Any:
        """Return a numpy array's elements where the arrays are; the array itself if that is here."""
        return array

    def fetch(self, array: Any) -> np.ndarray:
        """Return the elements of an array as a numpy array; the array itself if it is one."""
        return np.asarray(array)

    def empty(self, *shape: int) -> Any:
        return np.empty(shape)

    def zeros(self, *shape: int) -> Any:
        return np.zeros(shape)

    def copy(self, matrix: Any) -> Any:
        return matrix.copy()

    def inner(self, left: Any, right: Any) -> np.ndarray:
        """Return leftᵀ right, (k, m) and small, as a numpy array."""
        return np.asarray(left.T @ right)

    def product(self, matrix: Any, small: np.ndarray, out: Any = None) -> Any:
        """Return matrix · small, (n, m), in `out` if it is given."""
        return np.matmul(matrix, small, out=out)

    def add_product(self, out: Any, matrix: Any, small: np.ndarray) -> None:
        """Add matrix · small to `out`."""
        out += matrix @ small

    def transform(self, matrix: Any, small: np.ndarray) -> None:
        """Put matrix · small, small (k, k), in the place of `matrix`, a run of rows at a time."""
        for start in range(0, matrix.shape[0], _RUN):
            rows = matrix[start : start + _RUN]
            self.replace(rows, self.product(rows, small))

    def replace(self, out: Any, matrix: Any) -> None:
        """Copy the elements of `matrix` to `out`."""
        out[:] = matrix

    def add(self, out: Any, matrix: Any, factors: Any = 1.0) -> None:
        """Add matrix · diag(factors) to `out`; factors are (k,) numbers or one."""
        out += matrix * factors

    def scale(self, matrix: Any, factors: Any) -> None:
        """Multiply the columns of `matrix` by factors, (k,) numbers or one."""
        matrix *= factors

    def columns(self, matrix: Any, start: int, stop: int) -> Any:
        """Return columns start:stop, C-contiguous; the matrix itself if it has no others."""
        return np.ascontiguousarray(matrix[:, start:stop])

    def first(self, matrix: Any, k: int) -> Any:
        """Return the first k columns, C-contiguous; the matrix itself if it has no others."""
        return self.columns(matrix, 0, min(k, matrix.shape[1]))

    def narrowed(self, matrix: Any, k: int) -> Any:
        """Return the first k columns, as a view where that can be."""
        return matrix[:, :k]

    def padded(self, matrix: Any) -> Any:
        """Return the matrix with columns of zeros up to a multiple of four; itself if it is so already."""
        return padded(matrix)

    def widened(self, matrix: Any, width: int) -> Any:
        """Return the matrix with columns of zeros up to `width`."""
        out = np.zeros((len(matrix), width))
        out[:, : matrix.shape[1]] = matrix
        return out

    def beside(self, left: Any, right: Any) -> Any:
        """Return both matrices' columns as one matrix."""
        return np.column_stack([left, right])

    def scaled(self, matrix: Any, factors: Any) -> Any:
        """Return matrix · diag(factors)."""
        out = self.copy(matrix)
        self.scale(out, factors)
        return out

    def sum_of(self, parts: Any) -> Any:
        """Return the sum of parts, (n_parts, n, m), in their order; the first of them may be used for it."""
        out = parts[0]
        for part in parts[1:]:
            out += part
        return out

    def norm(self, matrix: Any) -> float:
        """Return the Frobenius norm."""
        return float(np.linalg.norm(matrix))

    def lengths(self, matrix: Any) -> np.ndarray:
        """Return the norms of the columns, (k,)."""
        return np.asarray(np.sqrt(np.einsum("ij,ij->j", matrix, matrix)))

    def total(self, vector: Any) -> float:
        return float(vector.sum())

    def square_sum(self, vector: Any, weights: Any) -> float:
        """Return the sum of squares over `weights`, which are empty where all are one."""
        return float(vector @ (vector / weights if weights.size else vector))

    def trace(self, matrix: Any) -> float:
        return float(np.trace(matrix))


HOST = HostArrays()
