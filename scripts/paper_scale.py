"""A claim of the paper: lin-RFM scales to millions of missing entries. Time, memory and error up to 20 000 × 20 000."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from bench_common import peak_bytes
from completion_page import table
from completion_problems import entries_for, make_problem
from paper_records import (
    Claim,
    Row,
    draw_line,
    drawing,
    in_order,
    mark_sizes,
    quartiles,
    seconds_text,
    sorted_by_method,
    unconverged_is_fine,
)

from fastrfm import complete

RHO = 3.0
RANK = {True: 2, False: 10}  # by whether it is quick
METHODS: dict[str, dict[str, Any]] = {
    "two-sided (the default)": {},
    "one-sided, factored, α = ½": {"method": "factored"},
    "one-sided, dense, α = ½": {"method": "dense"},
}
LARGEST = {"one-sided, dense, α = ½": 1000, "one-sided, factored, α = ½": 2000}
MIB = 2**20


def _settings(is_quick: bool) -> list[Row]:
    sizes, n_seeds = ([200], 1) if is_quick else ([1000, 2000, 5000, 10_000, 20_000], 3)
    return [
        {"n": n, "rank": RANK[is_quick], "method": method, "seed": seed}
        for seed in range(n_seeds)
        for n in sizes
        for method in METHODS
        if n <= LARGEST.get(method, n)
    ]


def _solve(setting: Row) -> Row:
    """Measure one completion; in a process of its own, for the memory's sake."""
    n, rank = setting["n"], setting["rank"]
    warm = make_problem(40, 40, 2, 600, 0)
    options = METHODS[setting["method"]]
    with unconverged_is_fine():
        complete(warm.observations, 2, max_iter=5, **options)
    problem = make_problem(n, n, rank, entries_for(n, n, rank, RHO), setting["seed"])
    before = peak_bytes()
    start = time.perf_counter()
    with unconverged_is_fine():
        result = complete(problem.observations, rank, tol=1e-8, **options)
    seconds = time.perf_counter() - start
    return {
        "n_observed": problem.observations.n_observed,
        "seconds": seconds,
        "peak_bytes": peak_bytes(),
        "peak_growth": peak_bytes() - before,
        "error": problem.error(result.left, result.right),
        "n_iter": result.n_iter,
        "stop_reason": result.stop_reason,
    }


def _measure(setting: Row) -> list[Row]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return [pool.submit(_solve, setting).result()]


def _report(rows: pandas.DataFrame, path: Path) -> str:
    rows = sorted_by_method(rows, METHODS)
    methods, sizes = in_order(rows["method"]), sorted(in_order(rows["n"]))
    lines = []
    with drawing(path, 2) as axes:
        for k, method in enumerate(methods):
            mine = rows[rows["method"] == method].groupby("n")
            for each, name, unit in ((axes[0], "seconds", 1.0), (axes[1], "peak_bytes", MIB)):
                found = [quartiles(group[name] / unit) for _, group in mine]
                lows, middles, highs = zip(*found, strict=True)
                draw_line(each, k, method, list(mine.groups), middles, lows, highs)
        for each, label in zip(axes, ("seconds", "peak of the process, MiB"), strict=True):
            each.set(xlabel="rows = columns", ylabel=f"{label}: quartiles", xscale="log", yscale="log")
            mark_sizes(each, sizes)
        axes[1].axhline(8 * max(sizes) ** 2 / MIB, color="black", linewidth=0.8, linestyle=":")
        axes[1].text(min(sizes), 8 * max(sizes) ** 2 / MIB, f" {max(sizes)}² as float64", va="bottom", fontsize=8)
    for n in sizes:
        for method in methods:
            mine = rows[(rows["n"] == n) & (rows["method"] == method)]
            if mine.empty:
                continue
            observed = int(np.median(mine["n_observed"]))
            missing = f"{(n * n - observed) / 1e6:.3g} M"
            errors = quartiles(mine["error"])
            lines.append(
                [
                    f"{n}²",
                    missing,
                    f"{observed}",
                    method,
                    f"{len(mine)}",
                    seconds_text(quartiles(mine["seconds"])[1]),
                    f"{quartiles(mine['peak_bytes'])[1] / MIB:.0f}",
                    f"{errors[1]:.1e}",
                    f"{mine['error'].max():.1e}",
                ]
            )
    head = ["size", "missing", "observed", "method", "seeds", "median time", "peak, MiB", "median error", "worst error"]
    largest = rows[rows["n"] == max(sizes)]
    is_good = bool(len(largest)) and float(largest["error"].max()) < 1e-6
    verdict = "**Reproduced.**" if is_good else "**Not reproduced.**"
    words = f"{verdict} {max(sizes)} × {max(sizes)}: {seconds_text(quartiles(largest['seconds'])[1])}."
    return f"{words}\n\n{table(head, lines)}"


SCALE = Claim(
    name="scale",
    title="Hundreds of millions of missing entries on one machine",
    statement=(
        f"Exact matrices of rank 10, {RHO:g} entries for each degree of freedom, the rank given, each run in a process "
        "of its own. Errors are relative Frobenius errors over the whole matrix; memory is the peak of the whole "
        "process, libraries and the making of the problem included."
    ),
    settings=_settings,
    measure=_measure,
    report=_report,
)
