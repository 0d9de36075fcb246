"""The page and the plots of ``bench_completion.py``, made from its kept numbers alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from completion_rivals import RIVALS

# CPU seconds on one thread of other hardware, measured earlier on problems of the same kind.
QUOTED = [
    ("MatrixIRLS", {"500": "3.4", "rho1.5": "103", "kappa1e5": "74", "kappa1e10": "143", "5000": "48.5"}),
    ("GNMR", {"500": "9", "rho1.5": "52"}),
    ("RTRMC", {"kappa1e5": "fails", "kappa1e10": "fails", "5000": "7.5"}),
    ("LRGeomCG", {"kappa1e5": "fails", "kappa1e10": "fails", "5000": "2.3, to 2e-7"}),
]
COLOURS = {
    "fastrfm": "#0b3c8c",
    "pymanopt CG": "#c2571a",
    "pymanopt TR": "#1f8a5b",
    "cmfrec": "#8e5aa8",
    "cmfrec λ": "#d67fc0",
    "fancyimpute": "#7a7a7a",
}
SUCCESS = 1e-8


def table(head: Sequence[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def render(results: dict[str, Any], drawn: list[str]) -> str:
    """Return the page."""
    about = results["about"]
    packages = ", ".join(f"{name} {number}" for name, number in about["rivals"].items()) or "none installed"
    parts = [
        "# Benchmarks of the two-sided method\n",
        "`python scripts/bench_completion.py --write` makes this page, in one run or, with `--save`, from parts. "
        f"Measured on {about['machine']}; rivals: "
        f"{packages}. One thread, compiled code warm, ours and rivals in turn in the same process. Errors are relative "
        "Frobenius errors over the whole matrix, against the truth; under noise, against the least-squares fit in "
        "the tangent space at the truth (the oracle).\n",
        "Problems: Haar factors, singular values evenly spaced in the logarithm from κ to 1, entries uniform among "
        "the sets with at least rank + 1 in every row and column; ρ is entries over degrees of freedom, "
        "r (rows + columns − r).\n",
    ]
    cases = results["cases"]
    if cases:
        parts += ["## Ours\n", _call(), _ours(cases, "ours"), "### Rank not given\n", _ours(cases, "unknown_rank")]
        parts += ["## Rivals from PyPI\n", _rivals(cases, about), _settings()]
        parts += ["## Other codes, quoted\n", _quoted(cases)]
    captions = {"error-against-time.png": "Error against time", "success.png": "Success against ρ"}
    parts += [f"## {captions[name]}\n\n![{captions[name]}](benchmarks/{name})\n" for name in drawn]
    if results.get("success"):
        parts += ["## Which instances have a unique answer\n", _unique(results["success"])]
    if results.get("sweep"):
        parts += ["## Speed of a sweep\n", _sweep(results["sweep"])]
    if results.get("large"):
        parts += ["## Large\n", _large(results["large"])]
    return "\n".join(parts)


def _call() -> str:
    return (
        '`fastrfm.complete(observations, rank, method="two-sided", tol=1e-13, n_threads=1)`, `tol=1e-4` under noise. '
        "Times include everything but making the `Observations`.\n"
    )


def _problem(case: dict[str, Any]) -> str:
    """Return a case in a few words."""
    (n_rows, n_cols), rank = case["shape"], case["rank"]
    rho = case["n_observed"] / (rank * (n_rows + n_cols - rank))
    size = f"{n_rows}²" if n_rows == n_cols else f"{n_rows} x {n_cols}"
    kappa = f", κ {case['kappa']:g}" if case["kappa"] != 1.0 else ""
    noise = f", noise {100 * case['noise']:g} %" if case["noise"] else ""
    return f"{size}, rank {rank}, {case['n_observed']} entries (ρ {rho:.2f}){kappa}{noise}"


def _shown_error(case: dict[str, Any], run: dict[str, Any]) -> float:
    return float(run["error"] / run["oracle"] if case["noise"] else run["error"])


def _pair(values: Sequence[float], form: str) -> str:
    return f"{format(float(np.median(values)), form)} / {format(float(np.max(values)), form)}"


def _ours(cases: dict[str, Any], key: str) -> str:
    head = ["problem", "asked", "reached", "error, median / max", "seconds, median / max"]
    head += ["within time"] if key == "ours" else ["exact rank"]
    rows = []
    for case in cases.values():
        runs = case[key]
        n = len(runs)
        errors = [_shown_error(case, run) for run in runs]
        shown = _pair(errors, ".4f") + " x oracle" if case["noise"] else _pair(errors, ".1e")
        asked = case["asked"] if key == "ours" else "the same error, the exact rank, in 18/20"
        last = f"{sum(run['rank'] == case['rank'] for run in runs)}/{n}"
        if key == "ours":
            late = case["seconds"]
            last = "–" if late is None else f"{sum(run['seconds'] <= late for run in runs)}/{n}"
        reached = f"{sum(run['is_reached'] for run in runs)}/{n}"
        counted = [_pair([run[count] for run in runs], ".0f") for count in ("iterations", "inner_steps")]
        seconds = _pair([run["seconds"] for run in runs], ".3f")
        rows.append([_problem(case), asked, reached, shown, seconds, last, *counted])
    limit = max(case["limit"] for case in cases.values())
    return table([*head, "iterations", "inner steps"], rows) + f"\nRuns are stopped after {limit:g} s.\n"


def _rivals(cases: dict[str, Any], about: dict[str, Any]) -> str:
    present = [name for name in RIVALS if any(case["rivals"].get(name) for case in cases.values())]
    rows = []
    for case in cases.values():
        line = [_problem(case), f"{np.median([run['seconds'] for run in case['ours']]):.3f} s"]
        for name in present:
            line.append(_versus(case, case["rivals"].get(name, [])))
        rows.append(line)
    n_seeds = max((len(runs) for case in cases.values() for runs in case["rivals"].values()), default=0)
    text = (
        f"The rivals get {'the first seed' if n_seeds == 1 else f'the first {n_seeds} seeds'} of each problem. "
        "Where one reached the error asked for: its time over ours on the same problem (median), how often it "
        "did, and its median error. Otherwise the best error of all its runs, and the time of the longest. None is "
        f"given more than {about['rival_limit']:g} s a run, and one is given up earlier only when its error is above "
        "200 % and has "
        "risen through three doublings of its iterations; `–` stands for not tried (dense and too large).\n\n"
    )
    return text + table(["problem", "ours", *present], rows)


def _versus(case: dict[str, Any], outcomes: list[dict[str, Any]]) -> str:
    """Return one rival's cell."""
    if not outcomes:
        return "–"
    ours = {run["seed"]: run for run in case["ours"]}
    reached = [outcome for outcome in outcomes if outcome["is_reached"]]
    scale = [ours[outcome["seed"]]["oracle"] or 1.0 for outcome in outcomes]
    error = float(np.median([outcome["error"] / unit for outcome, unit in zip(outcomes, scale, strict=True)]))
    shown = f"{error:.3f} x oracle" if case["noise"] else f"{error:.0e}"
    if not reached:
        if not np.isfinite(error):
            return f"no answer ({outcomes[0]['note']})"
        longest = np.median(
            [max(seconds for _, seconds, _ in outcome["trail"]) for outcome in outcomes if outcome["trail"]]
        )
        return f"not reached: at best {shown}, longest run {longest:.3g} s"
    ratio = float(np.median([outcome["seconds"] / ours[outcome["seed"]]["seconds"] for outcome in reached]))
    return f"**{ratio:.3g} x** ({len(reached)}/{len(outcomes)}, {shown})"


def _settings() -> str:
    text = (
        "All are given the true rank and data scaled to a root mean square of one. They run afresh with 1, 2, 4, … "
        "times a first number of iterations; only the first run that reaches the error asked for counts, so that none "
        "pays for its stopping rule.\n\n"
    )
    return text + "\n".join(f"- **{name}**: {rival.settings}." for name, rival in RIVALS.items()) + "\n"


def _quoted(cases: dict[str, Any]) -> str:
    names = [name for name in cases if any(name in quoted for _, quoted in QUOTED)]
    if not names:
        return "None for these problems.\n"
    rows = [
        [_problem(cases[name]), f"{np.median([run['seconds'] for run in cases[name]['ours']]):.3f}"]
        + [quoted.get(name, "–") for _, quoted in QUOTED]
        for name in names
    ]
    text = (
        "Not measured here: CPU seconds on one thread of other hardware, on problems of the same kind. These codes "
        "are not on PyPI; read them as orders of magnitude.\n\n"
    )
    return text + table(["problem", "ours, measured here", *(name for name, _ in QUOTED)], rows)


def _unique(points: list[dict[str, Any]]) -> str:
    text = (
        "The Jacobian of (L, R) → (L Rᵀ)_Ω at the truth has nullity r² where the answer is locally unique. The others "
        "are left out of the plot: no method can find what the data do not say.\n\n"
    )
    rows = []
    for point in points:
        excess = point["excess"]
        n = f"{sum(e == 0 for e in excess)}/{len(excess)}" if excess else "rank + 1 in every row is impossible"
        ours = [e for e, extra in zip(point["runs"].get("fastrfm", []), excess, strict=True) if extra == 0]
        rows.append([f"{point['kappa']:g}", f"{point['rho']:g}", n, f"{sum(e <= SUCCESS for e in ours)}/{len(ours)}"])
    return text + table(["κ", "ρ", "nullity exactly r²", "ours, of these, error ≤ 1e-8"], rows)


def _sweep(rows: list[dict[str, Any]]) -> str:
    text = (
        "`eliminated_sweep`, 8 k operations for each observed entry, float64. Cores given: processor time over time "
        "with two threads; where that is near one, the machine was busy and the scaling says nothing.\n\n"
    )
    head = ["matrix", "k", "GFLOP/s, one thread", "two threads", "two over one", "cores given", "equal bits"]
    lines = []
    for row in rows:
        two = [f"{row[key]:.2f}" if row[key] else "–" for key in ("two", "scaling", "cores")]
        same = {True: "yes", False: "no", None: "–"}[row["is_equal"]]
        size = f"{row['shape'][0]} x {row['shape'][1]}, {row['per_row']} a row"
        lines.append([size, str(row["k"]), f"{row['one']:.2f}", *two, same])
    return text + table(head, lines)


def _large(row: dict[str, Any]) -> str:
    gib = 2.0**30
    return (
        f"{row['shape'][0]} x {row['shape'][1]}, rank {row['rank']}, {row['n_observed']} entries, in a process of its "
        f"own on {row['threads']} threads: error {row['error']:.1e} (asked ≤ 1e-8) in {row['seconds']:.1f} s, "
        f"{row['iterations']} iterations, {row['inner_steps']} inner steps, {row['reason']}. Peak resident memory "
        f"{row['peak'] / gib:.2f} GiB, {row['peak'] / row['bytes']:.2f} x the observations' {row['bytes'] / gib:.2f} "
        f"GiB (asked ≤ 3 x); Python with everything loaded takes {row['bare_peak'] / gib:.2f} GiB, making the problem "
        f"{row['peak_before'] / gib:.2f} GiB.\n"
    )


def plots(results: dict[str, Any], folder: Path) -> list[str]:
    """Draw what there is, into `folder`; return the names of the files (none without matplotlib)."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    drawn = []
    if results.get("curve"):
        _draw_curves(results["curve"], folder / "error-against-time.png")
        drawn.append("error-against-time.png")
    if results.get("success"):
        _draw_success(results["success"], folder / "success.png")
        drawn.append("success.png")
    return drawn


def _panels(n: int) -> tuple[Any, Any]:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, n, figsize=(4.8 * n + 0.4, 4.0), sharey=True, squeeze=False, layout="constrained")
    for axis in axes[0]:
        axis.grid(True, color="#dddddd", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes[0]


def _save(figure: Any, axes: Any, path: Path) -> None:
    from matplotlib import pyplot

    named: dict[str, Any] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        named.update(zip(labels, handles, strict=True))
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _draw_curves(curves: list[dict[str, Any]], path: Path) -> None:
    figure, axes = _panels(len(curves))
    for axis, curve in zip(axes, curves, strict=True):
        for name, trail in curve["curves"].items():
            points = [(seconds, error) for _, seconds, error in trail if np.isfinite(error)]
            if points:
                times, errors = zip(*sorted(points), strict=True)
                width = 2.2 if name == "fastrfm" else 1.3
                axis.loglog(times, errors, "o-", color=COLOURS[name], linewidth=width, markersize=3.5, label=name)
        axis.set_ylim(1e-16, 10.0)
        axis.set_title(_problem(curve), fontsize=9)
        axis.set_xlabel("seconds, one thread")
    axes[0].set_ylabel("relative error over the whole matrix")
    _save(figure, axes, path)


def _draw_success(points: list[dict[str, Any]], path: Path) -> None:
    kappas = sorted({point["kappa"] for point in points})
    figure, axes = _panels(len(kappas))
    for axis, kappa in zip(axes, kappas, strict=True):
        own = [point for point in points if point["kappa"] == kappa]
        for name in COLOURS:
            line = []
            for point in own:
                pairs = zip(point["runs"].get(name, []), point["excess"], strict=False)  # rivals get fewer seeds
                unique = [error for error, extra in pairs if extra == 0]
                if unique:
                    line.append((point["rho"], sum(error <= SUCCESS for error in unique) / len(unique)))
            if line:
                width = 2.2 if name == "fastrfm" else 1.3
                axis.plot(
                    *zip(*line, strict=True), "o-", color=COLOURS[name], linewidth=width, markersize=4, label=name
                )
        axis.set_ylim(-0.04, 1.04)
        size, rank = own[0]["size"], own[0]["rank"]
        axis.set_title(f"{size} x {size}, rank {rank}, κ {kappa:g}", fontsize=9)
        axis.set_xlabel("ρ: entries over degrees of freedom")
    axes[0].set_ylabel(f"share with error ≤ {SUCCESS:.0e}")
    _save(figure, axes, path)
