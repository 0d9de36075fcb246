"""The largest entries of each row of an estimate, with ties by the lower column.

Flow: a block of estimates (a matrix product, right to rounding) -> candidates that might be among the n largest ->
their exact values, one by one -> the n largest, in order. The product decides nothing but who is looked at, so the
answer depends neither on block sizes nor on BLAS, which may give equal columns different last bits. Knows arrays only.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

BYTES_PER_ENTRY = 40  # the block, its product or partition, what is kept; candidates of a hard case
_GROUPS_EACH, _LEAST_GROUPS = 16, 512  # of columns: for each of the n, and at all, for inner loops of some length
_LOWEST = -np.finfo(np.float64).max


def rounding_margin(left: np.ndarray, right: np.ndarray, offsets: float) -> np.ndarray:
    """Return how far two ways of computing an entry of each row can lie apart, (n_block_rows,) float64.

    Parameters
    ----------
    left : (n_block_rows, k) float64
    right : (n_cols, k) float64
    offsets : float
        Largest magnitude of what is added to a product.

    Notes
    -----
    A sum of m products is off by at most ``m eps |a| |b|``, whatever the order (Higham 2002, section 3.1); twice that
    for two ways, and twice again for the additions.
    """
    longest = np.sqrt(np.max(np.einsum("ij,ij->i", right, right), initial=0.0))
    size = np.sqrt(np.einsum("ij,ij->i", left, left)) * longest + offsets
    return np.asarray(4 * (left.shape[1] + 4) * np.finfo(np.float64).eps * size)


def largest(
    block: np.ndarray, n: int, margin: np.ndarray, exact: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the columns and values of the n largest entries of each row, largest first, ties by lower column.

    Parameters
    ----------
    block : (n_block_rows, n_cols) float64
        Entries, each right to its row's `margin` (no NaN); -inf where an entry is not to be taken.
    n : int
        From 1 to n_cols.
    margin : (n_block_rows,) float64
    exact : callable
        Takes rows of the block and columns, (n_pairs,) int64 each, and returns the values that count.

    Returns
    -------
    cols : (n_block_rows, n) int64
        -1 where fewer than n entries are left.
    values : (n_block_rows, n) float64
        NaN there.
    """
    n_rows, n_cols = block.shape
    keep = block >= np.maximum(_lower_bound(block, n) - 2 * margin, _LOWEST)[:, None]
    cols = np.full((n_rows, n), -1, dtype=np.int64)
    values = np.full((n_rows, n), np.nan)
    for start, stop in _groups(np.count_nonzero(keep, axis=1), max(block.size // 8, n_cols)):
        rows, candidates = np.divmod(np.flatnonzero(keep[start:stop]), n_cols)  # nonzero of two axes is far slower
        found = exact(rows + start, candidates)
        order = np.lexsort((candidates, -found, rows))
        rows = rows[order]
        rank = np.arange(rows.size) - np.searchsorted(rows, rows)  # place within its row
        taken = rank < n
        place = rows[taken] + start, rank[taken]
        cols[place], values[place] = candidates[order][taken], found[order][taken]
    return cols, values


def _lower_bound(block: np.ndarray, n: int) -> np.ndarray:
    """Return, for each row, the n-th largest entry or something a little smaller, (n_block_rows,) float64.

    The n-th largest of the maxima of many groups of columns is such a bound: n columns reach it. Maxima cost a tenth of
    a partition of whole rows, and few more than n entries lie above.
    """
    n_rows, n_cols = block.shape
    n_groups = max(_GROUPS_EACH * n, _LEAST_GROUPS)
    if n_cols >= 4 * n_groups:
        width = n_cols // n_groups  # columns that are left over belong to no group, which lowers the bound at most
        block = block[:, : width * n_groups].reshape(n_rows, width, n_groups).max(axis=1)
    last = block.shape[1] - n
    return np.asarray(np.partition(block, last, axis=1)[:, last])


def _groups(counts: np.ndarray, limit: int) -> list[tuple[int, int]]:
    """Return spans of consecutive rows with at most `limit` candidates, or a single row."""
    ends = np.cumsum(counts)
    spans, start = [], 0
    while start < counts.size:
        before = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, before + limit, side="right")), start + 1)
        spans.append((start, stop))
        start = stop
    return spans
