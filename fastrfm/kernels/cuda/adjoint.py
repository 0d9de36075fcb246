"""The adjoint sweep on a device: (the sparse part of the estimate)ᵀ times a block of directions, column by column.

Twin of ``kernels.adjoint``. A block takes a column; the entries' sum runs in ascending order and continues what `out`
holds, so that neither row blocks nor the grid change its bits.
"""

from __future__ import annotations

from numba import cuda

from fastrfm._cuda import N_THREADS, Launch, device_inner, device_kernel, over_groups
from fastrfm.kernels.cuda._chunks import (
    DEPTH,
    chunk_depth,
    chunk_dots,
    chunk_pitch,
    device_depth,
    device_pitch,
    load_chunk,
    smaller,
)
from fastrfm.kernels.row_solves import damped_weight

_damped_weight = device_inner(damped_weight)


def _over_columns(indptr, k, out) -> Launch:
    pitch = chunk_pitch(k)
    n_elements = k + 3 * DEPTH + N_THREADS + chunk_depth(pitch) * pitch
    return over_groups(indptr.size - 1, shared_bytes=n_elements * out.dtype.itemsize)


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
    Memory traffic in elements: an entry reads its value, index and weight, k coefficients and b directions, both in
    runs of neighbours; a column reads k of `basis` and, for every chunk of up to 32 entries, reads and writes b of
    `out`, which stay in cache. 2 (k + b) operations an entry.
    """
    room = cuda.shared.array(0, dtype=out.dtype)
    ones, residuals = room[:DEPTH], room[DEPTH : 2 * DEPTH]
    features = room[2 * DEPTH : 2 * DEPTH + k]
    sums = room[2 * DEPTH + k : 3 * DEPTH + k + cuda.blockDim.x]
    chunk = room[3 * DEPTH + k + cuda.blockDim.x :]
    pitch = device_pitch(k)
    most = device_depth(pitch)
    me = cuda.threadIdx.x
    for t in range(me, DEPTH, cuda.blockDim.x):
        ones[t] = out.dtype.type(1)
    for j in range(cuda.blockIdx.x, indptr.size - 1, cuda.gridDim.x):
        for a in range(me, k, cuda.blockDim.x):
            features[a] = basis[j, a]
        cuda.syncthreads()
        for first in range(indptr[j], indptr[j + 1], most):
            depth = smaller(most, indptr[j + 1] - first)
            load_chunk(coefficients, indices, ones, first, depth, k, chunk, pitch)
            cuda.syncthreads()
            chunk_dots(chunk, depth, k, pitch, features, sums, residuals)
            for t in range(me, depth, cuda.blockDim.x):
                share = theta
                if weights.size > 0:
                    share *= weights[first + t] / _damped_weight(weights[first + t], theta)
                residuals[t] = (out.dtype.type(values[first + t]) - residuals[t]) * out.dtype.type(share)
            cuda.syncthreads()
            for a in range(me, directions.shape[1], cuda.blockDim.x):
                total = out[j, a]
                for t in range(depth):
                    total += residuals[t] * directions[indices[first + t], a]
                out[j, a] = total
            cuda.syncthreads()
