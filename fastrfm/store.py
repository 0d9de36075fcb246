"""Observations and results as HDF5 files.

Flow: file -> ``Observations`` -> solver -> ``CompletionResult`` -> file. Layout version 1 (docs/hdf5-schema.md):
/observations as anndata's csr_matrix, /result as arrays and attributes; anndata's .h5ad files and plain 2-D
datasets with NaN are read too. Every write is all or nothing (``atomic``). Not here: text tables (``readers``).
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import Any

import h5py
import numpy as np

from fastrfm._hdf5 import (
    get_attribute,
    get_attributes,
    get_dataset,
    get_group,
    mark,
    names_size,
    read_names,
    reading,
    set_attribute,
    write_names,
    writing_hdf5,
    writing_large_hdf5,
)
from fastrfm._layout import (
    create_observations,
    kind_of,
    locate,
    locate_named,
    open_compressed,
    open_triples,
    open_weights,
)
from fastrfm._memory import default_memory
from fastrfm.atomic import PathLike
from fastrfm.blocks import RowBlocks, index_dtype_for
from fastrfm.errors import FileFormatError, InputError
from fastrfm.observations import Observations
from fastrfm.options import name_of
from fastrfm.outputs import write_dense as write_dense  # part of this module's face, written block by block there
from fastrfm.outputs import write_top as write_top
from fastrfm.results import CompletionResult, Offsets, Selection
from fastrfm.stored import StoredObservations
from fastrfm.stored_files import IN_MEMORY_FACTOR, open_stored, stored_bytes

_RESERVED = ("format", "format_version", "encoding-type", "encoding-version")
_HELD_OUT = ("rows", "cols", "values", "predicted")
_SCALARS: dict[str, type | tuple[type, ...]] = {
    "rank": int,
    "stop_reason": str,
    "n_iter": int,
    "masked_rmse": (float, int),
    "n_observed": int,
    "n_empty_rows": int,
    "n_empty_cols": int,
}


# --- observations -------------------------------------------------------------------------------------------------


def open_observations(
    path: PathLike, *, dataset: str | None = None, memory: int | None = None
) -> Observations | StoredObservations:
    """Return the observations that an HDF5 file holds, read into memory or, if they are too large, left in the file.

    Parameters
    ----------
    path : str or path
        A file of fastrfm's, of anndata's (.h5ad: X, with the names of obs and var), with triples in any order (/rows,
        /cols, /values), or with a 2-D dataset of numbers in which NaN is missing: /observations, or the only 2-D
        dataset at the root.
    dataset : str, optional
        Where the observations are inside any HDF5 file, such as "runs/3": a 2-D dataset of numbers, or a group laid
        out as anndata's csr_matrix or csc_matrix. Names are those in row_names and col_names beside it, if as many.
    memory : int, optional
        Bytes that the observations and work on them may take; by default a quarter of what is free. Beyond it the
        solvers read row blocks from the file, pass after pass, to the same bits; factors come on top.

    Returns
    -------
    Observations or StoredObservations
        Checked; float32 values stay float32, all others become float64.

    Raises
    ------
    MissingFileError
        If there is no such file.
    FileFormatError
        If it is a folder, not HDF5, truncated, of another version, a result, or if a dataset is missing or has the
        wrong shape or type.
    InputError
        If the numbers are unusable: positions out of range or given twice, stored NaN, infinities, no observation; or
        if `dataset` is not a name.
    """
    budget = default_memory() if memory is None else memory
    with reading(path) as file:
        kind = kind_of(file)
        if kind == "triples" and dataset is None:
            return _read_triples(file, budget)
        matrix, shape, names = locate(file, kind) if dataset is None else locate_named(file, dataset)
        if IN_MEMORY_FACTOR * stored_bytes(matrix) <= budget:
            return _read_matrix(matrix, shape, names)
        return open_stored(path, matrix.name, shape, names, budget)


def write_observations(
    path: PathLike, observations: RowBlocks, *, force: bool = False, attributes: dict[str, Any] | None = None
) -> None:
    """Write observations and names to an HDF5 file that fastrfm and anndata read.

    Parameters
    ----------
    path : str or path
    observations : Observations or StoredObservations
        The latter are copied block by block.
    force : bool
        Whether an existing file may be replaced.
    attributes : dict of None, bool, int, float or str, optional
        Further attributes of the root, such as source and licence.

    Raises
    ------
    OutputExistsError, WriteError
        See :func:`fastrfm.atomic.writing`; what was at `path` before is then untouched.
    InputError
        If an attribute has a reserved name or a value of another type.
    """
    for name in attributes or {}:
        if name in _RESERVED:
            raise InputError(f"attribute name {name} is reserved: choose another")
    with _writing(path, force, observations) as file:
        mark(file)
        for name, value in (attributes or {}).items():
            set_attribute(file, name, value)
        shape, dtypes = observations.shape, (observations.dtype, index_dtype_for(observations.shape))
        data, indices = create_observations(file, shape, observations.indptr, *dtypes)
        is_weighted = observations.is_weighted
        weights = file["observations"].create_dataset("weights", data.shape, "f8") if is_weighted else None
        for block in observations.row_blocks():
            first, last = observations.indptr[block.start], observations.indptr[block.stop]
            data[first:last], indices[first:last] = block.by_row.values, block.by_row.indices
            if weights is not None:
                weights[first:last] = block.by_row.weights
        write_names(file, observations.row_names, observations.col_names)


def _writing(path: PathLike, force: bool, observations: RowBlocks) -> AbstractContextManager[h5py.File]:
    if isinstance(observations, Observations):
        return writing_hdf5(path, force)
    n_bytes = (24 if observations.is_weighted else 16) * observations.n_observed + observations.indptr.nbytes
    n_bytes += names_size(observations.row_names) + names_size(observations.col_names)
    return writing_large_hdf5(path, force, n_bytes)


def _read_triples(file: h5py.File, budget: int) -> Observations:
    found = open_triples(file)
    if IN_MEMORY_FACTOR * 24 * found.values.size > budget:
        raise InputError("holds triples in any order that do not fit into memory: sort them with `fastrfm convert`")
    arrays = found.rows[...], found.cols[...], found.values[...]
    return Observations.from_coo(*arrays, found.shape, row_names=found.row_names, col_names=found.col_names)


def _read_matrix(matrix: h5py.Group | h5py.Dataset, shape: tuple[int, int], names: tuple[Any, Any]) -> Observations:
    if isinstance(matrix, h5py.Group):
        return _read_compressed(matrix, shape, names)
    return Observations.from_dense(matrix[...], row_names=names[0], col_names=names[1])


def _read_compressed(group: h5py.Group, shape: tuple[int, int], names: tuple[Any, ...]) -> Observations:
    encoding = get_attribute(group, "encoding-type", str)
    if encoding not in ("csr_matrix", "csc_matrix"):
        raise FileFormatError(f"{group.name} must be a csr_matrix or csc_matrix, got encoding-type {encoding!r}")
    by_column = encoding == "csc_matrix"
    data, columns, indptr = open_compressed(group, shape[by_column])
    values, indices, weights = data[...], columns[...], open_weights(group, data.shape)
    named = {"row_names": names[0], "col_names": names[1]}
    if weights is None and not by_column:
        return Observations.from_csr(indptr, indices, values, shape, **named)
    groups = np.repeat(np.arange(indptr.size - 1), np.diff(indptr))
    rows, cols = (indices, groups) if by_column else (groups, indices)
    found = Observations.from_coo(rows, cols, values, shape, **named)
    if weights is None:
        return found
    return found.with_weights(weights[...][np.lexsort((cols, rows))])


# --- results ------------------------------------------------------------------------------------------------------


def write_result(path: PathLike, result: CompletionResult, *, force: bool = False) -> None:
    """Write a completion, with history, options and names, to an HDF5 file.

    Raises
    ------
    OutputExistsError, WriteError
        See :func:`fastrfm.atomic.writing`; what was at `path` before is then untouched.
    InputError
        If an option is not None, a bool, int, float or str.
    """
    with writing_hdf5(path, force) as file:
        mark(file)
        group = file.create_group("result")
        for name in _SCALARS:
            set_attribute(group, name, getattr(result, name))
        for name in ("left", "right", "singular_values"):
            group.create_dataset(name, data=getattr(result, name))
        if result.offsets is not None:
            offsets = group.create_group("offsets")
            set_attribute(offsets, "mean", float(result.offsets.mean))
            offsets.create_dataset("rows", data=result.offsets.rows)
            offsets.create_dataset("cols", data=result.offsets.cols)
        if result.bounds is not None:
            group.create_dataset("bounds", data=np.array(result.bounds, dtype=np.float64))
        _write_table(group, "history", result.history)
        if result.selection is not None:
            _write_selection(group.create_group("selection"), result.selection)
        options = group.create_group("options")
        for name, value in result.options.items():
            set_attribute(options, name, name_of(value))
        write_names(file, result.row_names, result.col_names)


def _write_table(group: h5py.Group, name: str, columns: dict[str, np.ndarray]) -> None:
    table = group.create_group(name, track_order=True)
    for column, values in columns.items():
        table.create_dataset(column, data=values)


def _read_table(group: h5py.Group, n: int, needed: tuple[str, ...]) -> dict[str, np.ndarray]:
    table = {name: get_dataset(group, name, (n,))[...] for name in group}
    for name in needed:
        if name not in table:
            raise FileFormatError(f"dataset {group.name}/{name} is missing")
    return table


def _write_selection(group: h5py.Group, selection: Selection) -> None:
    sizes = {"n_fits": selection.fits["rmse"].size, "n_held_out": selection.rows.size}
    for name, value in {**sizes, "chosen": int(selection.chosen)}.items():
        set_attribute(group, name, value)
    _write_table(group, "fits", selection.fits)
    _write_table(group, "held_out", {name: getattr(selection, name) for name in _HELD_OUT})


def _read_selection(group: h5py.Group) -> Selection:
    n_fits, chosen, n_held_out = (int(get_attribute(group, name, int)) for name in ("n_fits", "chosen", "n_held_out"))
    if not 0 <= chosen < n_fits:
        raise FileFormatError(f"attribute chosen of {group.name} must lie in 0…{n_fits - 1}, got {chosen}")
    fits = _read_table(get_group(group, "fits"), n_fits, ("agop_power", "ridge", "rmse"))
    held_out = _read_table(get_group(group, "held_out"), n_held_out, _HELD_OUT)
    return Selection(fits, chosen, **{name: held_out[name] for name in _HELD_OUT})


def read_result(path: PathLike) -> CompletionResult:
    """Return a completion as :func:`write_result` stored it.

    Raises
    ------
    MissingFileError
        If there is no such file.
    FileFormatError
        If it is not a file of fastrfm's with a result, is truncated, of another version, or if a dataset or
        attribute is missing or has the wrong shape or type.
    """
    with reading(path) as file:
        return _read_result(file, kind_of(file))


def is_result(path: PathLike) -> bool:
    """Return whether a file is HDF5 and holds a result; False if it is anything else that can be read."""
    if not os.path.exists(path) or not h5py.is_hdf5(path):
        return False
    with reading(path) as file:
        return kind_of(file) == "result"


def _read_result(file: h5py.File, kind: str) -> CompletionResult:
    if kind != "result":
        raise FileFormatError("holds no result: give a file that `fastrfm complete` or write_result made")
    group = get_group(file, "result")
    scalars = {name: get_attribute(group, name, wanted) for name, wanted in _SCALARS.items()}
    left = get_dataset(group, "left", (None, None))
    right = get_dataset(group, "right", (None, left.shape[1]))
    n_rows, n_cols = left.shape[0], right.shape[0]
    offsets = None
    if "offsets" in group:
        part = get_group(group, "offsets")
        rows, cols = get_dataset(part, "rows", (n_rows,)), get_dataset(part, "cols", (n_cols,))
        offsets = Offsets(float(get_attribute(part, "mean", (float, int))), rows[...], cols[...])
    n_iter = scalars.pop("n_iter")  # a result counts its history
    history = _read_table(get_group(group, "history"), n_iter, ("change", "seconds"))
    bounds = get_dataset(group, "bounds", (2,))[...].tolist() if "bounds" in group else None
    return CompletionResult(
        left=left[...],
        right=right[...],
        offsets=offsets,
        singular_values=get_dataset(group, "singular_values", (scalars["rank"],))[...],
        history=history,
        options=get_attributes(get_group(group, "options")),
        row_names=read_names(file, "row_names", n_rows),
        col_names=read_names(file, "col_names", n_cols),
        bounds=None if bounds is None else (bounds[0], bounds[1]),
        selection=_read_selection(get_group(group, "selection")) if "selection" in group else None,
        **scalars,
    )


# --- describing ---------------------------------------------------------------------------------------------------


def describe(path: PathLike) -> dict[str, Any]:
    """Return what a file holds, in plain Python values, after checking it as the readers do.

    Returns
    -------
    dict
        Always: ``kind`` ("observations", "triples", "anndata", "dense" or "result"), ``shape``, ``n_observed``,
        ``share_observed``, ``dtype``, ``n_empty_rows``, ``n_empty_cols`` (without observation), ``has_row_names``,
        ``has_col_names``, ``attributes`` (those of the root that the format does not use) and ``n_bytes`` on disk.
        Of observations also ``min_value`` and ``max_value`` (data's unit). Of a result also ``rank``,
        ``stop_reason``, ``n_iter``, ``masked_rmse`` (data's unit), ``has_offsets`` and ``options`` (dict).

    Raises
    ------
    MissingFileError, FileFormatError, InputError
        As :func:`open_observations` and :func:`read_result`.
    """
    with reading(path) as file:
        kind, attributes = kind_of(file), get_attributes(file, leave_out=_RESERVED)
        result = _read_result(file, kind) if kind == "result" else None
    found = open_observations(path) if result is None else result
    about = _about_result(found) if isinstance(found, CompletionResult) else _about_observations(found)
    return {
        "kind": kind,
        "shape": found.shape,
        "n_observed": found.n_observed,
        "share_observed": found.n_observed / (found.shape[0] * found.shape[1]),
        **about,
        "has_row_names": found.row_names is not None,
        "has_col_names": found.col_names is not None,
        "attributes": attributes,
        "n_bytes": os.path.getsize(path),
    }


def _about_observations(observations: RowBlocks) -> dict[str, Any]:
    return {
        "dtype": str(observations.dtype),
        "min_value": observations.value_range[0],
        "max_value": observations.value_range[1],
        "n_empty_rows": int(np.count_nonzero(observations.row_counts == 0)),
        "n_empty_cols": int(np.count_nonzero(observations.col_counts == 0)),
    }


def _about_result(result: CompletionResult) -> dict[str, Any]:
    return {
        "dtype": str(result.left.dtype),
        "n_empty_rows": result.n_empty_rows,
        "n_empty_cols": result.n_empty_cols,
        "rank": result.rank,
        "stop_reason": result.stop_reason,
        "n_iter": result.n_iter,
        "masked_rmse": result.masked_rmse,
        "has_offsets": result.offsets is not None,
        "options": result.options,
    }
