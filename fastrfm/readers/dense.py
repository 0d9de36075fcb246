"""A dense matrix in text, one line for each row, to ``Observations``.

Fourth step for text, beside ``triples``. Missing entries are blank or one of the words in ``text.MISSING``. A header
and a first column of row names are recognised by the rules in ``_find_header`` and ``_has_row_names``.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from itertools import chain, islice

import numpy as np

from fastrfm.errors import InputError
from fastrfm.observations import Observations
from fastrfm.readers.text import Text, parse_number


def read_dense(text: Text, notes: list[str]) -> Observations:
    """Return the entries of a matrix in text that are not missing.

    Parameters
    ----------
    text : Text
        As many columns in every record; a header may lack the one above the row names.
    notes : list of str
        What was found is added: a header, row names.

    Raises
    ------
    FileFormatError
        If a record has another number of columns than the first, or a field is neither number nor missing.
    InputError
        If a value is infinite or all are missing.
    """
    records = text.records()
    start = list(islice(records, 2))
    if not start:
        raise text.error(text.first_line, "there is no data")
    header, names_follow = _find_header([fields for _, fields in start])
    if header is not None:
        notes.append(f"line {start[0][0]} is a header")
        del start[0]
        if not start:
            raise text.error(text.first_line, "there is a header but no line with data below it")
    first_fields, values, lines = _read_rows(text, chain(start, records))
    n_columns = len(start[0][1])
    body = np.array(values).reshape(len(lines), n_columns - 1)
    if n_columns > 1 and (names_follow or _has_row_names(first_fields)):
        notes.append("column 1 holds row names")
        row_names: list[str] | None = first_fields
        col_names = header if header is None or len(header) < n_columns else header[1:]
    else:
        first_column = [_number(text, line, 1, field) for line, field in zip(lines, first_fields, strict=True)]
        body = np.column_stack((first_column, body))
        row_names, col_names = None, header
    infinite = np.flatnonzero(np.isinf(body).any(axis=1))
    if infinite.size:
        column = int(np.isinf(body[infinite[0]]).argmax()) + 1 + (row_names is not None)
        line = lines[int(infinite[0])]
        raise InputError(
            f"{text.name}, line {line}: column {column} is infinite, values must be finite: leave it blank"
        )
    return Observations.from_dense(body, row_names=row_names, col_names=col_names)


def _find_header(start: list[list[str]]) -> tuple[list[str] | None, bool]:
    """Return the header, or None, and whether it tells that row names follow; `start` is the first two records.

    A first record is a header if it is one field shorter than the second (row names follow); if at least half of its
    fields, not counting the first unless it is alone, are neither numbers nor missing (row names follow if the first
    is empty); or if it is an empty field and 0, 1, 2, ... above a record that starts with 0 (row names follow).
    """
    first = start[0]
    if len(start) > 1 and len(first) == len(start[1]) - 1:
        return first, True
    rest = first[1:] or first
    n_words = sum(parse_number(field) is None for field in rest)
    if n_words and 2 * n_words >= len(rest):
        return first, not first[0]
    if len(start) > 1 and first == ["", *map(str, range(len(first) - 1))] and start[1][0] == "0":
        return first, True
    return None, False


def _has_row_names(first_fields: list[str]) -> bool:
    """Return whether column 1 holds names: its first field, or at least half of all, is neither number nor missing."""
    is_word = [parse_number(field) is None for field in first_fields]
    return is_word[0] or 2 * sum(is_word) >= len(is_word)


def _read_rows(text: Text, records: Iterator[tuple[int, list[str]]]) -> tuple[list[str], array[float], array[int]]:
    """Return the first fields, the numbers of all others row after row, and the line numbers."""
    first_fields: list[str] = []
    values, lines = array("d"), array("q")
    n_columns = 0
    # Python's float takes 1_000 for a thousand; only a file with such a mark needs the slower way throughout.
    is_plain = b"_" not in text.content
    for line, fields in records:
        n_columns = n_columns or len(fields)
        if len(fields) != n_columns:
            raise text.error(
                line, f"expected {n_columns} columns as in the lines above, got {len(fields)} ({text.delimiter_name})"
            )
        first_fields.append(fields[0])
        lines.append(line)
        try:
            if not is_plain:
                raise ValueError
            row = [float(field) for field in fields[1:]]
        except ValueError:
            row = [_number(text, line, column, field) for column, field in enumerate(fields[1:], 2)]
        values.extend(row)
    return first_fields, values, lines


def _number(text: Text, line: int, column: int, field: str) -> float:
    number = parse_number(field)
    if number is None:
        hint = ": write decimals with a point" if "," in field else ""
        raise text.error(line, f"expected a number or a missing value in column {column}, got {field!r}{hint}")
    return number
