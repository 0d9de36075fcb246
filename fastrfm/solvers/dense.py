"""``method="dense"``: one-sided lin-RFM with the whole feature Gram, exact for any power.

Each iteration, for every row i with observed columns J (arXiv 2401.04553):

    (K[J,J] + λ I) a = y_i,   x_i = a K[J,:],   G ← Σ x_iᵀ x_i,   K ← (G + ε² I)^(2α)

K lives on the smaller side of the matrix. X exists one slab of rows at a time: it is solved for, added to G and
dropped. Not here: choice of ε (``smoothing``), stopping (``monitor``), offsets and the final form (``completion``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastrfm.agop import feature_gram, gram_unit, least_smoothing
from fastrfm.arrays import HostArrays
from fastrfm.blocks import Compressed, RowBlocks
from fastrfm.factors import numerical_rank, tall_qr
from fastrfm.kernels.gram import accumulate_gram
from fastrfm.kernels.row_solves import expand_rows, solve_dual_rows
from fastrfm.options import CompletionOptions, Power
from fastrfm.solvers.checkpoint import Checkpoint
from fastrfm.solvers.monitor import Iteration, Monitor
from fastrfm.solvers.smoothing import next_smoothing, ridge_smoothing

# Rows of X held at a time: as many as there are columns, so that a slab is no larger than K and K is repacked about
# once a pass; at least 1024 (a pass of a small matrix is one call), at most 4096.
_SLAB_ROWS = (1024, 4096)
# Length from which conjugate gradients beat the factorisation; ``scripts/bench_dense.py --crossover`` measures it.
CG_FROM = 400
N_PROBES = 8
# G squares the condition number: directions below this share of the norm drown in its rounding.
GRAM_RESOLUTION = 1e-7
# The smallest useful ε beside ‖X‖_F, and K on lost directions beside K at ‖X‖_F.
_LEAST_SMOOTHING, _LEAST_SHARE = 1e-8, 1e-14


@dataclass(frozen=True)
class DenseStep:
    """What one pass over the rows gives.

    Attributes
    ----------
    gram : (n_cols, n_cols) float64
        G = XᵀX; the lower triangle is valid.
    sketch : (n_rows, n_probes) float64
        X times fixed random probes.
    masked_square_sum : float
        Σ over observed entries of (X − Y)².
    """

    gram: np.ndarray
    sketch: np.ndarray
    masked_square_sum: float


def slab_rows(n_cols: int) -> int:
    """Return how many rows of X are held at a time; depends on the shape alone, because bits depend on it."""
    return min(max(n_cols, _SLAB_ROWS[0]), _SLAB_ROWS[1])


def slab_buffer(observations: RowBlocks) -> Any:
    """Return room for one slab of the estimate; fresh pages for every pass would cost a tenth of its time."""
    return observations.arrays.empty(min(slab_rows(observations.n_cols), observations.n_rows), observations.n_cols)


def estimate_slabs(
    observations: RowBlocks, kernel_matrix: Any, ridge: float, buffer: Any = None
) -> Iterator[tuple[int, Any, float]]:
    """Yield (first row, slab of X, Σ w (X − Y)² over its observed entries), slab after slab.

    Parameters
    ----------
    observations : RowBlocks
    kernel_matrix : (n_cols, n_cols) float64
        The feature Gram K.
    ridge : float
    buffer : (rows, n_cols) float64, optional
        From :func:`slab_buffer`, to be used again by every pass.

    Notes
    -----
    The slab is one reused buffer: copy what must outlive the next step.
    """
    height, arrays = slab_rows(observations.n_cols), observations.arrays
    if buffer is None:
        buffer = slab_buffer(observations)
    for block in observations.row_blocks(align=height):
        for start in range(block.start, block.stop, height):
            stop = min(start + height, block.stop)
            slab, entries = buffer[: stop - start], block.by_row.part(start - block.start, stop - block.start)
            yield start, slab, ridge * ridge * _solve_slab(entries, kernel_matrix, ridge, slab, arrays)


def _solve_slab(entries: Compressed, kernel_matrix: Any, ridge: float, slab: Any, arrays: HostArrays) -> float:
    """Write a slab of the estimate; return Σ w (X − Y)² / λ² over its observed entries, where X − Y = −λ a / w."""
    duals = arrays.empty(entries.values.size)
    arrays.twin(solve_dual_rows)(
        entries.bounds_by(_row_cost),
        entries.indptr,
        entries.indices,
        entries.values,
        entries.weights,
        kernel_matrix,
        ridge,
        CG_FROM,
        duals,
    )
    arrays.twin(expand_rows)(entries.indptr, entries.indices, duals, kernel_matrix, slab)
    return arrays.square_sum(duals, entries.weights)


def _row_cost(counts: np.ndarray) -> np.ndarray:
    """Return the time of solving for rows of that many entries, in no particular unit."""
    n = counts.astype(np.float64)
    return np.asarray(n**3 / 6 + 16 * n**2 + 10)


def dense_step(
    observations: RowBlocks,
    kernel_matrix: np.ndarray,
    ridge: float,
    probes: np.ndarray,
    buffer: np.ndarray | None = None,
) -> DenseStep:
    """Solve all rows under the feature Gram `kernel_matrix` and accumulate the AGOP Gram of the estimate.

    Parameters
    ----------
    observations : RowBlocks
    kernel_matrix : (n_cols, n_cols) float64
    ridge : float
    probes : (n_cols, n_probes) float64
    buffer : (rows, n_cols) float64, optional
        From :func:`slab_buffer`.
    """
    arrays = observations.arrays
    gram = arrays.zeros(*kernel_matrix.shape)
    sketch = arrays.empty(observations.n_rows, probes.shape[1])
    square_sum = 0.0
    for start, slab, slab_square_sum in estimate_slabs(observations, kernel_matrix, ridge, buffer):
        arrays.twin(accumulate_gram)(slab, gram)
        arrays.product(slab, probes, out=sketch[start : start + slab.shape[0]])
        square_sum += slab_square_sum
    return DenseStep(gram, sketch, square_sum)


def solve_dense(
    observations: RowBlocks,
    options: CompletionOptions,
    callback: Callable[[Iteration], Any] | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[np.ndarray, np.ndarray, Monitor]:
    """Complete a matrix with n_cols <= n_rows (transpose it otherwise).

    Parameters
    ----------
    observations : RowBlocks
    options : CompletionOptions
        ``method`` and ``offsets`` are not looked at.
    callback : callable, optional
    checkpoint : Checkpoint, optional

    Returns
    -------
    left, right : (n_rows, k) and (n_cols, k) float64
        The estimate, cut to `options.rank` and to the directions above the tolerance.
    monitor : Monitor
    """
    data_norm, total_weight = observations.norm, float(observations.row_weights.sum())
    monitor = Monitor(options, data_norm, callback)
    smoothing = data_norm if isinstance(options.smoothing, str) else float(options.smoothing)
    least = ridge_smoothing(
        options.ridge, options.agop_power, options.effective_tol, observations.mean_weight, norm=data_norm
    )
    n_cols = observations.n_cols
    # Scaled so that the expected squared norm of sketch changes is the squared Frobenius norm of X's.
    probes = np.random.default_rng(options.random_state).standard_normal((n_cols, N_PROBES)) / np.sqrt(N_PROBES)
    arrays, buffer = observations.arrays, slab_buffer(observations)
    sketch = arrays.zeros(observations.n_rows, N_PROBES)
    gram, norm = arrays.zeros(n_cols, n_cols), data_norm
    if checkpoint is not None and (state := checkpoint.take()) is not None:
        monitor.restore(state["monitor"])
        smoothing, norm, gram, sketch = (state[name] for name in ("smoothing", "norm", "gram", "sketch"))
        gram, sketch = arrays.put(gram), arrays.put(sketch)
    while True:
        if checkpoint is not None and checkpoint.is_due(monitor.n_iter):
            kept = {"gram": arrays.fetch(gram), "sketch": arrays.fetch(sketch)}
            now = {"smoothing": smoothing, "norm": norm, **kept}
            checkpoint.write(monitor.n_iter, {**now, "monitor": monitor.state()})
        unit = norm or 1.0
        kernel_matrix = feature_gram(gram, options.agop_power, smoothing, unit=unit, arrays=arrays)
        ridge = options.ridge / gram_unit(options.agop_power, unit)
        step = dense_step(observations, kernel_matrix, ridge, probes, buffer)
        arrays.add(sketch, step.sketch, -1.0)
        change = arrays.norm(sketch)
        sketch, gram = step.sketch, step.gram
        norm = float(np.sqrt(arrays.trace(gram)))
        floor = max(smoothing_floor(options.agop_power, norm), least)
        is_done = monitor.record(
            smoothing=smoothing,
            floor=floor,
            norm=norm,
            change=change,
            masked_rmse=float(np.sqrt(step.masked_square_sum / total_weight)),
            rank=0,
        )
        if is_done:
            break
        smoothing = next_smoothing(
            options.smoothing,
            smoothing,
            change=change,
            error=monitor.error_estimate * norm,
            sigma_next=_sigma_next(gram, options, arrays),
            floor=floor,
        )
    right = _leading_directions(arrays.fetch(gram), options, smoothing, data_norm)
    left, right = _project(observations, kernel_matrix, ridge, right, buffer)
    return left, right, monitor


def smoothing_floor(agop_power: Power, norm: float) -> float:
    """Return the smallest useful ε: K must stay positive definite in float64 in spite of G's rounding."""
    return max(least_smoothing(agop_power, norm, _LEAST_SHARE), _LEAST_SMOOTHING * norm)


def _sigma_next(gram: Any, options: CompletionOptions, arrays: HostArrays) -> float:
    if options.smoothing != "sigma_next" or options.rank is None or options.rank >= gram.shape[0]:
        return 0.0
    return float(np.sqrt(max(np.linalg.eigvalsh(arrays.fetch(gram), UPLO="L")[-1 - options.rank], 0.0)))


def _leading_directions(gram: np.ndarray, options: CompletionOptions, smoothing: float, data_norm: float) -> np.ndarray:
    """Return the right singular vectors of the estimate that count: above ε, above the tolerance, at most `rank`."""
    eigenvalues, vectors = np.linalg.eigh(gram, UPLO="L")
    singular_values = np.sqrt(np.maximum(eigenvalues[::-1], 0.0))
    k = numerical_rank(singular_values, max(options.effective_tol, GRAM_RESOLUTION), data_norm=data_norm)
    if isinstance(options.smoothing, str):
        # What stays below ε is the trace that smoothing leaves of the residual, not part of the answer.
        k = min(k, int(np.count_nonzero(singular_values > smoothing)))
    return np.ascontiguousarray(vectors[:, ::-1][:, : min(k, options.rank or k)])


def _project(
    observations: RowBlocks, kernel_matrix: Any, ridge: float, right: np.ndarray, buffer: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Return the last estimate's projection on nearly its leading directions as left @ right.T."""
    arrays = observations.arrays
    left = arrays.empty(observations.n_rows, right.shape[1])
    # One subspace step X'(X V) restores what the Gram's rounding cost the weaker directions.
    for is_last in (False, True):
        back = np.zeros_like(right)
        for start, slab, _ in estimate_slabs(observations, kernel_matrix, ridge, buffer):
            part = arrays.product(slab, right, out=left[start : start + slab.shape[0]])
            if not is_last:
                back += arrays.inner(slab, part)
        if not is_last:
            right = tall_qr(back)[0]
    return arrays.fetch(left), right
