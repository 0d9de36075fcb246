"""Outputs larger than memory, from Python: the matrix in blocks, the best columns, memory, faults."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys

import h5py
import numpy as np
import pytest

from fastrfm import ranking
from fastrfm._memory import default_memory, parse_memory
from fastrfm.errors import InputError, OutputExistsError, WriteError
from fastrfm.observations import Observations
from fastrfm.results import CompletionResult, Offsets
from fastrfm.store import describe, open_observations, write_dense, write_top

MEMORY = 64 << 20


def make_result(shape, k=3, *, seed=0, offsets=True, names=False, whole=False):
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=(shape[0], k)), rng.normal(size=(shape[1], k))
    if whole:  # small whole numbers: many ties, and no rounding anywhere
        left, right = np.round(left), np.round(right)
    parts = Offsets(3.0, rng.normal(size=shape[0]), rng.normal(size=shape[1])) if offsets else None
    axes = zip("rc", shape, strict=True)
    row_names, col_names = (np.array([f"{a}{i}" for i in range(n)], dtype=object) for a, n in axes)
    return CompletionResult(
        left=left,
        right=right,
        offsets=parts,
        rank=k,
        singular_values=np.ones(k),
        history={"change": np.zeros(0), "seconds": np.zeros(0)},
        stop_reason="converged",
        masked_rmse=0.0,
        n_observed=1,
        n_empty_rows=0,
        n_empty_cols=0,
        row_names=row_names if names else None,
        col_names=col_names if names else None,
    )


def some_observations(shape, seed=1, share=0.2):
    rng = np.random.default_rng(seed)
    return Observations.from_dense(np.where(rng.random(shape) < share, rng.normal(size=shape), np.nan))


def naive_top(result, rows, n, exclude=None):
    """Sort whole rows of single predictions; -1 and NaN where nothing is left."""
    cols, values = np.full((len(rows), n), -1), np.full((len(rows), n), np.nan)
    for k, i in enumerate(rows):
        estimate = result.predict(i, np.arange(result.shape[1]))
        taken = set() if exclude is None else set(exclude.indices[exclude.indptr[i] : exclude.indptr[i + 1]].tolist())
        best = sorted((j for j in range(result.shape[1]) if j not in taken), key=lambda j: (-estimate[j], j))[:n]
        cols[k, : len(best)], values[k, : len(best)] = best, estimate[best]
    return cols, values


@pytest.fixture
def small_disk():
    before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[0][1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before[0])
    signal.signal(signal.SIGXFSZ, before[1])


# --- memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("4096", 4096), ("10B", 10), ("2k", 2048), ("512M", 512 << 20), ("3 GiB", 3 << 30), ("1tb", 1 << 40)],
)
def test_sizes_as_people_write_them(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "0", "0G", "5iBB", "12 monkeys", "nan", "1e9"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(InputError, match="memory must be a number of bytes such as 512M"):
        parse_memory(text)


def test_the_default_is_at_most_a_quarter_of_the_machine():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < default_memory() <= total // 4


def test_memory_that_does_not_hold_the_factors_is_refused_and_says_how_much_does(tmp_path):
    result = make_result((50, 40))
    for write in (lambda: write_dense(tmp_path / "d.h5", result, memory=1000), lambda: small_top(tmp_path, result)):
        with pytest.raises(InputError, match=r"memory of 1000 bytes is too little.*give at least \d+M"):
            write()
    assert list(tmp_path.iterdir()) == []


def small_top(folder, result):
    write_top(folder / "t.csv", result, 3, memory=1000)


# --- the completed matrix -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1), (7, 4), (200, 3), (3, 2500), (131, 1100)])
@pytest.mark.parametrize("tile_entries", [1, 1 << 21])
def test_the_matrix_in_blocks_is_the_matrix(tmp_path, monkeypatch, shape, dtype, tile_entries):
    monkeypatch.setattr("fastrfm.outputs._TILE_ENTRIES", tile_entries)  # 1: one chunk at a time
    monkeypatch.setattr("fastrfm.outputs._CHUNK", (16, 128))
    result, seen = make_result(shape), []
    write_dense(tmp_path / "d.h5", result, dtype=dtype, memory=MEMORY, progress=seen.append)
    with h5py.File(tmp_path / "d.h5") as file:
        assert file["completed"].dtype == dtype and file["completed"].chunks is not None
        assert file["completed"].compression is None
        np.testing.assert_allclose(
            file["completed"][...], result.to_dense(), rtol=1e-12 if dtype == "float64" else 1e-6, atol=1e-6
        )
    assert seen == sorted(seen) and seen[-1] == shape[0]


@pytest.mark.parametrize("block_entries", [3, 1000])
@pytest.mark.parametrize("tile_entries", [1, 1 << 21])
def test_observed_values_are_kept_exactly(tmp_path, monkeypatch, block_entries, tile_entries):
    monkeypatch.setattr("fastrfm.outputs._TILE_ENTRIES", tile_entries)
    monkeypatch.setattr("fastrfm.outputs._CHUNK", (5, 6))
    monkeypatch.setattr("fastrfm.blocks.BLOCK_ENTRIES", block_entries)
    result, known = make_result((43, 31), offsets=False), some_observations((43, 31))
    write_dense(tmp_path / "d.h5", result, observations=known, memory=MEMORY)
    with h5py.File(tmp_path / "d.h5") as file:
        written = file["completed"][...]
        assert file["completed"].attrs["keeps_observed"]
    rows, cols, values = known.to_coo()
    np.testing.assert_array_equal(written[rows, cols], values)
    rest = np.ones(result.shape, dtype=bool)
    rest[rows, cols] = False
    np.testing.assert_allclose(written[rest], result.to_dense()[rest], rtol=1e-12)


def test_the_matrix_opens_as_observations_with_its_names(tmp_path):
    result = make_result((30, 20), names=True)
    write_dense(tmp_path / "d.h5", result, memory=MEMORY)
    back = open_observations(tmp_path / "d.h5")
    assert back.n_observed == 600 and back.row_names.tolist() == result.row_names.tolist()
    np.testing.assert_allclose(back.values.reshape(30, 20), result.to_dense(), rtol=1e-12)
    about = describe(tmp_path / "d.h5")
    assert about["kind"] == "dense" and about["has_col_names"]


def test_anndata_reads_the_matrix(tmp_path):
    anndata = pytest.importorskip("anndata")
    result = make_result((30, 20))
    write_dense(tmp_path / "d.h5", result, memory=MEMORY)
    with h5py.File(tmp_path / "d.h5") as file:
        np.testing.assert_allclose(anndata.io.read_elem(file["completed"]), result.to_dense(), rtol=1e-12)


def test_what_the_matrix_cannot_be_made_of_is_refused(tmp_path):
    result, path = make_result((30, 20)), tmp_path / "d.h5"
    with pytest.raises(InputError, match="dtype must be one of float32, float64, got 'int8'"):
        write_dense(path, result, dtype="int8")
    with pytest.raises(InputError, match=r"must have the result's shape \(30, 20\), got \(20, 30\)"):
        write_dense(path, result, observations=some_observations((20, 30)))
    result.left[3, 1] = 1e300
    with pytest.raises(InputError, match="too large for float32: ask for dtype float64"):
        write_dense(path, result, dtype="float32")
    for bad in (np.nan, np.inf, -np.inf):
        result.left[3, 1] = bad
        with pytest.raises(InputError, match="NaN or infinite"):
            write_dense(path, result)
        with pytest.raises(InputError, match="NaN or infinite"):
            result.top(None, 2)
    assert list(tmp_path.iterdir()) == []


def test_an_old_file_is_kept_unless_force(tmp_path):
    path, result = tmp_path / "d.h5", make_result((30, 20))
    path.write_bytes(b"old")
    for write in (lambda: write_dense(path, result), lambda: write_top(path, result, 2)):
        with pytest.raises(OutputExistsError):
            write()
    assert path.read_bytes() == b"old"
    write_dense(path, result, force=True)
    assert describe(path)["kind"] == "dense"


@pytest.mark.parametrize("name", ["d.h5", "t.h5", "t.csv"])
def test_a_full_disk_leaves_everything_as_it_was(tmp_path, small_disk, name):
    result, path = make_result((2000, 200)), tmp_path / name
    path.write_bytes(b"old")
    with pytest.raises(WriteError, match="writing failed"):
        if name == "d.h5":
            write_dense(path, result, force=True)
        else:
            write_top(path, result, 50, force=True)
    assert path.read_bytes() == b"old" and [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_folder_that_may_not_be_written_in_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("fastrfm.atomic.os.access", lambda *_: False)  # root may write everywhere
    for write in (write_dense, lambda path, result: write_top(path, result, 2)):
        with pytest.raises(WriteError, match="no permission to write in the folder"):
            write(tmp_path / "d.h5", make_result((30, 20)))


def test_ctrl_c_between_blocks_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("fastrfm.outputs._TILE_ENTRIES", 1)

    def press(done):
        os.kill(os.getpid(), signal.SIGINT)

    result = make_result((500, 20))
    with pytest.raises(KeyboardInterrupt):
        write_dense(tmp_path / "d.h5", result, progress=press)
    for name in ("t.csv", "t.h5"):
        with pytest.raises(KeyboardInterrupt):
            write_top(tmp_path / name, result, 3, progress=press)
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# A process of its own, whose memory nothing else has used: a matrix of 160 MB, best columns of 40 million entries.
MEASURED = """
import sys
sys.path.insert(0, sys.argv[1])
from test_outputs import make_result
from fastrfm.store import write_dense, write_top

path, memory = sys.argv[2], int(sys.argv[3])
write = {"d": lambda result: write_dense(path, result, dtype="float32", memory=memory, force=True),
         "t": lambda result: write_top(path, result, 20, memory=memory, force=True)}[sys.argv[4]]
def now(what):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(what))

make_result((30, 20)).top(None, 3)  # loads the kernel and BLAS
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew; ru_maxrss would start at the parent's
base = now("VmRSS:")
write(make_result((20000, 2000), 10))
print(now("VmHWM:") - base)
"""


@pytest.mark.compiled_only
@pytest.mark.parametrize(("name", "kind", "least"), [("d.h5", "d", 160_000_000), ("t.csv", "t", 10_000_000)])
def test_memory_stays_within_the_budget(tmp_path, name, kind, least):
    budget = 72 << 20
    arguments = [os.path.dirname(__file__), str(tmp_path / name), str(budget), kind]
    done = subprocess.run([sys.executable, "-c", MEASURED, *arguments], capture_output=True, text=True, check=True)
    assert 1 << 20 < int(done.stdout) < budget, done.stdout
    assert (tmp_path / name).stat().st_size > least


# Writes rows slowly, and says when it is under way.
SLOW = """
import sys, time
sys.path.insert(0, sys.argv[1])
from test_outputs import make_result
import fastrfm.outputs as outputs
from fastrfm._interrupt import ending_on_sigterm

def slowly(done):
    print(done, flush=True)
    time.sleep(0.02)

outputs._TILE_ENTRIES = 1
with ending_on_sigterm():
    outputs.write_dense(sys.argv[2], make_result((30000, 30)), progress=slowly, force=sys.argv[3:] == ["force"])
"""


def start_slowly(path, *options):
    arguments = [sys.executable, "-c", SLOW, os.path.dirname(__file__), str(path), *options]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline()
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_is_killed_leaves_no_half_file(tmp_path, number):
    path = tmp_path / "d.h5"
    with start_slowly(path) as process:
        process.send_signal(number)
        process.communicate()
    assert not path.exists()
    left = list(tmp_path.iterdir())
    if number == signal.SIGTERM:
        assert process.returncode == 143 and left == []
    else:  # nobody can clean up then
        assert process.returncode == -9 and [entry.suffix for entry in left] == [".part"]
    write_dense(path, make_result((30000, 30)))
    assert describe(path)["kind"] == "dense"


@pytest.mark.parametrize(("options", "code", "shape"), [((), 1, (30, 20)), (("force",), 0, (30000, 30))])
def test_of_two_processes_with_one_output_the_first_to_end_wins_or_with_force_the_last(tmp_path, options, code, shape):
    path = tmp_path / "d.h5"
    with start_slowly(path, *options) as slow:
        write_dense(path, make_result((30, 20)))
        slow.communicate()
    assert slow.returncode == code
    with h5py.File(path) as file:
        assert file["completed"].shape == shape
    assert [entry.name for entry in tmp_path.iterdir()] == ["d.h5"]


# --- the best columns of each row ---------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("offsets", [False, True])
@pytest.mark.parametrize("n", [1, 4, 23])
@pytest.mark.parametrize("block_bytes", [1, 1 << 26])
def test_top_is_what_sorting_all_predictions_gives(whole, offsets, n, block_bytes):
    result, known = make_result((17, 23), whole=whole, offsets=offsets), some_observations((17, 23), share=0.4)
    for rows in (range(17), [3, 16, 3], []):
        for exclude in (None, known):
            cols, values = result.top(np.array(rows, dtype=int), n, exclude, block_bytes=block_bytes)
            wanted = naive_top(result, rows, n, exclude)
            assert cols.dtype == np.int64
            np.testing.assert_array_equal(cols, wanted[0])
            np.testing.assert_array_equal(values, wanted[1])


@pytest.mark.parametrize("n", [1, 5])
def test_top_by_the_maxima_of_groups_of_columns(monkeypatch, n):
    monkeypatch.setattr("fastrfm.ranking._GROUPS_EACH", 2)
    monkeypatch.setattr("fastrfm.ranking._LEAST_GROUPS", 2)
    for whole in (False, True):
        result, known = make_result((40, 61), whole=whole), some_observations((40, 61), share=0.93)
        for exclude in (None, known):
            cols, values = result.top(None, n, exclude)
            wanted = naive_top(result, range(40), n, exclude)
            np.testing.assert_array_equal(cols, wanted[0])
            np.testing.assert_array_equal(values, wanted[1])


@pytest.mark.parametrize("n_cols", [30, 3000])
def test_a_block_that_is_off_by_rounding_decides_nothing(n_cols):
    rng = np.random.default_rng(0)
    exact = np.round(rng.normal(size=(20, n_cols)), 1)  # many ties
    off = exact + rng.uniform(-1e-9, 1e-9, size=exact.shape)
    cols, values = ranking.largest(off, 6, np.full(20, 1e-9), lambda rows, cols: exact[rows, cols])
    wanted = np.argsort(-exact, axis=1, kind="stable")[:, :6]
    np.testing.assert_array_equal(cols, wanted)
    np.testing.assert_array_equal(values, np.take_along_axis(exact, wanted, axis=1))


def test_equal_columns_tie_by_position_whatever_blas_makes_of_them():
    # Seven different columns, each 301 times; the products of equal columns can differ in their last bits.
    result = make_result((60, 7), 30)
    right = np.repeat(result.right, 301, axis=0)
    result = CompletionResult(**{**vars(result), "right": right, "offsets": None})
    cols, values = result.top(None, 5)
    best = result.predict(np.arange(60)[:, None], np.arange(7) * 301).argmax(axis=1)
    np.testing.assert_array_equal(cols, best[:, None] * 301 + np.arange(5))
    assert (values == values[:, :1]).all()


def test_a_matrix_without_any_difference_is_ranked_by_position():
    result = make_result((40, 100), offsets=False)
    result.left[...] = 0
    cols, values = result.top(None, 3)
    np.testing.assert_array_equal(cols, np.tile([0, 1, 2], (40, 1)))
    assert not values.any()


def test_candidates_of_rows_are_taken_together_up_to_a_limit():
    assert ranking._groups(np.array([3, 3, 3, 9, 1]), 6) == [(0, 2), (2, 3), (3, 4), (4, 5)]


def test_top_without_anything_left():
    result = make_result((3, 4))
    cols, values = result.top(None, 4, Observations.from_dense(np.ones((3, 4))))
    assert (cols == -1).all() and np.isnan(values).all()


@pytest.mark.parametrize(
    ("rows", "n", "said"),
    [
        (None, 5, "n must be at most the number of columns, 4, got 5: ask for fewer"),
        (None, 0, "n must be a whole number, at least 1, got 0"),
        (None, 2.0, "n must be a whole number"),
        ([3], 1, "row positions must lie in 0…2, got 3…3"),
        ([0.5], 1, "row positions must be whole numbers"),
        ([[0]], 1, "rows must be 1-D"),
    ],
)
def test_top_refuses(rows, n, said, tmp_path):
    result = make_result((3, 4))
    with pytest.raises(InputError, match=said):
        result.top(rows, n)
    with pytest.raises(InputError, match=said):
        write_top(tmp_path / "t.csv", result, n, rows=rows)
    with pytest.raises(InputError, match="must have the result's shape"):
        result.top(None, 1, some_observations((4, 3)))
    assert list(tmp_path.iterdir()) == []


def test_top_as_hdf5(tmp_path):
    result, known = make_result((17, 23), names=True), some_observations((17, 23), share=0.9)
    write_top(tmp_path / "t.h5", result, 6, rows=[4, 2, 11], exclude=known)
    wanted = naive_top(result, [4, 2, 11], 6, known)
    with h5py.File(tmp_path / "t.h5") as file:
        np.testing.assert_array_equal(file["cols"][...], wanted[0])
        np.testing.assert_array_equal(file["values"][...], wanted[1])
        assert file["rows"][...].tolist() == [4, 2, 11]
        assert file["row_names"].asstr()[...].tolist() == ["r4", "r2", "r11"]
        assert file["cols"].dtype == np.int64 and (file["cols"][...] == -1).any()
    write_top(tmp_path / "u.h5", result, 6, rows=[4, 2, 11], exclude=known)
    assert (tmp_path / "t.h5").read_bytes() == (tmp_path / "u.h5").read_bytes()


def test_top_as_csv_does_not_depend_on_blocks(tmp_path):
    result = make_result((17, 23), names=True)
    write_top(tmp_path / "a.csv", result, 3, memory=MEMORY)
    lines = (tmp_path / "a.csv").read_text().splitlines()
    cols, values = naive_top(result, range(17), 3)
    assert lines[0] == "row,col,value,rank" and len(lines) == 1 + 17 * 3
    assert lines[5] == f"r1,c{cols[1, 1]},{values[1, 1].item()!r},2"
    write_top(tmp_path / "b.csv", result, 3)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
