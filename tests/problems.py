"""Random low-rank completion problems for the tests, and their way into ``Observations``.

Truth: Haar-distributed factors, singular values log-spaced from the condition number down to 1. Observed entries:
floor(oversampling · rank · (n_rows + n_cols − rank)) positions, uniform without replacement, drawn again until every
row and every column has at least rank + 1 of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastrfm.observations import Observations


@dataclass(frozen=True)
class Problem:
    """A matrix and which of its entries are observed."""

    truth: np.ndarray
    mask: np.ndarray

    @property
    def observations(self) -> Observations:
        return observe(self.truth, self.mask)

    def relative_error(self, estimate: np.ndarray) -> float:
        return float(np.linalg.norm(estimate - self.truth) / np.linalg.norm(self.truth))


def observe(values: np.ndarray, mask: np.ndarray) -> Observations:
    """Return the entries of `values` where `mask` is true; the dtype of the values stays."""
    return Observations.from_dense(np.where(mask, values, values.dtype.type(np.nan)))


def haar(rng: np.random.RandomState, n: int, k: int) -> np.ndarray:
    """Return k orthonormal columns, uniformly distributed."""
    q, r = np.linalg.qr(rng.standard_normal((n, k)))
    return q * np.sign(np.diag(r))


def low_rank_problem(
    n_rows: int, n_cols: int, rank: int, *, oversampling: float, condition_number: float = 10.0, seed: int = 0
) -> Problem:
    """Return a problem of the module's kind; `oversampling` is observed entries per degree of freedom."""
    rng = np.random.RandomState(seed)
    singular_values = np.logspace(np.log10(condition_number), 0.0, rank)
    truth = (haar(rng, n_rows, rank) * singular_values) @ haar(rng, n_cols, rank).T
    n_observed = min(int(oversampling * rank * (n_rows + n_cols - rank)), n_rows * n_cols)
    for _ in range(1000):
        mask = np.zeros(n_rows * n_cols, dtype=bool)
        mask[rng.permutation(n_rows * n_cols)[:n_observed]] = True
        mask = mask.reshape(n_rows, n_cols)
        if min(mask.sum(axis=0).min(), mask.sum(axis=1).min()) > rank:
            return Problem(truth, mask)
    raise ValueError(f"no mask with {rank + 1} entries in every row and column in 1000 draws: raise oversampling")


def random_mask(rng: np.random.RandomState, shape: tuple[int, int], share: float) -> np.ndarray:
    """Return a mask with about `share` observed, at least one entry in all, empty rows and columns allowed."""
    mask = rng.random_sample(shape) < share
    mask[shape[0] // 2, shape[1] // 2] = True
    return mask
