"""Products and conjugate gradients of sparse regression on a device equal the processor's."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

from fastrfm._cuda import empty, fetch, put
from fastrfm.kernels import diagonal as host
from fastrfm.kernels.cuda import columns, diagonal
from fastrfm.kernels.cuda.products import add_parts

TOLERANCE = {np.float32: 2e-6, np.float64: 1e-14}
FLOATS = pytest.mark.parametrize("dtype", [np.float32, np.float64])
NO_STATE, DONE = np.zeros(1), np.ones(1)


def compressed(n, p, share, seed=0):
    """Return a matrix, its rows and its columns; the first row and column are empty, the last row is full."""
    rng = np.random.default_rng(seed)
    dense = rng.standard_normal((n, p)) * (rng.random((n, p)) < share)
    dense[-1] = 1.0
    dense[0], dense[:, 0] = 0.0, 0.0
    matrix = scipy.sparse.csr_array(dense)
    return dense, parts(matrix), parts(matrix.tocsc())


def parts(matrix, dtype=np.float64):
    return matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data.astype(dtype)


def there(arrays, dtype):
    return [put(array.astype(dtype) if array.dtype == np.float64 else array) for array in arrays]


def vectors(n, p, seed=1):
    rng = np.random.default_rng(seed)
    return rng.uniform(0.1, 2.0, p), rng.uniform(0.5, 1.5, n), rng.standard_normal(p)  # weights, roots, means


def assert_near(found, expected, dtype, factor=1.0):
    scale = max(float(np.abs(expected).max(initial=0.0)), 1e-300)
    np.testing.assert_allclose(found, expected, rtol=0, atol=factor * TOLERANCE[dtype] * scale)


@FLOATS
@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize(("n", "p", "share"), [(1, 1, 0.5), (5, 40, 0.9), (37, 9, 0.2), (3, 5, 0.0)])
def test_products(n, p, share, index, dtype):
    dense, (indptr, indices, values), _ = compressed(n, p, share)
    vector, expected = np.random.default_rng(2).standard_normal(p), np.empty(n)
    host.multiply_rows(indptr, indices, values, vector, expected)
    out = put(np.full(n, np.nan, dtype))
    diagonal.multiply_rows(*there([indptr, indices.astype(index), values, vector], dtype), out)
    assert_near(fetch(out), expected, dtype)
    assert_near(expected, dense @ vector, np.float64)


@FLOATS
@pytest.mark.parametrize(("n", "p", "share"), [(1, 1, 0.5), (5, 40, 0.9), (37, 9, 0.2)])
def test_diagonal(n, p, share, dtype):
    _, rows, _ = compressed(n, p, share)
    weights, roots, means = vectors(n, p)
    expected = np.linspace(1.0, 2.0, n)
    out = put(expected.astype(dtype))
    host.add_row_squares(*rows, weights, roots, means, expected)
    diagonal.add_row_squares(*there([*rows, weights, roots, means], dtype), out)
    assert_near(fetch(out), expected, dtype, factor=3.0)


def test_groups_of_threads_follow_the_mean_number_of_entries():
    sizes = [diagonal._group_size(10, n_entries, 128) for n_entries in (0, 10, 39, 40, 80, 1000, 10**6)]
    assert sizes == [1, 1, 1, 2, 4, 32, 128]
    assert diagonal._group_size(2**33, 2**40, 128) == 64
    assert diagonal.over_rows(0, 0).n_blocks == 0


@FLOATS
@pytest.mark.parametrize("is_centred", [False, True])
def test_conjugate_gradients(is_centred, dtype):
    n, p = 7, 15
    dense, rows, cols = compressed(n, p, 0.4)
    weights, roots, means = vectors(n, p)
    means *= is_centred
    shift = 0.3 * is_centred
    target, ridge, tol = np.random.default_rng(3).standard_normal(n), 0.7, 1e-9 if dtype == np.float64 else 1e-5
    scales, start = np.full(n, ridge) + shift * roots**2, np.full(n, 0.1)
    host.add_row_squares(*rows, weights, roots, means, scales)
    arrays, expected = (*rows, *cols, weights, roots, means), start.copy()
    steps, _ = host.solve_reweighted(*arrays, ridge, shift, target, scales, tol, 100, expected)
    out = put(start.astype(dtype))
    found = diagonal.solve_reweighted(
        *there(arrays, dtype), ridge, shift, *there([target, scales], dtype), tol, 100, out
    )
    assert abs(found[0] - steps) <= 1 and found[1] <= tol
    centred = dense - np.outer(roots, means)
    system = (centred * weights) @ centred.T + ridge * np.eye(n) + shift * np.outer(roots, roots)
    assert np.linalg.norm(system @ fetch(out) - target) <= 10.0 * tol * np.linalg.norm(target)
    np.testing.assert_allclose(fetch(out), expected, rtol=0, atol=30.0 * tol * np.abs(expected).max())


@pytest.mark.parametrize(("max_steps", "tolerance"), [(0, 0.0), (1, 1e-14), (8, 1e-6)])
def test_conjugate_gradients_stop_at_the_most_steps(max_steps, tolerance):
    n, p = 12, 20
    _, rows, cols = compressed(n, p, 0.5)
    weights, roots, means = vectors(n, p)
    arrays, scales, expected = (*rows, *cols, weights, roots, means), np.ones(n), np.zeros(n)
    steps, error = host.solve_reweighted(*arrays, 0.5, 0.1, scales, scales, 0.0, max_steps, expected)
    out = put(np.zeros(n))
    found = diagonal.solve_reweighted(*map(put, arrays), 0.5, 0.1, put(scales), put(scales), 0.0, max_steps, out)
    assert found[0] == steps == max_steps and found[1] == pytest.approx(error, rel=1e-4)
    # The steps of conjugate gradients enlarge rounding: measured 1e-17 after one, 3e-8 after eight, on either.
    np.testing.assert_allclose(fetch(out), expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_steps_after_the_last_one_do_nothing(monkeypatch):
    n, p = 7, 15
    _, rows, cols = compressed(n, p, 0.4)
    arrays = [put(array) for array in (*rows, *cols, *vectors(n, p))]
    found = []
    for look in (1, 6):
        monkeypatch.setattr(diagonal, "_LOOK", look)
        out, ones = put(np.zeros(n)), put(np.ones(n))
        steps, error = diagonal.solve_reweighted(*arrays, 0.7, 0.0, ones, ones, 0.3, 100, out)
        found.append((steps, error, fetch(out).tobytes()))
    assert found[0] == found[1] and 0 < steps < 5 and error <= 0.3


def test_nothing_to_solve_takes_no_steps():
    _, rows, cols = compressed(4, 6, 0.5)
    weights, roots, means = map(put, vectors(4, 6))
    out = put(np.zeros(4))
    found = diagonal.solve_reweighted(
        *map(put, (*rows, *cols)), weights, roots, means, 1.0, 0.0, out, put(np.ones(4)), 1e-9, 20, out
    )
    assert found == (0, 0.0)


# --- a dense A, by columns ----------------------------------------------------------------------------------------


@FLOATS
@pytest.mark.parametrize(("n", "p"), [(1, 1), (9, 40), (21, 5), (4, 17)])
def test_dense_products(n, p, dtype):
    rng = np.random.default_rng(4)
    matrix, coef, residual = rng.standard_normal((n, p)), rng.standard_normal(p), rng.standard_normal(n)
    stored, go = put(matrix.T.astype(dtype)), put(NO_STATE)
    out = put(np.full(p, np.nan, dtype))
    columns.multiply_transposed(go, stored, put(residual.astype(dtype)), out)
    assert_near(fetch(out), matrix.T @ residual, dtype)
    runs, sums = empty((columns.n_runs(p, n), n), dtype), put(np.full(n, np.nan, dtype))
    for is_squared, expected in ((0, matrix @ coef), (1, matrix**2 @ coef)):
        columns.multiply_parts(go, stored, put(coef.astype(dtype)), is_squared, runs)
        columns.add_runs(go, runs, sums)
        assert_near(fetch(sums), expected, dtype, factor=2.0)


def test_products_do_nothing_once_the_steps_are_done():
    stored, ones = put(np.ones((6, 3))), put(np.ones(6))
    runs, by_sample, by_feature = put(np.full((2, 3), 7.0)), put(np.full(3, 7.0)), put(np.full(6, 7.0))
    columns.multiply_parts(put(DONE), stored, ones, 0, runs)
    columns.add_runs(put(DONE), runs, by_sample)
    columns.multiply_transposed(put(DONE), stored, put(np.ones(3)), by_feature)
    assert all((fetch(array) == 7.0).all() for array in (runs, by_sample, by_feature))


def test_runs_of_columns_fill_a_device_and_no_more():
    assert columns.n_runs(1, 1) == columns.n_runs(columns._LEAST_COLUMNS, 10**9) == 1
    assert columns.n_runs(10**9, 1) == columns._MOST_STRIPES


@FLOATS
@pytest.mark.parametrize(("n", "p", "n_parts"), [(1, 1, 1), (17, 9, 1), (9, 30, 3), (8, 3, 4)])
def test_dense_gram(n, p, n_parts, dtype):
    matrix, (weights, _, _) = np.random.default_rng(5).standard_normal((n, p)), vectors(n, p)
    runs, out = put(np.zeros((n_parts, n, n), dtype)), empty((n, n), dtype)
    columns.reweighted_parts(*there([matrix.T, weights], dtype), runs)
    add_parts(runs, out)
    assert_near(np.tril(fetch(out)), np.tril((matrix * weights) @ matrix.T), dtype)


@FLOATS
@pytest.mark.parametrize(("n", "p", "share"), [(1, 1, 0.5), (13, 7, 0.6), (6, 30, 0.2)])
def test_compressed_gram(n, p, share, dtype):
    dense, rows, cols = compressed(n, p, share)
    weights, roots, means = vectors(n, p)
    crosses, half = dense @ (weights * means), 0.5 * float(weights @ means**2)
    out = put(np.zeros((n, n), dtype))
    columns.reweighted_rows(*there([*rows, *cols, weights, roots, crosses], dtype), half, out)
    centred = dense - np.outer(roots, means)
    assert_near(np.tril(fetch(out)), np.tril((centred * weights) @ centred.T), dtype, factor=5.0)


def test_blocks_of_the_compressed_gram_are_as_wide_as_its_columns():
    def threads(n_entries):
        return columns.reweighted_rows._launch(np.zeros((9, 9)), np.zeros(11), np.zeros(n_entries)).n_threads

    widest = threads(10**6)
    assert threads(0) == min(32, widest) and widest == columns.N_THREADS


@FLOATS
def test_chosen_rows(dtype):
    dense, rows, cols = compressed(7, 12, 0.4)
    _, roots, means = vectors(7, 12)
    chosen, centred = np.array([3, 0, 11, 3]), dense - np.outer(roots, means)
    out = put(np.full((4, 7), np.nan, dtype))
    columns.expand_rows(*there([*cols, means, roots, chosen], dtype), out)
    assert_near(fetch(out), centred[:, chosen].T, dtype)
    out = put(np.full((2, 12), np.nan, dtype))
    columns.expand_rows(*there([*rows, roots, means, chosen[:2]], dtype), out)
    assert_near(fetch(out), centred[chosen[:2]], dtype)
    out = put(np.full((4, 7), np.nan, dtype))
    columns.gather_rows(*there([dense.T, chosen], dtype), out)
    assert_near(fetch(out), dense[:, chosen].T, dtype)
