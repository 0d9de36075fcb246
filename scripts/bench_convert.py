"""Measure ``fastrfm convert`` on triples in random order: triples per second and peak memory, from csv and from HDF5.

Each run is a process of its own, so that its peak counts nothing else (the files too are made in one); a first run at
a small size, not counted, compiles and fills the kernel cache. Times begin when the process has loaded the package
and include loading its kernels. ``--smoke`` runs everything once at small sizes, to show that it runs.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import tempfile
import time
from multiprocessing.queues import Queue
from pathlib import Path

import click
import h5py
import numpy as np
from bench_common import describe_machine

from fastrfm._memory import parse_memory

_PIECE = 1 << 20
_CONTEXT = multiprocessing.get_context("spawn")


def source_paths(folder: Path) -> dict[str, Path]:
    """Return the kinds of input and where each lies."""
    return {
        "HDF5": folder / "triples.h5",
        "csv, half stars": folder / "stars.csv",
        "csv, 17 digits": folder / "reals.csv",
    }


def write_sources(folder: Path, n: int, n_rows: int, n_cols: int) -> None:
    """Write the same `n` triples (half stars at places in random order) as csv and HDF5, and as csv with 17 digits."""
    rng = np.random.default_rng(0)
    step = n_rows * n_cols // n  # one place in each of n strata, then shuffled: no pair twice
    places = np.arange(n) * step + rng.integers(0, step, n)
    rng.shuffle(places)
    rows, cols = np.divmod(places, n_cols)
    values = rng.integers(1, 11, n) / 2
    paths = source_paths(folder)
    with h5py.File(paths["HDF5"], "w") as file:
        file["rows"], file["cols"], file["values"] = rows.astype(np.int32), cols.astype(np.int32), values
    for name, written in (("csv, half stars", values), ("csv, 17 digits", rng.standard_normal(n))):
        with paths[name].open("w") as text:
            text.write("row,column,value\n")
            for start in range(0, n, _PIECE):
                part = slice(start, start + _PIECE)
                table = zip(rows[part].tolist(), cols[part].tolist(), written[part].tolist(), strict=True)
                text.writelines(f"{row},{col},{value!r}\n" for row, col, value in table)


def _convert(source: Path, memory: int, queue: Queue[tuple[float, float, int]]) -> None:
    from fastrfm.conversion import convert

    output = source.with_suffix(".out.h5")
    start = time.perf_counter()
    done = convert(source, output, memory=memory, force=True)
    seconds = time.perf_counter() - start
    os.unlink(output)
    queue.put((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, done.n_observed))


def run(source: Path, memory: int) -> tuple[float, float, int]:
    """Return seconds, peak memory in MiB and triples of one conversion in a process of its own."""
    queue = _CONTEXT.Queue()
    process = _CONTEXT.Process(target=_convert, args=(source, memory, queue))
    process.start()
    answer: tuple[float, float, int] = queue.get()
    process.join()
    return answer


def make(folder: Path, n: int, n_rows: int, n_cols: int) -> None:
    """Write the sources in a process of their own: a child's peak memory begins at that of its parent."""
    process = _CONTEXT.Process(target=write_sources, args=(folder, n, n_rows, n_cols))
    process.start()
    process.join()


@click.command()
@click.option("--triples", "n", default=20_000_000, show_default=True, help="Triples in each file.")
@click.option("--repeats", default=3, show_default=True, help="Counted runs of each measurement.")
@click.option("--memory", "budgets", multiple=True, default=("64M", "4G"), show_default=True, help="Budgets.")
@click.option("--folder", type=click.Path(path_type=Path), default=None, help="Where files are made. [default: temp]")
@click.option("--smoke", is_flag=True, help="Small sizes, one run each: shows that the script runs, measures nothing.")
def main(n: int, repeats: int, budgets: tuple[str, ...], folder: Path | None, smoke: bool) -> None:
    """Measure conversions and print triples per second, start of the process's kernels included."""
    click.echo(describe_machine())
    n, repeats = (20_000, 1) if smoke else (n, repeats)
    budgets = ("100K",) if smoke else budgets
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        if not smoke:
            make(Path(scratch), 600_000, 10_000, 10_000)
            for path in source_paths(Path(scratch)).values():
                run(path, 1 << 20)
        make(Path(scratch), n, max(n // 20, 1000), 50_000)
        click.echo(f"{n} triples, {max(n // 20, 1000)} x 50000, random order, median of {repeats}")
        for name, path in source_paths(Path(scratch)).items():
            for budget in budgets:
                seconds, peaks, counts = zip(*(run(path, parse_memory(budget)) for _ in range(repeats)), strict=True)
                middle = float(np.median(seconds))
                click.echo(
                    f"  {name:16s} {path.stat().st_size / 2**20:6.0f} MiB, --memory {budget:>5s}: {middle:6.2f} s, "
                    f"{counts[0] / middle / 1e6:5.2f} million triples/s, peak {max(peaks):5.0f} MiB"
                )


if __name__ == "__main__":
    main()
