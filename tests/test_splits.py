"""Entries divided by time, by groups and into folds: in Python, and ``fastrfm split`` from files."""

from __future__ import annotations

import csv
import datetime

import numpy as np
import pytest
from click.testing import CliRunner
from samples import make_dense, to_dense

import fastrfm
from fastrfm.cli import main
from fastrfm.cross_validation import Setting, fold_fits
from fastrfm.errors import InputError
from fastrfm.observations import Observations
from fastrfm.splits import assign_group_folds, number_groups, split_by_group, split_by_time, united
from fastrfm.store import open_observations, write_observations


def shuffled(seed=0, shape=(12, 9)):
    """Return observations and the (rows, cols) of their entries in another order than rows'."""
    observations = Observations.from_dense(make_dense(shape, seed), row_names=[f"r{i}" for i in range(shape[0])])
    rows, cols, _ = observations.to_coo()
    order = np.random.RandomState(seed).permutation(rows.size)
    return observations, rows[order], cols[order]


def entries(observations):
    return {(int(i), int(j)): float(v) for i, j, v in zip(*observations.to_coo(), strict=True)}


def assert_divided(whole, one, other):
    """Together all entries, none twice, shape and names of the whole."""
    assert entries(one) | entries(other) == entries(whole)
    assert one.n_observed + other.n_observed == whole.n_observed
    for part in (one, other):
        assert part.shape == whole.shape and part.row_names.tolist() == whole.row_names.tolist()


# --- by time ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.97])
@pytest.mark.parametrize("n_moments", [2, 5, 1000])
def test_the_latest_by_a_naive_twin(share, n_moments):
    observations, rows, cols = shuffled(1)
    times = np.random.RandomState(2).randint(0, n_moments, rows.size)
    earlier, latest = split_by_time(observations, (rows, cols, times), share)
    assert_divided(observations, earlier, latest)
    when = {(int(i), int(j)): int(t) for i, j, t in zip(rows, cols, times, strict=True)}
    first_latest = min(when[pair] for pair in entries(latest))
    assert max(when[pair] for pair in entries(earlier)) < first_latest
    sizes = [sum(t >= cut for t in when.values()) for cut in sorted(set(when.values()))[1:]]
    assert abs(latest.n_observed - share * rows.size) == min(abs(n - share * rows.size) for n in sizes)


def test_times_of_every_kind_divide_alike():
    observations, rows, cols = shuffled()
    days = np.arange(rows.size)
    dates = [datetime.date(2020, 1, 1) + datetime.timedelta(days=int(day)) for day in days]
    want = entries(split_by_time(observations, (rows, cols, days), 0.25)[1])
    for times in (
        days - 100.5,
        days.astype("float32"),
        days.astype("datetime64[D]"),
        dates,
        [str(d) for d in dates],
        days.astype(str),
    ):
        assert entries(split_by_time(observations, (rows, cols, times), 0.25)[1]) == want
    by_row = np.empty(rows.size)
    by_row[np.lexsort((cols, rows)).argsort()] = days
    again = split_by_time(observations, (*observations.to_coo()[:2], by_row), 0.25)
    assert entries(again[1]) == want


def test_unusable_times_are_refused():
    observations, rows, cols = shuffled()
    times = np.arange(rows.size, dtype=float)
    for share in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(InputError, match="share must lie between 0 and 1"):
            split_by_time(observations, (rows, cols, times), share)
    bad = times.copy()
    bad[[3, 5]] = np.nan
    with pytest.raises(InputError, match="2 times are missing or infinite"):
        split_by_time(observations, (rows, cols, bad), 0.1)
    with pytest.raises(InputError, match="1 times are missing"):
        moments = times.astype("datetime64[s]")
        moments[0] = np.datetime64("NaT")
        split_by_time(observations, (rows, cols, moments), 0.1)
    with pytest.raises(InputError, match=r"all \d+ times are the same, 7"):
        split_by_time(observations, (rows, cols, 0 * times + 7), 0.1)
    with pytest.raises(InputError, match="times must be numbers or dates, got 'soon'"):
        split_by_time(observations, (rows, cols, ["soon"] * rows.size), 0.1)
    with pytest.raises(InputError, match="times in row order give"):
        split_by_time(observations, times, 0.1)
    with pytest.raises(InputError, match="one for each of the"):
        split_by_time(observations, (rows, cols, times[1:]), 0.1)
    with pytest.raises(InputError, match="not those of the entries"):
        split_by_time(observations, (np.roll(rows, 1), cols, times), 0.1)
    with pytest.raises(InputError, match="wants Observations in memory"):
        split_by_time(to_dense(observations), (rows, cols, times), 0.1)


# --- by group -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", ["row", "column", "labels"])
def test_groups_stay_whole(groups):
    observations, rows, cols = shuffled(3)
    labels = np.random.RandomState(0).randint(0, 6, rows.size)
    given = (rows, cols, labels) if groups == "labels" else groups
    group_of = dict(zip(zip(rows.tolist(), cols.tolist(), strict=True), labels.tolist(), strict=True))
    if groups != "labels":
        group_of = {pair: pair[groups == "column"] for pair in group_of}
    found = set()
    for seed in range(4):
        kept, held = split_by_group(observations, given, 0.3, random_state=seed)
        assert_divided(observations, kept, held)
        parts = [{group_of[pair] for pair in entries(part)} for part in (kept, held)]
        assert not parts[0] & parts[1]
        largest = max(list(group_of.values()).count(group) for group in set(group_of.values()))
        assert abs(held.n_observed - 0.3 * rows.size) <= largest
        found.add(frozenset(parts[1]))
    assert len(found) > 1  # the seed counts
    assert entries(held) == entries(split_by_group(observations, given, 0.3, random_state=seed)[1])


def test_groups_by_words_are_those_by_numbers():
    observations, rows, cols = shuffled()
    numbers = np.arange(rows.size) % 5
    words = [f"day {k}" for k in numbers]
    want = number_groups(observations, (rows, cols, numbers))
    for labels in (words, np.array(words, dtype=object), numbers.astype(float)):
        found = number_groups(observations, (rows, cols, labels))
        assert found[1] == want[1] == 5
        np.testing.assert_array_equal(found[0], want[0])


def test_unusable_groups_are_refused():
    observations, rows, cols = shuffled()
    with pytest.raises(InputError, match='must be "row", "column" or'):
        split_by_group(observations, "rows", 0.1)
    with pytest.raises(InputError, match="all entries are in one group"):
        split_by_group(observations, (rows, cols, np.zeros(rows.size)), 0.1)
    for missing in (np.nan, None):
        labels = np.array(["a", "b", *["c"] * (rows.size - 2)], dtype=object)
        labels[1] = missing
        with pytest.raises(InputError, match="1 entries have no group"):
            split_by_group(observations, (rows, cols, labels), 0.1)


# --- back, and folds ----------------------------------------------------------------------------------------------


def test_both_parts_make_the_whole():
    observations, *_ = shuffled()
    kept, held = observations.split(0.2)
    assert_divided(united(kept, held)[0], kept, held)
    assert entries(united(held, kept)[0]) == entries(observations)
    with pytest.raises(InputError, match="entries are in both, the first at row"):
        united(observations, held)
    with pytest.raises(InputError, match="must be of one matrix"):
        united(kept, Observations.from_dense(np.ones((2, 2))))


@pytest.mark.parametrize("folds", [2, 5])
def test_each_group_is_in_one_fold(folds):
    observations, *_ = shuffled(4)
    fold_of = assign_group_folds(observations, "row", folds, 1)
    rows = observations.to_coo()[0]
    of_row = {int(row): set(fold_of[rows == row]) for row in np.unique(rows)}
    assert all(len(found) == 1 for found in of_row.values()) and set(fold_of) == set(range(folds))
    with pytest.raises(InputError, match="the number of groups, 9"):
        assign_group_folds(observations, "column", 10)


@pytest.mark.compiled_only
def test_features_tell_of_rows_that_are_held_out():
    rng = np.random.RandomState(0)
    features = rng.standard_normal((30, 2))
    truth = features @ rng.standard_normal((2, 20))
    observations = Observations.from_dense(np.where(rng.random_sample(truth.shape) < 0.7, truth, np.nan))
    grid = [Setting(0.25, 0.3, False)]
    with_them = list(fold_fits(observations, grid, 3, groups="row", row_features=features))
    without = list(fold_fits(observations, grid, 3, groups="row"))
    assert [fit.n_held_out for fit in with_them] == [fit.n_held_out for fit in without]
    assert sum(fit.rmse for fit in with_them) < 0.7 * sum(fit.rmse for fit in without)
    with pytest.raises(InputError, match="row_features must be a 2-D table with 30 lines"):
        fold_fits(observations, grid, 3, row_features=features[1:])


# --- the command --------------------------------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="fastrfm")


HEADERS = {
    "csv": ["user", "film", "stars", "day", "source"],
    "inter": ["user:token", "film:token", "stars:float", "day:float", "source:token"],
    "none": None,
}


def write_triples(path, header=None, delimiter=",", n=60, dates=False):
    """Write triples in random order with a time and a source; return {(user, film): (value, time, source)}."""
    rng = np.random.RandomState(0)
    pairs = rng.permutation(12 * 9)[:n]
    times = rng.permutation(n)
    found = {}
    with path.open("w", newline="") as file:
        table = csv.writer(file, delimiter=delimiter)
        if header:
            table.writerow(header)
        for pair, time in zip(pairs.tolist(), times.tolist(), strict=True):
            key, value = (f"u{pair // 9}", f"f{pair % 9}"), float(rng.randint(1, 6))
            source = ("web", "app", "desk")[rng.randint(3)]
            when = (datetime.datetime(2020, 1, 1) + datetime.timedelta(hours=time)).isoformat() if dates else time
            table.writerow([*key, value, when, source])
            found[key] = value, time, source
    return found


def by_name(path):
    found = open_observations(path)
    return {(found.row_names[i], found.col_names[j]): v for (i, j), v in entries(found).items()}, found


@pytest.mark.parametrize("kind", HEADERS)
@pytest.mark.parametrize("dates", [False, True])
def test_split_a_file_by_time(tmp_path, kind, dates):
    path, outputs = tmp_path / f"ratings.{kind}", (tmp_path / "kept.h5", tmp_path / "held.h5")
    truth = write_triples(path, HEADERS[kind], "\t" if kind == "inter" else ",", dates=dates)
    outcome = run("split", path, *outputs, "--latest", "4" if kind == "none" else "day", "--share", 0.2)
    assert outcome.exit_code == 0, outcome.output
    assert "48 entries" in outcome.stdout and "12 entries (20.00%)" in outcome.stdout
    (kept, first), (held, second) = map(by_name, outputs)
    assert first.shape == second.shape and first.row_names.tolist() == second.row_names.tolist()
    assert kept == {pair: value for pair, (value, time, _) in truth.items() if time < 48}
    assert held == {pair: value for pair, (value, time, _) in truth.items() if time >= 48}


def test_split_a_file_by_groups(tmp_path):
    path, outputs = tmp_path / "ratings.csv", (tmp_path / "kept.h5", tmp_path / "held.h5")
    truth = write_triples(path, HEADERS["csv"])
    for group, of in (("source", lambda pair: truth[pair][2]), ("user", lambda pair: pair[0]), ("row", lambda p: p[0])):
        outcome = run(
            "split", path, *outputs, "--group", group, "--share", 0.3, "--layout", "triples", "--force", "--quiet"
        )
        assert outcome.exit_code == 0 and outcome.output == "", outcome.output
        kept, held = (by_name(output)[0] for output in outputs)
        assert not set(map(of, kept)) & set(map(of, held)) and kept and held
        assert kept | held == {pair: value for pair, (value, *_) in truth.items()}
    assert "by whole groups of row of ratings.csv" in run("info", outputs[0]).stdout


def test_lines_without_a_value_need_no_time(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("u,f,v,t\na,x,1,5\nb,y,,\na,y,2,6\nb,x,3,7\n")
    assert run("split", path, tmp_path / "k.h5", tmp_path / "h.h5", "--latest", "t", "--share", 0.4).exit_code == 0
    assert by_name(tmp_path / "h.h5")[0] == {("b", "x"): 3.0}


def test_split_hdf5_at_random_and_by_column(tmp_path):
    observations, *_ = shuffled()
    outputs = tmp_path / "kept.h5", tmp_path / "held.h5"
    write_observations(tmp_path / "o.h5", observations)
    assert run("split", tmp_path / "o.h5", *outputs, "--share", 0.25, "--seed", 2).exit_code == 0
    for output, want in zip(outputs, observations.split(0.25, random_state=2), strict=True):
        assert entries(open_observations(output)) == entries(want)
    assert run("split", tmp_path / "o.h5", *outputs, "--group", "column", "--force").exit_code == 0
    assert_divided(observations, *map(open_observations, outputs))
    assert not np.any(open_observations(outputs[0]).col_counts * open_observations(outputs[1]).col_counts)


def test_split_real_ratings(tmp_path):
    from pathlib import Path

    source = Path(__file__).parent.parent / "datasets" / "movielens-small.h5"
    outcome = run("split", source, tmp_path / "k.h5", tmp_path / "h.h5", "--group", "row")
    assert outcome.exit_code == 0, outcome.output
    kept, held = open_observations(tmp_path / "k.h5"), open_observations(tmp_path / "h.h5")
    assert not np.any((kept.row_counts > 0) & (held.row_counts > 0))
    assert 0.08 < held.n_observed / (kept.n_observed + held.n_observed) < 0.12


@pytest.mark.parametrize(
    ("given", "said", "code"),
    [
        (("--latest", "hour"), "there is no column 'hour', its columns are user, film, stars, day, source", 1),
        (("--latest", "6"), "there is no column '6'", 1),
        (("--latest", "source"), "line 2: expected a time in column 5, a date such as", 1),
        (("--group", "what"), "there is no column 'what'", 1),
        (("--latest", "day", "--group", "row"), "give one of them", 2),
        (("--share", "1"), "Invalid value", 2),
        (("--share", "0.001", "--layout", "triples"), "ratings.csv: the hold-out share must", 1),
    ],
)
def test_split_refusals(tmp_path, given, said, code):
    write_triples(tmp_path / "ratings.csv", HEADERS["csv"])
    outcome = run("split", tmp_path / "ratings.csv", tmp_path / "k.h5", tmp_path / "h.h5", *given)
    assert outcome.exit_code == code
    assert said in outcome.stderr
    assert not list(tmp_path.glob("*.h5"))


def test_split_keeps_files_apart(tmp_path):
    write_triples(tmp_path / "ratings.csv", HEADERS["csv"])
    ratings, kept = tmp_path / "ratings.csv", tmp_path / "k.h5"
    assert "is the input itself" in run("split", ratings, kept, ratings, "--force").stderr
    assert "is KEPT.h5 too" in run("split", ratings, kept, kept).stderr
    kept.write_bytes(b"old")
    assert "exists already" in run("split", ratings, kept, tmp_path / "h.h5").stderr
    write_observations(tmp_path / "o.h5", shuffled()[0])
    outcome = run("split", tmp_path / "o.h5", tmp_path / "a.h5", tmp_path / "b.h5", "--latest", "day")
    assert "is hdf5, and --latest wants text" in outcome.stderr
    (tmp_path / "t.csv").write_text("u,f,v,t\na,x,1,5\nb,y,2,later\n")
    outcome = run("split", tmp_path / "t.csv", tmp_path / "a.h5", tmp_path / "b.h5", "--latest", "t")
    assert "t.csv, line 3: expected a time in column 4, a number, got 'later'" in outcome.stderr
    assert kept.read_bytes() == b"old"


def test_the_package_offers_them():
    assert fastrfm.split_by_time is split_by_time and fastrfm.split_by_group is split_by_group
