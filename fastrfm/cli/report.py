"""``fastrfm report``: a result in, one self-contained html page with tables and plots out."""

from __future__ import annotations

from pathlib import Path

import click

from fastrfm.cli.common import echo_report, read_matching


@click.command("report")
@click.argument("result_file", metavar="RESULT.h5", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="OUT.html", help="Output file.")
@click.option(
    "--observations",
    "observations_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The observations that were completed: adds the matrix before and after.",
)
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
@click.option("--quiet", is_flag=True, help="No report on the terminal.")
def command(result_file: Path, output: Path, observations_file: Path | None, force: bool, quiet: bool) -> None:
    """Write one html page about a result, with plots.

    The page says what was fitted, with which options, how well, and how the options were chosen. It holds its plots
    and refers to nothing outside. Needs matplotlib: pip install 'fastrfm[plot]'.
    """
    from fastrfm.atomic import check_output
    from fastrfm.plots import require_matplotlib
    from fastrfm.report import write_report
    from fastrfm.store import read_result

    require_matplotlib()
    for source in (result_file, observations_file):
        check_output(output, force=force, source=source)
    result = read_result(result_file)
    observations = None if observations_file is None else read_matching(observations_file, result)
    title = f"Completion: {result_file.name}"
    write_report(output, result, title=title, observations=observations, force=force)
    if not quiet:
        echo_report([("written", f"{output}, {output.stat().st_size} bytes")])
