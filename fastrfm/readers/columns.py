"""Triples in text with one column more: the time or the group of each line, for dividing them.

Beside ``triples``, which drops what comes after the value. A column goes by its name in the header or by its number,
from 1. The file is read twice, so that the first pass stays the fast one. Not here: the division (``splits``).
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from fastrfm.errors import InputError
from fastrfm.observations import Observations
from fastrfm.readers.stream import open_stream, stream_text
from fastrfm.readers.text import MISSING, Text, parse_number
from fastrfm.readers.triples import collect_triples, observe_triples

Labelled = tuple[np.ndarray, np.ndarray, np.ndarray]


def read_with_times(path: Path, column: str, notes: list[str]) -> tuple[Observations, Labelled]:
    """Return the observations of a text file of triples and, for ``split_by_time``, (rows, cols, times).

    Parameters
    ----------
    path : pathlib.Path
    column : str
        The column of times: numbers, or dates as ISO 8601 writes them (2024-03-05, 2024-03-05T12:30, UTC if no zone is
        given); all of one kind. Its name in the header, with or without the type after a colon (timestamp:float), or
        its number from 1.
    notes : list of str
        What was found is added.

    Raises
    ------
    FileFormatError
        As ``read_triples``; also if a line has no time, or one of another kind than the first.
    InputError
        As ``read_triples``; also if there is no such column.
    """
    return _read_with(path, column, notes, _times)


def read_with_groups(path: Path, column: str, notes: list[str]) -> tuple[Observations, Labelled]:
    """Return the observations and, for ``split_by_group``, (rows, cols, labels); otherwise :func:`read_with_times`."""
    return _read_with(path, column, notes, _labels)


def _read_with(path: Path, column: str, notes: list[str], parse: Any) -> tuple[Observations, Labelled]:
    stream = open_stream(path)
    header = next(stream.head.records())[1]
    triples = collect_triples(stream, False, notes)
    has_header = stream.first_line > stream.head.first_line
    position = _position(path.name, column, header, has_header)
    text = stream_text(path)
    lines, fields = [], []
    records = text.records()
    if has_header:
        next(records)
    for is_there, (line, record) in zip(triples.is_there.tolist(), records, strict=True):
        if is_there:
            lines.append(line)
            fields.append(record[position])
    observations = observe_triples(stream, False, triples)
    return observations, (triples.rows, triples.cols, parse(text, position + 1, lines, fields))


def _position(name: str, column: str, header: list[str], has_header: bool) -> int:
    """Return the place of a column among the fields of a line."""
    if has_header:
        for names in (header, [field.split(":")[0] for field in header]):
            if names.count(column) > 1:
                raise InputError(
                    f"{name}: {names.count(column)} columns are named {column!r}: give the column's number"
                )
            if column in names:
                return names.index(column)
    if column.isdecimal() and 1 <= int(column) <= len(header):
        return int(column) - 1
    known = f"its columns are {', '.join(header)}" if has_header else f"it has no header and {len(header)} columns"
    raise InputError(f"{name}: there is no column {column!r}, {known}: give a name in the header or a number from 1")


def _labels(text: Text, column: int, lines: list[int], fields: list[str]) -> np.ndarray:
    for line, field in zip(lines, fields, strict=True):
        if field.lower() in MISSING:
            raise text.error(line, f"the group in column {column} is missing: give each line one")
    return np.array(fields, dtype=object)


def _times(text: Text, column: int, lines: list[int], fields: list[str]) -> np.ndarray:
    parse = _as_number if fields and parse_number(fields[0]) is not None else _as_date
    times = np.empty(len(fields))
    for k, (line, field) in enumerate(zip(lines, fields, strict=True)):
        time = None if field.lower() in MISSING else parse(field)
        if time is None:
            kind = "number" if parse is _as_number else "date such as 2024-03-05 or 2024-03-05T12:30"
            raise text.error(line, f"expected a time in column {column}, a {kind}, got {field!r}")
        times[k] = time
    return times


def _as_number(field: str) -> float | None:
    number = parse_number(field)
    return number if number is not None and np.isfinite(number) else None


def _as_date(field: str) -> float | None:
    """Return a date as seconds since 1970."""
    try:
        moment = datetime.fromisoformat(field)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
