"""Chunks of gathered rows in a block's shared memory: read from global memory once, neighbours by neighbours.

A chunk is (depth, n) at an odd pitch above n, so that threads down a column meet different banks, and its column n is
zeros. All threads of a block call these functions together.
"""

from __future__ import annotations

from numba import cuda

from fastrfm._cuda import device_inner

DEPTH = 32  # most rows of a chunk
_MOST_ELEMENTS = 4096  # 32 KiB in float64


@device_inner
def smaller(a, b):
    """Return the smaller number: the built-in ``min`` does not compile for a device in Numba 0.68."""
    return a if a < b else b


@device_inner
def larger(a, b):
    """Return the larger number."""
    return a if a > b else b


def chunk_pitch(n):
    """Return the elements from row to row of a chunk n wide."""
    return (n + 1) | 1


def chunk_depth(pitch):
    """Return how many rows a chunk takes: 32, or what fits into 4096 elements, at least one."""
    fitting = _MOST_ELEMENTS // pitch
    return DEPTH if fitting > DEPTH else fitting if fitting > 1 else 1


device_pitch, device_depth = device_inner(chunk_pitch), device_inner(chunk_depth)


@device_inner
def load_chunk(source, indices, roots, first, depth, n, chunk, pitch):
    """Gather rows indices[first:first + depth] of source[:, :n], each times its root.

    Reads depth · n elements, in runs of 32 lanes along a row.
    """
    lanes = smaller(32, cuda.blockDim.x)
    lane = cuda.threadIdx.x % lanes
    for t in range(cuda.threadIdx.x // lanes, depth, cuda.blockDim.x // lanes):
        row, root = indices[first + t], roots[t]
        for a in range(lane, n, lanes):
            chunk[t * pitch + a] = source[row, a] * root
        if lane == 0:
            chunk[t * pitch + n] = source.dtype.type(0)


@device_inner
def chunk_dots(chunk, depth, n, pitch, vector, room, out):
    """Write the products of every row of a chunk with `vector` to out[:depth].

    The threads share a row's sum between them, in an order that their number fixes; `room` has DEPTH elements more
    than there are threads. What the chunk and the vector hold must be visible before; `out` is visible after.
    """
    parts = larger(1, cuda.blockDim.x // depth)
    for item in range(cuda.threadIdx.x, depth * parts, cuda.blockDim.x):
        t = item % depth
        total = chunk.dtype.type(0)
        for a in range(item // depth, n, parts):
            total += chunk[t * pitch + a] * vector[a]
        room[item] = total
    cuda.syncthreads()
    for t in range(cuda.threadIdx.x, depth, cuda.blockDim.x):
        total = room[t]
        for part in range(1, parts):
            total += room[part * depth + t]
        out[t] = total
    cuda.syncthreads()
