"""Complete many HDF5 matrices with the same options, several at a time, and keep a table of how each one went.

    python scripts/complete_many.py runs/*.h5 -o completed --ridge 3 --workers 4
    python scripts/complete_many.py study.h5::* -o completed --resume

One input, one result: the worker processes (``batch_workers``) read, complete and write, this process keeps the table.
A result stores beside its options what ``--resume`` compares: the input, its size and time, the hold-out share.
"""

from __future__ import annotations

import csv
import os
import warnings
from collections import Counter
from dataclasses import asdict, astuple, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from batch_plan import Job, Settings, check_outputs, find_jobs, make_folder, printable
from batch_workers import Stop, Workers

from fastrfm.atomic import writing
from fastrfm.cli import EXIT_FAILURE, EXIT_NOT_CONVERGED
from fastrfm.cli.common import count, solver_options, what_to_do
from fastrfm.errors import (
    FastrfmError,
    FileFormatError,
    InputError,
    MissingFileError,
    NotConvergedWarning,
    OutputExistsError,
)
from fastrfm.options import CompletionOptions

if TYPE_CHECKING:
    from fastrfm.results import CompletionResult


@dataclass(frozen=True)
class Outcome:
    """How one input went: a line of the table, but for `is_converged`. Of a skipped input, what its result says."""

    input: str
    output: str
    status: str
    shape: str = ""
    n_observed: int | None = None
    method: str = ""
    rank: int | None = None
    iterations: int | None = None
    masked_rmse: float | None = None
    holdout_rmse: float | None = None
    seconds: float | None = None
    message: str = ""
    is_converged: bool = True


COLUMNS = tuple(field.name for field in fields(Outcome))[:-1]


# --- in a worker --------------------------------------------------------------------------------------------------


def attempt(job: Job, settings: Settings) -> Outcome:
    """Return how a job went; whatever is wrong with its input or output becomes a failed outcome."""
    try:
        return failed(job, job.problem) if job.problem else complete_one(job, settings)
    except FastrfmError as error:
        return failed(job, str(error).removeprefix(f"{job.source}: "))
    except MemoryError as error:
        return failed(job, f"not enough memory ({error}): use fewer --workers, a smaller --rank or method factored")
    except Exception as error:  # the others go on
        return failed(job, f"unexpected {type(error).__name__}: {error}")


def failed(job: Job, message: str) -> Outcome:
    """Return the outcome of a job without a result."""
    output = "" if job.problem else printable(job.output)
    return Outcome(job.label, output, "failed", message=printable(" ".join(message.split())))


def complete_one(job: Job, settings: Settings) -> Outcome:
    """Read, complete and write one input, unless an earlier batch has done that."""
    from fastrfm._numba import available_threads
    from fastrfm.metrics import rmse
    from fastrfm.solvers.completion import complete
    from fastrfm.store import open_observations, write_result

    stored = provenance(job, settings)
    earlier = earlier_result(job, settings, stored) if settings.resume else None
    if earlier is not None:
        return _outcome(job, earlier, "skipped", "done before")
    fitted = observations = open_observations(job.source, dataset=job.dataset)
    settings.options.check_shape(observations.shape)
    held_out = None
    if settings.holdout is not None:
        fitted, held_out = observations.split(settings.holdout, random_state=settings.options.random_state)
    n_threads = settings.options.n_threads or max(1, available_threads() // settings.n_workers)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        result = complete(fitted, **asdict(replace(settings.options, n_threads=n_threads)))
    if held_out is not None:
        rows, cols, values = held_out.to_coo()
        stored["holdout_rmse"] = rmse(result.predict(rows, cols), values)
    result = replace(result, options={**result.options, **stored})
    write_result(job.output, result, force=settings.force or settings.resume)
    notes = {str(each.message) for each in seen if not issubclass(each.category, NotConvergedWarning)}
    return _outcome(job, result, "done", "; ".join(sorted(notes)))


def provenance(job: Job, settings: Settings) -> dict[str, Any]:
    """Return what a result stores beside the options that were used: ``method`` there is never "auto"."""
    try:
        about = os.stat(job.source)
    except FileNotFoundError:
        raise MissingFileError(f"{job.source}: no such file") from None
    # What is chosen, or what "auto" came to, is no guide to what was asked for.
    asked = {**settings.options.as_dict(), "bounds": str(settings.options.bounds)}
    return {
        **{f"requested_{name}": value for name, value in asked.items()},
        "holdout": settings.holdout,
        "holdout_rmse": None,
        "input": job.identity,
        "input_bytes": about.st_size,
        "input_mtime_ns": about.st_mtime_ns,
    }


def earlier_result(job: Job, settings: Settings, stored: dict[str, Any]) -> CompletionResult | None:
    """Return the whole result that an earlier batch made of the same input with the same options, or None.

    Raises
    ------
    OutputExistsError
        If, without force, the output is no result, or one of other options or another input.
    """
    from fastrfm.store import read_result

    if not job.output.exists():
        return None
    try:
        result = read_result(job.output)
    except (FileFormatError, InputError):
        if settings.force or not _is_other_file(job.output):
            return None  # damaged: made again
        raise OutputExistsError(f"{job.output}: holds no result: use --force to replace it") from None
    free = ("requested_n_threads", "holdout_rmse", "input_bytes", "input_mtime_ns")  # threads change no bit
    differences = [
        f"{name.removeprefix('requested_')} is {result.options.get(name, 'not recorded')} there, {value} is asked"
        for name, value in stored.items()
        if name not in free and result.options.get(name, "not recorded") != value
    ]
    if differences and not settings.force:
        raise OutputExistsError(
            f"{job.output} was made with other options: {'; '.join(differences)}: use --force to make it again, or "
            "another folder"
        )
    is_same_input = all(result.options.get(name) == stored[name] for name in ("input_bytes", "input_mtime_ns"))
    return result if is_same_input and not differences else None


def _is_other_file(path: Path) -> bool:
    """Return whether this is a readable HDF5 file without a result: not a result that was damaged."""
    from fastrfm._hdf5 import reading

    try:
        with reading(path) as file:
            return "result" not in file
    except FileFormatError:
        return False


def _outcome(job: Job, result: CompletionResult, status: str, message: str) -> Outcome:
    advice = what_to_do(result.stop_reason)
    if advice:
        status = "not converged" if status == "done" else status
        message = "; ".join(part for part in (message, f"not converged: {advice}") if part)
    return Outcome(
        input=job.label,
        output=printable(job.output),
        status=status,
        shape=f"{result.shape[0]}x{result.shape[1]}",
        n_observed=result.n_observed,
        method=result.options["method"],
        rank=result.rank,
        iterations=result.n_iter,
        masked_rmse=result.masked_rmse,
        holdout_rmse=result.options["holdout_rmse"],
        seconds=result.seconds,
        message=message,
        is_converged=not advice,
    )


# --- the batch ----------------------------------------------------------------------------------------------------


def run_batch(jobs: list[Job], settings: Settings, table: Path, quiet: bool) -> int:
    """Run all jobs, keep the table, report; return the exit code."""
    finished: dict[int, Outcome] = {}
    with Stop() as stop:
        try:
            write_table(table, finished)  # finds out at once if that is possible
            work = partial(attempt, settings=settings)
            with Workers(work, settings.n_workers, when_lost=failed, stop=stop) as workers:
                for position, outcome in workers.answers(jobs):
                    finished[position] = outcome
                    write_table(table, finished)
                    if not quiet:
                        click.echo(f"[{len(finished)}/{len(jobs)}] {_in_words(outcome)}", err=True)
        except KeyboardInterrupt as struck:
            write_table(table, finished)
            name = "SIGTERM" if str(struck) == "SIGTERM" else "Ctrl-C"
            click.echo(
                f"Stopped by {name}: {len(finished)} of {count(len(jobs), 'input')} finished, {table} lists them; "
                "go on with --resume",
                err=True,
            )
            return EXIT_FAILURE
    return report(list(finished.values()), table, quiet)


def write_table(path: Path, finished: dict[int, Outcome]) -> None:
    """Write the lines of the finished inputs, in the order of the inputs, in place of the table before."""
    with writing(path, force=True) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(COLUMNS)
        lines.writerows(astuple(finished[position])[:-1] for position in sorted(finished))


def check_header(path: Path) -> None:
    """Raise OutputExistsError if there is a file that is no table of an earlier batch."""
    if path.exists():
        with path.open(encoding="utf-8", errors="replace") as file:
            if file.readline() != f"{','.join(COLUMNS)}\n":
                raise OutputExistsError(f"{path}: exists and is no summary of a batch: give the summary another name")


def report(outcomes: list[Outcome], table: Path, quiet: bool) -> int:
    """Print how many went how, and every failure; return the exit code."""
    failures = [outcome for outcome in outcomes if outcome.status == "failed"]
    if not quiet:
        counts = Counter(outcome.status for outcome in outcomes)
        click.echo(f"{', '.join(f'{number} {status}' for status, number in counts.items())}; summary: {table}")
    if failures:
        click.echo(f"{len(failures)} of {count(len(outcomes), 'input')} failed:", err=True)
        for outcome in failures:
            click.echo(f"  {outcome.input}: {outcome.message}", err=True)
        return EXIT_FAILURE
    return 0 if all(outcome.is_converged for outcome in outcomes) else EXIT_NOT_CONVERGED


def _in_words(outcome: Outcome) -> str:
    if outcome.status == "failed":
        return f"failed: {outcome.input}: {outcome.message}"
    error = f", held-out RMSE {outcome.holdout_rmse:.4g}" if outcome.holdout_rmse is not None else ""
    return (
        f"{outcome.status}: {outcome.input}: {outcome.method}, rank {outcome.rank}, "
        f"{count(outcome.iterations or 0, 'iteration')}, RMSE {outcome.masked_rmse:.4g}{error}, {outcome.seconds:.3g} s"
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    "outdir",
    type=click.Path(path_type=Path),
    required=True,
    metavar="OUTDIR",
    help="Results' folder.",
)
@solver_options
@click.option(
    "--holdout",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="SHARE",
    help="Leave out this share of the entries of each input, at random, and tabulate the error on them.",
)
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Inputs at the same time.")
@click.option(
    "--summary", type=click.Path(path_type=Path), metavar="FILE.csv", help="The table. [default: OUTDIR/summary.csv]"
)
@click.option("--resume", is_flag=True, help="Skip inputs whose result is there, whole and made with these options.")
@click.option("--force", is_flag=True, help="Replace results (with --resume: only those of other options).")
@click.option("--quiet", is_flag=True, help="Print failures only.")
def main(
    inputs: tuple[str, ...],
    outdir: Path,
    options: CompletionOptions,
    holdout: float | None,
    workers: int,
    summary: Path | None,
    resume: bool,
    force: bool,
    quiet: bool,
) -> None:
    """Complete many HDF5 matrices with the same options.

    INPUT is a file, a folder (its *.h5), a pattern, FILE.h5::/name/inside, or FILE.h5::* for every 2-D dataset of
    numbers and every csr_matrix in it. The result of runs/a.h5 is OUTDIR/a.h5, that of a.h5::/x/y OUTDIR/a--x--y.h5.
    The cores are shared out among the workers, unless --threads says how many each one has. Exit codes: 0 done,
    1 something failed (the others are done), 2 wrong usage, 3 nothing failed but something did not converge.
    """
    try:
        jobs = find_jobs(inputs, outdir)
        make_folder(outdir)
        settings = Settings(options, holdout, resume, force, min(workers, len(jobs)))
        table = summary if summary is not None else outdir / "summary.csv"
        check_outputs(jobs, table, settings)
        if resume and not force:
            check_header(table)
        code = run_batch(jobs, settings, table, quiet)
    except (FastrfmError, OSError) as error:
        raise click.ClickException(str(error)) from None
    click.get_current_context().exit(code)


if __name__ == "__main__":
    main()
