"""``fastrfm evaluate``: held-out error of the completion beside that of row-and-column means."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from fastrfm.cli import EXIT_NOT_CONVERGED
from fastrfm.cli.common import (
    complete_with_progress,
    count,
    echo_report,
    memory_option,
    options_in_words,
    read_matching,
    shape_in_words,
    share_in_words,
    solver_options,
    what_to_do,
)
from fastrfm.errors import InputError
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
@click.option(
    "--on",
    "held_file",
    type=click.Path(path_type=Path),
    metavar="HELD.h5",
    help="Measure on these entries of the same matrix (see split) in place of random splits. FILE is then fitted "
    "whole, or is a result.",
)
@click.option(
    "--observations",
    "kept_file",
    type=click.Path(path_type=Path),
    metavar="KEPT.h5",
    help="With --on, for a result: the observations that were completed, of which row-and-column means are taken.",
)
@memory_option
@click.option("--force", is_flag=True, help="Replace OUT.csv if it exists.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def command(
    file: Path,
    options: CompletionOptions,
    holdout: float,
    repeats: int,
    table_file: Path | None,
    held_file: Path | None,
    kept_file: Path | None,
    memory: int | None,
    force: bool,
    quiet: bool,
) -> None:
    """Measure the error on held-out entries over repeated random splits.

    Splits use the seeds --seed, --seed + 1, ... Beside each error stands that of row-and-column means fitted to the
    same entries: a completion that does not beat it has found no structure. Exit code 3: a split did not converge.

    With --on HELD.h5 nothing is drawn: FILE is a result, or is fitted, and its error on HELD.h5 is measured. Entries
    that were fitted, or on which options were chosen, are no test.
    """
    from fastrfm.atomic import check_output
    from fastrfm.readers import read_observations

    if table_file is not None:
        check_output(table_file, force=force, source=file)
    if held_file is not None:
        found = _on(file, held_file, kept_file, options, memory, quiet)
        if table_file is not None:
            _write(table_file, [found.row], force)
        echo_report(found.lines)
        _warn([found.row], "")
        return
    if kept_file is not None:
        raise click.UsageError("--observations goes with --on HELD.h5 and a result")
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
    _warn(rows, f" of {repeats} splits")


def _warn(rows: list[Row], of_how_many: str) -> None:
    """Say what fits that did not converge want, if any, and end with their exit code."""
    advice = [what for what in (what_to_do(str(row["stopped"])) for row in rows) if what]
    if advice:
        where = f" in {len(advice)}{of_how_many}" if of_how_many else ""
        click.echo(f"Not converged{where}: {'; '.join(sorted(set(advice)))}", err=True)
        click.get_current_context().exit(EXIT_NOT_CONVERGED)


# --- on entries that are given ------------------------------------------------------------------------------------

_NOT_WITH_ON = ("holdout", "repeats")
_OF_A_RESULT = ("file", "held_file", "kept_file", "table_file", "memory", "force", "quiet")


@dataclass(frozen=True)
class _Found:
    """A line of the table, and the report."""

    row: Row
    lines: list[tuple[str, Any]]


def _on(
    file: Path, held_file: Path, kept_file: Path | None, options: CompletionOptions, memory: int | None, quiet: bool
) -> _Found:
    from fastrfm.readers import read_observations
    from fastrfm.readers.matching import read_entries
    from fastrfm.store import is_result, read_result

    _refuse(lambda name: name in _NOT_WITH_ON, "draws nothing")
    row: Row = {"split": 1}
    if is_result(file):
        _refuse(lambda name: name not in _OF_A_RESULT, "takes a result as it is")
        result = read_result(file)
        held = read_entries(held_file, result, memory=memory)
        kept = None if kept_file is None else read_matching(kept_file, result)
    else:
        if kept_file is not None:
            raise click.UsageError("--observations goes with a result; FILE holds observations itself")
        kept = read_observations(file, memory=memory)
        options.check_shape(kept.shape)
        held = read_entries(held_file, kept, memory=memory)
        _check_disjoint(held_file, kept, held)
        result = complete_with_progress(kept, options, label="Completing", quiet=quiet)
        row["seed"] = options.random_state
    if kept_file is not None and kept is not None:
        _check_disjoint(held_file, kept, held)
    row |= _errors(kept, held, result)
    lines = [
        ("file", f"{file}, {shape_in_words(result.shape)}"),
        ("measured on", f"{held_file}, {held.n_observed} entries"),
        ("method", options_in_words(result)),
        ("RMSE", f"{row['rmse']:.6g}"),
        ("MAE", f"{row['mae']:.6g}"),
    ]
    if kept is None:
        return _Found(row, [*lines, ("error of means", "name the file completed with --observations")])
    is_new = (kept.row_counts == 0)[held.to_coo()[0]] | (kept.col_counts == 0)[held.indices]
    return _Found(
        row,
        [
            *lines,
            ("RMSE of row-and-column means", f"{row['rmse_of_means']:.6g}"),
            ("MAE of row-and-column means", f"{row['mae_of_means']:.6g}"),
            ("in rows or columns never seen", f"{is_new.sum()} of these entries"),
        ],
    )


def _refuse(is_unfitting: Callable[[str], bool], why: str) -> None:
    """Refuse options that were given on the command line though --on has no use for them."""
    context = click.get_current_context()
    for parameter in context.command.params:
        name = str(parameter.name)
        if is_unfitting(name) and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--on {why}: leave {parameter.opts[0]} out")


def _check_disjoint(path: Path, kept: RowBlocks, held: Observations) -> None:
    from fastrfm.observations import Observations
    from fastrfm.splits import united

    if not isinstance(kept, Observations):
        return  # in a file: too many to look at
    try:
        united(kept, held)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _errors(kept: RowBlocks | None, held_out: Observations, result: CompletionResult) -> Row:
    """Return the numbers of a line of the table; without `kept` those of means are left out."""
    from fastrfm.metrics import mae, rmse
    from fastrfm.solvers.offsets import fit_offsets

    rows, cols, values = held_out.to_coo()
    predicted = result.predict(rows, cols)
    errors: Row = {"rmse": rmse(predicted, values), "mae": mae(predicted, values)}
    if kept is not None:
        of_means = fit_offsets(kept).at(rows, cols)
        errors |= {"rmse_of_means": rmse(of_means, values), "mae_of_means": mae(of_means, values)}
    return {
        **errors,
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
