"""Standard errors against the naive twin and against truth; intervals hold the share that they promise."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pytest
import reference
from click.testing import CliRunner
from problems import random_mask

from fastrfm.cli import main
from fastrfm.errors import InputError, NotConvergedWarning
from fastrfm.observations import Observations
from fastrfm.results import CompletionResult, Offsets, Selection
from fastrfm.solvers.completion import complete
from fastrfm.solvers.offsets import fit_offsets
from fastrfm.store import open_observations, write_observations, write_result
from fastrfm.stored import StoredObservations
from fastrfm.uncertainty import Calibration, calibrate, noise_level, prediction_intervals, standard_errors

DATASETS = Path(__file__).resolve().parent.parent / "datasets"
NOISE = 0.1


def problem(shape=(40, 25), rank=2, share=0.5, seed=0):
    """Return truth and noisy observations."""
    rng = np.random.RandomState(seed)
    truth = rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1]))
    mask = random_mask(rng, shape, share)
    return truth, Observations.from_dense(np.where(mask, truth + NOISE * rng.standard_normal(shape), np.nan))


def fitted(observations, **options) -> CompletionResult:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)
        return complete(observations, **{"rank": 2, "max_iter": 200, **options})


def everywhere(shape):
    return np.arange(shape[0])[:, None], np.arange(shape[1])


def twin(result, observations):
    """Return the naive standard errors of all entries, and the noise."""
    mask = np.zeros(observations.shape, dtype=bool)
    rows, cols, values = observations.to_coo()
    mask[rows, cols] = True
    residual = np.zeros(mask.shape)
    residual[rows, cols] = result.predict(rows, cols) - values
    k, sigma, ridge = result.rank, result.singular_values, result.options["ridge"]
    vectors = [result.left[:, :k] / sigma, result.right[:, :k]]
    penalties = [ridge / sigma ** (4.0 * result.options["agop_power"])] * 2
    if result.offsets is not None:
        vectors = [np.column_stack([np.ones(len(part)), part]) for part in vectors]
        sides = (mask, result.offsets.rows, result.offsets.cols), (mask.T, result.offsets.cols, result.offsets.rows)
        for side, (seen, own, other) in enumerate(sides):
            table = np.zeros(mask.shape)
            table[rows, cols] = values
            table = table if side == 0 else table.T
            sums = np.where(seen, table - result.offsets.mean - other, 0.0).sum(axis=1)
            # b = sums / (n + s), for s by least squares
            shrinkage = own @ (sums - seen.sum(axis=1) * own) / (own @ own)
            penalties[side] = np.append(shrinkage, penalties[side])
    return reference.standard_errors(mask, residual, tuple(vectors), tuple(penalties))


OPTIONS = [
    {},
    {"ridge": 0.5, "agop_power": 0.25, "rank": None},
    {"ridge": 0.5, "agop_power": 0.375, "offsets": True},
    {"ridge": 3.0, "agop_power": 0.5},
    {"offsets": True, "rank": 3},
]


# --- standard errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS)
def test_standard_errors_equal_the_twin(options):
    _, observations = problem()
    result = fitted(observations, **options)
    wanted, noise = twin(result, observations)
    found = standard_errors(result, observations, *everywhere(result.shape))
    assert found.shape == result.shape and found.dtype == np.float64
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert noise_level(result, observations) == pytest.approx(noise, rel=1e-6)
    np.testing.assert_allclose(
        standard_errors(result, observations, 3, [4, 1], noise=2.0 * noise), 2.0 * wanted[3, [4, 1]], rtol=1e-6
    )


def test_known_degrees_of_freedom():
    """All is observed and nothing is penalised: r (n + m − r), and the variance of the tangent space's projection."""
    truth, _ = problem((30, 20), 2)
    noisy = truth + NOISE * np.random.RandomState(5).standard_normal(truth.shape)
    observations = Observations.from_dense(noisy)
    result = fitted(observations, method="two-sided", ridge=0.0)
    square = np.sum((result.to_dense() - noisy) ** 2)
    noise = noise_level(result, observations)
    assert noise == pytest.approx(np.sqrt(square / (600 - 2 * (30 + 20 - 2))), rel=1e-9)
    left, right = result.left / result.singular_values, result.right
    wanted = np.sqrt(np.sum(left**2, axis=1)[:, None] + np.sum(right**2, axis=1))
    np.testing.assert_allclose(standard_errors(result, observations, *everywhere(result.shape)), noise * wanted)


@pytest.mark.compiled_only
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[1], OPTIONS[2]])
def test_scaling_the_data_scales_the_errors(options):
    _, observations = problem()
    scale = 7.0
    power = 4.0 * options.get("agop_power", 0.5)
    scaled = observations.with_values(scale * observations.values)
    more = {**options, "ridge": options.get("ridge", 0.0) * scale**power}
    one = standard_errors(fitted(observations, **options), observations, *everywhere(observations.shape))
    other = standard_errors(fitted(scaled, **more), scaled, *everywhere(observations.shape))
    np.testing.assert_allclose(other, scale * one, rtol=1e-5)


@pytest.mark.compiled_only
@pytest.mark.parametrize("options", OPTIONS)
def test_permuting_and_transposing_permute_and_transpose(options):
    _, observations = problem()
    result = fitted(observations, **options)
    one = standard_errors(result, observations, *everywhere(observations.shape))
    rows, cols, values = observations.to_coo()
    rng = np.random.RandomState(1)
    i, j = (rng.permutation(n) for n in observations.shape)
    to_row, to_col = np.argsort(i), np.argsort(j)
    moved = Observations.from_coo(to_row[rows], to_col[cols], values, observations.shape)
    offsets = result.offsets and Offsets(result.offsets.mean, result.offsets.rows[i], result.offsets.cols[j])
    other = dataclasses.replace(result, left=result.left[i], right=result.right[j], offsets=offsets)
    found = standard_errors(other, moved, *everywhere(observations.shape))
    np.testing.assert_allclose(found, one[i][:, j], rtol=1e-9)

    k, sigma = result.rank, result.singular_values
    offsets = result.offsets and Offsets(result.offsets.mean, result.offsets.cols, result.offsets.rows)
    left, right = result.right[:, :k] * sigma, result.left[:, :k] / sigma
    other = dataclasses.replace(result, left=left, right=right, offsets=offsets)
    found = standard_errors(other, observations.transposed(), *everywhere(observations.shape[::-1]))
    np.testing.assert_allclose(found, one.T, rtol=1e-9)


def test_blocks_in_a_file_give_the_same_bits(tmp_path):
    _, observations = problem()
    result = fitted(observations, **OPTIONS[2])
    write_observations(tmp_path / "o.h5", observations)
    stored = open_observations(tmp_path / "o.h5", memory=80 * 37)
    assert isinstance(stored, StoredObservations)
    rows, cols = np.array([39, 0, 7, 7, 0]), np.array([3, 24, 0, 24, 3])
    one = standard_errors(result, observations, rows, cols)
    np.testing.assert_array_equal(standard_errors(result, stored, rows, cols), one)
    np.testing.assert_array_equal(standard_errors(result, observations, rows[::-1], cols[::-1])[::-1], one)
    for given in ({"observations": observations}, {"observations": stored}):
        held_out = Observations.from_coo(rows, cols, np.zeros(5), result.shape)
        found = calibrate(result, held_out, **given)
        np.testing.assert_array_equal(found.scores, calibrate(result, held_out, observations=observations).scores)


@pytest.mark.compiled_only
def test_rows_and_columns_without_observations():
    truth, observations = problem()
    rows, cols, _ = observations.to_coo()
    observations = observations.select((rows != 3) & (cols != 5))
    result = fitted(observations, ridge=0.5, agop_power=0.25, rank=None)
    k, noise = result.rank, noise_level(result, observations)
    prior = result.singular_values / 0.5  # d / λ
    right, left = result.right[:, :k], result.left[:, :k] / result.singular_values
    wanted = noise * np.sqrt(right[5] ** 2 @ prior + left[3] ** 2 @ prior)
    assert standard_errors(result, observations, 3, 5) == pytest.approx(wanted, abs=1e-12)
    in_row, elsewhere = (standard_errors(result, observations, i, np.delete(np.arange(25), 5)) for i in (3, 4))
    assert in_row.min() > 0.0 and np.median(in_row) > 2.0 * np.median(elsewhere)
    no_ridge = fitted(observations, method="two-sided")
    errors = standard_errors(no_ridge, observations, *everywhere(truth.shape))
    assert np.isinf(errors[3]).all() and np.isinf(errors[:, 5]).all()
    assert np.isfinite(np.delete(np.delete(errors, 3, 0), 5, 1)).all()


@pytest.mark.compiled_only
def test_sparse_rows_and_columns_have_larger_errors():
    _, observations = problem((120, 80), 2, 0.5)
    rows, cols, _ = observations.to_coo()
    rng = np.random.RandomState(2)
    observations = observations.select(((rows >= 10) & (cols >= 10)) | (rng.random_sample(rows.size) < 0.2))
    errors = standard_errors(fitted(observations, method="two-sided"), observations, *everywhere((120, 80)))
    dense = np.median(errors[10:, 10:])
    assert np.median(errors[:10, 10:]) > 1.3 * dense and np.median(errors[10:, :10]) > 1.3 * dense


@pytest.mark.compiled_only
@pytest.mark.parametrize(
    ("options", "share"),
    [
        ({"rank": 3}, 0.4),
        ({"rank": 3}, 0.15),
        ({"rank": None, "ridge": 1.0, "agop_power": 0.25}, 0.4),
        ({"rank": None, "ridge": 0.5, "agop_power": 0.25}, 0.4),
    ],
)
def test_errors_are_as_large_as_they_say(options, share):
    """Mean squared error of the truth over se², at entries not observed: measured 0.91, 1.10, 1.38 and 0.82."""
    truth, observations = problem((150, 100), 3, share)
    result = fitted(observations, tol=1e-4, **options)
    hidden = np.ones(truth.shape, dtype=bool)
    hidden[observations.to_coo()[:2]] = False
    i, j = np.nonzero(hidden)
    ratio = np.mean(((result.predict(i, j) - truth[i, j]) / standard_errors(result, observations, i, j)) ** 2)
    assert 0.6 < ratio < 1.7
    assert noise_level(result, observations) == pytest.approx(NOISE, rel=0.3)


def test_no_directions_and_no_noise():
    observations = Observations.from_dense([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    nothing = fitted(observations, rank=None, ridge=100.0, agop_power=0.25)
    assert nothing.rank == 0
    assert standard_errors(nothing, observations, [0, 1], 1).tolist() == [0.0, 0.0]
    result = fitted(observations, rank=1)
    assert standard_errors(result, observations, 0, 0, noise=0.0) == 0.0
    few = Observations.from_dense([[1.0, 2.0, np.nan], [1.0, 2.0, 3.0], [1.0, 2.0, np.nan]])
    moved = dataclasses.replace(fitted(few, rank=1), n_observed=6)
    alone = few.select(np.arange(7) != 4)
    assert np.isinf(standard_errors(moved, alone, 0, 2, noise=0.0))


def test_unusable_input_is_refused():
    _, observations = problem()
    result = fitted(observations)
    fewer = observations.select(np.arange(observations.n_observed) > 0)
    with pytest.raises(InputError, match=f"must be those that were fitted, {observations.n_observed} entries"):
        standard_errors(result, fewer, 0, 0)
    with pytest.raises(InputError, match="must be those that were fitted"):
        noise_level(result, observations.transposed())
    for noise in (-1.0, np.nan, np.inf):
        with pytest.raises(InputError, match="noise must be"):
            standard_errors(result, observations, 0, 0, noise=noise)
    with pytest.raises(InputError, match="row number 40"):
        standard_errors(result, observations, [1, 40], 0)
    with pytest.raises(InputError, match="column number -1"):
        standard_errors(result, observations, 0, -1)
    with pytest.raises(InputError, match="rows must be whole numbers"):
        standard_errors(result, observations, 0.5, 0)
    tiny = Observations.from_dense([[1.0, 2.0], [2.0, 4.5]])
    with pytest.raises(InputError, match=r"noise cannot be told: the fit of rank 2 uses 4 degrees of freedom of 4"):
        noise_level(fitted(tiny, method="dense"), tiny)


# --- intervals ----------------------------------------------------------------------------------------------------


def held_out_of(observations, seed=0, share=0.3):
    return observations.split(share, random_state=seed)


def select_by(held_out, result) -> Selection:
    """Return what a search that held these entries out would leave."""
    rows, cols, values = held_out.to_coo()
    fits = {"agop_power": np.array([0.5]), "ridge": np.array([0.0]), "rmse": np.array([1.0])}
    return Selection(fits, 0, rows, cols.astype(np.int64), values, result.predict(rows, cols))


def test_quantiles_are_those_of_split_conformal():
    scores = Calibration(np.arange(1.0, 10.0), False)
    assert [scores.quantile(c) for c in (0.05, 0.1, 0.5, 0.75, 0.8, 0.81, 0.9)] == [1.0, 1.0, 5.0, 8.0, 8.0, 9.0, 9.0]
    with pytest.raises(InputError, match=r"0\.95 needs at least 19 entries held out, got 9"):
        scores.quantile(0.95)
    assert Calibration(np.arange(19.0), False).quantile(0.95) == 18.0
    for coverage in (0.0, 1.0, -0.1, 90.0, np.nan):
        with pytest.raises(InputError, match="coverage must lie between 0 and 1"):
            scores.quantile(coverage)


def test_intervals_of_one_width_and_of_many():
    kept, held_out = held_out_of(problem()[1])
    result = fitted(kept, ridge=0.5, agop_power=0.25)
    rows, cols, values = held_out.to_coo()
    errors = np.sort(np.abs(result.predict(rows, cols) - values))
    half = errors[int(np.ceil(0.8 * (errors.size + 1))) - 1]
    grid = everywhere(result.shape)
    low, high = prediction_intervals(result, *grid, 0.8, held_out=held_out)
    assert low.shape == result.shape
    np.testing.assert_allclose(low, result.to_dense() - half, atol=1e-12)
    np.testing.assert_allclose(high, result.to_dense() + half, atol=1e-12)

    spread = np.sqrt(1.0 + standard_errors(result, kept, *grid, noise=1.0) ** 2)
    scores = np.sort(np.abs(result.predict(rows, cols) - values) / spread[rows, cols])
    half = scores[int(np.ceil(0.8 * (scores.size + 1))) - 1]
    low, high = prediction_intervals(result, *grid, 0.8, held_out=held_out, observations=kept)
    np.testing.assert_allclose(high - low, 2.0 * half * spread, rtol=1e-9)
    made = calibrate(result, held_out, observations=kept)
    again = prediction_intervals(result, *grid, 0.8, calibration=made, observations=kept)
    np.testing.assert_array_equal(again, (low, high))
    with pytest.raises(InputError, match="no observations are given, but the calibration was made with them"):
        prediction_intervals(result, *grid, 0.8, calibration=made)
    with pytest.raises(InputError, match="observations are given, but the calibration was made without them"):
        prediction_intervals(result, *grid, 0.8, calibration=calibrate(result, held_out), observations=kept)


@pytest.mark.compiled_only
def test_scores_of_a_selection_leave_its_entries_out():
    _, observations = problem()
    kept, held_out = held_out_of(observations)
    options = {"ridge": 0.5, "agop_power": 0.25}
    first, result = fitted(kept, **options), fitted(observations, **options)
    result = dataclasses.replace(result, selection=select_by(held_out, first))
    rows, cols, values = held_out.to_coo()
    wanted = np.abs(first.predict(rows, cols) - values)
    np.testing.assert_allclose(calibrate(result).scores, np.sort(wanted))
    # The same regressions with the kept entries alone: what `kept` gives if the factors are those of `result`.
    alone = dataclasses.replace(result, n_observed=kept.n_observed)
    spread = np.sqrt(1.0 + standard_errors(alone, kept, rows, cols, noise=1.0) ** 2)
    np.testing.assert_allclose(calibrate(result, observations=observations).scores, np.sort(wanted / spread))


def test_intervals_are_cut_to_the_bounds():
    kept, held_out = held_out_of(problem()[1])
    result = dataclasses.replace(fitted(kept), bounds=(-0.5, 0.75))
    low, high = prediction_intervals(result, *everywhere(result.shape), held_out=held_out)
    assert (low.min(), high.max()) == (-0.5, 0.75) and (low <= high).all()


def test_a_result_without_held_out_entries_is_refused():
    kept, held_out = held_out_of(problem()[1])
    result = fitted(kept)
    with pytest.raises(InputError, match="complete with options chosen by hold-out, or give entries"):
        prediction_intervals(result, 0, 0)
    with pytest.raises(InputError, match="held_out must have the result's shape"):
        calibrate(result, held_out.transposed())
    with pytest.raises(InputError, match="must be those that were fitted"):
        calibrate(result, held_out, observations=held_out)
    with pytest.raises(InputError, match="row number 99"):
        prediction_intervals(result, 99, 0, held_out=held_out)


def dataset(name):
    observations = open_observations(DATASETS / name)
    return observations.with_values(np.log10(observations.values)) if "gapminder" in name else observations


REAL = [
    ("movielens-small.h5", {"offsets": True, "agop_power": 0.25, "ridge": 14.0, "rank": 30}, 2),
    ("gapminder-gdp.h5", {"offsets": True, "agop_power": 0.25, "ridge": 0.1, "tol": 1e-3, "rank": None}, 10),
    ("tecator.h5", {"rank": 8}, 4),
]


@pytest.mark.compiled_only
@pytest.mark.parametrize("is_normalised", [False, True], ids=["one width", "normalised"])
@pytest.mark.parametrize(("name", "options", "n_seeds"), REAL, ids=[case[0] for case in REAL])
def test_coverage_on_real_data(name, options, n_seeds, is_normalised):
    """A fit, a tenth to calibrate and another tenth to test, on seeds that nothing was chosen by."""
    observations, levels = dataset(name), (0.8, 0.9, 0.95)
    held = np.zeros((n_seeds, 3))
    for seed in range(n_seeds):
        kept, hidden = observations.split(0.2, random_state=100 + seed)
        calibrating, testing = hidden.split(0.5, random_state=seed)
        result = fitted(kept, **{"max_iter": 10_000, **options})
        given = {"observations": kept} if is_normalised else {}
        made = calibrate(result, calibrating, **given)
        rows, cols, values = testing.to_coo()
        for k, level in enumerate(levels):
            low, high = prediction_intervals(result, rows, cols, level, calibration=made, **given)
            held[seed, k] = np.mean((low <= values) & (values <= high))
    np.testing.assert_allclose(held.mean(axis=0), levels, atol=0.02)


@pytest.mark.compiled_only
def test_coverage_of_a_selection_fitted_again_to_all():
    """As a search leaves it: errors are those of the fit without the entries, the result is that of all of them."""
    observations, options = dataset("movielens-small.h5"), {**REAL[0][1], "max_iter": 1000}
    known, testing = observations.split(0.1, random_state=7)
    kept, held_out = known.split(0.1, random_state=8)
    result = dataclasses.replace(fitted(known, **options), selection=select_by(held_out, fitted(kept, **options)))
    rows, cols, values = testing.to_coo()
    for given in ({}, {"observations": known}):
        low, high = prediction_intervals(result, rows, cols, 0.9, **given)
        assert 0.88 < np.mean((low <= values) & (values <= high)) < 0.93
        if given:  # columns that were rated once get wider ones than those rated often
            counts, width = known.col_counts[cols], high - low
            assert np.median(width[counts <= 1]) > 1.2 * np.median(width[counts > 50])


# --- the command --------------------------------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="fastrfm")


def test_predict_adds_the_ends_of_intervals(tmp_path):
    import h5py

    kept, held_out = held_out_of(problem()[1])
    result = fitted(kept, offsets=True)
    assert result.offsets.mean == fit_offsets(kept).mean
    result = dataclasses.replace(result, selection=select_by(held_out, result))
    write_result(tmp_path / "r.h5", result)
    (tmp_path / "pairs.csv").write_text("row,col,note\n3,4,a\n0,24,b\n")
    outcome = run("predict", tmp_path / "r.h5", tmp_path / "pairs.csv", "--interval", 0.8)
    assert outcome.exit_code == 0, outcome.output
    header, *lines = outcome.stdout.splitlines()
    assert header == "row,col,note,prediction,low,high"
    low, high = prediction_intervals(result, [3, 0], [4, 24], 0.8)
    numbers = np.array([[float(field) for field in line.split(",")[3:]] for line in lines])
    np.testing.assert_array_equal(numbers, np.column_stack([result.predict([3, 0], [4, 24]), low, high]))

    with h5py.File(tmp_path / "pairs.h5", "w") as file:
        file["rows"], file["cols"] = [3, 0], [4, 24]
    outcome = run("predict", tmp_path / "r.h5", tmp_path / "pairs.h5", "--interval", 0.8)
    assert outcome.stdout.splitlines()[0] == "row,col,prediction,low,high"
    assert (
        run("predict", tmp_path / "r.h5", tmp_path / "pairs.h5", "-o", tmp_path / "p.h5", "--interval", 0.8).output
        == ""
    )
    with h5py.File(tmp_path / "p.h5") as file:
        np.testing.assert_array_equal(file["low"], low)
        np.testing.assert_array_equal(file["high"], high)
        assert set(file) == {"rows", "cols", "predictions", "low", "high"}


def test_predict_says_what_an_interval_wants(tmp_path):
    kept, held_out = held_out_of(problem()[1])
    result = fitted(kept)
    write_result(tmp_path / "bare.h5", result)
    few = held_out.select(np.arange(held_out.n_observed) < 5)
    write_result(tmp_path / "few.h5", dataclasses.replace(result, selection=select_by(few, result)))
    (tmp_path / "pairs.csv").write_text("3,4\n")
    for name, said in (("bare", "bare.h5: the result holds no entries that its fit did not see"), ("few", "got 5")):
        outcome = run(
            "predict", tmp_path / f"{name}.h5", tmp_path / "pairs.csv", "--interval", 0.9, "-o", tmp_path / "o.csv"
        )
        assert outcome.exit_code == 1 and said in outcome.stderr and not (tmp_path / "o.csv").exists()
    assert run("predict", tmp_path / "few.h5", tmp_path / "pairs.csv", "--interval", 90).exit_code == 2
