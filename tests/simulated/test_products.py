"""Products of tall and square matrices on a device equal numpy's."""

from __future__ import annotations

import numpy as np
import pytest

from fastrfm._cuda import empty, fetch, put
from fastrfm.kernels import gram as host_gram
from fastrfm.kernels.cuda import gram, products

TOLERANCE = {np.float32: 2e-6, np.float64: 1e-14}


def matrix(dtype, *shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


def assert_near(found, expected, dtype):
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[dtype] * max(np.abs(expected).max(), 1.0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "p", "m"), [(1, 1, 1), (9, 5, 3), (20, 11, 9), (8, 8, 16), (3, 0, 2)])
def test_product(n, p, m, dtype):
    left, right, out = matrix(dtype, n, p), matrix(dtype, p, m), matrix(dtype, n, m)
    expected = 0.5 * out + 2.0 * (left.astype(float) @ right)
    held = put(out)
    products.multiply(put(left), put(right), 2.0, 0.5, held)
    assert_near(fetch(held), expected, dtype)
    unset = put(np.full((n, m), np.nan, dtype))
    products.multiply(put(left), put(right), -1.0, 0.0, unset)
    assert_near(fetch(unset), -left.astype(float) @ right, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "p", "m", "n_parts"), [(1, 1, 1, 1), (33, 3, 9, 3), (17, 12, 2, 4), (2, 3, 3, 5)])
def test_transposed_product_in_parts(n, p, m, n_parts, dtype):
    left, right = matrix(dtype, n, p), matrix(dtype, n, m)
    parts, out = empty((n_parts, p, m), dtype), empty((p, m), dtype)
    products.multiply_transposed_parts(put(left), put(right), parts)
    products.add_parts(parts, out)
    assert_near(fetch(out), left.astype(float).T @ right, dtype)


def test_number_of_stripes_depends_on_the_rows_alone():
    assert [products.n_stripes(n, 9) for n in (0, 1, 256, 257, 10**4, 2**40)] == [1, 1, 1, 2, 40, 1024]
    assert products.n_stripes(2**40, 320 * 320) == 81
    assert products.n_stripes(2**40, 2**40) == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "n_cols"), [(5, 3), (9, 17), (4, 8), (0, 2)])
def test_gram(n, n_cols, dtype):
    rows, start = matrix(dtype, n, n_cols), matrix(dtype, n_cols, n_cols)
    held = put(start)
    gram.accumulate_gram(put(rows), held)
    expected = start + rows.astype(float).T @ rows
    assert_near(np.tril(fetch(held)), np.tril(expected), dtype)
    out = empty((n_cols, n_cols), dtype)
    gram.shift_and_mirror(held, 0.5, 3.0, out)
    twin = np.empty((n_cols, n_cols))
    host_gram.shift_and_mirror(fetch(held).astype(float), 0.5, 3.0, twin)
    assert_near(fetch(out), twin, dtype)
    gram.shift_and_mirror(held, 0.5, 3.0, held)
    assert_near(fetch(held), twin, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_columns(dtype):
    a, out = matrix(dtype, 7, 5), matrix(dtype, 7, 3)
    factors = np.array([2.0, -1.0, 0.5], dtype)
    held = put(out)
    products.take_columns(put(a), 2, held)
    assert_near(fetch(held), a[:, 2:], dtype)
    products.combine_columns(put(out), put(factors), 2.0, held)
    assert_near(fetch(held), 2.0 * a[:, 2:] + out * factors, dtype)
    products.combine_columns(put(out), put(np.array([3.0], dtype)), 0.0, held)
    assert_near(fetch(held), 3.0 * out, dtype)
    wide = put(np.full((7, 9), 8.0, dtype))
    products.put_columns(put(a), 1, wide)
    assert_near(fetch(wide), np.hstack([np.full((7, 1), 8.0), a, np.zeros((7, 3))]), dtype)
    parts = empty((3, 5), dtype)
    products.column_squares(put(a), parts)
    assert_near(fetch(parts).sum(axis=0), np.square(a.astype(float)).sum(axis=0), dtype)
    weights = np.linspace(0.5, 2.0, a.size)
    for n_parts in (1, 4, 40):
        sums = empty(n_parts, dtype)
        products.sum_parts(put(a.ravel()), sums)
        assert_near(fetch(sums).sum(), a.sum(dtype=float), dtype)
        for given, expected in (
            (weights, (a.ravel().astype(float) ** 2 / weights).sum()),
            (weights[:0], (a**2.0).sum()),
        ):
            products.sum_square_parts(put(a.ravel()), put(given), sums)
            assert_near(fetch(sums).sum(), expected, dtype)
    total = empty(1, dtype)
    products.add_up_diagonal(put(a[:5]), total)
    assert_near(fetch(total)[0], np.trace(a[:5]), dtype)
