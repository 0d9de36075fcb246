"""Triples that can be played back: text, which is spooled as codes while it is read, and HDF5, which is read twice.

Second part of ``conversion``. After ``scan`` a source knows shape, entries per row and names; ``replay`` then yields
positions and values in the order of the file, as often as asked. Not here: sorting and writing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fastrfm._interrupt import check
from fastrfm._layout import Triples
from fastrfm.blocks import value_dtype_for
from fastrfm.conversion.scratch import Spool
from fastrfm.errors import FileFormatError, InputError
from fastrfm.kernels.label_codes import count_codes
from fastrfm.readers.labels import AxisLabels
from fastrfm.readers.stream import BLOCK_BYTES, TextStream
from fastrfm.readers.triples import TripleBlock, note_missing, repeat_error, start_triples, triple_blocks

Progress = Callable[[float], None]
Block = tuple[np.ndarray, np.ndarray, np.ndarray]
_SMALLEST_BLOCK = 1 << 12  # bytes of text, or triples
_MOST_TRIPLES = 1 << 20
_ROWS_ALWAYS = 100_000_000
_BYTES_PER_ROW = 24  # entries, starts and bucket of each row are held in memory


class Source(Protocol):
    """What ``scan`` fills in: `row_counts` is (n_rows,) int64; names are arrays or lists, or None."""

    shape: tuple[int, int]
    n: int
    row_counts: np.ndarray
    row_names: Any
    col_names: Any
    value_dtype: np.dtype

    def scan(self, progress: Progress) -> None:
        """Read everything once; `progress` is told the share done."""

    def replay(self) -> Iterator[Block]:
        """Yield rows (int64), columns (int64) and values in the order of the file."""

    def close(self) -> None:
        """Give memory and files back."""

    def repeat_error(self, repeat: tuple[int, int, int]) -> InputError:
        """Return the error for a pair that occurs twice, see ``readers.triples.first_repeat``."""


class TextSource:
    """Triples of a text stream; labels and their codes stay in memory, triples in a spool."""

    value_dtype = np.dtype(np.float64)

    def __init__(self, stream: TextStream, indexed: bool, notes: list[str], folder: Path, memory: int) -> None:
        self._stream, self._indexed, self._notes = stream, indexed, notes
        self._block_bytes = min(max(memory // 64, _SMALLEST_BLOCK), BLOCK_BYTES)
        self._block_triples = min(max(memory // 256, _SMALLEST_BLOCK), _MOST_TRIPLES)
        self._spool = Spool(folder, (np.int32, np.int32, np.float64), memory // 4)
        self._maps: tuple[np.ndarray, np.ndarray] | None = None
        self.row_names: Any = None
        self.col_names: Any = None

    def scan(self, progress: Progress) -> None:
        """Read the text once."""
        start_triples(self._stream, self._notes)
        axes = AxisLabels(), AxisLabels()
        counts, shape, n_missing = np.zeros(1024, dtype=np.int64), [0, 0], 0
        with ThreadPoolExecutor(1) as other:
            for block in triple_blocks(self._stream, self._indexed, self._block_bytes):
                check()
                codes = self._encode(block, axes, other)
                shape = [max(size, int(axis.max()) + 1) for size, axis in zip(shape, codes, strict=True)]
                if max(shape) > 2**31:
                    raise InputError(f"{self._stream.path.name}: more than {2**31} different labels: split the file")
                values = block.values
                is_there = ~np.isnan(values)
                if not is_there.all():
                    n_missing += values.size - int(is_there.sum())
                    codes, values = (codes[0][is_there], codes[1][is_there]), values[is_there]
                if counts.size < shape[0]:
                    counts = np.concatenate((counts, np.zeros(2 * shape[0] - counts.size, dtype=np.int64)))
                count_codes(codes[0], counts)
                self._spool.append(*codes, values)
                progress(self._stream.position / max(self._stream.n_bytes, 1))
        note_missing(self._notes, n_missing)
        self.n, self.shape = self._spool.n, (shape[0], shape[1])
        self.row_counts = counts[: shape[0]]
        if not self._indexed:
            (row_map, self.row_names), (col_map, self.col_names) = axes[0].finish(), axes[1].finish()
            self._maps = row_map, col_map
            self.row_counts = np.empty_like(self.row_counts)
            self.row_counts[row_map] = counts[: shape[0]]

    def replay(self) -> Iterator[Block]:
        """Yield the spooled triples with final positions."""
        for rows, cols, values in self._spool.blocks(self._block_triples):
            if self._maps is None:
                yield rows.astype(np.int64), cols.astype(np.int64), values
            else:
                yield self._maps[0][rows], self._maps[1][cols], values

    def close(self) -> None:
        """Give the spool back."""
        self._spool.close()

    def repeat_error(self, repeat: tuple[int, int, int]) -> InputError:
        """Return the error with both lines."""
        return repeat_error(self._stream, self._indexed, repeat)

    def _encode(
        self, block: TripleBlock, axes: tuple[AxisLabels, AxisLabels], other: ThreadPoolExecutor
    ) -> tuple[np.ndarray, np.ndarray]:
        if self._indexed:
            return block.rows, block.cols
        if isinstance(block.rows, list):  # dicts hold the interpreter: a second thread would only wait
            return axes[0].encode(block.rows), axes[1].encode(block.cols)
        cols = other.submit(axes[1].encode, block.cols)
        return axes[0].encode(block.rows), cols.result()


class DatasetSource:
    """Triples of an open HDF5 file."""

    def __init__(self, triples: Triples, memory: int) -> None:
        self._triples, self._memory = triples, memory
        self._block_triples = min(max(memory // 256, _SMALLEST_BLOCK), _MOST_TRIPLES)
        self.n = int(triples.values.size)
        self.row_names, self.col_names = triples.row_names, triples.col_names
        self.value_dtype = value_dtype_for(triples.values.dtype)

    def scan(self, progress: Progress) -> None:
        """Read everything once, check it and count the entries of the rows."""
        shape = [0, 0] if self._triples.shape is None else list(self._triples.shape)
        self._check_size(shape[0])
        counts, n_seen = np.zeros(max(shape[0], 1024), dtype=np.int64), 0
        for rows, cols, values in self.replay():
            check()
            for k, (axis, positions) in enumerate((("row", rows), ("column", cols))):
                shape[k] = self._size_of(axis, positions, n_seen, shape[k])
            self._check_size(shape[0])
            if not np.isfinite(values).all():
                where = int(np.flatnonzero(~np.isfinite(values))[0])
                raise InputError(f"/values must be finite, got {values[where]} in entry {n_seen + where}: leave it out")
            if counts.size < shape[0]:
                counts = np.concatenate((counts, np.zeros(2 * shape[0] - counts.size, dtype=np.int64)))
            count_codes(rows, counts)
            n_seen += rows.size
            progress(n_seen / self.n)
        self.shape, self.row_counts = (shape[0], shape[1]), counts[: shape[0]]

    def replay(self) -> Iterator[Block]:
        """Yield what the datasets hold."""
        found = self._triples
        for start in range(0, self.n, self._block_triples):
            part = slice(start, start + self._block_triples)
            try:
                rows, cols, values = found.rows[part], found.cols[part], found.values[part]
            except (OSError, RuntimeError) as error:
                raise FileFormatError(f"damaged, part of it cannot be read ({error}): make it again") from error
            positions = rows.astype(np.int64, copy=False), cols.astype(np.int64, copy=False)
            yield *positions, values.astype(self.value_dtype, copy=False)

    def close(self) -> None:
        """Nothing is held."""

    def repeat_error(self, repeat: tuple[int, int, int]) -> InputError:
        """Return the error with both entries."""
        later, earlier, n_repeats = repeat
        row, col = int(self._triples.rows[later]), int(self._triples.cols[later])
        more = f" (and {n_repeats - 1} more such entries)" if n_repeats > 1 else ""
        return InputError(
            f"entries {earlier} and {later} both give row {row}, column {col}{more}: "
            "keep one value for each row and column"
        )

    def _size_of(self, axis: str, positions: np.ndarray, n_seen: int, size: int) -> int:
        """Return the size that an axis needs, or refuse a position outside the shape that was given."""
        smallest, largest = int(positions.min()), int(positions.max())
        is_given = self._triples.shape is not None
        if smallest < 0 or (is_given and largest >= size):
            wanted = f"between 0 and {size - 1}" if is_given else "0 or more"
            wrong = (positions < 0) | (positions >= size) if is_given else positions < 0
            where = int(np.flatnonzero(wrong)[0])
            raise InputError(f"{axis} number {int(positions[where])} (entry {n_seen + where}) must be {wanted}")
        return max(size, largest + 1)

    def _check_size(self, n_rows: int) -> None:
        if n_rows > max(_ROWS_ALWAYS, self._memory // _BYTES_PER_ROW):
            raise InputError(
                f"{n_rows} rows need {n_rows * _BYTES_PER_ROW} bytes of memory, got {self._memory}: "
                "number the rows from 0 without gaps, or allow more memory"
            )


def shares(progress: Progress, start: float, stop: float) -> Progress:
    """Return a progress of which 0…1 is `start`…`stop` of another."""
    return lambda share: progress(start + (stop - start) * min(share, 1.0))
