"""HDF5 files of observations: round trips, the real anndata in both directions, what `describe` says."""

from __future__ import annotations

import subprocess
import sys

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from samples import (
    COL_NAMES,
    DENSE,
    NAN,
    ROW_NAMES,
    assert_same,
    change,
    make_result,
    observations,
)

import fastrfm
from fastrfm.errors import FileFormatError, InputError
from fastrfm.observations import Observations
from fastrfm.store import describe, open_observations, write_observations, write_result


@pytest.fixture
def path(tmp_path):
    """Return a good file of observations."""
    write_observations(tmp_path / "good.h5", observations())
    return tmp_path / "good.h5"


@pytest.fixture
def result_path(tmp_path):
    """Return a good file of a result."""
    write_result(tmp_path / "result.h5", make_result())
    return tmp_path / "result.h5"


# --- observations, there and back ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("names", [True, False])
def test_round_trip(tmp_path, dtype, names):
    want = observations(dtype, names)
    write_observations(tmp_path / "x.h5", want)
    assert_same(open_observations(tmp_path / "x.h5"), want)
    assert_same(fastrfm.open_observations(str(tmp_path / "x.h5")), want)


def test_one_sided_names(tmp_path):
    want = Observations.from_dense(DENSE, col_names=COL_NAMES)
    write_observations(tmp_path / "x.h5", want)
    assert_same(open_observations(tmp_path / "x.h5"), want)


@pytest.mark.parametrize("shape", [(200, 3), (3, 200), (1, 1)])
def test_round_trip_of_random_shapes(tmp_path, shape):
    dense = np.random.RandomState(0).standard_normal(shape)
    dense[np.random.RandomState(1).random_sample(shape) < 0.5] = NAN
    dense[0, 0] = 0.0
    write_observations(tmp_path / "x.h5", Observations.from_dense(dense))
    assert_same(open_observations(tmp_path / "x.h5"), Observations.from_dense(dense))


def test_layout_is_the_documented_one(path):
    with h5py.File(path) as file:
        assert dict(file.attrs) == {"format": "fastrfm", "format_version": 1}
        assert set(file) == {"observations", "row_names", "col_names"}
        group = file["observations"]
        assert group.attrs["encoding-type"] == "csr_matrix" and group.attrs["encoding-version"] == "0.1.0"
        assert group.attrs["shape"].tolist() == [3, 4]
        assert {name: group[name].dtype for name in group} == {"data": "f8", "indices": "i4", "indptr": "i8"}
        assert all(group[name].chunks is None and group[name].compression is None for name in group)
        assert h5py.check_string_dtype(file["row_names"].dtype) == ("utf-8", None)


def test_same_content_same_bytes(tmp_path):
    for name in ("a.h5", "b.h5"):
        write_observations(tmp_path / name, observations(), attributes={"source": "x"})
        write_result(tmp_path / f"result-{name}", make_result(method="dense", rank=None))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    assert (tmp_path / "result-a.h5").read_bytes() == (tmp_path / "result-b.h5").read_bytes()


def test_extra_attributes(tmp_path):
    extra = {"source": "Łódź", "n": 3, "share": 0.5, "is_good": True, "nothing": None, "empty": ""}
    write_observations(tmp_path / "x.h5", observations(), attributes=extra)
    assert describe(tmp_path / "x.h5")["attributes"] == extra
    with pytest.raises(InputError, match="attribute name format is reserved"):
        write_observations(tmp_path / "y.h5", observations(), attributes={"format": "x"})
    with pytest.raises(InputError, match="tags must be None, a bool"):
        write_observations(tmp_path / "y.h5", observations(), attributes={"tags": ["a"]})
    assert [found.name for found in tmp_path.iterdir()] == ["x.h5"]


# --- what else opens ----------------------------------------------------------------------------------------------


def test_anndata_reads_ours(path):
    with h5py.File(path) as file:
        matrix = anndata.io.read_elem(file["observations"])
        names = anndata.io.read_elem(file["row_names"])
    assert sp.issparse(matrix) and matrix.format == "csr"
    assert_same(Observations.from_scipy(matrix), observations(names=False))
    assert list(names) == ROW_NAMES


def test_ours_reads_an_element_of_anndata(tmp_path):
    want = observations(names=False)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        matrix = sp.csr_matrix((want.values, want.indices, want.indptr), shape=want.shape)
        anndata.io.write_elem(file, "observations", matrix)
    assert_same(open_observations(tmp_path / "x.h5"), want)
    assert describe(tmp_path / "x.h5")["kind"] == "observations"


@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_h5ad(tmp_path, layout, dtype):
    want = observations(dtype)
    csr = sp.csr_matrix((want.values, want.indices, want.indptr), shape=want.shape)
    matrix = {"csr": csr, "csc": csr.tocsc(), "dense": DENSE.astype(dtype)}[layout]
    index = {"obs": pd.DataFrame(index=ROW_NAMES), "var": pd.DataFrame(index=COL_NAMES)}
    for compression in (None, "gzip"):
        target = tmp_path / f"{layout}-{compression}.h5ad"
        anndata.AnnData(matrix, **index).write_h5ad(target, compression=compression)
        assert_same(open_observations(target), want)
        about = describe(target)
        assert (about["kind"], about["dtype"], about["n_observed"]) == ("anndata", np.dtype(dtype).name, 4)


def test_h5ad_without_x(tmp_path):
    anndata.AnnData(obs=pd.DataFrame(index=["a"]), var=pd.DataFrame(index=["b"])).write_h5ad(tmp_path / "x.h5ad")
    with pytest.raises(FileFormatError, match="X"):
        open_observations(tmp_path / "x.h5ad")
    change(tmp_path / "x.h5ad", lambda file: file.pop("X", None))
    with pytest.raises(FileFormatError, match=r"x\.h5ad: is an anndata file without X"):
        open_observations(tmp_path / "x.h5ad")


def test_h5ad_without_names_and_with_nullable_names(tmp_path):
    target = tmp_path / "x.h5ad"
    anndata.AnnData(DENSE, pd.DataFrame(index=ROW_NAMES), pd.DataFrame(index=COL_NAMES)).write_h5ad(target)

    def act(file):
        del file["obs"].attrs["_index"]
        names = file["var"][file["var"].attrs["_index"]][...]
        del file["var"][file["var"].attrs["_index"]]
        file["var"].create_group(file["var"].attrs["_index"])["values"] = names

    change(target, act)
    found = open_observations(target)
    assert found.row_names is None and found.col_names.tolist() == COL_NAMES


@pytest.mark.parametrize("name", ["observations", "ratings"])
@pytest.mark.parametrize("dtype", ["f4", "f8", ">f8"])
def test_plain_matrix_with_nan(tmp_path, name, dtype):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file[name] = DENSE.astype(dtype)
        file["row_names"] = np.array(["r0", "r1", "r2"], dtype="S2")
        file["col_names"] = np.array([10, 20, 30, 40])
        file["other"] = np.arange(3.0)
    found = open_observations(tmp_path / "x.h5")
    want = observations(np.float32 if dtype == "f4" else np.float64, names=False)
    np.testing.assert_array_equal(found.values, want.values)
    np.testing.assert_array_equal(found.indices, want.indices)
    assert found.row_names.tolist() == ["r0", "r1", "r2"] and found.col_names.tolist() == ["10", "20", "30", "40"]
    assert describe(tmp_path / "x.h5")["kind"] == "dense"


def test_plain_matrix_of_whole_numbers_is_fully_observed(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["counts"] = np.array([[0, 1], [2, 3]])
    found = open_observations(tmp_path / "x.h5")
    assert found.n_observed == 4 and found.dtype == np.float64


@pytest.mark.parametrize("index_dtype", ["i4", "i8", "u4", "u8", ">i8"])
@pytest.mark.parametrize("value_dtype", ["f4", "f8", "i4", "u1", ">f8"])
def test_other_dtypes_and_order(tmp_path, index_dtype, value_dtype):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        group = file.create_group("observations")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [2, 3]})
        group.create_dataset("data", data=np.array([5, 1, 2], value_dtype), chunks=(2,), compression="gzip")
        group["indices"] = np.array([2, 0, 1], index_dtype)
        group["indptr"] = np.array([0, 2, 3], index_dtype)
    found = open_observations(tmp_path / "x.h5")
    assert found.indptr.dtype == np.int64 and found.indices.tolist() == [0, 2, 1]
    assert found.values.tolist() == [1.0, 5.0, 2.0]
    assert found.dtype == (np.float32 if value_dtype == "f4" else np.float64)


# --- describing ---------------------------------------------------------------------------------------------------


def test_describe_observations(path):
    assert describe(path) == {
        "kind": "observations",
        "shape": (3, 4),
        "n_observed": 4,
        "share_observed": 4 / 12,
        "dtype": "float64",
        "min_value": -2.5,
        "max_value": 3.0,
        "n_empty_rows": 1,
        "n_empty_cols": 1,
        "has_row_names": True,
        "has_col_names": True,
        "attributes": {},
        "n_bytes": path.stat().st_size,
    }


def test_describe_result(tmp_path):
    write_result(tmp_path / "x.h5", make_result(False, False, method="dense", rank=None))
    assert describe(str(tmp_path / "x.h5")) == {
        "kind": "result",
        "shape": (3, 4),
        "n_observed": 4,
        "share_observed": 4 / 12,
        "dtype": "float64",
        "n_empty_rows": 1,
        "n_empty_cols": 1,
        "rank": 2,
        "stop_reason": "converged",
        "n_iter": 3,
        "masked_rmse": 0.125,
        "has_offsets": False,
        "options": {"method": "dense", "rank": None},
        "has_row_names": False,
        "has_col_names": False,
        "attributes": {},
        "n_bytes": (tmp_path / "x.h5").stat().st_size,
    }


def test_attributes_of_other_writers(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["m"] = np.ones((2, 2))
        file.attrs.update({"bytes": np.bytes_(b"abc"), "list": [1, 2], "words": ["a", "b"], "format": [1, 2]})
    assert describe(tmp_path / "x.h5")["attributes"] == {"bytes": "abc", "list": [1, 2], "words": ["a", "b"]}


# A disk that fills up: a process that may write no file longer than a few kilobytes.
FULL_DISK = """
import resource, signal, sys
from fastrfm import Observations, write_observations
from fastrfm.errors import WriteError
import numpy as np

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    write_observations(sys.argv[1], Observations.from_dense(np.ones((60, 50))), force=True)
except WriteError as error:
    print(error)
    sys.exit(7)
"""


@pytest.mark.parametrize("limit", [0, 3000, 10_000])
def test_a_disk_that_fills_up_costs_nothing_but_the_output(tmp_path, limit):
    path = tmp_path / "old.h5"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", FULL_DISK, path, str(limit)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (7, "")
    assert "writing failed" in done.stdout
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


# --- a matrix by its name -----------------------------------------------------------------------------------------


@pytest.fixture
def several(tmp_path, path):
    """Return a file with matrices of every layout in groups, and some that are none."""
    with h5py.File(path, "r+") as file:
        want = observations()
        csr = sp.csr_matrix((want.values, want.indices, want.indptr), shape=want.shape)
        anndata.io.write_elem(file, "runs/rows", csr)
        anndata.io.write_elem(file, "runs/columns", csr.tocsc())
        file["runs/dense"] = DENSE
        file["runs/row_names"] = ROW_NAMES
        file["runs/col_names"] = ["of", "another"]
        file["runs/cube"] = np.ones((2, 2, 2))
        file["runs/text"] = [["a", "b"]]
        file["runs/missing"] = np.full((2, 2), NAN)
    return path


@pytest.mark.parametrize("name", ["runs/rows", "/runs/columns", "runs/dense/"])
def test_a_matrix_by_name_takes_the_names_that_fit(several, name):
    assert_same(open_observations(several, dataset=name), Observations.from_dense(DENSE, row_names=ROW_NAMES))
    assert_same(open_observations(several, dataset="observations"), observations())


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("runs/none", FileFormatError, "holds no /runs/none: name what is there"),
        ("runs/dense/deeper", FileFormatError, "holds no /runs/dense/deeper"),
        ("runs", FileFormatError, "/runs is a plain group: name a csr_matrix"),
        ("runs/cube", FileFormatError, "/runs/cube must have 2 dimension"),
        ("runs/text", FileFormatError, "/runs/text must hold real numbers"),
        ("runs/missing", InputError, "no observations"),
        ("", InputError, "dataset must name a dataset or a group inside the file, got ''"),
        ("/", InputError, "dataset must name"),
        (3, InputError, "dataset must name"),
    ],
)
def test_a_matrix_by_a_wrong_name(several, name, error, message):
    with pytest.raises(error, match=message) as caught:
        open_observations(several, dataset=name)
    assert str(caught.value).startswith(f"{several}: ")
