"""The naive twins themselves: against numpy.linalg, against each other, and against the published iterates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import reference
from problems import haar, low_rank_problem, random_mask

PUBLISHED = Path(__file__).resolve().parent / "data" / "published_iterates.npz"


@pytest.mark.parametrize("n", [1, 2, 5, 33])
def test_cholesky_solve_equals_numpy(n):
    rng = np.random.RandomState(n)
    root = rng.standard_normal((n, n + 2))
    matrix, rhs = root @ root.T, rng.standard_normal(n)
    np.testing.assert_allclose(reference.cholesky_solve(matrix, rhs), np.linalg.solve(matrix, rhs), rtol=1e-8)


def test_symmetric_power_equals_numpy():
    root = np.random.RandomState(0).standard_normal((7, 9))
    matrix = root @ root.T
    half = reference.symmetric_power(matrix, 0.5)
    np.testing.assert_allclose(half @ half, matrix, rtol=1e-10)
    np.testing.assert_allclose(reference.symmetric_power(matrix, -1.0), np.linalg.inv(matrix), rtol=1e-8)
    np.testing.assert_allclose(reference.symmetric_power(matrix, 3.0), np.linalg.matrix_power(matrix, 3), rtol=1e-10)


@pytest.mark.parametrize(("name", "power"), [("half", 0.5), ("one", 1.0), ("quarter", 0.25), ("half_by_svd", 0.5)])
def test_dense_iteration_equals_published(name, power):
    with np.load(PUBLISHED) as stored:
        truth, mask, ridge = stored["truth"], stored["observed"], float(stored["ridge"])
        published = stored[f"power_{name}"]
    kernel_matrix = (1.0 + ridge) * np.eye(40)
    for wanted in published:
        estimate, gram = reference.dense_iteration(truth, mask, kernel_matrix, 0.0)
        np.testing.assert_allclose(estimate, wanted, atol=1e-11)
        np.testing.assert_allclose(gram, estimate.T @ estimate, atol=1e-10)
        kernel_matrix = reference.published_feature_gram(gram, power, ridge, 40)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("schatten_p", [1.0, 0.5, 0.0, -2.0])
def test_reweighted_iterates_equal_irls(schatten_p, ridge):
    problem = low_rank_problem(14, 11, 2, oversampling=1.8, seed=3)
    power = (2.0 - schatten_p) / 4.0
    ours = reference.dense_iterates(problem.truth, problem.mask, power, [0.5] * 8, ridge)
    theirs = reference.irls_iterates(problem.truth, problem.mask, schatten_p, 0.5, ridge, 8)
    for estimate, wanted in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(estimate, wanted, atol=1e-9)


@pytest.mark.parametrize("power", [0.25, 0.375, 0.5, 1.0])
def test_objective_is_stationary_where_the_iteration_stands_still(power):
    problem = low_rank_problem(9, 7, 2, oversampling=1.7, seed=1)
    estimate = None
    for estimate in reference.dense_iterates(problem.truth, problem.mask, power, [0.7] * 400, 0.2):  # noqa: B007
        pass
    rng = np.random.RandomState(0)
    for _ in range(3):
        direction = rng.standard_normal(problem.mask.shape)
        step = 1e-5
        up, down = (
            reference.objective(estimate + sign * step * direction, problem.truth, problem.mask, power, 0.7, 0.2)
            for sign in (1.0, -1.0)
        )
        assert abs(up - down) / (2.0 * step) < 1e-6


def test_objective_at_p_0_is_the_limit_of_small_p():
    problem = low_rank_problem(6, 5, 2, oversampling=1.2, seed=2)
    arguments = problem.truth, problem.truth, problem.mask
    near = reference.objective(*arguments, 0.5 - 1e-7, 0.4, 1.0)
    assert near == pytest.approx(reference.objective(*arguments, 0.5, 0.4, 1.0), rel=1e-5)


def test_floored_feature_gram_has_the_stated_eigenvalues():
    vectors = haar(np.random.RandomState(0), 6, 3)
    kernel_matrix = reference.floored_feature_gram(np.array([3.0, 2.0, 0.1]), vectors, 0.25, 0.5)
    np.testing.assert_allclose(np.linalg.eigvalsh(kernel_matrix), [0.5, 0.5, 0.5, 0.5, 2.0, 3.0])
    cut = reference.floored_feature_gram(np.array([3.0, 2.0, 0.1]), vectors, 0.25, 0.5, most=1)
    np.testing.assert_allclose(np.linalg.eigvalsh(cut), [0.5, 0.5, 0.5, 0.5, 0.5, 3.0])


def test_subspace_step_from_a_full_block_is_the_decomposition():
    estimate = np.random.RandomState(0).standard_normal((9, 5))
    singular_values, vectors = reference.subspace_step(estimate, haar(np.random.RandomState(1), 5, 5))
    np.testing.assert_allclose(singular_values, np.linalg.svd(estimate, compute_uv=False))
    np.testing.assert_allclose(vectors @ np.diag(singular_values**2) @ vectors.T, estimate.T @ estimate, atol=1e-12)


def test_soft_impute_satisfies_the_optimality_conditions():
    problem = low_rank_problem(10, 8, 2, oversampling=1.6, seed=5)
    ridge = 0.5
    estimate = reference.soft_impute(problem.truth, problem.mask, ridge)
    left, singular_values, right = np.linalg.svd(estimate)
    rank = int(np.sum(singular_values > 1e-9))
    subgradient = np.where(problem.mask, problem.truth - estimate, 0.0) / ridge
    aligned = left[:, :rank].T @ subgradient @ right[:rank].T
    np.testing.assert_allclose(aligned, np.eye(rank), atol=1e-6)
    assert np.linalg.norm(subgradient, 2) < 1.0 + 1e-6
    full = np.ones_like(problem.mask)  # fully observed: singular values shrink by the ridge
    shrunk = np.maximum(np.linalg.svd(problem.truth, compute_uv=False) - ridge, 0.0)
    found = np.linalg.svd(reference.soft_impute(problem.truth, full, ridge), compute_uv=False)
    np.testing.assert_allclose(found, shrunk, atol=1e-9)
    assert reference.nuclear_objective(estimate, problem.truth, problem.mask, ridge) < reference.nuclear_objective(
        estimate * 1.01, problem.truth, problem.mask, ridge
    )


def test_offsets_of_a_balanced_table_are_shrunken_means():
    rng = np.random.RandomState(0)
    table = rng.standard_normal((6, 1)) + rng.standard_normal((1, 5)) + 0.3 * rng.standard_normal((6, 5)) + 10.0
    mean, rows, cols = reference.offsets(table, np.ones((6, 5), dtype=bool))
    assert mean == pytest.approx(table.mean())
    for side, raw in ((rows, table.mean(axis=1) - table.mean()), (cols, table.mean(axis=0) - table.mean())):
        ratios = side / raw
        np.testing.assert_allclose(ratios, ratios[0], rtol=1e-5)
        assert 0.8 < ratios[0] < 1.0


def test_kernel_twins_equal_the_dense_iteration():
    rng = np.random.RandomState(4)
    mask = random_mask(rng, (8, 6), 0.5)
    mask[2] = False
    values = rng.standard_normal((8, 6))
    root = rng.standard_normal((6, 6))
    kernel_matrix = root @ root.T + np.eye(6)
    indptr, indices = np.concatenate(([0], np.cumsum(mask.sum(axis=1)))), np.nonzero(mask)[1]
    duals = reference.solve_dual_rows(indptr, indices, values[mask], kernel_matrix, 0.2)
    estimate = reference.expand_rows(indptr, indices, duals, kernel_matrix)
    wanted, _ = reference.dense_iteration(values, mask, kernel_matrix, 0.2)
    np.testing.assert_allclose(estimate, wanted, atol=1e-12)
    # Woodbury: with K = V diag(d) V' + delta I the factored regression gives the same estimate.
    basis, weights, delta = haar(rng, 6, 3), np.array([3.0, 2.0]), 0.4
    low_rank = basis[:, :2] @ np.diag(weights) @ basis[:, :2].T + delta * np.eye(6)
    theta = delta / (0.2 + delta)
    coefficients, projection, misfit = reference.solve_factored_rows(
        indptr, indices, values[mask], basis, (0.2 + delta) / weights, theta
    )
    inside = coefficients @ basis[:, :2].T
    wanted, _ = reference.dense_iteration(values, mask, low_rank, 0.2)
    np.testing.assert_allclose(inside + theta * np.where(mask, values - inside, 0.0), wanted, atol=1e-12)
    np.testing.assert_allclose(projection, wanted @ basis, atol=1e-12)
    np.testing.assert_allclose(misfit, (np.where(mask, values - inside, 0.0) ** 2).sum(axis=1), atol=1e-12)
    residual = reference.masked_residual(indptr, indices, values[mask], coefficients, basis[:, :2])
    np.testing.assert_allclose(residual, (inside - values)[mask], atol=1e-12)


def test_adjoint_twin_equals_a_product():
    rng = np.random.RandomState(5)
    mask, values = random_mask(rng, (7, 5), 0.5), rng.standard_normal((7, 5))
    coefficients, basis, directions = (rng.standard_normal(size) for size in ((7, 2), (5, 3), (7, 4)))
    indptr, indices = np.concatenate(([0], np.cumsum(mask.sum(axis=0)))), np.nonzero(mask.T)[1]
    start = rng.standard_normal((5, 4))
    found = reference.add_adjoint_columns(
        indptr, indices, values.T[mask.T], coefficients, basis, 0.7, directions, start
    )
    sparse = 0.7 * np.where(mask, values - coefficients @ basis[:, :2].T, 0.0)
    np.testing.assert_allclose(found, start + sparse.T @ directions, atol=1e-12)


def test_problems_have_what_they_promise():
    problem = low_rank_problem(30, 20, 3, oversampling=2.0, condition_number=10.0, seed=7)
    np.testing.assert_allclose(np.linalg.svd(problem.truth, compute_uv=False)[:4], [10, np.sqrt(10), 1, 0], atol=1e-9)
    assert problem.mask.sum() == int(2.0 * 3 * 47)
    assert min(problem.mask.sum(axis=0).min(), problem.mask.sum(axis=1).min()) >= 4
    with pytest.raises(ValueError, match="raise oversampling"):
        low_rank_problem(30, 20, 3, oversampling=0.3)


def triplets_of(matrix: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    left, singular_values, vt = np.linalg.svd(matrix, full_matrices=False)
    return left[:, :k], singular_values[:k], vt[:k].T


@pytest.mark.parametrize("power", [0.25, 0.375, 0.5])
@pytest.mark.parametrize("k", [0, 1, 3, 5])
def test_two_sided_covariance_is_that_of_the_tangent_space(power, k):
    previous = np.random.RandomState(k).standard_normal((7, 5))
    triplets = triplets_of(previous, k)
    smoothing = 0.9 * triplets[1][-1] if k else 10.0
    covariance = reference.two_sided_covariance(*triplets, power, smoothing)
    np.testing.assert_allclose(covariance, reference.tangent_covariance(*triplets, power, smoothing), atol=1e-12)
    if k == 5:  # every direction above the floor: the powers of the whole products, zero rows apart
        floored = previous @ previous.T + smoothing**2 * (np.eye(7) - triplets[0] @ triplets[0].T)
        whole = np.kron(
            reference.symmetric_power(floored, power), reference.symmetric_power(previous.T @ previous, power)
        )
        np.testing.assert_allclose(covariance, whole, atol=1e-12)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_reweighted_regression_satisfies_the_optimality_conditions(ridge):
    problem = low_rank_problem(7, 5, 1, oversampling=2.0, seed=1)
    covariance = reference.two_sided_covariance(*triplets_of(np.where(problem.mask, problem.truth, 0.0), 2), 0.4, 0.1)
    estimate = reference.reweighted_regression(problem.truth, problem.mask, covariance, ridge)
    misfit, pull = estimate - problem.truth, np.linalg.solve(covariance, estimate.ravel()).reshape(7, 5)
    if ridge == 0.0:
        np.testing.assert_allclose(misfit[problem.mask], 0.0, atol=1e-10)
    else:
        np.testing.assert_allclose(misfit[problem.mask], -ridge * pull[problem.mask], atol=1e-10)
    np.testing.assert_allclose(pull[~problem.mask], 0.0, atol=1e-8 * np.abs(pull).max())


@pytest.mark.parametrize("power", [0.25, 0.375, 0.5])
def test_two_sided_weights_are_the_slope_of_the_floored_penalty(power):
    # d psi = <W X, dX>, W with the floored singular values of X itself.
    rng = np.random.RandomState(0)
    matrix, direction, smoothing, step = rng.standard_normal((6, 4)), rng.standard_normal((6, 4)), 1.5, 1e-6
    k = int(np.sum(np.linalg.svd(matrix, compute_uv=False) > smoothing))
    assert 0 < k < 4
    covariance = reference.two_sided_covariance(*triplets_of(matrix, k), power, smoothing)
    slope = np.linalg.solve(covariance, matrix.ravel()) @ direction.ravel()
    up, down = (reference.floored_penalty(matrix + sign * step * direction, power, smoothing) for sign in (1.0, -1.0))
    assert (up - down) / (2.0 * step) == pytest.approx(slope, rel=1e-7)


@pytest.mark.parametrize("power", [0.25, 0.375, 0.5])
def test_two_sided_weights_majorise_the_floored_penalty(power):
    # psi(Z) <= psi(X) + (<Z, W Z> - <X, W X>) / 2 for any Z: why an iteration never increases the objective.
    rng = np.random.RandomState(1)
    for _ in range(200):
        matrix, other = (rng.standard_normal((5, 4)) * np.exp(rng.uniform(-3, 3, 4)) for _ in range(2))
        smoothing = float(np.exp(rng.uniform(-3, 2)))
        k = int(np.sum(np.linalg.svd(matrix, compute_uv=False) > smoothing))
        weights = np.linalg.inv(reference.two_sided_covariance(*triplets_of(matrix, k), power, smoothing))
        squares = [vector.ravel() @ weights @ vector.ravel() for vector in (other, matrix)]
        bound = reference.floored_penalty(matrix, power, smoothing) + 0.5 * (squares[0] - squares[1])
        assert reference.floored_penalty(other, power, smoothing) <= bound + 1e-9 * abs(bound)


def test_smoothed_penalties_tend_to_the_schatten_objective():
    problem = low_rank_problem(8, 6, 2, oversampling=1.5, seed=0)
    estimate = problem.truth + 0.1
    for power in (0.25, 0.375):
        wanted = reference.schatten_objective(estimate, problem.truth, problem.mask, power, 0.3)
        floored = 0.3 * reference.floored_penalty(estimate, power, 1e-12)
        misfit = 0.5 * np.sum((estimate - problem.truth)[problem.mask] ** 2)
        assert misfit + floored == pytest.approx(wanted, rel=1e-5)
    nuclear = reference.nuclear_objective(estimate, problem.truth, problem.mask, 0.3)
    assert reference.schatten_objective(estimate, problem.truth, problem.mask, 0.25, 0.3) == pytest.approx(nuclear)


def test_oracle_estimate_is_exact_on_exact_data_and_projects_full_noise():
    problem = low_rank_problem(12, 10, 2, oversampling=2.0, seed=0)
    found = reference.oracle_estimate(problem.truth, 2, problem.truth, problem.mask)
    np.testing.assert_allclose(found, problem.truth, atol=1e-9)
    noise = np.random.RandomState(0).standard_normal((12, 10))
    left, _, right = triplets_of(problem.truth, 2)
    full = reference.oracle_estimate(problem.truth, 2, noise, np.ones((12, 10), dtype=bool))
    np.testing.assert_allclose(full, reference.tangent_projection(noise, left, right), atol=1e-10)


def test_inverse_factor_inverts_its_system():
    root = np.random.RandomState(0).standard_normal((6, 8))
    packed = reference.inverse_factor(root @ root.T)
    assert packed.size == 4 * 4 + 2 * 8
    inverse = np.zeros((6, 8))
    inverse[:4, :4], inverse[4:] = packed[:16].reshape(4, 4), packed[16:].reshape(2, 8)
    np.testing.assert_array_equal(np.triu(inverse, 1), 0.0)
    np.testing.assert_allclose(inverse[:, :6].T @ inverse[:, :6], np.linalg.inv(root @ root.T), atol=1e-12)
    assert reference.inverse_factor(np.zeros((0, 0))).size == 0


def test_tangent_twins_minimise_the_eliminated_objective():
    # The stationary A of the Schur complement, with its B, is the regression with explicit weights.
    rng = np.random.RandomState(3)
    mask = random_mask(rng, (7, 6), 0.6)
    mask[3], mask[:, 2] = False, False
    values, (left, singular_values, right) = rng.standard_normal((7, 6)), triplets_of(rng.standard_normal((7, 6)), 2)
    power, smoothing, ridge = 0.4, 0.5, 0.2
    growth = (singular_values / smoothing) ** (2.0 * power)
    noise = ridge / smoothing ** (4.0 * power)
    penalty, hidden, theta = (1.0 + noise) / (growth - 1.0), 1.0 - 1.0 / growth, 1.0 / (1.0 + noise)
    indptr, indices = np.concatenate(([0], np.cumsum(mask.sum(axis=1)))), np.nonzero(mask)[1]
    arguments = indptr, indices, values[mask], left, right
    _, _, gradient = reference.eliminate_rows(*arguments, np.zeros_like(right), penalty)
    system = reference.schur_complement(indptr, indices, left, right, penalty, hidden)
    coefficients = np.linalg.solve(system, gradient.ravel()).reshape(right.shape)
    rows, misfit, _ = reference.eliminate_rows(*arguments, coefficients, penalty)
    inside = left @ coefficients.T + rows @ right.T
    sparse = np.where(mask, values - inside, 0.0)
    np.testing.assert_allclose(misfit, (sparse**2).sum(axis=1), atol=1e-12)
    covariance = reference.two_sided_covariance(left, singular_values, right, power, smoothing)
    wanted = reference.reweighted_regression(values, mask, covariance, ridge)
    np.testing.assert_allclose(inside + theta * sparse, wanted, atol=1e-10)
    columns = np.concatenate(([0], np.cumsum(mask.sum(axis=0)))), np.nonzero(mask.T)[1]
    blocks = np.array([system[j * 2 : j * 2 + 2, j * 2 : j * 2 + 2] for j in range(6)])
    over = reference.gram_systems(*columns, left, penalty) - blocks
    assert np.linalg.eigvalsh(over).min() > -1e-12, "the preconditioner's blocks bound the Schur complement's"
