"""``fastrfm convert``: any readable file to HDF5, with a word on how it was understood."""

from __future__ import annotations

from pathlib import Path

import click

from fastrfm.cli.common import echo_report, shape_in_words, share_in_words


@click.command("convert")
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.argument("destination", metavar="DST.h5", type=click.Path(path_type=Path))
@click.option(
    "--layout",
    type=click.Choice(("auto", "triples", "dense")),
    default="auto",
    show_default=True,
    help="What a line of text is: (row, column, value) or a row of the matrix.",
)
@click.option("--indexed", is_flag=True, help="Rows and columns of triples are zero-based positions, not names.")
@click.option("--force", is_flag=True, help="Replace DST.h5 if it exists.")
def command(source: Path, destination: Path, layout: str, indexed: bool, force: bool) -> None:
    """Turn a file of observations into HDF5.

    SRC is csv, tsv or other text (MovieLens' u.data, ratings.csv and ratings.dat among them), .npy, .npz, Matrix
    Market, .h5ad or HDF5; all but HDF5 also as gz. In triples the labels of rows and columns become names.
    """
    from fastrfm.atomic import check_output
    from fastrfm.readers import read_with_notes
    from fastrfm.store import write_observations

    check_output(destination, force=force, source=source)
    reading = read_with_notes(source, layout=layout, indexed=indexed)
    observations = reading.observations
    write_observations(destination, observations, force=force)
    sides = (("rows", observations.row_names), ("columns", observations.col_names))
    named = " and ".join(side for side, names in sides if names is not None)
    echo_report(
        [
            ("read", f"{source} ({reading.layout})"),
            *(("note", note) for note in reading.notes),
            ("shape", shape_in_words(observations.shape)),
            ("observed", share_in_words(observations.n_observed, observations.shape)),
            ("names", f"of {named}" if named else "none"),
            ("written", destination),
        ]
    )
