"""Entries of a factored estimate on a device: predictions and the masked residual.

Twins of ``kernels.residual``. A thread forms one entry's sum of products, in the order of the directions.
"""

from __future__ import annotations

from numba import cuda

from fastrfm._cuda import Launch, device_kernel, over_groups, over_items


def _over_pairs(out) -> Launch:
    return over_items(out.size)


@device_kernel(_over_pairs, "l1 l1 r2 r2 r1")
def predict_pairs(rows, cols, left, right, out):
    """Write the estimate at pairs (rows[t], cols[t]).

    Parameters
    ----------
    rows, cols : (n_pairs,) int64
    left, right : (n_rows, k) and (n_cols, k) float32 or float64
    out : (n_pairs,) as the factors, written; a thread owns every n-th pair, n the threads of the grid
    """
    for t in range(cuda.grid(1), rows.size, cuda.gridsize(1)):
        i, j = rows[t], cols[t]
        total = left.dtype.type(0)
        for a in range(left.shape[1]):
            total += left[i, a] * right[j, a]
        out[t] = total


def _over_rows(indptr) -> Launch:
    return over_groups(indptr.size - 1)


@device_kernel(_over_rows, "l1 l1 i1 v1 r2 r2 r1")
def masked_residual(bounds, indptr, indices, values, left, right, out):
    """Write predicted minus observed at every observed entry of a row block.

    Parameters
    ----------
    bounds
        Not used: a block takes a row at a time.
    indptr, indices, values
        The block by row; values float32 or float64.
    left : (n_block_rows, k) float32 or float64
    right : (n_cols, k) as `left`
    out : (n_entries,) as `left`, written; a block owns the entries of its rows
    """
    for i in range(cuda.blockIdx.x, indptr.size - 1, cuda.gridDim.x):
        for t in range(indptr[i] + cuda.threadIdx.x, indptr[i + 1], cuda.blockDim.x):
            j = indices[t]
            total = left.dtype.type(-values[t])
            for a in range(left.shape[1]):
                total += left[i, a] * right[j, a]
            out[t] = total
