"""Tables of features and entries to validate on, from files to a matrix's positions; ``complete`` and ``evaluate``."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from click.testing import CliRunner

from fastrfm.cli import main
from fastrfm.errors import InputError
from fastrfm.metrics import mae, rmse
from fastrfm.observations import Observations
from fastrfm.readers.features import read_features
from fastrfm.readers.matching import read_entries
from fastrfm.solvers.completion import complete
from fastrfm.solvers.offsets import fit_offsets
from fastrfm.splits import united
from fastrfm.store import is_result, open_observations, read_result, write_observations

NAMES = np.array(["ann", "bob", "cy", "7"], dtype=object)
NAN = np.nan


def told(tmp_path, content, n=4, names=NAMES, **options):
    path = tmp_path / "about.csv"
    path.write_text(content)
    return read_features(path, n, names, **options)


# --- tables of features -------------------------------------------------------------------------------------------


def test_numbers_and_words_by_name(tmp_path):
    found = told(tmp_path, "id,age,sex,city\ncy,3.5,f,Oslo\neve,9,m,Rome\n7,,m,\nann,NA,f,Bern\n")
    assert found.names == ["age", "sex=f", "sex=m", "city=Bern", "city=Oslo", "city=Rome"]
    want = [
        [NAN, 1, 0, 1, 0, 0],
        [NAN] * 6,
        [3.5, 1, 0, 0, 1, 0],
        [NAN, 0, 1, NAN, NAN, NAN],
    ]
    np.testing.assert_array_equal(found.table, want)
    assert (found.n_told, found.n_unknown, found.by) == (3, 1, "name")


def test_several_words_in_a_field(tmp_path):
    found = told(tmp_path, "film\tgenres\nann\tDrama|War\nbob\tWar\ncy\t\n")
    assert found.names == ["genres=Drama", "genres=War"]
    np.testing.assert_array_equal(found.table, [[1, 1], [0, 1], [NAN, NAN], [NAN, NAN]])
    typed = told(tmp_path, "film:token\tclass:token_seq\tyear:token\nann\tSad Long\t1999\nbob\tLong\t2001\n")
    assert typed.names == ["class=Long", "class=Sad", "year"]
    np.testing.assert_array_equal(typed.table[:2], [[1, 1, 1999], [1, 0, 2001]])


def test_columns_may_be_ignored(tmp_path):
    content = "id,title,age:float\nann,A,1\nbob,B,2\n"
    assert told(tmp_path, content, ignore=["title"]).names == ["age"]
    assert told(tmp_path, content, ignore=["age"]).names == ["title=A", "title=B"]
    with pytest.raises(InputError, match="no column of features is left"):
        told(tmp_path, content, ignore=["title", "age:float"])


@pytest.mark.parametrize(
    ("content", "by", "want"),
    [
        ("place,age\n2,30\n0,10\n", "position", [[10], [NAN], [30], [NAN]]),
        ("age,height\n1,5\n1,6\n2,7\n9,8\n", "order", [[1, 5], [1, 6], [2, 7], [9, 8]]),
        ("sex\nm\nf\nm\nm\n", "order", [[0, 1], [1, 0], [0, 1], [0, 1]]),
    ],
)
def test_a_matrix_without_names(tmp_path, content, by, want):
    found = told(tmp_path, content, names=None)
    np.testing.assert_array_equal(found.table, want)
    assert found.by == by


def test_other_formats(tmp_path):
    table = np.array([[1.0, NAN], [2.0, 0.0], [3.0, 5.0], [4.0, 1.0]])
    np.save(tmp_path / "f.npy", table)
    found = read_features(tmp_path / "f.npy", 4, NAMES)
    np.testing.assert_array_equal(found.table, table)
    assert (found.names, found.by) == (["feature 0", "feature 1"], "order")
    kept = Observations.from_dense(table[:3], row_names=["cy", "x", "ann"], col_names=["age", "size"])
    write_observations(tmp_path / "f.h5", kept)
    found = read_features(tmp_path / "f.h5", 4, NAMES)
    np.testing.assert_array_equal(found.table, [[3, 5], [NAN, NAN], [1, NAN], [NAN, NAN]])
    assert (found.names, found.n_unknown) == (["age", "size"], 1)


@pytest.mark.parametrize(
    ("content", "names", "said"),
    [
        ("1,2\n3,4\n", NAMES, "line 1: expected a header, got numbers"),
        ("id,age\n", NAMES, "there is a header but no line with data"),
        ("id,age\nann,1\nbob\n", NAMES, "line 3: expected 2 columns as in the header, got 1"),
        ("id,age\nann,1\nann,2\n", NAMES, "'ann' occurs twice: keep one line for each row"),
        ("id,age\nANN,1\n", NAMES, "none of its 1 names, the first 'ANN', is a row of the matrix"),
        ("id,age\nann,1\nbob,inf\n", NAMES, "line 3: column 2 \\(age\\) is infinite"),
        ("age,size\n1,1\n1,2\n", None, "has 2 lines in order, the matrix 4 rows"),
        ("id,age\nann,1\n", np.array(["ann"] * 4, dtype=object), "3 row names occur twice in the matrix"),
    ],
)
def test_unusable_tables_are_refused(tmp_path, content, names, said):
    with pytest.raises(ValueError, match=said):
        told(tmp_path, content, names=names)


def test_too_many_words_are_refused(tmp_path):
    lines = [f"n{k},word {k}" for k in range(51)]
    names = np.array([f"n{k}" for k in range(51)], dtype=object)
    with pytest.raises(InputError, match="column 2 \\(title\\) has 51 different words, at most 50"):
        told(tmp_path, "\n".join(["id,title", *lines]), 51, names)
    assert told(tmp_path, "\n".join(["id,title", *lines[1:]]), 51, names).table.shape == (51, 50)


# --- entries of a matrix ------------------------------------------------------------------------------------------


def matrix(names=True, seed=0, share=0.6, shape=(20, 15)):
    rng = np.random.RandomState(seed)
    truth = 3.0 + rng.standard_normal((shape[0], 2)) @ rng.standard_normal((2, shape[1]))
    noisy = truth + 0.2 * rng.standard_normal(shape)
    named = {"row_names": [f"u{i}" for i in range(shape[0])], "col_names": [f"f{j}" for j in range(shape[1])]}
    return Observations.from_dense(np.where(rng.random_sample(shape) < share, noisy, NAN), **(named if names else {}))


def test_entries_go_by_name_in_any_order(tmp_path):
    whole = matrix()
    (tmp_path / "held.csv").write_text("user,film,score\nu7,f3,1.5\nu2,f14,2\nu7,f0,-1\n")
    found = read_entries(tmp_path / "held.csv", whole)
    assert found.shape == whole.shape and found.row_names.tolist() == whole.row_names.tolist()
    rows, cols, values = found.to_coo()
    assert list(zip(rows, cols, values, strict=True)) == [(2, 14, 2.0), (7, 0, -1.0), (7, 3, 1.5)]
    (tmp_path / "held.csv").write_text("user,film,score\nu7,f3,1.5\nu99,f14,2\n")
    with pytest.raises(InputError, match="1 of its 2 rows are not in the matrix, the first named 'u99'"):
        read_entries(tmp_path / "held.csv", whole)


def test_entries_without_names(tmp_path):
    whole = matrix(names=False)
    (tmp_path / "held.csv").write_text("19,3,1.5\n0,14,2\n")
    rows, cols, _ = read_entries(tmp_path / "held.csv", whole).to_coo()
    assert (rows.tolist(), cols.tolist()) == ([0, 19], [14, 3])
    (tmp_path / "held.csv").write_text("20,3,1.5\n0,14,2\n")
    with pytest.raises(InputError, match=r"held\.csv: row position 20 is outside 0…19"):
        read_entries(tmp_path / "held.csv", whole)
    np.save(tmp_path / "held.npy", np.ones((20, 14)))
    with pytest.raises(InputError, match=r"held\.npy: has 14 columns, the matrix 15"):
        read_entries(tmp_path / "held.npy", whole)


# --- complete -----------------------------------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="fastrfm")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A folder with kept.h5 and held.h5."""
    folder = tmp_path_factory.mktemp("parts")
    kept, held = matrix(share=0.8).split(0.25, random_state=1)
    write_observations(folder / "kept.h5", kept)
    write_observations(folder / "held.h5", held)
    return folder


def assert_same_result(file, want):
    found = read_result(file)
    np.testing.assert_array_equal(found.left, want.left)
    np.testing.assert_array_equal(found.right, want.right)


@pytest.mark.compiled_only
def test_complete_chooses_on_the_entries_given(parts, tmp_path):
    kept, held = open_observations(parts / "kept.h5"), open_observations(parts / "held.h5")
    outcome = run("complete", parts / "kept.h5", "-o", tmp_path / "r.h5", "--validation", parts / "held.h5")
    assert outcome.exit_code == 0, outcome.output
    assert f"{parts / 'held.h5'}, {held.n_observed} entries" in outcome.stdout
    found = read_result(tmp_path / "r.h5")
    assert found.n_observed == kept.n_observed + held.n_observed
    np.testing.assert_array_equal(np.sort(found.selection.values), np.sort(held.values))
    options = {"agop_power": "auto", "ridge": "auto", "offsets": "auto", "implicit": "auto", "bounds": "auto"}
    assert_same_result(tmp_path / "r.h5", complete(kept, validation=held, **options))


@pytest.mark.compiled_only
def test_complete_holds_means_against_all_that_was_fitted(parts, tmp_path):
    kept, held = open_observations(parts / "kept.h5"), open_observations(parts / "held.h5")
    given = ("--validation", parts / "held.h5", "--holdout", 0.2, "--rank", 3)
    outcome = run("complete", parts / "kept.h5", "-o", tmp_path / "r.h5", *given)
    assert outcome.exit_code == 0, outcome.output
    fitted, out = kept.split(0.2, random_state=0)
    rows, cols, values = out.to_coo()
    error = rmse(fit_offsets(united(fitted, held)[0]).at(rows, cols), values)
    assert f"the same of row-and-column means: {error:.6g}" in " ".join(outcome.stdout.split())


def test_complete_with_features(parts, tmp_path):
    kept = open_observations(parts / "kept.h5")
    rng = np.random.RandomState(0)
    ages, kinds = rng.randint(20, 60, 20), rng.randint(0, 3, 15)
    with (tmp_path / "users.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["user", "age", "note"])
        table.writerows([f"u{i}", ages[i], f"n{i}"] for i in (*range(19, 0, -1),))  # not of u0
        table.writerow(["nobody", 5, "?"])
    (tmp_path / "films.tsv").write_text("film\tkind\n" + "".join(f"f{j}\tk{kinds[j]}\n" for j in range(15)))
    files = ("--row-features", tmp_path / "users.csv", "--col-features", tmp_path / "films.tsv")
    given = (*files, "--ignore-feature", "note", "--ridge", 1, "--agop-power", 0.25)
    outcome = run("complete", parts / "kept.h5", "-o", tmp_path / "r.h5", *given)
    assert outcome.exit_code == 0, outcome.output
    assert "1 feature of 19 in 20 rows, by name; 1 line about no row of the matrix left out" in outcome.stdout
    assert "3 features of 15 in 15 columns, by name" in outcome.stdout
    about_rows = np.where(np.arange(20) > 0, ages, NAN)[:, None]
    about_cols = (kinds[:, None] == np.arange(3)).astype(float)
    want = complete(kept, ridge=1.0, agop_power=0.25, row_features=about_rows, col_features=about_cols)
    assert_same_result(tmp_path / "r.h5", want)


def test_complete_refuses_what_does_not_fit(parts, tmp_path):
    kept, held = parts / "kept.h5", parts / "held.h5"
    result = tmp_path / "r.h5"
    for given, said, code in (
        (("--validation", held, "--ridge", 1), "leave --ridge and --start out", 2),
        (("--ignore-feature", "x"), "goes with --row-features", 2),
        (("--validation", kept), "entries are in both", 1),
        (("--validation", tmp_path / "none.h5"), "no such file", 1),
        (("--row-features", tmp_path / "none.csv"), "no such file", 1),
        (("--validation", held, "--memory", 2000), "validation needs FILE in memory", 1),
    ):
        outcome = run("complete", kept, "-o", result, *given)
        assert (outcome.exit_code, said in outcome.stderr) == (code, True), outcome.output
        assert not result.exists()


@pytest.mark.compiled_only
def test_tune_by_rows_with_features(parts, tmp_path):
    (tmp_path / "users.csv").write_text("user,age\n" + "".join(f"u{i},{i * i}\n" for i in range(20)))
    given = ("--ridge", "3", "--agop-power", 0.25, "--offsets", "on", "--folds", 3)
    by_row = ("--folds-by", "row", "--row-features", tmp_path / "users.csv")
    outcome = run("tune", parts / "kept.h5", "-o", tmp_path / "t.csv", *given, *by_row)
    assert outcome.exit_code == 0, outcome.output
    assert "1 setting x 3 folds by row" in outcome.stdout and "1 feature of 20 in 20 rows" in outcome.stdout
    kept = open_observations(parts / "kept.h5")
    with (tmp_path / "t.csv").open() as file:
        held_out = [int(row["held_out"]) for row in csv.DictReader(file)]
    counts = kept.row_counts
    fold_of = np.random.RandomState(0).permutation(20) % 3
    assert held_out == [int(counts[fold_of == fold].sum()) for fold in range(3)]
    outcome = run("tune", parts / "kept.h5", "-o", tmp_path / "u.csv", *given, "--folds-by", "row")
    assert outcome.exit_code == 2 and "--folds-by row needs --row-features" in outcome.stderr
    outcome = run("tune", parts / "kept.h5", "-o", tmp_path / "u.csv", *given, "--folds-by", "day")
    assert outcome.exit_code == 1 and "--folds-by day wants text with further columns" in outcome.stderr


# --- evaluate --on ------------------------------------------------------------------------------------------------


def test_evaluate_a_result_on_entries(parts, tmp_path):
    kept, held = open_observations(parts / "kept.h5"), open_observations(parts / "held.h5")
    result, table = tmp_path / "r.h5", tmp_path / "e.csv"
    fit = ("--ridge", 1, "--agop-power", 0.25, "--offsets")
    assert run("complete", parts / "kept.h5", "-o", result, *fit, "--quiet").exit_code == 0
    assert is_result(result) and not is_result(parts / "kept.h5") and not is_result(tmp_path / "none.h5")
    rows, cols, values = held.to_coo()
    predicted, means = read_result(result).predict(rows, cols), fit_offsets(kept).at(rows, cols)
    alone = run("evaluate", result, "--on", parts / "held.h5", "--csv", table)
    assert alone.exit_code == 0 and f"RMSE: {rmse(predicted, values):.6g}" in " ".join(alone.stdout.split())
    assert "name the file completed with --observations" in alone.stdout
    wanted = {"rmse": rmse(predicted, values), "mae": mae(predicted, values)}
    of_means = {"rmse_of_means": rmse(means, values), "mae_of_means": mae(means, values)}
    for arguments, want in (
        ((result,), wanted | dict.fromkeys(of_means, "")),
        ((result, "--observations", parts / "kept.h5"), wanted | of_means),
        ((parts / "kept.h5", *fit), wanted | of_means),
    ):
        assert run("evaluate", *arguments, "--on", parts / "held.h5", "--csv", table, "--force").exit_code == 0
        with table.open() as file:
            (row,) = csv.DictReader(file)
        assert {name: float(row[name]) if row[name] else "" for name in want} == want


def test_evaluate_on_refuses_what_has_no_use(parts, tmp_path):
    kept, held, result = parts / "kept.h5", parts / "held.h5", tmp_path / "r.h5"
    assert run("complete", kept, "-o", result, "--ridge", 1, "--quiet").exit_code == 0
    for arguments, said, code in (
        ((kept, "--on", held, "--repeats", 2), "--on draws nothing: leave --repeats out", 2),
        ((result, "--on", held, "--ridge", 2), "--on takes a result as it is: leave --ridge out", 2),
        ((kept, "--on", held, "--observations", kept), "FILE holds observations itself", 2),
        ((kept, "--observations", kept), "--observations goes with --on", 2),
        ((kept, "--on", kept, "--ridge", 1), "entries are in both", 1),
        ((result, "--on", kept, "--observations", kept), "entries are in both", 1),
        ((result,), "holds a result and no observations", 1),
    ):
        outcome = run("evaluate", *arguments)
        assert (outcome.exit_code, said in outcome.stderr) == (code, True), outcome.output
    outcome = run("evaluate", kept, "--on", held, "--ridge", 1, "--max-iter", 1)
    assert outcome.exit_code == 3 and outcome.stderr.startswith("Not converged: raise")
