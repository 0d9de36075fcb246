"""Entries grouped by column on a device are those that the processor's counting sort gives, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from blocks_of_rows import compressed

from fastrfm._cuda import empty, fetch, put
from fastrfm.blocks import Compressed
from fastrfm.blocks import swap_axes as host_swap_axes
from fastrfm.kernels.cuda import swap_axes as module
from fastrfm.kernels.cuda.swap_axes import list_rows, swap_axes

COUNTS, N_COLS = [3, 0, 17, 1, 5, 9, 8], 18
SIZES = [(COUNTS, N_COLS), ([0, 0], 3), ([1], 1), ([0], 1), ([0, 4], 40)]


def problem(counts, n_cols, index_dtype=np.int32):
    pattern = compressed(counts, n_cols, index_dtype=index_dtype, seed=1)
    rng = np.random.default_rng(2)
    return Compressed(pattern.indptr, pattern.indices, *rng.standard_normal((2, pattern.indices.size)))


@pytest.mark.parametrize("most_groups", [1, 3, 1024])
@pytest.mark.parametrize(("counts", "n_cols"), SIZES)
def test_entries_are_those_of_the_processor(counts, n_cols, most_groups, monkeypatch):
    monkeypatch.setattr(module, "_MOST_GROUPS", most_groups)
    by_row = problem(counts, n_cols)
    expected = host_swap_axes(by_row, n_cols)
    starts, out = empty(n_cols + 1, np.int64), [put(part * 0 - 1) for part in vars(expected).values()][1:]
    swap_axes(*map(put, (by_row.indptr, by_row.indices, by_row.values, by_row.weights)), starts, *out)
    for found, wanted in zip([starts, *out], vars(expected).values(), strict=True):
        np.testing.assert_array_equal(fetch(found), wanted)
        assert found.dtype == wanted.dtype


def test_float32_values_without_weights_and_positions_of_64_bits():
    by_row = problem(COUNTS, N_COLS, np.int64)
    by_row = Compressed(by_row.indptr, by_row.indices, by_row.values.astype(np.float32))
    expected = host_swap_axes(by_row, N_COLS)
    parts = vars(expected).values()
    out = [empty(part.size, part.dtype) for part in parts]
    swap_axes(*map(put, (by_row.indptr, by_row.indices, by_row.values, by_row.weights)), *out)
    for found, wanted in zip(out, parts, strict=True):
        np.testing.assert_array_equal(fetch(found), wanted)


@pytest.mark.parametrize(("counts", "n_cols"), SIZES)
def test_lists_of_rows(counts, n_cols):
    by_row = problem(counts, n_cols)
    expected = host_swap_axes(by_row, n_cols)
    starts, rows = list_rows(put(by_row.indptr), put(by_row.indices), n_cols)
    np.testing.assert_array_equal(fetch(starts), expected.indptr)
    np.testing.assert_array_equal(fetch(rows), expected.indices)


def test_many_columns_for_each_thread_that_adds_lengths_up():
    n_cols = 10 * module._SCAN_THREADS + 3
    by_row = problem([n_cols // 2, n_cols, 1], n_cols)
    starts, _ = list_rows(put(by_row.indptr), put(by_row.indices), n_cols)
    np.testing.assert_array_equal(fetch(starts), host_swap_axes(by_row, n_cols).indptr)
