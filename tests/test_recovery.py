"""Does it complete matrices: success rates over seeds on random low-rank problems, and error on real ratings."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from problems import low_rank_problem

from fastrfm.errors import NotConvergedWarning, RankWarning
from fastrfm.metrics import rmse
from fastrfm.observations import Observations
from fastrfm.solvers.completion import complete
from fastrfm.solvers.offsets import fit_offsets
from fastrfm.store import open_observations

MOVIELENS = Path(__file__).resolve().parent.parent / "datasets" / "movielens-small.h5"

pytestmark = pytest.mark.compiled_only


@pytest.mark.parametrize("method", ["dense", "factored"])
def test_low_rank_matrices_are_recovered(method):
    errors = []
    for seed in range(10):
        problem = low_rank_problem(300, 200, 3, oversampling=4.0, condition_number=10.0, seed=seed)
        result = complete(problem.observations, rank=3 if seed % 2 else None, method=method)
        errors.append(problem.relative_error(result.to_dense()))
        assert result.stop_reason == "converged"
        if errors[-1] < 1e-6:
            assert result.rank == 3
    assert sum(error < 1e-6 for error in errors) >= 9, errors


@pytest.fixture(scope="module")
def ratings() -> tuple[Observations, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Nine tenths of the ratings, and (rows, columns, values) of the rest."""
    train, test = open_observations(MOVIELENS).split(0.1, random_state=0)
    return train, test.to_coo()


def test_offsets_alone_predict_ratings(ratings):
    train, (rows, cols, values) = ratings
    assert 0.87 < rmse(fit_offsets(train).at(rows, cols), values) < 0.92


def test_low_rank_structure_predicts_ratings_better(ratings):
    train, (rows, cols, values) = ratings
    result = complete(train, offsets=True, agop_power=0.25, ridge=14.0)
    found = rmse(result.predict(rows, cols), values)
    assert found <= 0.88
    assert found < rmse(fit_offsets(train).at(rows, cols), values) - 0.005


def test_a_rank_beyond_the_first_block_is_found():
    problem = low_rank_problem(300, 260, 50, oversampling=2.0, seed=0)
    result = complete(problem.observations, method="factored", tol=1e-6)
    assert result.stop_reason == "converged"
    assert result.rank == 50
    assert problem.relative_error(result.to_dense()) < 1e-5


def test_more_directions_than_are_followed_are_told(monkeypatch):
    monkeypatch.setattr("fastrfm.solvers.factored.FIRST_BLOCK", 2)
    monkeypatch.setattr("fastrfm.solvers.factored.LARGEST_BLOCK", 4)
    noise = Observations.from_dense(np.random.RandomState(0).standard_normal((20, 15)))
    with pytest.warns(RankWarning, match="more than the 4 directions"):
        result = complete(noise, method="factored", ridge=0.01, agop_power=0.25)
    assert result.rank == 4


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_no_rule_makes_the_estimate_explode(seed):
    # Directions beyond the true rank get penalties next to nothing here: pivots must not become pure rounding.
    problem = low_rank_problem(100, 86, 2, oversampling=3.98, condition_number=2.0, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)
        result = complete(problem.observations, method="factored", smoothing="geometric", max_iter=800)
    assert np.linalg.norm(result.to_dense()) < 2.0 * np.linalg.norm(problem.truth)
