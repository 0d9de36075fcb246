"""What a block of threads does with one system of the tangent space: forms it, inverts its factor, solves with it.

Lower triangles by rows in whole lanes of four, as ``kernels.tangent`` has them; used by ``tangent_factors``, the sweeps
and the steps. All threads of a block call these functions together.

Steps of loops over threads are added by hand in what runs once a row: a ``range`` with a step that is not known to the
compiler costs a division of 8 bytes, and the registers for it.
"""

from __future__ import annotations

from numba import cuda

from fastrfm._cuda import IS_SIMULATED, N_THREADS, block_sum, device_inner
from fastrfm._lanes import LANES
from fastrfm.kernels.cuda._chunks import smaller
from fastrfm.kernels.tangent import SINGULAR, pivot_scale, start_of

TEAM = 2 if IS_SIMULATED else 4  # threads side by side on a row of numbers; rows are whole lanes of four
PANEL = 3 if IS_SIMULATED else 16  # gathered rows that are in shared memory at a time
LEAST_THREADS = min(32, N_THREADS)  # a warp
_SINGULAR_SINGLE = 5e-7  # what SINGULAR is to float64: a few units of rounding

_start_of, _pivot_scale = device_inner(start_of), device_inner(pivot_scale)


def threads_for(n: int) -> int:
    """Return the threads of a block for n things to do at once: a power of two from a warp to the usual number."""
    return max(min(1 << max(n - 1, 0).bit_length(), N_THREADS), LEAST_THREADS)


@device_inner
def _walked(block, c):
    """Return (block, c) with c inside the block: four rows of a triangle, as wide as where they end."""
    while c >= LANES * (block + 1):
        c -= LANES * (block + 1)
        block += 1
    return block, c


@device_inner
def _add_panel(panel, n, k, packed):
    """Add Σ_t v_t v_tᵀ, v_t = panel[t k : (t + 1) k] for t < n; a thread sums four rows at a column, in order of t."""
    zero = packed.dtype.type(0)
    block, c = _walked(0, cuda.threadIdx.x)
    while LANES * block < k:
        first = second = third = fourth = zero
        column, rows = c, LANES * block
        for _ in range(n):
            given = panel[column]
            first += panel[rows] * given
            second += panel[rows + 1] * given
            third += panel[rows + 2] * given
            fourth += panel[rows + 3] * given
            column += k
            rows += k
        own, width = _start_of(LANES * block) + c, LANES * (block + 1)
        packed[own] += first
        packed[own + width] += second
        packed[own + 2 * width] += third
        packed[own + 3 * width] += fourth
        block, c = _walked(block, c + cuda.blockDim.x)


@device_inner
def add_gram(packed, source, indices, start, n, panel):
    """Add Σ v vᵀ over v = source[indices[start + t]], t < n, to the lower triangle."""
    k, lane, team = source.shape[1], cuda.threadIdx.x % TEAM, cuda.threadIdx.x // TEAM
    for begin in range(0, n, PANEL):
        count = smaller(PANEL, n - begin)
        cuda.syncthreads()
        t = team
        while t < count:
            j, a = indices[start + begin + t], lane
            while a < k:
                panel[t * k + a] = source[j, a]
                a += TEAM
            t += cuda.blockDim.x // TEAM
        cuda.syncthreads()
        _add_panel(panel, count, k, packed)
    cuda.syncthreads()


@device_inner
def move(source, target, n):
    """Copy n elements; what comes before and after waits for it."""
    cuda.syncthreads()
    c = cuda.threadIdx.x
    while c < n:
        target[c] = source[c]
        c += cuda.blockDim.x
    cuda.syncthreads()


@device_inner
def form(packed, source, indices, start, n, panel):
    """Write the lower triangle of :func:`add_gram` alone."""
    cuda.syncthreads()
    c = cuda.threadIdx.x
    while c < _start_of(source.shape[1]):
        packed[c] = source.dtype.type(0)
        c += cuda.blockDim.x
    add_gram(packed, source, indices, start, n, panel)


@device_inner
def _add_to_diagonal(packed, penalty, room):
    """Add the penalty, and what rounding may hide of the trace."""
    k, share = penalty.size, packed.dtype.type(0)
    a = cuda.threadIdx.x
    while a < k:
        share += packed[_start_of(a) + a]
        a += cuda.blockDim.x
    share = block_sum(share, room) * packed.dtype.type(_SINGULAR_SINGLE if packed.itemsize == 4 else SINGULAR)
    a = cuda.threadIdx.x
    while a < k:
        packed[_start_of(a) + a] += penalty[a] + share
        a += cuda.blockDim.x
    cuda.syncthreads()


@device_inner
def _eliminate(packed, b, pivotal):
    """Take multiples of `pivotal` from the rows below b, and put it in the place of row b itself."""
    zero = packed.dtype.type(0)
    own, c = _start_of(b), cuda.threadIdx.x
    while c < LANES * (b // LANES + 1):
        packed[own + c] = pivotal[c] if c <= b else zero
        c += cuda.blockDim.x
    block, c = _walked((b + 1) // LANES, cuda.threadIdx.x)
    while LANES * block < pivotal.size:
        given, place = pivotal[c], _start_of(LANES * block) + c
        for a in range(LANES * block, LANES * block + LANES):
            if a > b:
                before = zero if c == b else packed[place]
                packed[place] = before - pivotal[a] * given
            place += LANES * (block + 1)
        block, c = _walked(block, c + cuda.blockDim.x)


@device_inner
def invert_factor(packed, penalty, pivotal, room):
    """Replace the lower triangle of M by L⁻¹ of its Cholesky factor L, after adding `penalty` to its diagonal.

    As the processor's, all threads together: in step b every row below b loses the same multiple of `pivotal`, (k,)
    shared memory; k³ / 3 multiply-adds, two synchronisations a step. A pivot that is not positive makes its direction
    count for nothing.
    """
    _add_to_diagonal(packed, penalty, room)
    for b in range(penalty.size):
        own = _start_of(b)
        scale, c = _pivot_scale(packed[own + b], packed.dtype.type(1)), cuda.threadIdx.x
        while c < penalty.size:
            if c < b:
                pivotal[c] = packed[own + c] * scale
            elif c == b:
                pivotal[c] = scale
            else:
                pivotal[c] = packed[_start_of(c) + b] * scale
            c += cuda.blockDim.x
        cuda.syncthreads()
        _eliminate(packed, b, pivotal)
        cuda.syncthreads()


def room_pitch(n_threads):
    """Return the elements from one thread of a team to the next, in shared memory for the sums of four rows a team.

    A multiple of 32 and eight more, so that neighbouring teams and threads meet different banks.
    """
    return n_threads // TEAM * 4 + 8


_pitch = device_inner(room_pitch)


@device_inner
def add_teams(room, e):
    """Return the sum of what a team's threads left in `room` for its row e, in their order."""
    total = room[e]
    for other in range(1, TEAM):
        total += room[other * _pitch(cuda.blockDim.x) + e]
    return total


@device_inner
def solve(factor, x, half, room):
    """Replace x, in shared memory, by M⁻¹ x = L⁻ᵀ (L⁻¹ x); `half` is (k,) shared memory.

    The factor is read twice, the second time from cache: whole lanes of a row by a team, then a row by neighbours.
    `room` has TEAM · ``room_pitch`` elements.
    """
    me, k, n_threads, zero = cuda.threadIdx.x, x.size, cuda.blockDim.x, x.dtype.type(0)
    lane, n_teams, place = me % TEAM, n_threads // TEAM, me % TEAM * _pitch(n_threads)
    cuda.syncthreads()
    first = 0
    while first < k:
        n = smaller(4 * n_teams, k - first)
        e = me // TEAM
        while e < n:
            own, total, c = _start_of(first + e), zero, lane
            while c < LANES * ((first + e) // LANES + 1):
                total += factor[own + c] * x[c]
                c += TEAM
            room[place + e] = total
            e += n_teams
        cuda.syncthreads()
        e = me
        while e < n:
            half[first + e] = add_teams(room, e)
            e += n_threads
        cuda.syncthreads()
        first += 4 * n_teams
    c = me
    while c < k:
        total, a = zero, c // LANES * LANES
        own, width = _start_of(a) + c, a + LANES
        while a < k:
            total += factor[own] * half[a]
            total += factor[own + width] * half[a + 1]
            total += factor[own + 2 * width] * half[a + 2]
            total += factor[own + 3 * width] * half[a + 3]
            own += LANES * width
            width += LANES
            a += LANES
        x[c] = total
        c += n_threads
    cuda.syncthreads()
