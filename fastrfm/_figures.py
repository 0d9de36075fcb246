"""What all plots share: axes of their own figure, colours, legible sizes, and writing a figure to a file.

matplotlib is the extra ``plot`` and is imported inside functions. Figures are ``matplotlib.figure.Figure`` objects
that no global state knows (no pyplot), so that nothing pops up, piles up, or needs a screen. Not here: what is drawn.
"""

from __future__ import annotations

from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrfm.atomic import PathLike, writing
from fastrfm.errors import InputError, MissingPackageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
# Okabe and Ito's colours, which differ for every kind of colour vision; without their yellow, too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HOLE = "#D9D9D9"  # what is missing: a gray that is no colour of the map
MAP = "viridis"
UNIT = "data's unit"
PANEL = (6.4, 4.4)  # inches
_DPI = 150


def require_matplotlib() -> None:
    """Raise MissingPackageError unless matplotlib is installed."""
    try:
        import_module("matplotlib.figure")
    except ImportError:
        raise MissingPackageError("plots need matplotlib: pip install 'fastrfm[plot]'") from None


def new_figure(n_rows: int = 1, n_cols: int = 1) -> Figure:
    """Return an empty figure with room for n_rows x n_cols panels."""
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PANEL[0] * n_cols, PANEL[1] * n_rows), layout="constrained")
    figure.set_facecolor("white")
    return figure


def axes_or_new(axes: Axes | None) -> Axes:
    """Return the axes given, or those of a new figure of one panel."""
    return new_figure().add_subplot() if axes is None else axes


def pair_or_new(axes: Any) -> tuple[Axes, Axes]:
    """Return the two axes given, or those of a new figure of two panels beside each other.

    Raises
    ------
    InputError
        If something other than two axes is given.
    """
    if axes is None:
        figure = new_figure(1, 2)
        return figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    pair = tuple(axes) if hasattr(axes, "__iter__") else (axes,)
    if len(pair) != 2:
        raise InputError(f"axes must be two, for before and after, got {len(pair)}: give a pair")
    return pair


def finish(axes: Axes, title: str, x: str, y: str) -> None:
    """Give axes their words and a faint grid behind what is drawn."""
    axes.set_title(title, fontsize=12)
    axes.set_xlabel(x, fontsize=11)
    axes.set_ylabel(y, fontsize=11)
    axes.tick_params(labelsize=10)
    axes.grid(True, color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)


def whole_ticks(axis: Any) -> None:
    """Put the ticks of an axis, of things that are counted, at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=7, integer=True, steps=[1, 2, 5, 10]))


def format_of(path: PathLike) -> str:
    """Return "png", "svg" or "pdf", by the suffix.

    Raises
    ------
    InputError
        If the suffix is another.
    """
    suffix = Path(path).suffix.removeprefix(".").lower()
    if suffix not in FORMATS:
        raise InputError(f"{path}: plots are written as .png, .svg or .pdf: give the output such a name")
    return suffix


def save_figure(figure: Figure, path: PathLike, *, force: bool = False) -> None:
    """Write a figure aside and rename it; the suffix says the format.

    Raises
    ------
    InputError
        If the suffix is not .png, .svg or .pdf.
    OutputExistsError, WriteError
        See :func:`fastrfm.atomic.writing`; what was at `path` before is then untouched.
    """
    kind = format_of(path)
    with writing(path, force) as aside, aside.open("wb") as file:
        figure.savefig(file, format=kind, dpi=_DPI, metadata=_undated(kind))


def png_of(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG file."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata=_undated("png"))
    return buffer.getvalue()


def _undated(kind: str) -> dict[str, None]:
    """Return metadata without the time, which would make every file of the same figure another."""
    return {{"png": "Software", "svg": "Date", "pdf": "CreationDate"}[kind]: None}
