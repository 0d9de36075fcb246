"""Options of sparse linear regression and their defaults, in one place: estimators and path read them here.

Neighbour of ``options``, as light. Names as there; units are those of the objective ½ ‖y − A β‖² + λ ψ(β).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from fastrfm.errors import InputError
from fastrfm.options import DEVICES, _number, _one_of, _whole

SPARSE_SMOOTHING_RULES = ("auto", "geometric")
LINEAR_SOLVERS = ("auto", "cholesky", "cg")
LASSO_POWER = 0.25  # from this agop_power on the penalty sets coefficients to exactly zero


@dataclass(frozen=True)
class SparseOptions:
    """How to find a sparse regressor.

    Attributes
    ----------
    ridge : float
        lambda >= 0, the weight of the penalty against half the squared misfit. 0 interpolates the data, where there are
        fewer samples than features; where there are more it is least squares.
    agop_power : float or callable
        alpha > 0: coordinates are reweighted by (coefficient²)**alpha. The penalty is sum |b|^p / p with
        p = 2 - 4 alpha: 1/4 is the lasso, 1/2 the logarithm, 1 the least biased. Below 1/4 nothing becomes exactly
        zero, at 0 it would be ridge regression. Or phi, a function of the array of coefficient² + epsilon² in the place
        of the power (see ``fastrfm.agop``): systems over all columns are solved then, and nothing becomes exactly zero
        where there is a ridge.
    fit_intercept : bool
    tol : float
        Stop when the coefficients' relative change falls below it.
    max_iter : int
        Most linear systems solved, for each target and ridge.
    smoothing : {"auto", "geometric"} or float
        "auto" follows, with a ridge and an agop_power of at least 1/4, the penalty's sharp minimum down from the ridge
        at which nothing is selected; otherwise epsilon falls geometrically and an exact sparse answer is recognised.
        "geometric" keeps every column and lets epsilon fall. A number is a fixed epsilon, in the coefficients' unit.
    linear_solver : {"auto", "cholesky", "cg"}
        For systems over all columns (ridge 0, "geometric", fixed epsilon, agop_power below 1/4). "auto" takes
        conjugate gradients beyond 6000 samples.
    memory : int or None
        Bytes of a block of a design that stays in its file; None means 64 MiB.
    n_threads : int or None
        None uses all that are available.
    device : {"cpu", "cuda", "auto"}
        Where A and its products are. "cuda" takes features in memory, dense or scipy.sparse, to a CUDA device once;
        vectors, selected columns and Grams of n_samples x n_samples come back, which the processor factors. "auto" is
        "cuda" where there is a device and features are in memory, else "cpu".
    """

    ridge: float = 0.0
    agop_power: Any = 0.5
    fit_intercept: bool = True
    tol: float = 1e-8
    max_iter: int = 1000
    smoothing: str | float = "auto"
    linear_solver: str = "auto"
    memory: int | None = None
    n_threads: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        _number("ridge", self.ridge, 0.0)
        if not callable(self.agop_power):
            _number("agop_power", self.agop_power, 0.0, above=True)
        if not isinstance(self.fit_intercept, bool):
            raise InputError(f"fit_intercept must be True or False, got {self.fit_intercept!r}")
        _number("tol", self.tol, 0.0)
        _whole("max_iter", self.max_iter, 1)
        if isinstance(self.smoothing, str):
            _one_of("smoothing", self.smoothing, SPARSE_SMOOTHING_RULES)
        else:
            _number("smoothing", self.smoothing, 0.0, above=True)
        _one_of("linear_solver", self.linear_solver, LINEAR_SOLVERS)
        if self.memory is not None:
            _whole("memory", self.memory, 1)
        _one_of("device", self.device, DEVICES)

    @property
    def penalty_power(self) -> float:
        """The exponent p = 2 - 4 agop_power of the penalty; of powers only."""
        return float(2.0 - 4.0 * self.agop_power)

    @property
    def is_sharp(self) -> bool:
        """Whether the penalty's own minimum is followed, on the columns that it selects."""
        is_selecting = not callable(self.agop_power) and self.agop_power >= LASSO_POWER
        return self.ridge > 0.0 and is_selecting and self.smoothing == "auto"


SPARSE_DEFAULTS: dict[str, Any] = {option.name: option.default for option in fields(SparseOptions)}
