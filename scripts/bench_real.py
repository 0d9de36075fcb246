"""Measure fastrfm on real data beside other packages: ratings, a panel of countries, pictures with missing pixels.

Prints a table for each data set; ``--write`` makes ``docs/real-data.md`` and its pictures. Packages other than fastrfm
come with the extra ``bench`` and are left out where they are missing, as are data sets: MovieLens-100K needs
``--ml-100k`` (see ``scripts/fetch_ml100k.py``). ``--smoke`` runs small parts of what is here, without a network.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import real_problems
from bench_common import describe_machine
from real_page import draw, group_table, render
from real_problems import Problem
from real_rivals import METHODS, Worker, fit_quietly, installed

DOCS = Path(__file__).resolve().parent.parent / "docs"
LIMIT = 240.0  # seconds of one run
Pictures = list[tuple[Problem, dict[str, np.ndarray]]]


def mean_rmse(problems: Iterable[Problem], method: str = "fastrfm") -> float:
    """Return the mean over problems of a method's RMSE on the hidden entries, in this process."""
    errors = []
    for problem in problems:
        predicted = fit_quietly(method, problem.task).predict(problem.rows, problem.cols)
        errors.append(problem.rmse(predicted))
    return float(np.mean(errors))


def data_sets(ml100k: Path | None, smoke: bool) -> dict[str, Callable[[], Iterator[Problem]]]:
    """Return what yields the problems of each data set; in smoke mode parts of what needs no fetching."""
    if smoke:
        return {
            "movielens-small": lambda: real_problems.movielens_small(60, 300),
            "insteval": lambda: real_problems.insteval(100, 200),
            "gapminder": lambda: real_problems.gapminder(range(1), 40),
            "images": lambda: real_problems.images(("camera",), (0.5,), 8),
        }
    sets: dict[str, Callable[[], Iterator[Problem]]] = {
        "movielens-small": real_problems.movielens_small,
        "insteval": real_problems.insteval,
        "gapminder": real_problems.gapminder,
        "images": real_problems.images,
    }
    if ml100k is not None:
        return {"ml-100k": lambda: real_problems.ml100k_folds(ml100k), **sets}
    return sets


def load(sets: dict[str, Callable[[], Iterator[Problem]]]) -> list[Problem]:
    """Return all problems; a data set whose package is missing is named and left out."""
    problems: list[Problem] = []
    for name, make in sets.items():
        try:
            problems += make()
        except ImportError as error:
            click.echo(f"{name} left out: {error}")
    return problems


def measure(problems: list[Problem], methods: list[str], limit: float) -> tuple[dict[str, Any], Pictures]:
    """Run every method on every problem of its kind, one method after the other on each problem."""
    groups: dict[str, Any] = {}
    pictures: Pictures = []
    workers = {name: Worker(name, limit) for name in methods}
    try:
        for problem in problems:
            kind = problem.task.kind
            group = groups.setdefault(problem.group, {"kind": kind, "methods": {}})
            filled: dict[str, np.ndarray] = {}
            for name in methods:
                if kind in METHODS[name].kinds and not _is_hopeless(group["methods"].get(name, [])):
                    run, predicted = _run(workers[name], problem)
                    group["methods"].setdefault(name, []).append(run)
                    if predicted is not None:
                        filled[name] = predicted
            if kind == "image":
                pictures.append((problem, filled))
    finally:
        for worker in workers.values():
            worker.stop()
    return groups, pictures


def _is_hopeless(runs: list[dict[str, Any]]) -> bool:
    """Return whether the method failed on an earlier problem of the group: it would again, after the same wait."""
    return any(run["score"] is None for run in runs)


def _run(worker: Worker, problem: Problem) -> tuple[dict[str, Any], np.ndarray | None]:
    answer = worker.run(problem)
    run: dict[str, Any] = {"problem": problem.name, "score": None, "seconds": None, "chosen": "", "note": ""}
    where = f"{problem.group}, {problem.name}: {worker.name}"
    if isinstance(answer, str):
        click.echo(f"{where}: {answer}", err=True)
        return {**run, "note": answer}, None
    seconds, predicted, chosen = answer
    score = problem.psnr(predicted) if problem.task.kind == "image" else problem.rmse(predicted)
    click.echo(f"{where}: {score:.4f}, {seconds:.2f} s {chosen}", err=True)
    return {**run, "score": score, "seconds": seconds, "chosen": chosen}, predicted


def write(results: dict[str, Any], pictures: Pictures, folder: Path) -> None:
    """Write the page, its pictures and the numbers."""
    (folder / "benchmarks").mkdir(exist_ok=True)
    drawn = draw(pictures, folder / "benchmarks")
    (folder / "benchmarks" / "real-data.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "real-data.md").write_text(render(results, drawn))
    click.echo(f"wrote {folder / 'real-data.md'}" + (f" and {', '.join(drawn)}" if drawn else " without pictures"))


def _chosen(given: str | None, known: Iterable[str], what: str) -> list[str]:
    names = list(known)
    if given is None:
        return names
    asked = [name.strip() for name in given.split(",") if name.strip()]
    if unknown := [name for name in asked if name not in names]:
        raise click.UsageError(f"no {what} {', '.join(unknown)}; there are {', '.join(names)}")
    return asked


@click.command()
@click.option("--smoke", is_flag=True, help="Small parts, one run each: shows that the script runs, measures nothing.")
@click.option(
    "--ml-100k",
    "ml100k",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="MovieLens-100K: u.data, or ml-100k.inter as scripts/fetch_ml100k.py gets it.",
)
@click.option("--data", help="Comma-separated: ml-100k, movielens-small, insteval, gapminder, images.")
@click.option("--methods", help=f"Comma-separated: {', '.join(METHODS)}.")
@click.option("--limit", default=LIMIT, show_default=True, help="Seconds of one run.")
@click.option("--write", "is_written", is_flag=True, help="Write docs/real-data.md and its pictures.")
def main(
    smoke: bool, ml100k: Path | None, data: str | None, methods: str | None, limit: float, is_written: bool
) -> None:
    """Measure completion of real data and print a table for each data set."""
    sets = data_sets(ml100k, smoke)
    sets = {name: sets[name] for name in _chosen(data, sets, "data set (ml-100k needs --ml-100k)")}
    packages = installed()
    present = [name for name, method in METHODS.items() if method.package in {"fastrfm", *packages}]
    chosen = _chosen(methods, present, "method installed")
    missing = sorted({method.package for method in METHODS.values()} - {"fastrfm", *packages})
    machine = describe_machine()
    click.echo(machine + (f"; not installed: {', '.join(missing)}" if missing else ""))
    groups, pictures = measure(load(sets), chosen, limit)
    for name, group in groups.items():
        click.echo(f"\n{name}\n{group_table(group)}")
    about = {"machine": machine, "packages": packages, "missing": missing, "limit": limit}
    results = {"about": about, "groups": groups}
    if smoke:
        with tempfile.TemporaryDirectory() as folder:
            write(results, pictures, Path(folder))
    elif is_written:
        write(results, pictures, DOCS)


if __name__ == "__main__":
    main()
