"""Methods of ``bench_real.py``: fastrfm (``ours``), simple baselines and packages from PyPI, and how each is called.

Flow: ``Worker.run(name, problem)`` sends a ``Task`` (never the hidden values) to a process of its own, where
``METHODS[name].fit(task)`` gives a function of rows and columns. What a method has to choose it chooses by
``by_holdout``: a tenth of the known entries is hidden from it once more. Not here: problems, tables.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
from real_problems import Problem, Task, side_by_side_to_image
from scipy.sparse import csr_matrix, diags, identity, vstack

from fastrfm import Observations, complete
from fastrfm.metrics import rmse
from fastrfm.options import AUTOMATIC
from fastrfm.solvers.offsets import fit_offsets

Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]
RATINGS, PANEL, IMAGE = "ratings", "panel", "image"
_START_SECONDS = 120.0  # of a worker: imports, compilation
_HOLDOUT, _HOLDOUT_SEED = 0.1, 1
_SOFT_IMPUTE_RANK = {RATINGS: 30, PANEL: 30, IMAGE: 100}


@dataclass(frozen=True)
class Fitted:
    """A way to predict, and in words what was chosen on the way."""

    predict: Predict
    chosen: str = ""


@dataclass(frozen=True)
class Method:
    """One way to call one package on some kinds of data."""

    package: str
    kinds: tuple[str, ...]
    settings: str
    fit: Callable[[Task], Fitted]


def by_holdout(
    task: Task, candidates: Sequence[Any], fit: Callable[[Observations, Any], Predict], *, is_unimodal: bool = False
) -> Any:
    """Return the candidate with the least error on a tenth of the known entries, fitted without them.

    Ordered candidates (`is_unimodal`) end at the first that is worse than the best before it by more than 0.05 %.
    """
    kept, held = task.observations.split(_HOLDOUT, random_state=_HOLDOUT_SEED)
    rows, cols, values = held.to_coo()
    best, least = candidates[0], np.inf
    for candidate in candidates:
        predicted = fit(kept, candidate)(rows, cols)
        error = rmse(predicted if task.bounds is None else np.clip(predicted, *task.bounds), values)
        if error < least:
            best, least = candidate, error
        elif is_unimodal and error > 1.0005 * least:
            break
    return best


def ours(task: Task) -> Fitted:
    """Return fastrfm's completion. The one place that says how the benchmark calls fastrfm."""

    result = complete(task.observations, **{**AUTOMATIC, "bounds": task.bounds or AUTOMATIC["bounds"]})
    chosen = result.options
    parts = f"agop_power {chosen['agop_power']:.3g}, ridge {chosen['ridge']:.3g}, rank {result.rank}"
    parts += ", offsets" if chosen["offsets"] else ""
    parts += f", implicit {chosen['implicit']}" if chosen["implicit"] else ""
    return Fitted(result.predict, parts)


def ours_on_steps(task: Task) -> Fitted:
    """Return fastrfm's completion of the steps along each row, added up and shifted to pass through what is known.

    Levels drift and steps do not; the shift between known places is linear (docs/guide/panel.md).
    """
    dense = _dense(task.observations)
    steps = np.diff(dense, axis=1)
    rows, cols = np.nonzero(np.isfinite(steps))
    shape = task.observations.n_rows, task.observations.n_cols - 1
    result = complete(Observations.from_coo(rows, cols, steps[rows, cols], shape), **AUTOMATIC)
    path = np.column_stack([np.zeros(shape[0]), np.cumsum(result.to_dense(), axis=1)])
    shift = _interpolated(dense - path, column_means(task).predict)
    return Fitted(_looked_up(path + shift), f"agop_power {result.options['agop_power']:.3g}, rank {result.rank}")


def offsets_only(task: Task) -> Fitted:
    """Return mean + row + column, as fastrfm fits them: shrinkage estimated from the data."""
    return Fitted(fit_offsets(task.observations).at)


def column_means(task: Task) -> Fitted:
    """Return the mean of the column, or of everything where a column is empty."""
    _, cols, values = task.observations.to_coo()
    sums = np.bincount(cols, values, minlength=task.observations.n_cols)
    counts = task.observations.col_counts
    means = np.where(counts > 0, sums / np.maximum(counts, 1), values.mean())
    return Fitted(lambda rows, cols: means[cols])


def interpolation(task: Task) -> Fitted:
    """Return linear interpolation along each row, constant beyond its ends; column means for a row without entries."""
    return Fitted(_looked_up(_interpolated(_dense(task.observations), column_means(task).predict)))


def _interpolated(dense: np.ndarray, means: Predict) -> np.ndarray:
    everything = np.arange(dense.shape[1])
    for row, line in enumerate(dense):
        known = np.flatnonzero(np.isfinite(line))
        dense[row] = (
            np.interp(everything, known, line[known])
            if known.size
            else means(np.full(everything.size, row), everything)
        )
    return dense


def _dense(observations: Observations) -> np.ndarray:
    dense = np.full(observations.shape, np.nan)
    rows, cols, values = observations.to_coo()
    dense[rows, cols] = values
    return dense


def _looked_up(dense: np.ndarray) -> Predict:
    return lambda rows, cols: np.asarray(dense[rows, cols])


def knn_imputer(task: Task) -> Fitted:
    """Return scikit-learn's mean of the five rows that are nearest where both are known."""
    from sklearn.impute import KNNImputer

    return Fitted(_looked_up(KNNImputer(keep_empty_features=True).fit_transform(_dense(task.observations))))


def iterative_imputer(task: Task) -> Fitted:
    """Return scikit-learn's round of regressions of each column on the others."""
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    imputer = IterativeImputer(keep_empty_features=True, random_state=0)
    return Fitted(_looked_up(imputer.fit_transform(_dense(task.observations))))


def soft_impute(task: Task) -> Fitted:
    """Return fancyimpute's SoftImpute on what offsets leave, its shrinkage chosen on a hold-out."""
    from fancyimpute import SoftImpute

    rank = min(_SOFT_IMPUTE_RANK[task.kind], *(side - 1 for side in task.observations.shape))

    def fit(observations: Observations, shrinkage: float) -> Predict:
        offsets = fit_offsets(observations)
        left_over = _dense(observations.shifted(offsets.at))
        np.random.seed(0)  # noqa: NPY002  (its randomised SVD draws from it)
        solver = SoftImpute(shrinkage_value=shrinkage, max_rank=rank, max_iters=50, verbose=False)
        dense = solver.fit_transform(left_over)
        return lambda rows, cols: dense[rows, cols] + offsets.at(rows, cols)

    residual = task.observations.shifted(fit_offsets(task.observations).at)
    largest = float(np.linalg.norm(np.nan_to_num(_dense(residual)), 2))
    shares = [0.7, 0.5, 0.35, 0.25, 0.12, 0.06, 0.03, 0.015, 0.007, 0.003, 0.0015]
    share = by_holdout(task, shares, lambda kept, share: fit(kept, share * largest), is_unimodal=True)
    return Fitted(fit(task.observations, share * largest), f"shrinkage {share:g} of the largest singular value")


def cmfrec(task: Task, *, has_implicit: bool = False) -> Fitted:
    """Return a collective factorisation with biases, its rank and ridge chosen on a hold-out."""
    from cmfrec import CMF
    from scipy.sparse import coo_matrix

    def fit(observations: Observations, options: tuple[int, float]) -> Predict:
        rank, ridge = options
        rows, cols, values = observations.to_coo()
        model = CMF(k=rank, lambda_=ridge, add_implicit_features=has_implicit, verbose=False, random_state=1)
        model.fit(coo_matrix((values, (rows, cols)), shape=observations.shape))
        return lambda rows, cols: np.asarray(model.predict(rows, cols), dtype=np.float64)

    grid = [(rank, ridge) for rank in (10, 40) for ridge in (1.0, 3.0, 5.0, 10.0, 20.0, 40.0)]
    rank, ridge = by_holdout(task, grid, fit)
    return Fitted(fit(task.observations, (rank, ridge)), f"k {rank}, lambda_ {ridge:g}")


def cmfrec_implicit(task: Task) -> Fitted:
    """Return the same, which entries are known factorised along with their values."""
    return cmfrec(task, has_implicit=True)


def _surprise(task: Task, algorithm: Any) -> Fitted:
    import pandas
    from surprise import Dataset, Reader

    rows, cols, values = task.observations.to_coo()
    table = pandas.DataFrame({"row": rows, "col": cols, "value": values})
    algorithm.fit(Dataset.load_from_df(table, Reader(rating_scale=task.bounds)).build_full_trainset())

    def predict(rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        pairs = zip(rows.tolist(), cols.tolist(), strict=True)
        return np.array([algorithm.predict(row, col).est for row, col in pairs])

    return Fitted(predict)


def surprise_baseline(task: Task) -> Fitted:
    """Return mean + row + column with shrinkage 15 for rows and 10 for columns, alternated 10 times."""
    from surprise import BaselineOnly

    return _surprise(task, BaselineOnly(verbose=False))


def surprise_svdpp(task: Task) -> Fitted:
    """Return SVD++: factors of columns, and of the set of columns that a row has, by stochastic gradients."""
    from surprise import SVDpp

    return _surprise(task, SVDpp(random_state=0, cache_ratings=True))


def myfm(task: Task) -> Fitted:
    """Return the posterior mean of a Bayesian factorisation machine with the sets of both sides, as in its docs."""
    from myfm import MyFMRegressor, RelationBlock

    rows, cols, values = task.observations.to_coo()
    n_rows, n_cols = task.observations.shape
    pattern = csr_matrix((np.ones(values.size), (rows, cols)), shape=(n_rows, n_cols))

    def blocks(rows: np.ndarray, cols: np.ndarray) -> list[Any]:
        return [
            RelationBlock(rows.astype(np.int64), _with_set(pattern)),
            RelationBlock(cols.astype(np.int64), _with_set(csr_matrix(pattern.T))),
        ]

    model = MyFMRegressor(rank=10, random_seed=42)
    model.fit(None, values, X_rel=blocks(rows, cols), n_iter=500, group_shapes=[n_rows, n_cols, n_cols, n_rows])
    return Fitted(lambda rows, cols: np.asarray(model.predict(None, X_rel=blocks(rows, cols))))


def _with_set(pattern: csr_matrix) -> csr_matrix:
    """Return [one-hot | set of the other side over the root of its size] for each row of a 0-1 pattern."""
    sizes = np.asarray(pattern.sum(axis=1)).ravel()
    scaled = diags(1.0 / np.sqrt(np.maximum(sizes, 1.0))) @ pattern
    return csr_matrix(vstack([identity(pattern.shape[0]), scaled.T]).T)


def biharmonic(task: Task) -> Fitted:
    """Return the smoothest surface through the known pixels, channel by channel."""
    from skimage.restoration import inpaint_biharmonic

    flat = _dense(task.observations)
    image = side_by_side_to_image(np.nan_to_num(flat), task.n_channels)
    is_hidden = np.isnan(flat[:, : flat.shape[1] // task.n_channels])
    filled = inpaint_biharmonic(image, is_hidden, channel_axis=None if task.n_channels == 1 else -1)
    return Fitted(_looked_up(np.hstack(list(np.moveaxis(np.atleast_3d(filled), -1, 0)))))


METHODS = {
    "fastrfm": Method(
        "fastrfm",
        (RATINGS, PANEL, IMAGE),
        '`complete` with everything "auto", as the command does; `bounds` of the problem where it has them',
        ours,
    ),
    "fastrfm on steps": Method(
        "fastrfm",
        (PANEL,),
        "the same of the steps from year to year, added up, shifted to the known values (guide, panel data)",
        ours_on_steps,
    ),
    "offsets only": Method(
        "fastrfm", (RATINGS, IMAGE), "mean + row + column, shrinkage estimated from the known entries", offsets_only
    ),
    "column means": Method("fastrfm", (PANEL,), "the mean of each year", column_means),
    "interpolation": Method("fastrfm", (PANEL,), "linear along the years, constant at the ends", interpolation),
    "BaselineOnly": Method(
        "scikit-surprise", (RATINGS,), "scikit-surprise, defaults: offsets with fixed shrinkage", surprise_baseline
    ),
    "SVD++": Method(
        "scikit-surprise", (RATINGS,), "scikit-surprise `SVDpp`, defaults (20 factors, 20 epochs)", surprise_svdpp
    ),
    "cmfrec": Method(
        "cmfrec", (RATINGS,), "`CMF`; k from 10, 40 and lambda_ from 1, 3, 5, 10, 20, 40 on a hold-out", cmfrec
    ),
    "cmfrec implicit": Method("cmfrec", (RATINGS,), "the same with `add_implicit_features=True`", cmfrec_implicit),
    "myfm": Method(
        "myfm", (RATINGS,), "`MyFMRegressor`, rank 10, 500 samples, one-hot and the sets of both sides", myfm
    ),
    "SoftImpute": Method(
        "fancyimpute",
        (RATINGS, PANEL, IMAGE),
        "fancyimpute, on what offsets leave; rank at most 30 (images: 100), 50 iterations; shrinkage on a hold-out",
        soft_impute,
    ),
    "KNNImputer": Method("scikit-learn", (RATINGS, PANEL), "defaults (5 neighbours)", knn_imputer),
    "IterativeImputer": Method("scikit-learn", (PANEL,), "defaults (Bayesian ridge, 10 rounds)", iterative_imputer),
    "biharmonic": Method("scikit-image", (IMAGE,), "`restoration.inpaint_biharmonic`, defaults", biharmonic),
}
_MODULES = {"scikit-surprise": "surprise", "scikit-learn": "sklearn", "scikit-image": "skimage"}


def installed() -> dict[str, str]:
    """Return the version of each package of `METHODS` that is there, by package; fastrfm always is."""
    found = {}
    for package in {method.package for method in METHODS.values()} - {"fastrfm"}:
        with suppress(PackageNotFoundError):
            if importlib.util.find_spec(_MODULES.get(package, package)) is not None:
                found[package] = version(package)
    return dict(sorted(found.items()))


def fit_quietly(name: str, task: Task) -> Fitted:
    """Fit a method; its warnings (not converged, deprecated calls) are not the reader's business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return METHODS[name].fit(task)


def _work(name: str, pipe: Connection) -> None:
    """Answer (task, rows, cols) with (seconds, predictions, what was chosen), or with what went wrong."""
    warnings.simplefilter("ignore")
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # progress bars
        os.dup2(silence, stream)
    rng = np.random.default_rng(0)
    kind = METHODS[name].kinds[0]
    small = Observations.from_dense(np.where(rng.random((30, 20)) < 0.8, rng.uniform(1.0, 5.0, (30, 20)), np.nan))
    with suppress(Exception):  # only to load and compile, so that this is in nobody's time
        METHODS[name].fit(Task(kind, small, (1.0, 5.0)))
    pipe.send(None)
    while True:
        try:
            task, rows, cols = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return  # whoever asks has gone
        try:
            start = time.perf_counter()
            fitted = METHODS[name].fit(task)
            predicted = fitted.predict(rows, cols)
            pipe.send((time.perf_counter() - start, predicted, fitted.chosen))
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {error}"[:200])


class Worker:
    """A process for one method, killed when it does not answer in time and started again when asked again."""

    def __init__(self, name: str, limit: float) -> None:
        self.name, self.limit = name, limit
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        pipe, theirs = context.Pipe()
        process = context.Process(target=_work, args=(self.name, theirs), daemon=True)
        process.start()
        theirs.close()
        self._process, self._pipe = process, pipe
        if not pipe.poll(_START_SECONDS):
            raise TimeoutError(f"{self.name} does not start")
        pipe.recv()
        return pipe

    def stop(self) -> None:
        if self._process is not None and self._pipe is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
        self._process = self._pipe = None

    def run(self, problem: Problem) -> tuple[float, np.ndarray, str] | str:
        """Return (seconds, predictions of the hidden entries, what was chosen), or why there are none."""
        try:
            pipe = self._pipe or self._start()
            pipe.send((problem.task, problem.rows, problem.cols))
            if pipe.poll(self.limit):
                answer: tuple[float, np.ndarray, str] | str = pipe.recv()
                return answer
            reason = f"stopped after {self.limit:g} s"
        except (EOFError, OSError):
            reason = "process died (memory?)"
        self.stop()
        return reason
