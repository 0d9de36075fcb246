"""Two-sided lin-RFM: single steps against the twin with explicit weights, and what ``complete`` makes of them."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pytest
import reference
from digests import check_bits_do_not_depend_on_threads
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import Problem, low_rank_problem, observe

from fastrfm._numba import available_threads
from fastrfm.arrays import HOST
from fastrfm.errors import NotConvergedWarning, RankWarning
from fastrfm.observations import Observations
from fastrfm.results import CompletionResult
from fastrfm.solvers import continuation
from fastrfm.solvers.completion import complete
from fastrfm.solvers.estimate import Estimate, Layout, Triplets, leading_triplets, start_estimate
from fastrfm.solvers.tangent_step import Step, tangent_step
from fastrfm.store import open_observations

TECATOR = Path(__file__).resolve().parent.parent / "datasets" / "tecator.h5"
POWERS = pytest.mark.parametrize("power", [0.25, 0.375, 0.5])
FEW = settings(max_examples=6, deadline=None, derandomize=True)
SMOOTHINGS = (2.0, 1.0, 0.5, 0.2, 0.05)


def quietly(observations: Observations, rank: int | None = None, **options) -> CompletionResult:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)
        return complete(observations, rank, **{"method": "two-sided", **options})


# --- one step -----------------------------------------------------------------------------------------------------


def to_dense(estimate: Estimate) -> np.ndarray:
    """Return all of an estimate, its sparse part too, without the package's own products."""
    inside = estimate.left @ estimate.coefficients.T + estimate.rows @ estimate.basis.T
    rows, cols, values = estimate.observations.to_coo()
    inside[rows, cols] += estimate.theta * (values - inside[rows, cols])
    return inside


def triplets_above(matrix: np.ndarray, smoothing: float) -> Triplets:
    left, singular_values, vt = np.linalg.svd(matrix, full_matrices=False)
    return Triplets(left, singular_values, np.ascontiguousarray(vt.T)).first(
        int(np.sum(singular_values > smoothing)), HOST
    )


def exact_step(observations: Observations, previous: np.ndarray, power: float, smoothing: float, ridge: float) -> Step:
    return tangent_step(
        observations,
        Layout.of(observations),
        triplets_above(previous, smoothing),
        smoothing=smoothing,
        agop_power=power,
        ridge=ridge,
        tolerance=1e-13,
    )


def noisy_problem(n_rows: int = 12, n_cols: int = 9, seed: int = 2) -> Problem:
    problem = low_rank_problem(n_rows, n_cols, 2, oversampling=1.6, seed=seed)
    noise = 0.1 * np.random.RandomState(seed).standard_normal(problem.truth.shape)
    return Problem(problem.truth + noise, problem.mask)


@POWERS
@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(12, 9), pytest.param((9, 12), marks=pytest.mark.compiled_only)])
def test_steps_equal_the_twin_with_explicit_weights(power, ridge, shape):
    problem = noisy_problem(*shape)
    observations = problem.observations
    found = twin = np.where(problem.mask, problem.truth, 0.0)
    widths = []
    for smoothing in SMOOTHINGS:
        step = exact_step(observations, found, power, smoothing, ridge)
        twin_before = twin
        found = to_dense(step.estimate)
        twin = reference.two_sided_iteration(
            twin, problem.truth, problem.mask, agop_power=power, smoothing=smoothing, ridge=ridge
        )
        assert np.linalg.norm(found - twin) <= 1e-8 * np.linalg.norm(twin)
        if ridge > 0.0:  # X keeps the share theta of the low-rank part's residual
            kept = np.sum((problem.truth - twin)[problem.mask] ** 2)
            assert step.square_sum == pytest.approx(kept * (1.0 + smoothing ** (4.0 * power) / ridge) ** 2, rel=1e-6)
        assert step.inner_error <= 1e-13
        widths.append(np.count_nonzero(step.estimate.basis.any(axis=0)))
        assert np.isfinite(step.change) and step.change <= 2.0 * np.linalg.norm(twin_before) + np.linalg.norm(twin)
    assert widths[0] < widths[-1]


@POWERS
@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("k", [0, 1, 9])
def test_a_step_from_any_number_of_directions_equals_the_twin(power, ridge, k):
    # 9 is every direction that there is: nothing is left for the floor but rows outside U.
    problem = noisy_problem()
    previous = np.where(problem.mask, problem.truth, 0.0)
    singular_values = np.append(np.linalg.svd(previous, compute_uv=False), 0.0)
    smoothing = float(0.5 * (singular_values[k - 1] + singular_values[k])) if k else 2.0 * float(singular_values[0])
    step = exact_step(problem.observations, previous, power, smoothing, ridge)
    assert np.count_nonzero(step.estimate.basis.any(axis=0)) == k
    twin = reference.two_sided_iteration(
        previous, problem.truth, problem.mask, agop_power=power, smoothing=smoothing, ridge=ridge
    )
    assert np.linalg.norm(to_dense(step.estimate) - twin) <= 1e-8 * np.linalg.norm(twin)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_a_step_takes_rows_and_columns_without_entries(ridge):
    problem = noisy_problem()
    mask = problem.mask.copy()
    mask[4] = mask[:, 2] = False
    mask[7] = np.arange(9) == 5
    previous = np.random.RandomState(0).standard_normal((12, 9))
    step = exact_step(observe(problem.truth, mask), previous, 0.4, 2.0, ridge)
    twin = reference.two_sided_iteration(previous, problem.truth, mask, agop_power=0.4, smoothing=2.0, ridge=ridge)
    assert 0 < step.estimate.basis.shape[1] < 9
    assert np.linalg.norm(to_dense(step.estimate) - twin) <= 1e-8 * np.linalg.norm(twin)


@pytest.mark.compiled_only
@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("power", [0.25, 0.5])
def test_the_change_is_the_distance_in_the_tangent_space(power, ridge):
    # The sparse part has a share in the tangent space: without it the change would not vanish where X stands still.
    problem = noisy_problem()
    estimate = np.where(problem.mask, problem.truth, 0.0)
    for iteration in range(400):
        triplets = triplets_above(estimate, 0.5)
        step = exact_step(problem.observations, estimate, power, 0.5, ridge)
        following = to_dense(step.estimate)
        moved = following - (triplets.left * triplets.singular_values) @ triplets.right.T
        distance = np.linalg.norm(reference.tangent_projection(moved, triplets.left, triplets.right))
        if iteration % 50 == 0 and distance > 1e-6:
            assert step.change == pytest.approx(distance, rel=1e-4)
        estimate = following
    assert distance < 1e-8
    assert step.change < 1e-8


def test_estimates_multiply_as_their_dense_form():
    problem = noisy_problem()
    estimate = exact_step(problem.observations, np.where(problem.mask, problem.truth, 0.0), 0.4, 0.5, 0.1).estimate
    rng = np.random.RandomState(0)
    vectors, directions = rng.standard_normal((9, 4)), rng.standard_normal((12, 4))
    np.testing.assert_allclose(estimate.multiply(vectors), to_dense(estimate) @ vectors, atol=1e-12)
    np.testing.assert_allclose(estimate.multiply_transposed(directions), to_dense(estimate).T @ directions, atol=1e-12)


def test_a_start_puts_the_observed_entries_in():
    problem = noisy_problem()
    rng = np.random.RandomState(0)
    left, right = rng.standard_normal((12, 2)), rng.standard_normal((9, 2))
    observations = problem.observations
    estimate = start_estimate(observations, Layout.of(observations), left, right)
    wanted = np.where(problem.mask, problem.truth, left @ right.T)
    np.testing.assert_allclose(to_dense(estimate), wanted, atol=1e-12)


def test_leading_triplets_are_those_of_the_dense_form():
    problem = noisy_problem()
    observations = problem.observations
    estimate = exact_step(observations, np.where(problem.mask, problem.truth, 0.0), 0.5, 0.1, 0.0).estimate
    u, singular_values, vt = np.linalg.svd(to_dense(estimate), full_matrices=False)
    begin = np.random.RandomState(0).standard_normal((9, 9))
    whole = leading_triplets(estimate, begin, watched=9, accuracy=1e-12)
    np.testing.assert_allclose(whole.singular_values, singular_values, atol=1e-12 * singular_values[0])
    np.testing.assert_allclose((whole.left * whole.singular_values) @ whole.right.T, to_dense(estimate), atol=1e-12)
    part = leading_triplets(estimate, begin[:, :5], watched=2, accuracy=1e-12)
    np.testing.assert_allclose(part.singular_values[:2], singular_values[:2], rtol=1e-6)
    assert np.linalg.svd(part.left[:, :2].T @ u[:, :2], compute_uv=False).min() > 1.0 - 1e-6
    assert np.linalg.svd(part.right[:, :2].T @ vt[:2].T, compute_uv=False).min() > 1.0 - 1e-6
    np.testing.assert_allclose(part.left.T @ part.left, np.eye(5), atol=1e-12)
    np.testing.assert_allclose(part.right.T @ part.right, np.eye(5), atol=1e-12)


@POWERS
def test_objective_never_increases_at_fixed_smoothing(power):
    # The two-sided weights majorise the floored penalty exactly and all triplets are exact: no slack but rounding.
    problem = noisy_problem(10, 8)
    for ridge in (0.0, 0.05, 1.0):
        estimate = np.where(problem.mask, problem.truth, 0.0)
        values = []
        for _ in range(10):
            estimate = to_dense(exact_step(problem.observations, estimate, power, 0.4, ridge).estimate)
            misfit = 0.5 * np.sum((estimate - problem.truth)[problem.mask] ** 2)
            penalty = reference.floored_penalty(estimate, power, 0.4)
            values.append(misfit + ridge * penalty if ridge > 0.0 else penalty)
            if ridge == 0.0:
                assert misfit < 1e-16
        assert np.all(np.diff(values) <= 1e-11 * abs(values[0])), (ridge, values)
        assert values[-1] < values[0]


# --- failure of the inner solver is told --------------------------------------------------------------------------


def test_an_inner_solver_cut_short_says_so():
    problem = noisy_problem()
    observations = problem.observations
    previous = np.where(problem.mask, problem.truth, 0.0)
    arguments = observations, Layout.of(observations), triplets_above(previous, 0.5)
    options = {"smoothing": 0.5, "agop_power": 0.5, "ridge": 0.0, "tolerance": 1e-8}
    short, whole = tangent_step(*arguments, **options, max_steps=1), tangent_step(*arguments, **options)
    assert short.inner_steps == 1 and short.inner_error > 1e-8
    assert 1 < whole.inner_steps < 500 and whole.inner_error <= 1e-8
    none = tangent_step(*arguments, **options, max_steps=0)
    assert none.inner_steps == 0 and none.inner_error == 1.0


def test_history_tells_inner_steps_and_errors():
    problem = low_rank_problem(12, 10, 2, oversampling=2.0, seed=0)
    seen = []
    history = quietly(problem.observations, 2, max_iter=12, callback=seen.append).history
    for name in ("inner_steps", "inner_error"):
        assert history[name].size == history["change"].size
        np.testing.assert_array_equal(history[name], [getattr(it, name) for it in seen])
    assert np.all(history["inner_steps"] >= 0) and history["inner_steps"].max() >= 1
    assert np.all(history["inner_error"] >= 0.0) and history["inner_error"].max() < 1.0


def test_history_shows_an_inner_solver_cut_short(monkeypatch):
    from fastrfm.solvers import tangent_step as module

    monkeypatch.setattr(module._System, "solve", _cut_short(module._System.solve))
    problem = low_rank_problem(12, 10, 2, oversampling=2.0, seed=0)
    history = quietly(problem.observations, 2, max_iter=12).history
    assert history["inner_steps"].max() == 1
    assert history["inner_error"].max() > 0.1


def _cut_short(solve):
    return lambda self, residual, tolerance, max_steps: solve(self, residual, 1e-12, 1)


# --- what must not change a result --------------------------------------------------------------------------------


def recoverable(n_rows: int = 30, n_cols: int = 24, rank: int = 2, seed: int = 3) -> Problem:
    return low_rank_problem(n_rows, n_cols, rank, oversampling=4.0, seed=seed)


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.compiled_only
@given(exponent=st.integers(-30, 30), power=st.sampled_from([0.25, 0.375, 0.5]), ridge=st.sampled_from([0.0, 0.1]))
@FEW
def test_scaling_by_a_power_of_two_scales_the_estimate(exponent, power, ridge):
    problem, scale = recoverable(), 2.0**exponent
    one = quietly(problem.observations, 2, agop_power=power, ridge=ridge, max_iter=60)
    other = quietly(
        observe(scale * problem.truth, problem.mask),
        2,
        agop_power=power,
        ridge=ridge * scale ** (4.0 * power),
        max_iter=60,
    )
    assert relative(other.to_dense(), scale * one.to_dense()) < 1e-9
    assert other.n_iter == one.n_iter
    np.testing.assert_allclose(other.history["smoothing"], scale * one.history["smoothing"], rtol=1e-6)


@pytest.mark.compiled_only
@pytest.mark.parametrize("scale", [1e-8, 1e8, -3.0])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
@pytest.mark.parametrize("rank", [2, None])
def test_scaling_by_any_number_scales_the_estimate(scale, ridge, rank):
    problem = recoverable()
    one = quietly(problem.observations, rank, ridge=ridge)
    other = quietly(observe(scale * problem.truth, problem.mask), rank, ridge=ridge * scale**2)
    assert one.stop_reason == other.stop_reason == "converged"
    assert relative(other.to_dense(), scale * one.to_dense()) < (1e-8 if ridge == 0.0 else 1e-6)


@pytest.mark.compiled_only
@pytest.mark.parametrize("shape", [(12, 9), (30, 24), (60, 40), (40, 60), (40, 40)])
@pytest.mark.parametrize("rank", [2, None])
def test_permuting_rows_and_columns_commutes(shape, rank):
    problem = recoverable(*shape, rank=1 if shape == (12, 9) else 2)
    for seed in range(3):
        rng = np.random.RandomState(seed)
        rows, cols = rng.permutation(shape[0]), rng.permutation(shape[1])
        permuted = observe(problem.truth[np.ix_(rows, cols)], problem.mask[np.ix_(rows, cols)])
        one, other = quietly(problem.observations, rank), quietly(permuted, rank)
        assert relative(other.to_dense(), one.to_dense()[np.ix_(rows, cols)]) < 1e-8


@pytest.mark.compiled_only
@pytest.mark.parametrize("shape", [(12, 9), (60, 40), (40, 60), (40, 40)])
@pytest.mark.parametrize("rank", [2, None])
def test_transposing_transposes(shape, rank):
    # The longer side's rows are worked on either way: the same bits, except on a square, where the sides change roles.
    problem = recoverable(*shape, rank=1 if shape == (12, 9) else 2, seed=4)
    one, other = quietly(problem.observations, rank), quietly(observe(problem.truth.T, problem.mask.T), rank)
    assert relative(other.to_dense(), one.to_dense().T) < (1e-8 if shape == (40, 40) else 1e-12)


@pytest.mark.compiled_only
@POWERS
def test_steps_of_a_square_matrix_transpose(power):
    problem = noisy_problem(10, 10)
    previous = np.random.RandomState(1).standard_normal((10, 10))
    for ridge in (0.0, 0.3):
        one = exact_step(problem.observations, previous, power, 1.0, ridge)
        other = exact_step(observe(problem.truth.T, problem.mask.T), previous.T, power, 1.0, ridge)
        assert relative(to_dense(other.estimate), to_dense(one.estimate).T) < 1e-9


@pytest.mark.compiled_only
@pytest.mark.parametrize(("ridge", "to_exact"), [(0.0, 3e-5), (0.1, 1e-5)])
def test_float32_storage_costs_no_more_than_its_rounding(ridge, to_exact):
    # Rounded values are not of low rank: without a ridge they are interpolated all the same, so rank and tol are given.
    problem = recoverable(seed=7)
    single = problem.truth.astype(np.float32)
    options = {"ridge": ridge, "tol": 1e-5 if ridge == 0.0 else 1e-3}
    found = quietly(observe(single, problem.mask), 2, **options)
    assert found.left.dtype == found.right.dtype == np.float64
    assert np.isfinite(found.to_dense()).all()
    same = quietly(observe(single.astype(np.float64), problem.mask), 2, **options)
    np.testing.assert_array_equal(found.to_dense(), same.to_dense())
    assert relative(found.to_dense(), quietly(problem.observations, 2, **options).to_dense()) < to_exact


@pytest.mark.compiled_only
def test_hidden_entries_have_no_influence():
    problem = recoverable(seed=6)
    other_truth = np.where(problem.mask, problem.truth, 1e6)
    one, other = quietly(problem.observations, 2), quietly(observe(other_truth, problem.mask), 2)
    np.testing.assert_array_equal(one.to_dense(), other.to_dense())


@pytest.mark.compiled_only
def test_nothing_of_the_caller_is_changed():
    problem = recoverable(seed=8)
    observations = problem.observations
    before = [array.copy() for array in (observations.indptr, observations.indices, observations.values)]
    quietly(observations, 2, max_iter=20)
    for array, wanted in zip((observations.indptr, observations.indices, observations.values), before, strict=True):
        np.testing.assert_array_equal(array, wanted)


@pytest.mark.compiled_only
def test_row_factors_that_are_not_kept_change_no_bit(monkeypatch):

    problem = recoverable(seed=8)
    kept = quietly(problem.observations, 2)
    monkeypatch.setattr("fastrfm.arrays.HostArrays.scratch_bytes", 0.0)
    formed = quietly(problem.observations, 2)
    np.testing.assert_array_equal(formed.left, kept.left)
    np.testing.assert_array_equal(formed.history["change"], kept.history["change"])


@pytest.mark.compiled_only
def test_the_same_seed_gives_the_same_bits_and_another_the_same_answer():
    problem = recoverable(seed=8)
    found = [quietly(problem.observations, 2, random_state=seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(found[0].left, found[1].left)
    np.testing.assert_array_equal(found[0].history["change"], found[1].history["change"])
    assert relative(found[2].to_dense(), found[0].to_dense()) < 1e-8


@pytest.mark.compiled_only
def test_one_to_four_threads_give_the_same_bits():
    observations = low_rank_problem(700, 90, 3, oversampling=3.0, seed=1).observations  # what `digests` completes
    layout = Layout.of(observations)
    assert layout.n_parts(observations, 3) > 1 and layout.stripes.size > 2 and layout.tiles.size > 9  # work is split
    cases = {
        "rank": {"rank": 3},
        "free": {},
        "ridge": {"rank": 3, "ridge": 0.1},
        "offsets": {"rank": 3, "offsets": True},
    }
    check_bits_do_not_depend_on_threads(
        {name: {"method": "two-sided", "max_iter": 25, **options} for name, options in cases.items()}
    )


@pytest.mark.compiled_only
def test_one_thread_and_all_take_the_same_path():
    problem = low_rank_problem(400, 120, 3, oversampling=3.0, seed=2)
    one, other = (
        quietly(problem.observations, 3, n_threads=n_threads, max_iter=40) for n_threads in (1, available_threads())
    )
    np.testing.assert_array_equal(one.left, other.left)
    np.testing.assert_array_equal(one.right, other.right)
    for name in ("smoothing", "change", "inner_steps", "inner_error", "rank"):
        np.testing.assert_array_equal(one.history[name], other.history[name])


# --- edges --------------------------------------------------------------------------------------------------------


@pytest.mark.compiled_only
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("rank", [2, None])
def test_empty_rows_and_columns_get_means(transpose, rank):
    problem = recoverable()
    mask = problem.mask.copy()
    mask[3], mask[:, 2] = False, False
    table = np.where(mask, problem.truth, np.nan)
    exact = problem.truth
    if transpose:
        table, exact = np.ascontiguousarray(table.T), exact.T
    result = quietly(Observations.from_dense(table), rank)
    dense = result.to_dense()
    row, col = (2, 3) if transpose else (3, 2)
    seen_rows, seen_cols = np.arange(len(table)) != row, np.arange(table.shape[1]) != col
    np.testing.assert_allclose(dense[row, seen_cols], np.nanmean(table[:, seen_cols], axis=0), atol=1e-12)
    np.testing.assert_allclose(dense[seen_rows, col], np.nanmean(table[seen_rows], axis=1), atol=1e-12)
    assert (result.n_empty_rows, result.n_empty_cols, result.rank) == (1, 1, 2)
    inside = np.ix_(seen_rows, seen_cols)
    assert relative(dense[inside], exact[inside]) < 1e-8


@pytest.mark.compiled_only
@pytest.mark.parametrize("rank", [2, None])
def test_a_row_and_a_column_with_one_entry_spoil_nothing_else(rank):
    # With fewer entries than the rank they are not determined themselves, the rest is.
    problem = recoverable()
    mask = problem.mask.copy()
    mask[3], mask[:, 2] = False, False
    mask[3, 5] = mask[7, 2] = True
    result = quietly(observe(problem.truth, mask), rank)
    dense = result.to_dense()
    assert np.isfinite(dense).all()
    np.testing.assert_allclose(dense[mask], problem.truth[mask], atol=1e-7)
    inside = np.ix_(np.arange(30) != 3, np.arange(24) != 2)
    assert relative(dense[inside], problem.truth[inside]) < 1e-7
    assert np.abs(dense).max() < 10.0 * np.abs(problem.truth).max()


@pytest.mark.compiled_only
@pytest.mark.parametrize("rank", [2, 3, 5, 10, 24])
def test_a_rank_larger_than_needed_is_not_used(rank):
    problem = recoverable()
    result = quietly(problem.observations, rank)
    assert result.stop_reason == "converged" and result.rank == 2
    assert problem.relative_error(result.to_dense()) < 1e-8


@pytest.mark.compiled_only
@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (60, 40), (7, 3)])
@pytest.mark.parametrize("rank", [1, None])
def test_rank_one_is_recovered(shape, rank):
    problem = low_rank_problem(*shape, 1, oversampling=4.0 if min(shape) == 40 else 2.2, seed=5)
    result = quietly(problem.observations, rank)
    assert result.rank == 1
    assert problem.relative_error(result.to_dense()) < 1e-9


@pytest.mark.compiled_only
def test_a_wide_matrix_is_recovered():
    problem = recoverable(24, 90)
    for rank in (2, None):
        result = quietly(problem.observations, rank)
        assert result.left.shape == (24, 2) and result.right.shape == (90, 2)
        assert problem.relative_error(result.to_dense()) < 1e-8


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1)])
@pytest.mark.parametrize("rank", [1, None])
def test_single_rows_and_columns(shape, rank):
    values = np.arange(2.0, 2.0 + max(shape)).reshape(shape)
    result = quietly(Observations.from_dense(values), rank, max_iter=300)
    np.testing.assert_allclose(result.to_dense(), values, rtol=1e-9)
    assert result.rank == 1 and result.stop_reason == "converged"
    partly = values.copy()
    if values.size > 1:
        partly.flat[1] = np.nan
        dense = quietly(Observations.from_dense(partly), rank, max_iter=300).to_dense()
        np.testing.assert_allclose(np.delete(dense, 1), np.delete(values, 1), rtol=1e-9)
        assert dense.flat[1] == pytest.approx(np.nanmean(partly))


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (4, 3)])
@pytest.mark.parametrize("rank", [1, None])
def test_one_observation_fills_the_matrix(shape, rank):
    table = np.full(shape, np.nan)
    table[shape[0] // 2, shape[1] // 2] = -7.0
    result = quietly(Observations.from_dense(table), rank, max_iter=300)
    np.testing.assert_allclose(result.to_dense(), -7.0, rtol=1e-9)
    assert result.stop_reason == "converged"


@pytest.mark.compiled_only
@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (5, 5), (4, 7), (7, 4), (30, 20)])
@pytest.mark.parametrize("is_rank_given", [True, False])
def test_all_observed_is_reproduced(shape, is_rank_given):
    values = np.random.RandomState(0).standard_normal(shape)
    result = quietly(Observations.from_dense(values), min(shape) if is_rank_given else None, max_iter=2000)
    np.testing.assert_allclose(result.to_dense(), values, atol=1e-7)
    assert result.rank == min(shape) and result.stop_reason == "converged"
    np.testing.assert_allclose(result.singular_values, np.linalg.svd(values, compute_uv=False), atol=1e-7)


@pytest.mark.compiled_only
@pytest.mark.parametrize("rank", [2, 5, None])
def test_all_observed_low_rank_is_found_at_once(rank):
    problem = low_rank_problem(20, 15, 2, oversampling=100.0, seed=0)
    assert problem.mask.all()
    result = quietly(problem.observations, rank)
    assert result.rank == 2 and result.stop_reason == "converged"
    assert problem.relative_error(result.to_dense()) < 1e-10


@pytest.mark.compiled_only
@pytest.mark.parametrize("offsets", [False, True])
@pytest.mark.parametrize("constant", [0.0, 2.5])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
@pytest.mark.parametrize("rank", [1, None])
def test_constant_matrices(offsets, constant, ridge, rank):
    table = np.full((6, 5), constant)
    table[0, 0] = table[3, 2] = np.nan
    result = quietly(Observations.from_dense(table), rank, offsets=offsets, ridge=ridge)
    assert result.stop_reason == "converged"
    assert result.rank == (0 if constant == 0.0 or offsets else 1)
    tolerance = 1e-9 if ridge == 0.0 or offsets else 0.05 * constant
    np.testing.assert_allclose(result.to_dense(), constant, atol=tolerance)


def test_zeros_stay_zeros():
    result = quietly(Observations.from_dense(np.zeros((4, 3))), max_iter=20)
    assert (result.rank, result.stop_reason) == (0, "converged")
    np.testing.assert_array_equal(result.to_dense(), 0.0)
    assert np.isfinite(result.history["change"]).all()


@pytest.mark.compiled_only
def test_rank_caps_the_answer():
    values = np.random.RandomState(0).standard_normal((12, 8))
    for rank in (1, 3, 8):
        result = quietly(Observations.from_dense(values), rank, max_iter=300)
        assert result.rank <= rank and result.left.shape == (12, result.rank)
        assert np.isfinite(result.to_dense()).all()


@pytest.mark.compiled_only
@POWERS
def test_a_ridge_beyond_all_signal_leaves_nothing(power):
    problem = recoverable()
    result = quietly(problem.observations, agop_power=power, ridge=1e6)
    assert result.stop_reason == "converged"
    assert np.abs(result.to_dense()).max() < 1e-3


def test_max_iter_warns_and_says_so():
    problem = low_rank_problem(12, 10, 2, oversampling=2.0, seed=0)
    for max_iter in (1, 3):
        with pytest.warns(NotConvergedWarning, match=f"max_iter = {max_iter} "):
            result = complete(problem.observations, method="two-sided", max_iter=max_iter)
        assert (result.stop_reason, result.n_iter) == ("max_iter", max_iter)
        assert np.isfinite(result.to_dense()).all()


def test_a_callback_stops_without_a_warning():
    problem = low_rank_problem(12, 10, 2, oversampling=2.0, seed=0)
    result = complete(problem.observations, method="two-sided", callback=lambda it: it.iteration == 4)
    assert (result.stop_reason, result.n_iter) == ("callback", 4)


@pytest.mark.compiled_only
def test_a_callback_sees_what_the_history_keeps():
    seen = []
    result = quietly(recoverable().observations, 2, callback=seen.append)
    assert [it.iteration for it in seen] == list(range(1, result.n_iter + 1))
    for name, values in result.history.items():
        np.testing.assert_array_equal([getattr(it, name) for it in seen], values)
    assert {field.name for field in dataclasses.fields(seen[0])} >= set(result.history)
    progress = np.array([it.progress for it in seen])
    assert np.all(np.diff(progress) >= 0.0) and progress[-1] == 1.0


@pytest.mark.compiled_only
def test_result_is_in_canonical_form():
    problem = recoverable(seed=5)
    result = quietly(problem.observations, 2)
    left, right, k = result.left, result.right, result.rank
    assert k == 2 and left.flags.c_contiguous and right.flags.c_contiguous
    np.testing.assert_allclose(right.T @ right, np.eye(k), atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(left, axis=0), result.singular_values, rtol=1e-12)
    misfit = (result.to_dense() - problem.truth)[problem.mask]
    assert result.masked_rmse == pytest.approx(np.sqrt(np.mean(misfit**2)), rel=1e-6, abs=1e-14)
    assert result.options["method"] == "two-sided" and result.n_observed == problem.mask.sum()


@pytest.mark.compiled_only
@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_a_fixed_smoothing_gives_the_iterates_of_the_twin(ridge):
    problem = low_rank_problem(12, 9, 2, oversampling=2.0, seed=1)
    found = quietly(problem.observations, smoothing=0.3, ridge=ridge, max_iter=6, tol=1e-12)
    np.testing.assert_array_equal(found.history["smoothing"], 0.3)
    twin = np.where(problem.mask, problem.truth, 0.0)
    for _ in range(found.n_iter):
        twin = reference.two_sided_iteration(
            twin, problem.truth, problem.mask, agop_power=0.5, smoothing=0.3, ridge=ridge
        )
    # The answer keeps the directions above epsilon.
    left, singular_values, vt = np.linalg.svd(twin, full_matrices=False)
    kept = int(np.sum(singular_values > 0.3))
    twin = (left[:, :kept] * singular_values[:kept]) @ vt[:kept]
    assert relative(found.to_dense(), twin) < 1e-3


# --- recovery -----------------------------------------------------------------------------------------------------


def noisy_table(problem: Problem, level: float, seed: int) -> np.ndarray:
    """Return the truth plus noise of `level` times its root mean square."""
    scale = level * np.linalg.norm(problem.truth) / np.sqrt(problem.truth.size)
    return problem.truth + scale * np.random.RandomState(100 + seed).standard_normal(problem.truth.shape)


def sparse_problem(seed: int) -> Problem:
    """Return 200 x 200 of rank 3 at oversampling 1.5, at least three entries in every row and column."""
    rng = np.random.RandomState(seed)
    truth = low_rank_problem(200, 200, 3, oversampling=4.0, seed=seed).truth
    while True:
        mask = np.zeros(200 * 200, dtype=bool)
        mask[rng.permutation(mask.size)[: int(1.5 * 3 * 397)]] = True
        mask = mask.reshape(200, 200)
        if min(mask.sum(axis=0).min(), mask.sum(axis=1).min()) >= 3:
            return Problem(truth, mask)


@pytest.mark.compiled_only
@pytest.mark.parametrize("rank", [3, None])
@pytest.mark.parametrize(("oversampling", "condition_number"), [(2.0, 10.0), (2.0, 1e3), (2.5, 1e6)])
def test_low_rank_matrices_are_recovered(rank, oversampling, condition_number):
    found = []
    for seed in range(10):
        problem = low_rank_problem(300, 200, 3, oversampling=oversampling, condition_number=condition_number, seed=seed)
        # Singular values are to be right themselves, the last one too, so that tol has to be below its share.
        tol = None if condition_number == 10.0 else 1e-8 / condition_number
        result = quietly(problem.observations, rank, tol=tol)
        found.append((problem.relative_error(result.to_dense()) * condition_number, result.rank, result.stop_reason))
    bound = 1e-10 if condition_number == 10.0 else 1e-5
    assert sum(error < bound and k == 3 for error, k, _ in found) >= 9, found


@pytest.mark.compiled_only
@pytest.mark.parametrize("condition_number", [10.0, 1e4, 1e6])
@pytest.mark.parametrize("rank", [3, None])
def test_converged_means_within_a_small_multiple_of_tol(condition_number, rank):
    for seed in range(10):
        problem = low_rank_problem(300, 200, 3, oversampling=2.0, condition_number=condition_number, seed=seed)
        result = quietly(problem.observations, rank)
        error = problem.relative_error(result.to_dense())
        assert result.stop_reason != "converged" or error <= 3e-8, (seed, error, result.rank)


@pytest.mark.compiled_only
def test_most_are_recovered_near_the_sampling_limit(monkeypatch):
    def n_recovered() -> int:
        problems = [sparse_problem(seed) for seed in range(10)]
        return sum(problem.relative_error(quietly(problem.observations, 3).to_dense()) < 1e-10 for problem in problems)

    by_all = n_recovered()
    monkeypatch.setattr(continuation, "ATTEMPTS", continuation.ATTEMPTS[:1])
    assert by_all >= 8
    assert n_recovered() < by_all


@pytest.mark.compiled_only
def test_a_run_that_does_not_converge_warns():
    # Fewer entries than a matrix of the rank asked for has degrees of freedom.
    mask = low_rank_problem(60, 50, 1, oversampling=2.5, seed=1).mask
    truth = low_rank_problem(60, 50, 3, oversampling=4.0, seed=1).truth
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = complete(observe(truth, mask), 3, method="two-sided", max_iter=500)
    told = any(issubclass(warning.category, NotConvergedWarning) for warning in caught)
    assert told == (result.stop_reason != "converged"), result.stop_reason


@pytest.mark.compiled_only
@pytest.mark.parametrize("ridge", [0.3, 2.0])
def test_quarter_power_reaches_the_nuclear_norm_optimum(ridge):
    # Convex, so the optimum is known: soft-impute's, up to the epsilon that a ridge leaves, sqrt(tol) of its scale.
    rng = np.random.RandomState(0)
    values = low_rank_problem(25, 18, 3, oversampling=100.0, condition_number=4.0).truth * 5.0
    values = values + 0.1 * rng.standard_normal((25, 18))
    for mask in (np.ones((25, 18), dtype=bool), rng.random_sample((25, 18)) < 0.6):
        optimum = reference.soft_impute(values, mask, ridge)
        best = reference.nuclear_objective(optimum, values, mask, ridge)
        result = quietly(observe(values, mask), agop_power=0.25, ridge=ridge, tol=1e-4, max_iter=2000)
        assert result.stop_reason == "converged"
        reached = reference.nuclear_objective(result.to_dense(), values, mask, ridge)
        assert -1e-9 < reached / best - 1.0 < 5e-3
        assert relative(result.to_dense(), optimum) < 1e-2


def noisy(seed: int, level: float = 0.1) -> tuple[Problem, Observations]:
    problem = low_rank_problem(60, 40, 3, oversampling=4.0, condition_number=3.0, seed=seed)
    noise = np.random.RandomState(seed).standard_normal(problem.truth.shape)
    values = problem.truth + level * np.sqrt(np.mean(problem.truth**2)) * noise
    return problem, observe(values, problem.mask)


@pytest.mark.compiled_only
@pytest.mark.parametrize("rank", [3, None, 6])
def test_noise_ends_at_its_rank(rank):
    # 1 % of noise keeps the fourth singular value from falling: converged all the same, at any tolerance.
    for seed in range(3):
        problem, observations = noisy(seed, 0.01)
        result = quietly(observations, rank, tol=1e-8, max_iter=500)
        assert (result.rank, result.stop_reason) == (3, "converged")
        assert problem.relative_error(result.to_dense()) < 0.01


@pytest.mark.compiled_only
@pytest.mark.parametrize("level", [0.03, 0.1, 0.3])
def test_noise_tells_its_rank(level):
    for seed in range(3):
        problem = low_rank_problem(200, 150, 5, oversampling=4.0, condition_number=3.0, seed=seed)
        noise = np.random.RandomState(seed).standard_normal(problem.truth.shape)
        values = problem.truth + level * np.sqrt(np.mean(problem.truth**2)) * noise
        observations = observe(values, problem.mask)
        found, given = quietly(observations), quietly(observations, 5)
        assert (found.rank, found.stop_reason, given.rank) == (5, "converged", 5)
        errors = [problem.relative_error(result.to_dense()) for result in (found, given)]
        assert errors[0] <= 1.001 * errors[1]


@pytest.mark.compiled_only
@POWERS
@pytest.mark.parametrize("ridge", [0.0, 0.05, 0.3])
def test_noisy_data_are_completed_as_well_as_one_sided(power, ridge):
    for seed in range(3):
        problem, observations = noisy(seed)
        errors = []
        for method in ("dense", "two-sided"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # one-sided without a ridge reaches max_iter
                result = complete(
                    observations, 3, method=method, agop_power=power, ridge=ridge, tol=1e-4, max_iter=1000
                )
            errors.append(problem.relative_error(result.to_dense()))
        assert errors[1] <= 1.02 * errors[0], (seed, errors)


@pytest.mark.compiled_only
def test_a_rank_that_is_not_reached_is_said():
    # A mean that dwarfs the rest: the other directions are lost on the way.
    tecator = open_observations(TECATOR)
    rng = np.random.default_rng(0)
    is_hidden = rng.random(tecator.n_observed) < 0.5
    noisy = tecator.with_values(tecator.values + 0.01 * np.random.default_rng(1).standard_normal(tecator.n_observed))
    with pytest.warns(RankWarning, match="settled at rank 1, not 6"):
        complete(noisy.select(~is_hidden), 6, method="two-sided", max_iter=200)
    assert complete(noisy.select(~is_hidden), 6, method="two-sided", offsets=True, max_iter=200).rank == 6
