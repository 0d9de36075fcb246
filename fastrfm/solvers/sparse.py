"""Sparse linear regression by lin-RFM with a diagonal AGOP: which way a problem takes, target by target.

With a ridge and a power that selects, ``sparse_path`` on the selected columns; else ``sparse_direct`` over all columns.
Targets share the design, each has its own K. Not here: reading arrays, intercepts (``sparse_regression``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fastrfm.designs import Design
from fastrfm.solvers.sparse_direct import LARGEST_GRAM, Descent, check_size, descend, independent_rows, interpolate
from fastrfm.solvers.sparse_direct import reduce_rows as _reduce_rows
from fastrfm.solvers.sparse_path import THRESHOLD_STEP, SelectedColumns
from fastrfm.sparse_options import SparseOptions

_PAYS = 2  # samples per feature from which a QR decomposition pays for the selected columns


@dataclass
class SparseFit:
    """Coefficients of one target.

    Attributes
    ----------
    coef : (n_features,) float64
    n_iter : int
        Linear systems solved.
    stop_reason : str
        "converged", "exact" (a sparse answer that explains the target to rounding), "unique" (there is only one),
        "floor" (rounding ended the descent of epsilon), "zero" (nothing is correlated with the target) or "max_iter".
    history : dict of (n_iter,) float64 arrays
        smoothing, change and seconds of each system over all columns; empty where only selected ones were used.
    """

    coef: np.ndarray
    n_iter: int
    stop_reason: str
    history: dict[str, np.ndarray] = field(default_factory=dict)


def solve_sparse(
    design: Design, targets: np.ndarray, options: SparseOptions, start: np.ndarray | None = None
) -> list[SparseFit]:
    """Return a fit for each column of `targets`.

    Parameters
    ----------
    design : Design
    targets : (n_samples, n_targets) float64
        Weighted and centred as the design.
    options : SparseOptions
    start : (n_targets, n_features) float64, optional
        Coefficients to go on from; only where there is a ridge.
    """
    check_size(design, options)
    design, targets = prepare(design, targets, options)
    starts: Sequence[np.ndarray | None] = [None] * targets.shape[1] if start is None else list(start)
    return [_solve_one(design, targets[:, t].copy(), options, starts[t]) for t in range(targets.shape[1])]


def prepare(design: Design, targets: np.ndarray, options: SparseOptions) -> tuple[Design, np.ndarray]:
    """Return the problem where `options.device` wants it, with fewer rows where that pays or is needed.

    The answers are the same. A tall problem is reduced on the processor: only what is left goes to a device.
    """
    n_rows, n_features = design.shape
    pays = n_rows > (_PAYS if options.is_sharp else 1) * n_features and n_features <= LARGEST_GRAM
    if pays:
        design, targets = _reduce_rows(design, targets)
    if options.device == "cuda":
        from fastrfm.device_designs import on_device  # loads what only devices need

        design = on_device(design)
    uses_gram = options.linear_solver != "cg" and design.shape[0] <= LARGEST_GRAM
    if options.ridge == 0.0 and uses_gram and design.squared_norms.any():
        design, targets = independent_rows(design, targets)
    return design, targets


def sparse_path(
    design: Design, target: np.ndarray, options: SparseOptions, ridges: np.ndarray, most: int
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return coefficients at falling ridges, each from the one before, until more than `most` are nonzero.

    Returns
    -------
    coefs : (n_solved, n_features) float64
    n_active : (n_solved,) int64
    has_converged : bool
        At all of them.
    """
    selected = SelectedColumns(design, target, options.penalty_power, options.tol, options.max_iter)
    coefs, n_active, has_converged = [], [], True
    for ridge in ridges:
        selected.solve(float(ridge))
        has_converged &= selected.has_converged
        coefs.append(selected.coefficients())
        n_active.append(selected.chosen.size)
        if selected.chosen.size > most:
            break
    return np.array(coefs).reshape(-1, design.shape[1]), np.array(n_active, dtype=np.int64), has_converged


def suggested_ridges(
    design: Design, targets: np.ndarray, penalty_power: float, n_ridges: int, least_share: float
) -> np.ndarray:
    """Return falling ridges whose entry thresholds are evenly spaced in the logarithm, (n_ridges,).

    The first is the smallest at which no target selects anything, the last has the threshold `least_share` of its.
    """
    top = 0.0
    for target in targets.T:
        selected = SelectedColumns(design, target, penalty_power, 0.0, 1)
        top = max(top, selected.largest_ridge())
    return np.asarray(top * np.geomspace(1.0, least_share, n_ridges) ** (2.0 - penalty_power))


def _solve_one(design: Design, target: np.ndarray, options: SparseOptions, start: np.ndarray | None) -> SparseFit:
    if options.is_sharp:
        selected = SelectedColumns(design, target, options.penalty_power, options.tol, options.max_iter)
        if start is not None and start.any():
            selected.start_from(start)
            selected.solve(options.ridge)
        else:
            selected.descend_to(options.ridge)
        reason = "converged" if selected.has_converged else "max_iter"
        return SparseFit(selected.coefficients(), selected.n_steps, reason)
    if options.ridge == 0.0 and isinstance(options.smoothing, str):
        found = interpolate(design, target, options)
    else:
        found = descend(design, target, options, options.agop_power, start=start)
    return _as_fit(found)


def _as_fit(found: Descent) -> SparseFit:
    history = {name: np.array(values) for name, values in found.history.items()}
    return SparseFit(found.coef, found.n_steps, found.stop_reason, history)


__all__ = ["THRESHOLD_STEP", "SparseFit", "prepare", "solve_sparse", "sparse_path", "suggested_ridges"]
