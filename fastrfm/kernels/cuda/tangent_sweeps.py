"""The tangent system's sweeps over the observations on a device: twins of ``kernels.tangent``.

A block takes a row, a warp where rows are short. Teams of four threads take an entry each and read neighbouring numbers
of the rows it gathers: four entries at a time where sums run over directions, four runs of directions where they run
over entries, so that several reads are under way. The residuals of a row stay in shared memory, four for each thread of
the block; rows beyond that form those of their first entries again in the second pass, which costs a gathered row an
entry, k elements of 4 k, and no memory (a number for each entry would be as much as the values).

What goes to columns goes there by atomic additions: a pass by columns would read positions and values a second time,
in a second order, and gather a residual for each. So the last bits of these sums depend on the order of the additions,
which no two runs share. Factors are in ``tangent_factors``, conjugate gradients in ``tangent_steps``.
"""

from __future__ import annotations

from typing import Any

from numba import cuda

from fastrfm._cuda import (
    IS_SIMULATED,
    Launch,
    block_sum,
    device_inner,
    device_kernel,
    over_groups,
    over_items,
    scratch_rows,
)
from fastrfm.kernels.cuda._chunks import smaller
from fastrfm.kernels.cuda._tangent_systems import TEAM, add_teams, room_pitch, solve, threads_for
from fastrfm.kernels.cuda.tangent_factors import factor_some_rows

_ACROSS = 2 if IS_SIMULATED else 8  # threads side by side in atomic additions: all 32 bytes that they take at once
_FACTOR_BYTES = 2**27  # of factors that are formed for a sweep at a time

_pitch = device_inner(room_pitch)


# --- pieces: all threads of a block call them together --------------------------------------------------------------


@device_inner
def _take_products(weights, rows, indices, start, n, out, room):
    """Subtract weights · rows[indices[start + t]] from out[t], t < n; a thread changes every blockDim-th of out."""
    me, k, zero = cuda.threadIdx.x, weights.size, weights.dtype.type(0)
    team, n_teams, place = me // TEAM, cuda.blockDim.x // TEAM, me % TEAM * _pitch(cuda.blockDim.x) + me // TEAM
    first = 0
    while first < n:
        # Teams without an entry take the last one again: it is at hand, and nobody reads their sums.
        t, last = start + first, n - 1 - first
        i, j = indices[t + smaller(team, last)], indices[t + smaller(team + n_teams, last)]
        p, q = indices[t + smaller(team + 2 * n_teams, last)], indices[t + smaller(team + 3 * n_teams, last)]
        one = two = three = four = zero
        a = me % TEAM
        while a < k:
            given = weights[a]
            one += given * rows[i, a]
            two += given * rows[j, a]
            three += given * rows[p, a]
            four += given * rows[q, a]
            a += TEAM
        room[place] = one
        room[place + n_teams] = two
        room[place + 2 * n_teams] = three
        room[place + 3 * n_teams] = four
        cuda.syncthreads()
        e = me
        while e < smaller(4 * n_teams, n - first):
            out[first + e] -= add_teams(room, e)
            e += cuda.blockDim.x
        cuda.syncthreads()
        first += 4 * n_teams


@device_inner
def _gather(weights, rows, indices, start, n, out, room):
    """Add weights[t] rows[indices[start + t]] to out, t < n, in an order that the number of threads fixes."""
    me, k, zero = cuda.threadIdx.x, out.size, weights.dtype.type(0)
    n_teams, place = cuda.blockDim.x // TEAM, me // TEAM * 4 * TEAM + me % TEAM
    first = 0
    while first < k:
        n_runs, a, t = (k - first) // TEAM, first + me % TEAM, me // TEAM
        one = two = three = four = zero
        while t < n:
            j, weight = indices[start + t], weights[t]
            one += weight * rows[j, a]
            if n_runs > 1:
                two += weight * rows[j, a + TEAM]
            if n_runs > 2:
                three += weight * rows[j, a + 2 * TEAM]
            if n_runs > 3:
                four += weight * rows[j, a + 3 * TEAM]
            t += n_teams
        room[place] = one
        room[place + TEAM] = two
        room[place + 2 * TEAM] = three
        room[place + 3 * TEAM] = four
        cuda.syncthreads()
        e = me
        while e < smaller(4 * TEAM, k - first):
            total, t = out[first + e], e
            while t < n_teams * 4 * TEAM:
                total += room[t]
                t += 4 * TEAM
            out[first + e] = total
            e += cuda.blockDim.x
        cuda.syncthreads()
        first += 4 * TEAM


@device_inner
def _scatter(weights, direction, indices, start, n, rows):
    """Add weights[t] direction to rows[indices[start + t]], t < n, by atomic additions."""
    t = cuda.threadIdx.x // _ACROSS
    while t < n:
        j, weight = indices[start + t], weights[t]
        a = cuda.threadIdx.x % _ACROSS
        while a < direction.size:
            cuda.atomic.add(rows, (j, a), weight * direction[a])
            a += _ACROSS
        t += cuda.blockDim.x // _ACROSS
    cuda.syncthreads()


@device_inner
def _load_values(values, start, n, out):
    """Write the values of n entries, or zeros; the thread t modulo the threads writes out[t]."""
    t = cuda.threadIdx.x
    while t < n:
        out[t] = out.dtype.type(values[start + t]) if values.size > 0 else out.dtype.type(0)
        t += cuda.blockDim.x


@device_inner
def _load(source, target):
    a = cuda.threadIdx.x
    while a < target.size:
        target[a] = source[a]
        a += cuda.blockDim.x


# --- the eliminated sweep -------------------------------------------------------------------------------------------


def _by_rows(n_groups: int, indptr: Any, indices: Any, itemsize: int, n_numbers: int) -> Launch:
    """Return a block for each row: a thread for four entries, room for their sums, their residuals and `n_numbers`."""
    n_threads = threads_for(indices.size // max(4 * (indptr.size - 1), 1))
    n_shared = TEAM * room_pitch(n_threads) + 4 * n_threads + n_numbers
    return over_groups(n_groups, shared_bytes=n_shared * itemsize, n_threads=n_threads)


def _over_parts(out_parts) -> Launch:
    return over_items(TEAM * out_parts.shape[0] * out_parts.shape[1])


@device_kernel(_over_parts, "r3")
def _set_zero(out_parts):
    """Write zeros; a team owns rows."""
    n_cols = out_parts.shape[1]
    for row in range(cuda.grid(1) // TEAM, out_parts.shape[0] * n_cols, cuda.gridsize(1) // TEAM):
        part = row // n_cols
        a = cuda.grid(1) % TEAM
        while a < out_parts.shape[2]:
            out_parts[part, row - part * n_cols, a] = 0.0
            a += TEAM


def _over_swept_rows(indptr, indices, left, factors) -> Launch:
    return _by_rows(min(factors.shape[0], indptr.size - 1), indptr, indices, left.dtype.itemsize, 3 * left.shape[1])


@device_kernel(_over_swept_rows, "l0 l0 l1 i1 v1 r2 r2 r2 r2 r2 r1 r3")
def _sweep(
    first_row, n_parts, indptr, indices, values, left, basis, coefficients, factors, out_rows, out_misfit, out_parts
):
    """Do the work of :func:`eliminated_sweep` for the rows from `first_row` on, as many as there are factors."""
    me, n_threads, k = cuda.threadIdx.x, cuda.blockDim.x, left.shape[1]
    shared, keeps, n_kept = cuda.shared.array(0, dtype=left.dtype), out_misfit.size > 0, 4 * n_threads
    direction, row, half = shared[:k], shared[k : 2 * k], shared[2 * k : 3 * k]
    residual, room = shared[3 * k : 3 * k + n_kept], shared[3 * k + n_kept :]
    for s in range(cuda.blockIdx.x, smaller(factors.shape[0], indptr.size - 1 - first_row), cuda.gridDim.x):
        i = first_row + s
        start, stop = indptr[i], indptr[i + 1]
        target, misfit = out_parts[i % n_parts], left.dtype.type(0)
        _load(left[i], direction)
        a = me
        while a < k:
            row[a] = 0.0
            a += n_threads
        cuda.syncthreads()
        first, step = start, n_kept
        while start <= first < stop:
            n = smaller(n_kept, stop - first)
            _load_values(values, first, n, residual)
            _take_products(direction, coefficients, indices, first, n, residual, room)
            if step > 0:
                _gather(residual, basis, indices, first, n, row, room)
                if first + n_kept >= stop:
                    solve(factors[s], row, half, room)
                    step = -n_kept  # and back, from the entries whose residuals are still there
            if step < 0:
                _take_products(row, basis, indices, first, n, residual, room)
                t = me
                while t < n:
                    misfit += residual[t] * residual[t]
                    t += n_threads
                _scatter(residual, direction, indices, first, n, target)
            first += step
        if keeps:
            misfit = block_sum(misfit, room)
            if me == 0:
                out_misfit[i] = misfit
            _load(row, out_rows[i])
        cuda.syncthreads()


def eliminated_sweep(
    tiles: Any, first_tile: int, n_parts: int, indptr: Any, indices: Any, values: Any, left: Any, basis: Any,
    coefficients: Any, factors: Any, penalty: Any, out_rows: Any, out_misfit: Any, out_parts: Any,
) -> None:  # fmt: skip
    """Eliminate B and add up the gradient's data part in A, row by row.

    For row i: ``z = y − u_i·a_j``, ``b_i = M_i⁻¹ Σ z v_j``, ``r = z − b_i·v_j``, ``out_j += r u_i``, the last by atomic
    additions.

    Parameters
    ----------
    tiles
        Not used: a block takes a row at a time, rows take turns in the parts.
    first_tile : int
        0 begins anew. The rows may come in several calls.
    n_parts : int
    indptr, indices
        The entries by row.
    values : (n_entries,) or (0,) float32 or float64
        y; empty stands for zeros.
    left, basis, coefficients : (n_rows, k), (n_cols, k), (n_cols, k) float32 or float64
        U, V and A.
    factors : (n_rows or 0, factor_size(k)) as `left`
        From :func:`factor_rows`; empty: formed here, as many rows at a time as 128 MiB of memory that is kept for it
        take. That costs a row no more than being read once more; what costs is to gather V once more.
    penalty : (k,) as `left`
        For factors that are formed here.
    out_rows : (n_rows, k) or (0, k) as `left`, written unless empty
        B.
    out_misfit : (n_rows,) or (0,) as `left`, written unless empty
        Sum of r² over each row.
    out_parts : (n_parts, n_cols, k) as `left`, written, or added to from the second call on

    Raises
    ------
    DeviceMemoryError
        If factors are to be formed here and there is no room for them.

    Notes
    -----
    Memory traffic in elements: an entry reads its value, its index (three times, two or three of them from cache),
    gathers k of A and twice k of V (a row's V comes from cache the second time, unless it is long), in runs of four,
    and takes k atomic additions, in runs of eight. Entries of a row beyond the last four for each thread of a block
    gather k of A once more. A row reads k of U and its factor, factor_size(k), the second time from cache, and writes
    k + 1 if they are wanted. Parts are set to zero first: n_parts n_cols k. 8 k operations an entry, 2 factor_size(k)
    multiply-adds a row.
    """
    if first_tile == 0:
        _set_zero(out_parts)
    system, out = (indptr, indices, values, left, basis, coefficients), (out_rows, out_misfit, out_parts)
    n_rows, size = indptr.size - 1, factors.shape[1]
    if factors.shape[0] > 0 or n_rows == 0:
        _sweep(0, n_parts, *system, factors, *out)
        return
    n_formed = max(min(n_rows, _FACTOR_BYTES // max(size * left.dtype.itemsize, 1)), 1)
    formed = scratch_rows("row factors", n_formed, size, left.dtype)
    for first_row in range(0, n_rows, formed.shape[0]):
        factor_some_rows(first_row, indptr, indices, basis, penalty, formed)
        _sweep(first_row, n_parts, *system, formed, *out)


# --- products with the residual -------------------------------------------------------------------------------------


@device_inner
def _write_residual(start, n, indices, values, image, direction, coefficients, basis, residual, room):
    """Write y − u·a_j − b·v_j of n entries from `start` on, u = `direction` and b = `image`."""
    _load_values(values, start, n, residual)
    _take_products(direction, coefficients, indices, start, n, residual, room)
    _take_products(image, basis, indices, start, n, residual, room)


def _over_rows(indptr, indices, left, vectors) -> Launch:
    n_numbers = 2 * left.shape[1] + vectors.shape[1]
    return _by_rows(indptr.size - 1, indptr, indices, left.dtype.itemsize, n_numbers)


@device_kernel(_over_rows, "l1 l1 i1 v1 r2 r2 r2 r2 r2 r2")
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
    vectors : (n_cols, b) as `left`, b a multiple of four
        W.
    out : (n_rows, b) as `left`, written; a block owns its rows

    Notes
    -----
    Memory traffic in elements: an entry reads its value, its index (three times, two of them from cache) and gathers
    2 k + b, in runs of four; a row reads 2 k and writes b. 4 k + 2 b operations an entry.
    """
    me, n_threads, k, b = cuda.threadIdx.x, cuda.blockDim.x, left.shape[1], vectors.shape[1]
    shared, n_kept = cuda.shared.array(0, dtype=left.dtype), 4 * n_threads
    direction, image, product = shared[:k], shared[k : 2 * k], shared[2 * k : 2 * k + b]
    residual, room = shared[2 * k + b : 2 * k + b + n_kept], shared[2 * k + b + n_kept :]
    for i in range(cuda.blockIdx.x, indptr.size - 1, cuda.gridDim.x):
        _load(left[i], direction)
        _load(rows[i], image)
        a = me
        while a < b:
            product[a] = 0.0
            a += n_threads
        cuda.syncthreads()
        first, stop = indptr[i], indptr[i + 1]
        while first < stop:
            n = smaller(n_kept, stop - first)
            _write_residual(first, n, indices, values, image, direction, coefficients, basis, residual, room)
            _gather(residual, vectors, indices, first, n, product, room)
            first += n_kept
        _load(product, out[i])
        cuda.syncthreads()


@device_kernel(_over_rows, "l0 l1 i1 v1 r2 r2 r2 r2 r2 r3")
def _scatter_residual(n_parts, indptr, indices, values, left, rows, coefficients, basis, vectors, out_parts):
    """Do the work of :func:`multiply_residual_transposed`, but for setting zeros."""
    n_threads, k, b = cuda.blockDim.x, left.shape[1], vectors.shape[1]
    shared, n_kept = cuda.shared.array(0, dtype=left.dtype), 4 * n_threads
    direction, image, vector = shared[:k], shared[k : 2 * k], shared[2 * k : 2 * k + b]
    residual, room = shared[2 * k + b : 2 * k + b + n_kept], shared[2 * k + b + n_kept :]
    for i in range(cuda.blockIdx.x, indptr.size - 1, cuda.gridDim.x):
        _load(left[i], direction)
        _load(rows[i], image)
        _load(vectors[i], vector)
        cuda.syncthreads()
        first, stop = indptr[i], indptr[i + 1]
        while first < stop:
            n = smaller(n_kept, stop - first)
            _write_residual(first, n, indices, values, image, direction, coefficients, basis, residual, room)
            _scatter(residual, vector, indices, first, n, out_parts[i % n_parts])
            first += n_kept
        cuda.syncthreads()


def multiply_residual_transposed(
    tiles: Any, first_tile: int, n_parts: int, indptr: Any, indices: Any, values: Any, left: Any, rows: Any,
    coefficients: Any, basis: Any, vectors: Any, out_parts: Any,
) -> None:  # fmt: skip
    """Write Rᵀ·Q for the residual of :func:`multiply_residual`, as partial sums over rows, by atomic additions.

    Parameters
    ----------
    tiles
        Not used: rows take turns in the parts.
    first_tile : int
        As in :func:`eliminated_sweep`.
    n_parts : int
    vectors : (n_rows, b) as the factors
        Q.
    out_parts : (n_parts, n_cols, b) as the factors, written, or added to from the second call on

    Notes
    -----
    Memory traffic in elements: an entry reads its value, its index (three times, two of them from cache), gathers 2 k
    in runs of four and takes b atomic additions, in runs of eight; a row reads 2 k + b; n_parts n_cols b are set to
    zero first. 4 k + 2 b operations an entry.
    """
    if first_tile == 0:
        _set_zero(out_parts)
    _scatter_residual(n_parts, indptr, indices, values, left, rows, coefficients, basis, vectors, out_parts)
