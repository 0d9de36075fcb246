"""Deep linear networks for matrix completion: gradient descent on X = W_L … W_1 from a small start.

Loss ½ ‖P_Ω(X − Y)‖². Without any penalty the small start and the depth alone favour low rank (S. Gunasekar et al.,
"Implicit regularization in matrix factorization", 2017; S. Arora et al., "Implicit regularization in deep matrix
factorization", 2019). Not here: the search of depth, step and start (``search``).

With F_1 = W_1ᵀ, F_l = W_lᵀ and Q_l = F_1 … F_l the estimate is W_L Q_{L−1}ᵀ. It is needed at the observed entries
alone, and so is the loss's gradient R with respect to it, which is sparse:

    ∂W_L = R Q_{L−1},   B_{L−1} = Rᵀ W_L,   ∂F_l = Q_{l−1}ᵀ B_l,   B_{l−1} = B_l F_lᵀ,   ∂F_1 = B_1

Three dense products per hidden layer, none of them twice, and three sparse ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np

from fastrfm._interrupt import check, deferred
from fastrfm._numba import blas_threads, check_thread_count, thread_limit
from fastrfm.baselines.inputs import (
    Clock,
    as_result,
    check_number,
    check_observations,
    check_whole,
    positive,
    warn_unless_done,
)
from fastrfm.errors import InputError
from fastrfm.kernels.networks import multiply_sparse
from fastrfm.kernels.residual import masked_residual
from fastrfm.kernels.tasks import balanced_bounds
from fastrfm.observations import Observations
from fastrfm.results import CompletionResult

# The start's norm over the matrix's, by depth. Plateaus last log(1 / scale) at depth 2 and a power of 1 / scale beyond;
# what the start leaves in the wrong directions falls with it. On 100 x 100, rank 3, 5 entries per degree of freedom,
# depth 2 gave errors of 7e-2 from 1e-3, 1e-2 from 1e-5 and 5e-4 from 1e-10; on 500 x 500, rank 5, it took 9876 steps
# from 1e-14 and 341 from 1e-20.
INIT_SCALES = {2: 1e-20, 3: 1e-6, 4: 1e-5}
DEEPER_INIT_SCALE = 1e-4
_WORTH_THREADS = 1 << 26  # multiply-adds of a dense product
_WORTH_KERNEL_THREADS = 1 << 21  # and of a sparse one: below, waking threads takes as long
_DIVERGED = 2.0  # times the data's norm: descent never rises above its start, which is about 1
_RISES, _RISE = 50, 1e-6  # so many rises, each by that share, since the least loss: the step bounces across a valley
_HALVINGS = 20
_POWER_STEPS = 30


def deep_linear_network(
    observations: Observations,
    *,
    depth: int = 2,
    width: int | None = None,
    step: float | str = "auto",
    init_scale: float | str = "auto",
    tol: float = 1e-4,
    max_iter: int = 100_000,
    max_seconds: float | None = None,
    random_state: int = 0,
    n_threads: int | None = None,
    dtype: str = "float64",
    callback: Callable[[int, np.ndarray], Any] | None = None,
) -> CompletionResult:
    """Return the matrix that a deep linear network finds by full-batch gradient descent.

    Parameters
    ----------
    observations : Observations
        In memory, without weights.
    depth : int
        L, the number of factors; at least 2.
    width : int or None
        Of the hidden layers; None is the smaller side of the matrix, which restricts nothing.
    step : float or "auto"
        Multiple of the automatic step, which is 1 over the loss's largest curvature at the scale of the solution (see
        Notes); "auto" is 1. Where the loss exceeds its start, or rises 50 times without a new least, the step is
        halved and training starts again.
    init_scale : float or "auto"
        ‖X_0‖_F over the norm of the matrix as estimated from its observed entries, ‖y‖ √(n_rows n_cols / n_observed).
        "auto" is 1e-20, 1e-6 and 1e-5 at depths 2, 3 and 4, and 1e-4 beyond.
    tol : float
        Stop when the root mean square of the residuals is at most this share of the values'.
    max_iter : int
    max_seconds : float or None
    random_state : int
    n_threads : int or None
        None is all there are, one where products are small. BLAS may give other last bits with another number.
    dtype : {"float64", "float32"}
        Of the weights. float32 is twice as fast and serves down to a tol of about 1e-5; below, rounding reads as a
        step that is too long.
    callback : callable, optional
        Called with the number of the iteration and the dense estimate, at the cost of forming it; True stops.

    Returns
    -------
    CompletionResult
        ``history`` has ``masked_rmse``, ``change`` (of the estimate at the observed entries, relative to the values'
        norm), ``step`` (as given: it shows halvings) and ``seconds``; ``stop_reason`` is "converged", "max_iter",
        "max_seconds", "callback" or "diverged". ``options`` has the ``curvature`` that steps are divided by.

    Raises
    ------
    InputError
        If an option is out of range, or the observations are weighted, not in memory or all zero.

    Warns
    -----
    NotConvergedWarning
        If `max_iter` came before `tol`, or the step was halved 20 times in vain.

    Notes
    -----
    Layers are Gaussian, all scaled alike. Values are divided by an estimate of σ_1(Y), the largest singular value of
    the zero-filled matrix over the share of entries observed. At a balanced solution each layer then has norm 1, and
    with u, v that leading pair the largest curvature, found by power iteration, is that of

        ‖P_Ω(a vᵀ + u bᵀ + √(L − 2) s u vᵀ)‖²   among a, b, s of norm 1 together

    for the outer layers' directions a and b and the hidden ones' s (own derivation).

    Examples
    --------
    >>> import numpy as np
    >>> from fastrfm import Observations
    >>> matrix = np.outer(np.arange(1.0, 9.0), np.ones(8))
    >>> matrix[[0, 3, 5], [2, 1, 7]] = np.nan
    >>> result = deep_linear_network(Observations.from_dense(matrix), depth=3)
    >>> result.predict([0, 3, 5], [2, 1, 7]).round(2).tolist()
    [1.0, 4.0, 6.0]
    """
    result = _train(
        observations, depth, width, step, init_scale, tol, max_iter, max_seconds, random_state, n_threads, dtype,
        callback,
    )  # fmt: skip
    warn_unless_done(result.stop_reason, "gradient descent on a deep linear network")
    return result


def _train(
    observations: Observations, depth: int, width: int | None, step: float | str, init_scale: float | str, tol: float,
    max_iter: int, max_seconds: float | None, random_state: int, n_threads: int | None, dtype: str,
    callback: Callable[[int, np.ndarray], Any] | None,
) -> CompletionResult:  # fmt: skip
    """Do the work of :func:`deep_linear_network` without its warning."""
    observations = check_observations(observations)
    check_whole("depth", depth, 2)
    check_whole("max_iter", max_iter, 1)
    check_number("tol", tol, 0.0, above=True)
    if width is not None:
        check_whole("width", width, 1)
    multiple = positive("step", step, 1.0)
    share = positive("init_scale", init_scale, INIT_SCALES.get(depth, DEEPER_INIT_SCALE))
    if dtype not in ("float32", "float64"):
        raise InputError(f'dtype must be "float32" or "float64", got {dtype!r}')
    clock = Clock(max_seconds)
    hidden = width or min(observations.shape)
    threads = check_thread_count(n_threads)
    if n_threads is None and observations.n_observed * hidden < _WORTH_KERNEL_THREADS:
        threads = 1
    with deferred(), thread_limit(threads):
        unit, curvature = solution_scale(observations, depth)
        network = Network(observations, depth, hidden, unit, np.dtype(dtype))
        loop = Descent(tol, max_iter, clock)
        norm = observations.norm / math.sqrt(observations.n_observed / np.prod(observations.shape)) / unit
        while True:
            network.begin(share * norm, random_state)
            with np.errstate(over="ignore", invalid="ignore"):  # of a step that is too long
                loop.run(network, multiple, curvature, callback)
            if loop.stop_reason != "diverged" or loop.n_halvings == _HALVINGS:
                break
            loop.n_halvings, multiple = loop.n_halvings + 1, 0.5 * multiple
        if loop.stop_reason == "diverged":
            network.begin(share * norm, random_state)  # the weights may be infinite
        left, right = network.factors()
        history = loop.history(observations.norm / math.sqrt(observations.n_observed))
        options = {
            "depth": depth, "width": network.width, "step": multiple, "init_scale": share, "curvature": curvature,
            "max_iter": max_iter, "max_seconds": max_seconds, "random_state": random_state, "dtype": dtype,
        }  # fmt: skip
        return as_result(
            observations, (left, right), method="deep-linear", tol=tol, stop_reason=loop.stop_reason, history=history,
            options=options,
        )  # fmt: skip


def solution_scale(observations: Observations, depth: int) -> tuple[float, float]:
    """Return an estimate of σ_1 of the matrix and the loss's curvature there, for values divided by it (see Notes)."""
    rows, cols, values = observations.to_coo()
    n_rows, n_cols = observations.shape
    right: np.ndarray = np.random.default_rng(0).standard_normal(n_cols)
    a: np.ndarray
    b: np.ndarray
    size = 0.0
    for _ in range(_POWER_STEPS):
        right = right / np.linalg.norm(right)
        left = np.bincount(rows, values * right[cols], n_rows)
        left = left / np.linalg.norm(left)
        right = np.bincount(cols, values * left[rows], n_cols)
        size = float(np.linalg.norm(right))
    left, right = left[rows], right[cols] / size
    # Rows a and columns b of the outer layers' directions a vᵀ and u bᵀ, and the hidden layers' share of u vᵀ.
    a, b, hidden, curvature = np.ones(n_rows), np.ones(n_cols), 1.0, 1.0
    for _ in range(_POWER_STEPS):
        a, b, hidden = a / curvature, b / curvature, hidden / curvature
        moved = a[rows] * right + left * b[cols] + math.sqrt(depth - 2) * hidden * left * right
        a, b = np.bincount(rows, moved * right, n_rows), np.bincount(cols, moved * left, n_cols)
        hidden = math.sqrt(depth - 2) * float(moved @ (left * right))
        curvature = math.sqrt(float(a @ a + b @ b) + hidden * hidden)
    return size / (observations.n_observed / (n_rows * n_cols)), curvature


class Network:
    """The weights, room for everything a step needs, and the step.

    Parameters
    ----------
    observations : Observations
    depth, width : int
    unit : float
        Values are divided by it.
    dtype : dtype
        Of weights and gradients; residuals are float64.
    """

    def __init__(self, observations: Observations, depth: int, width: int, unit: float, dtype: np.dtype) -> None:
        n_rows, n_cols = observations.shape
        self.width, self.dtype, self._unit = width, dtype, unit
        self._by_row = (balanced_bounds(observations.row_counts), observations.indptr, observations.indices)
        positions = observations.with_values(np.arange(observations.n_observed, dtype=np.float64)).transposed()
        self._by_col = (balanced_bounds(positions.row_counts), positions.indptr, positions.indices)
        self._order = positions.values.astype(np.int64)
        self._values = observations.values.astype(np.float64) / unit
        self.norm = float(np.linalg.norm(self._values))
        self._residual = np.empty(observations.n_observed)
        self._last = np.empty((n_rows, width), dtype)  # W_L
        self._layers = [np.empty((n_cols if t == 0 else width, width), dtype) for t in range(depth - 1)]  # F_1 …
        self._products = [self._layers[0], *(np.empty((n_cols, width), dtype) for _ in range(depth - 2))]  # Q_1 …
        self._last_gradient = np.empty_like(self._last)
        self._gradients = [np.empty_like(layer) for layer in self._layers]
        self._back, self._next_back = np.empty((n_cols, width), dtype), np.empty((n_cols, width), dtype)
        self._is_large = n_cols * width * width > _WORTH_THREADS

    def begin(self, norm: float, random_state: int) -> None:
        """Draw Gaussian layers whose product has this Frobenius norm, in the unit of the scaled values."""
        rng = np.random.default_rng(random_state)
        for layer in (self._last, *self._layers):
            layer[...] = rng.standard_normal(layer.shape) / math.sqrt(self.width)
        self._multiply()
        last, product = self._last.astype(np.float64), self._products[-1].astype(np.float64)
        size = math.sqrt(np.sum((last.T @ last) * (product.T @ product)))
        for layer in (self._last, *self._layers):
            layer *= (norm / size) ** (1.0 / (len(self._layers) + 1))

    def residual(self) -> np.ndarray:
        """Return estimate less values at the observed entries, (n_observed,) float64; the array is used again."""
        self._multiply()
        masked_residual(*self._by_row, self._values, self._last, self._products[-1], self._residual)
        return self._residual

    def descend(self, step: float) -> None:
        """Take one step down the gradient that belongs to the last :meth:`residual`."""
        residual = self._residual.astype(self.dtype)
        multiply_sparse(*self._by_row, residual, self._products[-1], self._last_gradient)
        back, spare = self._back, self._next_back
        multiply_sparse(*self._by_col, residual[self._order], self._last, back)
        with blas_threads() if self._is_large else nullcontext():
            for t in range(len(self._layers) - 1, 0, -1):
                np.matmul(self._products[t - 1].T, back, out=self._gradients[t])
                np.matmul(back, self._layers[t].T, out=spare)
                back, spare = spare, back
        gradients = [back, *self._gradients[1:]]
        for layer, gradient in zip((self._last, *self._layers), (self._last_gradient, *gradients), strict=True):
            gradient *= self.dtype.type(step)
            layer -= gradient

    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (n_rows, width) and (n_cols, width) float64, whose product is the estimate in the data's unit."""
        self._multiply()
        return self._unit * self._last.astype(np.float64), self._products[-1].astype(np.float64)

    def dense(self) -> np.ndarray:
        """Return the estimate, (n_rows, n_cols) float64, in the data's unit."""
        left, right = self.factors()
        dense: np.ndarray = left @ right.T
        return dense

    def _multiply(self) -> None:
        with blas_threads() if self._is_large else nullcontext():
            for t in range(1, len(self._layers)):
                np.matmul(self._products[t - 1], self._layers[t], out=self._products[t])


class Descent:
    """The loop: steps until the residual is small, a limit is reached or the loss has grown."""

    def __init__(self, tol: float, max_iter: int, clock: Clock) -> None:
        self._tol, self._max_iter, self._clock = tol, max_iter, clock
        self._records: list[tuple[float, float, float, float]] = []
        self.n_halvings, self.stop_reason = 0, ""

    def run(
        self, network: Network, step: float, curvature: float, callback: Callable[[int, np.ndarray], Any] | None
    ) -> None:
        """Train from where the network stands; ``stop_reason`` says how it ended."""
        norm, before = network.norm, network.residual().copy()
        least, last, n_rises = math.inf, math.inf, 0
        while True:
            check()  # Ctrl-C
            network.descend(step / curvature)
            residual = network.residual()
            misfit = float(np.linalg.norm(residual)) / norm
            change = float(np.linalg.norm(residual - before)) / norm
            before[...] = residual
            n_rises = 0 if misfit < least else n_rises + (misfit > (1.0 + _RISE) * last)
            least, last = min(least, misfit), misfit
            self._records.append((misfit, change, step, self._clock.seconds))
            n_iter = len(self._records)
            asked = callback is not None and callback(n_iter, network.dense())
            if misfit <= self._tol:
                self.stop_reason = "converged"
            elif asked:
                self.stop_reason = "callback"
            elif not misfit <= _DIVERGED or n_rises >= _RISES:  # NaN too
                self.stop_reason = "diverged"
            elif n_iter >= self._max_iter:
                self.stop_reason = "max_iter"
            elif self._clock.is_over:
                self.stop_reason = "max_seconds"
            else:
                continue
            return

    def history(self, root_mean_square: float) -> dict[str, np.ndarray]:
        """Return the records as arrays; misfits in the data's unit, given its root mean square."""
        misfit, change, step, seconds = np.array(self._records).T.copy()
        return {"masked_rmse": misfit * root_mean_square, "change": change, "step": step, "seconds": seconds}
