"""Choosing ridge, power, rank, offsets and the use of the pattern on entries held out: what "auto" stands for.

1. Scouts: for each variant (with offsets or without, then with the pattern as side information) a warm-started descent
   at power 1/4, where the penalty is convex, from the ridge that leaves nothing, halved until the held-out error rises.
2. From the best place on it, each power climbs to its best ridge by smaller factors. Beyond 1/4 local minima depend on
   the way in: one starts with the directions that the convex penalty found, and raises the ridge.
3. Where most of the spread was predicted noise is small, and descents are left too early: fits go to their limit, at
   one ridge after the other, first at power ½, whose iterations are the cheapest.
4. ``descent.follow`` repeats the best way on all entries, the number of iterations is part of what was chosen; a limit
   is run to like any other.

Nothing but observed entries is looked at. Flow: ``completion`` asks for a ``Choice``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter

import numpy as np

from fastrfm._interrupt import check
from fastrfm.blocks import RowBlocks, drawn
from fastrfm.errors import RankWarning
from fastrfm.kernels.residual import predict_pairs
from fastrfm.observations import Observations
from fastrfm.options import AUTO, FACTORED_POWER, CompletionOptions
from fastrfm.results import Offsets, Selection
from fastrfm.solvers.checkpoint import Checkpoint
from fastrfm.solvers.count_scales import count_scales, rescaled
from fastrfm.solvers.dense import solve_dense
from fastrfm.solvers.descent import Descent, Stage
from fastrfm.solvers.factored import solve_factored
from fastrfm.solvers.journal import Journal
from fastrfm.solvers.offsets import fit_offsets
from fastrfm.solvers.outliers import huber_losses
from fastrfm.solvers.placement import placed
from fastrfm.solvers.side_information import SideInformation, augmented, check_in_memory
from fastrfm.solvers.smoothing import ridge_smoothing

POWERS = (1.0 / 3.0, 0.375, 0.5)  # tried after 1/4
PATTERN_DIRECTIONS = 40  # of the pattern, where it is tried
_SHARE, _MOST_HELD_OUT = 0.1, 200_000  # more would tell nothing new
_SMALL, _SMALL_SHARE, _LEAST = 500, 0.25, 10  # entries: fewer want a larger share held out, or cannot spare any
_SCOUT_FACTOR, _SCOUT_STEPS = 0.5, 4
_NEAR, _NEAR_FACTOR, _NEAR_STEPS = 2.0, 0.7, 6
_CLIMB_FACTOR, _CLIMB_STEPS, _SETTLING_STEPS = 1.35, 5, 8
# Beyond 1/4 climbs start at w (λ_¼/w)^(4α), w the mean weight, times the first, times the second^(4α − 1).
_ENTRY, _ENTRY_GROWTH = 1.4, 5.0
_PATIENCE = 4  # times as many iterations a stage where entries have weights: the lighter ones follow more slowly
_SMALLEST_RIDGE = 1e-6  # of the first one
_HOPELESS, _HOPELESS_SHARE = 1.1, 0.9  # a scout this much worse than the best, at so large a share of its rank
_WORTH = 1e-4  # relative improvement for which it is worth going on
# Noise that is small: of the spread of the entries held out, or of values on a scale.
_QUIET, _QUIET_ON_A_SCALE = 0.5, 0.15
LIMIT_STEPS, _LIMIT_TOL = 300, 1e-3
# Entries times iterations, half a minute or so, and fits that must have room: beyond it the search is content with
# what it has.
_LIMIT_WORK, _LEAST_LIMITS = 5e8, 4
_DENSE_SIZE = 50_000  # of the matrix, up to which the dense form, whose limits are the better ones, costs no more
# Singular values at which the first of these fits shrinks by half, over those of the base; from one fit to the next;
# and around the best.
_LIMIT_ABOVE, _LIMIT_FACTOR, _LIMIT_NEAR, _LEAST_SIZE = 8.0, 0.25, 0.5, 1e-9
# Around what nothing at all predicts a rise does not end a scout: with weights far apart the first directions are those
# of single entries.
_BEGUN = 0.01
_PILE = 1e-3  # share of the entries at each end of their range that makes it a scale


@dataclass(frozen=True, eq=False)
class Variant:
    """Observations in the form that a descent works on, and the way back.

    Attributes
    ----------
    work : RowBlocks
        Less offsets, with side information, the longer side in rows.
    offsets : Offsets or None
    centred : RowBlocks
        Less offsets, as they were given.
    is_turned : bool
    scales : (row_scales, col_scales), (n_rows, 1) and (n_cols, 1) float64
        What rows and columns of the values were multiplied by, see ``count_scales``.
    """

    work: RowBlocks
    offsets: Offsets | None
    centred: RowBlocks
    is_turned: bool
    scales: tuple[np.ndarray, np.ndarray] | None = None

    @classmethod
    def of(
        cls,
        observations: RowBlocks,
        options: CompletionOptions,
        side: SideInformation,
        offsets: Offsets | None = None,
    ) -> Variant:
        """Return the variant that `options`, with `offsets` and `implicit` settled, ask for.

        Offsets that are given are taken off in place of fitted ones.
        """
        if offsets is None and options.offsets:
            offsets = fit_offsets(observations)
        centred = observations if offsets is None else observations.shifted(offsets.at)
        work, scales = centred, None
        if options.count_power:
            scales = count_scales(observations, options.count_power)
            work = rescaled(check_in_memory(centred, "count_power needs"), *scales)
        if options.implicit or side:
            entries = check_in_memory(observations, "side information (row_features, col_features, implicit) needs")
            whole = side.with_pattern(entries, int(options.implicit), options.random_state)
            work = augmented(check_in_memory(work, "side information needs"), whole, options.side_weight)
        is_turned = work.n_cols > work.n_rows
        return cls(work.transposed() if is_turned else work, offsets, centred, is_turned, scales)

    def factors(self, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of factors of `work` that belong to the matrix, as it was given."""
        if self.is_turned:
            left, right = right, left
        left, right = left[: self.centred.n_rows], right[: self.centred.n_cols]
        return (left, right) if self.scales is None else (left / self.scales[0], right / self.scales[1])


@dataclass(frozen=True, eq=False)
class Choice:
    """What was chosen.

    Attributes
    ----------
    options : CompletionOptions
        With nothing left to choose.
    schedule : tuple of Stage
        The way to the chosen fit; empty for the limit of the options.
    selection : Selection
    """

    options: CompletionOptions
    schedule: tuple[Stage, ...]
    selection: Selection


@dataclass(frozen=True, eq=False)
class _Fit:
    """One fit of the search."""

    options: CompletionOptions
    schedule: tuple[Stage, ...]
    error: float
    rank: int
    predicted: np.ndarray


def scale_bounds(observations: RowBlocks) -> tuple[float, float] | None:
    """Return the ends of the range of the values if values pile up at both, as on a rating scale; else None."""
    low, high = observations.value_range
    if low == high:
        return None
    at_low = observations.row_sums(lambda values: values == low).sum()
    at_high = observations.row_sums(lambda values: values == high).sum()
    return (low, high) if min(at_low, at_high) >= max(_PILE * observations.n_observed, _LEAST) else None


def hold_out(observations: RowBlocks, random_state: int) -> tuple[RowBlocks, Observations] | None:
    """Return (kept, held out) entries for the search, drawn at random; None if there are too few to spare any.

    The draw is that of ``StoredObservations.split``, so that a file is treated as the same entries in memory.
    """
    n = observations.n_observed
    if n < _LEAST:
        return None
    share = _SMALL_SHARE if n < _SMALL else min(_SHARE, _MOST_HELD_OUT / n)
    if not isinstance(observations, Observations):
        kept, held_out = observations.split(share, random_state=random_state)
        assert isinstance(held_out, Observations)
        return kept, held_out
    held = drawn(0, n, share, random_state)
    return (observations.select(~held), observations.select(held)) if 0 < held.sum() < n else None


def choose(
    kept: RowBlocks,
    held_out: Observations,
    options: CompletionOptions,
    side: SideInformation,
    bounds: tuple[float, float] | None = None,
    progress: Callable[[int, float], object] | None = None,
    keeper: Checkpoint | None = None,
) -> Choice:
    """Return the options that predict the entries held out best, those that are not "auto" as they are.

    Parameters
    ----------
    kept : RowBlocks
    held_out : Observations
        Of the same shape, in memory.
    options : CompletionOptions
    side : SideInformation
    bounds : (float, float), optional
        Predictions are cut to them.
    progress : callable, optional
        Called after each fit with the number of fits and the least RMSE so far.
    keeper : Checkpoint, optional
        Takes the search's state, and gives it back after a kill.
    """
    search = _Search(kept, held_out, options, side, bounds, progress, Journal(keeper))
    for scouted in _variants(options, kept):
        search.scout(search.settled(scouted))
    given = options.agop_power
    if given != FACTORED_POWER:
        search.settle()
    for power in POWERS if given == AUTO else [float(given)]:
        if not search.climb(power):
            break
    if given == AUTO and search.best().options.agop_power == FACTORED_POWER:
        search.climb(FACTORED_POWER)
    if search.is_quiet():
        search.go_to_limits(POWERS[::-1] if given == AUTO else [float(given)])
    search.journal.close()
    return search.choice()


def _variants(options: CompletionOptions, kept: RowBlocks) -> Iterator[dict[str, object]]:
    """Yield what each scout settles; what it leaves open is taken from the best scout before."""
    yield {"offsets": True if options.offsets == "auto" else options.offsets, "implicit": _least_pattern(options)}
    if options.offsets == "auto":
        yield {"offsets": False, "implicit": _least_pattern(options)}
    if options.implicit == "auto" and isinstance(kept, Observations):
        yield {"implicit": min(PATTERN_DIRECTIONS, *kept.shape)}


def _least_pattern(options: CompletionOptions) -> int:
    return 0 if options.implicit == "auto" else int(options.implicit)


@dataclass
class _Search:
    kept: RowBlocks
    held_out: Observations
    options: CompletionOptions
    side: SideInformation
    bounds: tuple[float, float] | None
    progress: Callable[[int, float], object] | None
    journal: Journal
    fits: list[_Fit] = field(default_factory=list)
    notes: list[dict[str, float]] = field(default_factory=list)
    base: _Fit | None = None  # the best of the scouts, from which climbs begin
    base_descent: Descent | None = None
    n_base: int = -1  # the number of the fit that left it there

    def __post_init__(self) -> None:
        self._start = perf_counter() - (self.journal.seconds[-1] if self.journal.seconds else 0.0)
        self._patience = _PATIENCE if self.kept.is_weighted else 1
        rows, cols, self._values = self.held_out.to_coo()
        self._rows, self._cols = rows.astype(np.int64), cols.astype(np.int64)
        weights = self.held_out.entry_weights
        self._weights = weights / weights.mean()
        self._variants: dict[tuple[bool, int], Variant] = {}
        self._n_limit_steps = 0

    # --- fits -------------------------------------------------------------------------------------------------

    def settled(self, scouted: dict[str, object]) -> CompletionOptions:
        """Return the options of a scout: what it leaves open is that of the best fit so far."""
        before = self.options if self.base is None else self.base.options
        return replace(before, **{"agop_power": FACTORED_POWER, "ridge": 0.0, **scouted})  # type: ignore[arg-type]

    def best(self) -> _Fit:
        return min(self.fits, key=lambda fit: fit.error)

    def variant(self, options: CompletionOptions) -> Variant:
        key = bool(options.offsets), int(options.implicit)
        if key not in self._variants:
            self._variants[key] = Variant.of(self.kept, options, self.side)
        return self._variants[key]

    def fit(self, options: CompletionOptions, descent: Descent, schedule: tuple[Stage, ...]) -> _Fit:
        """Go on along the last stage of a schedule and note the held-out error."""
        stage, n = schedule[-1], len(self.fits)
        predicted = self.journal.recall(n, descent)
        is_new = predicted is None
        if predicted is None:
            predicted = self._predicted_after(stage, options, descent)
            base = None if self.base_descent is None else (self.n_base, self.base_descent)
            self.journal.note(predicted, perf_counter() - self._start, stage.n_iter, descent, base)
        settled = replace(options, agop_power=stage.agop_power, ridge=stage.ridge)
        n_iter, seconds = sum(part.n_iter for part in schedule), self.journal.seconds[n]
        return self._noted(settled, schedule, predicted, descent.rank, n_iter, seconds, is_new=is_new)

    def _noted(
        self,
        options: CompletionOptions,
        schedule: tuple[Stage, ...],
        predicted: np.ndarray,
        rank: int,
        n_iter: int,
        seconds: float,
        *,
        is_new: bool = True,
    ) -> _Fit:
        square, error = self._losses(predicted), self._error(predicted)
        fit = _Fit(options, schedule, error, rank, predicted)
        self.fits.append(fit)
        self.notes.append(
            {
                "agop_power": float(options.agop_power),
                "ridge": float(options.ridge),
                "offsets": bool(options.offsets),
                "implicit": int(options.implicit),
                "rank": rank,
                "rmse": error,
                "standard_error": float(square.std() / np.sqrt(square.size)),
                "n_iter": n_iter,
                "seconds": seconds,
            }
        )
        if self.progress is not None and is_new:
            self.progress(len(self.fits), self.best().error)
        return fit

    def _predicted_after(self, stage: Stage, options: CompletionOptions, descent: Descent) -> np.ndarray:
        weight = descent.observations.mean_weight
        smoothing = ridge_smoothing(stage.ridge, stage.agop_power, options.effective_tol, weight)
        for _ in range(stage.n_iter):
            check()
            descent.step(stage.agop_power, stage.ridge, smoothing)
        return self.predict(self.variant(options), descent.factors())

    def _error(self, predicted: np.ndarray) -> float:
        return float(np.sqrt(np.mean(self._losses(predicted))))

    def _losses(self, predicted: np.ndarray) -> np.ndarray:
        """Return weighted squares; with `huber` they grow only linearly beyond its threshold."""
        residuals, huber = predicted - self._values, self.options.huber
        return np.asarray(self._weights * (np.square(residuals) if huber is None else huber_losses(residuals, huber)))

    def predict(self, variant: Variant, factors: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        left, right = variant.factors(*factors)
        predicted = np.empty(self._rows.size)
        predict_pairs(self._rows, self._cols, left, right, predicted)
        if variant.offsets is not None:
            predicted += variant.offsets.at(self._rows, self._cols)
        return predicted if self.bounds is None else np.clip(predicted, *self.bounds)

    # --- ways -------------------------------------------------------------------------------------------------

    def scout(self, options: CompletionOptions) -> None:
        """Descend at power 1/4 until the held-out error rises: from the ridge that leaves nothing, or near the base's.

        The pattern changes little about the best ridge, so that its scout need not come from far.
        """
        work = placed(self.variant(options).work, options.device)
        descent = Descent(work, options.rank, options.random_state).begin()
        first = ridge = descent.largest_ridge
        factor, n_steps = _SCOUT_FACTOR, _SCOUT_STEPS
        if self.base is not None and options.offsets == self.base.options.offsets:
            ridge, factor, n_steps = _NEAR * self.base.options.ridge, _NEAR_FACTOR, _NEAR_STEPS
        nothing = self._error(self.predict(self.variant(options), descent.factors()))
        schedule: tuple[Stage, ...] = ()
        least = np.inf
        while ridge > _SMALLEST_RIDGE * first:
            schedule = (*schedule, Stage(FACTORED_POWER, ridge, self._patience * n_steps))
            fit = self.fit(options, descent, schedule)
            if self.base is None or fit.error < self.base.error:
                self.base, self.base_descent, self.n_base = fit, descent.copy(), len(self.fits) - 1
            is_hopeless = fit.error > _HOPELESS * self.base.error and fit.rank > _HOPELESS_SHARE * self.base.rank
            has_begun = least < (1.0 - _BEGUN) * nothing or fit.error > (1.0 + _BEGUN) * nothing
            if is_hopeless or (has_begun and fit.error > least * (1.0 + _WORTH)):
                return
            least = min(least, fit.error)
            ridge *= factor

    def settle(self) -> None:
        """Make the best scout's directions ready to be climbed from: more of them, and nearer to their limit."""
        assert self.base is not None and self.base_descent is not None
        ridge = self.base.options.ridge / _CLIMB_FACTOR
        stage = Stage(FACTORED_POWER, ridge, self._patience * _SETTLING_STEPS)
        self.n_base = len(self.fits)  # this fit itself takes the descent on
        self.base = self.fit(self.base.options, self.base_descent, (*self.base.schedule, stage))

    def climb(self, power: float) -> bool:
        """Go from the base to the best ridge at a power; return whether that beats all before it."""
        assert self.base is not None and self.base_descent is not None
        before = self.best().error
        exponent = 4.0 * power
        weight = self.base_descent.observations.mean_weight
        start = weight * (self.base.options.ridge / weight) ** exponent
        if power > FACTORED_POWER:
            start *= _ENTRY * _ENTRY_GROWTH ** (exponent - 1.0)
        if self._walk(power, start, _CLIMB_FACTOR) == 1:
            self._walk(power, start / _CLIMB_FACTOR, 1.0 / _CLIMB_FACTOR)
        return self.best().error < before

    def _walk(self, power: float, ridge: float, factor: float) -> int:
        """Fit at one ridge after the other until the error rises; return how many fits led to the best of them."""
        assert self.base is not None and self.base_descent is not None
        descent, schedule = self.base_descent.copy(), self.base.schedule
        least, n_best, n = np.inf, 0, 0
        while True:
            schedule = (*schedule, Stage(power, ridge, self._patience * _CLIMB_STEPS))
            fit = self.fit(self.base.options, descent, schedule)
            n += 1
            if fit.error < least:
                least, n_best = fit.error, n
            if fit.error > least * (1.0 + _WORTH) or descent.rank == 0:
                return n_best
            ridge *= factor

    # --- limits -----------------------------------------------------------------------------------------------

    def is_quiet(self) -> bool:
        """Return whether most of the spread was predicted, so that noise is small."""
        mean = np.full(self._values.size, np.average(self._values, weights=self._weights))
        share = _QUIET if scale_bounds(self.kept) is None else _QUIET_ON_A_SCALE
        return self.best().error < share * self._error(mean)

    def go_to_limits(self, powers: Sequence[float]) -> None:
        """Fit to the limit at sizes of singular values that fall until the error rises, then around the best.

        A direction of the size σ has the weight w σ^(4α) in the penalty, w the mean weight: for all powers the best
        size is about the same, and only the first looks for it; so it is with offsets and without.
        """
        assert self.base is not None and self.base_descent is not None
        if self.kept.n_observed * _LEAST_LIMITS * LIMIT_STEPS > _LIMIT_WORK:
            return
        before, options = np.inf, self.best().options
        size = _LIMIT_ABOVE * float(self.base.options.ridge) / self.base_descent.observations.mean_weight
        least_size, best_size = _LEAST_SIZE * self.base_descent.observations.norm, size
        while size > least_size and self._may_go_on():
            error = self._limit(options, powers[0], size)
            if error > before * (1.0 + _WORTH):
                break
            before, best_size, size = error, size, _LIMIT_FACTOR * size
        if self.options.offsets == AUTO and self._may_go_on():
            other = replace(options, offsets=not options.offsets)
            if self._limit(other, powers[0], best_size) < before:
                options = other
        for power in powers:
            for factor in (1.0, _LIMIT_NEAR, 1.0 / _LIMIT_NEAR):
                if (power != powers[0] or factor != 1.0) and self._may_go_on():
                    self._limit(options, power, factor * best_size)

    def _may_go_on(self) -> bool:
        """Return whether one more fit is not too much."""
        return self.kept.n_observed * (self._n_limit_steps + LIMIT_STEPS) <= _LIMIT_WORK

    def _limit(self, base: CompletionOptions, power: float, size: float) -> float:
        check()
        variant = self.variant(base)
        ridge = variant.work.mean_weight * size ** (4.0 * power)
        tol = _LIMIT_TOL if self.options.tol is None else self.options.tol
        is_dense = base.method == AUTO and base.rank is None and math.prod(variant.work.shape) <= _DENSE_SIZE
        options = replace(base, method="dense" if is_dense else "factored", agop_power=power, ridge=ridge, tol=tol)
        solver, work = solve_dense if is_dense else solve_factored, placed(variant.work, options.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RankWarning)  # in the end it is seen again
            left, right, monitor = solver(work, replace(options, max_iter=min(options.max_iter, LIMIT_STEPS)))
        predicted = self.predict(variant, (left, right))
        seconds = perf_counter() - self._start
        self._n_limit_steps += monitor.n_iter
        return self._noted(options, (), predicted, left.shape[1], monitor.n_iter, seconds).error

    # --- the end ----------------------------------------------------------------------------------------------

    def choice(self) -> Choice:
        """Return the best fit as a choice; with `one_standard_error` the one of least rank that is as good."""
        table = {name: np.array([note[name] for note in self.notes]) for name in self.notes[0]}
        square, rank = table["rmse"] ** 2, table["rank"]
        allowed = np.array([self.options.agop_power in ("auto", fit.options.agop_power) for fit in self.fits])
        chosen = int(np.argmin(np.where(allowed, square, np.inf)))
        if self.options.one_standard_error:
            near = np.flatnonzero(allowed & (square <= square[chosen] + table["standard_error"][chosen]))
            chosen = int(near[np.lexsort((square[near], rank[near]))[0]])
        fit = self.fits[chosen]
        selection = Selection(table, chosen, self._rows, self._cols, self._values.astype(np.float64), fit.predicted)
        return Choice(fit.options, fit.schedule, selection)
