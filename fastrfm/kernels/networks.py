"""Products and updates of gradient descent on deep linear networks, which the baselines train.

A sparse matrix by compressed rows (or, transposed, by compressed columns) times a tall dense one, and the step of a
diagonal network. Flow: ``baselines.deep_linear`` and ``baselines.deep_diagonal`` call them. The masked residual is in
``residual``, products of dense matrices are BLAS's.
"""

from __future__ import annotations

from numba import prange

from fastrfm._numba import parallel_kernel

_COORDINATES_PER_TASK = 4096


@parallel_kernel
def multiply_sparse(bounds, indptr, indices, values, matrix, out):
    """Write the product of a sparse and a dense matrix: row i is Σ_t values_t · matrix[indices_t] over row i's entries.

    Parameters
    ----------
    bounds : (n_tasks + 1,) int64
        Rows of each task.
    indptr : (n_rows + 1,) int64
    indices : (n_entries,) int32 or int64
    values : (n_entries,) float32 or float64
    matrix : (n_cols, k), of the dtype of `values`
    out : (n_rows, k), of that dtype, written; a task owns its rows
    """
    zero = matrix.dtype.type(0)
    for task in prange(bounds.size - 1):
        for i in range(bounds[task], bounds[task + 1]):
            target = out[i]
            for a in range(target.size):
                target[a] = zero
            for t in range(indptr[i], indptr[i + 1]):
                value, source = values[t], matrix[indices[t]]
                for a in range(target.size):
                    target[a] += value * source[a]


@parallel_kernel
def step_coordinates(gradient, step, depth, positive, negative, out):
    """Move the weights of a diagonal network down the gradient, and write its coefficients u^depth − v^depth.

    u ← u − step · depth · u^(depth−1) · g and v ← v + step · depth · v^(depth−1) · g, coordinate by coordinate.

    Parameters
    ----------
    gradient : (n_features,) float64
        g, with respect to the coefficients.
    step : float
    depth : int
    positive, negative : (n_features,) float64
        u and v, updated.
    out : (n_features,) float64, written; a task owns 4096 consecutive coordinates
    """
    n = gradient.size
    rate = step * depth
    for task in prange((n + _COORDINATES_PER_TASK - 1) // _COORDINATES_PER_TASK):
        for j in range(task * _COORDINATES_PER_TASK, min((task + 1) * _COORDINATES_PER_TASK, n)):
            u, v = positive[j], negative[j]
            u_power, v_power = 1.0, 1.0
            for _ in range(depth - 1):
                u_power *= u
                v_power *= v
            u -= rate * u_power * gradient[j]
            v += rate * v_power * gradient[j]
            u_power, v_power = u, v
            for _ in range(depth - 1):
                u_power *= u
                v_power *= v
            positive[j], negative[j], out[j] = u, v, u_power - v_power
