"""Which way a low-rank recovery takes: fewer rows, the linear solver, one answer only.

More measurements than the matrix has entries are first reduced by a QR decomposition, with the same answers; without a
ridge they then may leave one matrix only. The linear solver is the one with fewer operations.
"""

from __future__ import annotations

import numpy as np

from fastrfm.errors import InputError
from fastrfm.factors import svd
from fastrfm.low_rank_options import LowRankOptions
from fastrfm.measurements import Measurements, OperatorMeasurements, StackMeasurements
from fastrfm.solvers.low_rank import LowRankFit, solve_low_rank
from fastrfm.solvers.low_rank_systems import LARGEST_SYSTEM, CholeskySystems, ConjugateGradients, ContradictionError

LARGEST_STACK = 1 << 30  # bytes of an operator's measurements that are written out
_USUAL_OVERSAMPLING = 2.5  # where no rank says how many unknowns there are
_USUAL_STEPS = 10.0
_LARGEST_DECADES = 100.0  # of sizes to the powers that are taken
_FEW = 300  # measurements that are factored in no time


def recover(measurements: Measurements, values: np.ndarray, options: LowRankOptions) -> LowRankFit:
    """Return the fit of a checked problem."""
    n, n_rows, n_cols = measurements.shape
    n_entries = n_rows * n_cols
    _check_sizes(measurements, values, options)
    if isinstance(measurements, OperatorMeasurements) and _is_written_out(measurements, options):
        measurements = measurements.as_stack()
    if isinstance(measurements, StackMeasurements) and n >= n_entries and n_entries <= LARGEST_SYSTEM:
        measurements, values = _reduced(measurements, values)
        if options.ridge == 0.0:
            measurements, values, unique = _independent(measurements, values)
            if unique is not None:
                return unique
    elif options.ridge == 0.0 and n >= n_entries and not _uses_cholesky(measurements, options):
        raise InputError(
            f"ridge 0 with {n} measurements of {n_entries} entries is least squares, which conjugate gradients do not "
            "solve here: give a ridge above 0 or an array of measurements"
        )
    if _uses_cholesky(measurements, options):
        return solve_low_rank(measurements, values, options, CholeskySystems(measurements, values, options.ridge))
    try:
        return solve_low_rank(measurements, values, options, ConjugateGradients(measurements, values))
    except ContradictionError:
        can_merge = not isinstance(measurements, OperatorMeasurements) and measurements.shape[0] <= LARGEST_SYSTEM
        if options.linear_solver != "auto" or not can_merge:
            raise
    return solve_low_rank(measurements, values, options, CholeskySystems(measurements, values, options.ridge))


def _check_sizes(measurements: Measurements, values: np.ndarray, options: LowRankOptions) -> None:
    """Refuse problems whose powers, up to the 4 agop_power of the weights, come near the ends of float64."""
    if not values.any() or not measurements.adjoint(values / np.abs(values).max()).any():
        return  # nothing was measured but zeros
    with np.errstate(all="ignore"):
        entry = np.sqrt(measurements.square_sum / np.prod([float(side) for side in measurements.shape]))
        sizes = np.array([entry, np.abs(values).max(), np.abs(values).max() / entry])
        decades = np.abs(np.log10(sizes)).max()
    power = 2.0 if callable(options.agop_power) else max(4.0 * options.agop_power, 2.0)
    if not decades * power <= _LARGEST_DECADES:
        raise InputError(
            f"measurements of about {entry:.1e} an entry and y up to {sizes[1]:.1e}, or powers of them, leave the "
            "range of float64: multiply them by constants first"
        )


def _is_written_out(measurements: OperatorMeasurements, options: LowRankOptions) -> bool:
    n, n_rows, n_cols = measurements.shape
    fits = 8 * n * n_rows * n_cols <= LARGEST_STACK
    if options.linear_solver == "cholesky" and not fits:
        raise InputError(
            f'linear_solver="cholesky" writes out the {n} measurements of the LinearOperator, which take more than '
            f'{LARGEST_STACK >> 30} GiB: use linear_solver="cg"'
        )
    is_overdetermined = n >= n_rows * n_cols and options.ridge == 0.0
    return fits and (options.linear_solver == "cholesky" or is_overdetermined)


def _uses_cholesky(measurements: Measurements, options: LowRankOptions) -> bool:
    n, n_rows, n_cols = measurements.shape
    if options.linear_solver != "auto":
        return options.linear_solver == "cholesky"
    if isinstance(measurements, OperatorMeasurements) or n > LARGEST_SYSTEM:
        return False
    if n <= _FEW or (n >= n_rows * n_cols and options.ridge == 0.0):
        return True
    rank = options.rank or 0
    n_unknowns = min(rank * (n_rows + n_cols - rank) or n / _USUAL_OVERSAMPLING, n)
    steps = n_unknowns**2 * (n + n_unknowns / 3.0) + _USUAL_STEPS * (measurements.pass_cost + 32.0 * n * n_unknowns)
    return measurements.gram_cost + n**3 / 3.0 < steps


def _reduced(measurements: StackMeasurements, values: np.ndarray) -> tuple[StackMeasurements, np.ndarray]:
    """Return an equivalent problem of as many measurements as entries: R and Qᵀ y of 𝒜 = Q R, by blocks."""
    _, n_rows, n_cols = measurements.shape
    factor: np.ndarray = np.zeros((0, n_rows * n_cols + 1))
    for block, flat in measurements.flat_blocks():
        factor = np.asarray(np.linalg.qr(np.vstack([factor, np.column_stack([flat, values[block]])]), mode="r"))
    top = factor[: n_rows * n_cols]
    return StackMeasurements(top[:, :-1].reshape(-1, n_rows, n_cols).copy()), top[:, -1].copy()


def _independent(
    measurements: StackMeasurements, values: np.ndarray
) -> tuple[StackMeasurements, np.ndarray, LowRankFit | None]:
    """Return measurements that do not depend on each other, and the only best matrix where they leave no choice."""
    n, n_rows, n_cols = measurements.shape
    left, sizes, right = svd(measurements.stack.reshape(n, -1), full_matrices=False)
    kept = sizes > n * np.finfo(np.float64).eps * sizes.max(initial=0.0)
    values = left[:, kept].T @ values
    if kept.sum() == n_rows * n_cols:
        matrix = (right.T @ (values / sizes)).reshape(n_rows, n_cols)
        return measurements, values, LowRankFit(matrix, stop_reason="unique" if matrix.any() else "zero")
    rows = sizes[kept, None] * right[kept]
    return StackMeasurements(rows.reshape(-1, n_rows, n_cols)), values, None
