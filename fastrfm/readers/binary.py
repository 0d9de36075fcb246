"""NumPy, SciPy and Matrix Market files to ``Observations``.

Beside the text readers: bytes in, observations and the name of the format out. Nothing here unpickles, so a file from
a stranger cannot run code.
"""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np

from fastrfm.errors import FileFormatError, InputError
from fastrfm.observations import Observations


def read_npy(content: bytes, name: str) -> tuple[Observations, str]:
    """Return the entries of a 2-D NumPy array that are not NaN.

    Raises
    ------
    FileFormatError
        If the file is damaged or holds Python objects.
    InputError
        If the array is not 2-D or not real numbers.
    """
    try:
        matrix = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise FileFormatError(f"{name} is not a readable NumPy array: {error}") from None
    return Observations.from_dense(_check_real(matrix, name)), "dense NumPy array"


def read_npz(content: bytes, name: str) -> tuple[Observations, str]:
    """Return the observations of an archive: a SciPy sparse matrix, or one dense array with NaN for missing.

    Raises
    ------
    FileFormatError
        If it is another kind of ZIP file, is damaged, or holds several arrays.
    InputError
        If the matrix is not 2-D or not real numbers.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = list(archive.files)
            if not arrays or isinstance(archive[arrays[0]], bytes):
                raise FileFormatError(
                    f"{name} is a ZIP file without NumPy arrays: unpack it, or export a workbook as csv"
                )
            if "format" not in arrays:
                if len(arrays) > 1:
                    raise FileFormatError(f"{name} must hold one array, got {len(arrays)}: {', '.join(arrays)}")
                matrix = archive[arrays[0]]
                return Observations.from_dense(_check_real(matrix, name)), "dense NumPy array"
        import scipy.sparse

        sparse = scipy.sparse.load_npz(io.BytesIO(content))
    except FileFormatError:
        raise
    except InputError:
        raise
    except (ValueError, KeyError, OSError, EOFError, NotImplementedError, zipfile.BadZipFile) as error:
        raise FileFormatError(f"{name} is not a readable NumPy or SciPy archive: {error}") from None
    return Observations.from_scipy(sparse), "SciPy sparse matrix"


def read_mtx(content: bytes, name: str) -> tuple[Observations, str]:
    """Return the stored entries of a Matrix Market file; of its dense kind those that are not NaN.

    Raises
    ------
    FileFormatError
        If the file is damaged, or its entries have no values ("pattern").
    InputError
        If the entries are complex.
    """
    import scipy.io
    import scipy.sparse

    banner = content.split(b"\n", 1)[0].decode("ascii", "replace").lower().split()
    if "pattern" in banner:
        raise FileFormatError(f"{name} is a pattern: it says where entries are but holds no values to complete")
    if "complex" in banner:
        raise InputError(f"{name} holds complex numbers, wanted are real ones: split it into real and imaginary part")
    try:
        matrix = scipy.io.mmread(io.BytesIO(content))
    except (ValueError, OverflowError, TypeError, IndexError, EOFError) as error:
        raise FileFormatError(f"{name} is not a readable Matrix Market file: {error}") from None
    if scipy.sparse.issparse(matrix):
        return Observations.from_scipy(matrix), "Matrix Market coordinates"
    return Observations.from_dense(matrix), "Matrix Market array"


def _check_real(matrix: Any, name: str) -> Any:
    if matrix.dtype.kind not in "fiub":
        raise InputError(f"{name} must hold real numbers, got dtype {matrix.dtype}")
    return matrix
