"""Side information: features and the pattern as further columns and rows, against naive twins; and that it helps."""

from __future__ import annotations

import numpy as np
import pytest

from fastrfm import Observations, complete
from fastrfm.errors import InputError
from fastrfm.solvers.side_information import SideInformation, augmented, pattern_directions


def table(n_rows: int, n_cols: int, share: float, seed: int) -> np.ndarray:
    rng = np.random.RandomState(seed)
    matrix = rng.standard_normal((n_rows, n_cols))
    matrix[rng.random_sample(matrix.shape) > share] = np.nan
    return matrix


def test_features_are_standardised_and_constant_ones_left_out():
    given = np.array([[1.0, 5.0, np.nan], [3.0, 5.0, 2.0], [5.0, 5.0, 4.0]])
    side = SideInformation.of((3, 2), row_features=given)
    assert side and side.cols.shape == (2, 0) and side.rows.shape == (3, 2)
    np.testing.assert_allclose(side.rows[:, 0], np.array([-1.0, 0.0, 1.0]) / np.sqrt(2 / 3))
    np.testing.assert_allclose(side.rows[:, 1], [np.nan, -1.0, 1.0])
    assert given[0, 0] == 1.0  # the caller's array is as it was
    assert not SideInformation.of((3, 2))


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_augmented_equals_naive(weight):
    matrix = table(7, 5, 0.5, 0)
    matrix[3] = np.nan
    rows, cols = table(7, 2, 0.8, 1), table(5, 3, 0.8, 2)
    observations = Observations.from_dense(matrix)
    scale = weight * np.sqrt(np.nanmean(matrix**2))
    wanted = np.full((10, 7), np.nan)
    wanted[:7, :5], wanted[:7, 5:], wanted[7:, :5] = matrix, scale * rows, scale * cols.T
    found = augmented(observations, SideInformation(rows, cols), weight)
    dense = np.full(found.shape, np.nan)
    at_rows, at_cols, values = found.to_coo()
    dense[at_rows, at_cols] = values
    np.testing.assert_allclose(dense, wanted, rtol=1e-14)


@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (4, 1)])
def test_pattern_directions_equal_the_decomposition(shape):
    rng = np.random.RandomState(0)
    pattern = rng.random_sample(shape) < 0.6
    pattern[0] = True
    observations = Observations.from_dense(np.where(pattern, 1.5, np.nan))
    scaled = pattern / np.sqrt(np.maximum(pattern.sum(1), 1))[:, None] / np.sqrt(pattern.sum(0))
    left, strength, right = np.linalg.svd(scaled, full_matrices=False)
    q = min(3, *shape)
    rows, cols = pattern_directions(observations, 3, 0)
    weights = 1.8 * strength[:q] / strength[min(1, q - 1)]
    signs = np.sign(np.sum(rows * left[:, :q], axis=0))
    np.testing.assert_allclose(rows * signs, left[:, :q] * weights * np.sqrt(shape[0]), atol=1e-6)
    np.testing.assert_allclose(cols * signs, right[:q].T * weights * np.sqrt(shape[1]), atol=1e-6)


def hidden_error(observations: Observations, hidden: Observations, **options: object) -> float:
    rows, cols, values = hidden.to_coo()
    result = complete(observations, ridge=1.0, agop_power=0.25, rank=6, **options)
    assert result.shape == observations.shape and result.left.shape[0] == observations.n_rows
    return float(np.sqrt(np.mean((result.predict(rows, cols) - values) ** 2)))


@pytest.mark.compiled_only
def test_features_that_explain_the_matrix_help():
    rng = np.random.RandomState(3)
    rows, cols = rng.standard_normal((80, 3)), rng.standard_normal((50, 3))
    noisy = rows @ cols.T + 0.3 * rng.standard_normal((80, 50))
    noisy[rng.random_sample(noisy.shape) > 0.15] = np.nan
    kept, hidden = Observations.from_dense(noisy).split(0.3)
    alone = hidden_error(kept, hidden)
    helped = hidden_error(kept, hidden, row_features=rows, col_features=cols)
    useless = hidden_error(kept, hidden, row_features=rng.standard_normal((80, 3)), side_weight=0.1)
    assert helped < 0.7 * alone  # measured: less than half
    assert useless < 1.1 * alone


@pytest.mark.compiled_only
def test_side_information_commutes_with_transposition_and_scale():
    matrix = table(30, 20, 0.5, 5)
    rows, cols = table(30, 2, 1.0, 6), table(20, 3, 1.0, 7)
    options = {"ridge": 2.0, "agop_power": 0.25, "tol": 1e-5, "method": "factored"}
    one = complete(Observations.from_dense(matrix), row_features=rows, col_features=cols, **options)
    turned = complete(Observations.from_dense(matrix.T), row_features=cols, col_features=rows, **options)
    np.testing.assert_allclose(turned.to_dense().T, one.to_dense(), atol=1e-3)
    options["ridge"] = 20.0  # at power 1/4 the ridge has the unit of the data
    scaled = complete(Observations.from_dense(10 * matrix), row_features=rows, col_features=5 * cols, **options)
    np.testing.assert_allclose(scaled.to_dense(), 10 * one.to_dense(), atol=1e-2)


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (np.zeros((4, 2)), "with 5 lines"),
        (np.zeros(5), "2-D table"),
        (np.full((5, 1), np.inf), "infinities"),
        ([["a"]] * 5, "must be numbers"),
    ],
)
def test_unusable_features_are_refused(features, said):
    observations = Observations.from_dense(table(5, 6, 0.9, 8))
    with pytest.raises(InputError, match=said):
        complete(observations, row_features=features, ridge=1.0)


def test_a_start_does_not_go_with_side_information():
    observations = Observations.from_dense(table(8, 6, 0.9, 9))
    first = complete(observations, ridge=1.0, agop_power=0.25)
    with pytest.raises(InputError, match="start does not go with side information"):
        complete(observations, ridge=1.0, agop_power=0.25, start=first, implicit=2)
