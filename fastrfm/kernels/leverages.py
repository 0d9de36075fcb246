"""Leverages of ridge regressions: how much of the noise of a group's entries an estimate in that group takes over.

A group is a row (features: right vectors) or a column (features: left vectors) with observed positions J. With
A = F_JᵀF_J + diag(penalty) the leverage of position j is f_jᵀ A⁻¹ f_j, and the regression uses tr(A⁻¹ F_JᵀF_J)
degrees of freedom. Used by ``uncertainty``. Everything the kernel calls lives in this file. No BLAS here.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from fastrfm._numba import inner, parallel_kernel

_LEAST_PIVOT = 1e-11  # of its diagonal element; below it a direction is not determined by the entries


@inner
def _penalised_gram(indices, weights, features, penalty, system):
    """Write the lower triangle of F_JᵀF_J + diag(penalty), J = `indices`; with weights F_Jᵀ diag(w) F_J."""
    k = penalty.size
    for a in range(k):
        for b in range(a):
            system[a, b] = 0.0
        system[a, a] = penalty[a]
    for t in range(indices.size):
        source = features[indices[t]]
        own = weights[t] if weights.size else 1.0
        for a in range(k):
            scaled = own * source[a]
            for b in range(a + 1):
                system[a, b] += scaled * source[b]


@inner
def _factorise(system, reciprocal):
    """Replace the lower triangle by its Cholesky factor; False where some direction is not determined."""
    k = reciprocal.size
    for j in range(k):
        pivot = system[j, j]
        floor = _LEAST_PIVOT * pivot
        for c in range(j):
            pivot -= system[j, c] * system[j, c]
        if not pivot > floor:
            return False
        reciprocal[j] = 1.0 / np.sqrt(pivot)
        for i in range(j + 1, k):
            total = system[i, j]
            for c in range(j):
                total -= system[i, c] * system[j, c]
            system[i, j] = total * reciprocal[j]
    return True


@inner
def _solved_square(system, reciprocal, first, work):
    """Return ‖L⁻¹ w‖², w = `work`, which is overwritten; w is zero before `first`."""
    square = 0.0
    for a in range(first, reciprocal.size):
        total = work[a]
        for b in range(first, a):
            total -= system[a, b] * work[b]
        total *= reciprocal[a]
        work[a] = total
        square += total * total
    return square


@parallel_kernel
def group_leverages(
    bounds, groups, indptr, indices, weights, features, penalty, wanted_ends, wanted, out_leverages, out_freedom
):
    """Write the leverages of wanted positions, group by group, and the degrees of freedom that each group uses.

    Parameters
    ----------
    bounds : (n_tasks + 1,) int64
        Elements of `groups` of each task.
    groups : (n_groups,) int64
        Which groups of the block.
    indptr, indices, weights
        The block by group; weights float64, empty where all are one.
    features : (n_positions, k) float64
    penalty : (k,) float64
        At least 0.
    wanted_ends : (n_groups + 1,) int64
        Group g wants positions ``wanted[wanted_ends[g]:wanted_ends[g + 1]]``.
    wanted : (n_wanted,) int64
    out_leverages : (n_wanted,) float64, written
        Infinite where penalty and entries leave some direction of a group open.
    out_freedom : (n_groups,) float64, written; a task owns its groups of both outputs

    Notes
    -----
    tr(A⁻¹ F_JᵀF_J) = k − Σ penalty_a (A⁻¹)_aa. Memory: 8 k² bytes per running task.
    """
    k = penalty.size
    for task in prange(bounds.size - 1):
        system = np.empty((k, k))
        reciprocal = np.empty(k)
        work = np.empty(k)
        for g in range(bounds[task], bounds[task + 1]):
            group = groups[g]
            n = indptr[group + 1] - indptr[group]
            first, last = indptr[group], indptr[group + 1]
            own_weights = weights[first:last] if weights.size else weights
            _penalised_gram(indices[first:last], own_weights, features, penalty, system)
            is_determined = _factorise(system, reciprocal)
            freedom = float(k)
            if is_determined:
                for a in range(k):
                    if penalty[a] > 0.0:
                        for b in range(a, k):
                            work[b] = 0.0
                        work[a] = 1.0
                        freedom -= penalty[a] * _solved_square(system, reciprocal, a, work)
            out_freedom[g] = min(max(freedom, 0.0), float(n))
            for q in range(wanted_ends[g], wanted_ends[g + 1]):
                if is_determined:
                    for a in range(k):
                        work[a] = features[wanted[q], a]
                    out_leverages[q] = _solved_square(system, reciprocal, 0, work)
                else:
                    out_leverages[q] = np.inf
