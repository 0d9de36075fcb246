"""Entries of a factored estimate, one by one: predictions and the masked residual.

The estimate is ``left @ right.T``, left (n_rows, k) and right (n_cols, k), float64, C order. Every output element is
written by one thread, as one sum in a fixed order.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from fastrfm._numba import parallel_kernel

_PAIRS_PER_TASK = 4096


@parallel_kernel
def predict_pairs(rows, cols, left, right, out):
    """Write the estimate at pairs (rows[t], cols[t]).

    Parameters
    ----------
    rows, cols : (n_pairs,) int64
    left, right : (n_rows, k) and (n_cols, k) float64
    out : (n_pairs,) float64, written; a task owns 4096 consecutive pairs
    """
    n_pairs = rows.size
    for task in prange((n_pairs + _PAIRS_PER_TASK - 1) // _PAIRS_PER_TASK):
        for t in range(task * _PAIRS_PER_TASK, min((task + 1) * _PAIRS_PER_TASK, n_pairs)):
            i, j = rows[t], cols[t]
            total = 0.0
            for a in range(left.shape[1]):
                total += left[i, a] * right[j, a]
            out[t] = total


@parallel_kernel
def masked_residual(bounds, indptr, indices, values, left, right, out):
    """Write predicted minus observed at every observed entry of a row block.

    Parameters
    ----------
    bounds : (n_tasks + 1,) int64
        Rows of each task.
    indptr, indices, values
        The block by row; values float32 or float64.
    left : (n_block_rows, k) float64
        The block's rows of the left factor.
    right : (n_cols, k) float64
    out : (n_entries,) float64, written; a task owns the entries of its rows
    """
    for task in prange(bounds.size - 1):
        for i in range(bounds[task], bounds[task + 1]):
            for t in range(indptr[i], indptr[i + 1]):
                j = indices[t]
                total = -np.float64(values[t])
                for a in range(left.shape[1]):
                    total += left[i, a] * right[j, a]
                out[t] = total
