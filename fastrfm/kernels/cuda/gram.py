"""Accumulation of the AGOP Gram G = XᵀX on a device, and its symmetric completion: twins of ``kernels.gram``."""

from __future__ import annotations

from numba import cuda

from fastrfm._cuda import Launch, device_kernel, over_groups
from fastrfm.kernels.cuda.products import (
    _ACROSS,
    _DEPTH,
    _DOWN,
    _OWN,
    _OWN_COLS,
    TILE,
    _add_products_of_rows,
    lower_tile,
    n_tiles,
)


def _over_lower_tiles(gram) -> Launch:
    return over_groups(n_tiles(gram.shape[0]) * (n_tiles(gram.shape[0]) + 1) // 2)


@device_kernel(_over_lower_tiles, "r2 r2")
def accumulate_gram(rows, gram):
    """Add rowsᵀ rows to the lower triangle of `gram`, in place.

    Parameters
    ----------
    rows : (n_block_rows, n_cols) float32 or float64
    gram : (n_cols, n_cols) as `rows`
        A block owns tiles at and below the diagonal, all of those on it; tiles above are not touched.

    Notes
    -----
    Reads a panel of `rows` once for every tile it takes part in, n_cols / 64 of them, and the tiles once.
    """
    first = cuda.shared.array((_DEPTH, TILE), rows.dtype)
    second = cuda.shared.array((_DEPTH, TILE), rows.dtype)
    sums = cuda.local.array(_OWN, rows.dtype)
    n = gram.shape[0]
    across = (n + TILE - 1) // TILE
    for tile in range(cuda.blockIdx.x, across * (across + 1) // 2, cuda.gridDim.x):
        row, before = lower_tile(tile)
        top, beside = row * TILE, before * TILE
        _add_products_of_rows(rows, rows, top, beside, 0, rows.shape[0], first, second, sums)
        for e in range(_OWN):
            i = top + cuda.threadIdx.x // _ACROSS + e // _OWN_COLS * _DOWN
            j = beside + cuda.threadIdx.x % _ACROSS + e % _OWN_COLS * _ACROSS
            if i < n and j < n:
                gram[i, j] += sums[e]


def _over_rows(out) -> Launch:
    return over_groups(out.shape[0])


@device_kernel(_over_rows, "r2 d0 d0 r2")
def shift_and_mirror(gram, scale, shift, out):
    """Write out = scale · gram + shift · I, reading only the lower triangle of `gram`.

    Parameters
    ----------
    gram, out : (n, n) float32 or float64; may be the same array
    scale, shift : float

    Notes
    -----
    A block owns a row left of the diagonal and its mirror image: every element of the lower triangle is read and both
    images written by one thread, the second one a column's length apart.
    """
    factor, more = gram.dtype.type(scale), gram.dtype.type(shift)
    for i in range(cuda.blockIdx.x, gram.shape[0], cuda.gridDim.x):
        for j in range(cuda.threadIdx.x, i + 1, cuda.blockDim.x):
            value = factor * gram[i, j]
            if i == j:
                value += more
            out[i, j] = value
            out[j, i] = value
