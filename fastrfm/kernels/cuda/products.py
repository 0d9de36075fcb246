"""Products of tall and of square matrices on a device: what numpy and BLAS do for the solvers on the processor.

A block forms a tile of the product from panels of both factors in shared memory, and each of its threads keeps its
share of the tile in registers: at 64 x 64 a panel of 16 is read once for 64 multiply-adds an element. Sums run in a
fixed order, so that a result has the same bits every time. (No ``min`` in kernels: Numba's own CUDA target does not
compile it.) Not here: sparse products (``residual``, ``tangent``).
"""

from __future__ import annotations

from numba import cuda

from fastrfm._cuda import (
    IS_SIMULATED,
    N_THREADS,
    Launch,
    block_sum,
    device_inner,
    device_kernel,
    over_groups,
    over_items,
)

TILE = 8 if IS_SIMULATED else 64
_DEPTH = 4 if IS_SIMULATED else 16
_ACROSS = 2 if IS_SIMULATED else 16  # threads beside each other; each owns elements a stride of threads apart
_DOWN = N_THREADS // _ACROSS
_OWN_ROWS, _OWN_COLS = TILE // _DOWN, TILE // _ACROSS
_OWN = _OWN_ROWS * _OWN_COLS
# Rows of one partial sum over the long side at least; how many sums at most, and how many elements in all of them.
_LEAST_ROWS, _MOST_STRIPES, _MOST_PARTIAL = 256, 1024, 1 << 23


@device_inner
def _add_panel(first, second, sums):
    """Add the products of a panel, both factors stored (depth, tile), to the thread's elements."""
    down, across = cuda.threadIdx.x // _ACROSS, cuda.threadIdx.x % _ACROSS
    for d in range(_DEPTH):
        for j in range(_OWN_COLS):
            weight = second[d, across + j * _ACROSS]
            for i in range(_OWN_ROWS):
                sums[i * _OWN_COLS + j] += first[d, down + i * _DOWN] * weight


@device_inner
def _load_rows(matrix, top, left, panel):
    """Load matrix[left : left + depth, top : top + tile], with zeros beyond its ends."""
    for e in range(cuda.threadIdx.x, _DEPTH * TILE, cuda.blockDim.x):
        d, c = e // TILE, e % TILE
        is_inside = left + d < matrix.shape[0] and top + c < matrix.shape[1]
        panel[d, c] = matrix[left + d, top + c] if is_inside else matrix.dtype.type(0)


@device_inner
def _load_transposed(matrix, top, left, panel):
    """Load matrix[top : top + tile, left : left + depth] transposed, with zeros beyond its ends."""
    for e in range(cuda.threadIdx.x, _DEPTH * TILE, cuda.blockDim.x):
        c, d = e // _DEPTH, e % _DEPTH
        is_inside = left + d < matrix.shape[1] and top + c < matrix.shape[0]
        panel[d, c] = matrix[top + c, left + d] if is_inside else matrix.dtype.type(0)


@device_inner
def _add_products_of_rows(left, right, top, beside, start, stop, first, second, sums):
    """Set the thread's elements to those of left[start:stop]ᵀ right[start:stop], of the tile at (top, beside)."""
    for e in range(_OWN):
        sums[e] = left.dtype.type(0)
    for row in range(start, stop, _DEPTH):
        _load_rows(left, top, row, first)
        _load_rows(right, beside, row, second)
        cuda.syncthreads()
        _add_panel(first, second, sums)
        cuda.syncthreads()


@device_inner
def lower_tile(number):
    """Return the row and the column, in tiles, of a tile at or below the diagonal: row r of them has r + 1."""
    row = 0
    while number > row:
        row += 1
        number -= row
    return row, number


def n_tiles(n: int) -> int:
    """Return how many tiles cover n rows or columns."""
    return -(-n // TILE)


def _over_tiles(out) -> Launch:
    return over_groups(n_tiles(out.shape[0]) * n_tiles(out.shape[1]))


@device_kernel(_over_tiles, "r2 r2 d0 d0 r2")
def multiply(left, right, scale, keep, out):
    """Write keep · out + scale · left @ right.

    Parameters
    ----------
    left, right : (n, p) and (p, m) float32 or float64
    scale, keep : float
        With `keep` 0 whatever was in `out` does not matter.
    out : (n, m) as the factors; a block owns tiles

    Notes
    -----
    Reads each factor once for every tile along the other's side, writes `out` once.
    """
    first = cuda.shared.array((_DEPTH, TILE), left.dtype)
    second = cuda.shared.array((_DEPTH, TILE), left.dtype)
    sums = cuda.local.array(_OWN, left.dtype)
    across = (out.shape[1] + TILE - 1) // TILE
    for tile in range(cuda.blockIdx.x, (out.shape[0] + TILE - 1) // TILE * across, cuda.gridDim.x):
        top, beside = tile // across * TILE, tile % across * TILE
        for e in range(_OWN):
            sums[e] = left.dtype.type(0)
        for start in range(0, left.shape[1], _DEPTH):
            _load_transposed(left, top, start, first)
            _load_rows(right, beside, start, second)
            cuda.syncthreads()
            _add_panel(first, second, sums)
            cuda.syncthreads()
        for e in range(_OWN):
            i = top + cuda.threadIdx.x // _ACROSS + e // _OWN_COLS * _DOWN
            j = beside + cuda.threadIdx.x % _ACROSS + e % _OWN_COLS * _ACROSS
            if i < out.shape[0] and j < out.shape[1]:
                total = left.dtype.type(scale) * sums[e]
                if keep != 0.0:
                    total += left.dtype.type(keep) * out[i, j]
                out[i, j] = total


def n_stripes(n_rows: int, n_sums: int) -> int:
    """Return into how many parts `n_sums` sums over that many rows are cut; depends on nothing else, as bits do."""
    return max(min(-(-n_rows // _LEAST_ROWS), _MOST_STRIPES, _MOST_PARTIAL // max(n_sums, 1)), 1)


def _over_part_tiles(out_parts) -> Launch:
    return over_groups(out_parts.shape[0] * n_tiles(out_parts.shape[1]) * n_tiles(out_parts.shape[2]))


@device_kernel(_over_part_tiles, "r2 r2 r3")
def multiply_transposed_parts(left, right, out_parts):
    """Write leftᵀ @ right as sums over stripes of rows, to be added in order (:func:`add_parts`).

    Parameters
    ----------
    left, right : (n, p) and (n, m) float32 or float64
    out_parts : (n_stripes, p, m) as the factors; a block owns tiles
    """
    first = cuda.shared.array((_DEPTH, TILE), left.dtype)
    second = cuda.shared.array((_DEPTH, TILE), left.dtype)
    sums = cuda.local.array(_OWN, left.dtype)
    down, across = (out_parts.shape[1] + TILE - 1) // TILE, (out_parts.shape[2] + TILE - 1) // TILE
    height = (left.shape[0] + out_parts.shape[0] - 1) // out_parts.shape[0]
    height = (height + _DEPTH - 1) // _DEPTH * _DEPTH  # whole panels: none reaches into the next stripe
    for number in range(cuda.blockIdx.x, out_parts.shape[0] * down * across, cuda.gridDim.x):
        part, tile = number // (down * across), number % (down * across)
        top, beside = tile // across * TILE, tile % across * TILE
        end = (part + 1) * height
        end = end if end < left.shape[0] else left.shape[0]
        _add_products_of_rows(left, right, top, beside, part * height, end, first, second, sums)
        for e in range(_OWN):
            i = top + cuda.threadIdx.x // _ACROSS + e // _OWN_COLS * _DOWN
            j = beside + cuda.threadIdx.x % _ACROSS + e % _OWN_COLS * _ACROSS
            if i < out_parts.shape[1] and j < out_parts.shape[2]:
                out_parts[part, i, j] = sums[e]


def _over_elements(out) -> Launch:
    return over_items(out.shape[0] * out.shape[1])


@device_kernel(_over_elements, "r3 r2")
def add_parts(parts, out):
    """Write the sum of parts, (n_parts, n, m), in their order, to `out`, (n, m); a thread owns elements."""
    m = out.shape[1]
    for e in range(cuda.grid(1), out.shape[0] * m, cuda.gridsize(1)):
        total = parts.dtype.type(0)
        for part in range(parts.shape[0]):
            total += parts[part, e // m, e % m]
        out[e // m, e % m] = total


@device_kernel(_over_elements, "r2 r1 d0 r2")
def combine_columns(matrix, factors, keep, out):
    """Write keep · out + matrix · diag(factors).

    Parameters
    ----------
    matrix : (n, m) float32 or float64
    factors : (m,) as `matrix`, or (1,) for all columns alike
    keep : float
        With 0 whatever was in `out` does not matter.
    out : (n, m) as `matrix`, may be `matrix` itself; a thread owns elements
    """
    m = out.shape[1]
    for e in range(cuda.grid(1), out.shape[0] * m, cuda.gridsize(1)):
        i, j = e // m, e % m
        total = matrix[i, j] * factors[j if factors.size > 1 else 0]
        if keep != 0.0:
            total += matrix.dtype.type(keep) * out[i, j]
        out[i, j] = total


@device_kernel(_over_elements, "r2 l0 r2")
def take_columns(matrix, place, out):
    """Write the columns of `matrix` from `place` on to `out`, (n, m); a thread owns elements."""
    m = out.shape[1]
    for e in range(cuda.grid(1), out.shape[0] * m, cuda.gridsize(1)):
        out[e // m, e % m] = matrix[e // m, place + e % m]


@device_kernel(_over_elements, "r2 l0 r2")
def put_columns(matrix, place, out):
    """Write `matrix`, (n, m), to the columns of `out` from `place` on, as many as fit; and zeros beyond both.

    Columns of `out` before `place` stay. A thread owns elements.
    """
    m = out.shape[1]
    for e in range(cuda.grid(1), out.shape[0] * m, cuda.gridsize(1)):
        i, j = e // m, e % m
        if j >= place:
            out[i, j] = matrix[i, j - place] if j - place < matrix.shape[1] else matrix.dtype.type(0)


def _over_parts(out_parts) -> Launch:
    return over_groups(out_parts.size)


@device_kernel(_over_parts, "r1 r1")
def sum_parts(values, out_parts):
    """Write the sums of `values`, (n,), over runs of them, (n_parts,), each in an order that their number decides."""
    room = cuda.shared.array(N_THREADS, values.dtype)
    length = (values.size + out_parts.size - 1) // out_parts.size
    for part in range(cuda.blockIdx.x, out_parts.size, cuda.gridDim.x):
        end = (part + 1) * length
        total = values.dtype.type(0)
        for t in range(part * length + cuda.threadIdx.x, end if end < values.size else values.size, cuda.blockDim.x):
            total += values[t]
        total = block_sum(total, room)
        if cuda.threadIdx.x == 0:
            out_parts[part] = total


@device_kernel(_over_parts, "r1 d1 r1")
def sum_square_parts(values, weights, out_parts):
    """Write the sums of squares over their `weights`, which are empty where all are one, as :func:`sum_parts`."""
    room = cuda.shared.array(N_THREADS, values.dtype)
    length = (values.size + out_parts.size - 1) // out_parts.size
    for part in range(cuda.blockIdx.x, out_parts.size, cuda.gridDim.x):
        end = (part + 1) * length
        total = values.dtype.type(0)
        for t in range(part * length + cuda.threadIdx.x, end if end < values.size else values.size, cuda.blockDim.x):
            square = values[t] * values[t]
            total += values.dtype.type(square / weights[t]) if weights.size > 0 else square
        total = block_sum(total, room)
        if cuda.threadIdx.x == 0:
            out_parts[part] = total


def _by_one_block(out) -> Launch:
    return Launch(1, N_THREADS)


@device_kernel(_by_one_block, "r2 r1")
def add_up_diagonal(matrix, out):
    """Write the trace of `matrix`, (n, n), to out[0]."""
    room = cuda.shared.array(N_THREADS, matrix.dtype)
    total = matrix.dtype.type(0)
    for t in range(cuda.threadIdx.x, matrix.shape[0], cuda.blockDim.x):
        total += matrix[t, t]
    total = block_sum(total, room)
    if cuda.threadIdx.x == 0:
        out[0] = total


def _over_stripes(out_parts) -> Launch:
    return over_groups(out_parts.shape[0])


@device_kernel(_over_stripes, "r2 r2")
def column_squares(matrix, out_parts):
    """Write the sums of squares of the columns of `matrix`, (n, m), over stripes of rows: (n_stripes, m)."""
    height = (matrix.shape[0] + out_parts.shape[0] - 1) // out_parts.shape[0]
    for stripe in range(cuda.blockIdx.x, out_parts.shape[0], cuda.gridDim.x):
        end = (stripe + 1) * height
        for j in range(cuda.threadIdx.x, matrix.shape[1], cuda.blockDim.x):
            total = matrix.dtype.type(0)
            for i in range(stripe * height, end if end < matrix.shape[0] else matrix.shape[0]):
                total += matrix[i, j] * matrix[i, j]
            out_parts[stripe, j] = total
