"""Observations of a file at the positions of a matrix that is there already: entries to validate or to judge on.

Flow: a path -> ``read_observations`` -> names to the matrix's positions -> ``Observations`` of the matrix's shape. By
name where both have names, so that a file may hold some rows and columns only, in another order.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from fastrfm.errors import InputError
from fastrfm.observations import Observations
from fastrfm.readers import read_observations
from fastrfm.readers.layout import is_whole

AXES = ("row", "column")


class Named(Protocol):
    """A matrix, observed or completed."""

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def row_names(self) -> np.ndarray | None: ...
    @property
    def col_names(self) -> np.ndarray | None: ...


def read_entries(path: Any, matrix: Named, *, memory: int | None = None) -> Observations:
    """Return the entries that a file holds of a matrix, with its shape and names.

    Parameters
    ----------
    path : str or path-like
        Whatever ``read_observations`` reads. Where the matrix has no names, names that are whole numbers are
        zero-based positions; without any the number of rows (or columns) must be the matrix's.
    matrix : Observations, StoredObservations or CompletionResult
    memory : int, optional
        As of ``read_observations``; what is read must fit.

    Raises
    ------
    MissingFileError, FileFormatError
        As ``read_observations``.
    InputError
        As there; also if a name is none of the matrix's, a name of the matrix occurs twice, or the sizes differ.
    """
    found = read_observations(path, memory=memory)
    if not isinstance(found, Observations):
        raise InputError(f"{path}: does not fit into the memory allowed: raise memory")
    names = (found.row_names, matrix.row_names), (found.col_names, matrix.col_names)
    places = []
    for axis, (own, wanted), n, size in zip(AXES, names, found.shape, matrix.shape, strict=True):
        try:
            places.append(_places(own, wanted, n, size, axis))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    rows, cols, values = found.to_coo()
    rows, cols = places[0][rows], places[1][cols]
    named = {"row_names": matrix.row_names, "col_names": matrix.col_names}
    entries = Observations.from_coo(rows, cols, values, matrix.shape, **named)
    return entries.with_weights(found.weights[np.lexsort((cols, rows))]) if found.is_weighted else entries


def _places(own: np.ndarray | None, wanted: np.ndarray | None, n: int, size: int, axis: str) -> np.ndarray:
    """Return the matrix's position of each row (or column) of a file, (n,) int64."""
    if own is not None and wanted is not None:
        lookup = name_lookup(wanted, axis)
        return _looked_up(own, lookup, axis)
    if own is not None and all(map(is_whole, own)):
        places = np.array([int(name) for name in own], dtype=np.int64)
        outside = places[(places < 0) | (places >= size)]
        if outside.size:
            raise InputError(f"{axis} position {outside[0]} is outside 0…{size - 1}: the matrix has no {axis} names")
        return places
    if n != size:
        raise InputError(
            f"has {n} {axis}s, the matrix {size}, and no names that both have: give names, or all {axis}s in order"
        )
    return np.arange(n)


def name_lookup(names: np.ndarray, axis: str) -> dict[str, int]:
    """Return where each name of a matrix stands, or refuse names that occur twice."""
    lookup = {str(name): position for position, name in enumerate(names)}
    if len(lookup) < len(names):
        raise InputError(f"{len(names) - len(lookup)} {axis} names occur twice in the matrix: make them different")
    return lookup


def _looked_up(own: np.ndarray, lookup: dict[str, int], axis: str) -> np.ndarray:
    unknown = [str(name) for name in own if name not in lookup]
    if unknown:
        raise InputError(
            f"{len(unknown)} of its {len(own)} {axis}s are not in the matrix, the first named {unknown[0]!r}: "
            "leave them out, or divide one file with `fastrfm split`, whose parts fit"
        )
    return np.array([lookup[name] for name in own], dtype=np.int64)
