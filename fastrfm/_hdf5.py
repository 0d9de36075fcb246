"""The small parts of reading and writing HDF5 that ``store`` is made of.

Opening with clear errors, checked datasets, names, attributes that come back as the Python values they were. Inside
``reading`` every complaint may leave the path out: it is put in front there. Not here: which datasets a file has.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fastrfm.atomic import PathLike, writing
from fastrfm.errors import FastrfmError, FileFormatError, InputError, MissingFileError

FORMAT_VERSION = 1
_REMEDY = "; make the file again with `fastrfm convert`"
TEXT = h5py.string_dtype("utf-8")
_IMAGE_STEP = 1 << 24  # bytes by which a file in memory grows
_NAMES_AT_ONCE = 1 << 16
_SPARE = 1 << 22  # bytes for HDF5's own structures beside large datasets


@contextlib.contextmanager
def reading(path: PathLike, *, remedy: str = _REMEDY) -> Iterator[h5py.File]:
    """Yield the file open for reading; errors about it that leave the block begin with `path` and end with `remedy`.

    Raises
    ------
    MissingFileError
        If there is no such file.
    FileFormatError
        If it is a folder, not HDF5, truncated or damaged, or if the block raises that error.
    InputError
        If the block raises that error.
    """
    with _open(path) as file:
        try:
            yield file
        except (FileFormatError, InputError) as error:
            raise type(error)(f"{path}: {error}{'' if 'fastrfm convert' in str(error) else remedy}") from None
        except FastrfmError:  # about another file
            raise
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            raise FileFormatError(f"{path}: damaged, part of it cannot be read ({error}): make it again") from error


@contextlib.contextmanager
def writing_hdf5(path: PathLike, force: bool) -> Iterator[h5py.File]:
    """Yield an HDF5 file in memory; when the block ends it is written to `path` in one go, see ``atomic.writing``.

    HDF5 itself never meets the disk: where that is full, the library can bring the whole process down.
    """
    with writing(path, force) as aside:
        with h5py.File(aside, "w", driver="core", backing_store=False, block_size=_IMAGE_STEP) as file:
            yield file
            file.flush()
            image = file.id.get_file_image()
        aside.write_bytes(image)


@contextlib.contextmanager
def writing_large_hdf5(path: PathLike, force: bool, n_bytes: int, *, folder: Path | None = None) -> Iterator[h5py.File]:
    """Yield an HDF5 file on disk, to be filled piece by piece; see ``atomic.writing`` for what happens at its end.

    Room for `n_bytes` of datasets (and some for HDF5's own structures) is taken first, so that a full disk is met
    there, where it is a clean error, and not inside HDF5. Store large datasets contiguous, or chunked without filters;
    count the chunks at the edges whole. `folder` is where the file is made until it is whole, see ``atomic.writing``.

    Raises
    ------
    OutputExistsError, WriteError
        As :func:`fastrfm.atomic.writing`.
    """
    with writing(path, force, folder=folder) as aside:
        # Opened for writing afresh, HDF5 would give the room back: so it gets a whole, empty file to add to.
        with h5py.File(aside, "w", driver="core", backing_store=False, libver="v110") as file:
            file.flush()
            image = file.id.get_file_image()
        with open(aside, "r+b") as raw:
            raw.write(image)
            raw.flush()
            os.posix_fallocate(raw.fileno(), 0, len(image) + n_bytes + n_bytes // 50 + _SPARE)
        with h5py.File(aside, "r+", libver="v110") as file:
            yield file


def mark(file: h5py.File) -> None:
    """Say at the root that the file is fastrfm's, and of which version."""
    file.attrs["format"] = "fastrfm"
    file.attrs["format_version"] = FORMAT_VERSION


def _open(path: PathLike) -> h5py.File:
    if not os.path.exists(path):
        raise MissingFileError(f"{path}: no such file")
    if os.path.isdir(path):
        raise FileFormatError(f"{path}: is a folder, wanted an HDF5 file")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if isinstance(error, PermissionError):
            raise FileFormatError(f"{path}: no permission to read it") from error
        if os.path.getsize(path) == 0:
            raise FileFormatError(f"{path}: is empty, wanted an HDF5 file") from error
        if "truncated" in str(error):
            raise FileFormatError(f"{path}: truncated, its end is missing: copy or make it again") from error
        if "signature not found" in str(error):
            raise FileFormatError(f"{path}: not an HDF5 file: turn tables into one with `fastrfm convert`") from error
        raise FileFormatError(f"{path}: cannot be opened as HDF5 ({error})") from error


def get_group(parent: h5py.Group, name: str) -> h5py.Group:
    """Return a group of `parent`; FileFormatError if it is missing or something else."""
    if name not in parent:
        raise FileFormatError(f"group {_full(parent, name)} is missing")
    found = parent[name]
    if not isinstance(found, h5py.Group):
        raise FileFormatError(f"{_full(parent, name)} must be a group, got a dataset")
    return found


def get_dataset(parent: h5py.Group, name: str, shape: tuple[int | None, ...], kinds: str = "biuf") -> h5py.Dataset:
    """Return a dataset of `parent` without reading it yet.

    Parameters
    ----------
    shape : tuple
        Wanted shape; None stands for any length.
    kinds : str
        Allowed kinds of numpy dtype: b(ool), i(nt), u(nsigned), f(loat).

    Raises
    ------
    FileFormatError
        If the dataset is missing, or its shape or dtype is another.
    """
    where = _full(parent, name)
    if name not in parent:
        raise FileFormatError(f"dataset {where} is missing")
    found = parent[name]
    if not isinstance(found, h5py.Dataset):
        raise FileFormatError(f"{where} must be a dataset, got a group")
    if found.shape is None or len(found.shape) != len(shape):
        raise FileFormatError(f"dataset {where} must have {len(shape)} dimension(s), got shape {found.shape}")
    if any(want not in (None, got) for want, got in zip(shape, found.shape, strict=True)):
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise FileFormatError(f"dataset {where} must have shape ({wanted}), got {found.shape}")
    if found.dtype.kind not in kinds:
        wanted = "whole numbers" if "f" not in kinds else "real numbers"
        raise FileFormatError(f"dataset {where} must hold {wanted}, got dtype {found.dtype}")
    _load_filters(found)
    return found


def _load_filters(dataset: h5py.Dataset) -> None:
    """Load the package with further compression filters (blosc, zstd, ...) if the dataset needs it."""
    created = dataset.id.get_create_plist()
    for code, _, _, label in (created.get_filter(k) for k in range(created.get_nfilters())):
        if not h5py.h5z.filter_avail(code):
            with contextlib.suppress(ImportError):
                import hdf5plugin  # noqa: F401  (registers its filters)
        if not h5py.h5z.filter_avail(code):
            raise FileFormatError(
                f"dataset {dataset.name} is compressed by {label.decode(errors='replace') or code}, which is not "
                "installed: pip install 'fastrfm[filters]'"
            )


def read_names(parent: h5py.Group, name: str, size: int) -> np.ndarray | None:
    """Return the (size,) object array of str stored under `name` as text or numbers, or None if there is none."""
    if name not in parent:
        return None
    found = parent[name]
    if isinstance(found, h5py.Group):  # a nullable array of anndata's: values and mask
        return read_names(found, "values", size)
    if found.shape != (size,):
        raise FileFormatError(f"dataset {_full(parent, name)} must hold {size} names, got shape {found.shape}")
    if h5py.check_string_dtype(found.dtype) is not None:
        return np.asarray(found.asstr()[...], dtype=object)
    if found.dtype.kind not in "iuf":
        raise FileFormatError(f"dataset {_full(parent, name)} must hold text, got dtype {found.dtype}")
    return np.array([str(number) for number in found[...].tolist()], dtype=object)


def write_names(file: h5py.File, row_names: Any, col_names: Any) -> None:
    """Write /row_names and /col_names, where there are any (arrays or lists), as variable-length UTF-8."""
    for name, values in (("row_names", row_names), ("col_names", col_names)):
        if values is not None:
            dataset = file.create_dataset(name, shape=(len(values),), dtype=TEXT)
            for start in range(0, len(values), _NAMES_AT_ONCE):
                part = values[start : start + _NAMES_AT_ONCE]
                dataset[start : start + len(part)] = np.array([str(value) for value in part], dtype=object)
            dataset.attrs["encoding-type"] = "string-array"  # anndata reads them too
            dataset.attrs["encoding-version"] = "0.2.0"


def names_size(values: Any) -> int:
    """Return bytes enough for names in a file: a reference, a header and padding for each, and the text."""
    if values is None:
        return 0
    numbers = isinstance(values, np.ndarray) and values.dtype.kind == "i"
    n_text = 20 * len(values) if numbers else sum(len(str(value).encode()) for value in values)
    return 48 * len(values) + n_text


def set_attribute(holder: h5py.HLObject, name: str, value: Any) -> None:
    """Store None, a bool, int, float or str so that :func:`get_attribute` returns it unchanged.

    Raises
    ------
    InputError
        If `value` is of another type or an int beyond 64 bits.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is not None and not isinstance(value, bool | int | float | str):
        raise InputError(f"{name} must be None, a bool, int, float or str to be stored, got {value!r}")
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise InputError(f"{name} must fit into 64 bits to be stored, got {value}")
    holder.attrs[name] = h5py.Empty("f8") if value is None else value


def get_attribute(holder: h5py.HLObject, name: str, kind: type | tuple[type, ...] | None = None) -> Any:
    """Return an attribute as a plain Python value (arrays as lists); with `kind`, insist on that type.

    Raises
    ------
    FileFormatError
        If the attribute is missing or not of type `kind`.
    """
    if name not in holder.attrs:
        raise FileFormatError(f"attribute {name} of {holder.name} is missing")
    value = holder.attrs[name]
    if isinstance(value, h5py.Empty):
        value = None
    elif isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, bytes):
        value = value.decode()
    if kind is not None and not isinstance(value, kind):
        raise FileFormatError(f"attribute {name} of {holder.name} has the wrong type: got {value!r}")
    return value


def get_attributes(holder: h5py.HLObject, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return all attributes but those named in `leave_out`, as plain Python values."""
    return {name: get_attribute(holder, name) for name in holder.attrs if name not in leave_out}


def _full(parent: h5py.Group, name: str) -> str:
    return f"{parent.name.rstrip('/')}/{name}"
