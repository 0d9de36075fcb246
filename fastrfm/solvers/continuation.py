"""How ε and α move in two-sided lin-RFM, judged by singular values and steps alone; several attempts where one fails.

Near the sampling limit the iteration has wrong limits: directions that are not there yet must not be cut off by an ε
that falls too fast or a penalty that is too sharp. So, on exact data (λ = 0, ``smoothing="auto"``):

- ε starts at σ_{cap+1} and falls by at most `largest_drop` an iteration, never below σ_{cap+1}; cap is the rank given,
  or the largest one that leaves fewer unknowns than observations;
- until the rank shows, α is lowered to that of the attempt: a smaller power lets lost directions come back;
- the rank shows as a gap, σ_{j+1} < σ_j / 100 with σ_{j+1} < 2 ε. From there ε = σ_{j+1} and α is the one asked for,
  which converges quadratically at α = ½;
- an attempt is given up when ε rests while the steps do not shrink, when as many directions stay above ε as the
  observations could determine at most, or when the inner systems become nearly singular (too high a rank). The next
  one takes another cap (where no rank is known: a place at which the spectrum was ever steep, likely and deep ones
  first) or another α and drop. No one attempt is best: on 1000 x 1000, rank 5, oversampling 1.3, condition number 1,
  α = 0.27 succeeds in 7 of 12 instances and 0.32 in none; at condition number 10 slow drops at 0.32 or 0.35 succeed in
  6 of 6 and fast ones at most in 1 of 8; at oversampling 1.5 fast ones at 0.32 or 0.35 do, sooner.

Noise keeps σ_{rank+1} from falling. It is told from a wrong limit by the steps, small beside ε (``_look_for_noise``):
the cap, if it was given, is then the rank. Where the rank is to be found, a gap that does not close is a plateau; the
search goes on below it, for exact data may have one too, and comes back to the narrowest if nothing exact is there.
A cap at which the data look like noise without such a gap counts only once the exact candidates have failed.

With a ridge the powers decide what λ means, so α stays and ε falls by a constant factor down to ``ridge_smoothing``,
held by no σ. A fixed ε, ``sigma_next``, ``geometric`` and ``iterate_change`` are the rules of ``solvers.smoothing``,
with α as asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastrfm.options import CompletionOptions
from fastrfm.solvers.smoothing import next_smoothing, ridge_smoothing


@dataclass(frozen=True)
class Attempt:
    """One way down: the power before the rank shows, and the largest factor by which ε falls in an iteration."""

    agop_power: float
    largest_drop: float


@dataclass(frozen=True)
class Patience:
    """What ends all attempts of a run that another method may follow.

    Attributes
    ----------
    rounding, noise : float
        Noise, as shares of the norm of the data. Up to `rounding` it is no noise, and without a rank up to `noise` it
        may surround a matrix whose rank shows as a gap. More is an answer only at the rank given, with a gap there:
        data without a gap look like noise around a matrix of very small rank, and at too high a rank it is fitted.
    inner_steps : int
        Of conjugate gradients, in all.
    """

    rounding: float
    noise: float
    inner_steps: int


ATTEMPTS = (
    Attempt(0.32, 1.3),
    Attempt(0.32, 1.04),
    Attempt(0.28, 1.3),
    Attempt(0.27, 1.3),
    Attempt(0.3, 1.3),
    Attempt(0.35, 1.04),
)
SEARCH = Attempt(0.35, 1.1)  # the first attempt where the rank is to be found
_RIDGE_DROP, _RIDGE_TOLERANCE = 1.3, 1e-3
_FIRST_SHARE = 0.1  # of σ_1: the least first ε
_FIRST_LOOK = 2  # iterations of an attempt before a gap counts: the first estimate has its own
_GAP = 0.01  # σ_{j+1} / σ_j below it is a rank that shows
_NEAR = 2.0  # σ_{j+1} may lie this much above ε
_CLOSING, _RESTING_STEP = 0.9, 0.5  # a gap that falls by less while steps are smaller beside it does not close
_ROUNDING = 1e-13
_STEEP, _LESS_STEEP = 0.1, 1.0 / 3.0  # ratios at places that may be the rank, likely and less likely
_MOST_CANDIDATES, _MOST_REPEATED = 6, 3  # tried once, tried in every way
_STALL_SPAN, _STALL_DROP, _STALL_STEP = 50, 0.7, 0.05
_CROWD = 20  # directions that come up at once where the singular values of noise begin
_LONGEST_REST = 200  # iterations without a smaller ε, however small the steps: the rank given does not fit
_CROWDED_SPAN = 15  # iterations with cap or more directions above ε
_HELD_SPAN, _QUIET_STEP = 5, 0.1  # iterations in which ε could not fall, and the step beside ε: noise
_LABOURED_STEPS, _LABOURED_SPAN = 150, 2  # of conjugate gradients, in iterations on end: the rank is too high
_LEAST = 1e-16
_TINY = 1e-140  # data that are all zero have no scale of their own
_ALL = 2**31
_GIVEN = (
    "_options",
    "_patience",
    "_data_norm",
    "_is_exact",
    "_is_free",
    "_first_cap",
    "floor",
)  # the same for every run
_NEWTON_SHARE = 0.1
_LOOSE, _TIGHT, _EXACT = 0.1, 1e-5, 1e-10


class Continuation:
    """ε, α and the inner tolerance of the next iteration.

    Attributes
    ----------
    smoothing, floor : float
        ε and its smallest useful value, in the data's unit.
    agop_power : float
        α of the next iteration.
    inner_tolerance : float
        For conjugate gradients: loose while ε still steers, tied to the last step once convergence is fast.
    is_noisy : bool
        ε need not fall any further, because noise holds it.
    shown_rank : int or None
        The rank that shows as a gap, or that of noisy data.
    plateau : int
        The place of a gap that has just been found not to close, else 0: noise, or more directions far below.
    is_from_plateau : bool
        The next attempt goes on from the estimate at the narrowest plateau.
    step_smoothing : float
        What the next step uses: a tenth of ε once the rank given has shown, a Newton step then, which the few
        weakly determined directions of sparse rows and columns need.
    n_directions : int
        How many directions it may use at most.
    is_stuck : bool
        The attempt should be given up.
    """

    def __init__(
        self,
        options: CompletionOptions,
        data_norm: float,
        cap: int,
        is_full: bool,
        patience: Patience | None = None,
    ) -> None:
        self._options = options
        self._patience, self._data_norm = patience, data_norm
        self._is_given_up, self._n_inner_steps = False, 0
        self._is_exact = options.smoothing == "auto" and options.ridge == 0.0
        self._is_free = not is_full and (options.rank is None or options.rank > cap)  # the rank is to be found
        first = SEARCH if self._is_free else ATTEMPTS[0]
        self._queue = [(cap, first if self._is_exact else Attempt(options.agop_power, _RIDGE_DROP))]
        self._plateaus: dict[int, float] = {}  # place of each gap that did not close, and its ratio
        self._narrowest: np.ndarray = np.ones(0)  # of σ_{j+1} / σ_j so far, in all attempts
        self._n_attempts, self._first_cap = 0, cap
        self._quiet_caps: list[int] = []  # those at which the data look like noise
        self._likely_cap = 0
        # The one that noise may end an attempt at.
        self._trusted_cap = 0 if self._is_free and cap > 1 else cap
        self.floor = max(
            _TINY, _LEAST * data_norm, ridge_smoothing(options.ridge, options.agop_power, options.effective_tol)
        )

    def start_attempt(self, singular_values: np.ndarray) -> None:
        """Begin the next attempt, from the singular values of its first estimate."""
        self.cap, self._attempt = self._queue.pop(0)
        self._n_attempts += 1
        self._trail: list[float] = []
        self._n_crowded = self._n_laboured = 0
        self._n_held, self._last_gap = 0, (0, 0.0)
        self.n_directions, self.plateau = _ALL, 0
        self.shown_rank: int | None = None
        self.is_stuck = self.is_noisy = False
        rule = self._options.smoothing
        self.inner_tolerance = _EXACT if rule != "auto" else _LOOSE if self._is_exact else _RIDGE_TOLERANCE
        # Data that are mostly there leave little at σ_{cap+1}, and so low an ε takes the holes' zeros for signal.
        hold = float(singular_values[min(self.cap, singular_values.size - 1)])
        begin = max(hold, _FIRST_SHARE * float(singular_values[0])) if self._is_exact else hold
        self.smoothing = max(begin, self.floor) if isinstance(rule, str) else float(rule)
        self.step_smoothing = self.smoothing

    def state(self) -> dict[str, Any]:
        """Return what :meth:`restore` goes on from, in plain values and arrays."""
        kept = {name: value for name, value in vars(self).items() if name not in _GIVEN}
        places = np.array(list(self._plateaus), dtype=np.int64)
        return {
            **kept,
            "_queue": [(cap, attempt.agop_power, attempt.largest_drop) for cap, attempt in self._queue],
            "_attempt": (self._attempt.agop_power, self._attempt.largest_drop),
            "_plateaus": {"places": places, "ratios": np.array(list(self._plateaus.values()))},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up where another path for the same options and data was."""
        plateaus = state["_plateaus"]
        vars(self).update(
            {
                **state,
                "_queue": [(cap, Attempt(power, drop)) for cap, power, drop in state["_queue"]],
                "_attempt": Attempt(*state["_attempt"]),
                "_plateaus": dict(zip(plateaus["places"].tolist(), plateaus["ratios"].tolist(), strict=True)),
                "_last_gap": tuple(state["_last_gap"]),
            }
        )

    def has_next_attempt(self) -> bool:
        """Return whether another attempt is left; fills the queue when the first one has failed."""
        if not self._queue and self._n_attempts == 1 and self._is_exact:
            caps = self._candidate_caps() if self._is_free else [self.cap]
            if self._plateaus:
                self._trusted_cap = min(self._plateaus, key=self._plateaus.__getitem__)
                self._queue.append((self._trusted_cap, ATTEMPTS[0]))
            if self._is_free:
                self._likely_cap = caps[0]
                self._queue += [(cap, ATTEMPTS[0]) for cap in caps]
            deepest = sorted(caps)[: -_MOST_REPEATED - 1 : -1]
            self._queue += [(cap, attempt) for attempt in ATTEMPTS[1:] for cap in deepest]
        # Exact data would have shown themselves by then; noise leaves no rank above the one that once showed.
        quiet = [cap for cap in self._quiet_caps if cap >= self._deepest_gap()]
        is_likely = self._likely_cap in quiet
        if quiet and (not self._queue or (is_likely and self._queue[0][1] is not ATTEMPTS[0])):
            self._trusted_cap = self._likely_cap if is_likely else quiet[0]
            self._queue.insert(0, (self._trusted_cap, ATTEMPTS[0]))
            self._quiet_caps = []
        return bool(self._queue) and not self._is_given_up

    @property
    def next_cap(self) -> int:
        return self._queue[0][0]

    @property
    def is_from_plateau(self) -> bool:
        return self._n_attempts == 1 and self.next_cap in self._plateaus

    @property
    def agop_power(self) -> float:
        chosen = float(self._options.agop_power)
        return min(chosen, self._attempt.agop_power) if self._is_exact and self.shown_rank is None else chosen

    def advance(
        self,
        singular_values: np.ndarray,
        *,
        change: float,
        norm: float,
        error: float,
        n_directions: int,
        inner_steps: int,
    ) -> None:
        """Choose ε and the inner tolerance of the next iteration.

        Parameters
        ----------
        singular_values : (b,) float64, descending
            Of the new estimate.
        change, norm, error : float
            Its step, its norm, and the estimated distance to the limit.
        n_directions, inner_steps : int
            Directions that were above ε, steps of conjugate gradients.
        """
        rule, before = self._options.smoothing, self.smoothing
        self._n_inner_steps += inner_steps
        hold = float(singular_values[self.cap]) if self.cap < singular_values.size else 0.0
        if rule != "auto":
            self.smoothing = self.step_smoothing = next_smoothing(
                rule, before, change=change, error=error, sigma_next=hold, floor=self.floor
            )
            return
        wanted, gap = before / self._attempt.largest_drop, None
        if self._options.ridge == 0.0:
            wanted = max(hold, wanted)
        self._n_held = self._n_held + 1 if hold >= 0.99 * before else 0
        if self._is_exact:
            gap = self._gap_below(singular_values) if len(self._trail) >= _FIRST_LOOK else None
            self._look_for_plateaus(singular_values, gap, change, n_directions)
            self._look_for_noise(singular_values, gap, change, n_directions)
            if self.is_noisy:
                gap = self.cap, hold
            self.shown_rank = None if gap is None else gap[0]
            self.inner_tolerance = _LOOSE
            if gap is not None:
                wanted = max(hold, min(wanted, gap[1]))
                self.inner_tolerance = min(max(10.0 * change / max(norm, _TINY), _TIGHT), _LOOSE)
        self.smoothing = min(before, max(wanted, self.floor))
        has_shown = gap is not None and gap[0] == self.cap
        self.n_directions = self.cap if has_shown else _ALL
        self.step_smoothing = max(self.smoothing * _NEWTON_SHARE, self.floor) if has_shown else self.smoothing
        if self._is_exact:
            self._look_for_stalls(singular_values, change, n_directions, inner_steps)

    def _look_for_plateaus(
        self, singular_values: np.ndarray, gap: tuple[int, float] | None, change: float, n_directions: int
    ) -> None:
        """Note a gap that does not close: noise fills it, or it is not the last one.

        Either the steps have become small, or as many directions as there may be have come up below it at once.
        """
        (place, below), self.plateau = self._last_gap, 0
        self._last_gap = gap or (0, 0.0)
        if place == 0 or place == self._trusted_cap:
            return
        now = float(singular_values[place])
        is_open = _ROUNDING * singular_values[0] < now < _GAP * singular_values[place - 1]
        is_resting = gap is not None and gap[0] == place and now > _CLOSING * below and change < _RESTING_STEP * now
        is_crowded = gap is None and n_directions >= max(self.cap, place + _CROWD)
        if is_open and (is_resting or is_crowded):
            self.plateau, self._plateaus[place] = place, now / float(singular_values[place - 1])
            self.is_stuck = self.is_stuck or is_crowded

    def _look_for_noise(
        self, singular_values: np.ndarray, gap: tuple[int, float] | None, change: float, n_directions: int
    ) -> None:
        """Take the cap for the rank of noisy data: ε cannot fall, and the steps are small beside it.

        At a wrong limit of exact data they are not: 1.4 ε to 160 ε measured there, below 0.1 ε with 1 to 100 % noise.
        """
        is_clear = gap is not None and gap[0] == self.cap
        is_quiet = self._n_held >= (1 if is_clear else _HELD_SPAN) and change <= _QUIET_STEP * self.smoothing
        if self.is_noisy or not is_quiet or n_directions < self.cap:
            return
        has_gap = singular_values[self.cap] < _LESS_STEEP * singular_values[self.cap - 1]
        is_last = not self._plateaus or self.cap in self._plateaus or is_clear or has_gap
        is_trusted = self.cap == self._trusted_cap or (is_clear and self.cap == self._likely_cap)
        self.is_noisy = bool(is_trusted and is_last)
        self._is_given_up = self.is_noisy and not self._is_welcome(singular_values)
        self.is_stuck = not self.is_noisy or self._is_given_up
        if self.is_stuck and self._n_attempts > 1 and has_gap:
            self._quiet_caps.append(self.cap)

    def _is_welcome(self, singular_values: np.ndarray) -> bool:
        """Return whether noise around a matrix of rank cap is an answer, and not structure that has been missed."""
        if self._patience is None:
            return True
        ratio = float(singular_values[self.cap] / singular_values[self.cap - 1])
        share = self.smoothing / self._data_norm
        if self.cap == self._options.rank:
            return ratio < _LESS_STEEP or share <= self._patience.rounding
        return share <= self._patience.rounding or (
            self._options.rank is None and ratio < _GAP and share <= self._patience.noise
        )

    def _gap_below(self, singular_values: np.ndarray) -> tuple[int, float] | None:
        """Return j and σ_{j+1} at the narrowest ratio σ_{j+1} / σ_j below ε and the plateaus, if it is a gap."""
        passed = max((place for place in self._plateaus if place != self.cap), default=0)
        first = max(int(np.count_nonzero(singular_values > _NEAR * self.smoothing)), passed + 1)
        last = min(self.cap, singular_values.size - 1) + 1
        ratios = _ratios(singular_values)[first - 1 : last - 1]
        if not ratios.size or ratios.min() >= _GAP:
            return None
        j = first + int(np.argmin(ratios))
        return j, float(singular_values[j])

    def _look_for_stalls(self, singular_values: np.ndarray, change: float, n_directions: int, inner_steps: int) -> None:
        active = singular_values[: n_directions + 1]
        ratios = _ratios(active)
        size = max(ratios.size, self._narrowest.size)
        self._narrowest = np.minimum(_padded(self._narrowest, size), _padded(ratios, size))
        self._trail.append(self.smoothing)
        if self._patience is not None and self._n_inner_steps > self._patience.inner_steps:
            self._is_given_up = self.is_stuck = True
        if self.is_noisy:
            return
        if len(self._trail) > _STALL_SPAN:
            rests = self.smoothing > _STALL_DROP * self._trail[-1 - _STALL_SPAN]
            self.is_stuck = self.is_stuck or (rests and change > _STALL_STEP * self.smoothing)
        if len(self._trail) > _LONGEST_REST:
            self.is_stuck = self.is_stuck or self.smoothing > _STALL_DROP * self._trail[-1 - _LONGEST_REST]
        self._n_crowded = self._n_crowded + 1 if self._is_free and n_directions >= self.cap else 0
        self._n_laboured = self._n_laboured + 1 if inner_steps >= _LABOURED_STEPS else 0
        is_crowded = self._n_crowded > _CROWDED_SPAN and self._n_attempts == 1
        self.is_stuck = self.is_stuck or is_crowded or self._n_laboured > _LABOURED_SPAN

    def _candidate_caps(self) -> list[int]:
        """Return ranks to try, the likely ones first: where the singular values once fell steeply, the largest first.

        Directions come up one by one, so that every smaller rank has had its gap on the way. Few are all tried, but
        none below the deepest place of a gap.
        """
        ratios = self._narrowest[: self.cap - 1]
        steepness = np.digitize(ratios, (_STEEP, _LESS_STEEP))
        order = np.lexsort((-np.arange(ratios.size), steepness))
        if ratios.size > _MOST_CANDIDATES:
            order = order[steepness[order] < 2]
        else:
            order = order[order + 1 <= (self._deepest_gap() or ratios.size)]
        return [int(place) + 1 for place in order[:_MOST_CANDIDATES]] or [self.cap]

    def _deepest_gap(self) -> int:
        """Return the largest rank below the first cap that ever showed as a gap, 0 if none did."""
        return int(max(np.flatnonzero(self._narrowest[: self._first_cap - 1] < _GAP) + 1, default=0))


def _ratios(singular_values: np.ndarray) -> np.ndarray:
    above = np.maximum(singular_values[:-1], np.finfo(np.float64).tiny)
    return np.asarray(singular_values[1:] / above)


def _padded(ratios: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([ratios, np.ones(size - ratios.size)])
