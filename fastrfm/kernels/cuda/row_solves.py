"""Row solves on a device: twins of ``kernels.row_solves``, a block for each row.

In ``solve_factored_rows`` systems of up to 64 unknowns are factorised in shared memory; beyond that conjugate gradients
work with the gathered rows themselves and form no matrix. A run of gathered rows is read once into shared memory, the
panel, and serves all the products of that pass: row c of it begins at c (k + 1), so that rows begin in different banks.
The dense form's systems, whose matrix is gathered from K, are in ``dual_rows``.
"""

from __future__ import annotations

import math

from numba import cuda

from fastrfm._cuda import IS_SIMULATED, N_THREADS, Launch, block_sum, device_inner, device_kernel, over_groups
from fastrfm.kernels.cuda.dual_rows import expand_rows as expand_rows
from fastrfm.kernels.cuda.dual_rows import solve_dual_rows as solve_dual_rows
from fastrfm.kernels.cuda.small_systems import add_gram, factorise, residual_tolerance, substitute
from fastrfm.kernels.row_solves import entry_root

SMALL = 6 if IS_SIMULATED else 64  # directions up to which normal equations are factorised
SMALL_DUAL = 4 if IS_SIMULATED else 48  # entries up to which dual systems are, where there are more directions
_LANES = 2 if IS_SIMULATED else 16  # neighbouring threads that load neighbouring elements of a gathered row
_RESTARTS = 4

_entry_root = device_inner(entry_root)


def panel_rows(k):
    """Return how many gathered rows are in shared memory at a time."""
    return 16 if k <= SMALL else 4


def triangle_side(k):
    """Return the side of the largest system that is factorised."""
    return k if k <= SMALL else SMALL_DUAL


_panel_rows, _triangle_side = device_inner(panel_rows), device_inner(triangle_side)


def _over_rows(indptr, basis, penalty) -> Launch:
    k, side, height = penalty.size, triangle_side(penalty.size), panel_rows(penalty.size)
    n = side * (side + 1) // 2 + 2 * side + 7 * k + basis.shape[1] + height * (k + 4) + N_THREADS
    return over_groups(indptr.size - 1, shared_bytes=n * basis.dtype.itemsize)


@device_inner
def _load(indices, values, weights, start, n, basis, k, theta, panel, marks):
    """Load entries start : start + n: their gathered rows, scaled by the roots of their weights.

    Their values, scaled too, go to marks[:height], the roots to the next height.
    """
    me, down, height = cuda.threadIdx.x, cuda.blockDim.x // _LANES, _panel_rows(k)
    cuda.syncthreads()  # all have done with what was there
    for c in range(me, n, cuda.blockDim.x):
        root = basis.dtype.type(1)
        if weights.size > 0:
            root = basis.dtype.type(_entry_root(theta, weights[start + c]))
        marks[c] = basis.dtype.type(values[start + c]) * root
        marks[height + c] = root
    cuda.syncthreads()
    for c in range(me // _LANES, n, down):
        j, root = indices[start + c], marks[height + c]
        for a in range(me % _LANES, k, _LANES):
            panel[c * (k + 1) + a] = basis[j, a] * root
    cuda.syncthreads()


@device_inner
def _multiply_panel(panel, n, k, vector, room, images):
    """Write the products of a panel's rows with `vector` to images[:n]: all threads together, a row at a time."""
    for c in range(n):
        part = vector.dtype.type(0)
        for a in range(cuda.threadIdx.x, k, cuda.blockDim.x):
            part += panel[c * (k + 1) + a] * vector[a]
        part = block_sum(part, room)
        if cuda.threadIdx.x == 0:
            images[c] = part
    cuda.syncthreads()


@device_inner
def _dot(left, right, n, room):
    part = left.dtype.type(0)
    for a in range(cuda.threadIdx.x, n, cuda.blockDim.x):
        part += left[a] * right[a]
    return block_sum(part, room)


@device_inner
def _apply(
    is_dual, indices, values, weights, start, stop, basis, k, theta, penalty, panel, marks, room, middle, vector, out
):
    """Write the system's matrix times `vector` to `out`, from the gathered rows.

    (VᵀV + diag(penalty)) vector, or in the dual (V diag(1/penalty) Vᵀ + I) vector; `middle` (k,) is a workspace.
    """
    me, n_threads, height = cuda.threadIdx.x, cuda.blockDim.x, _panel_rows(k)
    images = marks[2 * height :]
    for a in range(me, k, n_threads):
        middle[a] = 0.0 if is_dual else penalty[a] * vector[a]
    for first in range(start, stop, height):
        n = stop - first if stop - first < height else height
        _load(indices, values, weights, first, n, basis, k, theta, panel, marks)
        if is_dual:
            for c in range(me, n, n_threads):
                images[c] = vector[first - start + c]
            cuda.syncthreads()
        else:
            _multiply_panel(panel, n, k, vector, room, images)
        for a in range(me, k, n_threads):
            total = middle[a]
            for c in range(n):
                total += panel[c * (k + 1) + a] * images[c]
            middle[a] = total
    cuda.syncthreads()
    if not is_dual:
        for a in range(me, k, n_threads):
            out[a] = middle[a]
        cuda.syncthreads()
        return
    for a in range(me, k, n_threads):
        middle[a] /= penalty[a]
    for first in range(start, stop, height):
        n = stop - first if stop - first < height else height
        _load(indices, values, weights, first, n, basis, k, theta, panel, marks)
        _multiply_panel(panel, n, k, middle, room, images)
        for c in range(me, n, n_threads):
            out[first - start + c] = images[c] + vector[first - start + c]
    cuda.syncthreads()


@device_inner
def _conjugate_gradients(
    is_dual, indices, values, weights, start, stop, basis, k, theta, penalty, panel, marks, room, vectors, size
):
    """Solve for vectors[k : k + size], from the right side in vectors[:size] and the diagonal in vectors[2 k : ].

    To a relative residual as small as the number type allows. The residual is formed anew a few times and the iteration
    begun again from it: what rounding lets the recurrence drift by does not stay in the answer.
    """
    rhs, x, diagonal, r = vectors[:k], vectors[k : 2 * k], vectors[2 * k : 3 * k], vectors[3 * k : 4 * k]
    p, q, middle = vectors[4 * k : 5 * k], vectors[5 * k : 6 * k], vectors[6 * k :]
    me, n_threads = cuda.threadIdx.x, cuda.blockDim.x
    tolerance = residual_tolerance(basis)
    goal = tolerance * tolerance * _dot(rhs, rhs, size, room)
    for a in range(me, size, n_threads):
        x[a] = 0.0
        r[a] = rhs[a]
    cuda.syncthreads()
    for restart in range(_RESTARTS):
        if restart > 0:
            _apply(
                is_dual, indices, values, weights, start, stop, basis, k, theta, penalty, panel, marks, room, middle,
                x, q,
            )  # fmt: skip
            for a in range(me, size, n_threads):
                r[a] = rhs[a] - q[a]
            cuda.syncthreads()
        if _dot(r, r, size, room) <= goal:
            break
        for a in range(me, size, n_threads):
            p[a] = r[a] / diagonal[a]
        cuda.syncthreads()
        energy = _dot(r, p, size, room)
        for _ in range(2 * size):
            _apply(
                is_dual, indices, values, weights, start, stop, basis, k, theta, penalty, panel, marks, room, middle,
                p, q,
            )  # fmt: skip
            curvature = _dot(p, q, size, room)
            if not curvature > 0.0:
                break
            step, before = energy / curvature, energy
            for a in range(me, size, n_threads):
                x[a] += step * p[a]
                r[a] -= step * q[a]
                q[a] = r[a] / diagonal[a]
            cuda.syncthreads()
            energy = _dot(r, q, size, room)
            if _dot(r, r, size, room) <= goal:
                break
            for a in range(me, size, n_threads):
                p[a] = q[a] + energy / before * p[a]
            cuda.syncthreads()


@device_inner
def _add_dual_gram(indices, weights, start, size, basis, k, theta, penalty, panel, packed):
    """Add V diag(1/penalty) Vᵀ to the triangle, a span of directions at a time: as many as the panel has room for."""
    me, down = cuda.threadIdx.x, cuda.blockDim.x // _LANES
    width = _panel_rows(k) * (k + 1) // size
    for left in range(0, k, width):
        n = k - left if k - left < width else width
        cuda.syncthreads()
        for t in range(me // _LANES, size, down):
            j, root = indices[start + t], basis.dtype.type(1)
            if weights.size > 0:
                root = basis.dtype.type(_entry_root(theta, weights[start + t]))
            for a in range(me % _LANES, n, _LANES):
                panel[a * size + t] = basis[j, left + a] * root / basis.dtype.type(math.sqrt(penalty[left + a]))
        cuda.syncthreads()
        add_gram(panel, n, size, size, packed)
    cuda.syncthreads()


@device_kernel(_over_rows, "l1 l1 i1 v1 d1 r2 r1 d0 r2 r2 r1")
def solve_factored_rows(
    bounds, indptr, indices, values, weights, basis, penalty, theta, out_coefficients, out_projection, out_misfit
):
    """Ridge-regress every row of a block on the leading directions, and project the resulting estimate.

    The equations are the twin's. Rows of at least k entries solve the normal equations, shorter ones the dual system:
    by a factorisation up to 64 unknowns (48 in the dual where k is more), by conjugate gradients beyond.

    Parameters
    ----------
    bounds
        Not used: a block takes a row at a time.
    indptr, indices, values, weights
        The block by row; values float32 or float64; weights float64, empty where all are one.
    basis : (n_cols, b) float32 or float64
    penalty : (k,) as `basis`, k <= b
    theta : float
    out_coefficients : (n_block_rows, k) as `basis`, written; a block owns its rows, here and below
    out_projection : (n_block_rows, b) as `basis`, written
    out_misfit : (n_block_rows,) as `basis`, written

    Notes
    -----
    An entry reads its position and value twice and gathers k elements for the system and k + b for the projection (by
    conjugate gradients k more for every step); k (k + 1) / 2 multiply-adds of an entry run out of shared memory. A row
    writes k + b + 1 elements.
    """
    k, b = penalty.size, basis.shape[1]
    side, height, me, n_threads = _triangle_side(k), _panel_rows(k), cuda.threadIdx.x, cuda.blockDim.x
    shared = cuda.shared.array(0, dtype=basis.dtype)
    n_packed = side * (side + 1) // 2
    packed, floors = shared[:n_packed], shared[n_packed : n_packed + side]
    column, vectors = shared[n_packed + side : n_packed + 2 * side], shared[n_packed + 2 * side :]
    rhs, x, diagonal = vectors[:k], vectors[k : 2 * k], vectors[2 * k : 3 * k]
    projection, panel = vectors[7 * k : 7 * k + b], vectors[7 * k + b :]
    marks = panel[height * (k + 1) :]
    images, room = marks[2 * height :], marks[3 * height :]
    for i in range(cuda.blockIdx.x, indptr.size - 1, cuda.gridDim.x):
        start, stop = indptr[i], indptr[i + 1]
        is_dual = stop - start < k
        size = stop - start if is_dual else k
        is_factorised = size <= side
        cuda.syncthreads()
        for e in range(me, n_packed, n_threads):
            packed[e] = 0.0
        for a in range(me, k, n_threads):
            rhs[a] = 0.0
            x[a] = 0.0
            diagonal[a] = 1.0 if is_dual else penalty[a]
        for a in range(me, b, n_threads):
            projection[a] = 0.0
        for first in range(start, stop, height):  # the right side, and the matrix or its diagonal
            n = stop - first if stop - first < height else height
            _load(indices, values, weights, first, n, basis, k, theta, panel, marks)
            if is_dual:
                for c in range(me, n, n_threads):
                    rhs[first - start + c] = marks[c]
                    if not is_factorised:
                        total = diagonal[first - start + c]
                        for a in range(k):
                            total += panel[c * (k + 1) + a] * panel[c * (k + 1) + a] / penalty[a]
                        diagonal[first - start + c] = total
            else:
                if is_factorised:
                    add_gram(panel, n, k, k + 1, packed)
                for a in range(me, k, n_threads):
                    total, square = rhs[a], diagonal[a]
                    for c in range(n):
                        total += panel[c * (k + 1) + a] * marks[c]
                        square += panel[c * (k + 1) + a] * panel[c * (k + 1) + a]
                    rhs[a], diagonal[a] = total, square
        cuda.syncthreads()
        if is_factorised:
            if is_dual and size > 0:
                _add_dual_gram(indices, weights, start, size, basis, k, theta, penalty, panel, packed)
            for a in range(me, size, n_threads):
                packed[a * (a + 1) // 2 + a] += basis.dtype.type(1) if is_dual else penalty[a]
                x[a] = rhs[a]
            cuda.syncthreads()
            factorise(packed, size, floors, column)
            substitute(packed, size, x)
        else:
            _conjugate_gradients(
                is_dual, indices, values, weights, start, stop, basis, k, theta, penalty, panel, marks, room, vectors,
                size,
            )  # fmt: skip
        cuda.syncthreads()
        # x holds the coefficients, or in the dual the residual, from which they follow; rhs takes them then.
        for a in range(me, k, n_threads):
            rhs[a] = 0.0 if is_dual else x[a]
        misfit = basis.dtype.type(0)
        for first in range(start, stop, height):
            n = stop - first if stop - first < height else height
            _load(indices, values, weights, first, n, basis, k, theta, panel, marks)
            for c in range(me, n, n_threads):
                residual = x[first - start + c] if is_dual else marks[c]
                if not is_dual:
                    for a in range(k):
                        residual -= panel[c * (k + 1) + a] * x[a]
                square = residual * residual
                if weights.size > 0:
                    square /= basis.dtype.type(1.0 - theta + theta * weights[first + c])
                misfit += square
                images[c] = residual
            cuda.syncthreads()
            for a in range(me, b, n_threads):
                total = projection[a]
                for c in range(n):
                    total += images[c] * marks[height + c] * basis[indices[first + c], a]
                projection[a] = total
        cuda.syncthreads()
        misfit = block_sum(misfit, room)
        if me == 0:
            out_misfit[i] = misfit
        for a in range(me, b, n_threads):
            total = basis.dtype.type(theta) * projection[a]
            if a < k:
                solved = projection[a] / penalty[a] if is_dual else rhs[a]
                out_coefficients[i, a] = solved
                total += solved
            out_projection[i, a] = total


def _over_block_rows(solved) -> Launch:
    return over_groups(solved.shape[0], shared_bytes=N_THREADS * solved.dtype.itemsize)


@device_kernel(_over_block_rows, "r2 r2 r2 r1")
def replace_rows(solved, overlap, coefficients, out_moved):
    """Put newly solved coefficients in the place of the old ones, and say how far each row moved.

    Row i moved by ‖c_i − overlap c'_i‖² within the span of the new basis, c' the old coefficients.

    Parameters
    ----------
    solved : (n_block_rows, k) float32 or float64
    overlap : (k, k_old) as `solved`
    coefficients : (n_block_rows, >= k and >= k_old) as `solved`
        The old ones; overwritten by the new ones and, beyond k, zeros.
    out_moved : (n_block_rows,) as `solved`, written; a block owns its rows

    Notes
    -----
    A row reads k new and k_old old elements, k k_old of the overlap, which the cache holds, and writes the width.
    """
    room = cuda.shared.array(0, dtype=solved.dtype)
    me, n_threads, k = cuda.threadIdx.x, cuda.blockDim.x, solved.shape[1]
    for i in range(cuda.blockIdx.x, solved.shape[0], cuda.gridDim.x):
        square = solved.dtype.type(0)
        for a in range(me, k, n_threads):
            step = solved[i, a]
            for b in range(overlap.shape[1]):
                step -= overlap[a, b] * coefficients[i, b]
            square += step * step
        square = block_sum(square, room)  # which waits until all have read the old ones
        if me == 0:
            out_moved[i] = square
        for a in range(me, coefficients.shape[1], n_threads):
            coefficients[i, a] = solved[i, a] if a < k else solved.dtype.type(0)
