"""Choosing options by K-fold cross-validation over a full grid: every entry is held out once for every setting.

Flow: ``Observations`` -> ``make_grid`` (settings, ridges from the data's own scale) -> ``fold_fits`` (one fit for each
setting and fold) -> ``CrossValidation`` (means, standard errors, the best setting and the one-standard-error choice).
The fits themselves are ``solvers.completion``'s. Not here: tables in files (``cli.tune``), figures (``ridge_plot``).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from fastrfm._interrupt import deferred
from fastrfm._numba import check_thread_count, thread_limit
from fastrfm.blocks import RowBlocks
from fastrfm.errors import InputError, NotConvergedWarning
from fastrfm.metrics import mae, rmse
from fastrfm.observations import Observations
from fastrfm.options import CompletionOptions, name_of
from fastrfm.solvers.completion import complete
from fastrfm.solvers.estimate import Layout, leading_triplets, start_estimate
from fastrfm.solvers.offsets import fit_offsets
from fastrfm.solvers.side_information import SideInformation, check_in_memory
from fastrfm.splits import assign_folds as assign_folds  # part of this module's face
from fastrfm.splits import assign_group_folds

_SPAN = 1e-2  # of singular values that the ridges of a grid go down to, from the largest one's ridge
_PROBES, _ACCURACY = 8, 1e-3  # of the power steps for the largest singular value


@dataclass(frozen=True)
class Setting:
    """A point of the grid; units as in ``CompletionOptions``."""

    agop_power: float
    ridge: float
    offsets: bool


@dataclass(frozen=True)
class Fit:
    """What one setting did on one fold.

    Attributes
    ----------
    setting : Setting
    fold : int
        From 0.
    n_held_out : int
        Entries of the fold.
    rmse, mae : float
        On them, data's unit.
    rank, n_iter : int
    seconds : float
    stop_reason : str
        As of ``CompletionResult``.
    """

    setting: Setting
    fold: int
    n_held_out: int
    rmse: float
    mae: float
    rank: int
    n_iter: int
    seconds: float
    stop_reason: str


@dataclass(frozen=True)
class Summary:
    """A setting over all folds: means, standard errors of the means (data's unit), and how many did not converge."""

    setting: Setting
    rmse: float
    rmse_error: float
    mae: float
    mae_error: float
    rank: float
    n_iter: float
    seconds: float
    n_not_converged: int


# --- the grid -----------------------------------------------------------------------------------------------------


def largest_ridge(observations: RowBlocks, agop_power: float) -> float:
    """Return the ridge from which on the estimate of these values (offsets taken off already) is zero.

    Notes
    -----
    Let s, u, v be the leading singular triplet of P_Ω(w Y) and ρ = Σ_Ω w u_i² v_j². With a penalty of power q = 4α the
    estimate x u vᵀ stands still where

        ρ x − s + λ x^(1 − q) = 0,   so   λ = s x^(q − 1) − ρ x^q,

    which is largest at x = (q − 1) s / (q ρ): λ_max = s^q ρ^(1 − q) (q − 1)^(q − 1) / q^q. At α = ¼, the nuclear norm,
    that is s, and exact: X = 0 is the minimiser from there on. Above it λ_max is that of the leading direction alone.
    Below ¼ no ridge makes the estimate vanish; the scale s^q ρ^(1 − q) stands in.
    """
    rng, shape = np.random.RandomState(0), observations.shape
    start = rng.standard_normal((shape[1], min(_PROBES, *shape)))
    nothing = np.zeros((shape[0], 1)), np.zeros((shape[1], 1))
    pulled = observations  # by the gradient at zero: the values times their weights
    if observations.is_weighted:
        entries = check_in_memory(observations, "ridges for weighted entries need")
        pulled = entries.with_values(entries.values * entries.weights)
    estimate = start_estimate(pulled, Layout.of(pulled), *nothing)
    with thread_limit(check_thread_count(None)):  # BLAS at one thread: any number of them gives the same bits
        found = leading_triplets(estimate, start, watched=1, accuracy=_ACCURACY)
    size, u, v = float(found.singular_values[0]), found.left[:, 0] ** 2, found.right[:, 0] ** 2
    if not size > 0.0:
        raise InputError("nothing is left to complete that could tell which ridges to try: give them")
    share = 0.0
    for block in observations.row_blocks():
        weights = block.by_row.weights if observations.is_weighted else 1.0
        share += float(u[block.entry_rows()] @ (weights * v[block.by_row.indices]))
    power = 4.0 * agop_power
    scale = (power - 1.0) ** (power - 1.0) / power**power if power > 1.0 else 1.0
    return float(size**power * share ** (1.0 - power) * scale)


def make_grid(
    observations: RowBlocks,
    agop_powers: Sequence[float] = (0.25, 1.0 / 3.0, 0.375, 0.5),
    ridges: Sequence[float] | None = None,
    *,
    n_ridges: int = 8,
    offsets: Sequence[bool] = (False, True),
) -> list[Setting]:
    """Return every combination of power, offsets and ridge, ridges falling.

    Parameters
    ----------
    observations : Observations or StoredObservations
    agop_powers : sequence of float
    ridges : sequence of float, optional
        By default `n_ridges` of them for each power, with and without offsets: geometric, from :func:`largest_ridge`
        to where singular values a hundred times as small survive.
    n_ridges : int
        At least 2.
    offsets : sequence of bool

    Raises
    ------
    InputError
        If there is nothing to combine, an option is out of its range, or no ridge is given and the data are zero.
    """
    if not len(agop_powers) or not len(offsets) or (ridges is not None and not len(ridges)):
        raise InputError("the grid is empty: give at least one power, one ridge and one choice of offsets")
    if n_ridges < 2:
        raise InputError(f"n_ridges must be at least 2, got {n_ridges}")
    grid = []
    with deferred():
        for has_offsets in dict.fromkeys(offsets):
            centred = observations
            if ridges is None and has_offsets:
                centred = observations.shifted(fit_offsets(observations).at)
            for power in dict.fromkeys(agop_powers):
                CompletionOptions(agop_power=power)  # refuses what is out of range
                if callable(power):
                    raise InputError(f"agop_powers must be numbers, got {name_of(power)}: a grid takes no functions")
                if ridges is None:
                    steps = _SPAN ** (4.0 * power * np.arange(n_ridges) / (n_ridges - 1))
                    tried = (largest_ridge(centred, power) * steps).tolist()
                else:
                    tried = sorted(set(ridges), reverse=True)
                grid += [Setting(power, ridge, has_offsets) for ridge in tried]
    return grid


# --- the fits -----------------------------------------------------------------------------------------------------


def fold_fits(
    observations: Observations,
    grid: Sequence[Setting],
    folds: int = 5,
    random_state: int = 0,
    *,
    options: CompletionOptions | None = None,
    groups: Any = None,
    row_features: Any = None,
    col_features: Any = None,
) -> Iterator[Fit]:
    """Yield the fits one by one, all folds of a setting before the next setting.

    Parameters
    ----------
    observations : Observations
        In memory: each fit takes a copy of the entries that it may see.
    grid : sequence of Setting
    folds : int
    random_state : int
        Seed of the folds.
    options : CompletionOptions, optional
        All that the grid does not set: rank, method, tol, ...
    groups : "row", "column" or (rows, cols, groups), optional
        Hold these out as a whole, see :func:`fastrfm.splits.split_by_group`. Of a row held out nothing is known but
        its features.
    row_features, col_features : array_like, optional
        Side information, as of ``complete``.

    Raises
    ------
    InputError
        Before the first fit: if an option is out of its range, groups or features cannot be used, or the observations
        stay in a file.
    """
    if not isinstance(observations, Observations):
        raise InputError("cross-validation wants the observations in memory: raise memory, or take a part of them")
    base = CompletionOptions() if options is None else options
    base.check_shape(observations.shape)
    all_options = [replace(base, **asdict(setting)) for setting in grid]
    SideInformation.of(observations.shape, row_features, col_features)  # refuses what cannot be used
    if groups is None:
        fold_of = assign_folds(observations.n_observed, folds, random_state)
    else:
        fold_of = assign_group_folds(observations, groups, folds, random_state)
    features = {"row_features": row_features, "col_features": col_features}
    return _fits(observations, grid, all_options, fold_of, folds, features)


def _fits(
    observations: Observations,
    grid: Sequence[Setting],
    all_options: list[CompletionOptions],
    fold_of: np.ndarray,
    folds: int,
    features: dict[str, Any],
) -> Iterator[Fit]:
    for setting, options in zip(grid, all_options, strict=True):
        for fold in range(folds):
            is_held = fold_of == fold
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotConvergedWarning)  # each fit's stop_reason says so
                result = complete(observations.select(~is_held), **asdict(options), **features)
            held = observations.select(is_held)
            rows, cols, values = held.to_coo()
            predicted, weights = result.predict(rows, cols), held.weights if held.is_weighted else None
            errors = rmse(predicted, values, weights), mae(predicted, values, weights)
            yield Fit(
                setting, fold, values.size, *errors, result.rank, result.n_iter, result.seconds, result.stop_reason
            )


@dataclass(frozen=True)
class CrossValidation:
    """The fits that were made, and what they say.

    Attributes
    ----------
    folds : int
    fits : list of Fit
        In the order of the grid; a search that was stopped has fewer.
    """

    folds: int
    fits: list[Fit] = field(default_factory=list)

    def summaries(self) -> list[Summary]:
        """Return the settings of which every fold was fitted, in the order of the grid."""
        groups: dict[Setting, list[Fit]] = {}
        for fit in self.fits:
            groups.setdefault(fit.setting, []).append(fit)
        return [_summary(setting, fits) for setting, fits in groups.items() if len(fits) == self.folds]

    def best(self) -> Summary:
        """Return the setting of the least mean RMSE.

        Raises
        ------
        InputError
            If no setting has all its folds.
        """
        return min(self._finished(), key=lambda summary: summary.rmse)

    def one_standard_error(self) -> Summary:
        """Return the largest ridge whose mean RMSE is within one standard error of the best.

        Of the best setting's power and offsets: ridges of different powers have different units.
        """
        best = self.best()
        alike = [
            summary
            for summary in self._finished()
            if replace(summary.setting, ridge=best.setting.ridge) == best.setting
            and summary.rmse <= best.rmse + best.rmse_error
        ]
        return max(alike, key=lambda summary: summary.setting.ridge)

    def _finished(self) -> list[Summary]:
        found = self.summaries()
        if not found:
            raise InputError("no setting has all its folds: let the search go on for longer")
        return found


def cross_validate(
    observations: Observations,
    grid: Sequence[Setting],
    folds: int = 5,
    random_state: int = 0,
    *,
    options: CompletionOptions | None = None,
    groups: Any = None,
    row_features: Any = None,
    col_features: Any = None,
) -> CrossValidation:
    """Return the errors of every setting on entries that its fits did not see; see :func:`fold_fits`.

    Notes
    -----
    Standard errors are those of the mean over folds, as if folds were independent: sd / √folds.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.RandomState(0)
    >>> noisy = np.outer(rng.rand(20), rng.rand(15)) + 0.01 * rng.randn(20, 15)
    >>> observations = Observations.from_dense(noisy)
    >>> found = cross_validate(observations, make_grid(observations, [0.25], [0.1, 10.0], offsets=[False]))
    >>> found.best().setting
    Setting(agop_power=0.25, ridge=0.1, offsets=False)
    """
    features = {"row_features": row_features, "col_features": col_features}
    fits = fold_fits(observations, grid, folds, random_state, options=options, groups=groups, **features)
    return CrossValidation(folds, list(fits))


def _summary(setting: Setting, fits: list[Fit]) -> Summary:
    def mean(name: str) -> float:
        return float(np.mean([getattr(fit, name) for fit in fits]))

    def error(name: str) -> float:
        return float(np.std([getattr(fit, name) for fit in fits], ddof=1)) / math.sqrt(len(fits))

    return Summary(
        setting,
        mean("rmse"),
        error("rmse"),
        mean("mae"),
        error("mae"),
        mean("rank"),
        mean("n_iter"),
        mean("seconds"),
        sum(fit.stop_reason != "converged" for fit in fits),
    )
