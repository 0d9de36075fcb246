"""The command on files larger than the memory allowed, and on runs that were cut short."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from problems import low_rank_problem
from test_cli import assert_fails, run

from fastrfm.observations import Observations
from fastrfm.store import open_observations, read_result, write_observations
from fastrfm.stored import StoredObservations

LITTLE = "20000"  # bytes: less than the observations take, four times over


@pytest.fixture
def data(tmp_path: Path) -> Path:
    observations = low_rank_problem(60, 40, 2, oversampling=4.0, seed=1).observations
    write_observations(tmp_path / "data.h5", observations)
    assert isinstance(open_observations(tmp_path / "data.h5", memory=int(LITTLE)), StoredObservations)
    return tmp_path / "data.h5"


@pytest.mark.compiled_only
def test_complete_from_the_file_gives_the_same_bits(data):
    for name, more in (("kept.h5", ()), ("streamed.h5", ("--memory", LITTLE))):
        plain = ("--offsets", "--max-iter", 30, "--ridge", 0)
        outcome = run("complete", data, "-o", data.parent / name, *plain, *more)
        assert outcome.exit_code in (0, 3), outcome.output
    kept, streamed = (read_result(data.parent / name) for name in ("kept.h5", "streamed.h5"))
    np.testing.assert_array_equal(streamed.left, kept.left)
    np.testing.assert_array_equal(streamed.offsets.rows, kept.offsets.rows)


@pytest.mark.compiled_only
def test_choosing_from_the_file_gives_the_same_bits(tmp_path):
    problem = low_rank_problem(90, 40, 2, oversampling=6.0, seed=1)
    noise = np.random.RandomState(2).standard_normal(problem.observations.n_observed)
    noisy = problem.observations.with_values(problem.observations.values + 0.1 * noise)
    data = tmp_path / "data.h5"
    write_observations(data, noisy)
    for name, more in (("kept.h5", ()), ("streamed.h5", ("--memory", LITTLE))):
        outcome = run("complete", data, "-o", data.parent / name, "--implicit", 0, *more)
        assert outcome.exit_code == 0, outcome.output
    assert isinstance(open_observations(data, memory=int(LITTLE)), StoredObservations)
    kept, streamed = (read_result(data.parent / name) for name in ("kept.h5", "streamed.h5"))
    np.testing.assert_array_equal(streamed.left, kept.left)
    for name in ("ridge", "rmse", "rank"):
        np.testing.assert_array_equal(streamed.selection.fits[name], kept.selection.fits[name])
    np.testing.assert_array_equal(streamed.selection.predicted, kept.selection.predicted)


@pytest.mark.compiled_only
def test_holding_out_and_evaluating_from_the_file(data):
    memory = ("--memory", 30_000, "--ridge", 0.1, "--rank", 2)
    outcome = run("complete", data, "-o", data.parent / "result.h5", "--holdout", 0.2, *memory)
    assert outcome.exit_code == 0, outcome.output
    assert "RMSE on held-out entries" in outcome.stdout
    outcome = run("evaluate", data, "--repeats", 2, "--holdout", 0.2, *memory)
    assert outcome.exit_code == 0, outcome.output


@pytest.mark.parametrize("memory", ["much", "-5", "0", "12Q"])
def test_memory_must_be_an_amount(data, memory):
    outcome = run("complete", data, "-o", data.parent / "result.h5", "--memory", memory)
    assert_fails(outcome, "memory must be a number of bytes such as 512M or 2G", 2)


@pytest.mark.compiled_only
def test_a_checkpoint_goes_when_the_result_is_there(data):
    state = data.parent / "state.h5"
    outcome = run("complete", data, "-o", data.parent / "result.h5", "--checkpoint", state, "--every", 1)
    assert outcome.exit_code == 0, outcome.output
    assert not state.exists()


def test_resume_without_checkpoint_is_wrong_usage(data):
    outcome = run("complete", data, "-o", data.parent / "result.h5", "--resume")
    assert_fails(outcome, "--resume needs --checkpoint", 2)


def test_a_checkpoint_that_is_the_input_is_refused(data):
    before = data.read_bytes()
    outcome = run("complete", data, "-o", data.parent / "result.h5", "--checkpoint", data)
    assert_fails(outcome, "is the input itself")
    assert data.read_bytes() == before


def test_other_options_are_refused_by_name(data, monkeypatch):
    state, result = data.parent / "state.h5", data.parent / "result.h5"
    monkeypatch.setattr("fastrfm.store.write_result", lambda *_, **__: (_ for _ in ()).throw(MemoryError("stop")))
    options = ("--method", "factored", "--rank", 2, "--max-iter", 5, "--checkpoint", state, "--every", 2)
    options += ("--ridge", 0)
    assert run("complete", data, "-o", result, *options).exit_code == 1
    monkeypatch.undo()
    assert state.exists()
    again = run("complete", data, "-o", result, *options, "--resume", "--ridge", 0.5)
    assert_fails(again, "ridge 0.0 instead of 0.5")
    assert_fails(run("complete", data, "-o", result, *options), "there already")
    assert run("complete", data, "-o", result, *options, "--resume").exit_code == 3
    assert result.exists() and not state.exists()


def test_stored_observations_are_written_as_they_are(data):
    stored = open_observations(data, memory=int(LITTLE))
    write_observations(data.parent / "copy.h5", stored)
    copy, wanted = open_observations(data.parent / "copy.h5"), open_observations(data)
    assert isinstance(copy, Observations) and isinstance(wanted, Observations)
    for name in ("indptr", "indices", "values"):
        np.testing.assert_array_equal(getattr(copy, name), getattr(wanted, name))
