"""Completion problems with a known answer: uniform samples of a low-rank matrix, exact errors, and what is possible.

Flow: ``make_problem`` -> ``Problem`` (observations and true factors) -> ``Problem.error``. ``oracle_error`` bounds what
any method can reach under noise, ``excess_nullity`` says whether an instance has a unique answer near the truth.
Not here: solvers, rivals, timing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import LinearOperator, lsmr

from fastrfm import Observations

_TRIES = 20  # plain draws before a draw is repaired
_MOVES_PER_ENTRY = 5
_BY_ROWS = 2_000_000  # entries from which positions are drawn row by row, in little memory
_CHUNK = 1_000_000
_CLEARLY_ZERO, _CLEARLY_NOT = 1e-12, 1e-8


@dataclass(frozen=True)
class Problem:
    """Observed entries of ``left @ right.T``; `right` is orthonormal, `left` has the singular values."""

    observations: Observations
    left: np.ndarray
    right: np.ndarray
    noise: float = 0.0

    @property
    def rank(self) -> int:
        return int(self.left.shape[1])

    def error(self, left: np.ndarray, right: np.ndarray) -> float:
        """Return the relative Frobenius error of ``left @ right.T`` over the whole matrix.

        Of the factored difference, through one QR of each side: no two large numbers are subtracted.
        """
        if not (np.isfinite(left).all() and np.isfinite(right).all()):
            return float("inf")
        first = np.linalg.qr(np.hstack([left, self.left]))[1]
        second = np.linalg.qr(np.hstack([right, -self.right]))[1]
        return float(np.linalg.norm(first @ second.T) / np.linalg.norm(self.left))

    def sparse(self) -> csr_matrix:
        """Return the observed entries, scaled to a root mean square of one, as scipy knows them."""
        obs = self.observations
        return csr_matrix((obs.values / self.unit, obs.indices, obs.indptr), shape=obs.shape)

    @property
    def unit(self) -> float:
        """Root mean square of the observed entries."""
        return float(np.sqrt(np.mean(self.observations.values**2)))


def entries_for(n_rows: int, n_cols: int, rank: int, rho: float) -> int:
    """Return the number of entries that is `rho` times the degrees of freedom of a matrix of this rank."""
    return int(np.floor(rho * rank * (n_rows + n_cols - rank)))


def make_problem(
    n_rows: int, n_cols: int, rank: int, n_observed: int, seed: int, *, kappa: float = 1.0, noise: float = 0.0
) -> Problem:
    """Return a problem with Haar factors and singular values from `kappa` down to 1, evenly spaced in the logarithm.

    Parameters
    ----------
    n_rows, n_cols, rank, n_observed, seed : int
        Positions are uniform among those with at least rank + 1 entries in every row and column.
    kappa : float
        Condition number.
    noise : float
        Standard deviation of Gaussian noise, relative to the root mean square of the observed entries.
    """
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.standard_normal((n_rows, rank)))[0] * np.logspace(np.log10(kappa), 0.0, rank)
    right = np.linalg.qr(rng.standard_normal((n_cols, rank)))[0]
    indptr, indices = draw_positions(n_rows, n_cols, n_observed, rank + 1, rng)
    values = np.empty(indices.size)
    for start in range(0, values.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        rows = np.searchsorted(indptr, np.arange(start, min(start + _CHUNK, values.size)), side="right") - 1
        values[part] = np.einsum("ij,ij->i", left[rows], right[indices[part]])
    if noise > 0.0:
        values += noise * np.sqrt(np.mean(values**2)) * rng.standard_normal(values.size)
    return Problem(Observations.from_csr(indptr, indices, values, (n_rows, n_cols)), left, right, noise)


def draw_positions(
    n_rows: int, n_cols: int, n_observed: int, least: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return indptr (int64) and indices (int32) of uniform positions, at least `least` in every row and column."""
    if n_observed < least * max(n_rows, n_cols):
        raise ValueError(f"{n_observed} entries cannot put {least} in each of {n_rows} rows and {n_cols} columns")
    if n_observed >= _BY_ROWS:
        return _draw_by_rows(n_rows, n_cols, n_observed, least, rng)
    for _ in range(_TRIES):
        flat = rng.choice(n_rows * n_cols, n_observed, replace=False, shuffle=False)
        rows, cols = np.divmod(flat, n_cols)
        if min(_fewest(rows, n_rows), _fewest(cols, n_cols)) >= least:
            break
    else:
        chain = _Chain(rows, cols, (n_rows, n_cols), least, rng)
        chain.repair()
        chain.mix(_MOVES_PER_ENTRY * n_observed)
        flat = np.array(sorted(chain.taken))
    rows, cols = np.divmod(np.sort(flat), n_cols)
    return _offsets(np.bincount(rows, minlength=n_rows)), cols.astype(np.int32)


def _draw_by_rows(
    n_rows: int, n_cols: int, n_observed: int, least: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw row counts, then the columns of each row (multinomial counts: uniform up to the fill, a percent or so)."""
    while True:
        counts = rng.multinomial(n_observed, np.full(n_rows, 1.0 / n_rows))
        if counts.min() < least or counts.max() > n_cols:
            continue
        indptr = _offsets(counts)
        indices = np.empty(n_observed, dtype=np.int32)
        per_column = np.zeros(n_cols, dtype=np.int64)
        for i in range(n_rows):
            drawn = rng.choice(n_cols, counts[i], replace=False, shuffle=False)
            drawn.sort()
            indices[indptr[i] : indptr[i + 1]] = drawn
            per_column[drawn] += 1
        if per_column.min() >= least:
            return indptr, indices


def _fewest(labels: np.ndarray, n_labels: int) -> int:
    return int(np.bincount(labels, minlength=n_labels).min())


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))


class _Chain:
    """A set of positions under moves of single entries.

    A symmetric proposal (any entry, any cell) that is refused when the cell is taken or a count would fall below
    `least` leaves the uniform distribution over the allowed sets as it is.
    """

    def __init__(
        self, rows: np.ndarray, cols: np.ndarray, shape: tuple[int, int], least: int, rng: np.random.Generator
    ) -> None:
        self._shape, self._least, self._rng = shape, least, rng
        self._places: list[list[int]] = [rows.tolist(), cols.tolist()]
        self._counts: list[list[int]] = [
            np.bincount(labels, minlength=size).tolist() for labels, size in zip((rows, cols), shape, strict=True)
        ]
        self.taken: set[int] = set((rows * shape[1] + cols).tolist())

    def _move(self, entry: int, row: int, col: int) -> None:
        n_cols = self._shape[1]
        rows, cols = self._places
        self.taken.remove(rows[entry] * n_cols + cols[entry])
        self.taken.add(row * n_cols + col)
        for places, counts, new in zip(self._places, self._counts, (row, col), strict=True):
            counts[places[entry]] -= 1
            counts[new] += 1
            places[entry] = new

    def repair(self) -> None:
        """Bring every count up to the least: to a short row from rows with entries to spare, within their columns."""
        n_entries, n_cols = len(self.taken), self._shape[1]
        for side in (0, 1):
            counts, places = self._counts[side], self._places[side]
            for short in [g for g, count in enumerate(counts) if count < self._least]:
                while counts[short] < self._least:
                    entry = int(self._rng.integers(n_entries))
                    target = [self._places[0][entry], self._places[1][entry]]
                    target[side] = short
                    if counts[places[entry]] > self._least and target[0] * n_cols + target[1] not in self.taken:
                        self._move(entry, *target)

    def mix(self, n_moves: int) -> None:
        """Propose `n_moves` moves."""
        n_rows, n_cols = self._shape
        entries = self._rng.integers(0, len(self.taken), n_moves).tolist()
        cells = self._rng.integers(0, n_rows * n_cols, n_moves).tolist()
        (rows, cols), (row_counts, col_counts) = self._places, self._counts
        for entry, cell in zip(entries, cells, strict=True):
            row, col = divmod(cell, n_cols)
            empties_row = row_counts[rows[entry]] <= self._least and rows[entry] != row
            empties_col = col_counts[cols[entry]] <= self._least and cols[entry] != col
            if not (empties_row or empties_col or cell in self.taken):
                self._move(entry, row, col)


def oracle_error(problem: Problem) -> float:
    """Return the error of the least-squares fit of the noisy data in the tangent space at the truth."""
    obs, rank = problem.observations, problem.rank
    left, right = np.linalg.qr(problem.left)[0], problem.right
    rows, cols, values = obs.to_coo()
    features, weights = right[cols], left[rows]
    n_rows, n_cols = obs.shape
    split = n_rows * rank

    def forward(unknowns: np.ndarray) -> np.ndarray:
        outer, inner = unknowns[:split].reshape(n_rows, rank), unknowns[split:].reshape(n_cols, rank)
        return np.asarray(np.einsum("ij,ij->i", outer[rows], features) + np.einsum("ij,ij->i", inner[cols], weights))

    def backward(entries: np.ndarray) -> np.ndarray:
        spread = csr_matrix((entries, obs.indices, obs.indptr), shape=obs.shape)
        return np.concatenate([(spread @ right).ravel(), (spread.T @ left).ravel()])

    operator = LinearOperator((values.size, split + n_cols * rank), matvec=forward, rmatvec=backward, dtype=float)
    unknowns = lsmr(operator, values, atol=1e-10, btol=1e-10)[0]
    outer, inner = unknowns[:split].reshape(n_rows, rank), unknowns[split:].reshape(n_cols, rank)
    return problem.error(np.hstack([left, outer]), np.hstack([inner, right]))


def excess_nullity(problem: Problem) -> int:
    """Return by how much the nullity of the Jacobian of (L, R) -> (L Rᵀ)_Ω at the truth exceeds r².

    Zero where the answer is locally unique. Dense, for small problems: L's rows are eliminated one by one (each has
    more than r entries), which changes the nullity by nothing known, then the singular values of the rest are taken;
    from its Gram matrix where that is clear.
    """
    obs, rank = problem.observations, problem.rank
    left, right = np.linalg.qr(problem.left)[0], problem.right
    jacobian = np.zeros((obs.n_observed, obs.n_cols * rank))
    lost = 0
    for i in range(obs.n_rows):
        part = slice(obs.indptr[i], obs.indptr[i + 1])
        cols = obs.indices[part]
        basis, sizes, _ = np.linalg.svd(right[cols], full_matrices=False)
        keep = sizes > _CLEARLY_ZERO
        lost += rank - int(keep.sum())
        outside = np.eye(cols.size) - basis[:, keep] @ basis[:, keep].T
        for a in range(rank):
            jacobian[part, cols * rank + a] = outside * left[i, a]
    squares = np.linalg.eigvalsh(jacobian.T @ jacobian)
    scale = squares[-1]
    if np.any((squares > _CLEARLY_ZERO * scale) & (squares < _CLEARLY_NOT * scale)):
        sizes = np.linalg.svd(jacobian, compute_uv=False)
        nullity = jacobian.shape[1] - int((sizes > 1e-12 * sizes[0]).sum())
    else:
        nullity = int((squares <= _CLEARLY_ZERO * scale).sum())
    return nullity + lost - rank**2
