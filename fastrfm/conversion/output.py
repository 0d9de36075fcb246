"""Compressed rows, bucket by bucket, to a file as ``store.write_observations`` makes it.

Last part of ``conversion``. All sizes are known, so the room is taken before HDF5 writes (``writing_large_hdf5``); the
file is made in the scratch folder and gets its name when it is whole.
"""

from __future__ import annotations

from pathlib import Path

from fastrfm._hdf5 import mark, names_size, write_names, writing_large_hdf5
from fastrfm._interrupt import deferred
from fastrfm._layout import create_observations
from fastrfm.atomic import PathLike
from fastrfm.conversion.buckets import Buckets
from fastrfm.conversion.sources import Progress, Source


def write_buckets(
    source: Source, buckets: Buckets, path: PathLike, force: bool, progress: Progress, folder: Path
) -> None:
    """Write the file at `path`.

    Raises
    ------
    OutputExistsError, WriteError
        As :func:`fastrfm.atomic.writing`.
    InputError
        If a pair occurs twice.
    """
    n, dtype = source.n, source.value_dtype
    n_bytes = n * (dtype.itemsize + buckets.index_dtype.itemsize) + buckets.indptr.nbytes
    n_bytes += names_size(source.row_names) + names_size(source.col_names)
    with writing_large_hdf5(path, force, n_bytes, folder=folder) as file, deferred():
        mark(file)
        data, indices = create_observations(file, source.shape, buckets.indptr, dtype, buckets.index_dtype)
        for start, stop, columns, values in buckets.compressed():
            if stop > start:
                data[start:stop], indices[start:stop] = values, columns
            progress(stop / n)
        if repeat := buckets.find_repeat():
            raise source.repeat_error(repeat)
        write_names(file, source.row_names, source.col_names)
