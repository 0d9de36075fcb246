"""Checks of arrays that callers hand in: the right kind of numbers, shapes, ranges and names, or an ``InputError``.

Used by ``observations`` and ``stored_files``; knows numpy arrays and nothing of the package but its errors.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from fastrfm.errors import InputError


def check_plain(given: Any, name: str) -> None:
    """Raise InputError for complex numbers, dates and masked entries, which conversion would make numbers of."""
    kind = np.asarray(given).dtype.kind
    if kind in "cmM":
        raise InputError(f"{name} must be real numbers, got {'complex' if kind == 'c' else 'dates or durations'}")
    if np.ma.is_masked(given):
        raise InputError(f"{name} must not be masked: leave those measurements out")


def float_array(values: Any, name: str) -> np.ndarray:
    """Return real numbers as float32 (if they are) or float64, or say that they are not."""
    try:
        array = np.asarray(values)
        if array.dtype == np.float32:
            return array
        if array.dtype.kind == "c":
            raise InputError(f"{name} must be real numbers, got complex")
        return array.astype(np.float64, copy=False)
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} must be numbers: {error}") from None


def index_array(values: Any, name: str) -> np.ndarray:
    """Return whole numbers as a signed integer array, or say that they are not."""
    array = np.asarray(values)
    if array.size == 0:
        return array.astype(np.int64)
    # Unsigned numbers wrap in differences, which would hide columns that descend; huge floats do not fit int64.
    is_whole = array.dtype.kind == "f" and np.all((np.abs(array) < 2.0**53) & (array == np.floor(array)))
    if is_whole or array.dtype.kind == "u":
        return array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise InputError(f"{name} must be whole numbers, got dtype {array.dtype}")
    return array


def check_shape(shape: Any) -> tuple[int, int]:
    """Return (n_rows, n_cols) as positive integers, or say what is wrong with `shape`."""
    try:
        n_rows, n_cols = (operator.index(n) for n in shape)
    except (TypeError, ValueError):
        raise InputError(f"shape must be two whole numbers (n_rows, n_cols), got {shape!r}") from None
    if n_rows < 1 or n_cols < 1:
        raise InputError(
            f"the matrix is empty: shape {(n_rows, n_cols)} has no entries, give at least one row and one column"
        )
    return n_rows, n_cols


def check_range(indices: np.ndarray, size: int, what: str) -> None:
    """Refuse an index outside 0…size - 1, naming the first."""
    if indices.size and (indices.min() < 0 or indices.max() >= size):
        where = int(np.flatnonzero((indices < 0) | (indices >= size))[0])
        raise InputError(f"{what} number {int(indices[where])} (entry {where}) is outside 0…{size - 1}")


def check_finite(indptr: np.ndarray, indices: np.ndarray, values: np.ndarray, *, first_row: int = 0) -> None:
    """Refuse NaN and infinities among the values of compressed rows, the first of which is number `first_row`."""
    if np.isfinite(values).all():
        return
    where = int(np.flatnonzero(~np.isfinite(values))[0])
    row = first_row + int(np.searchsorted(indptr, where, side="right")) - 1
    raise InputError(
        f"observed values must be finite, got {values[where]} at row {row}, column {int(indices[where])}"
        ": drop it or leave it missing"
    )


def rises_in_rows(indptr: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Return, (n_entries - 1,) bool, whether each column but the first is above the one before or begins a row."""
    rises: np.ndarray = np.diff(indices) > 0
    rises[indptr[1:-1][(indptr[1:-1] > 0) & (indptr[1:-1] < indices.size)] - 1] = True
    return rises


def check_weights(weights: np.ndarray) -> None:
    """Raise InputError unless all weights are finite and above 0."""
    bad = ~(np.isfinite(weights) & (weights > 0.0))
    if bad.any():
        where = int(np.flatnonzero(bad)[0])
        raise InputError(f"weights must be finite and above 0, got {weights[where]}: leave such entries out")


def check_names(names: Any, size: int, what: str) -> np.ndarray | None:
    """Return `size` names as an object array of str, None for none, or say how many there are."""
    if names is None:
        return None
    array = np.array([str(name) for name in names], dtype=object)
    if array.shape != (size,):
        raise InputError(f"{what} must hold {size} names, got {array.size}")
    return array


def describe_duplicates(rows: np.ndarray, cols: np.ndarray) -> str:
    """Return the message for entries of which at least two share row and column."""
    order = np.lexsort((np.arange(rows.size), cols, rows))
    same = (np.diff(rows[order]) == 0) & (np.diff(cols[order]) == 0)
    first = int(np.flatnonzero(same)[0])
    a, b = int(order[first]), int(order[first + 1])
    return (
        f"{int(same.sum())} duplicated observations, the first at row {int(rows[a])}, column {int(cols[a])} "
        f"(entries {a} and {b}): keep one value for each row and column"
    )
