"""MatrixCompletion.partial_fit: merging against a dense twin, sweeps against a naive twin, nearness to a refit."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest

from fastrfm.errors import InputError, NotFittedError
from fastrfm.estimators import MatrixCompletion
from fastrfm.merging import merged, rows_of
from fastrfm.observations import Observations
from fastrfm.solvers.completion import complete
from fastrfm.solvers.update import COLUMN_STEPS, DUE, update
from fastrfm.store import read_result, write_result

NAN = np.nan
PLAIN = {"agop_power": 0.5, "offsets": False, "implicit": 0, "bounds": None}


def table_of(n_rows=60, n_cols=36, rank=3, noise=0.3, seed=0):
    rng = np.random.RandomState(seed)
    truth = rng.standard_normal((n_rows, rank)) @ rng.standard_normal((rank, n_cols))
    return truth, truth + noise * rng.standard_normal(truth.shape)


def divided(matrix, shares=(0.25, 0.25), seed=1):
    """Return the matrix with some entries, with those that come later, and with both; NaN elsewhere."""
    draw = np.random.RandomState(seed).random_sample(matrix.shape)
    first, both = draw < shares[0], draw < sum(shares)
    return tuple(np.where(mask, matrix, NAN) for mask in (first, both & ~first, both))


def error(model, truth, seen):
    """Return the RMSE on the entries that were never observed."""
    hidden = np.isnan(seen)
    return np.sqrt(np.mean((model.result_.to_dense() - truth)[hidden] ** 2))


# --- merging ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_merging_equals_writing_into_a_dense_table(seed):
    rng = np.random.RandomState(seed)
    old, new = (np.where(rng.random_sample((n, 7)) < 0.4, rng.standard_normal((n, 7)), NAN) for n in (9, 5))
    old[0, 0], new[2] = 1.0, NAN
    positions = rng.permutation(11)[:5]
    names = np.array([""] * int((positions >= 9).sum()), dtype=object)
    positions[positions >= 9] = 9 + np.arange(names.size)
    got = merged(Observations.from_dense(old), Observations.from_dense(new), positions, names)
    want = np.vstack([old, np.full((names.size, 7), NAN)])
    want[positions] = np.where(np.isnan(new), want[positions], new)
    rows, cols, values = got.to_coo()
    np.testing.assert_array_equal(values, want[~np.isnan(want)])
    np.testing.assert_array_equal(rows * 7 + cols, np.flatnonzero(~np.isnan(want)))
    assert got.shape == want.shape and got.indices.dtype == np.int32 and got.row_names is None


def test_merging_keeps_float32_only_where_both_are():
    old, new = np.float32([[1.0, NAN]]), np.float32([[NAN, 2.0]])
    nobody = np.zeros(0, dtype=object)
    for dtype in (np.float32, np.float64):
        entries = Observations.from_dense(new.astype(dtype))
        assert merged(Observations.from_dense(old), entries, np.array([0]), nobody).dtype == dtype


def test_weights_go_with_their_entries():
    old = Observations.from_dense([[1.0, 2.0], [NAN, 3.0]]).with_weights([2.0, 3.0, 4.0])
    new = Observations.from_dense([[NAN, 9.0], [8.0, NAN]])
    nobody = np.zeros(0, dtype=object)
    both = merged(old, new, np.array([0, 1]), nobody)
    assert both.values.tolist() == [1.0, 9.0, 8.0, 3.0] and both.weights.tolist() == [2.0, 1.0, 1.0, 4.0]
    back = merged(new, old, np.array([0, 1]), nobody)
    assert back.values.tolist() == [1.0, 2.0, 8.0, 3.0] and back.weights.tolist() == [2.0, 3.0, 1.0, 4.0]


@pytest.mark.compiled_only
@pytest.mark.parametrize("options", [{"huber": 1.0}, {"count_power": 0.3}, {"offsets": "joint"}], ids=str)
def test_what_steps_do_not_know_is_fitted_anew_without_a_search(options):
    first, second, both = divided(table_of(30, 18)[1], (0.5, 0.2))
    options = {**PLAIN, "agop_power": 0.25, "ridge": 3.0, "rank": 3, **options}
    model = MatrixCompletion(**options).fit(first).partial_fit(second, rows=np.arange(30))
    np.testing.assert_array_equal(model.result_.to_dense(), MatrixCompletion(**options).fit(both).result_.to_dense())


def test_rows_go_by_position_name_or_order():
    fitted = Observations.from_dense(np.ones((3, 2)), row_names=["a", "b", "c"])
    lines = Observations.from_dense(np.ones((2, 2)), row_names=["c", "d"])
    for rows in (None, ["c", "d"], np.array(["c", "d"]), pd.Index(["c", "d"])):
        positions, names = rows_of(lines, rows, fitted)
        assert positions.tolist() == [2, 3] and names.tolist() == ["d"]
    assert rows_of(lines, [1, 0], fitted)[0].tolist() == [1, 0]
    unnamed = Observations.from_dense(np.ones((3, 2)))
    positions, names = rows_of(lines, None, unnamed)
    assert positions.tolist() == [3, 4] and names.size == 2
    observations = merged(fitted, lines, *rows_of(lines, None, fitted))
    assert observations.row_names.tolist() == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("rows", "names", "message"),
    [
        ([0, 3], ["a", "b", "c"], "row number 3 .*outside 0…2"),
        ([-1, 0], None, "outside 0…2"),
        ([0.5, 1.0], None, "whole numbers"),
        ([1, 1], None, "give each row once"),
        (["d", "d"], ["a", "b", "c"], "give each row once"),
        (["a", "b"], None, "no row names: give positions"),
        (["a", "b"], ["a", "a", "b"], "two rows called 'a'"),
        ([0], None, "one entry for each of the 2 lines"),
        ([[0, 1]], None, "one entry for each of the 2 lines"),
        (None, ["a", "b", "c"], "names its rows"),
    ],
)
def test_rows_that_cannot_be_found_are_refused(rows, names, message):
    fitted = Observations.from_dense(np.ones((3, 2)), row_names=names)
    with pytest.raises(InputError, match=message):
        rows_of(Observations.from_dense(np.ones((2, 2))), rows, fitted)


# --- sweeps -------------------------------------------------------------------------------------------------------


def regressed(lines, features, weights):
    """Return the explicit ridge regressions of lines on features."""
    out = np.zeros((len(lines), features.shape[1]))
    for i, line in enumerate(lines):
        seen = ~np.isnan(line)
        out[i] = np.linalg.solve(features[seen].T @ features[seen] + np.diag(weights), features[seen].T @ line[seen])
    return out


@pytest.mark.parametrize("shape", [(30, 18), (18, 30)])
@pytest.mark.parametrize("agop_power", [0.25, 0.5])
def test_steps_equal_naive_regressions(shape, agop_power):
    _, noisy = table_of(*shape)
    first, _, both = divided(noisy, (0.4, 0.3))
    both = np.vstack([both, np.where(np.arange(shape[1]) % 3, noisy[0] - noisy[1], NAN)])
    both[:, :4] = np.vstack([first[:, :4], np.full((1, 4), NAN)])  # nothing new
    before = complete(Observations.from_dense(first), rank=3, ridge=2.0, agop_power=agop_power)
    counts, now = (np.isfinite(table).sum(axis=0) for table in (first, both))
    parameters = {"bounds": None, "n_threads": None, "device": "cpu"}
    after, solved = update(before, Observations.from_dense(both), parameters, counts)
    k = before.rank
    right, sigma = before.right[:, :k], before.singular_values
    weights = 2.0 / sigma ** (4 * agop_power)
    is_due = now > (1.0 + DUE) * counts
    assert 4 < is_due.sum() < shape[1] - 4
    want = regressed(both, right, weights) @ right.T
    for _ in range(COLUMN_STEPS):
        columns = regressed(both.T, regressed(both, right, weights) / sigma, weights) / sigma
        right, last = np.where(is_due[:, None], columns, right), want
        want = regressed(both, right, weights) @ right.T
    np.testing.assert_allclose(after.to_dense(), want, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(solved, np.where(is_due, now, counts))
    assert after.stop_reason == before.stop_reason and after.n_iter == before.n_iter + 1 + COLUMN_STEPS
    seen = ~np.isnan(both)
    assert after.masked_rmse == pytest.approx(np.sqrt(np.mean((want - both)[seen] ** 2)), rel=1e-9)
    np.testing.assert_allclose(after.history["masked_rmse"][-1], after.masked_rmse)
    change = np.linalg.norm(want - last) / np.linalg.norm(want)
    np.testing.assert_allclose(after.history["change"][-1], change, rtol=1e-5)


def test_few_new_entries_leave_the_columns_alone():
    _, noisy = table_of(30, 18)
    first, second, _ = divided(noisy, (0.6, 0.04))
    model = MatrixCompletion(rank=3, ridge=2.0, **PLAIN).fit(first)
    n_before, want = model.n_iter_, model.transform(np.where(np.isnan(second), first, second))
    right = model.right_[:, :3] @ model.right_[:, :3].T
    model.partial_fit(second, rows=np.arange(30))
    assert model.n_iter_ == n_before + 1
    np.testing.assert_allclose(model.right_[:, :3] @ model.right_[:, :3].T, right, atol=1e-12)
    missing = np.isnan(first) & np.isnan(second)
    np.testing.assert_allclose(model.result_.to_dense()[missing], want[missing], atol=1e-9)


def test_replaced_values_are_new():
    noisy = table_of(30, 18)[1]
    first = divided(noisy, (0.6, 0.0))[0]
    other = np.where(np.isnan(first), NAN, table_of(30, 18, seed=5)[1])
    model = MatrixCompletion(rank=3, ridge=2.0, **PLAIN).fit(first)
    n_before = model.n_iter_
    model.partial_fit(other, rows=np.arange(30))
    want = MatrixCompletion(rank=3, ridge=2.0, **PLAIN).fit(other).result_
    assert model.result_.n_observed == want.n_observed and model.n_iter_ == n_before + 1 + COLUMN_STEPS
    assert model.result_.masked_rmse < 1.5 * want.masked_rmse


@pytest.mark.compiled_only
@pytest.mark.parametrize(
    "options",
    [
        {"ridge": 2.0, "rank": 4},
        {"ridge": 3.0, "agop_power": 0.25},
        {"ridge": 3.0, "agop_power": 0.25, "method": "factored", "rank": 6},
        {"ridge": 2.0, "agop_power": 0.2},
        {"ridge": 2.0, "rank": 3, "offsets": True},
        {"ridge": 3.0, "agop_power": 0.25, "implicit": 3},
        {"ridge": 0.0, "rank": 3},
        {"ridge": "auto", "agop_power": "auto", "offsets": "auto", "implicit": "auto", "bounds": "auto"},
    ],
    ids=str,
)
@pytest.mark.parametrize("is_turned", [False, True])
def test_new_entries_come_near_to_a_refit(options, is_turned):
    truth, noisy = table_of(70, 44) if not is_turned else (matrix.T for matrix in table_of(70, 44))
    first, second, both = divided(noisy)
    model = MatrixCompletion(**{**PLAIN, **options}).fit(first)
    before, n_before = error(model, truth, both), model.n_iter_
    chosen = {name: model.result_.options[name] for name in ("ridge", "agop_power", "offsets", "implicit", "rank")}
    assert model.partial_fit(second, rows=np.arange(len(second))) is model
    refitted = MatrixCompletion(**{**PLAIN, **options}).fit(both)
    after = error(model, truth, both)
    assert after <= 1.06 * error(refitted, truth, both) and after <= 0.85 * before
    result = model.result_
    assert result.n_observed == np.count_nonzero(~np.isnan(both)) and model.n_iter_ == n_before + 1 + COLUMN_STEPS
    assert {name: result.options[name] for name in chosen} == chosen and model.stop_reason_ != "max_iter"


@pytest.mark.compiled_only
def test_new_rows_come_near_to_a_refit():
    truth, noisy = table_of(90)
    table = divided(noisy, (0.4, 0.0))[2]
    model = MatrixCompletion(ridge=2.0, rank=3, **PLAIN).fit(table[:40])
    folded_in = model.transform(table[40:])
    model.partial_fit(table[40:65]).partial_fit(table[65:])
    hidden = np.isnan(table[40:])
    before = np.sqrt(np.mean((folded_in - truth[40:])[hidden] ** 2))
    after = np.sqrt(np.mean((model.result_.to_dense() - truth)[40:][hidden] ** 2))
    refitted = MatrixCompletion(ridge=2.0, rank=3, **PLAIN).fit(table)
    want = np.sqrt(np.mean((refitted.result_.to_dense() - truth)[40:][hidden] ** 2))
    assert after < 0.97 * before and after < 1.03 * want


def test_the_updated_result_is_a_whole_one(tmp_path):
    _, noisy = table_of(30, 20)
    noisy += 5.0
    first, second, both = divided(noisy, (0.4, 0.3))
    for table in (first, second, both):
        table[4], table[:, 7] = NAN, NAN
    for offsets in (False, True):
        model = MatrixCompletion(ridge=2.0, rank=3, **{**PLAIN, "offsets": offsets, "bounds": (0.0, 10.0)}).fit(first)
        model.partial_fit(second, rows=np.arange(30))
        result, k = model.result_, model.rank_
        assert (result.n_observed, result.n_empty_rows, result.n_empty_cols) == (np.isfinite(both).sum(), 1, 1)
        np.testing.assert_allclose(result.right[:, :k].T @ result.right[:, :k], np.eye(k), atol=1e-12)
        np.testing.assert_allclose(np.linalg.norm(result.left[:, :k], axis=0), result.singular_values, rtol=1e-9)
        assert result.bounds == (0.0, 10.0) and np.all(np.diff(result.singular_values) <= 0.0)
        assert all(len(column) == result.n_iter for column in result.history.values())
        others = np.arange(20) != 7
        np.testing.assert_allclose(model.column_means_[others], np.nanmean(both[:, others], axis=0))
        if not offsets:
            assert result.to_dense()[4, 7] == pytest.approx(np.nanmean(both))
        write_result(tmp_path / f"{offsets}.h5", result)
        np.testing.assert_array_equal(read_result(tmp_path / f"{offsets}.h5").to_dense(), result.to_dense())


@pytest.mark.compiled_only
def test_new_entries_of_exact_data_cost_little():
    truth, _ = table_of(40, 24, noise=0.0)
    first, second, _ = divided(truth, (0.6, 0.2))
    model = MatrixCompletion().fit(first)
    n_before = model.n_iter_
    model.partial_fit(second, rows=np.arange(40)).partial_fit(np.where(np.arange(24) < 5, truth[:2] - truth[2:4], NAN))
    assert model.n_iter_ <= n_before + 2 * (1 + COLUMN_STEPS) and model.stop_reason_ == "converged"
    np.testing.assert_allclose(model.result_.to_dense(), np.vstack([truth, truth[:2] - truth[2:4]]), atol=1e-6)


@pytest.mark.compiled_only
def test_what_refutes_an_exact_fit_is_fitted_anew():
    truth, noisy = table_of(30, 20, rank=2, noise=0.2)
    model = MatrixCompletion(ridge=0.0, **PLAIN).fit(truth[:, :1] @ truth[:1])  # of rank 1
    assert model.rank_ == 1
    model.partial_fit(truth)
    assert model.rank_ == 2 and model.stop_reason_ == "converged"
    np.testing.assert_allclose(model.predict(np.arange(30, 60)[:, None], np.arange(20)), truth, atol=1e-6)
    model = MatrixCompletion().fit(divided(truth, (0.8, 0.0))[0])
    assert model.result_.options["ridge"] == 0.0
    new = divided(noisy, (0.8, 0.0), seed=2)[0]
    model.partial_fit(new, rows=np.arange(30))  # the choice of no ridge falls with the data that it was made on
    assert model.result_.options["ridge"] > 0.0


def test_where_nothing_was_found_all_is_fitted_anew():
    first, second, both = divided(table_of(30, 20)[1], (0.1, 0.6))
    model = MatrixCompletion(ridge=15.0, **{**PLAIN, "agop_power": 0.25}).fit(first)
    assert model.rank_ == 0
    assert model.partial_fit(second, rows=np.arange(30)).rank_ > 0
    want = MatrixCompletion(ridge=15.0, **{**PLAIN, "agop_power": 0.25}).fit(both)
    np.testing.assert_array_equal(model.result_.to_dense(), want.result_.to_dense())


def test_a_table_of_zeros_takes_entries():
    model = MatrixCompletion(ridge=0.01, **PLAIN).fit(np.zeros((6, 4)))
    model.partial_fit(np.zeros((2, 4)))
    assert model.rank_ == 0 and model.predict(7, 3) == 0.0
    model.partial_fit(np.outer([1.0, 2.0, 3.0], [1.0, 2.0, 1.0, 2.0]))
    assert model.rank_ == 1 and model.predict(10, 3) == pytest.approx(6.0, abs=0.05)


@pytest.mark.compiled_only
def test_many_small_updates_come_near_to_one():
    truth, noisy = table_of(70, 44)
    first, second, both = divided(noisy)
    model, at_once = (MatrixCompletion(ridge=2.0, rank=4, **PLAIN).fit(first) for _ in range(2))
    before = error(model, truth, both)
    parts = np.random.RandomState(0).randint(0, 10, second.shape)
    for part in range(10):
        model.partial_fit(np.where(parts == part, second, NAN), rows=np.arange(70))
    at_once.partial_fit(second, rows=np.arange(70))
    np.testing.assert_array_equal(model.observations_.values, at_once.observations_.values)
    assert error(model, truth, both) < 1.1 * error(at_once, truth, both) < 0.9 * before


# --- the estimator ------------------------------------------------------------------------------------------------


@pytest.fixture
def named():
    _, noisy = table_of(12, 6, rank=1)
    frame = pd.DataFrame(noisy, index=[f"u{i}" for i in range(12)], columns=list("abcdef"))
    return frame, MatrixCompletion(rank=1, ridge=0.1, **PLAIN).fit(frame)


def test_the_first_call_fits():
    _, noisy = table_of(12, 6, rank=1)
    model, fitted = (MatrixCompletion(rank=1, ridge=0.1, **PLAIN) for _ in range(2))
    assert model.partial_fit(noisy, np.zeros(12)) is model
    np.testing.assert_array_equal(model.result_.to_dense(), fitted.fit(noisy).result_.to_dense())
    with pytest.raises(NotFittedError, match="call fit first, then partial_fit"):
        MatrixCompletion().partial_fit(noisy, rows=np.arange(12))


def test_frames_find_their_rows_by_name(named):
    frame, model = named
    new = pd.DataFrame([[9.0] + [NAN] * 5, [1.0] * 6], index=["u3", "new"], columns=frame.columns)
    model.partial_fit(new)
    assert model.result_.row_names.tolist() == [*frame.index, "new"] and model.observations_.n_observed == 78
    assert model.observations_.values[model.observations_.indptr[3]] == 9.0  # replaced
    assert model.result_.shape == (13, 6) and model.feature_names_in_.tolist() == list(frame.columns)
    model.partial_fit(np.ones((1, 6)), rows=["newer"])
    assert model.result_.row_names[-1] == "newer"
    with pytest.raises(InputError, match="names its rows"):
        model.partial_fit(np.ones((1, 6)))
    with pytest.raises(InputError, match="columns in their order"):
        model.partial_fit(new[list("fedcba")])


def test_nothing_new_changes_nothing(named):
    frame, model = named
    before = model.result_
    model.partial_fit(frame.iloc[:2] * NAN)
    assert model.result_ is before
    model.partial_fit(np.full((1, 6), NAN), rows=["empty"])  # a row is something
    assert model.result_.shape == (13, 6) and model.result_.n_empty_rows == 1
    np.testing.assert_allclose(model.result_.to_dense()[12], model.column_means_)


def test_a_failed_update_leaves_the_former_fit(named):
    frame, model = named
    before, observed = model.result_, model.observations_
    for bad in (np.full((1, 6), np.inf), np.ones((1, 5)), np.ones(6)):
        with pytest.raises(InputError):
            model.partial_fit(bad, rows=["u0"])
    assert model.result_ is before and model.observations_ is observed and observed.n_observed == frame.size


def test_options_stay_those_of_the_fit(named):
    frame, model = named
    twin = pickle.loads(pickle.dumps(model)).set_params(ridge=99.0, agop_power=0.25, rank=4)
    new = frame.iloc[:3] + 1.0
    model.partial_fit(new)
    np.testing.assert_array_equal(twin.partial_fit(new).result_.to_dense(), model.result_.to_dense())
    assert twin.result_.options["ridge"] == 0.1 and twin.ridge == 99.0


@pytest.mark.compiled_only
def test_automatic_bounds_follow_the_scale():
    rng = np.random.RandomState(0)
    stars = rng.randint(1, 6, (40, 30)).astype(float)
    model = MatrixCompletion(ridge=5.0, rank=2, **{**PLAIN, "bounds": "auto"}).fit(stars)
    assert model.result_.bounds == (1.0, 5.0)
    model.partial_fit(np.zeros((2, 30)))
    assert model.result_.bounds == (0.0, 5.0)


def test_deleted_observations_are_missed(named):
    frame, model = named
    del model.observations_
    assert pickle.loads(pickle.dumps(model)).transform(frame).shape == frame.shape
    with pytest.raises(NotFittedError, match="observations_ were deleted, and partial_fit needs them"):
        model.partial_fit(frame)


def test_the_callers_observations_stay_as_they_are():
    _, noisy = table_of(12, 6)
    observations = Observations.from_dense(divided(noisy, (0.5, 0.2))[0])
    before = observations.values.copy()
    model = MatrixCompletion(rank=1, ridge=0.1, **PLAIN).fit(observations)
    assert not model.observations_._blocks and model.observations_.values is observations.values
    model.partial_fit(noisy, rows=np.arange(12))
    np.testing.assert_array_equal(observations.values, before)
    assert model.observations_.n_observed == 72 and not pickle.loads(pickle.dumps(model)).observations_._blocks
