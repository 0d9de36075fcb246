"""What ``method="auto"`` takes, keeps and falls back to."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from problems import Problem, low_rank_problem

from fastrfm.errors import InputError, NotConvergedWarning
from fastrfm.observations import Observations
from fastrfm.options import CompletionOptions
from fastrfm.results import CompletionResult
from fastrfm.solvers.choice import AUTO_DENSE_SIDE, choose_method, is_answer, noise_limit, options_of_try
from fastrfm.solvers.completion import complete
from fastrfm.solvers.monitor import Monitor
from fastrfm.solvers.two_sided import solve_two_sided


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
    _, _, tried = solve_two_sided(observations, options_of_try(options), noise_limit=noise_limit(options))
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


@pytest.mark.parametrize(
    ("rank", "kept"), [(None, {"converged", "callback"}), (2, {"converged", "callback", "max_iter"})]
)
def test_what_is_kept_of_a_try(rank, kept):
    options = CompletionOptions(rank=rank)
    monitor = Monitor(options, 1.0, None)
    for reason in ("converged", "callback", "max_iter", "stalled"):
        monitor.stop_reason = reason
        assert is_answer(monitor, options) == (reason in kept)


def test_a_stalled_try_with_a_rank_is_followed_by_factored(monkeypatch):
    def stalled(work, options, callback, start, noise_limit, checkpoint):
        assert noise_limit == np.inf  # with a rank noise is no reason to give up
        left, right, monitor = solve_two_sided(work, options, callback, start, noise_limit, checkpoint)
        monitor.stop_reason = "stalled"
        return left, right, monitor

    monkeypatch.setattr("fastrfm.solvers.completion.solve_two_sided", stalled)
    found = quietly(exact().observations, 3, max_iter=5)
    assert (found.options["method"], found.n_iter) == ("two-sided", 5)  # nothing is left for a second run
    monkeypatch.setattr("fastrfm.solvers.completion.options_of_try", lambda options: replace(options, max_iter=2))
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
