"""HDF5 files that cannot be used: each gives one clear error that begins with the path."""

from __future__ import annotations

import anndata
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from samples import (
    NAN,
    change,
    drop,
    drop_attr,
    make_result,
    observations,
    replace,
    set_attr,
)

from fastrfm.errors import FileFormatError, InputError, MissingFileError
from fastrfm.store import describe, open_observations, read_result, write_observations, write_result


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


# --- refusing: files ----------------------------------------------------------------------------------------------


def test_missing_file(tmp_path):
    for read in (open_observations, read_result, describe):
        with pytest.raises(MissingFileError, match=r"absent\.h5: no such file"):
            read(tmp_path / "absent.h5")
    with pytest.raises(FileNotFoundError):
        open_observations(str(tmp_path / "absent.h5"))


def test_folder(tmp_path):
    for read in (open_observations, read_result, describe):
        with pytest.raises(FileFormatError, match="is a folder, wanted an HDF5 file"):
            read(tmp_path)


@pytest.mark.parametrize("content", [b"row,col,value\n0,0,1\n", b"\x89HD", b"\0" * 5000])
def test_not_hdf5(tmp_path, content):
    (tmp_path / "x.h5").write_bytes(content)
    for read in (open_observations, read_result, describe):
        with pytest.raises(FileFormatError, match=r"x\.h5: not an HDF5 file"):
            read(tmp_path / "x.h5")


def test_empty_file(tmp_path):
    (tmp_path / "x.h5").touch()
    with pytest.raises(FileFormatError, match=r"x\.h5: is empty"):
        open_observations(tmp_path / "x.h5")


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.5, 0.8, 0.95, 0.999])
def test_truncated(path, result_path, share):
    for target, read in ((path, open_observations), (path, describe), (result_path, read_result)):
        whole = target.read_bytes()
        cut = target.with_name("cut.h5")
        cut.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(FileFormatError, match=r"cut\.h5: (truncated|cannot be opened as HDF5)"):
            read(cut)


def test_damaged_bytes_never_give_another_error(path, result_path):
    rng = np.random.RandomState(0)
    for target, read in ((path, describe), (result_path, describe)):
        whole = target.read_bytes()
        for _ in range(60):
            damaged = bytearray(whole)
            at = rng.randint(len(damaged) - 8)
            damaged[at : at + 8] = rng.bytes(8)
            target.with_name("bad.h5").write_bytes(bytes(damaged))
            try:
                read(target.with_name("bad.h5"))
            except (FileFormatError, InputError) as error:
                assert str(error).startswith(str(target.with_name("bad.h5")))


@pytest.mark.parametrize("version", [0, 2, "1", 1.5])
def test_unknown_version(path, result_path, version):
    for target, read in ((path, open_observations), (path, describe), (result_path, read_result)):
        change(target, set_attr("/", "format_version", version))
        with pytest.raises(FileFormatError, match=r"\.h5: format_version .* is unknown, wanted 1"):
            read(target)


def test_missing_version(path):
    change(path, drop_attr("/", "format_version"))
    with pytest.raises(FileFormatError, match="attribute format_version of / is missing"):
        open_observations(path)


def test_wrong_sort_of_file(path, result_path):
    with pytest.raises(FileFormatError, match="holds a result and no observations"):
        open_observations(result_path)
    with pytest.raises(FileFormatError, match="holds no result"):
        read_result(path)


def test_nothing_to_read(tmp_path, path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["line"] = np.arange(3.0)
        file["broken"] = h5py.SoftLink("/nowhere")
    with pytest.raises(FileFormatError, match=r"not exactly one 2-D dataset .*found none"):
        open_observations(tmp_path / "x.h5")
    change(tmp_path / "x.h5", lambda file: file.update(a=np.ones((2, 2)), b=np.ones((2, 2))))
    with pytest.raises(FileFormatError, match="found a, b"):
        open_observations(tmp_path / "x.h5")
    change(path, drop("observations"))
    with pytest.raises(FileFormatError, match="group /observations is missing"):
        open_observations(path)


# --- refusing: datasets and numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (drop("observations/data"), FileFormatError, "dataset /observations/data is missing"),
        (drop("observations/indices"), FileFormatError, "dataset /observations/indices is missing"),
        (drop("observations/indptr"), FileFormatError, "dataset /observations/indptr is missing"),
        (drop_attr("observations", "shape"), FileFormatError, "attribute shape of /observations is missing"),
        (drop_attr("observations", "encoding-type"), FileFormatError, "attribute encoding-type of .* is missing"),
        (set_attr("observations", "encoding-type", "array"), FileFormatError, "got encoding-type 'array'"),
        (set_attr("observations", "shape", [3]), FileFormatError, "must be two whole numbers"),
        (set_attr("observations", "shape", [3.0, 4.0]), FileFormatError, "must be two whole numbers"),
        (set_attr("observations", "shape", "3x4"), FileFormatError, "attribute shape of .* has the wrong type"),
        (replace("observations/indptr", [0, 2, 4]), FileFormatError, r"indptr must have shape \(4\), got \(3,\)"),
        (set_attr("observations", "shape", [2, 4]), FileFormatError, "/row_names must hold 2 names"),
        (set_attr("observations", "shape", [0, 4]), InputError, "the matrix is empty"),
        (set_attr("observations", "shape", [3, -4]), InputError, "the matrix is empty"),
        (replace("observations/data", np.ones(3)), FileFormatError, r"indices must have shape \(3\), got \(4,\)"),
        (replace("observations/data", np.ones((2, 2))), FileFormatError, r"must have 1 dimension.*\(2, 2\)"),
        (replace("observations/data", 1.0), FileFormatError, r"must have 1 dimension.*\(\)"),
        (replace("observations/data", h5py.Empty("f8")), FileFormatError, "must have 1 dimension.*None"),
        (replace("observations/data", [b"a"] * 4), FileFormatError, "data must hold real numbers"),
        (replace("observations/data", np.ones(4, complex)), FileFormatError, "data must hold real numbers"),
        (replace("observations/indices", np.zeros(4)), FileFormatError, "indices must hold whole numbers"),
        (replace("observations/indptr", np.zeros(4)), FileFormatError, "indptr must hold whole numbers"),
        (replace("observations/indices", [0, 4, 1, 2]), InputError, r"column number 4 .*outside 0…3"),
        (replace("observations/indices", [0, -1, 1, 2]), InputError, "column number -1"),
        (replace("observations/indices", [2, 2, 1, 2]), InputError, "duplicated observations, the first at row 0"),
        (replace("observations/indptr", [0, 3, 2, 4]), InputError, "indptr must rise from 0"),
        (replace("observations/indptr", [0, 2, 2, 3]), InputError, "indptr must rise from 0"),
        (replace("observations/indptr", [1, 2, 2, 4]), InputError, "indptr must rise from 0"),
        (replace("observations/data", [1, NAN, 2, 3]), InputError, "must be finite, got nan at row 0, column 2"),
        (replace("observations/data", [1, 2, 3, np.inf]), InputError, "must be finite, got inf at row 2, column 2"),
        (replace("row_names", ["a", "b"]), FileFormatError, r"/row_names must hold 3 names, got shape \(2,\)"),
        (replace("col_names", np.ones(4, complex)), FileFormatError, "/col_names must hold text"),
        (replace("col_names", np.array([b"\xff"] * 4)), FileFormatError, "damaged"),
    ],
)
def test_bad_observations(path, act, error, message):
    change(path, act)
    for read in (open_observations, describe):
        with pytest.raises(error, match=message) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ")


def test_group_in_place_of_a_dataset(path):
    change(path, lambda file: (file.pop("observations/data"), file.create_group("observations/data")))
    with pytest.raises(FileFormatError, match="/observations/data must be a dataset, got a group"):
        open_observations(path)


def test_no_observation_stored(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        anndata.io.write_elem(file, "observations", sp.csr_matrix((2, 3)))
    with pytest.raises(InputError, match=r"x\.h5: no observations"):
        open_observations(tmp_path / "x.h5")


@pytest.mark.parametrize(
    ("indptr", "indices", "message"),
    [
        ([0, 1, 1, 2, 2], [0, 3], r"row number 3 \(entry 1\) is outside 0…2"),
        ([0, 2, 2, 2, 2], [1, 1], "duplicated observations, the first at row 1, column 0"),
        ([0, 2, 1, 2, 2], [0, 1], "must rise"),
    ],
)
def test_bad_columns(tmp_path, indptr, indices, message):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        group = file.create_group("observations")
        group.attrs.update({"encoding-type": "csc_matrix", "shape": [3, 4]})
        group.update({"data": np.ones(2), "indices": np.array(indices), "indptr": np.array(indptr)})
    with pytest.raises(InputError, match=message):
        open_observations(tmp_path / "x.h5")


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        (np.full((2, 2), NAN), InputError, "no observations"),
        (np.array([[1.0, np.inf]]), InputError, "must be finite, got inf"),
        (np.ones((0, 3)), InputError, "the matrix is empty"),
        (np.ones((2, 2), complex), FileFormatError, "must hold real numbers"),
    ],
)
def test_bad_matrix(tmp_path, matrix, error, message):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["m"] = matrix
    with pytest.raises(error, match=rf"x\.h5: .*{message}"):
        open_observations(tmp_path / "x.h5")
