"""HDF5 files whose observations stay there: from a group or dataset to ``StoredObservations``, checked in one pass.

Contiguous datasets are read straight from the file, others through HDF5 with a chunk cache that holds one band of
chunks. Not here: which group or dataset of a file it is (``store``), and the walking (``stored``).
"""

from __future__ import annotations

import os
from typing import Any

import h5py
import numpy as np

from fastrfm._checks import check_finite, check_weights, rises_in_rows
from fastrfm._hdf5 import get_attribute
from fastrfm._layout import open_compressed, open_weights
from fastrfm.atomic import PathLike
from fastrfm.blocks import index_dtype_for, value_dtype_for
from fastrfm.errors import FileFormatError, InputError
from fastrfm.stored import Dataset, DenseSource, FlatSource, OpenFile, RawArray, StoredObservations

# Observations of this many bytes take so much memory while they are worked on: copies by row, by column, shifted.
IN_MEMORY_FACTOR = 4
_CONVERT = "turn it into sorted rows with `fastrfm convert`"


def stored_bytes(matrix: h5py.Group | h5py.Dataset) -> int:
    """Return the bytes of a group of compressed rows or a 2-D dataset, once read."""
    if isinstance(matrix, h5py.Dataset):
        return int(matrix.size * (matrix.dtype.itemsize + 12))  # the table and its entries are there together
    parts = [matrix.get(name) for name in ("data", "indices")]
    return int(sum(part.size * part.dtype.itemsize for part in parts if isinstance(part, h5py.Dataset) and part.size))


def open_stored(
    path: PathLike, name: str, shape: tuple[int, int], names: tuple[Any, Any], memory: int
) -> StoredObservations:
    """Return the observations of a group or dataset without reading them all.

    Parameters
    ----------
    path : str or path
    name : str
        Of the group (csr_matrix) or 2-D dataset.
    shape : (int, int)
    names : two object arrays of str, or None
        Of rows and columns.
    memory : int
        Bytes that blocks may take.

    Raises
    ------
    FileFormatError, InputError
        As ``store.open_observations``; also if the entries are not sorted by row and column.
    """
    watched = OpenFile(os.open(path, os.O_RDONLY), str(path))
    file = h5py.File(path, "r", rdcc_nbytes=max(memory // 8, 2**20), rdcc_w0=1.0)
    matrix = file[name]
    index_dtype = index_dtype_for(shape)
    if isinstance(matrix, h5py.Dataset):
        observations = _open_dense(watched, matrix, shape, names, index_dtype, memory)
    else:
        observations = _open_compressed(watched, matrix, shape, names, index_dtype, memory)
    if not observations.n_observed:
        raise InputError("no observations, every entry is missing: give at least one value")
    _check_entries(observations, name)
    return observations


def _open_compressed(
    file: OpenFile,
    group: h5py.Group,
    shape: tuple[int, int],
    names: tuple[Any, Any],
    index_dtype: np.dtype,
    memory: int,
) -> StoredObservations:
    encoding = get_attribute(group, "encoding-type", str)
    if encoding != "csr_matrix":
        raise FileFormatError(f"{group.name} is a {encoding!r} and does not fit into memory: {_CONVERT}")
    data, indices, indptr = open_compressed(group, shape[0])
    given = open_weights(group, data.shape)
    weights = None if given is None else _array(file, given)
    source = FlatSource(_array(file, indices), _array(file, data), index_dtype, value_dtype_for(data.dtype), weights)
    return StoredObservations(source, shape, indptr, names, memory)


def _array(file: OpenFile, dataset: h5py.Dataset) -> RawArray | Dataset:
    offset = dataset.id.get_offset() if dataset.chunks is None and not dataset.external else None
    return Dataset(dataset, file) if offset is None else RawArray(file, dataset.dtype, offset)


def _open_dense(
    file: OpenFile,
    dataset: h5py.Dataset,
    shape: tuple[int, int],
    names: tuple[Any, Any],
    index_dtype: np.dtype,
    memory: int,
) -> StoredObservations:
    height = dataset.chunks[0] if dataset.chunks else 1
    affordable = memory // (8 * shape[1] * max(dataset.dtype.itemsize, 8))
    band = max(affordable // height, 1) * height
    source = DenseSource(Dataset(dataset, file), band, index_dtype, value_dtype_for(dataset.dtype))
    counts = [np.count_nonzero(~np.isnan(rows), axis=1) for rows in source.bands(0, shape[0])]
    indptr = np.concatenate(([0], np.cumsum(np.concatenate(counts)))).astype(np.int64)
    return StoredObservations(source, shape, indptr, names, memory)


def _check_entries(observations: StoredObservations, name: str) -> None:
    """Check positions and values as ``Observations.from_csr`` does; note columns' counts and the range on the way."""
    counts = np.zeros(observations.n_cols, dtype=np.int64)
    least, most = np.inf, -np.inf
    for block in observations.row_blocks():
        indices, values, indptr = block.by_row.indices, block.by_row.values, block.by_row.indptr
        if indices.size and (indices.min() < 0 or indices.max() >= observations.n_cols):
            wrong = int(indices.min()) if indices.min() < 0 else int(indices.max())
            raise InputError(f"column positions of {name} must lie in 0…{observations.n_cols - 1}, got {wrong}")
        check_finite(indptr, indices, values, first_row=block.start)
        if observations.is_weighted:
            check_weights(block.by_row.weights)
        rises = rises_in_rows(indptr, indices)
        if not rises.all():
            row = block.start + int(np.searchsorted(indptr, np.flatnonzero(~rises)[0] + 1, side="right")) - 1
            raise InputError(
                f"the columns of row {row} of {name} are not in ascending order, or one comes twice, and the file does "
                f"not fit into memory: {_CONVERT}"
            )
        counts += np.bincount(indices, minlength=observations.n_cols)
        least, most = min(least, float(values.min(initial=least))), max(most, float(values.max(initial=most)))
    observations.note(col_counts=counts, value_range=(least, most))
