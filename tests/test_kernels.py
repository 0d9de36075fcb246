"""Every kernel against its naive twin: sizes at the borders of tiles and panels, empty groups, dtypes, both paths."""

from __future__ import annotations

from itertools import pairwise

import numba
import numpy as np
import pytest
import reference
from problems import haar

from fastrfm.blocks import EQUAL_WEIGHTS
from fastrfm.kernels import row_solves
from fastrfm.kernels.adjoint import add_adjoint_columns
from fastrfm.kernels.gram import accumulate_gram, shift_and_mirror
from fastrfm.kernels.residual import masked_residual, predict_pairs
from fastrfm.kernels.row_solves import expand_rows, replace_rows, solve_dual_rows, solve_factored_rows
from fastrfm.kernels.tasks import N_TASKS, balanced_bounds

NO_CG = 1 << 40
CHOLESKY_SIZES = [1, 2, 3, 4, 5, 7, 31, 32, 33, 64, 65] if numba.config.DISABLE_JIT else range(1, 131)
Csr = tuple[np.ndarray, np.ndarray, np.ndarray]


def random_weights(rng, n, is_weighted):
    return np.exp(2.0 * rng.standard_normal(n)) if is_weighted else EQUAL_WEIGHTS


def random_csr(
    rng: np.random.RandomState, counts: list[int], n_other: int, value_type=np.float64, index_type=np.int32
) -> Csr:
    """Return compressed entries with the given number in each group."""
    indptr = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    groups = [np.sort(rng.permutation(n_other)[:count]) for count in counts]
    indices = np.concatenate([*groups, []]).astype(index_type)
    return indptr, indices, rng.standard_normal(indices.size).astype(value_type)


def bounds_of(indptr: np.ndarray) -> np.ndarray:
    return balanced_bounds(np.diff(indptr) + 4)


def well_conditioned(rng: np.random.RandomState, n: int) -> np.ndarray:
    root = rng.standard_normal((n, n))
    return root @ root.T / max(n, 1) + np.eye(n)


WEIGHTED = pytest.mark.parametrize("is_weighted", [False, True])
DTYPES = pytest.mark.parametrize(
    ("value_type", "index_type"), [(np.float64, np.int32), (np.float32, np.int32), (np.float64, np.int64)]
)
COUNTS = [[0], [1], [0, 3, 0, 1, 5, 4, 0], [7, 0, 2, 6, 7, 3, 1, 5]]

# --- tasks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_rows", [0, 1, 2, 63, 64, 65, 1000])
@pytest.mark.parametrize("kind", ["equal", "one_heavy", "zero", "random"])
def test_balanced_bounds_cover_every_row_once(n_rows, kind):
    cost = {
        "equal": np.ones(n_rows),
        "one_heavy": np.where(np.arange(n_rows) == n_rows // 2, 1e6, 1.0),
        "zero": np.zeros(n_rows),
        "random": np.random.RandomState(0).random_sample(n_rows) ** 8,
    }[kind]
    bounds = balanced_bounds(cost)
    assert bounds.dtype == np.int64 and bounds[0] == 0 and bounds[-1] == n_rows
    assert np.all(np.diff(bounds) >= 0) and bounds.size <= N_TASKS + 1
    sums = [cost[a:b].sum() for a, b in pairwise(bounds)]
    if n_rows:
        assert max(sums) <= cost.sum() / min(N_TASKS, n_rows) + cost.max() + 1e-9


# --- Gram ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 7, 64, 65])
@pytest.mark.parametrize("n_rows", [0, 1, 3, 50])
def test_accumulate_gram_adds_to_the_lower_triangle_alone(n, n_rows):
    rng = np.random.RandomState(n)
    rows, gram = rng.standard_normal((n_rows, n)), rng.standard_normal((n, n))
    before, rows_before = gram.copy(), rows.copy()
    accumulate_gram(rows, gram)
    twin = before + sum((np.outer(row, row) for row in rows), np.zeros((n, n)))
    np.testing.assert_allclose(np.tril(gram), np.tril(twin), atol=1e-11)
    np.testing.assert_array_equal(np.triu(gram, 1), np.triu(before, 1))
    np.testing.assert_array_equal(rows, rows_before)


def test_accumulate_gram_takes_a_slab_of_a_larger_buffer():
    buffer = np.random.RandomState(0).standard_normal((9, 4))
    gram = np.zeros((4, 4))
    accumulate_gram(buffer[:5], gram)
    np.testing.assert_allclose(np.tril(gram), np.tril(buffer[:5].T @ buffer[:5]), atol=1e-12)


@pytest.mark.parametrize("n", [0, 1, 2, 63, 64, 65, 130])
@pytest.mark.parametrize("in_place", [True, False])
def test_shift_and_mirror_equals_naive(n, in_place):
    gram = np.random.RandomState(n).standard_normal((n, n))
    lower = np.tril(gram)
    twin = 0.3 * (lower + np.tril(gram, -1).T) + 2.5 * np.eye(n)
    out = gram if in_place else np.full((n, n), np.nan)
    shift_and_mirror(gram, 0.3, 2.5, out)
    np.testing.assert_allclose(out, twin, rtol=1e-15)
    np.testing.assert_array_equal(out, out.T)


# --- residuals and the adjoint ------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("k", [0, 1, 5])
def test_masked_residual_equals_naive(counts, k, value_type, index_type):
    rng = np.random.RandomState(k)
    indptr, indices, values = random_csr(rng, counts, 7, value_type, index_type)
    left, right = rng.standard_normal((len(counts), k)), rng.standard_normal((7, k))
    out = np.full(values.size, np.nan)
    masked_residual(bounds_of(indptr), indptr, indices, values, left, right, out)
    np.testing.assert_allclose(out, reference.masked_residual(indptr, indices, values, left, right), atol=1e-13)


@pytest.mark.parametrize("n_pairs", [0, 1, 37, pytest.param(4097, marks=pytest.mark.compiled_only)])
@pytest.mark.parametrize("k", [0, 1, 5])
def test_predict_pairs_equals_naive(n_pairs, k):
    rng = np.random.RandomState(k)
    rows, cols = rng.randint(0, 6, n_pairs), rng.randint(0, 9, n_pairs)
    left, right = rng.standard_normal((6, k)), rng.standard_normal((9, k))
    out = np.full(n_pairs, np.nan)
    predict_pairs(rows, cols, left, right, out)
    np.testing.assert_allclose(out, (left @ right.T)[rows, cols], atol=1e-13)


@DTYPES
@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize(("k", "b"), [(0, 3), (1, 1), (3, 3), (4, 9)])
@WEIGHTED
def test_add_adjoint_columns_equals_naive(counts, k, b, value_type, index_type, is_weighted):
    rng = np.random.RandomState(k)
    indptr, indices, values = random_csr(rng, counts, 7, value_type, index_type)
    coefficients, basis = rng.standard_normal((7, k)), rng.standard_normal((len(counts), b))
    directions, out = rng.standard_normal((7, b)), rng.standard_normal((len(counts), b))
    weights = random_weights(rng, values.size, is_weighted)
    twin = reference.add_adjoint_columns(indptr, indices, values, coefficients, basis, 0.6, directions, out, weights)
    add_adjoint_columns(
        bounds_of(indptr), indptr, indices, values, weights, coefficients, basis, k, 0.6, directions, out
    )
    np.testing.assert_allclose(out, twin, atol=1e-12)


@pytest.mark.parametrize("n_rows", [0, 1, 1025])
@pytest.mark.parametrize(("k", "n_old", "width"), [(0, 0, 0), (2, 0, 2), (3, 3, 3), (2, 4, 4), (4, 2, 5), (0, 2, 2)])
def test_replace_rows_equals_naive(n_rows, k, n_old, width):
    rng = np.random.RandomState(k)
    solved, overlap = rng.standard_normal((n_rows, k)), rng.standard_normal((k, n_old))
    coefficients, moved = rng.standard_normal((n_rows, width)), np.full(n_rows, np.nan)
    new, moved_twin = reference.replace_rows(solved, overlap, coefficients)
    replace_rows(solved, overlap, coefficients, moved)
    np.testing.assert_array_equal(coefficients, new)
    np.testing.assert_allclose(moved, moved_twin, rtol=1e-12)


# --- dual rows ----------------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("ridge", [0.0, 0.4])
@pytest.mark.parametrize("counts", COUNTS)
@WEIGHTED
def test_dual_rows_equal_naive(counts, ridge, value_type, index_type, is_weighted):
    rng = np.random.RandomState(len(counts))
    indptr, indices, values = random_csr(rng, counts, 7, value_type, index_type)
    kernel_matrix = well_conditioned(rng, 7)
    before = kernel_matrix.copy()
    weights = random_weights(rng, values.size, is_weighted)
    twin = reference.solve_dual_rows(indptr, indices, values, kernel_matrix, ridge, weights)
    for cg_from in (0, 4, NO_CG):
        out = np.full(values.size, np.nan)
        solve_dual_rows(bounds_of(indptr), indptr, indices, values, weights, kernel_matrix, ridge, cg_from, out)
        np.testing.assert_allclose(out, twin, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(kernel_matrix, before)


@pytest.mark.parametrize("n", CHOLESKY_SIZES)
def test_cholesky_at_every_size_equals_naive(n):
    rng = np.random.RandomState(n)
    indptr, indices, values = random_csr(rng, [n], n + 3)
    kernel_matrix = well_conditioned(rng, n + 3)
    out = np.full(n, np.nan)
    solve_dual_rows(bounds_of(indptr), indptr, indices, values, EQUAL_WEIGHTS, kernel_matrix, 0.1, NO_CG, out)
    system = kernel_matrix[np.ix_(indices, indices)] + 0.1 * np.eye(n)
    np.testing.assert_allclose(out, reference.cholesky_solve(system, values), rtol=1e-9, atol=1e-12)


def test_rows_of_many_lengths_share_a_workspace():
    # A long row before short ones leaves its factor in the workspace; nothing of it may leak.
    rng = np.random.RandomState(0)
    indptr, indices, values = random_csr(rng, [40, 1, 33, 2, 0, 39, 5] * 12, 40)
    kernel_matrix = well_conditioned(rng, 40)
    out, estimate = np.full(values.size, np.nan), np.full((84, 40), np.nan)
    solve_dual_rows(np.array([0, 84]), indptr, indices, values, EQUAL_WEIGHTS, kernel_matrix, 0.0, NO_CG, out)
    np.testing.assert_allclose(
        out, reference.solve_dual_rows(indptr, indices, values, kernel_matrix, 0.0), rtol=1e-9, atol=1e-12
    )
    expand_rows(indptr, indices, out, kernel_matrix, estimate)
    np.testing.assert_allclose(estimate, reference.expand_rows(indptr, indices, out, kernel_matrix), atol=1e-11)


@pytest.mark.parametrize("n", [5, 33, 70])
@pytest.mark.parametrize("rank", [1, 3])
def test_singular_consistent_systems_interpolate(n, rank):
    rng = np.random.RandomState(n)
    vectors = haar(rng, n, rank)
    kernel_matrix = (vectors * np.linspace(1, 2, rank)) @ vectors.T
    values = kernel_matrix @ rng.standard_normal(n)
    indptr, indices, out = np.array([0, n]), np.arange(n, dtype=np.int32), np.full(n, np.nan)
    solve_dual_rows(np.array([0, 1]), indptr, indices, values, EQUAL_WEIGHTS, kernel_matrix, 0.0, NO_CG, out)
    assert np.isfinite(out).all()
    # The solution is not unique, what it predicts is.
    np.testing.assert_allclose(kernel_matrix @ out, values, atol=1e-6 * np.abs(values).max())


def test_zero_kernel_gives_zero():
    indptr, indices, out = np.array([0, 3]), np.arange(3, dtype=np.int32), np.full(3, np.nan)
    solve_dual_rows(np.array([0, 1]), indptr, indices, np.ones(3), EQUAL_WEIGHTS, np.zeros((3, 3)), 0.0, NO_CG, out)
    np.testing.assert_array_equal(out, 0.0)


@pytest.mark.compiled_only
def test_conjugate_gradients_are_taken_and_right_where_they_converge():
    # A ridge above the size of K bounds the condition number by 3, so that few steps are sure to do.
    n = 600
    rng = np.random.RandomState(0)
    kernel_matrix = well_conditioned(rng, n)
    kernel_matrix /= 2.0 * np.abs(kernel_matrix).sum(axis=1).max()
    values = rng.standard_normal(n)
    indptr, indices = np.array([0, n]), np.arange(n, dtype=np.int32)
    found = {}
    for cg_from in (0, n, n + 1):
        found[cg_from] = np.full(n, np.nan)
        solve_dual_rows(
            np.array([0, 1]), indptr, indices, values, EQUAL_WEIGHTS, kernel_matrix, 0.5, cg_from, found[cg_from]
        )
        np.testing.assert_allclose(
            found[cg_from], np.linalg.solve(kernel_matrix + 0.5 * np.eye(n), values), rtol=1e-9, atol=1e-13
        )
    np.testing.assert_array_equal(found[0], found[n])
    assert np.any(found[n] != found[n + 1]), "conjugate gradients and factorisation round differently"


@pytest.mark.compiled_only
def test_rows_that_conjugate_gradients_give_up_are_factorised():
    n = 120
    rng = np.random.RandomState(1)
    vectors = haar(rng, n, n)
    kernel_matrix = (vectors * np.logspace(-6, 0, n)) @ vectors.T
    kernel_matrix = 0.5 * (kernel_matrix + kernel_matrix.T)
    values = rng.standard_normal(n)
    indptr, indices = np.array([0, n]), np.arange(n, dtype=np.int32)
    tried, factorised = np.full(n, np.nan), np.full(n, np.nan)
    solve_dual_rows(np.array([0, 1]), indptr, indices, values, EQUAL_WEIGHTS, kernel_matrix, 0.0, 0, tried)
    solve_dual_rows(np.array([0, 1]), indptr, indices, values, EQUAL_WEIGHTS, kernel_matrix, 0.0, NO_CG, factorised)
    np.testing.assert_array_equal(tried, factorised)
    np.testing.assert_allclose(kernel_matrix @ tried, values, atol=1e-8)


def test_conjugate_gradients_leave_the_right_side_when_they_fail():
    rng = np.random.RandomState(2)
    matrix, rhs = well_conditioned(rng, 12), rng.standard_normal(12)
    kept = rhs.copy()
    assert not row_solves._conjugate_gradients(matrix, 12, kept, 1, np.empty((4, 12)))
    np.testing.assert_array_equal(kept, rhs)
    assert row_solves._conjugate_gradients(matrix, 12, kept, 40, np.empty((4, 15)))
    np.testing.assert_allclose(kept, np.linalg.solve(matrix, rhs), rtol=1e-10)
    zero = np.zeros(12)
    assert row_solves._conjugate_gradients(matrix, 12, zero, 0, np.empty((4, 12)))
    np.testing.assert_array_equal(zero, 0.0)
    indefinite = rhs.copy()
    assert not row_solves._conjugate_gradients(-matrix, 12, indefinite, 40, np.empty((4, 12)))
    np.testing.assert_array_equal(indefinite, rhs)


@DTYPES
@pytest.mark.parametrize("n_cols", [1, 3, 63, 64, 65, 130])
def test_expand_rows_equals_naive(n_cols, value_type, index_type):
    rng = np.random.RandomState(n_cols)
    counts = [min(count, n_cols) for count in (0, 1, 2, 3, 4, 5, 8, 9, 0)]
    indptr, indices, _ = random_csr(rng, counts, n_cols, value_type, index_type)
    duals, kernel_matrix = rng.standard_normal(indices.size), well_conditioned(rng, n_cols)
    buffer = np.full((len(counts) + 2, n_cols), np.nan)
    expand_rows(indptr, indices, duals, kernel_matrix, buffer[: len(counts)])
    twin = reference.expand_rows(indptr, indices, duals, kernel_matrix)
    np.testing.assert_allclose(buffer[: len(counts)], twin, atol=1e-12)
    assert np.isnan(buffer[len(counts) :]).all()


# --- factored rows ------------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize(
    ("k", "b"), [(0, 1), (0, 4), (1, 1), (2, 5), (3, 3), (4, 4), (5, 9), (8, 8), (9, 12), (13, 13)]
)
@WEIGHTED
def test_factored_rows_equal_naive(k, b, value_type, index_type, is_weighted):
    # Lengths on both sides of k: the dual path below it, the primal one from it on.
    rng = np.random.RandomState(k)
    counts = [0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 14, 0, 20, 1]
    indptr, indices, values = random_csr(rng, counts, 20, value_type, index_type)
    basis, penalty = haar(rng, 20, b), rng.random_sample(k) + 0.05
    n_rows = len(counts)
    found = np.full((n_rows, k), np.nan), np.full((n_rows, b), np.nan), np.full(n_rows, np.nan)
    weights = random_weights(rng, values.size, is_weighted)
    solve_factored_rows(bounds_of(indptr), indptr, indices, values, weights, basis, penalty, 0.7, *found)
    twins = reference.solve_factored_rows(indptr, indices, values, basis, penalty, 0.7, weights)
    for array, twin in zip(found, twins, strict=True):
        np.testing.assert_allclose(array, twin, atol=1e-11)


@pytest.mark.parametrize("k", [31, 32, 33, 40, pytest.param(65, marks=pytest.mark.compiled_only)])
def test_factored_rows_past_a_panel_equal_naive(k):
    rng = np.random.RandomState(k)
    counts = [k - 1, k, k + 1, 90, 3, 34]
    indptr, indices, values = random_csr(rng, counts, 90)
    basis, penalty = haar(rng, 90, k + 2), rng.random_sample(k) + 0.05
    found = np.full((6, k), np.nan), np.full((6, k + 2), np.nan), np.full(6, np.nan)
    solve_factored_rows(np.array([0, 6]), indptr, indices, values, EQUAL_WEIGHTS, basis, penalty, 1.0, *found)
    twins = reference.solve_factored_rows(indptr, indices, values, basis, penalty, 1.0)
    for array, twin in zip(found, twins, strict=True):
        np.testing.assert_allclose(array, twin, atol=1e-10)


@pytest.mark.parametrize("count", [4, 5, 6, 7, 12])
def test_factored_rows_reproduce_exact_data_as_penalties_fade(count):
    # As at the end of an exact recovery: three true directions, the others at the smoothing's level.
    rng = np.random.RandomState(count)
    indptr, indices, _ = random_csr(rng, [count], 30)
    basis = haar(rng, 30, 6)
    penalty = np.array([1e-22, 1e-21, 1e-20, 0.3, 5.0, 1e6])
    true = rng.standard_normal(3)
    found = np.empty((1, 6)), np.empty((1, 6)), np.empty(1)
    solve_factored_rows(
        np.array([0, 1]), indptr, indices, (basis[:, :3] @ true)[indices], EQUAL_WEIGHTS, basis, penalty, 1.0, *found
    )
    np.testing.assert_allclose(found[0][0], [*true, 0, 0, 0], atol=1e-10)
    assert found[2][0] < 1e-20
