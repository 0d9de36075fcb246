"""A function φ of the AGOP's eigenvalues in place of ``agop_power``: M = φ(G), K = φ(G)²."""

from __future__ import annotations

import functools
import pickle
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from fastrfm import LowRankRegression, MatrixCompletion, Observations, SparseRegression, complete
from fastrfm.agop import feature_gram, feature_weights, gram_unit, least_smoothing, penalty, size_of_gram
from fastrfm.cross_validation import make_grid
from fastrfm.errors import InputError, NotConvergedWarning
from fastrfm.options import name_of
from fastrfm.solvers.factored import feature_factors
from fastrfm.solvers.low_rank_weights import weights_of
from fastrfm.solvers.smoothing import ridge_smoothing
from fastrfm.store import read_result, write_result


def root(g):
    return g**0.5


def saturating(g):
    return np.sqrt(g) / (1.0 + 0.05 * np.sqrt(g))


def mixed(g):
    return g**0.25 + g**0.5


def slow(g):
    return np.log1p(g)


FUNCTIONS = (saturating, mixed, slow)


def matrix(seed: int = 0, shape: tuple[int, int] = (14, 9), scale: float = 3.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    dense = scale * rng.standard_normal((shape[0], 2)) @ rng.standard_normal((2, shape[1]))
    dense += 0.1 * rng.standard_normal(shape)
    dense[rng.random(shape) > 0.7] = np.nan
    return dense


def twin(dense: np.ndarray, phi, smoothing: float, ridge: float, n_iter: int) -> list[np.ndarray]:
    """Return the iterates of one-sided lin-RFM with explicit weights, from the zero matrix."""
    estimate, found = np.zeros(dense.shape), []
    for _ in range(n_iter):
        eigenvalues, vectors = np.linalg.eigh(estimate.T @ estimate)
        weights = phi(np.maximum(eigenvalues, 0.0) + smoothing**2)
        features = (vectors * weights) @ vectors.T
        kernel = features @ features
        for i, row in enumerate(dense):
            seen = np.flatnonzero(~np.isnan(row))
            system = kernel[np.ix_(seen, seen)] + ridge * np.eye(seen.size)
            estimate[i] = np.linalg.solve(system, row[seen]) @ kernel[seen]
        found.append(estimate.copy())
    return found


def run(dense: np.ndarray, **options) -> np.ndarray:
    with pytest.warns(UserWarning, match="max_iter"):
        return complete(Observations.from_dense(dense), tol=0.0, **options).to_dense()


@pytest.mark.parametrize("phi", FUNCTIONS)
@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_iterates_are_those_with_explicit_weights(phi, ridge):
    dense = matrix()
    for n_iter, want in enumerate(twin(dense, phi, 0.3, ridge, 3), start=1):
        # A large tolerance drops no direction: the iterate itself is compared, through its factors.
        got = run(dense, method="dense", agop_power=phi, smoothing=0.3, ridge=ridge, max_iter=n_iter)
        np.testing.assert_allclose(got, want, atol=1e-8 * np.abs(want).max())


@pytest.mark.parametrize("method", ["dense", "factored"])
@pytest.mark.parametrize(("ridge", "smoothing"), [(0.0, "auto"), (0.4, "auto"), (0.4, 0.3)])
def test_a_power_as_a_function_gives_the_same(method, ridge, smoothing):
    options = {"method": method, "ridge": ridge, "smoothing": smoothing, "max_iter": 12}
    one = run(matrix(), agop_power=0.375, **options)
    other = run(matrix(), agop_power=lambda g: g**0.375, **options)
    # With a ridge ε ends at a place that is looked for on a grid.
    np.testing.assert_allclose(other, one, atol=1e-9 * np.abs(one).max())


@pytest.mark.parametrize("phi", FUNCTIONS)
def test_no_iteration_raises_the_objective(phi):
    dense, ridge, smoothing = matrix(), 0.4, 0.5
    seen, values = ~np.isnan(dense), []
    for estimate in twin(dense, phi, smoothing, ridge, 12):
        sizes = np.linalg.svd(estimate, compute_uv=False)
        values.append(0.5 * np.sum((estimate - dense)[seen] ** 2) + ridge * penalty(sizes, phi, smoothing))
    assert (np.diff(values) <= 1e-9 * values[0]).all() and values[-1] < 0.999 * values[0]


@pytest.mark.parametrize("agop_power", [0.25, 1 / 3, 0.5, 1.0])
def test_penalty_of_a_power(agop_power):
    sizes = np.array([5.0, 1.0, 1e-3, 0.0])
    for smoothing in (1e-6, 0.1, 10.0):
        want = penalty(sizes, agop_power, smoothing)
        assert penalty(sizes, lambda g: g**agop_power, smoothing) == pytest.approx(want, rel=1e-7)
    assert penalty([3.0], 0.25, 1e-12) == pytest.approx(3.0)


@pytest.mark.parametrize("agop_power", [0.25, 0.375, 0.5, 0.75, 1.0])
def test_penalty_of_a_power_keeps_its_digits(agop_power):
    power, smoothing = 2 - 4 * Decimal(agop_power), Decimal("0.7")
    for size in ("1e-12", "1e-5", "0.3", "0.7", "2", "1e4", "1e9"):
        ratio = 1 + (Decimal(size) / smoothing) ** 2
        want = (ratio ** (power / 2) - 1) / power if power else ratio.ln() / 2
        assert penalty([float(size)], agop_power, 0.7) == pytest.approx(float(want * smoothing**power), rel=1e-14)
    assert penalty([1e200, 0.0], 0.25, 1.0) == pytest.approx(1e200, rel=1e-12)


def test_names_of_functions_in_messages():
    assert name_of(functools.partial(mixed)) == f"functools.partial({__name__}.mixed)"
    assert name_of(0.5) == 0.5


@pytest.mark.compiled_only
def test_exact_data_are_recovered():
    rng = np.random.default_rng(3)
    truth = rng.standard_normal((30, 2)) @ rng.standard_normal((2, 20))
    dense = np.where(rng.random(truth.shape) < 0.6, truth, np.nan)
    for method in ("dense", "factored", "auto"):
        result = complete(Observations.from_dense(dense), method=method, agop_power=mixed)
        assert result.stop_reason == "converged" and result.options["method"] in ("dense", "factored")
        np.testing.assert_allclose(result.to_dense(), truth, atol=1e-5)


def test_functions_are_given_the_unit_of_the_data():
    seen = []

    def note(g):
        if g.size == 9:  # a column each; elsewhere it is tried on a grid
            seen.append((float(g.min()), float(g.max())))
        g[:] = 0.0  # what it does to its array is its own affair
        return np.ones_like(g)

    dense = 1e3 * matrix()
    run(dense, method="dense", agop_power=note, smoothing=2.0, max_iter=3)
    largest = np.linalg.norm(np.nan_to_num(dense), 2) ** 2  # constant weights: the zeros stay where nothing is seen
    assert seen[0] == (4.0, 4.0)
    assert seen[1][0] >= 4.0 and seen[1][1] == pytest.approx(largest + 4.0)


def test_scaling_needs_a_scale_in_the_function():
    dense, options = matrix(), {"method": "dense", "smoothing": 0.3, "max_iter": 5}
    one = run(dense, agop_power=saturating, **options)
    other = run(10.0 * dense, agop_power=lambda g: saturating(g / 100.0), **(options | {"smoothing": 3.0}))
    np.testing.assert_allclose(other, 10.0 * one, rtol=1e-7, atol=1e-9)


def test_what_a_function_must_return():
    options = {"smoothing": 0.1, "max_iter": 2, "tol": 0.0}
    for phi, said in (
        (lambda g: g[:-1], "must return a weight for each"),
        (lambda g: -g, "finite weights of at least 0"),
        (lambda g: g * np.nan, "finite weights of at least 0"),
        (lambda g: 0.0 * g, "not all 0"),
        (lambda g: "x", "fails on an array of eigenvalues"),
        (lambda g: np.sqrt(g.astype(complex)), "not real numbers"),
        (lambda g: ["1"] * g.size, "not real numbers"),
        (lambda g: 1e-300 * g, "multiply the function by a constant"),
    ):
        with pytest.raises(InputError, match=said):
            complete(Observations.from_dense(matrix()), method="dense", agop_power=phi, **options)
    with pytest.raises(InputError, match="does not fall"):
        complete(Observations.from_dense(matrix()), method="factored", agop_power=lambda g: 1.0 / (1.0 + g), **options)
    with pytest.raises(InputError, match="grows too slowly"):
        complete(Observations.from_dense(matrix()), method="factored", agop_power=lambda g: g**0.1, ridge=0.4)
    with pytest.raises(InputError, match="takes a power"):
        complete(Observations.from_dense(matrix()), method="two-sided", agop_power=root)
    with pytest.raises(InputError, match="give a ridge"):
        complete(Observations.from_dense(matrix()), ridge="auto", agop_power=root)


def test_results_and_checkpoints_name_the_function(tmp_path: Path):
    observations = Observations.from_dense(matrix())
    options = {"method": "dense", "ridge": 0.3, "tol": 1e-2}
    result = complete(observations, agop_power=mixed, **options, checkpoint=tmp_path / "state.h5", every=2)
    write_result(tmp_path / "result.h5", result)
    assert read_result(tmp_path / "result.h5").options["agop_power"] == name_of(mixed) == f"{__name__}.mixed"
    again = complete(observations, agop_power=mixed, **options, checkpoint=tmp_path / "state.h5", resume=True)
    np.testing.assert_array_equal(again.left, result.left)

    def other(g):
        return mixed(g) * 1.5

    other.__qualname__, other.__module__ = "mixed", __name__  # the same name, other values
    for phi in (saturating, other, 0.5):
        with pytest.raises(InputError, match="agop_power"):
            complete(observations, agop_power=phi, **options, checkpoint=tmp_path / "state.h5", resume=True)


def test_the_estimator_takes_functions(tmp_path: Path):
    from sklearn.base import clone

    dense = matrix(shape=(20, 9))
    model = clone(MatrixCompletion(agop_power=mixed, ridge=0.3, offsets=False, implicit=0))
    whole = model.fit_transform(dense)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.transform(dense[:4]), model.transform(dense[:4]))
    np.testing.assert_allclose(model.transform(dense[:4]), whole[:4], atol=0.05 * np.nanstd(dense))
    write_result(tmp_path / "result.h5", model.result_)
    model.result_ = read_result(tmp_path / "result.h5")
    with pytest.raises(InputError, match="not in the file"):
        model.transform(dense[:4])


# --- sparse regression --------------------------------------------------------------------------------------------


def regression(seed: int = 0, n: int = 30, p: int = 50) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features, coef = rng.standard_normal((n, p)), np.zeros(p)
    coef[:3] = [2.0, -1.0, 3.0]
    return features, features @ coef, coef


@pytest.mark.parametrize("phi", FUNCTIONS)
@pytest.mark.parametrize("ridge", [0.2, 2.0])
def test_sparse_fits_are_stationary_points(phi, ridge):
    features, target, _ = regression()
    target = target + 0.1 * np.random.default_rng(1).standard_normal(target.size)
    options = {"agop_power": phi, "fit_intercept": False, "smoothing": 0.05, "tol": 1e-12, "max_iter": 20_000}
    coef = SparseRegression(ridge, **options).fit(features, target).coef_
    weights = phi(coef**2 + 0.05**2) ** 2
    slope = features.T @ (features @ coef - target) + ridge * coef / weights
    assert np.abs(slope).max() < 1e-6 * np.abs(features.T @ target).max()


@pytest.mark.parametrize("ridge", [0.0, 0.5])
@pytest.mark.parametrize("smoothing", ["geometric", 0.1])
def test_a_power_as_a_function_gives_the_same_regression(ridge, smoothing):
    features, target, _ = regression()
    options = {"ridge": ridge, "smoothing": smoothing, "max_iter": 3000}
    one = SparseRegression(agop_power=0.5, **options).fit(features, target)
    other = SparseRegression(agop_power=root, **options).fit(features, target)
    np.testing.assert_allclose(other.coef_, one.coef_, atol=1e-7)


def test_a_function_may_leave_no_coefficient():
    features, target, _ = regression(n=10)
    model = SparseRegression(1e3, agop_power=slow, fit_intercept=False).fit(features, 0.1 * target)
    assert not model.coef_.any() and model.stop_reason_ == "zero"


def test_sparse_vectors_are_found_with_functions():
    for seed in range(3):
        features, target, truth = regression(seed)
        model = SparseRegression(agop_power=mixed, fit_intercept=False).fit(features, target)
        assert model.stop_reason_ == "exact"
        np.testing.assert_allclose(model.coef_, truth, atol=1e-9)


# --- general measurements -----------------------------------------------------------------------------------------


def measured(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal((8, 2)) @ rng.standard_normal((2, 6))
    stack = rng.standard_normal((40, 8, 6))
    return stack, np.einsum("kij,ij->k", stack, truth), truth


@pytest.mark.parametrize("linear_solver", ["cholesky", "cg"])
@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_functions_with_general_measurements(linear_solver, ridge):
    stack, values, _ = measured()
    options = {"sides": "columns", "linear_solver": linear_solver, "smoothing": 0.3, "tol": 1e-10, "max_iter": 400}
    one = LowRankRegression(ridge, agop_power=0.375, **options).fit(stack, values).coef_
    other = LowRankRegression(ridge, agop_power=lambda g: g**0.375, **options).fit(stack, values).coef_
    np.testing.assert_allclose(other, one, atol=1e-7)


@pytest.mark.parametrize("phi", FUNCTIONS)
def test_weights_of_general_measurements(phi):
    _, _, truth = measured()
    weights = weights_of(truth, 0.3, phi, False)
    other = np.random.default_rng(1).standard_normal(truth.shape)
    got = weights.applied(other) * gram_unit(phi, weights.unit)
    np.testing.assert_allclose(got, other @ feature_gram(truth.T @ truth, phi, 0.3), rtol=1e-9, atol=1e-9)


def test_general_measurements_are_met_with_functions():
    for seed in range(3):
        stack, values, truth = measured(seed)
        model = LowRankRegression(agop_power=mixed, sides="columns").fit(stack, values)
        np.testing.assert_allclose(model.coef_, truth, atol=1e-5)
    with pytest.raises(InputError, match='use sides="columns"'):
        LowRankRegression(agop_power=mixed).fit(stack, values)


@pytest.mark.parametrize("phi", [lambda g: 1.0 / (1.0 + g), lambda g: np.where(g < 0.2, 0.0, g)])
def test_conjugate_gradients_refuse_functions_that_fall(phi):
    stack, values, _ = measured()
    options = {"agop_power": phi, "sides": "columns", "smoothing": 0.3, "max_iter": 2, "tol": 0.0}
    with pytest.raises(InputError, match="does not fall"):
        LowRankRegression(0.5, linear_solver="cg", **options).fit(stack, values)
    with pytest.warns(NotConvergedWarning):
        assert LowRankRegression(0.5, linear_solver="cholesky", **options).fit(stack, values).rank_ > 0


def test_grids_take_no_functions():
    for ridges in (None, [1.0]):
        with pytest.raises(InputError, match="takes no functions"):
            make_grid(Observations.from_dense(matrix()), [mixed], ridges)


def test_functions_that_fail_far_from_the_data(tmp_path: Path):
    def narrow(g):
        if g.max() > 1e5:
            raise ZeroDivisionError
        return np.sqrt(g)

    options = {"method": "dense", "ridge": 0.3, "checkpoint": tmp_path / "state.h5"}
    observations = Observations.from_dense(matrix())
    want = complete(observations, agop_power=root, **(options | {"checkpoint": None}))
    np.testing.assert_array_equal(complete(observations, agop_power=narrow, **options).left, want.left)


# --- the parts ----------------------------------------------------------------------------------------------------


def test_parts_agree_with_powers():
    eigenvalues = np.geomspace(1e-3, 1e3, 7)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((8, 6))
    for alpha in (0.25, 0.375, 0.7):

        def phi(g, alpha=alpha):
            return g**alpha

        np.testing.assert_array_equal(feature_weights(eigenvalues, phi), feature_weights(eigenvalues, alpha))
        assert gram_unit(phi, 5.0) == pytest.approx(gram_unit(alpha, 5.0))
        grams = [feature_gram(rows.T @ rows, power, 0.1, unit=3.0) for power in (phi, alpha)]
        np.testing.assert_allclose(grams[0], grams[1], rtol=1e-10)
        # Looked for on a grid of 48 points a decade.
        assert least_smoothing(phi, 2.0, 1e-4) == pytest.approx(least_smoothing(alpha, 2.0, 1e-4), rel=0.06)
        assert size_of_gram(phi, 0.3, 2.0) == pytest.approx(size_of_gram(alpha, 0.3, 2.0), rel=0.06)
        smoothings = [ridge_smoothing(0.3, power, 1e-4, 2.0, norm=7.0) for power in (phi, alpha)]
        assert smoothings[0] == pytest.approx(smoothings[1], rel=0.06)
        basis = np.linalg.qr(rng.standard_normal((8, 3)))[0]
        factors = [
            feature_factors(np.array([3.0, 1.0, 0.2]), basis, smoothing=0.1, agop_power=power, ridge=0.3)
            for power in (phi, alpha)
        ]
        np.testing.assert_allclose(factors[0].penalty, factors[1].penalty, rtol=1e-9)
        assert factors[0].theta == pytest.approx(factors[1].theta)
    flat = feature_factors(np.array([3.0]), np.eye(4)[:, :1], smoothing=0.1, agop_power=np.ones_like, ridge=0.3)
    assert flat.penalty[0] > 1e50  # nothing is told apart from the rest
    # A function that never gets there, and one that fades away below a size.
    assert size_of_gram(np.ones_like, 2.0, 1.0) == pytest.approx(1e3)
    cut = least_smoothing(lambda g: np.where(g < 1e-4, 0.0, g), 1.0, 1e-14)
    assert 1e-2 <= cut < 1.06e-2
