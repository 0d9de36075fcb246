"""MatrixCompletion among others: frames out, answers about fitted tables, scikit-learn's tools, kinds of tables."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks

from fastrfm import ranking
from fastrfm.errors import InputError, MissingPackageError, NotFittedError
from fastrfm.estimators import MatrixCompletion
from fastrfm.observations import Observations
from fastrfm.similarity import most_similar

NAN = np.nan
GIVEN = {"rank": 2, "ridge": 0.5, "agop_power": 0.5, "offsets": False, "implicit": 0, "bounds": None}
EITHER = pytest.mark.parametrize(
    "options", [pytest.param({}, marks=pytest.mark.compiled_only), GIVEN], ids=["automatic", "given"]
)


def table_of(n_rows=40, n_cols=8, share=0.7, noise=0.1, seed=0):
    rng = np.random.RandomState(seed)
    truth = rng.standard_normal((n_rows, 2)) @ rng.standard_normal((2, n_cols))
    table = truth + noise * rng.standard_normal(truth.shape)
    return np.where(rng.random_sample(truth.shape) < share, table, NAN), truth


def frame_of(table):
    return pd.DataFrame(table, index=[f"u{i}" for i in range(len(table))], columns=list("abcdefgh"))


@pytest.fixture(scope="module")
def fitted():
    return MatrixCompletion(**GIVEN).fit(frame_of(table_of()[0]))


# --- frames out ---------------------------------------------------------------------------------------------------


def test_frames_come_out_when_asked_for():
    frame = frame_of(table_of()[0])
    model = MatrixCompletion(**GIVEN)
    plain = model.fit_transform(frame)
    assert type(plain) is np.ndarray and model.set_output(transform="pandas") is model
    for framed, want in [(model.fit_transform(frame), plain), (model.transform(frame), None)]:
        assert framed.index.equals(frame.index) and framed.columns.equals(frame.columns)
        want = model.set_output(transform="default").transform(frame) if want is None else want
        model.set_output(transform="pandas")
        np.testing.assert_array_equal(framed.to_numpy(), want)
    assert model.set_output(transform=None).transform(frame[:2]).index.tolist() == ["u0", "u1"]
    assert model.transform(frame.to_numpy()).columns.tolist() == list("abcdefgh")
    assert type(clone(model).fit_transform(frame)) is pd.DataFrame


def test_labels_that_are_no_strings_stay():
    frame = frame_of(table_of()[0]).set_axis(range(1950, 1958), axis=1)
    model = MatrixCompletion(**GIVEN).set_output(transform="pandas")
    assert model.fit_transform(frame).columns.equals(frame.columns)
    assert model.transform(frame.to_numpy()).columns.tolist() == [str(year) for year in frame.columns]
    unnamed = MatrixCompletion(**GIVEN).set_output(transform="pandas").fit_transform(pd.DataFrame(frame.to_numpy()))
    assert unnamed.columns.tolist() == [f"x{j}" for j in range(8)]  # as scikit-learn calls them


def test_scikit_learns_own_choice_counts_where_none_was_made(fitted):
    frame = frame_of(table_of()[0])
    with sklearn.config_context(transform_output="pandas"):
        assert type(clone(fitted).fit_transform(frame)) is pd.DataFrame
        assert type(clone(fitted).set_output(transform="default").fit_transform(frame)) is np.ndarray
    assert type(fitted.transform(frame)) is np.ndarray


def test_a_container_that_is_none_is_refused(fitted, monkeypatch):
    with pytest.raises(InputError, match="default, pandas, polars, got 'excel'"):
        clone(fitted).set_output(transform="excel")
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(MissingPackageError, match="needs polars"):
        copy.copy(fitted).set_output(transform="polars").transform(table_of()[0])


def test_polars(fitted):
    polars = pytest.importorskip("polars")
    table = table_of()[0]
    asked = copy.copy(fitted).set_output(transform="polars")
    framed = asked.transform(polars.DataFrame(table, schema=list("abcdefgh")))
    assert isinstance(framed, polars.DataFrame) and framed.columns == list("abcdefgh")
    np.testing.assert_array_equal(framed.to_numpy(), fitted.transform(table))


def test_frames_come_out_without_scikit_learn():
    code = (
        "import sys\n"
        "sys.modules['sklearn'] = None\n"
        "import pandas as pd, fastrfm\n"
        "table = pd.DataFrame({'a': [1.0, 2.0, None, 4.0], 'b': [2.0, 4.0, 6.0, 8.0]}, index=list('wxyz'))\n"
        "model = fastrfm.MatrixCompletion(rank=1, ridge=0.0).set_output(transform='pandas')\n"
        "assert abs(model.fit_transform(table).loc['y', 'a'] - 3.0) < 1e-4\n"
        "assert model.partial_fit(pd.DataFrame({'a': [5.0], 'b': [None]}, index=['v'])).recommend(['v'], 1)[0] == 1\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- answers ------------------------------------------------------------------------------------------------------


def test_recommendations_are_the_largest_that_were_not_observed(fitted):
    table = table_of()[0]
    estimate = fitted.result_.to_dense()
    for exclude in (True, False):
        cols, values = fitted.recommend(None, 3, exclude_observed=exclude)
        masked = np.where(np.isnan(table) | (not exclude), estimate, -np.inf)
        for i, line in enumerate(masked):
            want = np.argsort(-line, kind="stable")[:3]
            want = np.where(np.isfinite(line[want]), want, -1)
            np.testing.assert_array_equal(cols[i], want)
            np.testing.assert_allclose(values[i], np.where(want < 0, NAN, line[want]), rtol=1e-12)
    by_name = fitted.recommend(["u3", "u1"], 2)
    np.testing.assert_array_equal(by_name[0], fitted.recommend([3, 1], 2)[0])
    assert fitted.feature_names_in_[by_name[0]].shape == (2, 2)


def naive_cosines(vectors):
    lengths = np.linalg.norm(vectors, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = vectors @ vectors.T / np.outer(lengths, lengths)
    cosines[~np.isfinite(cosines)] = -np.inf
    np.fill_diagonal(cosines, -np.inf)
    return cosines


@pytest.mark.parametrize("offsets", [False, True])
@pytest.mark.parametrize("side", ["columns", "rows"])
def test_similar_are_those_whose_estimates_have_the_largest_cosine(offsets, side):
    table = table_of(30)[0]
    table[:, 5] = NAN
    model = MatrixCompletion(**{**GIVEN, "offsets": offsets}).fit(table)
    k = model.rank_
    part = model.left_[:, :k] @ model.right_[:, :k].T
    part[:, 5] = 0.0
    cosines = naive_cosines(part.T if side == "columns" else part)
    n = len(cosines) - 1
    neighbours, values = getattr(model, f"similar_{side}")(None, n)
    for i, line in enumerate(cosines):
        want = np.sort(line)[::-1][:n]
        np.testing.assert_allclose(values[i], np.where(np.isfinite(want), want, NAN), atol=1e-9)
        kept = neighbours[i] >= 0
        np.testing.assert_allclose(line[neighbours[i][kept]], values[i][kept], atol=1e-9)
        assert np.array_equal(kept, np.isfinite(values[i])) and np.all(values[i][kept] <= 1.0)
    if side == "columns":
        assert (neighbours[5] == -1).all() and not (neighbours == 5).any()


def test_similar_columns_by_name(fitted):
    got = fitted.similar_columns(["c", "a"], 2)
    want = fitted.similar_columns([2, 0], 2)
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(fitted.similar_rows(["u2"], 2)[0], fitted.similar_rows([2], 2)[0])


@pytest.mark.parametrize("block_bytes", [1, 3000, 10**8])
def test_ties_go_to_the_lower_number_whatever_the_blocks(block_bytes):
    vectors = (
        np.repeat(np.random.RandomState(0).standard_normal((5, 3)), 4, axis=0) * 2.0 ** np.arange(20)[:, None]
    )  # ties to the bit
    vectors[7] = 0.0
    neighbours, cosines = most_similar(vectors, np.arange(20), 3, block_bytes=block_bytes)
    assert neighbours[0].tolist() == [1, 2, 3] and neighbours[2].tolist() == [0, 1, 3]
    np.testing.assert_array_equal(neighbours[7], [-1, -1, -1])
    assert neighbours[4].tolist()[:2] == [5, 6] and np.isnan(cosines[7]).all()
    np.testing.assert_allclose(cosines[0], 1.0, rtol=1e-14)
    assert ranking.BYTES_PER_ENTRY * 20 < 3000


def test_nothing_is_similar_where_nothing_was_found():
    model = MatrixCompletion(**GIVEN).fit(np.zeros((4, 3)))
    neighbours, cosines = model.similar_columns(None, 2)
    assert (neighbours == -1).all() and np.isnan(cosines).all()


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda model: model.recommend([0], 9), "at most the number of columns"),
        (lambda model: model.recommend([40], 1), "outside 0…39"),
        (lambda model: model.recommend(["nobody"], 1), "no row is called 'nobody'"),
        (lambda model: model.recommend([[0]], 1), "must be 1-D"),
        (lambda model: model.similar_columns([0], 8), "from 1 to 7"),
        (lambda model: model.similar_columns([0], 0), "from 1 to 7"),
        (lambda model: model.similar_columns([0], True), "from 1 to 7"),
        (lambda model: model.similar_columns(["z"], 1), "no column is called 'z'"),
        (lambda model: model.similar_columns([-1], 1), "outside 0…7"),
        (lambda model: model.similar_rows([0.5], 1), "whole numbers"),
    ],
)
def test_questions_without_an_answer_are_refused(fitted, ask, message):
    with pytest.raises(InputError, match=message):
        ask(fitted)


def test_questions_before_fit_are_refused(fitted):
    for name in ("recommend", "similar_columns", "similar_rows"):
        with pytest.raises(NotFittedError, match=f"call fit first, then {name}"):
            getattr(MatrixCompletion(), name)()
    model = copy.copy(fitted)
    del model.observations_
    assert model.recommend([0], 1, exclude_observed=False)[0].shape == (1, 1)
    with pytest.raises(NotFittedError, match="recommend needs them"):
        model.recommend([0], 1)


# --- scikit-learn -------------------------------------------------------------------------------------------------


@EITHER
def test_in_a_pipeline(options):
    table, truth = table_of()
    target = truth @ np.arange(8.0)
    steps = [("complete", MatrixCompletion(**options)), ("scale", StandardScaler()), ("ridge", Ridge(alpha=1e-3))]
    pipeline = Pipeline(steps)
    assert pipeline.fit(table, target).score(table, target) > 0.95
    again = joblib_round_trip(pipeline)
    np.testing.assert_array_equal(again.predict(table), pipeline.predict(table))
    assert cross_val_score(pipeline, table, target, cv=3).min() > 0.8
    assert cross_val_score(MatrixCompletion(**options), table, cv=3).min() > 0.7
    framed = clone(pipeline[:-1]).set_output(transform="pandas").fit_transform(frame_of(table))
    assert framed.index[0] == "u0" and framed.columns.tolist() == list("abcdefgh")


def test_in_a_search():
    table, truth = table_of()
    pipeline = Pipeline([("complete", MatrixCompletion(**GIVEN)), ("ridge", Ridge(alpha=1e-3))])
    search = GridSearchCV(pipeline, {"complete__rank": [1, 2], "complete__ridge": [0.1, 50.0]}, cv=2)
    search.fit(frame_of(table), truth @ np.arange(8.0))
    assert search.best_params_ == {"complete__rank": 2, "complete__ridge": 0.1}
    assert search.best_estimator_[0].feature_names_in_.tolist() == list("abcdefgh")
    alone = GridSearchCV(MatrixCompletion(**GIVEN), {"rank": [1, 2]}, cv=2).fit(table)
    assert alone.best_params_ == {"rank": 2}


@EITHER
def test_beside_other_transformers(options):
    frame = frame_of(table_of()[0])
    frame["kind"] = np.arange(40.0)
    parts = [("complete", MatrixCompletion(**options), list("abcdefgh")), ("scale", StandardScaler(), ["kind"])]
    columns = ColumnTransformer(parts, verbose_feature_names_out=False).set_output(transform="pandas")
    out = columns.fit_transform(frame)
    assert out.columns.tolist() == [*"abcdefgh", "kind"] and out.index.equals(frame.index)
    assert np.isfinite(out.to_numpy()).all() and not out[list("abcdefgh")].isna().any(axis=None)
    whole = frame[list("abcdefgh")]
    union = FeatureUnion([("one", MatrixCompletion(**{**GIVEN, "rank": 1})), ("two", MatrixCompletion(**options))])
    joined = union.fit_transform(whole)
    np.testing.assert_array_equal(joined[:, 8:], MatrixCompletion(**options).fit_transform(whole))
    assert union.get_feature_names_out()[[0, -1]].tolist() == ["one__a", "two__h"]


def joblib_round_trip(model):
    buffer = io.BytesIO()
    joblib.dump(model, buffer)
    buffer.seek(0)
    return joblib.load(buffer)


@EITHER
@pytest.mark.parametrize("copied", [joblib_round_trip, copy.deepcopy], ids=["joblib", "deepcopy"])
def test_copies_answer_alike_to_the_bit(options, copied):
    frame = frame_of(table_of()[0])
    model = MatrixCompletion(**options).set_output(transform="pandas").fit(frame[:30])
    twin = copied(model)
    for _ in range(2):
        pd.testing.assert_frame_equal(twin.transform(frame[25:]), model.transform(frame[25:]))
        np.testing.assert_array_equal(twin.predict([[0]], np.arange(8)), model.predict([[0]], np.arange(8)))
        np.testing.assert_array_equal(twin.recommend(None, 3)[1], model.recommend(None, 3)[1])
        assert twin.partial_fit(frame[30:]) is twin and model.partial_fit(frame[30:]).result_.shape == (40, 8)
    assert twin.result_.row_names.tolist() == frame.index.tolist()


class Completion(MatrixCompletion):
    """As a pure transformer: scikit-learn's checks take ``predict`` for one of rows, ours is of pairs."""

    @property
    def predict(self):
        raise AttributeError("predict")


CANNOT_PASS = {
    "check_dtype_object": "wants a TypeError for objects that are no numbers; InputError is a ValueError",
    "check_dataframe_column_names_consistency": "wants scikit-learn's own words for names that differ",
}
FURTHER_CHECKS = (
    "check_dataframe_column_names_consistency",
    "check_global_output_transform_pandas",
    "check_set_output_transform",
    "check_set_output_transform_pandas",
    "check_transformer_get_feature_names_out",
    "check_transformer_get_feature_names_out_pandas",
)


@pytest.mark.compiled_only
def test_scikit_learns_own_checks():
    model = Completion(**{**GIVEN, "rank": 1})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not inherit from.*")
        checks = [check for _, check in estimator_checks.estimator_checks_generator(model)]
        names = [check.func.__name__ for check in checks]
        checks += [getattr(estimator_checks, name) for name in FURTHER_CHECKS]
        failed = set()
        for check, name in zip(checks, [*names, *FURTHER_CHECKS], strict=True):
            arguments = ("Completion", model) if name in FURTHER_CHECKS else (clone(model),)
            try:
                check(*arguments)
            except (AssertionError, InputError):
                failed.add(name)
            except Exception as error:
                assert type(error).__name__ == "SkipTest", name
    assert failed <= set(CANNOT_PASS) and len(names) > 30


# --- kinds of tables ----------------------------------------------------------------------------------------------


def completed(table, **options):
    """Return the completed table after checking that it is whole and that what was given stayed."""
    model = MatrixCompletion(**options)
    out = model.fit_transform(table)
    given = np.asarray(table, dtype=np.float64)
    np.testing.assert_array_equal(out[~np.isnan(given)], given[~np.isnan(given)])
    assert out.dtype == np.float64 and np.isfinite(out).all() and np.isfinite(model.transform(table)).all()
    return out


@EITHER
def test_tables_of_all_sizes(options):
    options = {**options, "rank": None}
    table, truth = table_of(12)
    completed(truth, **options)  # nothing missing
    table[:, 3] = NAN
    want = np.nanmean(table, axis=1) if options.get("offsets") is False else None
    out = completed(table, **options)
    if want is not None:
        np.testing.assert_allclose(out[:, 3], want)  # a column of its own gets the row means
    completed([[1.0, 2.0, NAN, 4.0]], **options)
    completed([[1.0], [2.0], [NAN]], **options)
    completed([[3.0]], **options)
    completed([[1.0, NAN], [NAN, NAN]], **options)
    completed(np.zeros((4, 3)), **options)


@EITHER
@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint16, np.int64, np.float16, np.float32, np.longdouble])
def test_dtypes(options, dtype):
    table = (10.0 * table_of(12, share=2.0)[0] > 3.0) if dtype is bool else 5.0 + table_of(12, share=2.0)[0]
    table = table.astype(dtype)
    out = completed(table, **options)
    np.testing.assert_array_equal(completed(pd.DataFrame(table), **options), out)


def test_nullable_frames():
    frame = pd.DataFrame(
        {
            "flag": pd.array([True, None, False, True], dtype="boolean"),
            "count": pd.array([1, 2, None, 4], dtype="Int64"),
            "size": pd.array([0.5, None, 2.0, 1.0], dtype="Float32"),
            "plain": [1.0, 2.0, 3.0, 4.0],
        }
    )
    plain = frame.astype(object).where(frame.notna(), NAN).astype(np.float64)
    np.testing.assert_array_equal(
        MatrixCompletion(**GIVEN).fit_transform(frame), MatrixCompletion(**GIVEN).fit_transform(plain)
    )


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame({"when": pd.to_datetime(["2020-01-01", None]), "x": [1.0, 2.0]}),
        pd.DataFrame({"when": pd.to_datetime(["2020-01-01", None]).tz_localize("UTC"), "x": [1.0, 2.0]}),
        pd.DataFrame({"long": pd.to_timedelta(["1 day", None])}),
        np.array([["2020-01-01", "NaT"]], dtype="datetime64[D]"),
    ],
    ids=["date", "zone", "duration", "array"],
)
def test_dates_are_no_numbers(table):
    with pytest.raises(InputError, match="turn dates and times into numbers"):
        MatrixCompletion().fit(table)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.Series([1.0, 2.0]), "Reshape your data"),
        (np.zeros((2, 2, 2)), "2 dimensions .* got 3"),
        (np.ones((3, 0)), r"0 feature\(s\) \(shape=\(3, 0\)\)"),
        (pd.DataFrame(), r"0 row\(s\)"),
        (np.ones((2, 2)) * 1j, "Complex data not supported"),
        (None, "2 dimensions"),
        (np.full((2, 2), NAN), "no observations"),
    ],
)
def test_what_is_no_table_is_refused(table, message):
    for method in ("fit", "fit_transform", "partial_fit"):
        with pytest.raises(InputError, match=message):
            getattr(MatrixCompletion(), method)(table)


def test_automatic_completion_of_few_columns_with_the_pattern():
    # The side information has more directions than the matrix has columns.
    rng = np.random.RandomState(0)
    observations = Observations.from_dense(np.where(rng.random_sample((20, 3)) < 0.8, rng.randn(20, 3), NAN))
    model = MatrixCompletion(**{**GIVEN, "agop_power": 0.25, "implicit": 3, "rank": None, "ridge": 0.01})
    model.fit(observations)
    assert model.rank_ <= 3 and np.isfinite(model.result_.to_dense()).all()
