"""Triples (row, column, value) in text to ``Observations``.

Fourth step for text. Files of numbers take NumPy's own reader; whatever is out of the ordinary (names, quotes over
several lines, missing values, mistakes) takes the careful one, which knows the line of each record. Both give the
same answer where both apply.
"""

from __future__ import annotations

import re
import warnings
from array import array
from itertools import islice
from typing import Any

import numpy as np

from fastrfm.errors import InputError
from fastrfm.observations import Observations
from fastrfm.readers.layout import is_triple_header, is_whole
from fastrfm.readers.text import Text, parse_number

# Labels such as 007, +7 or -0 are names: NumPy's reader would take them for numbers and lose how they are written.
_ODD_NUMBER = re.compile(rb'(?:^|[\s,;"])(?:\+[0-9]|-?0[0-9]|-0(?![.0-9]))')
_LARGEST_LABEL = 10**18
_LARGEST_POSITION = 100_000_000


def read_triples(text: Text, indexed: bool, notes: list[str]) -> Observations:
    """Return the observations of a file of triples.

    Parameters
    ----------
    text : Text
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
    FileFormatError
        If a record has too few columns or another number of them than the first, an empty label, or no number in
        column 3; with `indexed` also if a label is no zero-based position.
    InputError
        If a value is infinite, a pair occurs twice, a position is 100 million or more, or no value is there.
    """
    first = next((fields for _, fields in text.records()), [])
    has_header = is_triple_header(first)
    if has_header:
        notes.append(f"line {text.first_line} is a header: {', '.join(first)}")
    labels = _read_numbers(text, len(first), has_header) or _read_carefully(text, has_header, indexed)[:3]
    rows, row_names = _positions(labels[0], indexed)
    cols, col_names = _positions(labels[1], indexed)
    if indexed:
        _check_positions(text, rows, cols)
    values = labels[2]
    shape = (int(rows.max()) + 1, int(cols.max()) + 1)
    is_there = ~np.isnan(values)
    if not is_there.all():
        notes.append(f"{values.size - int(is_there.sum())} lines without a value were left out")
        rows, cols, values = rows[is_there], cols[is_there], values[is_there]
    try:
        return Observations.from_coo(rows, cols, values, shape, row_names=row_names, col_names=col_names)
    except InputError:
        _raise_for_duplicate(text, has_header, indexed)
        raise


def _read_numbers(text: Text, n_columns: int, has_header: bool) -> tuple[Any, Any, Any] | None:
    """Return labels (int64) and values (float64) if the file is as plain as files mostly are, else None."""
    # ASCII alone: NumPy's parser of whole numbers looks wide characters up beyond its table: at best it crashes.
    if n_columns < 3 or not text.content.isascii() or _ODD_NUMBER.search(text.content):
        return None
    fields = [("row", "i8"), ("col", "i8"), ("value", "f8")]
    dtype = np.dtype(fields + [(f"unused_{k}", "U1") for k in range(n_columns - 3)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # older NumPy takes 1.0 for a whole number, with a warning: a name to us
        try:
            table = np.loadtxt(
                text.lines(),
                dtype,
                delimiter=text.delimiter,
                comments=None,
                skiprows=int(has_header),
                quotechar='"',
                ndmin=1,
            )
        except (ValueError, Warning):
            return None
    rows, cols = table["row"].copy(), table["col"].copy()
    values = table["value"].copy()
    largest = max(abs(int(extreme)) for axis in (rows, cols) for extreme in (axis.min(), axis.max()))
    smallest = min(int(rows.min()), int(cols.min()))
    if largest >= _LARGEST_LABEL or np.isinf(values).any() or smallest < 0:
        return None
    return rows, cols, values


def _read_carefully(text: Text, has_header: bool, indexed: bool) -> tuple[list[str], list[str], np.ndarray, array[int]]:
    """Return labels, values and line numbers of all records, or raise for the first that is wrong."""
    rows: list[str] = []
    cols: list[str] = []
    values, lines = array("d"), array("q")
    n_columns = 0
    for line, fields in islice(text.records(), int(has_header), None):
        n_columns = n_columns or len(fields)
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
        rows.append(fields[0])
        cols.append(fields[1])
        values.append(value)
        lines.append(line)
    if not lines:
        raise text.error(text.first_line, "there is a header but no line with data below it")
    if indexed:
        _check_whole(text, rows, cols, lines)
    return rows, cols, np.array(values), lines


def _check_whole(text: Text, rows: list[str], cols: list[str], lines: array[int]) -> None:
    for column, labels in enumerate((rows, cols), 1):
        for label, line in zip(labels, lines, strict=True):
            if not is_whole(label) or label.startswith("-"):
                raise text.error(line, f"expected a zero-based position in column {column}, got {label!r}")


def _check_positions(text: Text, rows: np.ndarray, cols: np.ndarray) -> None:
    largest = max(int(rows.max()), int(cols.max()))
    if largest >= _LARGEST_POSITION:
        raise InputError(
            f"{text.name}: zero-based positions must stay below {_LARGEST_POSITION}, got {largest}: "
            "if these are identifiers, read them as names (leave indexed out)"
        )


def _positions(labels: Any, indexed: bool) -> tuple[np.ndarray, list[str] | None]:
    """Return positions and names for the labels of one axis."""
    if not isinstance(labels, np.ndarray):
        if not indexed and not all(map(is_whole, labels)):
            codes: dict[str, int] = {}
            return np.array([codes.setdefault(label, len(codes)) for label in labels], dtype=np.int64), list(codes)
        labels = np.array([int(label) for label in labels], dtype=np.int64)
    if indexed:
        return labels, None
    numbers, positions = np.unique(labels, return_inverse=True)
    return positions, [str(number) for number in numbers.tolist()]


def _raise_for_duplicate(text: Text, has_header: bool, indexed: bool) -> None:
    """Raise InputError with both lines of the first pair that occurs twice; return if none does."""
    rows, cols, values, lines = _read_carefully(text, has_header, indexed)
    seen: dict[tuple[str, str], int] = {}
    first, n_repeated = "", 0
    for row, col, value, line in zip(rows, cols, values, lines, strict=True):
        if value != value:
            continue
        earlier = seen.setdefault((row, col), line)
        if earlier != line:
            n_repeated += 1
            first = first or f"lines {earlier} and {line} both give row {row!r}, column {col!r}"
    if n_repeated:
        more = f" (and {n_repeated - 1} more such lines)" if n_repeated > 1 else ""
        raise InputError(f"{text.name}, {first}{more}: keep one value for each row and column")
