"""From Gram to feature Gram: every power against eigenvalues."""

from __future__ import annotations

import numpy as np
import pytest
import reference

from fastrfm.agop import feature_gram


def lower_gram(n: int, rank: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return a Gram and a copy whose strict upper triangle is rubbish."""
    rows = np.random.RandomState(seed).standard_normal((rank, n))
    gram = rows.T @ rows
    return gram, np.tril(gram) + np.triu(np.full((n, n), 1e9), 1)


@pytest.mark.parametrize("power", [0.1, 0.25, 1 / 3, 0.375, 0.5, 0.75, 1.0, 1.5])
@pytest.mark.parametrize(("n", "rank"), [(1, 1), (2, 5), (9, 20), (9, 3), (65, 70)])
def test_feature_gram_equals_naive(power, n, rank):
    gram, lower = lower_gram(n, rank)
    before = lower.copy()
    found = feature_gram(lower, power, 0.3)
    twin = reference.feature_gram(gram, power, 0.3)
    np.testing.assert_allclose(found, twin, atol=1e-11 * np.abs(twin).max())
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_array_equal(lower, before)
    assert found.flags.c_contiguous and found.dtype == np.float64


@pytest.mark.parametrize("power", [0.25, 0.375, 0.5, 1.0])
def test_feature_gram_of_nothing_is_a_multiple_of_the_identity(power):
    np.testing.assert_allclose(feature_gram(np.zeros((5, 5)), power, 2.0), 2.0 ** (4 * power) * np.eye(5), atol=1e-14)
    np.testing.assert_array_equal(feature_gram(np.zeros((5, 5)), power, 0.0), np.zeros((5, 5)))


@pytest.mark.parametrize("power", [0.25, 0.4, 0.5, 1.0])
def test_singular_grams_without_smoothing_stay_finite(power):
    gram, lower = lower_gram(12, 2)
    found = feature_gram(lower, power, 0.0)
    twin = reference.feature_gram(gram, power, 0.0)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, twin, atol=1e-6 * np.abs(twin).max())


@pytest.mark.parametrize("near", [0.5, 1.0])
def test_powers_without_eigenvalues_join_those_with(near):
    _, lower = lower_gram(8, 10)
    exact, close = feature_gram(lower, near, 0.2), feature_gram(lower, near + 1e-10, 0.2)
    np.testing.assert_allclose(close, exact, rtol=1e-7, atol=1e-7 * np.abs(exact).max())
