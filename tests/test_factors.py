"""Tall QR, canonical factors, numerical rank."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrfm.factors import canonical_factors, numerical_rank, svd, tall_qr


@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 5), (7, 3), (64, 4), (300, 17), (40, 0)])
@pytest.mark.parametrize("spread", [0.0, -14.0, -120.0])
def test_tall_qr_is_a_decomposition(n, k, spread):
    matrix = np.random.RandomState(n).standard_normal((n, k)) * np.logspace(0, spread, k)
    before = matrix.copy()
    q, r = tall_qr(matrix)
    np.testing.assert_array_equal(matrix, before)
    assert q.shape == (n, k) and r.shape == (k, k)
    lengths = np.linalg.norm(matrix, axis=0)
    np.testing.assert_allclose(q @ r / lengths, matrix / lengths, atol=1e-13)
    np.testing.assert_allclose(q.T @ q, np.eye(k), atol=1e-13)
    np.testing.assert_array_equal(r, np.triu(r))


@pytest.mark.parametrize("gap", [0.0, 1e-15, 1e-9, 1e-5, 1e-3])
def test_tall_qr_of_nearly_dependent_columns_is_orthonormal(gap):
    rng = np.random.RandomState(0)
    matrix = rng.standard_normal((200, 6))
    matrix[:, 5] = matrix[:, 0] + matrix[:, 1] + gap * matrix[:, 5]
    q, r = tall_qr(matrix)
    np.testing.assert_allclose(q.T @ q, np.eye(6), atol=1e-13)
    np.testing.assert_allclose(q @ r, matrix, atol=1e-12)


def test_tall_qr_of_zero_columns_is_orthonormal():
    matrix = np.zeros((9, 3))
    matrix[:, 1] = 1.0
    q, r = tall_qr(matrix)
    np.testing.assert_allclose(q.T @ q, np.eye(3), atol=1e-13)
    np.testing.assert_allclose(q @ r, matrix, atol=1e-13)


@pytest.mark.parametrize("size", [(1, 1, 1), (6, 4, 4), (4, 6, 4), (20, 15, 3), (5, 5, 0)])
def test_canonical_factors_are_the_decomposition(size):
    n_rows, n_cols, k = size
    rng = np.random.RandomState(k)
    left, right = rng.standard_normal((n_rows, k)), rng.standard_normal((n_cols, k))
    new_left, new_right, singular_values = canonical_factors(left, right)
    assert new_left.shape == left.shape and new_right.shape == right.shape and singular_values.shape == (k,)
    np.testing.assert_allclose(new_left @ new_right.T, left @ right.T, atol=1e-12)
    np.testing.assert_allclose(new_right.T @ new_right, np.eye(k), atol=1e-12)
    np.testing.assert_allclose(new_left.T @ new_left, np.diag(singular_values**2), atol=1e-11)
    if k:
        wanted = np.linalg.svd(left @ right.T, compute_uv=False)[:k]
        np.testing.assert_allclose(singular_values, wanted, atol=1e-12)
        peaks = np.argmax(np.abs(new_right), axis=0)
        assert np.all(new_right[peaks, np.arange(k)] > 0.0)


@pytest.mark.parametrize("size", [(6, 3, 5), (3, 6, 5), (2, 3, 7)])
def test_more_directions_than_the_matrix_has_room_for_are_left_out(size):
    n_rows, n_cols, k = size
    rng = np.random.RandomState(k)
    left, right = rng.standard_normal((n_rows, k)), rng.standard_normal((n_cols, k))
    new_left, new_right, singular_values = canonical_factors(left.copy(), right.copy(), overwrite=True)
    assert new_left.shape == (n_rows, min(size)) and new_right.shape == (n_cols, min(size))
    np.testing.assert_allclose(new_left @ new_right.T, left @ right.T, atol=1e-12)
    np.testing.assert_allclose(singular_values, np.linalg.svd(left @ right.T, compute_uv=False), atol=1e-12)


def test_canonical_factors_keep_directions_that_a_gram_would_lose():
    rng = np.random.RandomState(0)
    left = np.linalg.qr(rng.standard_normal((30, 3)))[0] * np.array([1.0, 1e-6, 1e-12])
    right = np.linalg.qr(rng.standard_normal((20, 3)))[0]
    singular_values = canonical_factors(left, right)[2]
    np.testing.assert_allclose(singular_values, [1.0, 1e-6, 1e-12], rtol=1e-3)


def test_canonical_factors_are_idempotent():
    rng = np.random.RandomState(1)
    once = canonical_factors(rng.standard_normal((9, 3)), rng.standard_normal((8, 3)))
    twice = canonical_factors(once[0], once[1])
    for a, b in zip(once, twice, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@given(st.lists(st.floats(0.0, 1e6), max_size=8), st.floats(1e-9, 1.0))
@settings(max_examples=60, deadline=None)
def test_numerical_rank_is_the_smallest_that_keeps_the_tolerance(numbers, tol):
    singular_values = np.sort(np.array(numbers, dtype=np.float64))[::-1]
    rank = numerical_rank(singular_values, tol)
    norm = np.sqrt(np.sum(singular_values**2))
    assert np.sqrt(np.sum(singular_values[rank:] ** 2)) <= tol * norm * (1 + 1e-9)
    if rank:
        assert np.sqrt(np.sum(singular_values[rank - 1 :] ** 2)) >= tol * norm * (1 - 1e-9)


def test_numerical_rank_at_the_edges():
    assert numerical_rank(np.zeros(0), 1e-3) == 0
    assert numerical_rank(np.zeros(4), 1e-3) == 0
    assert numerical_rank(np.ones(4), 0.0) == 4
    assert numerical_rank(np.array([1.0, 0.0]), 0.0) == 1


@pytest.mark.parametrize("shape", [(200, 7), (70_000, 3), (9, 9)])
def test_overwriting_changes_no_bit(shape):
    matrix = np.random.RandomState(0).standard_normal(shape) * np.logspace(0, 5, shape[1])
    before = matrix.copy()
    q, r = tall_qr(matrix)
    np.testing.assert_array_equal(matrix, before)
    other_q, other_r = tall_qr(matrix, overwrite=True)
    np.testing.assert_array_equal(other_q, q)
    np.testing.assert_array_equal(other_r, r)


@pytest.mark.parametrize("kind", ["zero column", "twin columns", "nearly twins"])
def test_overwriting_where_columns_depend_on_each_other(kind):
    matrix = np.random.RandomState(1).standard_normal((60, 4)) * [1.0, 10.0, 1e3, 1e-3]
    matrix[:, 2] = {"zero column": 0.0, "twin columns": 3.0 * matrix[:, 1]}.get(kind, matrix[:, 1])
    if kind == "nearly twins":
        matrix[:, 2] += 1e-9 * matrix[:, 0]
    q, r = tall_qr(matrix.copy(), overwrite=True)
    np.testing.assert_allclose(q.T @ q, np.eye(4), atol=1e-13)
    np.testing.assert_allclose(q @ r, matrix, atol=1e-13 * np.abs(matrix).max())


def test_svd_goes_on_where_divide_and_conquer_fails(monkeypatch):
    matrix = np.random.default_rng(0).standard_normal((7, 4))
    expected = np.linalg.svd(matrix)

    def fails(*_: object, **__: object) -> None:
        raise np.linalg.LinAlgError("SVD did not converge")

    monkeypatch.setattr(np.linalg, "svd", fails)
    left, singular_values, right = svd(matrix)
    assert left.shape == (7, 7) and right.shape == (4, 4)
    np.testing.assert_allclose(singular_values, expected[1], rtol=1e-14)
    np.testing.assert_allclose((left[:, :4] * singular_values) @ right, matrix, atol=1e-14)
    assert svd(matrix, full_matrices=False)[0].shape == (7, 4)
    with pytest.raises(np.linalg.LinAlgError):
        svd(np.full((3, 3), np.nan))
