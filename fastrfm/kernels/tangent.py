"""The tangent-space system of two-sided lin-RFM: its sweeps over the observations, and conjugate gradients on it.

The estimate is U Aᵀ + B Vᵀ plus a multiple of its residual on the observed entries; U, V are singular vectors of the
previous estimate. B is eliminated: for given A, row i of B solves a k x k system M_i = V_JᵀV_J + diag(penalty), so
that conjugate gradients run on A alone, on the Schur complement (see ``solvers.tangent_step`` for the equations; own
derivation). One sweep forms, row by row, the residual, B and the gradient in A: about 8 k operations an entry. A pass
by rows that stores the residual and a pass by columns that gathers it, with a second copy of the positions, took 1.0
to 2.6 times as long at k = 10 and 20, 0.9 to 1.4 times at 40 (60 and 300 entries a row, one and two threads).

Sums over rows go into a fixed number of partial arrays (`parts`) that are added in order, sums over columns into one
partial per stripe of columns: the bits of a result do not depend on the thread count. Everything a kernel calls lives
in this file.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from fastrfm._lanes import (
    LANES,
    load,
    load_at,
    multiply_add,
    splat,
    store,
    store_at,
    subtract,
    total,
    totals,
)
from fastrfm._numba import inner, parallel_kernel

SINGULAR = 1e-15  # of a system's trace: what rounding may hide, added to its diagonal


def start_of(a):
    """Return where row a of a factor starts: rows hold whole lanes, four rows of four, then four of eight, ...

    At a = k it is :func:`factor_size`. On a device too.
    """
    block = a // LANES
    return 2 * LANES * block * (block + 1) + LANES * (a % LANES) * (block + 1)


def pivot_scale(diagonal, one):
    """Return 1/sqrt of a pivot, 0 where it is not positive and its direction counts for nothing. On a device too.

    `one` is 1 in the number type of the pivot.
    """
    return one / math.sqrt(diagonal) if diagonal > 0.0 else one - one


_start_of, _pivot_scale = inner(start_of), inner(pivot_scale)


@inner
def _add_outer(packed, v, i):
    """Add v_i v_iᵀ to the lower triangle; beyond the diagonal the lanes hold what nobody reads."""
    own = 0
    for a in range(v.shape[1]):
        weight = splat(v[i, a])
        for c in range(0, a + 1, LANES):
            store(packed, own + c, multiply_add(weight, load_at(v, i, c), load(packed, own + c)))
        own += LANES * (a // LANES + 1)


@inner
def _add_outers(packed, v, indices, start, stop):
    """Add v_j v_jᵀ for j = indices[start:stop]: four at a time, so that the sums stay in registers."""
    full = start + (stop - start) // LANES * LANES
    for t in range(start, full, LANES):
        i, j, k, m = indices[t], indices[t + 1], indices[t + 2], indices[t + 3]
        own = 0
        for a in range(v.shape[1]):
            first, second, third, fourth = splat(v[i, a]), splat(v[j, a]), splat(v[k, a]), splat(v[m, a])
            for c in range(0, a + 1, LANES):
                sums = multiply_add(first, load_at(v, i, c), load(packed, own + c))
                sums = multiply_add(second, load_at(v, j, c), sums)
                sums = multiply_add(third, load_at(v, k, c), sums)
                store(packed, own + c, multiply_add(fourth, load_at(v, m, c), sums))
            own += LANES * (a // LANES + 1)
    for t in range(full, stop):
        _add_outer(packed, v, indices[t])


@inner
def _invert_factor(packed, penalty, pivotal):
    """Replace the lower triangle of M by L⁻¹ of its Cholesky factor L, after adding `penalty` to its diagonal.

    Solving is then two products whose sums do not wait for each other, where substitution is one long chain. In step b
    row a > b holds a row of the inverse up to column b and of the Schur complement from there on, and both lose the
    same multiple of `pivotal`, a (k,) workspace. A pivot that is not positive makes its direction count for nothing.
    """
    k = penalty.size
    trace = 0.0
    for a in range(k):
        trace += packed[_start_of(a) + a]
    for a in range(k):
        packed[_start_of(a) + a] += penalty[a] + SINGULAR * trace
    for b in range(k):
        own = _start_of(b)
        diagonal = packed[own + b]
        scale = _pivot_scale(diagonal, 1.0)
        packed[own + b] = 1.0
        for c in range(b + 1):
            packed[own + c] *= scale
            pivotal[c] = packed[own + c]
        for c in range(b + 1, LANES * (b // LANES + 1)):
            packed[own + c] = 0.0
        for a in range(b + 1, k):
            other = _start_of(a)
            pivotal[a] = packed[other + b] * scale
            packed[other + b] = 0.0
        for a in range(b + 1, k):
            other, weight = _start_of(a), splat(-pivotal[a])
            for c in range(0, a + 1, LANES):
                store(packed, other + c, multiply_add(weight, load(pivotal, c), load(packed, other + c)))


@inner
def _solve(factors, i, x, half):
    """Replace x by M_i⁻¹ x = L⁻ᵀ (L⁻¹ x); `half` is a (k,) workspace."""
    own = 0
    for a in range(0, x.size, LANES):
        first = second = third = fourth = splat(0.0)
        width = a + LANES
        for c in range(0, width, LANES):
            given = load(x, c)
            first = multiply_add(given, load_at(factors, i, own + c), first)
            second = multiply_add(given, load_at(factors, i, own + width + c), second)
            third = multiply_add(given, load_at(factors, i, own + 2 * width + c), third)
            fourth = multiply_add(given, load_at(factors, i, own + 3 * width + c), fourth)
        store(half, a, totals(first, second, third, fourth))
        own += LANES * width
    for a in range(0, x.size, LANES):
        store(x, a, splat(0.0))
    own = 0
    for a in range(0, x.size, LANES):
        width = a + LANES
        one, two, three, four = splat(half[a]), splat(half[a + 1]), splat(half[a + 2]), splat(half[a + 3])
        for c in range(0, width, LANES):
            sums = multiply_add(one, load_at(factors, i, own + c), load(x, c))
            sums = multiply_add(two, load_at(factors, i, own + width + c), sums)
            sums = multiply_add(three, load_at(factors, i, own + 2 * width + c), sums)
            store(x, c, multiply_add(four, load_at(factors, i, own + 3 * width + c), sums))
        own += LANES * width


@inner
def _take_products(weights, rows, indices, start, n, out):
    """Subtract weights · rows[indices[start + t]] from out[t], t < n."""
    full = n // LANES * LANES
    for t in range(0, full, LANES):
        i, j = indices[start + t], indices[start + t + 1]
        k, m = indices[start + t + 2], indices[start + t + 3]
        first = second = third = fourth = splat(0.0)
        for a in range(0, weights.size, LANES):
            given = load(weights, a)
            first = multiply_add(given, load_at(rows, i, a), first)
            second = multiply_add(given, load_at(rows, j, a), second)
            third = multiply_add(given, load_at(rows, k, a), third)
            fourth = multiply_add(given, load_at(rows, m, a), fourth)
        store(out, t, subtract(load(out, t), totals(first, second, third, fourth)))
    for t in range(full, n):
        sums = splat(0.0)
        for a in range(0, weights.size, LANES):
            sums = multiply_add(load(weights, a), load_at(rows, indices[start + t], a), sums)
        out[t] -= total(sums)


@inner
def _gather(weights, rows, indices, start, n, out):
    """Add weights[t] rows[indices[start + t]] to out, t < n."""
    full = n // LANES * LANES
    for t in range(0, full, LANES):
        i, j = indices[start + t], indices[start + t + 1]
        k, m = indices[start + t + 2], indices[start + t + 3]
        one, two = splat(weights[t]), splat(weights[t + 1])
        three, four = splat(weights[t + 2]), splat(weights[t + 3])
        for a in range(0, out.size, LANES):
            sums = multiply_add(one, load_at(rows, i, a), load(out, a))
            sums = multiply_add(two, load_at(rows, j, a), sums)
            sums = multiply_add(three, load_at(rows, k, a), sums)
            store(out, a, multiply_add(four, load_at(rows, m, a), sums))
    for t in range(full, n):
        one = splat(weights[t])
        for a in range(0, out.size, LANES):
            store(out, a, multiply_add(one, load_at(rows, indices[start + t], a), load(out, a)))


@inner
def _scatter(weights, direction, indices, start, n, rows):
    """Add weights[t] direction to rows[indices[start + t]], t < n."""
    for t in range(n):
        j, weight = indices[start + t], splat(weights[t])
        for a in range(0, direction.size, LANES):
            store_at(rows, j, a, multiply_add(weight, load(direction, a), load_at(rows, j, a)))


def factor_size(k: int) -> int:
    """Return the length of one factor of k (a multiple of four) directions."""
    return 2 * (k // LANES) * (k + LANES)


@inner
def _factor_row(packed, basis, indices, start, stop, penalty, pivotal):
    for c in range(packed.size):
        packed[c] = 0.0
    _add_outers(packed, basis, indices, start, stop)
    _invert_factor(packed, penalty, pivotal)


@parallel_kernel
def factor_rows(bounds, indptr, indices, basis, penalty, out):
    """Write the inverse Cholesky factors of M_i = V_JᵀV_J + diag(penalty), J the observed columns of row i.

    Parameters
    ----------
    bounds : (n_tasks + 1,) int64
    indptr, indices
        The entries by row.
    basis : (n_cols, k) float64
        V.
    penalty : (k,) float64
    out : (n_rows, factor_size(k)) float64, written; a task owns its rows
        Lower triangles by rows, in whole lanes.
    """
    for task in prange(bounds.size - 1):
        pivotal = np.empty(penalty.size)
        for i in range(bounds[task], bounds[task + 1]):
            _factor_row(out[i], basis, indices, indptr[i], indptr[i + 1], penalty, pivotal)


@inner
def _first_at_least(indices, start, stop, column):
    """Return the first position in the ascending indices[start:stop] that holds `column` or more."""
    while start < stop:
        middle = (start + stop) // 2
        if indices[middle] < column:
            start = middle + 1
        else:
            stop = middle
    return start


@parallel_kernel
def add_column_grams(stripes, indptr, indices, left, out):
    """Add Σ_i u_i u_iᵀ over the observed rows i of each column to its lower triangle.

    Parameters
    ----------
    stripes : (n_stripes + 1,) int64
        Columns of each task.
    indptr, indices
        The entries by row, columns ascending within each.
    left : (n_rows, k) float64
        U.
    out : (n_cols, factor_size(k)) float64, added to; a task owns its columns
    """
    for stripe in prange(stripes.size - 1):
        first, last = stripes[stripe], stripes[stripe + 1]
        for i in range(indptr.size - 1):
            stop = indptr[i + 1]
            t = _first_at_least(indices, indptr[i], stop, first)
            while t < stop and indices[t] < last:
                _add_outer(out[indices[t]], left, i)
                t += 1


@parallel_kernel
def factor_columns(stripes, penalty, grams):
    """Replace the lower triangles of C_j, less its penalty, by the inverse Cholesky factors of C_j.

    Parameters
    ----------
    stripes : (n_stripes + 1,) int64
        Columns of each task.
    penalty : (k,) float64
        Added to the diagonals.
    grams : (n_cols, factor_size(k)) float64, replaced; a task owns its columns
        From :func:`add_column_grams`.
    """
    for stripe in prange(stripes.size - 1):
        pivotal = np.empty(penalty.size)
        for j in range(stripes[stripe], stripes[stripe + 1]):
            _invert_factor(grams[j], penalty, pivotal)


@inner
def _first_of_part(part, n_parts, first_tile):
    """Return the part's first tile among those that begin with number `first_tile`, counted from there."""
    return (part + n_parts - first_tile % n_parts) % n_parts


@inner
def _longest_row(tiles, first, n_parts, indptr):
    longest = 0
    for tile in range(first, tiles.size - 1, n_parts):
        for i in range(tiles[tile], tiles[tile + 1]):
            longest = max(longest, indptr[i + 1] - indptr[i])
    return longest


@parallel_kernel
def eliminated_sweep(
    tiles,
    first_tile,
    n_parts,
    indptr,
    indices,
    values,
    left,
    basis,
    coefficients,
    factors,
    penalty,
    out_rows,
    out_misfit,
    out_parts,
):
    """Eliminate B and add up the gradient's data part in A, row by row.

    For row i: ``z = y − u_i·a_j``, ``b_i = M_i⁻¹ Σ z v_j``, ``r = z − b_i·v_j``, ``out_j += r u_i``.

    Parameters
    ----------
    tiles : (n_tiles + 1,) int64
        Rows of each tile; part p owns tiles p, p + n_parts, ... of the whole matrix.
    first_tile : int
        The first one's number in the whole matrix. The rows may come in several calls, in order; 0 begins anew.
    n_parts : int
    indptr, indices
        The entries by row.
    values : (n_entries,) or (0,) float32 or float64
        y; empty stands for zeros.
    left, basis, coefficients : (n_rows, k), (n_cols, k), (n_cols, k) float64
        U, V and A.
    factors : (n_rows or 0, factor_size(k)) float64
        From :func:`factor_rows`; empty: formed again row by row, which costs more than the rest but no memory.
    penalty : (k,) float64
        For factors that are formed here.
    out_rows : (n_rows, k) or (0, k) float64, written unless empty
        B.
    out_misfit : (n_rows,) or (0,) float64, written unless empty
        Sum of r² over each row.
    out_parts : (n_parts, n_cols, k) float64, written, or added to from the second call on; a task owns its part
    """
    k = left.shape[1]
    has_values, keeps, has_factors = values.size > 0, out_misfit.size > 0, factors.shape[0] > 0
    for part in prange(n_parts):
        target, first = out_parts[part], _first_of_part(part, n_parts, first_tile)
        for j in range(target.shape[0] if first_tile == 0 else 0):
            for a in range(k):
                target[j, a] = 0.0
        residual = np.empty(_longest_row(tiles, first, n_parts, indptr))
        direction, row, half = np.empty(k), np.empty(k), np.empty(k)
        packed = np.empty((1, _start_of(k)))
        for tile in range(first, tiles.size - 1, n_parts):
            for i in range(tiles[tile], tiles[tile + 1]):
                start = indptr[i]
                n = indptr[i + 1] - start
                for a in range(k):
                    direction[a] = left[i, a]
                    row[a] = 0.0
                for t in range(n):
                    residual[t] = np.float64(values[start + t]) if has_values else 0.0
                _take_products(direction, coefficients, indices, start, n, residual)
                _gather(residual, basis, indices, start, n, row)
                if has_factors:
                    _solve(factors, i, row, half)
                else:
                    _factor_row(packed[0], basis, indices, start, start + n, penalty, half)
                    _solve(packed, 0, row, half)
                _take_products(row, basis, indices, start, n, residual)
                _scatter(residual, direction, indices, start, n, target)
                if keeps:
                    misfit = 0.0
                    for t in range(n):
                        misfit += residual[t] * residual[t]
                    out_misfit[i] = misfit
                    for a in range(k):
                        out_rows[i, a] = row[a]


@parallel_kernel
def project_columns(stripes, basis, coefficients, out):
    """Write Vᵀ A of each stripe, to be added in order: out is (n_stripes, k, k) float64; a task owns its stripe."""
    k = basis.shape[1]
    for stripe in prange(stripes.size - 1):
        target = out[stripe]
        for b in range(k):
            for a in range(k):
                target[b, a] = 0.0
        for j in range(stripes[stripe], stripes[stripe + 1]):
            for b in range(k):
                weight = splat(basis[j, b])
                for a in range(0, k, LANES):
                    store_at(target, b, a, multiply_add(weight, load_at(coefficients, j, a), load_at(target, b, a)))


@parallel_kernel
def combine_parts(stripes, parts, sign, basis, coefficients, core, penalty, out, out_dots):
    """Write ``sign · (sum of parts) + penalty ∘ (A − V core)`` and, for each stripe, its inner product with A.

    Parameters
    ----------
    stripes : (n_stripes + 1,) int64
    parts : (n_parts, n_cols, k) float64
    sign : float
    basis, coefficients : (n_cols, k) float64
        V and A.
    core : (k, k) float64
        The share of VᵀA that the penalty does not see.
    penalty : (k,) float64
        Of each column of A.
    out : (n_cols, k) float64, written; a task owns the rows of its stripe
    out_dots : (n_stripes,) float64, written
    """
    k = penalty.size
    for stripe in prange(stripes.size - 1):
        inside = np.empty(k)
        dot = 0.0
        for j in range(stripes[stripe], stripes[stripe + 1]):
            for a in range(k):
                inside[a] = coefficients[j, a]
            for b in range(k):
                weight = splat(-basis[j, b])
                for a in range(0, k, LANES):
                    store(inside, a, multiply_add(weight, load_at(core, b, a), load(inside, a)))
            target = out[j]
            for a in range(k):
                target[a] = 0.0
            for part in range(parts.shape[0]):
                for a in range(k):
                    target[a] += parts[part, j, a]
            for a in range(k):
                target[a] = sign * target[a] + penalty[a] * inside[a]
                dot += target[a] * coefficients[j, a]
        out_dots[stripe] = dot


@parallel_kernel
def _advance(stripes, step, direction, image, factors, solution, residual, preconditioned, out_dots):
    """Step along the direction, precondition the new residual, and write its inner product for each stripe."""
    k = direction.shape[1]
    for stripe in prange(stripes.size - 1):
        dot = 0.0
        target, half = np.empty(k), np.empty(k)
        for j in range(stripes[stripe], stripes[stripe + 1]):
            for a in range(k):
                solution[j, a] += step * direction[j, a]
                residual[j, a] -= step * image[j, a]
                target[a] = residual[j, a]
            _solve(factors, j, target, half)
            for a in range(k):
                preconditioned[j, a] = target[a]
                dot += target[a] * residual[j, a]
        out_dots[stripe] = dot


@parallel_kernel
def _turn(stripes, keep, preconditioned, direction):
    """Make the next direction: preconditioned + keep · direction."""
    k = direction.shape[1]
    for stripe in prange(stripes.size - 1):
        for j in range(stripes[stripe], stripes[stripe + 1]):
            for a in range(k):
                direction[j, a] = preconditioned[j, a] + keep * direction[j, a]


@inner
def _in_order(partials):
    total = 0.0
    for stripe in range(partials.size):
        total += partials[stripe]
    return total


@inner
def _core(projections, hidden, out):
    """Add the stripes' VᵀA in order and scale its rows: what :func:`combine_parts` calls core."""
    for b in range(out.shape[0]):
        for a in range(out.shape[1]):
            total = 0.0
            for stripe in range(projections.shape[0]):
                total += projections[stripe, b, a]
            out[b, a] = hidden[b] * total


@inner
def _combine(stripes, parts, sign, basis, coefficients, penalty, hidden, projections, core, out, dots):
    """Make a sweep's parts a gradient: ``sign · Σ parts + penalty ∘ (A − V diag(hidden) VᵀA)``; return ⟨out, A⟩."""
    project_columns(stripes, basis, coefficients, projections)
    _core(projections, hidden, core)
    combine_parts(stripes, parts, sign, basis, coefficients, core, penalty, out, dots)
    return _in_order(dots)


@inner
def finish_gradient(stripes, parts, basis, coefficients, penalty, hidden, out):
    """Write minus the gradient in A, from the parts of a sweep over all rows: what conjugate gradients start from.

    Parameters
    ----------
    stripes : (n_stripes + 1,) int64
    parts : (n_parts, n_cols, k) float64
    basis, coefficients : (n_cols, k) float64
        V and A.
    penalty, hidden : (k,) float64
        `hidden` is the share of each row of VᵀA that the penalty does not see, 1 − (ε/σ)^(2α).
    out : (n_cols, k) float64, written
    """
    n_stripes, k = stripes.size - 1, penalty.size
    projections, core, dots = np.empty((n_stripes, k, k)), np.empty((k, k)), np.empty(n_stripes)
    _combine(stripes, parts, 1.0, basis, coefficients, -penalty, hidden, projections, core, out, dots)


@inner
def start_conjugate_gradients(stripes, column_factors, state, solution, residual, direction, preconditioned, image):
    """Set conjugate gradients on the Schur complement up from `residual`, the right-hand side.

    Parameters
    ----------
    stripes : (n_stripes + 1,) int64
    column_factors : (n_cols, factor_size(k)) float64
        Of the blocks C_j, the preconditioner.
    state : (5,) float64, updated
        Steps done, steps allowed, relative tolerance, ⟨r, z⟩ now and at the start, r the residual and z = C⁻¹ r. The
        tolerance is on sqrt(⟨r, z⟩), relative to the start.
    solution, residual, direction, preconditioned, image : (n_cols, k) float64, updated
    """
    dots = np.empty(stripes.size - 1)
    for j in range(solution.shape[0]):
        for a in range(solution.shape[1]):
            solution[j, a] = direction[j, a] = image[j, a] = 0.0
    _advance(stripes, 0.0, direction, image, column_factors, solution, residual, preconditioned, dots)
    state[3] = state[4] = _in_order(dots)
    _turn(stripes, 0.0, preconditioned, direction)


@inner
def finish_step(
    stripes,
    basis,
    column_factors,
    penalty,
    hidden,
    parts,
    state,
    solution,
    residual,
    direction,
    preconditioned,
    image,
    projections,
    core,
    dots,
):
    """Take a step of conjugate gradients, from the parts of a sweep over all rows; return whether another may follow.

    Parameters
    ----------
    penalty, hidden : (k,) float64
        As in :func:`finish_gradient`.
    projections, core, dots : (n_stripes, k, k), (k, k) and (n_stripes,) float64
        Workspaces.
    """
    curvature = _combine(stripes, parts, -1.0, basis, direction, penalty, hidden, projections, core, image, dots)
    if not curvature > 0.0:
        return False  # nothing but rounding left in this direction
    step = state[3] / curvature
    _advance(stripes, step, direction, image, column_factors, solution, residual, preconditioned, dots)
    squared = _in_order(dots)
    _turn(stripes, squared / state[3], preconditioned, direction)
    state[3] = squared
    state[0] += 1.0
    return state[3] > state[2] * state[2] * state[4]


@inner
def conjugate_gradients(
    tiles,
    n_parts,
    stripes,
    indptr,
    indices,
    left,
    basis,
    row_factors,
    column_factors,
    penalty,
    hidden,
    parts,
    state,
    solution,
    residual,
    direction,
    preconditioned,
    image,
    projections,
    core,
    dots,
):
    """Take steps of conjugate gradients until the tolerance or the step limit, on observations that are in memory.

    The sweeps of :func:`eliminated_sweep` and :func:`finish_step` in turn; small problems would spend more time
    between the two than in them. Arguments as there.
    """
    no_values, no_rows, no_misfit = np.empty(0), np.empty((0, penalty.size)), np.empty(0)
    goes_on = state[3] > state[2] * state[2] * state[4]
    while goes_on and state[0] < state[1]:
        eliminated_sweep(
            tiles,
            0,
            n_parts,
            indptr,
            indices,
            no_values,
            left,
            basis,
            direction,
            row_factors,
            penalty,
            no_rows,
            no_misfit,
            parts,
        )
        goes_on = finish_step(
            stripes,
            basis,
            column_factors,
            penalty,
            hidden,
            parts,
            state,
            solution,
            residual,
            direction,
            preconditioned,
            image,
            projections,
            core,
            dots,
        )


@inner
def _write_residual(i, indptr, indices, values, left, rows, coefficients, basis, direction, residual):
    """Write y − u_i·a_j − b_i·v_j of row i; `direction` is a (k,) workspace."""
    start = indptr[i]
    n = indptr[i + 1] - start
    for t in range(n):
        residual[t] = np.float64(values[start + t])
    for a in range(direction.size):
        direction[a] = left[i, a]
    _take_products(direction, coefficients, indices, start, n, residual)
    for a in range(direction.size):
        direction[a] = rows[i, a]
    _take_products(direction, basis, indices, start, n, residual)
    return n


@parallel_kernel
def multiply_residual(tiles, indptr, indices, values, left, rows, coefficients, basis, vectors, out):
    """Write R·W, R the residual y − U Aᵀ − B Vᵀ on the observed entries, never stored.

    Parameters
    ----------
    tiles : (n_tiles + 1,) int64
        Rows of each task.
    indptr, indices, values
        The entries by row.
    left, rows : (n_rows, k) float64
        U and B.
    coefficients, basis : (n_cols, k) float64
        A and V.
    vectors : (n_cols, b) float64
        W.
    out : (n_rows, b) float64, written; a task owns its rows
    """
    width = vectors.shape[1]
    for tile in prange(tiles.size - 1):
        residual = np.empty(_longest_row(tiles, tile, tiles.size, indptr))
        direction, image = np.empty(left.shape[1]), np.empty(width)
        for i in range(tiles[tile], tiles[tile + 1]):
            n = _write_residual(i, indptr, indices, values, left, rows, coefficients, basis, direction, residual)
            for c in range(width):
                image[c] = 0.0
            _gather(residual, vectors, indices, indptr[i], n, image)
            for c in range(width):
                out[i, c] = image[c]


@parallel_kernel
def multiply_residual_transposed(
    tiles, first_tile, n_parts, indptr, indices, values, left, rows, coefficients, basis, vectors, out_parts
):
    """Write Rᵀ·Q for the residual of :func:`multiply_residual`, as partial sums over rows, to be added in order.

    Parameters
    ----------
    tiles : (n_tiles + 1,) int64
        Rows of each tile; part p owns tiles p, p + n_parts, ... of the whole matrix.
    first_tile : int
        As in :func:`eliminated_sweep`.
    n_parts : int
    vectors : (n_rows, b) float64
        Q.
    out_parts : (n_parts, n_cols, b) float64, written, or added to from the second call on; a task owns its part
    """
    width = vectors.shape[1]
    for part in prange(n_parts):
        target, first = out_parts[part], _first_of_part(part, n_parts, first_tile)
        for j in range(target.shape[0] if first_tile == 0 else 0):
            for c in range(width):
                target[j, c] = 0.0
        residual = np.empty(_longest_row(tiles, first, n_parts, indptr))
        direction, vector = np.empty(left.shape[1]), np.empty(width)
        for tile in range(first, tiles.size - 1, n_parts):
            for i in range(tiles[tile], tiles[tile + 1]):
                n = _write_residual(i, indptr, indices, values, left, rows, coefficients, basis, direction, residual)
                for c in range(width):
                    vector[c] = vectors[i, c]
                _scatter(residual, vector, indices, indptr[i], n, target)
