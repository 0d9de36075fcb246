"""Whole solvers on a device take the steps that they take on the processor."""

from __future__ import annotations

import numpy as np
import pytest

from fastrfm import Observations, complete, open_observations
from fastrfm.device_blocks import DeviceBlocks
from fastrfm.options import CompletionOptions
from fastrfm.solvers.descent import Descent
from fastrfm.solvers.factored import solve_factored
from fastrfm.store import write_observations
from fastrfm.stored import StoredObservations

pytestmark = pytest.mark.filterwarnings("ignore::fastrfm.errors.NotConvergedWarning")
TOLERANCE = 1e-9  # of the estimate's size, after a few steps: both round, in other orders


def problem(n_rows: int = 10, n_cols: int = 7, rank: int = 2, share: float = 0.6, *, noise: float = 0.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((n_rows, rank)) @ rng.standard_normal((rank, n_cols))
    matrix += noise * rng.standard_normal(matrix.shape)
    matrix[rng.random(matrix.shape) > share] = np.nan
    matrix[3] = np.nan  # an empty row
    return Observations.from_dense(matrix)


def assert_same_steps(observations, **options):
    expected = complete(observations, **options)
    found = complete(observations, device="cuda", **options)
    size = np.abs(expected.to_dense()).max()
    np.testing.assert_allclose(found.to_dense(), expected.to_dense(), rtol=0, atol=TOLERANCE * size)
    assert found.n_iter == expected.n_iter and found.stop_reason == expected.stop_reason
    for name in ("smoothing", "change", "masked_rmse", "rank"):
        np.testing.assert_allclose(found.history[name], expected.history[name], rtol=1e-7, err_msg=name)


@pytest.mark.parametrize("agop_power", [0.25, 0.5, 1.0])
def test_dense(agop_power):
    assert_same_steps(problem(), method="dense", agop_power=agop_power, ridge=0.1, max_iter=3)


def test_dense_without_ridge_and_with_weights():
    observations = problem()
    assert_same_steps(observations, method="dense", max_iter=4)
    weighted = observations.with_weights(np.linspace(0.5, 2.0, observations.n_observed))
    assert_same_steps(weighted, method="dense", ridge=0.2, max_iter=3)


@pytest.mark.parametrize("options", [{"rank": 2}, {"ridge": 0.3, "agop_power": 0.25}, {"ridge": 0.1, "rank": 3}])
def test_factored(options):
    assert_same_steps(problem(), method="factored", max_iter=3, **options)


def test_factored_with_weights_and_float32_values():
    observations = problem(noise=0.1)
    weighted = observations.with_weights(np.linspace(0.5, 2.0, observations.n_observed))
    assert_same_steps(weighted, method="factored", ridge=0.2, max_iter=3)
    rows, cols, values = observations.to_coo()
    single = Observations.from_coo(rows, cols, values.astype(np.float32), observations.shape)
    assert_same_steps(single, method="factored", ridge=0.2, max_iter=3)


@pytest.mark.parametrize("options", [{"rank": 2}, {"rank": 2, "ridge": 0.2}])
def test_two_sided(options):
    assert_same_steps(problem(share=0.7), method="two-sided", max_iter=2, **options)


def test_streamed_blocks_change_nothing(monkeypatch):
    observations = problem(n_rows=16)
    expected = complete(observations, method="factored", ridge=0.2, max_iter=3)
    blocks = []

    class Streaming(DeviceBlocks):
        def __init__(self, host):
            super().__init__(host, memory=2000.0)

        def row_blocks(self, align=1):
            for block in super().row_blocks(align):
                blocks.append((block.start, block.stop))
                yield block

    monkeypatch.setattr("fastrfm.device_blocks.DeviceBlocks", Streaming)
    found = complete(observations, method="factored", ridge=0.2, max_iter=3, device="cuda")
    assert len(set(blocks)) > 2  # several blocks a pass
    np.testing.assert_allclose(found.to_dense(), expected.to_dense(), rtol=0, atol=1e-10)
    found = complete(observations, method="two-sided", rank=2, max_iter=2, device="cuda")
    expected = complete(observations, method="two-sided", rank=2, max_iter=2)
    np.testing.assert_allclose(found.to_dense(), expected.to_dense(), rtol=0, atol=1e-9)


def test_a_file_is_streamed(tmp_path):
    observations = problem(n_rows=16)
    write_observations(tmp_path / "entries.h5", observations)
    stored = open_observations(tmp_path / "entries.h5", memory=1500)
    assert isinstance(stored, StoredObservations)
    blocks = DeviceBlocks(stored, memory=2000.0)
    assert len(list(blocks.row_blocks())) > 1
    options = CompletionOptions(method="factored", ridge=0.2, max_iter=2)
    left, right, _ = solve_factored(blocks, options)
    twin_left, twin_right, _ = solve_factored(observations, options)
    np.testing.assert_allclose(left @ right.T, twin_left @ twin_right.T, rtol=0, atol=1e-10)


def test_descents_that_choose_options_take_the_same_steps():
    observations = problem(noise=0.1)
    descents = [Descent(where, None, 0).begin() for where in (observations, DeviceBlocks(observations))]
    for descent in descents:
        descent.step(0.5, 0.3 * descent.largest_ridge, 0.1)
    found, expected = (descent.factors() for descent in descents[::-1])
    np.testing.assert_allclose(found[0] @ found[1].T, expected[0] @ expected[1].T, rtol=0, atol=1e-9)
    other = descents[1].copy()
    other.restore(descents[1].state())
    other.step(0.5, 0.1, 0.1)
    assert descents[1].part is not None
    np.testing.assert_array_equal(descents[1].factors()[0], found[0])  # a copy goes on by itself


def test_a_checkpoint_goes_from_the_device_to_the_processor(tmp_path):
    observations, state = problem(noise=0.1), tmp_path / "state"
    options = {"method": "factored", "ridge": 0.2, "tol": 1e-3, "max_iter": 5, "checkpoint": state}

    def stop(seen):
        if seen.iteration == 3:
            raise RuntimeError("power failure")

    with pytest.raises(RuntimeError, match="power failure"):
        complete(observations, every=1, device="cuda", callback=stop, **options)
    resumed = complete(observations, resume=True, **options)
    expected = complete(observations, **{**options, "checkpoint": None})
    assert resumed.n_iter == expected.n_iter == 5
    np.testing.assert_allclose(resumed.to_dense(), expected.to_dense(), rtol=0, atol=1e-9)
