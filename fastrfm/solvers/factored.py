"""``method="factored"``: one-sided lin-RFM with a low-rank plus identity feature Gram, for large matrices.

With σ, V the leading singular values and right vectors of the estimate, δ = ε^(4α) and d_j = σ_j^(4α) − δ for every
σ_j > ε, the feature Gram is K = V diag(d) Vᵀ + δ I, and the row systems become ridge regressions on V (own
derivation, by Woodbury's identity):

    (V_JᵀV_J + (λ+δ) diag(1/d)) c_i = V_Jᵀ y_i,   X = C Vᵀ + θ P_Ω*(y − C Vᵀ),   θ = δ / (λ+δ)

With weights w of the squared misfits an entry's own share is θ w / (1 − θ + θ w) in place of θ, and V_J and y_J are
scaled by the roots of w / (1 − θ + θ w). X is low-rank plus sparse; its next σ, V come from one warm-started block
subspace step, U = orth(X V) in the same sweep as the row solves and Xᵀ U in a sweep by columns: two passes over the
observations an iteration, and memory for the observations and a few (n_rows + n_cols) x k arrays.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastrfm.agop import feature_weights, gram_unit
from fastrfm.arrays import HOST, HostArrays
from fastrfm.blocks import RowBlocks
from fastrfm.errors import InputError, RankWarning
from fastrfm.factors import numerical_rank, svd, tall_qr
from fastrfm.kernels.adjoint import add_adjoint_columns
from fastrfm.kernels.row_solves import replace_rows, solve_factored_rows
from fastrfm.options import CompletionOptions, Power, name_of
from fastrfm.solvers.checkpoint import Checkpoint
from fastrfm.solvers.monitor import Iteration, Monitor
from fastrfm.solvers.smoothing import next_smoothing, ridge_smoothing

# Without a rank, directions followed at first and at most: the block doubles whenever all of it is above ε,
# and narrows when most of it is not.
FIRST_BLOCK, LARGEST_BLOCK = 40, 320
EXTRA_DIRECTIONS = 8  # beyond a given rank: they speed the subspace step up and show sigma_{rank+1}
_FLOOR = 1e-15  # of the data's norm: directions below it are rounding
# In units of the features' own Gram, whose rounding is 1e-16: a smaller penalty would leave pivots of pure rounding.
_LEAST_PENALTY = 1e-14
_LEAST_POWER = 1e-300
_MOST_LEFT, _LITTLE = 1.5, 1e-2  # times what α = 1/4 leaves of the sparse part; what never matters
_RISE, _LEAST_GROWTH = 1e-12, 1e-100  # of a function φ: what counts as falling, and what as flat
_BARELY_ABOVE = 1.0 + 1e-10  # a direction at ε itself has weight d = 0


@dataclass(frozen=True)
class FeatureFactors:
    """The feature Gram K = V diag(d) Vᵀ + δ I, in the form that the row regressions need.

    Attributes
    ----------
    basis : (n_cols, b) float64
        Orthonormal; its first k columns are V.
    penalty : (k,) float64
        (λ + δ) / d.
    theta : float
        δ / (λ + δ).
    """

    basis: np.ndarray
    penalty: np.ndarray
    theta: float


@dataclass(frozen=True)
class LowRankPart:
    """C and V of an estimate: the estimate is C Vᵀ plus θ times its residual on the observed entries.

    Attributes
    ----------
    coefficients : (n_rows, k or more) float64
        C; columns beyond k are zero.
    basis : (n_cols, k) float64
        V, orthonormal.
    """

    coefficients: np.ndarray
    basis: np.ndarray

    def as_wide_as(self, n_directions: int, arrays: HostArrays) -> Any:
        """Return C with zeros up to `n_directions` columns and no others to spare; C itself if it is so already."""
        k = self.basis.shape[1]
        width = max(k, n_directions)
        if self.coefficients.shape[1] == width:
            return self.coefficients
        return arrays.widened(arrays.first(self.coefficients, k), width)


@dataclass(frozen=True)
class RowRegression:
    """The row systems solved.

    Attributes
    ----------
    part : LowRankPart
    projection : (n_rows, b) float64
        X·basis.
    square_sum : float
        Of y − C Vᵀ on the observed entries.
    change : float
        ‖C Vᵀ − C' V'ᵀ‖_F from the part before.
    """

    part: LowRankPart
    projection: np.ndarray
    square_sum: float
    change: float


def feature_factors(
    singular_values: np.ndarray, basis: np.ndarray, *, smoothing: float, agop_power: Power, ridge: float
) -> FeatureFactors:
    """Return the feature Gram of an estimate in factored form.

    Parameters
    ----------
    singular_values : (b,) float64, descending
    basis : (n_cols, b) float64
        The right singular vectors that go with them.
    smoothing : float
        ε; directions with σ_j > ε enter V.
    agop_power : float or callable
    ridge : float

    Raises
    ------
    InputError
        If a function in place of the power falls somewhere, or is 0 at ε².
    """
    k = int(np.count_nonzero(singular_values > smoothing * _BARELY_ABOVE))
    # Everything relative to δ: ratios neither overflow nor lose the scale of the data.
    growth, least = _growth(singular_values[:k], smoothing, agop_power)
    noise = ridge / max(least, _LEAST_POWER)
    penalty = (1.0 + noise) / growth
    return FeatureFactors(basis, np.maximum(penalty, _LEAST_PENALTY), 1.0 / (1.0 + noise))


def _growth(singular_values: np.ndarray, smoothing: float, agop_power: Power) -> tuple[np.ndarray, float]:
    """Return d / δ for every direction, and δ."""
    if not callable(agop_power):
        power = 4.0 * agop_power
        return np.asarray((singular_values / smoothing) ** power - 1.0), smoothing**power
    weights = feature_weights(np.append(singular_values, smoothing) ** 2, agop_power)
    if not singular_values.size:
        return singular_values, float(weights[-1] ** 2)
    if weights[-1] == 0.0 or (np.diff(weights) > _RISE * weights.max()).any():
        raise InputError(
            'method="factored" needs a function for agop_power that is above 0 and does not fall, but '
            f"{name_of(agop_power)} is {weights[-1]:.3g} at {smoothing**2:.3g} and from {weights[:-1].min():.3g} to "
            f'{weights[:-1].max():.3g} at the directions above: use method="dense"'
        )
    return np.maximum((weights[:-1] / weights[-1]) ** 2 - 1.0, _LEAST_GROWTH), float(weights[-1] ** 2)


def regress_rows(observations: RowBlocks, features: FeatureFactors, before: LowRankPart | None = None) -> RowRegression:
    """Solve the row systems and measure how far the low-rank part moved, without cancellation.

    `before` is used up: its coefficients are overwritten block by block, for two arrays of them would be the most
    memory of all. Without it the change is the norm.
    """
    arrays, n_rows, k = observations.arrays, observations.n_rows, features.penalty.size
    basis = arrays.first(features.basis, k)
    if before is None:
        before = LowRankPart(arrays.zeros(n_rows, 0), arrays.zeros(observations.n_cols, 0))
    n_before = before.basis.shape[1]
    overlap = arrays.inner(basis, before.basis)
    outside = arrays.copy(before.basis)
    arrays.add_product(outside, basis, -overlap)  # what V' has beyond the span of V
    coefficients = before.as_wide_as(k, arrays)
    old_square = arrays.inner(coefficients, coefficients)[:n_before, :n_before]
    outside_square = float(np.trace(old_square @ arrays.inner(outside, outside)))
    projection = arrays.empty(n_rows, features.basis.shape[1])
    misfit, moved = arrays.empty(n_rows), arrays.empty(n_rows)
    penalty, overlap = arrays.put(features.penalty), arrays.put(overlap)
    for block in observations.row_blocks():
        entries, span = block.by_row, slice(block.start, block.stop)
        solved = arrays.empty(block.n_rows, k)
        arrays.twin(solve_factored_rows)(
            entries.bounds,
            entries.indptr,
            entries.indices,
            entries.values,
            entries.weights,
            features.basis,
            penalty,
            features.theta,
            solved,
            projection[span],
            misfit[span],
        )
        arrays.twin(replace_rows)(solved, overlap, coefficients[span], moved[span])
    change = float(np.hypot(np.sqrt(arrays.total(moved)), np.sqrt(max(outside_square, 0.0))))
    return RowRegression(LowRankPart(coefficients, basis), projection, arrays.total(misfit), change)


def multiply_transposed(
    observations: RowBlocks, features: FeatureFactors, part: LowRankPart, directions: np.ndarray
) -> Any:
    """Return Xᵀ·directions, (n_cols, b), for the low-rank plus sparse X of this part."""
    arrays, k = observations.arrays, features.penalty.size
    out = arrays.zeros(observations.n_cols, directions.shape[1])
    for block in observations.row_blocks():
        entries, span = block.by_column, slice(block.start, block.stop)
        arrays.twin(add_adjoint_columns)(
            entries.bounds,
            entries.indptr,
            entries.indices,
            entries.values,
            entries.weights,
            part.coefficients[span],
            features.basis,
            k,
            features.theta,
            directions[span],
            out,
        )
    arrays.add_product(out, part.basis, arrays.inner(part.coefficients, directions)[:k])
    return out


def subspace_step(
    observations: RowBlocks,
    features: FeatureFactors,
    regression: RowRegression,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the leading singular values (b,) and right singular vectors (n_cols, b) of X, improved by one step.

    The projection of `regression` is overwritten, for its memory.
    """
    arrays = observations.arrays
    directions, _ = tall_qr(regression.projection, overwrite=True, arrays=arrays)
    image = multiply_transposed(observations, features, regression.part, directions)
    q, r = tall_qr(image, overwrite=True, arrays=arrays)
    left, singular_values, _ = svd(r)
    return singular_values, arrays.product(q, left)


def solve_factored(
    observations: RowBlocks,
    options: CompletionOptions,
    callback: Callable[[Iteration], Any] | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[np.ndarray, np.ndarray, Monitor]:
    """Complete a matrix with factors only.

    Parameters
    ----------
    observations : RowBlocks
    options : CompletionOptions
        ``method`` and ``offsets`` are not looked at.
    callback : callable, optional
    checkpoint : Checkpoint, optional

    Returns
    -------
    left, right : (n_rows, k) and (n_cols, k) float64
        The low-rank part of the estimate, cut to `options.rank` and to the directions above the tolerance.
    monitor : Monitor
    """
    data_norm, total_weight = observations.norm, float(observations.row_weights.sum())
    monitor = Monitor(options, data_norm, callback)
    smoothing = data_norm if isinstance(options.smoothing, str) else float(options.smoothing)
    least = ridge_smoothing(
        options.ridge, options.agop_power, options.effective_tol, observations.mean_weight, norm=data_norm
    )
    floor = max(_FLOOR * data_norm, least)
    if callable(options.agop_power) and options.ridge > 0.0 and isinstance(options.smoothing, str):
        _check_fading(options, floor, observations.mean_weight)
    wanted = FIRST_BLOCK if options.rank is None else options.rank + EXTRA_DIRECTIONS
    largest = min(LARGEST_BLOCK if options.rank is None else wanted, *observations.shape)
    rng, arrays = np.random.default_rng(options.random_state), observations.arrays
    singular_values, basis = np.zeros(0), arrays.zeros(observations.n_cols, 0)
    singular_values, basis = _widened(singular_values, basis, min(wanted, largest), rng, arrays)
    part = LowRankPart(arrays.zeros(observations.n_rows, 0), arrays.zeros(observations.n_cols, 0))
    if checkpoint is not None and (state := checkpoint.take()) is not None:
        monitor.restore(state["monitor"])
        smoothing, singular_values, basis = state["smoothing"], state["singular_values"], arrays.put(state["basis"])
        part = LowRankPart(**{name: arrays.put(array) for name, array in state["part"].items()})
        rng.bit_generator.state = state["random"]

    while True:
        if checkpoint is not None and checkpoint.is_due(monitor.n_iter):
            now = {"smoothing": smoothing, "singular_values": singular_values, "basis": arrays.fetch(basis)}
            now["part"] = {name: arrays.fetch(array) for name, array in vars(part).items()}
            now["random"] = dict(rng.bit_generator.state)
            checkpoint.write(monitor.n_iter, {**now, "monitor": monitor.state()})
        features = feature_factors(
            singular_values, basis, smoothing=smoothing, agop_power=options.agop_power, ridge=options.ridge
        )
        regression = regress_rows(observations, features, part)
        part, change, k = regression.part, regression.change, features.penalty.size
        norm = arrays.norm(part.coefficients)
        is_done = monitor.record(
            smoothing=smoothing,
            floor=floor,
            norm=norm,
            change=change,
            masked_rmse=(1.0 - features.theta) * float(np.sqrt(regression.square_sum / total_weight)),
            rank=k,
        )
        if is_done:
            break
        singular_values, basis = subspace_step(observations, features, regression)
        del regression  # the next one can do without its memory
        if options.rank is None:
            singular_values, basis = fit_width(singular_values, basis, k, largest, rng, arrays)
        smoothing = next_smoothing(
            options.smoothing,
            smoothing,
            change=change,
            error=monitor.error_estimate * norm,
            sigma_next=_sigma_next(singular_values, options),
            floor=floor,
        )
    if options.rank is None and k == LARGEST_BLOCK:
        warnings.warn(
            f"the estimate has more than the {LARGEST_BLOCK} directions that are followed without a rank: give a rank, "
            'a larger ridge, or use method="dense"',
            RankWarning,
            stacklevel=4,
        )
    k = min(k, numerical_rank(singular_values, options.effective_tol, data_norm=data_norm), options.rank or k)
    features = FeatureFactors(arrays.first(basis, k), features.penalty[:k], features.theta)
    del regression
    left = regress_rows(observations, features, part).part.coefficients
    return arrays.fetch(arrays.first(left, k)), arrays.fetch(features.basis), monitor


def _check_fading(options: CompletionOptions, floor: float, mean_weight: float) -> None:
    """Refuse a function with which the sparse part, which is dropped, fades less than at the power 1/4."""
    share = mean_weight * gram_unit(options.agop_power, floor) / options.ridge
    if share > _MOST_LEFT * max(math.sqrt(options.effective_tol), _LITTLE):
        raise InputError(
            f'method="factored" drops what {name_of(options.agop_power)} leaves of residuals, a share of {share:.2g} '
            'of the ridge, for it grows too slowly from 0: use method="dense", or a smaller tol'
        )


def fit_width(
    singular_values: np.ndarray,
    basis: np.ndarray,
    k: int,
    largest: int,
    rng: np.random.Generator,
    arrays: HostArrays = HOST,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the block twice as wide if all its directions were above ε (k of them), narrower if less than a third."""
    if k == singular_values.size < largest:
        return _widened(singular_values, basis, min(2 * k, largest), rng, arrays)
    width = min(max(2 * k, FIRST_BLOCK), singular_values.size)
    if 3 * k < singular_values.size and width < singular_values.size:
        return singular_values[:width], arrays.first(basis, width)
    return singular_values, basis


def _widened(
    singular_values: np.ndarray, basis: np.ndarray, n_directions: int, rng: np.random.Generator, arrays: HostArrays
) -> tuple[np.ndarray, np.ndarray]:
    """Return the block with random directions added up to `n_directions`; they have no weight before the next step."""
    n_new = n_directions - singular_values.size
    fresh = arrays.put(rng.standard_normal((basis.shape[0], n_new)))
    arrays.add_product(fresh, basis, -arrays.inner(basis, fresh))
    widened = tall_qr(arrays.beside(basis, fresh), arrays=arrays)[0]
    # The directions that were there stay: the orthonormalisation only gave them other signs.
    widened = arrays.beside(basis, arrays.columns(widened, basis.shape[1], n_directions))
    return np.concatenate([singular_values, np.zeros(n_new)]), widened


def _sigma_next(singular_values: np.ndarray, options: CompletionOptions) -> float:
    rank = options.rank or 0
    return float(singular_values[rank]) if rank < singular_values.size else 0.0
