"""Measure ``method="factored"``: row sweep rate, thread scaling, and time and peak memory on 20 million entries.

Prints ratios from one run. ``--smoke`` runs everything once at small sizes, to show that it runs.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from functools import partial
from multiprocessing.queues import Queue

import click
import numpy as np
from bench_common import describe_machine, median_ratio, median_seconds, uniform_rows

from fastrfm import Observations, complete
from fastrfm._numba import available_threads, thread_limit
from fastrfm.solvers.factored import FeatureFactors, RowRegression, multiply_transposed, regress_rows


def sweep_flops(n_rows: int, per_row: int, k: int) -> float:
    """Return the arithmetic of one row sweep: Gram, right side, Cholesky, residual, projection, all on k directions."""
    return n_rows * (per_row * k * (k + 1) + 6 * per_row * k + k**3 / 3 + 2 * k**2)


def random_features(n_cols: int, k: int) -> FeatureFactors:
    """Return a feature Gram with k orthonormal random directions and penalties between 0.1 and 1."""
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.standard_normal((n_cols, k)))[0]
    return FeatureFactors(basis, np.linspace(0.1, 1.0, k), 0.5)


def sweep_rates(n_rows: int, n_cols: int, per_row: int, ranks: list[int], repeats: int) -> None:
    """Rates of the two sweeps of an iteration on one thread, and what a second thread brings."""
    observations = uniform_rows(n_rows, n_cols, per_row, seed=0)
    click.echo(f"sweeps over {n_rows} x {n_cols}, {per_row} entries a row, float64, one thread")
    for k in ranks:
        features = random_features(n_cols, k)
        solved = regress_rows(observations, features)

        def rows(n_threads: int = 1, features: FeatureFactors = features) -> None:
            with thread_limit(n_threads):
                regress_rows(observations, features)

        def columns(
            n_threads: int = 1,
            features: FeatureFactors = features,
            solved: RowRegression = solved,
        ) -> None:
            with thread_limit(n_threads):
                multiply_transposed(observations, features, solved.part, solved.projection)

        row_seconds, column_seconds = median_seconds(rows, repeats), median_seconds(columns, repeats)
        rate = sweep_flops(n_rows, per_row, k) / row_seconds / 1e9
        column_rate = 4.0 * observations.n_observed * k / column_seconds / 1e9
        line = f"  k = {k:3d}: rows {row_seconds * 1e3:8.1f} ms = {rate:5.1f} GFLOP/s, "
        line += f"columns {column_seconds * 1e3:8.1f} ms = {column_rate:5.1f} GFLOP/s"
        if available_threads() > 1:
            row_ratio = median_ratio(partial(rows, 1), partial(rows, 2), repeats)[2]
            column_ratio = median_ratio(partial(columns, 1), partial(columns, 2), repeats)[2]
            line += f"; two threads {row_ratio:.2f} x and {column_ratio:.2f} x"
        click.echo(line)


def _large_run(
    n_rows: int, n_cols: int, per_row: int, rank: int, n_iter: int, queue: Queue[tuple[float, float, float, float]]
) -> None:
    observations: Observations = uniform_rows(n_rows, n_cols, per_row, seed=0)
    entries_gib = (observations.values.nbytes + observations.indices.nbytes + observations.indptr.nbytes) / 2**30
    marks: list[float] = []

    def stop_after(_: object) -> bool:
        marks.append(time.perf_counter())
        return len(marks) >= n_iter

    start = time.perf_counter()
    complete(
        observations,
        rank,
        method="factored",
        agop_power=0.25,
        ridge=1.0,
        callback=stop_after,
    )
    seconds = time.perf_counter() - start
    per_iteration = float(np.median(np.diff(marks)))
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    queue.put((entries_gib, seconds, per_iteration, peak_gib))


def large_run(n_rows: int, n_cols: int, per_row: int, rank: int, n_iter: int) -> None:
    """Peak resident memory of a process of its own, the making of the observations included."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_large_run, args=(n_rows, n_cols, per_row, rank, n_iter, queue))
    process.start()
    entries_gib, seconds, per_iteration, peak_gib = queue.get()
    process.join()
    click.echo(f"{n_rows} x {n_cols}, {n_rows * per_row} entries ({entries_gib:.2f} GiB), rank {rank}, all threads")
    click.echo(f"  {n_iter} iterations in {seconds:.1f} s, {per_iteration:.2f} s each; peak memory {peak_gib:.2f} GiB")


@click.command()
@click.option("--repeats", default=7, show_default=True, help="Counted runs of each measurement.")
@click.option("--smoke", is_flag=True, help="Small sizes, one run each: shows that the script runs, measures nothing.")
def main(repeats: int, smoke: bool) -> None:
    """Measure the factored method and print rates, ratios and peak memory."""
    click.echo(describe_machine())
    if smoke:
        sweep_rates(200, 100, 10, [4], 1)
        large_run(2000, 500, 10, 3, 3)
        return
    sweep_rates(20_000, 10_000, 100, [5, 10, 20, 40, 80], repeats)
    large_run(1_000_000, 100_000, 20, 10, 10)


if __name__ == "__main__":
    main()
