"""Design matrices of linear regression that live on a CUDA device: dense, and compressed by rows and by columns.

Behind the interface of ``_designs``, so that solvers do not know. A goes to the device once; vectors of n_samples and
n_features come and go, and so do columns that are asked for and A K Aᵀ, which LAPACK on the processor factors.
Imported only once a device is used. Not here: designs left in their file, which no device can read faster than the
processor uses them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fastrfm._cuda import empty, fetch, put
from fastrfm._designs import PANEL_BYTES, spans
from fastrfm.designs import DenseDesign, Design, SparseDesign
from fastrfm.errors import InputError
from fastrfm.kernels.cuda.columns import (
    add_runs,
    expand_rows,
    gather_rows,
    multiply_parts,
    multiply_transposed,
    n_runs,
    reweighted_parts,
    reweighted_rows,
    solve_dense,
)
from fastrfm.kernels.cuda.diagonal import add_row_squares, multiply_rows, solve_reweighted
from fastrfm.kernels.cuda.gram import shift_and_mirror
from fastrfm.kernels.cuda.products import add_parts, n_stripes


def on_device(design: Design) -> Design:
    """Return a design in memory as one on the device; one that is there already as it is.

    Raises
    ------
    InputError
        If it stays in its file.
    DeviceMemoryError
        If it is larger than the device's memory.
    """
    if isinstance(design, DeviceDenseDesign | DeviceSparseDesign):
        return design
    if isinstance(design, DenseDesign):
        columns = put(design.matrix.T)
        return DeviceDenseDesign(columns, design.roots, design.squared_norms, design.is_centred)
    if isinstance(design, SparseDesign):
        return DeviceSparseDesign(design)
    raise InputError(
        'device="cuda" takes dense and scipy.sparse features in memory, got features that stay in a file: read them '
        '(a larger memory does), or use device="cpu"'
    )


class _DeviceDesign(Design):
    """What both have in common: where vectors are on the processor, and the Gram's way back."""

    def __init__(self, shape: tuple[int, int], roots: np.ndarray, is_centred: bool) -> None:
        self.shape, self.roots, self.is_centred = shape, roots, is_centred
        self._of_samples, self._of_features = empty(shape[0]), empty(shape[1])

    def dense(self, matrix: np.ndarray, roots: np.ndarray, is_centred: bool = False) -> Design:
        return on_device(DenseDesign(matrix, roots, is_centred))

    def reweighted(self, weights: np.ndarray) -> np.ndarray:
        """Return A K Aᵀ whole, (n_samples, n_samples)."""
        gram = self._gram(weights)
        shift_and_mirror(gram, 1.0, 0.0, gram)
        return np.asarray(fetch(gram).T)

    def _gram(self, weights: np.ndarray) -> Any:
        """Return A K Aᵀ on the device, its lower triangle."""
        raise NotImplementedError

    def solve(
        self, weights: np.ndarray, ridge: float, shift: float, target: np.ndarray, tol: float, dual: np.ndarray
    ) -> int:
        diagonal = self.diagonal(weights) + ridge + shift * self.roots**2
        found = put(dual)
        n_steps = self._solve(put(weights), ridge, shift, put(target), put(diagonal), tol, found)
        dual[:] = fetch(found)
        return n_steps

    def _solve(
        self, weights: Any, ridge: float, shift: float, target: Any, diagonal: Any, tol: float, dual: Any
    ) -> int:
        """Do as :meth:`solve`, all arrays on the device."""
        raise NotImplementedError


class DeviceDenseDesign(_DeviceDesign):
    """A on the device, already weighted and centred.

    Parameters
    ----------
    columns : (n_features, n_samples) float64 on the device
    roots : (n_samples,) float64
    squared_norms : (n_features,) float64
    is_centred : bool
    """

    is_dense = True

    def __init__(self, columns: Any, roots: np.ndarray, squared_norms: np.ndarray, is_centred: bool) -> None:
        super().__init__((columns.shape[1], columns.shape[0]), roots, is_centred)
        self._columns, self.squared_norms = columns, squared_norms
        self.means = np.zeros(self.shape[1])
        self._go = put(np.zeros(1))
        self._parts = empty((n_runs(self.shape[1], self.shape[0]), self.shape[0]))

    def forward(self, coef: np.ndarray) -> np.ndarray:
        return self._weighted_sums(coef, is_squared=False)

    def _weighted_sums(self, vector: np.ndarray, *, is_squared: bool) -> np.ndarray:
        multiply_parts(self._go, self._columns, put(vector), int(is_squared), self._parts)
        add_runs(self._go, self._parts, self._of_samples)
        return fetch(self._of_samples)

    def adjoint(self, residual: np.ndarray) -> np.ndarray:
        multiply_transposed(self._go, self._columns, put(residual), self._of_features)
        return fetch(self._of_features)

    def diagonal(self, weights: np.ndarray) -> np.ndarray:
        return self._weighted_sums(weights, is_squared=True)

    def _gathered(self, chosen: np.ndarray) -> Any:
        out = empty((chosen.size, self.shape[0]))
        gather_rows(self._columns, put(chosen.astype(np.int64)), out)
        return out

    def columns(self, chosen: np.ndarray) -> np.ndarray:
        return fetch(self._gathered(chosen)).T if chosen.size else np.zeros((self.shape[0], 0), order="F")

    def restricted(self, chosen: np.ndarray) -> Design | None:
        if chosen.size == 0:
            return DenseDesign(self.columns(chosen), self.roots, self.is_centred)
        return DeviceDenseDesign(self._gathered(chosen), self.roots, self.squared_norms[chosen], self.is_centred)

    def row_blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        yield slice(0, self.shape[0]), fetch(self._columns).T

    def _gram(self, weights: np.ndarray) -> Any:
        n_samples, n_features = self.shape
        gram = empty((n_samples, n_samples))
        n = n_stripes(n_features, n_samples * n_samples)
        parts = empty((n, n_samples, n_samples)) if n > 1 else gram.reshape(1, n_samples, n_samples)
        reweighted_parts(self._columns, put(weights), parts)
        if n > 1:
            add_parts(parts, gram)
        return gram

    def _solve(
        self, weights: Any, ridge: float, shift: float, target: Any, diagonal: Any, tol: float, dual: Any
    ) -> int:
        return int(
            solve_dense(
                self._columns, self._parts, weights, put(self.roots), put(self.means), ridge, shift, target, diagonal,
                tol, 2 * self.shape[0], dual,
            )[0]
        )  # fmt: skip


class DeviceSparseDesign(_DeviceDesign):
    """A on the device, compressed by rows and by columns, centred implicitly; from the same on the processor."""

    def __init__(self, design: SparseDesign) -> None:
        super().__init__(design.shape, design.roots, design.is_centred)
        self.means, self.squared_norms = design.means, design.squared_norms
        by_rows, by_columns = design.compressed
        self._rows, self._cols = _parts(by_rows), _parts(by_columns)
        self._roots_there, self._means_there = put(self.roots), put(self.means)

    def forward(self, coef: np.ndarray) -> np.ndarray:
        multiply_rows(*self._rows, put(coef), self._of_samples)
        return np.asarray(fetch(self._of_samples) - (self.means @ coef) * self.roots)

    def adjoint(self, residual: np.ndarray) -> np.ndarray:
        multiply_rows(*self._cols, put(residual), self._of_features)
        return np.asarray(fetch(self._of_features) - (self.roots @ residual) * self.means)

    def diagonal(self, weights: np.ndarray) -> np.ndarray:
        out = put(np.zeros(self.shape[0]))
        add_row_squares(*self._rows, put(weights), self._roots_there, self._means_there, out)
        return fetch(out)

    def columns(self, chosen: np.ndarray) -> np.ndarray:
        out = empty((chosen.size, self.shape[0]))
        expand_rows(*self._cols, self._means_there, self._roots_there, put(chosen.astype(np.int64)), out)
        return fetch(out).T

    def restricted(self, chosen: np.ndarray) -> Design | None:
        return None

    def row_blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        for span in spans(self.shape[0], PANEL_BYTES // (8 * self.shape[1])):
            out = empty((span.stop - span.start, self.shape[1]))
            chosen = put(np.arange(span.start, span.stop, dtype=np.int64))
            expand_rows(*self._rows, self._roots_there, self._means_there, chosen, out)
            yield span, fetch(out)

    def _gram(self, weights: np.ndarray) -> Any:
        gram = empty((self.shape[0], self.shape[0]))
        multiply_rows(*self._rows, put(weights * self.means), self._of_samples)
        reweighted_rows(
            *self._rows, *self._cols, put(weights), self._roots_there, self._of_samples,
            0.5 * float(weights @ self.means**2), gram,
        )  # fmt: skip
        return gram

    def _solve(
        self, weights: Any, ridge: float, shift: float, target: Any, diagonal: Any, tol: float, dual: Any
    ) -> int:
        return int(
            solve_reweighted(
                *self._rows, *self._cols, weights, self._roots_there, self._means_there, ridge, shift, target,
                diagonal, tol, 2 * self.shape[0], dual,
            )[0]
        )  # fmt: skip


def _parts(compressed: tuple[np.ndarray, ...]) -> tuple[Any, Any, Any]:
    indptr, indices, values = compressed
    return put(indptr), put(indices), put(values)
