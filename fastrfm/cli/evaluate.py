"""``fastrfm evaluate``: held-out error of the completion beside that of row-and-column means."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

import click

from fastrfm.cli import EXIT_NOT_CONVERGED
from fastrfm.cli.common import (
    complete_with_progress,
    count,
    echo_report,
    memory_option,
    options_in_words,
    shape_in_words,
    share_in_words,
    solver_options,
    what_to_do,
)
from fastrfm.options import CompletionOptions

if TYPE_CHECKING:
    from fastrfm.blocks import RowBlocks
    from fastrfm.observations import Observations
    from fastrfm.results import CompletionResult

_COLUMNS = ("split", "seed", "rmse", "mae", "rmse_of_means", "mae_of_means", "rank", "iterations", "seconds", "stopped")
_TITLES = ("split", "RMSE", "MAE", "RMSE of means", "MAE of means", "rank", "iterations", "seconds")
_AVERAGED = ("rmse", "mae", "rmse_of_means", "mae_of_means", "rank", "iterations", "seconds")
_WIDTHS = (5, 11, 11, 14, 13, 6, 12, 9)

Row = dict[str, float | int | str]


@click.command("evaluate")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@solver_options
@click.option(
    "--holdout",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.1,
    show_default=True,
    metavar="SHARE",
    help="Share of the entries to leave out in each split.",
)
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Number of random splits.")
@click.option("--csv", "table_file", type=click.Path(path_type=Path), metavar="OUT.csv", help="Also write the table.")
@memory_option
@click.option("--force", is_flag=True, help="Replace OUT.csv if it exists.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def command(
    file: Path,
    options: CompletionOptions,
    holdout: float,
    repeats: int,
    table_file: Path | None,
    memory: int | None,
    force: bool,
    quiet: bool,
) -> None:
    """Measure the error on held-out entries over repeated random splits.

    Splits use the seeds --seed, --seed + 1, ... Beside each error stands that of row-and-column means fitted to the
    same entries: a completion that does not beat it has found no structure. Exit code 3: a split did not converge.
    """
    from fastrfm.atomic import check_output
    from fastrfm.readers import read_observations

    if table_file is not None:
        check_output(table_file, force=force, source=file)
    observations = read_observations(file, memory=memory)
    options.check_shape(observations.shape)
    rows: list[Row] = []
    all_seeded = [replace(options, random_state=options.random_state + split) for split in range(repeats)]
    for split, seeded in enumerate(all_seeded):
        kept, held_out = observations.split(holdout, random_state=seeded.random_state)
        result = complete_with_progress(kept, seeded, label=f"Split {split + 1} of {repeats}", quiet=quiet)
        rows.append({"split": split + 1, "seed": seeded.random_state, **_errors(kept, held_out, result)})
    if table_file is not None:
        _write(table_file, rows, force)
    echo_report(
        [
            ("file", f"{file}, {shape_in_words(observations.shape)}"),
            ("observed", share_in_words(observations.n_observed, observations.shape)),
            ("method", options_in_words(result)),
            ("held out", f"{held_out.n_observed} entries in each of {count(repeats, 'split')}"),
        ]
    )
    _echo_table(rows)
    advice = [what for what in (what_to_do(str(row["stopped"])) for row in rows) if what]
    if advice:
        click.echo(f"Not converged in {len(advice)} of {repeats} splits: {'; '.join(sorted(set(advice)))}", err=True)
        click.get_current_context().exit(EXIT_NOT_CONVERGED)


def _errors(kept: RowBlocks, held_out: Observations, result: CompletionResult) -> Row:
    from fastrfm.metrics import mae, rmse
    from fastrfm.solvers.offsets import fit_offsets

    rows, cols, values = held_out.to_coo()
    predicted = result.predict(rows, cols)
    of_means = fit_offsets(kept).at(rows, cols)
    return {
        "rmse": rmse(predicted, values),
        "mae": mae(predicted, values),
        "rmse_of_means": rmse(of_means, values),
        "mae_of_means": mae(of_means, values),
        "rank": result.rank,
        "iterations": result.n_iter,
        "seconds": result.seconds,
        "stopped": result.stop_reason,
    }


def _write(path: Path, rows: list[Row], force: bool) -> None:
    from fastrfm.atomic import writing

    with writing(path, force=force) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def _echo_table(rows: list[Row]) -> None:
    _echo_line(_TITLES)
    for row in rows:
        _echo_line((str(row["split"]), *(f"{row[name]:.4g}" for name in _AVERAGED)))
    columns = [[float(row[name]) for row in rows] for name in _AVERAGED]
    _echo_line(("mean", *(f"{fmean(column):.4g}" for column in columns)))
    if len(rows) > 1:
        _echo_line(("sd", *(f"{stdev(column):.2g}" for column in columns)))


def _echo_line(fields: tuple[str, ...]) -> None:
    click.echo("".join(f"{field:>{width}}" for field, width in zip(fields, _WIDTHS, strict=True)).rstrip())
