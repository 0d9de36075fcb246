"""Every kernel of the tangent-space system against its naive twin: empty groups, dtypes, ways to split, threads.

Kernels get k directions filled up with zeros to whole lanes; the twins get the k directions alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pytest
import reference
from problems import haar
from test_kernels import Csr, random_csr

from fastrfm._lanes import padded, padded_width
from fastrfm._numba import available_threads, thread_limit
from fastrfm.kernels import tangent
from fastrfm.kernels.tangent import (
    add_column_grams,
    combine_parts,
    conjugate_gradients,
    eliminated_sweep,
    factor_columns,
    factor_rows,
    factor_size,
    finish_gradient,
    multiply_residual,
    multiply_residual_transposed,
    project_columns,
    start_conjugate_gradients,
)

DTYPES = pytest.mark.parametrize(
    ("value_type", "index_type"),
    [(np.float64, np.int32), (np.float32, np.int32), (np.float64, np.int64), (np.float32, np.int64)],
)
# n entries of a row, k directions.
PIECES = pytest.mark.parametrize(
    ("n", "k", "index_type"), list(product([0, 1, 3, 4, 5, 7, 8, 9], [0, 1, 3, 4, 5, 9], [np.int32, np.int64]))
)
N_COLS = 9
# Lengths below, at and above one and two blocks of four.
COUNTS = [[0], [1], [0, 3, 0, 1, 5, 4, 0], [7, 0, 2, 9, 6, 8, 3, 1, 5, 0, 4]]
COUNT_IDS = ["empty", "one", "gaps", "many"]
# Ways to split n groups: all in one task, one task each, uneven runs with empty ones between.
SPLITS = {
    "one": lambda n: np.array([0, n]),
    "each": lambda n: np.arange(n + 1),
    "uneven": lambda n: np.array([0, 0, n // 3, n // 3, n - 1, n, n]),
}


@dataclass(frozen=True)
class System:
    """A random tangent-space system of k directions over some entries, filled up to whole lanes."""

    k: int
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

    def real(self) -> System:
        """Return the k directions alone, for the twins."""
        arrays = {name: getattr(self, name)[..., : self.k] for name in FILLED}
        return replace(self, **arrays)

    def row_factors(self) -> np.ndarray:
        return inverse_factors(reference.gram_systems(*self.pattern, self.basis, self.penalty))

    def column_factors(self) -> np.ndarray:
        return inverse_factors(
            reference.gram_systems(*by_column(self.entries, len(self.basis))[:2], self.left, self.penalty)
        )


FILLED = ("left", "basis", "coefficients", "penalty", "hidden")


def random_system(
    counts: list[int], k: int, value_type=np.float64, index_type=np.int32, n_cols: int = N_COLS
) -> System:
    rng = np.random.RandomState(k)
    entries = random_csr(rng, counts, n_cols, value_type, index_type)
    left, basis = rng.standard_normal((len(counts), k)), haar(rng, n_cols, k)
    coefficients = rng.standard_normal((n_cols, k))
    penalty, hidden = padded(rng.random_sample(k) + 0.05, 1.0), padded(rng.random_sample(k))
    return System(k, entries, padded(left), padded(basis), padded(coefficients), penalty, hidden)


def real_part(array: np.ndarray, k: int) -> np.ndarray:
    """Return the first k columns of what a kernel wrote; the others must be zero to the bit."""
    assert array.shape[-1] == padded_width(k)
    np.testing.assert_array_equal(array[..., k:], 0.0)
    return array[..., :k]


def inverse_factors(systems: np.ndarray) -> np.ndarray:
    k = systems.shape[1]
    return np.array([reference.inverse_factor(system) for system in systems]).reshape(len(systems), factor_size(k))


def beyond_diagonal(k: int) -> np.ndarray:
    """Return which numbers of a factor only fill up its lanes."""
    return reference.in_lanes(np.tril(np.ones((k, k)))) == 0.0


def rows_of_part(tiles: np.ndarray, part: int, n_parts: int) -> list[int]:
    return [i for tile in range(part, tiles.size - 1, n_parts) for i in range(tiles[tile], tiles[tile + 1])]


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


@pytest.mark.parametrize("k", [0, 4, 8, 12, 40])
def test_factors_have_rows_of_whole_lanes(k):
    lengths = [4 * (a // 4 + 1) for a in range(k)]
    assert [tangent._start_of(a) for a in range(k + 1)] == [sum(lengths[:a]) for a in range(k + 1)]
    assert factor_size(k) == sum(lengths) == reference.in_lanes(np.eye(k)).size


@DTYPES
@pytest.mark.parametrize("counts", COUNTS, ids=COUNT_IDS)
@pytest.mark.parametrize("k", [0, 1, 3, 4, 5, 9])
def test_factors_equal_naive(counts, k, value_type, index_type):
    system = random_system(counts, k, value_type, index_type)
    n_rows, n_cols, width = system.shape
    size, beyond = factor_size(width), beyond_diagonal(width)
    of_rows, of_columns = system.row_factors(), system.column_factors()
    for split in SPLITS.values():
        rows, columns = np.full((n_rows, size), np.nan), np.full((n_cols, size), np.nan)
        factor_rows(split(n_rows), *system.pattern, system.basis, system.penalty, rows)
        columns[...] = 0.0
        add_column_grams(split(n_cols), *system.pattern, system.left, columns)
        factor_columns(split(n_cols), system.penalty, columns)
        for found, twin in ((rows, of_rows), (columns, of_columns)):
            np.testing.assert_allclose(found, twin, atol=1e-12)
            np.testing.assert_array_equal(found[:, beyond], 0.0)


def test_a_stripe_writes_its_own_columns_alone():
    # One after the other, stripes would repair what they do to each other; side by side they would not.
    system = random_system(COUNTS[-1], 2)
    stripes, own, others = np.array([2, 4, 5]), np.arange(2, 5), np.array([0, 1, 5, 6, 7, 8])
    factors = np.full((N_COLS, factor_size(4)), 7.0)
    factors[own] = 0.0
    add_column_grams(stripes, *system.pattern, system.left, factors)
    factor_columns(stripes, system.penalty, factors)
    combined, dots = np.full((N_COLS, 4), 7.0), np.full(2, np.nan)
    parts, core = np.zeros((1, N_COLS, 4)), np.zeros((4, 4))
    combine_parts(stripes, parts, 1.0, system.basis, system.coefficients, core, system.penalty, combined, dots)
    for array, wanted in ((factors, system.column_factors()), (combined, system.penalty * system.coefficients)):
        np.testing.assert_allclose(array[own], wanted[own], atol=1e-12)
        np.testing.assert_array_equal(array[others], 7.0)


def test_a_task_writes_its_own_rows_alone():
    system = random_system(COUNTS[-1], 2)
    n_rows, bounds = system.shape[0], np.array([2, 4, 4, 7])
    own, others = np.arange(2, 7), np.array([0, 1, 7, 8, 9, 10])
    factors, image = np.full((n_rows, factor_size(4)), 7.0), np.full((n_rows, 8), 7.0)
    factor_rows(bounds, *system.pattern, system.basis, system.penalty, factors)
    vectors, rows = padded(np.random.RandomState(0).standard_normal((N_COLS, 5))), np.zeros((n_rows, 4))
    arguments = *system.entries, system.left, rows, system.coefficients, system.basis
    multiply_residual(bounds, *arguments, vectors, image)
    for array, wanted in ((factors, system.row_factors()), (image, residual_of(system, rows) @ vectors)):
        np.testing.assert_allclose(array[own], wanted[own], atol=1e-12)
        np.testing.assert_array_equal(array[others], 7.0)


@PIECES
def test_outer_products_are_added_to_the_triangle(k, n, index_type):
    rng = np.random.RandomState(n)
    vectors, indices = padded(rng.standard_normal((N_COLS, k))), rng.permutation(N_COLS).astype(index_type)
    width = padded_width(k)
    within, start = ~beyond_diagonal(width), rng.randint(N_COLS - n + 1)
    before = rng.standard_normal(factor_size(width))
    chosen = vectors[indices[start : start + n]]
    twin = before + reference.in_lanes(chosen.T @ chosen)
    at_once, one_by_one = before.copy(), before.copy()
    tangent._add_outers(at_once, vectors, indices, start, start + n)
    for i in indices[start : start + n]:
        tangent._add_outer(one_by_one, vectors, i)
    np.testing.assert_allclose(at_once[within], twin[within], atol=1e-13)
    np.testing.assert_allclose(one_by_one[within], twin[within], atol=1e-13)


def inverted(system: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """Return what ``_invert_factor`` makes of a system when all that it must not read is NaN."""
    packed = reference.in_lanes(system)
    packed[beyond_diagonal(len(system))] = np.nan
    tangent._invert_factor(packed, penalty, np.full(len(system), np.nan))
    return packed


def solved(packed: np.ndarray, rhs: np.ndarray) -> np.ndarray:
    """Return what ``_solve`` makes of a right-hand side, by the middle one of three factors."""
    factors, x = np.full((3, packed.size), np.nan), rhs.copy()
    factors[1] = packed
    tangent._solve(factors, 1, x, np.full(x.size, np.nan))
    return x


SIZES = [0, 1, 2, 3, 4, 5, 8, 11, pytest.param(40, marks=pytest.mark.compiled_only)]


@pytest.mark.parametrize("k", SIZES)
def test_a_factor_solves_its_system(k):
    rng = np.random.RandomState(k)
    root, rhs = rng.standard_normal((k, k + 2)), rng.standard_normal(k)
    system = root @ root.T + np.eye(k)
    wide = padded(padded(system).T)
    penalty = padded(np.full(k, 0.5), 1.0)
    packed = inverted(wide, penalty)
    np.testing.assert_allclose(packed, reference.inverse_factor(wide + np.diag(penalty)), atol=1e-12 * k)
    np.testing.assert_array_equal(packed[beyond_diagonal(len(wide))], 0.0)
    found = real_part(solved(packed, padded(rhs)), k)
    np.testing.assert_allclose(found, np.linalg.solve(system + 0.5 * np.eye(k), rhs), rtol=1e-10)


@pytest.mark.parametrize("k", [3, 6])
def test_penalties_of_all_sizes_cost_no_accuracy(k):
    rng = np.random.RandomState(k)
    root, rhs = rng.standard_normal((k, k + 2)), rng.standard_normal(k)
    system, penalty = root @ root.T, np.logspace(-3.0, 12.0, k)
    packed = inverted(padded(padded(system).T), padded(penalty, 1.0))
    found = real_part(solved(packed, padded(rhs)), k)
    np.testing.assert_allclose(found, np.linalg.solve(system + np.diag(penalty), rhs), rtol=1e-9)


def test_a_singular_system_is_solved_where_it_can_be():
    # Two equal features and penalties next to nothing: pivots of pure rounding must not become infinite.
    feature = padded(np.array([1.0, 1.0, 2.0]))
    packed = inverted(np.outer(feature, feature), padded(np.full(3, 1e-30), 1.0))
    assert np.isfinite(packed).all()
    found = solved(packed, 6.0 * feature)
    assert found @ feature == pytest.approx(6.0, rel=1e-6)
    nothing = inverted(np.zeros((4, 4)), np.zeros(4))
    np.testing.assert_array_equal(nothing, 0.0)
    np.testing.assert_array_equal(solved(nothing, np.ones(4)), 0.0)


@pytest.mark.parametrize("k", [4, 8, 12])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_systems_of_low_rank_are_solved_within_their_range(k, rank):
    # Without something on the diagonal, what rounding leaves there makes solutions 1e3 to 1e16 times too large.
    wanted = np.arange(1.0, rank + 1)
    for seed in range(20):
        root = np.random.RandomState(seed).standard_normal((k, rank))
        packed = inverted(root @ root.T, np.full(k, 1e-30))
        assert np.isfinite(packed).all()
        found = solved(packed, root @ wanted)
        np.testing.assert_allclose(root.T @ found, wanted, rtol=1e-6)
        smallest = np.linalg.lstsq(root.T, wanted, rcond=None)[0]
        assert np.linalg.norm(found) <= 20.0 * np.linalg.norm(smallest)


@pytest.mark.parametrize("index_type", [np.int32, np.int64])
def test_the_first_column_at_least_is_found(index_type):
    indices = np.array([9, 0, 2, 3, 7, 1], dtype=index_type)
    for column in range(10):
        wanted = 1 + int(np.searchsorted(indices[1:5], column))
        assert tangent._first_at_least(indices, 1, 5, column) == wanted
    assert tangent._first_at_least(indices, 3, 3, 0) == 3


# --- pieces of the sweeps -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """n weights for the rows of a matrix named by n indices from some start on."""

    n: int
    weights: np.ndarray
    rows: np.ndarray
    indices: np.ndarray
    start: int
    direction: np.ndarray

    @property
    def chosen(self) -> np.ndarray:
        return self.rows[self.indices[self.start : self.start + self.n]]


def random_piece(n: int, k: int, index_type: type) -> Piece:
    rng = np.random.RandomState(10 * n + k)
    weights = np.append(rng.standard_normal(n), np.full(3, np.nan))  # workspaces are as long as the longest row
    rows, direction = padded(rng.standard_normal((6, k))), padded(rng.standard_normal(k))
    indices = rng.randint(0, 6, n + 5).astype(index_type)  # with repeats
    return Piece(n, weights, rows, indices, int(rng.randint(5)), direction)


@PIECES
def test_products_with_rows_are_taken_away(n, k, index_type):
    piece = random_piece(n, k, index_type)
    out = piece.weights.copy()
    tangent._take_products(piece.direction, piece.rows, piece.indices, piece.start, n, out)
    np.testing.assert_allclose(out[:n], piece.weights[:n] - piece.chosen @ piece.direction, atol=1e-13)
    assert np.isnan(out[n:]).all()


@PIECES
def test_rows_are_gathered(n, k, index_type):
    piece = random_piece(n, k, index_type)
    out = piece.direction.copy()
    tangent._gather(piece.weights, piece.rows, piece.indices, piece.start, n, out)
    wanted = piece.direction + piece.weights[:n] @ piece.chosen
    np.testing.assert_allclose(real_part(out, k), wanted[:k], atol=1e-13)


@PIECES
def test_a_direction_is_scattered(n, k, index_type):
    piece = random_piece(n, k, index_type)
    out, wanted = piece.rows.copy(), piece.rows.copy()
    tangent._scatter(piece.weights, piece.direction, piece.indices, piece.start, n, out)
    for t in range(n):
        wanted[piece.indices[piece.start + t]] += piece.weights[t] * piece.direction
    np.testing.assert_allclose(real_part(out, k), wanted[:, :k], atol=1e-13)


@DTYPES
@pytest.mark.parametrize("k", [0, 1, 5])
def test_a_row_of_the_residual_is_written(k, value_type, index_type):
    system = random_system(COUNTS[-1], k, value_type, index_type)
    n_rows, n_cols, width = system.shape
    rows = padded(np.random.RandomState(0).standard_normal((n_rows, k)))
    twin, indptr = residual_of(system.real(), rows[:, :k]), system.entries[0]
    for i in range(n_rows):
        residual = np.full(n_cols + 2, np.nan)
        arguments = *system.entries, system.left, rows, system.coefficients, system.basis
        n = tangent._write_residual(i, *arguments, np.full(width, np.nan), residual)
        assert n == COUNTS[-1][i]
        np.testing.assert_allclose(residual[:n], twin[i, system.entries[1][indptr[i] : indptr[i + 1]]], atol=1e-13)
        assert np.isnan(residual[n:]).all()


@pytest.mark.parametrize("n_parts", [1, 2, 3, 20])
@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_the_longest_row_of_a_part_is_found(n_parts, split):
    counts = COUNTS[-1]
    tiles, indptr = split(len(counts)), np.concatenate(([0], np.cumsum(counts)))
    for part in range(n_parts):
        own = [counts[i] for i in rows_of_part(tiles, part, n_parts)]
        assert tangent._longest_row(tiles, part, n_parts, indptr) == max(own, default=0)


# --- sweeps -------------------------------------------------------------------------------------------------------


def sweep(
    system: System, values: np.ndarray, factors: np.ndarray, *, tiles: np.ndarray, n_parts: int, keeps: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return B, the misfits and the parts of ``eliminated_sweep``, into buffers full of NaN."""
    n_rows, n_cols, width = system.shape
    rows = np.full((n_rows if keeps else 0, width), np.nan)
    misfit, parts = np.full(len(rows), np.nan), np.full((n_parts, n_cols, width), np.nan)
    eliminated_sweep(
        tiles, 0, n_parts, *system.pattern, values, system.left, system.basis, system.coefficients, factors,
        system.penalty, rows, misfit, parts,
    )  # fmt: skip
    return real_part(rows, system.k), misfit, real_part(parts, system.k)


@DTYPES
@pytest.mark.parametrize("counts", COUNTS, ids=COUNT_IDS)
@pytest.mark.parametrize("k", [0, 1, 3, 5])
@pytest.mark.parametrize("has_values", [True, False])
def test_eliminated_sweep_equals_naive(counts, k, has_values, value_type, index_type):
    system = random_system(counts, k, value_type, index_type)
    given = system.entries[2] if has_values else np.empty(0, dtype=value_type)
    assumed = system.entries[2] if has_values else np.zeros(system.entries[2].size)
    real = system.real()
    twins = reference.eliminate_rows(*real.pattern, assumed, real.left, real.basis, real.coefficients, real.penalty)
    factors = system.row_factors()
    for name, n_parts in (("one", 1), ("each", 2), ("uneven", 3), ("one", 4)):
        tiles = SPLITS[name](len(counts))
        rows, misfit, parts = sweep(system, given, factors, tiles=tiles, n_parts=n_parts)
        for array, twin in zip((rows, misfit, parts.sum(axis=0)), twins, strict=True):
            np.testing.assert_allclose(array, twin, atol=1e-12)
        unkept = sweep(system, given, factors, tiles=tiles, n_parts=n_parts, keeps=False)
        assert unkept[0].size == unkept[1].size == 0
        np.testing.assert_array_equal(unkept[2], parts)


@pytest.mark.parametrize("k", [0, 1, 3, 5, 9])
@pytest.mark.parametrize("counts", COUNTS, ids=COUNT_IDS)
def test_row_factors_are_the_same_kept_or_formed_in_the_sweep(counts, k):
    system = random_system(counts, k)
    n_rows, _, width = system.shape
    tiles, kept = SPLITS["uneven"](n_rows), np.empty((n_rows, factor_size(width)))
    factor_rows(tiles, *system.pattern, system.basis, system.penalty, kept)
    for n_parts in (1, 3):
        found = [
            sweep(system, system.entries[2], factors, tiles=tiles, n_parts=n_parts) for factors in (kept, kept[:0])
        ]
        for array, wanted in zip(*found, strict=True):
            np.testing.assert_array_equal(array, wanted)


@pytest.mark.parametrize("n_parts", [1, 2, 3])
def test_a_part_writes_its_own_part_alone(n_parts):
    # As with stripes; and what other parts read is NaN, so that a part shows whose rows it took.
    system = random_system(COUNTS[-1], 3)
    n_rows, tiles, factors = system.shape[0], SPLITS["uneven"](system.shape[0]), system.row_factors()
    rng, width = np.random.RandomState(0), padded_width(5)
    rows, directions = padded(rng.standard_normal((n_rows, 3))), padded(rng.standard_normal((n_rows, 5)))
    residual = residual_of(system, rows)
    best = reference.eliminate_rows(
        *system.entries, system.left, system.basis, system.coefficients, system.penalty
    )[0].reshape(n_rows, 4)  # fmt: skip
    best_residual = residual_of(system, best)
    for part in range(n_parts):
        own = rows_of_part(tiles, part, n_parts)
        others = np.setdiff1d(np.arange(n_rows), own)
        left, given = system.left.copy(), directions.copy()
        left[others] = given[others] = np.nan
        found, swept = np.full((n_parts + 2, N_COLS, width), 7.0), np.full((n_parts + 2, N_COLS, 4), 7.0)
        out_rows, misfit = np.full((n_rows, 4), np.nan), np.full(n_rows, np.nan)
        arguments = system.coefficients, system.basis
        multiply_residual_transposed(tiles, 0, n_parts, *system.entries, left, rows, *arguments, given, found)
        eliminated_sweep(
            tiles, 0, n_parts, *system.entries, left, system.basis, system.coefficients, factors, system.penalty,
            out_rows, misfit, swept,
        )  # fmt: skip
        np.testing.assert_allclose(found[part], residual[own].T @ directions[own], atol=1e-12)
        np.testing.assert_allclose(swept[part], best_residual[own].T @ system.left[own], atol=1e-12)
        np.testing.assert_allclose(out_rows[own], best[own], atol=1e-12)
        for parts in (found, swept):
            np.testing.assert_array_equal(parts[n_parts:], 7.0)


@pytest.mark.parametrize("k", [0, 1, 3, 6])
@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_project_columns_equals_a_product(k, split):
    system = random_system([3], k)
    stripes, width = split(N_COLS), padded_width(k)
    out = np.full((stripes.size - 1, width, width), np.nan)
    project_columns(stripes, system.basis, system.coefficients, out)
    np.testing.assert_array_equal(out[:, k:], 0.0)
    for stripe, found in enumerate(real_part(out, k)):
        own = slice(stripes[stripe], stripes[stripe + 1])
        np.testing.assert_allclose(found[:k], (system.basis[own].T @ system.coefficients[own])[:k, :k], atol=1e-13)


@pytest.mark.parametrize("k", [0, 1, 3, 6])
@pytest.mark.parametrize("n_parts", [1, 3])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_combine_parts_equals_naive(k, n_parts, sign, split):
    rng = np.random.RandomState(k)
    system, stripes = random_system([3], k), split(N_COLS)
    parts, core = padded(rng.standard_normal((n_parts, N_COLS, k))), padded(rng.standard_normal((padded_width(k), k)))
    before = parts.copy()
    out, dots = np.full((N_COLS, padded_width(k)), np.nan), np.full(stripes.size - 1, np.nan)
    combine_parts(stripes, parts, sign, system.basis, system.coefficients, core, system.penalty, out, dots)
    real = system.real()
    twin = sign * parts.sum(axis=0)[:, :k] + real.penalty * (real.coefficients - real.basis @ core[:k, :k])
    np.testing.assert_allclose(real_part(out, k), twin, atol=1e-13)
    for stripe, dot in enumerate(dots):
        own = slice(stripes[stripe], stripes[stripe + 1])
        assert dot == pytest.approx(np.sum(twin[own] * real.coefficients[own]), rel=1e-12, abs=1e-13)
    np.testing.assert_array_equal(parts, before)


@DTYPES
@pytest.mark.parametrize("counts", COUNTS, ids=COUNT_IDS)
@pytest.mark.parametrize("k", [0, 1, 3, 5])
@pytest.mark.parametrize("width", [0, 1, 4, 6])
def test_residual_products_equal_naive(counts, k, width, value_type, index_type):
    rng = np.random.RandomState(width)
    system, n_rows = random_system(counts, k, value_type, index_type), len(counts)
    rows = padded(rng.standard_normal((n_rows, k)))
    residual = residual_of(system.real(), rows[:, :k])
    vectors, directions = padded(rng.standard_normal((N_COLS, width))), padded(rng.standard_normal((n_rows, width)))
    arguments = *system.entries, system.left, rows, system.coefficients, system.basis
    for name, n_parts in (("one", 1), ("each", 2), ("uneven", 3), ("one", 4)):
        tiles = SPLITS[name](n_rows)
        out = np.full((n_rows, padded_width(width)), np.nan)
        multiply_residual(tiles, *arguments, vectors, out)
        np.testing.assert_allclose(real_part(out, width), residual @ vectors[:, :width], atol=1e-12)
        back = np.full((n_parts, N_COLS, padded_width(width)), np.nan)
        multiply_residual_transposed(tiles, 0, n_parts, *arguments, directions, back)
        for part, found in enumerate(real_part(back, width)):
            own = rows_of_part(tiles, part, n_parts)
            np.testing.assert_allclose(found, residual[own].T @ directions[own, :width], atol=1e-12)


# --- the system ---------------------------------------------------------------------------------------------------


@dataclass
class Solved:
    """What the sweep, ``finish_gradient`` and ``conjugate_gradients`` wrote, without the columns that fill up lanes."""

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
    n_rows, n_cols, width = system.shape
    tiles, stripes = SPLITS[row_split](n_rows), SPLITS[column_split](n_cols)
    split = tiles, n_parts, stripes, *system.pattern
    row_factors, column_factors = system.row_factors(), system.column_factors()
    parts, right_hand_side = np.full((n_parts, n_cols, width), np.nan), np.full((n_cols, width), np.nan)
    rows, misfit = np.full((n_rows, width), np.nan), np.full(n_rows, np.nan)
    eliminated_sweep(
        tiles, 0, n_parts, *system.entries, system.left, system.basis, system.coefficients, row_factors,
        system.penalty, rows, misfit, parts,
    )  # fmt: skip
    finish_gradient(stripes, parts, system.basis, system.coefficients, system.penalty, system.hidden, right_hand_side)
    residual = right_hand_side.copy()
    solution, direction, preconditioned, image = (np.full((n_cols, width), np.nan) for _ in range(4))
    state = np.array([0.0, 0.0, tolerance, np.nan, np.nan])
    vectors, n_stripes = (solution, residual, direction, preconditioned, image), stripes.size - 1
    room = np.full((n_stripes, width, width), np.nan), np.full((width, width), np.nan), np.full(n_stripes, np.nan)
    start_conjugate_gradients(stripes, column_factors, state, *vectors)
    for allowance in allowances:
        state[1] = allowance
        conjugate_gradients(
            *split, system.left, system.basis, row_factors, column_factors, system.penalty, system.hidden, parts, state,
            *vectors, *room,
        )  # fmt: skip
    for workspace in (parts, residual, direction, preconditioned, image):
        real_part(workspace, system.k)
    rows, right_hand_side, solution = (real_part(array, system.k) for array in (rows, right_hand_side, solution))
    return Solved(rows, misfit, right_hand_side, solution, state)


@DTYPES
@pytest.mark.parametrize("counts", COUNTS, ids=COUNT_IDS)
@pytest.mark.parametrize("k", [0, 1, 3, 5])
def test_gradient_and_conjugate_gradients_equal_dense_solves(counts, k, value_type, index_type):
    system = random_system(counts, k, value_type, index_type)
    real = system.real()
    twin = reference.schur_complement(*real.pattern, real.left, real.basis, real.penalty, real.hidden)
    found = solve(system)
    rows, misfit, data_part = reference.eliminate_rows(
        *real.entries, real.left, real.basis, real.coefficients, real.penalty
    )
    seen = real.coefficients - real.basis @ (real.hidden[:, None] * (real.basis.T @ real.coefficients))
    np.testing.assert_allclose(found.rows, rows, atol=1e-12)
    np.testing.assert_allclose(found.misfit, misfit, atol=1e-12)
    np.testing.assert_allclose(found.right_hand_side, data_part - real.penalty * seen, atol=1e-12)
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
    real = system.real()
    twin = reference.schur_complement(*real.pattern, real.left, real.basis, real.penalty, real.hidden)
    column_systems = reference.gram_systems(*by_column(real.entries, N_COLS)[:2], real.left, real.penalty)

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
    found = solve(replace(system, coefficients=np.zeros_like(system.coefficients)))
    np.testing.assert_array_equal(found.solution, 0.0)
    assert found.state[0] == 0.0


@pytest.mark.compiled_only
@pytest.mark.parametrize("value_type", [np.float64, np.float32])
def test_one_thread_and_all_give_the_same_bits(value_type):
    rng = np.random.RandomState(0)
    counts = [int(count) for count in rng.randint(0, 30, 300)]
    system = random_system(counts, 6, value_type, n_cols=60)
    rows = padded(rng.standard_normal((300, 6)))
    vectors, directions = padded(rng.standard_normal((60, 6))), padded(rng.standard_normal((300, 6)))
    found = []
    for n_threads in (1, available_threads(), 1):
        with thread_limit(n_threads):
            solved = solve(system, n_parts=8, row_split="each", column_split="each", allowances=(25,))
            row_factors, column_factors = np.empty((300, factor_size(8))), np.empty((60, factor_size(8)))
            factor_rows(np.arange(301), *system.pattern, system.basis, system.penalty, row_factors)
            column_factors[...] = 0.0
            add_column_grams(np.arange(61), *system.pattern, system.left, column_factors)
            factor_columns(np.arange(61), system.penalty, column_factors)
            forth, back = np.empty((300, 8)), np.empty((8, 60, 8))
            arguments = *system.entries, system.left, rows, system.coefficients, system.basis
            multiply_residual(np.arange(301), *arguments, vectors, forth)
            multiply_residual_transposed(np.arange(301), 0, 8, *arguments, directions, back)
        found.append([*vars(solved).values(), row_factors, column_factors, forth, back])
    for other in found[1:]:
        for array, wanted in zip(other, found[0], strict=True):
            np.testing.assert_array_equal(array, wanted)
