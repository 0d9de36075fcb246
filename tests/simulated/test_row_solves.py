"""Row solves on a device equal the processor's, by factorisations and by conjugate gradients, in all shapes of rows."""

from __future__ import annotations

import numpy as np
import pytest
from blocks_of_rows import assert_near, compressed, parts_of

from fastrfm._cuda import fetch, put
from fastrfm.errors import DeviceMemoryError
from fastrfm.kernels import row_solves as host
from fastrfm.kernels.cuda import dual_rows
from fastrfm.kernels.cuda import row_solves as device

COUNTS = [3, 0, 12, 1, 5, 8, 2]  # in the simulator systems of more than 6 (dual: 4, where k > 6) are not factorised


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("k", "b"), [(0, 2), (1, 1), (4, 6), (6, 6), (9, 11)])
def test_factored_rows(k, b, weighted, dtype):
    entries = compressed(COUNTS, 14, weighted=weighted, value_dtype=np.float32)
    rng = np.random.default_rng(k)
    basis, penalty = np.linalg.qr(rng.standard_normal((14, b)))[0], rng.uniform(0.01, 1.0, k)
    shapes = (7, k), (7, b), (7,)
    expected = [np.full(shape, np.nan) for shape in shapes]
    host.solve_factored_rows(*parts_of(entries), basis, penalty, 0.3, *expected)
    found = [put(np.full(shape, np.nan, dtype)) for shape in shapes]
    parts = [put(part) for part in parts_of(entries)]
    device.solve_factored_rows(*parts, put(basis.astype(dtype)), put(penalty.astype(dtype)), 0.3, *found)
    for one, other in zip(found, expected, strict=True):
        assert_near(fetch(one), other, dtype)


@pytest.mark.parametrize("k", [5, 9])
def test_penalties_over_many_decades(k):
    entries = compressed(COUNTS, 14)
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((14, k)))[0]
    penalty = np.geomspace(1e-12, 1e3, k)
    expected = np.empty((7, k)), np.empty((7, k)), np.empty(7)
    host.solve_factored_rows(*parts_of(entries), basis, penalty, 1.0, *expected)
    found = [put(part) for part in (np.empty((7, k)), np.empty((7, k)), np.empty(7))]
    device.solve_factored_rows(*map(put, parts_of(entries)), put(basis), put(penalty), 1.0, *found)
    # The estimate itself: coefficients of directions that hardly count may differ.
    for i in range(7):
        columns = entries.indices[entries.indptr[i] : entries.indptr[i + 1]]
        np.testing.assert_allclose(basis[columns] @ fetch(found[0])[i], basis[columns] @ expected[0][i], atol=1e-8)


def test_rows_that_depend_on_each_other_are_solved_all_the_same():
    entries = compressed([6], 6)
    basis = np.ones((6, 2))  # a singular Gram, and next to no penalty
    found = [put(part) for part in (np.empty((1, 2)), np.empty((1, 2)), np.empty(1))]
    device.solve_factored_rows(*map(put, parts_of(entries)), put(basis), put(np.full(2, 1e-18)), 0.5, *found)
    assert fetch(found[0]).sum() == pytest.approx(entries.values.mean(), rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n_old", "k"), [(0, 2), (3, 2), (2, 4)])
def test_replaced_rows(n_old, k, dtype):
    rng = np.random.default_rng(3)
    solved, overlap = rng.standard_normal((9, k)), rng.standard_normal((k, n_old))
    coefficients, moved = rng.standard_normal((9, max(k, n_old))), np.empty(9)
    held = [put(part.astype(dtype)) for part in (solved, overlap, coefficients, moved)]
    host.replace_rows(solved, overlap, coefficients, moved)
    device.replace_rows(*held)
    assert_near(fetch(held[2]), coefficients, dtype)
    assert_near(fetch(held[3]), moved, dtype)


def feature_gram(n_cols, seed=0):
    root = np.random.default_rng(seed).standard_normal((n_cols, n_cols))
    return root @ root.T / n_cols + 0.1 * np.eye(n_cols)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("cg_from", [5, 1000])
def test_dual_rows(cg_from, weighted, dtype, monkeypatch):
    monkeypatch.setattr(dual_rows, "_CG_BUDGET", 0.1)  # or no row of a test is long enough
    entries, matrix = compressed(COUNTS, 14, weighted=weighted), feature_gram(14)
    expected = np.empty(entries.values.size)
    host.solve_dual_rows(*parts_of(entries), matrix, 0.7, 1000, expected)
    out = put(np.full(entries.values.size, np.nan, dtype))
    _, *parts = parts_of(entries)
    device.solve_dual_rows(entries.indptr, *map(put, parts), put(matrix.astype(dtype)), 0.7, cg_from, out)
    assert_near(fetch(out), expected, dtype)
    slab, twin = put(np.full((7, 14), np.nan, dtype)), np.empty((7, 14))
    device.expand_rows(put(entries.indptr), put(entries.indices), out, put(matrix.astype(dtype)), slab)
    host.expand_rows(entries.indptr, entries.indices, expected, matrix, twin)
    assert_near(fetch(slab), twin, dtype)


def test_nothing_observed():
    entries, out = compressed([0, 0], 4), put(np.zeros(0))
    _, *parts = parts_of(entries)
    device.solve_dual_rows(entries.indptr, *map(put, parts), put(np.eye(4)), 0.1, 400, out)
    slab = put(np.full((2, 4), np.nan))
    device.expand_rows(put(entries.indptr), put(entries.indices), out, put(np.eye(4)), slab)
    np.testing.assert_array_equal(fetch(slab), 0.0)


def test_workspaces_shrink_until_they_fit(monkeypatch):
    entries, matrix = compressed(COUNTS, 14), feature_gram(14)
    asked = []

    def empty(shape, dtype):
        asked.append(shape[0])
        if shape[0] > 1:
            raise DeviceMemoryError("no room")
        return put(np.empty(shape, dtype))

    monkeypatch.setattr(dual_rows, "empty", empty)
    expected, out = np.empty(entries.values.size), put(np.empty(entries.values.size))
    host.solve_dual_rows(*parts_of(entries), matrix, 0.0, 1000, expected)
    _, *parts = parts_of(entries)
    device.solve_dual_rows(entries.indptr, *map(put, parts), put(matrix), 0.0, 1000, out)
    assert asked == [4, 2, 1]
    assert_near(fetch(out), expected, np.float64)
