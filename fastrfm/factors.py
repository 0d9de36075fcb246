"""Tall thin matrices: orthonormal bases and the canonical form of an estimate ``left @ right.T``.

Everything works on the factors themselves, never on their Gram, which would square the condition number. Tall
matrices are cut into chunks of fixed height, so the bits do not depend on how many threads factor the chunks.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

_CHUNK_ROWS = 16384


def tall_qr(matrix: np.ndarray, n_threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return Q (n, k) with orthonormal columns and R (k, k) upper triangular, Q R = `matrix`.

    Parameters
    ----------
    matrix : (n, k) float64, n >= k
    n_threads : int
        Threads that factor chunks; the result does not depend on it.

    Notes
    -----
    Above 16384 rows: a QR of every chunk, then one of the stacked triangles (TSQR).
    """
    n, k = matrix.shape
    if n <= _CHUNK_ROWS or k > _CHUNK_ROWS // 4:
        q, r = np.linalg.qr(matrix)
        return q, r
    cuts = list(range(0, n - _CHUNK_ROWS + 1, _CHUNK_ROWS))  # the last chunk takes the remainder
    spans = list(zip(cuts, [*cuts[1:], n], strict=True))
    out = np.empty((n, k))
    with ThreadPoolExecutor(n_threads) as pool:
        parts = list(pool.map(lambda span: np.linalg.qr(matrix[span[0] : span[1]]), spans))
        top, r = np.linalg.qr(np.concatenate([part[1] for part in parts]))

        def finish(number: int) -> None:
            start, stop = spans[number]
            np.dot(parts[number][0], top[number * k : (number + 1) * k], out=out[start:stop])

        list(pool.map(finish, range(len(spans))))
    return out, r


def canonical_factors(
    left: np.ndarray, right: np.ndarray, n_threads: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rewrite ``left @ right.T`` by its singular value decomposition.

    Parameters
    ----------
    left, right : (n_rows, k) and (n_cols, k) float64, k at most the smaller side

    Returns
    -------
    left : (n_rows, k) float64
        Left singular vectors times singular values.
    right : (n_cols, k) float64
        Right singular vectors; the entry of largest magnitude in each column is positive.
    singular_values : (k,) float64, descending
    """
    q_left, r_left = tall_qr(left, n_threads)
    q_right, r_right = tall_qr(right, n_threads)
    u, singular_values, vt = np.linalg.svd(r_left @ r_right.T)
    right = q_right @ vt.T
    largest = right[np.argmax(np.abs(right), axis=0), np.arange(right.shape[1])] if right.size else np.ones(0)
    signs = np.where(largest < 0.0, -1.0, 1.0)
    return q_left @ (u * (singular_values * signs)), right * signs, singular_values


def numerical_rank(singular_values: np.ndarray, tol: float) -> int:
    """Return the smallest k for which dropping all but the first k changes the estimate by at most `tol`, relatively.

    Parameters
    ----------
    singular_values : (n,) float64, descending
    tol : float

    Examples
    --------
    >>> numerical_rank(np.array([3.0, 1.0, 1e-9]), 1e-6)
    2
    """
    # Summed from the smallest up, so that a small tail is not lost against the head.
    tails = np.sqrt(np.cumsum(np.square(singular_values[::-1])))[::-1]
    return int(np.count_nonzero(tails > tol * tails[0])) if tails.size else 0
