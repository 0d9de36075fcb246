"""Triples in any order to compressed rows, in two steps that both keep the order in which triples came.

``scatter_to_buckets`` groups a block of triples by ranges of rows; ``compress_rows`` turns all triples of one range
into rows with ascending columns. Not here: files, and what to do about pairs that occur twice.
"""

from __future__ import annotations

from numba import prange

from fastrfm._numba import inner, parallel_kernel

_RUN = 64  # entries that are sorted by counting


@parallel_kernel
def scatter_to_buckets(bounds, rows, cols, values, bucket_of_row, row_starts, ends, out_rows, out_cols, out_values):
    """Group triples by bucket.

    Parameters
    ----------
    bounds : (n_tasks + 1,) int64
        Triples of each task.
    rows, cols, values : (n,) int64, int64, float32 or float64
    bucket_of_row : (n_rows,) int32
    row_starts : (n_buckets,) int64
        First row of each bucket.
    ends : (n_tasks, n_buckets) int64, written
        End of what each task puts into each bucket: the last line holds the ends of the buckets in `out_rows`.
    out_rows, out_cols, out_values : (n,), written
        Rows are counted from the first of their bucket. A task owns the places between two ends.
    """
    n_tasks, n_buckets = bounds.size - 1, row_starts.size
    for task in prange(n_tasks):
        for b in range(n_buckets):
            ends[task, b] = 0
        for t in range(bounds[task], bounds[task + 1]):
            ends[task, bucket_of_row[rows[t]]] += 1
    total = 0
    for b in range(n_buckets):
        for task in range(n_tasks):
            count = ends[task, b]
            ends[task, b] = total
            total += count
    for task in prange(n_tasks):
        for t in range(bounds[task], bounds[task + 1]):
            b = bucket_of_row[rows[t]]
            place = ends[task, b]
            ends[task, b] = place + 1
            out_rows[place] = rows[t] - row_starts[b]
            out_cols[place] = cols[t]
            out_values[place] = values[t]


@inner
def _sort_run(columns, values, start, stop, out_columns, out_values):
    """Put a short run in order by counting, for each entry, those that are not above: no branch to guess wrong.

    Entries of equal columns meet at one place; the places that they leave empty hold -1.
    """
    for t in range(start, stop):
        out_columns[t] = -1
    for t in range(start, stop):
        column = columns[t]
        n_not_above = 0
        for s in range(start, stop):
            n_not_above += columns[s] <= column
        out_columns[start + n_not_above - 1] = column
        out_values[start + n_not_above - 1] = values[t]


@inner
def _merge_runs(columns, values, start, middle, stop, out_columns, out_values):
    a, b = start, middle
    for t in range(start, stop):
        takes_first = b >= stop or (a < middle and columns[a] <= columns[b])
        source = a if takes_first else b
        out_columns[t] = columns[source]
        out_values[t] = values[source]
        a += takes_first
        b += not takes_first


@inner
def _sort_row(columns, values, start, stop, out_columns, out_values):
    """Sort entries ``start:stop`` by column into the outputs and return how many columns occurred before."""
    for first in range(start, stop, _RUN):
        _sort_run(columns, values, first, min(first + _RUN, stop), out_columns, out_values)
    n_repeats = 0
    for t in range(start, stop):
        n_repeats += out_columns[t] < 0
    if n_repeats > 0:
        return n_repeats
    width = _RUN
    while width < stop - start:
        for t in range(start, stop):
            columns[t] = out_columns[t]
            values[t] = out_values[t]
        for first in range(start, stop, 2 * width):
            middle = min(first + width, stop)
            _merge_runs(columns, values, first, middle, min(first + 2 * width, stop), out_columns, out_values)
        width *= 2
    for t in range(start + 1, stop):
        n_repeats += out_columns[t] == out_columns[t - 1]
    return n_repeats


@parallel_kernel
def compress_rows(
    bounds, indptr, rows, cols, values, cursor, placed_cols, placed_values, out_cols, out_values, repeats
):
    """Put triples into rows with ascending columns.

    Parameters
    ----------
    bounds : (n_tasks + 1,) int64
        Rows of each task. A task looks at all triples and places those of its rows, so tasks should be few.
    indptr : (n_rows + 1,) int64
        Row i owns places ``indptr[i]:indptr[i + 1]``.
    rows, cols, values : (n,) int32 or int64 (both), float32 or float64
    cursor : (n_rows,) int64, changed
        Starts as ``indptr[:-1]``.
    placed_cols, placed_values : (n,) overwritten
        Room for the rows before they are sorted.
    out_cols, out_values : (n,) written
        A task owns the places of its rows. Where a pair repeats, its row means nothing.
    repeats : (n_tasks,) int64, written
        Above 0 if a row and column occurred before.
    """
    for task in prange(bounds.size - 1):
        first, last = bounds[task], bounds[task + 1]
        for t in range(rows.size):
            row = rows[t]
            if first <= row and row < last:
                place = cursor[row]
                cursor[row] = place + 1
                placed_cols[place] = cols[t]
                placed_values[place] = values[t]
        found = 0
        for row in range(first, last):
            found += _sort_row(placed_cols, placed_values, indptr[row], indptr[row + 1], out_cols, out_values)
        repeats[task] = found
