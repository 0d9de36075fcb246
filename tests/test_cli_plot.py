"""``fastrfm plot`` and ``fastrfm report``: from file to file, refusals, and that the page stands on its own."""

from __future__ import annotations

import re
import sys
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from samples import make_result
from test_cli import assert_fails, run
from test_plots import FITS, chosen_result

from fastrfm.observations import Observations
from fastrfm.report import report_html, write_report
from fastrfm.store import write_observations, write_result

VOID = {"meta", "img"}


@pytest.fixture
def files(tmp_path):
    """A folder with a chosen result, one whose options were given, and observations."""
    folder = tmp_path / "in"
    folder.mkdir()
    write_result(folder / "chosen.h5", chosen_result())
    write_result(folder / "given.h5", make_result(method="dense", tol=1e-3, max_iter=10))
    dense = np.where(np.eye(3, 4) > 0, 1.0, np.nan)
    write_observations(folder / "o.h5", Observations.from_dense(dense))
    return folder


def written(folder):
    return sorted(entry.name for entry in folder.iterdir() if entry.name != "in")


class Page(HTMLParser):
    """Text, rows of tables and images of a page; fails where tags do not nest or something outside is named."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self.images: list[bytes] = []
        self.headings: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            assert not name.startswith("on") and name not in ("href", "srcset", "action")
            if name == "src":
                assert value.startswith("data:image/png;base64,")
                self.images.append(b64decode(value.partition(",")[2], validate=True))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag in ("h1", "h2"):
            self.headings.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings[-1] += data
        if self.open and self.open[-1] == "style":
            assert "url(" not in data and "@import" not in data

    def fact(self, label):
        return next(row[1] for row in self.rows if row[0] == label)


# --- plot ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["convergence", "spectrum", "selection", "held-out", "gaps", "all"])
def test_plot_draws_each_kind(files, tmp_path, kind):
    outcome = run(
        "plot", files / "chosen.h5", "-o", tmp_path / "p.png", "--kind", kind, "--observations", files / "o.h5"
    )
    assert outcome.exit_code == 0, outcome.output
    assert (kind if kind != "all" else "convergence, spectrum, selection, held-out, gaps") in outcome.stdout
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert written(tmp_path) == ["p.png"]


@pytest.mark.parametrize(("suffix", "start"), [("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_name_says_the_format(files, tmp_path, suffix, start):
    outcome = run("plot", files / "given.h5", "-o", tmp_path / f"p.{suffix}", "--quiet")
    assert (outcome.exit_code, outcome.output) == (0, "")
    assert (tmp_path / f"p.{suffix}").read_bytes().startswith(start)


def test_plot_errors(files, tmp_path):
    output = tmp_path / "p.png"
    given = ("plot", files / "given.h5", "-o", output)
    for kind in ("selection", "held-out"):
        assert_fails(run(*given, "--kind", kind), "the result has no selection")
    assert_fails(run(*given, "--kind", "gaps"), "give the file that was completed (--observations)")
    assert_fails(run(*given, "--kind", "pie"), "Invalid value", 2)
    assert_fails(run("plot", files / "given.h5", "-o", tmp_path / "p.jpg"), "p.jpg: plots are written as .png")
    assert_fails(run("plot", files / "o.h5", "-o", output), "holds no result")
    write_observations(files / "other.h5", Observations.from_dense(np.ones((4, 3))))
    assert_fails(run(*given, "--observations", files / "other.h5"), "give the file that was completed")
    assert written(tmp_path) == []
    output.write_bytes(b"old")
    assert_fails(run(*given), "exists already")
    assert_fails(run(*given, "--kind", "selection", "--force"), "no selection")
    assert output.read_bytes() == b"old" and written(tmp_path) == ["p.png"]
    assert run(*given, "--force").exit_code == 0 and output.read_bytes() != b"old"


@pytest.mark.parametrize("command", [("plot", "out.png"), ("report", "out.html")])
def test_a_missing_matplotlib_is_one_line(files, tmp_path, monkeypatch, command):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    outcome = run(command[0], files / "given.h5", "-o", tmp_path / command[1])
    assert_fails(outcome, "plots need matplotlib: pip install 'fastrfm[plot]'")
    assert written(tmp_path) == []


@pytest.mark.parametrize("command", [("plot", "out.png"), ("report", "out.html")])
def test_a_failure_while_writing_keeps_the_old_file(files, tmp_path, monkeypatch, command):
    def fails(*_):
        raise OSError(28, "No space left on device")

    output = tmp_path / command[1]
    output.write_bytes(b"old")
    monkeypatch.setattr("fastrfm.atomic._flush", fails)
    assert_fails(run(command[0], files / "given.h5", "-o", output, "--force"), "writing failed, No space left")
    assert output.read_bytes() == b"old" and written(tmp_path) == [command[1]]


# --- report -------------------------------------------------------------------------------------------------------


def test_report_of_a_chosen_result(files, tmp_path):
    outcome = run("report", files / "chosen.h5", "-o", tmp_path / "r.html", "--observations", files / "o.h5")
    assert outcome.exit_code == 0, outcome.output
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags and "link" not in page.tags and "://" not in re.sub(r"base64,[^\"]*", "", text)
    assert page.headings[0] == "Completion: chosen.h5" and 'name="viewport"' in text and "@media print" in text
    assert len(page.images) == 5 and all(image.startswith(b"\x89PNG") for image in page.images)
    assert page.fact("shape") == "3 rows x 4 columns" and page.fact("rank found") == "2"
    assert page.fact("RMSE on fitted entries") == "0.125"
    assert page.fact("RMSE on held-out entries") == "0.8 ± 0.05, on 40 entries"
    assert page.fact("observed") == "25 % (3)" and page.fact("fitted") == "33.33 % (4)"
    (chosen,) = (row for row in page.rows if row[0] == "chosen")
    assert chosen[1:] == ["0.25", "3", "yes", "0", "0.8", "0.05"]
    start = next(k for k, row in enumerate(page.rows) if "held-out RMSE" in row)
    assert [row[2] for row in page.rows[start + 1 : start + 6]] == [f"{ridge:g}" for ridge in FITS["ridge"]]
    missed = [float(row[4]) for row in page.rows if len(row) == 5 and row[4] != "difference"]
    assert len(missed) == 10 and missed == sorted(missed, key=abs, reverse=True)
    assert written(tmp_path) == ["r.html"]


def test_report_of_given_options_leaves_out_what_there_is_not(files, tmp_path):
    outcome = run("report", files / "given.h5", "-o", tmp_path / "r.html", "--quiet")
    assert (outcome.exit_code, outcome.output) == (0, "")
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert len(page.images) == 2 and not any("held-out RMSE" in row for row in page.rows)
    assert page.fact("stopped").startswith("converged: the estimated distance to the limit is below tol = 0.001")
    assert page.fact("method") == "dense" and page.fact("max-iter") == "10"
    assert page.fact("without observations") == "1 row, 1 column"


def test_report_errors(files, tmp_path):
    output = tmp_path / "r.html"
    output.write_bytes(b"old")
    assert_fails(run("report", files / "given.h5", "-o", output), "exists already")
    assert_fails(run("report", files / "o.h5", "-o", output, "--force"), "holds no result")
    assert_fails(run("report", files / "given.h5", "-o", files / "given.h5", "--force"), "is the input itself")
    kept = run("report", files / "given.h5", "-o", files / "o.h5", "--force", "--observations", files / "o.h5")
    assert_fails(kept, "is the input itself")
    assert output.read_bytes() == b"old" and written(tmp_path) == ["r.html"]
    assert run("report", files / "given.h5", "-o", output, "--force").exit_code == 0


def test_names_and_titles_are_escaped(tmp_path):
    evil = '<script src="x">alert(1)</script> & "$_'
    result = chosen_result()
    names = np.array([evil] * 3, dtype=object), np.array(["</td>", "\udce9", "'", "ŕ"], dtype=object)
    result = replace(result, row_names=names[0], col_names=names[1], options={"method": evil, evil: evil})
    write_report(tmp_path / "r.html", result, title=evil)
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags and page.headings[0] == evil and page.fact("method") == evil
    assert any(row[0] == evil and row[1] in ("</td>", "\\udce9", "'", "ŕ") for row in page.rows if len(row) == 5)


def test_bounds_and_positions_without_names():
    result = replace(chosen_result(), row_names=None, col_names=None, bounds=(0.5, 5.0), options={"rank": None})
    page = Page(report_html(result))
    assert page.fact("predictions lie between") == "0.5 and 5" and page.fact("rank") == "not given"
    assert not any(row[0] == "rows" for row in page.rows)
    worst = int(np.argmax(np.abs(result.selection.predicted - result.selection.values)))
    first = next(row for row in page.rows if len(row) == 5 and row[0] != "row")
    assert first[:2] == [str(result.selection.rows[worst]), str(result.selection.cols[worst])]
    assert len(Page(report_html(chosen_result(0))).images) == 3


def test_a_long_search_is_cut_and_says_so():
    n = 300
    fits = {"agop_power": np.full(n, 0.5), "ridge": np.geomspace(1e-3, 1e3, n), "rmse": np.linspace(2.0, 1.0, n)}
    result = chosen_result()
    result = replace(result, selection=replace(result.selection, fits=fits, chosen=250))
    text = report_html(result)
    page = Page(text)
    search = [row for row in page.rows if len(row) == 4 and row[0] in ("", "chosen")]
    assert len(search) == 102 and search[-1][0] == "chosen"
    assert "The first 100 fits and the chosen one" in text


def test_reports_of_the_same_result_are_the_same():
    assert report_html(chosen_result()) == report_html(chosen_result())
