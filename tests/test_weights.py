"""Weights of entries: through every container, file and one-sided method, against naive twins and invariances."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from fastrfm import (
    MatrixCompletion,
    Observations,
    blocks,
    complete,
    open_observations,
    prediction_intervals,
    standard_errors,
)
from fastrfm.cross_validation import largest_ridge
from fastrfm.errors import FileFormatError, InputError
from fastrfm.solvers.checkpoint import digest
from fastrfm.solvers.offsets import fit_offsets
from fastrfm.solvers.side_information import SideInformation, augmented
from fastrfm.splits import united
from fastrfm.store import write_observations
from fastrfm.stored import StoredObservations

METHODS = pytest.mark.parametrize("method", ["factored", "dense"])


def weighted(n_rows: int = 30, n_cols: int = 20, seed: int = 0, share: float = 0.6) -> Observations:
    """Return noisy entries of a matrix of rank 2, their weights the inverse variances of the noise."""
    rng = np.random.RandomState(seed)
    truth = rng.standard_normal((n_rows, 2)) @ rng.standard_normal((2, n_cols))
    sigma = 0.2 * np.exp(rng.standard_normal(truth.shape))
    shown = np.where(rng.random_sample(truth.shape) < share, truth + sigma * rng.standard_normal(truth.shape), np.nan)
    return Observations.from_dense(shown).with_weights(sigma**-2.0)


def triples(observations: Observations) -> set[tuple[int, int, float, float]]:
    rows, cols, values = observations.to_coo()
    return set(zip(rows.tolist(), cols.tolist(), values.tolist(), observations.weights.tolist(), strict=True))


# --- containers -------------------------------------------------------------------------------------------------------


def test_weights_stay_with_their_entries():
    observations = weighted()
    all_of_them = triples(observations)
    kept, held = observations.split(0.3)
    assert triples(kept) | triples(held) == all_of_them and kept.n_observed + held.n_observed == len(all_of_them)
    turned = observations.transposed()
    assert triples(turned) == {(j, i, value, weight) for i, j, value, weight in all_of_them}
    assert triples(turned.transposed()) == all_of_them
    block = next(observations.row_blocks())
    order = np.lexsort((observations.to_coo()[0], observations.indices))
    np.testing.assert_array_equal(block.by_column.weights, observations.weights[order])
    shifted = observations.shifted(lambda rows, cols: rows + 10.0 * cols)
    np.testing.assert_array_equal(shifted.weights, observations.weights)
    both, is_held = united(kept, held)
    assert triples(both) == all_of_them and triples(both.select(is_held)) == triples(held)
    dense = np.zeros(observations.shape)
    dense[observations.to_coo()[:2]] = observations.weights
    np.testing.assert_allclose(observations.row_weights, dense.sum(axis=1))
    np.testing.assert_allclose(observations.col_weights, dense.sum(axis=0))


def test_a_union_with_entries_that_have_no_weights_takes_one_for_them():
    kept, held = weighted().split(0.3)
    both, is_held = united(kept, held.with_weights(np.ones(held.n_observed)))
    plain, _ = united(kept, Observations.from_coo(*held.to_coo(), held.shape))
    np.testing.assert_array_equal(both.weights, plain.weights)
    np.testing.assert_array_equal(both.weights[is_held], 1.0)


def test_weights_of_features_are_the_geometric_mean():
    observations = weighted(12, 8)
    side = SideInformation.of(observations.shape, np.arange(24.0).reshape(12, 2) ** 2, np.arange(8.0)[:, None])
    both = augmented(observations, side, 0.5)
    rows, cols, _ = both.to_coo()
    is_entry = (rows < 12) & (cols < 8)
    np.testing.assert_array_equal(both.weights[is_entry], observations.weights)
    np.testing.assert_allclose(both.weights[~is_entry], np.exp(np.mean(np.log(observations.weights))), rtol=1e-12)
    assert (~is_entry).sum() == 2 * 12 + 8


@pytest.mark.parametrize(
    "wrong", [[1.0], [0.0] * 3, [-1.0, 1.0, 1.0], [np.nan, 1.0, 1.0], np.ones((2, 3)), [[1, 2, 3]]]
)
def test_wrong_weights_are_refused(wrong):
    observations = Observations.from_dense([[1.0, np.nan], [2.0, 3.0]])
    with pytest.raises(InputError, match="weights"):
        observations.with_weights(wrong)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [1 << 30, 600])
def test_files_keep_weights_and_stream_them(tmp_path, memory):
    observations = weighted()
    write_observations(tmp_path / "w.h5", observations)
    found = open_observations(tmp_path / "w.h5", memory=memory)
    assert isinstance(found, StoredObservations) == (memory == 600) and found.is_weighted
    np.testing.assert_array_equal(np.concatenate([b.by_row.weights for b in found.row_blocks()]), observations.weights)
    turned = found.transposed()
    wanted = observations.transposed()
    np.testing.assert_array_equal(np.concatenate([b.by_row.weights for b in turned.row_blocks()]), wanted.weights)
    write_observations(tmp_path / "again.h5", found)
    assert triples(open_observations(tmp_path / "again.h5")) == triples(observations)
    one, other = (
        complete(o, ridge=3.0, agop_power=0.25, method="factored", smoothing=1.0, tol=0.05)
        for o in (found, observations)
    )
    np.testing.assert_array_equal(one.to_dense(), other.to_dense())


def test_a_split_of_a_file_keeps_weights(tmp_path):
    observations = weighted()
    write_observations(tmp_path / "w.h5", observations)
    stored = open_observations(tmp_path / "w.h5", memory=12_000)
    assert isinstance(stored, StoredObservations)
    kept, held = stored.split(0.1)
    write_observations(tmp_path / "kept.h5", kept)
    assert triples(open_observations(tmp_path / "kept.h5")) | triples(held) == triples(observations)


@pytest.mark.parametrize("encoding", ["csr_matrix", "csc_matrix"])
def test_weights_of_unsorted_files_follow_their_values(tmp_path, encoding):
    observations = weighted()
    rows, cols, values = observations.to_coo()
    order = np.random.RandomState(0).permutation(values.size)
    groups = rows if encoding == "csr_matrix" else cols
    order = order[np.argsort(groups[order], kind="stable")]
    write_observations(tmp_path / "w.h5", observations)
    with h5py.File(tmp_path / "w.h5", "r+") as file:
        group = file["observations"]
        group.attrs["encoding-type"] = encoding
        counts = np.bincount(groups, minlength=observations.shape[encoding == "csc_matrix"])
        for name in ("data", "indices", "indptr", "weights"):
            del group[name]
        group["data"], group["weights"] = values[order], observations.weights[order]
        group["indices"] = (cols if encoding == "csr_matrix" else rows)[order]
        group["indptr"] = np.concatenate(([0], np.cumsum(counts)))
    assert triples(open_observations(tmp_path / "w.h5")) == triples(observations)


@pytest.mark.parametrize("memory", [1 << 30, 600])
@pytest.mark.parametrize(("wrong", "error"), [(np.ones(3), FileFormatError), ("zero", InputError)])
def test_wrong_weights_in_files_are_refused(tmp_path, memory, wrong, error):
    observations = weighted()
    write_observations(tmp_path / "w.h5", observations)
    with h5py.File(tmp_path / "w.h5", "r+") as file:
        if isinstance(wrong, str):
            file["observations/weights"][5] = 0.0
        else:
            del file["observations/weights"]
            file["observations/weights"] = wrong
    with pytest.raises(error, match="weights"):
        open_observations(tmp_path / "w.h5", memory=memory)


# --- offsets ----------------------------------------------------------------------------------------------------------


def test_offsets_with_weights_equal_those_of_entries_that_occur_so_often():
    # Offsets see an entry of weight 2 as two entries, but for the number of them that the noise is averaged over.
    rng = np.random.RandomState(1)
    matrix = 5.0 + rng.standard_normal((40, 1)) + rng.standard_normal((1, 30)) + 0.1 * rng.standard_normal((40, 30))
    observations = Observations.from_dense(matrix)
    heavy = observations.with_weights(np.full(observations.n_observed, 2.0))
    one, other = fit_offsets(observations), fit_offsets(heavy)
    np.testing.assert_allclose(other.rows, one.rows, rtol=1e-6)
    np.testing.assert_allclose(other.mean, one.mean, rtol=1e-9)


def test_offsets_follow_the_weighted_mean():
    weights = np.array([[1e6, 1e6], [1.0, 1.0], [1.0, 1.0]])
    matrix = np.array([[2.0, 2.0], [8.0, 8.0], [8.0, 8.0]])
    offsets = fit_offsets(Observations.from_dense(matrix).with_weights(weights))
    assert abs(offsets.mean + offsets.rows[0] - 2.0) < 1e-4


# --- solvers ----------------------------------------------------------------------------------------------------------


def objective_gradient(result, observations: Observations) -> np.ndarray:
    """Return P_Ω(w (X − Y)) + λ U diag(σ^(1 − 4α)) Vᵀ, projected on the tangent space: zero at a stationary point."""
    rows, cols, values = observations.to_coo()
    estimate = result.to_dense()
    gradient = np.zeros(observations.shape)
    weights = observations.weights if observations.is_weighted else 1.0
    gradient[rows, cols] = weights * (estimate[rows, cols] - values)
    u, sigma, vt = np.linalg.svd(estimate, full_matrices=False)
    k = result.rank
    u, sigma, vt = u[:, :k], sigma[:k], vt[:k]
    gradient += result.options["ridge"] * (u * sigma ** (1.0 - 4.0 * result.options["agop_power"])) @ vt
    return u @ (u.T @ gradient) + (gradient @ vt.T) @ vt - u @ (u.T @ gradient @ vt.T) @ vt


@pytest.mark.compiled_only
@METHODS
def test_the_answer_is_stationary_for_the_weighted_misfit(method):
    observations = weighted(40, 25)
    result = complete(observations, method=method, ridge=30.0, agop_power=0.25, tol=1e-4)
    assert result.rank >= 1
    scale = np.linalg.norm(observations.weights * observations.values)
    assert np.linalg.norm(objective_gradient(result, observations)) < 0.02 * scale
    # The same answer is far from stationary for the plain misfit: weights did matter.
    plain = Observations.from_coo(*observations.to_coo(), observations.shape)
    assert np.linalg.norm(objective_gradient(result, plain)) > 0.05 * np.linalg.norm(plain.values)


@pytest.mark.compiled_only
@METHODS
def test_weights_all_alike_are_a_smaller_ridge(method):
    observations = weighted()
    plain = Observations.from_coo(*observations.to_coo(), observations.shape)
    options = {"method": method, "agop_power": 0.25, "smoothing": 0.3, "max_iter": 200, "tol": 1e-10}
    with pytest.warns():
        one = complete(plain, ridge=2.0, **options)
        other = complete(plain.with_weights(np.full(plain.n_observed, 3.0)), ridge=6.0, **options)
    np.testing.assert_allclose(other.to_dense(), one.to_dense(), atol=1e-8)
    assert one.masked_rmse == pytest.approx(other.masked_rmse, rel=1e-8)


@pytest.mark.compiled_only
@METHODS
def test_a_faint_entry_is_as_good_as_missing(method):
    observations = weighted()
    drop = np.zeros(observations.n_observed, dtype=bool)
    drop[::7] = True
    faint = observations.with_weights(np.where(drop, 1e-9, observations.weights))
    options = {"method": method, "ridge": 3.0, "agop_power": 0.25, "smoothing": 0.3, "max_iter": 200, "tol": 1e-8}
    with pytest.warns():
        one, other = complete(faint, **options), complete(observations.select(~drop), **options)
    np.testing.assert_allclose(one.to_dense(), other.to_dense(), atol=1e-5)


@pytest.mark.compiled_only
def test_the_rmse_is_weighted():
    observations = weighted()
    results = [
        complete(observations, method=method, ridge=10.0, agop_power=0.25, tol=1e-3) for method in ("factored", "dense")
    ]
    rows, cols, values = observations.to_coo()
    for result in results:
        square = np.average((result.predict(rows, cols) - values) ** 2, weights=observations.weights)
        assert result.masked_rmse == pytest.approx(np.sqrt(square), rel=1e-12)
    # That of the iterates has the sparse part in, which heavy entries keep most of.
    one, other = (result.history["masked_rmse"][-1] for result in results)
    assert one == pytest.approx(other, rel=0.05) and one < results[0].masked_rmse


def test_two_sided_refuses_weights():
    with pytest.raises(InputError, match="two-sided"):
        complete(weighted(), method="two-sided", rank=2)


# --- the choice, and how sure it is -----------------------------------------------------------------------------------


@pytest.mark.compiled_only
@pytest.mark.parametrize("seed", [0, 1])
def test_known_variances_make_the_automatic_answer_better(seed):
    observations = weighted(120, 80, seed)
    rng = np.random.RandomState(seed)
    truth = rng.standard_normal((120, 2)) @ rng.standard_normal((2, 80))
    plain = Observations.from_coo(*observations.to_coo(), observations.shape)
    errors = [
        np.sqrt(np.mean((complete(o, ridge="auto", agop_power="auto").to_dense() - truth) ** 2))
        for o in (plain, observations)
    ]
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.compiled_only
def test_standard_errors_know_the_weights():
    rng = np.random.RandomState(0)
    left, right = rng.standard_normal((60, 2)), rng.standard_normal((40, 2))
    sigma = np.where(np.arange(40) < 20, 0.1, 1.0) * np.ones((60, 1))
    ratios = []
    for seed in range(3):
        noise = sigma * np.random.RandomState(seed).standard_normal(sigma.shape)
        shown = np.where(
            np.random.RandomState(9 + seed).random_sample(sigma.shape) < 0.7, left @ right.T + noise, np.nan
        )
        observations = Observations.from_dense(shown).with_weights(sigma**-2.0)
        result = complete(observations, rank=2, ridge=5.0, agop_power=0.25, tol=1e-2)
        rows, cols = (index.ravel() for index in np.indices(sigma.shape))
        errors = standard_errors(result, observations, rows, cols)
        missed = result.predict(rows, cols) - (left @ right.T).ravel()
        is_fine = cols < 20
        ratios.append([np.mean((missed[part] / errors[part]) ** 2) for part in (is_fine, ~is_fine)])
        assert np.median(errors[is_fine]) < 0.6 * np.median(errors[~is_fine])
        low, high = prediction_intervals(
            result, rows, cols, 0.9, held_out=observations.split(0.1)[1], observations=observations
        )
        assert np.all(low < high)
    assert np.all(np.mean(ratios, axis=0) > 0.6) and np.all(np.mean(ratios, axis=0) < 1.8)


@pytest.mark.compiled_only
def test_the_estimator_takes_weights_as_a_table_of_the_same_shape():
    observations = weighted(40, 25)
    table, weights = np.full((2, *observations.shape), np.nan)
    table[observations.to_coo()[:2]], weights[observations.to_coo()[:2]] = observations.values, observations.weights
    options = {"ridge": 5.0, "agop_power": 0.25}
    model = MatrixCompletion(**options).fit(table, weights=weights)
    np.testing.assert_array_equal(model.result_.to_dense(), complete(observations, **options).to_dense())
    filled = MatrixCompletion(**options).fit_transform(table, weights=weights)
    missed = [np.linalg.norm(model.transform(table, **given) - filled) for given in ({"weights": weights}, {})]
    assert missed[0] < 0.5 * missed[1]
    with pytest.raises(InputError, match="weights"):
        model.fit(table, weights=weights[:2])


# --- units ------------------------------------------------------------------------------------------------------------


@pytest.mark.compiled_only
def test_the_unit_of_weights_does_not_matter():
    observations = weighted()
    wanted = fit_offsets(observations)
    for unit in (1e-8, 1e8):
        found = fit_offsets(observations.with_weights(unit * observations.weights))
        np.testing.assert_allclose(found.rows, wanted.rows, rtol=1e-9)
    # The dense rows' systems must not pass through sums with a ridge that dwarfs them.
    options = {"method": "dense", "agop_power": 0.25, "max_iter": 3000, "tol": 1e-3}
    few = complete(observations, ridge=1.0, **options).to_dense()
    large = complete(observations.with_weights(1e15 * observations.weights), ridge=1e15, **options).to_dense()
    np.testing.assert_allclose(large, few, rtol=1e-3, atol=1e-4)


def test_the_digest_of_weights_does_not_tell_how_long_blocks_were(monkeypatch):
    whole = digest(weighted())
    monkeypatch.setattr(blocks, "BLOCK_ENTRIES", 50)
    assert digest(weighted()) == whole
    assert digest(weighted().with_weights(np.ones(weighted().n_observed))) != whole


def test_exact_data_with_options_for_noise_take_new_rows():
    table = np.outer(np.arange(1.0, 13.0), np.arange(1.0, 9.0))
    table[::3, 2] = np.nan
    for options in ({"huber": 1.345}, {"count_power": 0.5}):
        model = MatrixCompletion(**options).fit(table)
        model.partial_fit([[5.0] + [np.nan] * 7])
        anew = MatrixCompletion(**options).fit(np.vstack([table, [5.0] + [np.nan] * 7]))
        np.testing.assert_array_equal(model.predict(12, [1, 2]), anew.predict(12, [1, 2]))


@pytest.mark.compiled_only
def test_the_largest_ridge_of_a_grid_follows_the_weights():
    observations = weighted()
    one, other = (
        largest_ridge(o, 0.375) for o in (observations, observations.with_weights(50.0 * observations.weights))
    )
    assert other == pytest.approx(50.0 * one, rel=1e-6)
    found = largest_ridge(observations, 0.25)
    assert complete(observations, ridge=1.01 * found, agop_power=0.25).rank == 0
    assert complete(observations, ridge=0.05 * found, agop_power=0.25, tol=1e-3).rank > 0


def test_weights_of_one_are_none():
    observations = Observations.from_coo(*weighted().to_coo(), (30, 20))
    assert not observations.with_weights(np.ones(observations.n_observed)).is_weighted


def test_too_few_entries_to_choose_a_ridge_for_outliers_are_refused():
    with pytest.raises(InputError, match="huber needs a ridge"):
        complete(Observations.from_dense([[1.0, 2.0], [3.0, np.nan]]), huber=1.345, ridge="auto")
