"""``fastrfm convert``: any readable file to HDF5, with a word on how it was understood."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fastrfm.cli.common import echo_report, memory_option, shape_in_words, share_in_words

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

_BAR_STEPS = 1000


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
@memory_option
@click.option("--force", is_flag=True, help="Replace DST.h5 if it exists.")
def command(source: Path, destination: Path, layout: str, indexed: bool, memory: int | None, force: bool) -> None:
    """Turn a file of observations into HDF5.

    SRC is csv, tsv or other text (MovieLens' u.data, ratings.csv and ratings.dat among them), .npy, .npz, Matrix
    Market, .h5ad or HDF5; all but HDF5 also as gz. In triples the labels of rows and columns become names. Triples in
    text, or in HDF5 as /rows, /cols and /values, may be larger than --memory and in any order; they need room on the
    disk beside DST.h5 meanwhile.
    """
    from fastrfm.conversion import convert

    bar: ProgressBar[int] = click.progressbar(
        length=_BAR_STEPS, label="Converting", file=sys.stderr, hidden=not sys.stderr.isatty()
    )
    with bar:
        done = convert(
            source,
            destination,
            layout=layout,
            indexed=indexed,
            force=force,
            memory=memory,
            progress=lambda share: bar.update(round(share * _BAR_STEPS) - bar.pos),
        )
        bar.update(_BAR_STEPS - bar.pos)
    named = " and ".join(side for side, is_named in zip(("rows", "columns"), done.named, strict=True) if is_named)
    echo_report(
        [
            ("read", f"{source} ({done.layout})"),
            *(("note", note) for note in done.notes),
            ("shape", shape_in_words(done.shape)),
            ("observed", share_in_words(done.n_observed, done.shape)),
            ("names", f"of {named}" if named else "none"),
            ("written", destination),
        ]
    )
