"""Row solves on a device equal the processor's, by factorisations and by conjugate gradients, in all shapes of rows."""

from __future__ import annotations

from fractions import Fraction

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


def exact_estimate(rows, values, penalty):
    """Return V c of the normal equations, solved in rational numbers."""
    rows = [[Fraction(float(x)) for x in row] for row in rows]
    k = len(penalty)
    system = [
        [sum(row[a] * row[b] for row in rows) + (Fraction(float(penalty[a])) if a == b else 0) for b in range(k)]
        + [sum(row[a] * Fraction(float(y)) for row, y in zip(rows, values, strict=True))]
        for a in range(k)
    ]
    for j in range(k):
        for i in range(k):
            if i != j:
                factor = system[i][j] / system[j][j]
                system[i] = [x - factor * y for x, y in zip(system[i], system[j], strict=True)]
    solved = [system[a][k] / system[a][a] for a in range(k)]
    return np.array([float(sum(x * c for x, c in zip(row, solved, strict=True))) for row in rows])


@pytest.mark.parametrize(("k", "decades"), [(5, 12), (9, 5)])
def test_penalties_over_many_decades(k, decades):
    """Factorised systems are as exact as the processor's; conjugate gradients lose digits by the condition number."""
    entries = compressed([3, 12, 8], 14)
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((14, k)))[0]
    penalty = np.geomspace(10.0**-decades, 1e3, k)
    expected = np.empty((3, k)), np.empty((3, k)), np.empty(3)
    host.solve_factored_rows(*parts_of(entries), basis, penalty, 1.0, *expected)
    found = [put(part) for part in (np.empty((3, k)), np.empty((3, k)), np.empty(3))]
    device.solve_factored_rows(*map(put, parts_of(entries)), put(basis), put(penalty), 1.0, *found)
    for i in range(3):
        span = slice(entries.indptr[i], entries.indptr[i + 1])
        rows = basis[entries.indices[span]]
        exact = exact_estimate(rows, entries.values[span], penalty)
        limit = 20.0 * np.abs(rows @ expected[0][i] - exact).max() + (1e-14 if k <= 6 else 1e-9)
        np.testing.assert_allclose(rows @ fetch(found[0])[i], exact, rtol=0, atol=limit)


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
    monkeypatch.setattr(dual_rows, "_budget", lambda n: 10 * n)  # or no row of a test is long enough
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
