"""Outliers, offsets fitted with the rest, and penalties by counts: against twins, and that each does what it is for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fastrfm import MatrixCompletion, Observations, complete
from fastrfm.cli import main
from fastrfm.errors import InputError
from fastrfm.results import CompletionResult
from fastrfm.solvers.count_scales import count_scales, rescaled
from fastrfm.solvers.offsets import fit_offsets
from fastrfm.solvers.outliers import huber_losses, huber_threshold, huber_weights
from fastrfm.store import read_result, write_observations

AUTO = dict.fromkeys(("agop_power", "ridge", "offsets"), "auto")


def problem(
    seed: int = 0, outliers: float = 0.05, shape: tuple[int, int] = (100, 70)
) -> tuple[Observations, np.ndarray]:
    """Return entries of a matrix of rank 3 with noise, a share of them grossly wrong, and the matrix itself."""
    rng = np.random.RandomState(seed)
    truth = rng.standard_normal((shape[0], 3)) @ rng.standard_normal((3, shape[1]))
    shown = truth + 0.3 * rng.standard_normal(shape)
    wrong = rng.random_sample(shape) < outliers
    shown[wrong] += 20.0 * rng.choice([-1.0, 1.0], wrong.sum())
    return Observations.from_dense(np.where(rng.random_sample(shape) < 0.5, shown, np.nan)), truth


def error(result: CompletionResult, truth: np.ndarray) -> float:
    return float(np.sqrt(np.mean((result.to_dense() - truth) ** 2)))


# --- Huber's loss -----------------------------------------------------------------------------------------------------


def test_weights_and_losses_are_those_of_the_definition():
    residuals = np.array([-8.0, -1.0, 0.0, 0.5, 2.0, 1.0, -1.0])
    threshold = huber_threshold(residuals, 1.345)
    assert threshold == pytest.approx(1.345 * 1.4826)
    weights, losses = huber_weights(residuals, 1.345), huber_losses(residuals, 1.345)
    for residual, weight, loss in zip(residuals, weights, losses, strict=True):
        size = abs(residual)
        assert weight == pytest.approx(min(1.0, threshold / size) if size else 1.0)
        assert loss == pytest.approx(size**2 if size <= threshold else threshold * (2 * size - threshold))
    np.testing.assert_allclose(huber_weights(1e6 * residuals, 1.345), weights)  # whatever the unit


def test_residuals_that_are_mostly_zero_leave_weights_above_zero():
    assert np.array_equal(huber_weights(np.zeros(5), 1.345), np.ones(5))
    weights = huber_weights(np.array([0.0, 0.0, 0.0, 7.0]), 1.345)
    assert np.array_equal(weights[:3], np.ones(3)) and 0.0 < weights[3] < 1e-12


@pytest.mark.compiled_only
@pytest.mark.parametrize("method", ["factored", "dense"])
def test_the_answer_is_the_fixed_point_of_weighted_fits(method):
    observations, _ = problem(shape=(60, 40))
    options = {"ridge": 8.0, "agop_power": 0.25, "method": method, "tol": 1e-3}
    result = complete(observations, huber=1.345, **options)
    rows, cols, values = observations.to_coo()
    weights = huber_weights(values - result.predict(rows, cols), 1.345)
    again = complete(observations.with_weights(weights), **options)
    scale = np.linalg.norm(result.to_dense())
    assert np.linalg.norm(again.to_dense() - result.to_dense()) < 5e-3 * scale
    assert np.linalg.norm(complete(observations, **options).to_dense() - result.to_dense()) > 0.1 * scale


@pytest.mark.compiled_only
@pytest.mark.parametrize("seed", range(3))
def test_outliers_hardly_matter(seed):
    observations, truth = problem(seed)
    clean, _ = problem(seed, outliers=0.0)
    plain, robust, best = (
        complete(observations, **AUTO),
        complete(observations, huber=1.345, **AUTO),
        complete(clean, **AUTO),
    )
    assert error(robust, truth) < 0.4 * error(plain, truth)
    assert error(robust, truth) < 2.5 * error(best, truth)
    assert robust.rank == 3 and robust.options["huber"] == 1.345


@pytest.mark.compiled_only
def test_without_outliers_little_is_lost():
    clean, truth = problem(outliers=0.0)
    assert error(complete(clean, huber=1.345, **AUTO), truth) < 1.35 * error(complete(clean, **AUTO), truth)


@pytest.mark.compiled_only
def test_offsets_are_fitted_with_the_weights_of_the_last_fit():
    observations, _ = problem()
    result = complete(observations, offsets=True, huber=1.345, ridge=5.0, agop_power=0.25, tol=1e-3)
    rows, cols, values = observations.to_coo()
    weights = huber_weights(values - result.predict(rows, cols), 1.345)
    wanted = fit_offsets(observations.with_weights(weights))
    np.testing.assert_allclose(result.offsets.rows, wanted.rows, atol=0.01)
    assert abs(result.offsets.rows - fit_offsets(observations).rows).max() > 0.1


@pytest.mark.compiled_only
def test_the_unit_does_not_matter():
    observations, _ = problem(shape=(40, 30))
    options = {"huber": 1.345, "agop_power": 0.25, "method": "factored", "tol": 1e-3}
    one = complete(observations, ridge=5.0, **options)
    other = complete(observations.with_values(1e3 * observations.values), ridge=5e3, **options)
    np.testing.assert_allclose(other.to_dense(), 1e3 * one.to_dense(), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"huber": 1.3}, "ridge"),
        ({"huber": 0.0, "ridge": 1.0}, "huber"),
        ({"huber": 1.3, "method": "two-sided", "ridge": 1.0}, "two-sided"),
        ({"count_power": 1.5}, "count_power"),
        ({"count_power": 0.5, "method": "two-sided"}, "two-sided"),
        ({"offsets": "together"}, "offsets"),
    ],
)
def test_wrong_options_are_refused(options, word):
    observations, _ = problem(shape=(12, 8))
    with pytest.raises(InputError, match=word):
        complete(observations, **options)


# --- joint offsets ----------------------------------------------------------------------------------------------------


@pytest.mark.compiled_only
def test_joint_offsets_are_those_of_what_the_rest_leaves():
    rng = np.random.RandomState(3)
    base, _ = problem(outliers=0.0)
    rows, cols, values = base.to_coo()
    observations = base.with_values(values + 3.0 + rng.standard_normal(100)[rows] + rng.standard_normal(70)[cols])
    options = {"ridge": 4.0, "agop_power": 0.25, "tol": 1e-4}
    result = complete(observations, offsets="joint", **options)
    low_rank = np.einsum("ij,ij->i", result.left[rows], result.right[cols])
    wanted = fit_offsets(observations.with_values(observations.values - low_rank))
    np.testing.assert_allclose(result.offsets.rows, wanted.rows, atol=6e-3)
    np.testing.assert_allclose(result.offsets.cols, wanted.cols, atol=6e-3)
    before = complete(observations, offsets=True, **options)
    assert result.masked_rmse < before.masked_rmse
    assert result.options["offsets"] == "joint" and result.n_iter > before.n_iter


# --- counts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count_power", [0.5, 1.0])
def test_scales_follow_the_counts_and_keep_the_weight(count_power):
    observations, _ = problem(shape=(30, 20))
    rows, cols, values = observations.to_coo()
    a, b = count_scales(observations, count_power)
    ratio = (a[3] / a[5]).item()
    counts = observations.row_counts
    assert ratio == pytest.approx((counts[3] / counts[5]) ** (count_power / 2))
    scaled = rescaled(observations, a, b)
    assert scaled.weights.sum() == pytest.approx(observations.n_observed)
    np.testing.assert_allclose(scaled.values, values * a[rows, 0] * b[cols, 0])
    np.testing.assert_allclose(scaled.weights * np.square(a[rows, 0] * b[cols, 0]), 1.0)


@pytest.mark.compiled_only
def test_the_penalty_is_that_of_als_with_weighted_lambda():
    # At agop_power 1/4 and count_power 1: ½ Σ (y − u·v)² + λ/2 (Σ n_i |u_i|² + Σ n_j |v_j|²) up to a common factor.
    observations, _ = problem(shape=(30, 20), outliers=0.0)
    result = complete(observations, ridge=1.5, agop_power=0.25, count_power=1.0, tol=1e-5, max_iter=100_000)
    a, b = count_scales(observations, 1.0)
    u, sigma, vt = np.linalg.svd(a * result.to_dense() * b.T, full_matrices=False)
    k = result.rank
    left, right = u[:, :k] * np.sqrt(sigma[:k]) / a, vt[:k].T * np.sqrt(sigma[:k]) / b
    rows, cols, values = observations.to_coo()
    for _ in range(50):  # alternating ridge regressions from there hardly move
        for this, other, i, j, scale in ((left, right, rows, cols, a), (right, left, cols, rows, b)):
            for row in range(len(this)):
                features, own = other[j[i == row]], values[i == row]
                this[row] = np.linalg.solve(features.T @ features + 1.5 * scale[row] ** 2 * np.eye(k), features.T @ own)
    np.testing.assert_allclose(left @ right.T, result.to_dense(), atol=0.02 * np.abs(result.to_dense()).max())


# --- every way in -----------------------------------------------------------------------------------------------------


def interrupted(observations: Observations, options: dict, stop: int, path: Path) -> CompletionResult:
    """Return the completion of a run that was stopped at an iteration and went on from its checkpoint."""

    def cut(seen):
        if seen.iteration == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        complete(observations, checkpoint=path, every=10, callback=cut, **options)
    return complete(observations, checkpoint=path, every=10, resume=True, **options)


@pytest.mark.compiled_only
def test_checkpoints_of_rounds_go_on_to_the_same_bits(tmp_path):
    observations, _ = problem(shape=(40, 30))
    options = {"huber": 1.345, "offsets": "joint", "ridge": 5.0, "agop_power": 0.25, "tol": 1e-2}
    whole = complete(observations, **options)
    assert whole.n_iter > 40
    for stop in (12, whole.n_iter - 2):
        again = interrupted(observations, options, stop, tmp_path / f"{stop}.h5")
        np.testing.assert_array_equal(again.to_dense(), whole.to_dense())
        np.testing.assert_array_equal(again.history["change"], whole.history["change"])


@pytest.mark.compiled_only
def test_a_killed_automatic_run_with_outliers_goes_on_to_the_same_bits(tmp_path):
    observations, _ = problem(shape=(60, 40))
    options = {**AUTO, "huber": 1.345}
    whole = complete(observations, **options)
    for stop in (12, whole.n_iter // 2, whole.n_iter - 2):
        again = interrupted(observations, options, stop, tmp_path / f"{stop}.h5")
        np.testing.assert_array_equal(again.to_dense(), whole.to_dense())


@pytest.mark.compiled_only
def test_outliers_are_not_overlooked_where_the_rank_is_given():
    rng = np.random.default_rng(5)
    truth = rng.standard_normal((70, 2)) @ rng.standard_normal((2, 40)) + rng.standard_normal((70, 1))
    shown = np.where(rng.random(truth.shape) < 0.5, truth + 0.4 * rng.standard_normal(truth.shape), np.nan)
    observations = Observations.from_dense(shown)
    weighted = observations.with_weights(rng.uniform(0.2, 5.0, observations.n_observed))
    options = {"ridge": "auto", "agop_power": 0.25, "rank": 3}
    assert complete(observations, **options).options["method"] == "two-sided"  # which knows neither
    assert complete(observations, huber=1.345, **options).options["method"] == "factored"
    assert complete(weighted, **options).options["method"] == "factored"
    stopped = complete(weighted, callback=lambda seen: seen.iteration == 5, **options)
    assert stopped.stop_reason == "callback" and stopped.n_iter == 5
    exact = Observations.from_dense(np.where(np.isfinite(shown), truth, np.nan))
    assert complete(exact, huber=1.345, **options).options["method"] == "two-sided"


def test_iterations_count_on_from_round_to_round():
    observations, _ = problem(shape=(20, 14))
    seen: list[int] = []
    options = {"huber": 1.345, "offsets": "joint", "count_power": 0.5, "ridge": 5.0, "agop_power": 0.25, "tol": 0.1}
    result = complete(observations, callback=lambda now: seen.append(now.iteration), **options)
    assert result.n_iter > complete(observations, **{**options, "huber": None, "offsets": True}).n_iter
    assert seen == list(range(1, result.n_iter + 1)) and np.all(np.diff(result.history["seconds"]) >= 0.0)


@pytest.mark.compiled_only
def test_command_and_estimator_take_the_options(tmp_path):
    observations, _ = problem(shape=(40, 30))
    write_observations(tmp_path / "in.h5", observations)
    line = f"complete {tmp_path}/in.h5 -o {tmp_path}/out.h5 --ridge 5 --agop-power 0.25 --huber 1.345 --joint-offsets"
    found = CliRunner().invoke(main, [*line.split(), "--count-power", "0.5"])
    assert found.exit_code == 0, found.output
    assert "with joint offsets" in found.output and "huber 1.345" in found.output and "count-power 0.5" in found.output
    result = read_result(tmp_path / "out.h5")
    options = {"ridge": 5.0, "agop_power": 0.25, "huber": 1.345, "offsets": "joint", "count_power": 0.5}
    assert all(result.options[name] == value for name, value in options.items())
    model = MatrixCompletion(**options).fit(observations)
    np.testing.assert_array_equal(model.result_.to_dense(), result.to_dense())


def test_files_that_stay_on_disk_are_refused(tmp_path):
    from fastrfm import open_observations

    observations, _ = problem(shape=(40, 30))
    write_observations(tmp_path / "in.h5", observations)
    stored = open_observations(tmp_path / "in.h5", memory=600)
    for options in ({"huber": 1.3}, {"offsets": "joint"}, {"count_power": 1.0}):
        with pytest.raises(InputError, match="memory"):
            complete(stored, ridge=1.0, **options)
