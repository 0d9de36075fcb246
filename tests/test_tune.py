"""Cross-validation over a grid, the scale of its ridges, and ``fastrfm tune``."""

from __future__ import annotations

import csv
import importlib
import os
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from click.testing import CliRunner
from problems import random_mask

import fastrfm.cross_validation
from fastrfm.cli import main
from fastrfm.cross_validation import (
    CrossValidation,
    Fit,
    Setting,
    assign_folds,
    cross_validate,
    fold_fits,
    largest_ridge,
    make_grid,
)
from fastrfm.errors import InputError
from fastrfm.observations import Observations
from fastrfm.options import CompletionOptions
from fastrfm.ridge_plot import plot_ridges
from fastrfm.solvers.completion import complete
from fastrfm.solvers.offsets import fit_offsets
from fastrfm.store import open_observations, write_observations

POWERS = (0.25, 0.375, 0.5)


def noisy(shape=(30, 20), share=0.6, seed=0, noise=0.3):
    rng = np.random.RandomState(seed)
    truth = 1.0 + rng.standard_normal((shape[0], 2)) @ rng.standard_normal((2, shape[1]))
    mask = random_mask(rng, shape, share)
    return Observations.from_dense(np.where(mask, truth + noise * rng.standard_normal(shape), np.nan))


@pytest.fixture
def file(tmp_path):
    write_observations(tmp_path / "o.h5", noisy())
    return tmp_path / "o.h5"


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="fastrfm")


def table_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- folds and fits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "folds"), [(10, 2), (11, 3), (5, 5), (100, 7)])
def test_each_entry_is_in_one_fold(n, folds):
    fold_of = assign_folds(n, folds, 3)
    sizes = np.bincount(fold_of, minlength=folds)
    assert fold_of.shape == (n,) and sizes.size == folds and sizes.max() - sizes.min() <= 1
    assert (assign_folds(n, folds, 3) == fold_of).all() and (n < 9 or (assign_folds(n, folds, 4) != fold_of).any())


@pytest.mark.parametrize("folds", [1, 0, 11, 2.5, True, None])
def test_unusable_numbers_of_folds(folds):
    with pytest.raises(InputError, match="folds must be a whole number from 2 to the number of entries, 10"):
        assign_folds(10, folds)


@pytest.mark.compiled_only
def test_fits_equal_fits_made_one_by_one():
    observations, grid = noisy(), [Setting(0.25, 2.0, True), Setting(0.5, 1.0, False)]
    found = cross_validate(observations, grid, 3, 5, options=CompletionOptions(rank=4, tol=1e-3))
    rows, cols, values = observations.to_coo()
    fold_of, fits = assign_folds(values.size, 3, 5), iter(found.fits)
    for setting in grid:
        errors = []
        for fold in range(3):
            held = fold_of == fold
            kept = Observations.from_coo(rows[~held], cols[~held], values[~held], observations.shape)
            more = {"agop_power": setting.agop_power, "ridge": setting.ridge, "offsets": setting.offsets}
            result = complete(kept, rank=4, tol=1e-3, **more)
            off = result.predict(rows[held], cols[held]) - values[held]
            fit = next(fits)
            assert (fit.setting, fit.fold, fit.n_held_out) == (setting, fold, held.sum())
            assert fit.rmse == pytest.approx(np.sqrt(np.mean(off**2))) and fit.mae == pytest.approx(np.abs(off).mean())
            assert (fit.rank, fit.n_iter, fit.stop_reason) == (result.rank, result.n_iter, result.stop_reason)
            errors.append(fit.rmse)
        summary = found.summaries()[grid.index(setting)]
        assert summary.setting == setting and summary.rmse == pytest.approx(np.mean(errors))
        assert summary.rmse_error == pytest.approx(np.std(errors, ddof=1) / np.sqrt(3))
    assert next(fits, None) is None


@pytest.mark.compiled_only
def test_what_was_held_out_is_not_seen():
    """Other values in a fold change its errors, and no fit without it."""
    observations = noisy()
    fold_of = assign_folds(observations.n_observed, 4)
    changed = observations.with_values(np.where(fold_of == 2, 100.0, observations.values))
    grid = [Setting(0.25, 2.0, False)]
    one, other = (cross_validate(data, grid, 4).fits[2] for data in (observations, changed))
    assert (one.rank, one.n_iter) == (other.rank, other.n_iter) and other.rmse > 50.0


def fits_of(rmses, ridges, power=0.25, offsets=False):
    made = []
    for ridge, values in zip(ridges, rmses, strict=True):
        setting = Setting(power, ridge, offsets)
        made += [Fit(setting, k, 10, value, value, 2, 5, 0.1, "converged") for k, value in enumerate(values)]
    return made


def test_best_and_one_standard_error():
    fits = fits_of([(1.3, 1.3), (1.05, 1.05), (0.9, 1.1), (1.02, 1.04)], [30.0, 10.0, 3.0, 1.0])  # sd 0.141, error 0.1
    fits += fits_of([(1.01, 1.01)], [1000.0], power=0.5)  # of another power: its ridge says nothing here
    fits += fits_of([(0.1,)], [0.5])  # one fold is missing
    found = CrossValidation(2, fits)
    assert len(found.summaries()) == 5
    assert found.best().setting.ridge == 3.0 and found.best().rmse_error == pytest.approx(0.1)
    assert found.one_standard_error().setting == Setting(0.25, 10.0, False)
    with pytest.raises(InputError, match="no setting has all its folds"):
        CrossValidation(3, fits).best()


def test_unusable_searches_are_refused(tmp_path):
    observations = noisy()
    for given in ({"agop_powers": []}, {"ridges": []}, {"offsets": []}):
        with pytest.raises(InputError, match="the grid is empty"):
            make_grid(observations, **given)
    with pytest.raises(InputError, match="n_ridges must be at least 2"):
        make_grid(observations, n_ridges=1)
    with pytest.raises(InputError, match="agop_power must be"):
        make_grid(observations, [0.0])
    with pytest.raises(InputError, match="nothing is left to complete"):
        make_grid(observations.with_values(np.zeros(observations.n_observed)))
    with pytest.raises(InputError, match="ridge must be"):  # at once, not at the first fit
        fold_fits(observations, [Setting(0.25, 1.0, False), Setting(0.25, -1.0, False)])
    with pytest.raises(InputError, match="rank must be at most 20"):
        fold_fits(observations, [Setting(0.25, 1.0, False)], options=CompletionOptions(rank=21))
    write_observations(tmp_path / "o.h5", observations)
    with pytest.raises(InputError, match="wants the observations in memory"):
        fold_fits(open_observations(tmp_path / "o.h5", memory=2000), [Setting(0.25, 1.0, False)])


# --- ridges -------------------------------------------------------------------------------------------------------


def dense_zeros(observations):
    table = np.zeros(observations.shape)
    rows, cols, values = observations.to_coo()
    table[rows, cols] = values
    return table


@pytest.mark.parametrize("power", POWERS)
def test_largest_ridge_by_formula(power):
    observations = noisy()
    u, s, vt = np.linalg.svd(dense_zeros(observations))
    rows, cols, _ = observations.to_coo()
    share = np.sum(u[rows, 0] ** 2 * vt[0, cols] ** 2)
    sizes = np.linspace(0.0, 2.0 * s[0] / share, 200_001)[1:]
    wanted = np.max(s[0] * sizes ** (4.0 * power - 1.0) - share * sizes ** (4.0 * power))
    assert largest_ridge(observations, power) == pytest.approx(wanted, rel=3e-3)


@pytest.mark.compiled_only
@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("offsets", [False, True])
def test_the_estimate_vanishes_at_the_largest_ridge(power, offsets):
    observations = noisy()
    values = observations.shifted(fit_offsets(observations).at) if offsets else observations
    ridge = largest_ridge(values, power)
    tol = 1e-6 if power == 0.25 else 1e-4
    above, below = (complete(values, agop_power=power, ridge=c * ridge, tol=tol) for c in (1.1, 0.85))
    # At power 1/4 it fades to nothing as the smoothing of the penalty does.
    assert above.rank == 0 or above.singular_values[0] < 0.02 * below.singular_values[0]
    assert below.rank >= 1


@pytest.mark.parametrize("power", [0.2, *POWERS])
def test_ridges_scale_with_the_data_and_do_not_depend_on_blocks(power, tmp_path):
    observations = noisy()
    one = largest_ridge(observations, power)
    scaled = observations.with_values(3.0 * observations.values)
    assert largest_ridge(scaled, power) == pytest.approx(one * 3.0 ** (4.0 * power), rel=1e-9)
    assert largest_ridge(observations.transposed(), power) == pytest.approx(one, rel=5e-3)
    write_observations(tmp_path / "o.h5", observations)
    assert largest_ridge(open_observations(tmp_path / "o.h5", memory=2000), power) == pytest.approx(one, rel=1e-12)


def test_the_grid_is_full():
    observations = noisy()
    grid = make_grid(observations, [0.25, 0.5], n_ridges=4)
    assert len(grid) == len(set(grid)) == 2 * 2 * 4
    for k in range(0, 16, 4):
        ridges = [setting.ridge for setting in grid[k : k + 4]]
        assert len({(setting.agop_power, setting.offsets) for setting in grid[k : k + 4]}) == 1
        np.testing.assert_allclose(np.diff(np.log(ridges)), -np.log(100.0) * 4.0 * grid[k].agop_power / 3.0)
    assert grid[0].ridge == largest_ridge(observations, 0.25)
    centred = observations.shifted(fit_offsets(observations).at)
    assert next(s.ridge for s in grid if s.offsets) == pytest.approx(largest_ridge(centred, 0.25))
    given = make_grid(observations, [0.25], [1.0, 3.0, 1.0, 0.0], offsets=[True])
    assert given == [Setting(0.25, ridge, True) for ridge in (3.0, 1.0, 0.0)]


# --- the command --------------------------------------------------------------------------------------------------


@pytest.mark.compiled_only
def test_tune_writes_every_fit_and_says_what_to_take(file, tmp_path):
    given = (
        "--agop-power",
        "0.25,0.5",
        "--ridge",
        "1, 3,10",
        "--offsets",
        "on",
        "--folds",
        3,
        "--seed",
        2,
        "--rank",
        5,
    )
    outcome = run("tune", file, "-o", tmp_path / "t.csv", *given)
    assert outcome.exit_code == 0, outcome.output
    table = table_of(tmp_path / "t.csv")
    assert len(table) == 2 * 3 * 3 and [row["fold"] for row in table[:4]] == ["1", "2", "3", "1"]
    assert {row["agop_power"] for row in table} == {"0.25", "0.5"} and table[0]["ridge"] == "10.0"
    found = cross_validate(
        noisy(),
        make_grid(noisy(), [0.25, 0.5], [1, 3, 10], offsets=[True]),
        3,
        2,
        options=CompletionOptions(rank=5, random_state=2),
    )
    assert [float(row["rmse"]) for row in table] == pytest.approx([fit.rmse for fit in found.fits], rel=1e-12)
    assert sum(int(row["held_out"]) for row in table) == 6 * noisy().n_observed
    best, cautious = found.best().setting, found.one_standard_error().setting
    for label, setting in (("best:", best), ("one standard error:", cautious)):
        said = f"--agop-power {setting.agop_power:g} --ridge {setting.ridge:g} --offsets"
        assert any(line.startswith(label) and said in line for line in outcome.stdout.splitlines())
    assert "6 settings x 3 folds" in outcome.stdout


@pytest.mark.compiled_only
def test_tune_finds_its_own_ridges(file, tmp_path):
    outcome = run(
        "tune", file, "-o", tmp_path / "t.csv", "--agop-power", 0.25, "--n-ridge", 5, "--folds", 2, "--rank", 6
    )
    assert outcome.exit_code == 0, outcome.output
    table = table_of(tmp_path / "t.csv")
    ridges = [float(row["ridge"]) for row in table]
    assert ridges[::2][:5] == pytest.approx([s.ridge for s in make_grid(noisy(), [0.25], n_ridges=5)][:5])
    assert len(table) == 2 * 5 * 2 and {row["offsets"] for row in table} == {"True", "False"}
    best = min(table, key=lambda row: float(row["rmse"]))
    assert 0.3 < float(best["rmse"]) < 1.2  # 0.3 is noise, and 1.68 what an estimate of zeros gets


def test_tune_points_at_the_end_of_the_ridges_and_at_unfinished_fits(file, tmp_path):
    given = ("--agop-power", 0.25, "--offsets", "off", "--folds", 2)
    outcome = run("tune", file, "-o", tmp_path / "t.csv", *given, "--ridge", "5,12")
    assert "The best ridge is the smallest one tried: try smaller ones too" in outcome.stderr
    outcome = run("tune", file, "-o", tmp_path / "u.csv", *given, "--ridge", "3", "--max-iter", 2)
    assert outcome.exit_code == 3 and "Not converged in 2 fits" in outcome.stderr
    assert [row["stopped"] for row in table_of(tmp_path / "u.csv")] == ["max_iter"] * 2


def stop_at(monkeypatch, n, error):
    calls = []

    def stopping(*arguments, **options):
        calls.append(options)
        if len(calls) > n:
            raise error
        return complete(*arguments, **options)

    monkeypatch.setattr(fastrfm.cross_validation, "complete", stopping)


@pytest.mark.parametrize("n", [0, 3])
def test_ctrl_c_keeps_the_finished_fits(file, tmp_path, monkeypatch, n):
    stop_at(monkeypatch, n, KeyboardInterrupt())
    outcome = run("tune", file, "-o", tmp_path / "t.csv", "--ridge", "1,3", "--folds", 2)
    assert outcome.exit_code == 1
    said = f"{tmp_path / 't.csv'} holds 3 finished fits" if n else "nothing was written"
    assert outcome.stderr == f"Stopped by Ctrl-C: {said}\n"
    assert len(table_of(tmp_path / "t.csv")) == 3 if n else not (tmp_path / "t.csv").exists()
    assert not list(tmp_path.glob(".fastrfm*"))


def test_a_failure_keeps_the_finished_fits(file, tmp_path, monkeypatch):
    stop_at(monkeypatch, 2, InputError("broken"))
    outcome = run("tune", file, "-o", tmp_path / "t.csv", "--ridge", "1,3", "--folds", 2)
    assert outcome.exit_code == 1 and outcome.stderr == "Error: broken\n"
    assert len(table_of(tmp_path / "t.csv")) == 2


@pytest.mark.compiled_only
def test_a_real_ctrl_c(tmp_path):
    write_observations(tmp_path / "o.h5", noisy((300, 200)))
    code = "import fastrfm.cross_validation as c, fastrfm.cli\n"
    code += "one = c.complete\n"
    code += "def said(*a, **k):\n    found = one(*a, **k); print('fit', flush=True); return found\n"
    code += "c.complete = said\n"
    code += (
        f"fastrfm.cli.main(['tune', {str(tmp_path / 'o.h5')!r}, '-o', {str(tmp_path / 't.csv')!r}, '--tol', '1e-9'])"
    )
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout is not None and run.stdout.readline() == "fit\n"
    time.sleep(0.2)
    os.kill(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 1, said
    n = len(table_of(tmp_path / "t.csv"))
    assert n >= 1 and f"holds {n} finished fit" in said


@pytest.mark.parametrize(
    ("given", "said", "code"),
    [
        (("--ridge", "1,x"), "'1,x' is not numbers with commas between them", 2),
        (("--rank", 0), "rank must be a whole number", 2),
        (("--agop-power", "0.25,-1"), "agop_power must be", 1),
        (("--ridge", "-1"), "ridge must be", 1),
        (("--rank", 25), "rank must be at most 20", 1),
        (("--folds", 1), "is not in the range", 2),
        (("--folds", 1000), "folds must be a whole number from 2", 1),
        (("--memory", "100M", "--plot", "x.txt"), "must end in one of .png", 1),
    ],
)
def test_wrong_usage(file, tmp_path, given, said, code):
    outcome = run("tune", file, "-o", tmp_path / "t.csv", *given)
    assert outcome.exit_code == code and said in outcome.stderr
    assert not (tmp_path / "t.csv").exists()


def test_outputs_are_kept(file, tmp_path):
    (tmp_path / "t.csv").write_text("old")
    outcome = run("tune", file, "-o", tmp_path / "t.csv", "--ridge", 1)
    assert outcome.exit_code == 1 and "exists already" in outcome.stderr and (tmp_path / "t.csv").read_text() == "old"
    outcome = run("tune", file, "-o", file, "--force", "--ridge", 1)
    assert outcome.exit_code == 1 and open_observations(file).n_observed == noisy().n_observed


def test_help_loads_nothing_heavy():
    script = (
        "import sys, fastrfm.cli\n"
        "try: fastrfm.cli.main(['tune', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'numba', 'numpy', 'scipy', 'h5py', 'matplotlib'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n" and "--agop-power" in done.stdout


# --- the figure ---------------------------------------------------------------------------------------------------


def test_plot_without_matplotlib(file, tmp_path, monkeypatch):
    real = importlib.import_module

    def without(name, *more):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(importlib, "import_module", without)
    outcome = run("tune", file, "-o", tmp_path / "t.csv", "--ridge", 1, "--plot", tmp_path / "t.png")
    assert outcome.exit_code == 1 and "pip install 'fastrfm[plot]'" in outcome.stderr
    assert not (tmp_path / "t.csv").exists()  # said before the work


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_plot(tmp_path, kind):
    pytest.importorskip("matplotlib")
    fits = fits_of([(1.3, 1.3), (1.05, 1.05), (0.9, 1.1)], [30.0, 10.0, 3.0])
    fits += fits_of([(1.1, 1.3), (0.95, 1.05), (1.0, 1.1)], [20.0, 2.0, 0.0], power=0.5, offsets=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of packages that matplotlib uses
        plot_ridges(tmp_path / f"f.{kind}", CrossValidation(2, fits))
    start = (tmp_path / f"f.{kind}").read_bytes()[:5]
    assert start in (b"\x89PNG\r", b"%PDF-", b"<?xml")


@pytest.mark.compiled_only
def test_plot_by_the_command(file, tmp_path):
    pytest.importorskip("matplotlib")
    given = ("--agop-power", 0.25, "--ridge", "1,3", "--folds", 2, "--plot", tmp_path / "t.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        outcome = run("tune", file, "-o", tmp_path / "t.csv", *given)
    assert outcome.exit_code == 0, outcome.output
    assert (tmp_path / "t.png").stat().st_size > 5000
