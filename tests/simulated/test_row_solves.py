"""Row solves on a device equal those on the processor: both sides of every border between their paths."""

from __future__ import annotations

import numpy as np
import pytest
from numba import cuda

from fastrfm import _cuda
from fastrfm.errors import DeviceMemoryError
from fastrfm.kernels import row_solves as host
from fastrfm.kernels.cuda import _chunks, _factored_rows, _systems, row_solves

NO_CG = 1 << 40
EQUAL = np.empty(0)
TOLERANCE = {np.float32: 2e-4, np.float64: 1e-11}  # of the largest element; systems here have conditions up to 1e3
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
WEIGHTED = pytest.mark.parametrize("is_weighted", [False, True])


def random_rows(rng, counts, n_cols, index_type=np.int32):
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    indices = np.concatenate([*(np.sort(rng.permutation(n_cols)[:n]) for n in counts), []]).astype(index_type)
    return indptr, indices, rng.standard_normal(indices.size).astype(np.float32)


def random_gram(rng, n):
    root = rng.standard_normal((n, n))
    return root @ root.T / n + np.eye(n)


def orthonormal(rng, n, k):
    return np.linalg.qr(rng.standard_normal((n, k)))[0]


def weights_of(rng, n, is_weighted):
    return np.exp(rng.standard_normal(n)) if is_weighted else EQUAL


def assert_close(found, expected, tolerance):
    assert np.isfinite(found).all()
    scale = np.abs(expected).max() if expected.size else 0.0
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


def room(shape, dtype):
    return cuda.to_device(np.full(shape, np.nan, dtype))


@pytest.fixture
def few_unknowns(monkeypatch):
    """Let rows with more than 6 unknowns count as long: the simulator is slow."""
    for module in (_factored_rows, row_solves):
        monkeypatch.setattr(module, "MOST_SHORT", 6)


# --- dense form ---------------------------------------------------------------------------------------------------


def solve_dual(indptr, indices, values, weights, gram, ridge, cg_from, dtype):
    bounds = np.array([0, indptr.size - 1])
    expected, out = np.empty(indices.size), room(indices.size, dtype)
    host.solve_dual_rows(bounds, indptr, indices, values, weights, gram, ridge, cg_from, expected)
    row_solves.solve_dual_rows(bounds, indptr, indices, values, weights, gram.astype(dtype), ridge, cg_from, out)
    return out.copy_to_host(), expected


@DTYPES
@WEIGHTED
@pytest.mark.parametrize("counts", [[0], [1], [0, 3, 0, 1, 5, 4, 0, 9]])
def test_dual_rows(counts, is_weighted, dtype):
    rng = np.random.default_rng(0)
    index_type = np.int64 if is_weighted else np.int32
    indptr, indices, values = random_rows(rng, counts, 9, index_type)
    weights = weights_of(rng, values.size, is_weighted)
    found, expected = solve_dual(indptr, indices, values, weights, random_gram(rng, 9), 0.3, NO_CG, dtype)
    assert_close(found, expected, TOLERANCE[dtype])


def test_long_dual_rows_share_a_workspace():
    # 65 unknowns are two whole panels and a column; a long row after a longer one finds its leftovers.
    rng = np.random.default_rng(1)
    indptr, indices, values = random_rows(rng, [70, 2, 65], 70)
    weights = weights_of(rng, values.size, True)
    found, expected = solve_dual(indptr, indices, values, weights, random_gram(rng, 70), 0.1, 0, np.float64)
    assert_close(found, expected, TOLERANCE[np.float64])


def test_pivots_that_vanish_are_left_out():
    rng = np.random.default_rng(2)
    for n in (5, 70):
        vectors = orthonormal(rng, n, 3)
        gram = (vectors * [1.0, 1.5, 2.0]) @ vectors.T
        values = gram @ rng.standard_normal(n)
        out, indptr = room(n, np.float64), np.array([0, n])
        row_solves.solve_dual_rows(indptr, indptr, np.arange(n), values, EQUAL, gram, 0.0, NO_CG, out)
        np.testing.assert_allclose(gram @ out.copy_to_host(), values, atol=1e-6 * np.abs(values).max())


def test_a_zero_gram_gives_zero():
    out, indptr = room(5, np.float64), np.array([0, 5])
    row_solves.solve_dual_rows(indptr, indptr, np.arange(5), np.ones(5), EQUAL, np.zeros((5, 5)), 0.0, NO_CG, out)
    np.testing.assert_array_equal(out.copy_to_host(), 0.0)


def test_small_ridges_keep_what_is_added_to_them():
    # Entries of weight 1e18 beside one of 1: the ridge over the weight is far below a unit of the ridge.
    weights, values = np.array([1e18, 1e18, 1.0]), np.array([1.0, 2.0, 3.0])
    gram = np.diag([1e-19, 1e-18, 1.0])
    found, expected = solve_dual(np.array([0, 3]), np.arange(3), values, weights, gram, 1.0, NO_CG, np.float64)
    np.testing.assert_allclose(found, expected, rtol=1e-14)


@pytest.mark.parametrize(("is_weighted", "dtype"), [(False, np.float64), (True, np.float32)])
def test_conjugate_gradients_of_long_rows(is_weighted, dtype, monkeypatch):
    n = 80  # with 16 times the budget: the first length with enough of it takes the simulator long
    monkeypatch.setattr(row_solves, "CG_BUDGET", 1)
    rng = np.random.default_rng(3)
    gram = random_gram(rng, n)
    gram /= 400.0 * np.abs(gram).sum(axis=1).max()
    weights = 1.0 + 1e-3 * rng.random(n) if is_weighted else EQUAL
    bound = host.conjugate_gradient_steps(0.5 * (1.0 + 1.0 / 200), 0.5 / 1.001, _systems.cg_tolerance(dtype))
    assert bound < n // row_solves.CG_BUDGET
    taken = []
    original = row_solves._iterate
    monkeypatch.setattr(row_solves, "_iterate", lambda *given: (taken.append(original(*given)), taken[-1])[1])
    values = rng.standard_normal(n)
    found, expected = solve_dual(np.array([0, n]), np.arange(n), values, weights, gram, 0.5, 0, dtype)
    assert taken == [True] * _cuda.N_THREADS
    assert_close(found, expected, 1e-12 if dtype == np.float64 else 1e-5)


def test_conjugate_gradients_say_where_they_give_up():
    rng = np.random.default_rng(4)
    n = 12
    matrix, rhs = random_gram(rng, n), rng.standard_normal(n)
    system = np.concatenate([matrix[np.tril_indices(n)], rhs])

    @_cuda.device_kernel(lambda out: _cuda.over_groups(1, shared_bytes=8 * _cuda.N_THREADS), "d1 l0 d1 d1")
    def solve(system, max_steps, vectors, out):
        is_good = row_solves._iterate(system, n, 1e-13, max_steps, vectors, cuda.shared.array(0, out.dtype), out)
        out[n] = is_good

    no_data = np.concatenate([system[:-n], np.zeros(n)])
    for given, steps, is_good in ((system, 40, True), (system, 1, False), (-system, 40, False), (no_data, 0, True)):
        out = np.full(n + 1, -7.0)
        solve(given, steps, np.empty(4 * n), out)
        assert out[n] == is_good
        twin = np.linalg.solve(matrix, rhs) if given is system else np.zeros(n)
        np.testing.assert_allclose(out[:n], twin if is_good else np.full(n, -7.0), atol=1e-11)


def test_workspaces_shrink_until_one_is_left(monkeypatch):
    tried = []

    def empty(shape, dtype, *, is_spare):
        tried.append((shape[0], is_spare))
        if shape[0] > 1:
            raise DeviceMemoryError("full")
        return np.empty(shape, dtype)

    monkeypatch.setattr(_cuda, "_own", _cuda._Own())
    monkeypatch.setattr(_cuda, "empty", empty)
    assert _systems.workspaces(100, 10, np.float64).shape == (1, 10)
    assert tried == [(4, True), (2, True), (1, False)]
    monkeypatch.setattr(_cuda, "empty", lambda *_, **__: (_ for _ in ()).throw(DeviceMemoryError("full")))
    with pytest.raises(DeviceMemoryError):
        _systems.workspaces(100, 11, np.float64)


@DTYPES
@pytest.mark.parametrize("n_cols", [1, 4, 9])
def test_expanded_rows(n_cols, dtype):
    rng = np.random.default_rng(5)
    counts = [min(n, n_cols) for n in (0, 1, 3, 9, 0, 4)]
    indptr, indices, _ = random_rows(rng, counts, n_cols, np.int64 if n_cols == 4 else np.int32)
    duals, gram = rng.standard_normal(indices.size), random_gram(rng, n_cols)
    expected, out = np.empty((6, n_cols)), room((6, n_cols), dtype)
    host.expand_rows(indptr, indices, duals, gram, expected)
    row_solves.expand_rows(indptr, indices, duals.astype(dtype), gram.astype(dtype), out)
    assert_close(out.copy_to_host(), expected, 1e-6 if dtype == np.float32 else 1e-14)


def test_a_row_longer_than_a_stage_is_expanded():
    rng = np.random.default_rng(6)
    duals, gram = rng.standard_normal(130), random_gram(rng, 130)[:, :5].copy()
    out = room((1, 5), np.float64)
    row_solves.expand_rows(np.array([0, 130]), np.arange(130), duals, gram, out)
    np.testing.assert_allclose(out.copy_to_host()[0], duals @ gram, rtol=1e-12)


# --- factored form ------------------------------------------------------------------------------------------------


def solve_factored(indptr, indices, values, weights, basis, penalty, theta, dtype):
    n_rows, k = indptr.size - 1, penalty.size
    shapes = (n_rows, k), (n_rows, basis.shape[1]), n_rows
    expected, found = [np.empty(shape) for shape in shapes], [room(shape, dtype) for shape in shapes]
    entries = np.array([0, n_rows]), indptr, indices, values, weights
    host.solve_factored_rows(*entries, basis, penalty, theta, *expected)
    row_solves.solve_factored_rows(*entries, basis.astype(dtype), penalty.astype(dtype), theta, *found)
    return [array.copy_to_host() for array in found], expected


@DTYPES
@WEIGHTED
@pytest.mark.parametrize(("k", "b"), [(0, 3), (1, 1), (2, 5), (5, 9), (8, 8)])
def test_factored_rows(k, b, is_weighted, dtype):
    rng = np.random.default_rng(k)
    indptr, indices, values = random_rows(rng, [0, 1, 4, 5, 9, 20], 20, np.int64 if k == 2 else np.int32)
    weights, basis = weights_of(rng, values.size, is_weighted), orthonormal(rng, 20, b)
    found, expected = solve_factored(indptr, indices, values, weights, basis, rng.random(k) + 0.05, 0.7, dtype)
    for array, twin in zip(found, expected, strict=True):
        assert_close(array, twin, TOLERANCE[dtype])


def test_factored_rows_of_several_chunks():
    rng = np.random.default_rng(7)
    indptr, indices, values = random_rows(rng, [39, 36, 33], 45)
    basis, penalty = orthonormal(rng, 45, 37), rng.random(35) + 0.05
    found, expected = solve_factored(indptr, indices, values, EQUAL, basis, penalty, 1.0, np.float64)
    for array, twin in zip(found, expected, strict=True):
        assert_close(array, twin, TOLERANCE[np.float64])


@pytest.mark.parametrize(("is_weighted", "dtype"), [(False, np.float32), (True, np.float64)])
def test_factored_rows_with_many_unknowns(is_weighted, dtype, few_unknowns):
    # In order: dual in shared memory, dual in the workspace, a square normal system, well posed ones.
    rng = np.random.default_rng(8)
    k, n_cols = 9, 40
    indptr, indices, values = random_rows(rng, [3, 8, 9, 40, 0, 20], n_cols)
    weights, basis = weights_of(rng, values.size, is_weighted), orthonormal(rng, n_cols, k + 1)
    found, expected = solve_factored(indptr, indices, values, weights, basis, rng.random(k) + 0.05, 0.6, dtype)
    for array, twin in zip(found, expected, strict=True):
        assert_close(array, twin, TOLERANCE[dtype])


def test_factored_rows_past_64_directions():
    rng = np.random.default_rng(12)
    indptr, indices, values = random_rows(rng, [66, 65], 70)
    basis, penalty = orthonormal(rng, 70, 67), rng.random(66) + 0.05
    found, expected = solve_factored(indptr, indices, values, EQUAL, basis, penalty, 0.6, np.float64)
    for array, twin in zip(found, expected, strict=True):
        assert_close(array, twin, TOLERANCE[np.float64])


@pytest.mark.parametrize("count", [5, 10, 12, 13, 26])
def test_penalties_over_many_decades(count, few_unknowns):
    # As at the end of an exact recovery: some true directions, the others at the smoothing's level.
    rng = np.random.default_rng(9)
    k, n_true, n_cols = 12, 4, 30
    indptr, indices, _ = random_rows(rng, [count], n_cols)
    basis, true = orthonormal(rng, n_cols, k), rng.standard_normal(n_true)
    penalty = np.concatenate([np.logspace(-14, -8, n_true), np.logspace(-3, 12, k - n_true)])
    values = (basis[:, :n_true] @ true)[indices]
    found, expected = solve_factored(indptr, indices, values, EQUAL, basis, penalty, 1.0, np.float64)
    wanted = np.concatenate([true, np.zeros(k - n_true)])
    error, twins_error = np.abs(found[0][0] - wanted).max(), np.abs(expected[0][0] - wanted).max()
    assert error < 2.0 * twins_error + 1e-10
    np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=1e-8)


@pytest.mark.parametrize("count", [4, 6, 12])
def test_exact_data_are_reproduced_as_penalties_fade(count):
    rng = np.random.default_rng(count)
    indptr, indices, _ = random_rows(rng, [count], 30)
    basis, true = orthonormal(rng, 30, 6), rng.standard_normal(3)
    values = (basis[:, :3] @ true)[indices]
    penalty = np.array([1e-14, 1e-14, 1e-13, 0.3, 5.0, 1e6])
    found, _ = solve_factored(indptr, indices, values, EQUAL, basis, penalty, 1.0, np.float64)
    np.testing.assert_allclose(found[0][0], [*true, 0, 0, 0], atol=1e-9)


def test_the_iteration_is_taken_and_given_up(monkeypatch, few_unknowns):
    taken = []
    original = _factored_rows._iterate
    monkeypatch.setattr(_factored_rows, "_iterate", lambda *given: (taken.append(original(*given)), taken[-1])[1])
    rng = np.random.default_rng(10)
    k, n_cols = 9, 30
    basis = orthonormal(rng, n_cols, k)
    indptr, indices, values = random_rows(rng, [30, 11], n_cols)
    for penalty, is_good in ((np.full(k, 1e6), [True] * 2), (np.full(k, 1e-9), [True, False])):
        taken.clear()
        found, expected = solve_factored(indptr, indices, values, EQUAL, basis, penalty, 1.0, np.float64)
        assert sorted(taken) == sorted(is_good * _cuda.N_THREADS)
        for array, twin in zip(found, expected, strict=True):
            assert_close(array, twin, 1e-7 if penalty[0] < 1e-3 else 1e-11)


def test_a_direction_of_infinite_penalty_is_left_out():
    rng = np.random.default_rng(11)
    indptr, indices, values = random_rows(rng, [2, 9], 12)
    basis, penalty = orthonormal(rng, 12, 3), np.array([0.2, 0.5, np.inf])
    found, _ = solve_factored(indptr, indices, values, EQUAL, basis, penalty, 1.0, np.float64)
    _, expected = solve_factored(indptr, indices, values, EQUAL, basis, penalty[:2], 1.0, np.float64)
    assert_close(found[0][:, :2], expected[0], 1e-12)
    np.testing.assert_array_equal(found[0][:, 2], 0.0)
    assert_close(found[1], expected[1], 1e-12)


@DTYPES
@pytest.mark.parametrize("n_rows", [0, 1, 18])
@pytest.mark.parametrize(("k", "n_old", "width"), [(0, 2, 2), (2, 0, 2), (3, 5, 6), (6, 3, 6), (9, 9, 9)])
def test_replaced_rows(n_rows, k, n_old, width, dtype):
    rng = np.random.default_rng(k)
    solved, overlap = rng.standard_normal((n_rows, k)), rng.standard_normal((k, n_old))
    before, moved = rng.standard_normal((n_rows, width)), np.empty(n_rows)
    out, out_moved = cuda.to_device(before.astype(dtype)), room(n_rows, dtype)
    row_solves.replace_rows(solved.astype(dtype), overlap.astype(dtype), out, out_moved)
    host.replace_rows(solved, overlap, before, moved)
    np.testing.assert_array_equal(out.copy_to_host(), before.astype(dtype))
    assert_close(out_moved.copy_to_host(), moved, 1e-5 if dtype == np.float32 else 1e-13)


def test_shared_memory_suffices_and_no_rows_launch_nothing():
    none = np.zeros(1, np.int64)
    outs = np.empty((0, 320)), np.empty((0, 328)), np.empty(0)
    row_solves.solve_factored_rows(none, none, none[:0], outs[2], EQUAL, np.empty((9, 328)), np.ones(320), 1.0, *outs)
    row_solves.solve_dual_rows(none, none, none[:0], outs[2], EQUAL, np.eye(90), 1.0, 0, outs[2])
    for k in (0, 1, 31, 64, 65, 320, 1000):
        basis, workspace = np.empty((1, k + 8)), np.empty((1, 1))
        for launch in (
            _factored_rows._short_rows(np.zeros(2), basis, np.empty(k)),
            _factored_rows._long_rows(np.zeros(2), basis, np.empty(k), workspace),
            row_solves._short_rows(np.zeros(2), np.empty((k, 1))),
        ):
            # 124 threads more than in the simulator take an element each.
            assert launch.n_blocks == 1 and launch.shared_bytes + 124 * 8 <= _cuda.MOST_SHARED_BYTES
        assert _chunks.chunk_depth(_chunks.chunk_pitch(k)) >= 1
