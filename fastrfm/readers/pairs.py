"""Files that ask for entries of a result: pairs of a row and a column, or rows alone, by name or by position.

Flow: a file larger than memory -> blocks of positions (and, of text, the fields that were read) -> ``predict`` and
``top``. Text comes from ``stream``, pairs in HDF5 from the datasets /rows and /cols. Not here: the predictions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import h5py
import numpy as np

from fastrfm._hdf5 import get_dataset
from fastrfm._interrupt import check
from fastrfm.errors import InputError
from fastrfm.readers.layout import is_whole
from fastrfm.readers.text import Text
from fastrfm.results import CompletionResult

AXES = ("row", "column")
BY = ("auto", "name", "index")
Record = tuple[int, list[str]]
Lookup = dict[str, int] | None

_RECORDS = 1 << 14  # of text at a time: some MB as Python's objects
_PAIRS = 1 << 18  # of HDF5 at a time


@dataclass(frozen=True, eq=False)
class TextQueries:
    """A text file of pairs (or rows), opened.

    Attributes
    ----------
    text : Text
    lookups : list of dict or None
        For rows and columns (or rows alone) where each name stands; None: the fields are zero-based positions.
    shape : tuple of int
        Of the matrix, as many sides as there are lookups.
    header : list of str, or None
    header_line : int
        Line number of the header, 0 if there is none.
    """

    text: Text
    lookups: list[Lookup]
    shape: tuple[int, ...]
    header: list[str] | None
    header_line: int

    def blocks(self) -> Iterator[tuple[list[list[str]], list[np.ndarray]]]:
        """Yield the fields of some thousand records and their positions on each axis, (n_records,) int64.

        Raises
        ------
        FileFormatError
            If a record has too few fields or another number than the first, or a field is no zero-based position.
        InputError
            If a name is unknown or a position out of range. Both name the line.
        """
        records = self.text.records()
        width = 0
        while block := list(islice(records, _RECORDS)):
            check()  # Ctrl-C
            width = width or len(block[0][1])
            self._check_widths(block, width)
            if self.header is not None and block[0][0] == self.header_line:
                block = block[1:]
            yield [fields for _, fields in block], [self._positions(block, axis) for axis in range(len(self.lookups))]

    def _check_widths(self, block: list[Record], width: int) -> None:
        text = self.text
        for line, fields in block:
            if len(fields) < len(self.lookups):
                found = f"got {len(fields)} field ({text.delimiter_name})"
                raise text.error(line, f"expected a row and a column, {found}")
            if len(fields) != width and len(self.lookups) > 1:
                raise text.error(line, f"expected {width} columns as in the lines above, got {len(fields)}")

    def _positions(self, records: list[Record], axis: int) -> np.ndarray:
        positions = np.empty(len(records), dtype=np.int64)
        lookup, size, where = self.lookups[axis], self.shape[axis], self.text.name
        for k, (line, fields) in enumerate(records):
            field = self._label(fields, axis)
            found: Any = None
            if lookup is not None:
                found = lookup.get(field)
                if found is None:
                    raise InputError(
                        f"{where}, line {line}: the result has no {AXES[axis]} named {field!r}: "
                        "names match as they are written"
                    )
            elif not is_whole(field):
                raise self.text.error(line, f"expected a zero-based {AXES[axis]} position, got {field!r}")
            elif not 0 <= (found := int(field)) < size:
                raise InputError(f"{where}, line {line}: {AXES[axis]} position {field} is outside 0…{size - 1}")
            positions[k] = found
        return positions

    def _label(self, fields: list[str], axis: int) -> str:
        return label(fields, axis, self.text, len(self.lookups))


def label(fields: list[str], axis: int, text: Text, n_axes: int) -> str:
    """Return the field of an axis; where a line is one name, blanks in it divide nothing."""
    return " ".join(fields) if n_axes == 1 and text.delimiter is None else fields[axis]


def name_lookups(result: CompletionResult, by: str, n_axes: int = 2) -> list[Lookup]:
    """Return for rows and columns where each name stands, or None where positions are asked for.

    Parameters
    ----------
    by : {"auto", "name", "index"}
        "auto" is by name where the result has names.

    Raises
    ------
    InputError
        If names are asked for and there are none, or if one occurs twice.
    """
    lookups: list[Lookup] = []
    for axis, names in zip(AXES[:n_axes], (result.row_names, result.col_names), strict=False):
        if by == "index" or (by == "auto" and names is None):
            lookups.append(None)
            continue
        if names is None:
            raise InputError(f"the result has no {axis} names: use --by index with zero-based positions")
        lookup = {name: position for position, name in enumerate(names)}
        if len(lookup) < len(names):
            raise InputError(f"{len(names) - len(lookup)} {axis} names occur twice in the result: use --by index")
        lookups.append(lookup)
    return lookups


def open_queries(text: Text, lookups: list[Lookup], shape: tuple[int, ...]) -> TextQueries:
    """Look for a header: a first record of which none of the fields that count is a whole number or a known name.

    Raises
    ------
    FileFormatError
        If there is such a header and nothing below it, or the first records lack a field.
    """
    first_two = list(islice(text.records(), 2))
    queries = TextQueries(text, lookups, shape, None, 0)
    queries._check_widths(first_two, len(first_two[0][1]) if first_two else 0)
    if not first_two:
        raise text.error(text.first_line, "there is no data")
    line, first = first_two[0]
    labels = [label(first, axis, text, len(lookups)) for axis in range(len(lookups))]
    if any(is_whole(field) or field in (lookup or ()) for field, lookup in zip(labels, lookups, strict=True)):
        return queries
    if len(first_two) == 1:
        what, said = ("pair to predict", "are") if len(lookups) > 1 else ("row to look at", "is")
        raise text.error(line, f"no {what}: {' and '.join(map(repr, labels))} {said} not in the result")
    return TextQueries(text, lookups, shape, first, line)


def hdf5_pairs(file: h5py.File, shape: tuple[int, int]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield start, rows and columns of blocks of the pairs in /rows and /cols, int64, checked.

    Raises
    ------
    FileFormatError
        If a dataset is missing, is not 1-D or not of whole numbers, or their lengths differ.
    InputError
        If there is no pair or a position lies outside the matrix, with its place.
    """
    rows = get_dataset(file, "rows", (None,), "iu")
    cols = get_dataset(file, "cols", rows.shape, "iu")
    if not rows.size:
        raise InputError("holds no pair: /rows is empty")
    for start in range(0, rows.size, _PAIRS):
        check()  # Ctrl-C
        parts = []
        for what, dataset, size in zip(AXES, (rows, cols), shape, strict=True):
            part = dataset[start : start + _PAIRS]
            outside = np.flatnonzero((part < 0) | (part >= size))
            if outside.size:
                raise InputError(
                    f"{dataset.name}[{start + outside[0]}]: {what} position {part[outside[0]]} is outside 0…{size - 1}"
                )
            parts.append(part.astype(np.int64))
        yield start, parts[0], parts[1]


def read_rows(text: Text, result: CompletionResult, by: str) -> tuple[np.ndarray, TextQueries]:
    """Return the positions of the rows that a text file lists in its first column, (n_wanted,) int64.

    Raises
    ------
    FileFormatError, InputError
        As :func:`name_lookups`, :func:`open_queries` and :meth:`TextQueries.blocks`.
    """
    queries = open_queries(text, name_lookups(result, by, 1), result.shape[:1])
    return np.concatenate([positions[0] for _, positions in queries.blocks()]), queries
