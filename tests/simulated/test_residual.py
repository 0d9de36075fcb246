"""Predictions and masked residuals on a device equal those on the processor."""

from __future__ import annotations

import numpy as np
import pytest
from numba import cuda

from fastrfm.kernels import residual as host
from fastrfm.kernels.cuda import residual as device

TOLERANCE = {np.float32: 1e-5, np.float64: 1e-14}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_masked_residual(dtype):
    rng = np.random.default_rng(0)
    counts = np.array([3, 0, 7, 1, 5])
    indptr = np.concatenate([[0], np.cumsum(counts)])
    indices = np.concatenate([np.sort(rng.choice(9, n, replace=False)) for n in counts]).astype(np.int32)
    values = rng.standard_normal(indices.size).astype(np.float32)
    left, right = rng.standard_normal((5, 3)), rng.standard_normal((9, 3))
    expected = np.empty(indices.size)
    bounds = np.array([0, 5])
    host.masked_residual(bounds, indptr, indices, values, left, right, expected)
    out = cuda.to_device(np.full(indices.size, np.nan, dtype))
    device.masked_residual(bounds, indptr, indices, values, left.astype(dtype), right.astype(dtype), out)
    np.testing.assert_allclose(out.copy_to_host(), expected, rtol=0, atol=TOLERANCE[dtype] * np.abs(expected).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_predicted_pairs(dtype):
    rng = np.random.default_rng(1)
    left, right = rng.standard_normal((5, 3)), rng.standard_normal((9, 3))
    rows, cols = rng.integers(0, 5, 37), rng.integers(0, 9, 37)
    expected = np.empty(37)
    host.predict_pairs(rows, cols, left, right, expected)
    out = cuda.to_device(np.full(37, np.nan, dtype))
    device.predict_pairs(rows, cols, left.astype(dtype), right.astype(dtype), out)
    np.testing.assert_allclose(out.copy_to_host(), expected, rtol=0, atol=TOLERANCE[dtype] * np.abs(expected).max())


def test_nothing_to_do_is_not_launched():
    device.predict_pairs(*(np.zeros(0, np.int64),) * 2, np.zeros((2, 1)), np.zeros((2, 1)), np.zeros(0))
    assert device.predict_pairs.launch(None, None, None, None, np.zeros(0)).n_blocks == 0
