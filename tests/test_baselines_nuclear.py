"""Soft-impute: the subgradient condition and the duality gap, lin-RFM's minimiser, its path, recovery, bad input."""

from __future__ import annotations

import numpy as np
import pytest
from problems import low_rank_problem, observe

from fastrfm import complete
from fastrfm.baselines import nuclear_norm, nuclear_norm_path
from fastrfm.baselines.nuclear import SoftImpute
from fastrfm.errors import InputError, NotConvergedWarning


def relative_gap(values, mask, estimate, ridge):
    """Return (primal − dual) / primal, with the dual point that the residual gives."""
    residual = np.where(mask, values - estimate, 0.0)
    primal = 0.5 * np.square(residual).sum() + ridge * np.linalg.norm(estimate, "nuc")
    dual = residual * min(1.0, ridge / np.linalg.norm(residual, 2))
    return (primal - np.vdot(dual, np.where(mask, values, 0.0)) + 0.5 * np.square(dual).sum()) / primal


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01])
@pytest.mark.parametrize("shape", [(14, 11), (11, 14)])
def test_minimiser_is_optimal(share, shape):
    problem = low_rank_problem(*shape, 2, oversampling=1.6, condition_number=2.0, seed=1)
    filled = np.where(problem.mask, problem.truth, 0.0)
    ridge = share * np.linalg.norm(filled, 2)
    result = nuclear_norm(problem.observations, ridge=ridge, tol=1e-10)
    estimate = result.to_dense()
    assert result.stop_reason == "converged" and 0 < result.rank <= 11
    assert abs(relative_gap(problem.truth, problem.mask, estimate, ridge)) < 1e-7
    # The residual is λ (U Vᵀ + W) with W orthogonal to U and V and of norm at most 1.
    dual = np.where(problem.mask, problem.truth - estimate, 0.0) / ridge
    left, right = result.left / result.singular_values, result.right
    np.testing.assert_allclose(dual @ right, left, atol=1e-5)
    np.testing.assert_allclose(dual.T @ left, right, atol=1e-5)
    assert np.linalg.norm(dual, 2) < 1.0 + 1e-5


@pytest.mark.compiled_only
def test_ridge_is_that_of_linear_rfm():
    problem = low_rank_problem(20, 15, 2, oversampling=2.0, condition_number=2.0, seed=2)
    ours, differences = nuclear_norm(problem.observations, ridge=0.2, tol=1e-10).to_dense(), []
    for tol in (1e-3, 1e-4):
        theirs = complete(problem.observations, method="dense", agop_power=0.25, ridge=0.2, tol=tol, max_iter=20_000)
        differences.append(np.linalg.norm(theirs.to_dense() - ours) / np.linalg.norm(ours))
    # Their penalty is smoothed with an ε in proportion to √tol, and so is the difference.
    assert differences[1] < 1e-2 and differences[1] == pytest.approx(differences[0] / np.sqrt(10.0), rel=0.1)


@pytest.mark.compiled_only
def test_few_singular_values_are_as_good_as_all():
    problem = low_rank_problem(200, 170, 3, oversampling=4.0, condition_number=2.0)
    ridge = 0.1 * SoftImpute(problem.observations, None).largest_ridge()
    result = nuclear_norm(problem.observations, ridge=ridge, tol=1e-8)
    assert result.rank < 20
    assert abs(relative_gap(problem.truth, problem.mask, result.to_dense(), ridge)) < 1e-6


def test_rank_and_start_and_scale():
    problem = low_rank_problem(14, 11, 3, oversampling=1.6, condition_number=2.0)
    assert nuclear_norm(problem.observations, ridge=1e-2, rank_max=2).rank == 2
    first = nuclear_norm(problem.observations, ridge=0.1, tol=1e-9)
    again = nuclear_norm(problem.observations, ridge=0.1, tol=1e-9, start=first)
    assert again.n_iter < first.n_iter / 3
    np.testing.assert_allclose(again.to_dense(), first.to_dense(), atol=1e-6)
    larger = nuclear_norm(observe(1e9 * problem.truth, problem.mask), ridge=0.1e9, tol=1e-9)
    np.testing.assert_allclose(larger.to_dense(), 1e9 * first.to_dense(), atol=10.0)
    nothing = nuclear_norm(problem.observations, ridge=1e3)
    assert nothing.rank == 0 and nothing.stop_reason == "converged" and not nothing.to_dense().any()


@pytest.mark.compiled_only
def test_path_recovers_what_the_nuclear_norm_recovers():
    errors = []
    for seed in range(3):
        problem = low_rank_problem(30, 30, 1, oversampling=8.0, seed=seed)
        result, path = nuclear_norm_path(problem.observations, n_ridges=12, least_share=1e-3, tol=1e-5)
        errors.append(problem.relative_error(result.to_dense()))
        assert len(set(map(len, path.values()))) == 1 and np.all(np.diff(path["ridge"]) < 0.0)
        assert path["rank"][0] <= 1 and path["rmse"].min() < 0.2 * path["rmse"][0]
    assert sum(error < 1e-2 for error in errors) >= 2, errors


def test_path_chooses_by_the_entries_held_out():
    rng = np.random.default_rng(0)
    problem = low_rank_problem(16, 12, 1, oversampling=4.0)
    noisy = observe(problem.truth + 0.3 * rng.standard_normal((16, 12)), problem.mask)
    result, path = nuclear_norm_path(noisy, n_ridges=8, least_share=1e-2, holdout=0.2, random_state=3)
    kept, _ = noisy.split(0.2, random_state=3)
    share = path["ridge"][np.argmin(path["rmse"])] / SoftImpute(kept, None).largest_ridge()
    assert result.options["ridge"] == pytest.approx(share * SoftImpute(noisy, None).largest_ridge())
    alone = nuclear_norm(noisy, ridge=result.options["ridge"], tol=1e-9)
    np.testing.assert_allclose(result.to_dense(), alone.to_dense(), atol=1e-3)


def test_ends():
    problem = low_rank_problem(9, 7, 2, oversampling=1.5)
    with pytest.warns(NotConvergedWarning, match="max_iter"):
        assert nuclear_norm(problem.observations, ridge=0.1, max_iter=1).stop_reason == "max_iter"
    assert nuclear_norm(problem.observations, ridge=0.1, max_seconds=1e-9).stop_reason == "max_seconds"
    assert nuclear_norm(problem.observations, ridge=0.1, callback=lambda n, x: n == 2).n_iter == 2
    _, path = nuclear_norm_path(problem.observations, max_seconds=1e-9)
    assert len(path["ridge"]) == 1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"ridge": 0.0}, "ridge"), ({"rank_max": 8}, "rank_max"), ({"tol": 0.0}, "tol"), ({"max_iter": 0}, "max_iter"),
        ({"max_seconds": 0.0}, "max_seconds"),
    ],
)  # fmt: skip
def test_refuses(options, match):
    observations = low_rank_problem(9, 7, 2, oversampling=1.5).observations
    with pytest.raises(InputError, match=match):
        nuclear_norm(observations, **{"ridge": 0.1, **options})
    other = nuclear_norm(observations.transposed(), ridge=0.1)
    with pytest.raises(InputError, match="shape"):
        nuclear_norm(observations, ridge=0.1, start=other)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n_ridges": 1}, "n_ridges"), ({"least_share": 0.0}, "least_share"), ({"holdout": 0.0}, "hold"),
        ({"random_state": -1}, "random_state"),
    ],
)  # fmt: skip
def test_path_refuses(options, match):
    with pytest.raises(InputError, match=match):
        nuclear_norm_path(low_rank_problem(9, 7, 2, oversampling=1.5).observations, **options)
