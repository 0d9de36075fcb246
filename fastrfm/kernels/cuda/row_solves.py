"""Row solves on a device: the linear regression of lin-RFM, one small positive definite system for every row.

Twins of ``kernels.row_solves``: dense form here (`solve_dual_rows`, `expand_rows`), the factored form's
`solve_factored_rows` in ``_factored_rows``, what a block does to solve a system in ``_systems``. A block takes a row.
"""

from __future__ import annotations

import numpy as np
from numba import cuda

from fastrfm import _cuda
from fastrfm._cuda import N_THREADS, Launch, block_sum, device_inner, device_kernel, over_groups, over_items
from fastrfm.kernels.cuda._chunks import larger, smaller
from fastrfm.kernels.cuda._factored_rows import solve_factored_rows
from fastrfm.kernels.cuda._systems import (
    LONG_ROOM,
    MOST_SHORT,
    block_max,
    cg_tolerance,
    packed,
    pivot_tolerance,
    row_start,
    solve_long,
    solve_short,
    workspaces,
)
from fastrfm.kernels.row_solves import CG_BUDGET, conjugate_gradient_steps

__all__ = ["expand_rows", "replace_rows", "solve_dual_rows", "solve_factored_rows"]

_STAGE = 128  # entries of a row in shared memory at a time
_TILE = 32
_PITCH = _TILE + 1
_TILE_ROOM, _LINES_ROOM = _TILE * _PITCH, 16 * _TILE  # a tile of the overlap serves 16 rows
_N_VECTORS = 4  # as long as the longest row, in a block's workspace
_packed, _steps = device_inner(packed), device_inner(conjugate_gradient_steps)


@device_inner
def _gather_system(feature_gram, indices, values, weights, start, n, ridge, system):
    # The triangle of K[J, J] and y as its last row; runs of neighbours of J. The ridge is added to K alone: what is
    # added to it must not pass through a sum with another share of the ridge.
    lanes = smaller(32, cuda.blockDim.x)
    lane = cuda.threadIdx.x % lanes
    for a in range(cuda.threadIdx.x // lanes, n, cuda.blockDim.x // lanes):
        source = feature_gram[indices[start + a]]
        for b in range(lane, a + 1, lanes):
            element = source[indices[start + b]]
            if a == b:
                element += system.dtype.type(ridge / weights[start + a] if weights.size > 0 else ridge)
            system[row_start(a) + b] = element
    for a in range(cuda.threadIdx.x, n, cuda.blockDim.x):
        system[row_start(n) + a] = system.dtype.type(values[start + a])
    cuda.syncthreads()


def _short_rows(indptr, feature_gram) -> Launch:
    m = min(feature_gram.shape[0], MOST_SHORT)
    return over_groups(indptr.size - 1, shared_bytes=(packed(m) + 3 * m) * feature_gram.dtype.itemsize)


@device_kernel(_short_rows, "l1 i1 v1 d1 r2 d0 d0 r1")
def _solve_short_rows(indptr, indices, values, weights, feature_gram, ridge, tolerance, out):
    """Solve the rows with at most 64 entries in shared memory."""
    shared = cuda.shared.array(0, dtype=out.dtype)
    m = smaller(feature_gram.shape[0], MOST_SHORT)
    end = _packed(m)
    system, floors, scales = shared[:end], shared[end : end + m], shared[end + m : end + 2 * m]
    solution = shared[end + 2 * m : end + 3 * m]
    for i in range(cuda.blockIdx.x, indptr.size - 1, cuda.gridDim.x):
        start = indptr[i]
        n = indptr[i + 1] - start
        if n > MOST_SHORT:
            continue
        _gather_system(feature_gram, indices, values, weights, start, n, ridge, system)
        solve_short(system, n, tolerance, floors, scales, solution)
        for a in range(cuda.threadIdx.x, n, cuda.blockDim.x):
            out[start + a] = solution[a]
        cuda.syncthreads()


@device_inner
def _multiply(system, n, vector, out):
    # Rows from left to right, then on down the column, where neighbouring threads read neighbours.
    for i in range(cuda.threadIdx.x, n, cuda.blockDim.x):
        total = system.dtype.type(0)
        for c in range(i + 1):
            total += system[row_start(i) + c] * vector[c]
        for c in range(i + 1, n):
            total += system[row_start(c) + i] * vector[c]
        out[i] = total


@device_inner
def _iterations_needed(system, weights, start, n, ridge, tolerance, room):
    """Bound the steps of conjugate gradients, from the largest row sum over the smallest share of the ridge."""
    largest = heaviest = system.dtype.type(0)
    for i in range(cuda.threadIdx.x, n, cuda.blockDim.x):
        total = system.dtype.type(0)
        for c in range(i + 1):
            total += abs(system[row_start(i) + c])
        for c in range(i + 1, n):
            total += abs(system[row_start(c) + i])
        largest = larger(largest, total)
        if weights.size > 0:
            heaviest = larger(heaviest, system.dtype.type(weights[start + i]))
    largest = np.float64(block_max(largest, room))
    least = ridge / np.float64(block_max(heaviest, room)) if weights.size > 0 else ridge
    return _steps(largest, least, tolerance)


@device_inner
def _iterate(system, n, tolerance, max_steps, vectors, room, out):
    """Solve by conjugate gradients with a diagonal preconditioner; False, and `out` as it was, where they give up."""
    me = cuda.threadIdx.x
    x, r, p, q = vectors[:n], vectors[n : 2 * n], vectors[2 * n : 3 * n], vectors[3 * n : 4 * n]
    zero = system.dtype.type(0)
    rho = norm = zero
    for i in range(me, n, cuda.blockDim.x):
        x[i] = zero
        r[i] = system[row_start(n) + i]
        p[i] = r[i] / system[row_start(i) + i]
        rho += r[i] * p[i]
        norm += r[i] * r[i]
    rho, norm = block_sum(rho, room), block_sum(norm, room)
    goal = system.dtype.type(tolerance * tolerance) * norm
    for _ in range(max_steps):
        if norm <= goal:
            break
        _multiply(system, n, p, q)
        curvature = zero
        for i in range(me, n, cuda.blockDim.x):
            curvature += p[i] * q[i]
        curvature = block_sum(curvature, room)
        if not curvature > zero:
            return False
        step = rho / curvature
        after = norm = zero
        for i in range(me, n, cuda.blockDim.x):
            x[i] += step * p[i]
            r[i] -= step * q[i]
            norm += r[i] * r[i]
            after += r[i] * r[i] / system[row_start(i) + i]
        after, norm = block_sum(after, room), block_sum(norm, room)
        for i in range(me, n, cuda.blockDim.x):
            p[i] = r[i] / system[row_start(i) + i] + after / rho * p[i]
        rho = after
        cuda.syncthreads()
    if not norm <= goal:
        return False
    for i in range(me, n, cuda.blockDim.x):
        out[i] = x[i]
    return True


def _long_rows(indptr, workspace) -> Launch:
    shape = over_groups(indptr.size - 1, shared_bytes=(LONG_ROOM + N_THREADS) * workspace.dtype.itemsize)
    return Launch(min(shape.n_blocks, workspace.shape[0]), shape.n_threads, shape.shared_bytes)


@device_kernel(_long_rows, "l1 i1 v1 d1 r2 d0 l0 d0 d0 l0 r2 r1")
def _solve_long_rows(
    indptr, indices, values, weights, feature_gram, ridge, cg_from, tolerance, cg_goal, longest, workspace, out
):
    """Solve the rows with more than 64 entries; a block owns a row of `workspace`: a system, then four vectors."""
    shared = cuda.shared.array(0, dtype=out.dtype)
    room, own = shared[LONG_ROOM:], workspace[cuda.blockIdx.x]
    system, vectors = own[: _packed(longest)], own[_packed(longest) :]
    for i in range(cuda.blockIdx.x, indptr.size - 1, cuda.gridDim.x):
        start = indptr[i]
        n = indptr[i + 1] - start
        if n <= MOST_SHORT:
            continue
        _gather_system(feature_gram, indices, values, weights, start, n, ridge, system)
        solved = False
        budget = n // CG_BUDGET
        if (
            n >= cg_from
            and ridge > 0.0
            and _iterations_needed(system, weights, start, n, ridge, cg_goal, room) < budget
        ):
            solved = _iterate(system, n, cg_goal, budget, vectors, room, out[start : start + n])
        if not solved:
            solve_long(system, n, tolerance, vectors, shared)
            for a in range(cuda.threadIdx.x, n, cuda.blockDim.x):
                out[start + a] = system[row_start(n) + a]
        cuda.syncthreads()


def _over_rows(indptr) -> Launch:
    return over_items(indptr.size - 1)


@device_kernel(_over_rows, "l1 l1")
def _raise_to_longest(indptr, out):
    """Raise out[0] to the length of the longest row: atomic, and exact in any order."""
    for i in range(cuda.grid(1), indptr.size - 1, cuda.gridsize(1)):
        cuda.atomic.max(out, 0, indptr[i + 1] - indptr[i])


def _longest_row(indptr, n_cols: int) -> int:
    if n_cols <= MOST_SHORT or indptr.size < 2:
        return min(n_cols, MOST_SHORT)
    longest = _cuda.put(np.zeros(1, np.int64))
    _raise_to_longest(indptr, longest)
    return int(_cuda.fetch(longest)[0])


def solve_dual_rows(bounds, indptr, indices, values, weights, feature_gram, ridge, cg_from, out):
    """Solve (K[J,J] + ridge diag(1/w)) a = y for every row of a block, J its observed columns.

    Parameters
    ----------
    bounds
        Not used: a block takes a row at a time.
    indptr, indices, values, weights
        The block by row; values float32 or float64; weights float64, empty where all are one.
    feature_gram : (n_cols, n_cols) float32 or float64
        K, symmetric.
    ridge : float
        In the unit of K.
    cg_from : int
        As of the twin; rows of up to 64 entries, whose budget of steps no bound can keep, are factorised.
    out : (n_entries,) as `feature_gram`, written; a block owns the entries of its rows

    Raises
    ------
    DeviceMemoryError
        If there are rows with more than 64 entries and no room for a single workspace.

    Notes
    -----
    Rows of up to 64 entries are solved in shared memory. The length of the longest row is read back; where it is above
    64, a second launch solves the long rows in workspaces of n² / 2 + 6 n elements, n the longest, one for each
    resident block: at most 512 blocks and 1 GiB (or one block), half as many again and again where the device has less.

    Memory traffic in elements: a row of n entries reads n² / 2 of K (gathered: neighbours in J, not in memory), its
    values, weights and (n times, from cache) indices, and writes n; n³ / 3 operations, in shared memory. A long row
    writes n² / 2 to its workspace and moves about n³ / 96 more to factorise it there; a step of conjugate gradients
    reads the triangle twice, 2 n² operations.
    """
    dtype = feature_gram.dtype
    tolerance = pivot_tolerance(dtype)
    _solve_short_rows(indptr, indices, values, weights, feature_gram, ridge, tolerance, out)
    longest = _longest_row(indptr, feature_gram.shape[0])
    if longest > MOST_SHORT:
        room = workspaces(indptr.size - 1, packed(longest) + _N_VECTORS * longest, dtype)
        goal = cg_tolerance(dtype)
        _solve_long_rows(
            indptr, indices, values, weights, feature_gram, ridge, cg_from, tolerance, goal, longest, room, out
        )


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
    out : (n_slab_rows, n_cols) as `duals`, written; a block owns a row's panel of as many columns as it has threads

    Notes
    -----
    Memory traffic in elements: an entry reads n_cols of K, in runs of a panel (the panel of K is shared by the rows of
    a slab through the cache: blocks go down a panel before the next), and its dual and index once a panel; a row
    writes n_cols. 2 n_cols operations an entry. A sum runs over the entries in ascending order.
    """
    columns = cuda.shared.array(_STAGE, dtype=np.int64)
    shares = cuda.shared.array(_STAGE, dtype=out.dtype)
    n_rows, n_cols = indptr.size - 1, out.shape[1]
    n_panels = (n_cols + cuda.blockDim.x - 1) // cuda.blockDim.x
    for item in range(cuda.blockIdx.x, n_rows * n_panels, cuda.gridDim.x):
        i = item % n_rows
        c = item // n_rows * cuda.blockDim.x + cuda.threadIdx.x
        total = out.dtype.type(0)
        for first in range(indptr[i], indptr[i + 1], _STAGE):
            depth = smaller(_STAGE, indptr[i + 1] - first)
            for t in range(cuda.threadIdx.x, depth, cuda.blockDim.x):
                columns[t] = indices[first + t]
                shares[t] = duals[first + t]
            cuda.syncthreads()
            if c < n_cols:
                for t in range(depth):
                    total += shares[t] * feature_gram[columns[t], c]
            cuda.syncthreads()
        if c < n_cols:
            out[i, c] = total


def _over_lines(solved) -> Launch:
    lines = 4 * (N_THREADS // min(_TILE, N_THREADS))
    return over_groups(-(-solved.shape[0] // lines))


@device_kernel(_over_lines, "r2 r2 r2 r1")
def replace_rows(solved, overlap, coefficients, out_moved):
    """Put newly solved coefficients in the place of the old ones, and say how far each row moved.

    Row i moved by ‖c_i − overlap c'_i‖² within the span of the new basis, c' the old coefficients.

    Parameters
    ----------
    solved : (n_block_rows, k) float32 or float64
    overlap : (k, k_old) as `solved`
        The new basis transposed times the old one.
    coefficients : (n_block_rows, >= k and >= k_old) as `solved`
        The old ones; overwritten by the new ones and, beyond k, zeros.
    out_moved : (n_block_rows,) as `solved`, written; a block owns 16 consecutive rows

    Notes
    -----
    Memory traffic in elements: a row reads k of `solved` twice (once from cache) and k_old of `coefficients` k / 32
    times (all but one from cache), and writes the width of `coefficients` and 1; k k_old of `overlap` serve 16 rows,
    from cache. 2 k k_old operations a row.
    """
    tile = cuda.shared.array(_TILE_ROOM, dtype=solved.dtype)
    kept = cuda.shared.array(_LINES_ROOM, dtype=solved.dtype)
    n_rows, k = solved.shape
    n_old, width = overlap.shape[1], coefficients.shape[1]
    lanes = smaller(_TILE, cuda.blockDim.x)
    lane, line, n_lines = cuda.threadIdx.x % lanes, cuda.threadIdx.x // lanes, cuda.blockDim.x // lanes
    zero = solved.dtype.type(0)
    for top in range(cuda.blockIdx.x * 4 * n_lines, n_rows, cuda.gridDim.x * 4 * n_lines):
        first = top + line
        square0 = square1 = square2 = square3 = zero
        for left in range(0, k, lanes):
            a = left + lane
            s0 = s1 = s2 = s3 = zero
            for b in range(0, n_old, lanes):
                depth = smaller(lanes, n_old - b)
                for e in range(line, smaller(lanes, k - left), n_lines):
                    if lane < depth:
                        tile[e * _PITCH + lane] = overlap[left + e, b + lane]
                for e in range(line, 4 * n_lines, n_lines):
                    if lane < depth and top + e < n_rows:
                        kept[e * _TILE + lane] = coefficients[top + e, b + lane]
                cuda.syncthreads()
                for c in range(depth):
                    element = tile[lane * _PITCH + c]
                    s0 += element * kept[line * _TILE + c]
                    s1 += element * kept[(line + n_lines) * _TILE + c]
                    s2 += element * kept[(line + 2 * n_lines) * _TILE + c]
                    s3 += element * kept[(line + 3 * n_lines) * _TILE + c]
                cuda.syncthreads()
            if a < k:
                if first < n_rows:
                    square0 += (solved[first, a] - s0) ** 2
                if first + n_lines < n_rows:
                    square1 += (solved[first + n_lines, a] - s1) ** 2
                if first + 2 * n_lines < n_rows:
                    square2 += (solved[first + 2 * n_lines, a] - s2) ** 2
                if first + 3 * n_lines < n_rows:
                    square3 += (solved[first + 3 * n_lines, a] - s3) ** 2
        kept[line * _TILE + lane] = square0
        kept[(line + n_lines) * _TILE + lane] = square1
        kept[(line + 2 * n_lines) * _TILE + lane] = square2
        kept[(line + 3 * n_lines) * _TILE + lane] = square3
        cuda.syncthreads()
        for e in range(cuda.threadIdx.x, smaller(4 * n_lines, n_rows - top), cuda.blockDim.x):
            total = zero
            for c in range(lanes):
                total += kept[e * _TILE + c]
            out_moved[top + e] = total
        for e in range(line, smaller(4 * n_lines, n_rows - top), n_lines):
            for a in range(lane, width, lanes):
                coefficients[top + e, a] = solved[top + e, a] if a < k else zero
        cuda.syncthreads()
