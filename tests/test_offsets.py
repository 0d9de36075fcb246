"""Offsets against the entry-by-entry twin, and what they must do at the edges and in a completion."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from problems import observe, random_mask

from fastrfm import blocks as module
from fastrfm.observations import Observations
from fastrfm.results import Offsets
from fastrfm.solvers.completion import complete
from fastrfm.solvers.offsets import fit_offsets


def noisy_table(shape: tuple[int, int], seed: int, noise: float = 0.5) -> np.ndarray:
    rng = np.random.RandomState(seed)
    rows, cols = rng.standard_normal(shape[0]), 2.0 * rng.standard_normal(shape[1])
    return 3.0 + rows[:, None] + cols + noise * rng.standard_normal(shape)


def assert_equal_offsets(found: Offsets, wanted: tuple[float, np.ndarray, np.ndarray], tolerance: float) -> None:
    assert found.mean == pytest.approx(wanted[0], abs=tolerance)
    np.testing.assert_allclose(found.rows, wanted[1], atol=tolerance)
    np.testing.assert_allclose(found.cols, wanted[2], atol=tolerance)


@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (1, 5), (5, 1), (1, 1)])
@pytest.mark.parametrize("share", [0.4, 1.0])
@pytest.mark.parametrize("value_type", [np.float64, np.float32])
def test_offsets_equal_naive(shape, share, value_type):
    values = noisy_table(shape, seed=shape[0]).astype(value_type)
    mask = random_mask(np.random.RandomState(1), shape, share)
    wanted = reference.offsets(values.astype(np.float64), mask)
    # float32 data: the twin sees the same numbers in double precision.
    assert_equal_offsets(fit_offsets(observe(values, mask)), wanted, 1e-9 if value_type is np.float64 else 2e-5)


@pytest.mark.parametrize("scale", [2.0**10, 2.0**-20, 3.7, -1.0])
def test_offsets_scale_with_the_data(scale):
    values, mask = noisy_table((10, 8), 0), random_mask(np.random.RandomState(0), (10, 8), 0.6)
    one, other = fit_offsets(observe(values, mask)), fit_offsets(observe(scale * values, mask))
    wanted = scale * one.mean, scale * one.rows, scale * one.cols
    assert_equal_offsets(other, wanted, 0.0 if abs(np.log2(abs(scale)) % 1) == 0 else 1e-10 * abs(scale))


def test_offsets_ignore_an_added_constant():
    values, mask = noisy_table((10, 8), 3), random_mask(np.random.RandomState(3), (10, 8), 0.6)
    one, other = fit_offsets(observe(values, mask)), fit_offsets(observe(values + 100.0, mask))
    assert_equal_offsets(other, (one.mean + 100.0, one.rows, one.cols), 1e-8)


def test_rows_and_columns_without_observations_get_zero():
    values = noisy_table((8, 6), 2)
    mask = np.ones((8, 6), dtype=bool)
    mask[3], mask[:, 4] = False, False
    found = fit_offsets(observe(values, mask))
    assert found.rows[3] == 0.0 and found.cols[4] == 0.0
    inner = fit_offsets(observe(np.delete(np.delete(values, 3, 0), 4, 1), np.ones((7, 5), dtype=bool)))
    assert_equal_offsets(found, (inner.mean, np.insert(inner.rows, 3, 0.0), np.insert(inner.cols, 4, 0.0)), 1e-12)


@pytest.mark.parametrize("value", [0.0, -4.0, 0.1])
def test_a_constant_has_no_offsets(value):
    found = fit_offsets(Observations.from_dense(np.full((4, 5), value)))
    assert_equal_offsets(found, (value, np.zeros(4), np.zeros(5)), 1e-15)


def test_offsets_are_centred_on_what_was_seen():
    values, mask = noisy_table((10, 8), 5), random_mask(np.random.RandomState(5), (10, 8), 0.5)
    mask[2] = False
    found = fit_offsets(observe(values, mask))
    assert found.rows[mask.any(axis=1)].sum() == pytest.approx(0.0, abs=1e-12)
    assert found.cols[mask.any(axis=0)].sum() == pytest.approx(0.0, abs=1e-12)


def test_pure_noise_is_shrunk_away():
    values = np.random.RandomState(0).standard_normal((60, 50))
    found = fit_offsets(Observations.from_dense(values))
    assert np.abs(found.rows).max() < 0.5 * np.abs(values.mean(axis=1)).max()


def test_row_blocks_hardly_move_offsets(monkeypatch):
    values, mask = noisy_table((40, 9), 6), random_mask(np.random.RandomState(6), (40, 9), 0.6)
    whole = fit_offsets(observe(values, mask))
    monkeypatch.setattr(module, "BLOCK_ENTRIES", 17)
    assert_equal_offsets(fit_offsets(observe(values, mask)), (whole.mean, whole.rows, whole.cols), 1e-12)


@pytest.mark.parametrize("method", ["dense", "factored"])
def test_an_additive_matrix_is_completed_by_offsets_alone(method):
    rng = np.random.RandomState(0)
    table = 5.0 + rng.standard_normal((20, 1)) + rng.standard_normal((1, 15))
    mask = random_mask(rng, table.shape, 0.7)
    result = complete(observe(table, mask), method=method, offsets=True)
    np.testing.assert_allclose(result.to_dense(), table, atol=1e-4)
    np.testing.assert_allclose(result.to_dense()[mask], table[mask], atol=1e-7)
    assert result.offsets is not None and result.masked_rmse < 1e-7
    centred = table[mask] - result.offsets.at(*np.nonzero(mask))
    assert np.abs(centred).max() < 1e-3, "offsets leave next to nothing for the low-rank part"


@pytest.mark.parametrize("method", ["dense", "factored"])
def test_completion_adds_offsets_to_what_it_completes(method):
    values, mask = noisy_table((14, 10), 7), random_mask(np.random.RandomState(7), (14, 10), 0.8)
    mask[4], mask[:, 3] = False, False
    observed = observe(values, mask)
    fitted = fit_offsets(observed)
    centred = values - (fitted.mean + fitted.rows[:, None] + fitted.cols)
    result = complete(observed, method=method, offsets=True, ridge=0.5)
    plain = complete(observe(centred, mask), method=method, ridge=0.5)
    inner = plain.left[:, : plain.rank] @ plain.right[:, : plain.rank].T
    np.testing.assert_allclose(result.left @ result.right.T, inner, atol=1e-9)
    assert result.left.shape[1] == result.rank, "offsets take the place of means for empty rows and columns"
    assert result.to_dense()[4, 3] == pytest.approx(fitted.mean)
    misfit = (result.to_dense() - values)[mask]
    assert result.masked_rmse == pytest.approx(np.sqrt(np.mean(misfit**2)))
