"""What users hand in as measurements of a matrix, checked: a stack, pairs of vectors, or a LinearOperator.

Errors once, here. Nothing is copied that can be used as it is; ``numpy.memmap`` and HDF5 stay in their file.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrfm._checks import check_plain, check_shape
from fastrfm.errors import InputError
from fastrfm.low_rank_options import LowRankOptions
from fastrfm.measurements import (
    BLOCK_BYTES,
    Measurements,
    OperatorMeasurements,
    RankOneMeasurements,
    StackMeasurements,
)

_KINDS = (
    "measurements must be an array (n, n_rows, n_cols), a pair of tables (left, right) or RankOneMeasurements, or a "
    "scipy.sparse.linalg.LinearOperator"
)


def read_measurements(given: Any, options: LowRankOptions) -> Measurements:
    """Return checked measurements.

    Raises
    ------
    InputError
        If they are of no kind that is known, not real and finite, empty, of another shape than `options.shape` says, or
        a LinearOperator without that.
    """
    block_bytes = options.memory or BLOCK_BYTES
    found: Measurements
    if isinstance(given, RankOneMeasurements):
        found = given
    elif isinstance(given, tuple):
        if len(given) != 2:
            raise InputError(f"a tuple of measurements must be (left, right), got {len(given)} parts")
        found = RankOneMeasurements(*given)
    elif hasattr(given, "rmatvec") and hasattr(given, "matvec"):
        found = _operator(given, options, block_bytes)
    else:
        found = StackMeasurements(_stack(given), block_bytes)
    if options.shape is not None and check_shape(options.shape) != found.shape[1:]:
        raise InputError(
            f"shape is {tuple(options.shape)}, but the measurements are of a matrix {found.shape[1:]}: leave shape out"
        )
    options.check_shape(found.shape[1:])
    return found


def read_values(given: Any, n: int) -> np.ndarray:
    """Return what was measured, (n,) float64."""
    if given is None:
        raise InputError("requires y to be passed, but the target y is None")
    array = np.asarray(given)
    if array.dtype.kind == "c":
        raise InputError("Complex data not supported: y must be real numbers")
    check_plain(given, "y")
    try:
        array = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"y must be numbers: {error}") from None
    if array.shape != (n,):
        raise InputError(
            f"y must hold one number for each of the {n} measurements, got an array of shape {array.shape}"
        )
    if not np.isfinite(array).all():
        where = int(np.flatnonzero(~np.isfinite(array))[0])
        raise InputError(f"y must be finite, got {array[where]} at measurement {where}: leave it out")
    return array


def _stack(given: Any) -> Any:
    is_stored = hasattr(given, "id") and hasattr(given, "chunks")  # an HDF5 dataset
    try:
        stack = given if is_stored else np.asanyarray(given)
    except ValueError as error:
        raise InputError(f"{_KINDS}: {error}") from None
    if stack.dtype.kind == "c":
        raise InputError("Complex data not supported: measurements must be real numbers")
    if not is_stored:
        check_plain(given, "measurements")
    if stack.dtype.kind not in "biuf":
        raise InputError(f"{_KINDS}, got dtype {stack.dtype}")
    if len(stack.shape) != 3:
        raise InputError(f"{_KINDS}, got an array of shape {stack.shape}")
    if 0 in stack.shape:
        raise InputError(f"there is nothing to measure: the stack has shape {stack.shape}, give at least one of each")
    return stack


def _operator(given: Any, options: LowRankOptions, block_bytes: int) -> OperatorMeasurements:
    if options.shape is None:
        raise InputError("a LinearOperator does not tell the matrix's shape: give shape=(n_rows, n_cols) (rows on end)")
    shape = check_shape(options.shape)
    if len(given.shape) != 2 or given.shape[1] != shape[0] * shape[1] or given.shape[0] < 1:
        raise InputError(
            f"the LinearOperator must have shape (n, {shape[0] * shape[1]}) for a {shape[0]} x {shape[1]} matrix, "
            f"got {given.shape}"
        )
    if np.dtype(given.dtype or np.float64).kind == "c":
        raise InputError("Complex data not supported: the LinearOperator must be real")
    return OperatorMeasurements(given, shape, options.random_state, block_bytes)
