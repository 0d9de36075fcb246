"""``fastrfm top``: a result in, the columns with the largest estimates of each row out, block by block."""

from __future__ import annotations

from pathlib import Path

import click

from fastrfm.cli.common import count, echo_report, memory_option, read_matching, rows_bar


@click.command("top")
@click.argument("result_file", metavar="RESULT.h5", type=click.Path(path_type=Path))
@click.option(
    "-n", "--number", "n", type=click.IntRange(min=1), default=10, show_default=True, help="How many columns."
)
@click.option(
    "--rows",
    "rows_file",
    type=click.Path(path_type=Path),
    metavar="FILE|all",
    default="all",
    show_default=True,
    help="Rows to look at: a text file with one in each line.",
)
@click.option(
    "--by",
    type=click.Choice(("auto", "name", "index")),
    default="auto",
    show_default=True,
    help="What the lines say: names, zero-based positions, or names where the result has them.",
)
@click.option(
    "--exclude-observed",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Leave out the entries that this file of observations has.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="OUT.csv|OUT.h5",
    help="Output file: HDF5 if it is named .h5 or .hdf5, else csv.",
)
@memory_option
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
@click.option("--quiet", is_flag=True, help="No progress bar and no report.")
def command(
    result_file: Path,
    n: int,
    rows_file: Path,
    by: str,
    exclude_observed: Path | None,
    output: Path,
    memory: int | None,
    force: bool,
    quiet: bool,
) -> None:
    """Write the columns with the largest estimates of each row.

    Largest first, of equal ones the first column. A csv has the columns row, col, value and rank (from 1), with names
    where the result has them; HDF5 has /rows, /cols (-1 where no column is left) and /values.
    """
    from fastrfm.atomic import check_output
    from fastrfm.readers.pairs import read_rows
    from fastrfm.readers.stream import stream_text
    from fastrfm.store import read_result, write_top

    rows_given = None if str(rows_file) == "all" else rows_file
    for source in (result_file, rows_given, exclude_observed):
        check_output(output, force=force, source=source)
    result = read_result(result_file)
    rows = None
    if rows_given is not None:
        text = stream_text(rows_given)
        rows, queries = read_rows(text, result, by)
        if queries.header is not None and not quiet:
            header = ", ".join(queries.header)
            click.echo(f"{text.name}, line {queries.header_line} was taken as a header: {header}", err=True)
    exclude = None if exclude_observed is None else read_matching(exclude_observed, result)
    n_rows = result.shape[0] if rows is None else rows.size
    with rows_bar("Ranking", n_rows, quiet=quiet) as bar:
        write_top(
            output,
            result,
            n,
            rows=rows,
            exclude=exclude,
            memory=memory,
            force=force,
            progress=lambda done: bar.update(done - bar.pos),
        )
    if not quiet:
        left_out = "none" if exclude is None else f"{exclude.n_observed} observed"
        echo_report([("best of", count(n_rows, "row")), ("entries left out", left_out), ("written", output)])
