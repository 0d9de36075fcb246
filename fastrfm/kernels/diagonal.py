"""Products of sparse linear regression on compressed rows: A x, A K Aᵀ v, and conjugate gradients with the latter.

A is given twice, by rows (CSR) and by columns (CSC, which are the rows of Aᵀ), so that each sweep owns what it writes:
any number of threads gives the same bits. K is diagonal. Centring by weighted means is a rank-one correction,
A − s mᵀ with s the square roots of the sample weights; A's stored rows are already multiplied by s.
Not here: dense designs (BLAS does those) and who chooses K (``solvers.sparse_direct``).
"""

from __future__ import annotations

import numpy as np
from numba import prange

from fastrfm._numba import inner, parallel_kernel


@parallel_kernel
def multiply_rows(indptr, indices, values, vector, out):
    """Write A v: row i of `out` is Σ_t values_t v[indices_t] over the row's entries.

    Parameters
    ----------
    indptr : (n_rows + 1,) int64
    indices : (n_entries,) int32
    values : (n_entries,) float64
    vector : (n_cols,) float64
    out : (n_rows,) float64, overwritten; a thread owns its rows
    """
    for i in prange(indptr.size - 1):
        total = 0.0
        for t in range(indptr[i], indptr[i + 1]):
            total += values[t] * vector[indices[t]]
        out[i] = total


@parallel_kernel
def add_row_squares(indptr, indices, values, weights, roots, means, out):
    """Add Σ_j weights_j (A_ij − s_i m_j)² to `out`: the diagonal of A K Aᵀ, the preconditioner.

    Parameters
    ----------
    indptr, indices, values
        A by rows, as in :func:`multiply_rows`.
    weights, means : (n_cols,) float64
    roots : (n_rows,) float64
    out : (n_rows,) float64, added to; a thread owns its rows
    """
    plain = 0.0
    for j in range(weights.size):
        plain += weights[j] * means[j] * means[j]
    for i in prange(indptr.size - 1):
        total = roots[i] * roots[i] * plain
        for t in range(indptr[i], indptr[i + 1]):
            j, value = indices[t], values[t]
            total += weights[j] * value * (value - 2.0 * roots[i] * means[j])
        out[i] += total


@inner
def _dot(left, right):
    total = 0.0
    for i in range(left.size):
        total += left[i] * right[i]
    return total


@parallel_kernel
def solve_reweighted(
    row_ptr, row_indices, row_values, col_ptr, col_indices, col_values,
    weights, roots, means, ridge, shift, target, diagonal, tol, max_steps, out,
):  # fmt: skip
    """Solve (A K Aᵀ + ridge I + shift s sᵀ) a = y by preconditioned conjugate gradients, from the `out` given.

    Parameters
    ----------
    row_ptr, row_indices, row_values
        A by rows; col_ptr, col_indices, col_values by columns. int64, int32, float64.
    weights : (n_cols,) float64
        The diagonal of K.
    roots, means : (n_rows,) and (n_cols,) float64
        s and m of the centred A − s mᵀ; means are zero where nothing is centred.
    ridge, shift : float
        `shift` > 0 lifts the direction s that centring takes out.
    target, diagonal : (n_rows,) float64
        y and the diagonal of the system.
    tol : float
        Relative residual at which to stop.
    max_steps : int
    out : (n_rows,) float64, the start, then the solution

    Returns
    -------
    steps : int
    error : float
        Relative residual at the end.
    """
    n_rows, n_cols = row_ptr.size - 1, col_ptr.size - 1
    scaled, product = np.zeros(n_cols), np.zeros(n_rows)
    residual, direction, preconditioned = np.zeros(n_rows), out.copy(), np.zeros(n_rows)
    norm = np.sqrt(_dot(target, target))
    energy, steps, error = 0.0, 0, 0.0
    while True:
        along = _dot(roots, direction)
        for j in prange(n_cols):
            total = -means[j] * along
            for t in range(col_ptr[j], col_ptr[j + 1]):
                total += col_values[t] * direction[col_indices[t]]
            scaled[j] = weights[j] * total
        offset = shift * along - _dot(means, scaled)
        for i in prange(n_rows):
            total = ridge * direction[i] + offset * roots[i]
            for t in range(row_ptr[i], row_ptr[i + 1]):
                total += row_values[t] * scaled[row_indices[t]]
            product[i] = total
        if steps == 0:
            for i in range(n_rows):
                residual[i] = target[i] - product[i]
        else:
            size = energy / _dot(direction, product)
            for i in range(n_rows):
                out[i] += size * direction[i]
                residual[i] -= size * product[i]
        error = np.sqrt(_dot(residual, residual))
        if error <= tol * norm or steps >= max_steps:
            break
        for i in range(n_rows):
            preconditioned[i] = residual[i] / diagonal[i]
        before, energy = energy, _dot(residual, preconditioned)
        ratio = energy / before if steps > 0 else 0.0
        for i in range(n_rows):
            direction[i] = preconditioned[i] + ratio * direction[i]
        steps += 1
    return steps, error / max(norm, 1e-300)
