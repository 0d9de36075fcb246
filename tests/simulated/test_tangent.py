"""The tangent system on a device equals the processor's: factors, sweeps, and steps of conjugate gradients."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from blocks_of_rows import assert_near, compressed

from fastrfm._cuda import fetch, put
from fastrfm.kernels import tangent as host
from fastrfm.kernels.cuda import _tangent_systems, swap_axes, tangent_factors, tangent_steps, tangent_sweeps
from fastrfm.kernels.cuda import tangent as device

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
# In the simulator a block has 2 threads and keeps 8 residuals of a row, and 4 blocks take the rows in turn.
COUNTS, N_COLS = [3, 0, 17, 1, 5, 9, 8], 18
N_ROWS = len(COUNTS)
STRIPES, TILES, N_PARTS = np.array([0, 3, N_COLS]), np.array([0, 2, 3, N_ROWS]), 2


class Problem:
    def __init__(self, k: int, index_dtype=np.int32, counts=COUNTS) -> None:
        rng, n_rows = np.random.default_rng(k), len(counts)
        self.k, self.entries = k, compressed(counts, N_COLS, index_dtype=index_dtype, seed=k)
        self.left, self.rows = rng.standard_normal((n_rows, k)) / 3.0, rng.standard_normal((n_rows, k))
        self.basis, self.coefficients = rng.standard_normal((N_COLS, k)) / 3.0, rng.standard_normal((N_COLS, k))
        self.penalty, self.hidden = rng.uniform(0.1, 2.0, k), rng.uniform(0, 1, k)

    @property
    def by_row(self):
        return self.entries.indptr, self.entries.indices

    def row_factors(self):
        n_rows = len(self.left)
        out = np.empty((n_rows, host.factor_size(self.k)))
        host.factor_rows(np.array([0, n_rows]), *self.by_row, self.basis, self.penalty, out)
        return out

    def column_factors(self):
        out = np.zeros((N_COLS, host.factor_size(self.k)))
        host.add_column_grams(STRIPES, *self.by_row, self.left, out)
        host.factor_columns(STRIPES, self.penalty, out)
        return out


def on_device(dtype, *arrays):
    return [put(array.astype(dtype) if array.dtype == np.float64 else array) for array in arrays]


def unknown(shape, dtype):
    return put(np.full(shape, np.nan, dtype))


def beyond_diagonal(k):
    """Return which numbers of a factor only fill up its lanes."""
    inside = np.zeros(host.factor_size(k), bool)
    for a in range(k):
        inside[host.start_of(a) : host.start_of(a) + a + 1] = True
    return ~inside


@pytest.fixture
def device_layout(monkeypatch):
    """Let threads stand beside each other as on a device, where a simulator has too few of them."""
    for module, names in (
        (_tangent_systems, {"TEAM": 4, "PANEL": 16, "N_THREADS": 128, "LEAST_THREADS": 32}),
        (tangent_factors, {"PANEL": 16}),
        (swap_axes, {"_LIST_THREADS": 32}),
        (tangent_sweeps, {"TEAM": 4, "_ACROSS": 8}),
        (tangent_steps, {"TEAM": 4}),
    ):
        for name, value in names.items():
            monkeypatch.setattr(module, name, value)


# --- factors ------------------------------------------------------------------------------------------------------


def assert_factors(problem, dtype):
    k, size = problem.k, host.factor_size(problem.k)
    indptr, indices, basis, penalty, left = on_device(
        dtype, *problem.by_row, problem.basis, problem.penalty, problem.left
    )
    of_rows, of_columns = unknown((len(problem.left), size), dtype), put(np.zeros((N_COLS, size), dtype))
    device.factor_rows(indptr, indptr, indices, basis, penalty, of_rows)
    device.add_column_grams(put(STRIPES), indptr, indices, left, of_columns)
    device.factor_columns(put(STRIPES), penalty, of_columns)
    for found, expected in ((of_rows, problem.row_factors()), (of_columns, problem.column_factors())):
        assert_near(fetch(found), expected, dtype)
        np.testing.assert_array_equal(fetch(found)[:, beyond_diagonal(k)], 0.0)


@DTYPES
@pytest.mark.parametrize("k", [4, 8, 12])
def test_factors(k, dtype):
    assert_factors(Problem(k, np.int64 if k == 8 else np.int32), dtype)


@DTYPES
def test_factors_of_systems_that_do_not_fit_into_shared_memory(dtype, monkeypatch):
    monkeypatch.setattr(tangent_factors, "MOST_SHARED_BYTES", 256)
    assert_factors(Problem(8), dtype)


@pytest.mark.parametrize("counts", [[0], [0, 0], [1], [0, 4]])
def test_factors_of_next_to_nothing(counts):
    assert_factors(Problem(4, counts=counts), np.float64)


def test_grams_are_added_to_what_is_there():
    problem = Problem(4)
    before = np.random.default_rng(0).standard_normal((N_COLS, host.factor_size(4)))
    expected, found = before.copy(), put(before)
    host.add_column_grams(STRIPES, *problem.by_row, problem.left, expected)
    device.add_column_grams(put(STRIPES), *map(put, problem.by_row), put(problem.left), found)
    inside = ~beyond_diagonal(4)
    assert_near(fetch(found)[:, inside], expected[:, inside], np.float64)


@DTYPES
def test_pivots_of_pure_rounding_do_not_become_infinite(dtype):
    # Two equal directions and a penalty next to nothing: what is left of the second pivot is rounding.
    left = np.array([[1.0, 1.0, 2.0, 0.0], [0.3, 0.3, 0.1, 0.0]], dtype)
    indptr, indices = put(np.array([0, 1, 2])), put(np.zeros(2, np.int32))
    factor, penalty = put(np.zeros((1, host.factor_size(4)), dtype)), np.array([1e-30, 1e-30, 1e-30, 1.0], dtype)
    device.add_column_grams(put(np.array([0, 1])), indptr, indices, put(left), factor)
    device.factor_columns(put(np.array([0, 1])), put(penalty), factor)
    packed = fetch(factor)[0].astype(np.float64)
    inverse = np.zeros((4, 4))
    for a in range(4):
        inverse[a, : a + 1] = packed[host.start_of(a) : host.start_of(a) + a + 1]
    wanted = left.astype(np.float64).T @ [1.0, -2.0]
    found = inverse.T @ (inverse @ (left.astype(np.float64).T @ left.astype(np.float64) @ wanted))
    np.testing.assert_allclose(left @ found, left @ wanted, rtol=1e-2 if dtype == np.float32 else 1e-8)
    assert np.linalg.norm(found) <= 2.0 * np.linalg.norm(wanted)


# --- sweeps -------------------------------------------------------------------------------------------------------


def assert_sweep(problem, dtype, *, stored=True, with_values=True, first_calls=(0, N_ROWS)):
    """Compare a sweep, in a call for each run of rows between `first_calls`; parts are compared by their sum."""
    k, n_rows = problem.k, len(problem.left)
    factors = problem.row_factors() if stored else np.empty((0, host.factor_size(k)))
    values = problem.entries.values if with_values else np.empty(0)
    shapes = ((n_rows, k), (n_rows,)) if with_values else ((0, k), (0,))
    given = problem.left, problem.basis, problem.coefficients, factors, problem.penalty
    expected = [np.empty(shape) for shape in (*shapes, (N_PARTS, N_COLS, k))]
    host.eliminated_sweep(np.array([0, n_rows]), 0, N_PARTS, *problem.by_row, values, *given, *expected)
    *found, parts = (unknown(shape, dtype) for shape in (*shapes, (N_PARTS, N_COLS, k)))
    left, basis, coefficients, factors, penalty = on_device(dtype, *given)
    indptr, indices = problem.by_row
    for start, stop in itertools.pairwise(first_calls):
        first, last = indptr[start], indptr[stop]
        device.eliminated_sweep(
            put(np.array([0, stop - start])), start, N_PARTS, put(indptr[start : stop + 1] - first),
            put(indices[first:last]), put(values[first:last].astype(dtype)), left[start:stop], basis, coefficients,
            factors[start:stop], penalty, *(out[start:stop] for out in found), parts,
        )  # fmt: skip
    for one, other in zip(found, expected, strict=False):
        assert_near(fetch(one), other, dtype)
    assert_near(fetch(parts).sum(axis=0), expected[2].sum(axis=0), dtype)


@DTYPES
@pytest.mark.parametrize(
    ("k", "stored", "with_values"), [(4, True, True), (8, False, True), (12, False, False), (20, True, True)]
)
def test_sweep(k, stored, with_values, dtype):
    problem = Problem(k, np.int64 if k == 8 else np.int32)
    assert_sweep(problem, dtype, stored=stored, with_values=with_values)


@pytest.mark.parametrize("stored", [True, False])
def test_sweep_in_several_calls(stored, monkeypatch):
    # As a file's row blocks come; factors that are formed there, for two rows at a time.
    monkeypatch.setattr(tangent_sweeps, "_FACTOR_BYTES", 2 * host.factor_size(4) * 8)
    assert_sweep(Problem(4), np.float64, stored=stored, first_calls=(0, 3, 4, N_ROWS))


@pytest.mark.parametrize("counts", [[0], [0, 0], [1]])
def test_sweep_of_next_to_nothing(counts):
    for stored in (True, False):
        assert_sweep(Problem(4, counts=counts), np.float64, stored=stored, first_calls=(0, len(counts)))


@pytest.mark.parametrize(("length", "n_threads"), [(0, 32), (131, 32), (132, 64), (260, 128), (10**5, 128)])
def test_threads_of_a_block_by_the_length_of_rows(length, n_threads, device_layout):
    indptr, indices = np.zeros(6, np.int64), np.empty(5 * length, np.int32)
    nothing, left, factors = np.empty(0), np.empty((5, 20)), np.empty((3, host.factor_size(20)))
    arguments = 0, 1, indptr, indices, nothing, left, nothing, nothing, factors, nothing, nothing, nothing
    shape = tangent_sweeps._sweep.launch(*arguments)
    assert (shape.n_blocks, shape.n_threads) == (3, n_threads)
    assert shape.shared_bytes == 8 * (3 * 20 + 4 * n_threads + 4 * (n_threads + 8))


@DTYPES
@pytest.mark.parametrize("b", [4, 12])
def test_residual_products(b, dtype):
    problem, rng = Problem(4), np.random.default_rng(b)
    given = problem.left, problem.rows, problem.coefficients, problem.basis
    vectors, across = rng.standard_normal((N_COLS, b)), rng.standard_normal((N_ROWS, b))
    parts = on_device(dtype, *problem.by_row, problem.entries.values, *given)
    expected, out = np.empty((N_ROWS, b)), unknown((N_ROWS, b), dtype)
    host.multiply_residual(TILES, *problem.by_row, problem.entries.values, *given, vectors, expected)
    device.multiply_residual(put(TILES), *parts, *on_device(dtype, vectors), out)
    assert_near(fetch(out), expected, dtype)
    expected, out = np.empty((N_PARTS, N_COLS, b)), unknown((N_PARTS, N_COLS, b), dtype)
    host.multiply_residual_transposed(
        TILES, 0, N_PARTS, *problem.by_row, problem.entries.values, *given, across, expected
    )
    for first_tile in (0, 1):  # the second call adds
        arguments = *parts, *on_device(dtype, across)
        device.multiply_residual_transposed(put(TILES), first_tile, N_PARTS, *arguments, out)
        assert_near(fetch(out).sum(axis=0), (first_tile + 1) * expected.sum(axis=0), dtype)


# --- steps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_steps", [1, 3])
def test_conjugate_gradients(max_steps):
    problem = Problem(4)
    k, shape = 4, (N_COLS, 4)
    row_factors, column_factors = problem.row_factors(), problem.column_factors()
    parts = np.random.default_rng(0).standard_normal((N_PARTS, *shape))
    gradient, found = np.empty(shape), put(np.empty(shape))
    given = parts, problem.basis, problem.coefficients, problem.penalty, problem.hidden
    host.finish_gradient(STRIPES, *given, gradient)
    device.finish_gradient(put(STRIPES), *map(put, given), found)
    assert_near(fetch(found), gradient, np.float64)

    def run(kernels, arrays):
        state = arrays(np.array([0.0, max_steps, 1e-9, 1.0, 1.0]))
        solution, residual, *others = (arrays(np.array(a)) for a in (np.ones(shape), gradient, *(np.ones(shape),) * 3))
        vectors = solution, residual, *others
        kernels.start_conjugate_gradients(arrays(STRIPES), arrays(column_factors), state, *vectors)
        rooms = arrays(np.empty((2, k, k))), arrays(np.empty((k, k))), arrays(np.empty(2))
        fixed = arrays(problem.left), arrays(problem.basis), arrays(row_factors), arrays(column_factors)
        penalties = arrays(problem.penalty), arrays(problem.hidden)
        kernels.conjugate_gradients(
            arrays(TILES), N_PARTS, arrays(STRIPES), *map(arrays, problem.by_row), *fixed, *penalties,
            arrays(np.empty((N_PARTS, *shape))), state, *vectors, *rooms,
        )  # fmt: skip
        return state, solution, residual

    expected = run(host, np.ascontiguousarray)
    for one, other in zip(run(device, put), expected, strict=True):
        assert_near(fetch(one), other, np.float64)


def test_nothing_to_do_is_no_step():
    shape, factors = (N_COLS, 4), Problem(4).column_factors()
    vectors = [put(np.zeros(shape)) for _ in range(5)]
    state = put(np.array([0.0, 5.0, 1e-9, 1.0, 1.0]))
    device.start_conjugate_gradients(put(STRIPES), put(factors), state, *vectors)
    assert fetch(state).tolist() == [0.0, 5.0, 1e-9, 0.0, 0.0]
    assert not any(np.any(fetch(vector)) for vector in vectors)


def test_number_of_parts():
    assert tangent_steps._n_parts(np.empty((1, 4))) == 1
    assert tangent_steps._n_parts(np.empty((10**6, 40))) == 512


# --- as on a device -----------------------------------------------------------------------------------------------


def test_factors_by_as_many_threads_as_on_a_device(device_layout):
    assert_factors(Problem(8, counts=[18, 0, 5]), np.float64)


def test_sweep_by_as_many_threads_as_on_a_device(device_layout):
    assert_sweep(Problem(20, counts=[18, 0, 5]), np.float64, first_calls=(0, 3))


def test_solve_by_as_many_threads_as_on_a_device(device_layout):
    test_conjugate_gradients(1)
