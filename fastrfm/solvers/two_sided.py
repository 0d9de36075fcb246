"""``method="two-sided"``: lin-RFM with the AGOP of rows and of columns, each at half the power.

With U, σ, V the leading singular triplets of the estimate X (σ_j > ε) the features' covariance is a Kronecker product,
(XXᵀ)^α ⊗ (XᵀX)^α with σ floored at ε. Let e = ε^(2α), w_j = σ_j^(2α), δ = e². It is the sum of four parts,

    δ I  +  U diag(w − e) Uᵀ ⊗ (e I + V diag(w − e) Vᵀ)  +  e I ⊗ V diag(w − e) Vᵀ,

so X = U Aᵀ + B Vᵀ + (sparse) with A and B unconstrained, and the regression is (own derivation)

    minimise  ½‖y − P_Ω(U Aᵀ + B Vᵀ)‖²  +  ½ Σ_j p_j [‖b_j‖² + a_jᵀ(I − V diag(h) Vᵀ) a_j],
    p_j = (λ + δ) / (e (w_j − e)),   h_j = 1 − e / w_j,   X = U Aᵀ + B Vᵀ + θ P_Ω*(residual),   θ = δ / (λ + δ).

Row i of B solves a k x k system for given A, so conjugate gradients run on A alone (``kernels.tangent``), from
A = XᵀU: on the correction, with a tolerance relative to what is still wrong. The next triplets come from block power
steps on low-rank + sparse, started from the last ones; XᵀX is never formed. How ε and α move: ``continuation``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastrfm._lanes import padded
from fastrfm.blocks import RowBlocks, TileBlock
from fastrfm.factors import numerical_rank
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
from fastrfm.options import CompletionOptions
from fastrfm.solvers.checkpoint import Checkpoint
from fastrfm.solvers.continuation import Continuation, Patience
from fastrfm.solvers.estimate import Estimate, Layout, Triplets, leading_triplets, start_estimate
from fastrfm.solvers.monitor import Iteration, Monitor

EXTRA_DIRECTIONS = 8  # beyond the rank: on the way more directions than it are above ε
RANK_CAP = 40  # the largest rank looked for when none is given
MAX_INNER_STEPS = 500
_ROW_FACTOR_BYTES = 2**27  # of row factors that are kept; more are formed again in each sweep
_CALL_OPERATIONS = 2e9  # of conjugate gradients between two looks for Ctrl-C
_BARELY_ABOVE = 1.0 + 1e-10
_LARGEST_PENALTY = 1e12
_ROUNDING = 1e-15
_RIDGE_ACCURACY = 1e-4  # with a ridge every direction counts in the answer
_SPECTRUM_ACCURACY = 1e-2  # of singular values near ε


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


def rank_cap(observations: RowBlocks, rank: int | None, ridge: float = 0.0) -> int:
    """Return the largest rank to look for: the one given, and never more unknowns than observed entries.

    With a ridge neither limit counts on the way: the answer is cut to its rank at the end.
    """
    total, n = observations.n_rows + observations.n_cols, observations.n_observed
    identifiable = total if ridge > 0.0 else int((total - np.sqrt(max(total * total - 4.0 * n, 0.0))) / 2.0)
    wanted = max(rank or 0, RANK_CAP) if rank is None or ridge > 0.0 else rank
    return max(min(wanted, identifiable, *observations.shape), 1)


def solve_two_sided(
    observations: RowBlocks,
    options: CompletionOptions,
    callback: Callable[[Iteration], Any] | None = None,
    start: tuple[np.ndarray, np.ndarray] | None = None,
    patience: Patience | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[np.ndarray, np.ndarray, Monitor]:
    """Complete a matrix.

    Parameters
    ----------
    observations : RowBlocks
    options : CompletionOptions
        ``method`` and ``offsets`` are not looked at.
    callback : callable, optional
    start : (n_rows, k) and (n_cols, k) float64, optional
        Factors of an estimate to go on from.
    patience : Patience, optional
        What ends the run as stalled; by default it tries everything and takes noise for noise.
    checkpoint : Checkpoint, optional

    Returns
    -------
    left, right : (n_rows, k) and (n_cols, k) float64
        The leading directions of the estimate, cut to `options.rank` and to those above ε and the tolerance.
    monitor : Monitor
        ``stop_reason`` is "stalled" if every attempt of ``continuation`` was given up, or `patience` ran out.
    """
    data_norm = observations.norm
    monitor = Monitor(options, data_norm, callback, is_fast=options.ridge == 0.0)
    cap = rank_cap(observations, options.rank, options.ridge)
    path = Continuation(options, data_norm, cap, cap == min(observations.shape), patience)
    nothing = np.zeros((observations.n_rows, 0)), np.zeros((observations.n_cols, 0))
    first = start_estimate(observations, Layout.of(observations), *(nothing if start is None else start))
    search = _Search(first, path, monitor)
    if checkpoint is not None and (state := checkpoint.take()) is not None:
        search.restore(state)
    while search.current is not None or (not monitor.stop_reason and path.has_next_attempt()):
        _attempt(search, options, data_norm, checkpoint)
    best, least = search.best, search.least
    if not monitor.stop_reason:
        monitor.stop_reason = "stalled"
    assert best is not None  # the first attempt always runs
    above = int(np.count_nonzero(best.singular_values > least))
    k = min(numerical_rank(best.singular_values, options.effective_tol, data_norm=data_norm), above)
    k = min(k, options.rank or k)
    if monitor.has_converged and path.shown_rank is not None:
        k = min(k, path.shown_rank)
    return best.left[:, :k] * best.singular_values[:k], best.right[:, :k], monitor


@dataclass
class _Search:
    """How far the attempts of a run are: what a checkpoint keeps.

    Attributes
    ----------
    first : Estimate
        What attempts begin from, unless it is a plateau.
    path : Continuation
    monitor : Monitor
    current : Triplets or None
        Of the attempt under way.
    best, least : Triplets or None, float
        The attempt that came furthest, and its ε.
    plateaus : dict of int to Estimate
        By rank.
    """

    first: Estimate
    path: Continuation
    monitor: Monitor
    current: Triplets | None = None
    best: Triplets | None = None
    least: float = math.inf
    plateaus: dict[int, Estimate] = field(default_factory=dict)

    def begin(self, random_state: int) -> None:
        """Start the next attempt of the path."""
        path = self.path
        estimate = self.plateaus[path.next_cap] if path.is_from_plateau else self.first
        rng, shape = np.random.default_rng(random_state), estimate.observations.shape
        begin = rng.standard_normal((shape[1], min(path.next_cap + EXTRA_DIRECTIONS, *shape)))
        known = min(estimate.coefficients.shape[1], begin.shape[1])
        begin[:, :known] = estimate.coefficients[:, :known]
        self.current = leading_triplets(estimate, begin, watched=path.next_cap + 1, accuracy=_SPECTRUM_ACCURACY)
        path.start_attempt(self.current.singular_values)

    def end(self) -> None:
        """Finish the attempt under way and keep it if it is the best so far."""
        if self.best is None or self.path.smoothing < self.least or self.monitor.has_converged:
            self.best, self.least = self.current, self.path.smoothing
        self.current = None

    def keep_plateau(self) -> None:
        assert self.current is not None
        kept = self.current.first(self.path.plateau)
        estimate = start_estimate(
            self.first.observations, self.first.layout, kept.left * kept.singular_values, kept.right
        )
        self.plateaus[self.path.plateau] = estimate

    def state(self) -> dict[str, Any]:
        assert self.current is not None  # offered inside attempts alone
        plateaus = {str(place): {"left": e.left, "coefficients": e.coefficients} for place, e in self.plateaus.items()}
        best = {} if self.best is None else vars(self.best)
        state = {"path": self.path.state(), "monitor": self.monitor.state(), "plateaus": plateaus, "least": self.least}
        return {**state, "current": vars(self.current), "best": best}

    def restore(self, state: dict[str, Any]) -> None:
        self.path.restore(state["path"])
        self.monitor.restore(state["monitor"])
        self.current, self.least = Triplets(**state["current"]), state["least"]
        self.best = Triplets(**state["best"]) if state["best"] else None
        for place, plateau in state["plateaus"].items():
            left, coefficients = plateau["left"], plateau["coefficients"]
            self.plateaus[int(place)] = start_estimate(self.first.observations, self.first.layout, left, coefficients)


def _attempt(search: _Search, options: CompletionOptions, data_norm: float, checkpoint: Checkpoint | None) -> None:
    """Go on with the attempt under way, or begin the next one, until the monitor stops or the path gives up."""
    path, monitor = search.path, search.monitor
    observations, layout = search.first.observations, search.first.layout
    if search.current is None:
        search.begin(options.random_state)
    while search.current is not None:
        if checkpoint is not None and checkpoint.is_due(monitor.n_iter):
            checkpoint.write(monitor.n_iter, search.state())
        triplets = search.current
        above = int(np.count_nonzero(triplets.singular_values > path.step_smoothing * _BARELY_ABOVE))
        used = triplets.first(min(above, path.n_directions))
        k = used.singular_values.size
        step = tangent_step(
            observations,
            layout,
            used,
            smoothing=path.step_smoothing,
            agop_power=path.agop_power,
            ridge=options.ridge,
            tolerance=path.inner_tolerance,
        )
        norm = float(np.linalg.norm(used.singular_values)) if k else data_norm
        is_done = monitor.record(
            smoothing=path.smoothing,
            floor=path.floor,
            norm=norm,
            change=step.change,
            masked_rmse=float(np.sqrt(step.square_sum / observations.n_observed)),
            rank=k,
            inner_steps=step.inner_steps,
            inner_error=step.inner_error,
            is_settled=path.is_noisy,
        )
        search.current = leading_triplets(
            step.estimate,
            np.column_stack([step.image_of_left()[:, :k], triplets.right[:, k:]]),
            watched=(k if options.rank is None or options.ridge > 0.0 else path.cap) + 1,
            accuracy=_SPECTRUM_ACCURACY if options.ridge == 0.0 else _RIDGE_ACCURACY,
            floor=_ROUNDING * data_norm,
        )
        if is_done:
            search.end()
            return
        path.advance(
            search.current.singular_values,
            change=step.change,
            norm=norm,
            error=monitor.error_estimate * norm,
            n_directions=k,
            inner_steps=step.inner_steps,
        )
        if path.plateau:
            search.keep_plateau()
        if path.is_stuck:
            search.end()
        del step, used, triplets  # the next step can do without their memory
