"""Sparse regression over all columns: lin-RFM with K = diag((β² + ε²)^(2α)) while ε falls.

Each step solves (A K Aᵀ + λ I) a = y and sets β = K Aᵀ a: by Cholesky on n_samples x n_samples, in which columns that
K has made negligible are left out, or by conjugate gradients with A and Aᵀ. More samples than columns are first
reduced by a QR decomposition, rows that depend on each other by a singular value decomposition. Without a ridge the
answer interpolates; a gap in the sizes of its coefficients, behind which least squares on those before explain
the target to rounding, is an exact sparse answer. With an intercept A's rows have a null vector s; a multiple of s sᵀ
lifts it without changing β, as y is centred too.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from scipy.linalg.lapack import dpocon, dpotrf, dpotrs

from fastrfm._interrupt import check
from fastrfm.agop import feature_weights, gram_unit
from fastrfm.designs import DenseDesign, Design
from fastrfm.errors import InputError
from fastrfm.factors import svd
from fastrfm.options import Power
from fastrfm.sparse_options import LASSO_POWER, SparseOptions

LARGEST_GRAM = 6000  # side of a Gram that is factored; beyond it conjugate gradients
_FIRST_SHARE = 0.5  # of the largest coefficient: the first ε
_FLOOR, _RIDGE_FLOOR = 1e-9, 1e-5
_DROPS = (1.3, 1.1)  # factors by which ε falls, in turn where the first finds no exact answer
_CONVEX_DROP = 1.03  # a third attempt at α = ¼ and below, where the answer is one and near the limits comes slowly
_GENTLE_POWER = 0.375  # α of the last attempt, where it is below the one given
_AT_FLOOR = 20  # steps at the smallest ε, after which rounding is what moves the coefficients
_GAP, _MOST_SHARE = 1e-2, 0.9  # ratio of neighbours in size; nonzeros beside samples
_EXACT = 1e-9  # relative residual of an exact answer
_NEGLIGIBLE = 1e-15  # of the trace of A K Aᵀ
_JITTER = 4e-16
_SINGULAR = 1e-13
_CG_TOL = 1e-11


@dataclass
class Descent:
    """Coefficients, how they were found, and a record for each step."""

    coef: np.ndarray
    n_steps: int = 0
    stop_reason: str = ""
    history: dict[str, list[float]] = field(default_factory=lambda: {k: [] for k in ("smoothing", "change", "seconds")})


def reduce_rows(design: Design, targets: np.ndarray) -> tuple[Design, np.ndarray]:
    """Return an equivalent problem with n_features rows, from one with more: R and Qᵀ y of A = Q R, by row blocks."""
    n_features = design.shape[1]
    factor = np.zeros((0, n_features + targets.shape[1]))
    for rows, block in design.row_blocks():
        stacked = np.vstack([factor, np.hstack([block, targets[rows]])])
        factor = np.asarray(np.linalg.qr(stacked, mode="r"))
    top = factor[:n_features]
    return DenseDesign(top[:, :n_features].copy(order="F"), np.zeros(len(top))), top[:, n_features:]


def independent_rows(design: Design, targets: np.ndarray) -> tuple[Design, np.ndarray]:
    """Return an equivalent problem whose rows do not depend on each other; what contradicts is least squares."""
    gram = _lifted(design, np.ones(design.shape[1]))
    norm = float(np.abs(gram).sum(axis=0).max())
    factor, failure = dpotrf(gram, lower=1)
    if not failure and dpocon(factor, norm, uplo="L")[0] > _SINGULAR:
        return design, targets
    matrix = design.columns(np.arange(design.shape[1]))
    basis, lower = np.linalg.qr(matrix.T)
    left, sizes, right = svd(lower.T, full_matrices=False)
    kept = sizes > max(matrix.shape) * np.finfo(float).eps * sizes.max(initial=0.0)
    rows = sizes[kept, None] * (right[kept] @ basis.T)
    return design.dense(rows, np.zeros(len(rows))), left[:, kept].T @ targets


def interpolate(design: Design, target: np.ndarray, options: SparseOptions) -> Descent:
    """Return a sparse β with A β = y: attempts at the power given and below it, until one is exact."""
    n_rows, n_features = design.shape
    if n_rows == n_features and design.is_dense:
        return Descent(np.linalg.solve(design.columns(np.arange(n_features)), target), 1, "unique")
    is_function = callable(options.agop_power)
    is_convex = not is_function and options.agop_power <= LASSO_POWER
    drops = (*_DROPS, _CONVEX_DROP) if is_convex else _DROPS
    attempts: list[tuple[Power, float]] = [(options.agop_power, drop) for drop in drops]
    if not is_function and options.agop_power > _GENTLE_POWER:
        attempts.append((_GENTLE_POWER, drops[-1]))
    if options.smoothing != "auto":
        attempts = attempts[:1]
    kept: Descent | None = None
    for agop_power, drop in attempts:
        found = descend(design, target, options, agop_power, drop)
        # Of a convex penalty there is one least value, which a slower fall comes nearer to; else the first one stays.
        is_lower = is_convex and kept is not None and _penalty(found, options) < _penalty(kept, options)
        if kept is None or found.stop_reason == "exact" or is_lower:
            kept = found
        if found.stop_reason in ("exact", "zero", "max_iter") or options.linear_solver == "cg":
            break
    assert kept is not None
    return kept


def _penalty(found: Descent, options: SparseOptions) -> float:
    return float(np.sum(np.abs(found.coef) ** options.penalty_power))


def descend(
    design: Design,
    target: np.ndarray,
    options: SparseOptions,
    agop_power: Power,
    drop: float = 1.3,
    start: np.ndarray | None = None,
) -> Descent:
    """Iterate over all columns while ε falls by the factor `drop`, or stays where `options.smoothing` is a number.

    The first step has K = k I, with k in the unit that the coefficients' size suggests; `start`, (n_features,), is the
    β of the first K if given.
    """
    ridge, is_fixed = options.ridge, not isinstance(options.smoothing, str)
    coef = np.zeros(design.shape[1])
    scale = _scale(design, target)
    out = Descent(coef, stop_reason="zero")
    if scale == 0.0:
        return out
    solver = _Systems(design, target, options)
    smoothing = float(options.smoothing) if is_fixed else scale
    begun, floor, n_at_floor = time.perf_counter(), 0.0, 0
    weights = np.full(coef.size, gram_unit(agop_power, scale))
    if start is not None and start.any():
        smoothing = float(options.smoothing) if is_fixed else _FIRST_SHARE * float(np.abs(start).max())
        weights = _gram_weights(start, smoothing, agop_power)
    while True:
        check()
        following = solver.solve(weights)
        if following is None:
            out.stop_reason = "floor"
            break
        change = float(np.linalg.norm(following - coef) / max(float(np.linalg.norm(following)), 1e-300))
        coef = following
        largest = float(np.abs(coef).max())
        if largest == 0.0:
            out.stop_reason = "zero"
            break
        if out.n_steps == 0 and start is None and not is_fixed:
            smoothing = _FIRST_SHARE * largest
        out.n_steps += 1
        for name, value in zip(out.history, (smoothing, change, time.perf_counter() - begun), strict=True):
            out.history[name].append(value)
        if ridge == 0.0 and options.smoothing == "auto":
            exact = _exact_answer(design, target, coef)
            if exact is not None:
                out.coef, out.stop_reason = exact, "exact"
                return out
        is_at_floor = not is_fixed and smoothing <= floor * 1.01
        n_at_floor += is_at_floor
        if out.n_steps > 1 and change <= options.tol and (is_fixed or is_at_floor):
            out.stop_reason = "converged"
            break
        if n_at_floor > _AT_FLOOR and ridge == 0.0:
            out.stop_reason = "floor"
            break
        if out.n_steps >= options.max_iter:
            out.stop_reason = "max_iter"
            break
        if not is_fixed:
            floor = largest * (_FLOOR if ridge == 0.0 else _RIDGE_FLOOR)
            smoothing = min(smoothing, max(smoothing / drop, floor))
        weights = _gram_weights(coef, smoothing, agop_power)
    out.coef = coef
    return out


def _gram_weights(coef: np.ndarray, smoothing: float, agop_power: Power) -> np.ndarray:
    """Return K's diagonal, (n_features,)."""
    if callable(agop_power):
        return np.asarray(feature_weights(coef**2 + smoothing**2, agop_power) ** 2)
    return np.asarray((coef**2 + smoothing**2) ** (2.0 * agop_power))


class _Systems:
    """Solves for β given K, with the design of fewer and fewer columns."""

    def __init__(self, design: Design, target: np.ndarray, options: SparseOptions) -> None:
        self._whole, self._design, self._target = design, design, target
        self._chosen: np.ndarray | None = None
        self._ridge = options.ridge
        n_rows = design.shape[0]
        self._uses_cg = options.linear_solver == "cg" or (options.linear_solver == "auto" and n_rows > LARGEST_GRAM)
        self._dual = np.zeros(n_rows)
        self._tol = min(_CG_TOL, 0.01 * options.tol) if options.tol > 0.0 else _CG_TOL

    def solve(self, weights: np.ndarray) -> np.ndarray | None:
        """Return β, (n_features,), or None where rounding has made the system singular."""
        self._leave_out(weights)
        design, coef = self._design, np.zeros(weights.size)
        if design.shape[1] == 0:  # the ridge has the better of every column
            return coef
        local = weights if self._chosen is None else weights[self._chosen]
        unit = float(local.max())  # K and λ in a unit that neither overflows nor underflows
        local, ridge = local / unit, self._ridge / unit
        if self._uses_cg:
            shift = _shift(design, float(local @ design.squared_norms))
            design.solve(local, ridge, shift, self._target, self._tol, self._dual)
            dual: np.ndarray | None = self._dual
        else:
            dual = self._factored(design, local, ridge)
        if dual is None:
            return None
        found = local * design.adjoint(dual)
        if self._chosen is None:
            return np.asarray(found)
        coef[self._chosen] = found
        return coef

    def _factored(self, design: Design, weights: np.ndarray, ridge: float) -> np.ndarray | None:
        gram = _lifted(design, weights)
        jitter = 0.0 if ridge > 0.0 else _JITTER * float(np.trace(gram)) / len(gram)
        for _ in range(4):
            system = gram.copy(order="F")
            system.flat[:: len(gram) + 1] += ridge + jitter
            factor, failure = dpotrf(system, lower=1, overwrite_a=True)
            if not failure:
                return np.asarray(dpotrs(factor, self._target, lower=1)[0])
            jitter = 100.0 * max(jitter, _JITTER * float(np.trace(gram)) / len(gram))
        return None

    def _leave_out(self, weights: np.ndarray) -> None:
        """Shrink the design to the columns that count, once they are fewer than half."""
        shares = weights * self._whole.squared_norms
        counts = shares > _NEGLIGIBLE * max(float(shares.sum()), self._ridge)
        n_now = self._design.shape[1]
        chosen = np.flatnonzero(counts)
        # Without a ridge at least as many columns as samples must stay for the answer to interpolate.
        if chosen.size < max(n_now // 2, 1) and (self._ridge > 0.0 or chosen.size >= self._whole.shape[0]):
            smaller = self._whole.restricted(chosen)
            if smaller is not None:
                self._design, self._chosen = smaller, chosen


def check_size(design: Design, options: SparseOptions) -> None:
    """Raise InputError where neither a Gram fits nor conjugate gradients have a solution to go to."""
    n_rows, n_features = design.shape
    if options.ridge == 0.0 and n_rows > n_features > LARGEST_GRAM:
        raise InputError(
            f"ridge 0 with {n_rows} samples of {n_features} features is least squares beyond {LARGEST_GRAM} features, "
            "which is not supported: give a ridge above 0"
        )


def _exact_answer(design: Design, target: np.ndarray, coef: np.ndarray) -> np.ndarray | None:
    """Return least squares on the coefficients before a gap, where that explains the target to rounding."""
    sizes = np.abs(coef)
    most = min(design.shape[0], coef.size - 1)
    order = np.argpartition(-sizes, most)[: most + 1]
    order = order[np.argsort(-sizes[order])]
    ratios = sizes[order[1:]] / np.maximum(sizes[order[:-1]], 1e-300)
    place = int(np.argmin(ratios))
    if ratios[place] > _GAP or place + 1 > _MOST_SHARE * design.shape[0]:
        return None
    chosen = np.sort(order[: place + 1])
    columns = design.columns(chosen)
    found = np.linalg.lstsq(columns, target, rcond=None)[0]
    if np.linalg.norm(columns @ found - target) > _EXACT * np.linalg.norm(target):
        return None
    out = np.zeros(coef.size)
    out[chosen] = found
    return out


def _lifted(design: Design, weights: np.ndarray) -> np.ndarray:
    gram = design.reweighted(weights)
    shift = _shift(design, float(np.trace(gram)))
    return gram + shift * np.outer(design.roots, design.roots) if shift else gram


def _shift(design: Design, trace: float) -> float:
    total = float(design.roots @ design.roots)
    # Rows that add up to nothing have s as their null vector; where they do not, lifting it would be a change.
    return trace / (len(design.roots) * total) if total > 0.0 and design.is_centred else 0.0


def _scale(design: Design, target: np.ndarray) -> float:
    """Return the largest coefficient that a single column would have, the unit of β."""
    norms = np.where(design.squared_norms > 0.0, design.squared_norms, np.inf)
    return float(np.max(np.abs(design.adjoint(target)) / norms, initial=0.0))
