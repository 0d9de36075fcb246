"""Two layouts of observations in HDF5 that ``store`` and ``conversion`` share (docs/hdf5-schema.md).

Written: /observations as anndata's csr_matrix. Read: triples in any order, 1-D datasets /rows and /cols (zero-based)
and /values at the root, with the optional attribute ``shape`` and optional /row_names and /col_names.
"""

from __future__ import annotations

from dataclasses import dataclass

import h5py
import numpy as np

from fastrfm._hdf5 import get_attribute, get_dataset, mark, read_names
from fastrfm.errors import FileFormatError, InputError


@dataclass(frozen=True)
class Triples:
    """Triples in an open file, not read yet; `shape` is None where it follows from the largest positions."""

    rows: h5py.Dataset
    cols: h5py.Dataset
    values: h5py.Dataset
    shape: tuple[int, int] | None
    row_names: np.ndarray | None
    col_names: np.ndarray | None


def create_observations(file: h5py.File, shape: tuple[int, int]) -> h5py.Group:
    """Return the new group /observations, with attributes and without datasets, of a file that is marked."""
    mark(file)
    group = file.create_group("observations")
    group.attrs["encoding-type"] = "csr_matrix"
    group.attrs["encoding-version"] = "0.1.0"
    group.attrs["shape"] = np.array(shape, dtype=np.int64)
    return group


def is_triples(file: h5py.File) -> bool:
    """Return whether a file holds /rows, /cols and /values."""
    return all(isinstance(file.get(name), h5py.Dataset) for name in ("rows", "cols", "values"))


def open_triples(file: h5py.File) -> Triples:
    """Return the datasets and attributes of triples.

    Raises
    ------
    FileFormatError
        If a dataset is not 1-D or not as long as the others, or holds no numbers; or if `shape` is malformed.
    InputError
        If there are no triples.
    """
    values = get_dataset(file, "values", (None,))
    rows, cols = (get_dataset(file, name, values.shape, "iu") for name in ("rows", "cols"))
    if not values.size:
        raise InputError("no observations: /rows, /cols and /values are empty")
    shape = None
    if "shape" in file.attrs:
        stored = get_attribute(file, "shape", list)
        if len(stored) != 2 or not all(isinstance(size, int) and size > 0 for size in stored):
            raise FileFormatError(f"attribute shape of / must be two whole numbers above 0, got {stored}")
        shape = stored[0], stored[1]
    names = [name for name in ("row_names", "col_names") if name in file]
    if names and shape is None:
        raise FileFormatError(f"attribute shape of / is missing: /{names[0]} needs it")
    row_names, col_names = (read_names(file, f"{axis}_names", shape[k]) if shape else None for k, axis in _AXES)
    return Triples(rows, cols, values, shape, row_names, col_names)


_AXES = ((0, "row"), (1, "col"))
