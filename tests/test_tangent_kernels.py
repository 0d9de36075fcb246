"""Every kernel of the tangent-space system against its naive twin: empty groups, dtypes, ways to split, threads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import reference
from problems import haar
from test_kernels import Csr, random_csr

from fastrfm._numba import available_threads, thread_limit
from fastrfm.kernels import tangent
from fastrfm.kernels.tangent import (
    combine_parts,
    conjugate_gradients,
    eliminated_sweep,
    factor_columns,
    factor_rows,
    gradient,
    multiply_residual,
    multiply_residual_transposed,
    project_columns,
)

DTYPES = pytest.mark.parametrize(
    ("value_type", "index_type"),
    [(np.float64, np.int32), (np.float32, np.int32), (np.float64, np.int64), (np.float32, np.int64)],
)
N_COLS = 7
COUNTS = [[0], [1], [0, 3, 0, 1, 5, 4, 0], [7, 0, 2, 6, 7, 3, 1, 5, 0, 4]]
COUNT_IDS = ["empty", "one", "gaps", "many"]
# Ways to split n groups: all in one task, one task each, uneven runs with empty ones between.
SPLITS = {
    "one": lambda n: np.array([0, n]),
    "each": lambda n: np.arange(n + 1),
    "uneven": lambda n: np.array([0, 0, n // 3, n // 3, n - 1, n, n]),
}


@dataclass(frozen=True)
class System:
    """A random tangent-space system over some entries."""

    entries: Csr
    left: np.ndarray
    basis: np.ndarray
    coefficients: np.ndarray
    penalty: np.ndarray
    hidden: np.ndarray

    @property
    def pattern(self) -> tuple[np.ndarray, np.ndarray]:
        return self.entries[0], self.entries[1]

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.left), *self.basis.shape

    def row_factors(self) -> np.ndarray:
        return packed_systems(reference.gram_systems(*self.pattern, self.basis, self.penalty))

    def column_factors(self) -> np.ndarray:
        return packed_systems(
            reference.gram_systems(*by_column(self.entries, len(self.basis))[:2], self.left, self.penalty)
        )


def random_system(
    counts: list[int], k: int, value_type=np.float64, index_type=np.int32, n_cols: int = N_COLS
) -> System:
    rng = np.random.RandomState(k)
    entries = random_csr(rng, counts, n_cols, value_type, index_type)
    left, basis = rng.standard_normal((len(counts), k)), haar(rng, n_cols, k)
    coefficients = rng.standard_normal((n_cols, k))
    return System(entries, left, basis, coefficients, rng.random_sample(k) + 0.05, rng.random_sample(k))


def packed_systems(systems: np.ndarray) -> np.ndarray:
    k = systems.shape[1]
    packed = [reference.packed_factor(system) for system in systems]
    return np.array(packed).reshape(len(systems), k * (k + 1) // 2)


def by_column(entries: Csr, n_cols: int) -> Csr:
    indptr, indices, values = entries
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    order = np.argsort(indices, kind="stable")
    counts = np.bincount(indices, minlength=n_cols)
    return np.concatenate(([0], np.cumsum(counts))), rows[order], values[order]


def dense_of(entries: Csr, values: np.ndarray, n_cols: int) -> np.ndarray:
    out = np.zeros((len(entries[0]) - 1, n_cols))
    out[np.repeat(np.arange(len(out)), np.diff(entries[0])), entries[1]] = values
    return out


def residual_of(system: System, rows: np.ndarray) -> np.ndarray:
    """Return y − U Aᵀ − B Vᵀ on the observed entries, dense."""
    observed = dense_of(system.entries, system.entries[2].astype(np.float64), len(system.basis))
    mask = dense_of(system.entries, 1.0, len(system.basis)) > 0.0
    return np.where(mask, observed - system.left @ system.coefficients.T - rows @ system.basis.T, 0.0)


# --- factors ------------------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("counts", COUNTS, ids=COUNT_IDS)
@pytest.mark.parametrize("k", [0, 1, 2, 5])
def test_factors_equal_naive(counts, k, value_type, index_type):
    system = random_system(counts, k, value_type, index_type)
    n_rows, n_cols, size = len(counts), N_COLS, k * (k + 1) // 2
    of_rows, of_columns = system.row_factors(), system.column_factors()
    for split in SPLITS.values():
        rows, columns = np.full((n_rows, size), np.nan), np.full((n_cols, size), np.nan)
        factor_rows(split(n_rows), *system.pattern, system.basis, system.penalty, rows)
        factor_columns(split(n_cols), *system.pattern, system.left, system.penalty, columns)
        np.testing.assert_allclose(rows, of_rows, atol=1e-12)
        np.testing.assert_allclose(columns, of_columns, atol=1e-12)


def test_a_stripe_writes_its_own_columns_alone():
    # One after the other, stripes would repair what they do to each other; side by side they would not.
    system = random_system(COUNTS[-1], 2)
    n_rows, stripes = system.shape[0], np.array([2, 4, 5])
    own, others = np.arange(2, 5), np.array([0, 1, 5, 6])
    factors, product = np.full((N_COLS, 3), 7.0), np.full((N_COLS, 3), 7.0)
    factor_columns(stripes, *system.pattern, system.left, system.penalty, factors)
    directions, rows = np.random.RandomState(0).standard_normal((n_rows, 3)), np.zeros((n_rows, 2))
    arguments = *system.entries, system.left, rows, system.coefficients, system.basis
    multiply_residual_transposed(stripes, *arguments, directions, product)
    for array, wanted in ((factors, system.column_factors()), (product, residual_of(system, rows).T @ directions)):
        np.testing.assert_allclose(array[own], wanted[own], atol=1e-12)
        np.testing.assert_array_equal(array[others], 7.0)


@pytest.mark.parametrize("k", [1, 2, 3, 8, pytest.param(40, marks=pytest.mark.compiled_only)])
def test_a_factor_solves_its_system(k):
    rng = np.random.RandomState(k)
    root, rhs = rng.standard_normal((k, k + 2)), rng.standard_normal(k)
    system = root @ root.T + np.eye(k)
    packed = system[np.tril_indices(k)]
    tangent._factorise(packed, k, np.full(k, 0.5))
    np.testing.assert_allclose(packed, reference.packed_factor(system + 0.5 * np.eye(k)), atol=1e-12 * k)
    solved = rhs.copy()
    tangent._solve(packed, k, solved)
    np.testing.assert_allclose(solved, np.linalg.solve(system + 0.5 * np.eye(k), rhs), rtol=1e-10)


def test_a_singular_system_is_solved_where_it_can_be():
    # Two equal features and penalties next to nothing: pivots of pure rounding must not become infinite.
    feature = np.array([1.0, 1.0, 2.0])
    packed = np.outer(feature, feature)[np.tril_indices(3)]
    tangent._factorise(packed, 3, np.full(3, 1e-30))
    assert np.isfinite(packed).all()
    solved = 6.0 * feature
    tangent._solve(packed, 3, solved)
    assert solved @ feature == pytest.approx(6.0, rel=1e-6)
    nothing = np.zeros(3)
    tangent._factorise(nothing, 2, np.zeros(2))
    solved = np.ones(2)
    tangent._solve(nothing, 2, solved)
    np.testing.assert_array_equal(solved, 0.0)


@pytest.mark.parametrize("index_type", [np.int32, np.int64])
def test_the_first_column_at_least_is_found(index_type):
    indices = np.array([9, 0, 2, 3, 7, 1], dtype=index_type)
    for column in range(10):
        wanted = 1 + int(np.searchsorted(indices[1:5], column))
        assert tangent._first_at_least(indices, 1, 5, column) == wanted
    assert tangent._first_at_least(indices, 3, 3, 0) == 3


# --- sweeps -------------------------------------------------------------------------------------------------------


def sweep(
    system: System, values: np.ndarray, factors: np.ndarray, *, tiles: np.ndarray, n_parts: int, keeps: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return B, the misfits and the parts of ``eliminated_sweep``, into buffers full of NaN."""
    n_rows, n_cols, k = system.shape
    rows = np.full((n_rows if keeps else 0, k), np.nan)
    misfit, parts = np.full(len(rows), np.nan), np.full((n_parts, n_cols, k), np.nan)
    eliminated_sweep(
        tiles, n_parts, *system.pattern, values, system.left, system.basis, system.coefficients, factors, rows, misfit,
        parts,
    )  # fmt: skip
    return rows, misfit, parts


@DTYPES
@pytest.mark.parametrize("counts", COUNTS, ids=COUNT_IDS)
@pytest.mark.parametrize("k", [0, 1, 3])
@pytest.mark.parametrize("has_values", [True, False])
def test_eliminated_sweep_equals_naive(counts, k, has_values, value_type, index_type):
    system = random_system(counts, k, value_type, index_type)
    given = system.entries[2] if has_values else np.empty(0, dtype=value_type)
    assumed = system.entries[2] if has_values else np.zeros(system.entries[2].size)
    twins = reference.eliminate_rows(
        *system.pattern, assumed, system.left, system.basis, system.coefficients, system.penalty
    )
    factors = system.row_factors()
    for name, n_parts in (("one", 1), ("each", 2), ("uneven", 3), ("one", 4)):
        tiles = SPLITS[name](len(counts))
        rows, misfit, parts = sweep(system, given, factors, tiles=tiles, n_parts=n_parts)
        for array, twin in zip((rows, misfit, parts.sum(axis=0)), twins, strict=True):
            np.testing.assert_allclose(array, twin, atol=1e-12)
        unkept = sweep(system, given, factors, tiles=tiles, n_parts=n_parts, keeps=False)
        assert unkept[0].size == unkept[1].size == 0
        np.testing.assert_array_equal(unkept[2], parts)


@pytest.mark.parametrize("k", [0, 1, 3, 6])
@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_project_columns_equals_a_product(k, split):
    system = random_system([3], k)
    stripes = split(N_COLS)
    out = np.full((stripes.size - 1, k, k), np.nan)
    project_columns(stripes, system.basis, system.coefficients, out)
    np.testing.assert_allclose(out.sum(axis=0), system.basis.T @ system.coefficients, atol=1e-13)


@pytest.mark.parametrize("k", [0, 1, 3, 6])
@pytest.mark.parametrize("n_parts", [1, 3])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_combine_parts_equals_naive(k, n_parts, sign, split):
    rng = np.random.RandomState(k)
    system = random_system([3], k)
    parts, core, stripes = rng.standard_normal((n_parts, N_COLS, k)), rng.standard_normal((k, k)), split(N_COLS)
    before = parts.copy()
    out, dots = np.full((N_COLS, k), np.nan), np.full(stripes.size - 1, np.nan)
    combine_parts(stripes, parts, sign, system.basis, system.coefficients, core, system.penalty, out, dots)
    twin = sign * parts.sum(axis=0) + system.penalty * (system.coefficients - system.basis @ core)
    np.testing.assert_allclose(out, twin, atol=1e-13)
    assert dots.sum() == pytest.approx(np.sum(twin * system.coefficients), rel=1e-12, abs=1e-13)
    np.testing.assert_array_equal(parts, before)


@DTYPES
@pytest.mark.parametrize("counts", COUNTS, ids=COUNT_IDS)
@pytest.mark.parametrize("k", [0, 1, 3])
@pytest.mark.parametrize("width", [1, 4])
def test_residual_products_equal_naive(counts, k, width, value_type, index_type):
    rng = np.random.RandomState(width)
    system = random_system(counts, k, value_type, index_type)
    rows = rng.standard_normal((len(counts), k))
    residual = residual_of(system, rows)
    vectors, directions = rng.standard_normal((N_COLS, width)), rng.standard_normal((len(counts), width))
    arguments = *system.entries, system.left, rows, system.coefficients, system.basis
    for split in SPLITS.values():
        out = np.full((len(counts), width), np.nan)
        multiply_residual(split(len(counts)), *arguments, vectors, out)
        np.testing.assert_allclose(out, residual @ vectors, atol=1e-12)
        back = np.full((N_COLS, width), np.nan)
        multiply_residual_transposed(split(N_COLS), *arguments, directions, back)
        np.testing.assert_allclose(back, residual.T @ directions, atol=1e-12)


# --- the system ---------------------------------------------------------------------------------------------------


@dataclass
class Solved:
    """What ``gradient`` and ``conjugate_gradients`` wrote."""

    rows: np.ndarray
    misfit: np.ndarray
    right_hand_side: np.ndarray
    solution: np.ndarray
    state: np.ndarray


def solve(
    system: System,
    *,
    n_parts: int = 1,
    row_split: str = "one",
    column_split: str = "one",
    tolerance: float = 1e-13,
    allowances: tuple[int, ...] = (500,),
) -> Solved:
    """Return the gradient at the system's coefficients and the correction from it, in calls of growing allowance."""
    n_rows, n_cols, k = system.shape
    tiles, stripes = SPLITS[row_split](n_rows), SPLITS[column_split](n_cols)
    split = tiles, n_parts, stripes, *system.pattern
    row_factors, column_factors = system.row_factors(), system.column_factors()
    parts = np.full((n_parts, n_cols, k), np.nan)
    rows, misfit, right_hand_side = np.full((n_rows, k), np.nan), np.full(n_rows, np.nan), np.full((n_cols, k), np.nan)
    gradient(
        *split, system.entries[2], system.left, system.basis, system.coefficients, row_factors, system.penalty,
        system.hidden, parts, rows, misfit, right_hand_side,
    )  # fmt: skip
    residual = right_hand_side.copy()
    solution, direction, preconditioned, image = (np.full((n_cols, k), np.nan) for _ in range(4))
    state = np.array([0.0, 0.0, tolerance, np.nan, np.nan])
    for allowance in allowances:
        state[1] = allowance
        conjugate_gradients(
            *split, system.left, system.basis, row_factors, column_factors, system.penalty, system.hidden, parts, state,
            solution, residual, direction, preconditioned, image,
        )  # fmt: skip
    return Solved(rows, misfit, right_hand_side, solution, state)


@DTYPES
@pytest.mark.parametrize("counts", COUNTS, ids=COUNT_IDS)
@pytest.mark.parametrize("k", [0, 1, 3])
def test_gradient_and_conjugate_gradients_equal_dense_solves(counts, k, value_type, index_type):
    system = random_system(counts, k, value_type, index_type)
    twin = reference.schur_complement(*system.pattern, system.left, system.basis, system.penalty, system.hidden)
    found = solve(system)
    rows, misfit, data_part = reference.eliminate_rows(
        *system.entries, system.left, system.basis, system.coefficients, system.penalty
    )
    seen = system.coefficients - system.basis @ (system.hidden[:, None] * (system.basis.T @ system.coefficients))
    np.testing.assert_allclose(found.rows, rows, atol=1e-12)
    np.testing.assert_allclose(found.misfit, misfit, atol=1e-12)
    np.testing.assert_allclose(found.right_hand_side, data_part - system.penalty * seen, atol=1e-12)
    # Minus the gradient at A is S (A_best - A), so that A + solution is the best A.
    wanted = np.linalg.solve(twin, found.right_hand_side.ravel()).reshape(N_COLS, k)
    np.testing.assert_allclose(found.solution, wanted, atol=1e-9)
    assert found.state[0] <= 2 * N_COLS * k
    assert found.state[3] <= found.state[2] ** 2 * found.state[4]


SPLIT_CASES = [(1, "each", "each"), (2, "each", "uneven"), (3, "uneven", "one"), (8, "each", "each")]


@pytest.mark.parametrize(("n_parts", "row_split", "column_split"), SPLIT_CASES)
def test_the_split_changes_rounding_alone(n_parts, row_split, column_split):
    system = random_system(COUNTS[-1], 3)
    whole = solve(system)
    parted = solve(system, n_parts=n_parts, row_split=row_split, column_split=column_split)
    for name in ("rows", "misfit", "right_hand_side", "solution"):
        np.testing.assert_allclose(getattr(parted, name), getattr(whole, name), atol=1e-12)


def test_a_call_goes_on_where_the_last_one_stopped():
    system = random_system(COUNTS[-1], 3)
    whole = solve(system)
    parted = solve(system, allowances=(0, 1, 2, 2, 5, 500))
    np.testing.assert_array_equal(parted.solution, whole.solution)
    np.testing.assert_array_equal(parted.state, np.append(whole.state[:1], [500.0, *whole.state[2:]]))


def test_state_tells_the_preconditioned_residual_and_obeys_the_allowance():
    system = random_system(COUNTS[-1], 3)
    twin = reference.schur_complement(*system.pattern, system.left, system.basis, system.penalty, system.hidden)
    column_systems = reference.gram_systems(*by_column(system.entries, N_COLS)[:2], system.left, system.penalty)

    def preconditioned_norm(residual: np.ndarray) -> float:
        return float(sum(r @ np.linalg.solve(c, r) for r, c in zip(residual, column_systems, strict=True)))

    errors = []
    for n_steps in range(7):
        found = solve(system, allowances=(n_steps,))
        left_over = found.right_hand_side - (twin @ found.solution.ravel()).reshape(N_COLS, 3)
        assert found.state[0] == n_steps
        assert found.state[3] == pytest.approx(preconditioned_norm(left_over), rel=1e-8)
        assert found.state[4] == pytest.approx(preconditioned_norm(found.right_hand_side), rel=1e-10)
        best = np.linalg.solve(twin, found.right_hand_side.ravel()) - found.solution.ravel()
        errors.append(best @ twin @ best)
    assert np.all(np.diff(errors) < 0.0), "the energy error of conjugate gradients falls in every step"


@pytest.mark.parametrize("tolerance", [0.3, 1e-2, 1e-6])
def test_the_tolerance_is_met_and_not_outdone(tolerance):
    system = random_system(COUNTS[-1], 3)
    found = solve(system, tolerance=tolerance)
    assert np.sqrt(found.state[3] / found.state[4]) <= tolerance
    before = solve(system, tolerance=tolerance, allowances=(int(found.state[0]) - 1,))
    assert np.sqrt(before.state[3] / before.state[4]) > tolerance


def test_a_zero_right_hand_side_takes_no_step():
    system = random_system([0, 0], 2)
    still = System(system.entries, system.left, system.basis, np.zeros((N_COLS, 2)), system.penalty, system.hidden)
    found = solve(still)
    np.testing.assert_array_equal(found.solution, 0.0)
    assert found.state[0] == 0.0


@pytest.mark.compiled_only
@pytest.mark.parametrize("value_type", [np.float64, np.float32])
def test_one_thread_and_all_give_the_same_bits(value_type):
    rng = np.random.RandomState(0)
    counts = [int(count) for count in rng.randint(0, 30, 300)]
    system = random_system(counts, 4, value_type, n_cols=60)
    rows = rng.standard_normal((300, 4))
    vectors, directions = rng.standard_normal((60, 6)), rng.standard_normal((300, 6))
    found = []
    for n_threads in (1, available_threads(), 1):
        with thread_limit(n_threads):
            solved = solve(system, n_parts=8, row_split="each", column_split="each", allowances=(25,))
            row_factors, column_factors = np.empty((300, 10)), np.empty((60, 10))
            factor_rows(np.arange(301), *system.pattern, system.basis, system.penalty, row_factors)
            factor_columns(np.arange(61), *system.pattern, system.left, system.penalty, column_factors)
            forth, back = np.empty((300, 6)), np.empty((60, 6))
            arguments = *system.entries, system.left, rows, system.coefficients, system.basis
            multiply_residual(np.arange(301), *arguments, vectors, forth)
            multiply_residual_transposed(np.arange(61), *arguments, directions, back)
        found.append([*vars(solved).values(), row_factors, column_factors, forth, back])
    for other in found[1:]:
        for array, wanted in zip(other, found[0], strict=True):
            np.testing.assert_array_equal(array, wanted)
