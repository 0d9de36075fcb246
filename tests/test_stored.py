"""Observations that stay in their file: the same as in memory, bit for bit, whatever the memory allowed."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
from problems import haar, random_mask

from fastrfm import blocks
from fastrfm.errors import FileFormatError, InputError, NotConvergedWarning
from fastrfm.observations import Observations
from fastrfm.results import CompletionResult
from fastrfm.solvers.completion import complete
from fastrfm.store import describe, open_observations, write_observations
from fastrfm.stored import StoredObservations

SMALL = 80 * 23  # bytes: blocks of 23 entries


def sample(shape: tuple[int, int] = (40, 30), seed: int = 1, dtype: type = np.float64) -> Observations:
    """Return a noisy matrix of rank 3 with an empty row and an empty column."""
    rng = np.random.RandomState(seed)
    truth = haar(rng, shape[0], 3) @ haar(rng, shape[1], 3).T
    table = (truth + 0.01 * rng.standard_normal(shape)).astype(dtype)
    mask = random_mask(rng, shape, 0.5)
    mask[3], mask[:, 5] = False, False
    names = {"row_names": [f"r{i}" for i in range(shape[0])], "col_names": [f"c{j}" for j in range(shape[1])]}
    return Observations.from_dense(np.where(mask, table, dtype(np.nan)), **names)


def write_layout(path: Path, observations: Observations, layout: str) -> None:
    """Write the observations in one of the layouts that are read from the file."""
    if layout == "contiguous":
        write_observations(path, observations)
        return
    with h5py.File(path, "w") as file:
        if layout.startswith("dense"):
            table = np.full(observations.shape, np.nan, dtype=observations.dtype)
            rows, cols, values = observations.to_coo()
            table[rows, cols] = values
            more = {"dense gzip": {"chunks": (7, 5), "compression": "gzip"}, "dense blosc": {"chunks": (9, 30)}}.get(
                layout, {}
            )
            if layout == "dense blosc":
                more |= hdf5plugin.Blosc()
            file.create_dataset("table", data=table, **more)
            for name in ("row_names", "col_names"):
                file[name] = [str(label) for label in getattr(observations, name)]
            return
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": observations.shape})
        for name, array in (("data", observations.values), ("indices", observations.indices)):
            group.create_dataset(name, data=array, chunks=(19,), compression="lzf")
        group["indptr"] = observations.indptr.astype(np.int32)
        file.create_group("obs").attrs["_index"] = file.create_group("var").attrs["_index"] = "_index"
        for axis, labels in (("obs", observations.row_names), ("var", observations.col_names)):
            file[axis]["_index"] = [str(label) for label in labels]


LAYOUTS = pytest.mark.parametrize("layout", ["contiguous", "anndata lzf", "dense", "dense gzip", "dense blosc"])


def stored(path: Path, observations: Observations, layout: str = "contiguous", memory: int = SMALL):
    write_layout(path, observations, layout)
    found = open_observations(path, memory=memory)
    assert isinstance(found, StoredObservations)
    return found


def gathered(observations: StoredObservations) -> Observations:
    """Return the entries of all blocks, in memory."""
    parts = [block.by_row for block in observations.row_blocks()]
    indices, values = (np.concatenate([getattr(part, name) for part in parts]) for name in ("indices", "values"))
    return Observations.from_csr(observations.indptr, indices, values, observations.shape)


def assert_same(found: Observations, wanted: Observations) -> None:
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    for name in ("indptr", "indices", "values"):
        assert getattr(found, name).dtype == getattr(wanted, name).dtype
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))


@LAYOUTS
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_blocks_hold_what_is_in_the_file(tmp_path, layout, dtype):
    wanted = sample(dtype=dtype)
    found = stored(tmp_path / "a.h5", wanted, layout)
    assert_same(gathered(found), wanted)
    assert len(list(found.row_blocks())) > 10
    np.testing.assert_array_equal(found.row_counts, wanted.row_counts)
    np.testing.assert_array_equal(found.col_counts, wanted.col_counts)
    assert (found.norm, found.value_range) == (wanted.norm, wanted.value_range)
    np.testing.assert_array_equal(found.row_names, wanted.row_names)
    np.testing.assert_array_equal(found.col_names, wanted.col_names)


@LAYOUTS
def test_a_file_that_fits_is_read(tmp_path, layout):
    write_layout(tmp_path / "a.h5", sample(), layout)
    assert_same(open_observations(tmp_path / "a.h5", memory=10**8), sample())
    assert_same(open_observations(tmp_path / "a.h5"), sample())


@LAYOUTS
@pytest.mark.parametrize("memory", [1, SMALL, 10 * SMALL])
def test_transposed_equals_that_in_memory(tmp_path, layout, memory):
    wanted = sample()
    found = stored(tmp_path / "a.h5", wanted, layout, memory).transposed()
    assert_same(gathered(found), wanted.transposed())
    np.testing.assert_array_equal(found.col_counts, wanted.row_counts)
    np.testing.assert_array_equal(found.row_names, wanted.col_names)
    assert_same(gathered(found.transposed()), wanted)


def test_shifted_equals_that_in_memory(tmp_path):
    def offsets_at(rows, cols):
        return 0.1 * rows + 0.01 * cols**2

    wanted = sample(dtype=np.float32)
    found = stored(tmp_path / "a.h5", wanted).shifted(offsets_at)
    assert found.dtype == np.float64
    assert_same(gathered(found), wanted.shifted(offsets_at))
    assert_same(gathered(found.transposed()), wanted.shifted(offsets_at).transposed())
    with pytest.raises(InputError, match="offsets are taken off already"):
        found.shifted(offsets_at)


@LAYOUTS
def test_split_leaves_nothing_out_and_nothing_twice(tmp_path, layout):
    wanted = sample((200, 60))
    memory = 36 * wanted.n_observed  # less than the observations take, more than those held out
    kept, held = stored(tmp_path / "a.h5", wanted, layout, memory).split(0.3, random_state=4)
    assert 0.25 < held.n_observed / wanted.n_observed < 0.35
    both = np.full(wanted.shape, np.nan)
    for part in (gathered(kept), held):
        rows, cols, values = part.to_coo()
        assert np.isnan(both[rows, cols]).all()
        both[rows, cols] = values
    assert_same(Observations.from_dense(both), wanted)
    smaller = open_observations(tmp_path / "a.h5", memory=memory - 8 * wanted.n_observed)
    assert_same(gathered(smaller.split(0.3, random_state=4)[0]), gathered(kept))  # other blocks, the same draw
    assert not np.array_equal(smaller.split(0.3, random_state=5)[0].indptr, kept.indptr)


def test_split_refuses_what_does_not_fit(tmp_path):
    with pytest.raises(InputError, match="does not fit into the memory allowed"):
        stored(tmp_path / "a.h5", sample()).split(0.5)
    with pytest.raises(InputError, match="hold-out share must lie between"):
        stored(tmp_path / "b.h5", sample()).split(1.0)


def quietly(observations, **options) -> CompletionResult:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)
        return complete(observations, **options)


OPTIONS = [
    {"method": "dense", "ridge": 0.01, "max_iter": 15},
    {"method": "dense", "agop_power": 0.25, "max_iter": 8, "offsets": True},
    {"method": "factored", "rank": 3, "max_iter": 15},
    {"method": "factored", "ridge": 0.05, "agop_power": 0.25, "max_iter": 15, "offsets": True},
    {"method": "two-sided", "rank": 3, "max_iter": 15},
    {"method": "two-sided", "max_iter": 40},
    {"method": "two-sided", "rank": 3, "ridge": 0.05, "agop_power": 0.25, "max_iter": 12, "offsets": True},
    {"method": "auto", "max_iter": 60},
]


@pytest.mark.compiled_only
@pytest.mark.parametrize("shape", [(40, 30), (30, 40)])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options["method"])
def test_completions_have_the_same_bits(tmp_path, options, shape):
    observations = sample(shape)
    wanted = quietly(observations, **options)
    for layout, memory in (("contiguous", 6 * SMALL), ("dense gzip", 15 * SMALL), ("anndata lzf", 12 * SMALL)):
        found = quietly(stored(tmp_path / f"{layout}.h5", observations, layout, memory), **options)
        for name in ("left", "right", "singular_values"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
        for name in set(wanted.history) - {"seconds"}:
            np.testing.assert_array_equal(found.history[name], wanted.history[name])
        assert (found.masked_rmse, found.stop_reason) == (wanted.masked_rmse, wanted.stop_reason)
        if wanted.offsets is not None:
            np.testing.assert_array_equal(found.offsets.rows, wanted.offsets.rows)
            assert found.offsets.mean == wanted.offsets.mean


@pytest.mark.compiled_only
def test_row_factors_that_are_formed_again_give_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr("fastrfm.arrays.HostArrays.scratch_bytes", 0.0)
    observations = sample()
    wanted = quietly(observations, method="two-sided", rank=3, max_iter=10)
    found = quietly(stored(tmp_path / "a.h5", observations), method="two-sided", rank=3, max_iter=10)
    np.testing.assert_array_equal(found.left, wanted.left)


def test_the_memory_bounds_the_blocks(tmp_path, monkeypatch):
    found = stored(tmp_path / "a.h5", sample())
    largest = max(block.by_row.values.size for block in found.row_blocks())
    assert largest <= 23
    monkeypatch.setattr(blocks, "BLOCK_ENTRIES", 5)
    assert stored(tmp_path / "b.h5", sample()).block_entries == 5


# --- what can be wrong --------------------------------------------------------------------------------------------


def test_describe_of_a_file_that_is_not_read(tmp_path, monkeypatch):
    write_observations(tmp_path / "a.h5", sample())
    wanted = describe(tmp_path / "a.h5")
    monkeypatch.setattr("fastrfm.store.default_memory", lambda: SMALL)
    assert describe(tmp_path / "a.h5") == wanted


@pytest.mark.parametrize("layout", ["contiguous", "anndata lzf"])
@pytest.mark.parametrize(
    ("name", "where", "value", "words"),
    [
        ("indices", 40, 10_000, "column positions of /.* must lie in 0…29, got 10000"),
        ("indices", 40, -2, "got -2"),
        ("data", 41, np.nan, "observed values must be finite, got nan at row"),
        ("data", 41, np.inf, "observed values must be finite, got inf at row"),
        ("indptr", 5, 10**6, "indptr must rise from 0"),
    ],
)
def test_wrong_entries_are_named(tmp_path, layout, name, where, value, words):
    write_layout(tmp_path / "a.h5", sample(), layout)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["X" if layout == "anndata lzf" else "observations"][name][where] = value
    with pytest.raises(InputError, match=words) as caught:
        open_observations(tmp_path / "a.h5", memory=SMALL)
    assert str(caught.value).startswith(str(tmp_path / "a.h5"))


def test_unsorted_rows_are_sent_to_convert(tmp_path):
    write_observations(tmp_path / "a.h5", sample())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        indices = file["observations/indices"]
        indices[0:2] = indices[0:2][::-1]
    with pytest.raises(InputError, match=r"columns of row 0 .* not in ascending order.*fastrfm convert"):
        open_observations(tmp_path / "a.h5", memory=SMALL)


def test_columns_first_are_sent_to_convert(tmp_path):
    write_layout(tmp_path / "a.h5", sample(), "anndata lzf")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["X"].attrs["encoding-type"] = "csc_matrix"
    with pytest.raises(FileFormatError, match=r"csc_matrix.*fastrfm convert"):
        open_observations(tmp_path / "a.h5", memory=SMALL)


def test_filters_are_loaded_when_needed_and_asked_for_when_missing(tmp_path):
    write_layout(tmp_path / "a.h5", sample(), "dense blosc")
    script = """if True:
        import sys
        if sys.argv[2] == "hide":
            sys.modules["hdf5plugin"] = None
        from fastrfm import open_observations
        print(open_observations(sys.argv[1]).n_observed)
    """
    runs = [
        subprocess.run(
            [sys.executable, "-c", script, tmp_path / "a.h5", how], capture_output=True, text=True, check=False
        )
        for how in ("load", "hide")
    ]
    assert runs[0].stdout.strip() == str(sample().n_observed), runs[0].stderr
    assert "is compressed by" in runs[1].stderr and "pip install 'fastrfm[filters]'" in runs[1].stderr


def test_a_dense_file_of_nan_alone_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["table"] = np.full((20, 30), np.nan)
    with pytest.raises(InputError, match="every entry is missing"):
        open_observations(tmp_path / "a.h5", memory=SMALL)


@LAYOUTS
def test_a_file_cut_off_while_open_is_a_clear_error(tmp_path, layout):
    found = stored(tmp_path / "a.h5", sample((20_000, 30)), layout, 100_000)  # more than HDF5's cache of chunks holds
    with open(tmp_path / "a.h5", "r+b") as file:
        file.truncate(2048)
    with pytest.raises(FileFormatError, match=str(tmp_path / "a.h5")):
        for _ in found.row_blocks():
            pass


def test_an_indptr_beyond_32_bits(tmp_path):
    # Two huge rows that nobody reads: positions are counted in 64 bits on the way to a small block between them.
    huge = 2**31 + 5

    class Source:
        is_weighted = False
        dtype = np.dtype(np.float64)

        def entries(self, indptr, start, stop):
            assert (start, stop) == (1, 2) and int(indptr[stop] - indptr[start]) == 3
            return np.arange(3, dtype=np.int32), np.ones(3), np.zeros(0)

    indptr = np.array([0, huge, huge + 3, 2 * huge], dtype=np.int64)
    found = StoredObservations(Source(), (3, huge), indptr, (None, None), 10**6)
    assert found.n_observed == 2 * huge
    assert list(blocks.runs(found.indptr, found.block_entries)) == [(0, 1), (1, 2), (2, 3)]
    block = found._block(1, 2)
    np.testing.assert_array_equal(block.by_row.indptr, [0, 3])
    assert list(blocks.runs(found.indptr[np.array([0, 1, 2, 3])], 10)) == [(0, 1), (1, 2), (2, 3)]
