"""The tangent system's sweeps over the observations on a device: twins of ``kernels.tangent``.

A block takes a row: groups of threads form the residuals of its entries, then all threads, a direction each, add up
what the entries give. What goes to columns goes there by atomic additions: a pass by columns would need the entries in
a second order and read all of them again. So the last bits of these sums depend on the order of the additions, which
no two runs share. The factors of the systems are in ``tangent_factors``, conjugate gradients in ``tangent_steps``.
"""

from __future__ import annotations

from typing import Any

from numba import cuda

from fastrfm._cuda import (
    IS_SIMULATED,
    N_THREADS,
    Launch,
    block_sum,
    device_inner,
    device_kernel,
    empty,
    over_groups,
    over_items,
)
from fastrfm.kernels.cuda.tangent_factors import PANEL, SMALL, form_factor, shared_size, solve

_GROUP = 2 if IS_SIMULATED else 8  # threads that share an entry's inner products
_CHUNK = N_THREADS // _GROUP  # entries at a time
# Residuals of a row that are kept for its second pass, whole chunks of them; others are formed again.
_KEPT = 3 if IS_SIMULATED else 512
_MOST_RESIDENT = 4 if IS_SIMULATED else 1024  # blocks with a workspace of their own


@device_inner
def _subtract_products(vector, matrix, indices, start, n, k, room, residual):
    """Subtract vector · matrix[indices[start + t]] from residual[t], t < n <= the chunk; all threads must call it."""
    me = cuda.threadIdx.x
    t, lane = me // _GROUP, me % _GROUP
    part = vector.dtype.type(0)
    if t < n:
        j = indices[start + t]
        for a in range(lane, k, _GROUP):
            part += vector[a] * matrix[j, a]
    room[me] = part
    cuda.syncthreads()
    if lane == 0 and t < n:
        total = residual[t]
        for other in range(_GROUP):
            total -= room[me + other]
        residual[t] = total
    cuda.syncthreads()


@device_inner
def _part_of(tiles, first_tile, n_parts, i):
    """Return the part that row i belongs to: its tile's number in the whole matrix, modulo the parts."""
    low, high = 0, tiles.size - 1
    while high - low > 1:
        middle = (low + high) // 2
        if tiles[middle] <= i:
            low = middle
        else:
            high = middle
    return (first_tile + low) % n_parts


def _over_all(out_parts) -> Launch:
    return over_items(out_parts.shape[0] * out_parts.shape[1] * out_parts.shape[2])


@device_kernel(_over_all, "r3")
def _set_zero(out_parts):
    """Write zeros; a thread owns elements."""
    n, k = out_parts.shape[1], out_parts.shape[2]
    for e in range(cuda.grid(1), out_parts.shape[0] * n * k, cuda.gridsize(1)):
        out_parts[e // (n * k), e // k % n, e % k] = 0.0


def _by_workspaces(indptr, left, factors, penalty, workspace) -> Launch:
    k = left.shape[1]
    n = 3 * k + _KEPT + _CHUNK + N_THREADS + (0 if factors.shape[0] else shared_size(k))
    n_groups = indptr.size - 1
    if workspace.shape[0]:
        n_groups = min(n_groups, workspace.shape[0])
    return over_groups(n_groups, shared_bytes=n * left.dtype.itemsize)


@device_kernel(_by_workspaces, "l1 l0 l0 l1 i1 v1 r2 r2 r2 r2 r1 r2 r2 r1 r3")
def _sweep(
    tiles, first_tile, n_parts, indptr, indices, values, left, basis, coefficients, factors, penalty, workspace,
    out_rows, out_misfit, out_parts,
):  # fmt: skip
    """Do the work of :func:`eliminated_sweep`; blocks have a row of `workspace` each where factors are formed there."""
    k, me, n_threads = left.shape[1], cuda.threadIdx.x, cuda.blockDim.x
    has_values, keeps, has_factors = values.size > 0, out_misfit.size > 0, factors.shape[0] > 0
    shared = cuda.shared.array(0, dtype=left.dtype)
    direction, row, half = shared[:k], shared[k : 2 * k], shared[2 * k : 3 * k]
    kept, residual = shared[3 * k : 3 * k + _KEPT], shared[3 * k + _KEPT : 3 * k + _KEPT + _CHUNK]
    room = shared[3 * k + _KEPT + _CHUNK :]
    panel = room[n_threads : n_threads + PANEL * k]
    pivotal, near = room[n_threads + PANEL * k : n_threads + (PANEL + 1) * k], room[n_threads + (PANEL + 1) * k :]
    packed = near if k <= SMALL or has_factors else workspace[cuda.blockIdx.x]
    for i in range(cuda.blockIdx.x, indptr.size - 1, cuda.gridDim.x):
        start, stop = indptr[i], indptr[i + 1]
        part = _part_of(tiles, first_tile, n_parts, i)
        cuda.syncthreads()
        for a in range(me, k, n_threads):
            direction[a] = left[i, a]
            row[a] = 0.0
        cuda.syncthreads()
        for first in range(start, stop, _CHUNK):
            n = stop - first if stop - first < _CHUNK else _CHUNK
            for t in range(me, n, n_threads):
                residual[t] = left.dtype.type(values[first + t]) if has_values else left.dtype.type(0)
            cuda.syncthreads()
            _subtract_products(direction, coefficients, indices, first, n, k, room, residual)
            for t in range(me, n, n_threads):
                if first - start + t < _KEPT:
                    kept[first - start + t] = residual[t]
            for a in range(me, k, n_threads):
                total = row[a]
                for t in range(n):
                    total += residual[t] * basis[indices[first + t], a]
                row[a] = total
            cuda.syncthreads()
        if not has_factors:
            form_factor(packed, basis, indices, start, stop, penalty, panel, pivotal)
        solve(factors[i] if has_factors else packed, row, half)
        misfit = left.dtype.type(0)
        for first in range(start, stop, _CHUNK):
            n = stop - first if stop - first < _CHUNK else _CHUNK
            for t in range(me, n, n_threads):
                if first - start + t < _KEPT:
                    residual[t] = kept[first - start + t]
                else:
                    residual[t] = left.dtype.type(values[first + t]) if has_values else left.dtype.type(0)
            cuda.syncthreads()
            if first - start + n > _KEPT:
                _subtract_products(direction, coefficients, indices, first, n, k, room, residual)
            _subtract_products(row, basis, indices, first, n, k, room, residual)
            for t in range(me, n, n_threads):
                misfit += residual[t] * residual[t]
            for t in range(n):
                j, weight = indices[first + t], residual[t]
                for a in range(me, k, n_threads):
                    cuda.atomic.add(out_parts, (part, j, a), weight * direction[a])
            cuda.syncthreads()
        if keeps:
            misfit = block_sum(misfit, room)
            if me == 0:
                out_misfit[i] = misfit
            for a in range(me, k, n_threads):
                out_rows[i, a] = row[a]


def eliminated_sweep(
    tiles: Any,
    first_tile: int,
    n_parts: int,
    indptr: Any,
    indices: Any,
    values: Any,
    left: Any,
    basis: Any,
    coefficients: Any,
    factors: Any,
    penalty: Any,
    out_rows: Any,
    out_misfit: Any,
    out_parts: Any,
) -> None:
    """Eliminate B and add up the gradient's data part in A, row by row.

    For row i: ``z = y − u_i·a_j``, ``b_i = M_i⁻¹ Σ z v_j``, ``r = z − b_i·v_j``, ``out_j += r u_i``, the last by atomic
    additions.

    Parameters
    ----------
    tiles : (n_tiles + 1,) int64
        Rows of each tile; part p gets tiles p, p + n_parts, ... of the whole matrix.
    first_tile : int
        The first one's number in the whole matrix. The rows may come in several calls; 0 begins anew.
    n_parts : int
    indptr, indices
        The entries by row.
    values : (n_entries,) or (0,) float32 or float64
        y; empty stands for zeros.
    left, basis, coefficients : (n_rows, k), (n_cols, k), (n_cols, k) float32 or float64
        U, V and A.
    factors : (n_rows or 0, factor_size(k)) as `left`
        From :func:`factor_rows`; empty: formed again row by row, beyond 64 directions in a workspace of each block.
    penalty : (k,) as `left`
        For factors that are formed here.
    out_rows : (n_rows, k) or (0, k) as `left`, written unless empty
        B.
    out_misfit : (n_rows,) or (0,) as `left`, written unless empty
        Sum of r² over each row.
    out_parts : (n_parts, n_cols, k) as `left`, written, or added to from the second call on

    Notes
    -----
    An entry reads its position twice and its value once, gathers k elements of A and twice k of V, and takes k atomic
    additions; a row reads u_i and its factor, twice.
    """
    if first_tile == 0:
        _set_zero(out_parts)
    k, size = left.shape[1], factors.shape[1]
    is_formed_there = factors.shape[0] == 0 and k > SMALL
    workspace = empty((min(indptr.size - 1, _MOST_RESIDENT), size), left.dtype) if is_formed_there else factors[:0]
    _sweep(
        tiles, first_tile, n_parts, indptr, indices, values, left, basis, coefficients, factors, penalty, workspace,
        out_rows, out_misfit, out_parts,
    )  # fmt: skip


def _by_rows(indptr, left) -> Launch:
    n = 2 * left.shape[1] + _CHUNK + N_THREADS
    return over_groups(indptr.size - 1, shared_bytes=n * left.dtype.itemsize)


@device_inner
def _load_row(i, left, rows, direction, image):
    cuda.syncthreads()
    for a in range(cuda.threadIdx.x, left.shape[1], cuda.blockDim.x):
        direction[a] = left[i, a]
        image[a] = rows[i, a]
    cuda.syncthreads()


@device_inner
def _form_residual(values, indices, first, n, direction, image, coefficients, basis, k, room, residual):
    """Write y − u_i·a_j − b_i·v_j of n entries."""
    for t in range(cuda.threadIdx.x, n, cuda.blockDim.x):
        residual[t] = residual.dtype.type(values[first + t])
    cuda.syncthreads()
    _subtract_products(direction, coefficients, indices, first, n, k, room, residual)
    _subtract_products(image, basis, indices, first, n, k, room, residual)


@device_kernel(_by_rows, "l1 l1 i1 v1 r2 r2 r2 r2 r2 r2")
def multiply_residual(tiles, indptr, indices, values, left, rows, coefficients, basis, vectors, out):
    """Write R·W, R the residual y − U Aᵀ − B Vᵀ on the observed entries, never stored.

    Parameters
    ----------
    tiles
        Not used: a block takes a row at a time.
    indptr, indices, values
        The entries by row.
    left, rows : (n_rows, k) float32 or float64
        U and B.
    coefficients, basis : (n_cols, k) as `left`
        A and V.
    vectors : (n_cols, b) as `left`
        W.
    out : (n_rows, b) as `left`, written; a block owns its rows

    Notes
    -----
    An entry reads its position and value and gathers 2 k + b elements.
    """
    k, b, me, n_threads = left.shape[1], vectors.shape[1], cuda.threadIdx.x, cuda.blockDim.x
    shared = cuda.shared.array(0, dtype=left.dtype)
    direction, image = shared[:k], shared[k : 2 * k]
    residual, room = shared[2 * k : 2 * k + _CHUNK], shared[2 * k + _CHUNK :]
    for i in range(cuda.blockIdx.x, indptr.size - 1, cuda.gridDim.x):
        start, stop = indptr[i], indptr[i + 1]
        _load_row(i, left, rows, direction, image)
        for c in range(me, b, n_threads):
            out[i, c] = 0.0
        for first in range(start, stop, _CHUNK):
            n = stop - first if stop - first < _CHUNK else _CHUNK
            _form_residual(values, indices, first, n, direction, image, coefficients, basis, k, room, residual)
            for c in range(me, b, n_threads):
                total = out[i, c]
                for t in range(n):
                    total += residual[t] * vectors[indices[first + t], c]
                out[i, c] = total
            cuda.syncthreads()


@device_kernel(_by_rows, "l1 l0 l0 l1 i1 v1 r2 r2 r2 r2 r2 r3")
def _scatter_residual(
    tiles, first_tile, n_parts, indptr, indices, values, left, rows, coefficients, basis, vectors, out_parts
):
    """Do the work of :func:`multiply_residual_transposed`, but for setting zeros."""
    k, b, me, n_threads = left.shape[1], vectors.shape[1], cuda.threadIdx.x, cuda.blockDim.x
    shared = cuda.shared.array(0, dtype=left.dtype)
    direction, image = shared[:k], shared[k : 2 * k]
    residual, room = shared[2 * k : 2 * k + _CHUNK], shared[2 * k + _CHUNK :]
    for i in range(cuda.blockIdx.x, indptr.size - 1, cuda.gridDim.x):
        start, stop = indptr[i], indptr[i + 1]
        part = _part_of(tiles, first_tile, n_parts, i)
        _load_row(i, left, rows, direction, image)
        for first in range(start, stop, _CHUNK):
            n = stop - first if stop - first < _CHUNK else _CHUNK
            _form_residual(values, indices, first, n, direction, image, coefficients, basis, k, room, residual)
            for t in range(n):
                j, weight = indices[first + t], residual[t]
                for c in range(me, b, n_threads):
                    cuda.atomic.add(out_parts, (part, j, c), weight * vectors[i, c])
            cuda.syncthreads()


def multiply_residual_transposed(
    tiles: Any,
    first_tile: int,
    n_parts: int,
    indptr: Any,
    indices: Any,
    values: Any,
    left: Any,
    rows: Any,
    coefficients: Any,
    basis: Any,
    vectors: Any,
    out_parts: Any,
) -> None:
    """Write Rᵀ·Q for the residual of :func:`multiply_residual`, as partial sums over rows, by atomic additions.

    Parameters
    ----------
    tiles : (n_tiles + 1,) int64
        Rows of each tile; part p gets tiles p, p + n_parts, ... of the whole matrix.
    first_tile : int
        As in :func:`eliminated_sweep`.
    n_parts : int
    vectors : (n_rows, b) as the factors
        Q.
    out_parts : (n_parts, n_cols, b) as the factors, written, or added to from the second call on

    Notes
    -----
    An entry reads its position and value, gathers 2 k elements and takes b atomic additions.
    """
    if first_tile == 0:
        _set_zero(out_parts)
    _scatter_residual(
        tiles, first_tile, n_parts, indptr, indices, values, left, rows, coefficients, basis, vectors, out_parts
    )
