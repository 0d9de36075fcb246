"""Reweighted least squares with spectral decompositions: lin-RFM's iterates, naive twins, recovery, bad input."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from problems import low_rank_problem, observe

from fastrfm import complete
from fastrfm.baselines import hm_irls, irls
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


def naive_harmonic_mean(values, mask, rank, schatten_p, n_iter):
    """Yield the iterates, with the whole inverse weight as the mean of two Kronecker products."""
    n_rows, n_cols = values.shape
    estimate, smoothing, seen = np.zeros(values.shape), np.linalg.norm(values[mask]), np.flatnonzero(mask)
    for _ in range(n_iter):
        powers = []
        for gram in (estimate @ estimate.T, estimate.T @ estimate):
            eigenvalues, vectors = np.linalg.eigh(gram + smoothing**2 * np.eye(len(gram)))
            powers.append((vectors * eigenvalues ** (1.0 - schatten_p / 2.0)) @ vectors.T)
        inverse = 0.5 * (np.kron(powers[0], np.eye(n_cols)) + np.kron(np.eye(n_rows), powers[1]))
        duals = np.linalg.solve(inverse[np.ix_(seen, seen)], values[mask])
        estimate = (inverse[:, seen] @ duals).reshape(values.shape)
        smoothing = min(smoothing, np.linalg.svd(estimate, compute_uv=False)[rank])
        yield estimate


@pytest.mark.parametrize("schatten_p", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(7, 9), (9, 7)])
def test_hm_irls_is_its_twin(schatten_p, shape):
    problem, seen = low_rank_problem(*shape, 2, oversampling=1.4, condition_number=2.0), []
    result = hm_irls(
        problem.observations, 2, schatten_p=schatten_p, callback=lambda n, x: seen.append(x.copy()) or n == 4
    )
    assert result.stop_reason == "callback" and result.rank == 2 and len(seen) == 4
    for ours, theirs in zip(seen, naive_harmonic_mean(problem.truth, problem.mask, 2, schatten_p, 4), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-9)
    larger = []
    hm_irls(
        observe(1e9 * problem.truth, problem.mask), 2, schatten_p=schatten_p,
        callback=lambda n, x: larger.append(x.copy()) or n == 4,
    )  # fmt: skip
    np.testing.assert_allclose(larger[-1], 1e9 * seen[-1], atol=1.0)


def test_hm_irls_recovers_from_few_entries():
    errors = []
    for seed in range(3):
        problem = low_rank_problem(30, 24, 2, oversampling=2.0, condition_number=2.0, seed=seed)
        result = hm_irls(problem.observations, 2)
        errors.append(problem.relative_error(result.to_dense()) if result.stop_reason == "converged" else np.inf)
        assert result.n_iter == len(result.history["seconds"])
    assert sum(error < 1e-7 for error in errors) >= 2, errors


@pytest.mark.parametrize(
    ("rank", "options", "match"),
    [
        (0, {}, "rank"), (7, {}, "rank"), (2, {"schatten_p": -1.0}, "schatten_p"), (2, {"tol": 0.0}, "tol"),
        (2, {"max_iter": 0}, "max_iter"), (2, {"max_seconds": 0.0}, "max_seconds"),
    ],
)  # fmt: skip
def test_hm_irls_refuses(rank, options, match):
    problem = low_rank_problem(9, 7, 2, oversampling=1.5)
    with pytest.raises(InputError, match=match):
        hm_irls(problem.observations, rank, **options)


def test_hm_irls_refuses_what_is_large():
    with pytest.raises(InputError, match="8192"):
        hm_irls(observe(np.ones((100, 82)), np.ones((100, 82), dtype=bool)), 1)
    problem = low_rank_problem(9, 7, 2, oversampling=1.5)
    with pytest.warns(NotConvergedWarning, match="max_iter"):
        assert hm_irls(problem.observations, 2, max_iter=1).stop_reason == "max_iter"
    assert hm_irls(problem.observations, 2, max_seconds=1e-9).stop_reason == "max_seconds"
