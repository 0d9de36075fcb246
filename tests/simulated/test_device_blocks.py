"""Row blocks on a device: the processor's entries by row and by column, kept, streamed, and where memory runs out."""

from __future__ import annotations

import gc
import signal
import weakref

import numpy as np
import pytest

from fastrfm import Observations, _cuda, complete, open_observations
from fastrfm._cuda import empty, fetch
from fastrfm._interrupt import deferred
from fastrfm.device_blocks import DeviceBlocks
from fastrfm.errors import DeviceMemoryError
from fastrfm.store import write_observations

pytestmark = pytest.mark.filterwarnings("ignore::fastrfm.errors.NotConvergedWarning")
MIB = 1 << 20


def problem(n_rows: int = 40, n_cols: int = 12, *, is_weighted: bool = False):
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((n_rows, 2)) @ rng.standard_normal((2, n_cols))
    matrix[rng.random(matrix.shape) > 0.6] = np.nan
    observations = Observations.from_dense(matrix)
    return observations.with_weights(rng.uniform(0.5, 2.0, observations.n_observed)) if is_weighted else observations


class Memory:
    """A device's memory of `n_bytes`, of which arrays take their share until nothing refers to them any more."""

    def __init__(self, monkeypatch, n_bytes: float) -> None:
        self.n_bytes, self.taken, self.most = n_bytes, 0, 0
        for name in ("device_array", "to_device"):
            monkeypatch.setattr(_cuda.cuda, name, self._counted(getattr(_cuda.cuda, name)))
        monkeypatch.setattr(_cuda, "_own", _cuda._Own())

    def _counted(self, make):
        def counted(*args, **kwargs):
            array = make(*args, **kwargs)
            size = array.size * array.dtype.itemsize
            if self.taken + size > self.n_bytes:
                raise RuntimeError("[2] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY")
            self.taken += size
            self.most = max(self.most, self.taken)
            weakref.finalize(array._ary, self._give_back, size)  # views refer to it too
            return array

        return counted

    def _give_back(self, size):
        self.taken -= size


def assert_same_entries(found, expected):
    for name in ("indptr", "indices", "values", "weights"):
        there, here = getattr(found, name), getattr(expected, name)
        assert there.dtype == here.dtype
        np.testing.assert_array_equal(fetch(there), here, err_msg=name)


@pytest.mark.parametrize("memory", [0.0, 1e9])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_entries_are_those_of_the_processor(memory, is_weighted):
    observations = problem(is_weighted=is_weighted)
    blocks = DeviceBlocks(observations, memory=memory)
    blocks._most_entries = 100
    for _ in range(2):
        stops = [0]
        for block in blocks.row_blocks(align=3):
            expected = observations._block(block.start, block.stop)
            assert block.start == stops[-1] and block.start % 3 == 0
            assert_same_entries(block.by_row, expected.by_row)
            assert_same_entries(block.by_column, expected.by_column)
            assert_same_entries(block.by_column.part(2, 5), expected.by_column.part(2, 5))
            stops.append(block.stop)
        assert stops[-1] == observations.n_rows and len(stops) > 3


def test_copies_that_stay_are_made_once(monkeypatch, tmp_path):
    observations = problem()
    write_observations(tmp_path / "entries.h5", observations)
    stored = open_observations(tmp_path / "entries.h5", memory=2000)
    blocks, tiles = DeviceBlocks(stored, memory=1e9), np.array([0, 13, 26, 40])
    seen = []
    for _ in range(2):
        seen.append([block.by_row for block in blocks.row_blocks()] + [t.values for t in blocks.tile_blocks(tiles)])
        monkeypatch.setattr(stored, "row_blocks", None)  # the file is not read again
        monkeypatch.setattr(stored, "tile_blocks", None)
    assert len(seen[0]) > 4
    assert all(first is second for first, second in zip(*seen, strict=True))


@pytest.mark.parametrize("limit", range(20_000, 60_001, 4000))
def test_blocks_shrink_until_they_fit(monkeypatch, limit):
    observations = problem(400)
    memory = Memory(monkeypatch, limit)
    blocks = DeviceBlocks(observations, memory=0)
    blocks._most_entries = 1 << 40
    seen = [(block.start, fetch(block.by_row.values), fetch(block.by_column.indices)) for block in blocks.row_blocks()]
    starts = [start for start, *_ in seen]
    np.testing.assert_array_equal(np.concatenate([values for _, values, _ in seen]), observations.values)
    learnt, again = ([block.start for block in blocks.row_blocks() if block.by_column] for _ in range(2))
    assert learnt == again and len(starts) <= len(learnt) < 40
    assert memory.taken > limit / 6  # not much of what there is goes unused


def test_the_least_block_that_does_not_fit_ends(monkeypatch):
    matrix = np.full((6, 5), np.nan)
    matrix[0, 0], matrix[2] = 1.0, 2.0  # an empty row beside one with a single entry
    blocks = DeviceBlocks(Observations.from_dense(matrix), memory=0)
    memory, tiles = Memory(monkeypatch, 300), np.arange(7)
    _cuda.lends(blocks)
    for _ in range(2):
        with pytest.raises(DeviceMemoryError, match='use device="cpu"'):
            list(blocks.row_blocks())
        with pytest.raises(DeviceMemoryError, match='use device="cpu"'):
            list(blocks.tile_blocks(tiles))
    assert memory.taken < 300


def test_slots_are_made_once(monkeypatch):
    rng = np.random.default_rng(0)
    matrix = np.where(rng.random((300, 40)) < rng.uniform(0.02, 0.9, (300, 1)), 1.0, np.nan)  # rows of all lengths
    blocks = DeviceBlocks(Observations.from_dense(matrix), memory=0)
    blocks._most_entries = 100
    n_made = []
    for _ in range(2):
        monkeypatch.setattr("fastrfm.device_blocks.pinned", lambda *args: n_made.append(args) or _cuda.pinned(*args))
        assert len([block.by_row for block in blocks.row_blocks()]) > 30
        if n_made:
            first, n_made[:] = len(n_made), []
    assert first > 0 and not n_made


def test_what_is_not_used_any_more_goes_at_once():
    blocks = DeviceBlocks(problem(), memory=1e9)
    copies = [weakref.ref(block.by_row.values) for block in blocks.row_blocks()]
    gc.disable()
    try:
        assert copies[0]() is not None
        del blocks
        assert copies[0]() is None
    finally:
        gc.enable()


def test_ctrl_c_ends_a_pass_over_copies_that_stay():
    blocks, tiles = DeviceBlocks(problem(), memory=1e9), np.array([0, 40])
    list(blocks.row_blocks()), list(blocks.tile_blocks(tiles))
    for again in (blocks.row_blocks, lambda: blocks.tile_blocks(tiles)):
        with pytest.raises(KeyboardInterrupt), deferred():
            signal.raise_signal(signal.SIGINT)
            next(iter(again()))
            pytest.fail("went on")


def test_blocks_are_halved_for_the_memory_of_others(monkeypatch):
    blocks, idle = DeviceBlocks(problem(120), memory=0), DeviceBlocks(problem(120), memory=0)
    blocks._most_entries = idle._most_entries = 100
    memory = Memory(monkeypatch, MIB)
    _cuda.lends(blocks)
    _cuda.lends(idle)
    starts = [block.start for block in blocks.row_blocks() if block.by_row]
    memory.n_bytes = memory.taken + 1000
    taken = empty(memory.n_bytes // 2 // 8)  # has room only in the place of both slots
    n_halved = sum(1 for block in blocks.row_blocks() if block.by_row)
    assert 2 * len(starts) - 3 < n_halved < 5 * len(starts)  # far from one for each row
    assert idle._most_entries == 100  # what has nothing to give stays as it is
    memory.n_bytes = memory.taken
    with pytest.raises(DeviceMemoryError, match='use device="cpu"'):
        empty(taken.size)


def test_entries_that_stay_go_before_blocks_of_others_are_halved(monkeypatch):
    observations = problem(120)
    streamed = [DeviceBlocks(observations, memory=0) for _ in range(3)]
    kept = DeviceBlocks(observations, memory=1e9)
    memory = Memory(monkeypatch, MIB)
    for blocks in (*streamed, kept):
        blocks._most_entries = 100
        _cuda.lends(blocks)
        assert [block.by_row for block in blocks.row_blocks()]
    memory.n_bytes = memory.taken
    assert empty(100).size and not kept.is_kept
    assert [blocks._most_entries for blocks in streamed] == [100] * 3


def test_entries_stay_where_less_scratch_will_do(monkeypatch):
    blocks = DeviceBlocks(problem(120), memory=1e9)
    memory = Memory(monkeypatch, MIB)
    _cuda.lends(blocks)
    assert [block.by_row for block in blocks.row_blocks()]
    memory.n_bytes = memory.taken + 20_000
    room = _cuda.scratch_rows("workspaces", 32, 125, np.float64)
    assert room.shape == (16, 125) and blocks.is_kept
    del room
    assert _cuda.scratch_rows("workspaces", 32, 125, np.float64).shape == (16, 125)  # the same again
    assert _cuda.scratch_rows("workspaces", 3, 125, np.float64).shape == (3, 125)
    memory.n_bytes = memory.taken
    assert _cuda.scratch_rows("workspaces", 1, 3000, np.float64).shape == (1, 3000) and not blocks.is_kept


def test_entries_that_stayed_are_streamed_where_memory_runs_out(monkeypatch):
    observations, tiles = problem(200), np.arange(0, 201, 10)
    blocks = DeviceBlocks(observations, memory=1e9)
    blocks._most_entries = 100
    memory = Memory(monkeypatch, MIB)
    _cuda.lends(blocks)
    assert [block.by_row for block in blocks.row_blocks()] and list(blocks.tile_blocks(tiles))
    assert blocks.is_kept
    whole, found, taken = memory.taken, [], None
    memory.n_bytes = whole + 100
    for block in blocks.row_blocks():
        entries = block.by_row
        if block.start > 0 and taken is None:
            taken = empty(whole // 2 // 8)  # in the middle of a pass
            assert not blocks.is_kept
        found.append(fetch(entries.values))
    np.testing.assert_array_equal(np.concatenate(found), observations.values)
    found = [fetch(block.values) for block in blocks.tile_blocks(tiles)]
    np.testing.assert_array_equal(np.concatenate(found), observations.values)
    assert taken is not None


def test_a_pass_over_tiles_goes_on_streaming(monkeypatch):
    observations, tiles = problem(200), np.arange(0, 201, 10)
    blocks = DeviceBlocks(observations, memory=1e9)
    blocks._most_entries = 80
    memory = Memory(monkeypatch, MIB)
    _cuda.lends(blocks)
    list(blocks.tile_blocks(tiles))
    memory.n_bytes, found, places = memory.taken + 100, [], []
    for block in blocks.tile_blocks(tiles):
        if block.first_tile == 2:
            taken = empty(memory.n_bytes // 2 // 8)
        places.append(block.first_tile)
        found.append(fetch(block.values))
    assert places == list(range(20)) and taken.size
    np.testing.assert_array_equal(np.concatenate(found), observations.values)


@pytest.mark.parametrize(("method", "share"), [("factored", 0.75), ("two-sided", 0.88)])
def test_a_solver_goes_on_in_less_memory(monkeypatch, method, share):
    observations = problem(36, 6)
    options = {"method": method, "rank": 2, "max_iter": 1}
    made = []

    class Noted(DeviceBlocks):
        def __init__(self, host):
            super().__init__(host, memory=1e9)
            self._most_entries = 12
            made.append(self)

    monkeypatch.setattr("fastrfm.device_blocks.DeviceBlocks", Noted)
    memory = Memory(monkeypatch, MIB)
    expected = complete(observations, device="cuda", **options)
    assert made[0].is_kept
    memory.n_bytes = share * memory.most
    made.clear()
    found = complete(observations, device="cuda", **options)
    assert not made[0].is_kept
    np.testing.assert_allclose(found.to_dense(), expected.to_dense(), rtol=0, atol=1e-9)


def test_nothing_is_lost_where_memory_ends(monkeypatch, tmp_path):
    observations, state = problem(), tmp_path / "state"
    options = {"method": "factored", "ridge": 0.2, "tol": 1e-3, "max_iter": 4, "checkpoint": state}
    memory = Memory(monkeypatch, MIB)

    def end(seen):
        if seen.iteration == 2:
            memory.n_bytes = 0

    with pytest.raises(DeviceMemoryError, match='use device="cpu"'):
        complete(observations, every=1, device="cuda", callback=end, **options)
    resumed = complete(observations, resume=True, **options)
    expected = complete(observations, **{**options, "checkpoint": None})
    assert resumed.n_iter == expected.n_iter == 4
    np.testing.assert_allclose(resumed.to_dense(), expected.to_dense(), rtol=0, atol=1e-9)
