"""The adjoint sweep: (the sparse part of the estimate)ᵀ times a block of directions, column by column.

The sparse part is ``theta · P_Ω*(y - C Vᵀ)``. It is never stored: each entry's residual is formed where it is needed.
A column's sum runs over its rows in ascending order and continues what earlier row blocks left in `out`, so that
neither row blocks nor threads change its bits.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from fastrfm._numba import parallel_kernel


@parallel_kernel
def add_adjoint_columns(bounds, indptr, indices, values, weights, coefficients, basis, k, theta, directions, out):
    """Add Σ_i theta_ij (y_ij - c_i·v_j) u_i to row j of `out`, for every column j of a row block.

    theta_ij is `theta`, with weights w theta·w / (1 - theta + theta·w).

    Parameters
    ----------
    bounds : (n_tasks + 1,) int64
        Columns of each task.
    indptr, indices, values, weights
        The block by column; indices are local row numbers, values float32 or float64; weights float64, empty where all
        are one.
    coefficients : (n_block_rows, >= k) float64
    basis : (n_cols, >= k) float64
    k : int
        Columns of both that are used.
    theta : float
    directions : (n_block_rows, b) float64
    out : (n_cols, b) float64, added to; a task owns its columns
    """
    b = directions.shape[1]
    is_weighted = weights.size > 0
    for task in prange(bounds.size - 1):
        longest = 0
        if is_weighted:
            for j in range(bounds[task], bounds[task + 1]):
                longest = max(longest, indptr[j + 1] - indptr[j])
        shares = np.empty(longest)
        for j in range(bounds[task], bounds[task + 1]):
            target, features, start = out[j], basis[j], indptr[j]
            if is_weighted:
                # In a loop of its own: inside the next one compiled and loaded code round it differently.
                for t in range(start, indptr[j + 1]):
                    shares[t - start] = theta * weights[t] / (1.0 - theta + theta * weights[t])
            for t in range(start, indptr[j + 1]):
                i = indices[t]
                residual = np.float64(values[t])
                for a in range(k):
                    residual -= coefficients[i, a] * features[a]
                residual *= shares[t - start] if is_weighted else theta
                source = directions[i]
                for a in range(b):
                    target[a] += residual * source[a]
