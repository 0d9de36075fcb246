"""Reweighted least squares with spectral decompositions: lin-RFM's iterates, naive twins, recovery, bad input."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from problems import low_rank_problem, observe

from fastrfm import complete
from fastrfm.baselines import irls
from fastrfm.errors import InputError, NotConvergedWarning

POWERS = (1.0, 0.5, 0.0, -2.0)


def naive_irls(values, mask, schatten_p, schedule, ridge=0.0):
    """Yield the iterates, each row by the weighted normal equations of its unobserved entries, or with the ridge."""
    n_rows, n_cols = values.shape
    estimate = np.zeros(values.shape)
    for smoothing in schedule:
        eigenvalues, vectors = np.linalg.eigh(estimate.T @ estimate + smoothing**2 * np.eye(n_cols))
        weights = (vectors * eigenvalues ** (schatten_p / 2.0 - 1.0)) @ vectors.T
        estimate = np.zeros(values.shape)
        for i in range(n_rows):
            seen = mask[i]
            if ridge:
                system = np.diag(seen.astype(float)) + ridge * weights
                estimate[i] = np.linalg.solve(system, np.where(seen, values[i], 0.0))
            else:
                estimate[i, seen] = values[i, seen]
                hidden = np.linalg.solve(weights[np.ix_(~seen, ~seen)], weights[np.ix_(~seen, seen)] @ values[i, seen])
                estimate[i, ~seen] = -hidden
        yield estimate


@pytest.mark.parametrize("schatten_p", POWERS)
@pytest.mark.parametrize("decomposition", ["svd", "eigh"])
@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_irls_is_its_twin(schatten_p, decomposition, ridge):
    problem = low_rank_problem(7, 9, 2, oversampling=1.3, condition_number=2.0)  # worked on transposed
    schedule, seen = [2.0, 1.0, 0.7, 0.5], []
    result = irls(
        problem.observations,
        schatten_p=schatten_p,
        ridge=ridge,
        smoothing=schedule,
        tol=1e-9,
        decomposition=decomposition,
        callback=lambda n, x: seen.append((n, x.copy())),
    )
    assert result.stop_reason == "schedule" and [n for n, _ in seen] == [1, 2, 3, 4]
    for (_, ours), theirs in zip(
        seen, naive_irls(problem.truth.T, problem.mask.T, schatten_p, schedule, ridge), strict=True
    ):
        np.testing.assert_allclose(ours, theirs.T, atol=1e-9)
    np.testing.assert_allclose(result.to_dense(), seen[-1][1], atol=1e-6)
    np.testing.assert_array_equal(result.history["smoothing"], schedule)


@pytest.mark.parametrize("schatten_p", POWERS)
def test_irls_takes_the_steps_of_linear_rfm(schatten_p):
    problem = low_rank_problem(24, 18, 2, oversampling=2.5, condition_number=3.0, seed=4)
    smoothing, seen = 0.5, []
    irls(
        problem.observations,
        schatten_p=schatten_p,
        smoothing=np.full(8, smoothing),
        callback=lambda n, x: seen.append(x.copy()),
    )
    for n_iter in range(1, 9):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotConvergedWarning)
            dense = complete(
                problem.observations,
                method="dense",
                agop_power=(2.0 - schatten_p) / 4.0,
                smoothing=smoothing,
                max_iter=n_iter,
                tol=1e-12,
            )
        difference = np.linalg.norm(dense.to_dense() - seen[n_iter - 1]) / np.linalg.norm(seen[n_iter - 1])
        assert dense.n_iter == n_iter and difference < 1e-7, n_iter


@pytest.mark.compiled_only
@pytest.mark.parametrize("decomposition", ["svd", "eigh"])
def test_irls_recovers(decomposition):
    errors = []
    for seed in range(3):
        problem = low_rank_problem(40, 30, 2, oversampling=4.0, condition_number=2.0, seed=seed)
        result = irls(problem.observations, schatten_p=0.0, smoothing="iterate_change", decomposition=decomposition)
        assert result.stop_reason == "converged"
        errors.append(problem.relative_error(result.to_dense()))
    assert sum(error < 1e-5 for error in errors) >= 2, errors


@pytest.mark.parametrize("schatten_p", [1.0, 0.0])
def test_irls_scales_and_falls_geometrically(schatten_p):
    problem = low_rank_problem(9, 7, 2, oversampling=1.5, condition_number=2.0)
    with pytest.warns(NotConvergedWarning, match="max_iter"):
        first = irls(problem.observations, schatten_p=schatten_p, max_iter=6)
        again = irls(problem.observations, schatten_p=schatten_p, max_iter=6)
        larger = irls(observe(1e9 * problem.truth, problem.mask), schatten_p=schatten_p, max_iter=6)
    np.testing.assert_array_equal(first.to_dense(), again.to_dense())
    np.testing.assert_allclose(larger.to_dense(), 1e9 * first.to_dense(), atol=1.0)
    np.testing.assert_allclose(first.history["smoothing"], problem.observations.norm / 1.05 ** np.arange(6))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"schatten_p": 2.0}, "schatten_p"), ({"schatten_p": np.nan}, "schatten_p"), ({"ridge": -1.0}, "ridge"),
        ({"smoothing": "sigma_next"}, "smoothing"), ({"smoothing": 0.0}, "smoothing"), ({"smoothing": []}, "smoothing"),
        ({"smoothing": [1.0, -1.0]}, "smoothing"), ({"decomposition": "qr"}, "decomposition"), ({"tol": -1.0}, "tol"),
        ({"max_iter": 0}, "max_iter"),
    ],
)  # fmt: skip
def test_irls_refuses(options, match):
    problem = low_rank_problem(9, 7, 2, oversampling=1.5)
    with pytest.raises(InputError, match=match):
        irls(problem.observations, **options)
