"""Factored row solves on a device: a ridge regression on the low-rank features, a block for every row.

Twin of ``kernels.row_solves.solve_factored_rows``. Up to 64 unknowns (the smaller of entries and directions): the
system is formed and factorised in shared memory. Above: conjugate gradients that never form the matrix, where there are
no fewer entries than directions; where they give up, and for the dual systems of shorter rows, whose condition number
is by design up to one over the smallest penalty, a factorisation in the block's workspace in global memory.
"""

from __future__ import annotations

import math

from numba import cuda

from fastrfm._cuda import N_THREADS, Launch, block_sum, device_inner, device_kernel, over_groups
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
from fastrfm.kernels.cuda._systems import (
    LONG_ROOM,
    MOST_SHORT,
    add_gram,
    cg_tolerance,
    packed,
    pivot_tolerance,
    row_start,
    solve_long,
    solve_short,
    workspaces,
)
from fastrfm.kernels.row_solves import damped_weight

_N_VECTORS = 6  # of k elements in a block's workspace
_CG_ATTEMPTS = 4  # starts from a residual formed anew: what the recurrence lost is won back
_damped_weight, _packed = device_inner(damped_weight), device_inner(packed)


@device_inner
def _weigh(values, weights, first, n, theta, roots, observed):
    # Roots of Ω, and y times them. In float64 until the last moment: 1 - theta may be small.
    for t in range(cuda.threadIdx.x, n, cuda.blockDim.x):
        root = 1.0
        if weights.size > 0:
            root = math.sqrt(weights[first + t] / _damped_weight(weights[first + t], theta))
        roots[t] = observed.dtype.type(root)
        observed[t] = observed.dtype.type(values[first + t]) * roots[t]


@device_inner
def _square(residual, weights, t, theta, like):
    if weights.size > 0:
        return residual * residual / like.dtype.type(_damped_weight(weights[t], theta))
    return residual * residual


@device_inner
def _form_normal(indices, values, weights, basis, penalty, theta, start, n, system, chunk, pitch, roots, observed):
    # VᵀV + diag(penalty), and Vᵀy as its last row; every gathered element is read once.
    k = penalty.size
    for e in range(cuda.threadIdx.x, _packed(k), cuda.blockDim.x):
        system[e] = basis.dtype.type(0)
    most = device_depth(pitch)
    for first in range(start, start + n, most):
        depth = smaller(most, start + n - first)
        _weigh(values, weights, first, depth, theta, roots, observed)
        cuda.syncthreads()
        load_chunk(basis, indices, roots, first, depth, k, chunk, pitch)
        cuda.syncthreads()
        add_gram(chunk, depth, k, pitch, system)
        for a in range(cuda.threadIdx.x, k, cuda.blockDim.x):
            total = basis.dtype.type(0)
            for t in range(depth):
                total += chunk[t * pitch + a] * observed[t]
            system[row_start(k) + a] += total
        cuda.syncthreads()
    for a in range(cuda.threadIdx.x, k, cuda.blockDim.x):
        system[row_start(a) + a] += penalty[a]
    cuda.syncthreads()


@device_inner
def _form_dual(indices, values, weights, basis, penalty, theta, start, n, system, chunk, pitch, roots, scales):
    # V diag(1/penalty) Vᵀ + I, and y as its last row; chunks run over directions, transposed on the way.
    k = penalty.size
    for e in range(cuda.threadIdx.x, _packed(n), cuda.blockDim.x):
        system[e] = basis.dtype.type(0)
    cuda.syncthreads()
    _weigh(values, weights, start, n, theta, roots, system[row_start(n) : row_start(n) + n])
    most = device_depth(pitch)
    lanes = smaller(32, cuda.blockDim.x)
    lane = cuda.threadIdx.x % lanes
    one = basis.dtype.type(1)
    for first in range(0, k, most):
        depth = smaller(most, k - first)
        for a in range(cuda.threadIdx.x, depth, cuda.blockDim.x):
            scales[a] = one / math.sqrt(penalty[first + a])
        cuda.syncthreads()
        for t in range(cuda.threadIdx.x // lanes, n + 1, cuda.blockDim.x // lanes):
            for a in range(lane, depth, lanes):
                if t < n:
                    chunk[a * pitch + t] = basis[indices[start + t], first + a] * (roots[t] * scales[a])
                else:
                    chunk[a * pitch + t] = basis.dtype.type(0)
        cuda.syncthreads()
        add_gram(chunk, depth, n, pitch, system)
        cuda.syncthreads()
    for t in range(cuda.threadIdx.x, n, cuda.blockDim.x):
        system[row_start(t) + t] += one
    cuda.syncthreads()


@device_inner
def _finish_normal(
    indices, values, weights, basis, theta, start, n, solution, chunk, pitch, roots, observed, dots, room,
    coefficients, projection,
):  # fmt: skip
    """Write c and [c, 0] + theta rᵀ basis[J]; return the misfit, r = y - V c formed entry by entry."""
    k, me = coefficients.size, cuda.threadIdx.x
    misfit = basis.dtype.type(0)
    for a in range(me, projection.size, cuda.blockDim.x):
        projection[a] = basis.dtype.type(0)
    most = device_depth(pitch)
    for first in range(start, start + n, most):
        depth = smaller(most, start + n - first)
        _weigh(values, weights, first, depth, theta, roots, observed)
        cuda.syncthreads()
        load_chunk(basis, indices, roots, first, depth, k, chunk, pitch)
        cuda.syncthreads()
        chunk_dots(chunk, depth, k, pitch, solution, room, dots)
        for t in range(me, depth, cuda.blockDim.x):
            residual = observed[t] - dots[t]
            misfit += _square(residual, weights, first + t, theta, basis)
            dots[t] = residual * roots[t]
        cuda.syncthreads()
        for a in range(me, projection.size, cuda.blockDim.x):
            total = projection[a]
            for t in range(depth):
                total += basis[indices[first + t], a] * dots[t]
            projection[a] = total
        cuda.syncthreads()
    for a in range(me, projection.size, cuda.blockDim.x):
        projection[a] *= basis.dtype.type(theta)
        if a < k:
            coefficients[a] = solution[a]
            projection[a] += solution[a]
    return block_sum(misfit, room)


@device_inner
def _finish_dual(
    indices, weights, basis, penalty, theta, start, n, solution, roots, room, coefficients, projection
):  # fmt: skip
    """Write c = Vᵀ r / penalty and [c, 0] + theta rᵀ basis[J]; return the misfit. r is the solution, used up."""
    me = cuda.threadIdx.x
    misfit = basis.dtype.type(0)
    for t in range(me, n, cuda.blockDim.x):
        misfit += _square(solution[t], weights, start + t, theta, basis)
        solution[t] *= roots[t]
    cuda.syncthreads()
    for a in range(me, projection.size, cuda.blockDim.x):
        total = basis.dtype.type(0)
        for t in range(n):
            total += basis[indices[start + t], a] * solution[t]
        projection[a] = basis.dtype.type(theta) * total
        if a < penalty.size:
            coefficients[a] = total / penalty[a]
            projection[a] += coefficients[a]
    return block_sum(misfit, room)


def _short_rows(indptr, basis, penalty) -> Launch:
    m = min(penalty.size, MOST_SHORT)
    pitch = chunk_pitch(m)
    n_elements = packed(m) + 4 * m + 4 * DEPTH + N_THREADS + chunk_depth(pitch) * pitch
    return over_groups(indptr.size - 1, shared_bytes=n_elements * basis.dtype.itemsize)


@device_kernel(_short_rows, "l1 i1 v1 d1 r2 r1 d0 d0 r2 r2 r1")
def _solve_short_rows(
    indptr, indices, values, weights, basis, penalty, theta, tolerance, out_coefficients, out_projection, out_misfit
):
    """Solve the rows with at most 64 unknowns."""
    shared = cuda.shared.array(0, dtype=basis.dtype)
    k = penalty.size
    m = smaller(k, MOST_SHORT)
    pitch, end = device_pitch(m), _packed(m)
    system, floors, scales = shared[:end], shared[end : end + m], shared[end + m : end + 2 * m]
    solution = shared[end + 2 * m : end + 3 * m]
    end += 3 * m
    roots, observed = shared[end : end + m + DEPTH], shared[end + m + DEPTH : end + m + 2 * DEPTH]
    end += m + 2 * DEPTH
    dots, room = shared[end : end + DEPTH], shared[end + DEPTH : end + 2 * DEPTH + cuda.blockDim.x]
    chunk = shared[end + 2 * DEPTH + cuda.blockDim.x :]
    for i in range(cuda.blockIdx.x, indptr.size - 1, cuda.gridDim.x):
        start = indptr[i]
        n = indptr[i + 1] - start
        if smaller(n, k) > MOST_SHORT:
            continue
        if n < k:
            _form_dual(
                indices, values, weights, basis, penalty, theta, start, n, system, chunk, pitch, roots, observed
            )  # fmt: skip
            solve_short(system, n, tolerance, floors, scales, solution)
            misfit = _finish_dual(
                indices, weights, basis, penalty, theta, start, n, solution, roots, room,
                out_coefficients[i], out_projection[i],
            )  # fmt: skip
        else:
            _form_normal(
                indices, values, weights, basis, penalty, theta, start, n, system, chunk, pitch, roots, observed
            )  # fmt: skip
            solve_short(system, k, tolerance, floors, scales, solution)
            misfit = _finish_normal(
                indices, values, weights, basis, theta, start, n, solution, chunk, pitch, roots, observed, dots, room,
                out_coefficients[i], out_projection[i],
            )  # fmt: skip
        if cuda.threadIdx.x == 0:
            out_misfit[i] = misfit
        cuda.syncthreads()


@device_inner
def _normal_residual(
    indices, values, weights, basis, penalty, theta, start, n, is_data, vector, chunk, pitch, roots, observed, dots,
    room, out,
):  # fmt: skip
    """Write Vᵀ(y - V x) - penalty x, with y as it is or 0: one sweep over the gathered rows, each read once."""
    k = penalty.size
    for a in range(cuda.threadIdx.x, k, cuda.blockDim.x):
        out[a] = -penalty[a] * vector[a]
    most = device_depth(pitch)
    for first in range(start, start + n, most):
        depth = smaller(most, start + n - first)
        _weigh(values, weights, first, depth, theta, roots, observed)
        cuda.syncthreads()
        load_chunk(basis, indices, roots, first, depth, k, chunk, pitch)
        cuda.syncthreads()
        chunk_dots(chunk, depth, k, pitch, vector, room, dots)
        for t in range(cuda.threadIdx.x, depth, cuda.blockDim.x):
            dots[t] = observed[t] - dots[t] if is_data else -dots[t]
        cuda.syncthreads()
        for a in range(cuda.threadIdx.x, k, cuda.blockDim.x):
            total = out[a]
            for t in range(depth):
                total += chunk[t * pitch + a] * dots[t]
            out[a] = total
        cuda.syncthreads()
    cuda.syncthreads()


@device_inner
def _form_diagonal(indices, values, weights, basis, penalty, theta, start, n, pitch, roots, observed, out):
    for a in range(cuda.threadIdx.x, penalty.size, cuda.blockDim.x):
        out[a] = penalty[a]
    most = device_depth(pitch)
    for first in range(start, start + n, most):
        depth = smaller(most, start + n - first)
        _weigh(values, weights, first, depth, theta, roots, observed)
        cuda.syncthreads()
        for a in range(cuda.threadIdx.x, penalty.size, cuda.blockDim.x):
            total = out[a]
            for t in range(depth):
                element = basis[indices[first + t], a] * roots[t]
                total += element * element
            out[a] = total
        cuda.syncthreads()


@device_inner
def _square_sum(vector, diagonal, room):
    total = vector.dtype.type(0)
    for a in range(cuda.threadIdx.x, vector.size, cuda.blockDim.x):
        total += vector[a] * vector[a] / diagonal[a]
    return block_sum(total, room)


@device_inner
def _iterate(
    indices, values, weights, basis, penalty, theta, start, n, tolerance, vectors, chunk, pitch, roots, observed, dots,
    room,
):  # fmt: skip
    """Solve the normal equations by conjugate gradients with a diagonal preconditioner, to vectors[:k].

    Returns whether the residual, formed anew from the solution, fell to 4 times the tolerance within k / 2 steps.
    """
    k, me = penalty.size, cuda.threadIdx.x
    x, r, p = vectors[:k], vectors[k : 2 * k], vectors[2 * k : 3 * k]
    q, diagonal = vectors[3 * k : 4 * k], vectors[4 * k : 5 * k]
    _form_diagonal(indices, values, weights, basis, penalty, theta, start, n, pitch, roots, observed, diagonal)
    for a in range(me, k, cuda.blockDim.x):
        x[a] = basis.dtype.type(0)
    cuda.syncthreads()
    first_rho, goal = basis.dtype.type(0), basis.dtype.type(tolerance * tolerance)
    steps = 0
    for attempt in range(_CG_ATTEMPTS):
        _normal_residual(
            indices, values, weights, basis, penalty, theta, start, n, True, x, chunk, pitch, roots, observed, dots,
            room, r,
        )  # fmt: skip
        rho = _square_sum(r, diagonal, room)
        if attempt == 0:
            first_rho = rho
        if not rho > basis.dtype.type(16) * goal * first_rho:
            return rho == rho  # not where it is no number
        for a in range(me, k, cuda.blockDim.x):
            p[a] = r[a] / diagonal[a]
        cuda.syncthreads()
        while steps < k // 2 and rho > goal * first_rho:
            steps += 1
            _normal_residual(
                indices, values, weights, basis, penalty, theta, start, n, False, p, chunk, pitch, roots, observed,
                dots, room, q,
            )  # fmt: skip
            curvature = basis.dtype.type(0)
            for a in range(me, k, cuda.blockDim.x):
                curvature -= p[a] * q[a]
            curvature = block_sum(curvature, room)
            if not curvature > basis.dtype.type(0):
                return False
            step = rho / curvature
            for a in range(me, k, cuda.blockDim.x):
                x[a] += step * p[a]
                r[a] += step * q[a]
            cuda.syncthreads()
            after = _square_sum(r, diagonal, room)
            for a in range(me, k, cuda.blockDim.x):
                p[a] = r[a] / diagonal[a] + after / rho * p[a]
            rho = after
            cuda.syncthreads()
    return False


def _long_room(k: int) -> int:
    pitch = chunk_pitch(k)
    return int(max(LONG_ROOM, chunk_depth(pitch) * pitch))


def _long_rows(indptr, basis, penalty, workspace) -> Launch:
    n_elements = 4 * DEPTH + N_THREADS + _long_room(penalty.size)
    shape = over_groups(indptr.size - 1, shared_bytes=n_elements * basis.dtype.itemsize)
    return Launch(min(shape.n_blocks, workspace.shape[0]), shape.n_threads, shape.shared_bytes)


@device_kernel(_long_rows, "l1 i1 v1 d1 r2 r1 d0 d0 d0 r2 r2 r2 r1")
def _solve_long_rows(
    indptr, indices, values, weights, basis, penalty, theta, tolerance, cg_goal, workspace, out_coefficients,
    out_projection, out_misfit,
):  # fmt: skip
    """Solve the rows with more than 64 unknowns; a block owns a row of `workspace`: a system, then six vectors."""
    shared = cuda.shared.array(0, dtype=basis.dtype)
    k = penalty.size
    observed, dots = shared[:DEPTH], shared[DEPTH : 2 * DEPTH]
    few_roots, room = shared[2 * DEPTH : 3 * DEPTH], shared[3 * DEPTH : 4 * DEPTH + cuda.blockDim.x]
    chunk = shared[4 * DEPTH + cuda.blockDim.x :]  # and, once a system is formed, the room to solve it in
    pitch = device_pitch(k)
    own = workspace[cuda.blockIdx.x]
    system = own[: _packed(k)]
    vectors = own[_packed(k) : _packed(k) + _N_VECTORS * k]
    pivots = vectors[5 * k :]
    for i in range(cuda.blockIdx.x, indptr.size - 1, cuda.gridDim.x):
        start = indptr[i]
        n = indptr[i + 1] - start
        if smaller(n, k) <= MOST_SHORT:
            continue
        if n < k:
            roots = vectors[:k]
            _form_dual(indices, values, weights, basis, penalty, theta, start, n, system, chunk, pitch, roots, observed)
            solve_long(system, n, tolerance, pivots, chunk)
            misfit = _finish_dual(
                indices, weights, basis, penalty, theta, start, n, system[row_start(n) :], roots, room,
                out_coefficients[i], out_projection[i],
            )  # fmt: skip
        else:
            solution = vectors[:k]
            if not _iterate(
                indices, values, weights, basis, penalty, theta, start, n, cg_goal, vectors, chunk, pitch, few_roots,
                observed, dots, room,
            ):  # fmt: skip
                _form_normal(
                    indices, values, weights, basis, penalty, theta, start, n, system, chunk, pitch, few_roots, observed
                )  # fmt: skip
                solve_long(system, k, tolerance, pivots, chunk)
                solution = system[row_start(k) : row_start(k) + k]
            misfit = _finish_normal(
                indices, values, weights, basis, theta, start, n, solution, chunk, pitch, few_roots, observed, dots,
                room, out_coefficients[i], out_projection[i],
            )  # fmt: skip
        if cuda.threadIdx.x == 0:
            out_misfit[i] = misfit
        cuda.syncthreads()


def solve_factored_rows(
    bounds, indptr, indices, values, weights, basis, penalty, theta, out_coefficients, out_projection, out_misfit
):
    """Ridge-regress every row of a block on the leading directions, and project the resulting estimate.

    Parameters
    ----------
    bounds
        Not used: a block takes a row at a time.
    indptr, indices, values, weights
        The block by row; values float32 or float64; weights float64, empty where all are one.
    basis : (n_cols, b) float32 or float64
        Orthonormal columns, b >= k.
    penalty : (k,) as `basis`
        (λ + δ) / d per direction, above 0; one beyond float32 may be infinite: the direction is left out.
    theta : float
        δ / (λ + δ): the share of the residual that the estimate keeps.
    out_coefficients : (n_block_rows, k) as `basis`, written
    out_projection : (n_block_rows, b) as `basis`, written
    out_misfit : (n_block_rows,) as `basis`, written
        As of the twin. A block owns its rows of all three outputs.

    Raises
    ------
    DeviceMemoryError
        If k is above 64 and there is no room for a single workspace.

    Notes
    -----
    Rows with at most 64 unknowns are solved in shared memory, all others (k above 64) by a second launch. There rows
    with fewer entries than directions factorise their dual system; the others take up to k / 2 steps of conjugate
    gradients (relative residual 1e-13, in float32 2e-6, formed anew from the solution before it is believed), and are
    factorised where these do not suffice. Workspace: k² / 2 + 8 k elements for each resident block, at most 512 blocks
    and 1 GiB (or one block), half as many blocks again and again where the device has less.

    Memory traffic in elements: an entry reads its value, index and weight twice and, in the normal form, k of `basis`
    twice and b once more (in the dual form k and b; all but the first from cache where the row fits there); k² + 2 k
    + 2 b operations an entry. A row writes 2 k + b and 1; the factorisation, k³ / 3 operations, is in shared memory.
    A step of conjugate gradients reads k an entry, 4 k operations; a factorisation in the workspace moves k² / 32
    elements an entry to form its system, and k³ / 100 a row to solve it.
    """
    dtype = basis.dtype
    tolerance = pivot_tolerance(dtype)
    outputs = out_coefficients, out_projection, out_misfit
    _solve_short_rows(indptr, indices, values, weights, basis, penalty, theta, tolerance, *outputs)
    k = penalty.size
    if k > MOST_SHORT and indptr.size > 1:
        room = workspaces(indptr.size - 1, packed(k) + _N_VECTORS * k, dtype)
        _solve_long_rows(
            indptr, indices, values, weights, basis, penalty, theta, tolerance, cg_tolerance(dtype), room, *outputs
        )
