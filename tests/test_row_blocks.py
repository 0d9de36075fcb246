"""Observations: walking over row blocks, counting and deriving, each against a dense twin."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from samples import SHAPES, assert_canonical, make_dense, to_dense, triples

from fastrfm import blocks as module
from fastrfm.errors import InputError
from fastrfm.observations import Observations
from fastrfm.store import open_observations

MOVIELENS = Path(__file__).resolve().parent.parent / "datasets" / "movielens-small.h5"


# --- walking ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("align", [1, 3, 8])
@pytest.mark.parametrize("entries", [1, 10, 64, 10_000])
@pytest.mark.parametrize("shape", [(41, 9), (9, 41)])
def test_row_blocks_cover_all_rows(monkeypatch, align, entries, shape):
    monkeypatch.setattr(module, "BLOCK_ENTRIES", entries)
    dense = make_dense(shape, share=0.3)
    dense[3:6] = np.nan  # empty rows
    obs = Observations.from_dense(dense)
    blocks = list(obs.row_blocks(align))
    assert blocks[0].start == 0 and blocks[-1].stop == obs.n_rows
    for before, after in pairwise(blocks):
        assert before.stop == after.start
        assert before.n_rows > 0 and before.n_rows % align == 0
    rebuilt = np.full(shape, np.nan)
    for block in blocks:
        assert block.n_cols == shape[1]
        part = block.by_row
        assert part.indptr[0] == 0 and part.indptr.size == block.n_rows + 1
        for i in range(block.n_rows):
            span = slice(part.indptr[i], part.indptr[i + 1])
            rebuilt[block.start + i, part.indices[span]] = part.values[span]
    np.testing.assert_array_equal(rebuilt, dense)


def test_row_blocks_are_about_as_large_as_asked(monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ENTRIES", 20)
    obs = Observations.from_dense(np.ones((50, 4)))
    assert [block.n_rows for block in obs.row_blocks()] == [5] * 10
    assert [block.n_rows for block in obs.row_blocks(align=2)] == [4] * 12 + [2]
    assert next(obs.row_blocks()) is next(obs.row_blocks())  # made once


@pytest.mark.parametrize("entries", [7, 10_000])
def test_by_column_equals_naive(monkeypatch, entries):
    monkeypatch.setattr(module, "BLOCK_ENTRIES", entries)
    dense = make_dense((13, 6), share=0.4)
    dense[:, 2] = np.nan
    obs = Observations.from_dense(dense)
    for block in obs.row_blocks():
        part = dense[block.start : block.stop]
        by_column = block.by_column
        assert by_column.indptr.dtype == np.int64 and by_column.indices.dtype == obs.indices.dtype
        for j in range(obs.n_cols):
            span = slice(by_column.indptr[j], by_column.indptr[j + 1])
            observed = np.flatnonzero(~np.isnan(part[:, j]))
            np.testing.assert_array_equal(by_column.indices[span], observed)
            np.testing.assert_array_equal(by_column.values[span], part[observed, j])


def test_compressed_bounds_cover_all_groups():
    obs = Observations.from_dense(make_dense((300, 5)))
    (block,) = obs.row_blocks()
    bounds = block.by_row.bounds
    assert bounds[0] == 0 and bounds[-1] == 300 and np.all(np.diff(bounds) >= 0)


# --- looking and deriving -----------------------------------------------------------------------------------------


def test_counts_and_triples():
    dense = make_dense((8, 5), share=0.3)
    dense[2] = np.nan
    dense[:, 1] = np.nan
    obs = Observations.from_dense(dense)
    observed = ~np.isnan(dense)
    np.testing.assert_array_equal(obs.row_counts, observed.sum(axis=1))
    np.testing.assert_array_equal(obs.col_counts, observed.sum(axis=0))
    for got, want in zip(obs.to_coo(), triples(dense), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_transposed(shape, dtype):
    dense = make_dense(shape, seed=3, dtype=dtype)
    swapped = Observations.from_dense(dense).transposed()
    assert_canonical(swapped)
    assert swapped.dtype == dtype
    np.testing.assert_array_equal(to_dense(swapped), dense.T)
    np.testing.assert_array_equal(to_dense(swapped.transposed()), dense)


def test_with_values_keeps_positions():
    obs = Observations.from_dense(make_dense((4, 3)), row_names=list("abcd"))
    other = obs.with_values(np.arange(obs.n_observed, dtype=float))
    assert other.shape == obs.shape and other.row_names is obs.row_names
    np.testing.assert_array_equal(other.indices, obs.indices)
    assert other.values.tolist() == list(range(obs.n_observed))


def test_select():
    dense = make_dense((6, 7), seed=2)
    obs = Observations.from_dense(dense, col_names=list("abcdefg"))
    keep = np.random.RandomState(0).random_sample(obs.n_observed) < 0.5
    kept = obs.select(keep)
    want = dense.copy()
    rows, cols, _ = triples(dense)
    want[rows[~keep], cols[~keep]] = np.nan
    np.testing.assert_array_equal(to_dense(kept), want)
    assert kept.shape == obs.shape and kept.col_names.tolist() == list("abcdefg")
    with pytest.raises(InputError, match="no observations"):
        obs.select(np.zeros(obs.n_observed, bool))


@pytest.mark.parametrize("seed", [0, 5])
def test_split_is_the_documented_permutation(seed):
    obs = Observations.from_dense(make_dense((9, 8), share=0.7))
    kept, held = obs.split(0.3, random_state=seed)
    n_held = int(0.3 * obs.n_observed)
    chosen = np.sort(np.random.RandomState(seed).permutation(obs.n_observed)[:n_held])
    rows, cols, values = obs.to_coo()
    for got, want in zip(held.to_coo(), (rows[chosen], cols[chosen], values[chosen]), strict=True):
        np.testing.assert_array_equal(got, want)
    rest = np.setdiff1d(np.arange(obs.n_observed), chosen)
    for got, want in zip(kept.to_coo(), (rows[rest], cols[rest], values[rest]), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, np.nan, 0.01])
def test_split_refuses_a_useless_share(share):
    with pytest.raises(InputError, match="hold-out share"):
        Observations.from_dense(make_dense((3, 3))).split(share)


def test_movielens_split():
    obs = open_observations(MOVIELENS)
    kept, held = obs.split(0.1, random_state=0)
    assert (kept.n_observed, held.n_observed) == (90_004, 10_000)
    chosen = np.sort(np.random.RandomState(0).permutation(100_004)[:10_000])
    np.testing.assert_array_equal(held.values, obs.values[chosen])
    assert kept.shape == held.shape == obs.shape
    np.testing.assert_array_equal(kept.row_counts + held.row_counts, obs.row_counts)
