"""MatrixCompletion: fitting, completing new rows against a naive twin, and scikit-learn's conventions."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError as SklearnNotFittedError
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted

from fastrfm.errors import FastrfmError, InputError, NotConvergedWarning, NotFittedError
from fastrfm.estimators import MatrixCompletion
from fastrfm.observations import Observations
from fastrfm.options import AUTOMATIC, CompletionOptions

NAN = np.nan
RANK = 3


def low_rank(n_rows, n_cols=24, seed=0):
    """Return rows of one fixed row space; `seed` picks the rows."""
    basis = np.random.RandomState(99).standard_normal((RANK, n_cols))
    return np.random.RandomState(seed).standard_normal((n_rows, RANK)) @ basis


def with_gaps(matrix, share=0.5, seed=1):
    return np.where(np.random.RandomState(seed).random_sample(matrix.shape) < share, matrix, NAN)


def noisy_table(n_rows=60, seed=0):
    truth = low_rank(n_rows, seed=seed)
    return with_gaps(truth + 0.3 * np.random.RandomState(seed + 5).standard_normal(truth.shape))


@pytest.fixture(scope="module")
def exact():
    truth = low_rank(70)
    table = with_gaps(truth)
    model = MatrixCompletion()
    return truth, table, model, model.fit_transform(table)


@pytest.fixture(scope="module")
def ridged():
    return MatrixCompletion(ridge=2.0, tol=1e-9, rank=RANK).fit(noisy_table())


@pytest.fixture(scope="module")
def offset():
    table = noisy_table() + 7.0 + np.arange(24) / 4 + np.random.RandomState(3).standard_normal(60)[:, None]
    return table, MatrixCompletion(ridge=2.0, tol=1e-9, rank=RANK, offsets=True).fit(table)


def naive_rows(model, table):
    """Return the new rows' estimate by explicit ridge regressions, for tables without empty rows or columns."""
    right = model.right_[:, : model.rank_]
    weights = model.singular_values_ ** (4 * model.result_.options["agop_power"])
    out = np.empty(table.shape)
    for i, row in enumerate(table):
        seen = ~np.isnan(row)
        features = right[seen]
        system = features.T @ features + model.ridge * np.diag(1.0 / weights)
        out[i] = right @ np.linalg.solve(system, features.T @ row[seen])
    return out


# --- fitting ------------------------------------------------------------------------------------------------------


@pytest.mark.compiled_only
def test_fit_transform_recovers_and_keeps_what_was_given(exact):
    truth, table, model, completed = exact
    np.testing.assert_allclose(completed, truth, atol=1e-5)
    seen = ~np.isnan(table)
    np.testing.assert_array_equal(completed[seen], table[seen])
    assert completed.dtype == np.float64 and model.rank_ == RANK and model.stop_reason_ == "converged"


@pytest.mark.compiled_only
def test_observed_entries_are_kept_where_the_estimate_differs(ridged):
    table = noisy_table()
    completed = clone(ridged).fit_transform(table)
    seen = ~np.isnan(table)
    np.testing.assert_array_equal(completed[seen], table[seen])
    estimate = ridged.result_.to_dense()
    np.testing.assert_array_equal(completed[~seen], estimate[~seen])
    assert np.abs(estimate - table)[seen].max() > 0.1


def test_attributes_are_those_of_the_result(exact):
    _, _, model, _ = exact
    result = model.result_
    assert model.left_ is result.left and model.right_ is result.right and model.offsets_ is None
    assert model.singular_values_ is result.singular_values and model.n_iter_ == result.n_iter
    assert model.n_features_in_ == 24 and not hasattr(model, "feature_names_in_")
    rows, cols = [0, 3], [5, 1]
    np.testing.assert_array_equal(model.predict(rows, cols), result.predict(rows, cols))
    np.testing.assert_array_equal(model.get_feature_names_out()[:2], ["x0", "x1"])


def test_fit_returns_itself_and_a_second_fit_forgets_the_first():
    frame = pd.DataFrame(low_rank(30, 6), columns=list("abcdef"))
    model = MatrixCompletion(rank=RANK)
    assert model.fit(frame) is model
    model.fit(low_rank(20, 5))
    assert not hasattr(model, "feature_names_in_") and model.n_features_in_ == 5
    assert model.transform(low_rank(4, 5)).shape == (4, 5)


def test_a_failed_fit_leaves_the_former_one():
    model = MatrixCompletion(rank=2).fit(np.outer(np.arange(1.0, 9), np.arange(1.0, 6)))
    before = model.result_
    with pytest.raises(InputError):
        model.fit(np.full((3, 3), NAN))
    assert model.result_ is before and model.n_features_in_ == 5


@pytest.mark.compiled_only
def test_too_few_iterations_warn():
    with pytest.warns(NotConvergedWarning, match="max_iter = 2"):
        model = MatrixCompletion(max_iter=2).fit(with_gaps(low_rank(30)))
    assert model.stop_reason_ == "max_iter" and model.n_iter_ == 2


# --- new rows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [1e-3, 2.0, 50.0])
@pytest.mark.parametrize("agop_power", [0.25, 0.5, 0.8])
@pytest.mark.parametrize("share", [0.1, 0.6])
def test_transform_equals_naive_ridge(ridged, ridge, agop_power, share):
    model = clone(ridged).set_params(ridge=ridge, agop_power=agop_power)
    model.__dict__.update({name: value for name, value in vars(ridged).items() if name.endswith("_") or name[0] == "_"})
    # Same factors under other options: a fit of its own would drop directions, and leave less to compare.
    model.result_ = replace(ridged.result_, options={**ridged.result_.options, **model.get_params()})
    table = with_gaps(low_rank(40, seed=8), share, seed=9)
    table[:, 0] = np.where(np.isnan(table).all(axis=1), 1.0, table[:, 0])
    counts = (~np.isnan(table)).sum(axis=1)
    assert model.rank_ == RANK and (counts.min() < RANK or share > 0.5)
    missing = np.isnan(table)
    want = naive_rows(model, table)
    # At the smallest ridge the weights of the directions span nine decades: seven digits are left to either side.
    np.testing.assert_allclose(model.transform(table)[missing], want[missing], rtol=1e-6, atol=1e-8)


def test_transform_recovers_new_rows_of_the_same_row_space(exact):
    _, _, model, _ = exact
    truth = low_rank(50, seed=4)
    table = with_gaps(truth, 0.4, seed=5)
    table[0] = NAN
    table[0, [2, 9, 17]] = truth[0, [2, 9, 17]]  # just as many entries as directions
    completed = model.transform(table)
    np.testing.assert_allclose(completed, truth, atol=1e-5)
    seen = ~np.isnan(table)
    np.testing.assert_array_equal(completed[seen], table[seen])


@pytest.mark.parametrize("agop_power", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("n_seen", [1, 2])
def test_short_rows_take_the_solution_of_least_weighted_norm(agop_power, n_seen):
    model = MatrixCompletion(agop_power=agop_power, ridge=0.0, rank=RANK, tol=1e-4).fit(low_rank(40))
    new = np.full((1, 24), NAN)
    new[0, [3, 11][:n_seen]] = [1.5, -2.0][:n_seen]
    right = model.right_[:, : model.rank_]
    scale = model.singular_values_ ** (2 * agop_power)
    seen = ~np.isnan(new[0])
    coefficients = scale * (np.linalg.pinv(right[seen] * scale) @ new[0, seen])
    want = np.where(seen, new[0], right @ coefficients)
    np.testing.assert_allclose(model.transform(new)[0], want, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose((right @ coefficients)[seen], new[0, seen])


def test_fitted_rows_come_out_as_fitted(exact):
    _, table, model, completed = exact
    np.testing.assert_allclose(model.transform(table), completed, atol=1e-6)


@pytest.mark.compiled_only
@pytest.mark.parametrize("method", ["dense", "factored"])
def test_fitted_rows_come_out_as_fitted_with_a_ridge(method):
    table = noisy_table()
    model = MatrixCompletion(ridge=5.0, tol=1e-10, method=method)
    np.testing.assert_allclose(model.fit_transform(table), model.transform(table), atol=1e-4)


@pytest.mark.compiled_only
def test_fitted_rows_come_out_as_fitted_with_offsets(offset):
    table, _ = offset
    model = MatrixCompletion(ridge=2.0, tol=1e-10, offsets=True)
    np.testing.assert_allclose(model.fit_transform(table), model.transform(table), atol=1e-5)


def test_new_row_offsets_are_shrunken_like_the_fitted(offset):
    table, model = offset
    result = model._complete_rows(Observations.from_dense(table))
    np.testing.assert_allclose(result.offsets.rows, model.offsets_.rows, atol=1e-4)


def test_offsets_of_new_rows_equal_naive(offset):
    _, model = offset
    table = noisy_table(10, seed=6) + 9.0
    shrinkage = model._fitted_columns.row_shrinkage
    assert shrinkage > 0.0
    residual = table - model.offsets_.mean - model.offsets_.cols
    rows = np.nansum(residual, axis=1) / ((~np.isnan(table)).sum(axis=1) + shrinkage)
    base = model.offsets_.mean + model.offsets_.cols + rows[:, None]
    want = np.where(np.isnan(table), base + naive_rows(model, table - base), table)
    np.testing.assert_allclose(model.transform(table), want, rtol=1e-7)


def test_equal_fitted_rows_give_new_rows_no_offset():
    model = MatrixCompletion(offsets=True, rank=1).fit([[1.0, 2.0, 4.0]])
    np.testing.assert_allclose(model._complete_rows(Observations.from_dense([[5.0, 5.0, 5.0]])).offsets.rows, 0.0)


def test_an_empty_new_row_gets_the_column_means(exact):
    _, table, model, _ = exact
    new = np.full((2, 24), NAN)
    want = np.nanmean(table, axis=0)
    np.testing.assert_allclose(model.transform(new), [want, want])
    new[1] = table[1]
    np.testing.assert_allclose(model.transform(new)[0], want)
    np.testing.assert_allclose(model.column_means_, want)


def test_an_empty_new_row_gets_the_offsets(offset):
    _, model = offset
    want = model.offsets_.mean + model.offsets_.cols
    np.testing.assert_allclose(model.transform(np.full((1, 24), NAN))[0], want)


def test_empty_rows_and_columns_are_filled_as_in_the_fit():
    table = with_gaps(low_rank(40) + 1.0)
    table[4], table[:, 7] = NAN, NAN
    model = MatrixCompletion(rank=4, ridge=1.0, tol=1e-9)
    fitted = model.fit_transform(table)
    assert model.right_.shape == (24, model.rank_ + 2)
    new = model.transform(table)
    np.testing.assert_allclose(new[4], fitted[4])  # column means, the overall mean in column 7
    np.testing.assert_allclose(new[:, 7], fitted[:, 7])  # row means
    np.testing.assert_allclose(new, fitted, atol=1e-4)
    only_there = np.full((1, 24), NAN)
    only_there[0, 7] = 3.0
    want = fitted[4].copy()
    want[7] = 3.0
    np.testing.assert_allclose(model.transform(only_there)[0], want)


def test_a_fit_without_directions_predicts_zero():
    table = noisy_table()
    model = MatrixCompletion(ridge=1e9, agop_power=0.25, method="factored", tol=1e-3).fit(table)
    new = np.full((1, 24), NAN)
    new[0, 0] = 2.0
    completed = model.transform(new)
    assert completed[0, 0] == 2.0 and np.abs(completed[0, 1:]).max() < 1e-3


def test_transform_uses_the_options_of_the_fit(ridged):
    table = noisy_table(5, seed=7)
    before = ridged.transform(table)
    other = pickle.loads(pickle.dumps(ridged)).set_params(ridge=500.0, agop_power=0.25)
    np.testing.assert_array_equal(other.transform(table), before)


def test_threads_and_company_do_not_change_a_row(ridged):
    table = noisy_table(30, seed=7)
    whole = ridged.transform(table)
    alone = np.vstack([ridged.transform(row[None]) for row in table])
    np.testing.assert_allclose(alone, whole, rtol=1e-13)
    single = pickle.loads(pickle.dumps(ridged)).set_params(n_threads=1)
    np.testing.assert_array_equal(single.transform(table), whole)


@pytest.mark.compiled_only
def test_scaling_the_data_scales_the_answer(exact):
    _, table, model, _ = exact
    new = with_gaps(low_rank(5, seed=3), 0.1, seed=3)
    for scale in (1e-40, 1e40):
        scaled = MatrixCompletion().fit(table * scale)
        np.testing.assert_allclose(scaled.transform(new * scale) / scale, model.transform(new), rtol=1e-4, atol=1e-6)


# --- kinds of input -----------------------------------------------------------------------------------------------


@pytest.mark.compiled_only
def test_data_frames_lend_their_names(exact):
    _, table, _, completed = exact
    columns = [f"item {j}" for j in range(24)]
    index = [f"user {i}" for i in range(70)]
    frame = pd.DataFrame(table, index=index, columns=columns)
    model = MatrixCompletion()
    np.testing.assert_array_equal(model.fit_transform(frame), completed)
    assert model.feature_names_in_.tolist() == columns and model.result_.row_names.tolist() == index
    assert model.get_feature_names_out().tolist() == columns
    np.testing.assert_array_equal(model.get_feature_names_out(columns), columns)
    np.testing.assert_array_equal(model.transform(frame), model.transform(table))
    with pytest.raises(InputError, match="column 0 is 'item 23', wanted 'item 0'"):
        model.transform(frame[columns[::-1]])
    with pytest.raises(InputError, match="feature_names_in_"):
        model.get_feature_names_out(columns[::-1])
    with pytest.raises(InputError, match="equal to the number of features, 24, got 2"):
        model.get_feature_names_out(["a", "b"])
    empty = model.transform(frame.iloc[:1] * NAN)
    np.testing.assert_allclose(empty[0], model.column_means_)


def test_data_frames_of_other_kinds():
    plain = pd.DataFrame({"a": [1, 2, None], "b": [2.0, 4.0, 6.0]})
    nullable = plain.convert_dtypes()
    assert nullable.dtypes.astype(str).tolist() == ["Int64", "Int64"]
    want = MatrixCompletion(rank=1).fit_transform(plain)
    np.testing.assert_array_equal(MatrixCompletion(rank=1).fit_transform(nullable), want)
    np.testing.assert_array_equal(MatrixCompletion(rank=1).fit_transform(plain.astype(object)), want)
    unnamed = MatrixCompletion(rank=1).fit(pd.DataFrame(plain.to_numpy()))
    assert not hasattr(unnamed, "feature_names_in_") and unnamed.result_.row_names is None
    with pytest.raises(InputError, match="numbers"):
        MatrixCompletion().fit(pd.DataFrame({"a": ["x", "y"], "b": [1, 2]}))


@pytest.mark.compiled_only
@pytest.mark.parametrize("kind", [scipy.sparse.csr_matrix, scipy.sparse.csc_array, scipy.sparse.coo_array])
def test_sparse_input_has_its_stored_entries_observed(exact, kind):
    _, table, _, completed = exact
    table = table.copy()
    rows, cols = np.nonzero(~np.isnan(table))
    sparse = kind((table[rows, cols], (rows, cols)), shape=table.shape)
    model = MatrixCompletion()
    np.testing.assert_array_equal(model.fit_transform(sparse), completed)
    np.testing.assert_array_equal(model.transform(sparse), model.transform(table))
    np.testing.assert_allclose(model.transform(kind((2, 24)))[1], model.column_means_)


@pytest.mark.compiled_only
def test_observations_and_lists_are_tables_too(exact):
    _, table, _, completed = exact
    model = MatrixCompletion()
    np.testing.assert_array_equal(model.fit_transform(Observations.from_dense(table)), completed)
    np.testing.assert_array_equal(model.fit_transform(table.tolist()), completed)
    np.testing.assert_array_equal(model.fit_transform(np.ma.masked_invalid(table)), completed)
    masked = np.ma.masked_all((1, 24))
    np.testing.assert_allclose(model.transform(masked)[0], model.column_means_)
    np.testing.assert_allclose(model.transform([[None] * 24])[0], model.column_means_)


@pytest.mark.compiled_only
def test_read_only_and_strided_input_stays_as_it_is(exact):
    _, table, _, completed = exact
    wide = np.repeat(table, 2, axis=1)
    view = wide[:, ::2]
    wide.setflags(write=False)
    before = wide.copy()
    model = MatrixCompletion()
    np.testing.assert_array_equal(model.fit_transform(view), completed)
    model.transform(view)
    model.score(view)
    np.testing.assert_array_equal(wide, before)


def test_float32_gives_float64_estimates(exact):
    truth, table, _, _ = exact
    model = MatrixCompletion(rank=RANK, tol=1e-5)
    completed = model.fit_transform(table.astype(np.float32))
    assert completed.dtype == np.float64
    np.testing.assert_allclose(completed, truth, atol=1e-3)
    np.testing.assert_allclose(model.transform(table.astype(np.float32)), truth, atol=1e-3)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.ones((2, 23)), "X has 23 features.*expecting 24"),
        (scipy.sparse.csr_array(np.ones((2, 25))), "X has 25 features.*expecting 24"),
        (np.full((2, 23), NAN), "X has 23 features.*expecting 24"),
        (np.ones(24), "2 dimensions"),
        (np.full(24, NAN), "2 dimensions"),
        (np.ones((0, 24)), "empty"),
        (np.full((1, 24), np.inf), "finite"),
        ([["a"] * 24], "numbers"),
        (np.array([["a"] * 24], dtype=object), "numbers"),
        ([[1.0], [1.0, 2.0]], "numbers"),
    ],
)
def test_unusable_new_rows_are_refused(exact, table, message):
    model = exact[2]
    for method in (model.transform, model.score):
        with pytest.raises(InputError, match=message):
            method(table)


@pytest.mark.parametrize("name", ["transform", "score", "get_feature_names_out", "predict"])
def test_asking_before_fit_is_refused(name):
    arguments = ([0], [0]) if name == "predict" else (np.ones((2, 2)),)
    with pytest.raises(NotFittedError, match="call fit first"):
        getattr(MatrixCompletion(), name)(*arguments)
    assert issubclass(NotFittedError, FastrfmError)


# --- score --------------------------------------------------------------------------------------------------------


def test_score_is_r2_of_hidden_entries(ridged):
    table = noisy_table(30, seed=12)
    kept, hidden = Observations.from_dense(table).split(0.2, random_state=0)
    rows, cols, values = hidden.to_coo()
    shown = np.full(table.shape, NAN)
    shown[kept.to_coo()[:2]] = kept.values
    want = r2_score(values, naive_rows(ridged, shown)[rows, cols])
    assert ridged.score(table) == pytest.approx(want, rel=1e-9)
    assert ridged.score(table, y=np.zeros(30)) == ridged.score(table)
    assert 0.5 < want < 1.0


def test_score_of_hidden_constants():
    flat = MatrixCompletion(offsets=True).fit(np.full((6, 5), 2.0))
    assert flat.score(np.full((6, 5), 2.0)) == 1.0
    assert flat.score(np.full((6, 5), 3.0)) == 0.0


def test_score_needs_five_entries(exact):
    new = np.full((2, 24), NAN)
    new[0, :4] = 1.0
    with pytest.raises(InputError, match="at least 5, got 4"):
        exact[2].score(new)


# --- scikit-learn -------------------------------------------------------------------------------------------------


def test_parameters_are_the_options():
    names = [option.name for option in fields(CompletionOptions)]
    parameters = dict(inspect.signature(MatrixCompletion).parameters)
    assert sorted(parameters) == sorted(names) and next(iter(parameters)) == "rank"
    defaults = {**vars(CompletionOptions()), **AUTOMATIC}
    assert {name: parameters[name].default for name in names} == defaults
    assert MatrixCompletion().get_params() == defaults


def test_clone_set_params_and_repr():
    model = MatrixCompletion(rank=2, ridge=0.5, offsets=True)
    twin = clone(model)
    assert twin is not model and twin.get_params() == model.get_params()
    assert repr(model) == "MatrixCompletion(rank=2, ridge=0.5, offsets=True)" and repr(MatrixCompletion()).endswith(
        "()"
    )
    assert twin.set_params(rank=3, tol=1e-4) is twin and (twin.rank, twin.tol) == (3, 1e-4)
    with pytest.raises(InputError, match=r"'ranks'.*rank"):
        twin.set_params(rank=9, ranks=3)
    assert twin.rank == 3


def test_parameters_are_checked_by_fit_alone():
    model = MatrixCompletion(rank=0, method="magic")
    with pytest.raises(InputError, match="method"):
        model.fit(np.ones((3, 3)))
    with pytest.raises(InputError, match="rank must be at most 3"):
        MatrixCompletion(rank=4).fit(np.ones((3, 5)))


def test_pickle_keeps_the_fit(exact):
    _, table, model, _ = exact
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.transform(table), model.transform(table))
    assert pickle.loads(pickle.dumps(MatrixCompletion(rank=2))).rank == 2


def test_is_fitted_and_tags(exact):
    check_is_fitted(exact[2])
    with pytest.raises(SklearnNotFittedError):
        check_is_fitted(MatrixCompletion())
    tags = get_tags(MatrixCompletion())
    assert tags.input_tags.allow_nan and tags.input_tags.sparse and not tags.target_tags.required


@pytest.mark.compiled_only
def test_pipeline(exact):
    truth, table, _, completed = exact
    target = truth @ np.arange(24)
    pipeline = make_pipeline(MatrixCompletion(), Ridge(alpha=1e-8)).fit(table, target)
    assert pipeline.score(table, target) > 0.999
    np.testing.assert_array_equal(pipeline[:-1].transform(table), exact[2].transform(table))
    assert pipeline[:-1].get_feature_names_out()[0] == "x0"
    assert "MatrixCompletion" in pipeline._repr_html_()
    np.testing.assert_allclose(pipeline[0].fit_transform(table, target), completed)


@pytest.mark.compiled_only
def test_cross_validation_prefers_the_true_rank(exact):
    table = exact[1]
    assert cross_val_score(MatrixCompletion(rank=RANK, tol=1e-5), table, cv=3).min() > 0.999
    frame = pd.DataFrame(table, columns=[f"c{j}" for j in range(24)])
    search = GridSearchCV(MatrixCompletion(tol=1e-5), {"rank": [1, RANK]}, cv=2).fit(frame)
    assert search.best_params_ == {"rank": RANK}
    assert search.transform(frame).shape == table.shape


def test_works_without_scikit_learn():
    code = (
        "import sys\n"
        "sys.modules['sklearn'] = sys.modules['pandas'] = None\n"
        "import numpy as np, fastrfm\n"
        "model = fastrfm.MatrixCompletion(rank=1)\n"
        "table = np.outer([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0])\n"
        "table[0, 2] = np.nan\n"
        "assert abs(model.fit_transform(table)[0, 2] - 4.0) < 1e-4\n"
        "assert model.transform([[5.0, np.nan, np.nan]]).round(3).tolist() == [[5.0, 10.0, 20.0]]\n"
        "assert repr(model) == 'MatrixCompletion(rank=1)' and model.get_params()['rank'] == 1\n"
        "assert model.score(np.outer(np.arange(1.0, 9.0), [1.0, 2.0, 4.0])) > 0.99\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
