"""Side information on the command line: the options of feature files, reading them, and their lines in reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastrfm.cli.common import count

if TYPE_CHECKING:
    import numpy as np

    from fastrfm.blocks import RowBlocks

_OPTIONS = (
    click.option(
        "--row-features",
        "row_features_file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="What is known about rows: csv or tsv with a header, names in column 1, else numbers or words (at most 50 "
        "kinds; a|b for several); or npy, HDF5, ... with a line for each row. Blank: not known.",
    ),
    click.option(
        "--col-features",
        "col_features_file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="The same about columns, a line for each.",
    ),
    click.option(
        "--ignore-feature",
        "ignored",
        multiple=True,
        metavar="COLUMN",
        help="Leave a column of these files out, such as a title. May be given again.",
    ),
)


@dataclass(frozen=True)
class FeatureFiles:
    """The files asked for: of rows, of columns, and columns to ignore."""

    rows: Path | None
    cols: Path | None
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class Side:
    """Features as ``complete`` takes them, and report lines about them."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    lines: list[tuple[str, Any]] = field(default_factory=list)


def feature_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of feature files to a subcommand; they arrive as one keyword, ``features``."""

    def with_features(**arguments: Any) -> Any:
        names = ("row_features_file", "col_features_file", "ignored")
        features = FeatureFiles(*(arguments.pop(name) for name in names))
        if features.ignored and features.rows is None and features.cols is None:
            raise click.UsageError("--ignore-feature goes with --row-features or --col-features")
        return function(features=features, **arguments)

    with_features.__doc__ = function.__doc__
    with_features.__click_params__ = list(getattr(function, "__click_params__", ()))  # type: ignore[attr-defined]
    decorated: Callable[..., Any] = with_features
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


def read_side(files: FeatureFiles, observations: RowBlocks) -> Side:
    """Return the features of the files for the rows and columns of a matrix."""
    from fastrfm.readers.features import read_features

    side = Side()
    sides = ("row", files.rows, observations.row_names), ("column", files.cols, observations.col_names)
    for (axis, path, names), n, key in zip(sides, observations.shape, ("row_features", "col_features"), strict=True):
        if path is None:
            continue
        found = read_features(path, n, names, axis=axis, ignore=files.ignored)
        side.arrays[key] = found.table
        matched = "in order" if found.by == "order" else f"by {found.by}"
        words = f"{path}, {count(len(found.names), 'feature')} of {found.n_told} in {count(n, axis)}, {matched}"
        if found.n_unknown:
            words += f"; {count(found.n_unknown, 'line')} about no {axis} of the matrix left out"
        side.lines.append((f"{axis} features", words))
    return side
