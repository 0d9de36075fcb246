"""Tables of what is known about rows or columns, to numbers: the side information of ``complete``.

Flow: a file -> lines at the matrix's positions -> (n, n_features) float64 with NaN where nothing is known. A column of
words becomes one column of 0 and 1 for each word. Text is read here, all other formats by ``read_observations``: there
what is missing (or, in a sparse format, not stored) is not known. Not here: scaling (``solvers.side_information``).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastrfm.errors import InputError
from fastrfm.readers import file_kind, read_observations
from fastrfm.readers.layout import is_whole
from fastrfm.readers.matching import name_lookup
from fastrfm.readers.text import MISSING, Text, open_text, parse_number
from fastrfm.stored import StoredObservations

MOST_CATEGORIES = 50

Record = tuple[int, list[str]]


@dataclass(frozen=True, eq=False)
class Features:
    """What a file tells of the rows (or columns) of a matrix.

    Attributes
    ----------
    table : (n, n_features) float64
        NaN where it is not known.
    names : list of str
        Of the features: a column's, or ``column=word``.
    n_told : int
        Rows (or columns) that the file has a line for.
    n_unknown : int
        Lines about names that the matrix does not have; they are left out.
    by : str
        How lines were matched: "name", "position" or "order".
    """

    table: np.ndarray
    names: list[str]
    n_told: int
    n_unknown: int
    by: str


def read_features(
    path: Any, n: int, names: np.ndarray | None = None, *, axis: str = "row", ignore: Collection[str] = ()
) -> Features:
    """Return the features that a file holds of the rows (or columns) of a matrix.

    Parameters
    ----------
    path : str or path-like
        Text with a header, plain or gz; or any file of a matrix that ``read_observations`` reads, a line for each row
        (or column), with names or in order. In text column 1 is the name; where the matrix has none, column 1 is the
        zero-based position if it holds different ones, else lines come in order. Other columns are numbers, or words
        of at most 50 kinds; ``|`` divides several words of one line (blanks do under a header such as
        class:token_seq). What is blank, NA or the like is not known.
    n : int
        How many rows (or columns) the matrix has.
    names : (n,) array of str, optional
        Theirs.
    axis : {"row", "column"}
        For messages.
    ignore : collection of str
        Columns to leave out, of text.

    Raises
    ------
    MissingFileError, FileFormatError
        If the file is absent or cannot be read; for text the message names the line.
    InputError
        If no name is the matrix's, a name occurs twice, lines in order are not as many as `n`, a number is infinite,
        a column has too many kinds of words, or no column is left.
    """
    path = Path(path)
    if file_kind(path) == "text":
        return _read_text(open_text(path), n, names, axis, ignore)
    found = read_observations(path)
    if isinstance(found, StoredObservations):
        raise InputError(f"{path}: these features do not fit into memory: give fewer of them")
    rows, cols, values = found.to_coo()
    lines = np.full(found.shape, np.nan)
    lines[rows, cols] = values
    own = None if found.row_names is None else [str(name) for name in found.row_names]
    places, by = _places(path.name, own, len(lines), n, names, axis)
    titles = [f"feature {k}" for k in range(lines.shape[1])] if found.col_names is None else list(found.col_names)
    return _features(places, by, lines, titles, n)


# --- text ---------------------------------------------------------------------------------------------------------


def _read_text(text: Text, n: int, names: np.ndarray | None, axis: str, ignore: Collection[str]) -> Features:
    (line, header), *records = text.records()
    if all(parse_number(field) is not None for field in header):
        raise text.error(line, "expected a header, got numbers: name the columns in the first line")
    if not records:
        raise text.error(line, "there is a header but no line with data below it")
    for number, fields in records:
        if len(fields) != len(header):
            found = f"got {len(fields)} ({text.delimiter_name})"
            raise text.error(number, f"expected {len(header)} columns as in the header, {found}")
    first = [fields[0] for _, fields in records]
    is_name = names is not None or _are_positions(first, n)
    places, by = _places(text.name, first if is_name else None, len(records), n, names, axis)
    columns: list[np.ndarray] = []
    titles: list[str] = []
    for column in range(int(is_name), len(header)):
        title = header[column].split(":")[0]
        if title in ignore or header[column] in ignore:
            continue
        parts, words = _column(text, records, column, header[column])
        columns += parts
        titles += [f"{title}={word}" for word in words] if words else [title]
    if not columns:
        raise InputError(f"{text.name}: no column of features is left beside the names: give at least one")
    return _features(places, by, np.column_stack(columns), titles, n)


def _column(text: Text, records: list[Record], column: int, title: str) -> tuple[list[np.ndarray], list[str]]:
    """Return a column as numbers, or as one column of 0 and 1 for each word, and these words."""
    fields = [fields[column] for _, fields in records]
    numbers = [parse_number(field) for field in fields]
    if None not in numbers:
        values = np.array(numbers, dtype=np.float64)
        infinite = np.flatnonzero(np.isinf(values))
        if infinite.size:
            line = records[int(infinite[0])][0]
            raise text.error(line, f"column {column + 1} ({title}) is infinite: leave it blank if it is not known")
        return [values], []
    separator = None if title.endswith(":token_seq") else "|"
    words_of = [
        set() if field.lower() in MISSING else {word.strip() for word in field.split(separator)} for field in fields
    ]
    words = sorted(set().union(*words_of))
    if len(words) > MOST_CATEGORIES:
        raise InputError(
            f"{text.name}: column {column + 1} ({title}) has {len(words)} different words, at most {MOST_CATEGORIES} "
            "become features: leave the column out (--ignore-feature), or group its words"
        )
    unknown = np.array([np.nan if not found else 0.0 for found in words_of])
    return [np.where([word in found for found in words_of], 1.0, unknown) for word in words], words


# --- lines to positions -------------------------------------------------------------------------------------------


def _are_positions(labels: list[str], n: int) -> bool:
    """Return whether labels are different zero-based positions; n numbers of any other kind hardly ever are."""
    if not all(map(is_whole, labels)):
        return False
    positions = {int(label) for label in labels}
    return len(positions) == len(labels) and min(positions) >= 0 and max(positions) < n


def _places(
    file: str, own: list[str] | None, n_lines: int, n: int, names: np.ndarray | None, axis: str
) -> tuple[np.ndarray, str]:
    """Return the position of each line, (n_lines,) int64, -1 for names that are not the matrix's, and how it is known.

    `own` are the names of the lines, None if they have none.
    """
    if own is None or (names is None and not _are_positions(own, n)):
        if n_lines != n:
            raise InputError(
                f"{file}: has {n_lines} lines in order, the matrix {n} {axis}s: give a line for each, or names"
            )
        return np.arange(n), "order"
    if len(set(own)) < len(own):
        seen: set[str] = set()
        again = next(name for name in own if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InputError(f"{file}: {again!r} occurs twice: keep one line for each {axis}")
    if names is None:
        return np.array([int(label) for label in own], dtype=np.int64), "position"
    lookup = name_lookup(names, axis)
    places = np.array([lookup.get(name, -1) for name in own], dtype=np.int64)
    if (places < 0).all():
        raise InputError(
            f"{file}: none of its {len(own)} names, the first {own[0]!r}, is a {axis} of the matrix (there the first "
            f"is {str(names[0])!r}): names match as they are written"
        )
    return places, "name"


def _features(places: np.ndarray, by: str, lines: np.ndarray, titles: list[str], n: int) -> Features:
    is_known = places >= 0
    table = np.full((n, lines.shape[1]), np.nan)
    table[places[is_known]] = lines[is_known]
    return Features(table, titles, int(is_known.sum()), int((~is_known).sum()), by)
