"""The most similar of many vectors by cosine, with ties by the lower number: which columns (or rows) go together.

Flow: vectors -> unit vectors -> a block of products -> ``ranking.largest``, so that answers depend neither on block
sizes nor on BLAS. Knows arrays only; ``estimators`` hands in the columns of an estimate.
"""

from __future__ import annotations

import numpy as np

from fastrfm import ranking
from fastrfm._interrupt import check
from fastrfm.kernels.residual import predict_pairs

BLOCK_BYTES = 1 << 26  # of memory for a block of products; larger gains nothing
_FADED = 1e-12  # of the longest vector: what is shorter is rounding


def most_similar(
    vectors: np.ndarray, wanted: np.ndarray, n: int, *, block_bytes: int = BLOCK_BYTES
) -> tuple[np.ndarray, np.ndarray]:
    """Return the `n` vectors most similar to each of some, by cosine, largest first.

    Parameters
    ----------
    vectors : (n_vectors, k) float64
    wanted : (n_wanted,) int64
        Their numbers.
    n : int
        From 1 to n_vectors.
    block_bytes : int
        About how much memory to use beside the answer, which does not depend on it.

    Returns
    -------
    neighbours : (n_wanted, n) int64
        -1 where fewer than n vectors are left: none is its own neighbour, and a vector of no length (below 1e-12 of
        the longest) has no neighbours and is nobody's.
    cosines : (n_wanted, n) float64
        From -1 to 1; NaN where there is no neighbour.

    Examples
    --------
    >>> neighbours, cosines = most_similar(np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [2.0, 0.0]]), np.array([0]), 3)
    >>> neighbours.tolist(), cosines.round(3).tolist()
    ([[3, 1, -1]], [[1.0, 0.707, nan]])
    """
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    is_none = lengths <= _FADED * lengths.max(initial=0.0)
    unit = np.ascontiguousarray(vectors / np.where(is_none, 1.0, lengths)[:, None])
    neighbours, cosines = np.empty((wanted.size, n), dtype=np.int64), np.empty((wanted.size, n))
    step = max(block_bytes // (ranking.BYTES_PER_ENTRY * len(unit)), 1)
    for start in range(0, wanted.size, step):
        check()  # Ctrl-C
        span = slice(start, min(start + step, wanted.size))
        neighbours[span], cosines[span] = _of_block(unit, is_none, wanted[span], n)
    return neighbours, np.clip(cosines, -1.0, 1.0, out=cosines)


def _of_block(unit: np.ndarray, is_none: np.ndarray, wanted: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    block = unit[wanted] @ unit.T
    block[:, is_none] = block[is_none[wanted]] = -np.inf
    block[np.arange(wanted.size), wanted] = -np.inf

    def exact(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        out = np.empty(rows.size)
        predict_pairs(wanted[rows], others, unit, unit, out)
        return out

    return ranking.largest(block, n, ranking.rounding_margin(unit[wanted], unit, 0.0), exact)
