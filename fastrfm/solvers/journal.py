"""What a search of options keeps of its fits in a checkpoint, so that a killed one goes on where it was.

A search repeats itself: given what each fit predicted it takes the same way again. So a journal holds these predictions
and, of the descents, the state of the last fit and that of the best scout; fits before them need none any more. Flow:
``selection`` asks it before it fits, and tells it afterwards. Not here: the search.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastrfm.solvers.checkpoint import Checkpoint
from fastrfm.solvers.descent import Descent

_SEARCH = "search"  # where a checkpoint's frame holds it


def is_in(keeper: Checkpoint | None) -> bool:
    """Return whether a checkpoint was written in the midst of a search."""
    return keeper is not None and _SEARCH in keeper.frame


@dataclass
class Journal:
    """The fits of one search, in their order.

    Attributes
    ----------
    keeper : Checkpoint or None
        Where they are kept; None keeps nothing.
    predicted : list of (n_held_out,) float64
        What each fit predicted.
    ranks : list of int
    seconds : list of float
        Since the search began, the time of killed runs counted in.
    """

    keeper: Checkpoint | None
    predicted: list[np.ndarray] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._states: dict[int, dict[str, Any]] = {}  # of descents, by the number of the fit that left them
        self._n_iter = 0  # since the last state that was written
        if self.keeper is None or not is_in(self.keeper):
            return
        state, kept = self.keeper.take(), self.keeper.frame[_SEARCH]
        assert state is not None
        self.predicted, self.ranks, self.seconds = list(kept["predicted"]), kept["ranks"], kept["seconds"]
        for name, number in kept["states"].items():
            self._states[number] = state[name]

    def recall(self, n: int, descent: Descent) -> np.ndarray | None:
        """Return what fit number n predicted, and put the descent where it left it; None if it has not been made."""
        if n >= len(self.predicted):
            return None
        descent.rank = self.ranks[n]
        if n in self._states:
            descent.restore(self._states.pop(n))
        return self.predicted[n]

    def note(
        self,
        predicted: np.ndarray,
        seconds: float,
        n_iter: int,
        descent: Descent,
        base: tuple[int, Descent] | None,
    ) -> None:
        """Note a fit of `n_iter` iterations, and write all of them if that is due.

        Parameters
        ----------
        predicted : (n_held_out,) float64
        seconds : float
        n_iter : int
        descent : Descent
            Where the fit left it.
        base : (int, Descent) or None
            The number of the fit that climbs begin from, and where it left its descent.
        """
        self.predicted.append(predicted)
        self.ranks.append(descent.rank)
        self.seconds.append(seconds)
        self._n_iter += n_iter
        if self.keeper is None or self._n_iter < self.keeper.every:
            return
        descents = {"last": (len(self.predicted) - 1, descent)}
        if base is not None and base[1] is not descent:
            descents["base"] = base
        self.keeper.frame[_SEARCH] = {
            "predicted": np.array(self.predicted),
            "ranks": self.ranks,
            "seconds": self.seconds,
            "states": {name: number for name, (number, _) in descents.items()},
        }
        self.keeper.write(self._n_iter, {name: found.state() for name, (_, found) in descents.items()})
        self._n_iter = 0

    def close(self) -> None:
        """Forget the fits: the search is over."""
        if self.keeper is not None:
            self.keeper.frame.pop(_SEARCH, None)
