"""Triples (row, column, value) in text, block by block, and whole to ``Observations``.

Fourth step for text. Blocks of plain numbers take the compiled parser where a file is large enough to pay for its
compilation; whatever is out of the ordinary (names, quotes, missing values, mistakes) takes the careful way, which
knows what to say of a bad record. Both give the same answer where both apply. ``conversion`` uses the same blocks for
files larger than memory.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import numpy as np

from fastrfm.errors import InputError
from fastrfm.observations import Observations
from fastrfm.readers.labels import AxisLabels, names_of
from fastrfm.readers.layout import is_triple_header, is_whole
from fastrfm.readers.stream import BLOCK_BYTES, TextStream
from fastrfm.readers.text import Text, parse_number, split_records

_LARGEST_POSITION = 100_000_000
_COMPILED_FROM = 1 << 22  # bytes: below, the careful way is done before the parser is compiled
_BATCH_RECORDS = 1 << 16
_N_TASKS = 16


@dataclass(frozen=True)
class TripleBlock:
    """Consecutive records: labels (both int64 arrays or both lists of str), float64 values and int64 line numbers."""

    rows: Any
    cols: Any
    values: np.ndarray
    lines: np.ndarray


def start_triples(stream: TextStream, notes: list[str]) -> None:
    """Make a stream ready for :func:`triple_blocks`: a header is left out, and told in `notes`."""
    start = [fields for _, fields in islice(stream.head.records(), 2)]
    if start and is_triple_header(start[0]):
        notes.append(f"line {stream.head.first_line} is a header: {', '.join(start[0])}")
        stream.skip_header()
        del start[0]
    if not start:
        raise stream.head.error(stream.head.first_line, "there is a header but no line with data below it")
    stream.n_columns = len(start[0])


def triple_blocks(stream: TextStream, indexed: bool, n_bytes: int = BLOCK_BYTES) -> Iterator[TripleBlock]:
    """Yield the records of a stream after :func:`start_triples`, in order.

    Raises
    ------
    FileFormatError
        If a record has too few columns or another number of them than the first, an empty label, or no number in
        column 3; with `indexed` also if a label is no zero-based position.
    InputError
        If a value is infinite or a position is 100 million or more.
    """
    n_columns, pieces = stream.n_columns, stream.blocks(n_bytes)
    is_large = max(stream.n_bytes, len(stream.raw)) >= _COMPILED_FROM
    for piece in pieces:
        if b'"' in piece.content:  # a quoted field may go on in the next block: no more blocks from here on
            lines = chain.from_iterable(map(Text.lines, chain([piece], pieces)))
            records = split_records(piece, lines, has_quotes=True)
        else:
            block = _read_numbers(piece, n_columns, indexed) if is_large else None
            if block is not None:
                yield block
                continue
            records = piece.records()
        while batch := list(islice(records, _BATCH_RECORDS)):
            yield _read_carefully(piece, batch, n_columns, indexed)


@dataclass(frozen=True, eq=False)
class Triples:
    """All triples of a file, in its order: those with a value.

    Attributes
    ----------
    rows, cols : (n,) int64
        Positions.
    values : (n,) float64
    is_there : (n_records,) bool
        Which records have a value.
    shape : (int, int)
    names : list of two
        Of rows and columns: list of str, or None.
    """

    rows: np.ndarray
    cols: np.ndarray
    values: np.ndarray
    is_there: np.ndarray
    shape: tuple[int, int]
    names: list[list[str] | None]


def read_triples(stream: TextStream, indexed: bool, notes: list[str]) -> Observations:
    """Return the observations of a file of triples.

    Parameters
    ----------
    stream : TextStream
        Three columns or more in every record; those after the third are not used.
    indexed : bool
        Labels are zero-based positions rather than names.
    notes : list of str
        What was found is added: a header, lines without value.

    Returns
    -------
    Observations
        A missing value is not observed, though its labels count.

    Raises
    ------
    FileFormatError, InputError
        As :func:`triple_blocks`; InputError also if a pair occurs twice or no value is there.
    """
    return observe_triples(stream, indexed, collect_triples(stream, indexed, notes))


def collect_triples(stream: TextStream, indexed: bool, notes: list[str]) -> Triples:
    """Return the triples of a file in its order; parameters and errors as of :func:`read_triples`."""
    start_triples(stream, notes)
    axes = AxisLabels(), AxisLabels()
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    shape = (0, 0)
    for block in triple_blocks(stream, indexed):
        rows, cols = encode_block(block, axes, indexed)
        shape = (max(shape[0], int(rows.max()) + 1), max(shape[1], int(cols.max()) + 1))
        is_there = ~np.isnan(block.values)
        parts.append((rows[is_there], cols[is_there], block.values[is_there], is_there))
    rows, cols, values, is_there = (np.concatenate(part) for part in zip(*parts, strict=True))
    names: list[list[str] | None] = [None, None]
    if not indexed:
        (row_map, row_names), (col_map, col_names) = axes[0].finish(), axes[1].finish()
        rows, cols, names = row_map[rows], col_map[cols], [names_of(row_names), names_of(col_names)]
    note_missing(notes, is_there.size - values.size)
    return Triples(rows, cols, values, is_there, shape, names)


def observe_triples(stream: TextStream, indexed: bool, triples: Triples) -> Observations:
    """Return the observations that triples of a file make; a pair that occurs twice is named with its lines."""
    rows, cols, names = triples.rows, triples.cols, triples.names
    try:
        return Observations.from_coo(rows, cols, triples.values, triples.shape, row_names=names[0], col_names=names[1])
    except InputError:
        if repeat := first_repeat(rows, cols):
            raise repeat_error(stream, indexed, repeat) from None
        raise


def encode_block(block: TripleBlock, axes: tuple[AxisLabels, AxisLabels], indexed: bool) -> tuple[Any, Any]:
    """Return the (n,) int64 codes of a block's rows and columns; with `indexed` these are the positions."""
    if indexed:
        return block.rows, block.cols
    return axes[0].encode(block.rows), axes[1].encode(block.cols)


def note_missing(notes: list[str], n_missing: int) -> None:
    """Add to `notes` how many lines had no value, if any."""
    if n_missing:
        notes.append(f"{n_missing} lines without a value were left out")


def first_repeat(rows: np.ndarray, cols: np.ndarray) -> tuple[int, int, int] | None:
    """Return the first entry whose pair occurred before, the entry where it did first, and how many repeat; or None."""
    order = np.lexsort((np.arange(rows.size), cols, rows))
    is_new = np.ones(rows.size, dtype=bool)
    is_new[1:] = (np.diff(rows[order]) != 0) | (np.diff(cols[order]) != 0)
    if is_new.all():
        return None
    again = np.flatnonzero(~is_new)
    where = again[np.argmin(order[again])]
    return int(order[where]), int(order[where - 1]), int(again.size)


def repeat_error(stream: TextStream, indexed: bool, repeat: tuple[int, int, int]) -> InputError:
    """Return, to be raised, the error that names the lines of what :func:`first_repeat` found.

    The file is read once more for it, so that nobody has to keep line numbers.
    """
    later, earlier, n_repeats = repeat
    found: dict[int, tuple[int, str, str]] = {}
    n_seen = 0
    for block in triple_blocks(stream, indexed):
        there = np.flatnonzero(~np.isnan(block.values))
        for entry in {earlier, later} - set(found):
            if entry < n_seen + there.size:
                place = int(there[entry - n_seen])
                found[entry] = int(block.lines[place]), str(block.rows[place]), str(block.cols[place])
        n_seen += there.size
        if len(found) == 2:
            break
    line, row, col = found[later]
    more = f" (and {n_repeats - 1} more such lines)" if n_repeats > 1 else ""
    return InputError(
        f"{stream.path.name}, lines {found[earlier][0]} and {line} both give row {row!r}, column {col!r}{more}: "
        "keep one value for each row and column"
    )


def _read_numbers(piece: Text, n_columns: int, indexed: bool) -> TripleBlock | None:
    """Return a block if it is as plain as blocks mostly are, else None."""
    content = piece.content
    if n_columns < 3 or not content.isascii():
        return None
    from fastrfm.kernels.parse_triples import BYTES_PER_RECORD, parse_triples

    if not content.endswith(b"\n"):
        content += b"\n"
    steps = (content.find(b"\n", len(content) * task // _N_TASKS) + 1 for task in range(1, _N_TASKS))
    bounds = np.array([0, *steps, len(content)], dtype=np.int64)
    size = len(content) // BYTES_PER_RECORD + 1
    rows, cols, lines = (np.empty(size, dtype=np.int64) for _ in range(3))
    values, places = np.empty(size), np.empty((size, 2), dtype=np.int64)
    counts = np.empty((_N_TASKS, 2), dtype=np.int64)
    separator = -1 if piece.delimiter is None else ord(piece.delimiter)
    raw = np.frombuffer(content, dtype=np.uint8)
    parse_triples(raw, bounds, separator, n_columns, rows, cols, values, places, lines, counts)
    if counts[:, 0].min() < 0 or not counts[:, 0].any():
        return None
    firsts = bounds[:-1] // BYTES_PER_RECORD
    spans = [slice(first, first + n) for first, n in zip(firsts.tolist(), counts[:, 0].tolist(), strict=True)]
    rows, cols, values, places = (np.concatenate([part[s] for s in spans]) for part in (rows, cols, values, places))
    before = piece.first_line + np.concatenate(([0], np.cumsum(counts[:-1, 1])))
    lines = np.concatenate([lines[span] + first for span, first in zip(spans, before.tolist(), strict=True)])
    if indexed and (min(rows.min(), cols.min()) < 0 or max(rows.max(), cols.max()) >= _LARGEST_POSITION):
        return None
    if not _read_other_values(content, places, values):
        return None
    return TripleBlock(rows, cols, values, lines)


def _read_other_values(content: bytes, places: np.ndarray, values: np.ndarray) -> bool:
    """Read the values that the parser left; return whether all are finite numbers or missing."""
    left = np.flatnonzero(places[:, 1])
    text = content.decode()
    starts, stops = places[left, 0].tolist(), places[left, 1].tolist()
    fields = [text[start:stop] for start, stop in zip(starts, stops, strict=True)]
    try:
        if "_" in text:  # Python's float takes 1_000 for a thousand
            raise ValueError
        numbers = array("d", map(float, fields))
    except ValueError:
        parsed = [parse_number(field.strip()) for field in fields]
        if None in parsed:
            return False
        numbers = array("d", parsed)  # type: ignore[arg-type]
    values[left] = numbers
    return not np.isinf(values[left]).any()


def _read_carefully(text: Text, batch: list[tuple[int, list[str]]], n_columns: int, indexed: bool) -> TripleBlock:
    """Return a block from records, or raise for the first that is wrong."""
    values, lines = array("d"), array("q")
    for line, fields in batch:
        if len(fields) != n_columns or n_columns < 3:
            wanted = f"{n_columns} columns as in the lines above" if n_columns >= 3 else "row, column and value"
            raise text.error(line, f"expected {wanted}, got {len(fields)} ({text.delimiter_name})")
        value = parse_number(fields[2])
        if value is None:
            hint = ": write decimals with a point" if "," in fields[2] else ""
            raise text.error(line, f"expected a number in column 3, got {fields[2]!r}{hint}")
        if value in (float("inf"), float("-inf")):
            raise InputError(
                f"{text.name}, line {line}: the value must be finite, got {fields[2]!r}: leave the line out"
            )
        if not fields[0] or not fields[1]:
            raise text.error(line, f"the label in column {1 if not fields[0] else 2} is empty: name the row and column")
        values.append(value)
        lines.append(line)
    rows, cols = ([fields[axis] for _, fields in batch] for axis in (0, 1))
    block = TripleBlock(rows, cols, np.array(values), np.array(lines))
    return _positions(text, block) if indexed else block


def _positions(text: Text, block: TripleBlock) -> TripleBlock:
    """Return a block with zero-based positions as int64 in place of labels, or raise for the first that is none."""
    for column, labels in enumerate((block.rows, block.cols), 1):
        for label, line in zip(labels, block.lines.tolist(), strict=True):
            if not is_whole(label) or label.startswith("-"):
                raise text.error(line, f"expected a zero-based position in column {column}, got {label!r}")
    rows, cols = (np.array([int(label) for label in labels], dtype=np.int64) for labels in (block.rows, block.cols))
    largest = max(int(rows.max()), int(cols.max()))
    if largest >= _LARGEST_POSITION:
        raise InputError(
            f"{text.name}: zero-based positions must stay below {_LARGEST_POSITION}, got {largest}: "
            "if these are identifiers, read them as names (leave indexed out)"
        )
    return replace(block, rows=rows, cols=cols)
