"""LowRankRegression: its steps against a naive twin, recovery over seeds, noise, invariances, inputs, errors."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tracemalloc

import h5py
import numpy as np
import pytest
import reference_low_rank as reference
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from sklearn.base import clone
from sklearn.exceptions import NotFittedError as SklearnNotFittedError
from sklearn.model_selection import GridSearchCV

from fastrfm import LowRankRegression, Observations, RankOneMeasurements, complete
from fastrfm._numba import thread_limit
from fastrfm.errors import InputError, NotConvergedWarning, NotFittedError
from fastrfm.low_rank_options import LowRankOptions
from fastrfm.measurement_inputs import read_measurements
from fastrfm.measurements import _MUCH, OperatorMeasurements, StackMeasurements
from fastrfm.solvers.low_rank_systems import CholeskySystems, ConjugateGradients
from fastrfm.solvers.low_rank_weights import weights_of

WAYS = [("both", 0.25), ("both", 0.4), ("both", 0.5), ("columns", 0.25), ("columns", 0.5), ("columns", 1.0)]


def problem(n_rows=12, n_cols=9, rank=2, oversampling=2.0, seed=0, noise=0.0):
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal((n_rows, rank)) @ rng.standard_normal((rank, n_cols))
    stack = rng.standard_normal((int(oversampling * rank * (n_rows + n_cols - rank)), n_rows, n_cols))
    values = np.tensordot(stack, truth, 2)
    return stack, values + noise * rng.standard_normal(len(values)), truth


def rank_one_problem(n_rows, n_cols, rank, oversampling, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal((n_rows, rank)) @ rng.standard_normal((rank, n_cols))
    n = int(oversampling * rank * (n_rows + n_cols - rank))
    left, right = rng.standard_normal((n, n_rows)), rng.standard_normal((n, n_cols))
    return left, right, np.einsum("ij,ij->i", left @ truth, right), truth


def error_of(model, truth):
    return float(np.linalg.norm(model.coef_ - truth) / np.linalg.norm(truth))


# --- the steps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sides", "agop_power"), WAYS)
def test_the_twin_descends(sides, agop_power):
    stack, values, _ = problem(6, 5, noise=0.5)
    matrix, objectives = reference.least_norm(stack, values), []
    for _ in range(15):
        matrix = reference.step(stack, values, matrix, agop_power=agop_power, smoothing=0.3, ridge=0.7, sides=sides)
        objectives.append(reference.objective(stack, values, matrix, agop_power, 0.3, 0.7))
    assert (np.diff(objectives) <= 1e-10 * objectives[0]).all() and objectives[-1] < objectives[0]


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6)])
@pytest.mark.parametrize("ridge", [0.0, 0.7])
@pytest.mark.parametrize(("sides", "agop_power"), WAYS)
def test_every_step_is_the_twins(sides, agop_power, ridge, shape):
    stack, values, _ = problem(*shape, rank=1, noise=0.3)
    matrix, smoothing = reference.least_norm(stack, values), 2.0
    operator = OperatorMeasurements(aslinearoperator(stack.reshape(len(stack), -1)), shape, 0)
    blocks = StackMeasurements(stack, 8 * 3 * 35)
    found = [CholeskySystems(blocks, values, ridge), *(ConjugateGradients(kind, values) for kind in (blocks, operator))]
    dual = np.zeros(len(values))
    for _ in range(6):
        weights = weights_of(matrix, smoothing, agop_power, sides == "both")
        matrix = reference.step(
            stack, values, matrix, agop_power=agop_power, smoothing=smoothing, ridge=ridge, sides=sides
        )
        unit = weights.unit ** (4.0 * agop_power)
        answers = [solver.solve(weights, ridge / unit, dual * unit, 1e-11) for solver in found]
        for answer in answers:
            np.testing.assert_allclose(answer.matrix, matrix, atol=1e-8 * np.abs(matrix).max())
        dual, smoothing = answers[-1].dual / unit, smoothing / 3.0


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
@pytest.mark.parametrize("shape", [(1, 6), (6, 1)])
def test_one_row_or_column_has_two_sides(shape, solver):
    rng = np.random.default_rng(0)
    stack, values = rng.standard_normal((4, *shape)), rng.standard_normal(4)
    options = {"smoothing": 0.5, "tol": 1e-12, "linear_solver": solver}
    model, matrix = LowRankRegression(0.7, **options).fit(stack, values), reference.least_norm(stack, values)
    for _ in range(300):
        matrix = reference.step(stack, values, matrix, agop_power=0.5, smoothing=0.5, ridge=0.7)
    np.testing.assert_allclose(model.coef_, matrix, atol=1e-9)


def test_the_estimator_takes_the_twins_steps():
    stack, values, _ = problem(7, 5, noise=0.3)
    with pytest.warns(NotConvergedWarning):
        model = LowRankRegression(0.7, smoothing=0.5, max_iter=5, tol=0.0, linear_solver="cholesky").fit(stack, values)
    size = np.linalg.norm(np.tensordot(values, stack, 1), 2) * 35 / np.square(stack).sum()
    flat = stack.reshape(len(stack), -1)
    start = flat.T @ np.linalg.solve(flat @ flat.T + 0.7 / size**2 * np.eye(len(flat)), values)
    matrix = start.reshape(7, 5)
    for _ in range(4):
        matrix = reference.step(stack, values, matrix, agop_power=0.5, smoothing=0.5, ridge=0.7)
    sigma = np.linalg.svd(matrix, compute_uv=False)
    kept = int((sigma > 0.5).sum())
    assert model.n_iter_ == 5 and model.rank_ == kept
    np.testing.assert_allclose(model.singular_values_, sigma[:kept], rtol=1e-9)


@pytest.mark.parametrize("smoothing", [1.0, 1e-3, 1e-6, 1e-12])
def test_steps_of_conjugate_gradients_do_not_depend_on_smoothing(smoothing):
    stack, values, truth = problem(20, 15, rank=2, oversampling=2.5)
    cg = ConjugateGradients(StackMeasurements(stack), values)
    answer = cg.solve(weights_of(truth, smoothing, 0.5, True), 0.0, np.zeros(len(values)), 1e-6)
    assert answer.inner_steps < 40
    assert np.linalg.norm(answer.matrix - truth) <= 10.0 * smoothing**2 + 1e-12 * np.linalg.norm(truth)


def test_kinds_agree():
    left, right, values, _ = rank_one_problem(8, 6, 2, 1.5)
    stack = left[:, :, None] * right[:, None, :]
    rng = np.random.default_rng(5)
    matrix, dual, rows, cols = (rng.standard_normal(s) for s in ((8, 6), len(values), (8, 8), (6, 6)))
    first = StackMeasurements(stack, 8 * 48 * 5)
    operator = OperatorMeasurements(aslinearoperator(stack.reshape(len(stack), -1)), (8, 6), 0, 8 * 48 * 5)
    flat = (np.matmul(rows.T, stack) @ cols).reshape(len(stack), -1)
    for kind in (first, RankOneMeasurements(left, right), operator):
        np.testing.assert_allclose(kind.forward(matrix), np.tensordot(stack, matrix, 2), atol=1e-10)
        np.testing.assert_allclose(
            kind.forward_factors(matrix, cols), np.tensordot(stack, matrix @ cols.T, 2), atol=1e-9
        )
        np.testing.assert_allclose(kind.adjoint(dual), np.tensordot(dual, stack, 1), atol=1e-10)
        np.testing.assert_allclose(
            kind.products(rows[:, :3], cols[:, :2]),
            np.matmul(rows[:, :3].T, stack @ cols[:, :2]).reshape(len(stack), -1),
            atol=1e-10,
        )
        if kind is not operator:
            np.testing.assert_allclose(kind.gram(rows, cols), flat @ flat.T, rtol=1e-9, atol=1e-7)
            assert kind.square_sum == pytest.approx(np.square(stack).sum())
    assert operator.square_sum == pytest.approx(np.square(stack).sum(), rel=0.5)
    np.testing.assert_allclose(operator.as_stack().stack, stack, atol=1e-12)


# --- recovery -----------------------------------------------------------------------------------------------------


@pytest.mark.compiled_only
@pytest.mark.parametrize("rank", [3, None])
def test_recovery_rate(rank):
    """60 x 60, rank 3, 2.5 measurements per degree of freedom: 20 of 20 seeds, of which 4 run here."""
    errors = []
    for seed in range(4):
        stack, values, truth = problem(60, 60, 3, 2.5, seed)
        model = LowRankRegression(rank=rank).fit(stack, values)
        errors.append(error_of(model, truth))
        assert model.rank_ == 3 and model.stop_reason_ == "converged"
    assert max(errors) <= 1e-12, errors


@pytest.mark.compiled_only
def test_recovery_by_an_operator_with_steps_alone():
    stack, values, truth = problem(60, 60, 3, 2.5)
    flat, n_calls = stack.reshape(len(stack), -1), [0]

    def adjoint(dual):
        n_calls[0] += 1
        return dual @ flat

    operator = LinearOperator(flat.shape, matvec=flat.__matmul__, rmatvec=adjoint, matmat=flat.__matmul__)
    model = LowRankRegression(shape=(60, 60)).fit(operator, values)
    assert error_of(model, truth) <= 1e-12 and model.stop_reason_ == "converged"
    assert n_calls[0] < 300 < len(values)  # the measurements were not written out


@pytest.mark.compiled_only
def test_recovery_from_rank_one_pairs_without_forming_any():
    left, right, values, truth = rank_one_problem(200, 200, 3, 3.0)
    tracemalloc.start()
    model = LowRankRegression().fit(RankOneMeasurements(left, right), values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error_of(model, truth) <= 1e-12 and model.rank_ == 3
    assert peak < 0.3 * 8 * left.size * 200  # of the stack


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
@pytest.mark.parametrize("rank", [2, None])
def test_small_recovery(solver, rank):
    for seed in range(3):
        stack, values, truth = problem(14, 11, 2, 2.5, seed)
        model = LowRankRegression(rank=rank, linear_solver=solver).fit(stack, values)
        assert error_of(model, truth) <= 1e-11, seed


def test_likely_ranks_are_tried_where_none_shows():
    """1.2 measurements per degree of freedom: the largest rank that could be told is the true one."""
    stack, values, truth = problem(20, 16, 2, 1.2, 1)
    model = LowRankRegression().fit(stack, values)
    assert error_of(model, truth) <= 1e-9 and model.rank_ == 2


def test_noise_without_a_ridge_ends():
    stack, values, _ = problem(12, 9, 2, 1.5, noise=1.0)
    model = LowRankRegression().fit(stack, values)
    assert model.stop_reason_ in ("converged", "floor")
    np.testing.assert_allclose(model.predict(stack), values, atol=1e-4)
    assert LowRankRegression(rank=2).fit(stack, values).rank_ == 2


@pytest.mark.parametrize(("sides", "agop_power"), [("both", 0.4), ("both", 0.5), ("columns", 0.5), ("columns", 1.0)])
def test_conjugate_gradients_end_before_rounding_has_the_rest(sides, agop_power):
    """More directions are heavy than the preconditioner may hold, so the descent of epsilon has to stop."""
    stack, values, _ = problem(8, 6, 2, 1.2, noise=0.3)
    for n in (1, len(values)):
        y = values[:n]
        model = LowRankRegression(linear_solver="cg", sides=sides, agop_power=agop_power).fit(stack[:n], y)
        assert np.linalg.norm(model.predict(stack[:n]) - y) <= 2e-3 * np.linalg.norm(y)
        assert model.singular_values_[0] < 2.0 * np.abs(values).max()


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
@pytest.mark.parametrize("agop_power", [0.5, 1.0])
def test_one_sided_recovery(solver, agop_power):
    stack, values, truth = problem(14, 11, 1, 4.0)
    model = LowRankRegression(rank=1, sides="columns", agop_power=agop_power, linear_solver=solver).fit(stack, values)
    # A factor of the whole system stops at a larger epsilon, which counts for more at large powers.
    assert error_of(model, truth) <= (1e-6 if solver == "cholesky" else 1e-7)
    assert model.stop_reason_ in ("converged", "floor") and model.rank_ == 1


def test_completion_is_a_special_case():
    rng = np.random.default_rng(3)
    truth = rng.standard_normal((20, 2)) @ rng.standard_normal((2, 15))
    rows, cols = np.nonzero(rng.random((20, 15)) < 0.6)
    model = LowRankRegression(rank=2).fit((np.eye(20)[rows], np.eye(15)[cols]), truth[rows, cols])
    result = complete(Observations.from_coo(rows, cols, truth[rows, cols], truth.shape), rank=2, method="two-sided")
    assert error_of(model, truth) <= 1e-10
    np.testing.assert_allclose(model.coef_, result.to_dense(), atol=1e-6)


@pytest.mark.parametrize("sides", ["both", "columns"])
def test_noise_beside_the_oracle(sides):
    """The oracle knows the column space or the row space: X = U Aᵀ + B Vᵀ, fitted by least squares."""
    ratios = []
    for seed in range(3):
        stack, clean, truth = problem(24, 18, 2, 4.0, seed)
        noise = 0.1 * np.linalg.norm(clean) / np.sqrt(len(clean))
        values = clean + noise * np.random.default_rng(100 + seed).standard_normal(len(clean))
        u, _, vt = np.linalg.svd(truth)
        places = np.add.outer(np.arange(24) < 2, np.arange(18) < 2) > 0
        design = (np.matmul(u.T, stack) @ vt.T)[:, places]
        core = np.zeros(truth.shape)
        core[places] = np.linalg.lstsq(design, values, rcond=None)[0]
        oracle = np.linalg.norm(u @ core @ vt - truth)
        # The ridge that soft-thresholds at the size of the noise's largest singular value.
        ridge = noise**2 * (24 + 18)
        model = LowRankRegression(ridge, sides=sides).fit(stack, values)
        assert model.rank_ == 2 and model.stop_reason_ == "converged"
        ratios.append(np.linalg.norm(model.coef_ - truth) / oracle)
    assert max(ratios) < 1.1, ratios


# --- invariances --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"linear_solver": "cg"}, {"sides": "columns", "rank": 2, "max_iter": 30}])
@pytest.mark.filterwarnings("ignore::fastrfm.errors.NotConvergedWarning")
def test_scaling_permuting_transposing(options):
    stack, values, _ = problem(12, 9)
    model = LowRankRegression(**options).fit(stack, values)
    scaled = LowRankRegression(**options).fit(stack, 1e-30 * values)
    np.testing.assert_allclose(scaled.coef_, 1e-30 * model.coef_, atol=1e-7 * 1e-30)
    larger = LowRankRegression(**options).fit(1e20 * stack, values)
    np.testing.assert_allclose(larger.coef_, 1e-20 * model.coef_, atol=1e-7 * 1e-20)
    order = np.random.default_rng(0).permutation(len(values))
    shuffled = LowRankRegression(**options).fit(stack[order], values[order])
    np.testing.assert_allclose(shuffled.coef_, model.coef_, atol=1e-7)
    if options.get("sides") != "columns":
        turned = LowRankRegression(**options).fit(stack.transpose(0, 2, 1), values)
        np.testing.assert_allclose(turned.coef_.T, model.coef_, atol=1e-7)


def test_scaling_with_a_ridge():
    stack, values, _ = problem(10, 8, noise=0.5)
    model = LowRankRegression(5.0, agop_power=0.375).fit(stack, values)
    scaled = LowRankRegression(5.0 * 100.0**1.5, agop_power=0.375).fit(stack, 100.0 * values)
    np.testing.assert_allclose(scaled.coef_, 100.0 * model.coef_, rtol=1e-8, atol=1e-6)


@pytest.mark.filterwarnings("ignore::fastrfm.errors.NotConvergedWarning")
@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_any_number_of_threads_gives_the_same_bits(solver):
    stack, values, _ = problem(60, 50)
    left, right, products, _ = rank_one_problem(60, 50, 2, 2.0)
    assert stack.size > _MUCH  # less is not shared
    for measured, y in ((stack, values), ((left, right), products)):
        one, two = (
            LowRankRegression(linear_solver=solver, n_threads=n, max_iter=4).fit(measured, y).coef_ for n in (1, None)
        )
        np.testing.assert_array_equal(one, two)


# --- kinds of input -----------------------------------------------------------------------------------------------


def test_sources(tmp_path):
    stack, values, truth = problem(12, 9)
    wanted = LowRankRegression(memory=4096).fit(stack, values)
    np.save(tmp_path / "a.npy", stack)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = stack
    with h5py.File(tmp_path / "a.h5") as file:
        mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
        for source in (mapped, file["a"], np.asfortranarray(stack), stack.tolist()):
            model = LowRankRegression(memory=4096).fit(source, values)
            np.testing.assert_array_equal(model.coef_, wanted.coef_)
            np.testing.assert_allclose(model.predict(source), values, atol=1e-8)
    small = stack.astype(np.float32)
    single = LowRankRegression().fit(small, np.tensordot(small.astype(np.float64), truth, 2).astype(np.float32))
    assert error_of(single, truth) < 1e-5 and single.coef_.dtype == np.float64


def test_nothing_given_is_changed():
    stack, values, _ = problem()
    kept = stack.copy(), values.copy()
    stack.setflags(write=False)
    values.setflags(write=False)
    for solver in ("cholesky", "cg"):
        LowRankRegression(linear_solver=solver).fit(stack, values)
    np.testing.assert_array_equal(stack, kept[0])
    np.testing.assert_array_equal(values, kept[1])


def test_measurements_that_depend_on_each_other():
    stack, values, truth = problem(12, 9)
    twice = np.concatenate([stack, stack[:20], stack[:5] + stack[5:10]])
    y = np.concatenate([values, values[:20], values[:5] + values[5:10]])
    assert error_of(LowRankRegression().fit(twice, y), truth) <= 1e-9
    # What contradicts is least squares.
    averaged = LowRankRegression(rank=2, linear_solver="cholesky").fit(
        np.concatenate([stack, stack]), np.concatenate([values + 0.01, values - 0.01])
    )
    assert error_of(averaged, truth) <= 1e-7
    many, values, truth = problem(25, 20, 3, 2.5)
    both = np.concatenate([many, many[:60]]), np.concatenate([values + 0.01, values[:60] - 0.01])
    chosen = LowRankRegression(rank=3).fit(*both)
    assert len(both[1]) > 300 and error_of(chosen, truth) <= 1e-3  # conjugate gradients were the first choice
    with pytest.raises(InputError, match="contradicts"):
        LowRankRegression(linear_solver="cg").fit(*both)


@pytest.mark.parametrize("n", [30, 45])
def test_as_many_measurements_as_entries_leave_one_matrix(n):
    rng = np.random.default_rng(0)
    stack, values = rng.standard_normal((n, 6, 5)), rng.standard_normal(n)
    model = LowRankRegression().fit(stack, values)
    assert model.stop_reason_ == "unique" and model.n_iter_ == 0
    np.testing.assert_allclose(model.coef_, reference.least_norm(stack, values), atol=1e-9)
    operator = aslinearoperator(stack.reshape(n, -1))
    np.testing.assert_allclose(LowRankRegression(shape=(6, 5)).fit(operator, values).coef_, model.coef_, atol=1e-9)
    with_ridge = [LowRankRegression(1.0, linear_solver=s).fit(stack, values).coef_ for s in ("cholesky", "cg")]
    np.testing.assert_allclose(with_ridge[0], with_ridge[1], atol=1e-2)


def test_edges():
    stack, values, _ = problem()
    nothing = LowRankRegression().fit(stack, np.zeros(len(values)))
    assert nothing.rank_ == 0 and nothing.stop_reason_ == "zero" and not nothing.coef_.any()
    assert nothing.score(stack, np.zeros(len(values))) == 1.0
    assert LowRankRegression().fit(np.zeros((3, 2, 2)), np.ones(3)).rank_ == 0
    one = LowRankRegression().fit(stack[:1], values[:1])
    assert one.rank_ == 1
    np.testing.assert_allclose(one.predict(stack[:1]), values[:1], rtol=1e-6)
    too_large = LowRankRegression(1e12).fit(stack, values)
    assert too_large.stop_reason_ in ("converged", "zero") and np.abs(too_large.coef_).max() < 1e-3
    for shape in ((1, 9), (12, 1), (1, 1)):
        measured, y, truth = problem(*shape, rank=1, oversampling=2.0)
        assert error_of(LowRankRegression().fit(measured, y), truth) <= 1e-9


# --- scikit-learn's manners, errors -------------------------------------------------------------------------------


def test_conventions():
    stack, values, _ = problem(8, 6)
    model = LowRankRegression(1.0, rank=2)
    assert repr(model) == "LowRankRegression(ridge=1.0, rank=2)" and clone(model).rank == 2
    with pytest.raises(NotFittedError):
        model.predict(stack)
    with pytest.raises(SklearnNotFittedError):
        model.predict(stack)
    assert not hasattr(model, "coef_")
    with pytest.raises(InputError, match="no parameter"):
        model.set_params(alpha=1.0)
    fitted = pickle.loads(pickle.dumps(model.fit(stack, values)))
    np.testing.assert_array_equal(fitted.predict(stack), model.predict(stack))
    assert {len(values) for values in model.history_.values()} == {model.n_iter_}
    np.testing.assert_allclose(model.left_ @ model.right_.T, model.coef_)
    assert model.score(stack, values) > 0.9
    search = GridSearchCV(LowRankRegression(), {"ridge": [0.1, 1e6]}, cv=3).fit(stack, values)
    assert search.best_params_ == {"ridge": 0.1}
    pairs = RankOneMeasurements(stack[:, :, 0], stack[:, 0, :])
    GridSearchCV(LowRankRegression(), {"ridge": [0.1, 1.0]}, cv=2).fit(pairs, values)
    assert repr(pairs[3]) == "RankOneMeasurements(1 of a 8 x 6 matrix)"


def test_without_scikit_learn():
    script = (
        "import sys; sys.modules['sklearn'] = None\nimport numpy as np\nfrom fastrfm import LowRankRegression\n"
        "a = np.random.RandomState(0).standard_normal((8, 3, 3))\n"
        "print(LowRankRegression(0.1).fit(a, a[:, 0, 0]).predict(a).shape)\n"
        "try:\n    LowRankRegression().predict(a)\nexcept ValueError as error:\n    print(type(error).__name__)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert run.stdout.split() == ["(8,)", "NotFittedError"], run.stderr


GOOD, Y = np.ones((3, 2, 2)), np.ones(3)
FLAT = np.arange(12.0).reshape(3, 4)
WRONG_ADJOINT = LinearOperator((3, 4), matvec=lambda x: FLAT @ x, rmatvec=lambda x: -(FLAT.T @ x))


@pytest.mark.parametrize(
    ("measurements", "y", "options", "message"),
    [
        (np.ones((3, 4)), Y, {}, "must be an array"),
        (np.ones((0, 2, 2)), np.ones(0), {}, "nothing to measure"),
        (GOOD * 1j, Y, {}, "Complex"),
        (np.full((3, 2, 2), np.nan), Y, {}, "measurement 0 holds NaN"),
        (np.full((3, 2, 2), "a"), Y, {}, "dtype"),
        (GOOD, np.ones(4), {}, "one number for each"),
        (GOOD, [1.0, np.nan, 1.0], {}, "measurement 1"),
        (GOOD, Y * 1j, {}, "Complex"),
        (GOOD, ["a", "b", "c"], {}, "numbers"),
        (GOOD, None, {}, "y"),
        (GOOD, Y, {"shape": (2, 3)}, "leave shape out"),
        (GOOD, Y, {"rank": 3}, "at most 2"),
        ((np.ones((3, 2)), np.ones((4, 2))), Y, {}, "as many vectors"),
        ((np.ones((3, 2)),), Y, {}, "left, right"),
        ((np.ones((3, 2)), np.full((3, 2), np.inf)), Y, {}, "row 0"),
        ((np.ones((3, 2)), np.ones(3)), Y, {}, "table"),
        ((np.ones((3, 2)), np.ones((3, 2)) * 1j), Y, {}, "complex"),
        (aslinearoperator(np.ones((3, 4))), Y, {}, "give shape"),
        (aslinearoperator(np.ones((3, 4))), Y, {"shape": (2, 3)}, "must have shape"),
        (aslinearoperator(np.ones((3, 4)) * 1j), Y, {"shape": (2, 2)}, "Complex"),
        (aslinearoperator(np.full((3, 4), np.nan)), Y, {"shape": (2, 2)}, "NaN"),
        ((np.ones((5, 2)), np.ones((5, 2))), np.ones(5), {"linear_solver": "cg"}, "least squares"),
        (GOOD, np.arange(3).astype("M8[D]"), {}, "dates"),
        ((np.ones((3, 2), dtype="m8[D]"), np.ones((3, 2))), Y, {}, "dates"),
        (GOOD, np.ma.array(Y, mask=[1, 0, 0]), {}, "masked"),
        (np.ma.array(GOOD, mask=GOOD > 0), Y, {}, "masked"),
        (1e-200 * GOOD, Y, {}, "float64"),
        (GOOD, 1e-300 * Y, {}, "float64"),
        (GOOD, 1e200 * Y, {}, "float64"),
        ((1e200 * np.ones((3, 2)), np.ones((3, 2))), Y, {}, "float64"),
        (WRONG_ADJOINT, Y, {"shape": (2, 2)}, "not the adjoint"),
        (LinearOperator((3, 4), matvec=lambda x: FLAT @ x), Y, {"shape": (2, 2)}, "has no rmatvec"),
        (GOOD, Y, {"ridge": -1.0}, "ridge"),
        (GOOD, Y, {"agop_power": 0.6}, "sides"),
        (GOOD, Y, {"sides": "rows"}, "sides"),
        (GOOD, Y, {"smoothing": "sigma_next"}, "rank"),
        (GOOD, Y, {"smoothing": "iterate_change"}, "smoothing"),
        (GOOD, Y, {"linear_solver": "lu"}, "linear_solver"),
        (GOOD, Y, {"n_threads": 0}, "n_threads"),
    ],
)
def test_inputs_that_cannot_be_used(measurements, y, options, message):
    with pytest.raises(InputError, match=message):
        LowRankRegression(**options).fit(measurements, y)


def test_prediction_of_another_shape():
    stack, values, _ = problem(8, 6)
    model = LowRankRegression(1.0).fit(stack, values)
    with pytest.raises(InputError, match="but the one found is"):
        model.predict(stack[:, :, :3])


def test_not_converged_is_a_warning():
    stack, values, _ = problem(8, 6, 1)
    with pytest.warns(NotConvergedWarning, match="max_iter"):
        model = LowRankRegression(max_iter=3).fit(stack, values)
    assert model.stop_reason_ == "max_iter" and model.n_iter_ == 3


def test_reading_keeps_what_can_be_used():
    stack, _, _ = problem(8, 6)
    with thread_limit(1):
        found = read_measurements(stack, LowRankOptions())
    assert found.stack is stack
