"""Measure ``method="dense"``: one iteration against naive numpy, against the machine's dgemm, threads, CG crossover.

Prints ratios from one run. ``--smoke`` runs everything once at small sizes, to show that it runs.
"""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from types import ModuleType

import click
import numpy as np
from bench_common import describe_machine, low_rank_problem, median_ratio, uniform_rows

from fastrfm._numba import available_threads, thread_limit
from fastrfm.agop import feature_gram
from fastrfm.kernels import row_solves
from fastrfm.solvers.dense import N_PROBES, dense_step, slab_buffer

REFERENCE = Path(__file__).parent.parent / "tests" / "reference.py"


def load_reference() -> ModuleType:
    """Return the naive numpy twins that the tests compare against."""
    spec = importlib.util.spec_from_file_location("reference", REFERENCE)
    if spec is None or spec.loader is None:
        raise click.ClickException(f"{REFERENCE} is missing: run from a checkout")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def against_naive(size: int, n_observed: int, repeats: int) -> None:
    """One iteration at α = ½ on one thread, ours and two naive ones."""
    reference = load_reference()
    observations, left, right = low_rank_problem(size, size, 5, n_observed, seed=0)
    mask = np.zeros((size, size), dtype=bool)
    rows, cols, _ = observations.to_coo()
    mask[rows, cols] = True
    known = np.where(mask, left @ right.T, 0.0) * size
    observations = observations.with_values(known[rows, cols])
    probes, buffer = np.zeros((size, N_PROBES)), slab_buffer(observations)
    smoothing = 0.1 * float(np.linalg.norm(known))
    gram = np.zeros((size, size))

    def ours() -> np.ndarray:
        return dense_step(observations, feature_gram(gram, 0.5, smoothing), 0.0, probes, buffer).gram

    def row_by_row() -> np.ndarray:
        return np.asarray(reference.dense_iteration(known, mask, gram + smoothing**2 * np.eye(size), 0.0)[1])

    def blas_gram() -> np.ndarray:
        kernel = gram + smoothing**2 * np.eye(size)
        estimate = np.zeros_like(known)
        for i in range(size):
            seen = np.flatnonzero(mask[i])
            estimate[i] = np.linalg.solve(kernel[np.ix_(seen, seen)], known[i, seen]) @ kernel[seen]
        return np.asarray(estimate.T @ estimate)

    click.echo(f"one dense iteration, {size} x {size}, {n_observed} entries, one thread, alpha 1/2")
    with thread_limit(1):
        for _ in range(5):
            mine, twin = np.tril(ours()), np.tril(row_by_row())
            click.echo(
                f"  gram against the naive twin: relative difference {np.abs(mine - twin).max() / twin.max():.1e}"
            )
            gram = twin + np.tril(twin, -1).T
        for name, naive in (("naive twin, row by row", row_by_row), ("naive rows, BLAS Gram", blas_gram)):
            slow, fast, ratio = median_ratio(naive, ours, repeats)
            click.echo(f"  {name:24} {slow * 1e3:8.2f} ms   ours {fast * 1e3:7.2f} ms   ratio {ratio:6.1f}")


def against_dgemm(n_cols: int, per_row: int, repeats: int) -> None:
    """Row solves and Gram at large n_cols, as a share of the rate of one dgemm."""
    observations = uniform_rows(n_cols, n_cols, per_row, seed=0)
    rng = np.random.default_rng(0)
    square = rng.standard_normal((n_cols, n_cols))
    lower = square @ square.T / n_cols
    kernel = feature_gram(lower, 0.5, 1.0)
    probes, buffer = np.zeros((n_cols, N_PROBES)), slab_buffer(observations)
    counts = observations.row_counts.astype(float)
    flops = float((counts**3 / 3).sum() + 2 * n_cols * observations.n_observed + observations.n_rows * n_cols**2)
    with thread_limit(1):
        product, step, _ = median_ratio(
            lambda: square @ square, lambda: dense_step(observations, kernel, 0.0, probes, buffer), repeats
        )
    peak, rate = 2 * n_cols**3 / product / 1e9, flops / step / 1e9
    click.echo(f"row solves + Gram, {n_cols} x {n_cols}, {per_row} entries a row, one thread")
    click.echo(f"  {step:.2f} s, {rate:.1f} GFLOP/s; dgemm {peak:.1f} GFLOP/s; share {rate / peak:.2f}")
    if available_threads() > 1:

        def on(n_threads: int) -> None:
            with thread_limit(n_threads):
                dense_step(observations, kernel, 0.0, probes, buffer)

        _, _, ratio = median_ratio(lambda: on(1), lambda: on(2), repeats)
        click.echo(f"  two threads: {ratio:.2f} x one thread")


def crossover(lengths: list[int], repeats: int) -> None:
    """Time one row by factorisation and by conjugate gradients, for ridges that bound the condition number."""
    click.echo("row length: Cholesky ms; conjugate gradients / Cholesky at condition numbers 1.5, 3, 10 (one thread)")
    for length in lengths:
        rng = np.random.default_rng(length)
        basis = np.linalg.qr(rng.standard_normal((length, length)))[0]
        kernel = np.ascontiguousarray((basis * np.linspace(0.0, 1.0, length)) @ basis.T)
        matrix = (kernel + kernel.T) / 2
        ridges = [1.0 / (condition - 1.0) for condition in (1.5, 3.0, 10.0)]
        line = f"  {length:6d}:"
        for ridge in ridges:
            direct, iterative, _ = median_ratio(
                partial(one_row, matrix, ridge, is_iterative=False),
                partial(one_row, matrix, ridge, is_iterative=True),
                repeats,
            )
            line += f" {direct * 1e3:8.2f}" if ridge == ridges[0] else ""
            line += f" {iterative / direct:6.2f}"
        click.echo(line)


def one_row(matrix: np.ndarray, ridge: float, *, is_iterative: bool) -> None:
    """Solve one system by the kernel's own parts."""
    n = len(matrix)
    system = np.tril(matrix) + ridge * np.eye(n)
    rhs = np.ones(n)
    if is_iterative:
        if not row_solves._conjugate_gradients(system, n, rhs, n, np.empty((4, n))):
            raise click.ClickException(f"conjugate gradients failed at n = {n}, ridge = {ridge}")
    else:
        row_solves._cholesky_solve(system, n, rhs, np.empty(n))


@click.command()
@click.option("--repeats", default=9, show_default=True, help="Counted runs of each measurement.")
@click.option("--crossover", "with_crossover", is_flag=True, help="Also time conjugate gradients against Cholesky.")
@click.option("--smoke", is_flag=True, help="Small sizes, one run each: shows that the script runs, measures nothing.")
def main(repeats: int, with_crossover: bool, smoke: bool) -> None:
    """Measure the dense method and print ratios."""
    click.echo(describe_machine())
    if smoke:
        against_naive(100, 2000, 1)
        against_dgemm(200, 20, 1)
        crossover([64, 256], 1)
        return
    against_naive(500, 10_000, repeats)
    against_dgemm(4000, 100, max(repeats // 3, 1))
    if with_crossover:
        crossover([100, 200, 400, 600, 800, 1200, 2000], repeats)


if __name__ == "__main__":
    main()
