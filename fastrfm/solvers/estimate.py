"""Low-rank plus sparse estimates, their products with blocks of vectors, and their leading singular triplets.

XᵀX is never formed: block power steps take products with U Aᵀ + B Vᵀ and with its residual on the observed entries,
which each product computes again instead of keeping it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastrfm.arrays import HostArrays
from fastrfm.blocks import RowBlocks, TileBlock
from fastrfm.factors import svd, tall_qr
from fastrfm.kernels.tangent import multiply_residual, multiply_residual_transposed
from fastrfm.kernels.tasks import balanced_bounds

_MOST_STRIPES, _MOST_PARTS = 16, 8
_TILE_ENTRIES = 1_000_000  # at most, beyond 128 tiles: a file is read in whole tiles
_PART_BYTES = 2**26
_MAX_POWER_STEPS = 8


@dataclass(frozen=True)
class Triplets:
    """Leading singular triplets: (n_rows, b), (b,) descending, (n_cols, b)."""

    left: Any
    singular_values: np.ndarray
    right: Any

    def first(self, k: int, arrays: HostArrays) -> Triplets:
        return Triplets(arrays.first(self.left, k), self.singular_values[:k], arrays.first(self.right, k))


@dataclass(frozen=True)
class Layout:
    """How sweeps are split, by the data alone: tiles of rows, stripes of columns, partial sums over rows."""

    tiles: np.ndarray
    stripes: np.ndarray

    @classmethod
    def of(cls, observations: RowBlocks) -> Layout:
        return cls(
            balanced_bounds(
                observations.row_counts + 4, max(16 * _MOST_PARTS, observations.n_observed // _TILE_ENTRIES)
            ),
            balanced_bounds(observations.col_counts + 4, min(_MOST_STRIPES, max(observations.n_cols // 32, 1))),
        )

    def n_parts(self, observations: RowBlocks, k: int) -> int:
        """Return how many partial sums over rows pay: each costs one addition per column and direction."""
        per_column = observations.n_observed / observations.n_cols
        affordable = _PART_BYTES / (8.0 * observations.n_cols * max(k, 1))
        return 1 << int(np.log2(max(min(per_column / 4.0, affordable, _MOST_PARTS), 1.0)))


@dataclass(frozen=True)
class Estimate:
    """U Aᵀ + B Vᵀ plus θ times its residual on the observed entries; columns are padded for the kernels."""

    observations: RowBlocks
    layout: Layout
    left: Any
    rows: Any
    coefficients: Any
    basis: Any
    theta: float

    def multiply(self, vectors: Any) -> Any:
        """Return X·vectors, (n_rows, b)."""
        arrays, width = self.observations.arrays, vectors.shape[1]
        vectors = arrays.padded(vectors)
        out = arrays.empty(self.observations.n_rows, vectors.shape[1])
        for block in self.observations.tile_blocks(self.layout.tiles):
            arrays.twin(multiply_residual)(block.tiles, *self._residual(block), vectors, out[block.rows])
        arrays.scale(out, self.theta)
        arrays.add_product(out, self.left, arrays.inner(self.coefficients, vectors))
        arrays.add_product(out, self.rows, arrays.inner(self.basis, vectors))
        return arrays.narrowed(out, width)

    def multiply_transposed(self, vectors: Any) -> Any:
        """Return Xᵀ·vectors, (n_cols, b)."""
        arrays, width = self.observations.arrays, vectors.shape[1]
        vectors = arrays.padded(vectors)
        n_parts = self.layout.n_parts(self.observations, width)
        parts = arrays.empty(n_parts, self.observations.n_cols, vectors.shape[1])
        for block in self.observations.tile_blocks(self.layout.tiles):
            arrays.twin(multiply_residual_transposed)(
                block.tiles, block.first_tile, n_parts, *self._residual(block), vectors[block.rows], parts
            )
        out = arrays.sum_of(parts)
        arrays.scale(out, self.theta)
        arrays.add_product(out, self.coefficients, arrays.inner(self.left, vectors))
        arrays.add_product(out, self.basis, arrays.inner(self.rows, vectors))
        return arrays.narrowed(out, width)

    def _residual(self, block: TileBlock) -> tuple[Any, ...]:
        """Return what the kernels compute a block's residual from."""
        left, rows = self.left[block.rows], self.rows[block.rows]
        return block.indptr, block.indices, block.values, left, rows, self.coefficients, self.basis


def start_estimate(observations: RowBlocks, layout: Layout, left: Any, right: Any) -> Estimate:
    """Return left rightᵀ with the observed entries put in."""
    arrays = observations.arrays
    left, right = arrays.padded(left), arrays.padded(right)
    rows, basis = arrays.zeros(*left.shape), arrays.zeros(*right.shape)
    return Estimate(observations, layout, left, rows, right, basis, 1.0)


def leading_triplets(estimate: Estimate, start: Any, *, watched: int, accuracy: float, floor: float = 0.0) -> Triplets:
    """Return the leading singular triplets by block power steps from `start`, (n_cols, b).

    Stops when the first `watched` singular values change by at most `accuracy` of the smallest of them (or of `floor`)
    from one half step to the next.
    """
    arrays = estimate.observations.arrays
    right = tall_qr(start, arrays=arrays)[0]
    watched = min(watched, start.shape[1])
    for _ in range(_MAX_POWER_STEPS):
        left, upper = tall_qr(estimate.multiply(right), overwrite=True, arrays=arrays)
        before = np.linalg.svd(upper, compute_uv=False)
        right, upper = tall_qr(estimate.multiply_transposed(left), overwrite=True, arrays=arrays)
        u, singular_values, vt = svd(upper.T)
        if watched == 0:
            break
        smallest = max(float(singular_values[watched - 1]), floor)
        if np.abs(singular_values - before)[:watched].max() <= accuracy * smallest:
            break
    return Triplets(arrays.product(left, u), singular_values, arrays.product(right, vt.T))
