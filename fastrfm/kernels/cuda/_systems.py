"""Small positive definite systems on a device, each solved by one block: what the row solves are made of.

A system of n unknowns is one array: its lower triangle, packed row by row, then the right side as one more row (which
elimination turns into the forward solution on the way). Up to 64 unknowns it lives in shared memory (`solve_short`),
above in a workspace of the block in global memory (`solve_long`). All threads of a block call these functions together;
what they read must be visible to the block (``syncthreads``) before, and what they wrote is after.
"""

from __future__ import annotations

import math

import numpy as np
from numba import cuda

from fastrfm import _cuda
from fastrfm._cuda import MOST_BLOCKS, device_inner
from fastrfm.kernels.cuda._chunks import larger, smaller
from fastrfm.kernels.row_solves import CG_TOLERANCE, PIVOT_FLOOR, pivot_scale

MOST_SHORT = 64  # unknowns of a system in shared memory: 17 KiB in float64
PANEL = 32  # columns of a long system eliminated together
_PITCH = PANEL + 1  # of a strip in shared memory: odd, so that columns meet all banks
_CORNER = PANEL * (PANEL + 1) // 2
LONG_ROOM = _CORNER + 3 * PANEL + 2 * PANEL * _PITCH  # elements of shared memory that `solve_long` needs
_MOST_RESIDENT = 512  # blocks with a workspace: about four to a multiprocessor
_WORKSPACE_BYTES = 1 << 30

_pivot_scale = device_inner(pivot_scale)


def packed(n: int) -> int:
    """Return the elements of a system with n unknowns."""
    return n * (n + 1) // 2 + n


def pivot_tolerance(dtype) -> float:
    """Return the floor under a pivot over the diagonal before: the processor's, for the precision of `dtype`."""
    return PIVOT_FLOOR * float(np.finfo(dtype).eps / np.finfo(np.float64).eps)


def cg_tolerance(dtype) -> float:
    """Return the relative residual that conjugate gradients stop at: the processor's, or 16 units of float32."""
    return max(CG_TOLERANCE, 16.0 * float(np.finfo(dtype).eps)) if dtype == np.float32 else CG_TOLERANCE


def workspaces(n_rows: int, n_elements: int, dtype):
    """Return room on the device, (n_blocks, n_elements), for as many blocks as 1 GiB holds, at least one.

    Raises
    ------
    DeviceMemoryError
        If there is no room for one.
    """
    fitting = _WORKSPACE_BYTES // (n_elements * np.dtype(dtype).itemsize)
    return _cuda.scratch_rows(
        "workspaces", max(1, min(n_rows, MOST_BLOCKS, _MOST_RESIDENT, fitting)), n_elements, dtype
    )


@device_inner
def block_max(value, room):
    """Return the largest `value` of a block's threads, in each of them; `room` has an element for each."""
    me = cuda.threadIdx.x
    room[me] = value
    cuda.syncthreads()
    largest = room[0]
    for other in range(1, cuda.blockDim.x):
        largest = larger(largest, room[other])
    cuda.syncthreads()
    return largest


@device_inner
def row_start(i):
    """Return where row i of a packed triangle begins."""
    return i * (i + 1) // 2


@device_inner
def add_gram(chunk, depth, n, pitch, system):
    """Add chunkᵀ·chunk to a packed triangle: tiles of 2 x 2 in registers, four shared reads for four multiply-adds.

    `chunk` is (depth, n) at `pitch` > n elements a row, column n zeros. A thread owns its tiles.
    """
    half = (n + 1) // 2
    zero = system.dtype.type(0)
    for tile in range(cuda.threadIdx.x, half * (half + 1) // 2, cuda.blockDim.x):
        row = int(math.sqrt(np.float32(2 * tile)))  # the triangle's row, or one more
        if row * (row + 1) // 2 > tile:
            row -= 1
        a, b = 2 * row, 2 * (tile - row * (row + 1) // 2)
        s00 = s01 = s10 = s11 = zero
        for t in range(depth):
            here = t * pitch
            u, v, x, y = chunk[here + a], chunk[here + a + 1], chunk[here + b], chunk[here + b + 1]
            s00 += u * x
            s01 += u * y
            s10 += v * x
            s11 += v * y
        place = a * (a + 1) // 2 + b
        system[place] += s00
        if b < a:
            system[place + 1] += s01
        if a + 1 < n:
            system[place + a + 1] += s10
            system[place + a + 2] += s11


@device_inner
def _eliminate(system, n, n_lines, floors, scales):
    # Column by column, one barrier each: the scale of a column is applied where the column is read, never written.
    width = smaller(8, cuda.blockDim.x)
    left, top = cuda.threadIdx.x % width, cuda.threadIdx.x // width
    n_tops = cuda.blockDim.x // width
    one = system.dtype.type(1)
    for j in range(n):
        scale = _pivot_scale(system[row_start(j) + j], floors[j], one)
        if cuda.threadIdx.x == 0:
            scales[j] = scale
        for i in range(j + 1 + top, n_lines, n_tops):
            line = row_start(i)
            own = system[line + j] * scale
            for c in range(j + 1 + left, smaller(i + 1, n), width):
                system[line + c] -= own * (system[row_start(c) + j] * scale)
        cuda.syncthreads()


@device_inner
def _substitute_back(system, n, scales, solution):
    # `solution` holds the forward solution; the columns of `system` wait for their scales, as after elimination.
    for j in range(n - 1, 0, -1):
        solved = solution[j] * scales[j]
        for i in range(cuda.threadIdx.x, j, cuda.blockDim.x):
            solution[i] -= system[row_start(j) + i] * scales[i] * solved
        cuda.syncthreads()
    for j in range(cuda.threadIdx.x, n, cuda.blockDim.x):
        solution[j] *= scales[j]
    cuda.syncthreads()


@device_inner
def solve_short(system, n, tolerance, floors, scales, solution):
    """Solve a system in shared memory; the triangle is overwritten. floors, scales, solution: n elements each.

    A pivot that rounding made non-positive is left out, as on the processor: its coordinate becomes zero.
    """
    for j in range(cuda.threadIdx.x, n, cuda.blockDim.x):
        floors[j] = tolerance * system[row_start(j) + j]
    cuda.syncthreads()
    _eliminate(system, n, n + 1, floors, scales)
    for j in range(cuda.threadIdx.x, n, cuda.blockDim.x):
        solution[j] = system[row_start(n) + j] * scales[j]
    cuda.syncthreads()
    _substitute_back(system, n, scales, solution)


@device_inner
def _load_strip(system, first, n_lines, column, width, strip):
    lanes = smaller(32, cuda.blockDim.x)
    lane = cuda.threadIdx.x % lanes
    for i in range(cuda.threadIdx.x // lanes, n_lines, cuda.blockDim.x // lanes):
        for c in range(lane, width, lanes):
            strip[i * _PITCH + c] = system[row_start(first + i) + column + c]


@device_inner
def _update_tile(system, n, top, left, width, upper, lower):
    # 32 x 32 elements minus the product of two strips; a thread takes 2 x 2, 16 apart: neighbours stay neighbours.
    half = PANEL // 2
    zero = system.dtype.type(0)
    for item in range(cuda.threadIdx.x, half * half, cuda.blockDim.x):
        y, x = item // half, item % half
        s00 = s01 = s10 = s11 = zero
        for c in range(width):
            a, b = upper[y * _PITCH + c], upper[(y + half) * _PITCH + c]
            u, v = lower[x * _PITCH + c], lower[(x + half) * _PITCH + c]
            s00 += a * u
            s01 += a * v
            s10 += b * u
            s11 += b * v
        i, j = top + y, left + x
        for _ in range(2):
            if i <= n:
                line = row_start(i)
                if j <= i and j < n:
                    system[line + j] -= s00
                if j + half <= i and j + half < n:
                    system[line + j + half] -= s01
            i += half
            s00, s01 = s10, s11


@device_inner
def _eliminate_panel(system, n, p, width, corner, floors, scales, pivots):
    # The corner in shared memory, then a thread for each row below it.
    for i in range(width):
        for c in range(cuda.threadIdx.x, i + 1, cuda.blockDim.x):
            corner[row_start(i) + c] = system[row_start(p + i) + p + c]
    for c in range(cuda.threadIdx.x, width, cuda.blockDim.x):
        floors[c] = pivots[p + c]
    cuda.syncthreads()
    _eliminate(corner, width, width, floors, scales)
    for i in range(width):
        for c in range(cuda.threadIdx.x, i + 1, cuda.blockDim.x):
            system[row_start(p + i) + p + c] = corner[row_start(i) + c]
    for c in range(cuda.threadIdx.x, width, cuda.blockDim.x):
        pivots[p + c] = scales[c]
    for i in range(p + width + cuda.threadIdx.x, n + 1, cuda.blockDim.x):
        line = row_start(i) + p
        for j in range(width):
            total = system[line + j]
            for c in range(j):
                total -= system[line + c] * (corner[row_start(j) + c] * scales[c])
            system[line + j] = total * scales[j]
    cuda.syncthreads()


@device_inner
def solve_long(system, n, tolerance, pivots, room):
    """Solve a system in global memory; the right side's row becomes the solution.

    Panels of 32 columns; what is right of a panel is updated once by its product, in tiles, so that the triangle is
    read and written n / 32 times: n³ / 12 elements moved in all (and as many from strips). `pivots` (n,) is workspace,
    `room` shared memory of LONG_ROOM elements. Pivots as in :func:`solve_short`.
    """
    corner, floors = room[:_CORNER], room[_CORNER : _CORNER + PANEL]
    scales, tail = room[_CORNER + PANEL : _CORNER + 2 * PANEL], room[_CORNER + 2 * PANEL : _CORNER + 3 * PANEL]
    upper = room[_CORNER + 3 * PANEL : _CORNER + 3 * PANEL + PANEL * _PITCH]
    lower = room[_CORNER + 3 * PANEL + PANEL * _PITCH : LONG_ROOM]
    for j in range(cuda.threadIdx.x, n, cuda.blockDim.x):
        pivots[j] = tolerance * system[row_start(j) + j]
    cuda.syncthreads()
    for p in range(0, n, PANEL):
        width = smaller(PANEL, n - p)
        _eliminate_panel(system, n, p, width, corner, floors, scales, pivots)
        for top in range(p + width, n + 1, PANEL):
            _load_strip(system, top, smaller(PANEL, n + 1 - top), p, width, upper)
            for left in range(p + width, smaller(top + 1, n), PANEL):
                _load_strip(system, left, smaller(PANEL, n - left), p, width, lower)
                cuda.syncthreads()
                _update_tile(system, n, top, left, width, upper, lower)
                cuda.syncthreads()
    cuda.syncthreads()
    solution = system[row_start(n) : row_start(n) + n]
    for p in range((n - 1) // PANEL * PANEL, -1, -PANEL):
        width = smaller(PANEL, n - p)
        for i in range(width):
            for c in range(cuda.threadIdx.x, i + 1, cuda.blockDim.x):
                corner[row_start(i) + c] = system[row_start(p + i) + p + c]
        for c in range(cuda.threadIdx.x, width, cuda.blockDim.x):
            scales[c] = pivots[p + c]
            total = solution[p + c]
            for i in range(p + width, n):
                total -= system[row_start(i) + p + c] * solution[i]
            tail[c] = total
        cuda.syncthreads()
        _substitute_back(corner, width, scales, tail)
        for c in range(cuda.threadIdx.x, width, cuda.blockDim.x):
            solution[p + c] = tail[c]
        cuda.syncthreads()
