"""Device kernels as they are written: twins have the same arguments, and every launch covers its items."""

from __future__ import annotations

import inspect
import pkgutil
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest

import fastrfm.kernels.cuda
from fastrfm._cuda import (
    IS_SIMULATED,
    MOST_BLOCKS,
    MOST_SHARED_BYTES,
    N_THREADS,
    DeviceKernel,
    Launch,
    over_groups,
    over_items,
)

FILES = [module.name for module in pkgutil.iter_modules(fastrfm.kernels.cuda.__path__)]


def own(file):
    """Return what a file of device kernels defines: kernels and plain functions by name."""
    module = import_module(f"fastrfm.kernels.cuda.{file}")
    found = {name: thing for name, thing in vars(module).items() if inspect.isfunction(plain(thing))}
    return {name: thing for name, thing in found.items() if plain(thing).__module__ == module.__name__}


def plain(thing):
    """Return the Python function inside a kernel of either target."""
    return thing.function if isinstance(thing, DeviceKernel) else getattr(thing, "py_func", thing)


KERNELS = [
    pytest.param(thing, id=f"{file}.{name}")
    for file in FILES
    for name, thing in own(file).items()
    if isinstance(thing, DeviceKernel)
]
TWINS = [
    pytest.param(thing, getattr(import_module(f"fastrfm.kernels.{file}"), name), id=f"{file}.{name}")
    for file in FILES
    if find_spec(f"fastrfm.kernels.{file}")
    for name, thing in own(file).items()
    if not name.startswith("_") and hasattr(import_module(f"fastrfm.kernels.{file}"), name)
]
COUNTS = [
    0,
    1,
    7,
    N_THREADS - 1,
    N_THREADS,
    N_THREADS + 1,
    1001,
    MOST_BLOCKS * N_THREADS - 1,
    MOST_BLOCKS * N_THREADS,
    MOST_BLOCKS * N_THREADS + 1,
    2**31 - 1,
    2**31 + 1,
    2**40,
]


def assert_legal(launch):
    assert 0 <= launch.n_blocks <= MOST_BLOCKS <= 2**31 - 1  # the limit of a grid's first side
    assert 1 <= launch.n_threads <= 1024
    assert launch.n_threads & (launch.n_threads - 1) == 0  # block sums halve
    assert 0 <= launch.shared_bytes <= MOST_SHARED_BYTES


def test_there_are_kernels_and_twins():
    assert KERNELS and TWINS


@pytest.mark.parametrize(("device", "host"), TWINS)
def test_twins_take_the_same_arguments(device, host):
    assert list(inspect.signature(plain(device)).parameters) == list(inspect.signature(plain(host)).parameters)


@pytest.mark.parametrize("kernel", KERNELS)
def test_types_have_a_word_for_each_argument(kernel):
    names = list(inspect.signature(kernel.function).parameters)
    words = kernel.types.split()
    assert len(words) == len(names), f"types {kernel.types!r} for {names}"
    assert all(len(word) == 2 and word[0] in "ildrv" and word[1] in "0123" for word in words)
    assert kernel.__doc__ and kernel.__doc__.strip()


@pytest.mark.parametrize("n_threads", [N_THREADS, 1, 32, 1024])
@pytest.mark.parametrize("n", COUNTS)
def test_threads_for_items(n, n_threads):
    launch = over_items(n, n_threads)
    assert_legal(launch)
    assert launch.n_threads == n_threads
    assert (launch.n_blocks == 0) == (n == 0)
    # Thread s takes s, s + total, ...: every item has its thread, no block but the last lacks a first item, and
    # the position a thread looks at last fits into 64 bits.
    total = launch.n_blocks * launch.n_threads
    assert n <= total or launch.n_blocks == MOST_BLOCKS
    assert n == 0 or (launch.n_blocks - 1) * launch.n_threads < n
    assert n + total < 2**63


@pytest.mark.parametrize("n", COUNTS)
def test_blocks_for_groups(n):
    launch = over_groups(n, shared_bytes=1024)
    assert_legal(launch)
    assert (launch.n_blocks == 0) == (n == 0) and launch.n_blocks <= n
    assert n == launch.n_blocks or launch.n_blocks == MOST_BLOCKS
    assert launch == Launch(launch.n_blocks, N_THREADS, 1024)


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 63, 64, 65, 1001])
def test_strides_of_a_grid_take_every_item_once(n):
    for launch in (over_items(n, 8), Launch(3, 8), Launch(1, 1)):
        total = launch.n_blocks * launch.n_threads
        taken = [i for start in range(total) for i in range(start, n, total)]
        assert sorted(taken) == list(range(n))


PER_DIRECTION = {"penalty", "hidden"}  # vectors that are as long as there are directions


def stand_in(name, word, n, k):
    """Return an argument of the shape and type that a word of ``types`` says, without memory of its own."""
    element = {"i": np.int32, "l": np.int64}.get(word[0], np.float64)
    n = k if name in PER_DIRECTION else n + (word == "l1")  # starts of rows: one more than there are rows
    shape = ((), (n,), (n, k), (n, k, k))[int(word[1])]
    return np.broadcast_to(element(k), shape) if shape else element(k)


@pytest.mark.parametrize("k", [1, 7, 32, 64, 65, 128, 320])
@pytest.mark.parametrize("kernel", KERNELS)
def test_launches_are_legal_at_every_size(kernel, k):
    for n in (0, 1, 7, 1001, 2**31 + 1):
        named = zip(inspect.signature(kernel.function).parameters, kernel.types.split(), strict=True)
        launch = kernel.launch(*(stand_in(name, word, n, k) for name, word in named))
        assert_legal(launch)


@pytest.mark.skipif(IS_SIMULATED, reason="launches there")
def test_nothing_is_launched_for_no_items(monkeypatch):
    from fastrfm.kernels.cuda.residual import predict_pairs

    def fail(_):
        raise AssertionError("compiled for nothing")

    monkeypatch.setattr(DeviceKernel, "_compiled", property(fail))
    nothing = np.empty(0, np.int64)
    predict_pairs(nothing, nothing, np.empty((0, 3)), np.empty((0, 3)), np.empty(0))
    with pytest.raises(AssertionError, match="compiled for nothing"):
        predict_pairs(nothing, nothing, np.empty((0, 3)), np.empty((0, 3)), np.empty(1))
