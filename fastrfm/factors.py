"""Tall thin matrices: orthonormal bases and the canonical form of an estimate ``left @ right.T``.

Spectra are taken from triangular factors, never from a Gram matrix, which would square the condition number.
Orthonormalisation does use a Gram matrix, twice and guarded, because the bases that solvers keep are nearly orthogonal
already and it is several times as fast as Householder reflections.
"""

from __future__ import annotations

import numpy as np

from fastrfm.arrays import HOST, HostArrays

# Gram matrices of unit columns whose Cholesky pivots stay above this have condition numbers below about 1e8: the
# second pass then restores orthogonality to working precision.
_LEAST_PIVOT = 1e-4
_LEAST_LENGTH = 1e-290  # of a column that can be scaled to unit length


def tall_qr(matrix: np.ndarray, *, overwrite: bool = False, arrays: HostArrays = HOST) -> tuple[np.ndarray, np.ndarray]:
    """Return Q (n, k) with orthonormal columns and R (k, k) upper triangular, Q R = `matrix`.

    Parameters
    ----------
    matrix : (n, k) float64, n >= k
    overwrite : bool
        Whether `matrix` may be changed, which saves its memory; Q is the same array then.
    arrays : HostArrays
        Where `matrix` is, and Q will be; R is numpy's.

    Notes
    -----
    Cholesky QR in two passes on columns scaled to unit length (T. Fukaya et al., "CholeskyQR2", 2014); Householder QR
    where the scaled columns are too close to dependent.
    """
    lengths = arrays.lengths(matrix)
    first = None
    if matrix.size and lengths.min() > _LEAST_LENGTH and np.isfinite(lengths).all():
        scaled = matrix if overwrite else arrays.copy(matrix)
        arrays.scale(scaled, 1.0 / lengths)
        first = _orthonormalise(scaled, arrays)
        if first is not None:
            second = _orthonormalise(scaled, arrays)
            if second is not None:
                return scaled, (second @ first) * lengths
        if overwrite:
            q, r = np.linalg.qr(arrays.fetch(scaled))
            return arrays.put(q), (r if first is None else r @ first) * lengths
    q, r = np.linalg.qr(arrays.fetch(matrix))
    return arrays.put(q), r


def _orthonormalise(matrix: np.ndarray, arrays: HostArrays) -> np.ndarray | None:
    """Make the columns orthonormal in place and return R; None if they stay as they were."""
    try:
        lower = np.linalg.cholesky(arrays.inner(matrix, matrix))
    except np.linalg.LinAlgError:
        return None
    if np.diagonal(lower).min() < _LEAST_PIVOT:
        return None
    inverse = np.linalg.inv(lower).T
    arrays.transform(matrix, inverse)
    upper: np.ndarray = lower.T
    return upper


def svd(matrix: np.ndarray, *, full_matrices: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return numpy's singular value decomposition, by QR iteration where divide and conquer fails.

    LAPACK's ``gesdd`` gives up on some finite matrices: on a triangular one of 110 columns, 74 of them of size 10 to
    200 and the rest of rounding. ``gesvd`` takes them, a few times as slowly.
    """
    try:
        left, singular_values, right = np.linalg.svd(matrix, full_matrices=full_matrices)
    except np.linalg.LinAlgError:
        if not np.isfinite(matrix).all():
            raise
        from scipy.linalg import svd as by_qr_iteration

        left, singular_values, right = by_qr_iteration(matrix, full_matrices=full_matrices, lapack_driver="gesvd")
    return left, singular_values, right


def canonical_factors(
    left: np.ndarray, right: np.ndarray, *, overwrite: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rewrite ``left @ right.T`` by its singular value decomposition.

    Parameters
    ----------
    left, right : (n_rows, k) and (n_cols, k) float64
    overwrite : bool
        Whether they may be changed, which saves their memory.

    Returns
    -------
    left : (n_rows, k) float64
        Left singular vectors times singular values; of both factors only as many as the smaller side is long, where k
        is more: side information has directions that the matrix itself has no room for.
    right : (n_cols, k) float64
        Right singular vectors; the entry of largest magnitude in each column is positive.
    singular_values : (k,) float64, descending
    """
    q_left, r_left = tall_qr(left, overwrite=overwrite)
    q_right, r_right = tall_qr(right, overwrite=overwrite)
    u, singular_values, vt = svd(r_left @ r_right.T, full_matrices=False)
    right = q_right @ vt.T
    largest = right[np.argmax(np.abs(right), axis=0), np.arange(right.shape[1])] if right.size else np.ones(0)
    signs = np.where(largest < 0.0, -1.0, 1.0)
    return q_left @ (u * (singular_values * signs)), right * signs, singular_values


def numerical_rank(singular_values: np.ndarray, tol: float, *, data_norm: float = 0.0) -> int:
    """Return the smallest k for which dropping all but the first k changes the estimate by at most `tol`, relatively.

    Parameters
    ----------
    singular_values : (n,) float64, descending
    tol : float
    data_norm : float
        ‖P_Ω Y‖_F: an estimate that has faded to less than `tol` of it is measured against that instead of itself.

    Examples
    --------
    >>> numerical_rank(np.array([3.0, 1.0, 1e-9]), 1e-6)
    2
    """
    # Summed from the smallest up, so that a small tail is not lost against the head.
    tails = np.sqrt(np.cumsum(np.square(singular_values[::-1])))[::-1]
    return int(np.count_nonzero(tails > tol * max(tails[0], tol * data_norm))) if tails.size else 0
