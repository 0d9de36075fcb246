"""Conjugate gradients on the tangent system on a device: twins of ``kernels.tangent``'s, in small launches.

Vectors, inner products and the state stay on the device; the processor reads the state after each step, five numbers,
to see whether another one follows. Sums over columns run in parts whose number the sizes decide and that are added in
order: with the sweep's atomic additions apart, the same bits every time.
"""

from __future__ import annotations

from typing import Any

from numba import cuda

from fastrfm._cuda import N_THREADS, Launch, block_sum, device_kernel, empty, fetch, over_groups, over_items, scratch
from fastrfm.kernels.cuda._tangent_systems import TEAM, room_pitch, solve, threads_for
from fastrfm.kernels.cuda.products import multiply_transposed_parts
from fastrfm.kernels.cuda.tangent_sweeps import eliminated_sweep

_MOST_PARTS = 512  # of an inner product
_LEAST_ELEMENTS = 1024  # in one of them


def _by_elements(core) -> Launch:
    return over_items(core.shape[0] * core.shape[1])


@device_kernel(_by_elements, "r3 r1 r2")
def _core(projections, hidden, core):
    """Add the parts of VᵀA in order and scale its rows: what the penalty does not see."""
    k = core.shape[1]
    for e in range(cuda.grid(1), core.shape[0] * k, cuda.gridsize(1)):
        total = core.dtype.type(0)
        for part in range(projections.shape[0]):
            total += projections[part, e // k, e % k]
        core[e // k, e % k] = hidden[e // k] * total


def _by_columns(out) -> Launch:
    return over_groups(out.shape[0], shared_bytes=out.shape[1] * out.dtype.itemsize)


@device_kernel(_by_columns, "r3 d0 d0 r2 r2 r2 r1 r2")
def _combine(parts, sign, penalty_sign, basis, coefficients, core, penalty, out):
    """Write ``sign · Σ parts + penalty_sign · penalty ∘ (A − V core)``; a block owns its columns.

    A column reads k elements of each part, of V and of A and writes k; `core` is in the cache.
    """
    seen = cuda.shared.array(0, dtype=out.dtype)
    k, me, n_threads = out.shape[1], cuda.threadIdx.x, cuda.blockDim.x
    for j in range(cuda.blockIdx.x, out.shape[0], cuda.gridDim.x):
        cuda.syncthreads()
        for a in range(me, k, n_threads):
            seen[a] = basis[j, a]
        cuda.syncthreads()
        for a in range(me, k, n_threads):
            inside = coefficients[j, a]
            for b in range(k):
                inside -= seen[b] * core[b, a]
            total = out.dtype.type(0)
            for part in range(parts.shape[0]):
                total += parts[part, j, a]
            out[j, a] = out.dtype.type(sign) * total + out.dtype.type(penalty_sign) * penalty[a] * inside


def _over_parts(out_parts) -> Launch:
    return over_groups(out_parts.size)


@device_kernel(_over_parts, "r2 r2 r1")
def _inner_parts(left, right, out_parts):
    """Write ⟨left, right⟩ over runs of rows."""
    room = cuda.shared.array(N_THREADS, left.dtype)
    k = left.shape[1]
    height = (left.shape[0] + out_parts.size - 1) // out_parts.size
    for part in range(cuda.blockIdx.x, out_parts.size, cuda.gridDim.x):
        end = (part + 1) * height
        end = end if end < left.shape[0] else left.shape[0]
        total = left.dtype.type(0)
        for i in range(part * height, end):
            for a in range(cuda.threadIdx.x, k, cuda.blockDim.x):
                total += left[i, a] * right[i, a]
        total = block_sum(total, room)
        if cuda.threadIdx.x == 0:
            out_parts[part] = total


def _by_one_block(out) -> Launch:
    return Launch(1, N_THREADS)


@device_kernel(_by_one_block, "r1 d1 l0")
def _add_parts(parts, out, place):
    """Write the sum of parts to out[place], float64."""
    room = cuda.shared.array(N_THREADS, out.dtype)
    total = out.dtype.type(0)
    for part in range(cuda.threadIdx.x, parts.size, cuda.blockDim.x):
        total += parts[part]
    total = block_sum(total, room)
    if cuda.threadIdx.x == 0:
        out[place] = total


def _by_factors(column_factors, residual) -> Launch:
    n_threads = threads_for(residual.shape[1])
    n_shared = TEAM * room_pitch(n_threads) + 2 * residual.shape[1]
    return over_groups(residual.shape[0], shared_bytes=n_shared * residual.dtype.itemsize, n_threads=n_threads)


@device_kernel(_by_factors, "d1 d1 r2 r2 r2 r2 r2 r2")
def _advance(sums, state, direction, image, column_factors, solution, residual, preconditioned):
    """Step along the direction, unless rounding is all that is left in it, and precondition the new residual.

    A column reads and writes k elements of three vectors, reads k of two and its factor, twice.
    """
    shared = cuda.shared.array(0, dtype=residual.dtype)
    k, me, n_threads = residual.shape[1], cuda.threadIdx.x, cuda.blockDim.x
    target, half, room = shared[:k], shared[k : 2 * k], shared[2 * k :]
    step = residual.dtype.type(0)
    if sums[0] > 0.0:
        step = residual.dtype.type(state[3] / sums[0])
    for j in range(cuda.blockIdx.x, residual.shape[0], cuda.gridDim.x):
        cuda.syncthreads()
        for a in range(me, k, n_threads):
            solution[j, a] += step * direction[j, a]
            residual[j, a] -= step * image[j, a]
            target[a] = residual[j, a]
        solve(column_factors[j], target, half, room)
        for a in range(me, k, n_threads):
            preconditioned[j, a] = target[a]


@device_kernel(lambda direction: over_items(direction.shape[0] * direction.shape[1]), "d1 d1 r2 r2")
def _turn(sums, state, preconditioned, direction):
    """Make the next direction, preconditioned + keep · direction, unless no step was taken."""
    k = direction.shape[1]
    if sums[0] > 0.0:
        keep = direction.dtype.type(sums[1] / state[3] if state[3] > 0.0 else 0.0)
        for e in range(cuda.grid(1), direction.shape[0] * k, cuda.gridsize(1)):
            direction[e // k, e % k] = preconditioned[e // k, e % k] + keep * direction[e // k, e % k]


@device_kernel(lambda state: Launch(1, 1), "d1 d1")
def _count(sums, state):
    """Bring the state up to date with a step, if one was taken."""
    if sums[0] > 0.0:
        state[3] = sums[1]
        state[0] += 1.0


@device_kernel(lambda state: Launch(1, 1), "d1 d1")
def _set_start(sums, state):
    """Make ⟨r, z⟩ that of the start, and let the first direction be z itself: keep is multiplied by zeros."""
    state[3] = sums[1]
    state[4] = sums[1]
    sums[0] = 1.0


def _n_parts(matrix: Any) -> int:
    n_elements = matrix.shape[0] * matrix.shape[1]
    return int(max(min(-(-n_elements // _LEAST_ELEMENTS), _MOST_PARTS, matrix.shape[0]), 1))


def _set_inner(left: Any, right: Any, sums: Any, place: int) -> None:
    parts = scratch("inner products", (_n_parts(left),), left.dtype)
    _inner_parts(left, right, parts)
    _add_parts(parts, sums, place)


def _set_gradient(
    parts: Any, sign: float, penalty_sign: float, basis: Any, coefficients: Any, penalty: Any, hidden: Any,
    projections: Any, core: Any, out: Any,
) -> None:  # fmt: skip
    multiply_transposed_parts(basis, coefficients, projections)
    _core(projections, hidden, core)
    _combine(parts, sign, penalty_sign, basis, coefficients, core, penalty, out)


def finish_gradient(
    stripes: Any, parts: Any, basis: Any, coefficients: Any, penalty: Any, hidden: Any, out: Any
) -> None:
    """Write minus the gradient in A, from the parts of a sweep over all rows: what conjugate gradients start from.

    Parameters
    ----------
    stripes : (n_stripes + 1,) int64
        Their number is that of the parts in which VᵀA is added up.
    parts : (n_parts, n_cols, k) float32 or float64
    basis, coefficients : (n_cols, k) as `parts`
        V and A.
    penalty, hidden : (k,) as `parts`
        `hidden` is the share of each row of VᵀA that the penalty does not see, 1 − (ε/σ)^(2α).
    out : (n_cols, k) as `parts`, written
    """
    k = penalty.size
    projections = scratch("projections", (stripes.size - 1, k, k), out.dtype)
    core = scratch("core", (k, k), out.dtype)
    _set_gradient(parts, 1.0, -1.0, basis, coefficients, penalty, hidden, projections, core, out)


def start_conjugate_gradients(
    stripes: Any, column_factors: Any, state: Any, solution: Any, residual: Any, direction: Any, preconditioned: Any,
    image: Any,
) -> None:  # fmt: skip
    """Set conjugate gradients on the Schur complement up from `residual`, the right-hand side.

    Parameters
    ----------
    stripes
        Not used.
    column_factors : (n_cols, factor_size(k)) float32 or float64
        Of the blocks C_j, the preconditioner.
    state : (5,) float64, updated
        Steps done, steps allowed, relative tolerance, ⟨r, z⟩ now and at the start, r the residual and z = C⁻¹ r. The
        tolerance is on sqrt(⟨r, z⟩), relative to the start.
    solution, residual, direction, preconditioned, image : (n_cols, k) as `column_factors`, updated
    """
    sums = scratch("sums", (2,), state.dtype)
    for vector in (solution, direction, image):
        _clear(vector)
    _clear_sums(sums)
    _advance(sums, state, direction, image, column_factors, solution, residual, preconditioned)
    _set_inner(residual, preconditioned, sums, 1)
    _set_start(sums, state)
    _turn(sums, state, preconditioned, direction)


@device_kernel(lambda matrix: over_items(matrix.shape[0] * matrix.shape[1]), "r2")
def _clear(matrix):
    """Write zeros."""
    k = matrix.shape[1]
    for e in range(cuda.grid(1), matrix.shape[0] * k, cuda.gridsize(1)):
        matrix[e // k, e % k] = 0.0


@device_kernel(lambda sums: Launch(1, 1), "d1")
def _clear_sums(sums):
    """Write zeros: no curvature, no step."""
    sums[0] = 0.0
    sums[1] = 0.0


def finish_step(
    stripes: Any, basis: Any, column_factors: Any, penalty: Any, hidden: Any, parts: Any, state: Any, solution: Any,
    residual: Any, direction: Any, preconditioned: Any, image: Any, projections: Any, core: Any, dots: Any,
) -> bool:  # fmt: skip
    """Take a step of conjugate gradients, from the parts of a sweep over all rows; return whether another may follow.

    Parameters
    ----------
    penalty, hidden : (k,) float32 or float64
        As in :func:`finish_gradient`.
    projections, core : (n_stripes, k, k) and (k, k) as `penalty`
        Workspaces.
    dots
        Not used.
    """
    sums = scratch("sums", (2,), state.dtype)
    _set_gradient(parts, -1.0, 1.0, basis, direction, penalty, hidden, projections, core, image)
    _set_inner(direction, image, sums, 0)
    _advance(sums, state, direction, image, column_factors, solution, residual, preconditioned)
    _set_inner(residual, preconditioned, sums, 1)
    _turn(sums, state, preconditioned, direction)
    _count(sums, state)
    curvature = fetch(sums)[0]
    if not curvature > 0.0:
        return False  # nothing but rounding left in this direction
    _, _, tolerance, squared, first = fetch(state)
    return bool(squared > tolerance * tolerance * first)


def conjugate_gradients(
    tiles: Any, n_parts: int, stripes: Any, indptr: Any, indices: Any, left: Any, basis: Any, row_factors: Any,
    column_factors: Any, penalty: Any, hidden: Any, parts: Any, state: Any, solution: Any, residual: Any,
    direction: Any, preconditioned: Any, image: Any, projections: Any, core: Any, dots: Any,
) -> None:  # fmt: skip
    """Take steps of conjugate gradients until the tolerance or the step limit, all rows on the device.

    The sweeps of :func:`eliminated_sweep` and :func:`finish_step` in turn. Arguments as there.
    """
    none, no_rows = empty(0, left.dtype), empty((0, penalty.size), left.dtype)
    n_done, n_allowed, tolerance, squared, first = fetch(state)
    goes_on = squared > tolerance * tolerance * first
    while goes_on and n_done < n_allowed:
        eliminated_sweep(
            tiles, 0, n_parts, indptr, indices, none, left, basis, direction, row_factors, penalty, no_rows, none,
            parts,
        )  # fmt: skip
        goes_on = finish_step(
            stripes, basis, column_factors, penalty, hidden, parts, state, solution, residual, direction,
            preconditioned, image, projections, core, dots,
        )  # fmt: skip
        n_done += 1.0
