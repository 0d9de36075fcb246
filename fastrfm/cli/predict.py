"""``fastrfm predict``: a result and pairs of row and column in, the pairs with predictions out, block by block."""

from __future__ import annotations

import csv
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from fastrfm.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from fastrfm.outputs import Intervals
    from fastrfm.readers.pairs import TextQueries
    from fastrfm.results import CompletionResult

_HELD = 1 << 24  # characters for standard output that stay in memory


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
@click.option(
    "--interval",
    "coverage",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="COVERAGE",
    help="Add columns low and high: intervals that hold this share of the values, such as 0.9.",
)
@click.option("--force", is_flag=True, help="Replace OUT.csv if it exists.")
def command(
    result_file: Path, pairs_file: Path, output: Path | None, by: str, coverage: float | None, force: bool
) -> None:
    """Predict the values of row and column pairs from a result.

    PAIRS.csv (or .gz) has a row and a column in its first two columns; further columns are kept. The output is the
    same table with one more column, prediction; it has a header if PAIRS.csv has one. PAIRS may also be HDF5 with
    positions in /rows and /cols; an OUT.h5 then has them and /predictions. Both may be larger than memory.

    --interval adds low and high (/low and /high), from the errors on entries that were held out when the options of
    the result were chosen; it needs such a result.
    """
    from fastrfm.atomic import check_output, writing
    from fastrfm.outputs import is_hdf5_name
    from fastrfm.readers import file_kind
    from fastrfm.store import read_result

    if output is not None:
        for source in (result_file, pairs_file):
            check_output(output, force=force, source=source)
    result = read_result(result_file)
    intervals = None if coverage is None else _intervals(result_file, result, coverage)
    is_hdf5 = file_kind(pairs_file) == "hdf5"
    if is_hdf5 and by == "name":
        raise InputError(f"{pairs_file}: pairs in HDF5 are zero-based positions: use --by index")
    if output is not None and is_hdf5_name(output):
        if not is_hdf5:
            raise InputError(f"{output}: pairs in text give text: end the name in .csv, or give the pairs as HDF5")
        _predict_to_hdf5(result, pairs_file, output, intervals, force)
        return
    queries = None if is_hdf5 else _open(pairs_file, result, by)
    if output is None:
        # Nothing is shown until all is well, and what does not fit into memory waits on the disk.
        with tempfile.SpooledTemporaryFile(_HELD, "w+", encoding="utf-8", newline="") as held:
            _predict_to_text(result, pairs_file, queries, held, intervals)
            held.seek(0)
            shutil.copyfileobj(held, sys.stdout)
        return
    with writing(output, force=force) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        _predict_to_text(result, pairs_file, queries, file, intervals)


def _open(pairs_file: Path, result: CompletionResult, by: str) -> TextQueries:
    from fastrfm.readers.pairs import name_lookups, open_queries
    from fastrfm.readers.stream import stream_text

    text = stream_text(pairs_file)
    queries = open_queries(text, name_lookups(result, by), result.shape)
    if queries.header is not None:
        click.echo(
            f"{text.name}, line {queries.header_line} was taken as a header: {', '.join(queries.header)}", err=True
        )
    return queries


def _intervals(result_file: Path, result: CompletionResult, coverage: float) -> Intervals:
    """Return what gives the intervals at rows and columns; what is wrong shows before anything is written."""
    from fastrfm.uncertainty import calibrate, prediction_intervals

    try:
        calibration = calibrate(result)
        calibration.quantile(coverage)
    except InputError as error:
        raise InputError(f"{result_file}: {error}") from None
    return lambda rows, cols: prediction_intervals(result, rows, cols, coverage, calibration=calibration)


def _numbers(
    result: CompletionResult, intervals: Intervals | None, rows: np.ndarray, cols: np.ndarray
) -> Iterator[tuple[str, ...]]:
    """Yield the numbers to be written for each pair."""
    columns = (result.predict(rows, cols), *(() if intervals is None else intervals(rows, cols)))
    return zip(*(map(repr, column.tolist()) for column in columns), strict=True)


def _predict_to_text(
    result: CompletionResult,
    pairs_file: Path,
    queries: TextQueries | None,
    file: IO[str],
    intervals: Intervals | None,
) -> None:
    from fastrfm._hdf5 import reading
    from fastrfm.readers.pairs import hdf5_pairs

    delimiter = "," if queries is None else queries.text.delimiter or " "
    table = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    titles = ["prediction", *(() if intervals is None else ("low", "high"))]
    if queries is None:
        table.writerow(("row", "col", *titles))
        with reading(pairs_file) as pairs:
            for _, rows, cols in hdf5_pairs(pairs, result.shape):
                numbers = _numbers(result, intervals, rows, cols)
                table.writerows(
                    (i, j, *found) for i, j, found in zip(rows.tolist(), cols.tolist(), numbers, strict=True)
                )
        return
    if queries.header is not None:
        table.writerow([*queries.header, *titles])
    for block, (rows, cols) in queries.blocks():
        numbers = _numbers(result, intervals, rows, cols)
        table.writerows([*fields, *found] for fields, found in zip(block, numbers, strict=True))


def _predict_to_hdf5(
    result: CompletionResult, pairs_file: Path, output: Path, intervals: Intervals | None, force: bool
) -> None:
    from fastrfm._hdf5 import reading
    from fastrfm.outputs import write_predictions
    from fastrfm.readers.pairs import hdf5_pairs

    with reading(pairs_file) as pairs:
        n_pairs = pairs["rows"].size if "rows" in pairs else 0
        blocks = hdf5_pairs(pairs, result.shape)
        write_predictions(output, result, n_pairs, blocks, intervals=intervals, force=force)
