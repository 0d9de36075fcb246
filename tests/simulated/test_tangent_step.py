"""One whole step of the two-sided method on a device: its system, calls in sequence, equals the processor's."""

from __future__ import annotations

import numpy as np
import pytest
from blocks_of_rows import assert_near

from fastrfm import Observations
from fastrfm.device_blocks import DeviceBlocks
from fastrfm.solvers import tangent_step
from fastrfm.solvers.estimate import Layout, Triplets


def observed(n_rows, n_cols, dtype=np.float64):
    rng = np.random.default_rng(n_rows)
    matrix = rng.standard_normal((n_rows, 3)) @ rng.standard_normal((3, n_cols)) + rng.standard_normal((n_rows, n_cols))
    matrix[rng.random(matrix.shape) > 0.7] = np.nan
    matrix[2] = np.nan  # an empty row
    return Observations.from_dense(matrix.astype(dtype))


def step_of(observations, k):
    """Return a step from the leading triplets of the observed entries, zeros elsewhere."""
    arrays, matrix = observations.arrays, np.zeros(observations.shape)
    rows, cols, values = (observations.host if isinstance(observations, DeviceBlocks) else observations).to_coo()
    matrix[rows, cols] = values
    left, sigma, right = np.linalg.svd(matrix)
    triplets = Triplets(
        arrays.put(np.ascontiguousarray(left[:, :k])), sigma[:k], arrays.put(np.ascontiguousarray(right[:k].T))
    )
    return tangent_step.tangent_step(
        observations, Layout.of(observations), triplets, smoothing=0.9 * sigma[k - 1], agop_power=0.5, ridge=0.3,
        tolerance=1e-6, max_steps=4,
    )  # fmt: skip


def assert_same_step(found, expected, arrays):
    assert found.inner_steps == expected.inner_steps > 1
    for name in ("coefficients", "rows", "basis"):
        one, other = arrays.fetch(getattr(found.estimate, name)), getattr(expected.estimate, name)
        assert_near(one, other, np.float64, np.abs(expected.estimate.coefficients).max())
    for name in ("change", "square_sum", "inner_error"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-10, err_msg=name)


@pytest.mark.parametrize(
    ("k", "keeps_factors", "memory", "value_type"),
    [(3, True, None, np.float64), (5, False, None, np.float32), (3, False, 2000.0, np.float64)],
)
def test_step(k, keeps_factors, memory, value_type, monkeypatch):
    observations = observed(12, 9, value_type)
    on_device = DeviceBlocks(observations, memory=memory)
    if not keeps_factors:
        monkeypatch.setattr(on_device.arrays, "scratch_bytes", 0.0)
    starts, sweep = set(), tangent_step._System._sweep

    def watched(system, block, *rest):
        starts.add(block.rows.start)
        sweep(system, block, *rest)

    monkeypatch.setattr(tangent_step._System, "_sweep", watched)
    found = step_of(on_device, k)
    assert (len(starts) > 1) == (memory is not None)
    assert_same_step(found, step_of(observations, k), on_device.arrays)


def test_products_with_the_estimate():
    observations = observed(12, 9)
    on_device = DeviceBlocks(observations)
    found, expected = step_of(on_device, 3).estimate, step_of(observations, 3).estimate
    arrays, rng = on_device.arrays, np.random.default_rng(0)
    for name, n in (("multiply", 9), ("multiply_transposed", 12)):
        vectors = rng.standard_normal((n, 5))
        other = getattr(expected, name)(vectors)
        assert_near(arrays.fetch(getattr(found, name)(arrays.put(vectors))), other, np.float64)
