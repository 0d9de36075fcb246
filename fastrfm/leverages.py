"""The regressions behind an estimate, of its rows on the right factor and of its columns on the left one.

Flow: ``CompletionResult`` and observations -> ``Regressions``, both sides alike -> leverages of entries and degrees of
freedom (``kernels.leverages``) -> ``uncertainty``. A column is a row of the transposed observations. Own derivation
from the fixed point of the solvers' row step (``solvers.new_rows``), which reads the same on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fastrfm.blocks import RowBlock, RowBlocks
from fastrfm.kernels.leverages import group_leverages
from fastrfm.kernels.tasks import balanced_bounds
from fastrfm.results import CompletionResult, Offsets
from fastrfm.solvers.new_rows import row_penalty, row_shrinkage

_LARGEST_PENALTY = 1e100  # of offsets that do not differ: keeps them fixed without infinities

Pairs = tuple[np.ndarray, np.ndarray]
Entries = tuple[np.ndarray, np.ndarray, np.ndarray]  # indptr, indices and weights of a block


@dataclass(frozen=True, eq=False)
class Regressions:
    """The regressions of all rows on the right factor, or those of all columns on the left one.

    Attributes
    ----------
    observations : RowBlocks
        Rows are the groups that are regressed.
    features : (n_cols, k) float64
    penalty : (k,) float64
    left_out : (n,) int64, ascending, or None
        ``row * n_cols + col`` of entries to be taken as not observed.
    """

    observations: RowBlocks
    features: np.ndarray
    penalty: np.ndarray
    left_out: np.ndarray | None = None

    def leverages(self, groups: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Return f_jᵀ A⁻¹ f_j for pairs of a group and a position, (n,) float64."""
        order = np.argsort(groups, kind="stable")
        found, starts = np.unique(groups[order], return_index=True)
        ends, wanted, solved = np.append(starts, order.size), positions[order], np.empty(order.size)
        for block, entries in self._blocks():
            first, last = np.searchsorted(found, (block.start, block.stop))
            if first < last:
                span = slice(ends[first], ends[last])
                local = ends[first : last + 1] - ends[first]
                self._run(entries, found[first:last] - block.start, local, wanted[span], solved[span])
        out = np.empty(order.size)
        out[order] = solved
        return out

    def freedom(self) -> float:
        """Return the degrees of freedom that all groups use together."""
        total, nothing = np.zeros(self.observations.n_rows), np.zeros(0, dtype=np.int64)
        for block, entries in self._blocks():
            no_ends = np.zeros(block.n_rows + 1, dtype=np.int64)
            every = np.arange(block.n_rows)
            total[block.start : block.stop] = self._run(entries, every, no_ends, nothing, np.empty(0))
        return float(total.sum())

    def _run(
        self,
        entries: Entries,
        groups: np.ndarray,
        ends: np.ndarray,
        wanted: np.ndarray,
        out: np.ndarray,
    ) -> np.ndarray:
        freedom = np.empty(groups.size)
        bounds = balanced_bounds(np.diff(entries[0])[groups] + np.diff(ends) + self.penalty.size)
        group_leverages(bounds, groups, *entries, self.features, self.penalty, ends, wanted, out, freedom)
        return freedom

    def _blocks(self) -> Iterator[tuple[RowBlock, Entries]]:
        """Yield row blocks with indptr, indices and weights of the entries that are not left out."""
        for block in self.observations.row_blocks():
            indptr, indices, weights = block.by_row.indptr, block.by_row.indices, block.by_row.weights
            if self.left_out is not None:
                keys = block.entry_rows() * self.observations.n_cols + indices
                keep = ~np.isin(keys, self.left_out)
                indptr = np.concatenate(([0], np.cumsum(keep, dtype=np.int64)))[indptr]
                indices = indices[keep]
                weights = weights[keep] if weights.size else weights
            yield block, (indptr, indices, weights)


def regressions_of(
    result: CompletionResult, observations: RowBlocks, left_out: Pairs | None = None
) -> tuple[Regressions, Regressions]:
    """Return the regressions of rows and those of columns.

    Parameters
    ----------
    result : CompletionResult
    observations : RowBlocks
        Those that were fitted.
    left_out : (rows, cols), each (n,) int64, optional
        Entries to be taken as not observed.

    Notes
    -----
    With offsets a constant is the first feature, and its penalty the shrinkage of that side's offsets.
    """
    rank, turned = result.rank, observations.transposed()
    # row_penalty keeps systems regular where there is no ridge; here nothing known has to stay nothing known.
    has_ridge = rank > 0 and result.options["ridge"] > 0.0
    penalty = row_penalty(result) if has_ridge else np.zeros(rank)
    right, left = result.right[:, :rank], result.left[:, :rank] / result.singular_values
    return (
        _side(observations, right, penalty, result.offsets, left_out),
        _side(turned, left, penalty, _swapped(result.offsets), None if left_out is None else left_out[::-1]),
    )


def _side(
    observations: RowBlocks, vectors: np.ndarray, penalty: np.ndarray, offsets: Offsets | None, left_out: Pairs | None
) -> Regressions:
    if offsets is not None:
        shrinkage = min(row_shrinkage(observations, offsets), _LARGEST_PENALTY)
        vectors = np.column_stack([np.ones(len(vectors)), vectors])
        penalty = np.append(shrinkage, penalty)
    keys = None if left_out is None else np.sort(left_out[0] * observations.n_cols + left_out[1])
    return Regressions(observations, np.ascontiguousarray(vectors), penalty, keys)


def _swapped(offsets: Offsets | None) -> Offsets | None:
    return None if offsets is None else Offsets(offsets.mean, offsets.cols, offsets.rows)


def pair_leverages(sides: tuple[Regressions, Regressions], rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Return (se / σ)² at pairs, (n,) float64."""
    by_row, by_col = sides
    return np.asarray(by_row.leverages(rows, cols) + by_col.leverages(cols, rows))
