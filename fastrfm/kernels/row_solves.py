"""Row solves: the linear regression of lin-RFM, one small positive definite system per row of the matrix.

Dense form, ``(K[J,J] + ridge I) a = y`` (``solve_dual_rows``), then ``x = a K[J,:]`` (``expand_rows``); factored form,
a ridge regression on the low-rank features (``solve_factored_rows``). Small systems go to a register-tiled Cholesky
factorisation, long dense rows to conjugate gradients. Everything a kernel calls lives in this file, because Numba's
disk cache does not notice an edited callee elsewhere. No BLAS here: it would start threads of its own.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from fastrfm._numba import inner, parallel_kernel

_PANEL = 32  # rows of the factor that stay in cache while all earlier rows stream past once
_EXPAND_WIDTH = 64  # columns of K in a panel: 2 MB at 4000 columns, the size of a second-level cache
_ROWS_PER_TASK = 1024
CG_BUDGET = 16  # n / 16 steps of conjugate gradients cost less than a factorisation from n = 400 on
CG_TOLERANCE = 1e-13  # relative residual; tighter than any tolerance a solver asks for
PIVOT_FLOOR = 1e-16  # of the diagonal before elimination: what is left of a pivot below it is rounding


def pivot_scale(pivot, floor, one):
    """Return 1 / sqrt(pivot), or 0 where the pivot is left out; `one` says in which precision."""
    return one / math.sqrt(pivot) if pivot > floor else one - one


def damped_weight(weight, theta):
    """Return 1 - theta + theta w: what an entry's weight and the square of its residual are divided by."""
    return 1.0 - theta + theta * weight


def conjugate_gradient_steps(largest, least, tolerance):
    """Bound the steps that conjugate gradients need where eigenvalues lie between `least` and `largest`."""
    return 0.5 * math.sqrt(largest / least) * math.log(2.0 / tolerance)


_pivot_scale, _damped_weight, _steps = inner(pivot_scale), inner(damped_weight), inner(conjugate_gradient_steps)


@inner
def _cholesky_solve(matrix, n, rhs, reciprocal):
    """Solve matrix[:n, :n] x = rhs[:n] in place; only the lower triangle is read, and overwritten by the factor.

    A pivot that rounding made non-positive is left out (its coordinate becomes zero): near convergence the systems
    are singular to working precision and consistent, and any solution serves. `reciprocal` is (n,) workspace.
    """
    for p in range(0, n, _PANEL):
        q = min(p + _PANEL, n)
        _columns_left_of_panel(matrix, p, q, reciprocal)
        for j in range(p, q):
            pivot = matrix[j, j]
            floor = PIVOT_FLOOR * pivot
            for k in range(j):
                pivot -= matrix[j, k] * matrix[j, k]
            reciprocal[j] = _pivot_scale(pivot, floor, 1.0)
            _column_below(matrix, j, q, reciprocal[j])
    for i in range(n):
        total = rhs[i]
        for k in range(i):
            total -= matrix[i, k] * rhs[k]
        rhs[i] = total * reciprocal[i]
    for i in range(n - 1, -1, -1):
        solved = rhs[i] * reciprocal[i]
        rhs[i] = solved
        for k in range(i):
            rhs[k] -= matrix[i, k] * solved


@inner
def _columns_left_of_panel(matrix, p, q, reciprocal):
    # Tiles of 4 rows x 2 columns: six loads feed eight multiply-adds. p is a multiple of the (even) panel height.
    for j in range(0, p, 2):
        link = matrix[j + 1, j]
        first, second = reciprocal[j], reciprocal[j + 1]
        i = p
        while i + 4 <= q:
            s00 = s01 = s10 = s11 = s20 = s21 = s30 = s31 = 0.0
            for k in range(j):
                u, v = matrix[j, k], matrix[j + 1, k]
                a, b, c, d = matrix[i, k], matrix[i + 1, k], matrix[i + 2, k], matrix[i + 3, k]
                s00 += a * u
                s01 += a * v
                s10 += b * u
                s11 += b * v
                s20 += c * u
                s21 += c * v
                s30 += d * u
                s31 += d * v
            a, b = (matrix[i, j] - s00) * first, (matrix[i + 1, j] - s10) * first
            c, d = (matrix[i + 2, j] - s20) * first, (matrix[i + 3, j] - s30) * first
            matrix[i, j], matrix[i, j + 1] = a, (matrix[i, j + 1] - s01 - a * link) * second
            matrix[i + 1, j], matrix[i + 1, j + 1] = b, (matrix[i + 1, j + 1] - s11 - b * link) * second
            matrix[i + 2, j], matrix[i + 2, j + 1] = c, (matrix[i + 2, j + 1] - s21 - c * link) * second
            matrix[i + 3, j], matrix[i + 3, j + 1] = d, (matrix[i + 3, j + 1] - s31 - d * link) * second
            i += 4
        while i < q:
            s00 = s01 = 0.0
            for k in range(j):
                s00 += matrix[i, k] * matrix[j, k]
                s01 += matrix[i, k] * matrix[j + 1, k]
            a = (matrix[i, j] - s00) * first
            matrix[i, j], matrix[i, j + 1] = a, (matrix[i, j + 1] - s01 - a * link) * second
            i += 1


@inner
def _column_below(matrix, j, q, scale):
    i = j + 1
    while i + 4 <= q:
        s0 = s1 = s2 = s3 = 0.0
        for k in range(j):
            u = matrix[j, k]
            s0 += matrix[i, k] * u
            s1 += matrix[i + 1, k] * u
            s2 += matrix[i + 2, k] * u
            s3 += matrix[i + 3, k] * u
        matrix[i, j] = (matrix[i, j] - s0) * scale
        matrix[i + 1, j] = (matrix[i + 1, j] - s1) * scale
        matrix[i + 2, j] = (matrix[i + 2, j] - s2) * scale
        matrix[i + 3, j] = (matrix[i + 3, j] - s3) * scale
        i += 4
    while i < q:
        s0 = 0.0
        for k in range(j):
            s0 += matrix[i, k] * matrix[j, k]
        matrix[i, j] = (matrix[i, j] - s0) * scale
        i += 1


@inner
def _conjugate_gradient_steps(matrix, n, ridge):
    """Bound the steps that conjugate gradients need, from the largest row sum over the smallest eigenvalue `ridge`."""
    largest = 0.0
    for a in range(n):
        total = 0.0
        for b in range(n):
            total += abs(matrix[a, b] if b <= a else matrix[b, a])
        largest = max(largest, total)
    return _steps(largest, ridge, CG_TOLERANCE)


@inner
def _conjugate_gradients(matrix, n, rhs, max_steps, work):
    """Solve matrix[:n, :n] x = rhs[:n] from the lower triangle, with a diagonal preconditioner; x replaces rhs.

    Returns True when the relative residual fell below the tolerance within `max_steps`; otherwise rhs is as it was.
    `work` is (4, >= n).
    """
    x, r, p, q = work[0], work[1], work[2], work[3]
    rho = norm = 0.0
    for i in range(n):
        x[i] = 0.0
        r[i] = rhs[i]
        p[i] = rhs[i] / matrix[i, i]
        rho += rhs[i] * p[i]
        norm += rhs[i] * rhs[i]
    goal = CG_TOLERANCE * CG_TOLERANCE * norm
    for _ in range(max_steps):
        if norm <= goal:
            break
        curvature = 0.0
        for i in range(n):  # each entry of the triangle serves its row and its column: half the memory traffic
            row, own = matrix[i], p[i]
            total = row[i] * own
            for k in range(i):
                total += row[k] * p[k]
                q[k] += row[k] * own
            q[i] = total
        for i in range(n):
            curvature += p[i] * q[i]
        if not curvature > 0.0:
            return False
        step = rho / curvature
        rho_next = norm = 0.0
        for i in range(n):
            x[i] += step * p[i]
            r[i] -= step * q[i]
            norm += r[i] * r[i]
            rho_next += r[i] * r[i] / matrix[i, i]
        keep = rho_next / rho
        rho = rho_next
        for i in range(n):
            p[i] = r[i] / matrix[i, i] + keep * p[i]
    if norm > goal:
        return False
    for i in range(n):
        rhs[i] = x[i]
    return True


@inner
def _gather_system(feature_gram, columns, ridge, matrix):
    """Write the lower triangle of K[J, J] + ridge I into the corner of `matrix`."""
    for a in range(columns.size):
        source = feature_gram[columns[a]]
        for b in range(a + 1):
            matrix[a, b] = source[columns[b]]
        matrix[a, a] += ridge


@parallel_kernel
def solve_dual_rows(bounds, indptr, indices, values, weights, feature_gram, ridge, cg_from, out):
    """Solve (K[J,J] + ridge diag(1/w)) a = y for every row of a block, J its observed columns.

    Parameters
    ----------
    bounds : (n_tasks + 1,) int64
    indptr, indices, values, weights
        The block by row; values float32 or float64; weights float64, empty where all are one.
    feature_gram : (n_cols, n_cols) float64
        K, symmetric.
    ridge : float
        In the unit of K.
    cg_from : int
        Rows with at least this many entries go to conjugate gradients where `ridge` bounds the condition number so
        well that the steps cost less than a factorisation; all others, and any that fail, are factorised.
    out : (n_entries,) float64, written; a task owns the entries of its rows

    Notes
    -----
    Memory: 8 n² bytes per running task, n the longest of its rows.
    """
    for task in prange(bounds.size - 1):
        longest = 0
        for i in range(bounds[task], bounds[task + 1]):
            longest = max(longest, indptr[i + 1] - indptr[i])
        matrix = np.empty((longest, longest))
        reciprocal = np.empty(longest)
        work = np.empty((4, longest))
        for i in range(bounds[task], bounds[task + 1]):
            start = indptr[i]
            n = indptr[i + 1] - start
            rhs = out[start : start + n]
            for a in range(n):
                rhs[a] = values[start + a]
            least = ridge
            # What is added later must not pass through a sum with the ridge: where weights are large it is small.
            _gather_system(feature_gram, indices[start : start + n], 0.0 if weights.size else ridge, matrix)
            if weights.size and n:
                heaviest = 0.0
                for a in range(n):
                    matrix[a, a] += ridge / weights[start + a]
                    heaviest = max(heaviest, weights[start + a])
                least = ridge / heaviest
            solved = False
            if n >= cg_from and ridge > 0.0 and _conjugate_gradient_steps(matrix, n, least) < n // CG_BUDGET:
                solved = _conjugate_gradients(matrix, n, rhs, n // CG_BUDGET, work)
            if not solved:
                _cholesky_solve(matrix, n, rhs, reciprocal)


@parallel_kernel
def expand_rows(indptr, indices, duals, feature_gram, out):
    """Write the rows x_i = sum over J of a_j K[j, :] of the estimate.

    Parameters
    ----------
    indptr, indices
        The slab by row.
    duals : (n_entries,) float64
        a, from :func:`solve_dual_rows`.
    feature_gram : (n_cols, n_cols) float64
    out : (n_slab_rows, n_cols) float64, written; a task owns a panel of columns

    Notes
    -----
    Each panel of K is copied out once: every row of the slab then reads it from a few contiguous pages in cache,
    not from one page per row of K. Memory: 512 n_cols bytes per running task.
    """
    n_cols = feature_gram.shape[0]
    for number in prange((n_cols + _EXPAND_WIDTH - 1) // _EXPAND_WIDTH):
        left = number * _EXPAND_WIDTH
        width = min(_EXPAND_WIDTH, n_cols - left)
        panel = np.empty((n_cols, _EXPAND_WIDTH))
        for j in range(n_cols):
            for c in range(width):
                panel[j, c] = feature_gram[j, left + c]
            for c in range(width, _EXPAND_WIDTH):
                panel[j, c] = 0.0
        row = np.empty(_EXPAND_WIDTH)
        for i in range(indptr.size - 1):
            for c in range(_EXPAND_WIDTH):
                row[c] = 0.0
            t, stop = indptr[i], indptr[i + 1]
            while t + 8 <= stop:
                j0, j1, j2, j3 = indices[t], indices[t + 1], indices[t + 2], indices[t + 3]
                j4, j5, j6, j7 = indices[t + 4], indices[t + 5], indices[t + 6], indices[t + 7]
                a0, a1, a2, a3 = duals[t], duals[t + 1], duals[t + 2], duals[t + 3]
                a4, a5, a6, a7 = duals[t + 4], duals[t + 5], duals[t + 6], duals[t + 7]
                for c in range(_EXPAND_WIDTH):
                    first = (a0 * panel[j0, c] + a1 * panel[j1, c]) + (a2 * panel[j2, c] + a3 * panel[j3, c])
                    second = (a4 * panel[j4, c] + a5 * panel[j5, c]) + (a6 * panel[j6, c] + a7 * panel[j7, c])
                    row[c] += first + second
                t += 8
            while t < stop:
                j0, a0 = indices[t], duals[t]
                for c in range(_EXPAND_WIDTH):
                    row[c] += a0 * panel[j0, c]
                t += 1
            for c in range(width):
                out[i, left + c] = row[c]


@inner
def _gram_tile(gathered, n_padded, k, gram):
    """Write the lower triangle of gathered[:k] @ gathered[:k].T: dot products over contiguous memory, 4 x 2 a tile."""
    a = 0
    while a + 4 <= k:
        for b in range(0, a + 4, 2):
            s00 = s01 = s10 = s11 = s20 = s21 = s30 = s31 = 0.0
            for t in range(n_padded):
                u, v = gathered[b, t], gathered[b + 1, t]
                w, x, y, z = gathered[a, t], gathered[a + 1, t], gathered[a + 2, t], gathered[a + 3, t]
                s00 += w * u
                s01 += w * v
                s10 += x * u
                s11 += x * v
                s20 += y * u
                s21 += y * v
                s30 += z * u
                s31 += z * v
            gram[a, b], gram[a, b + 1] = s00, s01
            gram[a + 1, b], gram[a + 1, b + 1] = s10, s11
            gram[a + 2, b], gram[a + 2, b + 1] = s20, s21
            gram[a + 3, b], gram[a + 3, b + 1] = s30, s31
        a += 4
    while a < k:
        for b in range(a + 1):
            s00 = 0.0
            for t in range(n_padded):
                s00 += gathered[a, t] * gathered[b, t]
            gram[a, b] = s00
        a += 1


@inner
def _regress_long_row(gathered, n_padded, penalty, system, reciprocal, residual, solution):
    """Solve the k x k normal equations; `residual` holds y and leaves as y - V c."""
    k = penalty.size
    _gram_tile(gathered, n_padded, k, system)
    for a in range(k):
        system[a, a] += penalty[a]
        total = 0.0
        for t in range(n_padded):
            total += gathered[a, t] * residual[t]
        solution[a] = total
    _cholesky_solve(system, k, solution, reciprocal)
    for a in range(k):
        for t in range(n_padded):
            residual[t] -= solution[a] * gathered[a, t]


@inner
def _regress_short_row(gathered, n, penalty, scaled, n_scaled, system, reciprocal, residual):
    """Solve the n x n dual system (V diag(1/penalty) Vᵀ + I) r = y; `residual` holds y and leaves as r = y - V c.

    With fewer entries than directions this is smaller, and it stays well posed where the normal equations lean on
    penalties that fade to nothing.
    """
    for a in range(penalty.size):
        weight = 1.0 / np.sqrt(penalty[a])
        for t in range(n):
            scaled[t, a] = gathered[a, t] * weight
    _gram_tile(scaled, n_scaled, n, system)
    for t in range(n):
        system[t, t] += 1.0
    _cholesky_solve(system, n, residual, reciprocal)


@parallel_kernel
def solve_factored_rows(
    bounds, indptr, indices, values, weights, basis, penalty, theta, out_coefficients, out_projection, out_misfit
):
    """Ridge-regress every row of a block on the leading directions, and project the resulting estimate.

    For row i with V = basis[J, :k]: ``(VᵀV + diag(penalty)) c = Vᵀ y``, ``r = y - V c``, and the row of X·basis,
    ``[c, 0] + theta rᵀ basis[J]``. With weights w every product over the entries has
    Ω = diag(w / (1 - theta + theta w)) in its middle: V and y are scaled by the roots of Ω.

    Parameters
    ----------
    bounds, indptr, indices, values, weights
        Tasks and the block by row; values float32 or float64; weights float64, empty where all are one.
    basis : (n_cols, b) float64
        Orthonormal columns, b >= k.
    penalty : (k,) float64
        (λ + δ) / d per direction, above 0.
    theta : float
        δ / (λ + δ): the share of the residual that the estimate keeps.
    out_coefficients : (n_block_rows, k) float64, written
    out_projection : (n_block_rows, b) float64, written
    out_misfit : (n_block_rows,) float64, written
        Sum of r² over the row; with weights that of w (r / (1 - theta + theta w))², which is w times the estimate's
        misfit over 1 - theta, squared. A task owns its rows of all three outputs.

    Notes
    -----
    Memory: about 8 b n bytes per running task, n the longest of its rows. A row with fewer entries than directions is
    solved in its dual form.
    """
    n_basis = basis.shape[1]
    k = penalty.size
    is_weighted = weights.size > 0
    for task in prange(bounds.size - 1):
        longest = 0
        for i in range(bounds[task], bounds[task + 1]):
            longest = max(longest, indptr[i + 1] - indptr[i])
        gathered = np.empty((n_basis, longest + 8))
        residual = np.empty(longest + 8)
        n_scaled = (k + 7) // 8 * 8
        scaled = np.zeros((min(longest, k), n_scaled))
        system = np.empty((k, k))
        reciprocal = np.empty(k)
        for i in range(bounds[task], bounds[task + 1]):
            start = indptr[i]
            n = indptr[i + 1] - start
            n_padded = (n + 7) // 8 * 8  # whole vectors: the inner loops need no remainder
            for t in range(n):
                source = basis[indices[start + t]]
                residual[t] = values[start + t]
                for a in range(n_basis):
                    gathered[a, t] = source[a]
            if is_weighted:  # by itself: a factor in the loop above costs a tenth of the whole
                for t in range(n):
                    weight = weights[start + t]
                    scale = np.sqrt(weight / _damped_weight(weight, theta))
                    residual[t] *= scale
                    for a in range(n_basis):
                        gathered[a, t] *= scale
            for t in range(n, n_padded):
                residual[t] = 0.0
                for a in range(n_basis):
                    gathered[a, t] = 0.0
            solution = out_coefficients[i]
            if n < k:
                _regress_short_row(gathered, n, penalty, scaled, n_scaled, system, reciprocal, residual)
                for a in range(k):
                    total = 0.0
                    for t in range(n_padded):
                        total += gathered[a, t] * residual[t]
                    solution[a] = total / penalty[a]
            else:
                _regress_long_row(gathered, n_padded, penalty, system, reciprocal, residual, solution)
            for a in range(n_basis):
                total = 0.0
                for t in range(n_padded):
                    total += gathered[a, t] * residual[t]
                out_projection[i, a] = theta * total
            if is_weighted:  # before the sum: inside it compiled and loaded code round it differently
                for t in range(n):
                    residual[t] /= np.sqrt(_damped_weight(weights[start + t], theta))
            misfit = 0.0
            for t in range(n_padded):
                misfit += residual[t] * residual[t]
            out_misfit[i] = misfit
            for a in range(k):
                out_projection[i, a] += solution[a]


@parallel_kernel
def replace_rows(solved, overlap, coefficients, out_moved):
    """Put newly solved coefficients in the place of the old ones, and say how far each row moved.

    Row i moved by ‖c_i − overlap c'_i‖² within the span of the new basis, c' the old coefficients.

    Parameters
    ----------
    solved : (n_block_rows, k) float64
    overlap : (k, k_old) float64
        The new basis transposed times the old one.
    coefficients : (n_block_rows, >= k and >= k_old) float64
        The old ones; overwritten by the new ones and, beyond k, zeros.
    out_moved : (n_block_rows,) float64, written; a task owns 1024 consecutive rows
    """
    n_rows, k = solved.shape
    n_old = overlap.shape[1]
    for task in prange((n_rows + _ROWS_PER_TASK - 1) // _ROWS_PER_TASK):
        for i in range(task * _ROWS_PER_TASK, min((task + 1) * _ROWS_PER_TASK, n_rows)):
            kept = coefficients[i]
            square = 0.0
            for a in range(k):
                step = solved[i, a]
                for b in range(n_old):
                    step -= overlap[a, b] * kept[b]
                square += step * step
            out_moved[i] = square
            for a in range(k):
                kept[a] = solved[i, a]
            for a in range(k, kept.size):
                kept[a] = 0.0
