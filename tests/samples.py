"""What several test files share: small matrices, naive dense twins, a sample result, ways to damage an HDF5 file."""

from __future__ import annotations

import h5py
import numpy as np

from fastrfm.observations import Observations
from fastrfm.results import CompletionResult, Offsets

SHAPES = [(7, 4), (4, 7), (1, 5), (5, 1), (1, 1), (30, 30)]


def make_dense(shape, seed=0, share=0.5, dtype=np.float64):
    """Return a matrix with NaN for missing, some zeros, and at least one entry."""
    rng = np.random.RandomState(seed)
    matrix = rng.standard_normal(shape).astype(dtype)
    matrix[rng.random_sample(shape) < 0.2] = 0.0
    matrix[rng.random_sample(shape) >= share] = np.nan
    matrix[shape[0] // 2, shape[1] // 2] = 1.5
    return matrix


def to_dense(obs):
    """Return the naive dense twin, entry by entry."""
    dense = np.full(obs.shape, np.nan)
    for i in range(obs.n_rows):
        for t in range(obs.indptr[i], obs.indptr[i + 1]):
            assert np.isnan(dense[i, obs.indices[t]])
            dense[i, obs.indices[t]] = obs.values[t]
    return dense


def triples(dense):
    rows, cols = np.nonzero(~np.isnan(dense))
    return rows, cols, dense[rows, cols]


def assert_canonical(obs):
    assert obs.indptr.dtype == np.int64 and obs.indices.dtype == np.int32
    assert obs.values.dtype in (np.float32, np.float64)
    assert obs.indptr[0] == 0 and obs.indptr[-1] == obs.n_observed == obs.indices.size
    for i in range(obs.n_rows):
        assert np.all(np.diff(obs.indices[obs.indptr[i] : obs.indptr[i + 1]]) > 0)


# --- samples and damage for files ---------------------------------------------------------------------------------

NAN = np.nan
DENSE = np.array([[1.0, NAN, 0.0, NAN], [NAN, NAN, NAN, NAN], [NAN, -2.5, 3.0, NAN]])
ROW_NAMES = ["r0", "ŕ1 — Łódź", ""]
COL_NAMES = ["a", "b", "c", "d 漢字"]


def observations(dtype=np.float64, names=True):
    names = {"row_names": ROW_NAMES, "col_names": COL_NAMES} if names else {}
    return Observations.from_dense(DENSE.astype(dtype), **names)


def assert_same(got, want):
    assert got.shape == want.shape
    for name in ("indptr", "indices", "values"):
        assert getattr(got, name).dtype == getattr(want, name).dtype
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
    for name in ("row_names", "col_names"):
        a, b = getattr(got, name), getattr(want, name)
        assert (a is None and b is None) or a.tolist() == b.tolist()


def make_result(with_offsets=True, names=True, **options):
    rng = np.random.RandomState(0)
    history = {
        "smoothing": rng.random_sample(3),
        "change": np.array([1.0, 0.1, NAN]),
        "error_estimate": np.array([np.inf, 0.5, 0.01]),
        "masked_rmse": rng.random_sample(3),
        "rank": np.array([0, 2, 2]),
        "seconds": np.array([0.1, 0.2, 0.3]),
    }
    return CompletionResult(
        left=rng.standard_normal((3, 2)),
        right=rng.standard_normal((4, 2)),
        offsets=Offsets(1.25, rng.standard_normal(3), rng.standard_normal(4)) if with_offsets else None,
        rank=2,
        singular_values=np.array([3.0, 1.0]),
        history=history,
        stop_reason="converged",
        masked_rmse=0.125,
        n_observed=4,
        n_empty_rows=1,
        n_empty_cols=1,
        options=options,
        row_names=np.array(ROW_NAMES, dtype=object) if names else None,
        col_names=np.array(COL_NAMES, dtype=object) if names else None,
    )


def change(path, act):
    with h5py.File(path, "r+") as file:
        act(file)


def replace(name, data, **options):
    """Return an action that puts another dataset in place of one."""

    def act(file):
        del file[name]
        file.create_dataset(name, data=data, **options)

    return act


def set_attr(holder, name, value):
    def act(file):
        file[holder].attrs[name] = value

    return act


def drop_attr(holder, name):
    def act(file):
        del file[holder].attrs[name]

    return act


def drop(name):
    def act(file):
        del file[name]

    return act
