"""``fastrfm tune``: K-fold cross-validation over a grid of options, a table of all fits, and what to take."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastrfm.cli import EXIT_NOT_CONVERGED, OUTCOME_KEY
from fastrfm.cli.common import count, echo_report, memory_option, read_grouped, shape_in_words, share_in_words
from fastrfm.cli.features import feature_options, read_side
from fastrfm.errors import InputError
from fastrfm.options import METHODS, CompletionOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastrfm.cli.features import FeatureFiles, Side
    from fastrfm.cross_validation import CrossValidation, Fit, Setting, Summary
    from fastrfm.observations import Observations

_DEFAULT = CompletionOptions()
_OFFSETS = {"both": (False, True), "on": (True,), "off": (False,)}
_COLUMNS = (
    *("agop_power", "ridge", "offsets", "fold", "held_out", "rmse", "mae"),
    *("rank", "iterations", "seconds", "stopped"),
)
_MOST_SHOWN = 10
_MAX_ITER = 500
_WIDTHS = (10, 11, 8, 11, 11, 11, 7, 12, 9)
_TITLES = ("agop-power", "ridge", "offsets", "RMSE", "+-", "MAE", "rank", "iterations", "seconds")


class Numbers(click.ParamType[tuple[float, ...]]):
    """Numbers with commas between them; what is out of range is left to ``CompletionOptions``."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not numbers with commas between them, such as 1,3,10", param, ctx)


def _fixed_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of the solver that are the same for all fits; they arrive as keywords of their own."""
    for option in reversed(
        (
            click.option("--method", type=click.Choice(METHODS), default=_DEFAULT.method, show_default=True),
            click.option("--rank", type=int, default=_DEFAULT.rank, help="Largest rank. [default: the data decide]"),
            click.option("--tol", type=float, default=_DEFAULT.tol, help="As of complete."),
            click.option(
                "--max-iter",
                type=int,
                default=_MAX_ITER,
                show_default=True,
                help="Most iterations of a fit: ridges that are too small take very many, and lose all the same.",
            ),
            click.option("--threads", "n_threads", type=int, default=_DEFAULT.n_threads, help="[default: all]"),
            click.option("--seed", "random_state", type=int, default=_DEFAULT.random_state, show_default=True),
        )
    ):
        function = option(function)
    return function


@click.command("tune")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="RESULTS.csv", help="Table of all fits."
)
@click.option(
    "--agop-power",
    "agop_powers",
    type=Numbers(),
    default="0.25,0.333,0.375,0.5",
    show_default=True,
    metavar="LIST",
    help="Powers to try.",
)
@click.option(
    "--ridge", "ridges", type=Numbers(), metavar="LIST", help="Ridges to try. [default: from the data's own scale]"
)
@click.option(
    "--n-ridge", type=click.IntRange(min=2), default=8, show_default=True, help="How many, where none are given."
)
@click.option(
    "--offsets", type=click.Choice(tuple(_OFFSETS)), default="both", show_default=True, help="With offsets or without."
)
@click.option("--folds", type=click.IntRange(min=2), default=5, show_default=True, help="Parts, each held out once.")
@click.option(
    "--folds-by",
    metavar="COLUMN|row|column",
    help="Hold out whole groups: of a further column of FILE, such as a day; or whole rows (columns), of which nothing "
    "but their features is known then: how well new ones are predicted. [default: single entries]",
)
@feature_options
@_fixed_options
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="OUT.png", help="Also draw RMSE against ridge (extra plot)."
)
@memory_option
@click.option("--force", is_flag=True, help="Replace the outputs if they exist.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def command(
    file: Path,
    output: Path,
    agop_powers: tuple[float, ...],
    ridges: tuple[float, ...] | None,
    n_ridge: int,
    offsets: str,
    folds: int,
    folds_by: str | None,
    features: FeatureFiles,
    plot: Path | None,
    memory: int | None,
    force: bool,
    quiet: bool,
    **fixed: Any,
) -> None:
    """Try a grid of options by cross-validation and say which to take.

    Every setting is fitted once for each fold, without that fold's entries. RESULTS.csv has a line for each fit; what
    is printed are the best setting by mean RMSE and the largest ridge within one standard error of it. Ctrl-C writes
    the fits that are finished. Exit code 3: fits of one of those two settings did not converge.
    """
    from fastrfm.atomic import check_output
    from fastrfm.cross_validation import CrossValidation, fold_fits, make_grid

    options = _checked(fixed)
    check_output(output, force=force, source=file)
    if plot is not None:
        _check_plot(plot, file, output, force)
    _check_folds(folds_by, features)
    observations, groups, _ = read_grouped(file, folds_by, "--folds-by", memory)
    side = read_side(features, observations)
    options.check_shape(observations.shape)
    grid = make_grid(observations, agop_powers, ridges, n_ridges=n_ridge, offsets=_OFFSETS[offsets])
    found = CrossValidation(folds)
    more = {"options": options, "groups": groups, **side.arrays}
    fits = fold_fits(observations, grid, folds, options.random_state, **more)
    click.get_current_context().meta[OUTCOME_KEY] = lambda: _left(output, found)
    try:
        _collect(fits, found, len(grid) * folds, quiet)
    finally:  # also when the search was stopped or one fit failed: what is finished is kept
        if found.fits:
            _write(output, found.fits, force)
    if plot is not None:
        from fastrfm.ridge_plot import plot_ridges

        plot_ridges(plot, found, force=force)
    _report(file, output, observations, found, grid, side, folds_by)


def _checked(fixed: dict[str, Any]) -> CompletionOptions:
    try:
        return CompletionOptions(**fixed)
    except InputError as error:
        raise click.UsageError(str(error)) from None


def _check_folds(folds_by: str | None, features: FeatureFiles) -> None:
    """Refuse whole rows (columns) without features: all settings would predict the same, means."""
    wanted = {"row": ("--row-features", features.rows), "column": ("--col-features", features.cols)}
    if folds_by in wanted and wanted[folds_by][1] is None:
        raise click.UsageError(
            f"--folds-by {folds_by} needs {wanted[folds_by][0]}: without, nothing tells one {folds_by} held out from "
            "another"
        )


def _check_plot(plot: Path, file: Path, output: Path, force: bool) -> None:
    from fastrfm.atomic import check_output
    from fastrfm.ridge_plot import load_figure, plot_format

    for other in (file, output):
        check_output(plot, force=force, source=other)
    plot_format(plot)
    load_figure()


def _collect(fits: Any, found: CrossValidation, n_fits: int, quiet: bool) -> None:
    is_hidden = quiet or not sys.stderr.isatty()
    with click.progressbar(
        length=n_fits, label="Fitting", file=sys.stderr, hidden=is_hidden, item_show_func=_in_words
    ) as bar:
        for fit in fits:
            found.fits.append(fit)
            bar.update(1, fit)


def _in_words(fit: Fit | None) -> str | None:
    if fit is None:
        return None
    return f"{_setting_in_words(fit.setting)}, fold {fit.fold + 1}: RMSE {fit.rmse:.4g}"


def _setting_in_words(setting: Setting) -> str:
    return f"--agop-power {setting.agop_power:g} --ridge {setting.ridge:.4g}{' --offsets' if setting.offsets else ''}"


def _left(output: Path, found: CrossValidation) -> str:
    return f"{output} holds {count(len(found.fits), 'finished fit')}" if found.fits else "nothing was written"


def _write(path: Path, fits: Sequence[Fit], force: bool) -> None:
    from fastrfm.atomic import writing

    with writing(path, force=force) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(_COLUMNS)
        for fit in fits:
            row = asdict(fit)
            setting = row.pop("setting")
            row["fold"] += 1
            table.writerow((*setting.values(), *row.values()))


def _report(
    file: Path,
    output: Path,
    observations: Observations,
    found: CrossValidation,
    grid: Sequence[Setting],
    side: Side,
    folds_by: str | None,
) -> None:
    best, cautious = found.best(), found.one_standard_error()
    _echo_line(_TITLES)
    ranked = sorted(found.summaries(), key=lambda summary: summary.rmse)
    for summary in ranked[:_MOST_SHOWN]:
        _echo_line(_fields(summary))
    if len(ranked) > _MOST_SHOWN:
        click.echo(f"and {count(len(ranked) - _MOST_SHOWN, 'setting')} with larger errors in {output}")
    echo_report(
        [
            ("file", f"{file}, {shape_in_words(observations.shape)}"),
            ("observed", share_in_words(observations.n_observed, observations.shape)),
            *side.lines,
            ("fits", f"{count(len(grid), 'setting')} x {found.folds} folds{f' by {folds_by}' if folds_by else ''}"),
            ("best", f"{_setting_in_words(best.setting)}, RMSE {best.rmse:.5g} +- {best.rmse_error:.2g}"),
            ("one standard error", f"{_setting_in_words(cautious.setting)}, RMSE {cautious.rmse:.5g}"),
            ("table", output),
        ]
    )
    ridges = [setting.ridge for setting in grid if _is_alike(setting, best.setting)]
    if len(ridges) > 1 and best.setting.ridge in (min(ridges), max(ridges)) and best.setting.ridge > 0.0:
        end, more = ("smallest", "smaller") if best.setting.ridge == min(ridges) else ("largest", "larger")
        click.echo(f"The best ridge is the {end} one tried: try {more} ones too", err=True)
    n_bad = best.n_not_converged + (cautious.n_not_converged if cautious != best else 0)
    if n_bad:
        click.echo(f"Not converged in {count(n_bad, 'fit')} of the settings named: raise --max-iter or --tol", err=True)
        click.get_current_context().exit(EXIT_NOT_CONVERGED)


def _is_alike(setting: Setting, other: Setting) -> bool:
    return (setting.agop_power, setting.offsets) == (other.agop_power, other.offsets)


def _fields(summary: Summary) -> tuple[str, ...]:
    setting = summary.setting
    numbers = (summary.rmse, summary.rmse_error, summary.mae, summary.rank, summary.n_iter, summary.seconds)
    fields = (f"{number:.4g}" for number in numbers)
    return f"{setting.agop_power:g}", f"{setting.ridge:.4g}", "yes" if setting.offsets else "no", *fields


def _echo_line(fields: tuple[str, ...]) -> None:
    click.echo("".join(f"{field:>{width}}" for field, width in zip(fields, _WIDTHS, strict=True)).rstrip())
