"""One step of two-sided lin-RFM: the reweighted regression, with the AGOP of rows and of columns at half the power.

With U, σ, V the leading singular triplets of the estimate X (σ_j > ε) the features' covariance is a Kronecker product,
(XXᵀ)^α ⊗ (XᵀX)^α with σ floored at ε. Let e = ε^(2α), w_j = σ_j^(2α), δ = e². It is the sum of four parts,

    δ I  +  U diag(w − e) Uᵀ ⊗ (e I + V diag(w − e) Vᵀ)  +  e I ⊗ V diag(w − e) Vᵀ,

so X = U Aᵀ + B Vᵀ + (sparse) with A and B unconstrained, and the regression is (own derivation)

    minimise  ½‖y − P_Ω(U Aᵀ + B Vᵀ)‖²  +  ½ Σ_j p_j [‖b_j‖² + a_jᵀ(I − V diag(h) Vᵀ) a_j],
    p_j = (λ + δ) / (e (w_j − e)),   h_j = 1 − e / w_j,   X = U Aᵀ + B Vᵀ + θ P_Ω*(residual),   θ = δ / (λ + δ).

Row i of B solves a k x k system for given A, so conjugate gradients run on A alone (``kernels.tangent``), from
A = XᵀU: on the correction, with a tolerance relative to what is still wrong. Not here: where U, σ, V come
from, and how ε and α move (``two_sided``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fastrfm._lanes import padded
from fastrfm.blocks import RowBlocks, TileBlock
from fastrfm.kernels.tangent import (
    add_column_grams,
    conjugate_gradients,
    eliminated_sweep,
    factor_columns,
    factor_rows,
    factor_size,
    finish_gradient,
    finish_step,
    start_conjugate_gradients,
)
from fastrfm.solvers.estimate import Estimate, Layout, Triplets

MAX_INNER_STEPS = 500
_ROW_FACTOR_BYTES = 2**27  # of row factors that are kept; more are formed again in each sweep
_CALL_OPERATIONS = 2e9  # of conjugate gradients between two looks for Ctrl-C
_LARGEST_PENALTY = 1e12


@dataclass(frozen=True)
class Step:
    """One reweighted regression: the estimate, how far it moved, and how its inner solver ended."""

    estimate: Estimate
    change: float
    square_sum: float
    inner_steps: int
    inner_error: float

    def image_of_left(self) -> np.ndarray:
        """Return (U Aᵀ + B Vᵀ)ᵀ U, (n_cols, k padded): half a power step, and the best start for the next."""
        estimate = self.estimate
        return np.asarray(estimate.coefficients + estimate.basis @ (estimate.rows.T @ estimate.left))


def tangent_step(
    observations: RowBlocks,
    layout: Layout,
    triplets: Triplets,
    *,
    smoothing: float,
    agop_power: float,
    ridge: float,
    tolerance: float,
    max_steps: int = MAX_INNER_STEPS,
) -> Step:
    """Return the reweighted regression from these triplets, all of them above `smoothing`.

    Parameters
    ----------
    observations : RowBlocks
    layout : Layout
    triplets : Triplets
        U, σ, V of the estimate before.
    smoothing, agop_power, ridge : float
        ε, α, λ.
    tolerance : float
        Of conjugate gradients, relative to the gradient at the estimate before.
    max_steps : int
    """
    growth = (triplets.singular_values / smoothing) ** (2.0 * agop_power)
    noise = ridge / max(smoothing ** (4.0 * agop_power), np.finfo(np.float64).tiny)
    # Padding directions are zeros; a penalty of one keeps their systems regular and their coefficients zero.
    penalty = padded(np.minimum((noise + 1.0) / (growth - 1.0), _LARGEST_PENALTY * (noise + 1.0)), 1.0)
    hidden = padded(1.0 - 1.0 / growth)
    left, basis = padded(triplets.left), padded(triplets.right)
    before = padded(triplets.right * triplets.singular_values)
    system = _System(observations, layout, left, basis, penalty, hidden)
    residual, _, _ = system.gradient(before)
    correction, inner_steps, inner_error = system.solve(residual, tolerance, max_steps)
    coefficients = before + correction
    remaining, rows, misfit = system.gradient(coefficients)
    theta = 1.0 / (1.0 + noise)
    estimate = Estimate(observations, layout, left, rows, coefficients, basis, theta)
    # The change in the tangent space, with the sparse part's share in it: R V = B diag(p) because B is eliminated
    # exactly, and Rᵀ U is the penalty's pull on A plus what is left of the gradient.
    hidden_part = basis @ (hidden[:, None] * (basis.T @ coefficients))
    sparse_share = theta * (remaining + penalty * (coefficients - hidden_part))
    inside = correction + basis @ (left.T @ rows).T + sparse_share
    outside = rows * (1.0 + theta * penalty)
    outside = outside - left @ (left.T @ outside)
    change = float(np.hypot(np.linalg.norm(inside), np.linalg.norm(outside)))
    return Step(estimate, change, float(misfit.sum()), inner_steps, inner_error)


class _System:
    """The Schur complement of one step: its row and column factors, and the calls into the kernels."""

    def __init__(
        self,
        observations: RowBlocks,
        layout: Layout,
        left: np.ndarray,
        basis: np.ndarray,
        penalty: np.ndarray,
        hidden: np.ndarray,
    ) -> None:
        k, n_stripes = penalty.size, layout.stripes.size - 1
        size = factor_size(k)
        self._observations, self._layout = observations, layout
        self._left, self._basis, self._penalty, self._hidden = left, basis, penalty, hidden
        n_kept = observations.n_rows if 8 * size * observations.n_rows <= _ROW_FACTOR_BYTES else 0
        self._row_factors = np.empty((n_kept, size))
        self._column_factors = np.zeros((observations.n_cols, size))
        for block in self._blocks():
            if n_kept:
                out = self._row_factors[block.rows]
                factor_rows(block.tiles, block.indptr, block.indices, basis, penalty, out)
            add_column_grams(layout.stripes, block.indptr, block.indices, left[block.rows], self._column_factors)
        factor_columns(layout.stripes, penalty, self._column_factors)
        self._parts = np.empty((layout.n_parts(observations, k), observations.n_cols, k))
        self._room = np.empty((n_stripes, k, k)), np.empty((k, k)), np.empty(n_stripes)
        self._steps_per_call = max(int(_CALL_OPERATIONS / (8.0 * max(k, 1) * observations.n_observed)), 1)

    def _blocks(self) -> Iterator[TileBlock]:
        return self._observations.tile_blocks(self._layout.tiles)

    def _sweep(
        self, block: TileBlock, coefficients: np.ndarray, values: np.ndarray, rows: np.ndarray, misfit: np.ndarray
    ) -> None:
        eliminated_sweep(
            block.tiles,
            block.first_tile,
            len(self._parts),
            block.indptr,
            block.indices,
            values,
            self._left[block.rows],
            self._basis,
            coefficients,
            self._row_factors[block.rows],
            self._penalty,
            rows,
            misfit,
            self._parts,
        )

    def gradient(self, coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return minus the gradient in A (n_cols, k), the B that goes with A (n_rows, k), and each row's misfit."""
        out, rows = np.empty_like(coefficients), np.empty_like(self._left)
        misfit = np.empty(len(rows))
        for block in self._blocks():
            self._sweep(block, coefficients, block.values, rows[block.rows], misfit[block.rows])
        finish_gradient(self._layout.stripes, self._parts, self._basis, coefficients, self._penalty, self._hidden, out)
        return out, rows, misfit

    def solve(self, residual: np.ndarray, tolerance: float, max_steps: int) -> tuple[np.ndarray, int, float]:
        """Return the correction of A, the steps taken, and the residual that is left relative to the start."""
        solution, direction, preconditioned, image = (np.empty_like(residual) for _ in range(4))
        state = np.array([0.0, 0.0, tolerance, 1.0, 1.0])
        vectors = solution, residual, direction, preconditioned, image
        start_conjugate_gradients(self._layout.stripes, self._column_factors, state, *vectors)
        while state[0] == state[1] < max_steps:
            state[1] = min(state[1] + self._steps_per_call, max_steps)
            self._take_steps(state, vectors)
        error = float(np.sqrt(state[3] / state[4])) if state[4] > 0.0 else 0.0
        return solution, int(state[0]), error

    def _take_steps(self, state: np.ndarray, vectors: tuple[np.ndarray, ...]) -> None:
        """Take conjugate gradient steps up to ``state[1]``: compiled where all rows come in one block."""
        stripes, none = self._layout.stripes, np.empty(0)
        system = self._basis, self._column_factors, self._penalty, self._hidden, self._parts
        goes_on = state[3] > state[2] * state[2] * state[4]
        while goes_on and state[0] < state[1]:
            for block in self._blocks():
                if block.tiles.size == self._layout.tiles.size:
                    conjugate_gradients(
                        block.tiles, len(self._parts), stripes, block.indptr, block.indices, self._left, self._basis,
                        self._row_factors, *system[1:], state, *vectors, *self._room,
                    )  # fmt: skip
                    return
                self._sweep(block, vectors[2], none, np.empty((0, self._penalty.size)), none)
            goes_on = finish_step(stripes, *system, state, *vectors, *self._room)
