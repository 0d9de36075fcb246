"""Options of low-rank recovery from general measurements and their defaults, in one place.

Neighbour of ``options`` and ``sparse_options``, as light. Units are those of the objective ½ ‖y − 𝒜X‖² + λ ψ(X).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from fastrfm.errors import InputError
from fastrfm.options import EXACT_TOL, LARGEST_SEED, TWO_SIDED_POWER, _number, _one_of, _whole
from fastrfm.sparse_options import LINEAR_SOLVERS

SIDES = ("both", "columns")
LOW_RANK_SMOOTHING_RULES = ("auto", "sigma_next", "geometric")
RIDGE_TOL = 1e-3


@dataclass(frozen=True)
class LowRankOptions:
    """How to find a low-rank matrix from linear measurements of it.

    Attributes
    ----------
    ridge : float
        lambda >= 0, the weight of the penalty against half the squared misfit. 0 interpolates the measurements, where
        they are fewer than the matrix has entries; where they are more it is least squares.
    rank : int or None
        Largest rank of the answer. It also steers epsilon where there is no ridge. None lets the data decide.
    agop_power : float or callable
        alpha > 0, at most 1/2 with `sides` "both". The penalty is sum sigma^p / p with p = 2 - 4 alpha: 1/4 is the
        nuclear norm, 1/2 the logarithm. Or phi, a function of the AGOP's eigenvalues (see ``fastrfm.agop``); that needs
        `sides` "columns".
    sides : {"both", "columns"}
        Whose AGOP reweights: "both" takes that of rows and that of columns, each at half the power, and converges in a
        few iterations; "columns" is the paper's algorithm.
    tol : float or None
        Stop when the estimate's relative change falls below it. None is 1e-8, and 1e-3 with a ridge.
    max_iter : int
        Most linear systems solved.
    smoothing : {"auto", "sigma_next", "geometric"} or float
        How epsilon falls. "sigma_next" follows the first singular value beyond `rank`; "geometric" divides by a
        constant; "auto" is the former where a rank is given and no ridge, else the latter until the rank shows as a
        gap in the spectrum, and with a ridge no faster than the steps become small. A number is a fixed epsilon, in
        the unit of the matrix's singular values.
    linear_solver : {"auto", "cholesky", "cg"}
        "cholesky" factors an n x n system for n measurements; "cg" solves it by preconditioned conjugate gradients.
        "auto" takes the cheaper by the number of operations, and always "cg" for a LinearOperator.
    shape : (int, int) or None
        (n_rows, n_cols) of the matrix; only a LinearOperator needs it.
    memory : int or None
        Bytes of a block of measurements that is worked on at a time; None means 64 MiB.
    random_state : int
        Of the random vectors by which the scale of a LinearOperator is estimated.
    n_threads : int or None
        None uses all that are available. Any number gives the same bits.
    """

    ridge: float = 0.0
    rank: int | None = None
    agop_power: Any = 0.5
    sides: str = "both"
    tol: float | None = None
    max_iter: int = 1000
    smoothing: str | float = "auto"
    linear_solver: str = "auto"
    shape: tuple[int, int] | None = None
    memory: int | None = None
    random_state: int = 0
    n_threads: int | None = None

    def __post_init__(self) -> None:
        _number("ridge", self.ridge, 0.0)
        if self.rank is not None:
            _whole("rank", self.rank, 1)
        _one_of("sides", self.sides, SIDES)
        self._check_power()
        if self.tol is not None:
            _number("tol", self.tol, 0.0)
        _whole("max_iter", self.max_iter, 1)
        if not isinstance(self.smoothing, str):
            _number("smoothing", self.smoothing, 0.0, above=True)
        else:
            _one_of("smoothing", self.smoothing, LOW_RANK_SMOOTHING_RULES)
            if self.smoothing == "sigma_next" and self.rank is None:
                raise InputError('smoothing="sigma_next" needs a rank: give one, or use "auto"')
        _one_of("linear_solver", self.linear_solver, LINEAR_SOLVERS)
        if self.memory is not None:
            _whole("memory", self.memory, 1)
        _whole("random_state", self.random_state, 0, LARGEST_SEED)

    def _check_power(self) -> None:
        if callable(self.agop_power):
            if self.sides == "both":
                raise InputError('sides="both" takes a power of the AGOP, not a function: use sides="columns"')
            return
        _number("agop_power", self.agop_power, 0.0, above=True)
        if self.sides == "both" and self.agop_power > TWO_SIDED_POWER:
            raise InputError(
                f'agop_power must be at most {TWO_SIDED_POWER} with sides="both", got {self.agop_power}: beyond it the '
                'weights have no penalty to go with them, use sides="columns"'
            )

    @property
    def effective_tol(self) -> float:
        """`tol`, or its default for exact (ridge 0) or noisy data."""
        if self.tol is not None:
            return self.tol
        return EXACT_TOL if self.ridge == 0.0 else RIDGE_TOL

    def check_shape(self, shape: tuple[int, int]) -> None:
        """Raise InputError if `rank` cannot be reached by a matrix of this shape."""
        if self.rank is not None and self.rank > min(shape):
            raise InputError(
                f"rank must be at most {min(shape)}, the smaller side of the {shape[0]} x {shape[1]} matrix, "
                f"got {self.rank}"
            )


LOW_RANK_DEFAULTS: dict[str, Any] = {option.name: option.default for option in fields(LowRankOptions)}
