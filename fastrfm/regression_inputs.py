"""Features, targets and sample weights of regression, checked: arrays, frames, scipy.sparse, memory maps, HDF5.

HDF5 means a 2-D dataset or a group laid out as anndata's csr_matrix.

Errors once, here; what scikit-learn's checks look for in a message is in it. Never changes or copies what it is given
where it can be used as it is. Not here: centring and weighting (``designs``).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import scipy.sparse

from fastrfm._designs import PANEL_BYTES
from fastrfm.compressed_rows import CompressedRows
from fastrfm.errors import InputError


@dataclass(frozen=True)
class Features:
    """Checked features: a float64 array, a scipy.sparse matrix, or a 2-D source or rows in a file; and their names."""

    table: Any
    names: np.ndarray | None

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.table.shape[0]), int(self.table.shape[1])

    @property
    def is_stored(self) -> bool:
        return not (type(self.table) is np.ndarray or scipy.sparse.issparse(self.table))


def read_features(given: Any, memory: int | None = None) -> Features:
    """Return features, left in their file where they are larger than `memory` bytes.

    Raises
    ------
    InputError
        If they are not a 2-D table of finite real numbers with at least one row and column.
    """
    names = _column_names(given)
    table: Any
    if isinstance(given, h5py.Group):
        table = CompressedRows(given)
        if table.n_bytes <= (memory or PANEL_BYTES):
            table = table.read()
    elif scipy.sparse.issparse(given):
        table = given.tocsr() if given.format != "csr" else given
        if table.dtype.kind == "c":
            raise InputError("Complex data not supported: X must be real numbers")
        table = scipy.sparse.csr_array(table, dtype=np.float64)
        _check_finite(table.data)
    elif _stays_in_file(given, memory or PANEL_BYTES):
        table = given
    else:
        table = _real_array(given, "X")
        if table.ndim != 2:
            raise InputError(
                f"Expected 2D array, got {table.ndim}D array instead. Reshape your data: X.reshape(-1, 1) if it has a "
                "single feature, X.reshape(1, -1) if it is a single sample"
            )
        _check_finite(table)
    if table.shape[0] < 1:
        raise InputError(f"Found array with 0 sample(s) (shape={table.shape}) while a minimum of 1 is required.")
    if table.shape[1] < 1:
        raise InputError(f"Found array with 0 feature(s) (shape={table.shape}) while a minimum of 1 is required.")
    return Features(table, names)


def read_targets(given: Any, n_samples: int) -> tuple[np.ndarray, bool]:
    """Return targets, (n_samples, n_targets) float64, and whether they were given as one column."""
    if given is None:
        raise InputError("requires y to be passed, but the target y is None")
    targets = _real_array(given, "y")
    if targets.ndim not in (1, 2) or (targets.ndim == 2 and targets.shape[1] < 1):
        raise InputError(f"y should be a 1d array or (n_samples, n_targets), got an array of shape {targets.shape}")
    if targets.shape[0] != n_samples:
        raise InputError(f"X and y must have as many samples, got {n_samples} and {targets.shape[0]} (inconsistent)")
    if not np.isfinite(targets).all():
        raise InputError("y must be finite, but it contains NaN or infinity")
    is_single = targets.ndim == 1
    return targets.reshape(n_samples, -1), is_single


def read_weights(given: Any, n_samples: int) -> np.ndarray | None:
    """Return sample weights, (n_samples,) float64 of at least 0, or None for none."""
    if given is None:
        return None
    weights = _real_array(given, "sample_weight")
    if weights.ndim == 0:
        weights = np.full(n_samples, float(weights))
    if weights.ndim != 1:
        raise InputError(f"Sample weights must be 1D array or scalar, got {weights.ndim}D array instead")
    if weights.shape != (n_samples,):
        raise InputError(f"sample_weight.shape == {weights.shape}, expected {(n_samples,)}!")
    if not (np.isfinite(weights).all() and (weights >= 0.0).all() and weights.any()):
        raise InputError("sample_weight must be finite, at least 0, and not all zero")
    return weights


def check_names(names: np.ndarray | None, fitted: np.ndarray | None, who: str) -> None:
    """Compare the names of columns with those of the fit; only one side having names is a warning."""
    if names is None and fitted is None:
        return
    if fitted is None:
        warnings.warn(f"X has feature names, but {who} was fitted without feature names", UserWarning, stacklevel=4)
    elif names is None:
        message = f"X does not have valid feature names, but {who} was fitted with feature names"
        warnings.warn(message, UserWarning, stacklevel=4)
    elif not np.array_equal(names, fitted):
        unseen, missing = [sorted(set(a) - set(b)) for a, b in ((names, fitted), (fitted, names))]
        lines = ["The feature names should match those that were passed during fit."]
        lines += ["Feature names unseen at fit time:", *[f"- {name}" for name in unseen[:5]]] if unseen else []
        lines += (
            ["Feature names seen at fit time, yet now missing:", *[f"- {n}" for n in missing[:5]]] if missing else []
        )
        if not unseen and not missing:
            lines.append("Feature names must be in the same order as they were in fit.")
        raise InputError("\n".join(lines) + "\n")


def _column_names(given: Any) -> np.ndarray | None:
    columns = getattr(given, "columns", None)
    if columns is None or not hasattr(given, "shape"):
        return None
    names = list(columns)
    return np.array(names, dtype=object) if names and all(isinstance(name, str) for name in names) else None


def _stays_in_file(given: Any, n_bytes: int) -> bool:
    is_source = isinstance(given, np.memmap) or (hasattr(given, "id") and hasattr(given, "chunks"))  # an HDF5 dataset
    if not is_source or given.dtype.kind not in "biuf" or len(given.shape) != 2:
        return False
    return bool(8 * given.shape[0] * given.shape[1] > n_bytes)


def _real_array(given: Any, name: str) -> np.ndarray:
    if scipy.sparse.issparse(given):
        raise InputError(f"{name} must be dense: Sparse data was passed, use {name}.toarray()")
    if hasattr(given, "to_numpy"):
        given = given.to_numpy()
    elif hasattr(given, "id") and hasattr(given, "chunks"):
        given = given[...]
    array = np.asarray(given)
    if array.dtype.kind == "c":
        raise InputError(f"Complex data not supported: {name} must be real numbers")
    try:
        return array.astype(np.float64, copy=False)
    except (TypeError, ValueError) as error:
        if isinstance(error, TypeError):  # the kind of error that scikit-learn lets through for objects
            raise TypeError(f"{name} must be numbers: argument must be a string or a number ({error})") from None
        raise InputError(f"{name} must be numbers: {error}") from None


def _check_finite(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise InputError("X must be finite, but it contains NaN or infinity: fill or drop such entries first")
