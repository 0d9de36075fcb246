"""New entries put into observations that are there already: values replaced, values added, rows appended.

Flow: ``estimators.partial_fit`` reads a table, finds the rows that its lines belong to, merges, and has the fit updated
(``solvers.update``). Everything stays sorted by row and column, so nothing is sorted again.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrfm._checks import check_range, index_array
from fastrfm.errors import InputError
from fastrfm.observations import Observations


def positions_of(labels: Any, names: np.ndarray | None, size: int, what: str) -> np.ndarray:
    """Return the positions that whole numbers or names stand for, (n,) int64; every one must be there.

    Parameters
    ----------
    labels : (n,) array_like of int or of str
    names : (size,) object array of str, or None
        What the rows (or columns) are called, if they have names.
    size : int
    what : str
        "row" or "column", for messages.

    Raises
    ------
    InputError
        If a number lies outside 0…size - 1, or a name is not there, is there twice, or there are no names.
    """
    array = np.asarray(labels)
    if array.ndim != 1:
        raise InputError(f"{what}s must be 1-D, got {array.ndim} dimensions: give a list of positions or names")
    if not _are_names(array):
        positions = index_array(array, f"{what}s").astype(np.int64)
        check_range(positions, size, what)
        return positions
    positions = _named(array, names, what)
    if (positions < 0).any():
        raise InputError(
            f"no {what} is called {str(array[int(np.argmin(positions))])!r}: use names of the fitted table"
        )
    return positions


def rows_of(entries: Observations, rows: Any, fitted: Observations) -> tuple[np.ndarray, np.ndarray]:
    """Return where the lines of new entries belong: positions of fitted rows, or of rows to append.

    Parameters
    ----------
    entries : Observations
        The new entries, a line for each row.
    rows : (n_lines,) array_like of int or of str, or None
        Positions of fitted rows, or names, of which those that are not there are appended. None takes the names that
        `entries` come with, if the fitted rows have names; else all are appended.
    fitted : Observations

    Returns
    -------
    positions : (n_lines,) int64
        From n_rows up for rows to append, in the order of the lines.
    names : (n_appended,) object array of str
        What those are called; of no meaning where the fitted rows have no names.

    Raises
    ------
    InputError
        If two lines are of the same row, `rows` has another length or holds what is no row, or lines have no names to
        go by where the fitted rows have.
    """
    n_lines, n_rows = entries.n_rows, fitted.n_rows
    if rows is None and fitted.row_names is None:
        return n_rows + np.arange(n_lines), np.array([""] * n_lines, dtype=object)
    if rows is None and entries.row_names is None:
        raise InputError("the fitted table names its rows: pass a data frame whose index names them, or rows=")
    labels = np.asarray(entries.row_names if rows is None else rows)
    if labels.shape != (n_lines,):
        raise InputError(f"rows must hold one entry for each of the {n_lines} lines of X, got shape {labels.shape}")
    if _are_names(labels):
        positions = _named(labels, fitted.row_names, "row")
    else:
        positions = positions_of(labels, None, n_rows, "row")
    is_new = positions < 0
    names = np.array([str(name) for name in labels[is_new]], dtype=object)
    if len(set(names)) < names.size or np.unique(positions[~is_new]).size < n_lines - names.size:
        raise InputError("two lines of X are of the same row: give each row once")
    positions[is_new] = n_rows + np.arange(names.size)
    return positions, names


def merged(observations: Observations, entries: Observations, positions: np.ndarray, names: np.ndarray) -> Observations:
    """Return observations with new entries: those replace what is there at the same place.

    Parameters
    ----------
    observations : Observations
    entries : Observations
        Of as many columns.
    positions : (n_lines,) int64
        Different; the row that each line of `entries` belongs to.
    names : (n_appended,) object array of str
        Of the rows beyond n_rows.

    Returns
    -------
    Observations
        New arrays; float32 only if both are. Weights go with their entries, one where there were none.
    """
    n_rows, n_cols = observations.n_rows + names.size, observations.n_cols
    rows, cols, values = observations.to_coo()
    lines, new_cols, new_values = entries.to_coo()
    new_rows = positions[lines]
    order = np.lexsort((new_cols, new_rows))
    new_rows, new_cols, new_values = new_rows[order], new_cols[order].astype(cols.dtype), new_values[order]
    # Places of the matrix as single numbers, ascending in both.
    old, new = rows * n_cols + cols, new_rows * n_cols + new_cols
    at = np.searchsorted(old, new)
    is_there = at < old.size
    is_there[is_there] = old[at[is_there]] == new[is_there]
    values = values.astype(np.result_type(values, new_values))  # a copy
    values[at[is_there]] = new_values[is_there]
    weights, new_weights = observations.entry_weights.copy(), entries.entry_weights[order]
    weights[at[is_there]] = new_weights[is_there]
    at, is_added = at[~is_there], ~is_there
    counts = np.bincount(new_rows[is_added], minlength=n_rows)
    counts[: observations.n_rows] += observations.row_counts
    row_names = None if observations.row_names is None else np.concatenate([observations.row_names, names])
    united = Observations.from_csr(
        np.concatenate(([0], np.cumsum(counts))),
        np.insert(cols, at, new_cols[is_added]),
        np.insert(values, at, new_values[is_added]),
        (n_rows, n_cols),
        row_names=row_names,
        col_names=observations.col_names,
    )
    if not observations.is_weighted and not entries.is_weighted:
        return united
    return united.with_weights(np.insert(weights, at, new_weights[is_added]))


def _are_names(labels: np.ndarray) -> bool:
    return labels.dtype.kind in "UO" and all(isinstance(label, str) for label in labels)


def _named(labels: np.ndarray, names: np.ndarray | None, what: str) -> np.ndarray:
    """Return the positions of names, -1 for those that are not there."""
    if names is None:
        raise InputError(f"the fitted table has no {what} names: give positions")
    known: dict[str, int] = {}
    twice = set()
    for position, name in enumerate(names):
        if known.setdefault(name, position) != position:
            twice.add(name)
    unclear = [str(label) for label in labels if label in twice]
    if unclear:
        raise InputError(f"the fitted table has two {what}s called {unclear[0]!r}: give positions")
    return np.array([known.get(str(label), -1) for label in labels], dtype=np.int64)
