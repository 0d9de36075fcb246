"""What the benchmark scripts share: problems with a seed, timing by medians, the machine in one line."""

from __future__ import annotations

import platform
import resource
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fastrfm
from fastrfm import Observations
from fastrfm._numba import available_threads


def low_rank_problem(
    n_rows: int, n_cols: int, rank: int, n_observed: int, seed: int, condition_number: float = 1.0
) -> tuple[Observations, np.ndarray, np.ndarray]:
    """Return uniformly sampled entries of a random low-rank matrix and its factors, (n_rows, r) and (n_cols, r).

    Positions are resampled until every row and column has at least one entry more than the rank.
    """
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.standard_normal((n_rows, rank)))[0]
    right = np.linalg.qr(rng.standard_normal((n_cols, rank)))[0]
    left = left * np.logspace(np.log10(condition_number), 0.0, rank)
    while True:
        rows, cols = np.divmod(np.sort(rng.choice(n_rows * n_cols, n_observed, replace=False)), n_cols)
        if np.bincount(rows, minlength=n_rows).min() > rank and np.bincount(cols, minlength=n_cols).min() > rank:
            break
    values = np.einsum("ij,ij->i", left[rows], right[cols])
    return Observations.from_coo(rows, cols, values, (n_rows, n_cols)), left, right


def uniform_rows(n_rows: int, n_cols: int, per_row: int, seed: int) -> Observations:
    """Return standard normal values at `per_row` positions of every row, one position in each of per_row strata."""
    rng = np.random.default_rng(seed)
    width = n_cols // per_row
    chunks = []
    for start in range(0, n_rows, 65536):  # in chunks, so that making the problem needs no more memory than solving it
        rows = min(65536, n_rows - start)
        chunks.append((rng.integers(0, width, (rows, per_row)) + np.arange(per_row) * width).astype(np.int32).ravel())
    indices = np.concatenate(chunks)
    indptr = np.arange(n_rows + 1, dtype=np.int64) * per_row
    return Observations.from_csr(indptr, indices, rng.standard_normal(indices.size), (n_rows, n_cols))


def median_seconds(work: Callable[[], Any], repeats: int) -> float:
    """Return the median time of `work`, after one call that does not count (compilation, caches)."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def median_ratio(slow: Callable[[], Any], fast: Callable[[], Any], repeats: int) -> tuple[float, float, float]:
    """Return (median seconds of slow, of fast, median of the pairwise ratios), the two measured in turn."""
    slow()
    fast()
    pairs = []
    for _ in range(repeats):
        start = time.perf_counter()
        slow()
        middle = time.perf_counter()
        fast()
        pairs.append((middle - start, time.perf_counter() - middle))
    first, second = np.array(pairs).T
    return float(np.median(first)), float(np.median(second)), float(np.median(first / second))


def peak_bytes() -> int:
    """Return the most memory that this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def describe_machine() -> str:
    """Return processor, versions and commit in one line."""
    import numba
    import scipy

    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    where = Path(__file__).parent
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=where, capture_output=True, text=True, check=False
    ).stdout.strip()
    changed = subprocess.run(
        ["git", "status", "--porcelain", "../fastrfm"], cwd=where, capture_output=True, text=True, check=False
    ).stdout
    commit += " with uncommitted changes" if changed else ""
    return (
        f"{model}, {available_threads()} threads; Python {platform.python_version()}, "
        f"numpy {np.__version__}, scipy {scipy.__version__}, numba {numba.__version__}, "
        f"fastrfm {fastrfm.__version__} {commit}"
    )
