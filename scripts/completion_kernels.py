"""Speed of the two-sided method's sweep, and peak memory of a large run in a process of its own."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.queues import Queue
from typing import Any

import click
import numpy as np
from bench_common import median_ratio, median_seconds, peak_bytes, uniform_rows
from completion_problems import make_problem

from fastrfm import Observations, complete
from fastrfm._lanes import padded
from fastrfm._numba import available_threads, thread_limit
from fastrfm.kernels.tangent import eliminated_sweep, factor_rows, factor_size
from fastrfm.solvers.estimate import Layout

LARGE_TOL = 1e-10


def sweep_rates(shapes: list[tuple[int, int, int]], ranks: list[int], repeats: int) -> list[dict[str, Any]]:
    """Rates of one sweep on one and two threads, 8 k operations an entry, and whether the bits are the same."""
    rows = []
    for n_rows, n_cols, per_row in shapes:
        observations = uniform_rows(n_rows, n_cols, per_row, seed=0)
        for k in ranks:
            sweep, read = _sweep(observations, k)
            giga = 8.0 * k * observations.n_observed / 1e9
            row: dict[str, Any] = {"shape": (n_rows, n_cols), "per_row": per_row, "k": k}
            if available_threads() > 1:
                one, two, ratio = median_ratio(partial(sweep, 1), partial(sweep, 2), repeats)
                sweep(1)
                first = read()
                sweep(2)
                is_equal = first == read()
                row.update(one=giga / one, two=giga / two, scaling=ratio, is_equal=is_equal, cores=_cores(sweep))
            else:
                row.update(
                    one=giga / median_seconds(partial(sweep, 1), repeats),
                    two=None,
                    scaling=None,
                    is_equal=None,
                    cores=None,
                )
            rows.append(row)
            scaling = (
                f", two threads {row['two']:.2f} = {row['scaling']:.2f} x on {row['cores']:.2f} cores"
                if row["two"]
                else ""
            )
            click.echo(
                f"sweep {n_rows} x {n_cols}, {per_row} a row, k = {k}: {row['one']:.2f} GFLOP/s{scaling}"
                f", equal bits: {row['is_equal']}"
            )
    return rows


def _cores(sweep: Callable[[int], None]) -> float:
    """Return processor time over time for two threads: near one, the machine did not give two cores."""
    start, used = time.perf_counter(), time.process_time()
    while time.perf_counter() - start < 0.5:
        sweep(2)
    return (time.process_time() - used) / (time.perf_counter() - start)


def _sweep(observations: Observations, k: int) -> tuple[Any, Any]:
    """Return a call of the sweep on so many threads, and one that reads the bytes it wrote."""
    rng = np.random.default_rng(1)
    left, basis = (padded(np.linalg.qr(rng.standard_normal((n, k)))[0]) for n in observations.shape)
    coefficients = padded(rng.standard_normal((observations.n_cols, k)))
    width = left.shape[1]
    layout = Layout.of(observations)
    n_parts = layout.n_parts(observations, k)
    factors = np.empty((observations.n_rows, factor_size(width)))
    entries = observations.indptr, observations.indices
    penalty = padded(np.full(k, 0.1), 1.0)
    factor_rows(layout.tiles, *entries, basis, penalty, factors)
    out = np.empty((n_parts, observations.n_cols, width))
    nothing = np.empty(0), np.empty((0, width)), np.empty(0)

    def sweep(n_threads: int) -> None:
        with thread_limit(n_threads):
            eliminated_sweep(
                layout.tiles, 0, n_parts, *entries, nothing[0], left, basis, coefficients, factors, penalty,
                *nothing[1:], out,
            )  # fmt: skip

    return sweep, out.tobytes


def _large_run(n_rows: int, n_cols: int, rank: int, n_observed: int, queue: Queue[dict[str, Any]]) -> None:
    complete(make_problem(40, 30, 2, 600, 0).observations, 2, method="two-sided")  # compiled code is loaded
    bare = peak_bytes()
    problem = make_problem(n_rows, n_cols, rank, n_observed, seed=0)
    before = peak_bytes()
    start = time.perf_counter()
    result = complete(problem.observations, rank, method="two-sided", tol=LARGE_TOL)
    seconds = time.perf_counter() - start
    after = peak_bytes()
    queue.put(
        {
            "shape": (n_rows, n_cols),
            "rank": rank,
            "n_observed": n_observed,
            "bytes": n_observed * 12,
            "bare_peak": bare,
            "peak_before": before,
            "peak": after,
            "seconds": seconds,
            "iterations": result.n_iter,
            "inner_steps": int(result.history["inner_steps"].sum()),
            "reason": result.stop_reason,
            "threads": available_threads(),
            "error": problem.error(result.left, result.right),
        }
    )


def large_run(n_rows: int, n_cols: int, rank: int, n_observed: int) -> dict[str, Any]:
    """Time, error and peak resident memory of a process of its own, the making of the problem included."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_large_run, args=(n_rows, n_cols, rank, n_observed, queue))
    process.start()
    while process.is_alive() and queue.empty():
        process.join(0.2)
    if queue.empty():
        raise click.ClickException(f"the large run ended with exit code {process.exitcode}: not enough memory?")
    row: dict[str, Any] = queue.get()
    process.join()
    click.echo(
        f"large {n_rows} x {n_cols}, {n_observed} entries: error {row['error']:.1e}, {row['seconds']:.1f} s, "
        f"{row['iterations']} iterations, peak {row['peak'] / 2**30:.2f} GiB = {row['peak'] / row['bytes']:.2f} x the "
        f"observations ({row['peak_before'] / 2**30:.2f} GiB before the solve, {row['bare_peak'] / 2**30:.2f} bare)"
    )
    return row
