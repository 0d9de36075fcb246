"""``fastrfm split``: one file of observations to two that fit each other, divided at random, by time or by groups."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastrfm.cli import OUTCOME_KEY
from fastrfm.cli.common import (
    count,
    echo_report,
    memory_option,
    read_grouped,
    shape_in_words,
    share_in_words,
    text_with_columns,
)
from fastrfm.errors import FastrfmError, InputError

if TYPE_CHECKING:
    from fastrfm.blocks import RowBlocks
    from fastrfm.observations import Observations


@click.command("split")
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.argument("kept_file", metavar="KEPT.h5", type=click.Path(path_type=Path))
@click.argument("held_file", metavar="HELD.h5", type=click.Path(path_type=Path))
@click.option(
    "--share",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.1,
    show_default=True,
    help="Share of the entries that go to HELD.h5.",
)
@click.option(
    "--latest",
    "time_column",
    metavar="COLUMN",
    help="Hold the latest entries, by this column of times (numbers or dates): its name in the header, or its number.",
)
@click.option(
    "--group",
    "group_column",
    metavar="COLUMN|row|column",
    help="Hold whole groups, by this column of SRC; row and column: whole rows or columns of the matrix, of any SRC.",
)
@click.option(
    "--layout",
    type=click.Choice(("auto", "triples", "dense")),
    default="auto",
    show_default=True,
    help="What a line of text is, as of convert; with a column to divide by: triples.",
)
@click.option("--seed", "random_state", type=int, default=0, show_default=True, help="Seed of what is drawn.")
@memory_option
@click.option("--force", is_flag=True, help="Replace the outputs if they exist.")
@click.option("--quiet", is_flag=True, help="No report.")
def command(
    source: Path,
    kept_file: Path,
    held_file: Path,
    share: float,
    time_column: str | None,
    group_column: str | None,
    layout: str,
    random_state: int,
    memory: int | None,
    force: bool,
    quiet: bool,
) -> None:
    """Divide the entries in two: at random, by time or by group.

    SRC is anything that convert reads; for --latest and --group COLUMN it is text with row, column, value and further
    columns. Both outputs have the shape and the names of the whole matrix. Entries of one moment, or of one group,
    stay together; the division comes as near to --share as that allows. Then, for instance:

    \b
    fastrfm complete KEPT.h5 -o result.h5
    fastrfm evaluate result.h5 --on HELD.h5 --observations KEPT.h5
    fastrfm complete KEPT.h5 -o result.h5 --validation HELD.h5
    """
    from fastrfm.atomic import check_output
    from fastrfm.store import write_observations

    if time_column is not None and group_column is not None:
        raise click.UsageError("--latest and --group are two ways to divide: give one of them")
    for output in (kept_file, held_file):
        check_output(output, force=force, source=source)
    if kept_file.resolve() == held_file.resolve():
        raise click.UsageError(f"{held_file} is KEPT.h5 too: give the second part another name")
    notes: list[str] = []
    kept, held, words = _divide(source, share, time_column, group_column, layout, random_state, memory, notes)
    attributes = {"divided": f"{words} of {source.name}"}
    write_observations(kept_file, kept, force=force, attributes={**attributes, "part": "kept"})
    click.get_current_context().meta[OUTCOME_KEY] = lambda: f"{kept_file} is written, {held_file} is not"
    try:
        write_observations(held_file, held, force=force, attributes={**attributes, "part": "held"})
    except FastrfmError as error:
        raise type(error)(f"{error}; {kept_file} is written") from None
    if not quiet:
        _report(source, kept_file, held_file, kept, held, words, notes)


def _divide(
    source: Path,
    share: float,
    time_column: str | None,
    group_column: str | None,
    layout: str,
    random_state: int,
    memory: int | None,
    notes: list[str],
) -> tuple[RowBlocks, Observations, str]:
    """Return what is kept, what is held and the way of dividing in words."""
    from fastrfm.readers import read_with_notes
    from fastrfm.readers.columns import read_with_times
    from fastrfm.splits import split_by_group, split_by_time

    observations: Any
    if time_column is not None:
        observations, times = read_with_times(text_with_columns(source, "--latest"), time_column, notes)
        return *_of(source, split_by_time, observations, times, share), f"the latest by {time_column}"
    if group_column is not None:
        observations, groups, found = read_grouped(source, group_column, "--group", memory, layout)
        notes += found
        kept, held = _of(source, split_by_group, observations, groups, share, random_state=random_state)
        return kept, held, f"by whole groups of {group_column}"
    reading = read_with_notes(source, layout=layout, memory=memory)
    notes += reading.notes
    return *_of(source, reading.observations.split, share, random_state=random_state), "at random"


def _of(source: Path, divide: Any, *arguments: Any, **options: Any) -> Any:
    """Divide; put the file's name before what is wrong with its numbers."""
    try:
        return divide(*arguments, **options)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _report(
    source: Path, kept_file: Path, held_file: Path, kept: RowBlocks, held: Observations, words: str, notes: list[str]
) -> None:
    n = kept.n_observed + held.n_observed
    is_new_row = (held.row_counts > 0) & (kept.row_counts == 0)
    is_new_col = (held.col_counts > 0) & (kept.col_counts == 0)
    echo_report(
        [
            ("file", f"{source}, {shape_in_words(kept.shape)}"),
            *(("note", note) for note in notes),
            ("observed", share_in_words(n, kept.shape)),
            ("divided", words),
            ("kept", f"{kept_file}, {kept.n_observed} entries"),
            ("held", f"{held_file}, {held.n_observed} entries ({held.n_observed / n:.2%})"),
            ("held only", f"{count(int(is_new_row.sum()), 'row')}, {count(int(is_new_col.sum()), 'column')}"),
        ]
    )
