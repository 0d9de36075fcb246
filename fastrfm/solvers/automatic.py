"""Completion with options to choose: is the matrix exactly of low rank? If not, choose on entries held out, and refit.

Flow: ``completion`` -> here -> ``two_sided`` (exact data), or ``selection`` and ``descent``. With a checkpoint the
search goes on after a kill, to the same choice (its fits to a limit anew), and so does the refit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from time import perf_counter
from typing import Any, cast

import numpy as np

from fastrfm.blocks import RowBlocks
from fastrfm.errors import InputError
from fastrfm.observations import Observations
from fastrfm.options import TWO_SIDED_POWER, CompletionOptions
from fastrfm.results import Offsets, Selection
from fastrfm.solvers import journal
from fastrfm.solvers.checkpoint import Checkpoint
from fastrfm.solvers.choice import PATIENCE, is_answer, options_of_try
from fastrfm.solvers.descent import Stage, follow
from fastrfm.solvers.monitor import Iteration
from fastrfm.solvers.placement import placed
from fastrfm.solvers.runs import Outcome, run, settled_bounds
from fastrfm.solvers.selection import LIMIT_STEPS, Choice, Variant, choose, hold_out, scale_bounds
from fastrfm.solvers.side_information import SideInformation, check_in_memory
from fastrfm.solvers.two_sided import solve_two_sided
from fastrfm.splits import united

_CHOICES_WITH_OUTLIERS = 3  # a fourth changed little on matrices with 5 % of gross errors, a third halved the error
_NO_MISFIT = 1e-6  # of the values' root mean square, as of float32
_NEARLY_EXACT = 0.15  # of the spread of values on a scale: a held-out error below it may be none at all


class AutomaticFit:
    """The completion by the options that serve best, see ``selection``; further fits repeat what was chosen.

    Exact data are tried first, unless the values lie on a scale, as ratings do: a rating is not exact, and the attempt
    costs as much as the rest. Then it comes last, and only if the entries held out were predicted nearly exactly. With
    `huber` the next two fits choose again, for the weights that outliers get change what is best.

    Parameters
    ----------
    options : CompletionOptions
    side : SideInformation
    is_held : (n_observed,) bool, or None
        The entries to choose on, in row order; None draws some.
    keeper : Checkpoint or None
    """

    def __init__(
        self, options: CompletionOptions, side: SideInformation, is_held: np.ndarray | None, keeper: Checkpoint | None
    ) -> None:
        self._options, self._side, self._is_held, self._keeper = options, side, is_held, keeper
        self._wanted_choices = 1 if options.huber is None else _CHOICES_WITH_OUTLIERS
        self._n_choices, self._choice = 0, cast("Choice | None", None)
        if keeper is not None and "choice" in keeper.frame:
            self._choice = _restored(options, keeper.frame["choice"])
            self._n_choices = keeper.frame["n_choices"]

    def __call__(
        self, observations: RowBlocks, offsets: Offsets | None, callback: Callable[[Iteration], Any] | None
    ) -> Outcome:
        began = perf_counter()
        bounds = settled_bounds(observations, self._options)
        is_new = self._n_choices < self._wanted_choices and not self._takes_up()
        if is_new:
            found = self._chosen(observations, bounds, callback, offsets)
            if isinstance(found, Outcome):
                return found
            self._choice, self._n_choices = found, self._n_choices + 1
        choice, keeper = self._choice, self._keeper
        assert choice is not None
        if keeper is not None:
            keeper.frame |= {"choice": _kept(choice), "n_choices": self._n_choices}
        if not choice.schedule:
            outcome = self._at_limit(observations, choice, callback, offsets)
            if is_new:
                outcome.history["seconds"] += perf_counter() - began - outcome.history["seconds"][-1]
            return replace(outcome, bounds=bounds)
        variant = Variant.of(observations, choice.options, self._side, offsets)
        solved = follow(variant.work, choice.schedule, choice.options, callback, keeper)
        history = solved[2].history()
        if is_new:
            history["seconds"] += perf_counter() - began - solved[2].seconds
        more = {"bounds": bounds, "selection": choice.selection, "history": history}
        return Outcome.of(observations, variant, "factored", choice.options, solved, **more)

    def _at_limit(
        self,
        observations: RowBlocks,
        choice: Choice,
        callback: Callable[[Iteration], Any] | None,
        offsets: Offsets | None,
    ) -> Outcome:
        """Run to the limit, with as many iterations as it was chosen with: more might be worse, and take long."""
        options = replace(choice.options, max_iter=min(choice.options.max_iter, LIMIT_STEPS))
        outcome = run(observations, options, self._side, callback, None, self._keeper, offsets)
        is_cut = outcome.stop_reason == "max_iter" and options.max_iter < choice.options.max_iter
        reason = "schedule" if is_cut else outcome.stop_reason
        return replace(outcome, stop_reason=reason, options=choice.options, selection=choice.selection)

    def _takes_up(self) -> bool:
        """Return whether a checkpoint holds the state of this very fit, whose choice is then made already."""
        if self._choice is None or self._keeper is None or journal.is_in(self._keeper):
            return False
        return self._keeper.begin is not None

    def _chosen(
        self,
        observations: RowBlocks,
        bounds: tuple[float, float] | None,
        callback: Callable[[Iteration], Any] | None,
        offsets: Offsets | None,
    ) -> Choice | Outcome:
        options, side = self._options, self._side
        is_scale, is_first = scale_bounds(observations) is not None, self._n_choices == 0
        is_tried = is_first and not is_scale and not journal.is_in(self._keeper)  # a search begins where that failed
        exact = _exact(observations, options, side, callback) if is_tried else None
        if exact is not None:
            return exact
        divided = self._divided(observations)
        if divided is None:
            if options.huber is not None:
                raise InputError("huber needs a ridge, and there are too few entries to choose one on: give one")
            return run(observations, options.settled(), side, callback, None, self._keeper, offsets)
        choice = choose(*divided, options, side, bounds, keeper=self._keeper)
        is_near = choice.selection.rmse < _NEARLY_EXACT * float(np.std(choice.selection.values))
        if is_first and is_scale and is_near:
            exact = _exact(observations, options, side, callback)
        return choice if exact is None else exact

    def _divided(self, observations: RowBlocks) -> tuple[RowBlocks, Observations] | None:
        if self._is_held is None:
            return hold_out(observations, self._options.random_state)
        assert isinstance(observations, Observations)
        return observations.select(~self._is_held), observations.select(self._is_held)


def _exact(
    observations: RowBlocks,
    options: CompletionOptions,
    side: SideInformation,
    callback: Callable[[Iteration], Any] | None,
) -> Outcome | None:
    """Return the completion of data that are exactly of low rank; None if they are not, or not visibly."""
    exact = options.settled()
    if options.method != "auto" or float(exact.agop_power) > TWO_SIDED_POWER or side or exact.implicit:
        return None
    variant = Variant.of(observations, exact, side)
    work = placed(variant.work, exact.device)
    solved = solve_two_sided(work, options_of_try(exact), callback, None, PATIENCE)
    if not is_answer(solved[2], variant.work.norm):
        return None
    # At a rank that is given noise is an answer too, but weights and outliers make no difference to it.
    is_stopped = solved[2].stop_reason == "callback"
    needs_more = exact.huber is not None or exact.count_power > 0.0 or observations.is_weighted
    misfit, scale = solved[2].history()["masked_rmse"][-1], variant.work.norm / np.sqrt(observations.n_observed)
    if needs_more and not is_stopped and misfit > _NO_MISFIT * scale:
        return None
    return Outcome.of(observations, variant, "two-sided", exact, solved)


def with_validation(observations: RowBlocks, validation: Observations) -> tuple[Observations, np.ndarray]:
    """Return the entries of both, and which of them, in row order, are those to choose on.

    Raises
    ------
    InputError
        If shapes differ, an entry is in both, or the observations are not in memory.
    """
    if not isinstance(validation, Observations) or validation.shape != observations.shape:
        raise InputError(
            f"validation must be Observations of a {observations.n_rows} x {observations.n_cols} matrix, got "
            f"{getattr(validation, 'shape', type(validation).__name__)}"
        )
    return united(check_in_memory(observations, "validation needs"), validation)


# --- what a checkpoint keeps ------------------------------------------------------------------------------------------


def _kept(choice: Choice) -> dict[str, Any]:
    names = ("method", "agop_power", "ridge", "offsets", "implicit", "tol")
    options = {name: getattr(choice.options, name) for name in names}
    stages = np.array([list(asdict(stage).values()) for stage in choice.schedule]).reshape(-1, 3)
    return {"options": options, "stages": stages, "selection": vars(choice.selection)}


def _restored(options: CompletionOptions, kept: dict[str, Any]) -> Choice:
    stages = tuple(Stage(power, ridge, int(n_iter)) for power, ridge, n_iter in kept["stages"].tolist())
    return Choice(replace(options, **kept["options"]), stages, Selection(**kept["selection"]))
