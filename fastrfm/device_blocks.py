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

from fastrfm._cuda import compute_stream, copy_stream, empty, event, free_bytes, pinned, put
from fastrfm.blocks import Compressed, RowBlock, RowBlocks, TileBlock, runs
from fastrfm.device_arrays import DeviceArrays
from fastrfm.errors import DeviceMemoryError

_SHARE = 0.5  # of the device's free memory that entries may keep: the rest is for factors and work on them
_ENTRY_BYTES = 2 * 24  # by row and by column, each at most a float64, an int64 and a weight
_ALL = 1 << 62


@dataclass(frozen=True)
class DeviceCompressed(Compressed):
    """Entries of a block on the device; `pointers` is indptr on the processor."""

    pointers: np.ndarray = field(kw_only=True)

    @cached_property
    def bounds(self) -> Any:
        return self.indptr  # kernels there give each group a block: they do not look at bounds

    def bounds_by(self, cost: Callable[[np.ndarray], np.ndarray]) -> Any:
        return self.indptr

    def part(self, start: int, stop: int) -> DeviceCompressed:
        first, last = int(self.pointers[start]), int(self.pointers[stop])
        pointers = self.pointers[start : stop + 1] - first
        weights = self.weights[first:last] if self.weights.size else self.weights
        return DeviceCompressed(
            put(pointers), self.indices[first:last], self.values[first:last], weights, pointers=pointers
        )


class _Kept:
    """Copies that stay on the device."""

    def __call__(self, entries: Compressed) -> DeviceCompressed:
        parts = (put(part) for part in (entries.indptr, entries.indices, entries.values, entries.weights))
        return DeviceCompressed(*parts, pointers=entries.indptr)

    def reserve(self, n_entries: int, n_groups: int) -> None:
        """Need nothing beforehand."""


class _Streamed:
    """Copies in two slots that are used in turn: a copy is good until the next but one."""

    def __init__(self) -> None:
        self._slots: tuple[_Slot, ...] = ()
        self._n_uploads = 0

    def reserve(self, n_entries: int, n_groups: int) -> None:
        """Make room for blocks of that size.

        Raises
        ------
        DeviceMemoryError
            If the device has less; what there was is given up.
        """
        if self._slots and self._slots[0].holds(n_entries, n_groups):
            return
        compute_stream().synchronize()
        copy_stream().synchronize()
        self._slots = ()  # given back before new ones are asked for
        self._slots = (_Slot(n_entries, n_groups), _Slot(n_entries, n_groups))

    def __call__(self, entries: Compressed) -> DeviceCompressed:
        slot, other = self._slots[self._n_uploads % 2], self._slots[1 - self._n_uploads % 2]
        self._n_uploads += 1
        other.is_done.record(compute_stream())  # what reads the block before has been launched by now
        return slot.take(entries)


class _Slot:
    """Room for one block's entries, here in page-locked memory and on the device."""

    def __init__(self, n_entries: int, n_groups: int) -> None:
        sizes = (8 * (n_groups + 1), 8 * n_entries, 8 * n_entries, 8 * n_entries)
        self._n_entries, self._n_groups = n_entries, n_groups
        self._there = [empty(size, np.uint8) for size in sizes]
        self._here = [pinned(size, np.uint8) for size in sizes]
        self.is_copied, self.is_done = event(), event()

    def holds(self, n_entries: int, n_groups: int) -> bool:
        return n_entries <= self._n_entries and n_groups <= self._n_groups

    def take(self, entries: Compressed) -> DeviceCompressed:
        self.is_copied.synchronize()  # the copy before has left the page-locked memory
        self.is_done.wait(copy_stream())  # and its reader is through with it
        parts = []
        for here, there, part in zip(
            self._here, self._there, (entries.indptr, entries.indices, entries.values, entries.weights), strict=True
        ):
            staged = here[: part.nbytes].view(part.dtype)
            staged[:] = part
            target = there[: part.nbytes].view(part.dtype)
            target.copy_to_device(staged, stream=copy_stream())
            parts.append(target)
        self.is_copied.record(copy_stream())
        self.is_copied.wait(compute_stream())
        return DeviceCompressed(*parts, pointers=entries.indptr)


class DeviceBlock(RowBlock):
    """Rows ``start:stop``, whose entries are copied to the device when they are first asked for."""

    def __init__(self, block: RowBlock, upload: Callable[[Compressed], DeviceCompressed]) -> None:
        vars(self).update(start=block.start, stop=block.stop, n_cols=block.n_cols, _block=block, _upload=upload)

    @cached_property
    def by_row(self) -> DeviceCompressed:
        return self._upload(self._block.by_row)  # type: ignore[attr-defined,no-any-return]

    @cached_property
    def by_column(self) -> DeviceCompressed:
        return self._upload(self._block.by_column)  # type: ignore[attr-defined,no-any-return]


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
        self._is_kept = _ENTRY_BYTES * host.n_observed + 16 * sum(host.shape) <= budget
        self._upload: _Kept | _Streamed = _Kept() if self._is_kept else _Streamed()
        self._most_entries = _ALL if self._is_kept else max(int(budget / (2 * _ENTRY_BYTES)), 1)
        self._kept: dict[int, list[DeviceBlock]] = {}
        self._kept_tiles: list[TileBlock] = []

    # --- on the device ----------------------------------------------------------------------------------------

    @cached_property
    def arrays(self) -> DeviceArrays:
        return DeviceArrays()

    def row_blocks(self, align: int = 1) -> Iterator[RowBlock]:
        if not self._is_kept:
            for block in self.host.row_blocks(align):
                yield from self._streamed(block, align)
            return
        if align not in self._kept:
            self._kept[align] = [DeviceBlock(block, self._upload) for block in self.host.row_blocks(align)]
        yield from self._kept[align]

    def _streamed(self, block: RowBlock, align: int) -> Iterator[DeviceBlock]:
        start = block.start
        while start < block.stop:
            # Whatever fits is learnt once: later blocks, and later passes, begin with it.
            spans = runs(self.indptr[start : block.stop + 1], self._most_entries, align)
            stop = start + next(spans)[1]
            n_entries = int(self.indptr[stop] - self.indptr[start])
            try:
                self._upload.reserve(n_entries, max(stop - start, self.n_cols))
            except DeviceMemoryError:
                if stop - start <= align:
                    raise
                self._most_entries = max(n_entries // 2, 1)
                continue
            yield DeviceBlock(block.part(start, stop), self._upload)
            start = stop

    def tile_blocks(self, tiles: np.ndarray) -> Iterator[TileBlock]:
        if not self._kept_tiles:
            found = self._tile_blocks(tiles)
            if not self._is_kept:
                yield from found
                return
            self._kept_tiles = list(found)
        yield from self._kept_tiles

    def _tile_blocks(self, tiles: np.ndarray) -> Iterator[TileBlock]:
        place = 0  # blocks of the host hold whole tiles: so do theirs
        for block in self.host.tile_blocks(tiles):
            stop = place + block.tiles.size - 1
            while place < stop:
                spans = runs(self.indptr[tiles[place : stop + 1]], self._most_entries)
                last = place + next(spans)[1]
                rows = slice(int(tiles[place]), int(tiles[last]))
                n_entries = int(self.indptr[rows.stop] - self.indptr[rows.start])
                try:
                    self._upload.reserve(n_entries, rows.stop - rows.start)
                except DeviceMemoryError:
                    if last - place == 1:
                        raise
                    self._most_entries = max(n_entries // 2, 1)
                    continue
                whole = Compressed(block.indptr, block.indices, block.values)
                entries = self._upload(whole.part(rows.start - block.rows.start, rows.stop - block.rows.start))
                local = put(tiles[place : last + 1] - rows.start)
                yield TileBlock(rows, place, local, entries.indptr, entries.indices, entries.values)
                place = last

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
