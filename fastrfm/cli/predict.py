"""``fastrfm predict``: a result and a table of (row, column) pairs in, the table with predictions out."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastrfm.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from fastrfm.readers.text import Text
    from fastrfm.results import CompletionResult

    Record = tuple[int, list[str]]

_AXES = ("row", "column")


@click.command("predict")
@click.argument("result_file", metavar="RESULT", type=click.Path(path_type=Path))
@click.argument("pairs_file", metavar="PAIRS.csv", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="OUT.csv", help="Output file. [default: standard output]"
)
@click.option(
    "--by",
    type=click.Choice(("auto", "name", "index")),
    default="auto",
    show_default=True,
    help="What pairs say: names, zero-based positions, or names where the result has them.",
)
@click.option("--force", is_flag=True, help="Replace OUT.csv if it exists.")
def command(result_file: Path, pairs_file: Path, output: Path | None, by: str, force: bool) -> None:
    """Predict the values of row and column pairs from a result.

    PAIRS.csv has a row and a column in its first two columns; further columns are kept. The output is the same table
    with one more column, prediction; it has a header if PAIRS.csv has one.
    """
    from fastrfm.atomic import check_output, writing
    from fastrfm.readers.text import open_text
    from fastrfm.store import read_result

    if output is not None:
        for source in (result_file, pairs_file):
            check_output(output, force=force, source=source)
    result = read_result(result_file)
    text = open_text(pairs_file)
    lookups = _lookups(result, by)
    header, records = _split_header(text, lookups)
    rows, cols = (_positions(text, records, axis, lookups[axis], result.shape[axis]) for axis in (0, 1))
    values = result.predict(rows, cols).tolist()
    table = [[*fields, repr(value)] for (_, fields), value in zip(records, values, strict=True)]
    if header is not None:
        table.insert(0, [*header, "prediction"])
    delimiter = text.delimiter or " "
    if output is None:
        csv.writer(sys.stdout, delimiter=delimiter, lineterminator="\n").writerows(table)
        return
    with writing(output, force=force) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(table)


def _lookups(result: CompletionResult, by: str) -> list[dict[str, int] | None]:
    """Return for rows and columns where each name stands, or None where positions are asked for."""
    lookups: list[dict[str, int] | None] = []
    for axis, names in zip(_AXES, (result.row_names, result.col_names), strict=True):
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


def _split_header(text: Text, lookups: list[dict[str, int] | None]) -> tuple[list[str] | None, list[Record]]:
    """Return the header, or None, and the other records, each at least two fields wide.

    The first record is a header if neither of its first two fields is a whole number or a known name.
    """
    from fastrfm.readers.layout import is_whole

    records = list(text.records())
    for line, fields in records:
        if len(fields) < 2:
            raise text.error(line, f"expected a row and a column, got {len(fields)} field ({text.delimiter_name})")
        if len(fields) != len(records[0][1]):
            raise text.error(line, f"expected {len(records[0][1])} columns as in the lines above, got {len(fields)}")
    line, first = records[0]
    if any(is_whole(field) or field in (lookup or ()) for field, lookup in zip(first, lookups, strict=False)):
        return None, records
    if len(records) == 1:
        raise text.error(line, f"no pair to predict: {first[0]!r} and {first[1]!r} are not in the result")
    click.echo(f"{text.name}, line {line} was taken as a header: {', '.join(first)}", err=True)
    return first, records[1:]


def _positions(text: Text, records: list[Record], axis: int, lookup: dict[str, int] | None, size: int) -> np.ndarray:
    """Return (n_pairs,) int64 positions of one axis.

    Raises
    ------
    FileFormatError
        If a field is no zero-based position, with the line.
    InputError
        If a name is unknown or a position out of range, with the line.
    """
    import numpy as np

    from fastrfm.readers.layout import is_whole

    positions = np.empty(len(records), dtype=np.int64)
    for k, (line, fields) in enumerate(records):
        field = fields[axis]
        found: Any = None
        if lookup is not None:
            found = lookup.get(field)
            if found is None:
                raise InputError(
                    f"{text.name}, line {line}: the result has no {_AXES[axis]} named {field!r}: "
                    "names match as they are written"
                )
        elif not is_whole(field):
            raise text.error(line, f"expected a zero-based {_AXES[axis]} position, got {field!r}")
        elif not 0 <= (found := int(field)) < size:
            raise InputError(f"{text.name}, line {line}: {_AXES[axis]} position {field} is outside 0…{size - 1}")
        positions[k] = found
    return positions
