"""Claims of the paper: what each one measures, the rows kept of it, and how rows become tables, error bars and plots.

Flow: ``reproduce_paper`` -> ``Claim.settings`` -> ``Claim.measure`` -> ``Records`` (a csv file that grows) ->
``Claim.report``. A page is made from kept rows alone, so that a run can be stopped, gone on with and drawn at any time.
Not here: the claims (``paper_irls``, ``paper_completion``, ``paper_sparse``, ``paper_depth``, ``paper_scale``).
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from fastrfm.atomic import writing
from fastrfm.errors import NotConvergedWarning

Row = dict[str, Any]
COLOURS = ("#0b3c8c", "#c2571a", "#1f8a5b", "#8e5aa8", "#b8860b", "#d6336c", "#7a7a7a")
MARKERS = "osD^vPX<>*phd"
_NORMAL = 1.96  # quantile of a 95 % interval


@dataclass(frozen=True)
class Claim:
    """A claim of the paper and how it is looked into.

    Attributes
    ----------
    name, title : str
    statement : str
        What the paper claims, and what is measured here, in Markdown.
    settings : callable
        Whether it is to be quick -> what to measure, seed by seed: stopped early, everything has been measured for the
        first seeds.
    measure : callable
        A setting -> rows of measurements, which are kept with it.
    report : callable
        All rows and the path of the plot to be drawn -> tables and findings in Markdown, without the plot.
    """

    name: str
    title: str
    statement: str
    settings: Callable[[bool], Iterable[Row]]
    measure: Callable[[Row], list[Row]]
    report: Callable[[pandas.DataFrame, Path], str]


class Records:
    """Rows of a claim in a csv file, whole at any moment. A setting that is in it is not measured again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[dict[str, str]] = []
        if path.exists():
            with path.open(encoding="utf-8", newline="") as file:
                self._rows = list(csv.DictReader(file))

    def has(self, setting: Row) -> bool:
        """Return whether a setting was measured."""
        wanted = {name: str(value) for name, value in setting.items()}.items()
        return any(wanted <= row.items() for row in self._rows)

    def add(self, setting: Row, rows: Sequence[Row]) -> None:
        """Keep the rows of a setting, all at once.

        Raises
        ------
        ValueError
            If there is nothing to keep, or rows have other columns than those before.
        """
        whole = [{name: str(value) for name, value in (setting | row).items()} for row in rows]
        names = list((self._rows + whole)[0]) if whole else []
        if not whole or any(list(row) != names for row in whole):
            raise ValueError(f"columns {names} are wanted for {setting}, got {[list(row) for row in whole]}")
        self._rows += whole
        with writing(self._path, force=True) as aside, aside.open("w", encoding="utf-8", newline="") as file:
            lines = csv.DictWriter(file, names, lineterminator="\n")
            lines.writeheader()
            lines.writerows(self._rows)

    def frame(self) -> pandas.DataFrame:
        """Return all rows, numbers as numbers."""
        return pandas.read_csv(self._path)


def seconds_text(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    return f"{1e3 * seconds:.3g} ms" if seconds < 1.0 else f"{seconds:.3g} s"


def success_interval(n_found: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share by Wilson's score: it is right at 0 and 1 too."""
    share, z2 = n_found / n, _NORMAL**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _NORMAL / (1 + z2 / n) * np.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return float(max(centre - half, 0.0)), float(min(centre + half, 1.0))


def quartiles(values: Any) -> tuple[float, float, float]:
    """Return lower quartile, median and upper quartile; a failure (inf) counts as the largest."""
    low, middle, high = np.quantile(np.asarray(values, dtype=float), (0.25, 0.5, 0.75), method="inverted_cdf")
    return float(low), float(middle), float(high)


def in_order(values: Iterable[Any]) -> list[Any]:
    """Return each value once, in the order in which it came first."""
    return list(dict.fromkeys(values))


def sorted_by_method(rows: pandas.DataFrame, methods: Iterable[str]) -> pandas.DataFrame:
    """Return the rows in the order of the methods, whatever the order in which they were measured."""
    places = {method: k for k, method in enumerate(methods)}
    return rows.sort_values("method", key=lambda names: names.map(places), kind="stable")


@contextmanager
def unconverged_is_fine() -> Iterator[None]:
    """Let a run end at its largest number of iterations without a word: that is counted, not hidden."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)
        yield


@contextmanager
def drawing(path: Path, n_panels: int = 1) -> Iterator[Any]:
    """Yield the axes of a figure (a list for several panels); with one legend for all, it is written when done."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, n_panels, figsize=(3.4 + 4.8 * n_panels, 4.0), layout="constrained")
    yield axes
    named: dict[str, Any] = {}
    for each in np.atleast_1d(axes):
        each.spines[["top", "right"]].set_visible(False)
        handles, labels = each.get_legend_handles_labels()
        named = dict(zip(labels, handles, strict=True)) | named
    figure.legend(named.values(), named.keys(), loc="outside right center", frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw_line(axes: Any, k: int, label: str, places: Any, middles: Any, lows: Any, highs: Any) -> None:
    """Draw a line with error bars in the k-th colour and marker, dashed from the second round of colours on."""
    middles = np.asarray(middles, dtype=float)
    bars = np.maximum([middles - np.asarray(lows), np.asarray(highs) - middles], 0.0)
    axes.errorbar(
        places, middles, bars, label=label, color=COLOURS[k % len(COLOURS)], marker=MARKERS[k % len(MARKERS)],
        linestyle="--" if k >= len(COLOURS) else "-", markersize=4, linewidth=1.2, capsize=2, elinewidth=0.6,
    )  # fmt: skip


def mark_sizes(axes: Any, sizes: Sequence[int]) -> None:
    """Label a logarithmic axis with the sizes that were measured."""
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xticks([], minor=True)


def draw_success(axes: Any, rows: pandas.DataFrame, place: str, xlabel: str) -> None:
    """Draw the share of `is_recovered` against a column, a line per method, with 95 % intervals side by side."""
    methods, places = in_order(rows["method"]), np.sort(rows[place].unique())
    gap = float(np.diff(places).min()) if len(places) > 1 else 1.0
    for k, method in enumerate(methods):
        groups = rows[rows["method"] == method].groupby(place)["is_recovered"]
        shares = groups.mean()
        ends = [success_interval(int(found), int(n)) for found, n in zip(groups.sum(), groups.size(), strict=True)]
        lows, highs = zip(*ends, strict=True)
        aside = gap * 0.6 * ((k + 0.5) / len(methods) - 0.5)
        draw_line(axes, k, method, shares.index + aside, shares, lows, highs)
    axes.set(xlabel=xlabel, ylabel="share recovered", ylim=(-0.03, 1.03))


def success_table(rows: pandas.DataFrame, place: str, head: str) -> tuple[list[str], list[list[str]]]:
    """Return a table's head and lines: for each method and place, how many instances of how many were recovered."""
    places = sorted(in_order(rows[place]))
    lines = []
    for method in in_order(rows["method"]):
        mine = rows[rows["method"] == method]
        line = [method]
        for at in places:
            found = mine.loc[mine[place] == at, "is_recovered"]
            line.append(f"{int(found.sum())}/{len(found)}" if len(found) else "–")
        middle = seconds_text(quartiles(mine["seconds"])[1])
        lines.append([*line, middle])
    return ["method", *[f"{head} {at}" for at in places], "median time"], lines
