"""The linear system of one reweighted regression, (𝒜 W⁻¹ 𝒜* + λ I) a = y, X = W⁻¹ 𝒜*(a): two ways to solve it.

Cholesky on n x n, for n measurements. Conjugate gradients for the correction to the last a, preconditioned so that
their number of steps does not depend on ε (*own derivation*): let T be the weightiest entries of the rotated table D,
B = 𝒜 restricted to them, D' = D − δ there and R what is left of D. Then

    𝒜 W⁻¹ 𝒜* + λ I = λ I + B D' Bᵀ + 𝒜 R 𝒜*,   preconditioner   P = c I + B D' Bᵀ,   c = λ + δ tr(𝒜𝒜*) / n

P is inverted through (c / D' + Bᵀ B) γ = Bᵀ ρ, z = (ρ − B γ) / c. As ε → 0, D' / c grows without bound and D' Bᵀ z
cannot be had from z, whose part in the range of B is lost to rounding; but it is γ. So each direction is carried as the
pair (z, γ), and every inner product is a sum of positive numbers. Eigenvalues of P⁻¹ (…) then spread about as those of
𝒜𝒜*. Weights are those of ``low_rank_weights``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg.lapack import dpocon, dpotrf, dpotrs

from fastrfm._interrupt import check
from fastrfm.errors import InputError
from fastrfm.measurements import Measurements
from fastrfm.solvers.low_rank_weights import Weights

LARGEST_SYSTEM = 6000  # side of a matrix that is factored
LARGEST_TABLE = 1 << 30  # bytes of B
MAX_INNER_STEPS = 500
_NO_CURVATURE = 1e-10
_JITTER = 4e-16
_SINGULAR = 1e-13
_MOST_DIRECTIONS = 0.9  # of T beside measurements
_HEAVY, _MISSED = 1e4, 1e-3  # weights outside T beside c, and what is missed of y: rounding then has the rest
_RISE = 1e-6  # of weights: what counts as a function that falls; float32 rounds to less
_STEPS = 8.0  # of conjugate gradients, usually, where T holds all that is heavy


class ContradictionError(InputError):
    """Measurements depend on each other and contradict, which conjugate gradients without a ridge cannot mend."""


@dataclass
class Solution:
    """The next estimate, its dual vector a, and what it cost; `matrix` is None where rounding ended the descent."""

    matrix: np.ndarray | None
    dual: np.ndarray
    inner_steps: int = 0


class CholeskySystems:
    """Solves by factoring; measurements that depend on each other are merged first where there is no ridge."""

    least_weight = 1e-14  # the smallest δ beside the largest weight: near 1e-16 the factor is that of the jitter

    def __init__(self, measurements: Measurements, values: np.ndarray, ridge: float) -> None:
        self._measurements, self._ridge = measurements, ridge
        self._values, self._merged = values, None
        if ridge == 0.0:
            self._merged = _independent(measurements.gram(None, None))
            if self._merged is not None:
                self._values = self._merged.T @ values

    def solve(self, weights: Weights | None, ridge: float, dual: np.ndarray, tol: float) -> Solution:
        """Return the next estimate.

        Parameters
        ----------
        weights : Weights or None
            None stands for W = I.
        ridge : float
            λ in the unit of the weights.
        dual, tol
            Not looked at: the answer is exact.
        """
        rows = cols = None
        if weights is not None:
            rows = None if weights.is_one_sided else weights.left * np.sqrt(weights.rows)
            cols = weights.right * np.sqrt(weights.cols)
        gram = self._measurements.gram(rows, cols)
        if self._merged is not None:
            gram = self._merged.T @ gram @ self._merged
            gram = 0.5 * (gram + gram.T)
        factor = _factored(gram, ridge, _JITTER if ridge == 0.0 else 0.0)
        if factor is None:
            return Solution(None, dual)
        found = dpotrs(factor, self._values, lower=1)[0]
        found = found if self._merged is None else self._merged @ found
        matrix = self._measurements.adjoint(found)
        return Solution(matrix if weights is None else weights.applied(matrix), found)


class ConjugateGradients:
    """Solves by steps with 𝒜 and 𝒜* alone, once B is formed."""

    least_weight = 1e-30

    def __init__(self, measurements: Measurements, values: np.ndarray) -> None:
        self._measurements, self._values = measurements, values

    def solve(self, weights: Weights | None, ridge: float, dual: np.ndarray, tol: float) -> Solution:
        """Return the next estimate; `dual` is the a to begin from, `tol` that of the correction in the norm of W.

        Parameters as in :meth:`CholeskySystems.solve`.
        """
        measurements, is_first = self._measurements, weights is None
        if weights is None:
            n_rows, n_cols = measurements.shape[1:]
            bases, ones = (np.eye(n_rows), np.eye(n_cols)), (np.ones(n_rows), np.ones(n_cols))
            weights = Weights(*bases, *ones, sigma=np.zeros(min(n_rows, n_cols)), unit=1.0, smoothing=1.0)
        if weights.least <= 0.0 or (np.diff(weights.cols) > _RISE * weights.cols.max()).any():
            raise InputError(
                "conjugate gradients need a function for agop_power that is above 0 and does not fall: use "
                'linear_solver="cholesky"'
            )
        scale = measurements.square_sum / measurements.shape[0]
        tangent = _Tangent(measurements, weights, ridge + weights.least * scale)
        rest = weights.table
        rest.ravel()[tangent.places] = weights.least

        def outside(vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            seen = weights.rotated(measurements.adjoint(vector))
            return seen, rest * seen

        # One step of P from the last a. Of that only what R makes of it counts: D' Bᵀ a would be lost to rounding.
        _, moved = outside(dual)
        image = (ridge - tangent.shift) * dual + measurements.forward(weights.restored(moved))
        dual, core, _ = tangent.solve(self._values - image)
        _, estimate = outside(dual)
        residual = (
            self._values - ridge * dual - tangent.forward(core) - measurements.forward(weights.restored(estimate))
        )
        estimate.ravel()[tangent.places] += tangent.placed(core)
        direction, core, product = tangent.solve(residual)
        first = product
        steps = 0
        while steps < MAX_INNER_STEPS and product > tol**2 * first:
            check()
            seen, moved = outside(direction)
            curvature = ridge * float(direction @ direction) + float(np.vdot(moved, seen)) + tangent.energy(core)
            if curvature <= _NO_CURVATURE * tangent.shift * float(direction @ direction):
                # Only what no matrix explains is left of the residual.
                if is_first:
                    raise ContradictionError(
                        "measurements depend on each other and y contradicts itself, which conjugate gradients do "
                        'not solve without a ridge: give a ridge above 0, or use linear_solver="cholesky"'
                    )
                break
            image = ridge * direction + tangent.forward(core) + measurements.forward(weights.restored(moved))
            moved.ravel()[tangent.places] += tangent.placed(core)
            step = product / curvature
            dual += step * direction
            estimate += step * moved
            residual -= step * image
            z, gamma, following = tangent.solve(residual)
            direction = z + (following / product) * direction
            core = gamma + (following / product) * core
            product, steps = following, steps + 1
        matrix = weights.restored(estimate)
        if float(rest.max()) * scale > _HEAVY * tangent.shift:  # T could not take in all that is heavy
            missed = float(np.linalg.norm(self._values - ridge * dual - measurements.forward(matrix)))
            if not missed <= _MISSED * float(np.linalg.norm(self._values)):
                return Solution(None, dual, steps)
        return Solution(matrix, dual, steps)


class _Tangent:
    """B, and P = c I + B D' Bᵀ, for the weightiest entries of the rotated table."""

    def __init__(self, measurements: Measurements, weights: Weights, shift: float) -> None:
        n, n_rows, n_cols = measurements.shape
        self.shift = shift
        k = _n_directions(weights, measurements)
        pieces = [(slice(0, n_rows), slice(0, k))]
        if not weights.is_one_sided:
            pieces.append((slice(0, k), slice(k, n_cols)))
        every = np.arange(n_rows * n_cols).reshape(n_rows, n_cols)
        self.places = np.concatenate([every[rows, cols].ravel() for rows, cols in pieces])
        extra = weights.table.ravel()[self.places] - weights.least
        self._roots = np.sqrt(np.maximum(extra, 0.0) / shift)
        self._table = np.empty((n, self.places.size), order="F")
        begin = 0
        for rows, cols in pieces if k else []:
            found = measurements.products(weights.left[:, rows], weights.right[:, cols])
            end = begin + found.shape[1]
            np.multiply(found, self._roots[begin:end], out=self._table[:, begin:end])
            begin = end
        self._factor = _factored(self._table.T @ self._table, 1.0, 0.0) if k else None
        if k and self._factor is None:  # rounding: as if T were empty, at the cost of more steps
            self._table, self._roots = self._table[:, :0], self._roots[:0]
            self.places = self.places[:0]

    def solve(self, residual: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Return z = P⁻¹ ρ, γ in units of the roots of D' / c, and ρᵀ z."""
        if self._factor is None:
            return residual / self.shift, np.zeros(0), float(residual @ residual) / self.shift
        core = dpotrs(self._factor, self._table.T @ residual, lower=1)[0]
        z = residual - self._table @ core
        product = (float(z @ z) + float(core @ core)) / self.shift
        return z / self.shift, core, product

    def forward(self, core: np.ndarray) -> np.ndarray:
        """Return B D' Bᵀ z of the pair that `core` belongs to."""
        return np.asarray(self._table @ core)

    def placed(self, core: np.ndarray) -> np.ndarray:
        """Return D' Bᵀ z as entries at `places` of the flattened table."""
        return np.asarray(self._roots * core)

    def energy(self, core: np.ndarray) -> float:
        """Return zᵀ B D' Bᵀ z."""
        return float(core @ core) / self.shift


def _n_directions(weights: Weights, measurements: Measurements) -> int:
    """Return how many singular directions T takes in, so that forming B and the steps that are left cost least."""
    n, n_rows, n_cols = measurements.shape
    k = np.arange(int(np.count_nonzero(weights.sigma > weights.smoothing)) + 1)
    k = k[: min(n_rows, n_cols)]
    size = k * n_rows if weights.is_one_sided else k * (n_rows + n_cols - k)
    # The eigenvalues that P leaves spread as far as the weights outside T.
    spread = (weights.rows[k] * weights.cols[k]) / weights.least
    n_steps = _STEPS * np.sqrt(spread)
    forming = size * measurements.direction_cost + size**2 * (0.5 * n + size / 6.0)
    cost = forming + n_steps * (measurements.pass_cost + 16.0 * n * size)
    cost[size > min(_MOST_DIRECTIONS * n, LARGEST_SYSTEM, LARGEST_TABLE / (8 * n))] = np.inf
    return int(k[np.argmin(cost)])


def _independent(gram: np.ndarray) -> np.ndarray | None:
    """Return orthonormal combinations of measurements that do not depend on each other, None for all as they are."""
    norm = float(np.abs(gram).sum(axis=0).max())
    factor, failure = dpotrf(gram, lower=1)
    if not failure and dpocon(factor, norm, uplo="L")[0] > _SINGULAR:
        return None
    eigenvalues, vectors = np.linalg.eigh(gram)
    kept = eigenvalues > len(gram) * np.finfo(np.float64).eps * eigenvalues[-1]
    return np.ascontiguousarray(vectors[:, kept])


def _factored(gram: np.ndarray, ridge: float, jitter: float) -> np.ndarray | None:
    """Return the lower Cholesky factor of gram + ridge I in the memory of `gram`, with more jitter where it fails.

    The upper triangle keeps what the lower one was, so that no copy is needed for another try.
    """
    mean = float(np.trace(gram)) / len(gram)
    diagonal = np.diagonal(gram).copy()
    shift = jitter * mean
    for _ in range(4):
        gram.flat[:: len(gram) + 1] = diagonal + (ridge + shift)
        # The transpose is in Fortran order: LAPACK's lower triangle is our upper one.
        factor, failure = dpotrf(gram.T, lower=1, overwrite_a=1, clean=0)
        if not failure:
            return np.asarray(factor)
        for i in range(len(gram)):
            gram[i, i + 1 :] = gram[i + 1 :, i]
        shift = 100.0 * max(shift, _JITTER * mean)
    return None
