"""Completion with options to choose: is the matrix exactly of low rank? If not, choose on entries held out, and refit.

Flow: ``completion`` -> here -> ``two_sided`` (exact data), or ``selection`` and ``descent``. With a checkpoint what was
chosen is kept, and the refit goes on where it was; the search itself begins anew, to the same choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from time import perf_counter
from typing import Any

import numpy as np

from fastrfm.blocks import RowBlocks
from fastrfm.errors import InputError
from fastrfm.observations import Observations
from fastrfm.options import TWO_SIDED_POWER, CompletionOptions
from fastrfm.results import Selection
from fastrfm.solvers.checkpoint import Checkpoint
from fastrfm.solvers.choice import PATIENCE, is_answer, options_of_try
from fastrfm.solvers.descent import Stage, follow
from fastrfm.solvers.monitor import Iteration
from fastrfm.solvers.runs import Outcome, run, settled_bounds
from fastrfm.solvers.selection import Choice, Variant, choose, hold_out, scale_bounds
from fastrfm.solvers.side_information import SideInformation
from fastrfm.solvers.two_sided import solve_two_sided

_NEARLY_EXACT = 0.15  # of the spread of values on a scale: a held-out error below it may be none at all


def run_automatically(
    observations: RowBlocks,
    options: CompletionOptions,
    side: SideInformation,
    validation: Observations | None,
    callback: Callable[[Iteration], Any] | None,
    keeper: Checkpoint | None,
) -> Outcome:
    """Return the completion by the options that serve best, see ``selection``.

    Exact data are tried first, unless the values lie on a scale, as ratings do: a rating is not exact, and the attempt
    costs as much as the rest. Then it comes last, and only if the entries held out were predicted nearly exactly.
    """
    began = perf_counter()
    whole = observations if validation is None else _united(observations, validation)
    is_new = keeper is None or "choice" not in keeper.frame
    is_scale = scale_bounds(whole) is not None
    if is_new and not is_scale and (exact := _exact(whole, options, side, callback)) is not None:
        return exact
    bounds = settled_bounds(whole, options)
    if is_new:
        divided = hold_out(observations, options.random_state) if validation is None else (observations, validation)
        if divided is None:
            return run(whole, options.settled(), side, callback, None, keeper)
        choice = choose(*divided, options, side, bounds)
        if is_scale and choice.selection.rmse < _NEARLY_EXACT * float(np.std(choice.selection.values)):
            exact = _exact(whole, options, side, callback)
            if exact is not None:
                return exact
    else:
        assert keeper is not None
        choice = _restored(options, keeper.frame["choice"])
    if keeper is not None:
        keeper.frame["choice"] = _kept(choice)
    variant = Variant.of(whole, choice.options, side)
    solved = follow(variant.work, choice.schedule, choice.options, callback, keeper)
    history = solved[2].history()
    if is_new:
        history["seconds"] += perf_counter() - began - solved[2].seconds
    more = {"bounds": bounds, "selection": choice.selection, "history": history}
    return Outcome.of(whole, variant, "factored", choice.options, solved, **more)


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
    solved = solve_two_sided(variant.work, options_of_try(exact), callback, None, PATIENCE)
    if not is_answer(solved[2], variant.work.norm):
        return None
    return Outcome.of(observations, variant, "two-sided", exact, solved)


def _united(observations: RowBlocks, validation: Observations) -> Observations:
    if not isinstance(observations, Observations):
        raise InputError("validation needs the observations in memory: raise memory, or leave validation out")
    if not isinstance(validation, Observations) or validation.shape != observations.shape:
        raise InputError(
            f"validation must be Observations of a {observations.n_rows} x {observations.n_cols} matrix, got "
            f"{getattr(validation, 'shape', type(validation).__name__)}"
        )
    both = zip(observations.to_coo(), validation.to_coo(), strict=True)
    rows, cols, values = (np.concatenate(pair) for pair in both)
    names = {"row_names": observations.row_names, "col_names": observations.col_names}
    return Observations.from_coo(rows, cols, values, observations.shape, **names)


# --- what a checkpoint keeps ------------------------------------------------------------------------------------------


def _kept(choice: Choice) -> dict[str, Any]:
    options = {name: getattr(choice.options, name) for name in ("agop_power", "ridge", "offsets", "implicit")}
    stages = np.array([list(asdict(stage).values()) for stage in choice.schedule])
    return {"options": options, "stages": stages, "selection": vars(choice.selection)}


def _restored(options: CompletionOptions, kept: dict[str, Any]) -> Choice:
    stages = tuple(Stage(power, ridge, int(n_iter)) for power, ridge, n_iter in kept["stages"].tolist())
    return Choice(replace(options, **kept["options"]), stages, Selection(**kept["selection"]))
