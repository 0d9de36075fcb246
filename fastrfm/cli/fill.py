"""``fastrfm fill``: a result in, the whole completed matrix out, written block by block."""

from __future__ import annotations

from pathlib import Path

import click

from fastrfm.cli.common import echo_report, memory_option, read_matching, shape_in_words, write_dense_with_progress
from fastrfm.options import DENSE_DTYPES


@click.command("fill")
@click.argument("result_file", metavar="RESULT.h5", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="DENSE.h5", help="Output file.")
@click.option(
    "--dtype",
    type=click.Choice(DENSE_DTYPES),
    default="float64",
    show_default=True,
    help="Number type of the file: 7 digits of each value in 4 bytes, or all in 8.",
)
@memory_option
@click.option(
    "--keep-observed",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the values of this file of observations where it has any.",
)
@click.option("--force", is_flag=True, help="Replace DENSE.h5 if it exists.")
@click.option("--quiet", is_flag=True, help="No progress bar and no report.")
def command(
    result_file: Path,
    output: Path,
    dtype: str,
    memory: int | None,
    keep_observed: Path | None,
    force: bool,
    quiet: bool,
) -> None:
    """Write the whole completed matrix of a result.

    DENSE.h5 holds it as the 2-D dataset /completed, with the names of rows and columns. It may be larger than memory.
    """
    from fastrfm.atomic import check_output
    from fastrfm.store import read_result

    for source in (result_file, keep_observed):
        check_output(output, force=force, source=source)
    result = read_result(result_file)
    kept = None if keep_observed is None else read_matching(keep_observed, result)
    write_dense_with_progress(output, result, dtype=dtype, memory=memory, observations=kept, force=force, quiet=quiet)
    if not quiet:
        n_kept = 0 if kept is None else kept.n_observed
        echo_report(
            [
                ("matrix", f"{shape_in_words(result.shape)}, {dtype}"),
                ("observed values kept", n_kept if kept is not None else "none, all are estimates"),
                ("written", f"{output} ({output.stat().st_size} bytes)"),
            ]
        )
