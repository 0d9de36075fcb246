"""Tables with gaps, as people hold them (arrays, data frames, sparse matrices), to ``Observations``.

First step of the estimators. Frames are recognised by what they offer, so pandas is never imported. Not here: files
(``store``, ``readers``).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrfm.errors import InputError
from fastrfm.observations import Observations


def observe_table(table: Any, *, allow_empty: bool = False) -> Observations:
    """Return the observed entries of a table.

    Parameters
    ----------
    table : Observations, 2-D array_like with NaN for missing, data frame or scipy.sparse matrix
        Every stored entry of a sparse matrix is observed, stored zeros too. Labels of a frame become row and column
        names unless they just count 0, 1, 2, …
    allow_empty : bool
        Whether every entry may be missing.

    Raises
    ------
    InputError
        As :meth:`Observations.from_dense` and :meth:`Observations.from_scipy`; also if the table holds dates or times.
    """
    import scipy.sparse

    if isinstance(table, Observations):
        return table
    is_sparse = scipy.sparse.issparse(table)
    names: dict[str, np.ndarray | None] = {"row_names": None, "col_names": None}
    if not is_sparse:
        if hasattr(table, "columns"):
            names = {"row_names": _labels(getattr(table, "index", None)), "col_names": _labels(table.columns)}
        table = _as_array(table)
    if allow_empty and table.ndim == 2 and min(table.shape) > 0 and _is_all_missing(table, is_sparse):
        none = np.zeros(0, dtype=np.int32)
        indptr = np.zeros(table.shape[0] + 1, dtype=np.int64)
        return Observations(table.shape, indptr, none, np.zeros(0), names["row_names"], names["col_names"])
    return Observations.from_scipy(table) if is_sparse else Observations.from_dense(table, **names)


def _as_array(table: Any) -> np.ndarray:
    values: np.ndarray
    try:
        if not hasattr(table, "iloc"):
            values = np.asanyarray(table)
        else:
            # pandas: mixed columns come as objects, its own missing value pd.NA needs to be told what it becomes.
            _refuse_times(*(table.dtypes if hasattr(table, "columns") else [table.dtype]))
            values = table.to_numpy()
            if values.dtype.kind not in "fc":
                values = table.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"X must be a table of numbers: {error}") from None
    _refuse_times(values.dtype)
    _check_form(values)
    return values


def _refuse_times(*dtypes: Any) -> None:
    """Refuse dates and times: as numbers they count nanoseconds, and a missing one is a number too."""
    for dtype in dtypes:
        if getattr(dtype, "kind", "") in "mM":
            raise InputError(
                f"X must be a table of numbers, got {dtype}: turn dates and times into numbers of your own"
            )


def _check_form(values: np.ndarray) -> None:
    """Refuse what is no table, in words that scikit-learn's users know."""
    if values.dtype.kind == "c":
        raise InputError("Complex data not supported: X must hold real numbers")
    if values.ndim != 2:
        raise InputError(
            f"X must have 2 dimensions (rows, columns), got {values.ndim}. Reshape your data, such as "
            "X.reshape(1, -1) for a single row"
        )
    for size, what in zip(values.shape, ("row", "feature"), strict=True):
        if size == 0:
            raise InputError(
                f"X has 0 {what}(s) (shape={values.shape}) while a minimum of 1 is required: the table is empty"
            )


def _labels(labels: Any) -> np.ndarray | None:
    """Return the names on a frame's axis as str; None where there are none or they just count 0, 1, 2, …"""
    if labels is None:
        return None
    array = np.asarray(labels)
    if array.dtype.kind in "iu" and np.array_equal(array, np.arange(array.size)):
        return None
    return np.array([str(label) for label in labels], dtype=object)


def _is_all_missing(table: Any, is_sparse: bool) -> bool:
    if is_sparse:
        return bool(table.nnz == 0)
    if isinstance(table, np.ma.MaskedArray):
        return bool(np.ma.getmaskarray(table).all())
    try:
        return bool(table.dtype.kind in "fO" and np.isnan(table.astype(np.float64, copy=False)).all())
    except (TypeError, ValueError):
        return False  # not numbers: Observations says so
