"""The command's large outputs: fill, top, complete --write-dense, and predict block by block."""

from __future__ import annotations

import csv
import gzip
import os
import signal
import subprocess
import sys

import h5py
import numpy as np
import pytest
from test_cli import assert_fails, run
from test_outputs import make_result, naive_top, small_disk, some_observations

from fastrfm.readers.stream import stream_text
from fastrfm.readers.text import open_text
from fastrfm.store import open_observations, read_result, write_observations, write_result

__all__ = ["small_disk"]  # a fixture


@pytest.fixture
def named(tmp_path):
    """A result of 30 x 20 with names, as a file in a folder of its own."""
    (tmp_path / "in").mkdir()
    result = make_result((30, 20), names=True)
    write_result(tmp_path / "in" / "r.h5", result)
    return tmp_path / "in" / "r.h5", result


@pytest.fixture
def known(named):
    observations = some_observations((30, 20))
    write_observations(named[0].parent / "o.h5", observations)
    return named[0].parent / "o.h5", observations


def outputs(folder):
    return sorted(entry.name for entry in folder.iterdir() if entry.name != "in")


# --- fill ---------------------------------------------------------------------------------------------------------


def test_fill_writes_the_matrix_and_says_so(named, tmp_path):
    outcome = run("fill", named[0], "-o", tmp_path / "d.h5")
    assert outcome.exit_code == 0 and outcome.stderr == ""
    assert "30 rows x 20 columns, float64" in outcome.stdout and "none, all are estimates" in outcome.stdout
    with h5py.File(tmp_path / "d.h5") as file:
        np.testing.assert_allclose(file["completed"][...], named[1].to_dense(), rtol=1e-12)
        assert file["col_names"].asstr()[...].tolist() == named[1].col_names.tolist()
    assert run("info", tmp_path / "d.h5").exit_code == 0
    assert run("fill", named[0], "-o", tmp_path / "d.h5", "--force", "--quiet").output == ""


def test_fill_keeps_what_was_observed(named, known, tmp_path):
    arguments = ("--dtype", "float32", "--memory", "100M", "--keep-observed", known[0])
    outcome = run("fill", named[0], "-o", tmp_path / "d.h5", *arguments)
    assert outcome.exit_code == 0, outcome.output
    rows, cols, values = known[1].to_coo()
    with h5py.File(tmp_path / "d.h5") as file:
        assert file["completed"].dtype == np.float32
        np.testing.assert_array_equal(file["completed"][...][rows, cols], values.astype(np.float32))


def test_fill_errors(named, known, tmp_path):
    output = tmp_path / "d.h5"
    output.write_bytes(b"old")
    assert_fails(run("fill", named[0], "-o", output), "exists already")
    assert_fails(run("fill", known[0], "-o", output, "--force"), "holds no result")
    assert_fails(run("fill", named[0], "-o", named[0], "--force"), "is the input itself")
    assert_fails(run("fill", named[0], "-o", known[0], "--force", "--keep-observed", known[0]), "is the input itself")
    assert_fails(run("fill", named[0], "-o", output, "--force", "--memory", "1M"), "give at least")
    assert_fails(
        run("fill", named[0], "-o", output, "--memory", "much"), "memory must be a number of bytes such as 512M", 2
    )
    assert_fails(run("fill", named[0], "-o", output, "--dtype", "int8"), "Invalid value", 2)
    write_observations(tmp_path / "in" / "other.h5", some_observations((20, 30)))
    other = run("fill", named[0], "-o", output, "--force", "--keep-observed", tmp_path / "in" / "other.h5")
    assert_fails(other, "has 20 rows x 30 columns, the result 30 rows x 20 columns: give the file that was completed")
    assert output.read_bytes() == b"old" and outputs(tmp_path) == ["d.h5"]


def test_observations_of_other_rows_are_not_kept(named, tmp_path):
    from fastrfm import Observations

    names = [f"r{i}" for i in range(30)][::-1]
    write_observations(tmp_path / "in" / "o.h5", Observations.from_dense(np.ones((30, 20)), row_names=names))
    outcome = run("fill", named[0], "-o", tmp_path / "d.h5", "--keep-observed", tmp_path / "in" / "o.h5")
    assert_fails(outcome, "its row_names are not those of the result")


@pytest.mark.parametrize("command", [("fill",), ("top", "-n", 20)])
def test_a_full_disk_is_one_line_and_nothing_is_left(tmp_path, command, small_disk):
    write_result(tmp_path / "r.h5", make_result((3000, 20)))
    outcome = run(command[0], tmp_path / "r.h5", *command[1:], "-o", tmp_path / "out.h5")
    assert_fails(outcome, "out.h5: writing failed")
    assert outputs(tmp_path) == ["r.h5"]


# --- complete --write-dense ---------------------------------------------------------------------------------------


def test_complete_writes_the_matrix_as_well(tmp_path):
    truth = np.outer(np.arange(1.0, 9.0), np.arange(1.0, 7.0))
    np.save(tmp_path / "a.npy", np.where(np.random.default_rng(0).random(truth.shape) < 0.7, truth, np.nan))
    arguments = ("complete", tmp_path / "a.npy", "-o", tmp_path / "r.h5", "--write-dense", tmp_path / "d.h5")
    outcome = run(*arguments, "--dense-dtype", "float32")
    assert outcome.exit_code == 0, outcome.output
    assert "completed matrix" in outcome.stdout
    with h5py.File(tmp_path / "d.h5") as file:
        np.testing.assert_allclose(file["completed"][...], read_result(tmp_path / "r.h5").to_dense(), rtol=1e-6)
    (tmp_path / "r.h5").unlink()
    assert_fails(run(*arguments), "d.h5: exists already")
    assert not (tmp_path / "r.h5").exists()
    same = run("complete", tmp_path / "a.npy", "-o", tmp_path / "r.h5", "--write-dense", tmp_path / "r.h5")
    assert_fails(same, "is the input itself")


def test_a_matrix_that_cannot_be_written_leaves_the_result(tmp_path, monkeypatch):
    from fastrfm.errors import WriteError

    def fails(*_, **__):
        raise WriteError("d.h5: writing failed, No space left on device")

    np.save(tmp_path / "a.npy", np.outer(np.arange(1.0, 9.0), np.arange(1.0, 7.0)))
    arguments = ("complete", tmp_path / "a.npy", "-o", tmp_path / "r.h5", "--write-dense", tmp_path / "d.h5")
    monkeypatch.setattr("fastrfm.store.write_dense", fails)
    outcome = run(*arguments, "--quiet")
    assert_fails(outcome, "r.h5 is written, make the matrix from it with `fastrfm fill`")
    assert read_result(tmp_path / "r.h5").rank == 1
    monkeypatch.setattr("fastrfm.store.write_dense", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
    outcome = run(*arguments, "--quiet", "--force")
    assert outcome.exit_code == 1
    assert outcome.stderr == f"Stopped by Ctrl-C: {tmp_path / 'r.h5'} is written, {tmp_path / 'd.h5'} is not\n"


# --- top ----------------------------------------------------------------------------------------------------------


def test_top_of_all_rows_by_name(named, known, tmp_path):
    arguments = ("-n", 3, "--exclude-observed", known[0], "--memory", "100M")
    outcome = run("top", named[0], "-o", tmp_path / "t.csv", *arguments)
    assert outcome.exit_code == 0, outcome.output
    assert "30 rows" in outcome.stdout and f"{known[1].n_observed} observed" in outcome.stdout
    with (tmp_path / "t.csv").open() as file:
        header, *lines = csv.reader(file)
    cols, values = naive_top(named[1], range(30), 3, known[1])
    assert header == ["row", "col", "value", "rank"]
    assert lines == [
        [f"r{i}", f"c{cols[i, k]}", repr(values[i, k].item()), str(k + 1)] for i in range(30) for k in range(3)
    ]


@pytest.mark.parametrize(
    ("content", "options"),
    [("r4\nr2\nr11\n", ()), ("user,age\nr4,1\nr2,\nr11,3\n", ()), ("4\n2\n11\n", ("--by", "index"))],
)
def test_top_of_listed_rows(named, tmp_path, content, options):
    (tmp_path / "rows.txt").write_text(content)
    outcome = run("top", named[0], "-n", 2, "--rows", tmp_path / "rows.txt", "-o", tmp_path / "t.h5", *options)
    assert outcome.exit_code == 0, outcome.output
    assert ("line 1 was taken as a header: user, age" in outcome.stderr) == ("age" in content)
    with h5py.File(tmp_path / "t.h5") as file:
        assert file["rows"][...].tolist() == [4, 2, 11]
        np.testing.assert_array_equal(file["cols"][...], naive_top(named[1], [4, 2, 11], 2)[0])


def test_a_row_name_may_hold_blanks_and_commas(named, tmp_path):
    from dataclasses import replace

    names = named[1].row_names.copy()
    names[4], names[2] = "The Third Man", "Matrix, The"
    write_result(tmp_path / "in" / "n.h5", replace(named[1], row_names=names))
    (tmp_path / "rows.txt").write_text('The Third Man\n"Matrix, The"\n')
    outcome = run("top", tmp_path / "in" / "n.h5", "--rows", tmp_path / "rows.txt", "-o", tmp_path / "t.h5", "--quiet")
    assert (outcome.exit_code, outcome.output) == (0, "")
    with h5py.File(tmp_path / "t.h5") as file:
        assert file["rows"][...].tolist() == [4, 2]


@pytest.mark.parametrize(
    ("content", "by", "said"),
    [
        ("r4\nr77\n", "auto", "rows.txt, line 2: the result has no row named 'r77'"),
        ("nobody\n", "auto", "rows.txt, line 1: no row to look at: 'nobody' is not in the result"),
        ("4\n30\n", "index", "rows.txt, line 2: row position 30 is outside 0…29"),
        ("4\nx\n", "index", "rows.txt, line 2: expected a zero-based row position, got 'x'"),
        ("", "auto", "rows.txt is empty"),
    ],
)
def test_rows_that_are_not_there(named, tmp_path, content, by, said):
    (tmp_path / "in" / "rows.txt").write_text(content)
    outcome = run("top", named[0], "--rows", tmp_path / "in" / "rows.txt", "--by", by, "-o", tmp_path / "t.csv")
    assert_fails(outcome, said)
    assert outputs(tmp_path) == []


def test_top_errors(named, known, tmp_path):
    output = tmp_path / "t.csv"
    assert_fails(run("top", named[0], "-n", 21, "-o", output), "n must be at most the number of columns, 20, got 21")
    assert_fails(run("top", named[0], "-n", 0, "-o", output), "Invalid value", 2)
    assert_fails(run("top", named[0], "--rows", tmp_path / "none", "-o", output), "no such file")
    assert_fails(run("top", named[0], "-o", named[0], "--force"), "is the input itself")
    assert_fails(run("top", named[0], "--memory", "1M", "-o", output), "give at least")
    assert outputs(tmp_path) == []
    output.write_bytes(b"old")
    assert_fails(run("top", named[0], "-o", output), "exists already")
    assert output.read_bytes() == b"old"


# --- predict ------------------------------------------------------------------------------------------------------


def pair_lines(n=500):
    rng = np.random.default_rng(5)
    return [(int(i), int(j)) for i, j in zip(rng.integers(30, size=n), rng.integers(20, size=n), strict=True)]


@pytest.mark.parametrize("records", [1, 7, 1 << 14])
@pytest.mark.parametrize("is_packed", [False, True])
def test_predictions_do_not_depend_on_blocks(named, tmp_path, monkeypatch, records, is_packed):
    monkeypatch.setattr("fastrfm.readers.pairs._RECORDS", records)
    pairs = pair_lines()
    content = "user,film,note\n" + "".join(f'r{i},c{j},"a, b"\n' for i, j in pairs)
    path = tmp_path / ("p.csv.gz" if is_packed else "p.csv")
    path.write_bytes(gzip.compress(content.encode()) if is_packed else content.encode())
    outcome = run("predict", named[0], path, "-o", tmp_path / "out.csv")
    assert outcome.exit_code == 0, outcome.output
    values = named[1].predict(*np.array(pairs).T).tolist()
    wanted = [f'r{i},c{j},"a, b",{value!r}\n' for (i, j), value in zip(pairs, values, strict=True)]
    assert (tmp_path / "out.csv").read_text() == "user,film,note,prediction\n" + "".join(wanted)
    assert run("predict", named[0], path).stdout == (tmp_path / "out.csv").read_text()


@pytest.mark.parametrize("records", [3, 1 << 14])
def test_an_error_far_down_shows_nothing_and_leaves_nothing(named, tmp_path, monkeypatch, records):
    monkeypatch.setattr("fastrfm.readers.pairs._RECORDS", records)
    path = tmp_path / "in" / "p.csv"
    for last, said in (
        ("r1,c99\n", "p.csv, line 101: the result has no column named 'c99'"),
        ("r1\n", "p.csv, line 101: expected a row and a column, got 1 field"),
        ("r1,c1,x\n", "p.csv, line 101: expected 2 columns as in the lines above, got 3"),
        ('r1,"c1\n', "p.csv, line 101: not well-formed"),
        ("r1,c\udce9\n", "p.csv, line 101: byte 0xe9 is not UTF-8"),
    ):
        path.write_bytes(("r1,c1\n" * 100 + last).encode(errors="surrogateescape"))
        assert_fails(run("predict", named[0], path), said)
        assert_fails(run("predict", named[0], path, "-o", tmp_path / "out.csv"), said)
        assert outputs(tmp_path) == []


def test_pairs_in_hdf5(named, tmp_path, monkeypatch):
    monkeypatch.setattr("fastrfm.readers.pairs._PAIRS", 64)
    pairs = np.array(pair_lines())
    with h5py.File(tmp_path / "p.h5", "w") as file:
        file["rows"], file["cols"] = pairs[:, 0].astype(np.int32), pairs[:, 1]
    wanted = named[1].predict(pairs[:, 0], pairs[:, 1])
    assert run("predict", named[0], tmp_path / "p.h5", "-o", tmp_path / "out.h5").output == ""
    with h5py.File(tmp_path / "out.h5") as file:
        np.testing.assert_array_equal(file["predictions"][...], wanted)
        np.testing.assert_array_equal(np.column_stack((file["rows"], file["cols"])), pairs)
    lines = run("predict", named[0], tmp_path / "p.h5").stdout.splitlines()
    assert lines[0] == "row,col,prediction" and lines[1] == f"{pairs[0, 0]},{pairs[0, 1]},{wanted[0].item()!r}"
    assert len(lines) == 501
    assert_fails(run("predict", named[0], tmp_path / "p.h5", "--by", "name"), "pairs in HDF5 are zero-based positions")


@pytest.mark.parametrize(
    ("rows", "cols", "said"),
    [
        ([0, 30], [0, 0], "/rows[1]: row position 30 is outside 0…29"),
        ([0, 1], [0, -1], "/cols[1]: column position -1 is outside 0…19"),
        ([0, 1], [0], "dataset /cols must have shape (2), got (1,)"),
        ([0.0], [0], "dataset /rows must hold whole numbers"),
        ([], [], "/rows is empty"),
        (None, [0], "dataset /rows is missing"),
    ],
)
def test_pairs_in_hdf5_that_cannot_be_used(named, tmp_path, rows, cols, said):
    with h5py.File(tmp_path / "in" / "p.h5", "w") as file:
        for name, values in (("rows", rows), ("cols", cols)):
            if values is not None:
                file[name] = np.array(values, dtype=int if not values else None)
    for output in ("out.h5", "out.csv"):
        assert_fails(run("predict", named[0], tmp_path / "in" / "p.h5", "-o", tmp_path / output), said)
    assert outputs(tmp_path) == []


def test_pairs_in_text_do_not_become_hdf5(named, tmp_path):
    (tmp_path / "in" / "p.csv").write_text("r1,c1\n")
    outcome = run("predict", named[0], tmp_path / "in" / "p.csv", "-o", tmp_path / "out.h5")
    assert_fails(outcome, "pairs in text give text")


@pytest.mark.parametrize(
    "content",
    [
        b"a,b\n1,2\n",
        b"\xef\xbb\xbf# one\n\n% two\na\tb\n1\t2\n",
        b"\xef\xbb\xbfa;b\r\n1;2\r\n\r\n",
        b"# old\rstill\nx::y\r1::2\r",
        b"1::2::x y\n3::4::z\n",
        b"a  b \n 1 2\n",
        b'"a b" c\n1 2\n',
        b'a,"b\nc"\n1,2\n',
        "é,b\n1,2\n".encode(),
        b"only\n",
        b"a,b",
    ],
)
def test_text_in_a_stream_reads_as_text_in_memory(tmp_path, content):
    for name, data in (("a.txt", content), ("a.txt.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(data)
        whole, stream = open_text(tmp_path / name), stream_text(tmp_path / name)
        assert list(stream.records()) == list(whole.records())
        for attribute in ("first_line", "delimiter", "delimiter_name", "name"):
            assert getattr(stream, attribute) == getattr(whole, attribute)


# --- signals ------------------------------------------------------------------------------------------------------

# A signal that the process sends to itself once the first block is written.
SIGNALLED = """
import os, signal, sys
import fastrfm.outputs as outputs
from fastrfm.cli import main

outputs._TILE_ENTRIES, outputs._CHUNK = 1, (4, 4)
fill = outputs._converted
def once(*arguments):
    os.kill(os.getpid(), int(sys.argv[1]))
    return fill(*arguments)
outputs._converted = once
main(sys.argv[2:])
"""


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 1, "Stopped by Ctrl-C: nothing was written\n"),
        (signal.SIGTERM, 143, ""),
        (signal.SIGKILL, -9, ""),
    ],
)
def test_fill_that_is_stopped_leaves_the_old_file_and_runs_again(named, tmp_path, number, code, said):
    output = tmp_path / "d.h5"
    output.write_bytes(b"old")
    arguments = ["fill", str(named[0]), "-o", str(output), "--dtype", "float32", "--force"]
    script = [sys.executable, "-c", SIGNALLED, str(int(number)), *arguments]
    done = subprocess.run(script, capture_output=True, text=True)
    assert (done.returncode, done.stderr, done.stdout) == (code, said, "")
    assert output.read_bytes() == b"old"
    if number != signal.SIGKILL:
        assert outputs(tmp_path) == ["d.h5"]
    assert run(*arguments).exit_code == 0
    assert open_observations(output).n_observed == 600
