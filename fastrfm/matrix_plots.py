"""A matrix before and after completion: heat maps with holes, and images.

Large matrices are shown by rows and columns taken evenly, at most ``N_SHOWN`` of each, so that time and memory stay
bounded whatever the size; the title says so. Part of ``plots``, which is where to import these functions from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrfm._figures import HOLE, MAP, UNIT, pair_or_new, whole_ticks
from fastrfm._interrupt import check
from fastrfm.blocks import RowBlocks
from fastrfm.errors import InputError
from fastrfm.results import CompletionResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

N_SHOWN = 300  # rows or columns: about as many as a panel has pixels to tell apart
_DECADES = 100.0  # values that differ by more, and are positive, get logarithmic colours
_TAILS = (1.0, 99.0)  # percentiles that the colours span, lest one wild entry make all others look alike


def plot_gaps(
    result: CompletionResult, observations: RowBlocks, axes: Sequence[Axes] | None = None
) -> tuple[Axes, Axes]:
    """Draw the observations with their holes, and beside them the estimate, in the same colours.

    Colours span all but the outermost values, and are logarithmic where those are positive and differ a hundredfold.

    Parameters
    ----------
    result : CompletionResult
    observations : Observations or StoredObservations
        Of the result's shape; stored ones are read once, block by block.
    axes : two matplotlib Axes, optional
        Where to draw; by default in a new figure.

    Returns
    -------
    (Axes, Axes)
        Before and after; the figure is their ``figure``.

    Raises
    ------
    InputError
        If the shapes differ, or `axes` are not two.
    MissingPackageError
        If matplotlib is not installed.
    """
    if observations.shape != result.shape:
        raise InputError(
            f"the observations must have the result's shape {result.shape}, got {observations.shape}: "
            "give those that were completed"
        )
    before, after = pair_or_new(axes)
    n_rows, n_cols = result.shape
    rows, cols = _evenly(n_rows), _evenly(n_cols)
    observed, estimate = _sampled(observations, rows, cols), result.block(rows, cols)
    limits, extend = _limits(observed, estimate)
    is_log = limits[0] > 0.0 and limits[1] > _DECADES * limits[0]
    if is_log:  # what is not positive has no logarithm, and would look like a hole
        estimate = np.maximum(estimate, limits[0])
        observed = np.maximum(observed, limits[0])
    place: dict[str, Any] = {
        "extent": (-0.5, n_cols - 0.5, n_rows - 0.5, -0.5),
        "aspect": "auto",
        "interpolation": "nearest",
    }
    colours: dict[str, Any] = {"norm": _norm(limits, is_log), "cmap": _map_with_holes()}
    for panel, matrix, title in ((before, observed, "Observed (gray: missing)"), (after, estimate, "Completed")):
        image = panel.imshow(matrix, **place, **colours)
        panel.set_title(f"{title}{_sample_in_words(result.shape, rows, cols)}", fontsize=12)
        panel.set_xlabel("column", fontsize=11)
        panel.set_ylabel("row", fontsize=11)
        for axis in (panel.xaxis, panel.yaxis):
            whole_ticks(axis)
    bar = after.figure.colorbar(image, ax=[before, after], extend=extend)
    bar.set_label(f"value ({UNIT}{', logarithmic' if is_log else ''})", fontsize=11)
    return before, after


def plot_image(
    image: Any,
    results: CompletionResult | Sequence[CompletionResult],
    axes: Sequence[Axes] | None = None,
    *,
    limits: tuple[float, float] | None = None,
) -> tuple[Axes, Axes]:
    """Draw an image with holes, and beside it the same with the holes filled; what was observed stays.

    Parameters
    ----------
    image : (n_rows, n_cols) or (n_rows, n_cols, 3) array_like of numbers
        Gray, or red, green and blue; NaN is missing. Pixels with any channel missing are shown as holes.
    results : CompletionResult, or a sequence of three
        What completes the image, channel by channel.
    axes : two matplotlib Axes, optional
        Where to draw; by default in a new figure.
    limits : (float, float), optional
        Values shown as black and as full brightness, in the data's unit. By default 0 and 1 if all that is observed
        lies between them, else 0 and 255 likewise, else the least and the largest value observed.

    Returns
    -------
    (Axes, Axes)
        Before and after.

    Raises
    ------
    InputError
        If the image has another shape, holds nothing, or does not match the results; or if `limits` do not rise.
    MissingPackageError
        If matplotlib is not installed.
    """
    pixels = np.asarray(image, dtype=np.float64)
    channels = (results,) if isinstance(results, CompletionResult) else tuple(results)
    _check_image(pixels, channels)
    layers = pixels.reshape(*pixels.shape[:2], len(channels))
    missing: np.ndarray = np.isnan(layers)
    black, white = _brightness(layers[~missing]) if limits is None else limits
    if not black < white:
        raise InputError(f"limits must be two numbers that rise, got {limits}")
    estimate = np.stack([channel.to_dense() for channel in channels], axis=2)
    before, after = pair_or_new(axes)
    holes: np.ndarray = np.asarray(missing.any(axis=2))
    for panel, shown, alpha, title in (
        (
            before,
            np.where(missing, black, layers),
            ~holes,
            f"Before ({100 * holes.mean():.3g} % of the pixels missing)",
        ),
        (after, np.where(missing, estimate, layers), np.ones_like(holes), "After"),
    ):
        bright = np.clip((shown - black) / (white - black), 0.0, 1.0)
        opaque = np.concatenate((np.broadcast_to(bright, (*holes.shape, 3)), alpha[:, :, None]), axis=2)
        panel.set_facecolor("#56B4E9")  # shines through the holes; gray would pass for a part of the image
        panel.imshow(opaque, interpolation="nearest")
        panel.set_title(title, fontsize=12)
        panel.set_xticks([])
        panel.set_yticks([])
    return before, after


def _evenly(size: int) -> np.ndarray:
    """Return at most N_SHOWN positions out of `size`, the first and the last among them, (n,) int64."""
    return np.linspace(0, size - 1, min(size, N_SHOWN)).round().astype(np.int64)


def _sampled(observations: RowBlocks, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Return the entries at whole rows and columns, NaN where missing, (rows.size, cols.size) float64."""
    matrix = np.full((rows.size, cols.size), np.nan)
    for block in observations.row_blocks():
        first, last = np.searchsorted(rows, (block.start, block.stop))
        for k in range(first, last):
            check()  # Ctrl-C
            i = rows[k] - block.start
            span = slice(block.by_row.indptr[i], block.by_row.indptr[i + 1])
            indices = block.by_row.indices[span]
            at = np.minimum(np.searchsorted(cols, indices), cols.size - 1)
            found = cols[at] == indices
            matrix[k, at[found]] = block.by_row.values[span][found]
    return matrix


def _limits(observed: np.ndarray, estimate: np.ndarray) -> tuple[tuple[float, float], str]:
    """Return the values that the colours span, and at which ends of them values are cut."""
    known = observed[~np.isnan(observed)]
    known = known if known.size else estimate.ravel()
    low, high = (float(limit) for limit in np.percentile(known, _TAILS))
    if low == high:  # more than 98 in 100 are alike
        low, high = float(known.min()), float(known.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    below = min(estimate.min(), known.min()) < low
    above = max(estimate.max(), known.max()) > high
    return (low, high), {(False, False): "neither", (True, False): "min", (False, True): "max"}.get(
        (bool(below), bool(above)), "both"
    )


def _norm(limits: tuple[float, float], is_log: bool) -> Any:
    from matplotlib.colors import LogNorm, Normalize

    return LogNorm(*limits) if is_log else Normalize(*limits)


def _map_with_holes() -> Any:
    from matplotlib import colormaps

    return colormaps[MAP].with_extremes(bad=HOLE)


def _sample_in_words(shape: tuple[int, int], rows: np.ndarray, cols: np.ndarray) -> str:
    parts = [
        f"{taken.size} of {size} {noun}"
        for size, taken, noun in zip(shape, (rows, cols), ("rows", "columns"), strict=True)
        if taken.size < size
    ]
    return f"\n{' and '.join(parts)}, taken evenly" if parts else ""


def _check_image(pixels: np.ndarray, channels: tuple[CompletionResult, ...]) -> None:
    if len(channels) not in (1, 3) or pixels.shape[2:] not in ((), (len(channels),)):
        raise InputError(
            f"an image has shape (n_rows, n_cols) and one result, or (n_rows, n_cols, 3) and three, got shape "
            f"{pixels.shape} and {len(channels)} of them"
        )
    if pixels.ndim < 3 and len(channels) == 3:
        raise InputError("three results complete an image of three channels, got one channel: give one result")
    for channel in channels:
        if channel.shape != pixels.shape[:2]:
            raise InputError(f"the results must have the image's shape {pixels.shape[:2]}, got {channel.shape}")
    if np.isnan(pixels).all() or np.isinf(pixels).any():
        raise InputError("the image must hold numbers, NaN where missing: got no number at all, or infinities")


def _brightness(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    for most in (1.0, 255.0):
        if low >= 0.0 and high <= most:
            return 0.0, most
    return (low, high) if low < high else (low - 0.5, high + 0.5)
