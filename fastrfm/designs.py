"""Design matrices of linear regression behind one interface: in memory, compressed, or left in a file.

Each is A as the solvers see it: rows multiplied by s, the square roots of the sample weights, columns centred by
weighted means m where there is an intercept, so that A = diag(s) (X − 1 mᵀ). Centring is explicit in dense arrays and
a rank-one correction elsewhere. A file is read in panels of bounded size: all rows of some columns where there are
fewer rows than columns, else all columns of some rows. Not here: checks of what users give (``regression_inputs``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import scipy.sparse
from scipy.linalg.blas import dsyrk

from fastrfm._interrupt import check
from fastrfm._numba import blas_threads
from fastrfm.errors import InputError
from fastrfm.kernels.diagonal import add_row_squares, multiply_rows, solve_reweighted

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
    """

    shape: tuple[int, int]
    roots: np.ndarray
    means: np.ndarray
    squared_norms: np.ndarray
    is_centred: bool

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
        return DenseDesign(self.columns(chosen), self.roots, self.is_centred)

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


class SparseDesign(Design):
    """A from a scipy.sparse matrix; rows and columns compressed, centred implicitly."""

    def __init__(self, matrix: Any, roots: np.ndarray, means: np.ndarray, is_centred: bool) -> None:
        self.is_centred = is_centred
        by_rows = scipy.sparse.csr_array(matrix).astype(np.float64)
        by_rows.sum_duplicates()
        by_rows.data *= np.repeat(roots, np.diff(by_rows.indptr))
        self._by_rows, self._by_cols = by_rows, by_rows.tocsc()
        self._rows, self._cols = _parts(self._by_rows), _parts(self._by_cols)
        self.shape = (by_rows.shape[0], by_rows.shape[1])
        self.roots, self.means = roots, means
        squares = scipy.sparse.csc_array(
            (self._by_cols.data**2, self._by_cols.indices, self._by_cols.indptr), shape=self.shape
        )
        plain = np.asarray(squares.sum(axis=0)).ravel()
        self.squared_norms = _centred_norms(plain, means, roots)

    def forward(self, coef: np.ndarray) -> np.ndarray:
        out = np.empty(self.shape[0])
        multiply_rows(*self._rows, coef, out)
        return np.asarray(out - (self.means @ coef) * self.roots)

    def adjoint(self, residual: np.ndarray) -> np.ndarray:
        out = np.empty(self.shape[1])
        multiply_rows(*self._cols, residual, out)
        return np.asarray(out - (self.roots @ residual) * self.means)

    def columns(self, chosen: np.ndarray) -> np.ndarray:
        dense = self._by_cols[:, chosen].toarray(order="F")
        dense -= np.outer(self.roots, self.means[chosen])
        return np.asarray(dense)

    def reweighted(self, weights: np.ndarray) -> np.ndarray:
        scaled = self._by_rows.multiply(weights[None, :]).tocsr()
        gram = np.asarray((scaled @ self._by_rows.T).toarray())
        cross = scaled @ self.means - 0.5 * (weights @ self.means**2) * self.roots
        return np.asfortranarray(gram - np.outer(cross, self.roots) - np.outer(self.roots, cross))

    def restricted(self, chosen: np.ndarray) -> Design | None:
        return None

    def diagonal(self, weights: np.ndarray) -> np.ndarray:
        out = np.zeros(self.shape[0])
        add_row_squares(*self._rows, weights, self.roots, self.means, out)
        return out

    def row_blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        for span in _spans(self.shape[0], PANEL_BYTES // (8 * self.shape[1])):
            yield span, self._by_rows[span].toarray() - np.outer(self.roots[span], self.means)

    def solve(
        self, weights: np.ndarray, ridge: float, shift: float, target: np.ndarray, tol: float, dual: np.ndarray
    ) -> int:
        diagonal = self.diagonal(weights) + ridge + shift * self.roots**2
        return int(
            solve_reweighted(
                *self._rows, *self._cols, weights, self.roots, self.means, ridge, shift, target, diagonal, tol,
                2 * self.shape[0], dual,
            )[0]
        )  # fmt: skip


class StoredDesign(Design):
    """A left in its file: a numpy memory map, an HDF5 dataset, or whatever is sliced like them.

    Raises
    ------
    InputError
        If a value is not finite.
    """

    def __init__(self, source: Any, roots: np.ndarray, is_centred: bool, panel_bytes: int = PANEL_BYTES) -> None:
        self.source, self.roots, self.is_centred = source, roots, is_centred
        self.shape = (int(source.shape[0]), int(source.shape[1]))
        self._panel_bytes = panel_bytes
        self._is_wide = self.shape[0] <= self.shape[1]
        self.means = np.zeros(self.shape[1])
        sums, squares = np.zeros(self.shape[1]), np.zeros(self.shape[1])
        for rows, cols, panel in self._panels():
            if not np.isfinite(panel).all():
                raise InputError("X must be finite, but it contains NaN or infinity: fill or drop such entries first")
            sums[cols] += roots[rows] @ panel
            squares[cols] += np.einsum("ij,ij->j", panel, panel)
        if is_centred:
            self.means = sums / (roots @ roots)
        self.squared_norms = _centred_norms(squares, self.means, roots)

    def _panels(self, wanted: np.ndarray | None = None) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """Yield panels of A; in a wide design only those with a column among the `wanted`, which are sorted."""
        n_rows, n_cols = self.shape
        if self._is_wide:
            places = [(slice(0, n_rows), cols) for cols in _spans(n_cols, self._panel_bytes // (8 * n_rows))]
        else:
            places = [(rows, slice(0, n_cols)) for rows in _spans(n_rows, self._panel_bytes // (8 * n_cols))]
        for rows, cols in places:
            if wanted is not None and np.diff(np.searchsorted(wanted, [cols.start, cols.stop]))[0] == 0:
                continue
            check()
            panel = np.asarray(self.source[rows, cols], dtype=np.float64)
            if self.means.any():
                panel = panel - self.means[cols]
            yield rows, cols, panel * self.roots[rows, None]

    def forward(self, coef: np.ndarray) -> np.ndarray:
        out = np.zeros(self.shape[0])
        for rows, cols, panel in self._panels(np.flatnonzero(coef)):
            out[rows] += panel @ coef[cols]
        return out

    def adjoint(self, residual: np.ndarray) -> np.ndarray:
        out = np.zeros(self.shape[1])
        for rows, cols, panel in self._panels():
            out[cols] += residual[rows] @ panel
        return out

    def columns(self, chosen: np.ndarray) -> np.ndarray:
        out = np.empty((self.shape[0], chosen.size), order="F")
        order = np.argsort(chosen)
        ordered = chosen[order]
        for rows, cols, panel in self._panels(ordered):
            first, last = np.searchsorted(ordered, [cols.start, cols.stop])
            out[rows, order[first:last]] = panel[:, ordered[first:last] - cols.start]
        return out

    def reweighted(self, weights: np.ndarray) -> np.ndarray:
        if not self._is_wide:
            raise NotImplementedError("a tall design has no small n_samples x n_samples Gram")
        gram = np.zeros((self.shape[0], self.shape[0]), order="F")
        for _, cols, panel in self._panels(np.flatnonzero(weights)):
            scaled = np.asfortranarray(panel * np.sqrt(weights[cols]))
            gram = dsyrk(1.0, scaled, beta=1.0, c=gram, lower=1, overwrite_c=1)
        return gram

    def restricted(self, chosen: np.ndarray) -> Design | None:
        return super().restricted(chosen) if 8 * self.shape[0] * chosen.size <= self._panel_bytes else None

    def diagonal(self, weights: np.ndarray) -> np.ndarray:
        out = np.zeros(self.shape[0])
        for rows, cols, panel in self._panels(np.flatnonzero(weights)):
            out[rows] += (panel**2) @ weights[cols]
        return out

    def row_blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        for rows, _, panel in self._panels():
            yield rows, panel


def make_design(
    features: Any, weights: np.ndarray | None, *, is_centred: bool, panel_bytes: int | None = None
) -> tuple[Design, np.ndarray]:
    """Return the design of checked features and the means that were taken off, (n_features,).

    Parameters
    ----------
    features : (n_samples, n_features) float64 array, scipy.sparse matrix, memory map or HDF5 dataset
    weights : (n_samples,) float64 or None
        Sample weights, all above 0; None stands for ones.
    is_centred : bool
    panel_bytes : int or None
        Largest panel of a design that stays in its file; one that is not larger than that is read.
    """
    n_samples = features.shape[0]
    roots = np.ones(n_samples) if weights is None else np.sqrt(weights)
    shares = roots**2 / (roots @ roots)
    if scipy.sparse.issparse(features):
        means = np.asarray(features.T @ shares).ravel() if is_centred else np.zeros(features.shape[1])
        return SparseDesign(features, roots, means, is_centred), means
    if type(features) is not np.ndarray:
        stored = StoredDesign(features, roots, is_centred, panel_bytes or PANEL_BYTES)
        return stored, stored.means
    means = shares @ features if is_centred else np.zeros(features.shape[1])
    matrix = np.array(features, dtype=np.float64, order="F")
    if is_centred:
        matrix -= means
    if weights is not None:
        matrix *= roots[:, None]
    return DenseDesign(matrix, roots, is_centred), means


def _parts(matrix: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data


def _spans(size: int, step: int) -> Iterator[slice]:
    step = max(1, step)
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def _centred_norms(plain: np.ndarray, means: np.ndarray, roots: np.ndarray) -> np.ndarray:
    """Return Σ (A_ij − s_i m_j)² from the sums of squares; what is left by rounding counts as zero."""
    centred = plain - (roots @ roots) * means**2
    return np.where(centred > 1e-13 * plain, centred, 0.0)
