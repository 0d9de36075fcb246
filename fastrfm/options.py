"""Options of the solvers and their defaults, in one place: the API, the estimator and the command read them here.

Imports nothing heavy, so that ``fastrfm --help`` stays fast. Names as in ``docs`` and on the command line.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from fastrfm.errors import InputError

AUTO = "auto"
JOINT = "joint"
# What the command and the estimator begin with: everything is chosen.
AUTOMATIC: dict[str, Any] = dict.fromkeys(("agop_power", "ridge", "offsets", "implicit", "bounds"), AUTO)
METHODS = ("auto", "dense", "factored", "two-sided")
DENSE_DTYPES = ("float32", "float64")  # of the whole completed matrix in a file
SMOOTHING_RULES = ("auto", "iterate_change", "sigma_next", "geometric")
DEVICES = ("cpu", "cuda", "auto")  # what they stand for on a machine: ``devices.resolve``
PLOT_KINDS = ("convergence", "spectrum", "selection", "held-out", "gaps")  # in the order of a figure of all
# Exact data are worth all digits; with noise, more than the first two digits of the estimate are noise.
FACTORED_POWER = 0.25  # below it the sparse part, which method "factored" drops in the end, does not fade
TWO_SIDED_POWER = 0.5  # above it the two-sided weights have no penalty to go with them
LARGEST_SEED = 2**32 - 1
EXACT_TOL, NOISY_TOL = 1e-8, 1e-2
Power = float | Callable[[Any], Any]  # of the AGOP, or a function of its eigenvalues


@dataclass(frozen=True)
class CompletionOptions:
    """How to complete a matrix; every field can be set in Python, on the command line and is stored with a result.

    Attributes
    ----------
    method : {"auto", "dense", "factored", "two-sided"}
        "dense" is exact one-sided lin-RFM with an n x n feature Gram on the smaller side; "factored" keeps the
        feature Gram as low-rank plus identity, and needs an agop_power of at least 1/4; "two-sided" reweights rows and
        columns, needs an agop_power of at most 1/2, and recovers exact low-rank matrices from fewest entries and
        fastest. "auto" tries "two-sided" where there is no ridge (see ``solvers.choice``), else takes "dense" where
        the smaller side is short and no rank is given and for powers below 1/4, else "factored".
    rank : int or None
        Largest rank of the answer: its leading directions are kept. None lets the data decide.
    agop_power : float, callable or "auto"
        alpha > 0: features are reweighted by AGOP**alpha; the penalty is Schatten-p with p = 2 - 4 alpha. Or phi, a
        function of the AGOP's eigenvalues (a float64 array, in the data's unit squared, epsilon**2 included) in the
        place of the power: see ``fastrfm.agop`` for what it may return and the penalty that goes with it. It needs a
        one-sided method and a ridge that is a number.
    ridge : float or "auto"
        lambda >= 0, the weight of the penalty against half the squared misfit; 0 interpolates the data. "auto" has
        `agop_power`, `offsets`, `implicit` and `bounds` chosen with it, those that are "auto" too, on entries held out
        (see ``solvers.selection``); data that are exactly of low rank are recognised and interpolated. It needs
        method "auto" or "factored", smoothing "auto" and an agop_power of at least 1/4. Where nothing is chosen,
        "auto" stands for the defaults of :func:`fastrfm.complete`.
    offsets : bool, "joint" or "auto"
        Fit mean + row + column offsets first and complete what is left. "joint" then refits each to what the other
        leaves until both have settled; "auto" does not try that.
    count_power : float
        gamma from 0 to 1: each row's and each column's share of the penalty is in proportion to its number of entries
        to this power. 0 treats all alike; 1 is the weighted-lambda regularisation of ALS (the weighted trace norm).
    huber : float or None
        Count residuals beyond this many robust standard deviations linearly, not squared, so that outliers hardly
        matter: 1.345 is usual. Needs a ridge. Takes several fits, each with weights from the one before.
    implicit : int or "auto"
        Directions of the pattern of observed entries that serve as side information; 0 for none. Ratings gain by it.
    side_weight : float
        How much side information counts beside the entries, 1 for as much as an entry of average size.
    bounds : (float, float), "auto" or None
        Predictions are cut to lie between them, in the data's unit. "auto" takes the range of the values where values
        pile up at both ends, as on a rating scale.
    one_standard_error : bool
        Choose the fit of least rank whose held-out error is within one standard error of the best.
    tol : float or None
        Stop when the estimated relative distance to the limit falls below it; None means 1e-8 without ridge
        and 1e-2 with one. With a ridge the limit is that of the penalty smoothed by sqrt(tol) of the ridge's own
        scale, ridge**(1 / (4 agop_power)).
    max_iter : int
    smoothing : {"auto", "iterate_change", "sigma_next", "geometric"} or float
        How epsilon falls ("geometric" can freeze far from the answer), see ``fastrfm.solvers.smoothing``; or a fixed
        epsilon above 0, in the data's unit. "auto" is "iterate_change" for the one-sided methods and the path of
        ``fastrfm.solvers.continuation``, with several attempts, for "two-sided".
    random_state : int
        Seed of the random starting directions and probes.
    n_threads : int or None
        None uses all that are available. The bits of a result do not depend on it.
    device : {"cpu", "cuda", "auto"}
        "cuda" runs the same loops on an NVIDIA GPU (extra ``fastrfm[cuda]``). "auto" takes it where it can be used,
        else the processor, with one line of notice that says why.
    """

    method: str = "auto"
    rank: int | None = None
    agop_power: Any = 0.5  # numbers (and a bool) once nothing is "auto" any more: that is what solvers see
    ridge: Any = 0.0
    offsets: Any = False
    count_power: float = 0.0
    huber: float | None = None
    implicit: Any = 0
    side_weight: float = 1.0
    bounds: tuple[float, float] | str | None = None
    one_standard_error: bool = False
    tol: float | None = None
    max_iter: int = 10_000
    smoothing: str | float = "auto"
    random_state: int = 0
    n_threads: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        _one_of("method", self.method, METHODS)
        if isinstance(self.smoothing, str):
            _one_of("smoothing", self.smoothing, SMOOTHING_RULES)
        else:
            _number("smoothing", self.smoothing, 0.0, above=True)
        if not isinstance(self.offsets, bool) and self.offsets not in (AUTO, JOINT):
            raise InputError(f'offsets must be True, False, "joint" or "auto", got {self.offsets!r}')
        _number("count_power", self.count_power, 0.0, 1.0)
        if self.huber is not None:
            _number("huber", self.huber, 0.0, above=True)
        if not isinstance(self.one_standard_error, bool):
            raise InputError(f"one_standard_error must be True or False, got {self.one_standard_error!r}")
        if self.implicit != AUTO:
            _whole("implicit", self.implicit, 0)
        _number("side_weight", self.side_weight, 0.0, above=True)
        _check_bounds(self.bounds)
        _one_of("device", self.device, DEVICES)
        if self.rank is not None:
            _whole("rank", self.rank, 1)
        _whole("max_iter", self.max_iter, 1)
        _whole("random_state", self.random_state, 0, LARGEST_SEED)
        if callable(self.agop_power):
            self._check_function()
        elif self.agop_power != AUTO:
            _number("agop_power", self.agop_power, 0.0, above=True)
            self._check_power(float(self.agop_power))
        if self.ridge != AUTO:
            _number("ridge", self.ridge, 0.0)
        if self.tol is not None:
            _number("tol", self.tol, 0.0)
        if self.smoothing == "sigma_next" and self.rank is None:
            raise InputError('smoothing="sigma_next" needs a rank: give one, or use smoothing="iterate_change"')

    def _check_power(self, agop_power: float) -> None:
        if self.method == "factored" and agop_power < FACTORED_POWER:
            raise InputError(
                f'method="factored" needs an agop_power of at least {FACTORED_POWER:g}, got {self.agop_power!r}: '
                'use method="dense" for smaller powers'
            )
        if self.method == "two-sided" and agop_power > TWO_SIDED_POWER:
            raise InputError(
                f'method="two-sided" needs an agop_power of at most {TWO_SIDED_POWER:g}, got {self.agop_power!r}: '
                'use method="dense" or "factored" for larger powers'
            )

    def _check_function(self) -> None:
        if self.method == "two-sided":
            raise InputError(
                'method="two-sided" takes a power of the AGOP, not a function: use method="dense" or "factored"'
            )
        if self.ridge == AUTO:
            raise InputError('ridge="auto" chooses among powers: give a ridge with a function for agop_power')

    @property
    def is_automatic(self) -> bool:
        """Whether something is to be chosen on entries held out."""
        has_way = self.method in ("auto", "factored") and self.smoothing == "auto"
        if self.ridge != AUTO or not has_way:
            return False
        return bool(self.agop_power == AUTO or float(self.agop_power) >= FACTORED_POWER)

    def settled(self) -> CompletionOptions:
        """Return the options with the defaults in place of "auto", but for `method`, `smoothing` and `bounds`."""
        names = ("agop_power", "ridge", "offsets", "implicit")
        plain = {name: getattr(type(self), name) for name in names if getattr(self, name) == AUTO}
        return replace(self, **plain)

    @property
    def effective_tol(self) -> float:
        """`tol`, or its default for exact (ridge 0) or noisy data."""
        if self.tol is not None:
            return self.tol
        return EXACT_TOL if self.ridge == 0.0 else NOISY_TOL

    def check_shape(self, shape: tuple[int, int]) -> None:
        """Raise InputError if `rank` cannot be reached by a matrix of this shape."""
        if self.rank is not None and self.rank > min(shape):
            raise InputError(
                f"rank must be at most {min(shape)}, the smaller side of the {shape[0]} x {shape[1]} matrix, "
                f"got {self.rank}"
            )

    def as_dict(self) -> dict[str, Any]:
        """Return all options by name, with `tol` as it is used; `bounds` are kept with a result by themselves."""
        values = {option.name: getattr(self, option.name) for option in fields(self) if option.name != "bounds"}
        return {**values, "tol": self.effective_tol}


def name_of(agop_power: Power) -> Any:
    """Return a number as it is, and a function by its name: what files and messages say."""
    if not callable(agop_power):
        return agop_power
    if isinstance(agop_power, functools.partial):
        return f"functools.partial({name_of(agop_power.func)})"
    name = getattr(agop_power, "__qualname__", type(agop_power).__qualname__)
    return f"{getattr(agop_power, '__module__', None) or '?'}.{name}"


def _check_bounds(bounds: Any) -> None:
    if bounds is None or (isinstance(bounds, str) and bounds == AUTO):
        return
    try:
        low, high = map(float, bounds)
        is_good = math.isfinite(low) and math.isfinite(high) and low < high
    except (TypeError, ValueError):
        is_good = False
    if not is_good:
        raise InputError(f'bounds must be two finite numbers, the lower first, or "auto", or None, got {bounds!r}')


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def _whole(name: str, value: Any, least: int, most: float = math.inf) -> None:
    try:
        is_good = not isinstance(value, bool) and least <= operator.index(value) <= most
    except TypeError:
        is_good = False
    if not is_good:
        bound = f"at least {least}" + (f" and at most {most}" if most < math.inf else "")
        raise InputError(f"{name} must be a whole number, {bound}, got {value!r}")


def _number(name: str, value: Any, least: float, most: float = math.inf, *, above: bool = False) -> None:
    try:
        is_good = not isinstance(value, bool) and math.isfinite(value) and (value > least if above else value >= least)
        is_good = is_good and value <= most
    except TypeError:
        is_good = False
    if not is_good:
        bound = f"{'above' if above else 'of at least'} {least:g}" + (
            f" and at most {most:g}" if most < math.inf else ""
        )
        raise InputError(f"{name} must be a finite number {bound}, got {value!r}")
