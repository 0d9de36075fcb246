"""The page and the plot of ``bench_sparse.py``, made from its kept numbers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from completion_page import table

COLOURS = ["#7a7a7a", "#8e5aa8", "#1f8a5b", "#0b3c8c", "#c2571a"]


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the share of recovered vectors against the number of samples, a line for each α."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.0, 3.6), layout="constrained")
    for colour, power in zip(COLOURS, dict.fromkeys(row["power"] for row in rows), strict=False):
        mine = [row for row in rows if row["power"] == power]
        axes.plot([r["n"] for r in mine], [r["found"] / r["of"] for r in mine], "o-", color=colour, label=power, ms=4)
    axes.set(xlabel="samples", ylabel="share recovered", ylim=(-0.03, 1.03))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def render(results: dict[str, Any]) -> str:
    """Return the page."""
    about = results["about"]
    packages = ", ".join(f"{name} {number}" for name, number in about["rivals"].items()) or "none installed"
    return "\n".join(
        [
            "# Sparse regression\n",
            "`SparseRegression` minimises ½ ‖y − Aβ‖² + λ Σ |β|^p / p, p = 2 − 4α, by lin-RFM with a diagonal AGOP: "
            "K = diag(|β|^(4α)), (A K Aᵀ + λ I) a = y, β = K Aᵀ a. With a ridge it works on the columns that the "
            "penalty selects, from the ridge at which there are none down to the one asked for (own derivation of the "
            "entry rule: `fastrfm/solvers/sparse_penalty.py`); without one it keeps all columns, lowers ε and ends "
            "where a gap shows an exact sparse answer.\n",
            f"Made by `python scripts/bench_sparse.py --write`. Measured on {about['machine']}; rivals: {packages}. "
            "One thread, one process, methods in turn, after a small run that does not count; other programs ran "
            "beside it, so that seconds are upper bounds for all. Parts may come from several runs (`--save`).\n",
            "The entry rule and the powers were settled on four other problems of the table's kind, whose true errors "
            "were seen. How far down the ridges of cross-validation go was settled on three other splits of the "
            "same real data, whose held-out errors were seen beside those of the "
            "folds: real rows are not blind to that.\n",
            "## Exact recovery\n",
            "1000 features, 50 ones, Gaussian A, no noise; recovered means every coefficient within 1e-6. Asked: 20 of "
            "20 at 250 samples.\n",
            _success(results["success"]),
            "![Share recovered against samples](benchmarks/sparse-success.png)\n",
            "## Beside other packages\n",
            "500 samples, 5000 features, 20 ones, correlation 0.5^|i−j|, SNR = ‖Aβ‖ / ‖noise‖. Every method walks 100 "
            "ridges down (OMP 50 features; abess chooses for itself among 0 … 50) and stops beyond 250 features; the "
            "step is chosen by the error on 500 further samples, never by the truth. Medians over seeds; seconds are "
            "of the whole path. Asked: no slower than skglm's non-convex solvers at no larger error for SNR from 6.\n",
            *[_rivals(results["rivals"], snr) for snr in dict.fromkeys(row["snr"] for row in results["rivals"])],
            "## Real data\n",
            "Random fifths held out; settings are chosen by five folds of the rest. Features standardised. Medians. "
            "abess is missing where it refuses a column that is constant in one of its folds.\n",
            *[_real(results["real"], name) for name in dict.fromkeys(row["data"] for row in results["real"])],
            "## Many features\n",
            "10 ones times 3, noise a tenth of the signal, α = ½, all threads of the process; memory is what the peak "
            "grew by.\n",
            table(
                ["features in", "shape", "seconds", "found", "selected", "MiB"],
                [
                    [r["name"], f"{r['shape'][0]} x {r['shape'][1]}", f"{r['seconds']:.1f}", f"{r['n_found']} of 10",
                     str(r["n_active"]), str(r["peak_mib"])]
                    for r in results["large"]
                ],
            ),
        ]
    )  # fmt: skip


def _success(rows: list[dict[str, Any]]) -> str:
    ns = list(dict.fromkeys(row["n"] for row in rows))
    lines = []
    for power in dict.fromkeys(row["power"] for row in rows):
        mine = {row["n"]: row for row in rows if row["power"] == power}
        last = mine[ns[-1]]
        lines.append([power, *[f"{mine[n]['found']}/{mine[n]['of']}" for n in ns], f"{last['seconds']:.2f}"])
    return table(["α", *[f"n = {n}" for n in ns], f"seconds at {ns[-1]}"], lines)


def _rivals(rows: list[dict[str, Any]], snr: str) -> str:
    here = [row for row in rows if row["snr"] == snr]
    lines = []
    for method in dict.fromkeys(row["method"] for row in here):
        mine = [row for row in here if row["method"] == method]
        seconds = [row["seconds"] for row in mine if row["seconds"] is not None]
        errors = [row["error"] for row in mine]
        lines.append(
            (
                float(np.median(errors)),
                [
                    f"**{method}**" if method.startswith("fastrfm") else method,
                    f"{np.median(errors):.3g}",
                    f"{min(errors):.3g} … {max(errors):.3g}",
                    f"{np.median([row['f1'] for row in mine]):.3f}",
                    f"{np.median([row['n_active'] for row in mine]):g}",
                    f"{np.median(seconds):.2f}" if seconds else "–",
                ],
            )
        )
    lines.sort(key=lambda line: line[0])
    title = f"### SNR {'∞' if snr == 'inf' else f'{float(snr):g}'}, {len({row['seed'] for row in here})} seeds\n"
    head = ["method", "error", "range", "F1", "features", "seconds"]
    return title + "\n" + table(head, [line for _, line in lines])


def _real(rows: list[dict[str, Any]], name: str) -> str:
    here = [row for row in rows if row["data"] == name]
    lines = []
    for method in dict.fromkeys(row["method"] for row in here):
        mine = [row for row in here if row["method"] == method]
        rmse = [row["rmse"] for row in mine]
        lines.append(
            (
                float(np.median(rmse)),
                [
                    f"**{method}**" if method.startswith("fastrfm") else method,
                    f"{np.median(rmse):.4g}",
                    f"{min(rmse):.3g} … {max(rmse):.3g}",
                    f"{np.median([row['n_active'] for row in mine]):g}",
                    f"{np.median([row['seconds'] for row in mine]):.2f}",
                ],
            )
        )
    lines.sort(key=lambda line: line[0])
    unit = "fat, per cent; 215 x 100 spectra" if name == "tecator" else "log10 permeability; 165 x 1107 fingerprints"
    n_splits = len({row["seed"] for row in here})
    head = ["method", "RMSE", "range", "features", "seconds"]
    return f"### {name} ({unit}), {n_splits} splits\n\n" + table(head, [line for _, line in lines])
