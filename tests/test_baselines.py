"""The reference methods: they equal naive twins, recover what they should, scale with the data, refuse bad input."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from problems import Problem, low_rank_problem, observe

from fastrfm.baselines import (
    deep_diagonal_network,
    deep_linear_network,
    search_deep_diagonal_network,
    search_deep_linear_network,
)
from fastrfm.baselines.deep_linear import Network
from fastrfm.errors import InputError, NotConvergedWarning


def small_problem(seed: int = 0, n_rows: int = 9, n_cols: int = 7, rank: int = 2) -> Problem:
    return low_rank_problem(n_rows, n_cols, rank, oversampling=1.4, condition_number=2.0, seed=seed)


def product(layers: list[np.ndarray]) -> np.ndarray:
    """Return W_L … W_1 of [W_1, …, W_L]."""
    whole = layers[0]
    for layer in layers[1:]:
        whole = layer @ whole
    return whole


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_network_steps_are_gradient_descent(depth, dtype):
    problem, step, atol = small_problem(), 0.05, 1e-12 if dtype == "float64" else 1e-5
    network = Network(problem.observations, depth, 5, 2.0, np.dtype(dtype))
    network.begin(0.7, 3)
    layers = [layer.T.astype(np.float64) for layer in network._layers] + [network._last.astype(np.float64)]
    assert np.linalg.norm(product(layers)) == pytest.approx(0.7, rel=1e-6)
    for _ in range(3):
        residual = np.where(problem.mask, product(layers) - problem.truth / 2.0, 0.0)
        np.testing.assert_allclose(
            network.residual(), residual[problem.mask], atol=1e-12 if dtype == "float64" else 1e-5
        )
        network.descend(step)
        gradients = []
        for t in range(depth):
            above = product(layers[t + 1 :]) if t + 1 < depth else np.eye(9)
            below = product(layers[:t]) if t else np.eye(7)
            gradients.append(above.T @ residual @ below.T)
        layers = [layer - step * gradient for layer, gradient in zip(layers, gradients, strict=True)]
    np.testing.assert_allclose(network.dense(), 2.0 * product(layers), atol=atol)


@pytest.mark.compiled_only
@pytest.mark.parametrize("depth", [2, 3, 4])
def test_deep_linear_networks_recover(depth):
    errors = []
    for seed in range(3):
        problem = low_rank_problem(40, 30, 2, oversampling=4.0, condition_number=2.0, seed=seed)
        result = deep_linear_network(problem.observations, depth=depth, step=1.5, tol=1e-3)
        assert result.stop_reason == "converged" and result.n_iter == len(result.history["seconds"])
        errors.append(problem.relative_error(result.to_dense()))
    assert sum(error < 1e-2 for error in errors) >= 2, errors


def test_deep_linear_network_scales_and_repeats():
    problem = small_problem()
    options = {"depth": 3, "init_scale": 1e-2, "tol": 1e-12, "max_iter": 40}
    with pytest.warns(NotConvergedWarning, match="max_iter"):
        first = deep_linear_network(problem.observations, **options)
        again = deep_linear_network(problem.observations, **options)
        larger = deep_linear_network(observe(1e9 * problem.truth, problem.mask), **options)
    np.testing.assert_array_equal(first.to_dense(), again.to_dense())
    np.testing.assert_allclose(larger.to_dense(), 1e9 * first.to_dense(), rtol=1e-9, atol=1.0)


@pytest.mark.compiled_only
def test_steps_that_are_too_long_are_halved():
    problem = small_problem()
    result = deep_linear_network(problem.observations, depth=2, step=64.0, init_scale=1e-2, tol=1e-2, max_iter=20_000)
    steps = result.history["step"]
    assert result.stop_reason == "converged" and steps[0] == 64.0
    assert set(steps) <= {64.0 / 2**k for k in range(21)} and result.options["step"] == steps[-1] < 64.0


def test_network_ends_when_asked():
    problem, seen = small_problem(), []

    def watch(n_iter, estimate):
        seen.append((n_iter, estimate))
        return n_iter == 3

    result = deep_linear_network(problem.observations, callback=watch)
    assert result.stop_reason == "callback" and [n for n, _ in seen] == [1, 2, 3]
    assert seen[-1][1].shape == (9, 7)
    np.testing.assert_allclose(
        np.sqrt(np.mean((seen[-1][1] - problem.truth)[problem.mask] ** 2)), result.history["masked_rmse"][-1]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a limit that was asked for is no trouble
        assert deep_linear_network(problem.observations, max_seconds=1e-9).stop_reason == "max_seconds"


@pytest.mark.parametrize(
    "options",
    [
        {"depth": 1}, {"depth": 2.5}, {"width": 0}, {"step": 0.0}, {"step": "fast"}, {"init_scale": -1.0}, {"tol": 0.0},
        {"max_iter": 0}, {"max_seconds": 0.0}, {"dtype": "float16"}, {"n_threads": 0},
    ],
)  # fmt: skip
def test_deep_linear_network_refuses(options):
    with pytest.raises(InputError, match=next(iter(options))):
        deep_linear_network(small_problem().observations, **options)


def test_baselines_refuse_observations():
    observations = small_problem().observations
    weighted = observations.with_weights(np.linspace(1.0, 2.0, observations.n_observed))
    zero = observations.with_values(np.zeros(observations.n_observed))
    for given, match in ((weighted, "weights"), (zero, "zero"), (np.eye(3), "Observations")):
        with pytest.raises(InputError, match=match):
            deep_linear_network(given)


def sparse_problem(seed: int, n_samples: int, n_features: int, n_ones: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    matrix, coef = rng.standard_normal((n_samples, n_features)), np.zeros(n_features)
    coef[rng.permutation(n_features)[:n_ones]] = 1.0
    return matrix, coef


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_diagonal_network_steps_are_gradient_descent(depth):
    matrix, coef = sparse_problem(0, 6, 9, 2)
    target, seen = matrix @ coef, []

    def watch(n_iter, estimate):
        seen.append(estimate)
        return n_iter == 4

    options = {"depth": depth, "step": 0.7, "init_scale": 1e-2}
    deep_diagonal_network(matrix, target, callback=watch, **options)
    marginal = np.abs(matrix.T @ target) / np.square(matrix).sum(axis=0)
    unit, noise = marginal.max(), 1.4826 * np.median(marginal)
    slopes = np.sqrt(np.maximum(marginal**2 - min(noise, 0.9 * unit) ** 2, 0.0) / unit**2) ** (1.0 - 1.0 / depth)
    curvature = depth**2 * np.linalg.norm(matrix * slopes, 2) ** 2
    u = v = np.full(9, 1e-2 ** (1.0 / depth))
    for estimate in seen:
        gradient = matrix.T @ (matrix @ (u**depth - v**depth) - target / unit)
        u, v = (
            u - 0.7 / curvature * depth * u ** (depth - 1) * gradient,
            v + 0.7 / curvature * depth * v ** (depth - 1) * gradient,
        )
        np.testing.assert_allclose(estimate, unit * (u**depth - v**depth), rtol=1e-6, atol=1e-9)
    scaled = []
    deep_diagonal_network(matrix, 1e9 * target, callback=lambda n, x: scaled.append(x) or n == 4, **options)
    np.testing.assert_allclose(scaled[-1], 1e9 * seen[-1], rtol=1e-9)


@pytest.mark.compiled_only
@pytest.mark.parametrize("depth", [2, 3])
def test_diagonal_networks_recover(depth):
    errors = []
    for seed in range(3):
        matrix, coef = sparse_problem(seed, 120, 300, 15)
        result = deep_diagonal_network(matrix, matrix @ coef, depth=depth, tol=1e-3)
        assert result.stop_reason == "converged" and result.n_iter == len(result.history["seconds"])
        errors.append(np.linalg.norm(result.coef - coef) / np.linalg.norm(coef))
    assert sum(error < 1e-2 for error in errors) >= 2, errors


@pytest.mark.compiled_only
def test_diagonal_networks_halve_steps_and_end():
    matrix, coef = sparse_problem(1, 40, 60, 3)
    result = deep_diagonal_network(matrix, matrix @ coef, step=512.0, tol=1e-2)
    assert result.stop_reason == "converged" and result.step < 512.0 == result.history["step"][0]
    assert deep_diagonal_network(matrix, matrix @ coef, max_seconds=1e-9).stop_reason == "max_seconds"
    with pytest.warns(NotConvergedWarning, match="max_iter"):
        assert deep_diagonal_network(matrix, matrix @ coef, max_iter=2).stop_reason == "max_iter"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"depth": 1}, "depth"), ({"step": -1.0}, "step"), ({"init_scale": 0.0}, "init_scale"), ({"tol": 0.0}, "tol"),
        ({"max_iter": 0}, "max_iter"), ({"max_seconds": -1.0}, "max_seconds"), ({"y": np.zeros(6)}, "correlated"),
        ({"y": np.ones((6, 2))}, "target"), ({"A": np.full((6, 9), np.nan)}, "finite"),
    ],
)  # fmt: skip
def test_diagonal_network_refuses(options, match):
    matrix, coef = sparse_problem(0, 6, 9, 2)
    with pytest.raises(InputError, match=match):
        deep_diagonal_network(**{"A": matrix, "y": matrix @ coef, **options})


@pytest.mark.filterwarnings("ignore::fastrfm.errors.NotConvergedWarning")
def test_search_of_deep_linear_networks():
    problem = small_problem()
    options = {"depths": (2, 3), "init_scales": (1e-2, 0.3), "steps": (1.0,), "tol": 1e-2, "max_iter": 80}
    result, trials = search_deep_linear_network(problem.observations, holdout=0.2, **options)
    assert {name: len(column) for name, column in trials.items()} == dict.fromkeys(trials, 4)
    best = int(np.argmin(trials["rmse"]))
    chosen = {name: trials[name][best] for name in ("depth", "step", "init_scale")}
    assert {name: result.options[name] for name in chosen} == chosen
    alone = deep_linear_network(problem.observations, tol=1e-2, max_iter=80, **chosen)
    np.testing.assert_array_equal(result.to_dense(), alone.to_dense())
    kept, held = problem.observations.split(0.2, random_state=0)
    trained = deep_linear_network(kept, tol=1e-2, max_iter=80, **chosen)
    rows, cols, values = held.to_coo()
    assert trials["rmse"][best] == np.sqrt(np.mean((trained.predict(rows, cols) - values) ** 2))


@pytest.mark.compiled_only
def test_search_of_diagonal_networks():
    errors = []
    for seed in range(3):
        matrix, coef = sparse_problem(seed, 80, 200, 8)
        result, trials = search_deep_diagonal_network(matrix, matrix @ coef, depths=(2, 3), tol=1e-2, steps=(1.5,))
        best = int(np.argmin(trials["rmse"]))
        assert (result.depth, result.init_scale) == (trials["depth"][best], trials["init_scale"][best])
        assert len(trials["depth"]) == 4
        errors.append(np.linalg.norm(result.coef - coef) / np.linalg.norm(coef))
    assert sum(error < 2e-2 for error in errors) >= 2, errors  # twice the tolerance


def test_searches_keep_to_their_time():
    matrix, coef = sparse_problem(0, 30, 40, 2)
    _, trials = search_deep_diagonal_network(matrix, matrix @ coef, max_seconds=1e-6)
    assert set(trials["stop_reason"]) == {"max_seconds"} and set(trials["n_iter"]) == {1}
    result, trials = search_deep_linear_network(small_problem().observations, max_seconds=1e-6)
    assert set(trials["stop_reason"]) == {"max_seconds"} and result.n_iter == 1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"depths": ()}, "nothing to try"), ({"depths": (1,)}, "depths"), ({"steps": (0.0,)}, "steps"),
        ({"init_scales": "small"}, "init_scales"), ({"init_scales": (-1.0,)}, "init_scales"),
        ({"holdout": 1.5}, "hold"),
        ({"holdout": 1e-9}, "hold"), ({"random_state": -1}, "random_state"), ({"max_seconds": 0.0}, "max_seconds"),
    ],
)  # fmt: skip
def test_searches_refuse(options, match):
    matrix, coef = sparse_problem(0, 20, 9, 2)
    with pytest.raises(InputError, match=match):
        search_deep_diagonal_network(matrix, matrix @ coef, **options)
    with pytest.raises(InputError, match=match):
        search_deep_linear_network(small_problem().observations, **options)


def test_networks_that_diverge_say_so():
    with pytest.warns(NotConvergedWarning, match="halvings"):
        result = deep_linear_network(small_problem().observations, step=1e30)
    assert result.stop_reason == "diverged" and np.isfinite(result.to_dense()).all()
    matrix, coef = sparse_problem(0, 6, 9, 2)
    with pytest.warns(NotConvergedWarning, match="halvings"):
        result = deep_diagonal_network(matrix, matrix @ coef, step=1e30)
    assert result.stop_reason == "diverged" and not result.coef.any()
