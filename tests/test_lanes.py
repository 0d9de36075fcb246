"""Each vector primitive in a small kernel and as tuples, against numpy; what compiled kernels refuse."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numba
import numpy as np
import pytest
from numba.core.errors import TypingError

from fastrfm import _lanes, _numba
from fastrfm._lanes import padded, padded_width

NAMES = ("load", "load_at", "store", "store_at", "splat", "multiply_add", "subtract", "total", "totals")
CHECKED = numba.config.DISABLE_JIT or _numba.CHECKS_BOUNDS


def forms(prefix: str) -> SimpleNamespace:
    return SimpleNamespace(**{name: getattr(_lanes, prefix + name) for name in NAMES})


def compiled(function: Callable[..., Any]) -> Any:
    # As ``inner``, but no disk cache: it does not see changes of _lanes, and would test what was there before.
    return _numba._compiled(function, cache=False)


def copying(lanes: SimpleNamespace) -> Callable[..., None]:
    load, store = lanes.load, lanes.store

    def kernel(array, a, out, b):
        store(out, b, load(array, a))

    return kernel


def copying_at(lanes: SimpleNamespace) -> Callable[..., None]:
    load_at, store_at = lanes.load_at, lanes.store_at

    def kernel(array, places, out):
        store_at(out, places[2], places[3], load_at(array, places[0], places[1]))

    return kernel


def splatting(lanes: SimpleNamespace) -> Callable[..., None]:
    splat, store = lanes.splat, lanes.store

    def kernel(value, out):
        store(out, 0, splat(value))

    return kernel


def multiplying(lanes: SimpleNamespace) -> Callable[..., None]:
    load_at, multiply_add, store = lanes.load_at, lanes.multiply_add, lanes.store

    def kernel(given, out):
        store(out, 0, multiply_add(load_at(given, 0, 0), load_at(given, 1, 0), load_at(given, 2, 0)))

    return kernel


def subtracting(lanes: SimpleNamespace) -> Callable[..., None]:
    load_at, subtract, store = lanes.load_at, lanes.subtract, lanes.store

    def kernel(given, out):
        store(out, 0, subtract(load_at(given, 0, 0), load_at(given, 1, 0)))

    return kernel


def summing(lanes: SimpleNamespace) -> Callable[..., None]:
    load_at, total = lanes.load_at, lanes.total

    def kernel(given, out):
        for i in range(4):
            out[i] = total(load_at(given, i, 0))

    return kernel


def summing_four(lanes: SimpleNamespace) -> Callable[..., None]:
    load_at, totals, store = lanes.load_at, lanes.totals, lanes.store

    def kernel(given, out):
        store(out, 0, totals(load_at(given, 0, 0), load_at(given, 1, 0), load_at(given, 2, 0), load_at(given, 3, 0)))

    return kernel


def dotting(lanes: SimpleNamespace) -> Callable[..., float]:
    load, multiply_add, splat, total = lanes.load, lanes.multiply_add, lanes.splat, lanes.total

    def kernel(one, other):
        sums = splat(0.0)
        for a in range(0, one.size, 4):
            sums = multiply_add(load(one, a), load(other, a), sums)
        return total(sums)

    return kernel


CHOSEN, PLAIN = forms(""), forms("_plain_")
COPY, COPY_AT, SPLAT, DOT = (
    {"chosen": compiled(make(CHOSEN)), "plain": make(PLAIN)} for make in (copying, copying_at, splatting, dotting)
)
# (4, 4) numbers to four.
ARITHMETIC = {
    make.__name__: ({"chosen": compiled(make(CHOSEN)), "plain": make(PLAIN)}, twin)
    for make, twin in (
        (multiplying, lambda given: given[0] * given[1] + given[2]),
        (subtracting, lambda given: given[0] - given[1]),
        (summing, lambda given: given.sum(axis=1)),
        (summing_four, lambda given: given.sum(axis=1)),
    )
}
FORM = pytest.mark.parametrize("form", ["chosen", "plain"])
OPERATION = pytest.mark.parametrize(("kernels", "twin"), ARITHMETIC.values(), ids=ARITHMETIC)


@FORM
def test_four_numbers_move_and_no_others(form):
    array = np.arange(11.0)
    for a in range(8):
        for b in range(6):
            out = np.full(9, np.nan)
            wanted = out.copy()
            wanted[b : b + 4] = array[a : a + 4]
            COPY[form](array, a, out, b)
            np.testing.assert_array_equal(out, wanted)
    np.testing.assert_array_equal(array, np.arange(11.0))


@FORM
@pytest.mark.parametrize("index_type", [np.int32, np.int64])
def test_four_numbers_move_between_rows(form, index_type):
    array = np.arange(21.0).reshape(3, 7)
    for i in range(3):
        for a in range(4):
            out = np.full((4, 6), np.nan)
            wanted = out.copy()
            wanted[3 - i, a % 3 : a % 3 + 4] = array[i, a : a + 4]
            COPY_AT[form](array, np.array([i, a, 3 - i, a % 3], dtype=index_type), out)
            np.testing.assert_array_equal(out, wanted)


@FORM
def test_rows_of_larger_arrays_are_taken(form):
    array, out = np.arange(24.0).reshape(2, 3, 4), np.zeros((2, 4))
    COPY[form](array[1, 1], 0, out[1], 0)
    np.testing.assert_array_equal(out, [np.zeros(4), array[1, 1]])
    COPY_AT[form](array[1], np.array([2, 0, 0, 0]), out)
    np.testing.assert_array_equal(out, [array[1, 2], array[1, 1]])


@FORM
@pytest.mark.parametrize("value", [0.0, -1.5, np.inf, np.nan])
def test_splat_is_four_times_the_same(form, value):
    out = np.full(6, 7.0)
    SPLAT[form](value, out)
    np.testing.assert_array_equal(out, [*[value] * 4, 7.0, 7.0])


@OPERATION
@FORM
def test_arithmetic_on_whole_numbers_is_exact(kernels, twin, form):
    rng = np.random.RandomState(0)
    for _ in range(20):
        given, out = rng.randint(-1000, 1000, (4, 4)).astype(np.float64), np.full(4, np.nan)
        kernels[form](given, out)
        np.testing.assert_array_equal(out, twin(given))


@OPERATION
def test_tuples_and_lanes_differ_in_rounding_alone(kernels, twin):
    rng = np.random.RandomState(1)
    for _ in range(20):
        given, chosen, plain = rng.standard_normal((4, 4)), np.empty(4), np.empty(4)
        kernels["chosen"](given, chosen)
        kernels["plain"](given, plain)
        np.testing.assert_allclose(chosen, plain, rtol=0, atol=1e-14)
        np.testing.assert_allclose(chosen, twin(given), rtol=0, atol=1e-14)


@OPERATION
@FORM
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_nothing_is_assumed_finite(kernels, twin, form, bad):
    # What rounds freely must still show a NaN, or checks for one would be deleted.
    for place in np.ndindex(4, 4):
        given, out = np.ones((4, 4)), np.empty(4)
        given[place] = bad
        kernels[form](given, out)
        np.testing.assert_array_equal(out, twin(given))


@FORM
@pytest.mark.parametrize("n", [0, 4, 8, 40])
def test_lanes_last_through_a_loop(form, n):
    one, other = np.random.RandomState(n).randint(-99, 99, (2, n)).astype(np.float64)
    assert DOT[form](one, other) == one @ other


@pytest.mark.skipif(not CHECKED, reason="compiled without bounds checks")
@FORM
def test_bounds_are_checked_where_they_can_be(form):
    array, matrix = np.zeros(6), np.zeros((2, 6))
    for a, b in ((3, 0), (0, 3)):
        with pytest.raises(IndexError):
            COPY[form](array, a, array.copy(), b)
        for i, j in ((0, 0), (1, 1)):
            with pytest.raises(IndexError):
                COPY_AT[form](matrix, np.array([i, a, j, b]), matrix.copy())
    for places in ([2, 0, 0, 0], [0, 0, 2, 0]):
        with pytest.raises(IndexError):
            COPY_AT[form](matrix, np.array(places), matrix.copy())


# --- refusals: the compiled forms, whatever kernels use -----------------------------------------------------------

# Numba raises one or the other for what an intrinsic refuses, by its version.
REFUSALS = (TypeError, TypingError)


def four() -> np.ndarray:
    return np.zeros((4, 4))


WRONG = {
    "float32": four().astype(np.float32),
    "int64": four().astype(np.int64),
    "complex": four().astype(np.complex128),
    "fortran": np.asfortranarray(four()),
    "strided": np.zeros((4, 8))[:, ::2],
    "three axes": np.zeros((4, 4, 4)),
    "one axis": np.zeros(4),
    "no array": 1.0,
}


@pytest.mark.compiled_only
@pytest.mark.parametrize("array", WRONG.values(), ids=WRONG)
def test_wrong_arrays_are_refused(array):
    load_at, store_at, splat, total = _lanes._load_at, _lanes._store_at, _lanes._splat, _lanes._total
    loads = compiled(lambda array: total(load_at(array, 0, 0)))
    stores = compiled(lambda array: store_at(array, 0, 0, splat(1.0)))
    for kernel in (loads, stores):
        with pytest.raises(REFUSALS, match="C-contiguous float64"):
            kernel(array)


@pytest.mark.compiled_only
@pytest.mark.parametrize(
    "array", [four()[0].astype(np.float32), np.zeros(8)[::2], four()], ids=["type", "step", "axes"]
)
def test_wrong_vectors_are_refused(array):
    load, store, splat, total = _lanes._load, _lanes._store, _lanes._splat, _lanes._total
    loads = compiled(lambda array: total(load(array, 0)))
    stores = compiled(lambda array: store(array, 0, splat(1.0)))
    for kernel in (loads, stores):
        with pytest.raises(REFUSALS, match="C-contiguous float64"):
            kernel(array)


@pytest.mark.compiled_only
def test_a_wrong_number_of_indices_is_refused():
    load, load_at, store, splat, total = _lanes._load, _lanes._load_at, _lanes._store, _lanes._splat, _lanes._total
    for kernel in (
        lambda array: total(load(array, 0, 0)),
        lambda array: total(load_at(array, 0)),
        lambda array: store(array, 0, 0, splat(1.0)),
    ):
        with pytest.raises(REFUSALS):
            compiled(kernel)(four())


# --- padding ------------------------------------------------------------------------------------------------------


def test_padded_width_is_the_next_multiple_of_four():
    assert [padded_width(k) for k in range(10)] == [0, 4, 4, 4, 4, 8, 8, 8, 8, 12]


@pytest.mark.parametrize("shape", [(0,), (3,), (4,), (5,), (2, 0), (2, 1), (3, 4), (0, 3), (2, 3, 5)], ids=str)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_padded_fills_the_last_axis(shape, dtype, order):
    given = np.array(np.random.RandomState(0).randint(-9, 9, shape), dtype=dtype, order=order)
    k, before = shape[-1], given.copy()
    for fill, out in ((0.0, padded(given)), (1.0, padded(given, 1.0))):
        assert out.shape == (*shape[:-1], padded_width(k))
        assert out.dtype == np.float64 and out.flags.c_contiguous
        np.testing.assert_array_equal(out[..., :k], given)
        np.testing.assert_array_equal(out[..., k:], fill)
        is_ready = given.dtype == np.float64 and given.flags.c_contiguous and k % 4 == 0
        assert (out is given) if is_ready else not np.shares_memory(out, given)
    np.testing.assert_array_equal(given, before)
