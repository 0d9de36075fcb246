"""Plots of a completion: how it came about, its spectrum, how its options were chosen, how well it predicts.

Each function takes a ``CompletionResult``, draws on the axes given or on a new figure, and returns the axes:
``plot_spectrum(result).figure.savefig("spectrum.png")``. ``draw`` puts several into one figure, for the command and
the report. Needs the extra ``plot`` (matplotlib). Heat maps and images are in ``matrix_plots``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastrfm._figures import COLOURS, MAP, MARKERS, UNIT, axes_or_new, finish, new_figure, whole_ticks
from fastrfm._figures import format_of as format_of  # part of this module's face
from fastrfm._figures import png_of as png_of
from fastrfm._figures import require_matplotlib as require_matplotlib
from fastrfm._figures import save_figure as save_figure
from fastrfm.blocks import RowBlocks
from fastrfm.errors import InputError
from fastrfm.matrix_plots import plot_gaps as plot_gaps
from fastrfm.matrix_plots import plot_image as plot_image
from fastrfm.options import PLOT_KINDS
from fastrfm.results import CompletionResult, Selection

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_POINTS = 2000  # beyond it dots hide each other, and their number is shown instead
_FEW = 30  # points of a line that can be told apart
_COMPARED = 2.0  # times the least error: fits beyond would press all others into one line
_SERIES = (  # of the history, top to bottom in the legend
    ("masked_rmse", f"RMSE on fitted entries ({UNIT})", "-"),
    ("error_estimate", "estimated distance (relative)", "--"),
    ("smoothing", f"smoothing ε ({UNIT})", "-."),
)


def plot_convergence(result: CompletionResult, axes: Axes | None = None) -> Axes:
    """Draw RMSE, estimated distance to the limit and smoothing against iterations, and the rank on a second scale.

    Parameters
    ----------
    result : CompletionResult
    axes : matplotlib Axes, optional
        Where to draw; by default on a new figure. The rank gets axes of its own on the right.

    Returns
    -------
    Axes
        With a logarithmic scale; numbers that have no logarithm (0, infinity) are left out.

    Raises
    ------
    InputError
        If the result has no history.
    MissingPackageError
        If matplotlib is not installed.
    """
    if not result.n_iter:
        raise InputError("the result has no iterations: there is no convergence to plot")
    axes = axes_or_new(axes)
    iterations = np.arange(1, result.n_iter + 1)
    marker = "." if result.n_iter <= _FEW else ""
    width = 1.6 if result.n_iter <= 200 else 1.1
    series: tuple[tuple[str, str, str], ...] = tuple(entry for entry in _SERIES if entry[0] in result.history)
    if "error_estimate" not in result.history:
        series += (("change", "change of the estimate (relative)", "--"),)
    for (name, label, style), colour in zip(series, COLOURS, strict=False):
        axes.plot(
            iterations,
            _positive(result.history[name]),
            style,
            color=colour,
            marker=marker,
            linewidth=width,
            label=label,
        )
    tol = result.options.get("tol")
    if tol:
        axes.axhline(tol, color=COLOURS[1], linestyle=":", linewidth=1.2, label=f"tol = {tol:g} (relative)")
    axes.set_yscale("log")
    finish(axes, f"Convergence: {result.stop_reason}", "iteration", "logarithmic scale, see legend")
    whole_ticks(axes.xaxis)
    handles = axes.get_legend_handles_labels()[0]
    rank = result.history.get("rank", np.zeros(0))
    if rank.any():  # a method that does not look reports 0
        handles = [*handles, _rank_line(axes, iterations, rank)]
    axes.legend(handles=handles, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False)
    return axes


def _rank_line(axes: Axes, iterations: np.ndarray, rank: np.ndarray) -> Any:
    right = axes.twinx()
    (line,) = right.step(
        iterations, np.where(rank > 0, rank, np.nan), where="mid", color="#666666", linewidth=1.2, label="rank above ε"
    )
    right.set_ylim(0, 1.15 * rank.max())
    right.set_ylabel("rank above ε", fontsize=11, color="#444444")
    whole_ticks(right.yaxis)
    return line


def plot_spectrum(result: CompletionResult, axes: Axes | None = None) -> Axes:
    """Draw the singular values σ of the estimate, with the eigenvalues σ² of its AGOP on the right.

    Parameters
    ----------
    result : CompletionResult
        With offsets, the spectrum is that of the low-rank part alone.
    axes : matplotlib Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    Axes
        Logarithmic where the values differ more than tenfold.

    Raises
    ------
    InputError
        If the rank is 0.
    MissingPackageError
        If matplotlib is not installed.
    """
    values = result.singular_values
    if not values.size:
        raise InputError("the result has rank 0: there is no spectrum to plot")
    axes = axes_or_new(axes)
    marker = "o" if values.size <= 100 else "."
    axes.plot(np.arange(1, values.size + 1), values, marker=marker, markersize=5, linewidth=1, color=COLOURS[0])
    part = "" if result.offsets is None else " of the low-rank part"
    finish(axes, f"Spectrum{part}, rank {result.rank}", "position", f"singular value σ ({UNIT})")
    if values[-1] > 0.0 and values[0] > 10.0 * values[-1]:
        axes.set_yscale("log")
    else:
        axes.set_ylim(0.0, 1.05 * float(values[0]) or 1.0)
    whole_ticks(axes.xaxis)
    # Limits are never negative, but a search for ticks goes below zero, where the square would fold back.
    right = axes.secondary_yaxis("right", functions=(np.square, lambda square: np.sqrt(np.maximum(square, 0.0))))
    right.set_ylabel(f"eigenvalue of the AGOP, σ²\n(square of the {UNIT})", fontsize=11)
    return axes


def plot_selection(result: CompletionResult, axes: Axes | None = None) -> Axes:
    """Draw the error on held-out entries against the ridge, a line for each setting of the other options.

    Parameters
    ----------
    result : CompletionResult
        With a `selection`.
    axes : matplotlib Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    Axes
        The fit that was chosen is marked by a star. Fits of more than twice the least error lie beyond the axis, and
        the legend says how many.

    Raises
    ------
    InputError
        If the result has no selection.
    MissingPackageError
        If matplotlib is not installed.

    Notes
    -----
    The standard error s of the mean squared error m gives bars of s / (2 √m) to the RMSE √m.
    """
    selection = _selection_of(result)
    axes = axes_or_new(axes)
    fits = selection.fits
    ridge, error, bars = fits["ridge"], fits["rmse"], rmse_errors(selection)
    groups = _groups(selection)
    for k, (label, members) in enumerate(groups.items()):
        members = members[np.argsort(ridge[members], kind="stable")]
        style: dict[str, Any] = {
            "color": COLOURS[k % len(COLOURS)],
            "marker": MARKERS[k % len(MARKERS)],
            "markersize": 5,
        }
        line = ("-", "--", ":")[k // len(COLOURS) % 3]
        axes.errorbar(
            ridge[members], error[members], bars[members], linestyle=line, capsize=3, elinewidth=1, label=label, **style
        )
    at = selection.chosen
    star: dict[str, Any] = {"marker": "*", "markersize": 15, "markerfacecolor": "#F0E442", "markeredgecolor": "black"}
    axes.plot(ridge[at], error[at], linestyle="none", zorder=5, label=f"chosen: ridge {ridge[at]:.4g}", **star)
    _scale_ridges(axes, ridge)
    _leave_out_hopeless(axes, error, bars)
    finish(axes, "How the options were chosen", "ridge", f"RMSE on held-out entries ({UNIT})")
    axes.legend(fontsize=9, framealpha=0.9)
    return axes


def rmse_errors(selection: Selection) -> np.ndarray:
    """Return the standard error of each fit's RMSE, (n_fits,) float64 in the data's unit; 0 where none is known."""
    rmse = selection.fits["rmse"]
    squares = selection.fits.get("standard_error", np.zeros(rmse.size))
    known = np.isfinite(squares) & (rmse > 0.0)
    return np.asarray(np.where(known, squares, 0.0) / (2.0 * np.where(rmse > 0.0, rmse, 1.0)))


def _groups(selection: Selection) -> dict[str, np.ndarray]:
    """Return the positions of the fits that differ in the ridge alone (and the rank found), by what they share."""
    fits = selection.fits
    names = [
        name for name in ("offsets", "implicit") if name in fits and np.unique(fits[name]).size > 1
    ]  # what all fits have in common need not be said
    found: dict[str, list[int]] = {}
    for i in range(fits["rmse"].size):
        parts = [f"agop-power {fits['agop_power'][i]:g}"]
        parts += ["with offsets" if fits["offsets"][i] else "no offsets"] if "offsets" in names else []
        parts += [f"implicit {fits['implicit'][i]}"] if "implicit" in names else []
        found.setdefault(", ".join(parts), []).append(i)
    return {label: np.array(members) for label, members in found.items()}


def _scale_ridges(axes: Axes, ridge: np.ndarray) -> None:
    above = ridge[ridge > 0.0]
    if not above.size or np.unique(ridge).size == 1:
        return
    if above.size == ridge.size:
        axes.set_xscale("log")
    else:  # ridge 0 has its place left of the least one
        axes.set_xscale("symlog", linthresh=float(above.min()))
        axes.set_xlim(left=-0.1 * float(above.min()))


def _leave_out_hopeless(axes: Axes, error: np.ndarray, bars: np.ndarray) -> None:
    is_compared = error <= _COMPARED * error.min()
    n_beyond = int(np.count_nonzero(~is_compared))
    if not n_beyond or error.min() == 0.0:
        return
    low, high = float((error - bars)[is_compared].min()), float((error + bars)[is_compared].max())
    margin = 0.05 * (high - low) or 0.1 * low
    axes.set_ylim(low - margin, high + margin)
    axes.plot([], [], linestyle="none", label=f"{n_beyond} of {error.size} fits beyond the axis")


def plot_held_out(result: CompletionResult, axes: Axes | None = None, *, held_out: RowBlocks | None = None) -> Axes:
    """Draw predictions against what was observed on entries that were not fitted, with the line of equality.

    Parameters
    ----------
    result : CompletionResult
    axes : matplotlib Axes, optional
        Where to draw; by default on a new figure.
    held_out : Observations, optional
        Entries that the result has not seen; by default those of its `selection`, predicted by the chosen fit.

    Returns
    -------
    Axes
        Dots, or for more than some thousand entries their number in hexagons.

    Raises
    ------
    InputError
        If there are neither `held_out` nor a selection, or no entries in it.
    MissingPackageError
        If matplotlib is not installed.
    """
    if held_out is None:
        selection = _selection_of(result)
        values, predicted = selection.values, selection.predicted
    else:
        parts = [(block.entry_rows(), block.by_row.indices, block.by_row.values) for block in held_out.row_blocks()]
        rows, cols, values = (np.concatenate(part) for part in zip(*parts, strict=True))
        predicted = result.predict(rows, cols)
    if not values.size:
        raise InputError("the selection of the result holds no held-out entries: there is nothing to compare")
    axes = axes_or_new(axes)
    low, high = float(min(values.min(), predicted.min())), float(max(values.max(), predicted.max()))
    margin = 0.04 * (high - low) or 0.5
    ends = low - margin, high + margin
    if values.size <= _MOST_POINTS:
        axes.plot(values, predicted, "o", markersize=4, alpha=0.5, markeredgewidth=0, color=COLOURS[0])
    else:
        cells = axes.hexbin(values, predicted, gridsize=45, bins="log", mincnt=1, cmap=MAP, extent=(*ends, *ends))
        axes.figure.colorbar(cells, ax=axes, label="entries")
    axes.plot(ends, ends, "--", color=COLOURS[1], linewidth=1.5, label="predicted = observed")
    axes.set(xlim=ends, ylim=ends)
    error = float(np.sqrt(np.mean(np.square(predicted - values))))
    title = f"{values.size} held-out entries, RMSE {error:.4g}"
    finish(axes, title, f"observed ({UNIT})", f"predicted ({UNIT})")
    axes.legend(fontsize=9, loc="upper left")
    return axes


def _selection_of(result: CompletionResult) -> Selection:
    if result.selection is None:
        raise InputError(
            "the result has no selection, its options were given and not chosen by held-out entries: "
            "plot convergence, spectrum or gaps"
        )
    return result.selection


def _positive(values: np.ndarray) -> np.ndarray:
    """Return what a logarithmic scale can show, NaN for the rest."""
    values = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(values) & (values > 0.0), values, np.nan)


# --- several in one figure ----------------------------------------------------------------------------------------


def kinds_for(result: CompletionResult, observations: RowBlocks | None = None) -> list[str]:
    """Return the kinds of plots that a result (with its observations) can give, in the order of ``PLOT_KINDS``."""
    can = {
        "convergence": result.n_iter > 0,
        "spectrum": result.singular_values.size > 0,
        "selection": result.selection is not None,
        "held-out": result.selection is not None and result.selection.values.size > 0,
        "gaps": observations is not None,
    }
    return [kind for kind in PLOT_KINDS if can[kind]]


def draw(result: CompletionResult, kind: str = "all", observations: RowBlocks | None = None) -> Figure:
    """Return a figure of one kind, or of all kinds that the result can give.

    Parameters
    ----------
    result : CompletionResult
    kind : str
        One of ``PLOT_KINDS``, or "all".
    observations : Observations or StoredObservations, optional
        What was completed; needed for "gaps".

    Raises
    ------
    InputError
        If the kind is none of these, or the result cannot give it.
    MissingPackageError
        If matplotlib is not installed.
    """
    if kind not in (*PLOT_KINDS, "all"):
        raise InputError(f"kind must be one of {', '.join(PLOT_KINDS)} or all, got {kind!r}")
    if kind == "gaps" and observations is None:
        raise InputError("gaps are plotted from the observations: give the file that was completed (--observations)")
    kinds = kinds_for(result, observations) if kind == "all" else [kind]
    if not kinds:
        raise InputError("the result has no iterations, rank 0 and no selection: there is nothing to plot")
    single = [name for name in kinds if name != "gaps"]
    n_cols = 1 if kinds == single and len(kinds) == 1 else 2
    n_rows = -(-len(single) // n_cols) + ("gaps" in kinds)
    figure = new_figure(n_rows, n_cols)
    # Each panel lays itself out: what stands beside one must not push its neighbours apart.
    grid = figure.add_gridspec(n_rows, n_cols)
    functions = {"convergence": plot_convergence, "spectrum": plot_spectrum, "selection": plot_selection}
    for k, name in enumerate(single):
        panel = figure.add_subfigure(grid[k // n_cols, k % n_cols])
        functions.get(name, plot_held_out)(result, panel.add_subplot())
    if "gaps" in kinds and observations is not None:
        panel = figure.add_subfigure(grid[n_rows - 1, :])
        plot_gaps(result, observations, panel.subplots(1, 2))
    return figure
