"""Measure completion of files larger than the memory allowed: peak memory, time a pass, and speed against memory.

For each size a file of a synthetic low-rank matrix with noise is written, completed from the file under a budget and,
for comparison, from memory; each run in a process of its own. ``--smoke`` shows on a small file that it all runs.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
from bench_common import describe_machine, peak_bytes

from fastrfm import complete, open_observations
from fastrfm._hdf5 import mark, writing_large_hdf5
from fastrfm._layout import create_observations
from fastrfm._memory import parse_memory
from fastrfm.solvers.monitor import Iteration

RANK = 10
EVERYTHING = 2**50  # a budget that nothing exceeds
SIZES = {"10M": (100_000, 10_000, 100), "50M": (500_000, 50_000, 100), "200M": (2_000_000, 200_000, 100)}
SMOKE = {"smoke": (3000, 400, 20)}
METHODS: dict[str, dict[str, Any]] = {
    "factored": {"method": "factored", "ridge": 5.0, "agop_power": 0.25, "smoothing": 1.0},
    "two-sided": {"method": "two-sided"},
    "dense": {"method": "dense", "ridge": 5.0, "agop_power": 0.25, "smoothing": 1.0},
}
DENSE_COLS = 1000  # its Gram has the square of the columns


def write_problem(path: Path, n_rows: int, n_cols: int, per_row: int, seed: int = 0) -> None:
    """Write float32 entries of a rank-10 matrix with 10 % noise, one in each of `per_row` strata of a row's columns."""
    rng = np.random.default_rng(seed)
    right = rng.standard_normal((n_cols, RANK)) / np.sqrt(RANK)
    n, width = n_rows * per_row, n_cols // per_row
    with writing_large_hdf5(path, True, 8 * n + 8 * (n_rows + 1)) as file:
        mark(file)
        indptr = np.arange(n_rows + 1, dtype=np.int64) * per_row
        data, indices = create_observations(file, (n_rows, n_cols), indptr, np.dtype("f4"), np.dtype("i4"))
        for start in range(0, n_rows, 20_000):
            rows = min(20_000, n_rows - start)
            cols = rng.integers(0, width, (rows, per_row)) + np.arange(per_row) * width
            left = rng.standard_normal((rows, RANK))
            values = np.einsum("ia,ija->ij", left, right[cols]) + 0.1 * rng.standard_normal(cols.shape)
            span = slice(start * per_row, (start + rows) * per_row)
            data[span], indices[span] = values.ravel(), cols.ravel()


def run(path: Path, options: dict[str, Any], memory: int, n_iter: int) -> dict[str, float]:
    """Complete a file; return seconds of a middle iteration, its inner steps, peak memory and processor use."""
    marks: list[tuple[float, float]] = []

    def note(seen: Iteration) -> bool:
        marks.append((time.perf_counter(), time.process_time()))
        return False

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        observations = open_observations(path, memory=memory)
        complete(observations, RANK, max_iter=n_iter, tol=1e-12, callback=note, **options)
    wall, cpu = (np.diff([mark[k] for mark in marks]) for k in (0, 1))
    return {
        "seconds": float(np.median(wall)),
        "cores": float(cpu.sum() / wall.sum()),
        "peak": float(peak_bytes()),
        "factors": 8.0 * RANK * sum(observations.shape),
        "is_stored": float(type(observations).__name__ == "StoredObservations"),
    }


def bare(path: Path) -> dict[str, float]:
    """Return the peak memory of a process that has everything loaded and compiled, on a small file."""
    for options in METHODS.values():
        run(path, options, 1, 3)
    return {"peak": float(peak_bytes())}


def read_rate(path: Path, memory: int) -> dict[str, float]:
    """Return bytes a second of a pass that only reads."""
    observations = open_observations(path, memory=memory)
    start = time.perf_counter()
    for _ in observations.row_blocks():
        pass
    return {"rate": 8.0 * observations.n_observed / (time.perf_counter() - start)}


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function returns in a fresh process, whose memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


@click.command()
@click.option("--smoke", is_flag=True, help="A small file, to show that the script runs.")
@click.option("--sizes", default=",".join(SIZES), show_default=True, help="Comma-separated.")
@click.option(
    "--methods",
    default="factored,two-sided",
    show_default=True,
    help=f"Comma-separated; dense too, on {DENSE_COLS} columns, a minute and more an iteration from 50M on.",
)
@click.option("--memory", default="512M", show_default=True, help="Budget of the runs from the file.")
@click.option("--iterations", default=5, show_default=True, help="Of each run.")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), help="For the files. [default: temporary]")
def main(smoke: bool, sizes: str, methods: str, memory: str, iterations: int, folder: Path | None) -> None:
    """Complete files under a memory budget and print peak memory, time and speed against memory."""
    budget = 4096 if smoke else parse_memory(memory)
    problems = SMOKE if smoke else {name: SIZES[name] for name in sizes.split(",")}
    click.echo(describe_machine())
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        small = Path(scratch) / "small.h5"
        write_problem(small, *SMOKE["smoke"])
        base = alone(bare, small)["peak"]
        click.echo(f"loaded and compiled: {base / 1e6:.0f} MB resident; budget {budget / 1e6:.0f} MB, rank {RANK}")
        for name, problem in problems.items():
            path = Path(scratch) / f"{name}.h5"
            wanted = sorted(methods.split(","), key=lambda method: method == "dense")
            for k, method in enumerate(wanted):
                shape = (problem[0], min(DENSE_COLS, problem[1]), problem[2]) if method == "dense" else problem
                if k == 0 or method == "dense":
                    path.unlink(missing_ok=True)
                    alone(write_problem, path, *shape)
                    rate = alone(read_rate, path, budget)["rate"]
                options = METHODS[method]
                stored = alone(run, path, options, budget, iterations)
                kept = alone(run, path, options, EVERYTHING, iterations)
                _echo(name, method, shape, stored, kept, base, budget, rate)
            path.unlink()


def _echo(
    name: str,
    method: str,
    problem: tuple[int, int, int],
    stored: dict[str, float],
    kept: dict[str, float],
    base: float,
    budget: int,
    rate: float,
) -> None:
    n, how = problem[0] * problem[2], "from the file" if stored["is_stored"] else "read, for it fits"
    over = stored["peak"] - base - budget - stored["factors"]
    share = 8.0 * n / rate / stored["seconds"]
    limit = "reading" if share > 0.5 else "arithmetic" if stored["cores"] > 1.2 else "one thread between the kernels"
    click.echo(
        f"{name:6} {problem[0]} x {problem[1]}, {n / 1e6:g} M entries, {method}: {stored['seconds']:.2f} s an "
        f"iteration {how}, {kept['seconds']:.2f} s from memory, a speed of {kept['seconds'] / stored['seconds']:.0%}; "
        f"peak {stored['peak'] / 1e6:.0f} MB (in memory {kept['peak'] / 1e6:.0f}), factors "
        f"{stored['factors'] / 1e6:.0f} MB, beyond all of these {over / 1e6:+.0f} MB; reads at {rate / 1e9:.2f} GB/s, "
        f"one pass is {share:.0%} of an iteration, {stored['cores']:.2f} cores busy: limited by {limit}"
    )


if __name__ == "__main__":
    main()
