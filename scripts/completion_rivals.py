"""Matrix completion from PyPI, for comparison: how each package is called, and how its time is taken.

Flow: ``Rivals`` (a worker process for each package) -> ``Rivals.measure`` -> ``Outcome``. Every package gets the true
rank, one thread, and data scaled to a root mean square of one. None stops by itself at a wanted error, so a package
runs afresh with 1, 2, 4, ... times its first number of iterations, and the time of the first run that reaches the
wanted error counts, that run alone: nobody could know better when to stop. Not here: problems and tables.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
from completion_problems import Problem
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import svds

Factors = tuple[np.ndarray, np.ndarray]
_START_SECONDS = 60.0  # of a worker: imports
_DIVERGED_AFTER = 3  # doublings


@dataclass(frozen=True)
class Rival:
    """One way to call one package."""

    package: str
    settings: str
    solve: Callable[[csr_matrix, int, int, float], tuple[Factors, bool]]
    first_budget: int
    largest_side: int = 1_000_000


@dataclass
class Outcome:
    """How one rival did on one problem; `trail` has (iterations allowed, seconds, error) of each run."""

    error: float = float("inf")
    seconds: float = 0.0
    is_reached: bool = False
    note: str = ""
    trail: list[tuple[int, float, float]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _truncated(matrix: Any, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    u, s, vt = svds(matrix, k=rank, v0=np.ones(min(matrix.shape)))
    return u[:, ::-1], s[::-1], vt[::-1]


def _pymanopt(matrix: csr_matrix, rank: int, optimizer: Callable[..., Any], second_order: bool) -> tuple[Factors, bool]:
    """Least squares on the manifold of matrices of this rank, from the leading part of the zero-filled data."""
    import pymanopt
    from pymanopt.manifolds import FixedRankEmbedded
    from pymanopt.manifolds.fixed_rank import _FixedRankPoint

    manifold = FixedRankEmbedded(*matrix.shape, rank)
    indptr, cols, data = matrix.indptr, matrix.indices, matrix.data
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(indptr))

    def entries(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return np.asarray(np.einsum("ij,ij->i", left[rows], right[cols]))

    def spread(values: np.ndarray) -> csr_matrix:
        return csr_matrix((values, cols, indptr), shape=matrix.shape)

    @pymanopt.function.numpy(manifold)  # type: ignore[untyped-decorator, unused-ignore]
    def cost(u: np.ndarray, s: np.ndarray, vt: np.ndarray) -> float:
        return float(0.5 * np.sum((entries(u * s, vt.T) - data) ** 2))

    @pymanopt.function.numpy(manifold)  # type: ignore[untyped-decorator, unused-ignore]
    def gradient(u: np.ndarray, s: np.ndarray, vt: np.ndarray) -> Any:
        return manifold.projection((u, s, vt), spread(entries(u * s, vt.T) - data))

    @pymanopt.function.numpy(manifold)  # type: ignore[untyped-decorator, unused-ignore]
    def hessian(u: np.ndarray, s: np.ndarray, vt: np.ndarray, up: Any, m: Any, vp: Any) -> Any:
        moved = entries(np.hstack([u @ m + up, u]), np.hstack([vt.T, vp]))
        return manifold.projection((u, s, vt), spread(moved))

    fill = matrix.nnz / (matrix.shape[0] * matrix.shape[1])
    u, s, vt = _truncated(matrix, rank)
    extra = {"riemannian_hessian": hessian} if second_order else {}
    problem = pymanopt.Problem(manifold, cost, riemannian_gradient=gradient, **extra)
    least = 1e-14 * float(np.linalg.norm(data))
    result = optimizer(min_gradient_norm=least, min_step_size=1e-15, max_cost_evaluations=10**9, verbosity=0).run(
        problem, initial_point=_FixedRankPoint(u, s / fill, vt)
    )
    point = result.point
    has_stopped = "max iterations" not in result.stopping_criterion and "max time" not in result.stopping_criterion
    return (point.u * point.s, point.vt.T), has_stopped


def _pymanopt_gradients(matrix: csr_matrix, rank: int, budget: int, limit: float) -> tuple[Factors, bool]:
    from pymanopt.optimizers import ConjugateGradient

    def make(**options: Any) -> Any:
        return ConjugateGradient(beta_rule="PolakRibiere", max_iterations=budget, max_time=limit, **options)

    return _pymanopt(matrix, rank, make, second_order=False)


def _pymanopt_regions(matrix: csr_matrix, rank: int, budget: int, limit: float) -> tuple[Factors, bool]:
    from pymanopt.optimizers import TrustRegions

    def make(**options: Any) -> Any:
        return TrustRegions(max_iterations=budget, max_time=limit, **options)

    return _pymanopt(matrix, rank, make, second_order=True)


def _cmfrec(matrix: csr_matrix, rank: int, budget: int, limit: float, ridge: float = 1e-10) -> tuple[Factors, bool]:
    from cmfrec import CMF

    model = CMF(
        k=rank, lambda_=ridge, method="als", use_cg=False, niter=budget, user_bias=False, item_bias=False,
        center=False, scale_lam=False, use_float=False, precompute_for_predictions=False, nthreads=1, random_state=1,
        verbose=False,
    )  # fmt: skip
    model.fit(matrix.tocoo())
    return (np.asarray(model.A_, dtype=float), np.asarray(model.B_, dtype=float)), False


def _fancyimpute(matrix: csr_matrix, rank: int, budget: int, limit: float) -> tuple[Factors, bool]:
    from fancyimpute import SoftImpute

    dense = np.full(matrix.shape, np.nan)
    coo = matrix.tocoo()
    dense[coo.row, coo.col] = coo.data
    least = 1e-10 * float(_truncated(matrix, 1)[1][0])
    solver = SoftImpute(
        shrinkage_value=least, convergence_threshold=1e-14, max_iters=budget, max_rank=rank, verbose=False
    )
    u, s, vt = _truncated(solver.fit_transform(dense), rank)
    return (u * s, vt.T), False


def _hmirls(matrix: csr_matrix, rank: int, budget: int, limit: float) -> tuple[Factors, bool]:
    from hmirls.operators import SamplingMatrixOperator
    from hmirls.problem import Problem as Recovery
    from hmirls.problem import ResidualNormStoppingCriteria
    from hmirls.regularization import FixedRankSpectralShiftRegularizationRule
    from hmirls.weighted_least_squares import WeightedLeastSquaresSolver
    from scipy.sparse.linalg import cg

    class Inner(WeightedLeastSquaresSolver):  # type: ignore[misc, unused-ignore]
        """Its own calls cg(tol=...), which scipy took away in 1.14."""

        def _solve_linear_equation(self, operator: Any, data: np.ndarray) -> np.ndarray:
            return np.asarray(cg(operator, data, rtol=1e-5)[0])

    coo = matrix.tocoo()
    recovery = Recovery(SamplingMatrixOperator(coo.row, coo.col, matrix.shape), coo.data[:, None])
    size = float(np.linalg.norm(coo.data))
    rule = FixedRankSpectralShiftRegularizationRule(rank, minimal_shift=1e-13 * size, initial_shift_parameter=size)
    dense = recovery.solve(
        0.1, budget, rank, rule, weighted_least_squares_solver=Inner(),
        stopping_criteria=ResidualNormStoppingCriteria(1e-14),
    )  # fmt: skip
    u, s, vt = _truncated(dense, rank)
    return (u * s, vt.T), False


RIVALS = {
    "pymanopt CG": Rival(
        "pymanopt",
        "`FixedRankEmbedded`, `ConjugateGradient` (Polak-Ribière), gradient by hand through scipy.sparse, started "
        "from the truncated SVD of the zero-filled data; stops at a gradient of 1e-14 of the data",
        _pymanopt_gradients,
        25,
        20_000,
    ),
    "pymanopt TR": Rival(
        "pymanopt",
        "the same with `TrustRegions` and the Gauss-Newton part of the Hessian by hand",
        _pymanopt_regions,
        5,
        20_000,
    ),
    "cmfrec": Rival(
        "cmfrec",
        "`CMF`: alternating least squares by Cholesky, float64, `lambda_=1e-10`, no biases, no centring",
        _cmfrec,
        10,
        20_000,
    ),
    "cmfrec λ": Rival(
        "cmfrec",
        "the same with `lambda_=0.1`, the best of 1e-6, 1e-4, 1e-3, 1e-2, 0.1 on the first problem, where errors of "
        "all smaller ones stay above 100 %",
        partial(_cmfrec, ridge=0.1),
        10,
        20_000,
    ),
    "fancyimpute": Rival(
        "fancyimpute",
        "`SoftImpute` with `max_rank` the true rank, hardly any shrinkage (1e-10 of the largest singular value); dense",
        _fancyimpute,
        25,
        1000,
    ),
    "hmirls": Rival(
        "hmirls",
        "p = 0.1, the true rank for its smoothing, scipy's `cg` handed in as inner solver (its own does not run with "
        "scipy 1.14 or newer). Not in the tables: it writes its weights as Kronecker products of 2 n³ numbers and "
        "solves without a preconditioner. Once, at 100 x 100, rank 3, ρ 4, 25 iterations with an inner tolerance of "
        "1e-5 came to an error of 1e-5 in 123 s with a peak of 2.3 GiB; larger ones were not tried",
        _hmirls,
        4,
        100,
    ),
}


def installed() -> dict[str, str]:
    """Return the version of each package that is there, by package."""
    found = {}
    for package in {rival.package for rival in RIVALS.values()}:
        with suppress(PackageNotFoundError):
            if importlib.util.find_spec(package) is not None:
                found[package] = version(package)
    return dict(sorted(found.items()))


def _work(name: str, pipe: Connection) -> None:
    """Answer (matrix, rank, budget, limit) with (seconds, factors, has stopped), or with what went wrong."""
    from threadpoolctl import threadpool_limits

    warnings.simplefilter("ignore")
    pipe.send(None)
    with threadpool_limits(1):
        while True:
            try:
                matrix, rank, budget, limit = pipe.recv()
            except (EOFError, KeyboardInterrupt):
                return  # whoever asks has gone
            try:
                np.random.seed(0)  # noqa: NPY002  (the packages draw from it)
                start = time.perf_counter()
                factors, has_stopped = RIVALS[name].solve(matrix, rank, budget, limit)
                pipe.send((time.perf_counter() - start, factors, has_stopped))
            except Exception as error:
                pipe.send(f"{type(error).__name__}: {error}"[:200])


def _has_diverged(errors: list[float]) -> bool:
    """Return whether the error is above 200 % and rose with each of the last doublings; a plateau is no reason."""
    last = errors[-_DIVERGED_AFTER - 1 :]
    return len(last) > _DIVERGED_AFTER and last[0] > 2.0 and all(np.diff(last) > 0.0)


class Rivals:
    """Worker processes, one for each rival, started when first asked and killed when they do not answer."""

    def __init__(self, limit: float, packages: dict[str, str]) -> None:
        self.limit = limit
        self.packages = packages
        self._workers: dict[str, tuple[BaseProcess, Connection]] = {}

    def __enter__(self) -> Rivals:
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._workers):
            self._stop(name)

    def _stop(self, name: str) -> None:
        process, pipe = self._workers.pop(name)
        process.kill()
        process.join()
        pipe.close()

    def _ask(self, name: str, *job: Any) -> Any:
        if name not in self._workers:
            context = multiprocessing.get_context("spawn")
            mine, theirs = context.Pipe()
            process = context.Process(target=_work, args=(name, theirs), daemon=True)
            process.start()
            theirs.close()
            self._workers[name] = process, mine
            if not mine.poll(_START_SECONDS):
                raise TimeoutError(f"{name} does not start")
            mine.recv()
        pipe = self._workers[name][1]
        try:
            pipe.send(job)
            if pipe.poll(1.25 * self.limit + 1.0):
                return pipe.recv()
            answer = "time limit"
        except (EOFError, OSError):
            answer = "process died (memory?)"
        self._stop(name)
        return answer

    def names_for(self, problem: Problem) -> list[str]:
        """Return the rivals of these packages that can take a problem of this size."""
        side = max(problem.observations.shape)
        return [name for name, rival in RIVALS.items() if rival.package in self.packages and side <= rival.largest_side]

    def warm_up(self, name: str, problem: Problem) -> None:
        """Load the package, so that its import is in nobody's time."""
        self._ask(name, problem.sparse(), problem.rank, 1, 1.0)

    def measure(self, name: str, problem: Problem, wanted: float) -> Outcome:
        """Run a rival with doubled budgets until the wanted error, its own end, or the time limit."""
        outcome = Outcome()
        budget, matrix, unit = RIVALS[name].first_budget, problem.sparse(), problem.unit
        while True:
            answer = self._ask(name, matrix, problem.rank, budget, self.limit)
            if isinstance(answer, str):
                outcome.note = answer
                if not outcome.trail:
                    outcome.seconds = self.limit if answer == "time limit" else 0.0
                break
            seconds, (left, right), has_stopped = answer
            error = problem.error(left * unit, right)
            outcome.trail.append((budget, seconds, error))
            if error < outcome.error or not np.isfinite(outcome.error):
                outcome.error, outcome.seconds, outcome.is_reached = error, seconds, error <= wanted
            if has_stopped:
                outcome.note = "stopped by itself"
                break
            if outcome.is_reached:
                break
            if 2.0 * seconds > self.limit:
                outcome.note = "time limit"
                break
            if _has_diverged([error for _, _, error in outcome.trail]):
                outcome.note = "diverged"
                break
            budget *= 2
        return outcome
