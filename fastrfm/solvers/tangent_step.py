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
from typing import Any

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

    def image_of_left(self) -> Any:
        """Return (U Aᵀ + B Vᵀ)ᵀ U, (n_cols, k padded): half a power step, and the best start for the next."""
        estimate, arrays = self.estimate, self.estimate.observations.arrays
        image = arrays.copy(estimate.coefficients)
        arrays.add_product(image, estimate.basis, arrays.inner(estimate.rows, estimate.left))
        return image


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
    arrays = observations.arrays
    growth = (triplets.singular_values / smoothing) ** (2.0 * agop_power)
    noise = ridge / max(smoothing ** (4.0 * agop_power), np.finfo(np.float64).tiny)
    # Padding directions are zeros; a penalty of one keeps their systems regular and their coefficients zero.
    penalty = padded(np.minimum((noise + 1.0) / (growth - 1.0), _LARGEST_PENALTY * (noise + 1.0)), 1.0)
    hidden = padded(1.0 - 1.0 / growth)
    left, basis = arrays.padded(triplets.left), arrays.padded(triplets.right)
    before = arrays.padded(arrays.scaled(triplets.right, triplets.singular_values))
    system = _System(observations, layout, left, basis, penalty, hidden)
    residual, _, _ = system.gradient(before)
    correction, inner_steps, inner_error = system.solve(residual, tolerance, max_steps)
    coefficients = arrays.copy(before)
    arrays.add(coefficients, correction)
    remaining, rows, square_sum = system.gradient(coefficients)
    theta = 1.0 / (1.0 + noise)
    estimate = Estimate(observations, layout, left, rows, coefficients, basis, theta)
    # The change in the tangent space, with the sparse part's share in it: R V = B diag(p) because B is eliminated
    # exactly, and Rᵀ U is the penalty's pull on A plus what is left of the gradient.
    inside = correction
    arrays.add_product(inside, basis, arrays.inner(left, rows).T)
    arrays.add(inside, remaining, theta)
    penalised = arrays.copy(coefficients)
    arrays.add_product(penalised, basis, -hidden[:, None] * arrays.inner(basis, coefficients))
    arrays.add(inside, penalised, theta * penalty)
    outside = arrays.scaled(rows, 1.0 + theta * penalty)
    arrays.add_product(outside, left, -arrays.inner(left, outside))
    change = float(np.hypot(arrays.norm(inside), arrays.norm(outside)))
    return Step(estimate, change, square_sum, inner_steps, inner_error)


class _System:
    """The Schur complement of one step: its row and column factors, and the calls into the kernels."""

    def __init__(
        self,
        observations: RowBlocks,
        layout: Layout,
        left: Any,
        basis: Any,
        penalty: np.ndarray,
        hidden: np.ndarray,
    ) -> None:
        k, n_stripes = penalty.size, layout.stripes.size - 1
        size, arrays = factor_size(k), observations.arrays
        self._observations, self._layout, self._arrays = observations, layout, arrays
        self._left, self._basis = left, basis
        self._penalty, self._hidden, self._stripes = (arrays.put(part) for part in (penalty, hidden, layout.stripes))
        n_kept = observations.n_rows if 8 * size * observations.n_rows <= arrays.scratch_bytes else 0
        self._row_factors = arrays.empty(n_kept, size)
        self._column_factors = arrays.zeros(observations.n_cols, size)
        for block in self._blocks():
            if n_kept and size:
                out = self._row_factors[block.rows]
                arrays.twin(factor_rows)(block.tiles, block.indptr, block.indices, basis, self._penalty, out)
            arrays.twin(add_column_grams)(
                self._stripes, block.indptr, block.indices, left[block.rows], self._column_factors
            )
        arrays.twin(factor_columns)(self._stripes, self._penalty, self._column_factors)
        self._parts = arrays.empty(layout.n_parts(observations, k), observations.n_cols, k)
        self._room = arrays.empty(n_stripes, k, k), arrays.empty(k, k), arrays.empty(n_stripes)
        self._steps_per_call = max(int(_CALL_OPERATIONS / (8.0 * max(k, 1) * observations.n_observed)), 1)

    def _blocks(self) -> Iterator[TileBlock]:
        return self._observations.tile_blocks(self._layout.tiles)

    def _sweep(self, block: TileBlock, coefficients: Any, values: Any, rows: Any, misfit: Any) -> None:
        self._arrays.twin(eliminated_sweep)(
            block.tiles,
            block.first_tile,
            self._parts.shape[0],
            block.indptr,
            block.indices,
            values,
            self._left[block.rows],
            self._basis,
            coefficients,
            # Without directions there is nothing to slice, which device arrays do in another way.
            self._row_factors[block.rows] if self._row_factors.size else self._row_factors,
            self._penalty,
            rows,
            misfit,
            self._parts,
        )

    def gradient(self, coefficients: Any) -> tuple[Any, Any, float]:
        """Return minus the gradient in A (n_cols, k), the B that goes with A (n_rows, k), and the squared misfit."""
        arrays = self._arrays
        out, rows = arrays.empty(*coefficients.shape), arrays.empty(*self._left.shape)
        misfit = arrays.empty(rows.shape[0])
        for block in self._blocks():
            self._sweep(block, coefficients, block.values, rows[block.rows], misfit[block.rows])
        arrays.twin(finish_gradient)(
            self._stripes, self._parts, self._basis, coefficients, self._penalty, self._hidden, out
        )
        return out, rows, arrays.total(misfit)

    def solve(self, residual: Any, tolerance: float, max_steps: int) -> tuple[Any, int, float]:
        """Return the correction of A, the steps taken, and the residual that is left relative to the start."""
        arrays = self._arrays
        solution, direction, preconditioned, image = (arrays.empty(*residual.shape) for _ in range(4))
        state = arrays.put(np.array([0.0, 0.0, tolerance, 1.0, 1.0]))
        vectors = solution, residual, direction, preconditioned, image
        arrays.twin(start_conjugate_gradients)(self._stripes, self._column_factors, state, *vectors)
        now = arrays.fetch(state)
        while now[0] == now[1] < max_steps:
            now[1] = min(now[1] + self._steps_per_call, max_steps)
            state = arrays.put(now)
            self._take_steps(state, vectors)
            now = arrays.fetch(state)
        return solution, int(now[0]), float(np.sqrt(now[3] / now[4])) if now[4] > 0.0 else 0.0

    def _take_steps(self, state: Any, vectors: tuple[Any, ...]) -> None:
        """Take conjugate gradient steps up to ``state[1]``: compiled where all rows come in one block."""
        arrays, stripes = self._arrays, self._stripes
        none, no_rows = arrays.empty(0), arrays.empty(0, self._left.shape[1])
        system = self._basis, self._column_factors, self._penalty, self._hidden, self._parts
        done, allowed, tolerance, squared, first = arrays.fetch(state)
        goes_on = squared > tolerance * tolerance * first
        while goes_on and done < allowed:
            for block in self._blocks():
                if block.tiles.size == self._layout.tiles.size:
                    arrays.twin(conjugate_gradients)(
                        block.tiles, self._parts.shape[0], stripes, block.indptr, block.indices, self._left,
                        self._basis, self._row_factors, *system[1:], state, *vectors, *self._room,
                    )  # fmt: skip
                    return
                self._sweep(block, vectors[2], none, no_rows, none)
            goes_on = arrays.twin(finish_step)(stripes, *system, state, *vectors, *self._room)
            done += 1.0
