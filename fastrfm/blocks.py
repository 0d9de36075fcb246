"""Row blocks: what every solver walks over, whether the observations are in memory or in a file.

Flow: ``Observations`` (memory) or ``StoredObservations`` (file) -> ``RowBlock`` -> kernels. ``RowBlocks`` holds what
both have in common: everything that needs one pass over the blocks. Sums run entry by entry within a row (or column),
so that their bits do not depend on where blocks end. Not here: where the entries come from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from fastrfm.arrays import HOST, HostArrays
from fastrfm.kernels.tasks import balanced_bounds

# A block's pass takes well under a second on one core, so Ctrl-C and progress are prompt; larger gains nothing.
BLOCK_ENTRIES = 4_000_000
_DRAW = 1 << 20  # entries that one stream of random numbers decides about
EQUAL_WEIGHTS = np.zeros(0)  # what stands for weights that are all one


def index_dtype_for(shape: tuple[int, int]) -> np.dtype:
    """Return int32, or int64 where positions of a matrix of that shape need it."""
    return np.dtype(np.int32 if max(shape) < 2**31 else np.int64)


def value_dtype_for(dtype: np.dtype) -> np.dtype:
    """Return what values of that dtype are held as: float32 stays, all else becomes float64."""
    return np.dtype(np.float32 if dtype == np.float32 else np.float64)


def drawn(first: int, last: int, share: float, seed: int) -> np.ndarray:
    """Return which of entries first:last a draw holds out, bool: each with probability `share`, by itself.

    In row order every entry has its own draw, whatever span it is asked for in, so that no list of all is needed.
    """
    draws = []
    for group in range(first // _DRAW, (last + _DRAW - 1) // _DRAW):
        draw = np.random.default_rng([seed, group]).random(_DRAW)
        draws.append(draw[max(first - group * _DRAW, 0) : last - group * _DRAW])
    return np.concatenate(draws) < share if draws else np.zeros(0, dtype=bool)


def runs(ends: np.ndarray, n_entries: int, align: int = 1) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of runs of groups that have at most `n_entries` entries together.

    Parameters
    ----------
    ends : (n_groups + 1,) int64
        Group g owns entries ``ends[g]:ends[g + 1]``.
    n_entries : int
    align : int
        Every run but the last has a multiple of `align` groups, and at least `align`, however many entries they have.
    """
    start, n_groups = 0, ends.size - 1
    while start < n_groups:
        stop = int(np.searchsorted(ends, ends[start] + n_entries, side="right")) - 1
        stop = min(start + max((stop - start) // align, 1) * align, n_groups)
        yield start, stop
        start = stop


@dataclass(frozen=True)
class Compressed:
    """Entries grouped along one axis (rows or columns) of a block.

    Attributes
    ----------
    indptr : (n_groups + 1,) int64
        Group g owns entries ``indptr[g]:indptr[g + 1]``.
    indices : (n_entries,) int32 or int64
        Position along the other axis, ascending within a group.
    values : (n_entries,) float32 or float64
        Observed values, in the data's own unit.
    weights : (n_entries,) float64, or (0,)
        Of their squared misfits; empty where all are one.
    """

    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    weights: np.ndarray = field(default_factory=lambda: EQUAL_WEIGHTS)

    @cached_property
    def bounds(self) -> np.ndarray:
        """Group bounds that share the entries evenly among kernel tasks (see ``kernels.tasks``)."""
        return self.bounds_by(lambda counts: counts + 4)

    def bounds_by(self, cost: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Return group bounds that share `cost`, of the groups' numbers of entries, evenly among kernel tasks."""
        return balanced_bounds(cost(np.diff(self.indptr)))

    def part(self, start: int, stop: int) -> Compressed:
        """Return groups start:stop, as views of these entries."""
        first, last = self.indptr[start], self.indptr[stop]
        values, indices, weights = (part[first:last] for part in (self.values, self.indices, self.weights))
        return Compressed(self.indptr[start : stop + 1] - first, indices, values, weights)


@dataclass(frozen=True)
class RowBlock:
    """Rows ``start:stop`` of a matrix: what a solver's step works on at a time.

    ``by_row`` groups the entries by row (local row numbers, global column numbers), ``by_column`` the same entries
    by column (global column numbers, local row numbers, ascending); the latter is made when first asked for.
    """

    start: int
    stop: int
    n_cols: int
    by_row: Compressed

    @property
    def n_rows(self) -> int:
        return self.stop - self.start

    def part(self, start: int, stop: int) -> RowBlock:
        """Return rows start:stop of the whole matrix, all of them in this block."""
        return RowBlock(start, stop, self.n_cols, self.by_row.part(start - self.start, stop - self.start))

    def entry_rows(self) -> np.ndarray:
        """Return the row of the whole matrix that each entry of ``by_row`` lies in, (n_entries,) int64."""
        return np.repeat(np.arange(self.start, self.stop), np.diff(self.by_row.indptr))

    @cached_property
    def by_column(self) -> Compressed:
        return swap_axes(self.by_row, self.n_cols)


@dataclass(frozen=True)
class TileBlock:
    """Whole tiles of rows, in the form that tangent sweeps take.

    Attributes
    ----------
    rows : slice
        Its rows in the whole matrix.
    first_tile : int
        Number of its first tile; 0 begins a pass.
    tiles : (n_tiles + 1,) int64
        Local rows of each tile.
    indptr, indices, values
        The entries by (local) row.
    """

    rows: slice
    first_tile: int
    tiles: np.ndarray
    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, block: RowBlock, tiles: np.ndarray, first: int, last: int) -> TileBlock:
        """Return tiles first:last, which are the rows of `block`."""
        entries = block.by_row
        local = tiles[first : last + 1] - block.start
        return cls(slice(block.start, block.stop), first, local, entries.indptr, entries.indices, entries.values)


class RowBlocks(ABC):
    """The observed entries of an (n_rows, n_cols) matrix, handed out in row blocks.

    Attributes
    ----------
    shape : (int, int)
        n_rows, n_cols.
    indptr : (n_rows + 1,) int64
        In memory, wherever the entries are.
    row_names, col_names : (n_rows,) and (n_cols,) object arrays of str, or None
    """

    shape: tuple[int, int]
    indptr: np.ndarray
    row_names: np.ndarray | None
    col_names: np.ndarray | None

    # --- what differs -----------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def dtype(self) -> np.dtype:
        """float32 or float64: how values are stored. All arithmetic on them is float64."""

    @abstractmethod
    def row_blocks(self, align: int = 1) -> Iterator[RowBlock]:
        """Hand out the rows in order, in blocks of about ``BLOCK_ENTRIES`` entries (fewer if memory is short).

        Parameters
        ----------
        align : int
            Every block but the last holds a multiple of `align` rows, so that sums which a solver takes over
            `align` rows at a time do not depend on where blocks end.
        """

    @abstractmethod
    def tile_blocks(self, tiles: np.ndarray) -> Iterator[TileBlock]:
        """Hand out the rows in order, in as few blocks as memory allows, each of whole tiles.

        Parameters
        ----------
        tiles : (n_tiles + 1,) int64
            Rows of each tile, from 0 to n_rows.
        """

    @abstractmethod
    def cols_of(self, row: int) -> np.ndarray:
        """Return the columns observed in a row, ascending."""

    @abstractmethod
    def split(self, share: float, *, random_state: int = 0) -> tuple[RowBlocks, RowBlocks]:
        """Divide the entries at random: (kept, held out), the second in memory."""

    @abstractmethod
    def transposed(self) -> RowBlocks:
        """Return the same entries with rows and columns swapped."""

    @abstractmethod
    def shifted(self, offsets_at: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> RowBlocks:
        """Return the same positions with values less ``offsets_at(rows, cols)``, float64."""

    @property
    def arrays(self) -> HostArrays:
        """What solvers keep their tall matrices in, and work on them with: where the blocks are."""
        return HOST

    # --- looking ----------------------------------------------------------------------------------------------

    @property
    def is_weighted(self) -> bool:
        """Whether the entries' squared misfits have weights of their own."""
        return False

    @property
    def n_rows(self) -> int:
        return self.shape[0]

    @property
    def n_cols(self) -> int:
        return self.shape[1]

    @property
    def n_observed(self) -> int:
        return int(self.indptr[-1])

    @cached_property
    def row_counts(self) -> np.ndarray:
        """(n_rows,) int64: observed entries of each row."""
        return np.diff(self.indptr)

    @cached_property
    def col_counts(self) -> np.ndarray:
        """(n_cols,) int64: observed entries of each column."""
        counts = np.zeros(self.n_cols, dtype=np.int64)
        for block in self.row_blocks():
            counts += np.bincount(block.by_row.indices, minlength=self.n_cols)
        return counts

    @cached_property
    def row_weights(self) -> np.ndarray:
        """(n_rows,) float64: sum of the weights of each row's entries, their number where all are one."""
        sums = np.zeros(self.n_rows)
        for block in self.row_blocks():
            sums[block.start : block.stop] = np.bincount(
                block.entry_rows() - block.start, block.by_row.weights if self.is_weighted else None, block.n_rows
            )
        return sums

    @cached_property
    def col_weights(self) -> np.ndarray:
        """(n_cols,) float64: the same of each column."""
        if not self.is_weighted:
            return self.col_counts.astype(np.float64)
        sums = np.zeros(self.n_cols)
        for block in self.row_blocks():
            np.add.at(sums, block.by_row.indices, block.by_row.weights)
        return sums

    @cached_property
    def mean_weight(self) -> float:
        """Geometric mean of the entries' weights; 1 where all are one."""
        if not self.is_weighted:
            return 1.0
        logarithms = sum(float(np.log(block.by_row.weights).sum()) for block in self.row_blocks())
        return float(np.exp(logarithms / self.n_observed))

    @cached_property
    def norm(self) -> float:
        """Root of the sum of squares of the values."""
        return float(np.sqrt(self.row_sums(np.square).sum()))

    @cached_property
    def value_range(self) -> tuple[float, float]:
        """Least and largest value."""
        blocks = (block.by_row.values for block in self.row_blocks())
        ranges = [(float(values.min()), float(values.max())) for values in blocks if values.size]
        return min(least for least, _ in ranges), max(most for _, most in ranges)

    def row_sums(self, function: Callable[[np.ndarray], np.ndarray] | None = None) -> np.ndarray:
        """Return, for each row, the sum of `function` of its values (of the values themselves), (n_rows,) float64."""
        sums = np.zeros(self.n_rows)
        for block in self.row_blocks():
            values = block.by_row.values.astype(np.float64, copy=False)
            weights = values if function is None else function(values)
            sums[block.start : block.stop] = np.bincount(block.entry_rows() - block.start, weights, block.n_rows)
        return sums

    def col_sums(self) -> np.ndarray:
        """Return the sum of the values of each column, (n_cols,) float64."""
        sums = np.zeros(self.n_cols)
        for block in self.row_blocks():
            np.add.at(sums, block.by_row.indices, block.by_row.values.astype(np.float64, copy=False))
        return sums


def swap_axes(groups: Compressed, n_other: int) -> Compressed:
    """Return the same entries grouped along the other axis, which has `n_other` positions."""
    import scipy.sparse

    n_groups = groups.indptr.size - 1
    is_weighted = groups.weights.size > 0
    moved = np.arange(groups.values.size) if is_weighted else groups.values
    matrix = scipy.sparse.csr_matrix((moved, groups.indices, groups.indptr), shape=(n_groups, n_other))
    swapped = matrix.tocsc()  # a counting sort: groups come out ascending
    indices = swapped.indices.astype(groups.indices.dtype, copy=False)
    indptr = swapped.indptr.astype(np.int64)
    if not is_weighted:
        return Compressed(indptr, indices, swapped.data)
    return Compressed(indptr, indices, groups.values[swapped.data], groups.weights[swapped.data])
