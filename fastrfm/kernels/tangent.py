"""The tangent-space system of two-sided lin-RFM: its sweeps over the observations, and conjugate gradients on it.

The estimate is U Aᵀ + B Vᵀ plus a multiple of its residual on the observed entries; U, V are singular vectors of the
previous estimate. B is eliminated: for given A, row i of B solves a k x k system M_i = V_JᵀV_J + diag(penalty), so
that conjugate gradients run on A alone, on the Schur complement (see ``solvers.two_sided`` for the equations; own
derivation). One sweep forms, row by row, the residual, B and the gradient in A: about 8 k operations an entry.

Sums over rows go into a fixed number of partial arrays (`parts`) that are added in order, sums over columns into one
partial per stripe of columns: the bits of a result do not depend on the thread count. Everything a kernel calls lives
in this file.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from fastrfm._numba import inner, parallel_kernel

_SINGULAR = 1e-15  # of a system's trace: what rounding may hide, added to its diagonal


@inner
def _factorise(packed, k, penalty):
    """Replace the packed lower triangle by its Cholesky factor, with reciprocal pivots, after adding `penalty`."""
    trace = 0.0
    for a in range(k):
        trace += packed[a * (a + 1) // 2 + a]
    for a in range(k):
        own = a * (a + 1) // 2
        packed[own + a] += penalty[a] + _SINGULAR * trace
        for b in range(a + 1):
            other = b * (b + 1) // 2
            total = packed[own + b]
            for c in range(b):
                total -= packed[own + c] * packed[other + c]
            if b < a:
                packed[own + b] = total * packed[other + b]
            else:
                packed[own + a] = 1.0 / np.sqrt(total) if total > 0.0 else 0.0


@inner
def _solve(packed, k, x):
    """Solve in place with a factor made by :func:`_factorise`."""
    own = 0
    for a in range(k):
        total = x[a]
        for b in range(a):
            total -= packed[own + b] * x[b]
        x[a] = total * packed[own + a]
        own += a + 1
    for a in range(k - 1, -1, -1):
        own -= a + 1
        solved = x[a] * packed[own + a]
        x[a] = solved
        for b in range(a):
            x[b] -= solved * packed[own + b]


@inner
def _add_outer(packed, k, v):
    own = 0
    for a in range(k):
        weight = v[a]
        for b in range(a + 1):
            packed[own + b] += weight * v[b]
        own += a + 1


@parallel_kernel
def factor_rows(bounds, indptr, indices, basis, penalty, out):
    """Write the Cholesky factors of M_i = V_JᵀV_J + diag(penalty), J the observed columns of row i.

    Parameters
    ----------
    bounds : (n_tasks + 1,) int64
    indptr, indices
        The entries by row.
    basis : (n_cols, k) float64
        V.
    penalty : (k,) float64
    out : (n_rows, k (k + 1) / 2) float64, written; a task owns its rows
        Lower triangles by rows, with reciprocal pivots.
    """
    k = penalty.size
    for task in prange(bounds.size - 1):
        for i in range(bounds[task], bounds[task + 1]):
            packed = out[i]
            for c in range(packed.size):
                packed[c] = 0.0
            for t in range(indptr[i], indptr[i + 1]):
                _add_outer(packed, k, basis[indices[t]])
            _factorise(packed, k, penalty)


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
def factor_columns(stripes, indptr, indices, left, penalty, out):
    """Write the Cholesky factors of C_j = Σ_i u_i u_iᵀ + diag(penalty) over the observed rows i of column j.

    Parameters
    ----------
    stripes : (n_stripes + 1,) int64
        Columns of each task.
    indptr, indices
        The entries by row, columns ascending within each.
    left : (n_rows, k) float64
        U.
    penalty : (k,) float64
    out : (n_cols, k (k + 1) / 2) float64, written; a task owns its columns
    """
    k = penalty.size
    for stripe in prange(stripes.size - 1):
        first, last = stripes[stripe], stripes[stripe + 1]
        for j in range(first, last):
            for c in range(out.shape[1]):
                out[j, c] = 0.0
        for i in range(indptr.size - 1):
            stop = indptr[i + 1]
            t = _first_at_least(indices, indptr[i], stop, first)
            while t < stop and indices[t] < last:
                _add_outer(out[indices[t]], k, left[i])
                t += 1
        for j in range(first, last):
            _factorise(out[j], k, penalty)


@parallel_kernel
def eliminated_sweep(
    tiles, n_parts, indptr, indices, values, left, basis, coefficients, factors, out_rows, out_misfit, out_parts
):
    """Eliminate B and write the gradient's data part in A, row by row.

    For row i: ``z = y − u_i·a_j``, ``b_i = M_i⁻¹ Σ z v_j``, ``r = z − b_i·v_j``, ``out_j += r u_i``.

    Parameters
    ----------
    tiles : (n_tiles + 1,) int64
        Rows of each tile; part p owns tiles p, p + n_parts, ...
    n_parts : int
    indptr, indices
        The entries by row.
    values : (n_entries,) or (0,) float32 or float64
        y; empty stands for zeros.
    left, basis, coefficients : (n_rows, k), (n_cols, k), (n_cols, k) float64
        U, V and A.
    factors
        From :func:`factor_rows`.
    out_rows : (n_rows, k) or (0, k) float64, written unless empty
        B.
    out_misfit : (n_rows,) or (0,) float64, written unless empty
        Sum of r² over each row.
    out_parts : (n_parts, n_cols, k) float64, written; a task owns its part
    """
    k = left.shape[1]
    has_values, keeps = values.size > 0, out_misfit.size > 0
    for part in prange(n_parts):
        target = out_parts[part]
        for j in range(target.shape[0]):
            for a in range(k):
                target[j, a] = 0.0
        longest = 0
        for tile in range(part, tiles.size - 1, n_parts):
            for i in range(tiles[tile], tiles[tile + 1]):
                longest = max(longest, indptr[i + 1] - indptr[i])
        residual = np.empty(longest)
        row = np.empty(k)
        for tile in range(part, tiles.size - 1, n_parts):
            for i in range(tiles[tile], tiles[tile + 1]):
                u = left[i]
                start = indptr[i]
                n = indptr[i + 1] - start
                for a in range(k):
                    row[a] = 0.0
                for t in range(n):
                    j = indices[start + t]
                    source, features = coefficients[j], basis[j]
                    total = 0.0
                    for a in range(k):
                        total -= u[a] * source[a]
                    if has_values:
                        total += np.float64(values[start + t])
                    residual[t] = total
                    for a in range(k):
                        row[a] += total * features[a]
                _solve(factors[i], k, row)
                misfit = 0.0
                for t in range(n):
                    j = indices[start + t]
                    sink, features = target[j], basis[j]
                    total = residual[t]
                    for a in range(k):
                        total -= row[a] * features[a]
                    misfit += total * total
                    for a in range(k):
                        sink[a] += total * u[a]
                if keeps:
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
                weight = basis[j, b]
                for a in range(k):
                    target[b, a] += weight * coefficients[j, a]


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
                weight = basis[j, b]
                for a in range(k):
                    inside[a] -= weight * core[b, a]
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
        for j in range(stripes[stripe], stripes[stripe + 1]):
            target = preconditioned[j]
            for a in range(k):
                solution[j, a] += step * direction[j, a]
                residual[j, a] -= step * image[j, a]
                target[a] = residual[j, a]
            _solve(factors[j], k, target)
            for a in range(k):
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
def gradient(
    tiles,
    n_parts,
    stripes,
    indptr,
    indices,
    values,
    left,
    basis,
    coefficients,
    row_factors,
    penalty,
    hidden,
    parts,
    out_rows,
    out_misfit,
    out,
):
    """Write B, the misfits and minus the gradient in A: what :func:`conjugate_gradients` takes as right-hand side.

    Parameters
    ----------
    hidden : (k,) float64
        Share of each row of VᵀA that the penalty does not see, 1 − (ε/σ)^(2α).
    parts : (n_parts, n_cols, k) float64
        Workspace.
    out_rows, out_misfit : (n_rows, k) and (n_rows,) float64, written
    out : (n_cols, k) float64, written
    """
    n_stripes, k = stripes.size - 1, penalty.size
    projections, core, dots = np.empty((n_stripes, k, k)), np.empty((k, k)), np.empty(n_stripes)
    eliminated_sweep(
        tiles, n_parts, indptr, indices, values, left, basis, coefficients, row_factors, out_rows, out_misfit, parts
    )
    project_columns(stripes, basis, coefficients, projections)
    _core(projections, hidden, core)
    combine_parts(stripes, parts, 1.0, basis, coefficients, core, -penalty, out, dots)


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
):
    """Run conjugate gradients on the Schur complement until the tolerance or the step limit of this call.

    Parameters
    ----------
    state : (5,) float64, updated
        Steps done, steps allowed, relative tolerance, ⟨r, z⟩ now and at the start. A call with a larger allowance goes
        on where the last one stopped; zero steps done starts from `residual`, the right-hand side.
    solution, residual, direction, preconditioned, image : (n_cols, k) float64, updated
        `residual` holds the right-hand side at the start.

    Notes
    -----
    Preconditioner: the k x k blocks C_j. Tolerance on sqrt(⟨r, C⁻¹ r⟩), relative to the start.
    """
    n_stripes, k = stripes.size - 1, penalty.size
    projections, core, dots = np.empty((n_stripes, k, k)), np.empty((k, k)), np.empty(n_stripes)
    no_values, no_rows, no_misfit = np.empty(0), np.empty((0, k)), np.empty(0)
    if state[0] == 0.0:
        for j in range(solution.shape[0]):
            for a in range(k):
                solution[j, a] = direction[j, a] = image[j, a] = 0.0
        _advance(stripes, 0.0, direction, image, column_factors, solution, residual, preconditioned, dots)
        state[3] = state[4] = _in_order(dots)
        _turn(stripes, 0.0, preconditioned, direction)
    while state[0] < state[1] and state[3] > state[2] * state[2] * state[4]:
        eliminated_sweep(
            tiles, n_parts, indptr, indices, no_values, left, basis, direction, row_factors, no_rows, no_misfit, parts
        )
        project_columns(stripes, basis, direction, projections)
        _core(projections, hidden, core)
        combine_parts(stripes, parts, -1.0, basis, direction, core, penalty, image, dots)
        curvature = _in_order(dots)
        if not curvature > 0.0:
            break  # nothing but rounding left in this direction
        _advance(
            stripes, state[3] / curvature, direction, image, column_factors, solution, residual, preconditioned, dots
        )
        squared = _in_order(dots)
        _turn(stripes, squared / state[3], preconditioned, direction)
        state[3] = squared
        state[0] += 1.0


@inner
def _residual(t, indices, values, u, b, coefficients, basis):
    """Return y − u·a_j − b·v_j for entry t."""
    source, features = coefficients[indices[t]], basis[indices[t]]
    total = np.float64(values[t])
    for a in range(u.size):
        total -= u[a] * source[a] + b[a] * features[a]
    return total


@parallel_kernel
def multiply_residual(bounds, indptr, indices, values, left, rows, coefficients, basis, vectors, out):
    """Write R·W, R the residual y − U Aᵀ − B Vᵀ on the observed entries, never stored.

    Parameters
    ----------
    bounds : (n_tasks + 1,) int64
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
    for task in prange(bounds.size - 1):
        for i in range(bounds[task], bounds[task + 1]):
            target = out[i]
            for c in range(width):
                target[c] = 0.0
            for t in range(indptr[i], indptr[i + 1]):
                weight = _residual(t, indices, values, left[i], rows[i], coefficients, basis)
                source = vectors[indices[t]]
                for c in range(width):
                    target[c] += weight * source[c]


@parallel_kernel
def multiply_residual_transposed(stripes, indptr, indices, values, left, rows, coefficients, basis, vectors, out):
    """Write Rᵀ·Q for the residual of :func:`multiply_residual`.

    Parameters
    ----------
    stripes : (n_stripes + 1,) int64
        Columns of each task.
    vectors : (n_rows, b) float64
        Q.
    out : (n_cols, b) float64, written; a task owns its columns
    """
    width = vectors.shape[1]
    for stripe in prange(stripes.size - 1):
        first, last = stripes[stripe], stripes[stripe + 1]
        for j in range(first, last):
            for c in range(width):
                out[j, c] = 0.0
        for i in range(indptr.size - 1):
            stop = indptr[i + 1]
            t = _first_at_least(indices, indptr[i], stop, first)
            source = vectors[i]
            while t < stop and indices[t] < last:
                weight = _residual(t, indices, values, left[i], rows[i], coefficients, basis)
                target = out[indices[t]]
                for c in range(width):
                    target[c] += weight * source[c]
                t += 1
