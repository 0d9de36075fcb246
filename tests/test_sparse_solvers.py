"""Sparse regression: each way to solve it against a naive twin, recovery, invariances, designs of every kind."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import reference_sparse as reference
import scipy.sparse

from fastrfm._numba import thread_limit
from fastrfm.compressed_rows import CompressedDesign, CompressedRows
from fastrfm.designs import StoredDesign, make_design
from fastrfm.errors import InputError
from fastrfm.solvers.sparse import prepare, solve_sparse
from fastrfm.solvers.sparse_direct import descend
from fastrfm.solvers.sparse_path import SelectedColumns
from fastrfm.solvers.sparse_penalty import entry_threshold, largest_ridge, least_size, penalty
from fastrfm.sparse_options import SparseOptions

POWERS = [0.2, 0.25, 1 / 3, 0.375, 0.5, 1.0]
SHARP = POWERS[1:]


def problem(n=30, p=60, k=4, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    matrix, coef = rng.standard_normal((n, p)), np.zeros(p)
    coef[rng.choice(p, k, replace=False)] = rng.choice([-1.0, 1.0], k) * rng.uniform(1.0, 2.0, k)
    return matrix, coef, matrix @ coef + noise * rng.standard_normal(n)


def fit(matrix, target, weights=None, is_centred=False, start=None, **options):
    design, _ = make_design(matrix, weights, is_centred=is_centred)
    with thread_limit(1):  # as the estimator holds BLAS
        return solve_sparse(design, target[:, None], SparseOptions(**options), start)[0]


def write_rows(file, name, matrix):
    """Write a csr_matrix group as anndata does."""
    group = file.create_group(name)
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": matrix.shape})
    for part in ("data", "indices", "indptr"):
        group[part] = getattr(matrix, part)
    return group


def kinds(matrix, folder):
    """Yield the same matrix as each kind of design."""
    path = folder / "x.h5"
    with h5py.File(path, "w") as file:
        file["x"] = matrix
        write_rows(file, "rows", scipy.sparse.csr_array(matrix))
    roots = np.sqrt(np.random.default_rng(9).uniform(0.5, 2.0, len(matrix)))
    for is_centred in (False, True):
        dense = make_design(matrix, roots**2, is_centred=is_centred)[0]
        yield dense, make_design(scipy.sparse.csr_array(matrix), roots**2, is_centred=is_centred)[0]
        with h5py.File(path) as file:
            yield dense, StoredDesign(file["x"], roots, is_centred, panel_bytes=8 * 7 * min(matrix.shape))
            yield dense, CompressedDesign(CompressedRows(file["rows"]), roots, is_centred, 16 * 5 * matrix.shape[1])


# --- the twin -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("agop_power", POWERS)
def test_the_twin_is_reweighted_least_squares_and_descends(agop_power):
    matrix, _, target = problem(noise=0.3)
    values = []
    for coef in reference.iterates(matrix, target, agop_power, [0.05] * 25, 0.4):
        values.append(reference.objective(matrix, target, coef, agop_power, 0.05, 0.4))
        following = reference.step(matrix, target, coef, agop_power, 0.05, 0.4)
        np.testing.assert_allclose(
            following, reference.irls_step(matrix, target, coef, agop_power, 0.05, 0.4), atol=1e-8
        )
    assert (np.diff(values) <= 1e-10 * values[0]).all() and values[-1] < values[0]


@pytest.mark.parametrize("agop_power", POWERS)
@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_fixed_smoothing_equals_the_twin(agop_power, solver):
    matrix, _, target = problem(noise=0.3)
    start = np.linalg.lstsq(matrix, target, rcond=None)[0]
    options = {"agop_power": agop_power, "ridge": 0.4, "smoothing": 0.05, "max_iter": 6, "linear_solver": solver}
    found = fit(matrix, target, start=start[None], **options)
    for _ in range(6):
        start = reference.step(matrix, target, start, agop_power, 0.05, 0.4)
    np.testing.assert_allclose(found.coef, start, atol=1e-7)
    assert found.stop_reason == "max_iter" and found.n_iter == 6 and found.history["smoothing"].tolist() == [0.05] * 6


# --- the penalty --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [-2.0, 0.0, 0.5, 2 / 3])
def test_threshold_and_least_size_are_those_of_one_coefficient(power):
    ridge, norm = 0.7, np.array([2.3])
    grid = np.linspace(1e-3, 10.0, 400_001)
    slope = norm * grid + ridge * grid ** (power - 1.0)
    np.testing.assert_allclose(entry_threshold(power, ridge, norm), slope.min(), rtol=1e-6)
    np.testing.assert_allclose(least_size(power, ridge, norm), grid[slope.argmin()], rtol=1e-3)
    assert largest_ridge(power, slope[[slope.argmin()]], norm) == pytest.approx(ridge, rel=1e-5)


def test_the_lasso_threshold_is_the_ridge():
    assert entry_threshold(1.0, 0.7, np.array([2.3])).tolist() == [pytest.approx(0.7, rel=1e-14)]
    assert largest_ridge(1.0, np.array([-0.7, 0.1]), np.array([2.3, 9.0])) == pytest.approx(0.7, rel=1e-14)


def test_a_column_of_nothing_never_enters():
    assert entry_threshold(0.0, 1.0, np.array([0.0]))[0] == np.inf
    assert largest_ridge(0.0, np.array([0.0]), np.array([0.0])) == 0.0
    assert penalty(1.0, np.array([0.0, -2.0])) == 2.0 and penalty(0.0, np.array([0.0, np.e])) == pytest.approx(1.0)


# --- with a ridge -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [0.05, 2.0, 20.0])
@pytest.mark.parametrize("shape", [(30, 60), (80, 20), (25, 30)])
def test_power_one_quarter_is_the_lasso(ridge, shape):
    matrix, _, target = problem(*shape, noise=0.5)
    found = fit(matrix, target, agop_power=0.25, ridge=ridge)
    np.testing.assert_allclose(found.coef, reference.lasso(matrix, target, ridge), atol=1e-6)
    assert found.stop_reason == "converged"


@pytest.mark.parametrize("agop_power", SHARP)
def test_the_end_is_a_minimum_that_no_other_column_can_enter(agop_power):
    matrix, _, target = problem(50, 120, noise=0.5)
    options = SparseOptions(agop_power=agop_power, ridge=3.0)
    coef = fit(matrix, target, agop_power=agop_power, ridge=3.0).coef
    active, power = coef != 0.0, options.penalty_power
    correlations = matrix.T @ (target - matrix @ coef)
    wanted = 3.0 * np.sign(coef[active]) * np.abs(coef[active]) ** (power - 1.0)
    np.testing.assert_allclose(correlations[active], wanted, rtol=1e-6)
    hessian = matrix[:, active].T @ matrix[:, active]
    hessian += np.diag(3.0 * (power - 1.0) * np.abs(coef[active]) ** (power - 2.0))
    assert np.linalg.eigvalsh(hessian)[0] > 0.0 and 0 < active.sum() < 50
    if power >= 1.0:
        assert np.abs(correlations[~active]).max() <= 3.0 * (1.0 + 1e-6)


@pytest.mark.parametrize("agop_power", SHARP)
def test_the_ridge_beyond_which_nothing_is_selected(agop_power):
    matrix, _, target = problem(noise=0.5)
    design = make_design(matrix, None, is_centred=False)[0]
    top = SelectedColumns(design, target, 2.0 - 4.0 * agop_power, 1e-8, 100).largest_ridge()
    assert not fit(matrix, target, agop_power=agop_power, ridge=1.001 * top).coef.any()
    assert fit(matrix, target, agop_power=agop_power, ridge=0.99 * top).coef.any()


@pytest.mark.parametrize("agop_power", SHARP)
def test_scaling_and_permuting(agop_power):
    matrix, _, target = problem(noise=0.5)
    coef = fit(matrix, target, agop_power=agop_power, ridge=1.0).coef
    scaled = fit(matrix, 10.0 * target, agop_power=agop_power, ridge=10.0 ** (4 * agop_power)).coef
    np.testing.assert_allclose(scaled, 10.0 * coef, rtol=1e-6, atol=1e-9)
    order = np.random.default_rng(1).permutation(coef.size)
    np.testing.assert_allclose(fit(matrix[:, order], target, agop_power=agop_power, ridge=1.0).coef, coef[order])


@pytest.mark.parametrize("agop_power", [0.1, 0.2])
def test_small_powers_use_every_column(agop_power):
    matrix, _, target = problem(noise=0.3)
    found = fit(matrix, target, agop_power=agop_power, ridge=0.5, tol=1e-10)
    power = 2.0 - 4.0 * agop_power
    slope = matrix.T @ (matrix @ found.coef - target) + 0.5 * np.sign(found.coef) * np.abs(found.coef) ** (power - 1.0)
    # Coefficients below the smallest ε, 1e-5 of the largest, are those of the smoothed penalty.
    assert (
        np.abs(slope).max() < 0.5 * (1e-5 * np.abs(found.coef).max()) ** (power - 1.0)
        and np.count_nonzero(found.coef) == 60
    )


# --- without ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("agop_power", SHARP)
def test_exact_recovery(agop_power):
    for seed in range(3):
        matrix, coef, target = problem(60, 150, 8, seed=seed)
        found = fit(matrix, target, agop_power=agop_power)
        assert found.stop_reason == "exact"
        np.testing.assert_allclose(found.coef, coef, atol=1e-10)


def test_50_ones_of_1000_from_250():
    rng = np.random.default_rng(0)
    matrix, coef = rng.standard_normal((250, 1000)), np.zeros(1000)
    coef[rng.choice(1000, 50, replace=False)] = 1.0
    np.testing.assert_allclose(fit(matrix, matrix @ coef).coef, coef, atol=1e-8)


@pytest.mark.parametrize("shape", [(40, 20), (20, 20), (20, 50)])
def test_noise_is_interpolated_or_least_squares(shape):
    matrix, _, target = problem(*shape, noise=1.0)
    found = fit(matrix, target)
    if shape[0] >= shape[1]:
        np.testing.assert_allclose(found.coef, np.linalg.lstsq(matrix, target, rcond=None)[0], atol=1e-8)
    else:
        np.testing.assert_allclose(matrix @ found.coef, target, atol=1e-5)
        assert np.count_nonzero(np.abs(found.coef) > 1e-6) <= shape[0]


@pytest.mark.parametrize("shape", [(30, 60), (70, 40)])
def test_rows_and_columns_that_depend_on_others(shape):
    matrix, coef, target = problem(*shape)
    matrix, target = np.vstack([matrix, matrix[:10]]), np.concatenate([target, target[:10]])
    matrix[:, -1] = 0.0
    target -= target - matrix @ np.where(np.arange(coef.size) == coef.size - 1, 0.0, coef)
    found = fit(matrix, target)
    np.testing.assert_allclose(matrix @ found.coef, target, atol=1e-8)


def test_nothing_to_explain():
    matrix, _, _ = problem()
    for ridge in (0.0, 1.0):
        assert not fit(matrix, np.zeros(30), ridge=ridge).coef.any()
        assert not fit(np.zeros((4, 6)), np.arange(4.0), ridge=ridge).coef.any()


# --- designs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(13, 40), (40, 13)])
def test_every_kind_of_design_is_the_same_matrix(shape, tmp_path):
    rng = np.random.default_rng(3)
    matrix = rng.standard_normal(shape) * (rng.random(shape) < 0.4) + (np.arange(shape[1]) == 2)
    weights, coef, dual = rng.uniform(size=shape[1]), rng.standard_normal(shape[1]), rng.standard_normal(shape[0])
    chosen = np.array([7, 2, 11])
    for dense, other in kinds(matrix, tmp_path):
        whole = dense.matrix
        np.testing.assert_allclose(other.squared_norms, np.sum(whole**2, axis=0), atol=1e-10)
        np.testing.assert_allclose(other.forward(coef), whole @ coef, atol=1e-10)
        np.testing.assert_allclose(other.adjoint(dual), whole.T @ dual, atol=1e-10)
        np.testing.assert_allclose(other.columns(chosen), whole[:, chosen], atol=1e-12)
        np.testing.assert_allclose(other.diagonal(weights), np.sum(whole**2 * weights, axis=1), atol=1e-10)
        stacked = np.vstack([block for _, block in other.row_blocks()]) if shape[0] > shape[1] else whole
        np.testing.assert_allclose(stacked, whole, atol=1e-12)
        system = whole @ np.diag(weights) @ whole.T
        if shape[0] < shape[1]:
            np.testing.assert_allclose(np.tril(other.reweighted(weights)), np.tril(system), atol=1e-10)
        found = np.zeros(shape[0])
        other.solve(weights, 0.3, 0.0, dual, 1e-12, found)
        np.testing.assert_allclose((system + 0.3 * np.eye(shape[0])) @ found, dual, atol=1e-8)


@pytest.mark.compiled_only
@pytest.mark.parametrize("options", [{"ridge": 1.0}, {"ridge": 1.0, "agop_power": 0.2}, {}, {"linear_solver": "cg"}])
@pytest.mark.parametrize("shape", [(30, 60), (60, 25)])
def test_every_kind_of_design_gives_the_same_answer(options, shape, tmp_path):
    matrix, _, target = problem(*shape, noise=0.0 if "ridge" not in options else 0.5)
    for dense, other in kinds(matrix, tmp_path):
        mean = (dense.roots**2 @ target) / (dense.roots @ dense.roots) if dense.is_centred else 0.0
        centred = dense.roots * (target - mean)
        both = [solve_sparse(d, centred[:, None], SparseOptions(**options))[0].coef for d in (dense, other)]
        np.testing.assert_allclose(*both, atol=1e-6)


def test_reducing_rows_changes_nothing():
    matrix, _, target = problem(90, 20, noise=0.5)
    design, _ = make_design(matrix, None, is_centred=False)
    options = SparseOptions(ridge=2.0)
    smaller, reduced = prepare(design, target[:, None], options)
    assert smaller.shape == (20, 20)
    whole = SelectedColumns(design, target, 0.0, 1e-10, 100)
    whole.descend_to(2.0)
    small = SelectedColumns(smaller, reduced[:, 0], 0.0, 1e-10, 100)
    small.descend_to(2.0)
    np.testing.assert_allclose(small.coefficients(), whole.coefficients(), atol=1e-8)


def test_columns_that_do_not_count_are_left_out():
    matrix, _, target = problem(20, 400, 3)
    design, _ = make_design(matrix, None, is_centred=False)
    whole = descend(design, target, SparseOptions(ridge=1e-3, agop_power=1.0, smoothing="geometric"), 1.0)
    np.testing.assert_allclose(target - matrix @ whole.coef, 0.0, atol=0.01)
    assert np.count_nonzero(whole.coef) < 400


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ridge", -1.0),
        ("agop_power", 0.0),
        ("smoothing", "fast"),
        ("smoothing", 0.0),
        ("linear_solver", "qr"),
        ("fit_intercept", 1),
        ("max_iter", 0),
        ("memory", 0),
        ("tol", np.nan),
    ],
)
def test_options_out_of_range(field, value):
    with pytest.raises(InputError, match=field):
        SparseOptions(**{field: value})
