"""The dense form's row solves on a device: systems gathered from the feature Gram K, and the rows they give.

Twins of two of ``kernels.row_solves``. Systems of up to 64 entries are gathered and factorised in shared memory; longer
ones in a workspace of each block, where they go to conjugate gradients if the processor's would too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from fastrfm._cuda import (
    IS_SIMULATED,
    MOST_BLOCKS,
    N_THREADS,
    Launch,
    block_sum,
    device_inner,
    device_kernel,
    empty,
    over_groups,
)
from fastrfm.errors import DeviceMemoryError
from fastrfm.kernels.cuda.small_systems import ACROSS, factorise, residual_tolerance, substitute
from fastrfm.kernels.row_solves import step_bound, step_budget

SMALL = 6 if IS_SIMULATED else 64  # entries of the longest row that is solved in shared memory
_MOST_RESIDENT = 4 if IS_SIMULATED else 1024  # blocks with a workspace: more than run at a time on any device

_step_bound, _budget = device_inner(step_bound), device_inner(step_budget)


@device_inner
def _gather_system(feature_gram, indices, weights, start, n, ridge, packed, diagonal):
    """Write the lower triangle of K[J, J] + ridge diag(1/w), its diagonal apart too; return nothing before all have."""
    me, down = cuda.threadIdx.x, cuda.blockDim.x // ACROSS
    for a in range(me // ACROSS, n, down):
        source, own = indices[start + a], a * (a + 1) // 2
        for b in range(me % ACROSS, a + 1, ACROSS):
            value = feature_gram[source, indices[start + b]]
            if a == b:
                # Where weights are large the ridge is small: nothing added later passes through a sum with it.
                more = ridge / weights[start + a] if weights.size > 0 else ridge
                value += feature_gram.dtype.type(more)
                diagonal[a] = value
            packed[own + b] = value
    cuda.syncthreads()


@device_inner
def _multiply(packed, n, vector, out):
    """Write the symmetric matrix of the triangle times `vector`."""
    for i in range(cuda.threadIdx.x, n, cuda.blockDim.x):
        total = vector.dtype.type(0)
        for j in range(i + 1):
            total += packed[i * (i + 1) // 2 + j] * vector[j]
        for j in range(i + 1, n):
            total += packed[j * (j + 1) // 2 + i] * vector[j]
        out[i] = total
    cuda.syncthreads()


@device_inner
def _dot(left, right, n, room):
    part = left.dtype.type(0)
    for a in range(cuda.threadIdx.x, n, cuda.blockDim.x):
        part += left[a] * right[a]
    return block_sum(part, room)


@device_inner
def _largest_row_sum(packed, n, room, work):
    """Return a bound of the largest eigenvalue, the same in every thread; `work` (n,) is overwritten."""
    for i in range(cuda.threadIdx.x, n, cuda.blockDim.x):
        total = packed.dtype.type(0)
        for j in range(n):
            value = packed[i * (i + 1) // 2 + j] if j <= i else packed[j * (j + 1) // 2 + i]
            total += abs(value)
        work[i] = total
    cuda.syncthreads()
    largest = packed.dtype.type(0)
    for i in range(n):
        largest = work[i] if work[i] > largest else largest
    return largest


@device_inner
def _conjugate_gradients(packed, diagonal, n, rhs, max_steps, room, work, stride):
    """Solve for the rhs in its place; return whether the tolerance was met, else rhs is as it was."""
    me, n_threads = cuda.threadIdx.x, cuda.blockDim.x
    x, r = work[:stride], work[stride : 2 * stride]
    p, q = work[2 * stride : 3 * stride], work[3 * stride : 4 * stride]
    tolerance = residual_tolerance(packed)
    norm = _dot(rhs, rhs, n, room)
    goal = tolerance * tolerance * norm
    for i in range(me, n, n_threads):
        x[i] = 0.0
        r[i] = rhs[i]
        p[i] = rhs[i] / diagonal[i]
    cuda.syncthreads()
    energy = _dot(r, p, n, room)
    for _ in range(max_steps):
        if norm <= goal:
            break
        _multiply(packed, n, p, q)
        curvature = _dot(p, q, n, room)
        if not curvature > 0.0:
            return False
        step, before = energy / curvature, energy
        for i in range(me, n, n_threads):
            x[i] += step * p[i]
            r[i] -= step * q[i]
            q[i] = r[i] / diagonal[i]
        cuda.syncthreads()
        norm, energy = _dot(r, r, n, room), _dot(r, q, n, room)
        for i in range(me, n, n_threads):
            p[i] = q[i] + energy / before * p[i]
        cuda.syncthreads()
    if norm > goal:
        return False
    for i in range(me, n, n_threads):
        rhs[i] = x[i]
    cuda.syncthreads()
    return True


def _over_workspaces(feature_gram, workspace) -> Launch:
    n = SMALL * (SMALL + 1) // 2 + 3 * SMALL + N_THREADS
    return Launch(workspace.shape[0], N_THREADS, n * feature_gram.dtype.itemsize)


@device_kernel(_over_workspaces, "l1 i1 v1 d1 r2 d0 l0 l0 r2 r1")
def _solve_rows(indptr, indices, values, weights, feature_gram, ridge, cg_from, longest, workspace, out):
    """Solve every row's system; a block has a row of `workspace`, (n_blocks, n (n + 1) / 2 + 6 n) for n = longest."""
    me, n_threads = cuda.threadIdx.x, cuda.blockDim.x
    shared = cuda.shared.array(0, dtype=feature_gram.dtype)
    n_packed = SMALL * (SMALL + 1) // 2
    room, near = shared[: cuda.blockDim.x], shared[cuda.blockDim.x :]
    far = workspace[cuda.blockIdx.x]
    for i in range(cuda.blockIdx.x, indptr.size - 1, cuda.gridDim.x):
        start = indptr[i]
        n = indptr[i + 1] - start
        rhs = out[start : start + n]
        for a in range(me, n, n_threads):
            rhs[a] = feature_gram.dtype.type(values[start + a])
        cuda.syncthreads()
        if n <= SMALL:
            floors, column = near[n_packed : n_packed + SMALL], near[n_packed + SMALL :]
            _gather_system(feature_gram, indices, weights, start, n, ridge, near, column)
            factorise(near, n, floors, column)
            substitute(near, n, rhs)
            continue
        diagonal = far[longest * (longest + 1) // 2 :]
        work = diagonal[longest:]
        _gather_system(feature_gram, indices, weights, start, n, ridge, far, diagonal)
        is_solved = False
        if n >= cg_from and ridge > 0.0:
            least = ridge
            if weights.size > 0:
                heaviest = 0.0
                for a in range(n):
                    heaviest = weights[start + a] if weights[start + a] > heaviest else heaviest
                least = ridge / heaviest
            largest = _largest_row_sum(far, n, room, work)
            if _step_bound(largest, least) < _budget(n):
                is_solved = _conjugate_gradients(far, diagonal, n, rhs, _budget(n), room, work, longest)
        if not is_solved:
            factorise(far, n, work, work[longest:])
            substitute(far, n, rhs)


def solve_dual_rows(
    bounds: np.ndarray,
    indptr: Any,
    indices: Any,
    values: Any,
    weights: Any,
    feature_gram: Any,
    ridge: float,
    cg_from: int,
    out: Any,
) -> None:
    """Solve (K[J,J] + ridge diag(1/w)) a = y for every row of a block, J its observed columns.

    Parameters
    ----------
    bounds : (n_rows + 1,) int64
        `indptr` on the processor: what workspaces are needed follows from it.
    indptr, indices, values, weights
        The block by row; values float32 or float64; weights float64, empty where all are one.
    feature_gram : (n_cols, n_cols) float32 or float64
        K, symmetric.
    ridge : float
        In the unit of K.
    cg_from : int
        Rows with at least this many entries go to conjugate gradients where `ridge` bounds the condition number so
        well that the steps cost less than a factorisation; all others, and any that fail, are factorised.
    out : (n_entries,) as `feature_gram`, written; a block owns the entries of its rows

    Raises
    ------
    DeviceMemoryError
        If there is no room for one workspace. With less room than wanted, fewer blocks run at a time.

    Notes
    -----
    A row of n entries gathers n² / 2 elements of K; n³ / 6 multiply-adds run out of shared memory (n <= 64) or caches.
    """
    counts = np.diff(bounds)
    if not counts.size:
        return
    longest = int(counts.max())
    size = longest * (longest + 1) // 2 + 6 * longest if longest > SMALL else 1
    n_blocks = min(counts.size, MOST_BLOCKS if longest <= SMALL else _MOST_RESIDENT)
    while True:
        try:
            workspace = empty((n_blocks, size), feature_gram.dtype)
            break
        except DeviceMemoryError:
            if n_blocks == 1:
                raise
            n_blocks //= 2
    _solve_rows(indptr, indices, values, weights, feature_gram, ridge, cg_from, longest, workspace, out)


def _over_panels(indptr, out) -> Launch:
    return over_groups((indptr.size - 1) * -(-out.shape[1] // N_THREADS))


@device_kernel(_over_panels, "l1 i1 r1 r2 r2")
def expand_rows(indptr, indices, duals, feature_gram, out):
    """Write the rows x_i = sum over J of a_j K[j, :] of the estimate.

    Parameters
    ----------
    indptr, indices
        The slab by row.
    duals : (n_entries,) float32 or float64
        a, from :func:`solve_dual_rows`.
    feature_gram : (n_cols, n_cols) as `duals`
    out : (n_slab_rows, n_cols) as `duals`, written; a block owns as many columns of a row as it has threads

    Notes
    -----
    An entry reads its position, its dual and a row of K, which the cache serves as far as K fits into it.
    """
    n_cols, n_threads = out.shape[1], cuda.blockDim.x
    n_panels = (n_cols + n_threads - 1) // n_threads
    for number in range(cuda.blockIdx.x, (indptr.size - 1) * n_panels, cuda.gridDim.x):
        i, j = number // n_panels, number % n_panels * n_threads + cuda.threadIdx.x
        if j < n_cols:
            total = out.dtype.type(0)
            for t in range(indptr[i], indptr[i + 1]):
                total += duals[t] * feature_gram[indices[t], j]
            out[i, j] = total
