"""Tall matrices on a CUDA device, and the operations of ``arrays`` on them.

k x k matrices, norms and sums come back to the processor; what is as long as the matrix stays. Arithmetic is float64,
as on the processor. Imported only once a device is used.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from fastrfm._cuda import empty, fetch, free_bytes, on_loan, put, scratch
from fastrfm._lanes import padded_width
from fastrfm.arrays import HostArrays
from fastrfm.kernels.cuda.products import (
    add_parts,
    add_up_diagonal,
    column_squares,
    combine_columns,
    multiply,
    multiply_transposed_parts,
    n_stripes,
    put_columns,
    sum_parts,
    sum_square_parts,
    take_columns,
)

_SCRATCH_SHARE = 0.25  # of the device's free memory
_KERNELS = "fastrfm.kernels."


class DeviceArrays(HostArrays):
    """Operations on arrays of a CUDA device; every tall matrix is C-contiguous float64."""

    def __init__(self) -> None:
        self.scratch_bytes = _SCRATCH_SHARE * free_bytes()

    def twin(self, kernel: Callable[..., Any]) -> Callable[..., Any]:
        module = kernel.__module__.removeprefix(_KERNELS)
        found: Callable[..., Any] = getattr(importlib.import_module(f"{_KERNELS}cuda.{module}"), kernel.__name__)
        return found

    def put(self, array: np.ndarray) -> Any:
        return put(array)

    def fetch(self, array: Any) -> np.ndarray:
        return array if isinstance(array, np.ndarray) else fetch(array)

    def empty(self, *shape: int) -> Any:
        return empty(shape)

    def zeros(self, *shape: int) -> Any:
        return put(np.zeros(shape))

    def copy(self, matrix: Any) -> Any:
        out = empty(matrix.shape)
        self.replace(out, matrix)
        return out

    def inner(self, left: Any, right: Any) -> np.ndarray:
        shape = left.shape[1], right.shape[1]
        if 0 in shape:
            return np.zeros(shape)
        parts = scratch("parts", (n_stripes(left.shape[0], shape[0] * shape[1]), *shape), np.float64)
        out = scratch("inner", shape, np.float64)
        multiply_transposed_parts(left, right, parts)
        add_parts(parts, out)
        return fetch(out)

    def product(self, matrix: Any, small: np.ndarray, out: Any = None) -> Any:
        out = empty((matrix.shape[0], small.shape[1])) if out is None else out
        multiply(matrix, on_loan("small", small), 1.0, 0.0, out)
        return out

    def add_product(self, out: Any, matrix: Any, small: np.ndarray) -> None:
        multiply(matrix, on_loan("small", small), 1.0, 1.0, out)

    def replace(self, out: Any, matrix: Any) -> None:
        combine_columns(matrix, _factors(1.0), 0.0, out)

    def add(self, out: Any, matrix: Any, factors: Any = 1.0) -> None:
        combine_columns(matrix, _factors(factors), 1.0, out)

    def scale(self, matrix: Any, factors: Any) -> None:
        combine_columns(matrix, _factors(factors), 0.0, matrix)

    def columns(self, matrix: Any, start: int, stop: int) -> Any:
        if (start, stop) == (0, matrix.shape[1]):
            return matrix
        out = empty((matrix.shape[0], stop - start))
        take_columns(matrix, start, out)
        return out

    def narrowed(self, matrix: Any, k: int) -> Any:
        return self.first(matrix, k)

    def padded(self, matrix: Any) -> Any:
        width = padded_width(matrix.shape[1])
        return matrix if width == matrix.shape[1] else self.widened(matrix, width)

    def widened(self, matrix: Any, width: int) -> Any:
        out = empty((matrix.shape[0], width))
        put_columns(matrix, 0, out)
        return out

    def beside(self, left: Any, right: Any) -> Any:
        out = empty((left.shape[0], left.shape[1] + right.shape[1]))
        put_columns(left, 0, out)
        put_columns(right, left.shape[1], out)
        return out

    def sum_of(self, parts: Any) -> Any:
        out = empty(parts.shape[1:])
        add_parts(parts, out)
        return out

    def norm(self, matrix: Any) -> float:
        return float(np.sqrt(np.square(self.lengths(matrix)).sum()))

    def lengths(self, matrix: Any) -> np.ndarray:
        parts = scratch("lengths", (n_stripes(matrix.shape[0], matrix.shape[1]), matrix.shape[1]), np.float64)
        column_squares(matrix, parts)
        return np.asarray(np.sqrt(fetch(parts).sum(axis=0)))

    def total(self, vector: Any) -> float:
        return self._sum(sum_parts, vector)

    def square_sum(self, vector: Any, weights: Any) -> float:
        return self._sum(sum_square_parts, vector, weights)

    def trace(self, matrix: Any) -> float:
        out = scratch("number", (1,), np.float64)
        add_up_diagonal(matrix, out)
        return float(fetch(out)[0])

    def _sum(self, kernel: Callable[..., Any], vector: Any, *more: Any) -> float:
        parts = scratch("numbers", (n_stripes(vector.size, 1),), np.float64)
        kernel(vector, *more, parts)
        return float(fetch(parts).sum())


def _factors(factors: Any) -> Any:
    return on_loan("factors", np.atleast_1d(np.asarray(factors, dtype=np.float64)))
