"""Automatic choice: exact data are recognised, noisy ones judged on entries held out, and no hidden entry is seen."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from problems import low_rank_problem

from fastrfm import MatrixCompletion, Observations, complete
from fastrfm.errors import InputError
from fastrfm.options import AUTOMATIC, CompletionOptions
from fastrfm.results import CompletionResult
from fastrfm.solvers.descent import Stage, follow
from fastrfm.solvers.selection import hold_out, scale_bounds
from fastrfm.store import read_result, write_result

pytestmark = pytest.mark.compiled_only


def noisy(n_rows: int = 120, n_cols: int = 70, noise: float = 0.5, seed: int = 0) -> tuple[Observations, np.ndarray]:
    """Return about half the entries of a noisy matrix of rank 3 with offsets, and the matrix without noise."""
    rng = np.random.RandomState(seed)
    truth = (
        rng.standard_normal((n_rows, 3)) @ rng.standard_normal((3, n_cols)) + 3.0 + rng.standard_normal(n_rows)[:, None]
    )
    shown = np.where(rng.random_sample(truth.shape) < 0.5, truth + noise * rng.standard_normal(truth.shape), np.nan)
    return Observations.from_dense(shown), truth


def automatic(observations: Observations, **options: object) -> CompletionResult:
    return complete(observations, **{**AUTOMATIC, **options})


def error(result: CompletionResult, truth: np.ndarray) -> float:
    return float(np.sqrt(np.mean((result.to_dense() - truth) ** 2)))


# --- exact data -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_exact_data_are_recognised_and_solved(seed):
    problem = low_rank_problem(100, 60, 3, oversampling=2.5, seed=seed)
    result = automatic(problem.observations)
    assert result.selection is None and result.options["ridge"] == 0.0 and result.rank == 3
    assert problem.relative_error(result.to_dense()) < 1e-12


def test_exact_data_on_a_scale_are_solved_too():
    rng = np.random.RandomState(0)
    groups, levels = rng.randint(0, 3, 150), np.array([[1.0, 5.0, 3.0], [5.0, 2.0, 1.0], [2.0, 1.0, 5.0]])
    truth = levels[groups][:, rng.randint(0, 3, 90)]
    result = automatic(Observations.from_dense(np.where(rng.random_sample(truth.shape) < 0.4, truth, np.nan)))
    assert result.bounds == (1.0, 5.0)
    np.testing.assert_allclose(result.to_dense(), truth, atol=1e-8)


# --- noisy data -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::fastrfm.errors.NotConvergedWarning")
def test_the_choice_is_nearly_as_good_as_the_best_ridge_in_hindsight():
    observations, truth = noisy()
    result = automatic(observations)
    fits = result.selection.fits
    assert result.options["ridge"] > 0.0
    assert fits["rmse"][result.selection.chosen] == fits["rmse"].min()
    hindsight = min(
        error(complete(observations, ridge=ridge, agop_power=power, offsets=True, max_iter=300), truth)
        for ridge in (1.0, 3.0, 6.0, 12.0, 25.0, 50.0, 100.0)
        for power in (0.25, 0.375)
    )
    assert error(result, truth) < 1.1 * hindsight


def nearly_exact(noise: float, seed: int = 0) -> tuple[Observations, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal((70, 2)) @ rng.standard_normal((2, 40)) + rng.standard_normal((70, 1))
    shown = truth + noise * rng.standard_normal(truth.shape)
    return Observations.from_dense(np.where(rng.random(truth.shape) < 0.5, shown, np.nan)), truth


@pytest.mark.compiled_only
@pytest.mark.parametrize("noise", [0.02, 0.05, 0.4])
def test_small_noise_is_completed_nearly_as_well_as_with_the_rank_known(noise):
    observations, truth = nearly_exact(noise)
    result = automatic(observations)
    known = complete(observations, rank=3, method="two-sided")
    assert error(result, truth) < 1.35 * error(known, truth)
    fits, chosen = result.selection.fits, result.selection.chosen
    assert fits["rmse"][chosen] == fits["rmse"].min() < fits["rmse"][: fits["n_iter"].size // 2].min()


@pytest.mark.compiled_only
def test_large_noise_and_much_work_need_no_limits(monkeypatch):
    def refuse(*args):
        raise AssertionError("went to a limit")

    with monkeypatch.context() as patched:
        patched.setattr("fastrfm.solvers.selection._Search._limit", refuse)
        automatic(nearly_exact(1.0)[0])
        patched.setattr("fastrfm.solvers.selection._LIMIT_WORK", 1e5)
        assert automatic(nearly_exact(0.05)[0]).stop_reason == "schedule"
    options = {"ridge": "auto", "agop_power": 0.5, "offsets": False}
    for given, found in {"auto": "dense", "factored": "factored"}.items():
        assert complete(nearly_exact(0.05)[0], method=given, **options).options["method"] == found


@pytest.mark.compiled_only
def test_a_limit_that_takes_long_is_cut_where_it_was_judged(monkeypatch):
    monkeypatch.setattr("fastrfm.solvers.selection.LIMIT_STEPS", 25)
    monkeypatch.setattr("fastrfm.solvers.automatic.LIMIT_STEPS", 25)
    result = automatic(nearly_exact(0.05)[0])
    assert result.stop_reason == "schedule" and result.n_iter == 25 and result.options["max_iter"] > 25


@pytest.mark.parametrize("seed", [1, 2])
def test_offsets_are_left_out_where_they_do_harm(seed):
    rng = np.random.RandomState(seed)
    truth = rng.standard_normal((150, 2)) @ rng.standard_normal((2, 80))
    shown = np.where(rng.random_sample(truth.shape) < 0.08, truth + 0.05 * rng.standard_normal(truth.shape), np.nan)
    result = automatic(Observations.from_dense(shown))
    fits = result.selection.fits
    best = [fits["rmse"][fits["offsets"] == offsets].min() for offsets in (False, True)]
    assert result.options["offsets"] == (best[1] < best[0])
    assert result.offsets is None or result.options["offsets"]


def test_predicted_entries_are_those_held_out_and_give_the_rmse():
    observations, _ = noisy()
    result = automatic(observations)
    selection = result.selection
    dense = np.full(observations.shape, np.nan)
    rows, cols, values = observations.to_coo()
    dense[rows, cols] = values
    np.testing.assert_array_equal(dense[selection.rows, selection.cols], selection.values)
    square = (selection.predicted - selection.values) ** 2
    assert selection.rmse == pytest.approx(np.sqrt(square.mean()), rel=1e-12)
    assert selection.fits["standard_error"][selection.chosen] == pytest.approx(square.std() / np.sqrt(square.size))
    assert selection.chosen == np.argmin(selection.fits["rmse"])


def test_scaling_the_data_scales_the_answer_and_chooses_alike():
    observations, _ = noisy()
    one = automatic(observations)
    scaled = automatic(observations.with_values(100.0 * observations.values))
    np.testing.assert_allclose(scaled.to_dense(), 100.0 * one.to_dense(), rtol=1e-5)
    np.testing.assert_allclose(
        scaled.options["ridge"], one.options["ridge"] * 100.0 ** (4 * one.options["agop_power"]), rtol=1e-6
    )
    assert scaled.options["agop_power"] == one.options["agop_power"]


def test_any_number_of_threads_gives_the_same_bits():
    observations, _ = noisy()
    np.testing.assert_array_equal(automatic(observations, n_threads=1).left, automatic(observations, n_threads=2).left)


def test_one_standard_error_takes_no_higher_rank():
    observations, _ = noisy(noise=1.5)
    best, sparse = automatic(observations), automatic(observations, one_standard_error=True)
    fits, chosen = sparse.selection.fits, sparse.selection.chosen
    limit = best.selection.rmse**2 + fits["standard_error"][best.selection.chosen]
    assert fits["rmse"][chosen] ** 2 <= limit
    assert fits["rank"][chosen] == fits["rank"][fits["rmse"] ** 2 <= limit].min()
    assert sparse.rank <= best.rank


@pytest.mark.parametrize(("given", "name"), [({"agop_power": 0.375}, "agop_power"), ({"offsets": False}, "offsets")])
def test_what_is_given_is_kept(given, name):
    observations, _ = noisy()
    result = automatic(observations, **given)
    assert result.options[name] == given[name] and result.options["ridge"] > 0.0


def test_a_rank_is_kept():
    observations, _ = noisy()
    result = automatic(observations, rank=2)
    assert result.rank <= 2 and result.selection.fits["rank"].max() <= 2


def test_with_a_ridge_nothing_is_chosen_and_the_rest_is_plain():
    observations, _ = noisy()
    result, plain = automatic(observations, ridge=5.0), complete(observations, ridge=5.0)
    assert result.selection is None
    np.testing.assert_array_equal(result.left, plain.left)


def test_few_entries_are_completed_plainly():
    table = [[1.0, 2.0, np.nan], [2.0, 4.1, 6.0], [np.nan, 6.0, 9.0]]
    result, plain = automatic(Observations.from_dense(table)), complete(Observations.from_dense(table))
    assert result.selection is None
    np.testing.assert_array_equal(result.to_dense(), plain.to_dense())


def test_validation_entries_are_what_is_judged_on_and_fitted_in_the_end():
    observations, _ = noisy()
    cols = observations.to_coo()[1]
    latest = cols >= 60
    early, late = observations.select(~latest), observations.select(latest)
    result = automatic(early, validation=late)
    np.testing.assert_array_equal(result.selection.values, late.values)
    assert result.n_observed == observations.n_observed
    with pytest.raises(InputError, match="validation goes with a ridge"):
        complete(early, ridge=1.0, validation=late)
    with pytest.raises(InputError, match="validation must be Observations of a 120 x 70"):
        automatic(early, validation=Observations.from_dense([[1.0]]))
    with pytest.raises(InputError, match="in both"):
        automatic(observations, validation=late)


# --- pieces -----------------------------------------------------------------------------------------------------------


def test_hidden_truth_changes_nothing():
    observations, _ = noisy()
    kept, hidden = observations.split(0.2, random_state=5)
    other = hidden.with_values(hidden.values + 100.0)
    assert not np.array_equal(other.values, hidden.values)
    np.testing.assert_array_equal(automatic(kept).left, automatic(kept).left)
    held = hold_out(kept, 0)
    assert held is not None
    seen = set(zip(*(axis.tolist() for axis in held[0].to_coo()[:2]), strict=True))
    assert not seen & set(zip(*(axis.tolist() for axis in held[1].to_coo()[:2]), strict=True))
    assert held[0].n_observed + held[1].n_observed == kept.n_observed


def test_a_scale_is_seen_where_values_pile_up_at_both_ends():
    rng = np.random.RandomState(0)
    stars = Observations.from_dense(rng.randint(1, 6, (200, 60)).astype(float))
    assert scale_bounds(stars) == (1.0, 5.0)
    assert scale_bounds(Observations.from_dense(rng.standard_normal((200, 60)))) is None
    assert scale_bounds(Observations.from_dense(np.abs(rng.standard_normal((200, 60))).clip(0.5))) is None
    assert scale_bounds(Observations.from_dense(np.ones((200, 60)))) is None


@pytest.mark.parametrize("bounds", [(5.0, 1.0), (1.0,), "wide", (0.0, np.inf), 3])
def test_unusable_bounds_are_refused(bounds):
    with pytest.raises(InputError, match="bounds must be two finite numbers"):
        CompletionOptions(bounds=bounds)


def test_given_bounds_cut_predictions():
    observations, _ = noisy()
    result = complete(observations, ridge=3.0, bounds=(0.0, 4.0))
    assert result.bounds == (0.0, 4.0) and result.to_dense().min() == 0.0 and result.to_dense().max() == 4.0
    assert complete(observations, ridge=3.0).bounds is None


def test_a_schedule_goes_on_from_a_checkpoint_to_the_same_bits(tmp_path):
    observations, _ = noisy()
    state = tmp_path / "state.h5"
    undisturbed = automatic(observations)

    def stop(seen):
        if seen.iteration == 150 or (seen.iteration == undisturbed.n_iter - 2 and seen.smoothing > 1e-3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        complete(observations, **AUTOMATIC, callback=stop, checkpoint=state, every=3)
    again = complete(observations, **AUTOMATIC, checkpoint=state, every=3, resume=True)
    np.testing.assert_array_equal(again.left, undisturbed.left)
    np.testing.assert_array_equal(again.right, undisturbed.right)
    np.testing.assert_array_equal(again.selection.fits["rmse"], undisturbed.selection.fits["rmse"])
    assert again.options == undisturbed.options and again.n_iter == undisturbed.n_iter


def test_following_a_long_stage_reaches_the_limit_of_factored():
    observations, _ = noisy()
    options = CompletionOptions(ridge=20.0, agop_power=0.25, method="factored")
    left, right, monitor = follow(observations, [Stage(0.25, 20.0, 100)], options)
    limit = complete(observations, ridge=20.0, agop_power=0.25, method="factored").to_dense()
    assert np.linalg.norm(left @ right.T - limit) < 0.02 * np.linalg.norm(limit)  # twice the tolerance of each
    assert monitor.stop_reason == "schedule" and monitor.n_iter == 100
    assert monitor.history()["change"][-1] < 1e-3


def test_a_chosen_result_survives_the_file(tmp_path):
    result = automatic(noisy()[0])
    write_result(tmp_path / "r.h5", result)
    back = read_result(tmp_path / "r.h5")
    assert back.options == result.options and dataclasses.asdict(back)["bounds"] == result.bounds
    np.testing.assert_array_equal(back.selection.predicted, result.selection.predicted)


def test_the_estimator_chooses_by_default():
    observations, truth = noisy()
    table = np.full(truth.shape, np.nan)
    rows, cols, values = observations.to_coo()
    table[rows, cols] = values
    model = MatrixCompletion().fit(table)
    np.testing.assert_array_equal(model.result_.left, automatic(observations).left)
