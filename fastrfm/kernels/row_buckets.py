"""Triples in any order to compressed rows, in two steps that both keep the order in which triples came.

``scatter_to_buckets`` groups a block of triples by ranges of rows; ``compress_rows`` turns all triples of one range
into rows with ascending columns. Not here: files, and what to do about pairs that occur twice.
"""

from __future__ import annotations

from numba import prange

from fastrfm._numba import inner, parallel_kernel


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
def _sort_by_column(indices, values, start, stop):
    """Sort entries ``start:stop`` by column (gaps of Shell's kind) and return how many repeat the one before."""
    is_sorted = True
    for t in range(start + 1, stop):
        if indices[t] < indices[t - 1]:
            is_sorted = False
            break
    gap = 1
    if not is_sorted:
        while gap < (stop - start) // 3:
            gap = gap * 9 // 4 + 1
        while gap > 0:
            for t in range(start + gap, stop):
                column, value = indices[t], values[t]
                place = t
                while place >= start + gap and indices[place - gap] > column:
                    indices[place] = indices[place - gap]
                    values[place] = values[place - gap]
                    place -= gap
                indices[place] = column
                values[place] = value
            gap = 0 if gap == 1 else max((gap - 1) * 4 // 9, 1)
    n_repeats = 0
    for t in range(start + 1, stop):
        if indices[t] == indices[t - 1]:
            n_repeats += 1
    return n_repeats


@parallel_kernel
def compress_rows(bounds, indptr, rows, cols, values, cursor, indices, out_values, n_repeats):
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
    indices, out_values : (n,) written
        A task owns the places of its rows.
    n_repeats : (n_tasks,) int64, written
        Entries whose row and column occurred before.
    """
    for task in prange(bounds.size - 1):
        first, last = bounds[task], bounds[task + 1]
        for t in range(rows.size):
            row = rows[t]
            if first <= row and row < last:
                place = cursor[row]
                cursor[row] = place + 1
                indices[place] = cols[t]
                out_values[place] = values[t]
        found = 0
        for row in range(first, last):
            found += _sort_by_column(indices, out_values, indptr[row], indptr[row + 1])
        n_repeats[task] = found
