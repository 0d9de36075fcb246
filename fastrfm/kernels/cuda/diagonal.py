"""Products of sparse linear regression on compressed rows on a device: twins of ``kernels.diagonal``.

A group of threads shares a row, as many as its entries are worth on the average: rows of A are long, its columns
(the rows of Aᵀ) often short. Conjugate gradients keep their vectors and scalars on the device. A sum over all rows or
columns is formed by each block from the parts that the kernel before has left, in a fixed order: the same bits every
time. The two entries of ``state`` that a step reads and writes change places, so that no block reads what another
writes. Not here: dense designs (``columns``), which use the same conjugate gradients.
"""

from __future__ import annotations

import math

import numpy as np
from numba import cuda

from fastrfm._cuda import (
    IS_SIMULATED,
    N_THREADS,
    Launch,
    block_sum,
    device_inner,
    device_kernel,
    empty,
    fetch,
    over_groups,
    over_items,
    put,
)

_MOST_PARTS = 2 if IS_SIMULATED else 512  # of a sum: every block of the kernel after adds them up
_LOOK = 8  # steps of conjugate gradients between two looks at whether they are done
_ALONG, _OFFSET, _CURVATURE, _ERROR, _ENERGY, _NORM = range(6)  # sᵀ d, mᵀ K Aᵀ d, dᵀ S d, rᵀ r, rᵀ D⁻¹ r, yᵀ y
_IS_DONE, _N_STEPS, _LAST_ENERGY, _LAST_ERROR, _LAST_NORM = range(5)


def _group_size(n_rows, n_entries, n_threads):
    """Return how many threads share a row, a power of two: with at least two entries each, on the average, or 1."""
    size = 1
    while 2 * size <= n_threads and 4 * size * n_rows <= n_entries:
        size *= 2
    return size


group_size = device_inner(_group_size)


@device_inner
def group_sum(value, room, size):
    """Return the sum of `value` over the thread's group of `size`; all threads of a block must call it."""
    if size == 1:
        return value
    me = cuda.threadIdx.x
    member = me & (size - 1)
    room[me] = value
    cuda.syncthreads()
    half = size // 2
    while half > 0:
        if member < half:
            room[me] += room[me + half]
        cuda.syncthreads()
        half //= 2
    total = room[me - member]
    cuda.syncthreads()
    return total


def over_rows(n_rows: int, n_entries: int) -> Launch:
    """Return a launch with a group of threads for each row."""
    return over_items(n_rows * _group_size(n_rows, n_entries, N_THREADS))


def _over_rows(indptr, values) -> Launch:
    return over_rows(indptr.size - 1, values.size)


@device_inner
def _multiply(indptr, indices, values, vector, room, out):
    n_rows = indptr.size - 1
    size = group_size(n_rows, values.size, cuda.blockDim.x)
    member, number, n_groups = cuda.threadIdx.x & (size - 1), cuda.threadIdx.x // size, cuda.blockDim.x // size
    for first in range(cuda.blockIdx.x * n_groups, n_rows, cuda.gridDim.x * n_groups):
        i = first + number
        total = out.dtype.type(0)
        if i < n_rows:
            for t in range(indptr[i] + member, indptr[i + 1], size):
                total += values[t] * vector[indices[t]]
        total = group_sum(total, room, size)
        if member == 0 and i < n_rows:
            out[i] = total


@device_kernel(_over_rows, "l1 i1 r1 r1 r1")
def multiply_rows(indptr, indices, values, vector, out):
    """Write A v: row i of `out` is Σ_t values_t v[indices_t] over the row's entries.

    Parameters
    ----------
    indptr : (n_rows + 1,) int64
    indices : (n_entries,) int32
    values : (n_entries,) float32 or float64
    vector : (n_cols,) as `values`
    out : (n_rows,) as `values`, overwritten; a group of threads owns its rows

    Notes
    -----
    An entry is read once: 12 bytes in float64 (8 in float32), and one element of `vector` from the cache; a row takes
    16 bytes more. 2 operations for each entry.
    """
    _multiply(indptr, indices, values, vector, cuda.shared.array(N_THREADS, values.dtype), out)


@device_kernel(_over_rows, "d1 l1 i1 r1 r1 r1")
def _multiply_rows_on(state, indptr, indices, values, vector, out):
    """Do as :func:`multiply_rows` unless the steps are done."""
    if state[_IS_DONE] == 0.0:
        _multiply(indptr, indices, values, vector, cuda.shared.array(N_THREADS, values.dtype), out)


def n_parts(n_items: int) -> int:
    """Return into how many parts, one for a block, a sum over that many items is cut."""
    return max(min(-(-n_items // N_THREADS), _MOST_PARTS), 1)


def _over_parts(parts) -> Launch:
    return over_groups(parts.shape[1])


@device_inner
def _total(parts, which, room):
    """Return the sum of row `which` of `parts`, the same bits in every thread of every block."""
    total = parts.dtype.type(0)
    for b in range(cuda.threadIdx.x, parts.shape[1], cuda.blockDim.x):
        total += parts[which, b]
    return block_sum(total, room)


@device_inner
def _keep_part(value, parts, which, room):
    total = block_sum(parts.dtype.type(value), room)
    if cuda.threadIdx.x == 0:
        parts[which, cuda.blockIdx.x] = total


@device_kernel(_over_parts, "r1 r1 d2")
def _sum_mean_squares(weights, means, parts):
    """Write the parts of Σ_j weights_j means_j² to the only row of `parts`; 16 bytes a column."""
    total = weights.dtype.type(0)
    for j in range(cuda.grid(1), weights.size, cuda.gridsize(1)):
        total += weights[j] * means[j] * means[j]
    _keep_part(total, parts, 0, cuda.shared.array(N_THREADS, parts.dtype))


@device_kernel(_over_rows, "l1 i1 r1 r1 r1 r1 d2 r1")
def _add_squares(indptr, indices, values, weights, roots, means, parts, out):
    """Do what :func:`add_row_squares` says, with Σ_j weights_j means_j² in `parts`."""
    plain = out.dtype.type(_total(parts, 0, cuda.shared.array(N_THREADS, parts.dtype)))
    room = cuda.shared.array(N_THREADS, values.dtype)
    two, n_rows = out.dtype.type(2), indptr.size - 1
    size = group_size(n_rows, values.size, cuda.blockDim.x)
    member, number, n_groups = cuda.threadIdx.x & (size - 1), cuda.threadIdx.x // size, cuda.blockDim.x // size
    for first in range(cuda.blockIdx.x * n_groups, n_rows, cuda.gridDim.x * n_groups):
        i = first + number
        total = out.dtype.type(0)
        if i < n_rows:
            for t in range(indptr[i] + member, indptr[i + 1], size):
                j, value = indices[t], values[t]
                total += weights[j] * value * (value - two * roots[i] * means[j])
        total = group_sum(total, room, size)
        if member == 0 and i < n_rows:
            out[i] += roots[i] * roots[i] * plain + total


def add_row_squares(indptr, indices, values, weights, roots, means, out):
    """Add Σ_j weights_j (A_ij − s_i m_j)² to `out`: the diagonal of A K Aᵀ, the preconditioner.

    Parameters
    ----------
    indptr, indices, values
        A by rows, as in :func:`multiply_rows`.
    weights, means : (n_cols,) as `values`
    roots : (n_rows,) as `values`
    out : (n_rows,) as `values`, added to; a group of threads owns its rows

    Notes
    -----
    Two kernels. An entry is read once, 12 bytes in float64, and two elements of `weights` and `means` from the cache.
    6 operations for each entry.
    """
    parts = empty((1, n_parts(weights.size)))
    _sum_mean_squares(weights, means, parts)
    _add_squares(indptr, indices, values, weights, roots, means, parts, out)


# --- conjugate gradients ------------------------------------------------------------------------------------------


@device_kernel(_over_parts, "r1 r1 r1 d2 r1")
def _begin(target, roots, out, parts, direction):
    """Put the start into `direction`, for the first residual, and leave the parts of sᵀ d and yᵀ y."""
    room = cuda.shared.array(N_THREADS, parts.dtype)
    along, norm = out.dtype.type(0), out.dtype.type(0)
    for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
        direction[i] = out[i]
        along += roots[i] * out[i]
        norm += target[i] * target[i]
    _keep_part(along, parts, _ALONG, room)
    _keep_part(norm, parts, _NORM, room)


@device_kernel(_over_parts, "d1 r1 r1 d2 r1")
def _weigh(state, weights, means, parts, scaled):
    """Make K (Aᵀ − m sᵀ) d of Aᵀ d in `scaled`, and leave the parts of mᵀ of it; 32 bytes a column in float64."""
    if state[_IS_DONE] != 0.0:
        return
    room = cuda.shared.array(N_THREADS, parts.dtype)
    along, total = scaled.dtype.type(_total(parts, _ALONG, room)), scaled.dtype.type(0)
    for j in range(cuda.grid(1), scaled.size, cuda.gridsize(1)):
        value = weights[j] * (scaled[j] - means[j] * along)
        scaled[j] = value
        total += means[j] * value
    _keep_part(total, parts, _OFFSET, room)


@device_kernel(_over_parts, "d1 r1 r1 d0 d0 d2 r1")
def _combine(state, direction, roots, ridge, shift, parts, product):
    """Add what centring, ridge and shift ask for to `product`, and leave the parts of dᵀ of it; 32 bytes a row."""
    if state[_IS_DONE] != 0.0:
        return
    room = cuda.shared.array(N_THREADS, parts.dtype)
    along, offset = _total(parts, _ALONG, room), _total(parts, _OFFSET, room)
    factor, more, total = product.dtype.type(ridge), product.dtype.type(shift * along - offset), product.dtype.type(0)
    for i in range(cuda.grid(1), product.size, cuda.gridsize(1)):
        value = product[i] + factor * direction[i] + more * roots[i]
        product[i] = value
        total += direction[i] * value
    _keep_part(total, parts, _CURVATURE, room)


@device_kernel(_over_parts, "d1 r1 r1 r1 r1 d2 r1 r1")
def _move(state, direction, product, target, diagonal, parts, out, residual):
    """Go along the direction, or form the first residual; leave the parts of both its norms; 56 bytes a row."""
    if state[_IS_DONE] != 0.0:
        return
    room = cuda.shared.array(N_THREADS, parts.dtype)
    is_first = state[_N_STEPS] == 0.0
    size = out.dtype.type(state[_LAST_ENERGY] / _total(parts, _CURVATURE, room)) if not is_first else out.dtype.type(0)
    error, energy = out.dtype.type(0), out.dtype.type(0)
    for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
        if is_first:
            value = target[i] - product[i]
        else:
            out[i] += size * direction[i]
            value = residual[i] - size * product[i]
        residual[i] = value
        error += value * value
        energy += value * value / diagonal[i]
    _keep_part(error, parts, _ERROR, room)
    _keep_part(energy, parts, _ENERGY, room)


@device_kernel(_over_parts, "d1 r1 r1 r1 d0 d0 d2 d1 r1")
def _turn(state, residual, diagonal, roots, tol, max_steps, parts, following, direction):
    """Stop, or choose the next direction and leave the parts of sᵀ d; 40 bytes a row. `following`: the state after."""
    room = cuda.shared.array(N_THREADS, parts.dtype)
    is_writer = cuda.grid(1) == 0
    if state[_IS_DONE] != 0.0:
        if is_writer:
            for place in range(state.size):
                following[place] = state[place]
        return
    error, energy, norm = _total(parts, _ERROR, room), _total(parts, _ENERGY, room), _total(parts, _NORM, room)
    n_steps = state[_N_STEPS]
    is_done = math.sqrt(error) <= tol * math.sqrt(norm) or n_steps >= max_steps
    if is_writer:
        following[_IS_DONE] = 1.0 if is_done else 0.0
        following[_N_STEPS] = n_steps if is_done else n_steps + 1.0
        following[_LAST_ENERGY], following[_LAST_ERROR], following[_LAST_NORM] = energy, error, norm
    if is_done:
        return
    ratio, along = direction.dtype.type(0), direction.dtype.type(0)
    if n_steps > 0.0:
        ratio = direction.dtype.type(energy / state[_LAST_ENERGY])
    for i in range(cuda.grid(1), direction.size, cuda.gridsize(1)):
        value = residual[i] / diagonal[i]
        if n_steps > 0.0:
            value += ratio * direction[i]
        direction[i] = value
        along += roots[i] * value
    _keep_part(along, parts, _ALONG, room)


def conjugate_gradients(
    forward, adjoint, weights, roots, means, ridge, shift, target, diagonal, tol, max_steps, out
):  # fmt: skip
    """Solve as :func:`solve_reweighted`, with A's products by functions of (state, vector, out) that launch kernels.

    A function of the processor without a twin there. Both products do nothing where state[0] is not 0: the steps that
    follow the last one before it is seen to be the last.
    """
    direction, residual, product = (empty(out.size, out.dtype) for _ in range(3))
    scaled = empty(weights.size, out.dtype)
    parts = empty((6, n_parts(max(out.size, weights.size))))
    state, following = put(np.zeros(5)), empty(5)
    _begin(target, roots, out, parts, direction)
    for step in range(1, max_steps + 2):  # the first only forms the residual
        adjoint(state, direction, scaled)
        _weigh(state, weights, means, parts, scaled)
        forward(state, scaled, product)
        _combine(state, direction, roots, ridge, shift, parts, product)
        _move(state, direction, product, target, diagonal, parts, out, residual)
        _turn(state, residual, diagonal, roots, tol, float(max_steps), parts, following, direction)
        state, following = following, state
        if step % _LOOK == 0 and fetch(state)[_IS_DONE]:
            break
    last = fetch(state)
    return int(last[_N_STEPS]), float(np.sqrt(last[_LAST_ERROR]) / max(np.sqrt(last[_LAST_NORM]), 1e-300))


def solve_reweighted(
    row_ptr, row_indices, row_values, col_ptr, col_indices, col_values,
    weights, roots, means, ridge, shift, target, diagonal, tol, max_steps, out,
):  # fmt: skip
    """Solve (A K Aᵀ + ridge I + shift s sᵀ) a = y by preconditioned conjugate gradients, from the `out` given.

    Parameters
    ----------
    row_ptr, row_indices, row_values
        A by rows; col_ptr, col_indices, col_values by columns. int64, int32, float32 or float64.
    weights : (n_cols,) as the values
        The diagonal of K.
    roots, means : (n_rows,) and (n_cols,) as the values
        s and m of the centred A − s mᵀ; means are zero where nothing is centred.
    ridge, shift : float
        `shift` > 0 lifts the direction s that centring takes out.
    target, diagonal : (n_rows,) as the values
        y and the diagonal of the system.
    tol : float
        Relative residual at which to stop.
    max_steps : int
    out : (n_rows,) as the values; the start, then the solution

    Returns
    -------
    steps : int
    error : float
        Relative residual at the end.

    Notes
    -----
    Six kernels a step; 5 numbers come back every 8 steps. In float64 a step moves 24 bytes for each entry (it is read
    by rows and by columns), 48 for each column and 144 for each row; 4 operations for each entry.
    """

    def forward(state, vector, product):
        _multiply_rows_on(state, row_ptr, row_indices, row_values, vector, product)

    def adjoint(state, vector, product):
        _multiply_rows_on(state, col_ptr, col_indices, col_values, vector, product)

    return conjugate_gradients(
        forward, adjoint, weights, roots, means, ridge, shift, target, diagonal, tol, max_steps, out
    )
