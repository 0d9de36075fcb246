"""Sparse regression on a device: designs equal those of the processor, and so do the answers."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.sparse

from fastrfm import SparseRegression, SparseRegressionCV, sparse_regression_path
from fastrfm.designs import StoredDesign, make_design
from fastrfm.device_designs import DeviceDenseDesign, DeviceSparseDesign, on_device
from fastrfm.errors import InputError
from fastrfm.solvers.sparse import prepare
from fastrfm.sparse_options import SparseOptions


def problem(n=14, p=24, k=2, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((n, p)) * (rng.random((n, p)) < 0.7)
    coef = np.zeros(p)
    coef[rng.choice(p, k, replace=False)] = rng.uniform(1.0, 2.0, k)
    return matrix, matrix @ coef + 0.5 + noise * rng.standard_normal(n)


@pytest.mark.parametrize("kind", [np.array, scipy.sparse.csr_array], ids=["dense", "sparse"])
@pytest.mark.parametrize("is_centred", [False, True])
@pytest.mark.parametrize("shape", [(9, 21), (11, 4)])
def test_designs_equal_those_of_the_processor(shape, is_centred, kind):
    rng = np.random.default_rng(1)
    matrix, _ = problem(*shape)
    matrix[2] = 0.0
    design, _ = make_design(kind(matrix), rng.uniform(0.5, 2.0, shape[0]), is_centred=is_centred)
    there = on_device(design)
    assert on_device(there) is there and there.is_dense == design.is_dense
    assert isinstance(there, DeviceDenseDesign if kind is np.array else DeviceSparseDesign)
    coef, residual = rng.standard_normal(shape[1]), rng.standard_normal(shape[0])
    weights, chosen = rng.uniform(0.1, 1.0, shape[1]), np.array([3, 0])
    for found, expected in [
        (there.forward(coef), design.forward(coef)),
        (there.adjoint(residual), design.adjoint(residual)),
        (there.columns(chosen), design.columns(chosen)),
        (there.columns(np.zeros(0, dtype=np.int64)), np.zeros((shape[0], 0))),
        (there.diagonal(weights), design.diagonal(weights)),
        (np.tril(there.reweighted(weights)), np.tril(design.reweighted(weights))),
        (np.vstack([rows for _, rows in there.row_blocks()]), np.vstack([rows for _, rows in design.row_blocks()])),
        (there.squared_norms, design.squared_norms),
    ]:
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert there.columns(chosen).flags.f_contiguous and there.reweighted(weights).flags.f_contiguous
    fewer, expected = there.restricted(chosen), design.restricted(chosen)
    assert (fewer is None) == (expected is None)
    if fewer is not None and expected is not None:
        assert isinstance(fewer, DeviceDenseDesign)
        np.testing.assert_allclose(fewer.forward(coef[:2]), expected.forward(coef[:2]), atol=1e-12)
        np.testing.assert_allclose(fewer.squared_norms, expected.squared_norms)
        assert there.restricted(chosen[:0]).shape == (shape[0], 0)


@pytest.mark.parametrize("kind", [np.array, scipy.sparse.csr_array], ids=["dense", "sparse"])
def test_systems_are_solved_where_the_design_is(kind):
    matrix, target = problem(5, 9)
    design, _ = make_design(kind(matrix), None, is_centred=True)
    weights, duals = np.random.default_rng(2).uniform(0.5, 1.0, 9), (np.zeros(5), np.zeros(5))
    steps = [
        place.solve(weights, 1.0, 0.5, target - target.mean(), 1e-10, dual)
        for place, dual in zip((design, on_device(design)), duals, strict=True)
    ]
    assert abs(steps[0] - steps[1]) <= 1
    np.testing.assert_allclose(duals[1], duals[0], rtol=0, atol=1e-9)


def test_a_reduced_problem_goes_to_the_device_and_stays_there():
    matrix, target = problem(9, 3)
    design, _ = make_design(matrix, None, is_centred=True)
    fewer, _ = prepare(design, target[:, None], SparseOptions(device="cuda"))
    assert isinstance(fewer, DeviceDenseDesign) and fewer.shape == (3, 3)
    doubled = np.vstack([matrix.T, matrix.T])
    fewer, _ = prepare(*_design_and_target(doubled), SparseOptions(device="cuda"))
    assert isinstance(fewer, DeviceDenseDesign) and fewer.shape == (3, 9)


def _design_and_target(matrix):
    return make_design(matrix, None, is_centred=False)[0], np.ones((len(matrix), 1))


def test_designs_left_in_files_are_refused(tmp_path):
    source = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float64, (4, 6))
    with pytest.raises(InputError, match="stay in a file"):
        on_device(StoredDesign(source, np.ones(4), False))
    with pytest.raises(InputError, match="stay in a file"):
        SparseRegression(memory=8, device="cuda").fit(source, np.arange(4.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SparseRegression(ridge=1.0, memory=8, device="auto").fit(source, np.arange(4.0))


# --- answers ------------------------------------------------------------------------------------------------------


def fits(kind, matrix, target, weights=None, **options):
    for device in ("cpu", "cuda"):
        yield SparseRegression(device=device, **options).fit(kind(matrix), target, weights)


def assert_same(models, tolerance=1e-9):
    expected, found = models
    scale = np.abs(expected.coef_).max()
    np.testing.assert_allclose(found.coef_, expected.coef_, rtol=0, atol=tolerance * scale)
    np.testing.assert_allclose(found.intercept_, expected.intercept_, rtol=0, atol=tolerance * max(scale, 1.0))
    assert found.stop_reason_ == expected.stop_reason_
    return found


@pytest.mark.parametrize(
    ("kind", "agop_power"), [(np.array, 0.25), (np.array, 1.0), (scipy.sparse.csr_array, 0.5)], ids=str
)
def test_exact_answers_are_recovered_with_weights_and_intercept(kind, agop_power):
    matrix, target = problem()
    weights = np.random.default_rng(3).uniform(0.5, 2.0, len(target))
    weights[0] = 0.0
    model = assert_same(fits(kind, matrix, target, weights, agop_power=agop_power))
    assert model.stop_reason_ == "exact" and np.count_nonzero(model.coef_) == 2
    assert model.intercept_ == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize(
    ("kind", "agop_power", "ridge"),
    [(scipy.sparse.csr_array, 0.25, 1.0), (scipy.sparse.csr_array, 1.0, 0.05), (np.array, 0.5, 0.5)],
    ids=str,
)
def test_selected_columns(kind, agop_power, ridge):
    matrix, target = problem(10, 18, noise=0.1)
    for fit_intercept in (False, True):
        model = assert_same(fits(kind, matrix, target, ridge=ridge, agop_power=agop_power, fit_intercept=fit_intercept))
        assert 0 < np.count_nonzero(model.coef_) < matrix.shape[1]


@pytest.mark.parametrize("kind", [np.array, scipy.sparse.csr_array], ids=["dense", "sparse"])
@pytest.mark.parametrize("linear_solver", ["cholesky", "cg"])
def test_all_columns_with_a_fixed_smoothing(linear_solver, kind):
    matrix, target = problem(5, 9, noise=0.1)
    model = assert_same(
        fits(kind, matrix, target, ridge=2.0, agop_power=0.2, smoothing=0.5, tol=0.05, linear_solver=linear_solver)
    )
    assert model.n_iter_ > 1


def test_more_samples_than_features_and_several_targets():
    matrix, target = problem(30, 5, noise=0.2)
    targets = np.column_stack([target, target[::-1]])
    assert_same(fits(np.array, matrix, targets, ridge=0.5))
    assert_same(fits(np.array, matrix, targets))


def test_path_and_cross_validation():
    matrix, target = problem(20, 8, noise=0.1)
    paths = [sparse_regression_path(matrix, target, n_ridges=5, device=device) for device in ("cpu", "cuda")]
    for expected, found in zip(*paths, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)
    chosen = [
        SparseRegressionCV((0.5,), n_ridges=4, cv=2, device=device).fit(matrix, target) for device in ("cpu", "cuda")
    ]
    np.testing.assert_allclose(chosen[1].coef_, chosen[0].coef_, rtol=1e-9, atol=1e-10)
    assert chosen[1].ridge_ == pytest.approx(chosen[0].ridge_)
