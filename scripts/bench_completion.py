"""Measure ``method="two-sided"``: success, error and time on hard exact and noisy problems, beside rivals from PyPI.

Prints one line a measurement, with ratios from one run; ``--write`` makes ``docs/benchmarks.md`` with its plots from
the same numbers, ``--render`` makes it again from kept ones. Rivals need the extra ``bench``; without it their columns
stay empty. ``--smoke`` runs everything once at small sizes, to show that it runs.
"""

from __future__ import annotations

import json
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from bench_common import describe_machine
from completion_kernels import large_run, sweep_rates
from completion_page import plots, render
from completion_problems import Problem, entries_for, excess_nullity, make_problem, oracle_error
from completion_rivals import Rivals, installed

from fastrfm import complete
from fastrfm.solvers.monitor import Iteration

DOCS = Path(__file__).parent.parent / "docs"
TOL = 1e-13
LIMIT = 60.0  # seconds of one run
RIVAL_LIMIT = 20.0
RHOS = [1.05, 1.1, 1.2, 1.3, 1.4, 1.5, 1.75, 2.0, 2.5, 3.0]
SMALL_LIMIT = 10.0  # seconds of one run of success against rho
ORACLE_FACTOR = 1.02


@dataclass(frozen=True)
class Case:
    """One row of the table. `error` is what counts as success, under noise as a multiple of the oracle's error."""

    name: str
    shape: tuple[int, int]
    rank: int
    n_observed: int
    asked: str
    error: float
    seconds: float | None = None
    kappa: float = 1.0
    noise: float = 0.0
    tol: float = TOL

    def problem(self, seed: int) -> Problem:
        return make_problem(*self.shape, self.rank, self.n_observed, seed, kappa=self.kappa, noise=self.noise)


def _square(name: str, size: int, rank: int, rho: float, asked: str, error: float, **more: Any) -> Case:
    return Case(name, (size, size), rank, entries_for(size, size, rank, rho), asked, error, **more)


CASES = [
    Case("500", (500, 500), 5, 10_000, "≤ 1e-12 in all, ≤ 0.25 s (aim 0.08)", 1e-12, 0.25),
    _square("rho1.5", 1000, 5, 1.5, "≤ 1e-10 in 18/20", 1e-10),
    _square("rho1.5-kappa10", 1000, 5, 1.5, "≤ 1e-10 in 18/20", 1e-10, kappa=10.0),
    _square("rho1.3", 1000, 5, 1.3, "≤ 1e-10 (aim: half)", 1e-10),
    _square("rho1.3-kappa10", 1000, 5, 1.3, "≤ 1e-10 (aim: half)", 1e-10, kappa=10.0),
    _square("kappa1e5", 1000, 10, 1.5, "≤ 1e-10 in 18/20, ≤ 4 s (aim 1)", 1e-10, seconds=4.0, kappa=1e5),
    _square("kappa1e10", 1000, 10, 1.5, "≤ 1e-10 in 18/20, ≤ 4 s (aim 1)", 1e-10, seconds=4.0, kappa=1e10),
    _square("kappa1e5-rank5", 1000, 5, 1.7, "≤ 1e-8 in half (aim: all)", 1e-8, kappa=1e5),
    _square("5000", 5000, 10, 3.0, "≤ 1e-12, ≤ 3 s (aim 1.2)", 1e-12, seconds=3.0),
    Case(
        "noise", (10_000, 2000), 10, entries_for(10_000, 2000, 10, 4.0), "≤ 1.02 × oracle, ≤ 1.5 s", ORACLE_FACTOR,
        1.5, noise=0.01, tol=1e-4,
    ),
]  # fmt: skip
SMOKE = [
    Case("500", (60, 50), 2, 1500, "≤ 1e-10", 1e-10, 1.0),
    Case("noise", (100, 60), 2, 2400, "≤ 1.02 × oracle", ORACLE_FACTOR, 1.0, noise=0.01, tol=1e-4),
]
EXTRA_PARTS = ("curve", "success", "sweep")


def run_ours(
    problem: Problem, rank: int | None, *, tol: float = TOL, limit: float = LIMIT, max_iter: int = 10_000
) -> dict[str, Any]:
    """Return error, time and counts of one run on one thread; it is stopped at the time limit."""

    def is_late(iteration: Iteration) -> bool:
        return iteration.seconds > limit

    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = complete(
            problem.observations,
            rank,
            method="two-sided",
            tol=tol,
            max_iter=max_iter,
            n_threads=1,
            callback=is_late,
        )
    seconds = time.perf_counter() - start
    return {
        "error": problem.error(result.left, result.right),
        "seconds": seconds,
        "iterations": result.n_iter,
        "inner_steps": int(result.history["inner_steps"].sum()),
        "rank": result.rank,
        "reason": "time limit" if result.stop_reason == "callback" else result.stop_reason,
    }


def run_case(case: Case, n_seeds: int, n_rival_seeds: int, rivals: Rivals, limit: float) -> dict[str, Any]:
    """Measure one case: ours with and without the rank on every seed, rivals on the first few, in turn."""
    kept: dict[str, Any] = {**asdict(case), "limit": limit, "ours": [], "unknown_rank": [], "rivals": {}}
    for seed in range(n_seeds):
        problem = case.problem(seed)
        oracle = oracle_error(problem) if case.noise else None
        wanted = case.error * oracle if oracle is not None else case.error
        for key, rank in (("ours", case.rank), ("unknown_rank", None)):
            run = run_ours(problem, rank, tol=case.tol, limit=limit)
            run.update(seed=seed, wanted=wanted, oracle=oracle, is_reached=bool(run["error"] <= wanted))
            kept[key].append(run)
            _say(case.name, seed, "ours" if key == "ours" else "ours, rank unknown", run)
        for name in rivals.names_for(problem) if seed < n_rival_seeds else []:
            outcome = rivals.measure(name, problem, wanted).as_dict()
            kept["rivals"].setdefault(name, []).append({**outcome, "seed": seed})
            _say(case.name, seed, name, outcome, kept["ours"][-1]["seconds"])
    return kept


def _say(case: str, seed: int, who: str, run: dict[str, Any], ours: float | None = None) -> None:
    mark = "reached" if run["is_reached"] else "not reached"
    line = f"{case:15} seed {seed:2d}  {who:18} error {run['error']:8.1e}  {run['seconds']:8.3f} s  {mark}"
    if "rank" in run:
        line += f", rank {run['rank']}, {run['iterations']} iterations, {run['inner_steps']} inner, {run['reason']}"
    else:
        ratio = f", {run['seconds'] / ours:.1f} x ours" if ours is not None and run["is_reached"] else ""
        line += ratio + (f" ({run['note']})" if run["note"] else "")
    click.echo(line)


def run_curve(case: Case, rivals: Rivals, limit: float) -> dict[str, Any]:
    """Error against time on the first seed: runs cut off after 1, 2, 4, ... iterations."""
    problem = case.problem(0)
    trail: list[tuple[int, float, float]] = []
    budget, is_cut = 2, True
    while is_cut and budget < 10_000:
        run = run_ours(problem, case.rank, limit=limit, max_iter=budget)
        trail.append((budget, run["seconds"], run["error"]))
        is_cut = run["reason"] == "max_iter"
        budget = max(budget + 1, int(budget * 1.3))
    curves = {"fastrfm": trail}
    for name in rivals.names_for(problem):
        curves[name] = rivals.measure(name, problem, 1e-14).trail
    return {**asdict(case), "curves": curves}


def run_success(
    size: int, rank: int, rhos: list[float], n_seeds: int, n_rival_seeds: int, rivals: Rivals, limit: float
) -> list[dict[str, Any]]:
    """Success at 1e-8 against the oversampling, and whether the answer is unique at all."""
    points = []
    for kappa in (1.0, 10.0):
        for rho in rhos:
            point: dict[str, Any] = {"size": size, "rank": rank, "kappa": kappa, "rho": rho, "excess": [], "runs": {}}
            for seed in range(n_seeds):
                try:
                    problem = make_problem(size, size, rank, entries_for(size, size, rank, rho), seed, kappa=kappa)
                except ValueError:
                    break  # not enough entries for rank + 1 in every row and column
                point["excess"].append(excess_nullity(problem))
                run = run_ours(problem, rank, limit=limit)
                point["runs"].setdefault("fastrfm", []).append(run["error"])
                for name in rivals.names_for(problem) if seed < n_rival_seeds else []:
                    point["runs"].setdefault(name, []).append(rivals.measure(name, problem, 1e-8).error)
            points.append(point)
            shares = {who: f"{sum(e <= 1e-8 for e in errors)}/{len(errors)}" for who, errors in point["runs"].items()}
            click.echo(
                f"success, kappa {kappa:g}, rho {rho:g}: {shares}, not unique: {np.count_nonzero(point['excess'])}"
            )
    return points


def measure(
    parts: list[str],
    cases: list[Case],
    n_seeds: int,
    n_rival_seeds: int,
    rivals: Rivals,
    limit: float,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Run the parts asked for, handing what is there to `keep` after each."""
    results: dict[str, Any] = {"cases": {}}
    small = min(limit, SMALL_LIMIT)
    warm = make_problem(60, 60, 2, 1500, 0)
    run_ours(warm, 2)
    for name in rivals.names_for(warm):
        if name != "hmirls":
            rivals.warm_up(name, warm)
    for case in cases:
        if case.name in parts:
            results["cases"][case.name] = run_case(case, n_seeds, n_rival_seeds, rivals, limit)
            keep(results)
    is_small = cases is SMOKE
    if "sweep" in parts:
        shapes = [(200, 100, 10)] if is_small else [(10_000, 2000, 300), (20_000, 10_000, 300), (5000, 5000, 60)]
        results["sweep"] = sweep_rates(shapes, [10, 40], 1 if is_small else 7)
        keep(results)
    if "curve" in parts:
        results["curve"] = [run_curve(case, rivals, limit) for case in (cases[:1] if is_small else cases[:3:2])]
        keep(results)
    if "success" in parts:
        size, rank, rhos = (30, 2, [2.5]) if is_small else (300, 5, RHOS)
        with Rivals(min(rivals.limit, SMALL_LIMIT), rivals.packages) as impatient:
            results["success"] = run_success(size, rank, rhos, min(n_seeds, 10), n_rival_seeds, impatient, small)
        keep(results)
    if "large" in parts:
        results["large"] = large_run(*((2000, 1000, 3, 60_000) if is_small else (100_000, 50_000, 20, 30_000_000)))
        keep(results)


def _write(results: dict[str, Any], folder: Path) -> None:
    (folder / "benchmarks").mkdir(exist_ok=True)
    (folder / "benchmarks" / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    drawn = plots(results, folder / "benchmarks")
    (folder / "benchmarks.md").write_text(render(results, drawn))
    click.echo(
        f"wrote {folder / 'benchmarks.md'}" + ("" if drawn else " without plots: nothing to draw, or no matplotlib")
    )


@click.command()
@click.option("--smoke", is_flag=True, help="Small sizes, one run each: shows that the script runs, measures nothing.")
@click.option("--seeds", default=20, show_default=True, help="Problems of each case.")
@click.option("--rival-seeds", default=3, show_default=True, help="Of these, how many the rivals get too.")
@click.option(
    "--cases", "chosen", help=f"Comma-separated: {', '.join(c.name for c in CASES)}, {', '.join(EXTRA_PARTS)}."
)
@click.option("--large", is_flag=True, help="Also 100000 x 50000 with 30 million entries, in a process of its own.")
@click.option("--no-rivals", is_flag=True, help="Leave the rivals out.")
@click.option("--limit", default=LIMIT, show_default=True, help="Seconds of one run.")
@click.option("--rival-limit", default=RIVAL_LIMIT, show_default=True, help="The same for rivals.")
@click.option("--save", type=click.Path(path_type=Path, dir_okay=False), help="Keep the numbers here; parts are added.")
@click.option("--write", is_flag=True, help="Write docs/benchmarks.md and its plots.")
@click.option(
    "--render", "kept", type=click.Path(path_type=Path, exists=True), help="Write the page from kept numbers."
)
def main(
    smoke: bool,
    seeds: int,
    rival_seeds: int,
    chosen: str | None,
    large: bool,
    no_rivals: bool,
    limit: float,
    rival_limit: float,
    save: Path | None,
    write: bool,
    kept: Path | None,
) -> None:
    """Measure the two-sided method and print errors, times and ratios."""
    if kept is not None:
        _write(json.loads(kept.read_text()), DOCS)
        return
    if smoke:
        seeds, rival_seeds, limit, large = 1, 1, 1.0, True
    cases = SMOKE if smoke else CASES
    known = [case.name for case in cases] + list(EXTRA_PARTS)
    parts = known if chosen is None else [part.strip() for part in chosen.split(",") if part.strip()]
    if unknown := set(parts) - set(known):
        raise click.UsageError(f"no case {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    machine = describe_machine()
    click.echo(machine)
    packages = {} if no_rivals or smoke else installed()
    about = {"machine": machine, "rivals": packages, "seeds": seeds, "limit": limit, "rival_limit": rival_limit}
    results = _earlier(save, machine)

    def keep(new: dict[str, Any]) -> None:
        results["cases"].update(new["cases"])
        results.update({key: value for key, value in new.items() if key != "cases"}, about=about)
        if save is not None:
            save.write_text(json.dumps(results, indent=1) + "\n")

    with Rivals(rival_limit, packages) as rivals:
        measure(parts + ["large"] * large, cases, seeds, rival_seeds, rivals, limit, keep)
    if smoke:
        with tempfile.TemporaryDirectory() as folder:
            _write(json.loads(json.dumps(results)), Path(folder))
    elif write:
        _write(results, DOCS)


def _earlier(save: Path | None, machine: str) -> dict[str, Any]:
    """Return the numbers already kept, if they are of this machine and commit."""
    if save is None or not save.exists():
        return {"cases": {}}
    results: dict[str, Any] = json.loads(save.read_text())
    if results["about"]["machine"] != machine:
        raise click.UsageError(f"{save} was measured on {results['about']['machine']}: choose another file")
    return results


if __name__ == "__main__":
    main()
