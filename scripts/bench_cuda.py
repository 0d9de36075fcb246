"""Measure the device kernels inside whole solvers, and set them beside their bounds (``cuda_bounds.py``).

Without a device it prints the bounds alone and says why. ``--write`` puts the bounds into ``docs/cuda.md``. ``--smoke``
runs everything once at small sizes: on a device, in Numba's simulator, or, where there is neither, the bounds.
"""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from bench_common import describe_machine, uniform_rows
from completion_page import table
from cuda_bounds import (
    DEVICES,
    H100,
    PROBLEMS,
    Problem,
    Work,
    dense_kernels,
    factored_kernels,
    sparse_kernels,
    tangent_kernels,
)

from fastrfm import complete
from fastrfm.devices import resolve
from fastrfm.errors import DeviceError
from fastrfm.solvers.dense import slab_rows

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cuda.md"
START, END = "<!-- bounds -->", "<!-- end of bounds -->"
_STEPS = 5
_KERNELS = {"factored": factored_kernels, "dense": dense_kernels, "two-sided": tangent_kernels}
# What does the work of a twin that launches more than one kernel.
_INSIDE = {
    "factored": {"_solve_short_rows": "solve_factored_rows", "_list_entries": "swap_axes"},
    "dense": {"_solve_short_rows": "solve_dual_rows"},
    "two-sided": {
        "factor_some_rows": "factor_rows",
        "_add_grams": "add_column_grams",
        "_sweep": "eliminated_sweep",
        "_scatter_residual": "multiply_residual_transposed",
    },
}
_ONCE = {"shift_and_mirror", "finish_step"}  # a pass, not a block of it
_MOST_DENSE_COLS = 5000


@contextmanager
def kernels_timed() -> Iterator[dict[str, list[float]]]:
    """Collect the seconds of every device kernel that is launched, by name, each waited for."""
    from fastrfm._cuda import DeviceKernel, compute_stream

    seconds: dict[str, list[float]] = defaultdict(list)
    plain = DeviceKernel.__call__

    def timed(kernel: Any, *arguments: Any) -> None:
        compute_stream().synchronize()
        start = time.perf_counter()
        plain(kernel, *arguments)
        compute_stream().synchronize()
        seconds[kernel.__name__].append(time.perf_counter() - start)

    DeviceKernel.__call__ = timed  # type: ignore[method-assign,assignment]
    try:
        yield seconds
    finally:
        DeviceKernel.__call__ = plain  # type: ignore[method-assign]


def measure(problem: Problem, method: str) -> None:
    """Run a few iterations on the device and print each kernel's time beside its bound on an H100."""
    observations = uniform_rows(problem.n_rows, problem.n_cols, problem.n_observed // problem.n_rows, seed=0)
    options: dict[str, Any] = {"method": method, "rank": problem.k, "max_iter": _STEPS, "device": "cuda"}
    if method != "two-sided":
        options["ridge"] = 0.1
    bounds = {work.kernel: work for work in _KERNELS[method](problem)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        complete(observations, **options)  # compiles
        with kernels_timed() as seconds:
            start = time.perf_counter()
            complete(observations, **options)
            whole = time.perf_counter() - start
    # A bound is of a pass over all entries, a call of a block of rows, or in the dense form of a slab.
    n_slabs = -(-problem.n_rows // slab_rows(problem.n_cols))
    n_calls = {"factored": sum(1 for _ in observations.row_blocks()), "dense": n_slabs, "two-sided": 1}[method]
    click.echo(f"{problem.name}, {method}: {whole:.3f} s for {_STEPS} iterations")
    for name, times in sorted(seconds.items(), key=lambda item: -sum(item[1])):
        middle = sorted(times)[len(times) // 2]
        line = f"  {name:32s} {len(times):5d} calls  {middle * 1e3:10.3f} ms"
        work = bounds.get(_INSIDE[method].get(name, name))
        if work is not None:
            least, limit = work.bound(H100)
            n = 1 if name in _ONCE else n_calls
            line += f"  {n * middle / least:8.1f} times its bound on an {H100.name} ({limit})"
        click.echo(line)


def bounds_of(works: list[Work]) -> list[list[str]]:
    """Return a row of text for each kernel: operations, bytes, and the bound and its limit on each device."""
    rows = []
    for work in works:
        row = [f"`{work.kernel}`", f"{work.flops / 1e9:.3g}", f"{work.memory / 1e9:.3g}", f"{work.cache / 1e9:.3g}"]
        for device in DEVICES:
            for dtype in ("float64", "float32"):
                if dtype == "float32":
                    halved = replace(work, memory=work.memory / 2.0, cache=work.cache / 2.0)
                    least, limit = halved.bound(device, dtype)
                else:
                    least, limit = work.bound(device, dtype)
                row.append(f"{least * 1e3:.3g} ({limit})")
        rows.append(row)
    return rows


def bounds_page() -> str:
    """Return the tables of bounds in Markdown."""
    heads = ["kernel", "Gflop", "GB", "GB through the cache"]
    heads += [f"{device.name}, {dtype}, ms" for device in DEVICES for dtype in ("float64", "float32")]
    lines = []
    for problem in PROBLEMS:
        lines += [f"### {problem.name}", ""]
        lines.append(
            f"{problem.n_rows} × {problem.n_cols}, {problem.n_observed / 1e6:.3g} million entries, k = {problem.k}"
            f" (b = {problem.b} followed)."
        )
        methods = [m for m in _KERNELS if m != "dense" or problem.n_cols <= _MOST_DENSE_COLS]
        for method in methods:
            lines += ["", f'`method="{method}"`', "", table(heads, bounds_of(_KERNELS[method](problem)))]
        lines.append("")
    lines += [
        "### Sparse regression",
        "",
        "500 samples of 5000 features, dense; 10 000 of 1 million, 100 entries a row.",
    ]
    works = sparse_kernels(500, 5000, None) + sparse_kernels(10_000, 1_000_000, 1_000_000)
    lines += ["", table(heads, bounds_of(works)), ""]
    return "\n".join(lines)


@click.command()
@click.option("--smoke", is_flag=True, help="Everything once, small.")
@click.option("--write", is_flag=True, help="Put the bounds into docs/cuda.md.")
def main(smoke: bool, write: bool) -> None:
    """Measure the device kernels beside their bounds."""
    page = bounds_page()
    if write:
        text = PAGE.read_text(encoding="utf-8")
        before, rest = text.split(START)
        PAGE.write_text(f"{before}{START}\n\n{page}\n{END}{rest.split(END)[1]}", encoding="utf-8")
        click.echo(f"wrote {PAGE}")
        return
    try:
        resolve("cuda")
    except DeviceError as error:
        click.echo(f"{error}\n\nBounds alone:\n\n{page}")
        return
    click.echo(describe_machine())
    problems = [Problem("small", 12, 8, 48, 2)] if smoke else list(PROBLEMS)
    for problem in problems:
        for method in _KERNELS:
            if method != "dense" or problem.n_cols <= _MOST_DENSE_COLS:
                measure(problem, method)


if __name__ == "__main__":
    main()
