"""``fastrfm complete``: observations in, a completed matrix in factored form out, with a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastrfm.cli import EXIT_NOT_CONVERGED, ITERATION_KEY, OUTCOME_KEY
from fastrfm.cli.common import (
    complete_with_progress,
    count,
    echo_report,
    memory_option,
    options_in_words,
    selection_in_words,
    shape_in_words,
    share_in_words,
    solver_options,
    stop_in_words,
    what_to_do,
    write_dense_with_progress,
)
from fastrfm.cli.features import feature_options, read_side
from fastrfm.errors import FastrfmError, InputError
from fastrfm.options import DENSE_DTYPES, CompletionOptions

if TYPE_CHECKING:
    from fastrfm.blocks import RowBlocks
    from fastrfm.cli.features import FeatureFiles
    from fastrfm.observations import Observations
    from fastrfm.results import CompletionResult


@click.command("complete")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="RESULT.h5", help="Result file."
)
@solver_options
@click.option(
    "--holdout",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="SHARE",
    help="Leave out this share of the entries, at random, and report the error on them.",
)
@click.option(
    "--validation",
    "validation_file",
    type=click.Path(path_type=Path),
    metavar="HELD.h5",
    help="Choose the options that are auto on these entries of the same matrix, such as the latest ones (see split), "
    "in place of some drawn at random; all are fitted in the end.",
)
@feature_options
@click.option(
    "--start",
    type=click.Path(path_type=Path),
    metavar="EARLIER.h5",
    help="Go on from this result of the same shape: after new entries, or with another ridge. Two-sided only.",
)
@click.option(
    "--write-dense",
    type=click.Path(path_type=Path),
    metavar="DENSE.h5",
    help="Write the whole completed matrix as well, as fill does.",
)
@click.option(
    "--dense-dtype",
    type=click.Choice(DENSE_DTYPES),
    default="float64",
    show_default=True,
    help="Number type of DENSE.h5.",
)
@memory_option
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Keep the state of the run in this file, whole at any moment; removed when RESULT.h5 is written.",
)
@click.option(
    "--every", type=click.IntRange(min=1), default=10, show_default=True, metavar="N", help="Iterations between states."
)
@click.option("--resume", is_flag=True, help="Go on from the checkpoint, if it is there, of the same run.")
@click.option("--force", is_flag=True, help="Replace the outputs if they exist.")
@click.option("--quiet", is_flag=True, help="No progress bar and no report.")
def command(
    file: Path,
    output: Path,
    options: CompletionOptions,
    holdout: float | None,
    validation_file: Path | None,
    features: FeatureFiles,
    start: Path | None,
    write_dense: Path | None,
    dense_dtype: str,
    memory: int | None,
    checkpoint: Path | None,
    every: int,
    resume: bool,
    force: bool,
    quiet: bool,
) -> None:
    """Complete a matrix and write the result as HDF5.

    FILE is HDF5 or anything that convert reads. With --holdout the result is that of the entries that were kept.
    Exit code 3 says that the run ended before the tolerance was met; the result is written all the same. A run with
    --checkpoint that was killed is repeated with --resume, and ends with the same bits.
    """
    from fastrfm.atomic import check_output
    from fastrfm.readers import read_observations
    from fastrfm.store import read_result, write_result

    if validation_file is not None and (not options.is_automatic or start is not None):
        raise click.UsageError("--validation chooses --ridge auto and the rest: leave --ridge and --start out")
    if resume and checkpoint is None:
        raise click.UsageError("--resume needs --checkpoint: name the file that the earlier run kept its state in")
    check_output(output, force=force, source=file)
    if checkpoint is not None:
        check_output(checkpoint, force=True, source=file)
        click.get_current_context().meta[OUTCOME_KEY] = lambda: _left_at(checkpoint)
    if write_dense is not None:
        for other in (file, output):
            check_output(write_dense, force=force, source=other)
    observations = read_observations(file, memory=memory)
    options.check_shape(observations.shape)
    fitted, held_out = observations, None
    if holdout is not None:
        fitted, held_out = observations.split(holdout, random_state=options.random_state)
    validation, seen = _read_validation(validation_file, fitted, memory)
    side = read_side(features, observations)
    earlier = None if start is None else read_result(start)
    kept = {"checkpoint": checkpoint, "every": every, "resume": resume}
    more = {"start": earlier, "validation": validation, **side.arrays}
    result = complete_with_progress(fitted, options, label="Completing", quiet=quiet, **more, **kept)
    write_result(output, result, force=force)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    if not quiet:
        lines = [
            ("file", f"{file}, {shape_in_words(observations.shape)}"),
            ("observed", share_in_words(observations.n_observed, observations.shape)),
            *([("chosen on", f"{validation_file}, {validation.n_observed} entries")] if validation is not None else ()),
            *side.lines,
            *_fit_lines(result),
            *(_held_out_lines(seen, held_out, result) if held_out is not None else ()),
            ("time", f"{result.seconds:.3g} s"),
            ("result", f"{output}{'' if held_out is None else ', fitted without the held-out entries'}"),
        ]
        echo_report(lines)
    if write_dense is not None:
        _write_dense(write_dense, output, result, dtype=dense_dtype, force=force, quiet=quiet)
    advice = what_to_do(result.stop_reason)
    if advice:
        click.echo(f"Not converged: {advice}", err=True)
        click.get_current_context().exit(EXIT_NOT_CONVERGED)


def _read_validation(path: Path | None, fitted: RowBlocks, memory: int | None) -> tuple[Observations | None, RowBlocks]:
    """Return the entries to choose on, if any, and all that will be fitted."""
    from fastrfm.observations import Observations
    from fastrfm.readers.matching import read_entries
    from fastrfm.splits import united

    if path is None:
        return None, fitted
    if not isinstance(fitted, Observations):
        raise InputError(f"{path}: validation needs FILE in memory: raise --memory, or leave --validation out")
    validation = read_entries(path, fitted, memory=memory)
    try:
        return validation, united(fitted, validation)[0]
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _left_at(checkpoint: Path) -> str:
    if not checkpoint.exists():
        return "nothing was written"
    return f"no result was written, but the state of the run is in {checkpoint}: go on with --resume"


def _write_dense(path: Path, output: Path, result: CompletionResult, *, quiet: bool, **options: Any) -> None:
    """Write the matrix; the result is there by now, and what goes wrong says so."""
    meta = click.get_current_context().meta
    meta.pop(ITERATION_KEY, None)
    meta[OUTCOME_KEY] = lambda: f"{output} is written, {path} is not"
    try:
        write_dense_with_progress(path, result, quiet=quiet, **options)
    except FastrfmError as error:
        raise type(error)(f"{error}; {output} is written, make the matrix from it with `fastrfm fill`") from None
    if not quiet:
        echo_report([("completed matrix", f"{path}, {options['dtype']}")])


def _fit_lines(result: CompletionResult) -> list[tuple[str, Any]]:
    empty = f"{count(result.n_empty_rows, 'row')}, {count(result.n_empty_cols, 'column')}"
    return [
        ("fitted entries", result.n_observed),
        ("without observations", empty),
        ("method", options_in_words(result)),
        *selection_in_words(result),
        ("rank found", result.rank),
        ("iterations", result.n_iter),
        ("stopped", stop_in_words(result)),
        ("RMSE on fitted entries", f"{result.masked_rmse:.6g}"),
    ]


def _held_out_lines(fitted: RowBlocks, held_out: Observations, result: CompletionResult) -> list[tuple[str, Any]]:
    from fastrfm.metrics import rmse
    from fastrfm.solvers.offsets import fit_offsets

    rows, cols, values = held_out.to_coo()
    error = rmse(result.predict(rows, cols), values)
    error_of_means = rmse(fit_offsets(fitted).at(rows, cols), values)
    return [
        ("RMSE on held-out entries", f"{error:.6g} ({values.size} entries)"),
        ("the same of row-and-column means", f"{error_of_means:.6g}"),
    ]
