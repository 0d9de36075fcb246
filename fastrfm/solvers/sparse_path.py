"""Sparse regression with a ridge: lin-RFM on the columns that the penalty has selected, down from a large ridge.

With ε = 0 a coefficient that is zero stays zero, so the step (K^½ AᵀA K^½ + λ I) u = K^½ Aᵀ y, β = K^½ u,
K = diag(|β|^(4α)), needs only the selected columns: their Gram is kept and grows as columns enter. A column enters
where, alone, it would have a minimum away from zero (``sparse_penalty``); one whose coefficient has become too small
for a minimum leaves. From one ridge to the next the coefficients are kept. Near the minimum Newton's step replaces
the reweighting: same limit, quadratic. At α = ¼ this ends at the lasso's optimum, every column checked; for larger α at
a minimum of a non-convex objective, which no column left out could enter alone, or which has left after it had
entered at the same ridge.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg.lapack import dposv

from fastrfm._interrupt import check
from fastrfm.designs import Design
from fastrfm.solvers.sparse_penalty import entry_threshold, largest_ridge, least_size

THRESHOLD_STEP = 0.85  # of the entry threshold, from one ridge to the next on the way to the one asked for
_MOST_ROUNDS = 20  # in which columns enter at one ridge
_ABOVE = 1.0 + 1e-9
_NEWTON_SHARE = 0.5  # of a coefficient, the largest step that is trusted
_FLAT = 1e-13  # of the Gram's diagonal, added where it may be singular
_PATIENCE = 20  # reweighting steps after which the smallest coefficient is asked to leave


class SelectedColumns:
    """The selected columns of one design and target, their Gram and coefficients, from ridge to ridge.

    Attributes
    ----------
    chosen : (n_active,) int64
        Numbers of the selected columns.
    coef : (n_active,) float64
    n_steps : int
        Linear systems solved.
    n_sweeps : int
        Passes over all columns.
    has_converged : bool
        At the last ridge.
    """

    def __init__(self, design: Design, target: np.ndarray, power: float, tol: float, max_iter: int) -> None:
        self._design, self._target, self._power = design, target, power
        self._tol, self._max_iter = tol, max_iter
        self._norms = design.squared_norms
        self.chosen, self.coef = np.zeros(0, dtype=np.int64), np.zeros(0)
        self._columns = np.zeros((target.size, 0), order="F")
        self._gram, self._moments = np.zeros((0, 0)), np.zeros(0)
        self.n_steps, self.n_sweeps, self.has_converged = 0, 0, True
        self._correlations: np.ndarray | None = None  # Aᵀ r at the present coefficients

    def start_from(self, coef: np.ndarray) -> None:
        """Select the nonzero coefficients of an earlier answer, (n_features,)."""
        chosen = np.flatnonzero((coef != 0.0) & (self._norms > 0.0))
        self._add(chosen, coef[chosen])

    def coefficients(self) -> np.ndarray:
        """Return β, (n_features,)."""
        out = np.zeros(self._design.shape[1])
        out[self.chosen] = self.coef
        return out

    def correlations(self) -> np.ndarray:
        """Return Aᵀ (y − A β), (n_features,)."""
        if self._correlations is None:
            check()
            self._correlations = self._design.adjoint(self._target - self._columns @ self.coef)
            self.n_sweeps += 1
        return self._correlations

    def largest_ridge(self) -> float:
        """Return the smallest ridge at which no column enters from zero."""
        return largest_ridge(self._power, self.correlations(), self._norms)

    def descend_to(self, ridge: float) -> None:
        """Solve at ridges from the largest down to `ridge`, each from the one before."""
        factor = THRESHOLD_STEP ** (2.0 - self._power)
        following = factor * self.largest_ridge()
        while following > ridge:
            self.solve(following)
            following *= factor
        self.solve(ridge)

    def solve(self, ridge: float) -> None:
        """Find a minimum at `ridge` from the present coefficients."""
        last_step = self.n_steps + self._max_iter
        self.has_converged = True
        was_tried = np.zeros(self._design.shape[1], dtype=bool)
        thresholds = entry_threshold(self._power, ridge, self._norms)
        is_settled = self.chosen.size == 0
        for _ in range(_MOST_ROUNDS):
            excess = np.abs(self.correlations())
            may_enter = excess > _ABOVE * thresholds
            may_enter[self.chosen] = False
            entering = np.flatnonzero(may_enter & ~was_tried)
            if entering.size == 0:
                if is_settled:
                    return
            else:
                # The lasso's way out and in is part of its optimum; elsewhere it would go round in circles.
                was_tried[entering] = self._power < 1.0
                self._add(entering, self._first_sizes(entering, ridge))
            self._settle(ridge, last_step)
            is_settled = True
            if not self.has_converged:
                return
        self.has_converged = False

    def _first_sizes(self, entering: np.ndarray, ridge: float) -> np.ndarray:
        assert self._correlations is not None
        correlations, norms = self._correlations[entering], self._norms[entering]
        if self._power < 1.0:
            return np.asarray(np.sign(correlations) * least_size(self._power, ridge, norms))
        return np.asarray(np.sign(correlations) * (np.abs(correlations) - ridge) / norms)

    # --- inside a ridge ---------------------------------------------------------------------------------------

    def _settle(self, ridge: float, last_step: int) -> None:
        """Iterate on the selected columns until their coefficients rest."""
        n_slow = 0
        while self.chosen.size:
            if self._drop_small(ridge):
                continue
            if self.n_steps >= last_step:
                self.has_converged = False
                return
            self.n_steps += 1
            step = self._newton_step(ridge)
            if step is not None and self._is_trusted(step):
                self._move(self.coef - step)
                if np.linalg.norm(step) <= self._tol * np.linalg.norm(self.coef):
                    return
            elif step is not None and self._power >= 1.0:
                self._step_to_sign_change(step)
            else:
                n_slow += 1
                self._reweight(ridge)
                if n_slow % _PATIENCE == 0:
                    self._drop_slowest(ridge)

    def _newton_step(self, ridge: float) -> np.ndarray | None:
        """Return H⁻¹ ∇ on the selected columns, or None where H is not positive definite."""
        sizes, power = np.abs(self.coef), self._power
        gradient = self._gram @ self.coef - self._moments + ridge * np.sign(self.coef) * sizes ** (power - 1.0)
        hessian = self._gram.copy()
        if power < 1.0:
            hessian.flat[:: sizes.size + 1] += ridge * (power - 1.0) * sizes ** (power - 2.0)
        else:  # more columns than samples: along what is flat the step is long, and ends where a column leaves
            hessian.flat[:: sizes.size + 1] += _FLAT * np.diagonal(hessian).max()
        _, step, failure = dposv(hessian, gradient, overwrite_a=True)
        return None if failure or not np.isfinite(step).all() else np.asarray(step)

    def _is_trusted(self, step: np.ndarray) -> bool:
        if self._power < 1.0:
            return bool(np.all(np.abs(step) < _NEWTON_SHARE * np.abs(self.coef)))
        return bool(np.all((self.coef - step) * self.coef > 0.0))

    def _step_to_sign_change(self, step: np.ndarray) -> None:
        """Go along `step` until the first coefficient is zero, which leaves: the lasso is quadratic up to there."""
        with np.errstate(divide="ignore", invalid="ignore"):
            lengths = np.where(self.coef * step > 0.0, self.coef / step, np.inf)
        first = int(np.argmin(lengths))
        self._move(self.coef - lengths[first] * step)
        self._keep(np.arange(self.coef.size) != first)

    def _reweight(self, ridge: float) -> None:
        """Do one lin-RFM step with ε = 0: it never increases the objective."""
        roots = np.abs(self.coef) ** (0.5 * (2.0 - self._power))
        system = self._gram * np.outer(roots, roots)
        system.flat[:: roots.size + 1] += ridge
        _, scaled, failure = dposv(system, roots * self._moments, overwrite_a=True)
        if failure:  # the ridge is beyond rounding beside the Gram: the smallest coefficient is what it cannot resolve
            self._keep(np.arange(roots.size) != int(np.argmin(roots)))
        else:
            self._move(roots * scaled)

    def _drop_small(self, ridge: float) -> bool:
        sizes = np.abs(self.coef)
        if self._power < 1.0:
            least = least_size(self._power, ridge, self._norms[self.chosen]) / 3.0
        else:
            least = np.full(sizes.size, 1e-13 * sizes.max())
        is_large = sizes > least
        if is_large.all():
            return False
        self._keep(is_large)
        return True

    def _drop_slowest(self, ridge: float) -> None:
        """Drop the coefficient nearest to where minima end: past it, the way down to zero can take forever."""
        if self._power >= 1.0:
            return
        ratios = np.abs(self.coef) / least_size(self._power, ridge, self._norms[self.chosen])
        if self.coef.size and ratios.min() < 2.0:
            self._keep(np.arange(ratios.size) != int(np.argmin(ratios)))

    # --- the selected columns ---------------------------------------------------------------------------------

    def _move(self, coef: np.ndarray) -> None:
        self.coef, self._correlations = coef, None

    def _add(self, entering: np.ndarray, coef: np.ndarray) -> None:
        if entering.size == 0:
            return
        columns = self._design.columns(entering)
        cross = self._columns.T @ columns
        self._gram = np.block([[self._gram, cross], [cross.T, columns.T @ columns]])
        self._moments = np.concatenate([self._moments, columns.T @ self._target])
        self._columns = np.asfortranarray(np.hstack([self._columns, columns]))
        self.chosen = np.concatenate([self.chosen, entering])
        self._move(np.concatenate([self.coef, coef]))

    def _keep(self, kept: np.ndarray) -> None:
        self.chosen, self._moments = self.chosen[kept], self._moments[kept]
        self._gram = self._gram[np.ix_(kept, kept)]
        self._columns = np.asfortranarray(self._columns[:, kept])
        self._move(self.coef[kept])
