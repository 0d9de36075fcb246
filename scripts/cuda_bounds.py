"""What a device's kernels must at least move and compute: bytes and operations, and the time that bounds them.

Each kernel is given by four counts for one call: floating-point operations, bytes of device memory (every array once:
what no cache can save), bytes that gathered rows bring through the second-level cache (each gathered row as often as an
entry asks for it), and float atomics. The bound of a call is the largest of the four over what the device gives in a
second. ``bench_cuda.py`` prints measured times over these bounds, and makes the tables of ``docs/cuda.md`` from them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """What a device gives in a second: the makers' figures; gathers and atomics through the cache as assumed here.

    Attributes
    ----------
    name : str
    memory : float
        Bytes from and to device memory.
    cache : float
        Bytes from the second-level cache. Not in data sheets: taken as 1.7 times the memory's.
    atomics : float
        Additions of float64 in the second-level cache. Not in data sheets: one for each 32 bytes that it moves.
    flops : dict of str to float
        Operations on "float32" and "float64" outside of tensor cores, a multiply-add counted as two.
    bus : float
        Bytes from the processor's page-locked memory.
    """

    name: str
    memory: float
    cache: float
    atomics: float
    flops: dict[str, float]
    bus: float


A100 = Device("A100 80 GB", 2.04e12, 3.5e12, 1.1e11, {"float32": 19.5e12, "float64": 9.7e12}, 25e9)
H100 = Device("H100 SXM", 3.35e12, 5.7e12, 1.8e11, {"float32": 67e12, "float64": 34e12}, 50e9)
DEVICES = (A100, H100)


@dataclass(frozen=True)
class Problem:
    """A benchmark's size: the matrix, its observed entries, directions in use, and directions followed (factored)."""

    name: str
    n_rows: int
    n_cols: int
    n_observed: int
    k: int

    @property
    def b(self) -> int:
        return self.k + 8


@dataclass(frozen=True)
class Work:
    """What one call of a kernel takes."""

    kernel: str
    flops: float
    memory: float
    cache: float = 0.0
    atomics: float = 0.0

    def seconds(self, device: Device, dtype: str = "float64") -> dict[str, float]:
        """Return the time of each resource by itself; the largest is the bound, and its name the limit."""
        return {
            "arithmetic": self.flops / device.flops[dtype],
            "memory": self.memory / device.memory,
            "cache": self.cache / device.cache,
            "atomics": self.atomics / device.atomics,
        }

    def bound(self, device: Device, dtype: str = "float64") -> tuple[float, str]:
        """Return the least time and what limits it."""
        seconds = self.seconds(device, dtype)
        limit = max(seconds, key=lambda name: seconds[name])
        return seconds[limit], limit


def n_counts(p: Problem) -> int:
    """Return how many numbers ``swap_axes`` counts with: for every column one of each group of rows."""
    return min(1024, p.n_rows, max(2**25 // p.n_cols, 1)) * p.n_cols


def factored_kernels(p: Problem, number: int = 8, value: int = 8) -> list[Work]:
    """Return the kernels of an iteration of ``method="factored"``; `number` and `value` are bytes of each."""
    n, k, b = p.n_observed, p.k, p.b
    entry = 4 + value
    return [
        Work(
            "solve_factored_rows",
            n * (k * (k + 1) + 4.0 * k + 2.0 * b) + p.n_rows * (k**3 / 3.0 + 2.0 * k * k),
            n * entry + number * (p.n_rows * (k + b + 1) + p.n_cols * b),
            number * n * b,
        ),
        Work(
            "replace_rows",
            2.0 * p.n_rows * k * k,
            number * p.n_rows * (3.0 * k + 1),
        ),
        Work(
            "add_adjoint_columns",
            n * (2.0 * k + 2.0 * b),
            n * entry + number * (p.n_rows * (k + b) + p.n_cols * (k + 2 * b)),
            number * n * (k + b),
        ),
        Work(
            # Once where entries stay, else before every adjoint sweep; 32 bytes for each number that goes anywhere.
            "swap_axes",
            0.0,
            n * (12.0 + 2.0 * value) + 16.0 * n_counts(p),
            64.0 * n,
            2.0 * n,
        ),
        Work(
            "tall products of an iteration",
            2.0 * (2 * p.n_rows + 2 * p.n_cols) * b * b * 2 + 2.0 * (p.n_rows + p.n_cols) * k * b,
            number * (10.0 * p.n_rows + 12.0 * p.n_cols) * b,
        ),
    ]


def dense_kernels(p: Problem, number: int = 8, value: int = 8) -> list[Work]:
    """Return the kernels of an iteration of ``method="dense"``, rows of equal length taken for granted."""
    n, n_cols = p.n_observed, p.n_cols
    length = n / p.n_rows
    return [
        Work(
            "solve_dual_rows",
            p.n_rows * (length**3 / 3.0 + 2.0 * length**2),
            n * (4 + value + number) + number * n_cols * n_cols,
            number * p.n_rows * length * length / 2.0,
        ),
        Work(
            "expand_rows",
            2.0 * n * n_cols,
            n * (4 + number) + number * (p.n_rows * n_cols + n_cols * n_cols),
            number * n * n_cols,
        ),
        Work("accumulate_gram", float(p.n_rows) * n_cols * n_cols, number * (p.n_rows * n_cols + n_cols * n_cols)),
        Work("shift_and_mirror", 2.0 * n_cols * n_cols, number * 1.5 * n_cols * n_cols),
    ]


def factor_size(k: int) -> int:
    """Return the length of a packed factor, as ``kernels.tangent.factor_size``."""
    k = -(-k // 4) * 4
    return 2 * (k // 4) * (k + 4)


def tangent_kernels(p: Problem, number: int = 8, value: int = 8) -> list[Work]:
    """Return the kernels of ``method="two-sided"``: set-up once a step, a sweep for each of its inner steps."""
    n, k = p.n_observed, -(-p.k // 4) * 4
    size = factor_size(k)
    sides = p.n_rows + p.n_cols
    return [
        Work(
            "factor_rows",
            n * k * (k + 1.0) + p.n_rows * k**3 * 2.0 / 3.0,
            4.0 * n + number * (p.n_rows * size + p.n_cols * k),
            number * n * k,
        ),
        Work(
            # Each column's rows are listed first: indices twice, the list written and read, two additions to counts of
            # up to 1024 groups of rows, which are written and read again.
            "add_column_grams",
            n * k * (k + 1.0),
            16.0 * n + 16.0 * n_counts(p) + number * (p.n_rows * k + 2.0 * p.n_cols * size),
            number * n * k,
            2.0 * n,
        ),
        Work(
            "eliminated_sweep",
            8.0 * n * k + 2.0 * p.n_rows * k * k,
            2 * (4.0 + value) * n + number * (p.n_rows * (size + 2.0 * k) + 4.0 * p.n_cols * k),
            3.0 * number * n * k,
            float(n) * k,
        ),
        Work(
            "finish_step",
            6.0 * p.n_cols * k * k,
            number * p.n_cols * (10.0 * k + size),
        ),
        Work(
            "multiply_residual",
            6.0 * n * k,
            (4.0 + value) * n + number * 3.0 * sides * k,
            3.0 * number * n * k,
        ),
        Work(
            "multiply_residual_transposed",
            6.0 * n * k,
            (4.0 + value) * n + number * 3.0 * sides * k,
            2.0 * number * n * k,
            float(n) * k,
        ),
    ]


def sparse_kernels(n_samples: int, n_features: int, n_stored: int | None, number: int = 8) -> list[Work]:
    """Return the kernels of sparse regression: of compressed rows with `n_stored` entries, dense where it is None."""
    if n_stored is None:
        size = float(n_samples) * n_features
        return [
            Work("A v, dense", 2.0 * size, number * size),
            Work("A K Aᵀ, dense", size * n_samples, number * (size + float(n_samples) ** 2)),
        ]
    entry = 4.0 + number
    return [
        Work("multiply_rows", 2.0 * n_stored, entry * n_stored + number * (n_samples + n_features), number * n_stored),
        Work(
            "a step of solve_reweighted",
            4.0 * n_stored + 12.0 * n_samples,
            2.0 * entry * n_stored + number * (18.0 * n_samples + 6.0 * n_features),
            2.0 * number * n_stored,
        ),
    ]


PROBLEMS = (
    Problem("MovieLens 25M", 162_541, 59_047, 25_000_095, 32),
    Problem("20 million entries", 200_000, 20_000, 20_000_000, 10),
    Problem("200 million entries", 1_000_000, 100_000, 200_000_000, 20),
    Problem("4000 columns", 20_000, 4_000, 4_000_000, 16),
)
