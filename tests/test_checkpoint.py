"""Checkpoints: an interrupted run goes on to the bits of an undisturbed one, and only of the same run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
from problems import low_rank_problem
from test_choice import without_gap

from fastrfm import atomic
from fastrfm.errors import CheckpointWarning, FileFormatError, InputError, NotConvergedWarning, WriteError
from fastrfm.observations import Observations
from fastrfm.results import CompletionResult
from fastrfm.solvers.checkpoint import Checkpoint, digest
from fastrfm.solvers.completion import complete
from fastrfm.solvers.descent import Descent
from fastrfm.store import open_observations, read_result, write_observations


class Killed(Exception):  # noqa: N818 (what happens to it, not what went wrong)
    """What stands for the end of a process."""


def problem(seed: int = 3) -> Observations:
    return low_rank_problem(40, 30, 3, oversampling=2.2, seed=seed).observations


def run(observations: Observations, options: dict, *, killed_at: int | None = None, **more) -> CompletionResult:
    def kill(seen):
        if seen.iteration == killed_at:
            raise Killed

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)
        return complete(observations, **options, callback=kill, **more)


def assert_same(found: CompletionResult, wanted: CompletionResult) -> None:
    for name in ("left", "right", "singular_values"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    for name in set(wanted.history) - {"seconds"}:
        np.testing.assert_array_equal(found.history[name], wanted.history[name])
    assert found.options == wanted.options and found.stop_reason == wanted.stop_reason
    assert np.all(np.diff(found.history["seconds"]) >= 0.0)


CASES = {
    "dense": (problem, {"method": "dense", "max_iter": 30, "agop_power": 0.4}),
    "dense with offsets": (problem, {"method": "dense", "max_iter": 30, "offsets": True, "ridge": 0.01}),
    "factored": (problem, {"method": "factored", "max_iter": 30, "rank": 3}),
    "factored, rank unknown": (problem, {"method": "factored", "max_iter": 30, "agop_power": 0.25, "ridge": 0.1}),
    "two-sided": (problem, {"method": "two-sided", "rank": 3}),
    "two-sided, rank unknown": (problem, {"method": "two-sided"}),
    "two-sided, many attempts": (without_gap, {"method": "two-sided", "max_iter": 60}),
    "two-sided, ridge": (problem, {"method": "two-sided", "ridge": 0.05, "agop_power": 0.25}),
    "auto": (without_gap, {"max_iter": 160}),
}


@pytest.mark.compiled_only
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("every", [2, 7])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, case, every):
    make, options = CASES[case]
    observations, path = make(), tmp_path / "state.h5"
    wanted = run(observations, options)
    for killed_at in (2, wanted.n_iter // 2, wanted.n_iter - 1):
        with pytest.raises(Killed):
            run(observations, options, killed_at=killed_at, checkpoint=path, every=every)
        assert path.exists() == (killed_at > every)
        kept = {"checkpoint": path, "every": every, "resume": True}
        if killed_at + 3 < wanted.n_iter and killed_at > every:  # and a second time, on the way
            with pytest.raises(Killed):
                run(observations, options, killed_at=killed_at + 3, **kept)
        assert_same(run(observations, options, **kept), wanted)
        path.unlink(missing_ok=True)


@pytest.mark.compiled_only
def test_a_warm_start_is_part_of_the_run(tmp_path):
    observations, path = problem(), tmp_path / "state.h5"
    start = run(observations, {"method": "two-sided", "rank": 3, "max_iter": 4})
    options = {"method": "two-sided", "rank": 3, "start": start}
    wanted = run(observations, options)
    with pytest.raises(Killed):
        run(observations, options, killed_at=5, checkpoint=path, every=1)
    assert_same(run(observations, options, checkpoint=path, resume=True), wanted)
    with pytest.raises(InputError, match=r"other options.*start"):
        run(observations, {**options, "start": None}, checkpoint=path, resume=True)


@pytest.mark.compiled_only
def test_another_thread_count_and_place_may_go_on(tmp_path):
    observations, path = problem(), tmp_path / "state.h5"
    write_observations(tmp_path / "a.h5", observations)
    options = {"method": "factored", "rank": 3, "max_iter": 20}
    wanted = run(observations, options)
    with pytest.raises(Killed):
        run(observations, {**options, "n_threads": 1}, killed_at=9, checkpoint=path, every=4)
    stored = open_observations(tmp_path / "a.h5", memory=5000)
    found = run(stored, options, checkpoint=path, resume=True)
    np.testing.assert_array_equal(found.left, wanted.left)


def interrupted(path: Path, **more) -> dict:
    options = {"method": "factored", "rank": 2, "max_iter": 6}
    with pytest.raises(Killed):
        run(problem(), options, killed_at=4, checkpoint=path, every=1, **more)
    return options


def test_what_differs_is_named(tmp_path):
    path = tmp_path / "state.h5"
    options = interrupted(path)
    for name, value, words in (
        ("rank", 3, "rank 2 instead of 3"),
        ("ridge", 0.5, "ridge 0.0 instead of 0.5"),
        ("random_state", 1, "random_state 0 instead of 1"),
        ("method", "dense", "method 'factored' instead of 'dense'"),
    ):
        with pytest.raises(InputError, match=words):
            run(problem(), {**options, name: value}, checkpoint=path, resume=True)
    other = problem().with_values(problem().values * 1.0000001)
    with pytest.raises(InputError, match=r"state.h5: is a checkpoint of other observations"):
        run(other, options, checkpoint=path, resume=True)


def test_a_checkpoint_is_not_lost_by_mistake(tmp_path):
    path = tmp_path / "state.h5"
    options = interrupted(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="there already: go on from it with resume"):
        run(problem(), options, checkpoint=path)
    assert path.read_bytes() == before


def test_resume_without_a_checkpoint_begins(tmp_path):
    options = {"method": "factored", "rank": 2, "max_iter": 6}
    found = run(problem(), options, checkpoint=tmp_path / "state.h5", every=5, resume=True)
    assert_same(found, run(problem(), options))
    assert (tmp_path / "state.h5").exists()


@pytest.mark.parametrize("every", [0, -1, 1.5, True])
def test_every_must_be_a_whole_number(tmp_path, every):
    with pytest.raises(InputError, match="every must be a whole number"):
        run(problem(), {"max_iter": 2}, checkpoint=tmp_path / "state.h5", every=every)


def test_other_files_are_no_checkpoints(tmp_path):
    options = {"method": "factored", "rank": 2, "max_iter": 6}
    write_observations(tmp_path / "data.h5", problem())
    (tmp_path / "text.h5").write_text("no")
    for name, words in (("data.h5", "is no checkpoint"), ("text.h5", "not an HDF5 file")):
        with pytest.raises(FileFormatError, match=words):
            run(problem(), options, checkpoint=tmp_path / name, resume=True)
    path = tmp_path / "state.h5"
    interrupted(path)
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 99
    with pytest.raises(FileFormatError, match="another version"):
        run(problem(), options, checkpoint=path, resume=True)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(FileFormatError, match=r"state\.h5"):
        run(problem(), options, checkpoint=path, resume=True)


def test_a_folder_that_is_not_there_is_found_before_the_run(tmp_path):
    with pytest.raises(WriteError, match="does not exist"):
        run(problem(), {"max_iter": 2}, checkpoint=tmp_path / "no" / "state.h5")


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(tmp_path, monkeypatch):
    path, options = tmp_path / "state.h5", {"method": "factored", "rank": 2, "max_iter": 6}

    def full(*_):
        raise OSError(28, "No space left on device")

    interrupted(path)
    before = path.read_bytes()
    monkeypatch.setattr(atomic, "_flush", full)
    with pytest.warns(CheckpointWarning, match="no checkpoint was written after iteration .*No space left on device"):
        found = run(problem(), options, checkpoint=path, every=1, resume=True)
    assert_same(found, run(problem(), options))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_the_digest_sees_everything_and_nothing_else(tmp_path):
    observations = problem()
    write_observations(tmp_path / "a.h5", observations)
    assert digest(open_observations(tmp_path / "a.h5", memory=3000)) == digest(observations)
    other = observations.values.copy()
    other[[0, 1]] = other[[1, 0]]
    changed = [
        observations.with_values(other),
        observations.with_values(observations.values.astype(np.float32)),
        observations.transposed(),
        Observations.from_coo(*observations.to_coo(), (41, 30)),
    ]
    assert len({digest(each) for each in [observations, *changed]}) == 5


# --- the command, killed ------------------------------------------------------------------------------------------


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "fastrfm", "complete", *map(str, arguments)]


@pytest.mark.compiled_only
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_command_is_resumed(tmp_path, number):
    data, state = tmp_path / "data.h5", tmp_path / "state.h5"
    truth = low_rank_problem(300, 200, 3, oversampling=2.5, seed=0)
    write_observations(data, truth.observations)
    options = ["--method", "dense", "--max-iter", 120, "--tol", 1e-15, "--quiet"]
    kept = ["--checkpoint", state, "--every", 3]
    subprocess.run(command(data, "-o", tmp_path / "whole.h5", *options), check=False, capture_output=True, timeout=120)
    killed = subprocess.Popen(command(data, "-o", tmp_path / "killed.h5", *options, *kept), stderr=subprocess.PIPE)
    for _ in range(6000):
        if state.exists() or killed.poll() is not None:
            break
        time.sleep(0.01)
    os.kill(killed.pid, number)
    killed.communicate(timeout=60)
    assert state.exists() and not (tmp_path / "killed.h5").exists()
    again = subprocess.run(
        command(data, "-o", tmp_path / "killed.h5", *options, *kept, "--resume"),
        check=False, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert again.returncode == 3, again.stderr
    found, wanted = read_result(tmp_path / "killed.h5"), read_result(tmp_path / "whole.h5")
    np.testing.assert_array_equal(found.left, wanted.left)
    np.testing.assert_array_equal(found.history["change"], wanted.history["change"])
    assert not state.exists()


# --- searches of options ----------------------------------------------------------------------------------------------


def noisy() -> Observations:
    rng = np.random.default_rng(5)
    matrix = rng.standard_normal((70, 2)) @ rng.standard_normal((2, 40)) + rng.standard_normal((70, 1))
    matrix += 0.4 * rng.standard_normal(matrix.shape)
    return Observations.from_dense(np.where(rng.random(matrix.shape) < 0.5, matrix, np.nan))


class Counted:
    """Iterations of searches and refits, and an end after so many states that were written."""

    def __init__(self, monkeypatch) -> None:
        self.n_steps = self.n_written = 0
        self.most = -1
        step, write = Descent.step, Checkpoint.write

        def counted_step(descent, *args):
            self.n_steps += 1
            step(descent, *args)

        def counted_write(keeper, *args):
            write(keeper, *args)
            self.n_written += 1
            if self.n_written == self.most:
                raise Killed

        monkeypatch.setattr(Descent, "step", counted_step)
        monkeypatch.setattr(Checkpoint, "write", counted_write)

    def __call__(self, observations: Observations, options: dict, **more) -> CompletionResult:
        self.n_steps = self.n_written = 0
        return complete(observations, **options, **more)


SEARCHES = {
    "everything": {**dict.fromkeys(("ridge", "agop_power", "offsets", "implicit"), "auto")},
    "ridge alone": {"ridge": "auto", "agop_power": 0.375, "rank": 4},
    "outliers": {"ridge": "auto", "agop_power": 0.25, "huber": 1.345},
}


@pytest.mark.compiled_only
@pytest.mark.parametrize("name", SEARCHES)
def test_a_killed_search_goes_on_to_the_same_choice(monkeypatch, tmp_path, name):
    observations, options, counted, path = noisy(), SEARCHES[name], Counted(monkeypatch), tmp_path / "state.h5"
    whole = counted(observations, options)
    n_whole = counted.n_steps
    counted(observations, options, checkpoint=tmp_path / "whole.h5", every=9)
    n_states = counted.n_written
    assert n_states > 6 and counted.n_steps == n_whole
    for most in (n_states // 2,) if name == "outliers" else (1, 2, 5, n_states // 2, n_states - 2):
        counted.most = most
        with pytest.raises(Killed):
            counted(observations, options, checkpoint=path, every=9)
        n_before, counted.most = counted.n_steps, -1
        found = counted(observations, options, checkpoint=path, every=9, resume=True)
        assert counted.n_steps < n_whole - n_before + 12  # nothing but what came after the last state is done again
        assert_same(found, whole)
        assert_same_selection(found.selection, whole.selection)
        path.unlink()


@pytest.mark.compiled_only
def test_a_killed_refit_keeps_the_method_that_was_chosen(monkeypatch, tmp_path):
    monkeypatch.setattr("fastrfm.solvers.selection._DENSE_SIZE", 1000)  # what "auto" takes by itself is another one
    observations, options, counted, path = noisy(), SEARCHES["ridge alone"], Counted(monkeypatch), tmp_path / "state.h5"
    options = {**options, "rank": None, "agop_power": 0.5}
    whole = counted(observations, options, checkpoint=tmp_path / "whole.h5", every=9)
    assert whole.options["method"] == "factored" and whole.stop_reason == "converged"  # at a limit
    counted.most = counted.n_written
    with pytest.raises(Killed):
        counted(observations, options, checkpoint=path, every=9)
    counted.most = -1
    assert_same(counted(observations, options, checkpoint=path, every=9, resume=True), whole)
    with pytest.raises(InputError, match="bounds"):
        counted(observations, options, checkpoint=path, every=9, resume=True, bounds=(0.0, 1.0))


@pytest.mark.compiled_only
def test_a_search_that_is_killed_again_and_again_ends(monkeypatch, tmp_path):
    observations, options, counted, path = noisy(), SEARCHES["everything"], Counted(monkeypatch), tmp_path / "state.h5"
    whole, counted.most, n_runs = counted(observations, options), 2, 0
    n_whole, n_all, found = counted.n_steps, 0, None
    while found is None:
        n_runs += 1
        with contextlib.suppress(Killed):
            found = counted(observations, options, checkpoint=path, every=20, resume=True)
        n_all += counted.n_steps
    assert n_runs > 3 and n_all < 1.5 * n_whole
    assert_same(found, whole)
    assert_same_selection(found.selection, whole.selection)
    assert np.all(np.diff(found.selection.fits["seconds"]) > 0.0)


def assert_same_selection(found, wanted) -> None:
    assert found.chosen == wanted.chosen and set(found.fits) == set(wanted.fits)
    for name in set(wanted.fits) - {"seconds"}:
        np.testing.assert_array_equal(found.fits[name], wanted.fits[name])
    np.testing.assert_array_equal(found.predicted, wanted.predicted)
