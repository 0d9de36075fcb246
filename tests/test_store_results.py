"""Results in HDF5 files: exact round trips, refusals, and writing that fails half-way."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import resource

import h5py
import numpy as np
import pytest
from samples import (
    COL_NAMES,
    NAN,
    ROW_NAMES,
    change,
    drop,
    drop_attr,
    make_result,
    observations,
    replace,
    set_attr,
)

from fastrfm.errors import FileFormatError, InputError, OutputExistsError, WriteError
from fastrfm.observations import Observations
from fastrfm.results import CompletionResult, Selection
from fastrfm.store import describe, read_result, write_observations, write_result


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


# --- results ------------------------------------------------------------------------------------------------------


def selection() -> Selection:
    fits = {"agop_power": np.array([0.25, 0.375]), "ridge": np.array([3.0, 1.0]), "rmse": np.array([0.9, 0.8])}
    fits |= {"offsets": np.array([True, False]), "implicit": np.array([0, 20])}
    numbers = np.array([0, 1, 1]), np.array([2, 0, 1]), np.array([1.0, -2.0, 0.5]), np.array([0.5, 0.1, 0.3])
    return Selection(fits, 1, *numbers)


def test_selection_and_bounds_come_back(tmp_path):
    result = dataclasses.replace(make_result(), selection=selection(), bounds=(-1.5, 2.0))
    write_result(tmp_path / "r.h5", result)
    back = read_result(tmp_path / "r.h5")
    assert back.bounds == (-1.5, 2.0)
    assert back.selection is not None and back.selection.chosen == 1 and back.selection.rmse == 0.8
    for name, values in selection().fits.items():
        assert back.selection.fits[name].dtype == values.dtype
        np.testing.assert_array_equal(back.selection.fits[name], values)
    for name in ("rows", "cols", "values", "predicted"):
        np.testing.assert_array_equal(getattr(back.selection, name), getattr(selection(), name))
    bare = tmp_path / "bare.h5"
    write_result(bare, make_result())
    assert read_result(bare).selection is None and read_result(bare).bounds is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file["result/selection"].attrs.__setitem__("chosen", 2),
        lambda file: file["result/selection"].attrs.__delitem__("n_fits"),
        lambda file: file["result/selection/fits"].__delitem__("rmse"),
        lambda file: file["result/selection/held_out"].__delitem__("predicted"),
        lambda file: file["result/selection"].__delitem__("held_out"),
        lambda file: file["result/selection"].attrs.__setitem__("n_held_out", 4),
        lambda file: (file["result"].__delitem__("bounds"), file.create_dataset("result/bounds", data=np.zeros(3))),
    ],
)
def test_damaged_selections_and_bounds_are_refused(tmp_path, damage):
    path = tmp_path / "r.h5"
    write_result(path, dataclasses.replace(make_result(), selection=selection(), bounds=(-1.5, 2.0)))
    with h5py.File(path, "a") as file:
        damage(file)
    with pytest.raises(FileFormatError):
        read_result(path)


def test_predictions_stay_within_the_bounds_and_top_keeps_the_order_of_the_estimate():
    free = make_result()
    dense = free.to_dense()
    bounds = tuple(np.quantile(dense, [0.3, 0.7]).tolist())
    bounded = dataclasses.replace(free, bounds=bounds)
    np.testing.assert_array_equal(bounded.to_dense(), np.clip(dense, *bounds))
    rows, cols = np.indices(dense.shape)
    np.testing.assert_array_equal(bounded.predict(rows, cols), np.clip(free.predict(rows, cols), *bounds))
    cols, values = free.top(None, 2)
    np.testing.assert_array_equal(bounded.top(None, 2)[0], cols)
    np.testing.assert_array_equal(bounded.top(None, 2)[1], np.clip(values, *bounds))


OPTIONS = {
    "method": "auto",
    "rank": None,
    "agop_power": 0.1 + 0.2,
    "ridge": 0.0,
    "offsets": True,
    "is_off": False,
    "max_iter": 3000,
    "negative": -(2**63),
    "random_state": 2**63 + 1,
    "empty": "",
    "text": "Łódź",
    "tiny": 5e-324,
    "infinite": np.inf,
}


@pytest.mark.parametrize("offsets", [True, False])
@pytest.mark.parametrize("names", [True, False])
def test_result_round_trip(tmp_path, offsets, names):
    want = make_result(offsets, names, **OPTIONS)
    write_result(tmp_path / "x.h5", want)
    got = read_result(tmp_path / "x.h5")
    for name in ("left", "right", "singular_values"):
        assert getattr(got, name).dtype == getattr(want, name).dtype
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
    for name in ("rank", "stop_reason", "masked_rmse", "n_observed", "n_empty_rows", "n_empty_cols", "n_iter"):
        assert getattr(got, name) == getattr(want, name)
        assert type(getattr(got, name)) is type(getattr(want, name))
    assert got.options == OPTIONS
    assert {name: type(value) for name, value in got.options.items()} == {
        name: type(value) for name, value in OPTIONS.items()
    }
    assert list(got.history) == list(want.history)  # in the order of the run
    for name, values in want.history.items():
        assert got.history[name].dtype == values.dtype
        np.testing.assert_array_equal(got.history[name], values)
    if offsets:
        assert got.offsets.mean == want.offsets.mean
        np.testing.assert_array_equal(got.offsets.rows, want.offsets.rows)
        np.testing.assert_array_equal(got.offsets.cols, want.offsets.cols)
    else:
        assert got.offsets is None
    assert (got.row_names.tolist() if names else got.row_names) == (ROW_NAMES if names else None)
    assert (got.col_names.tolist() if names else got.col_names) == (COL_NAMES if names else None)
    np.testing.assert_array_equal(got.to_dense(), want.to_dense())


def test_numpy_scalars_and_empty_history(tmp_path):
    empty = {"change": np.empty(0), "seconds": np.empty(0)}
    want = CompletionResult(
        left=np.zeros((2, 0)),
        right=np.zeros((3, 0)),
        offsets=None,
        rank=np.int64(0),
        singular_values=np.empty(0),
        history=empty,
        stop_reason="max_iter",
        masked_rmse=np.float64(NAN),
        n_observed=np.int32(1),
        n_empty_rows=0,
        n_empty_cols=0,
        options={"ridge": np.float64(0.5), "offsets": np.bool_(True)},
    )
    write_result(tmp_path / "x.h5", want)
    got = read_result(tmp_path / "x.h5")
    assert got.left.shape == (2, 0) and got.n_iter == 0 and got.seconds == 0.0 and np.isnan(got.masked_rmse)
    assert got.options == {"ridge": 0.5, "offsets": True} and got.options["offsets"] is True


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, object(), 2**64, 1j])
def test_options_that_cannot_be_stored(tmp_path, value):
    with pytest.raises(InputError, match="odd must"):
        write_result(tmp_path / "x.h5", make_result(odd=value))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("act", "message"),
    [
        *[(drop(f"result/{name}"), f"dataset /result/{name} is missing") for name in ("left", "right")],
        (drop("result/singular_values"), "dataset /result/singular_values is missing"),
        (drop("result/history"), "group /result/history is missing"),
        (drop("result/history/change"), "dataset /result/history/change is missing"),
        (drop("result/options"), "group /result/options is missing"),
        (drop("result/offsets/rows"), "dataset /result/offsets/rows is missing"),
        (drop("result/offsets/cols"), "dataset /result/offsets/cols is missing"),
        (drop("result"), "group /observations is missing"),
        (drop_attr("result/offsets", "mean"), "attribute mean of /result/offsets is missing"),
        *[
            (drop_attr("result", name), f"attribute {name} of /result is missing")
            for name in ("rank", "stop_reason", "n_iter", "masked_rmse", "n_observed", "n_empty_rows", "n_empty_cols")
        ],
        (set_attr("result", "rank", "two"), "attribute rank of /result has the wrong type: got 'two'"),
        (set_attr("result", "stop_reason", 3), "attribute stop_reason of /result has the wrong type"),
        (replace("result/left", np.ones(3)), "must have 2 dimension"),
        (replace("result/right", np.ones((4, 3))), r"right must have shape \(any, 2\), got \(4, 3\)"),
        (replace("result/right", np.ones((5, 2))), r"/result/offsets/cols must have shape \(5\)"),
        (replace("result/singular_values", np.ones(3)), r"singular_values must have shape \(2\)"),
        (replace("result/history/seconds", np.ones(2)), r"seconds must have shape \(3\), got \(2,\)"),
        (replace("result/left", [[b"a", b"b"]] * 3), "must hold real numbers"),
        (replace("row_names", ["a"]), "/row_names must hold 3 names"),
    ],
)
def test_bad_results(result_path, act, message):
    change(result_path, act)
    for read in (read_result, describe):
        with pytest.raises(FileFormatError, match=message) as caught:
            read(result_path)
        assert str(caught.value).startswith(f"{result_path}: ")


def test_result_group_replaced_by_a_dataset(result_path):
    change(result_path, replace("result/history", np.ones(3)))
    with pytest.raises(FileFormatError, match="/result/history must be a group, got a dataset"):
        read_result(result_path)


# --- writing that fails -------------------------------------------------------------------------------------------

WRITERS = [(write_observations, observations), (write_result, make_result)]


@pytest.mark.parametrize(("write", "make"), WRITERS)
def test_existing_output_is_kept_without_force(path, write, make):
    before = path.read_bytes()
    with pytest.raises(OutputExistsError, match="exists already"):
        write(path, make())
    assert path.read_bytes() == before
    write(path, make(), force=True)


@pytest.mark.parametrize(("write", "make"), WRITERS)
def test_missing_folder(tmp_path, write, make):
    with pytest.raises(WriteError, match="does not exist: make it first"):
        write(tmp_path / "absent" / "x.h5", make())


@pytest.mark.parametrize(("write", "make"), WRITERS)
@pytest.mark.parametrize("after", [0, 1, 2, 3, 4])
def test_failure_at_any_dataset(path, monkeypatch, write, make, after):
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    real, calls = h5py.Group.create_dataset, []

    def fail(self, *args, **kwargs):
        calls.append(args)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(h5py.Group, "create_dataset", fail)
    with pytest.raises(WriteError, match=r"good\.h5: writing failed, No space left on device"):
        write(path, make(), force=True)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    assert [found.name for found in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(("write", "make"), WRITERS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_failing_flush_and_interruption(path, monkeypatch, write, make, error):
    before = path.read_bytes()

    def fail(_handle):
        raise error()

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(WriteError if error is OSError else error):
        write(path, make(), force=True)
    assert path.read_bytes() == before
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_a_real_limit_on_file_size(tmp_path):
    """The operating system itself refuses to let the file grow, in the middle of a dataset."""
    dense = np.random.RandomState(0).standard_normal((400, 100))
    target = tmp_path / "x.h5"
    write_observations(target, observations())
    before = target.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(WriteError, match=r"x\.h5: writing failed, File too large; nothing was changed"):
            write_observations(target, Observations.from_dense(dense), force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("name", ["nul\0", "\ud800"])
def test_names_that_hdf5_cannot_hold(tmp_path, name):
    with pytest.raises(WriteError, match="writing failed"):
        write_observations(tmp_path / "x.h5", Observations.from_dense([[1.0]], row_names=[name]))
    assert list(tmp_path.iterdir()) == []
