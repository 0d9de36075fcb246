"""Observations handed out in row blocks that are on a CUDA device.

Flow: ``Observations`` or ``StoredObservations`` -> ``DeviceBlocks`` -> the same solvers, with device kernels. Where all
entries fit into the device's memory they are copied once and stay. Else every pass streams them, from memory or from
the file, through two page-locked buffers: while kernels work on one block, the next one is read and copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from fastrfm._cuda import compute_stream, copy_stream, empty, event, fetch, free_bytes, lends, pinned, put
from fastrfm._interrupt import check
from fastrfm.blocks import Compressed, RowBlock, RowBlocks, TileBlock, runs
from fastrfm.device_arrays import DeviceArrays
from fastrfm.errors import DeviceMemoryError
from fastrfm.kernels.cuda.swap_axes import swap_axes

_SHARE = 0.5  # of the device's free memory that entries may keep: the rest is for factors and work on them
_ENTRY_BYTES = 2 * 24  # by row and by column, each at most a float64, an int64 and a weight
_BLOCK_SHARE = 1 / 8  # of what entries may keep, for a block: one that is in use cannot be given up
_ALL = 1 << 62


@dataclass(frozen=True)
class DeviceCompressed(Compressed):
    """Entries of a block on the device; `pointers` is indptr on the processor, if it is there."""

    pointers: np.ndarray | None = field(kw_only=True)

    @cached_property
    def bounds(self) -> Any:
        return self.indptr  # kernels there give each group a block: they do not look at bounds

    def bounds_by(self, cost: Callable[[np.ndarray], np.ndarray]) -> Any:
        return self.indptr

    def part(self, start: int, stop: int) -> DeviceCompressed:
        pointers = fetch(self.indptr) if self.pointers is None else self.pointers
        first, last = int(pointers[start]), int(pointers[stop])
        pointers = pointers[start : stop + 1] - first
        weights = self.weights[first:last] if self.weights.size else self.weights
        return DeviceCompressed(
            put(pointers), self.indices[first:last], self.values[first:last], weights, pointers=pointers
        )


def _columns_of(entries: DeviceCompressed, parts: list[Any]) -> DeviceCompressed:
    """Return the entries by column in `parts`: room for indptr, indices, values and weights."""
    swap_axes(entries.indptr, entries.indices, entries.values, entries.weights, *parts)
    return DeviceCompressed(*parts, pointers=None)


class _Kept:
    """Copies that stay on the device."""

    def reserve(self, n_entries: int, n_rows: int, n_cols: int = 0) -> None:
        """Need nothing beforehand."""

    def take(self, entries: Compressed) -> DeviceCompressed:
        parts = (put(part) for part in (entries.indptr, entries.indices, entries.values, entries.weights))
        return DeviceCompressed(*parts, pointers=entries.indptr)

    def by_column(self, entries: DeviceCompressed, n_cols: int) -> DeviceCompressed:
        parts = (entries.indices, entries.values, entries.weights)
        return _columns_of(entries, [empty(n_cols + 1, np.int64), *(empty(part.size, part.dtype) for part in parts)])


class _Streamed:
    """Copies in two slots that are used in turn: a copy is good until the next but one, by column until the next."""

    def __init__(self) -> None:
        self._size = (0, 0, 0)  # entries, rows and columns of the largest block that there is room for
        self._slots: tuple[_Slot, ...] = ()
        self._by_column: _Room | None = None
        self._n_taken = 0

    def reserve(self, n_entries: int, n_rows: int, n_cols: int = 0) -> None:
        """Make room for blocks of that size, by column too if they have columns.

        Raises
        ------
        DeviceMemoryError
            If the device has less; what there was is given up.
        """
        size = (n_entries, n_rows, n_cols)
        largest = tuple(max(pair) for pair in zip(size, self._size, strict=True))
        if largest == self._size:
            return
        self.release()  # given back before new ones are asked for
        try:
            self._make(*largest)  # a block may have more rows, another one more entries
        except DeviceMemoryError:
            if size == largest:
                raise
            self._make(*size)

    def _make(self, n_entries: int, n_rows: int, n_cols: int) -> None:
        slots = _Slot(n_entries, n_rows), _Slot(n_entries, n_rows)
        self._by_column = _Room(n_entries, n_cols) if n_cols else None
        self._slots, self._size = slots, (n_entries, n_rows, n_cols)

    def release(self) -> int:
        """Give all room back; return how many entries a block could have."""
        n_entries = self._size[0]
        compute_stream().synchronize()
        copy_stream().synchronize()
        self._slots, self._by_column, self._size = (), None, (0, 0, 0)
        return n_entries

    def take(self, entries: Compressed) -> DeviceCompressed:
        self.reserve(entries.indices.size, entries.indptr.size - 1)
        slot, other = self._slots[self._n_taken % 2], self._slots[1 - self._n_taken % 2]
        self._n_taken += 1
        other.is_done.record(compute_stream())  # what reads the block before has been launched by now
        return slot.take(entries)

    def by_column(self, entries: DeviceCompressed, n_cols: int) -> DeviceCompressed:
        if self._by_column is None or n_cols > self._size[2]:  # memory was given up since the block was handed out
            self._by_column = None
            self._by_column = _Room(entries.indices.size, n_cols)
            self._size = (*self._size[:2], 0)
        return _columns_of(entries, self._by_column.views(n_cols, entries))


class _Room:
    """Room on the device for one block's entries, in groups."""

    def __init__(self, n_entries: int, n_groups: int) -> None:
        self._sizes = (8 * (n_groups + 1), 8 * n_entries, 8 * n_entries, 8 * n_entries)
        self._there = [empty(size, np.uint8) for size in self._sizes]

    def views(self, n_groups: int, entries: Compressed) -> list[Any]:
        """Return room for indptr of so many groups, and for indices, values and weights like those of `entries`."""
        alike = [(part.size, part.dtype) for part in (entries.indices, entries.values, entries.weights)]
        wanted = [(n_groups + 1, np.dtype(np.int64)), *alike]
        return [
            there[: size * dtype.itemsize].view(dtype) for there, (size, dtype) in zip(self._there, wanted, strict=True)
        ]


class _Slot(_Room):
    """The same, and as much in page-locked memory of the processor."""

    def __init__(self, n_entries: int, n_rows: int) -> None:
        super().__init__(n_entries, n_rows)
        self._here = [pinned(size, np.uint8) for size in self._sizes]
        self.is_copied, self.is_done = event(), event()

    def take(self, entries: Compressed) -> DeviceCompressed:
        self.is_copied.synchronize()  # the copy before has left the page-locked memory
        self.is_done.wait(copy_stream())  # and its reader is through with it
        targets = self.views(entries.indptr.size - 1, entries)
        parts = (entries.indptr, entries.indices, entries.values, entries.weights)
        for here, target, part in zip(self._here, targets, parts, strict=True):
            staged = here[: part.nbytes].view(part.dtype)
            staged[:] = part
            target.copy_to_device(staged, stream=copy_stream())
        self.is_copied.record(copy_stream())
        self.is_copied.wait(compute_stream())
        return DeviceCompressed(*targets, pointers=entries.indptr)


class DeviceBlock(RowBlock):
    """Rows ``start:stop``, whose entries are copied to the device when they are first asked for."""

    def __init__(self, block: RowBlock, uploads: _Kept | _Streamed) -> None:
        vars(self).update(start=block.start, stop=block.stop, n_cols=block.n_cols, _block=block, _uploads=uploads)

    @cached_property
    def by_row(self) -> DeviceCompressed:
        block: RowBlock = vars(self).pop("_block")  # the copy serves from here on: what was read from a file can go
        return self._uploads.take(block.by_row)  # type: ignore[attr-defined,no-any-return]

    @cached_property
    def by_column(self) -> DeviceCompressed:
        return self._uploads.by_column(self.by_row, self.n_cols)  # type: ignore[attr-defined,no-any-return]


class DeviceBlocks(RowBlocks):
    """The same observations in blocks on a device.

    Parameters
    ----------
    host : RowBlocks
    memory : float, optional
        Bytes on the device that entries may keep; by default half of what is free.
    """

    def __init__(self, host: RowBlocks, memory: float | None = None) -> None:
        self.host = host
        self.shape, self.indptr, self.row_names, self.col_names = (
            host.shape,
            host.indptr,
            host.row_names,
            host.col_names,
        )
        budget = _SHARE * free_bytes() if memory is None else memory
        fits = _ENTRY_BYTES * host.n_observed + 16 * sum(host.shape) <= budget
        self._uploads: _Kept | _Streamed = _Kept() if fits else _Streamed()
        self._most_entries = max(int(min(_BLOCK_SHARE * budget / _ENTRY_BYTES, _ALL)), 1)
        self._kept: dict[tuple[int, int], DeviceBlock] = {}  # by alignment and first row
        self._kept_tiles: dict[int, TileBlock] = {}  # by first tile
        lends(self)

    # --- on the device ----------------------------------------------------------------------------------------

    @cached_property
    def arrays(self) -> DeviceArrays:
        return DeviceArrays()

    @property
    def is_kept(self) -> bool:
        """Whether all entries are to stay on the device."""
        return isinstance(self._uploads, _Kept)

    def give_up(self) -> bool:
        """Give memory on the device up: entries that stayed are streamed from now on, streamed blocks are halved.

        Returns
        -------
        is_less : bool
            Whether there was anything; what a caller works on at the moment stays until it is through with it.
        """
        if isinstance(self._uploads, _Streamed):
            n_entries = self._uploads.release()
            if n_entries:
                self._most_entries = max(min(self._most_entries, n_entries) // 2, 1)
            return n_entries > 0
        if not (self._kept or self._kept_tiles):
            return False
        self._uploads = _Streamed()
        self._kept.clear()
        self._kept_tiles.clear()
        return True

    def row_blocks(self, align: int = 1) -> Iterator[RowBlock]:
        start = 0
        while (align, start) in self._kept:  # another look each time: a block may have been given up meanwhile
            check()
            kept = self._kept[align, start]
            start = kept.stop
            yield kept
        for block in self._blocks(align, start):
            if self.is_kept:
                self._kept[align, block.start] = block
            yield block

    def _blocks(self, align: int, start: int) -> Iterator[DeviceBlock]:
        """Make the blocks from row `start` on."""
        if start == self.n_rows:
            return
        for block in self.host.row_blocks(align):
            while block.start <= start < block.stop:
                # Whatever fits is learnt once: later blocks, and later passes, begin with it.
                spans = runs(self.indptr[start : block.stop + 1], self._most_entries, align)
                stop = start + next(spans)[1]
                n_entries = int(self.indptr[stop] - self.indptr[start])
                if self._has_room(n_entries, stop - start, self.n_cols, is_least=stop - start <= align):
                    yield DeviceBlock(block.part(start, stop), self._uploads)
                    start = stop

    def tile_blocks(self, tiles: np.ndarray) -> Iterator[TileBlock]:
        place = 0
        while place in self._kept_tiles:
            check()
            kept = self._kept_tiles[place]
            place += kept.tiles.size - 1
            yield kept
        for block in self._tile_blocks(tiles, place):
            if self.is_kept:
                self._kept_tiles[block.first_tile] = block
            yield block

    def _tile_blocks(self, tiles: np.ndarray, place: int) -> Iterator[TileBlock]:
        """Make the blocks from tile `place` on."""
        if place == tiles.size - 1:
            return
        for block in self.host.tile_blocks(tiles):  # of whole tiles: so are theirs
            stop = block.first_tile + block.tiles.size - 1
            while block.first_tile <= place < stop:
                spans = runs(self.indptr[tiles[place : stop + 1]], self._most_entries)
                last = place + next(spans)[1]
                rows = slice(int(tiles[place]), int(tiles[last]))
                n_entries = int(self.indptr[rows.stop] - self.indptr[rows.start])
                if not self._has_room(n_entries, rows.stop - rows.start, 0, is_least=last - place == 1):
                    continue
                whole = Compressed(block.indptr, block.indices, block.values)
                entries = self._uploads.take(whole.part(rows.start - block.rows.start, rows.stop - block.rows.start))
                local = put(tiles[place : last + 1] - rows.start)
                yield TileBlock(rows, place, local, entries.indptr, entries.indices, entries.values)
                place = last

    def _has_room(self, n_entries: int, n_rows: int, n_cols: int, *, is_least: bool) -> bool:
        """Return whether a block has room; if not, a smaller one is to be tried.

        Raises
        ------
        DeviceMemoryError
            If there is no smaller one.
        """
        try:
            self._uploads.reserve(n_entries, n_rows, n_cols)
        except DeviceMemoryError:
            if is_least or self._most_entries == 1:
                raise
            self._most_entries = max(min(self._most_entries, n_entries) // 2, 1)
            return False
        return True

    # --- on the processor -------------------------------------------------------------------------------------

    @property
    def dtype(self) -> np.dtype:
        return self.host.dtype

    @property
    def is_weighted(self) -> bool:
        return self.host.is_weighted

    @cached_property
    def col_counts(self) -> np.ndarray:
        return self.host.col_counts

    @cached_property
    def row_weights(self) -> np.ndarray:
        return self.host.row_weights

    @cached_property
    def col_weights(self) -> np.ndarray:
        return self.host.col_weights

    @cached_property
    def mean_weight(self) -> float:
        return self.host.mean_weight

    @cached_property
    def norm(self) -> float:
        return self.host.norm

    @cached_property
    def value_range(self) -> tuple[float, float]:
        return self.host.value_range

    def row_sums(self, function: Callable[[np.ndarray], np.ndarray] | None = None) -> np.ndarray:
        return self.host.row_sums(function)

    def col_sums(self) -> np.ndarray:
        return self.host.col_sums()

    def cols_of(self, row: int) -> np.ndarray:
        return self.host.cols_of(row)

    def split(self, share: float, *, random_state: int = 0) -> tuple[RowBlocks, RowBlocks]:
        return self.host.split(share, random_state=random_state)

    def transposed(self) -> RowBlocks:
        return self.host.transposed()

    def shifted(self, offsets_at: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> RowBlocks:
        return self.host.shifted(offsets_at)
