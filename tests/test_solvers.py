"""Solvers, iteration by iteration, against naive twins, and ``complete`` at the edges of what it accepts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import reference
from problems import Problem, haar, low_rank_problem, observe, random_mask

from fastrfm.agop import feature_gram
from fastrfm.errors import InputError, NotConvergedWarning
from fastrfm.observations import Observations
from fastrfm.results import CompletionResult
from fastrfm.solvers.completion import complete
from fastrfm.solvers.dense import dense_step, estimate_slabs
from fastrfm.solvers.factored import (
    FeatureFactors,
    LowRankPart,
    feature_factors,
    multiply_transposed,
    regress_rows,
    subspace_step,
)
from fastrfm.solvers.monitor import Iteration
from fastrfm.solvers.smoothing import next_smoothing

PUBLISHED = Path(__file__).resolve().parent / "data" / "published_iterates.npz"
METHODS = pytest.mark.parametrize("method", ["dense", "factored"])


def collect(observations: Observations, kernel_matrix: np.ndarray, ridge: float) -> np.ndarray:
    """Return the whole X of one dense iteration."""
    estimate = np.full(observations.shape, np.nan)
    for start, slab, _ in estimate_slabs(observations, kernel_matrix, ridge):
        estimate[start : start + len(slab)] = slab
    return estimate


def full_gram(step_gram: np.ndarray) -> np.ndarray:
    return np.tril(step_gram) + np.tril(step_gram, -1).T


def dense_iterates(observations: Observations, power: float, smoothing: float, ridge: float) -> Iterator[np.ndarray]:
    """Yield X after each iteration of the package's dense form at a fixed ε."""
    n_cols = observations.n_cols
    gram = np.zeros((n_cols, n_cols))
    while True:
        kernel_matrix = feature_gram(gram, power, smoothing)
        yield collect(observations, kernel_matrix, ridge)
        gram = dense_step(observations, kernel_matrix, ridge, np.zeros((n_cols, 1))).gram


def quietly(observations: Observations, **options) -> CompletionResult:
    """Complete without minding that max_iter comes first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)
        return complete(observations, **options)


# --- dense --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "power"), [("half", 0.5), ("one", 1.0), ("quarter", 0.25), ("half_by_svd", 0.5)])
def test_dense_iterates_equal_published(name, power):
    with np.load(PUBLISHED) as stored:
        truth, mask, ridge = stored["truth"], stored["observed"], float(stored["ridge"])
        published = stored[f"power_{name}"]
    observations = observe(truth, mask)
    kernel_matrix = (1.0 + ridge) * np.eye(40)
    for wanted in published:
        np.testing.assert_allclose(collect(observations, kernel_matrix, 0.0), wanted, atol=1e-9)
        step = dense_step(observations, kernel_matrix, 0.0, np.zeros((40, 1)))
        kernel_matrix = feature_gram(step.gram / 40, power, 0.0) + ridge * np.eye(40)


def test_dense_step_equals_naive():
    problem = low_rank_problem(13, 9, 2, oversampling=1.5, seed=1)
    rng = np.random.RandomState(0)
    root = rng.standard_normal((9, 9))
    kernel_matrix, probes = root @ root.T + np.eye(9), rng.standard_normal((9, 3))
    step = dense_step(problem.observations, kernel_matrix, 0.3, probes)
    estimate, gram = reference.dense_iteration(problem.truth, problem.mask, kernel_matrix, 0.3)
    np.testing.assert_allclose(full_gram(step.gram), gram, atol=1e-11)
    np.testing.assert_allclose(step.sketch, estimate @ probes, atol=1e-11)
    wanted = np.sum((estimate - problem.truth)[problem.mask] ** 2)
    assert step.masked_square_sum == pytest.approx(wanted, rel=1e-10)


@pytest.mark.compiled_only
@pytest.mark.parametrize("power", [0.25, 0.5, 1.0])
def test_dense_iterates_equal_naive_at_500(power):
    rng = np.random.RandomState(0)
    truth = haar(rng, 500, 5) @ haar(rng, 500, 5).T * 100.0
    mask = np.zeros(250_000, dtype=bool)
    mask[rng.permutation(250_000)[:10_000]] = True
    mask = mask.reshape(500, 500)
    ours = dense_iterates(observe(truth, mask), power, 5.0, 0.0)
    theirs = reference.dense_iterates(truth, mask, power, [5.0] * 3, 0.0)
    for wanted in theirs:
        np.testing.assert_allclose(next(ours), wanted, atol=1e-8)


@pytest.mark.parametrize("ridge", [0.0, 0.2])
@pytest.mark.parametrize("schatten_p", [1.0, 0.5, 0.0, -2.0])
def test_dense_iterates_equal_irls(schatten_p, ridge):
    problem = low_rank_problem(18, 13, 2, oversampling=1.8, seed=4)
    ours = dense_iterates(problem.observations, (2.0 - schatten_p) / 4.0, 0.5, ridge)
    for wanted in reference.irls_iterates(problem.truth, problem.mask, schatten_p, 0.5, ridge, 8):
        np.testing.assert_allclose(next(ours), wanted, atol=1e-7)


@pytest.mark.parametrize("power", [0.2, 0.25, 0.375, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("ridge", [0.05, 1.0])
def test_objective_never_increases_at_fixed_smoothing(power, ridge):
    problem = low_rank_problem(16, 12, 2, oversampling=1.6, seed=6)
    noisy = problem.truth + 0.1 * np.random.RandomState(0).standard_normal(problem.truth.shape)
    ours = dense_iterates(observe(noisy, problem.mask), power, 0.4, ridge)
    values = [reference.objective(next(ours), noisy, problem.mask, power, 0.4, ridge) for _ in range(25)]
    assert np.all(np.diff(values) <= 1e-11 * abs(values[0]))
    assert values[-1] < values[0]


# --- factored -----------------------------------------------------------------------------------------------------


def whole_estimate(problem: Problem, features: FeatureFactors, coefficients: np.ndarray) -> np.ndarray:
    """Return the low-rank plus sparse X of the factored form."""
    inside = coefficients @ features.basis[:, : features.penalty.size].T
    return inside + features.theta * np.where(problem.mask, problem.truth - inside, 0.0)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("power", [0.25, 0.4, 0.5, 1.0])
@pytest.mark.parametrize("most", [1, 3, 9])
def test_factored_step_equals_exact_twin(power, ridge, most):
    # A block as wide as the matrix: the subspace step is exact, and so is the naive decomposition.
    problem = low_rank_problem(14, 9, 2, oversampling=1.6, seed=2)
    singular_values, basis = np.zeros(9), haar(np.random.RandomState(0), 9, 9)
    previous = np.zeros(problem.mask.shape)
    for smoothing in (6.0, 3.0, 1.5, 0.8, 0.4, 0.4, 0.1):
        features = feature_factors(singular_values[:most], basis, smoothing=smoothing, agop_power=power, ridge=ridge)
        solved = regress_rows(problem.observations, features)
        coefficients = solved.part.coefficients
        estimate = whole_estimate(problem, features, coefficients)
        previous = reference.factored_iteration(
            previous, problem.truth, problem.mask, agop_power=power, smoothing=smoothing, ridge=ridge, most=most
        )
        np.testing.assert_allclose(estimate, previous, atol=1e-8)
        np.testing.assert_allclose(solved.projection, estimate @ basis, atol=1e-10)
        inside = coefficients @ basis[:, : coefficients.shape[1]].T
        assert solved.square_sum == pytest.approx(
            np.sum((inside - problem.truth)[problem.mask] ** 2), rel=1e-8, abs=1e-15
        )
        singular_values, basis = subspace_step(problem.observations, features, solved)
        np.testing.assert_allclose(singular_values, np.linalg.svd(estimate, compute_uv=False), atol=1e-8)


def test_factored_block_step_equals_twin():
    problem = low_rank_problem(15, 11, 2, oversampling=1.6, seed=9)
    basis, singular_values = haar(np.random.RandomState(0), 11, 4), np.array([9.0, 2.0, 0.5, 0.1])
    features = feature_factors(singular_values, basis, smoothing=0.4, agop_power=0.5, ridge=0.2)
    assert features.penalty.size == 3
    kernel_matrix = reference.floored_feature_gram(singular_values, basis, 0.5, 0.4)
    twin, _ = reference.dense_iteration(problem.truth, problem.mask, kernel_matrix, 0.2)
    solved = regress_rows(problem.observations, features)
    np.testing.assert_allclose(whole_estimate(problem, features, solved.part.coefficients), twin, atol=1e-10)
    directions = np.random.RandomState(1).standard_normal((15, 6))
    back = multiply_transposed(problem.observations, features, solved.part, directions)
    np.testing.assert_allclose(back, twin.T @ directions, atol=1e-10)
    found, vectors = subspace_step(problem.observations, features, solved)
    wanted, twin_vectors = reference.subspace_step(twin, basis)
    np.testing.assert_allclose(found, wanted, atol=1e-10)
    np.testing.assert_allclose(np.abs(np.sum(vectors * twin_vectors, axis=0)), 1.0, atol=1e-10)


@pytest.mark.parametrize(("k", "n_before", "spare"), [(2, 0, 0), (2, 1, 0), (2, 2, 0), (2, 4, 0), (3, 2, 2), (0, 2, 1)])
def test_change_of_the_low_rank_part_equals_naive(k, n_before, spare):
    rng = np.random.RandomState(0)
    problem = low_rank_problem(15, 11, 3, oversampling=1.6, seed=9)
    features = FeatureFactors(haar(rng, 11, 6), np.linspace(0.1, 0.5, k), 0.3)
    old = np.column_stack([rng.standard_normal((15, n_before)), np.zeros((15, spare))])
    before = LowRankPart(old.copy(), haar(rng, 11, n_before))
    solved = regress_rows(problem.observations, features, before)
    alone = regress_rows(problem.observations, features)
    np.testing.assert_array_equal(solved.part.coefficients[:, :k], alone.part.coefficients)
    assert not solved.part.coefficients[:, k:].any()
    np.testing.assert_array_equal(solved.projection, alone.projection)
    inside = alone.part.coefficients @ features.basis[:, :k].T
    wanted = np.linalg.norm(inside - old[:, :n_before] @ before.basis.T)
    assert solved.change == pytest.approx(wanted, rel=1e-12)
    assert alone.change == pytest.approx(np.linalg.norm(inside), rel=1e-12)


def test_small_changes_of_the_low_rank_part_do_not_cancel():
    problem = low_rank_problem(15, 11, 3, oversampling=1.6, seed=9)
    features = FeatureFactors(haar(np.random.RandomState(0), 11, 3), np.full(3, 0.1), 0.3)
    part = regress_rows(problem.observations, features).part
    moved = LowRankPart(part.coefficients + 1e-12, part.basis)
    assert regress_rows(problem.observations, features, moved).change == pytest.approx(1e-12 * np.sqrt(45), rel=1e-3)


@pytest.mark.compiled_only
def test_both_methods_find_the_same_limit():
    problem = low_rank_problem(30, 24, 2, oversampling=4.0, seed=3)
    found = [complete(problem.observations, method=method, tol=1e-8).to_dense() for method in ("dense", "factored")]
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    assert problem.relative_error(found[0]) < 1e-6


@pytest.mark.compiled_only
@METHODS
@pytest.mark.parametrize("ridge", [0.3, 2.0])
def test_quarter_power_reaches_the_nuclear_norm_optimum(method, ridge):
    # Convex, so the optimum is known: soft-impute's. With a ridge epsilon stops at sqrt(tol) of the ridge's own scale,
    # and that is the distance that remains; measured 2e-4 to 4e-3 at this tol.
    rng = np.random.RandomState(0)
    tol = 1e-4
    values = haar(rng, 25, 3) @ np.diag([20.0, 10.0, 5.0]) @ haar(rng, 18, 3).T + 0.1 * rng.standard_normal((25, 18))
    for mask in (np.ones((25, 18), dtype=bool), random_mask(rng, (25, 18), 0.6)):
        optimum = reference.soft_impute(values, mask, ridge)
        best = reference.nuclear_objective(optimum, values, mask, ridge)
        result = complete(observe(values, mask), method=method, agop_power=0.25, ridge=ridge, tol=tol)
        assert result.stop_reason == "converged"
        reached = reference.nuclear_objective(result.to_dense(), values, mask, ridge)
        assert -1e-9 < reached / best - 1.0 < 5e-3
        assert np.linalg.norm(result.to_dense() - optimum) < np.sqrt(tol) * np.linalg.norm(optimum)


# --- smoothing rules ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["iterate_change", "sigma_next", "geometric", 0.5])
def test_smoothing_never_rises_never_passes_its_floor_and_scales(rule):
    # Every keyword of a rule is a length in the data's unit, whatever their number.
    names = [name for name, kind in signature(next_smoothing).parameters.items() if kind.kind is kind.KEYWORD_ONLY]
    rng = np.random.RandomState(0)
    smoothing = 3.0
    for _ in range(60):
        lengths = dict(zip(names, np.exp(rng.uniform(-9, 3, len(names))).tolist(), strict=True))
        lengths["floor"] = floor = 1e-3 * float(rng.random_sample())
        following = next_smoothing(rule, smoothing, **lengths)
        assert min(floor, smoothing) <= following <= smoothing
        scaled = {name: 4.0 * length for name, length in lengths.items()}
        assert next_smoothing(rule, 4.0 * smoothing, **scaled) == 4.0 * following
        smoothing = following


@METHODS
@pytest.mark.parametrize("rule", ["iterate_change", "sigma_next", "geometric", 0.5])
def test_history_follows_the_rule(method, rule):
    problem = low_rank_problem(12, 10, 2, oversampling=2.0, seed=1)
    history = quietly(problem.observations, rank=2, method=method, smoothing=rule, max_iter=30).history
    assert np.all(np.diff(history["smoothing"]) <= 0.0)
    assert np.all(np.diff(history["seconds"]) >= 0.0)
    assert len({values.size for values in history.values()}) == 1
    assert (np.ptp(history["smoothing"]) == 0.0) == (rule == 0.5)


@METHODS
def test_sigma_next_is_the_first_singular_value_past_the_rank(method):
    # rank + 8 directions span the shorter side, so that the factored form sees the whole spectrum too.
    problem = low_rank_problem(12, 10, 2, oversampling=2.0, seed=1)
    history = quietly(problem.observations, rank=2, method=method, smoothing="sigma_next", max_iter=6).history
    estimate, smoothings = np.zeros(problem.mask.shape), [float(np.linalg.norm(problem.truth[problem.mask]))]
    for _ in range(5):
        if method == "dense":
            kernel_matrix = reference.feature_gram(estimate.T @ estimate, 0.5, smoothings[-1])
            estimate, _ = reference.dense_iteration(problem.truth, problem.mask, kernel_matrix, 0.0)
        else:
            estimate = reference.factored_iteration(
                estimate, problem.truth, problem.mask, agop_power=0.5, smoothing=smoothings[-1], ridge=0.0
            )
        smoothings.append(min(smoothings[-1], float(np.linalg.svd(estimate, compute_uv=False)[2])))
    np.testing.assert_allclose(history["smoothing"], smoothings, rtol=1e-6)
    assert smoothings[-1] < smoothings[0]


# --- edges --------------------------------------------------------------------------------------------------------


def two_way(rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Return a rank-1 table with an empty row 3 and an empty column 2."""
    table = np.outer(rows, cols)
    table[3], table[:, 2] = np.nan, np.nan
    return table


@METHODS
@pytest.mark.parametrize("value_type", [np.float64, np.float32])
@pytest.mark.parametrize("transpose", [False, True])
def test_empty_rows_and_columns_get_means(method, value_type, transpose):
    table = two_way(np.arange(1.0, 8.0), np.array([1.0, 2.0, 3.0, 5.0, 4.0])).astype(value_type)
    table[0, 0] = np.nan
    if transpose:
        table = np.ascontiguousarray(table.T)
    result = complete(Observations.from_dense(table), method=method)
    dense = result.to_dense()
    row, col = (2, 3) if transpose else (3, 2)
    exact = table.astype(np.float64)
    seen_cols, seen_rows = np.arange(table.shape[1]) != col, np.arange(table.shape[0]) != row
    np.testing.assert_allclose(dense[row, seen_cols], np.nanmean(exact[:, seen_cols], axis=0), rtol=1e-12)
    np.testing.assert_allclose(dense[seen_rows, col], np.nanmean(exact[seen_rows], axis=1), rtol=1e-12)
    tolerance = 1e-12 if value_type is np.float64 else 1e-6
    assert dense[row, col] == pytest.approx(np.nanmean(exact), rel=tolerance)
    assert (result.n_empty_rows, result.n_empty_cols, result.rank) == (1, 1, 1)
    assert result.left.shape[1] == result.right.shape[1] == 3
    np.testing.assert_allclose(result.right[:, :1].T @ result.right[:, :1], 1.0)


@METHODS
def test_one_kind_of_emptiness_adds_one_column(method):
    table = np.outer(np.arange(1.0, 6.0), np.arange(1.0, 5.0))
    no_row, no_col = table.copy(), table.copy()
    no_row[1], no_col[:, 1] = np.nan, np.nan
    for observed, means, at in (
        (no_row, np.nanmean(no_row, axis=0), (1, slice(None))),
        (no_col, np.nanmean(no_col, axis=1), (slice(None), 1)),
    ):
        result = complete(Observations.from_dense(observed), method=method)
        assert result.left.shape[1] == 2
        np.testing.assert_allclose(result.to_dense()[at], means, rtol=1e-12)


@METHODS
@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (4, 3)])
def test_one_observation_fills_the_matrix(method, shape):
    table = np.full(shape, np.nan)
    table[shape[0] // 2, shape[1] // 2] = -7.0
    np.testing.assert_allclose(complete(Observations.from_dense(table), method=method).to_dense(), -7.0, rtol=1e-9)


@METHODS
@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (5, 5), (4, 7), (7, 4)])
def test_all_observed_is_reproduced(method, shape):
    values = np.random.RandomState(0).standard_normal(shape)
    result = complete(Observations.from_dense(values), rank=min(shape), method=method)
    np.testing.assert_allclose(result.to_dense(), values, atol=1e-7)
    assert result.rank == min(shape) and result.stop_reason == "converged"
    np.testing.assert_allclose(result.singular_values, np.linalg.svd(values, compute_uv=False), atol=1e-7)


@METHODS
@pytest.mark.parametrize("offsets", [False, True])
@pytest.mark.parametrize("constant", [0.0, 2.5])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_constant_matrices(method, offsets, constant, ridge):
    table = np.full((6, 5), constant)
    table[0, 0] = table[3, 2] = np.nan
    result = complete(Observations.from_dense(table), method=method, offsets=offsets, ridge=ridge)
    assert result.stop_reason == "converged"
    assert result.rank == (0 if constant == 0.0 or offsets else 1)
    tolerance = 1e-9 if ridge == 0.0 or offsets else 0.05 * constant
    np.testing.assert_allclose(result.to_dense(), constant, atol=tolerance)


@METHODS
@pytest.mark.parametrize("power", [0.25, 0.5, 1.0])
def test_a_ridge_beyond_all_signal_leaves_nothing(method, power):
    problem = low_rank_problem(14, 10, 2, oversampling=1.8, seed=0)
    result = complete(problem.observations, method=method, agop_power=power, ridge=1e6)
    assert result.stop_reason == "converged"
    assert np.abs(result.to_dense()).max() < 1e-3
    assert result.masked_rmse == pytest.approx(np.sqrt(np.mean(problem.truth[problem.mask] ** 2)), rel=1e-3)


@METHODS
def test_rank_caps_the_answer(method):
    values = np.random.RandomState(0).standard_normal((12, 8))
    for rank in (1, 3, 8):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotConvergedWarning)
            result = complete(Observations.from_dense(values), rank=rank, method=method, max_iter=200)
        assert result.rank <= rank and result.left.shape == (12, result.rank)
    assert result.rank == 8


@METHODS
def test_result_is_in_canonical_form(method):
    problem = low_rank_problem(20, 16, 2, oversampling=3.0, seed=5)
    result = complete(problem.observations, method=method)
    left, right, k = result.left, result.right, result.rank
    assert k == 2 and left.flags.c_contiguous and right.flags.c_contiguous
    np.testing.assert_allclose(right.T @ right, np.eye(k), atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(left, axis=0), result.singular_values, rtol=1e-12)
    assert np.all(np.diff(result.singular_values) <= 0.0)
    misfit = (result.to_dense() - problem.truth)[problem.mask]
    assert result.masked_rmse == pytest.approx(np.sqrt(np.mean(misfit**2)), rel=1e-6, abs=1e-14)
    rows, cols = np.nonzero(problem.mask)
    np.testing.assert_allclose(result.predict(rows, cols), result.to_dense()[problem.mask], atol=1e-12)
    assert result.options["method"] == method and result.n_observed == problem.mask.sum()


# --- stopping and callbacks ---------------------------------------------------------------------------------------


@METHODS
def test_max_iter_warns_and_says_so(method):
    problem = low_rank_problem(12, 10, 2, oversampling=2.0, seed=0)
    for max_iter in (1, 3, 9):
        with pytest.warns(NotConvergedWarning, match=f"max_iter = {max_iter} "):
            result = complete(problem.observations, method=method, max_iter=max_iter)
        assert (result.stop_reason, result.n_iter) == ("max_iter", max_iter)
        assert np.isfinite(result.to_dense()).all()


@METHODS
def test_a_callback_stops_without_a_warning(method):
    problem = low_rank_problem(12, 10, 2, oversampling=2.0, seed=0)
    result = complete(problem.observations, method=method, callback=lambda it: it.iteration == 4)
    assert (result.stop_reason, result.n_iter) == ("callback", 4)


@METHODS
def test_a_callback_sees_what_the_history_keeps(method):
    problem = low_rank_problem(14, 12, 2, oversampling=2.5, seed=2)
    seen: list[Iteration] = []
    result = complete(problem.observations, method=method, callback=seen.append)
    assert [it.iteration for it in seen] == list(range(1, result.n_iter + 1))
    for name, values in result.history.items():
        np.testing.assert_array_equal([getattr(it, name) for it in seen], values)
    progress = np.array([it.progress for it in seen])
    assert np.all(np.diff(progress) >= 0.0) and progress[0] >= 0.0
    assert progress[-1] == 1.0 and np.all(progress[:-1] < 1.0)
    assert result.history["error_estimate"][-1] <= seen[-1].tol


@METHODS
def test_an_exception_in_a_callback_comes_through(method):
    def fail(_: Iteration) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        complete(Observations.from_dense(np.eye(3)), method=method, callback=fail)


# --- options ------------------------------------------------------------------------------------------------------


BAD_OPTIONS = [
    {"method": "svd"},
    {"method": None},
    {"smoothing": "none"},
    {"device": "cuda:0"},
    {"rank": 0},
    {"rank": -1},
    {"rank": 2.5},
    {"rank": True},
    {"rank": 3.0},
    {"rank": "2"},
    {"rank": 6},
    {"rank": np.nan},
    {"agop_power": 0.0},
    {"agop_power": -0.5},
    {"agop_power": np.nan},
    {"agop_power": np.inf},
    {"agop_power": "half"},
    {"ridge": -1e-9},
    {"ridge": np.nan},
    {"ridge": np.inf},
    {"ridge": None},
    {"tol": -1.0},
    {"tol": np.nan},
    {"tol": "small"},
    {"max_iter": 0},
    {"max_iter": 1.5},
    {"max_iter": np.inf},
    {"random_state": -1},
    {"random_state": None},
    {"random_state": 1.0},
    {"offsets": "no"},
    {"offsets": 1},
    {"ridge": True},
    {"smoothing": 0.0},
    {"smoothing": -1.0},
    {"smoothing": np.nan},
    {"smoothing": True},
    {"n_threads": 0},
    {"n_threads": -1},
    {"n_threads": 1.5},
    {"n_threads": np.nan},
    {"n_threads": "a"},
    {"n_threads": [1]},
    {"n_threads": True},
    {"n_threads": 10_000},
    {"smoothing": "sigma_next"},
]


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=str)
def test_bad_options_are_refused_by_name(options):
    observations = Observations.from_dense(np.arange(30.0).reshape(6, 5))
    name = "rank" if options.get("smoothing") == "sigma_next" else next(iter(options))
    with pytest.raises(InputError, match=name):
        complete(observations, **options)


def test_arrays_are_refused_with_the_way_to_observations():
    with pytest.raises(InputError, match="from_dense"):
        complete(np.eye(3))  # type: ignore[arg-type]


@METHODS
def test_whole_numpy_numbers_are_taken(method):
    observations = Observations.from_dense(np.outer(np.arange(1.0, 7.0), np.arange(1.0, 6.0)))
    result = complete(
        observations, rank=np.int64(2), method=method, max_iter=np.int32(500), random_state=np.uint8(3), n_threads=1
    )
    assert result.rank == 1


@pytest.mark.compiled_only
@METHODS
def test_the_same_seed_gives_the_same_bits(method):
    problem = low_rank_problem(16, 12, 2, oversampling=2.5, seed=8)
    found = [complete(problem.observations, method=method, random_state=seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(found[0].left, found[1].left)
    np.testing.assert_array_equal(found[0].right, found[1].right)
    np.testing.assert_array_equal(found[0].history["change"], found[1].history["change"])
    assert not np.array_equal(found[0].history["change"], found[2].history["change"])
    np.testing.assert_allclose(found[0].to_dense(), found[2].to_dense(), atol=1e-6)


@METHODS
def test_nothing_of_the_caller_is_changed(method):
    problem = low_rank_problem(14, 18, 2, oversampling=2.0, seed=8)
    observations = problem.observations
    before = [array.copy() for array in (observations.indptr, observations.indices, observations.values)]
    np.random.seed(0)  # noqa: NPY002  (the global generator is what must stay untouched)
    wanted_draw = np.random.RandomState(0).random_sample()
    quietly(observations, method=method, offsets=True, max_iter=20)
    for array, wanted in zip((observations.indptr, observations.indices, observations.values), before, strict=True):
        np.testing.assert_array_equal(array, wanted)
    assert np.random.random_sample() == wanted_draw  # noqa: NPY002


@pytest.mark.parametrize("scale", [1e120, 1e-120])
def test_values_whose_squares_overflow_are_refused(scale):
    with pytest.raises(InputError, match="multiply them by a constant"):
        complete(Observations.from_dense(scale * np.ones((3, 3))))


@METHODS
def test_a_number_fixes_the_smoothing_and_gives_the_published_iterates(method):
    problem = low_rank_problem(12, 10, 2, oversampling=2.0, seed=1)
    found = quietly(problem.observations, method=method, smoothing=0.3, max_iter=6, tol=1e-12)
    np.testing.assert_array_equal(found.history["smoothing"], 0.3)
    if method == "dense":
        kernel_matrix = 0.3**2 * np.eye(10)
        for _ in range(6):
            twin, gram = reference.dense_iteration(problem.truth, problem.mask, kernel_matrix, 0.0)
            kernel_matrix = gram + 0.3**2 * np.eye(10)
        np.testing.assert_allclose(found.to_dense(), twin, atol=1e-6)
