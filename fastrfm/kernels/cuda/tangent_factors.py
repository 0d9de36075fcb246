"""Factors of the tangent system on a device: inverse Cholesky factors of k x k systems, one for each row or column.

Twins of the factor functions of ``kernels.tangent``, in the same layout: lower triangles by rows, in whole lanes of
four. A block forms a system: in shared memory up to 64 directions, beyond that where it is stored.
"""

from __future__ import annotations

import math

from numba import cuda

from fastrfm._cuda import IS_SIMULATED, Launch, device_inner, device_kernel, over_groups
from fastrfm._lanes import LANES
from fastrfm.kernels.tangent import factor_size, start_of

SMALL = 8 if IS_SIMULATED else 64  # directions up to which a system is formed in shared memory
ACROSS = 2 if IS_SIMULATED else 8  # threads beside each other on a row of a triangle
PANEL = 8  # gathered rows that are in shared memory at a time
_SINGULAR = 1e-15  # of a system's trace: what rounding may hide, added to its diagonal

_start_of = device_inner(start_of)


@device_inner
def _add_panel(panel, n, k, packed):
    """Add Σ_c v_c v_cᵀ, v_c = panel[c k : (c + 1) k] for c < n, to the lower triangle, in the order of c."""
    down = cuda.blockDim.x // ACROSS
    for a in range(cuda.threadIdx.x // ACROSS, k, down):
        own = _start_of(a)
        for c in range(cuda.threadIdx.x % ACROSS, a + 1, ACROSS):
            total = packed[own + c]
            for t in range(n):
                total += panel[t * k + a] * panel[t * k + c]
            packed[own + c] = total


@device_inner
def invert_factor(packed, penalty, pivotal):
    """Replace the lower triangle of M by L⁻¹ of its Cholesky factor L, after adding `penalty` to its diagonal.

    As the processor's, all threads together: in step b every row below b loses the same multiple of `pivotal`, (k,)
    shared memory. A pivot that is not positive makes its direction count for nothing.
    """
    k, me, n_threads, down = penalty.size, cuda.threadIdx.x, cuda.blockDim.x, cuda.blockDim.x // ACROSS
    trace = packed.dtype.type(0)
    for a in range(k):
        trace += packed[_start_of(a) + a]
    cuda.syncthreads()
    for a in range(me, k, n_threads):
        packed[_start_of(a) + a] += penalty[a] + packed.dtype.type(_SINGULAR) * trace
    cuda.syncthreads()
    for b in range(k):
        own = _start_of(b)
        diagonal = packed[own + b]
        scale = packed.dtype.type(0)
        if diagonal > 0.0:
            scale = packed.dtype.type(1) / packed.dtype.type(math.sqrt(diagonal))
        for c in range(me, k, n_threads):
            if c < b:
                pivotal[c] = packed[own + c] * scale
            elif c == b:
                pivotal[c] = scale
            else:
                pivotal[c] = packed[_start_of(c) + b] * scale
        cuda.syncthreads()
        for c in range(me, LANES * (b // LANES + 1), n_threads):
            packed[own + c] = pivotal[c] if c <= b else packed.dtype.type(0)
        for a in range(b + 1 + me // ACROSS, k, down):
            other, weight = _start_of(a), pivotal[a]
            for c in range(me % ACROSS, a + 1, ACROSS):
                before = packed.dtype.type(0) if c == b else packed[other + c]
                packed[other + c] = before - weight * pivotal[c]
        cuda.syncthreads()


@device_inner
def form_factor(packed, basis, indices, start, stop, penalty, panel, pivotal):
    """Form the system of the gathered rows basis[indices[start:stop]] in `packed` and invert its factor."""
    k, me, n_threads = penalty.size, cuda.threadIdx.x, cuda.blockDim.x
    cuda.syncthreads()
    for c in range(me, packed.size, n_threads):
        packed[c] = 0.0
    for first in range(start, stop, PANEL):
        n = stop - first if stop - first < PANEL else PANEL
        cuda.syncthreads()
        for t in range(n):
            j = indices[first + t]
            for a in range(me, k, n_threads):
                panel[t * k + a] = basis[j, a]
        cuda.syncthreads()
        _add_panel(panel, n, k, packed)
    cuda.syncthreads()
    invert_factor(packed, penalty, pivotal)


def shared_size(k: int) -> int:
    """Return how many numbers of shared memory forming a factor takes: a panel, `pivotal`, and the system if small."""
    return (factor_size(k) if k <= SMALL else 0) + (PANEL + 1) * k


def _over_rows(indptr, basis, penalty) -> Launch:
    return over_groups(indptr.size - 1, shared_bytes=shared_size(penalty.size) * basis.dtype.itemsize)


@device_kernel(_over_rows, "l1 l1 i1 r2 r1 r2")
def factor_rows(bounds, indptr, indices, basis, penalty, out):
    """Write the inverse Cholesky factors of M_i = V_JᵀV_J + diag(penalty), J the observed columns of row i.

    Parameters
    ----------
    bounds
        Not used: a block takes a row at a time.
    indptr, indices
        The entries by row.
    basis : (n_cols, k) float32 or float64
        V.
    penalty : (k,) as `basis`
    out : (n_rows, factor_size(k)) as `basis`, written; a block owns its rows

    Notes
    -----
    An entry reads its position and gathers k elements, for k (k + 1) / 2 multiply-adds out of shared memory; a row
    takes k³ / 3 more and writes factor_size(k) elements.
    """
    k, size = penalty.size, out.shape[1]
    shared = cuda.shared.array(0, dtype=basis.dtype)
    panel, pivotal, near = shared[: PANEL * k], shared[PANEL * k : (PANEL + 1) * k], shared[(PANEL + 1) * k :]
    for i in range(cuda.blockIdx.x, indptr.size - 1, cuda.gridDim.x):
        if k <= SMALL:
            form_factor(near[:size], basis, indices, indptr[i], indptr[i + 1], penalty, panel, pivotal)
            for c in range(cuda.threadIdx.x, size, cuda.blockDim.x):
                out[i, c] = near[c]
        else:
            form_factor(out[i], basis, indices, indptr[i], indptr[i + 1], penalty, panel, pivotal)


def _by_entries(indptr, left) -> Launch:
    return over_groups(indptr.size - 1, shared_bytes=left.shape[1] * left.dtype.itemsize)


@device_kernel(_by_entries, "l1 l1 i1 r2 r2")
def add_column_grams(stripes, indptr, indices, left, out):
    """Add Σ_i u_i u_iᵀ over the observed rows i of each column to its lower triangle.

    By atomic additions, so that the last bits depend on their order: the entries come by row.

    Parameters
    ----------
    stripes
        Not used.
    indptr, indices
        The entries by row.
    left : (n_rows, k) float32 or float64
        U.
    out : (n_cols, factor_size(k)) as `left`, added to

    Notes
    -----
    An entry takes k (k + 1) / 2 atomic additions: they are what limits this kernel, by far.
    """
    direction = cuda.shared.array(0, dtype=left.dtype)
    me, k, down = cuda.threadIdx.x, left.shape[1], cuda.blockDim.x // ACROSS
    for i in range(cuda.blockIdx.x, indptr.size - 1, cuda.gridDim.x):
        cuda.syncthreads()
        for a in range(me, k, cuda.blockDim.x):
            direction[a] = left[i, a]
        cuda.syncthreads()
        for t in range(indptr[i], indptr[i + 1]):
            j = indices[t]
            for a in range(me // ACROSS, k, down):
                own, weight = _start_of(a), direction[a]
                for c in range(me % ACROSS, a + 1, ACROSS):
                    cuda.atomic.add(out, (j, own + c), weight * direction[c])


def _over_columns(penalty, grams) -> Launch:
    return over_groups(grams.shape[0], shared_bytes=penalty.size * grams.dtype.itemsize)


@device_kernel(_over_columns, "l1 r1 r2")
def factor_columns(stripes, penalty, grams):
    """Replace the lower triangles of C_j, less its penalty, by the inverse Cholesky factors of C_j.

    Parameters
    ----------
    stripes
        Not used.
    penalty : (k,) float32 or float64
        Added to the diagonals.
    grams : (n_cols, factor_size(k)) as `penalty`, replaced; a block owns its columns
        From :func:`add_column_grams`.
    """
    pivotal = cuda.shared.array(0, dtype=grams.dtype)
    for j in range(cuda.blockIdx.x, grams.shape[0], cuda.gridDim.x):
        invert_factor(grams[j], penalty, pivotal)
        cuda.syncthreads()


@device_inner
def solve(packed, x, half):
    """Replace x, in shared memory, by M⁻¹ x = L⁻ᵀ (L⁻¹ x); `half` is (k,) shared memory. All threads must call it."""
    k, me, n_threads = x.size, cuda.threadIdx.x, cuda.blockDim.x
    cuda.syncthreads()
    for a in range(me, k, n_threads):
        own, total = _start_of(a), x.dtype.type(0)
        for c in range(a + 1):
            total += packed[own + c] * x[c]
        half[a] = total
    cuda.syncthreads()
    for c in range(me, k, n_threads):
        total = x.dtype.type(0)
        for a in range(c, k):
            total += packed[_start_of(a) + c] * half[a]
        x[c] = total
    cuda.syncthreads()
