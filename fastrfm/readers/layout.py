"""Whether a text file holds triples (row, column, value) or a dense matrix: a fixed rule, no statistics.

Third step for text, used where the caller does not say. Reads the first thousand records only.
"""

from __future__ import annotations

import re
from itertools import islice

from fastrfm.readers.text import MISSING, Text, parse_number

LAYOUTS = ("auto", "triples", "dense")

_SAMPLE_RECORDS = 1000
_NOTE_TRIPLES = "lines were taken as (row, column, value): ask for the dense layout if they are rows of a matrix"
_NOTE_DENSE = "lines were taken as rows of a matrix: ask for the triples layout if they are (row, column, value)"
# No sign, no leading zero: 007 and +7 are names that must stay as they are written. 18 digits fit in int64.
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")


def is_whole(label: str) -> bool:
    """Return whether a label is a whole number written the usual way.

    Examples
    --------
    >>> is_whole("12"), is_whole("-3"), is_whole("007"), is_whole("1.0")
    (True, True, False, False)
    """
    return _WHOLE.fullmatch(label) is not None


def detect_layout(text: Text) -> tuple[str, str]:
    """Return "triples" or "dense", and a note where the other one is possible as well.

    Triples are taken if, over the first 1000 records, all of this holds: the first record after a header has 3 or 4
    columns; the header, if any, does not start with an empty field; at least half of the records look like triples,
    that is the third field is a number (or missing, if the second is text) and the first two are labels: text or
    whole numbers, neither missing nor written with a fraction. Everything else is dense. Half, so that a damaged line
    is reported as one.
    """
    records = [fields for _, fields in islice(text.records(), _SAMPLE_RECORDS)]
    has_header = bool(records) and is_triple_header(records[0])
    body = records[1:] if has_header else records
    if not body or len(body[0]) not in (3, 4):
        return "dense", ""
    if has_header and not records[0][0]:
        return "dense", _NOTE_DENSE
    if 2 * sum(map(_is_triple, body)) < len(body):
        return "dense", _NOTE_DENSE
    is_sure = has_header or parse_number(body[0][1]) is None  # a word in column 2 is no matrix entry
    return "triples", "" if is_sure else _NOTE_TRIPLES


def is_triple_header(fields: list[str]) -> bool:
    """Return whether the first record of a triple file is a header.

    It is if its third field is no number, unless the first two are both whole numbers: then it is bad data.
    """
    return len(fields) >= 3 and parse_number(fields[2]) is None and not (is_whole(fields[0]) and is_whole(fields[1]))


def _is_triple(fields: list[str]) -> bool:
    if len(fields) < 3 or parse_number(fields[2]) is None or not (_is_label(fields[0]) and _is_label(fields[1])):
        return False
    # A matrix has gaps in any column; triples seldom lack their value. A word in column 2 settles it for triples.
    return fields[2].lower() not in MISSING or parse_number(fields[1]) is None


def _is_label(field: str) -> bool:
    return field.isdigit() or is_whole(field) or parse_number(field) is None
