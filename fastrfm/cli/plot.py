"""``fastrfm plot``: a result in, a picture of how it came about and what it holds out."""

from __future__ import annotations

from pathlib import Path

import click

from fastrfm.cli.common import echo_report, read_matching
from fastrfm.options import PLOT_KINDS


@click.command("plot")
@click.argument("result_file", metavar="RESULT.h5", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="OUT.png|OUT.svg|OUT.pdf",
    help="Output file; its name says the format.",
)
@click.option(
    "--kind",
    type=click.Choice((*PLOT_KINDS, "all")),
    default="all",
    show_default=True,
    help="What to draw; all: whatever the result can give.",
)
@click.option(
    "--observations",
    "observations_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The observations that were completed; gaps are drawn from them.",
)
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
@click.option("--quiet", is_flag=True, help="No report.")
def command(
    result_file: Path, output: Path, kind: str, observations_file: Path | None, force: bool, quiet: bool
) -> None:
    """Draw how a result came about and what it holds.

    convergence: error, smoothing and rank against iterations. spectrum: singular values. selection: how the ridge was
    chosen. held-out: predictions against entries not fitted. gaps: the matrix before and after. Needs matplotlib:
    pip install 'fastrfm[plot]'.
    """
    from fastrfm.atomic import check_output
    from fastrfm.plots import draw, format_of, kinds_for, require_matplotlib, save_figure
    from fastrfm.store import read_result

    require_matplotlib()
    format_of(output)
    for source in (result_file, observations_file):
        check_output(output, force=force, source=source)
    result = read_result(result_file)
    observations = None if observations_file is None else read_matching(observations_file, result)
    save_figure(draw(result, kind, observations), output, force=force)
    if not quiet:
        drawn = kinds_for(result, observations) if kind == "all" else [kind]
        echo_report([("drawn", ", ".join(drawn)), ("written", output)])
