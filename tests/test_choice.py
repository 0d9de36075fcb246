"""What ``method="auto"`` takes, keeps and falls back to."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from problems import Problem, low_rank_problem

from fastrfm.errors import InputError, NotConvergedWarning
from fastrfm.observations import Observations
from fastrfm.options import CompletionOptions
from fastrfm.results import CompletionResult
from fastrfm.solvers.choice import AUTO_DENSE_SIDE, PATIENCE, choose_method, is_answer, options_of_try
from fastrfm.solvers.completion import complete
from fastrfm.solvers.monitor import Monitor
from fastrfm.solvers.two_sided import solve_two_sided
from fastrfm.store import open_observations

GAPMINDER = Path(__file__).resolve().parent.parent / "datasets" / "gapminder-gdp.h5"


def quietly(observations: Observations, rank: int | None = None, **options) -> CompletionResult:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)
        return complete(observations, rank, **options)


def without_gap() -> Observations:
    """Return half the entries of a matrix whose singular values fall by a constant factor."""
    rng = np.random.default_rng(5)
    left, right = (np.linalg.qr(rng.standard_normal((n, 12)))[0] for n in (40, 30))
    matrix = (left * 0.7 ** np.arange(12)) @ right.T
    return Observations.from_dense(np.where(rng.random(matrix.shape) < 0.5, matrix, np.nan))


def exact(rank: int = 3) -> Problem:
    return low_rank_problem(60, 45, rank, oversampling=2.5, seed=2)


def test_one_sided_with_a_ridge_and_outside_the_powers_of_two_sided():
    short = Observations.from_coo([0], [0], [1.0], (AUTO_DENSE_SIDE, 10_000))
    long = Observations.from_coo([0], [0], [1.0], (AUTO_DENSE_SIDE + 1, 10_000))
    for rank in (None, 3):
        assert choose_method(short, CompletionOptions(rank=rank)) == "two-sided"
        assert choose_method(short, CompletionOptions(rank=rank, agop_power=0.25)) == "two-sided"
        assert choose_method(short, CompletionOptions(rank=rank, agop_power=0.1)) == "dense"
        assert choose_method(long, CompletionOptions(rank=rank, ridge=1.0)) == "factored"
        assert choose_method(long, CompletionOptions(rank=rank, method="dense")) == "dense"
    assert choose_method(short, CompletionOptions(ridge=1.0)) == "dense"
    assert choose_method(short, CompletionOptions(rank=3, ridge=1.0)) == "factored"
    assert choose_method(short, CompletionOptions(rank=3, agop_power=1.0)) == "factored"
    assert choose_method(short, CompletionOptions(rank=3, smoothing="geometric")) == "factored"


@pytest.mark.compiled_only
@pytest.mark.parametrize("rank", [3, None])
def test_exact_data_are_left_to_two_sided(rank):
    problem = exact()
    found = complete(problem.observations, rank)
    assert found.options["method"] == "two-sided"
    assert found.rank == 3
    assert problem.relative_error(found.to_dense()) < 1e-10
    np.testing.assert_array_equal(found.left, complete(problem.observations, rank, method="two-sided").left)


@pytest.mark.compiled_only
def test_data_without_a_gap_fall_back_to_one_sided():
    observations = without_gap()
    options = CompletionOptions()
    _, _, tried = solve_two_sided(observations, options_of_try(options), patience=PATIENCE)
    assert tried.stop_reason == "stalled"
    found = quietly(observations)
    one_sided = quietly(observations, method="dense", max_iter=options.max_iter - tried.n_iter)
    assert found.options["method"] == "dense"
    np.testing.assert_array_equal(found.left, one_sided.left)
    assert found.n_iter == tried.n_iter + one_sided.n_iter


@pytest.mark.compiled_only
def test_float32_rounding_is_no_noise():
    problem = exact()
    values = problem.observations.values.astype(np.float32)
    found = quietly(problem.observations.with_values(values))
    assert (found.options["method"], found.rank) == ("two-sided", 3)
    assert problem.relative_error(found.to_dense()) < 1e-5


@pytest.mark.parametrize("reason", ["converged", "callback", "max_iter", "stalled"])
@pytest.mark.parametrize(("smoothing", "change"), [(1e-13, 0.0), (1e-3, 0.0), (1e-13, 1e-3)])
def test_what_is_kept_of_a_try(reason, smoothing, change):
    monitor = Monitor(CompletionOptions(tol=0.0), 1.0, None, is_fast=True)
    for _ in range(2):
        monitor.record(smoothing=smoothing, floor=0.0, norm=1.0, change=change, masked_rmse=0.0, rank=2)
    monitor.stop_reason = reason
    is_exact = smoothing < 1e-12 and change == 0.0  # it ran out where no more was to be had
    assert is_answer(monitor, 1.0) == (reason in ("converged", "callback") or is_exact)


def noisy(noise: float, decimals: int | None = None) -> tuple[Observations, np.ndarray]:
    """Return three in ten entries of an 80 x 60 matrix of rank 3 with noise, or rounded, and the matrix."""
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((80, 3)) @ rng.standard_normal((3, 60))
    mask = rng.random(truth.shape) < 0.3
    table = truth + noise * rng.standard_normal(truth.shape)
    table = table if decimals is None else np.round(table, decimals)
    return Observations.from_dense(np.where(mask, table, np.nan)), truth


@pytest.mark.compiled_only
@pytest.mark.parametrize("noise", [1e-3, 1e-2, 0.1, 0.5])
@pytest.mark.parametrize("rank", [3, 4, 6, 9])
def test_noise_is_two_sided_at_the_right_rank_and_not_at_a_higher_one(noise, rank):
    observations, truth = noisy(noise)
    found = quietly(observations, rank, max_iter=600)
    one_sided = quietly(observations, rank, method="factored", max_iter=600)
    errors = [np.linalg.norm(each.to_dense() - truth) for each in (found, one_sided)]
    assert errors[0] <= 1.05 * errors[1]
    assert found.options["method"] == ("two-sided" if rank == 3 else "factored")
    assert found.rank == rank


@pytest.mark.compiled_only
@pytest.mark.parametrize("decimals", [3, 4, 6])
def test_rounded_data_show_their_rank(decimals):
    observations, truth = noisy(0.0, decimals)
    found = quietly(observations)
    assert (found.options["method"], found.rank) == ("two-sided", 3)
    assert np.linalg.norm(found.to_dense() - truth) < 10.0 ** (1 - decimals) * np.linalg.norm(truth) / 5.0


@pytest.mark.compiled_only
@pytest.mark.parametrize("rank", [2, 3, 5])
def test_a_dominant_first_direction_is_not_all_that_a_rank_asks_for(rank):
    rows, cols, values = open_observations(GAPMINDER).to_coo()
    observations = Observations.from_coo(rows, cols, np.log10(values))
    kept, held = observations.split(0.2, random_state=0)
    rows, cols, values = held.to_coo()
    errors = []
    for method in ("auto", "factored"):
        found = quietly(kept, rank, method=method, max_iter=500)
        assert found.rank == rank
        errors.append(np.sqrt(np.mean((found.predict(rows, cols) - values) ** 2)))
    assert errors[0] <= 1.1 * errors[1]


def test_a_few_iterations_are_enough_for_a_try():
    assert options_of_try(CompletionOptions(max_iter=60)).max_iter == 60
    assert options_of_try(CompletionOptions(max_iter=800)).max_iter == 300
    assert options_of_try(CompletionOptions(max_iter=10_000, rank=2)).max_iter == 2500


@pytest.mark.compiled_only
def test_two_vectors_are_found_from_a_row_and_a_column():
    matrix = np.full((50, 50), np.nan)
    matrix[0], matrix[:, 0] = 1.0, 2.0
    matrix[0, 0] = 1.0
    found = complete(Observations.from_dense(matrix))
    np.testing.assert_allclose(found.to_dense()[1:, 1:], 2.0, rtol=1e-6)


def test_a_stalled_try_with_a_rank_is_followed_by_factored(monkeypatch):
    def stalled(work, options, callback, start, patience, checkpoint):
        left, right, monitor = solve_two_sided(work, options, callback, start, patience, checkpoint)
        monitor.stop_reason = "stalled"
        return left, right, monitor

    monkeypatch.setattr("fastrfm.solvers.runs.solve_two_sided", stalled)
    found = quietly(exact().observations, 3, max_iter=5)
    assert (found.options["method"], found.n_iter) == ("two-sided", 5)  # nothing is left for a second run
    monkeypatch.setattr("fastrfm.solvers.runs.options_of_try", lambda options: replace(options, max_iter=2))
    found = quietly(exact().observations, 3, max_iter=5)
    one_sided = quietly(exact().observations, 3, method="factored", max_iter=3)
    assert (found.options["method"], found.n_iter) == ("factored", 5)
    np.testing.assert_array_equal(found.left, one_sided.left)


@pytest.mark.compiled_only
def test_two_runs_look_like_one_to_the_caller():
    seen = []
    found = quietly(without_gap(), callback=seen.append)
    assert found.options["method"] == "dense"
    np.testing.assert_array_equal([iteration.iteration for iteration in seen], np.arange(found.n_iter) + 1)
    for name in ("seconds", "masked_rmse", "change", "smoothing"):
        np.testing.assert_array_equal([getattr(iteration, name) for iteration in seen], found.history[name])
    assert np.all(np.diff(found.history["seconds"]) >= 0.0)


@pytest.mark.compiled_only
@pytest.mark.parametrize("max_iter", [1, 3, 40])
def test_max_iter_counts_both_runs(max_iter):
    found = quietly(without_gap(), max_iter=max_iter, tol=1e-15)
    assert found.n_iter == max_iter
    assert found.stop_reason == "max_iter"


def test_a_callback_that_stops_the_try_stops_all():
    found = complete(exact().observations, callback=lambda iteration: iteration.iteration == 2)
    assert (found.stop_reason, found.n_iter, found.options["method"]) == ("callback", 2, "two-sided")


@pytest.mark.compiled_only
def test_a_run_that_goes_on_from_another_is_not_replaced():
    observations = exact().observations
    start = quietly(observations, method="two-sided", max_iter=5)
    found = quietly(observations, start=start)
    assert found.options["method"] == "two-sided"
    np.testing.assert_array_equal(found.left, quietly(observations, method="two-sided", start=start).left)


def test_a_start_must_be_a_result():
    left, right = np.ones((60, 1)), np.ones((45, 1))
    with pytest.raises(InputError, match="start must be a CompletionResult, got tuple"):
        complete(exact().observations, 1, start=(left, right))  # type: ignore[arg-type]
