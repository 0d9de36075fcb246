"""How HDF5 files are laid out: which one it is, and where the observations are (docs/hdf5-schema.md).

Ours: /observations as anndata's csr_matrix, /result, /completed. Others': .h5ad, a 2-D dataset with NaN, triples in any
order (1-D datasets /rows and /cols, zero-based, and /values, with the optional attribute ``shape`` and optional
/row_names and /col_names). Shared by ``store`` and ``conversion``. Not here: reading the entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from fastrfm._hdf5 import (
    FORMAT_VERSION,
    get_attribute,
    get_attributes,
    get_dataset,
    get_group,
    read_names,
)
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


def create_observations(
    file: h5py.File, shape: tuple[int, int], indptr: np.ndarray, value_dtype: np.dtype, index_dtype: np.dtype
) -> tuple[h5py.Dataset, h5py.Dataset]:
    """Make the group /observations of a file that :func:`mark` was called for; return its data and indices, to fill.

    Contiguous: no chunks, no compression. Rows are read in long runs, which nothing beats.
    """
    group = file.create_group("observations")
    group.attrs["encoding-type"] = "csr_matrix"
    group.attrs["encoding-version"] = "0.1.0"
    group.attrs["shape"] = np.array(shape, dtype=np.int64)
    size = (int(indptr[-1]),)
    data, indices = group.create_dataset("data", size, value_dtype), group.create_dataset("indices", size, index_dtype)
    group.create_dataset("indptr", data=indptr)
    return data, indices


def open_compressed(group: h5py.Group, n_groups: int) -> tuple[h5py.Dataset, h5py.Dataset, np.ndarray]:
    """Return data and indices, not read yet, and indptr (int64) of a csr_matrix or csc_matrix.

    Raises
    ------
    FileFormatError
        If a dataset is missing, or of another shape or type.
    InputError
        If indptr does not rise from 0 to the number of values.
    """
    data = get_dataset(group, "data", (None,))
    indices = get_dataset(group, "indices", data.shape, "iu")
    indptr: np.ndarray = get_dataset(group, "indptr", (n_groups + 1,), "iu")[...].astype(np.int64)
    if indptr[0] != 0 or indptr[-1] != data.size or np.any(np.diff(indptr) < 0):
        raise InputError(f"{group.name}/indptr must rise from 0 to the number of values ({data.size})")
    return data, indices, indptr


def open_weights(group: h5py.Group, shape: tuple[int]) -> h5py.Dataset | None:
    """Return the weights of a csr_matrix or csc_matrix, not read yet, in the order of its data; None without any.

    Raises
    ------
    FileFormatError
        If there are not as many as data.
    """
    return get_dataset(group, "weights", shape, "f") if "weights" in group else None


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


# --- which layout, and where ---------------------------------------------------------------------------------------


def kind_of(file: h5py.File) -> str:
    """Return "observations", "triples", "anndata", "dense" or "result": how the file is laid out."""
    attributes = get_attributes(file)
    is_ours = attributes.get("format") == "fastrfm"
    if is_ours:
        version = get_attribute(file, "format_version")
        if version != FORMAT_VERSION:
            raise FileFormatError(
                f"format_version {version!r} is unknown, wanted {FORMAT_VERSION}: update fastrfm to read it"
            )
    if is_ours and "completed" in file:
        return "dense"
    if "observations" in file:
        return "dense" if isinstance(file["observations"], h5py.Dataset) else "observations"
    if "result" in file:
        return "result"
    if is_ours:
        raise FileFormatError("group /observations is missing")
    if is_triples(file):
        return "triples"
    if attributes.get("encoding-type") == "anndata" or all(name in file for name in ("X", "obs", "var")):
        return "anndata"
    return "dense"


Located = tuple[h5py.Group | h5py.Dataset, tuple[int, int], tuple[Any, Any]]


def locate(file: h5py.File, kind: str) -> Located:
    """Return the group or dataset with the observations, their shape, and the names of rows and columns."""
    if kind == "result":
        raise FileFormatError("holds a result and no observations: give the file that was completed")
    if kind == "anndata":
        return _locate_anndata(file)
    if kind == "observations":
        matrix: h5py.Group | h5py.Dataset = get_group(file, "observations")
        shape = _shape(matrix)
    else:
        matrix = get_dataset(file, "observations" if "observations" in file else _only_matrix(file), (None, None))
        shape = matrix.shape
    return matrix, shape, (read_names(file, "row_names", shape[0]), read_names(file, "col_names", shape[1]))


def locate_named(file: h5py.File, name: str) -> Located:
    """Return the group or dataset of that name, as :func:`locate` does.

    Raises
    ------
    InputError, FileFormatError
        If it is no name, or there is no such matrix.
    """
    if not isinstance(name, str) or not name.strip("/"):
        raise InputError(f"dataset must name a dataset or a group inside the file, got {name!r}")
    where = f"/{name.strip('/')}"
    if where not in file:
        raise FileFormatError(f"holds no {where}: name what is there, or make a file with `fastrfm convert`")
    found = file[where]
    if isinstance(found, h5py.Group) and not {"encoding-type", "shape"} <= set(found.attrs):
        raise FileFormatError(
            f"{where} is a plain group: name a csr_matrix, a csc_matrix or a 2-D dataset, as `fastrfm convert` makes"
        )
    shape = _shape(found) if isinstance(found, h5py.Group) else get_dataset(file, where, (None, None)).shape
    return found, shape, (_names_beside(found, "row_names", shape[0]), _names_beside(found, "col_names", shape[1]))


def _names_beside(found: h5py.HLObject, key: str, size: int) -> np.ndarray | None:
    """Names may belong to another matrix of the same group: those of another number are passed over."""
    is_fitting = getattr(found.parent.get(key), "shape", None) == (size,)
    return read_names(found.parent, key, size) if is_fitting else None


def _only_matrix(file: h5py.File) -> str:
    datasets = {name: file[name] for name in file if isinstance(file.get(name), h5py.Dataset)}
    matrices = [name for name, dataset in datasets.items() if len(dataset.shape or ()) == 2]
    if len(matrices) != 1:
        found = f"found {', '.join(matrices)}" if matrices else "found none"
        raise FileFormatError(
            f"holds no /observations, and not exactly one 2-D dataset at the root ({found}): "
            "make a file with `fastrfm convert` or write_observations"
        )
    return str(matrices[0])


def _locate_anndata(file: h5py.File) -> Located:
    if "X" not in file:
        raise FileFormatError("is an anndata file without X: only X is read")
    matrix = file["X"]
    shape = _shape(matrix) if isinstance(matrix, h5py.Group) else get_dataset(file, "X", (None, None)).shape
    return matrix, shape, (_anndata_names(file, "obs", shape[0]), _anndata_names(file, "var", shape[1]))


def _anndata_names(file: h5py.File, axis: str, size: int) -> np.ndarray | None:
    if not isinstance(file.get(axis), h5py.Group) or "_index" not in file[axis].attrs:
        return None
    return read_names(file[axis], get_attribute(file[axis], "_index", str), size)


def _shape(group: h5py.Group) -> tuple[int, int]:
    shape = get_attribute(group, "shape", list)
    if len(shape) != 2 or not all(isinstance(size, int) for size in shape):
        raise FileFormatError(f"attribute shape of {group.name} must be two whole numbers, got {shape}")
    if min(shape) < 1:
        raise InputError(f"the matrix is empty: shape {tuple(shape)} has no entries")
    return shape[0], shape[1]
