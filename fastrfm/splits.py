"""Dividing observed entries for a test of what they cannot tell: by time, or by whole groups such as unseen rows.

Flow: ``Observations`` and what is known of each entry -> two ``Observations`` of the same shape and names, for
``complete(kept, validation=held)`` or an error on the second; or folds for ``cross_validation``. ``united`` is the way
back. Random divisions in two are ``Observations.split``; files are read by ``readers`` and ``cli.split``.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from fastrfm._checks import index_array
from fastrfm.errors import InputError
from fastrfm.observations import Observations

Split = tuple[Observations, Observations]

ROW, COLUMN = "row", "column"  # groups that need no labels


def split_by_time(observations: Observations, times: Any, share: float) -> Split:
    """Divide the entries at a moment: (earlier, latest).

    Parameters
    ----------
    observations : Observations
    times : (rows, cols, times), three (n_observed,) array_like
        The positions of all entries, in any order, and when each was observed: numbers, datetime64, or whatever numpy
        turns into one of them. ``(*observations.to_coo()[:2], times)`` for times in row order.
    share : float
        Share of the entries to be latest, above 0 and below 1. Entries of one moment stay together, so the moment is
        taken that comes nearest to it; at least one entry is on each side.

    Returns
    -------
    earlier, latest : Observations
        Both of the whole shape and with all names; every time in `latest` is after every time in `earlier`.

    Raises
    ------
    InputError
        If lengths differ, the positions are not those of the entries, a time is missing or no time, all are the same,
        or `share` is outside (0, 1).

    Examples
    --------
    >>> rows, cols, values, times = [1, 0, 0, 1], [0, 0, 1, 1], [1.0, 2.0, 3.0, 4.0], [30, 10, 20, 30]
    >>> observations = Observations.from_coo(rows, cols, values)
    >>> earlier, latest = split_by_time(observations, (rows, cols, times), 0.3)
    >>> earlier.values.tolist(), latest.values.tolist()
    ([2.0, 3.0], [1.0, 4.0])
    """
    _check(observations, share)
    moments = _as_times(_in_row_order(observations, times, "times"))
    found, counts = np.unique(moments, return_counts=True)
    if found.size < 2:
        raise InputError(f"all {moments.size} times are the same, {found[0]}: there is nothing to divide them at")
    n_latest = np.cumsum(counts[::-1])[-2::-1]  # entries from found[1] on, from found[2] on, ...
    is_latest = moments >= found[1 + _nearest(n_latest, share * moments.size)]
    return observations.select(~is_latest), observations.select(is_latest)


def split_by_group(observations: Observations, groups: Any, share: float, *, random_state: int = 0) -> Split:
    """Divide the entries by whole groups, drawn at random: (kept, held).

    Parameters
    ----------
    observations : Observations
    groups : "row", "column" or (rows, cols, groups), three (n_observed,) array_like
        What belongs together: whole rows (as if they were unseen), whole columns, or the positions of all entries, in
        any order, and the label of each one's group (a number or a str), such as its day.
    share : float
        Share of the entries to hold, above 0 and below 1. Groups are taken in random order until their number of
        entries comes nearest to it; at least one group is on each side.
    random_state : int
        Seed.

    Returns
    -------
    kept, held : Observations
        Both of the whole shape and with all names; no group is in both.

    Raises
    ------
    InputError
        If lengths differ, the positions are not those of the entries, a label is missing, all are in one group, or
        `share` is outside (0, 1).

    Examples
    --------
    >>> observations = Observations.from_dense([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    >>> kept, held = split_by_group(observations, "row", 0.3)
    >>> kept.values.tolist(), held.values.tolist()
    ([1.0, 2.0, 3.0, 4.0], [5.0, 6.0])
    """
    _check(observations, share)
    group_of, n_groups = number_groups(observations, groups)
    if n_groups < 2:
        raise InputError("all entries are in one group: there is nothing to divide")
    order = np.random.RandomState(random_state).permutation(n_groups)
    n_held = np.cumsum(np.bincount(group_of, minlength=n_groups)[order])[:-1]
    is_taken = np.zeros(n_groups, dtype=bool)
    is_taken[order[: 1 + _nearest(n_held, share * group_of.size)]] = True
    is_held = is_taken[group_of]
    return observations.select(~is_held), observations.select(is_held)


def number_groups(observations: Observations, groups: Any) -> tuple[np.ndarray, int]:
    """Return the group of each entry as a number from 0, (n_observed,) int64 in row order, and how many there are.

    `groups` and errors as of :func:`split_by_group`.
    """
    if isinstance(groups, str):
        if groups not in (ROW, COLUMN):
            raise InputError(f'groups must be "row", "column" or (rows, cols, groups), got {groups!r}')
        rows, cols, _ = observations.to_coo()
        labels = rows if groups == ROW else cols
    else:
        labels = _in_row_order(observations, groups, "groups")
        is_missing = labels != labels  # NaN and NaT
        if labels.dtype.kind == "O":
            is_missing = is_missing.astype(bool) | np.array([label is None for label in labels])
            labels = labels.astype(str)
        if is_missing.any():
            raise InputError(f"{is_missing.sum()} entries have no group: give each a label, or leave them out")
    found, group_of = np.unique(labels, return_inverse=True)
    return group_of.reshape(-1), found.size


def assign_folds(n_observed: int, folds: int, random_state: int = 0) -> np.ndarray:
    """Return the fold of each entry, (n_observed,) int64: sizes differ by one at most.

    Raises
    ------
    InputError
        If `folds` is no whole number from 2 to `n_observed`.
    """
    return _assign(n_observed, folds, random_state, "entries")


def _assign(n: int, folds: int, random_state: int, what: str) -> np.ndarray:
    try:
        is_good = not isinstance(folds, bool) and 2 <= operator.index(folds) <= n
    except TypeError:
        is_good = False
    if not is_good:
        raise InputError(f"folds must be a whole number from 2 to the number of {what}, {n}, got {folds!r}")
    return np.random.RandomState(random_state).permutation(n) % folds


def assign_group_folds(observations: Observations, groups: Any, folds: int, random_state: int = 0) -> np.ndarray:
    """Return the fold of each entry, (n_observed,) int64, groups whole: numbers of groups differ by one at most.

    Parameters
    ----------
    groups : "row", "column" or (rows, cols, groups)
        As of :func:`split_by_group`.

    Raises
    ------
    InputError
        If `folds` is no whole number from 2 to the number of groups, or `groups` cannot be used.
    """
    group_of, n_groups = number_groups(observations, groups)
    fold_of: np.ndarray = _assign(n_groups, folds, random_state, "groups")[group_of]
    return fold_of


def united(observations: Observations, other: Observations) -> tuple[Observations, np.ndarray]:
    """Return the entries of both, which are of one matrix and share none, and which are of `other`.

    Returns
    -------
    both : Observations
        With the names of the first; where only one of the two has weights, those of the other are one.
    is_other : (n_observed,) bool, in row order

    Raises
    ------
    InputError
        If the shapes differ or an entry is in both.
    """
    if observations.shape != other.shape:
        raise InputError(f"both must be of one matrix, got shapes {observations.shape} and {other.shape}")
    pairs = zip(observations.to_coo(), other.to_coo(), strict=True)
    rows, cols, values = (np.concatenate(pair) for pair in pairs)
    order = np.lexsort((cols, rows))
    again = (np.diff(rows[order]) == 0) & (np.diff(cols[order]) == 0)
    if again.any():
        at = order[int(np.argmax(again))]
        raise InputError(
            f"{again.sum()} entries are in both, the first at row {rows[at]}, column {cols[at]}: divide them first, as "
            "`fastrfm split` and Observations.split do"
        )
    names = {"row_names": observations.row_names, "col_names": observations.col_names}
    both = Observations.from_coo(rows, cols, values, observations.shape, **names)
    if observations.is_weighted or other.is_weighted:
        both = both.with_weights(np.concatenate((observations.entry_weights, other.entry_weights))[order])
    return both, order >= observations.n_observed


def _check(observations: Any, share: float) -> None:
    if not isinstance(observations, Observations):
        raise InputError("a division by time or group wants Observations in memory: raise memory, or take a part")
    if not 0.0 < share < 1.0:
        raise InputError(f"share must lie between 0 and 1, got {share!r}")


def _nearest(counts: np.ndarray, wanted: float) -> int:
    """Return where `counts` comes nearest to a number, the first such place."""
    return int(np.argmin(np.abs(counts - wanted)))


def _in_row_order(observations: Observations, given: Any, what: str) -> np.ndarray:
    """Return the third of `given` (rows, cols, what) in row order of the entries.

    With the positions, because numbers in file order alone would fit by length and be taken for other entries'.
    """
    try:
        rows, cols, column = given
    except (TypeError, ValueError):
        raise InputError(
            f"{what} must be (rows, cols, {what}) with the positions that they belong to, got {type(given).__name__}: "
            f"for {what} in row order give (*observations.to_coo()[:2], {what})"
        ) from None
    rows, cols, column = index_array(rows, "rows"), index_array(cols, "cols"), np.asarray(column)
    n = observations.n_observed
    if not rows.shape == cols.shape == column.shape == (n,):
        raise InputError(
            f"rows, cols and {what} must be 1-D, one for each of the {n} entries, got {rows.shape}, {cols.shape} and "
            f"{column.shape}"
        )
    order = np.lexsort((cols, rows))
    wanted = observations.to_coo()
    wrong = np.flatnonzero((rows[order] != wanted[0]) | (cols[order] != wanted[1]))
    if wrong.size:
        at = order[wrong[0]]
        raise InputError(
            f"the positions of {what} are not those of the entries, the first difference at row {rows[at]}, column "
            f"{cols[at]}: give each entry's once"
        )
    return column[order]


def _as_times(times: np.ndarray) -> np.ndarray:
    """Return times as numbers or datetime64, or say why they are none."""
    if times.dtype.kind not in "biufM":
        try:
            times = times.astype(np.float64)
        except (TypeError, ValueError):
            try:
                times = times.astype("datetime64[us]")
            except (TypeError, ValueError):
                raise InputError(f"times must be numbers or dates, got {str(times[0])!r}: convert them") from None
    is_missing = np.isnat(times) if times.dtype.kind == "M" else ~np.isfinite(times.astype(np.float64))
    if is_missing.any():
        raise InputError(
            f"{is_missing.sum()} times are missing or infinite: give each entry its time, or leave the entry out"
        )
    return times
