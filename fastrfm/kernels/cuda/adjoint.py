"""The adjoint sweep on a device: twin of ``kernels.adjoint``.

A block takes a column at a time. Its threads form the residuals of a run of entries, one each, then turn to the
directions, one each, and add the run's products in ascending order of the entries: the order of the processor.
"""

from __future__ import annotations

from numba import cuda

from fastrfm._cuda import N_THREADS, Launch, device_inner, device_kernel, over_groups
from fastrfm.kernels.adjoint import entry_share

_entry_share = device_inner(entry_share)


def _over_columns(indptr, k, out) -> Launch:
    return over_groups(indptr.size - 1, shared_bytes=(k + N_THREADS) * out.dtype.itemsize)


@device_kernel(_over_columns, "l1 l1 i1 v1 d1 r2 r2 l0 d0 r2 r2")
def add_adjoint_columns(bounds, indptr, indices, values, weights, coefficients, basis, k, theta, directions, out):
    """Add Σ_i theta_ij (y_ij - c_i·v_j) u_i to row j of `out`, for every column j of a row block.

    theta_ij is `theta`, with weights w theta·w / (1 - theta + theta·w).

    Parameters
    ----------
    bounds
        Not used: a block takes a column at a time.
    indptr, indices, values, weights
        The block by column; indices are local row numbers, values float32 or float64; weights float64, empty where all
        are one.
    coefficients : (n_block_rows, >= k) float32 or float64
    basis : (n_cols, >= k) as `coefficients`
    k : int
        Columns of both that are used.
    theta : float
    directions : (n_block_rows, b) as `coefficients`
    out : (n_cols, b) as `coefficients`, added to; a block owns its columns

    Notes
    -----
    An entry reads its position and value once, and gathers k coefficients and b elements of a direction; a column reads
    and writes b sums for every run of as many entries as a block has threads.
    """
    room = cuda.shared.array(0, dtype=out.dtype)
    features, residuals = room[:k], room[k:]
    me, n_threads, b = cuda.threadIdx.x, cuda.blockDim.x, out.shape[1]
    is_weighted, share = weights.size > 0, out.dtype.type(theta)
    for j in range(cuda.blockIdx.x, indptr.size - 1, cuda.gridDim.x):
        for a in range(me, k, n_threads):
            features[a] = basis[j, a]
        cuda.syncthreads()
        for start in range(indptr[j], indptr[j + 1], n_threads):
            n = indptr[j + 1] - start
            if n > n_threads:
                n = n_threads
            if me < n:
                i = indices[start + me]
                residual = out.dtype.type(values[start + me])
                for a in range(k):
                    residual -= coefficients[i, a] * features[a]
                if is_weighted:
                    residual *= out.dtype.type(_entry_share(theta, weights[start + me]))
                else:
                    residual *= share
                residuals[me] = residual
            cuda.syncthreads()
            for a in range(me, b, n_threads):
                total = out[j, a]
                for t in range(n):
                    total += residuals[t] * directions[indices[start + t], a]
                out[j, a] = total
            cuda.syncthreads()
