"""What the subcommands share: solver options, a progress bar, aligned report lines.

Defaults and choices come from ``CompletionOptions``; nothing heavy is imported before a subcommand runs.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from fastrfm.cli import ITERATION_KEY
from fastrfm.errors import InputError, NotConvergedWarning
from fastrfm.options import AUTO, DEVICES, EXACT_TOL, JOINT, METHODS, NOISY_TOL, SMOOTHING_RULES, CompletionOptions
from fastrfm.words import count as count  # part of this module's face
from fastrfm.words import shape_in_words as shape_in_words
from fastrfm.words import share_in_words as share_in_words
from fastrfm.words import stop_in_words as stop_in_words

if TYPE_CHECKING:
    from pathlib import Path

    from click._termui_impl import ProgressBar

    from fastrfm.blocks import RowBlocks
    from fastrfm.observations import Observations
    from fastrfm.results import CompletionResult
    from fastrfm.solvers.monitor import Iteration
    from fastrfm.stored import StoredObservations

_DEFAULT = CompletionOptions()
_BAR_STEPS = 1000


class RuleOrNumber(click.ParamType[str | float]):
    """A smoothing rule by name, or a number; what is out of range is left to ``CompletionOptions``."""

    name = "rule or number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | float:
        try:
            return float(value)
        except ValueError:
            return str(value)


class NumberOrAuto(click.ParamType[str | float]):
    """``auto`` or a number."""

    name = "number or auto"

    def __init__(self, number: type = float) -> None:
        self.number = number

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | float:
        if value == AUTO:
            return AUTO
        try:
            return self.number(value)  # type: ignore[no-any-return]
        except ValueError:
            self.fail(f"{value!r} is neither auto nor a number", param, ctx)


class Bounds(click.ParamType[Any]):
    """``auto``, ``none`` or two numbers with a comma between them."""

    name = "bounds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in (AUTO, "none"):
            return AUTO if value == AUTO else None
        try:
            low, high = (float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is neither auto, none nor two numbers such as 1,5", param, ctx)
        return low, high


class MemorySize(click.ParamType[int]):
    """A size such as 512M or 2G, in bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from fastrfm._memory import parse_memory

        try:
            return value if isinstance(value, int) else parse_memory(value)
        except InputError as error:
            self.fail(str(error), param, ctx)


memory_option = click.option(
    "--memory",
    type=MemorySize(),
    help="About the most memory to use, such as 512M or 2G. [default: a quarter of what is free]",
)

_SOLVER_OPTIONS = (
    click.option("--method", type=click.Choice(METHODS), default=_DEFAULT.method, show_default=True, help="Algorithm."),
    click.option("--rank", type=int, default=_DEFAULT.rank, help="Largest rank. [default: the data decide]"),
    click.option(
        "--agop-power",
        type=NumberOrAuto(),
        default=AUTO,
        show_default=True,
        metavar="NUMBER|auto",
        help="Power of the AGOP: the larger, the lower the rank. The penalty is Schatten-p, p = 2 - 4 power.",
    ),
    click.option(
        "--ridge",
        type=NumberOrAuto(),
        default=AUTO,
        show_default=True,
        metavar="NUMBER|auto",
        help="Weight of the penalty; 0 reproduces the observed values, noisy data want more. With auto, it and all "
        "other options that are auto are chosen on entries held out; with a number the others are plain "
        f"(agop-power {_DEFAULT.agop_power}, no offsets, implicit 0).",
    ),
    click.option(
        "--offsets/--no-offsets",
        default=None,
        help="Fit mean, row and column offsets first and complete what is left. [default: auto]",
    ),
    click.option(
        "--joint-offsets",
        is_flag=True,
        help="Fit offsets and the rest in turn until both have settled: several fits.",
    ),
    click.option(
        "--count-power",
        type=float,
        default=_DEFAULT.count_power,
        show_default=True,
        help="Share of the penalty of rows and columns: their number of entries to this power, 0 to 1.",
    ),
    click.option(
        "--huber",
        type=float,
        default=_DEFAULT.huber,
        help="Residuals beyond this many robust standard deviations count linearly: 1.345 is usual where there are "
        "outliers. Several fits. [default: squares]",
    ),
    click.option(
        "--implicit",
        type=NumberOrAuto(int),
        default=AUTO,
        show_default=True,
        metavar="NUMBER|auto",
        help="Directions of the pattern of observed entries to use as side information.",
    ),
    click.option(
        "--side-weight",
        type=float,
        default=_DEFAULT.side_weight,
        show_default=True,
        help="How much side information counts.",
    ),
    click.option(
        "--bounds",
        type=Bounds(),
        default=AUTO,
        show_default=True,
        metavar="LOW,HIGH|auto|none",
        help="Cut predictions to lie between these; auto does so where the values lie on a scale.",
    ),
    click.option(
        "--one-standard-error",
        is_flag=True,
        default=_DEFAULT.one_standard_error,
        help="Choose the fit of least rank that is as good as the best, within one standard error.",
    ),
    click.option(
        "--tol",
        type=float,
        default=_DEFAULT.tol,
        help="Stop at this estimated relative distance to the limit. "
        f"[default: {EXACT_TOL:g}, with ridge {NOISY_TOL:g}]",
    ),
    click.option("--max-iter", type=int, default=_DEFAULT.max_iter, show_default=True, help="Most iterations."),
    click.option(
        "--smoothing",
        type=RuleOrNumber(),
        default=_DEFAULT.smoothing,
        show_default=True,
        metavar="RULE|NUMBER",
        help=f"How the smoothing falls ({', '.join(SMOOTHING_RULES)}), or a fixed smoothing in the data's unit.",
    ),
    click.option("--threads", "n_threads", type=int, default=_DEFAULT.n_threads, help="Threads. [default: all]"),
    click.option("--seed", "random_state", type=int, default=_DEFAULT.random_state, show_default=True, help="Seed."),
    click.option("--device", type=click.Choice(DEVICES), default=_DEFAULT.device, show_default=True, help="Device."),
)


def solver_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of the solver to a subcommand; they arrive as one keyword, ``options``."""

    def with_options(**arguments: Any) -> Any:
        values = {name: arguments.pop(name) for name in asdict(_DEFAULT)}
        values["offsets"] = AUTO if values["offsets"] is None else values["offsets"]
        if arguments.pop("joint_offsets"):
            values["offsets"] = JOINT
        try:
            options = CompletionOptions(**values)
        except InputError as error:
            raise click.UsageError(str(error)) from None
        return function(options=options, **arguments)

    with_options.__doc__ = function.__doc__
    with_options.__click_params__ = list(getattr(function, "__click_params__", ()))  # type: ignore[attr-defined]
    decorated: Callable[..., Any] = with_options
    for option in reversed(_SOLVER_OPTIONS):
        decorated = option(decorated)
    return decorated


def complete_with_progress(
    observations: RowBlocks,
    options: CompletionOptions,
    *,
    label: str,
    quiet: bool,
    **more: Any,
) -> CompletionResult:
    """Complete, with a progress bar on standard error if that is a terminal and `quiet` is false.

    `more` goes to ``complete``: what is no option of ``CompletionOptions``.
    """
    from fastrfm.solvers.completion import complete

    meta = click.get_current_context().meta
    meta[ITERATION_KEY] = 0
    bar: ProgressBar[Any] = click.progressbar(
        length=_BAR_STEPS,
        label=label,
        file=sys.stderr,
        hidden=quiet or not sys.stderr.isatty(),
        show_eta=False,
        update_min_steps=0,  # the iteration number moves on even where the bar does not
        item_show_func=lambda seen: f"iteration {seen.iteration}, change {seen.change:.1e}" if seen else None,
    )

    def show(seen: Iteration) -> bool:
        meta[ITERATION_KEY] = seen.iteration
        bar.update(round(seen.progress * _BAR_STEPS) - bar.pos, seen)
        return False

    with warnings.catch_warnings(), bar:
        warnings.simplefilter("ignore", NotConvergedWarning)  # the report and the exit code say so
        return complete(observations, **asdict(options), callback=show, **more)


def read_matching(path: Path, result: CompletionResult) -> Observations | StoredObservations:
    """Return the observations in a file, having made sure that they are of the matrix that `result` completes."""
    from fastrfm.readers import read_observations

    observations = read_observations(path)
    if observations.shape != result.shape:
        raise InputError(
            f"{path}: has {shape_in_words(observations.shape)}, the result {shape_in_words(result.shape)}: "
            "give the file that was completed"
        )
    for axis in ("row", "col"):
        names, wanted = getattr(observations, f"{axis}_names"), getattr(result, f"{axis}_names")
        if names is not None and wanted is not None and not (names == wanted).all():
            raise InputError(f"{path}: its {axis}_names are not those of the result: give the file that was completed")
    return observations


def text_with_columns(source: Path, option: str) -> Path:
    """Return the path of a text file, or say that `option` wants one."""
    from fastrfm.readers import file_kind

    kind = file_kind(source)
    if kind != "text":
        raise InputError(
            f"{source}: is {kind}, and {option} wants text with further columns: give the csv or tsv that it was made "
            "of, or go by row or column"
        )
    return source


def read_grouped(
    source: Path, group: str | None, option: str, memory: int | None, layout: str = "auto"
) -> tuple[Observations, Any, list[str]]:
    """Return observations in memory, their groups as ``splits`` takes them, and notes on how the file was read.

    `group` is row, column, a column of a text file, or None for no groups.
    """
    from fastrfm.observations import Observations
    from fastrfm.readers import read_with_notes
    from fastrfm.readers.columns import read_with_groups

    if group not in ("row", "column", None):
        notes: list[str] = []
        return *read_with_groups(text_with_columns(source, f"{option} {group}"), group, notes), notes
    reading = read_with_notes(source, layout=layout, memory=memory)
    if not isinstance(reading.observations, Observations):
        raise InputError(f"{source}: does not fit into the memory allowed: raise --memory, or take a part of it")
    return reading.observations, group, reading.notes


def rows_bar(label: str, n_rows: int, *, quiet: bool) -> ProgressBar[int]:
    """Return a progress bar over rows, on standard error if that is a terminal and `quiet` is false."""
    return click.progressbar(length=n_rows, label=label, file=sys.stderr, hidden=quiet or not sys.stderr.isatty())


def write_dense_with_progress(path: Path, result: CompletionResult, *, quiet: bool, **options: Any) -> None:
    """Write the completed matrix, see ``store.write_dense``, with a progress bar."""
    from fastrfm.store import write_dense

    with rows_bar("Writing", result.shape[0], quiet=quiet) as bar:
        write_dense(path, result, progress=lambda done: bar.update(done - bar.pos), **options)


def what_to_do(stop_reason: str) -> str:
    """Return what a run that did not converge wants; nothing if it did."""
    wants = {
        "max_iter": "raise --max-iter or --tol",
        "stalled": "give the right --rank, a --ridge if the data are noisy, or a one-sided --method",
    }
    return wants.get(stop_reason, "")


def options_in_words(result: CompletionResult) -> str:
    """Return the method and the options that shape the answer."""
    used = result.options
    power = used["agop_power"]
    power = power if isinstance(power, str) else f"{power:g}"  # files keep the name of a function
    parts = [str(used["method"]), f"agop-power {power}", f"ridge {used['ridge']:g}"]
    if used["rank"] is not None:
        parts.append(f"rank at most {used['rank']}")
    parts += [f"with {'joint ' if used['offsets'] == JOINT else ''}offsets"] if used["offsets"] else []
    parts += [f"count-power {used['count_power']:g}"] if used.get("count_power") else []
    parts += [f"huber {used['huber']:g}"] if used.get("huber") else []
    parts += [f"implicit {used['implicit']}"] if used.get("implicit") else []
    if used["smoothing"] != _DEFAULT.smoothing:
        parts.append(f"smoothing {used['smoothing']}")
    return ", ".join(parts)


def selection_in_words(result: CompletionResult) -> list[tuple[str, Any]]:
    """Return report lines about how the options were chosen, if they were: the path, the chosen fit marked."""
    selection = result.selection
    if selection is None:
        return []
    fits = selection.fits
    columns = ("agop_power", "ridge", "offsets", "implicit", "rank", "rmse")
    titles = ("agop-power", "ridge", "offsets", "implicit", "rank", "RMSE held out")
    lines = ["  ".join(f"{title:>10}" for title in titles)]
    for fit, row in enumerate(zip(*(fits[name].tolist() for name in columns), strict=True)):
        numbers = "  ".join(f"{('no', 'yes')[v] if isinstance(v, bool) else f'{v:.4g}':>10}" for v in row)
        lines.append(numbers + ("   <- chosen" if fit == selection.chosen else ""))
    head = f"by {count(len(lines) - 1, 'fit')}, each judged on {selection.rows.size} entries held out"
    return [("options chosen", head), *(("", line) for line in lines)]


def echo_report(lines: Iterable[tuple[str, Any]]) -> None:
    """Print ``label: value`` lines with the values aligned."""
    lines = list(lines)
    width = max(len(label) for label, _ in lines) + 1
    for label, value in lines:
        click.echo(f"{label + ':' if label else '':<{width}} {value}")
