"""Naive numpy twins of everything that fastrfm computes: written for reading, checked in ``test_reference.py``.

Imports nothing from fastrfm. Matrices are dense with a boolean mask of the observed entries; every formula is
section 1, 2, 4 or 5 of the method's notes, row by row and without shortcuts. Symbols: G = XᵀX, K = (G + ε² I)^(2α),
λ the ridge, δ = ε^(4α), p = 2 − 4α. Not here: random problems (``problems``).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

# --- small dense pieces -------------------------------------------------------------------------------------------


Weights = np.ndarray | None  # one for each entry; None or empty where all are one


def cholesky_solve(matrix: np.ndarray, rhs: np.ndarray) -> np.ndarray:
    """Return the solution of a positive definite system, by the textbook loops."""
    n = len(rhs)
    lower = np.zeros((n, n))
    for j in range(n):
        for i in range(j, n):
            total = matrix[i, j] - lower[i, :j] @ lower[j, :j]
            lower[i, j] = np.sqrt(total) if i == j else total / lower[j, j]
    forward = np.zeros(n)
    for i in range(n):
        forward[i] = (rhs[i] - lower[i, :i] @ forward[:i]) / lower[i, i]
    solution = np.zeros(n)
    for i in range(n - 1, -1, -1):
        solution[i] = (forward[i] - lower[i + 1 :, i] @ solution[i + 1 :]) / lower[i, i]
    return solution


def symmetric_power(matrix: np.ndarray, power: float) -> np.ndarray:
    """Return a power of a symmetric positive semidefinite matrix, from its eigenvalues."""
    eigenvalues, vectors = np.linalg.eigh(matrix)
    return vectors @ np.diag(np.maximum(eigenvalues, 0.0) ** power) @ vectors.T


def feature_gram(gram: np.ndarray, agop_power: float, smoothing: float) -> np.ndarray:
    """Return K = (G + ε² I)^(2α)."""
    return symmetric_power(gram + smoothing**2 * np.eye(len(gram)), 2.0 * agop_power)


def published_feature_gram(gram: np.ndarray, agop_power: float, ridge: float, n_rows: int) -> np.ndarray:
    """Return K as the authors' code has it: (G / n_rows)^(2α) + ridge I, to be used with λ = 0."""
    return symmetric_power(gram / n_rows, 2.0 * agop_power) + ridge * np.eye(len(gram))


# --- one-sided iteration, dense -----------------------------------------------------------------------------------


def dense_iteration(
    values: np.ndarray, mask: np.ndarray, kernel_matrix: np.ndarray, ridge: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return X and G = XᵀX after one pass of section 2 over the rows; λ = `ridge`."""
    n_rows, n_cols = mask.shape
    estimate, gram = np.zeros((n_rows, n_cols)), np.zeros((n_cols, n_cols))
    for i in range(n_rows):
        columns = np.flatnonzero(mask[i])
        if columns.size:
            system = kernel_matrix[np.ix_(columns, columns)] + ridge * np.eye(columns.size)
            estimate[i] = np.linalg.solve(system, values[i, columns]) @ kernel_matrix[columns]
        gram += np.outer(estimate[i], estimate[i])
    return estimate, gram


def dense_iterates(
    values: np.ndarray, mask: np.ndarray, agop_power: float, smoothings: list[float], ridge: float
) -> Iterator[np.ndarray]:
    """Yield X after each iteration, one per ε, from X = 0."""
    gram = np.zeros((mask.shape[1], mask.shape[1]))
    for smoothing in smoothings:
        estimate, gram = dense_iteration(values, mask, feature_gram(gram, agop_power, smoothing), ridge)
        yield estimate


def irls_iterates(
    values: np.ndarray, mask: np.ndarray, schatten_p: float, smoothing: float, ridge: float, n_iter: int
) -> Iterator[np.ndarray]:
    """Yield the iterates of IRLS-p from X = 0: no K, but W = (XᵀX + ε² I)^(p/2 − 1) and the optimality conditions.

    Row i minimises ``x W xᵀ`` subject to x = y on its observed entries (λ = 0), or ``½ ‖x − y‖² + λ/2 x W xᵀ``.
    """
    n_rows, n_cols = mask.shape
    estimate = np.zeros((n_rows, n_cols))
    for _ in range(n_iter):
        shifted = estimate.T @ estimate + smoothing**2 * np.eye(n_cols)
        weights = symmetric_power(shifted, schatten_p / 2.0 - 1.0)
        estimate = np.zeros((n_rows, n_cols))
        for i in range(n_rows):
            select = np.eye(n_cols)[mask[i]]
            n = len(select)
            if ridge == 0.0:
                conditions = np.block([[weights, select.T], [select, np.zeros((n, n))]])
                rhs = np.concatenate([np.zeros(n_cols), values[i, mask[i]]])
                estimate[i] = np.linalg.solve(conditions, rhs)[:n_cols]
            else:
                estimate[i] = np.linalg.solve(select.T @ select + ridge * weights, select.T @ values[i, mask[i]])
        yield estimate


def objective(
    estimate: np.ndarray, values: np.ndarray, mask: np.ndarray, agop_power: float, smoothing: float, ridge: float
) -> float:
    """Return F(X) = ½ ‖P_Ω(X − Y)‖² + λ ψ(X), section 1."""
    singular_values = np.linalg.svd(estimate, compute_uv=False)
    schatten_p = 2.0 - 4.0 * agop_power
    if schatten_p == 0.0:
        penalty = 0.5 * float(np.sum(np.log1p((singular_values / smoothing) ** 2)))
    else:
        powers = (singular_values**2 + smoothing**2) ** (schatten_p / 2.0) - smoothing**schatten_p
        penalty = float(np.sum(powers)) / schatten_p
    return 0.5 * float(np.sum((estimate - values)[mask] ** 2)) + ridge * penalty


# --- one-sided iteration, factored --------------------------------------------------------------------------------


def floored_feature_gram(
    singular_values: np.ndarray, vectors: np.ndarray, agop_power: float, smoothing: float, most: int | None = None
) -> np.ndarray:
    """Return K = V diag(d) Vᵀ + δ I with d_j = max(σ_j, ε)^(4α) − δ, the factored form's rule, at most `most` d_j."""
    power = 4.0 * agop_power
    weights = np.maximum(singular_values, smoothing) ** power - smoothing**power
    if most is not None:
        weights[most:] = 0.0
    return vectors @ np.diag(weights) @ vectors.T + smoothing**power * np.eye(len(vectors))


def factored_iteration(
    previous: np.ndarray,
    values: np.ndarray,
    mask: np.ndarray,
    *,
    agop_power: float,
    smoothing: float,
    ridge: float,
    most: int | None = None,
) -> np.ndarray:
    """Return the next X of the factored form from the previous one, with an exact singular value decomposition."""
    _, singular_values, vt = np.linalg.svd(previous, full_matrices=False)
    kernel_matrix = floored_feature_gram(singular_values, vt.T, agop_power, smoothing, most)
    return dense_iteration(values, mask, kernel_matrix, ridge)[0]


def subspace_step(estimate: np.ndarray, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return singular values and right vectors of X as seen after one block step from `basis`: Xᵀ orth(X basis)."""
    directions = np.linalg.qr(estimate @ basis)[0]
    vectors, singular_values, _ = np.linalg.svd(estimate.T @ directions, full_matrices=False)
    return singular_values, vectors


def soft_impute(
    values: np.ndarray, mask: np.ndarray, ridge: float, n_iter: int = 20000, tol: float = 1e-10
) -> np.ndarray:
    """Return the minimiser of ½ ‖P_Ω(X − Y)‖² + λ ‖X‖_* by proximal gradient steps of length one."""
    estimate = np.zeros(mask.shape)
    for _ in range(n_iter):
        left, singular_values, right = np.linalg.svd(np.where(mask, values, estimate), full_matrices=False)
        following = (left * np.maximum(singular_values - ridge, 0.0)) @ right
        change = np.linalg.norm(following - estimate)
        estimate = following
        if change <= tol * max(np.linalg.norm(estimate), 1e-300):
            break
    return estimate


def nuclear_objective(estimate: np.ndarray, values: np.ndarray, mask: np.ndarray, ridge: float) -> float:
    """Return ½ ‖P_Ω(X − Y)‖² + λ ‖X‖_*."""
    nuclear = np.linalg.svd(estimate, compute_uv=False).sum()
    return 0.5 * float(np.sum((estimate - values)[mask] ** 2)) + ridge * float(nuclear)


# --- offsets ------------------------------------------------------------------------------------------------------


def offsets(
    values: np.ndarray, mask: np.ndarray, n_sweeps: int = 100, tol: float = 1e-6
) -> tuple[float, np.ndarray, np.ndarray]:
    """Return mean, row and column offsets by expectation-maximisation, entry by entry."""
    n_rows, n_cols = mask.shape
    entries = [(i, j) for i in range(n_rows) for j in range(n_cols) if mask[i, j]]
    row_members = [[j for j in range(n_cols) if mask[i, j]] for i in range(n_rows)]
    col_members = [[i for i in range(n_rows) if mask[i, j]] for j in range(n_cols)]
    mean = sum(values[e] for e in entries) / len(entries)
    spread = np.sqrt(sum((values[e] - mean) ** 2 for e in entries) / len(entries))
    rows, cols = np.zeros(n_rows), np.zeros(n_cols)
    row_shrinkage = col_shrinkage = 1.0
    last_noise = 0.0
    for _ in range(n_sweeps):
        old_rows, old_cols = rows.copy(), cols.copy()
        for i, members in enumerate(row_members):
            if members:
                rows[i] = sum(values[i, j] - mean - cols[j] for j in members) / (len(members) + row_shrinkage)
        for j, members in enumerate(col_members):
            if members:
                cols[j] = sum(values[i, j] - mean - rows[i] for i in members) / (len(members) + col_shrinkage)
        noise = sum((values[i, j] - mean - rows[i] - cols[j]) ** 2 for i, j in entries) / len(entries)
        for members, shrinkage in ((row_members, row_shrinkage), (col_members, col_shrinkage)):
            carried = sum(len(group) / (len(group) + shrinkage) for group in members if group)
            noise += last_noise * carried / len(entries)
        last_noise = noise
        row_shrinkage = _shrinkage(rows, row_members, noise, row_shrinkage)
        col_shrinkage = _shrinkage(cols, col_members, noise, col_shrinkage)
        for side, members in ((rows, row_members), (cols, col_members)):
            seen = [g for g, group in enumerate(members) if group]
            shift = sum(side[g] for g in seen) / len(seen)
            side[seen] -= shift
            mean += shift
        if max(np.abs(rows - old_rows).max(), np.abs(cols - old_cols).max()) <= tol * spread:
            break
    return float(mean), rows, cols


def _shrinkage(side: np.ndarray, members: list[list[int]], noise: float, before: float) -> float:
    # M step: the variance of an offset is its square plus its posterior variance, averaged over the seen ones.
    seen = [g for g, group in enumerate(members) if group]
    variance = sum(side[g] ** 2 + noise / (len(members[g]) + before) for g in seen) / len(seen)
    return noise / variance if variance > 0.0 else 0.0


# --- uncertainty --------------------------------------------------------------------------------------------------


def leverages_and_freedom(mask: np.ndarray, features: np.ndarray, penalty: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return f_jᵀ (F_JᵀF_J + diag(penalty))⁻¹ f_j for every row and position, and tr(A⁻¹ F_JᵀF_J) per row.

    Where a row's system is singular: infinities, and as many degrees of freedom as the row has entries.
    """
    leverages, freedom = np.full(mask.shape, np.inf), mask.sum(axis=1).astype(np.float64)
    for i in range(len(mask)):
        gram = features[mask[i]].T @ features[mask[i]]
        system = gram + np.diag(penalty)
        if np.linalg.matrix_rank(system) == len(penalty):
            inverse = np.linalg.inv(system)
            leverages[i] = np.einsum("ja,ab,jb->j", features, inverse, features)
            freedom[i] = np.trace(inverse @ gram)
    return leverages, freedom


def standard_errors(
    mask: np.ndarray, residual: np.ndarray, vectors: tuple[np.ndarray, np.ndarray], penalties: tuple[np.ndarray, ...]
) -> tuple[np.ndarray, float]:
    """Return the standard errors of all entries and the noise, from left and right vectors and the penalties on them.

    `residual` is zero where nothing is observed; penalties are those of rows (on right vectors) and of columns.
    """
    of_rows, row_freedom = leverages_and_freedom(mask, vectors[1], penalties[0])
    of_cols, col_freedom = leverages_and_freedom(mask.T, vectors[0], penalties[1])
    twice = row_freedom[mask.any(axis=1)].mean() * col_freedom[mask.any(axis=0)].mean()
    noise = np.sqrt(np.sum(residual**2) / (mask.sum() - row_freedom.sum() - col_freedom.sum() + twice))
    return noise * np.sqrt(of_rows + of_cols.T), float(noise)


# --- kernels ------------------------------------------------------------------------------------------------------


def entries_of(indptr: np.ndarray, indices: np.ndarray, group: int) -> np.ndarray:
    """Return the positions that group `group` of compressed entries owns, as int64."""
    return indices[indptr[group] : indptr[group + 1]].astype(np.int64)


def masked_residual(
    indptr: np.ndarray, indices: np.ndarray, values: np.ndarray, left: np.ndarray, right: np.ndarray
) -> np.ndarray:
    """Return predicted minus observed at every entry."""
    dense = left @ right.T
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    return dense[rows, indices] - values.astype(np.float64)


def add_adjoint_columns(
    indptr: np.ndarray,
    indices: np.ndarray,
    values: np.ndarray,
    coefficients: np.ndarray,
    basis: np.ndarray,
    theta: float,
    directions: np.ndarray,
    out: np.ndarray,
    weights: Weights = None,
) -> np.ndarray:
    """Return `out` plus (θ P_Ω*(y − C Vᵀ))ᵀ U, entries given by column; θ of an entry by its weight."""
    result, shares = out.copy(), entry_shares(values.size, theta, weights)
    k = coefficients.shape[1]
    for j in range(len(indptr) - 1):
        for t in range(indptr[j], indptr[j + 1]):
            i = indices[t]
            residual = float(values[t]) - coefficients[i] @ basis[j, :k]
            result[j] += shares[t] * residual * directions[i]
    return result


def entry_shares(n: int, theta: float, weights: Weights) -> np.ndarray:
    """Return δ / (δ + λ / w) of every entry, θ = δ / (δ + λ)."""
    if weights is None or not weights.size:
        return np.full(n, theta)
    delta, ridge = theta, 1.0 - theta  # only their ratio counts
    return delta / (delta + ridge / weights)


def replace_rows(solved: np.ndarray, overlap: np.ndarray, old: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the new coefficients, zeros up to the width of the old ones, and the squared move of each row."""
    new = np.zeros_like(old)
    new[:, : solved.shape[1]] = solved
    return new, np.sum((solved - old[:, : overlap.shape[1]] @ overlap.T) ** 2, axis=1)


def solve_dual_rows(
    indptr: np.ndarray,
    indices: np.ndarray,
    values: np.ndarray,
    kernel_matrix: np.ndarray,
    ridge: float,
    weights: Weights = None,
) -> np.ndarray:
    """Return a of (K[J, J] + λ diag(1/w)) a = y for every row, concatenated."""
    out = np.zeros(len(values))
    inverse = np.ones(len(values)) if weights is None or not weights.size else 1.0 / weights
    for i in range(len(indptr) - 1):
        columns, span = entries_of(indptr, indices, i), slice(indptr[i], indptr[i + 1])
        system = kernel_matrix[np.ix_(columns, columns)] + ridge * np.diag(inverse[span])
        out[span] = np.linalg.solve(system, values[span].astype(np.float64))
    return out


def expand_rows(indptr: np.ndarray, indices: np.ndarray, duals: np.ndarray, kernel_matrix: np.ndarray) -> np.ndarray:
    """Return the rows x_i = Σ_J a_j K[j, :]."""
    out = np.zeros((len(indptr) - 1, len(kernel_matrix)))
    for i in range(len(out)):
        for t in range(indptr[i], indptr[i + 1]):
            out[i] += duals[t] * kernel_matrix[indices[t]]
    return out


def solve_factored_rows(
    indptr: np.ndarray,
    indices: np.ndarray,
    values: np.ndarray,
    basis: np.ndarray,
    penalty: np.ndarray,
    theta: float,
    weights: Weights = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return C, X·basis and Σ ω² r² / w per row, by the k × k normal equations as a stacked least-squares problem.

    ω is an entry's share of its residual over θ: w over 1 − θ + θ w.
    """
    n_rows, k = len(indptr) - 1, len(penalty)
    coefficients, projection = np.zeros((n_rows, k)), np.zeros((n_rows, basis.shape[1]))
    misfit = np.zeros(n_rows)
    for i in range(n_rows):
        columns, span = entries_of(indptr, indices, i), slice(indptr[i], indptr[i + 1])
        features, observed = basis[columns][:, :k], values[span].astype(np.float64)
        # Rows sqrt(penalty) c = 0 under V c = y: minimises the ridge regression without squaring its condition.
        shares = entry_shares(len(values), theta, weights)[span]
        roots = np.sqrt(shares / theta)
        stacked = np.vstack([roots[:, None] * features, np.diag(np.sqrt(penalty))])
        coefficients[i] = np.linalg.lstsq(stacked, np.concatenate([roots * observed, np.zeros(k)]), rcond=None)[0]
        residual = observed - features @ coefficients[i]
        projection[i, :k] = coefficients[i]
        projection[i] += (shares * residual) @ basis[columns]
        own = np.ones(len(values)) if weights is None or not weights.size else weights
        misfit[i] = np.sum((shares / theta * residual) ** 2 / own[span])
    return coefficients, projection, misfit


# --- two-sided iteration ------------------------------------------------------------------------------------------


def two_sided_covariance(
    left: np.ndarray, singular_values: np.ndarray, right: np.ndarray, agop_power: float, smoothing: float
) -> np.ndarray:
    """Return W⁻¹ = (XXᵀ)^α ⊗ (XᵀX)^α with singular values floored at ε, for X raveled by rows.

    The triplets are those above ε, with square or thin factors; everything orthogonal to them counts as ε.
    """
    floor = smoothing ** (2.0 * agop_power)
    above = np.maximum(singular_values, smoothing) ** (2.0 * agop_power) - floor
    rows = floor * np.eye(len(left)) + left @ np.diag(above) @ left.T
    cols = floor * np.eye(len(right)) + right @ np.diag(above) @ right.T
    return np.kron(rows, cols)


def tangent_covariance(
    left: np.ndarray, singular_values: np.ndarray, right: np.ndarray, agop_power: float, smoothing: float
) -> np.ndarray:
    """Return W⁻¹ = δ I + P_T (D − δ) P_Tᵀ, direction by direction: the same as :func:`two_sided_covariance`."""
    delta, k = smoothing ** (4.0 * agop_power), singular_values.size
    left_full, right_full = np.linalg.qr(left, mode="complete")[0], np.linalg.qr(right, mode="complete")[0]
    left_full[:, :k], right_full[:, :k] = left, right
    covariance = delta * np.eye(len(left) * len(right))
    for i in range(len(left)):
        for j in range(len(right)):
            if i < k or j < k:
                sigma = singular_values[i] if i < k else smoothing
                tau = singular_values[j] if j < k else smoothing
                direction = np.outer(left_full[:, i], right_full[:, j]).ravel()
                covariance += ((sigma * tau) ** (2.0 * agop_power) - delta) * np.outer(direction, direction)
    return covariance


def reweighted_regression(values: np.ndarray, mask: np.ndarray, covariance: np.ndarray, ridge: float) -> np.ndarray:
    """Return argmin ½ ‖P_Ω(X − Y)‖² + λ/2 ⟨X, W X⟩ as W⁻¹ Pᵀ (P W⁻¹ Pᵀ + λ I)⁻¹ y."""
    seen = np.flatnonzero(mask.ravel())
    system = covariance[np.ix_(seen, seen)] + ridge * np.eye(seen.size)
    return (covariance[:, seen] @ np.linalg.solve(system, values.ravel()[seen])).reshape(mask.shape)


def two_sided_iteration(
    previous: np.ndarray, values: np.ndarray, mask: np.ndarray, *, agop_power: float, smoothing: float, ridge: float
) -> np.ndarray:
    """Return the next X of two-sided lin-RFM from the previous one, with its exact singular value decomposition."""
    left, singular_values, vt = np.linalg.svd(previous, full_matrices=False)
    k = int(np.sum(singular_values > smoothing))
    covariance = two_sided_covariance(left[:, :k], singular_values[:k], vt[:k].T, agop_power, smoothing)
    return reweighted_regression(values, mask, covariance, ridge)


def floored_penalty(estimate: np.ndarray, agop_power: float, smoothing: float) -> float:
    """Return Σ ψ(σ_j), ψ' (σ) = σ max(σ, ε)^(p − 2): quadratic below ε, σ^p / p or log σ above, ψ(0) = 0."""
    schatten_p = 2.0 - 4.0 * agop_power
    total = 0.0
    for sigma in np.linalg.svd(estimate, compute_uv=False):
        if sigma <= smoothing:
            total += 0.5 * sigma**2 * smoothing ** (schatten_p - 2.0)
        elif schatten_p == 0.0:
            total += 0.5 + np.log(sigma / smoothing)
        else:
            total += 0.5 * smoothing**schatten_p + (sigma**schatten_p - smoothing**schatten_p) / schatten_p
    return float(total)


def schatten_objective(
    estimate: np.ndarray, values: np.ndarray, mask: np.ndarray, agop_power: float, ridge: float
) -> float:
    """Return ½ ‖P_Ω(X − Y)‖² + λ Σ σ^p / p over the singular values that are not rounding: no ε; p > 0."""
    schatten_p = 2.0 - 4.0 * agop_power
    singular_values = np.linalg.svd(estimate, compute_uv=False)
    kept = singular_values[singular_values > 1e-9 * singular_values[0]]
    return 0.5 * float(np.sum((estimate - values)[mask] ** 2)) + ridge * float(np.sum(kept**schatten_p)) / schatten_p


def tangent_projection(matrix: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the part of a matrix in {U Aᵀ + B Vᵀ}."""
    rows, cols = left @ left.T, right @ right.T
    return rows @ matrix + matrix @ cols - rows @ matrix @ cols


def oracle_estimate(truth: np.ndarray, rank: int, values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the least-squares fit to the observed entries within the truth's own tangent space."""
    left, _, vt = np.linalg.svd(truth)
    left, right = left[:, :rank], vt[:rank].T
    n_rows, n_cols = truth.shape
    seen = np.flatnonzero(mask.ravel())
    # U Aᵀ and (the rest of the rows) B Vᵀ, so that the columns are independent.
    outside = np.linalg.svd(left.T)[2][rank:].T
    design = np.hstack([np.kron(left, np.eye(n_cols)), np.kron(outside, right)])
    normal, rhs = design[seen].T @ design[seen], design[seen].T @ values.ravel()[seen]
    return (design @ np.linalg.solve(normal, rhs)).reshape(n_rows, n_cols)


# --- kernels of the two-sided iteration ---------------------------------------------------------------------------


def in_lanes(lower: np.ndarray) -> np.ndarray:
    """Return a lower triangle row by row, each row filled up with zeros to a multiple of four numbers."""
    rows = [np.append(row[: a + 1], np.zeros(-(a + 1) % 4)) for a, row in enumerate(lower)]
    return np.concatenate([np.zeros(0), *rows])


def inverse_factor(system: np.ndarray) -> np.ndarray:
    """Return L⁻¹ of the Cholesky factor L in whole lanes."""
    return in_lanes(np.linalg.inv(np.linalg.cholesky(system)))


def gram_systems(indptr: np.ndarray, indices: np.ndarray, features: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """Return Σ_J f fᵀ + diag(penalty) for every group of compressed entries, (n_groups, k, k)."""
    return np.array(
        [
            features[entries_of(indptr, indices, group)].T @ features[entries_of(indptr, indices, group)]
            + np.diag(penalty)
            for group in range(len(indptr) - 1)
        ]
    )


def tangent_designs(
    indptr: np.ndarray, indices: np.ndarray, left: np.ndarray, basis: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the matrices that take A and B, raveled by rows, to the observed entries of U Aᵀ and B Vᵀ."""
    (n_rows, k), n_cols = left.shape, len(basis)
    of_coefficients, of_rows = np.zeros((indices.size, n_cols * k)), np.zeros((indices.size, n_rows * k))
    for i in range(n_rows):
        for t in range(indptr[i], indptr[i + 1]):
            j = int(indices[t])
            of_coefficients[t, j * k : (j + 1) * k] = left[i]
            of_rows[t, i * k : (i + 1) * k] = basis[j]
    return of_coefficients, of_rows


def tangent_penalties(
    n_rows: int, basis: np.ndarray, penalty: np.ndarray, hidden: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the Hessians of ½ Σ p_j a_jᵀ(I − V diag(h) Vᵀ) a_j and ½ Σ p_j ‖b_j‖² for A and B raveled by rows."""
    inside = np.eye(len(basis)) - basis @ np.diag(hidden) @ basis.T
    return np.kron(inside, np.diag(penalty)), np.kron(np.eye(n_rows), np.diag(penalty))


def eliminate_rows(
    indptr: np.ndarray,
    indices: np.ndarray,
    values: np.ndarray,
    left: np.ndarray,
    basis: np.ndarray,
    coefficients: np.ndarray,
    penalty: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the best B for given A, Σ r² per row, and Σ r u_i per column: one regression of all of B at once."""
    of_coefficients, of_rows = tangent_designs(indptr, indices, left, basis)
    target = values.astype(np.float64) - of_coefficients @ coefficients.ravel()
    system = of_rows.T @ of_rows + np.kron(np.eye(len(left)), np.diag(penalty))
    rows = np.linalg.solve(system, of_rows.T @ target)
    residual = target - of_rows @ rows
    squares = np.add.reduceat(np.append(residual**2, 0.0), indptr[:-1]) * (np.diff(indptr) > 0)
    return rows.reshape(left.shape), squares, (of_coefficients.T @ residual).reshape(basis.shape)


def schur_complement(
    indptr: np.ndarray,
    indices: np.ndarray,
    left: np.ndarray,
    basis: np.ndarray,
    penalty: np.ndarray,
    hidden: np.ndarray,
) -> np.ndarray:
    """Return the Hessian in A after B is eliminated, from the Hessian of both."""
    of_coefficients, of_rows = tangent_designs(indptr, indices, left, basis)
    penalty_coefficients, penalty_rows = tangent_penalties(len(left), basis, penalty, hidden)
    mixed = of_coefficients.T @ of_rows
    own = of_coefficients.T @ of_coefficients + penalty_coefficients
    return own - mixed @ np.linalg.solve(of_rows.T @ of_rows + penalty_rows, mixed.T)
