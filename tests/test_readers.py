"""Readers: every format to the same observations, the layout rule, names, and errors that say where."""

from __future__ import annotations

import csv
import gzip
import io
import math
from pathlib import Path

import anndata
import numpy as np
import pytest
import scipy.io
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrfm.errors import FastrfmError, FileFormatError, InputError, MissingFileError
from fastrfm.observations import Observations
from fastrfm.readers import read_observations, read_with_notes, triples

NAN = math.nan


def entries(observations: Observations) -> dict[tuple[str, str], float]:
    """Return {(row name or position, column name or position): value}."""
    rows, cols, values = observations.to_coo()
    row_names = observations.row_names if observations.row_names is not None else range(observations.n_rows)
    col_names = observations.col_names if observations.col_names is not None else range(observations.n_cols)
    return {(str(row_names[i]), str(col_names[j])): float(v) for i, j, v in zip(rows, cols, values, strict=True)}


def write(folder: Path, content: str | bytes, name: str = "ratings.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def message(path: Path, error: type[FastrfmError] = FileFormatError, **options: object) -> str:
    with pytest.raises(error) as caught:
        read_observations(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- triples ------------------------------------------------------------------------------------------------------

WANTED = {("1", "30"): 4.0, ("2", "5"): 3.5, ("10", "30"): -1.0}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ratings.csv", "userId,movieId,rating,timestamp\n10,30,-1.0,9\n1,30,4.0,8\n2,5,3.5,7\n"),
        ("u.data", "10\t30\t-1\t881250949\n1\t30\t4\t881250949\n2\t5\t3.5\t881250949\n"),
        ("ratings.dat", "10::30::-1::978300760\n1::30::4::978302109\n2::5::3.5::978301968\n"),
        ("semicolons.csv", "10;30;-1\r\n1;30;4\r\n2;5;3.5\r\n"),
        ("blanks.txt", "  10 30   -1\n1 30 4 \n2 5 3.5"),
        ("bom.csv", b"\xef\xbb\xbfuser,item,score\n10,30,-1\n1,30,4\n2,5,3.5\n"),
        ("quoted.csv", '"user","item","score"\n"10","30","-1"\n"1","30","4"\n"2","5","3.5"\n'),
        ("comments.csv", "# made by hand\n% twice\n\n10,30,-1\n\n1,30,4\n   \n2,5,3.5\n\n"),
        ("spaces.csv", "10, 30, -1\n1, 30, 4\n2, 5, 3.5\n"),
        ("text_behind.csv", "10,30,-1,it was bad\n1,30,4,ünder\n2,5,3.5,\n"),
        ("missing.csv", "10,30,-1\n1,30,4\n2,5,3.5\n"),
        ("packed.csv.gz", gzip.compress(b"10,30,-1\n1,30,4\n2,5,3.5\n")),
    ],
)
def test_triples_in_every_dress(tmp_path, name, content):
    reading = read_with_notes(write(tmp_path, content, name))
    observations = reading.observations
    assert reading.layout.startswith("triples")
    assert entries(observations) == WANTED
    assert observations.row_names.tolist() == ["1", "2", "10"]  # ascending as numbers, no empty rows for the gaps
    assert observations.col_names.tolist() == ["5", "30"]


def test_words_become_names_in_order_of_first_appearance(tmp_path):
    path = write(tmp_path, 'user,item,score\nzoë,"Up, up",1\nadam,Jaws,2\nzoë,Jaws,3\n')
    observations = read_observations(path)
    assert observations.row_names.tolist() == ["zoë", "adam"]
    assert observations.col_names.tolist() == ["Up, up", "Jaws"]
    assert entries(observations) == {("zoë", "Up, up"): 1.0, ("adam", "Jaws"): 2.0, ("zoë", "Jaws"): 3.0}


@pytest.mark.parametrize("label", ["007", "+7", "-0", "1.0", "1e3", "1_0", "12345678901234567890"])
def test_labels_that_only_resemble_numbers_stay_as_written(tmp_path, label):
    observations = read_observations(write(tmp_path, f"7,1,2.5\n{label},1,3.5\n8,1,4\n"), layout="triples")
    assert observations.row_names.tolist() == ["7", label, "8"]


def test_indexed_positions(tmp_path):
    observations = read_observations(write(tmp_path, "0,3,1\n2,0,5\n"), indexed=True)
    assert observations.shape == (3, 4)
    assert observations.row_names is None and observations.col_names is None
    assert entries(observations) == {("0", "3"): 1.0, ("2", "0"): 5.0}


def test_a_missing_value_is_not_observed_but_its_labels_count(tmp_path):
    reading = read_with_notes(write(tmp_path, "a,x,1\nb,x,NA\na,y,\na,z,nan\nc,x,2\n"))
    assert reading.observations.shape == (3, 3)
    assert entries(reading.observations) == {("a", "x"): 1.0, ("c", "x"): 2.0}
    assert any("3 lines without a value" in note for note in reading.notes)


def test_numeric_file_with_missing_values_takes_the_same_meaning(tmp_path):
    assert entries(read_observations(write(tmp_path, "1,1,1\n2,1,nan\n1,2,3\n"))) == {("1", "1"): 1.0, ("1", "2"): 3.0}


# --- the layout rule ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "layout"),
    [
        ("1,2,3\n4,5,6\n", "triples"),
        ("a,b,0.5\n", "triples"),
        ("1,2,3,4\n5,6,7,8\n", "triples"),
        ("1,2\n3,4\n", "dense"),
        ("1,2,3,4,5\n3,4,5,6,7\n", "dense"),
        ("0.5,1.5,2.5\n3,4,5\n0.1,0.2,0.3\n", "dense"),
        (",s1,s2\na,1,2\nb,3,4\n", "dense"),
        ("1,,3\n,2,3\n4,,5\n", "dense"),
    ],
)
def test_layout_rule(tmp_path, content, layout):
    assert read_with_notes(write(tmp_path, content)).layout.startswith(layout)


def test_layout_can_be_said_and_a_guess_is_told(tmp_path):
    path = write(tmp_path, "1,2,3\n4,5,6\n")
    assert any("ask for the dense layout" in note for note in read_with_notes(path).notes)
    reading = read_with_notes(path, layout="dense")
    assert reading.observations.shape == (2, 3) and not reading.notes
    path = write(tmp_path, "a,b,c,d,e\nx,y,1,2,3\n")
    assert entries(read_observations(path, layout="triples")) == {("x", "y"): 1.0}


# --- dense --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "rows", "cols"),
    [
        ("1,,3,4,5\nNA,nan,null,?,-\n6,7,8,9,NaN\n", None, None),
        ("a,b,c,d,e\n1,,3,4,5\n,,,,\n6,7,8,9,\n", None, list("abcde")),
        (",a,b,c,d,e\nx,1,,3,4,5\ny,,,,,\nz,6,7,8,9,\n", list("xyz"), list("abcde")),
        ("gene,a,b,c,d,e\n1x,1,,3,4,5\n2,,,,,\nz,6,7,8,9,\n", ["1x", "2", "z"], list("abcde")),
        ("x\t1\t\t3\t4\t5\ny\t\t\t\t\t\nz\t6\t7\t8\t9\t\n", list("xyz"), None),
        ('"a","b","c","d","e"\n"x",1,NA,3,4,5\n"y",NA,NA,NA,NA,NA\n"z",6,7,8,9,NA\n', list("xyz"), list("abcde")),
        (",0,1,2,3,4\n0,1,,3,4,5\n1,,,,,\n2,6,7,8,9,\n", list("012"), list("01234")),
        ("1 nan 3 4 5\nnan nan nan nan nan\n6 7 8 9 nan\n", None, None),
    ],
)
def test_dense_text(tmp_path, content, rows, cols):
    observations = read_observations(write(tmp_path, content))
    wanted = np.array([[1, NAN, 3, 4, 5], [NAN] * 5, [6, 7, 8, 9, NAN]])
    dense = np.full(observations.shape, NAN)
    i, j, values = observations.to_coo()
    dense[i, j] = values
    np.testing.assert_array_equal(dense, wanted)
    assert (None if observations.row_names is None else observations.row_names.tolist()) == rows
    assert (None if observations.col_names is None else observations.col_names.tolist()) == cols


def test_dense_single_column_and_single_row(tmp_path):
    assert read_observations(write(tmp_path, "score\n1\n2\n")).shape == (2, 1)
    assert read_observations(write(tmp_path, "1,2,3,4,5,6\n")).shape == (1, 6)


# --- other formats ------------------------------------------------------------------------------------------------

DENSE = np.array([[1.0, NAN, 0.0], [NAN, 2.5, NAN]])


def stored() -> scipy.sparse.coo_matrix:
    return scipy.sparse.coo_matrix(([1.0, 0.0, 2.5], ([0, 0, 1], [0, 2, 1])), shape=(2, 3))


def test_binary_formats_agree(tmp_path):
    np.save(tmp_path / "dense.npy", DENSE)
    np.savez(tmp_path / "dense.npz", matrix=DENSE)
    scipy.sparse.save_npz(tmp_path / "sparse.npz", stored())
    scipy.io.mmwrite(tmp_path / "sparse.mtx", stored())
    (tmp_path / "sparse.mtx.gz").write_bytes(gzip.compress((tmp_path / "sparse.mtx").read_bytes()))
    (tmp_path / "dense.npy.gz").write_bytes(gzip.compress((tmp_path / "dense.npy").read_bytes()))
    wanted = entries(Observations.from_dense(DENSE))
    assert wanted[("0", "2")] == 0.0  # a stored zero is an observation
    for path in sorted(tmp_path.iterdir()):
        assert entries(read_observations(path)) == wanted, path.name


def test_hdf5_goes_through_the_store(tmp_path):
    from fastrfm.store import write_observations

    write_observations(tmp_path / "a.h5", Observations.from_dense(DENSE))
    (tmp_path / "a.h5").rename(tmp_path / "without_suffix")
    assert entries(read_observations(tmp_path / "without_suffix")) == entries(Observations.from_dense(DENSE))
    table = anndata.AnnData(scipy.sparse.csr_matrix(np.array([[1.0, 0.0], [0.0, 2.0]])))
    table.obs_names, table.var_names = ["x", "y"], ["a", "b"]
    table.write_h5ad(tmp_path / "cells.h5ad")
    assert entries(read_observations(tmp_path / "cells.h5ad")) == {("x", "a"): 1.0, ("y", "b"): 2.0}


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("1,2,3\n4,5,abc\n6,7,8\n", "ratings.csv, line 2: expected a number in column 3, got 'abc'"),
        ("u,i,r\n\n1,2,3\n# no\n", "ratings.csv, line 4: expected 3 columns as in the lines above, got 1"),
        ("# top\n1,2,3\n4,5\n6,7,8\n", "ratings.csv, line 3: expected 3 columns"),
        ("1,2,3\n4,5,6,7\n", "ratings.csv, line 2: expected 3 columns"),
        ('u,i,r\na,"x\ny",1\nb,z,q\n', "ratings.csv, line 4: expected a number in column 3, got 'q'"),
        ("1,2,3\n,5,6\n", "line 2: the label in column 1 is empty"),
        ("1,2,3\n5,,6\n", "line 2: the label in column 2 is empty"),
        ("1;2;3,5\n1;3;4,5\n", "write decimals with a point"),
        ('a,"b,1\nc,d,2\n', "ratings.csv, line 1: not well-formed"),
        ('a,b,1\nc,"d"x,2\n', "ratings.csv, line 2: not well-formed"),
        ("a,b,c,d,e\n", "header but no line with data"),
        ("1,2,3,4,5\n1,2,x,4,5\n", "ratings.csv, line 2: expected a number or a missing value in column 3, got 'x'"),
        ("1,2,3,4,5\n1,2,4,5\n", "ratings.csv, line 2: expected 5 columns"),
        ("1,2,3,4,5\n1,2,4,5,1_0\n", "in column 5, got '1_0'"),
        ("1,2,3,4,5\n1,2,4,5,6\nq,2,3,4,5\n", "line 3: expected a number or a missing value in column 1, got 'q'"),
        ("", "ratings.csv is empty"),
        ("# only\n\n", "ratings.csv is empty"),
        ('""\n', "there is no data"),
        (b"1,2,3\n4,5,6\nM\xfcller,7,8\n", "ratings.csv, line 3: byte 0xfc is not UTF-8"),
        (b"\xff\xfe1\x00,\x002\x00", "is UTF-16"),
        (b"GIF89a\0\0\0", "neither text nor a known format"),
        (gzip.compress(b"1,2,3\n" * 1000)[:-20], "not complete gz data"),
        (b"\x93NUMPY\x01\x00", "not a readable NumPy array"),
        (b"PK\x03\x04 broken", "not a readable NumPy or SciPy archive"),
        (b"%%MatrixMarket matrix coordinate pattern general\n1 1 1\n1 1\n", "is a pattern"),
        (b"%%MatrixMarket matrix coordinate real general\n2 2 2\n1 1 x\n", "not a readable Matrix Market file"),
        (b"%%MatrixMarket matrix coordinate real general\n2 2 2\n1 1 1\n", "not a readable Matrix Market file"),
    ],
)
def test_malformed_files_say_where(tmp_path, content, said):
    assert said in message(write(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("u,i,r\n1,2,3\n\n4,5,6\n1,2,9\n", "ratings.csv, lines 2 and 5 both give row '1', column '2'"),
        ("a,x,3\na,x,3\na,x,4\n", "lines 1 and 2 both give row 'a', column 'x' (and 1 more such lines)"),
        ("1,2,3\n1,3,inf\n", "ratings.csv, line 2: the value must be finite, got 'inf'"),
        ("1,2,3,4,5\n1,2,1e999,4,5\n", "ratings.csv, line 2: column 3 is infinite"),
        ("NA,NA,,,\n,,,,\n", "ratings.csv: no observations"),
        ("a,x,NA\nb,y,NA\n", "ratings.csv: no observations"),
        (b"%%MatrixMarket matrix coordinate complex general\n1 1 1\n1 1 1 1\n", "complex"),
        (b"%%MatrixMarket matrix coordinate real general\n1 1 2\n1 1 1\n1 1 2\n", "duplicated"),
    ],
)
def test_unusable_numbers_say_where(tmp_path, content, said):
    assert said in message(write(tmp_path, content), InputError)


def test_a_guessed_layout_is_told_with_the_error(tmp_path):
    assert "ask for the dense layout" in message(write(tmp_path, "5,4,3\n5,4,1\n"), InputError)


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        ("a,0,1\n", FileFormatError, "line 1: expected a zero-based position in column 1, got 'a'"),
        ("0,0,1\n1,-1,1\n", FileFormatError, "line 2: expected a zero-based position in column 2, got '-1'"),
        ("0,999999999999,1\n", InputError, "read them as names"),
        ("0,1,1\n0,1,2\n", InputError, "lines 1 and 2 both give row '0', column '1'"),
    ],
)
def test_indexed_errors(tmp_path, content, error, said):
    assert said in message(write(tmp_path, content), error, indexed=True)


def test_options_that_do_not_apply(tmp_path):
    np.save(tmp_path / "dense.npy", DENSE)
    assert "layout has no meaning" in message(tmp_path / "dense.npy", InputError, layout="dense")
    assert "indexed has no meaning" in message(tmp_path / "dense.npy", InputError, indexed=True)
    assert "belong to triples" in message(tmp_path / "dense.npy", InputError, layout="dense", indexed=True)
    assert "layout must be one of" in message(tmp_path / "dense.npy", InputError, layout="wide")


def test_files_that_are_absent_or_something_else(tmp_path):
    assert "no such file" in message(tmp_path / "none.csv", MissingFileError)
    assert "is a folder" in message(tmp_path)
    for name in ("false.npy", "false.npz", "false.mtx.gz"):
        assert "does not start like one" in message(write(tmp_path, "1,2,3\n", name))
    message(write(tmp_path, "1,2,3\n", "false.h5"))


def test_arrays_that_do_not_fit(tmp_path):
    np.save(tmp_path / "a.npy", np.array(["x"]))
    assert "real numbers" in message(tmp_path / "a.npy", InputError)
    np.save(tmp_path / "a.npy", np.zeros(3))
    assert "2 dimensions" in message(tmp_path / "a.npy", InputError)
    np.save(tmp_path / "a.npy", np.array([object()]), allow_pickle=True)
    message(tmp_path / "a.npy")
    np.savez(tmp_path / "a.npz", x=DENSE, y=DENSE)
    assert "must hold one array, got 2: x, y" in message(tmp_path / "a.npz")
    import zipfile

    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("ratings.csv", "1,2,3\n")
    assert "unpack it" in message(tmp_path / "b.zip")


# --- both ways through a file of numbers, and round trips -----------------------------------------------------------

LABELS = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), min_size=1, max_size=5
)
FINITE = st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.compiled_only
@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.tuples(LABELS, LABELS), FINITE, min_size=1, max_size=12), st.sampled_from(",;\t"))
def test_csv_round_trip(tmp_path_factory, table, delimiter):
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerow(["row", "column", "value"])
    writer.writerows([*pair, repr(value)] for pair, value in table.items())
    path = write(tmp_path_factory.mktemp("round"), stream.getvalue())
    assert entries(read_observations(path, layout="triples")) == table


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.tuples(st.integers(0, 99), st.integers(-5, 10**17)), FINITE, min_size=1, max_size=12),
    st.booleans(),
)
def test_the_fast_and_the_careful_way_agree(tmp_path_factory, table, has_extra):
    extra = ",99" if has_extra else ""
    content = "".join(f"{row},{col},{value!r}{extra}\n" for (row, col), value in table.items())
    path = write(tmp_path_factory.mktemp("ways"), content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triples, "_COMPILED_FROM", 0)
        quick = read_observations(path, layout="triples")
        patch.setattr(triples, "_read_numbers", lambda *_: None)
        careful = read_observations(path, layout="triples")
    for name in ("indptr", "indices", "values", "row_names", "col_names"):
        assert getattr(quick, name).tolist() == getattr(careful, name).tolist()
    assert entries(quick) == {(str(row), str(col)): value for (row, col), value in table.items()}
