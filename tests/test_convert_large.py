"""Triples larger than memory: the same file as the way through memory, the same errors, and nothing left behind."""

from __future__ import annotations

import fcntl
import gzip
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import h5py
import numba
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastrfm._memory import default_memory, parse_memory
from fastrfm.atomic import scratch_folder
from fastrfm.cli import main
from fastrfm.conversion import buckets, convert, sources
from fastrfm.errors import FastrfmError, FileFormatError, InputError, OutputExistsError, WriteError
from fastrfm.kernels.row_buckets import compress_rows
from fastrfm.observations import Observations
from fastrfm.readers import read_observations, read_with_notes, triples
from fastrfm.readers.labels import AxisLabels
from fastrfm.readers.stream import open_stream
from fastrfm.store import describe, open_observations, write_observations

TINY = 4096


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    """Many buckets and blocks from few triples; the compiled parser from the first byte."""
    monkeypatch.setattr(buckets, "_FEWEST", 3)
    monkeypatch.setattr(sources, "_SMALLEST_BLOCK", 64)
    monkeypatch.setattr(triples, "_COMPILED_FROM", 0)


def content(path: Path) -> dict[str, object]:
    """Return all datasets (values, dtype, chunks) and attributes of a file."""
    found: dict[str, object] = {}

    def add(name: str, item: h5py.HLObject) -> None:
        found.update({f"{name}@{key}": np.asarray(value).tolist() for key, value in item.attrs.items()})
        if isinstance(item, h5py.Dataset):
            found[name] = (item[...].tolist(), str(item.dtype), item.chunks)

    with h5py.File(path) as file:
        add("/", file)
        file.visititems(add)
    return found


def assert_same(source: Path, memory: int = TINY, **options: object) -> dict[str, object]:
    """Convert both ways and compare; nothing but the two outputs may be left."""
    before = set(source.parent.iterdir())
    plain, large = source.parent / "plain.h5", source.parent / "large.h5"
    reading = read_with_notes(source, **options)
    write_observations(plain, reading.observations, force=True)
    done = convert(source, large, memory=memory, force=True, **options)
    assert content(large) == content(plain)
    assert (done.layout, done.notes, done.shape) == (reading.layout, reading.notes, reading.observations.shape)
    assert set(source.parent.iterdir()) - before <= {plain, large}
    return content(large)


def write(folder: Path, text: str | bytes, name: str = "ratings.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def random_lines(n: int, n_rows: int = 40, n_cols: int = 30, seed: int = 0, mark: str = ",") -> list[str]:
    rng = np.random.default_rng(seed)
    places = rng.choice(n_rows * n_cols, n, replace=False)
    values = rng.normal(size=n).round(rng.integers(0, 9))
    return [
        f"{p // n_cols}{mark}{p % n_cols}{mark}{v!r}\n" for p, v in zip(places.tolist(), values.tolist(), strict=True)
    ]


# --- the same file as through memory ------------------------------------------------------------------------------

BODY = random_lines(300)
QUOTED = ['"{}","{}","{}"\n'.format(*line.strip().split(",")) for line in BODY]
NAMED = [f"ü{line}" for line in BODY]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain.csv", "".join(BODY)),
        ("header.csv", "userId,movieId,rating\n" + "".join(BODY)),
        ("quoted_header.csv", '"user\nid","movie","rating"\n' + "".join(BODY)),
        ("extra.csv", "u,i,r,t\n" + "".join(line.strip() + ",978300760\n" for line in BODY)),
        ("u.data", "".join(BODY).replace(",", "\t")),
        ("ratings.dat", "".join(BODY).replace(",", "::")),
        ("ratings_header.dat", "u::i::r\n" + "".join(BODY).replace(",", "::")),
        ("semicolons.csv", "".join(BODY).replace(",", ";").replace("\n", "\r\n")),
        ("blanks.txt", "".join(" " + line.replace(",", "  ") for line in BODY)[:-1]),
        ("tabs_and_blanks.txt", "".join(line.replace(",", " \t") for line in BODY[:40])),
        ("mac.csv", "".join(BODY).replace("\n", "\r")),
        ("bom.csv", b"\xef\xbb\xbf# top\n\nuser,item,score\n" + "".join(BODY).encode()),
        ("packed.csv.gz", gzip.compress("".join(BODY).encode())),
        ("quoted.csv", "".join(QUOTED)),
        ("quotes_at_the_end.csv", "".join(BODY[:200] + QUOTED[200:])),
        ("quoted_lines.csv", "".join([*BODY[:99], '"many\nlines\nin one","x, y",2\n', *BODY[100:]])),
        ("names.csv", "".join(NAMED)),
        ("a_name_late.csv", "".join([*BODY[:250], "zoë,7,1\n", "007,8,2\n", *BODY[250:]])),
        ("a_name_first.csv", "".join(["zoë,7,1\n", "41,x,2\n", *BODY])),
        ("negative.csv", "".join(["-5,-7,1\n", *BODY, "999999999999999999,-3,2\n"])),
        ("missing.csv", "".join([*BODY[:100], "99,1,\n", "98,1,NA\n", "3,77,nan\n", *BODY[100:]])),
        ("empty_lines.csv", "\n  \n".join(BODY)),
    ],
)
def test_every_dress_gives_the_same_file(tmp_path, name, text):
    assert_same(write(tmp_path, text, name), layout="triples")


@pytest.mark.parametrize("memory", [1, 4096, 100_000, 10_000_000])
def test_any_budget_and_positions(tmp_path, memory):
    path = write(tmp_path, "".join(BODY))
    found = assert_same(path, memory, indexed=True)
    assert "row_names" not in found
    assert_same(path, memory)


NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.decimals(-(10**6), 10**6, allow_nan=False, places=4).map(str),
    st.sampled_from(
        ["-0", "-0.0", "+3", ".5", "5.", "1e5", "1E-7", "9007199254740993", "123456789012345678901", "1e22"]
    ),
    st.sampled_from(["1e23", "4.35e-310", "00012.500", "0.000000000000000000001", "12e-2", "nan", "NA", ""]),
)
SLOW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SLOW
@given(
    st.dictionaries(st.tuples(st.integers(0, 12), st.integers(0, 9)), NUMBERS, min_size=1, max_size=60),
    st.integers(1, 20_000),
    st.sampled_from([",", "\t", "::", ";"]),
)
def test_random_triples_of_any_spelling(tmp_path_factory, table, memory, mark):
    text = "".join(f"{row}{mark}{col}{mark}{value}\n" for (row, col), value in table.items())
    path = write(tmp_path_factory.mktemp("any"), "r" + mark + "c" + mark + "v\n" + text)
    if all(value in ("nan", "NA", "") for value in table.values()):
        with pytest.raises(InputError, match=r"^ratings\.csv: no observations"):
            convert(path, path.with_suffix(".h5"), memory=memory, layout="triples")
        return
    assert_same(path, memory, layout="triples")
    with h5py.File(path.parent / "large.h5") as file:
        there = {pair: float(v) for pair, v in table.items() if v not in ("nan", "NA", "")}
        assert file["observations/data"][...].tolist() == [there[pair] for pair in sorted(there)]
        signs = [math.copysign(1, there[pair]) for pair in sorted(there)]
        assert np.copysign(1, file["observations/data"][...]).tolist() == signs


@SLOW
@given(st.data(), st.sampled_from(["i4", "i8", "u2"]), st.sampled_from(["f4", "f8", "i2"]), st.booleans())
def test_random_hdf5_triples(tmp_path_factory, data, index_dtype, value_dtype, has_shape):
    places = data.draw(st.lists(st.integers(0, 20 * 15 - 1), min_size=1, max_size=80, unique=True))
    memory = data.draw(st.integers(1, 5000))
    rows, cols = np.divmod(np.array(places), 15)
    values = np.random.default_rng(len(places)).integers(-9, 9, rows.size).astype(value_dtype)
    folder = tmp_path_factory.mktemp("hdf5")
    with h5py.File(folder / "triples.h5", "w") as file:
        file["rows"], file["cols"], file["values"] = rows.astype(index_dtype), cols.astype(index_dtype), values
        if has_shape:
            file.attrs["shape"] = (20, 15)
            file["row_names"] = [f"r{i}" for i in range(20)]
    names = [f"r{i}" for i in range(20)] if has_shape else None
    wanted = Observations.from_coo(rows, cols, values, (20, 15) if has_shape else None, row_names=names)
    write_observations(folder / "wanted.h5", wanted)
    convert(folder / "triples.h5", folder / "out.h5", memory=memory)
    assert content(folder / "out.h5") == content(folder / "wanted.h5")


def test_hdf5_triples_open_as_they_are(tmp_path):
    with h5py.File(tmp_path / "triples.h5", "w") as file:
        file["rows"], file["cols"], file["values"] = [1, 0], [0, 2], [2.5, 3.5]
    assert describe(tmp_path / "triples.h5")["kind"] == "triples"
    assert open_observations(tmp_path / "triples.h5").to_coo()[2].tolist() == [3.5, 2.5]
    convert(tmp_path / "triples.h5", tmp_path / "small.h5")
    assert open_observations(tmp_path / "small.h5").shape == (2, 3)


def test_every_value_is_the_double_that_python_reads():
    from fastrfm.kernels import parse_triples

    rng = np.random.default_rng(0)
    n = 300 if numba.config.DISABLE_JIT else 50_000
    numbers = rng.integers(0, 10**18, n) // 10 ** rng.integers(0, 18, n)
    texts = [f"{number}e-{shift}" for number, shift in zip(numbers.tolist(), rng.integers(0, 23, n), strict=True)]
    texts += [repr(value) for value in (rng.normal(size=n) * 10.0 ** rng.integers(-5, 6, n)).tolist()]
    n_usual = len(texts)
    # Halfway between two doubles, and next to it: 2^53 + odd, shifted by powers of five.
    halves = (2**53 + 1 + 2 * rng.integers(0, 2**20, 1000)).tolist()
    texts += [f"{half * 5**k + d}e-{k}" for half in halves for k in range(3) for d in (-1, 0, 1)]
    n_left = 0
    for k, text in enumerate(texts):
        field = np.frombuffer(f"{text}\n".encode(), dtype=np.uint8)
        value, _, is_exact = parse_triples._parse_value(field, 0)
        n_left += not is_exact and k < n_usual
        assert not is_exact or value == float(text), text
    assert n_left < 0.06 * n_usual


def test_long_rows_are_merged():
    rng = np.random.default_rng(0)
    for n in (1, 2, 63, 64, 65, 128, 129, 1000):
        cols, values = rng.permutation(n).astype(np.int32), rng.normal(size=n)
        indptr, rows = np.array([0, n]), np.zeros(n, dtype=np.int32)
        placed, out = ([np.empty_like(cols), np.empty_like(values)] for _ in range(2))
        repeats = np.zeros(1, dtype=np.int64)
        compress_rows(np.array([0, 1]), indptr, rows, cols, values, np.array([0]), *placed, *out, repeats)
        assert out[0].tolist() == list(range(n)) and not repeats[0]
        np.testing.assert_array_equal(out[1][cols], values)
        if n > 1:
            cols[0] = cols[n - 1]
            compress_rows(np.array([0, 1]), indptr, rows, cols, values, np.array([0]), *placed, *out, repeats)
            assert repeats[0] > 0


def test_labels_take_codes_in_order_whatever_their_kind():
    rng = np.random.default_rng(1)
    numbers = rng.integers(-(10**17), 10**17, 9000)
    axis, seen = AxisLabels(), {}
    for k, part in enumerate(np.split(numbers, 9)):
        labels = part if k % 2 else [*map(str, part.tolist()), f"word {k}", "07"]
        wanted = [seen.setdefault(str(label), len(seen)) for label in (labels if k % 2 == 0 else part.tolist())]
        assert axis.encode(labels).tolist() == wanted
    assert axis.finish()[1] == list(seen)


# --- errors -------------------------------------------------------------------------------------------------------


def message(path: Path, error: type[FastrfmError], **options: object) -> str:
    """Return the message; nothing but the input may be left, and the way through memory says the same."""
    with pytest.raises(error) as caught:
        convert(path, path.parent / "out.h5", memory=TINY, **options)
    assert list(path.parent.iterdir()) == [path]
    if path.suffix != ".h5":
        with pytest.raises(error) as plain:
            read_observations(path, **options)
        assert str(plain.value) == str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("line", "error", "said"),
    [
        ("4,5,abc\n", FileFormatError, "ratings.csv, line 201: expected a number in column 3, got 'abc'"),
        ("4,5\n", FileFormatError, "line 201: expected 3 columns as in the lines above, got 2"),
        ("# no\n", FileFormatError, "line 201: expected 3 columns"),
        (",5,6\n", FileFormatError, "line 201: the label in column 1 is empty"),
        ('a,"d"x,2\n', FileFormatError, "line 201: not well-formed"),
        ("5,6,inf\n", InputError, "line 201: the value must be finite, got 'inf'"),
        ("5,6,-1e999\n", InputError, "line 201: the value must be finite"),
        (b"M\xfcller,7,8\n", FileFormatError, "line 201: byte 0xfc is not UTF-8"),
    ],
)
def test_malformed_lines_say_where(tmp_path, line, error, said):
    line = line if isinstance(line, bytes) else line.encode()
    text = "".join(BODY[:200]).encode() + line + "".join(BODY[200:]).encode()
    assert said in message(write(tmp_path, text), error)


def test_gz_that_ends_too_early(tmp_path):
    path = write(tmp_path, gzip.compress("".join(BODY).encode())[:-20], "a.csv.gz")
    with pytest.raises(FileFormatError, match="not complete gz data"):
        convert(path, tmp_path / "out.h5", memory=TINY)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("u,i,r\n" + "".join(BODY) + BODY[7], "lines 9 and 302 both give row"),
        ("".join(BODY + BODY), "lines 1 and 301 both give row"),
        ("".join(BODY + BODY), "(and 299 more such lines)"),
        ("".join(NAMED) + "NA,NA,NA\n" + NAMED[3], "lines 4 and 302 both give row 'ü"),
        ("".join([*BODY[:50], "\n", *BODY[50:], BODY[60], BODY[10], BODY[60]]), "lines 62 and 302 both give row"),
    ],
)
def test_pairs_given_twice_name_both_lines(tmp_path, text, said):
    assert said in message(write(tmp_path, text), InputError, layout="triples")


def test_positions(tmp_path):
    path = write(tmp_path, "".join(BODY) + "0,999999999999,1\n")
    assert "read them as names" in message(path, InputError, indexed=True)
    write(tmp_path, "".join(BODY) + "1,-2,1\n")
    assert "line 301: expected a zero-based position in column 2, got '-2'" in message(
        path, FileFormatError, indexed=True
    )


@pytest.mark.parametrize(
    ("arrays", "shape", "error", "said"),
    [
        (([0, 1, 0], [1, 2, 1], [1.0, 2.0, 3.0]), None, InputError, "entries 0 and 2 both give row 0, column 1"),
        (([0, -1], [1, 2], [1.0, 2.0]), None, InputError, "row number -1 (entry 1) must be 0 or more"),
        (([0, 1], [1, 7], [1.0, 2.0]), (5, 7), InputError, "column number 7 (entry 1) must be between 0 and 6"),
        (([0, 1], [1, 2], [1.0, math.inf]), None, InputError, "/values must be finite, got inf in entry 1"),
        (([0, 10**12], [1, 2], [1.0, 2.0]), None, InputError, "number the rows from 0"),
        (([0.5, 1], [1, 2], [1.0, 2.0]), None, FileFormatError, "/rows must hold whole numbers"),
        (([0, 0], [1, 1], [1.0, 2.0]), None, InputError, "triples.h5: entries 0 and 1 both give row 0, column 1: keep"),
        (([0], [1, 2], [1.0, 2.0]), None, FileFormatError, "must have shape (2)"),
        (([0, 1], [1, 2], [1.0, 2.0]), (5,), FileFormatError, "attribute shape of /"),
    ],
)
def test_hdf5_triples_that_are_wrong(tmp_path, arrays, shape, error, said):
    with h5py.File(tmp_path / "triples.h5", "w") as file:
        file["rows"], file["cols"], file["values"] = arrays
        if shape:
            file.attrs["shape"] = shape
    assert said in message(tmp_path / "triples.h5", error)


@pytest.mark.parametrize(("written", "wanted"), [("64K", 65536), ("2 g", 2**31), ("1.5MiB", 1572864), (7, 7)])
def test_memory_is_read(written, wanted):
    assert parse_memory(written) == wanted
    assert default_memory() > 1 << 20


@pytest.mark.parametrize("written", ["", "much", "-1", "0", "5X", "1e9"])
def test_memory_that_is_none(written):
    with pytest.raises(InputError, match="such as 512M"):
        parse_memory(written)


def test_the_command_takes_memory(tmp_path):
    path = write(tmp_path, "".join(BODY))
    command = ["convert", str(path), str(tmp_path / "a.h5"), "--memory"]
    outcome = CliRunner().invoke(main, [*command, "4K"])
    assert outcome.exit_code == 0, outcome.output
    assert "triples, comma separated" in outcome.stdout and "(300)" in outcome.stdout
    assert CliRunner().invoke(main, [*command, "lots", "--force"]).exit_code == 2


def test_progress_rises_to_the_end(tmp_path):
    seen = []
    convert(write(tmp_path, "".join(BODY)), tmp_path / "a.h5", memory=TINY, progress=seen.append)
    assert seen == sorted(seen) and seen[-1] == 1.0 and len(seen) > 20


# --- faults -------------------------------------------------------------------------------------------------------

MANY = 12_000 if numba.config.DISABLE_JIT else 120_000


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return write(tmp_path_factory.mktemp("many"), "".join(random_lines(MANY, 500, 400)))


def command(source: Path, output: Path, *options: str, slow: bool = False) -> subprocess.Popen[str]:
    """Start the command; `slow` lets it wait a moment at each bucket."""
    script = "import sys, time; from fastrfm.conversion import buckets, sources\n"
    script += "sources._SMALLEST_BLOCK = 1 << 16\n"
    if slow:
        script += "check = buckets.check\nbuckets.check = lambda: (time.sleep(0.05), check())\n"
    script += "from fastrfm.cli import main; main(sys.argv[1:])"
    arguments = [sys.executable, "-c", script, "convert", str(source), str(output), "--memory", "200K", *options]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_scratch(folder: Path, process: subprocess.Popen[str]) -> Path:
    """Return the output in the making, once it is there: then the buckets are full."""
    for _ in range(1200):
        found = list(folder.glob(".fastrfm-*.scratch/*.part"))
        if found:
            time.sleep(0.2)
            return found[0]
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("no output was begun")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 1)])
def test_a_signal_leaves_nothing_but_the_old_file(many, tmp_path, number, code):
    output = tmp_path / "out.h5"
    output.write_bytes(b"old")
    process = command(many, output, "--force", slow=True)
    wait_for_scratch(tmp_path, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert list(tmp_path.iterdir()) == [output] and output.read_bytes() == b"old"


def test_after_a_kill_the_next_run_cleans_up_and_succeeds(many, tmp_path):
    output = tmp_path / "out.h5"
    process = command(many, output, slow=True)
    wait_for_scratch(tmp_path, process)
    process.kill()
    process.communicate(timeout=60)
    assert not output.exists() and len(list(tmp_path.iterdir())) == 1
    process = command(many, output)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert list(tmp_path.iterdir()) == [output]
    assert open_observations(output).n_observed == MANY


def test_a_folder_in_use_is_left_alone(tmp_path):
    with scratch_folder(tmp_path / "a.h5") as first:
        with scratch_folder(tmp_path / "b.h5") as second:
            assert first.is_dir() and second.is_dir() and first != second
        assert first.is_dir() and not second.exists()
        handle = os.open(first / "lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(handle)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("force", [True, False])
def test_two_at_once_never_mix(many, tmp_path, force):
    other = write(tmp_path, "".join(random_lines(MANY, 500, 400, seed=5)))
    output = tmp_path / "out.h5"
    options = ["--force"] if force else []
    runs = [command(source, output, *options) for source in (many, other)]
    errors = [run.communicate(timeout=120)[1] for run in runs]
    codes = [run.returncode for run in runs]
    assert codes == [0, 0] if force else sorted(codes) == [0, 1], errors
    if not force:
        assert "exists already" in errors[codes.index(1)]
    assert sorted(tmp_path.iterdir()) == [output, other]
    found = content(output)
    wanted = []
    for source in (many, other):
        write_observations(tmp_path / "plain.h5", read_observations(source), force=True)
        wanted.append(content(tmp_path / "plain.h5"))
    assert found in wanted if force else found == wanted[codes.index(0)]


@pytest.mark.compiled_only
@pytest.mark.parametrize("limit", [100_000, 1_000_000, 2_000_000])
@pytest.mark.parametrize("is_text", [True, False])
def test_a_full_disk_is_a_clean_error(many, tmp_path, tmp_path_factory, limit, is_text):
    output, source = tmp_path / "out.h5", many
    if not is_text:
        source = tmp_path_factory.mktemp("hdf5") / "triples.h5"
        with h5py.File(source, "w") as file:
            for name, values in zip(("rows", "cols", "values"), read_observations(many).to_coo(), strict=True):
                file[name] = values
    output.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[0][1]))
        with pytest.raises(WriteError, match=r"out\.h5: writing failed, File too large"):
            convert(source, output, memory=200_000, force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before[0])
        signal.signal(signal.SIGXFSZ, before[1])
    assert list(tmp_path.iterdir()) == [output] and output.read_bytes() == b"old"


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_folder_that_is_read_only(tmp_path):
    path = write(tmp_path, "".join(BODY))
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    with pytest.raises(WriteError, match="no permission to write"):
        convert(path, folder / "out.h5", memory=TINY)


def test_a_folder_that_refuses_the_scratch(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path, "".join(BODY))
    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(WriteError, match="writing failed, Permission denied"):
        convert(path, tmp_path / "out.h5", memory=TINY)
    assert list(tmp_path.iterdir()) == [path]


def test_an_output_that_appears_meanwhile_is_kept(tmp_path):
    path, output = write(tmp_path, "".join(BODY)), tmp_path / "out.h5"

    def appear(share: float) -> None:
        if share == 1.0:
            output.write_bytes(b"theirs")

    with pytest.raises(OutputExistsError):
        convert(path, output, memory=TINY, progress=appear)
    assert output.read_bytes() == b"theirs" and sorted(tmp_path.iterdir()) == [output, path]


def test_names_of_any_length_fit_into_the_room_taken(tmp_path):
    lines = [f"{'long ' * (k % 50)}{k},{'é' * (k % 7)}{k},{k}\n" for k in range(3000)]
    assert_same(write(tmp_path, "".join(lines)), layout="triples")


def test_threads_may_convert_at_once(tmp_path):
    path = write(tmp_path, "".join(BODY))
    outputs = [tmp_path / f"{k}.h5" for k in range(4)]
    threads = [threading.Thread(target=convert, args=(path, out), kwargs={"memory": TINY}) for out in outputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({str(content(out)) for out in outputs}) == 1
    assert len(list(tmp_path.iterdir())) == 5


def test_a_long_head_and_lines_that_end_in_returns(tmp_path):
    comments = "# nothing\n" * 200_000
    path = write(tmp_path, comments + "".join(BODY))
    stream = open_stream(path)
    assert stream.first_line == 200_001 and stream.n_skipped == len(comments)
    assert_same(path)
