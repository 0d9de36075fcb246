"""Small symmetric positive definite systems, solved by the threads of one block together.

A matrix is the packed lower triangle of its rows, in shared memory or in a workspace: element (i, j) is at
i (i + 1) / 2 + j. All threads of a block must call these functions, with the same arguments. Used by ``row_solves``.
"""

from __future__ import annotations

from numba import cuda

from fastrfm._cuda import IS_SIMULATED, device_inner
from fastrfm.kernels.row_solves import pivot_scale

# Sides of tiles of threads over a triangle; ``_ACROSS`` neighbours read neighbouring elements.
ACROSS = 2 if IS_SIMULATED else 8

_pivot_scale = device_inner(pivot_scale)


@device_inner
def _is_double(array):
    one = array.dtype.type(1)
    return one + array.dtype.type(1e-10) != one


@device_inner
def pivot_share(array):
    """Return the share of a diagonal that rounding may leave of its pivot, in the number type of `array`."""
    return array.dtype.type(1e-16) if _is_double(array) else array.dtype.type(6e-8)


@device_inner
def residual_tolerance(array):
    """Return the relative residual at which conjugate gradients stop, in the number type of `array`."""
    return array.dtype.type(1e-13) if _is_double(array) else array.dtype.type(1e-6)


@device_inner
def add_gram(panel, n, k, stride, packed):
    """Add Σ_c v_c v_cᵀ, v_c = panel[c stride : c stride + k] for c < n, to the packed triangle of k rows.

    `panel` is in shared memory. Each thread has elements of its own, which it adds to in the order of c.
    """
    down = cuda.blockDim.x // ACROSS
    for i in range(cuda.threadIdx.x // ACROSS, k, down):
        own = i * (i + 1) // 2
        for j in range(cuda.threadIdx.x % ACROSS, i + 1, ACROSS):
            total = packed[own + j]
            for c in range(n):
                total += panel[c * stride + i] * panel[c * stride + j]
            packed[own + j] = total


@device_inner
def factorise(packed, n, floors, column):
    """Replace the triangle by its Cholesky factor, the diagonal by the pivots' reciprocal roots.

    A pivot that rounding alone may have left of its diagonal is left out, as on the processor: its reciprocal is zero.
    `floors` and `column` are (n,) workspaces.
    """
    floor_share = pivot_share(packed)
    me, n_threads, down = cuda.threadIdx.x, cuda.blockDim.x, cuda.blockDim.x // ACROSS
    for i in range(me, n, n_threads):
        floors[i] = floor_share * packed[i * (i + 1) // 2 + i]
    cuda.syncthreads()
    for j in range(n):
        pivot = packed[j * (j + 1) // 2 + j]
        scale = packed.dtype.type(_pivot_scale(pivot, floors[j]))
        for i in range(j + 1 + me, n, n_threads):
            below = packed[i * (i + 1) // 2 + j] * scale
            packed[i * (i + 1) // 2 + j] = below
            column[i] = below
        cuda.syncthreads()  # the pivot has been read by all
        if me == 0:
            packed[j * (j + 1) // 2 + j] = scale
        for i in range(j + 1 + me // ACROSS, n, down):
            own = i * (i + 1) // 2
            weight = column[i]
            for c in range(j + 1 + me % ACROSS, i + 1, ACROSS):
                packed[own + c] -= weight * column[c]
        cuda.syncthreads()


@device_inner
def substitute(packed, n, rhs):
    """Replace rhs[:n] by the solution, from the factor that :func:`factorise` left."""
    me, n_threads = cuda.threadIdx.x, cuda.blockDim.x
    for j in range(n):
        if me == 0:
            rhs[j] *= packed[j * (j + 1) // 2 + j]
        cuda.syncthreads()
        solved = rhs[j]
        for i in range(j + 1 + me, n, n_threads):
            rhs[i] -= packed[i * (i + 1) // 2 + j] * solved
        cuda.syncthreads()
    for j in range(n - 1, -1, -1):
        own = j * (j + 1) // 2
        if me == 0:
            rhs[j] *= packed[own + j]
        cuda.syncthreads()
        solved = rhs[j]
        for i in range(me, j, n_threads):
            rhs[i] -= packed[own + i] * solved
        cuda.syncthreads()
