"""Large HDF5 files: room is taken first, so that a full disk is a clean error."""

from __future__ import annotations

import resource
import signal

import h5py
import numpy as np
import pytest

from fastrfm._hdf5 import writing_large_hdf5
from fastrfm.errors import WriteError


@pytest.fixture
def small_disk():
    before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, before[0][1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before[0])
    signal.signal(signal.SIGXFSZ, before[1])


def test_what_is_written_piece_by_piece_comes_back(tmp_path):
    with writing_large_hdf5(tmp_path / "big.h5", False, 8 * 100_000) as file:
        for name, chunks in (("flat", None), ("chunked", (999,))):
            data = file.create_dataset(name, shape=(50_000,), dtype="f8", chunks=chunks)
            for start in range(0, 50_000, 7000):
                data[start : start + 7000] = np.arange(start, min(start + 7000, 50_000))
    with h5py.File(tmp_path / "big.h5") as file:
        np.testing.assert_array_equal(file["flat"][...], np.arange(50_000.0))
        np.testing.assert_array_equal(file["chunked"][...], np.arange(50_000.0))
    assert (tmp_path / "big.h5").stat().st_size < 8 * 110_000  # the spare room is given back


def test_room_that_is_not_there_leaves_everything_as_it_was(tmp_path, small_disk):
    path = tmp_path / "old.h5"
    path.write_bytes(b"old")
    with (
        pytest.raises(WriteError, match="writing failed"),
        writing_large_hdf5(path, True, 30_000_000) as file,
    ):
        file.create_dataset("never", data=1)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["old.h5"]
