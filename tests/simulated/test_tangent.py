"""The tangent system on a device equals the processor's: factors, sweeps, and steps of conjugate gradients."""

from __future__ import annotations

import numpy as np
import pytest
from blocks_of_rows import assert_near, compressed

from fastrfm._cuda import fetch, put
from fastrfm.kernels import tangent as host
from fastrfm.kernels.cuda import tangent as device
from fastrfm.kernels.cuda import tangent_steps

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
COUNTS = [3, 0, 7, 1, 5, 4]  # in the simulator 3 residuals of a row are kept, and systems of up to 8 formed near by
STRIPES, TILES, N_PARTS = np.array([0, 3, 9]), np.array([0, 2, 3, 6]), 2


class Problem:
    def __init__(self, k: int, index_dtype=np.int32) -> None:
        rng = np.random.default_rng(k)
        self.k, self.entries = k, compressed(COUNTS, 9, index_dtype=index_dtype, seed=k)
        self.left = np.linalg.qr(rng.standard_normal((6, 6)))[0] @ rng.standard_normal((6, k)) / 3.0
        self.basis, self.coefficients = rng.standard_normal((9, k)) / 3.0, rng.standard_normal((9, k))
        self.rows, self.penalty, self.hidden = (
            rng.standard_normal((6, k)),
            rng.uniform(0.1, 2.0, k),
            rng.uniform(0, 1, k),
        )

    @property
    def by_row(self):
        return self.entries.indptr, self.entries.indices

    def row_factors(self):
        out = np.empty((6, host.factor_size(self.k)))
        host.factor_rows(np.array([0, 6]), *self.by_row, self.basis, self.penalty, out)
        return out

    def column_factors(self):
        out = np.zeros((9, host.factor_size(self.k)))
        host.add_column_grams(STRIPES, *self.by_row, self.left, out)
        host.factor_columns(STRIPES, self.penalty, out)
        return out


def on_device(dtype, *arrays):
    return [put(array.astype(dtype) if array.dtype == np.float64 else array) for array in arrays]


def triangle(factors, k):
    """Return the lower triangles of packed factors: beyond the diagonal their lanes hold what nobody reads."""
    spans = [(host.start_of(a), a + 1) for a in range(k)]
    return np.concatenate([factors[:, start : start + n] for start, n in spans], axis=1)


@DTYPES
@pytest.mark.parametrize("k", [4, 8, 12])
def test_factors(k, dtype):
    problem = Problem(k)
    parts = on_device(dtype, *problem.by_row, problem.basis, problem.penalty, problem.left)
    indptr, indices, basis, penalty, left = parts
    out = put(np.full((6, host.factor_size(k)), np.nan, dtype))
    device.factor_rows(indptr, indptr, indices, basis, penalty, out)
    assert_near(triangle(fetch(out), k), triangle(problem.row_factors(), k), dtype)
    grams = put(np.zeros((9, host.factor_size(k)), dtype))
    device.add_column_grams(put(STRIPES), indptr, indices, left, grams)
    device.factor_columns(put(STRIPES), penalty, grams)
    assert_near(triangle(fetch(grams), k), triangle(problem.column_factors(), k), dtype)


@DTYPES
@pytest.mark.parametrize(
    ("k", "stored", "with_values"), [(4, True, True), (8, False, True), (12, False, False), (4, True, False)]
)
def test_sweep(k, stored, with_values, dtype):
    problem = Problem(k, np.int64 if k == 8 else np.int32)
    factors = problem.row_factors() if stored else np.empty((0, host.factor_size(k)))
    values = problem.entries.values if with_values else np.empty(0)
    shapes = ((6, k), (6,)) if with_values else ((0, k), (0,))
    given = problem.left, problem.basis, problem.coefficients, factors, problem.penalty
    expected = [np.empty(shape) for shape in (*shapes, (N_PARTS, 9, k))]
    host.eliminated_sweep(TILES, 0, N_PARTS, *problem.by_row, values, *given, *expected)
    found = [put(np.full(shape, np.nan, dtype)) for shape in (*shapes, (N_PARTS, 9, k))]
    arguments = on_device(dtype, *problem.by_row, values, *given)
    # In two calls, as a file's row blocks come.
    indptr = problem.entries.indptr
    device.eliminated_sweep(
        put(TILES[:3]),
        0,
        N_PARTS,
        put(indptr[:4]),
        *arguments[1:4],
        *arguments[4:6],
        *_rest(arguments, stored, 0, 3),
        *_out(found, 0, 3),
    )
    last = indptr[3]
    rest = [array[last:] if array.size else array for array in arguments[1:3]]
    device.eliminated_sweep(
        put(TILES[2:] - 3),
        2,
        N_PARTS,
        put(indptr[3:] - last),
        *rest,
        arguments[3][3:],
        *arguments[4:6],
        *_rest(arguments, stored, 3, 6),
        *_out(found, 3, 6),
    )
    for one, other in zip(found, expected, strict=True):
        assert_near(fetch(one), other, dtype)


def _rest(arguments, stored, first, last):
    return arguments[6][first:last] if stored else arguments[6], arguments[7]


def _out(found, first, last):
    return [*(part[first:last] if part.shape[0] else part for part in found[:2]), found[2]]


@DTYPES
@pytest.mark.parametrize("b", [4, 8])
def test_residual_products(b, dtype):
    problem, rng = Problem(4), np.random.default_rng(b)
    given = problem.left, problem.rows, problem.coefficients, problem.basis
    vectors, across = rng.standard_normal((9, b)), rng.standard_normal((6, b))
    parts = on_device(dtype, *problem.by_row, problem.entries.values, *given)
    expected, out = np.empty((6, b)), put(np.full((6, b), np.nan, dtype))
    host.multiply_residual(TILES, *problem.by_row, problem.entries.values, *given, vectors, expected)
    device.multiply_residual(put(TILES), *parts, *on_device(dtype, vectors), out)
    assert_near(fetch(out), expected, dtype)
    expected, out = np.empty((N_PARTS, 9, b)), put(np.full((N_PARTS, 9, b), np.nan, dtype))
    host.multiply_residual_transposed(
        TILES, 0, N_PARTS, *problem.by_row, problem.entries.values, *given, across, expected
    )
    device.multiply_residual_transposed(put(TILES), 0, N_PARTS, *parts, *on_device(dtype, across), out)
    assert_near(fetch(out), expected, dtype)


@pytest.mark.parametrize("max_steps", [1, 3])
def test_conjugate_gradients(max_steps):
    problem = Problem(4)
    k, shape = 4, (9, 4)
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
    shape, factors = (9, 4), Problem(4).column_factors()
    vectors = [put(np.zeros(shape)) for _ in range(5)]
    state = put(np.array([0.0, 5.0, 1e-9, 1.0, 1.0]))
    device.start_conjugate_gradients(put(STRIPES), put(factors), state, *vectors)
    assert fetch(state).tolist() == [0.0, 5.0, 1e-9, 0.0, 0.0]
    assert not any(np.any(fetch(vector)) for vector in vectors)


def test_number_of_parts():
    assert tangent_steps._n_parts(np.empty((1, 4))) == 1
    assert tangent_steps._n_parts(np.empty((10**6, 40))) == 512
