"""The batch script: one broken input never stops the others, and a batch that was killed goes on where it was."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
import time
from multiprocessing import connection
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from samples import change, set_attr

from fastrfm import Observations, complete
from fastrfm._interrupt import check
from fastrfm.store import open_observations, read_result, write_observations

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
HEADER = "input,output,status,shape,n_observed,method,rank,iterations,masked_rmse,holdout_rmse,seconds,message"
ENDLESS = ("--method", "dense", "--max-iter", 10**7)  # on noise, that is
LIMIT = 300.0  # seconds: kernels may have to be compiled first


def matrix(seed: int, shape: tuple[int, int] = (12, 9), share: float = 0.8) -> np.ndarray:
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(shape[0], 2)) @ rng.normal(size=(2, shape[1]))
    dense[rng.random(shape) > share] = np.nan
    return dense


def noise() -> np.ndarray:
    return np.where(np.isnan(matrix(0, (40, 40), 0.5)), np.nan, np.random.default_rng(0).normal(size=(40, 40)))


def save(path: Path, dense: np.ndarray) -> Path:
    write_observations(path, Observations.from_dense(dense))
    return path


def start(folder: Path, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, str(SCRIPTS / "complete_many.py"), *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def run(folder: Path, *arguments: object) -> tuple[int, str, str]:
    """Return exit code, standard output and standard error of a batch."""
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=LIMIT)
    return process.returncode, out, err


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        lines = csv.DictReader(file)
        rows = list(lines)
        assert lines.fieldnames == HEADER.split(",")
    return rows


def await_that(condition) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


def workers_of(pid: int) -> list[int]:
    """Return the worker processes of a batch: its children, but for multiprocessing's tracker."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"spawn_main" in stat.with_name("cmdline").read_bytes():
                found.append(int(stat.parent.name))
        except OSError:  # gone meanwhile
            continue
    return found


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def assert_same_result(got: Path, want: Path) -> None:
    """Bit for bit, but for the times."""
    one, other = read_result(got), read_result(want)
    for name in ("left", "right", "singular_values"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.options == other.options
    for name in set(one.history) - {"seconds"}:
        np.testing.assert_array_equal(one.history[name], other.history[name])


# --- what a batch does --------------------------------------------------------------------------------------------


def test_broken_inputs_do_not_stop_the_others(tmp_path):
    for name, seed in (("a", 0), ("z", 1)):
        save(tmp_path / f"{name}.h5", matrix(seed))
    whole = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.h5").write_text("1,2,3\n")
    with h5py.File(tmp_path / "nan.h5", "w") as file:
        file["observations"] = np.full((3, 3), np.nan)
    with h5py.File(tmp_path / "words.h5", "w") as file:
        file["observations"] = [["a", "b"], ["c", "d"]]
    code, out, err = run(tmp_path, ".", "none.h5", "-o", "out", "--workers", 2)
    assert code == 1
    reasons = {
        "cut.h5": "truncated",
        "nan.h5": "every entry is missing",
        "text.h5": "not an HDF5 file",
        "words.h5": "must hold real numbers",
        "none.h5": "no such file",
    }
    rows = table(tmp_path / "out" / "summary.csv")
    assert [row["input"] for row in rows] == ["a.h5", "cut.h5", "nan.h5", "text.h5", "words.h5", "z.h5", "none.h5"]
    *progress, head, one, two, three, four, five = err.splitlines()
    assert len(progress) == 7 and head == "5 of 7 inputs failed:"
    listed = "\n".join((one, two, three, four, five))
    for row in rows:
        if row["input"] not in reasons:
            continue
        assert row["status"] == "failed" and reasons[row["input"]] in row["message"]
        assert f"  {row['input']}: {row['message']}" in listed
        assert not any(row[name] for name in HEADER.split(",")[3:-1])
    assert "2 done" in out and "5 failed" in out
    for name in ("a", "z"):
        row = next(row for row in rows if row["input"] == f"{name}.h5")
        result = read_result(tmp_path / row["output"])
        alone = complete(open_observations(tmp_path / f"{name}.h5"))
        np.testing.assert_array_equal(result.left, alone.left)
        assert (row["status"], row["shape"], row["message"]) == ("done", "12x9", "")
        assert int(row["n_observed"]) == alone.n_observed and row["method"] == alone.options["method"]
        assert (int(row["rank"]), int(row["iterations"])) == (alone.rank, alone.n_iter)
        assert float(row["masked_rmse"]) == alone.masked_rmse and float(row["seconds"]) == result.seconds
        assert result.options["requested_method"] == "auto" and row["holdout_rmse"] == ""
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.h5", "z.h5", "summary.csv"}


def test_datasets_in_one_file_with_a_holdout(tmp_path):
    with h5py.File(tmp_path / "many.h5", "w") as file:
        file["runs/1"], file["runs/2"] = matrix(1), matrix(2)
        file["runs/cube"], file["mask"] = np.ones((2, 2, 2)), np.ones((2, 2), bool)
    with h5py.File(tmp_path / "many.h5", "a") as file:
        want = Observations.from_dense(matrix(3))
        group = file.create_group("sparse")
        group.attrs.update({"encoding-type": "csr_matrix", "shape": want.shape})
        group.update({"data": want.values, "indices": want.indices, "indptr": want.indptr})
    options = ("--holdout", 0.1, "--seed", 3, "--rank", 2)
    code, out, err = run(tmp_path, "many.h5::*", "many.h5::runs/1", "-o", "out", "--summary", "t.csv", *options)
    assert (code, out) == (0, "3 done; summary: t.csv\n"), err
    assert re.match(r"\[1/3\] done: many\.h5::/runs/1: .*, rank 2, .* held-out RMSE ", err)
    rows = {row["input"]: row for row in table(tmp_path / "t.csv")}
    assert list(rows) == ["many.h5::/runs/1", "many.h5::/runs/2", "many.h5::/sparse"]
    assert rows["many.h5::/runs/2"]["output"] == "out/many--runs--2.h5"
    kept, held_out = Observations.from_dense(matrix(3)).split(0.1, random_state=3)
    alone = complete(kept, 2, random_state=3)
    row = rows["many.h5::/sparse"]
    i, j, values = held_out.to_coo()
    assert float(row["holdout_rmse"]) == np.sqrt(np.mean((alone.predict(i, j) - values) ** 2))
    assert int(row["n_observed"]) == kept.n_observed
    np.testing.assert_array_equal(read_result(tmp_path / row["output"]).left, alone.left)


def test_resuming_compares_the_options(tmp_path):
    save(tmp_path / "a.h5", matrix(0))
    output = tmp_path / "out" / "a.h5"
    code, _, err = run(tmp_path, "a.h5", "-o", "out", "--max-iter", 2, "--quiet")
    assert (code, err) == (3, "")
    (row,) = table(tmp_path / "out" / "summary.csv")
    assert row["status"] == "not converged" and "raise --max-iter" in row["message"]
    before = output.read_bytes()
    # The same options, but for the threads: skipped, and still not converged.
    assert run(tmp_path, "a.h5", "-o", "out", "--max-iter", 2, "--resume", "--threads", 1)[0] == 3
    (again,) = table(tmp_path / "out" / "summary.csv")
    told = "done before; not converged: raise --max-iter or --tol"
    assert again == {**row, "status": "skipped", "message": told}
    code, _, err = run(tmp_path, "a.h5", "-o", "out", "--resume", "--quiet", "--ridge", 1)
    assert code == 1
    for said in ("out/a.h5 was made with other options", "ridge is auto there, 1.0 is asked", "max_iter is 2 there"):
        assert said in err
    assert "method" not in err and output.read_bytes() == before
    assert run(tmp_path, "a.h5", "-o", "out", "--resume", "--force")[0] == 0
    assert read_result(output).stop_reason == "converged"


def test_resuming_looks_at_the_input_and_the_result(tmp_path):
    inputs = [save(tmp_path / f"{name}.h5", matrix(0)) for name in ("cut", "new", "old", "same")]
    assert run(tmp_path, *inputs, "-o", "out")[0] == 0
    out = {name: tmp_path / "out" / f"{name}.h5" for name in ("cut", "new", "old", "same")}
    out["cut"].write_bytes(out["cut"].read_bytes()[:2000])
    os.utime(inputs[1], ns=(0, 0))  # somebody changed it
    change(out["old"], set_attr("result/options", "input", "elsewhere/old.h5"))
    code, _, err = run(tmp_path, *inputs, "-o", "out", "--resume", "--quiet")
    assert code == 1 and "input is elsewhere/old.h5 there" in err
    assert [row["status"] for row in table(tmp_path / "out" / "summary.csv")] == ["done", "done", "failed", "skipped"]
    # A file of another kind in place of a result is not taken for a damaged one.
    out["same"].write_bytes(inputs[3].read_bytes())
    code, _, err = run(tmp_path, "same.h5", "-o", "out", "--resume", "--quiet")
    assert code == 1 and "out/same.h5: holds no result: use --force" in err
    assert out["same"].read_bytes() == inputs[3].read_bytes()


# --- killed and stopped -------------------------------------------------------------------------------------------


@pytest.mark.compiled_only
def test_a_batch_that_was_killed_goes_on(tmp_path):
    sizes = [(14, 11)] * 3 + [(60, 50)] * 3  # the later ones take longer
    inputs = [save(tmp_path / f"{k}.h5", matrix(k, size, 0.5 + 2 / min(size))) for k, size in enumerate(sizes)]
    assert run(tmp_path, *inputs, "-o", "undisturbed", "--quiet")[0] == 0
    process = start(tmp_path, *inputs, "-o", "out", "--workers", 1)
    await_that(lambda: (tmp_path / "out" / "0.h5").exists())
    workers = workers_of(process.pid)
    process.kill()
    process.communicate()
    assert len(workers) == 1
    await_that(lambda: not any(map(is_running, workers)))  # they notice that their parent is gone
    table(tmp_path / "out" / "summary.csv")
    there = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("[0-9].h5")}
    assert 0 < len(there) < len(sizes)
    code, _, err = run(tmp_path, *inputs, "-o", "out", "--workers", 2, "--resume")
    assert code == 0, err
    rows = table(tmp_path / "out" / "summary.csv")
    statuses = {f"{k}.h5": "skipped" if f"{k}.h5" in there else "done" for k in range(6)}
    assert {Path(row["output"]).name: row["status"] for row in rows} == statuses
    for name, changed in there.items():
        assert (tmp_path / "out" / name).stat().st_mtime_ns == changed
    for path in (tmp_path / "undisturbed").glob("*.h5"):
        change(path, set_attr("result/options", "n_threads", 1))
        change(tmp_path / "out" / path.name, set_attr("result/options", "n_threads", 1))
        assert_same_result(tmp_path / "out" / path.name, path)


def test_a_worker_that_is_killed_fails_its_input_alone(tmp_path):
    save(tmp_path / "noise.h5", noise())
    save(tmp_path / "good.h5", matrix(0, share=1.0))
    process = start(tmp_path, "noise.h5", "good.h5", "-o", "out", *ENDLESS)
    await_that(lambda: workers_of(process.pid))
    os.kill(workers_of(process.pid)[0], signal.SIGKILL)
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 1
    killed, good = table(tmp_path / "out" / "summary.csv")
    assert "SIGKILL: killed by hand, or memory ran out" in killed["message"] and killed["message"] in err
    assert (killed["status"], good["status"]) == ("failed", "done")


def stop_in_the_middle(folder: Path, number: int) -> tuple[int, str]:
    """Stop a batch, as a terminal does, that has one input done and is at work; return exit code and standard error."""
    save(folder / "noise.h5", noise())
    save(folder / "good.h5", matrix(0, share=1.0))
    process = start(folder, "good.h5", "noise.h5", "-o", "out", "--quiet", *ENDLESS)
    summary = folder / "out" / "summary.csv"
    await_that(lambda: summary.exists() and len(table(summary)) == 1)
    workers = workers_of(process.pid)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=LIMIT)
    assert len(workers) == 1
    if number == signal.SIGKILL:
        await_that(lambda: not is_running(workers[0]))  # it notices that its parent is gone
    assert not is_running(workers[0])
    assert {path.name for path in summary.parent.iterdir()} == {"good.h5", "summary.csv"}
    assert [row["status"] for row in table(summary)] == ["done"]
    return process.returncode, err


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_stopping_keeps_what_is_finished_and_leaves_nothing_behind(tmp_path, number, name):
    code, err = stop_in_the_middle(tmp_path, number)
    assert code == 1
    assert err == f"Stopped by {name}: 1 of 2 inputs finished, out/summary.csv lists them; go on with --resume\n"


def test_a_killed_batch_leaves_no_worker_behind(tmp_path):
    assert stop_in_the_middle(tmp_path, signal.SIGKILL) == (-signal.SIGKILL, "")


def wait_for_strikes(path: Path) -> int:
    """What a worker does in the next test: note each KeyboardInterrupt, or answer with its process group at once."""
    if path.exists():
        return os.getpgrp() - os.getpid()
    try:
        path.write_text("begun\n")
        await_that(lambda: Lost() and check())
    except KeyboardInterrupt:
        with path.open("a") as file:
            file.write("struck\n")
        raise
    return 1


class Lost:
    """An object whose destructor runs long: what a signal's handler raises there is printed and lost."""

    def __del__(self) -> None:
        time.sleep(0.01)


@pytest.fixture
def workers_module(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import batch_workers

    return batch_workers


def test_a_worker_is_struck_once_and_by_its_parent_alone(tmp_path, workers_module, capfd):
    with (
        workers_module.Stop() as stop,
        workers_module.Workers(wait_for_strikes, 1, when_lost=lambda _job, reason: reason, stop=stop) as workers,
    ):
        assert list(workers.answers([SCRIPTS, SCRIPTS])) == [(0, 0), (1, 0)]  # out of the terminal's group
        workers._give(0, tmp_path / "notes")
        await_that(lambda: (tmp_path / "notes").exists() and (tmp_path / "notes").read_text() == "begun\n")
    assert (tmp_path / "notes").read_text() == "begun\nstruck\n"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_no_stop_is_lost_in_a_destructor(workers_module, number):
    before = signal.getsignal(number)

    class Dying:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)
            time.sleep(0.01)

    with workers_module.Stop() as stop:
        stop.check()
        assert connection.wait([stop.fileno()], timeout=0.0) == []
        Dying()
        Dying()
        assert connection.wait([stop.fileno()]) == [stop.fileno()]
        with pytest.raises(KeyboardInterrupt, match=signal.Signals(number).name):
            stop.check()
    assert signal.getsignal(number) is before


# --- refused before the work --------------------------------------------------------------------------------------


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Return a function that runs the script's command in this process, in a folder with some inputs."""
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.chdir(tmp_path)
    for folder in ("one", "two", "empty", "out"):
        (tmp_path / folder).mkdir()
    for path in ("one/a.h5", "two/a.h5", "one/b.h5"):
        save(tmp_path / path, matrix(0))
    import complete_many

    monkeypatch.setattr(complete_many, "run_batch", lambda *_: 7)

    def call(*arguments: object) -> tuple[int, str]:
        outcome = CliRunner().invoke(complete_many.main, [str(argument) for argument in arguments])
        assert outcome.exit_code == 7 or outcome.stdout == ""
        return outcome.exit_code, outcome.stderr

    return call


def test_outputs_that_meet_are_refused(script):
    code, err = script("one", "two", "-o", "out")
    assert code == 1 and "one/a.h5 and two/a.h5 would both be written to out/a.h5: rename one" in err
    assert script("one/a.h5", "one", "one/*.h5", "-o", "out") == (7, "")  # the same input twice is no clash
    code, err = script("one", "-o", "one", "--force")
    assert code == 1 and "one/a.h5: is the input itself" in err
    code, err = script("one", "-o", "out", "--summary", "out/a.h5")
    assert code == 1 and "out/a.h5: is the result of one/a.h5: give the summary another name" in err
    code, err = script("one", "-o", "out", "--summary", "one/a.h5", "--force")
    assert code == 1 and "one/a.h5: is the input itself" in err


def test_what_is_there_is_kept(script):
    Path("out/a.h5").write_text("old")
    code, err = script("one", "-o", "out")
    assert code == 1 and "1 of 2 results exist already, the first is out/a.h5: use --resume" in err
    assert script("one", "-o", "out", "--resume")[0] == script("one", "-o", "out", "--force")[0] == 7
    Path("out/summary.csv").write_text("mine\n")
    code, err = script("two", "-o", "out", "--resume")
    assert code == 1 and "out/summary.csv: exists and is no summary of a batch" in err
    Path("out/summary.csv").write_text(f"{HEADER}\n")
    assert script("two", "-o", "out", "--resume")[0] == 7
    assert Path("out/a.h5").read_text() == "old"


def test_a_folder_that_cannot_be_written_is_told_before_the_work(script, monkeypatch):
    Path("file").write_text("")
    for outdir, said in (("file", "file: the folder cannot be made"), ("file/x", "file/x: the folder cannot be made")):
        code, err = script("one", "-o", outdir)
        assert code == 1 and said in err
    # The tests may run as root, who may do everything.
    monkeypatch.setattr(os, "access", lambda _path, mode: not mode & os.W_OK)
    code, err = script("one", "-o", "out")
    assert code == 1 and "no permission to write in the folder" in err


def test_wrong_usage(script):
    for arguments, said in (
        (["*.h5", "-o", "out"], "*.h5: no file matches"),
        (["empty", "-o", "out"], "empty: the folder holds no .h5 file"),
        (["emp*", "-o", "out"], "emp*: only folders without .h5 files"),
        (["one/a.h5::", "-o", "out"], "a dataset's name, or *, must follow '::'"),
        (["one", "-o", "out", "--workers", 0], "--workers"),
        (["one", "-o", "out", "--ridge", -1], "ridge must be a finite number"),
        (["one"], "Missing option '-o'"),
        ([], "Missing argument 'INPUT...'"),
    ):
        code, err = script(*arguments)
        assert code == 2 and said in err, err
