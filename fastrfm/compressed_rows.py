"""Features as compressed rows in an HDF5 file (anndata's csr_matrix), and the design that streams them.

Rows are read in blocks whose entries take a bounded number of bytes, pass after pass; nothing is made dense but the
columns that a solver asks for. Centred implicitly, as sparse designs in memory are: A = diag(s) (X − 1 mᵀ). Flow:
``regression_inputs`` -> here -> ``designs.make_design``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np
import scipy.sparse

from fastrfm._designs import Design, centred_norms, spans
from fastrfm._hdf5 import get_attribute
from fastrfm._interrupt import check
from fastrfm._layout import open_compressed
from fastrfm.errors import InputError

_ENTRY_BYTES = 16  # value and position, whatever their types in the file


class CompressedRows:
    """The rows of a csr_matrix group of an open HDF5 file, not read yet but for their lengths.

    Attributes
    ----------
    shape : (int, int)
    n_bytes : int
        Of all entries, once read.
    """

    def __init__(self, group: h5py.Group) -> None:
        encoding = get_attribute(group, "encoding-type", str) if "encoding-type" in group.attrs else "none"
        if encoding != "csr_matrix":
            raise InputError(
                f"X is the HDF5 group {group.name}, of encoding-type {encoding}: only anndata's csr_matrix is read, so "
                "give a 2-D dataset or write the group as one"
            )
        shape = get_attribute(group, "shape", list)
        if len(shape) != 2 or not all(isinstance(size, int) and size >= 0 for size in shape):
            raise InputError(f"attribute shape of {group.name} must be two whole numbers, got {shape}")
        self.shape = (shape[0], shape[1])
        self._data, self._indices, self._indptr = open_compressed(group, shape[0])
        self.n_bytes = _ENTRY_BYTES * int(self._indptr[-1])

    def blocks(self, n_bytes: int) -> Iterator[tuple[slice, Any]]:
        """Yield spans of rows and these rows, csr_arrays of float64, of at most so many bytes if one row is not more.

        Raises
        ------
        InputError
            If an entry is not finite or its column out of range.
        """
        start, n_rows, most = 0, self.shape[0], max(n_bytes // _ENTRY_BYTES, 1)
        while start < n_rows:
            check()
            reached = int(np.searchsorted(self._indptr, self._indptr[start] + most, side="right")) - 1
            stop = min(max(reached, start + 1), n_rows)
            yield slice(start, stop), self._rows(start, stop)
            start = stop

    def read(self) -> Any:
        """Return all rows, a csr_array of float64."""
        return self._rows(0, self.shape[0])

    def _rows(self, start: int, stop: int) -> Any:
        first, last = int(self._indptr[start]), int(self._indptr[stop])
        values = np.asarray(self._data[first:last], dtype=np.float64)
        columns = np.asarray(self._indices[first:last])
        if columns.size and (columns.min() < 0 or columns.max() >= self.shape[1]):
            wrong = int(columns.min()) if columns.min() < 0 else int(columns.max())
            raise InputError(f"columns of X must lie in 0…{self.shape[1] - 1}, got {wrong} in {self._indices.name}")
        if not np.isfinite(values).all():
            raise InputError("X must be finite, but it contains NaN or infinity: fill or drop such entries first")
        pointers = self._indptr[start : stop + 1] - first
        rows = scipy.sparse.csr_array((values, columns, pointers), shape=(stop - start, self.shape[1]))
        rows.sum_duplicates()
        return rows


class CompressedDesign(Design):
    """A from compressed rows that stay in their file.

    Parameters
    ----------
    source : CompressedRows
    roots : (n_samples,) float64
    is_centred : bool
    panel_bytes : int
        Of a block of rows, and of dense columns that are kept.
    """

    def __init__(self, source: CompressedRows, roots: np.ndarray, is_centred: bool, panel_bytes: int) -> None:
        self.source, self.roots, self.is_centred, self.shape = source, roots, is_centred, source.shape
        self._panel_bytes = panel_bytes
        sums, squares = np.zeros(self.shape[1]), np.zeros(self.shape[1])
        for rows, block in self._blocks():
            sums += block.T @ roots[rows]
            squares += np.bincount(block.indices, block.data**2, self.shape[1])
        self.means = sums / (roots @ roots) if is_centred else np.zeros(self.shape[1])
        self.squared_norms = centred_norms(squares, self.means, roots)

    def _blocks(self, share: int = 1) -> Iterator[tuple[slice, Any]]:
        """Yield spans of rows and diag(s) X there, blocks of a `share` of the bytes allowed."""
        for rows, block in self.source.blocks(self._panel_bytes // share):
            block.data *= np.repeat(self.roots[rows], np.diff(block.indptr))
            yield rows, block

    def forward(self, coef: np.ndarray) -> np.ndarray:
        out = np.asarray(-(self.means @ coef) * self.roots)
        for rows, block in self._blocks():
            out[rows] += block @ coef
        return out

    def adjoint(self, residual: np.ndarray) -> np.ndarray:
        out = np.asarray(-(self.roots @ residual) * self.means)
        for rows, block in self._blocks():
            out += block.T @ residual[rows]
        return out

    def columns(self, chosen: np.ndarray) -> np.ndarray:
        out = np.empty((self.shape[0], chosen.size), order="F")
        for rows, block in self._blocks():
            out[rows] = block[:, chosen].toarray()
        out -= np.outer(self.roots, self.means[chosen])
        return out

    def reweighted(self, weights: np.ndarray) -> np.ndarray:
        """Return A K Aᵀ from pairs of blocks: a file of n blocks is read about n / 2 times."""
        n_rows = self.shape[0]
        gram, cross = np.zeros((n_rows, n_rows), order="F"), np.empty(n_rows)
        for rows, block in self._blocks(2):
            scaled = block.multiply(weights[None, :]).tocsr()
            cross[rows] = scaled @ self.means
            for others, other in self._blocks(2):
                if others.start > rows.start:
                    break
                gram[rows, others] = (scaled @ other.T).toarray()
        cross -= 0.5 * (weights @ self.means**2) * self.roots
        return np.asarray(gram - np.outer(cross, self.roots) - np.outer(self.roots, cross), order="F")

    def restricted(self, chosen: np.ndarray) -> Design | None:
        return super().restricted(chosen) if 8 * self.shape[0] * chosen.size <= self._panel_bytes else None

    def diagonal(self, weights: np.ndarray) -> np.ndarray:
        out = (weights @ self.means**2) * self.roots**2
        for rows, block in self._blocks():
            cross = block @ (weights * self.means)
            block.data **= 2
            out[rows] += block @ weights - 2.0 * self.roots[rows] * cross
        return np.asarray(out)

    def row_blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        height = max(self._panel_bytes // (8 * self.shape[1]), 1)
        for rows, block in self._blocks():
            for part in spans(block.shape[0], height):
                span = slice(rows.start + part.start, rows.start + part.stop)
                yield span, block[part].toarray() - np.outer(self.roots[span], self.means)
