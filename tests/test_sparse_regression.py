"""SparseRegression, its path and its cross-validation: scikit-learn's checks, weights, intercepts, files, errors."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from numba import cuda
from scipy.optimize import linprog
from sklearn.base import clone
from sklearn.exceptions import NotFittedError as SklearnNotFittedError
from sklearn.linear_model import Lasso
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.utils.estimator_checks import check_estimator

from fastrfm import SparseRegression, SparseRegressionCV, sparse_regression_path
from fastrfm.errors import DeviceError, DeviceWarning, FileFormatError, InputError, NotConvergedWarning, NotFittedError


def problem(n=60, p=120, seed=0, noise=0.3):
    rng = np.random.default_rng(seed)
    matrix, coef = rng.standard_normal((n, p)) + 3.0, np.zeros(p)
    coef[[3, 10, 17]] = 2.0, -1.5, 1.0
    return matrix, matrix @ coef + 5.0 + noise * rng.standard_normal(n), coef


@pytest.mark.parametrize("estimator", [SparseRegression(), SparseRegression(0.1), SparseRegressionCV(n_ridges=10)])
def test_scikit_learn_checks(estimator):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it does not inherit from scikit-learn's classes, among others
        outcomes = check_estimator(estimator, on_skip=None)
    assert len(outcomes) > 40 and {outcome["status"] for outcome in outcomes} <= {"passed", "skipped"}


def test_lasso_units():
    X, y, _ = problem()
    ours = SparseRegression(0.1 * len(y), agop_power=0.25).fit(X, y)
    theirs = Lasso(alpha=0.1, tol=1e-10, max_iter=100_000).fit(X, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-5)
    assert ours.intercept_ == pytest.approx(theirs.intercept_, abs=1e-4)
    np.testing.assert_allclose(ours.predict(X), X @ ours.coef_ + ours.intercept_)
    assert ours.score(X, y) == pytest.approx(r2_score(y, ours.predict(X)))


@pytest.mark.compiled_only
@pytest.mark.parametrize("n_nonzero", [16, 19])
def test_least_l1_norm_among_what_interpolates(n_nonzero):
    """At the limits of recovery a fast fall of ε ends 3e-3 above the least norm, which a linear programme knows."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        features, coef = rng.standard_normal((80, 320)), np.zeros(320)
        coef[rng.choice(320, n_nonzero, replace=False)] = 1.0
        target = features @ coef
        both = np.hstack([features, -features])
        least = linprog(np.ones(640), A_eq=both, b_eq=target, method="highs-ds").fun
        found = SparseRegression(agop_power=0.25, fit_intercept=False).fit(features, target).coef_
        assert np.abs(found).sum() <= (1.0 + 3e-4) * least
        np.testing.assert_allclose(features @ found, target, atol=1e-8)


@pytest.mark.parametrize(
    "options", [{"ridge": 0.5}, {"ridge": 0.5, "agop_power": 0.25}, {"ridge": 0.5, "agop_power": 0.2}, {}]
)
def test_weights_are_repetitions(options):
    X, y, _ = problem(30, 20)
    counts = np.random.default_rng(2).integers(0, 4, 30)
    weighted = SparseRegression(**options).fit(X, y, counts)
    repeated = SparseRegression(**options).fit(np.repeat(X, counts, axis=0), np.repeat(y, counts))
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, atol=1e-7)
    assert weighted.score(X, y, counts) == pytest.approx(
        repeated.score(np.repeat(X, counts, axis=0), np.repeat(y, counts))
    )


def test_several_targets_are_fitted_one_by_one():
    X, y, _ = problem()
    both = SparseRegression(1.0).fit(X, np.column_stack([y, -2.0 * y[::-1]]))
    assert both.coef_.shape == (2, 120) and both.predict(X).shape == (60, 2) and len(both.stop_reason_) == 2
    np.testing.assert_allclose(both.coef_[0], SparseRegression(1.0).fit(X, y).coef_)


@pytest.mark.parametrize("ridge", [0.0, 1.0])
def test_sources(ridge, tmp_path):
    X, y, _ = problem(noise=0.0 if ridge == 0.0 else 0.3)
    wanted = SparseRegression(ridge).fit(X, y)
    np.save(tmp_path / "x.npy", X)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = X
    with h5py.File(tmp_path / "x.h5") as file:
        for source in (scipy.sparse.csc_matrix(X), np.load(tmp_path / "x.npy", mmap_mode="r"), file["x"]):
            model = SparseRegression(ridge, memory=4096).fit(source, y)
            np.testing.assert_allclose(model.coef_, wanted.coef_, atol=1e-7)
            np.testing.assert_allclose(model.predict(source), wanted.predict(X), atol=1e-6)


@pytest.mark.compiled_only
@pytest.mark.parametrize("options", [{"ridge": 1.0}, {"ridge": 1.0, "smoothing": 0.3}, {"ridge": 0.0}], ids=str)
@pytest.mark.parametrize("dtypes", [("f8", "i4", "i4"), ("f4", "i8", "i8"), ("i2", "u4", "u8")])
def test_compressed_rows_of_a_file(options, dtypes, tmp_path):
    X, y, _ = problem(n=24, p=40)
    X = np.round(2.0 * X * (np.random.default_rng(5).random(X.shape) < 0.3))
    X[7] = 0.0
    matrix = scipy.sparse.csr_array(X)
    wanted = SparseRegression(**options).fit(matrix, y)
    weighted = SparseRegression(**options).fit(matrix, y, np.arange(1.0, 25.0))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "shape": X.shape})
        for name, dtype in zip(("data", "indices", "indptr"), dtypes, strict=True):
            group.create_dataset(name, data=getattr(matrix, name).astype(dtype), chunks=(16,))
        # Read whole, in few blocks, in many, row by row; the Gram over all columns reads pairs of blocks.
        is_sharp = options == {"ridge": 1.0}
        few = (None, 16 * 250) if dtypes[0] == "f8" else (None,)
        for memory in (None, 16 * 150, 16 * 60, 1) if is_sharp else few:
            model = SparseRegression(**options, memory=memory).fit(group, y)
            np.testing.assert_allclose(model.coef_, wanted.coef_, atol=1e-8)
            np.testing.assert_allclose(model.predict(group), wanted.predict(X), atol=1e-7)
            model.fit(group, y, np.arange(1.0, 25.0))
            np.testing.assert_allclose(model.coef_, weighted.coef_, atol=1e-8)
        with pytest.raises(InputError, match="leave such rows out"):
            SparseRegression(1.0, memory=1).fit(group, y, np.arange(24.0))


def test_compressed_rows_that_cannot_be_used(tmp_path):
    X, y, _ = problem(n=10, p=20)
    matrix = scipy.sparse.csr_array(X)

    def refuse(error, message, memory=None, **changed):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            group = file.create_group("X")
            group.attrs["encoding-type"] = changed.pop("encoding", "csr_matrix")
            group.attrs["shape"] = changed.pop("shape", X.shape)
            for name in ("data", "indices", "indptr"):
                group[name] = changed.get(name, getattr(matrix, name))
            with pytest.raises(error, match=message):
                SparseRegression(1.0, memory=memory).fit(group, y)

    for memory in (None, 64):
        refuse(InputError, "of encoding-type csc_matrix: only", memory, encoding="csc_matrix")
        refuse(InputError, "NaN or infinity", memory, data=np.where(np.arange(200) == 150, np.nan, 1.0))
        refuse(InputError, r"lie in 0…19, got 20 in /X/indices", memory, indices=matrix.indices + 1)
        refuse(InputError, "got -1", memory, indices=matrix.indices - 1)
        refuse(InputError, "indptr must rise", memory, indptr=matrix.indptr[::-1])
        refuse(InputError, "must be two whole numbers", memory, shape=(10,))
        refuse(FileFormatError, "must have shape", memory, shape=(11, 20))
        refuse(
            InputError,
            r"0 feature\(s\)",
            memory,
            shape=(10, 0),
            data=np.zeros(0),
            indices=np.zeros(0, int),
            indptr=np.zeros(11, int),
        )
    with h5py.File(tmp_path / "x.h5", "w") as file, pytest.raises(InputError, match="of encoding-type none"):
        SparseRegression(1.0).fit(file, y)


def test_warm_start_goes_on():
    X, y, _ = problem()
    model = SparseRegression(2.0, warm_start=True).fit(X, y)
    cold, coef = model.n_iter_, model.coef_
    assert model.fit(X, y).n_iter_ < cold
    np.testing.assert_allclose(model.coef_, coef, rtol=1e-6)


def test_not_converged_is_a_warning():
    X, y, _ = problem()
    with pytest.warns(NotConvergedWarning):
        model = SparseRegression(0.5, agop_power=0.2, max_iter=2).fit(X, y)
    assert model.stop_reason_ == "max_iter" and model.n_iter_ == 2


def test_names_and_frames():
    X, y, _ = problem(p=50)
    frame = pd.DataFrame(X, columns=[f"c{j}" for j in range(50)])
    model = SparseRegression(1.0).fit(frame, y)
    assert model.feature_names_in_.tolist() == frame.columns.tolist()
    with pytest.raises(InputError, match="should match"):
        model.predict(frame[frame.columns[::-1]])
    with pytest.warns(UserWarning, match="valid feature names"):
        model.predict(X)


def test_conventions():
    X, y, _ = problem()
    model = SparseRegression(1.0, agop_power=1.0)
    assert repr(model) == "SparseRegression(ridge=1.0, agop_power=1.0)" and clone(model).ridge == 1.0
    with pytest.raises(NotFittedError):
        model.predict(X)
    with pytest.raises(SklearnNotFittedError):
        model.predict(X)
    with pytest.raises(InputError, match="no parameter"):
        model.set_params(alpha=1.0)
    fitted = pickle.loads(pickle.dumps(model.fit(X, y)))
    np.testing.assert_array_equal(fitted.predict(X), model.predict(X))
    search = GridSearchCV(SparseRegression(), {"ridge": [0.1, 10.0]}, cv=3).fit(X, y)
    assert search.best_score_ > 0.9


def test_without_scikit_learn():
    script = (
        "import sys; sys.modules['sklearn'] = None\nimport numpy as np\nfrom fastrfm import SparseRegression\n"
        "X = np.eye(4)[:, :3]\nprint(SparseRegression(0.1).fit(X, X @ [1, 0, 2]).predict(X).shape)\n"
        "try:\n    SparseRegression().predict(X)\nexcept ValueError as error:\n    print(type(error).__name__)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert run.stdout.split() == ["(4,)", "NotFittedError"], run.stderr


@pytest.mark.parametrize(
    ("X", "y", "weights", "message"),
    [
        (np.ones(3), np.ones(3), None, "Expected 2D"),
        ([[np.nan]], [1.0], None, "NaN"),
        (np.ones((3, 2)), [1.0, np.inf, 0.0], None, "y must be finite"),
        (np.ones((3, 2)), np.ones(2), None, "as many samples"),
        (np.ones((3, 2)), np.ones(3), [1.0, -1.0, 1.0], "sample_weight"),
        (np.ones((3, 2)), np.ones(3), np.ones(2), "sample_weight"),
        (np.ones((3, 2)), scipy.sparse.eye_array(3), None, "dense"),
        (np.ones((3, 2)) * 1j, np.ones(3), None, "Complex"),
    ],
)
def test_inputs_that_cannot_be_used(X, y, weights, message):
    with pytest.raises(InputError, match=message):
        SparseRegression().fit(X, y, weights)


# --- path and cross-validation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("agop_power", [0.25, 0.5, 1.0])
def test_a_path_is_made_of_fits(agop_power):
    X, y, coef = problem()
    ridges, coefs, intercepts = sparse_regression_path(X, y, agop_power=agop_power, n_ridges=30, least_share=0.01)
    assert not coefs[0].any() and (np.diff(ridges) < 0.0).all() and len(ridges) == len(coefs) == len(intercepts)
    at = len(ridges) // 2
    single = SparseRegression(ridges[at], agop_power=agop_power).fit(X, y)
    np.testing.assert_allclose(coefs[at], single.coef_, atol=1e-5)
    assert intercepts[at] == pytest.approx(single.intercept_, abs=1e-4)
    assert any(np.array_equal(np.flatnonzero(found), np.flatnonzero(coef)) for found in coefs)


def test_a_path_ends_where_it_is_told():
    X, y, _ = problem()
    _, coefs, _ = sparse_regression_path(X, y, max_features=2)
    assert (np.count_nonzero(coefs[:-1], axis=1) <= 2).all() and np.count_nonzero(coefs[-1]) > 2
    given, _, _ = sparse_regression_path(X, y, ridges=[50.0, 10.0])
    assert given.tolist() == [50.0, 10.0]
    for wrong in ({"ridges": [1.0, 2.0]}, {"ridges": [0.0]}, {"agop_power": 0.2}):
        with pytest.raises(InputError):
            sparse_regression_path(X, y, **wrong)


def test_cross_validation_selects():
    X, y, coef = problem(80, 150)
    model = SparseRegressionCV(n_ridges=20, one_standard_error=True).fit(X, y)
    assert np.array_equal(np.flatnonzero(model.coef_), np.flatnonzero(coef))
    assert np.abs(model.coef_ - coef).max() < 0.25 and model.agop_power_ in model.agop_powers
    least = SparseRegressionCV(n_ridges=20).fit(X, y)
    table = least.cv_results_
    assert table["mean_error"].min() == table["mean_error"][
        (table["ridge"] == least.ridge_) & (table["agop_power"] == least.agop_power_)
    ].min()  # fmt: skip
    assert np.count_nonzero(model.coef_) <= np.count_nonzero(least.coef_)


def test_cross_validation_folds_and_errors():
    X, y, _ = problem(40, 30)
    given = SparseRegressionCV([0.5], n_ridges=8, cv=KFold(3)).fit(X, y)
    pairs = SparseRegressionCV([0.5], n_ridges=8, cv=list(KFold(3).split(X))).fit(X, y)
    np.testing.assert_array_equal(given.cv_results_["mean_error"], pairs.cv_results_["mean_error"])
    both = SparseRegressionCV([0.5], n_ridges=8, cv=3).fit(X, np.column_stack([y, y]))
    np.testing.assert_allclose(both.coef_[0], both.coef_[1])
    for wrong in ({"agop_powers": 0.5}, {"agop_powers": np.sqrt}):
        with pytest.raises(InputError, match="agop_powers must be a list"):
            SparseRegressionCV(**wrong).fit(X, y)
    for wrong in ({"agop_powers": [0.2]}, {"agop_powers": []}, {"cv": 1}, {"cv": [(np.arange(3), np.arange(3, 6))]}):
        with pytest.raises(InputError):
            SparseRegressionCV(**wrong).fit(X, y)


@pytest.mark.parametrize("shape", [(40, 60), (60, 20)])
def test_a_ridge_of_zero_is_a_candidate(shape):
    X, y, coef = problem(*shape, noise=0.0)
    ridges = [3.0, 1.0, 0.0]
    model = SparseRegressionCV(agop_powers=[0.5], ridges=ridges).fit(X, y)
    assert model.ridge_ == 0.0 and model.cv_results_["ridge"].tolist() == ridges
    np.testing.assert_allclose(model.coef_, coef, atol=1e-8)
    np.testing.assert_array_equal(model.coef_, SparseRegression().fit(X, y).coef_)
    assert model.cv_results_["mean_error"][2] < 1e-12 < model.cv_results_["mean_error"][1]
    alone = SparseRegressionCV(agop_powers=[0.5], ridges=[0.0]).fit(X, np.column_stack([y, -y]))
    np.testing.assert_allclose(alone.coef_, [coef, -coef], atol=1e-8)


def test_with_noise_a_ridge_of_zero_is_not_chosen():
    X, y, _ = problem(noise=1.0)
    with_zero = SparseRegressionCV(agop_powers=[0.25], ridges=[30.0, 10.0, 0.0]).fit(X, y)
    without = SparseRegressionCV(agop_powers=[0.25], ridges=[30.0, 10.0]).fit(X, y)
    assert with_zero.ridge_ == without.ridge_ > 0.0
    np.testing.assert_array_equal(with_zero.coef_, without.coef_)
    np.testing.assert_array_equal(with_zero.cv_results_["mean_error"][:2], without.cv_results_["mean_error"])
    with pytest.raises(InputError, match="one ridge of 0 is enough"):
        SparseRegressionCV(ridges=[1.0, 0.0, 0.0]).fit(X, y)
    with pytest.raises(InputError, match="no path leads to 0"):
        sparse_regression_path(X, y, ridges=[1.0, 0.0])


def test_a_device_that_is_not_there():
    if cuda.is_available():
        pytest.skip("there is a device")
    matrix, target = np.eye(4), np.arange(4.0)
    with pytest.raises(DeviceError, match='device="cpu"'):
        SparseRegression(device="cuda").fit(matrix, target)
    with pytest.raises(DeviceError, match='device="cpu"'):
        sparse_regression_path(matrix, target, device="cuda")
    with pytest.raises(DeviceError, match='device="cpu"'):
        SparseRegressionCV(cv=2, device="cuda").fit(matrix, target)
    with pytest.raises(InputError, match="device"):
        SparseRegression(device="tpu").fit(matrix, target)
    expected = SparseRegression(ridge=0.1).fit(matrix, target)
    with pytest.warns(DeviceWarning):
        found = SparseRegression(ridge=0.1, device="auto").fit(matrix, target)
    np.testing.assert_array_equal(found.coef_, expected.coef_)
