"""A figure of a cross-validation: RMSE against ridge, a line for each power, with and without offsets.

Needs matplotlib (extra ``plot``), which is loaded when a figure is asked for and never before.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from fastrfm.atomic import PathLike, writing
from fastrfm.cross_validation import CrossValidation, Summary
from fastrfm.errors import InputError

FORMATS = ("png", "pdf", "svg")


def load_figure() -> Any:
    """Return matplotlib's Figure, or raise InputError that says how to get it."""
    try:
        return importlib.import_module("matplotlib.figure").Figure
    except ImportError:
        raise InputError("a plot needs matplotlib: pip install 'fastrfm[plot]'") from None


def plot_format(path: PathLike) -> str:
    """Return the format that a file's name asks for: png, pdf or svg; InputError for another."""
    ending = os.path.splitext(os.fspath(path))[1].lower().removeprefix(".")
    if ending not in FORMATS:
        raise InputError(f"{path}: a plot's name must end in one of {', '.join('.' + name for name in FORMATS)}")
    return ending


def plot_ridges(path: PathLike, found: CrossValidation, *, force: bool = False) -> None:
    """Write a figure of the settings that have all their folds.

    Bars are standard errors, the ring is the best setting, the square the one-standard-error choice. Ridges of 0 have
    no place on the logarithmic axis and are left out.

    Raises
    ------
    InputError
        If matplotlib is not there, the name has another ending, or no setting has all its folds.
    OutputExistsError, WriteError
        See :func:`fastrfm.atomic.writing`.
    """
    kind, figure = plot_format(path), load_figure()(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.add_subplot()
    best, cautious = found.best(), found.one_standard_error()
    lines: dict[tuple[float, bool], list[Summary]] = {}
    for summary in found.summaries():
        if summary.setting.ridge > 0.0:
            lines.setdefault((summary.setting.agop_power, summary.setting.offsets), []).append(summary)
    powers = list(dict.fromkeys(power for power, _ in lines))
    for (power, has_offsets), line in lines.items():
        line.sort(key=lambda summary: summary.setting.ridge)
        axes.errorbar(
            [summary.setting.ridge for summary in line],
            [summary.rmse for summary in line],
            [summary.rmse_error for summary in line],
            label=f"agop-power {power:g}{', offsets' if has_offsets else ''}",
            color=f"C{powers.index(power)}",
            linestyle="-" if has_offsets else "--",
            marker=".",
            capsize=2,
        )
    for summary, marker, name in ((best, "o", "best"), (cautious, "s", "one standard error")):
        if summary.setting.ridge > 0.0:
            axes.plot(summary.setting.ridge, summary.rmse, marker, ms=10, mfc="none", mec="k", label=name)
    axes.set(xscale="log", xlabel="ridge", ylabel=f"RMSE on held-out entries ({found.folds} folds)")
    axes.legend(fontsize="small")
    with writing(path, force=force) as aside:
        figure.savefig(aside, format=kind, dpi=150)
