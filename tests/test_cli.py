"""The command: every subcommand from file to file, exit codes, one-line errors, and that no output is ever lost."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import fastrfm
import fastrfm.readers
from fastrfm.cli import COMMANDS, main
from fastrfm.devices import Device
from fastrfm.observations import Observations
from fastrfm.options import AUTOMATIC, CompletionOptions
from fastrfm.store import open_observations, read_result, write_observations, write_result

N_ROWS, N_COLS = 20, 15


def truth() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(N_ROWS, 2)) @ rng.normal(size=(2, N_COLS))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="fastrfm")


def assert_fails(outcome: Result, said: str, code: int = 1) -> None:
    """One line on standard error, none on standard output, the exit code."""
    assert outcome.exit_code == code, outcome.output
    assert said in outcome.stderr
    assert outcome.stdout == ""
    if code == 1:
        assert outcome.stderr.startswith("Error: ") and outcome.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def ratings(tmp_path_factory):
    """A csv of triples with names: rank 2, four in five entries."""
    path = tmp_path_factory.mktemp("data") / "ratings.csv"
    matrix, rng = truth(), np.random.default_rng(1)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["user", "film", "score"])
        for i in range(N_ROWS):
            for j in range(N_COLS):
                if i == j or rng.random() < 0.8:
                    table.writerow([f"u{i}", f"f{j}", repr(float(matrix[i, j]))])
    return path


@pytest.fixture(scope="module")
def result_file(ratings):
    path = ratings.parent / "result.h5"
    outcome = run("complete", ratings, "-o", path, "--quiet")
    assert outcome.exit_code == 0, outcome.output
    assert outcome.output == ""
    return path


# --- the group ----------------------------------------------------------------------------------------------------


def test_help_lists_every_command_with_its_own_words():
    outcome = run("--help")
    assert outcome.exit_code == 0
    for name, words in COMMANDS.items():
        assert words in outcome.output
        help_text = run(name, "--help")
        assert help_text.exit_code == 0 and words in help_text.output


def test_version():
    assert run("--version").output == f"fastrfm, version {fastrfm.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["complete", "--help"], ["evaluate", "--help"], ["plot", "--help"], ["report", "--help"]]
)
def test_help_loads_nothing_heavy(arguments):
    script = (
        "import sys, fastrfm.cli\n"
        f"try: fastrfm.cli.main({arguments!r})\n"
        "except SystemExit: pass\n"
        "print(sorted({'numba', 'numpy', 'scipy', 'h5py', 'matplotlib'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_module_runs_under_the_command_name():
    done = subprocess.run([sys.executable, "-m", "fastrfm", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: fastrfm ")


def test_wrong_usage():
    assert_fails(run("compleat"), "No such command", 2)
    assert_fails(run("complete"), "Missing argument", 2)
    assert_fails(run("info", "--colour", "x"), "No such option", 2)


@pytest.mark.parametrize("name", ["complete", "evaluate"])
def test_defaults_come_from_the_options(name):
    command = main.get_command(None, name)
    defaults = {parameter.name: parameter.default for parameter in command.params}
    wanted = {**vars(CompletionOptions()), **AUTOMATIC, "offsets": None}  # of a flag with two names: not given
    for option, default in wanted.items():
        assert defaults[option] == default, option


# --- convert and info ---------------------------------------------------------------------------------------------


def test_convert_writes_and_tells(ratings, tmp_path):
    outcome = run("convert", ratings, tmp_path / "a.h5")
    assert outcome.exit_code == 0, outcome.output
    observations = open_observations(tmp_path / "a.h5")
    assert f"{N_ROWS} rows x {N_COLS} columns" in outcome.stdout
    assert f"({observations.n_observed})" in outcome.stdout
    assert "triples, comma separated" in outcome.stdout and "line 1 is a header" in outcome.stdout
    assert "of rows and columns" in outcome.stdout
    rows, cols, values = observations.to_coo()
    i = np.array([int(name[1:]) for name in observations.row_names])[rows]
    j = np.array([int(name[1:]) for name in observations.col_names])[cols]
    np.testing.assert_array_equal(values, truth()[i, j])


def test_convert_options(tmp_path):
    (tmp_path / "a.csv").write_text("0,1,2\n3,4,5\n")
    assert run("convert", tmp_path / "a.csv", tmp_path / "i.h5", "--indexed").exit_code == 0
    assert open_observations(tmp_path / "i.h5").shape == (4, 5)
    assert run("convert", tmp_path / "a.csv", tmp_path / "d.h5", "--layout", "dense").exit_code == 0
    assert open_observations(tmp_path / "d.h5").shape == (2, 3)
    outcome = run("convert", tmp_path / "a.csv", tmp_path / "t.h5")
    assert open_observations(tmp_path / "t.h5").row_names.tolist() == ["0", "3"]
    assert "ask for the dense layout" in outcome.stdout


def test_convert_keeps_the_old_output_whatever_happens(ratings, tmp_path):
    output, bad = tmp_path / "a.h5", tmp_path / "bad.csv"
    output.write_bytes(b"old")
    assert_fails(run("convert", ratings, output), "exists already")
    for content, said in (
        (b"1,2,3\n1,3,x\n", "bad.csv, line 2: expected a number"),
        (b"1,2,3\n1,2,4\n", "bad.csv, lines 1 and 2 both give"),
        (b"1,2,3\n\xff,2,4\n", "bad.csv, line 2: byte 0xff is not UTF-8"),
        (b"", "bad.csv is empty"),
    ):
        bad.write_bytes(content)
        assert_fails(run("convert", bad, output, "--force"), said)
        assert output.read_bytes() == b"old"
    assert_fails(run("convert", tmp_path / "none.csv", output, "--force"), "no such file")
    assert_fails(run("convert", ratings, tmp_path / "no" / "a.h5"), "does not exist: make it first")
    assert_fails(run("convert", ratings, output, "--layout", "wide"), "Invalid value", 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "bad.csv"]
    assert run("convert", ratings, output, "--force").exit_code == 0
    assert open_observations(output).shape == (N_ROWS, N_COLS)


def test_info(ratings, result_file, tmp_path):
    write_observations(tmp_path / "a.h5", open_any(ratings), attributes={"source": "made up"})
    lines = run("info", tmp_path / "a.h5").stdout
    assert f"{N_ROWS} rows x {N_COLS} columns" in lines and "made up" in lines
    about = json.loads(run("info", tmp_path / "a.h5", "--json").stdout)
    plain = json.loads(run("info", ratings, "--json").stdout)
    assert about["kind"] == "observations" and plain["kind"] == "triples, comma separated"
    same = set(about) - {"kind", "n_bytes", "attributes"}
    assert {name: about[name] for name in same} == {name: plain[name] for name in same}
    of_result = json.loads(run("info", result_file, "--json").stdout)
    assert of_result["rank"] == 2 and of_result["stop_reason"] == "converged"
    assert "why it stopped" in run("info", result_file).stdout


def open_any(path: Path) -> Observations:
    return fastrfm.readers.read_observations(path)


def test_info_errors(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"not HDF5 at all")
    assert_fails(run("info", tmp_path / "a.h5"), "a.h5")
    assert_fails(run("info", tmp_path / "none.h5"), "no such file")
    assert_fails(run("info", tmp_path), "is a folder")
    assert_fails(run("info"), "give either a FILE or --devices", 2)
    assert_fails(run("info", tmp_path / "a.h5", "--devices"), "give either a FILE or --devices", 2)


def test_info_about_devices(monkeypatch):
    lines = run("info", "--devices").stdout.splitlines()
    assert [line.split(":")[0] for line in lines][-4:] == ["numba", "numba.cuda", "toolkit", "driver"]
    assert lines[0].startswith("cpu: ") and lines[0].endswith("can be used") and lines[1].startswith("cuda: ")
    about = json.loads(run("info", "--devices", "--json").stdout)
    assert [device["kind"] for device in about["devices"][:2]] == ["cpu", "cuda"]
    assert set(about["software"]) == {"numba", "cuda_target", "toolkit", "driver"}
    gpu = Device("cuda", "NVIDIA A100", None, "8.0", n_multiprocessors=108, memory_bytes=80 << 30, free_bytes=79 << 30)
    monkeypatch.setattr("fastrfm.devices.describe_devices", lambda: [gpu, Device("cuda", "old one", "it is too old")])
    first, second = run("info", "--devices").stdout.splitlines()[:2]
    assert first.endswith(
        "NVIDIA A100, compute capability 8.0, 108 multiprocessors, 80.0 GiB of memory, 79.0 GiB free: can be used"
    )
    assert second.endswith("old one: cannot be used, it is too old")


def test_a_device_that_is_missing_is_noticed_in_one_line(ratings, tmp_path, monkeypatch):
    monkeypatch.setattr("fastrfm.devices.why_not_cuda", lambda: "there is none")
    options = (ratings, "-o", tmp_path / "r.h5", "--rank", "2", "--ridge", "0", "--device")
    assert_fails(run("complete", *options, "cuda"), "there is none. Use device")
    assert not (tmp_path / "r.h5").exists()
    # In a process of its own: pytest takes warnings away from who prints them.
    script = (
        "import fastrfm.devices as d; d.why_not_cuda = lambda: 'there is none'; from fastrfm.cli import main; main()"
    )
    command = [sys.executable, "-c", script, "complete", *map(str, options), "auto"]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (outcome.returncode, outcome.stderr) == (0, "Warning: the processor does the work: there is none\n")


# --- complete -----------------------------------------------------------------------------------------------------


def test_complete_reports_what_it_found(ratings, tmp_path):
    outcome = run("complete", ratings, "-o", tmp_path / "r.h5")
    assert outcome.exit_code == 0, outcome.output
    result = read_result(tmp_path / "r.h5")
    report = dict(line.split(":", 1) for line in outcome.stdout.splitlines())
    report = {label: value.strip() for label, value in report.items()}
    assert report["rank found"] == "2" == str(result.rank)
    assert report["iterations"] == str(result.n_iter)
    assert report["fitted entries"] == str(result.n_observed)
    assert report["without observations"] == "0 rows, 0 columns"
    assert report["stopped"].startswith("converged")
    assert report["result"] == str(tmp_path / "r.h5")
    assert float(report["RMSE on fitted entries"]) == pytest.approx(result.masked_rmse, rel=1e-4)
    assert outcome.stderr == ""
    i = [int(name[1:]) for name in result.row_names]
    j = [int(name[1:]) for name in result.col_names]
    np.testing.assert_allclose(result.to_dense(), truth()[np.ix_(i, j)], atol=1e-5)


def test_complete_with_holdout_fits_the_kept_part_and_compares(ratings, tmp_path):
    outcome = run(
        "complete", ratings, "-o", tmp_path / "r.h5", "--holdout", "0.25", "--seed", "3", "--offsets", "--tol", "1e-3"
    )
    assert outcome.exit_code == 0, outcome.output
    kept, held_out = open_any(ratings).split(0.25, random_state=3)
    result = read_result(tmp_path / "r.h5")
    assert result.n_observed == kept.n_observed
    assert result.options["offsets"] is True and result.options["random_state"] == 3
    rows, cols, values = held_out.to_coo()
    error = np.sqrt(np.mean((result.predict(rows, cols) - values) ** 2))
    assert f"{error:.6g} ({values.size} entries)" in outcome.stdout
    assert "row-and-column means" in outcome.stdout and "without the held-out entries" in outcome.stdout


def test_complete_that_does_not_converge_writes_and_exits_3(ratings, tmp_path):
    outcome = run("complete", ratings, "-o", tmp_path / "r.h5", "--max-iter", 2)
    assert outcome.exit_code == 3
    assert "Not converged" in outcome.stderr and "not converged: 2 iterations" in outcome.stdout
    assert read_result(tmp_path / "r.h5").stop_reason == "max_iter"


def test_a_run_that_stalls_writes_says_what_to_do_and_exits_3(ratings, tmp_path, monkeypatch):
    complete = fastrfm.complete

    def stalls(*arguments, **options):
        return dataclasses.replace(complete(*arguments, **options), stop_reason="stalled")

    monkeypatch.setattr("fastrfm.solvers.completion.complete", stalls)
    outcome = run("complete", ratings, "-o", tmp_path / "r.h5", "--rank", "2")
    assert outcome.exit_code == 3, outcome.output
    assert "Not converged: give the right --rank" in outcome.stderr and "no matrix of the rank" in outcome.stdout
    assert read_result(tmp_path / "r.h5").stop_reason == "stalled"
    outcome = run("evaluate", ratings, "--repeats", 1, "--rank", "2")
    assert outcome.exit_code == 3 and "1 of 1 splits: give the right --rank" in outcome.stderr


def test_complete_goes_on_from_an_earlier_result(ratings, result_file, tmp_path):
    options = ("--method", "two-sided", "--rank", "2", "--tol", "1e-8")
    for name, start in (("cold.h5", ()), ("warm.h5", ("--start", result_file))):
        outcome = run("complete", ratings, "-o", tmp_path / name, *options, *start)
        assert outcome.exit_code == 0, outcome.output
    cold, warm = read_result(tmp_path / "cold.h5"), read_result(tmp_path / "warm.h5")
    assert warm.n_iter < cold.n_iter
    np.testing.assert_allclose(warm.to_dense(), cold.to_dense(), atol=1e-7)
    assert_fails(run("complete", ratings, "-o", tmp_path / "r.h5", "--start", tmp_path / "none.h5"), "no such file")
    assert_fails(
        run("complete", ratings, "-o", tmp_path / "r.h5", "--method", "dense", "--start", result_file), "two-sided"
    )
    assert not (tmp_path / "r.h5").exists()


@pytest.mark.parametrize(
    ("options", "said", "code"),
    [
        (["--ridge", "-1"], "ridge must be a finite number of at least 0", 2),
        (["--rank", "0"], "rank must be a whole number, at least 1", 2),
        (["--rank", "two"], "not a valid integer", 2),
        (["--agop-power", "0"], "agop_power must be", 2),
        (["--tol", "nan"], "tol must be", 2),
        (["--max-iter", "0"], "max_iter must be", 2),
        (["--method", "magic"], "Invalid value", 2),
        (["--smoothing", "sigma_next"], "needs a rank", 2),
        (["--holdout", "1"], "Invalid value", 2),
        (["--holdout", "0"], "Invalid value", 2),
        (["--holdout", "0.0001"], "hold-out share", 1),
        (["--device", "abacus"], "Invalid value", 2),
        (["--turbo"], "No such option", 2),
        (["--rank", "16"], "rank must be at most 15", 1),
        (["--threads", "100000"], "n_threads must be", 1),
        (["--threads", "0"], "n_threads must be", 1),
    ],
)
def test_complete_with_bad_options_writes_nothing(ratings, tmp_path, options, said, code):
    assert_fails(run("complete", ratings, "-o", tmp_path / "r.h5", *options), said, code)
    assert list(tmp_path.iterdir()) == []


def test_complete_with_bad_files(ratings, result_file, tmp_path):
    (tmp_path / "bad.h5").write_bytes(b"not HDF5 at all")
    output = tmp_path / "r.h5"
    assert_fails(run("complete", tmp_path / "none.h5", "-o", output), "no such file")
    assert_fails(run("complete", tmp_path / "bad.h5", "-o", output), "bad.h5")
    assert_fails(run("complete", result_file, "-o", output), "holds a result")
    assert not output.exists()
    output.write_bytes(b"old")
    assert_fails(run("complete", ratings, "-o", output), "exists already")
    assert output.read_bytes() == b"old"
    assert run("complete", ratings, "-o", output, "--force", "--quiet").exit_code == 0
    assert read_result(output).rank == 2


@pytest.mark.parametrize("arguments", [["complete", "-o"], ["evaluate", "--csv"]])
def test_an_output_that_cannot_be_written_is_told_before_the_work(ratings, tmp_path, monkeypatch, arguments):
    monkeypatch.setattr("fastrfm.readers.read_observations", lambda *_: 1 / 0)
    existing = tmp_path / "existing"
    existing.write_text("old")
    assert_fails(run(arguments[0], ratings, arguments[1], existing), "exists already")
    assert_fails(run(arguments[0], ratings, arguments[1], tmp_path / "no" / "a"), "does not exist: make it first")


def test_unexpected_errors_keep_their_traceback(ratings, tmp_path, monkeypatch):
    monkeypatch.setattr("fastrfm.solvers.completion.complete", lambda *_, **__: 1 / 0)
    outcome = run("complete", ratings, "-o", tmp_path / "r.h5")
    assert isinstance(outcome.exception, ZeroDivisionError)
    assert list(tmp_path.iterdir()) == []


# A real SIGINT, sent by the process to itself once the third iteration is over.
INTERRUPTED = """
import os, signal, sys
import fastrfm.solvers.completion as home
from fastrfm.cli import main

complete = home.complete

def interrupted(*args, callback, **options):
    def third(seen):
        callback(seen)
        if seen.iteration == 3:
            os.kill(os.getpid(), signal.SIGINT)
    return complete(*args, callback=third, **options)

home.complete = interrupted
main(sys.argv[1:])
"""


@pytest.mark.parametrize("old", [None, b"old"])
def test_ctrl_c_says_where_and_writes_nothing(ratings, tmp_path, old):
    output = tmp_path / "r.h5"
    if old is not None:
        output.write_bytes(old)
    arguments = ["complete", str(ratings), "-o", str(output), "--force"]
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, *arguments], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "Stopped by Ctrl-C after iteration 3: nothing was written\n"
    assert done.stdout == ""
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([] if old is None else [old])


def test_ctrl_c_names_the_checkpoint_that_is_left(ratings, tmp_path):
    state = tmp_path / "state.h5"
    arguments = ["complete", str(ratings), "-o", str(tmp_path / "r.h5"), "--checkpoint", str(state), "--every", "1"]
    arguments += ["--ridge", "3"]
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, *arguments], capture_output=True, text=True)
    assert done.returncode == 1
    left = f"no result was written, but the state of the run is in {state}: go on with --resume"
    assert done.stderr == f"Stopped by Ctrl-C after iteration 3: {left}\n"
    assert [path.name for path in tmp_path.iterdir()] == [state.name]
    again = run("complete", ratings, "-o", tmp_path / "r.h5", "--checkpoint", state, "--resume", "--ridge", 3)
    assert again.exit_code == 0, again.output


# --- predict ------------------------------------------------------------------------------------------------------


def pairs(folder: Path, content: str) -> Path:
    path = folder / "pairs.csv"
    path.write_text(content, encoding="utf-8")
    return path


def test_predict_by_name(result_file, tmp_path):
    path = pairs(tmp_path, 'user,film,note\nu3,f4,"a, b"\nu0,f0,\n')
    outcome = run("predict", result_file, path)
    assert outcome.exit_code == 0, outcome.output
    header, *rows = csv.reader(outcome.stdout.splitlines())
    assert header == ["user", "film", "note", "prediction"]
    assert [row[:3] for row in rows] == [["u3", "f4", "a, b"], ["u0", "f0", ""]]
    np.testing.assert_allclose([float(row[3]) for row in rows], [truth()[3, 4], truth()[0, 0]], atol=1e-5)
    assert "line 1 was taken as a header" in outcome.stderr


def test_predict_to_a_file_by_position(result_file, tmp_path):
    path = pairs(tmp_path, "0\t1\n19\t14\n")
    outcome = run("predict", result_file, path, "--by", "index", "-o", tmp_path / "out.csv")
    assert outcome.exit_code == 0 and outcome.output == ""
    wanted = read_result(result_file).predict([0, 19], [1, 14])
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.reader(file, delimiter="\t"))
    assert [row[:2] for row in rows] == [["0", "1"], ["19", "14"]]
    np.testing.assert_array_equal([float(row[2]) for row in rows], wanted)  # every digit is kept


def test_predict_without_names_takes_positions(result_file, tmp_path):
    from dataclasses import replace

    write_result(tmp_path / "r.h5", replace(read_result(result_file), row_names=None, col_names=None))
    outcome = run("predict", tmp_path / "r.h5", pairs(tmp_path, "row,column\n0,1\n"))
    assert outcome.exit_code == 0 and outcome.stdout.startswith("row,column,prediction\n0,1,")
    assert_fails(run("predict", tmp_path / "r.h5", pairs(tmp_path, "0,1\n"), "--by", "name"), "no row names")


@pytest.mark.parametrize(
    ("content", "by", "said"),
    [
        ("user,film\nu1,f1\nu77,f1\n", "auto", "pairs.csv, line 3: the result has no row named 'u77'"),
        ("u1,f1\n\nu1,F1\n", "name", "pairs.csv, line 3: the result has no column named 'F1'"),
        ("0,1\n", "name", "line 1: the result has no row named '0'"),
        ("nobody,nothing\n", "name", "no pair to predict"),
        ("0,15\n", "index", "line 1: column position 15 is outside 0…14"),
        ("0,1\n-1,1\n", "index", "line 2: row position -1 is outside 0…19"),
        ("0,1\nx,1\n", "index", "line 2: expected a zero-based row position, got 'x'"),
        ("0,1\n1.5,1\n", "index", "line 2: expected a zero-based row position, got '1.5'"),
        ("u1\nu2\n", "auto", "line 1: expected a row and a column"),
        ("u1,f1\nu1,f1,f2\n", "auto", "line 2: expected 2 columns"),
        ("", "auto", "pairs.csv is empty"),
    ],
)
def test_predict_errors_name_the_line_and_keep_the_output(result_file, tmp_path, content, by, said):
    path, output = pairs(tmp_path, content), tmp_path / "out.csv"
    output.write_bytes(b"old")
    outcome = run("predict", result_file, path, "--by", by, "-o", output, "--force")
    assert outcome.exit_code == 1 and outcome.stdout == ""
    assert said in outcome.stderr.splitlines()[-1]
    assert output.read_bytes() == b"old"


def test_predict_with_bad_files(ratings, result_file, tmp_path):
    path = pairs(tmp_path, "u1,f1\n")
    write_observations(tmp_path / "o.h5", open_any(ratings))
    assert_fails(run("predict", tmp_path / "o.h5", path), "holds no result")
    assert_fails(run("predict", tmp_path / "none.h5", path), "no such file")
    assert_fails(run("predict", result_file, tmp_path / "none.csv"), "no such file")
    path.write_bytes(b"u1,f\xe9\n")
    assert_fails(run("predict", result_file, path), "pairs.csv, line 1: byte 0xe9 is not UTF-8")
    assert_fails(run("predict", result_file, path, "-o", path), "exists already")


def test_predict_with_a_name_that_stands_twice(result_file, tmp_path):
    from dataclasses import replace

    result = read_result(result_file)
    write_result(tmp_path / "r.h5", replace(result, row_names=np.array(["u1"] * N_ROWS, dtype=object)))
    assert_fails(run("predict", tmp_path / "r.h5", pairs(tmp_path, "u1,f1\n")), "occur twice")


# --- evaluate -----------------------------------------------------------------------------------------------------


def test_evaluate_prints_and_writes_the_table(ratings, tmp_path):
    output = tmp_path / "table.csv"
    outcome = run("evaluate", ratings, "--repeats", 2, "--holdout", 0.2, "--seed", 5, "--csv", output)
    assert outcome.exit_code == 0, outcome.output
    with output.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["seed"] for row in rows] == ["5", "6"]
    from fastrfm.solvers.completion import complete
    from fastrfm.solvers.offsets import fit_offsets

    kept, held_out = open_any(ratings).split(0.2, random_state=6)
    i, j, values = held_out.to_coo()
    error = complete(kept, random_state=6).predict(i, j) - values
    of_means = fit_offsets(kept).at(i, j) - values
    assert float(rows[1]["rmse"]) == np.sqrt(np.mean(error**2))
    assert float(rows[1]["mae"]) == np.mean(abs(error))
    assert float(rows[1]["rmse_of_means"]) == np.sqrt(np.mean(of_means**2))
    assert float(rows[1]["mae_of_means"]) == np.mean(abs(of_means))
    table = outcome.stdout.splitlines()[-5:]
    assert [line.split()[0] for line in table] == ["split", "1", "2", "mean", "sd"]
    mean = np.mean([float(row["rmse_of_means"]) for row in rows])
    assert f"{mean:.4g}" in table[3].split()


def test_evaluate_errors(ratings, tmp_path):
    output = tmp_path / "table.csv"
    output.write_bytes(b"old")
    assert_fails(run("evaluate", ratings, "--csv", output), "exists already")
    assert_fails(run("evaluate", ratings, "--repeats", 0), "Invalid value", 2)
    assert_fails(run("evaluate", ratings, "--rank", 99), "rank must be at most 15")
    assert_fails(run("evaluate", tmp_path / "none.h5"), "no such file")
    outcome = run("evaluate", ratings, "--repeats", 1, "--max-iter", 1, "--csv", output, "--force")
    assert outcome.exit_code == 3 and "Not converged in 1 of 1 splits" in outcome.stderr
    assert output.read_text().startswith("split,seed,rmse")


def test_the_input_is_never_replaced(ratings, result_file, tmp_path):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("u0,f0\n")
    for source, arguments in (
        (ratings, ("convert", ratings, ratings)),
        (ratings, ("complete", ratings, "-o", ratings)),
        (ratings, ("evaluate", ratings, "--csv", ratings)),
        (result_file, ("predict", result_file, pairs, "-o", result_file)),
    ):
        before = source.read_bytes()
        assert_fails(run(*arguments, "--force"), "is the input itself")
        assert source.read_bytes() == before
