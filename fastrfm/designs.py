"""Design matrices of linear regression behind one interface: in memory, compressed, or left in a file.

Each is A as the solvers see it: rows multiplied by s, the square roots of the sample weights, columns centred by
weighted means m where there is an intercept, so that A = diag(s) (X − 1 mᵀ). Centring is explicit in dense arrays and
a rank-one correction elsewhere. A file is read in panels of bounded size: all rows of some columns where there are
fewer rows than columns, else all columns of some rows. Compressed rows in a file are in ``compressed_rows``. Not here:
checks of what users give (``regression_inputs``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse
from scipy.linalg.blas import dsyrk

from fastrfm._designs import PANEL_BYTES, centred_norms, spans
from fastrfm._designs import DenseDesign as DenseDesign
from fastrfm._designs import Design as Design
from fastrfm._interrupt import check
from fastrfm.compressed_rows import CompressedDesign, CompressedRows
from fastrfm.errors import InputError
from fastrfm.kernels.diagonal import add_row_squares, multiply_rows, solve_reweighted


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
        self.squared_norms = centred_norms(plain, means, roots)

    @property
    def compressed(self) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
        """A's stored rows by rows and by columns: int64 pointers, rising int32 indices, float64 values of each."""
        return self._rows, self._cols

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
        for span in spans(self.shape[0], PANEL_BYTES // (8 * self.shape[1])):
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
        self.squared_norms = centred_norms(squares, self.means, roots)

    def _panels(self, wanted: np.ndarray | None = None) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """Yield panels of A; in a wide design only those with a column among the `wanted`, which are sorted."""
        n_rows, n_cols = self.shape
        if self._is_wide:
            places = [(slice(0, n_rows), cols) for cols in spans(n_cols, self._panel_bytes // (8 * n_rows))]
        else:
            places = [(rows, slice(0, n_cols)) for rows in spans(n_rows, self._panel_bytes // (8 * n_cols))]
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
    features : (n_samples, n_features) float64 array, scipy.sparse matrix, memory map, HDF5 dataset or CompressedRows
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
    if isinstance(features, CompressedRows):
        compressed = CompressedDesign(features, roots, is_centred, panel_bytes or PANEL_BYTES)
        return compressed, compressed.means
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
