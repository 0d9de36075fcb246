"""The pages of docs/guide and the README do what they say: every block of code runs, and prints what is shown.

Blocks run page by page, in order, in an empty folder with ``datasets`` in it: python blocks of a page share one
namespace, sh blocks go through ``bash -e`` with this Python's ``fastrfm``. A text block is what the block before it
prints. There words must agree; numbers within 1 % or one unit of the last digit shown; of a time, such as ``0.3 s``,
the digits do not count; "…" stands for anything. Decimals in the prose must be, rounded, among the numbers
that the page shows or docs/real-data.md has.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import fastrfm
from fastrfm import Observations, write_observations

ROOT = Path(__file__).resolve().parent.parent
GUIDE = ROOT / "docs" / "guide"
PAGES = sorted(GUIDE.glob("*.md"))
INDEX = GUIDE / "README.md"
LANGUAGES = ("python", "sh", "text")
TOLERANCE = 0.01
LARGEST_PICTURE = 80_000  # bytes

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?(?!\w)")
_TIME = re.compile(rf"{_NUMBER.pattern} s\b")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `line` is that of its first line of code, from 1."""

    language: str
    text: str
    line: int


def blocks_of(page: str) -> list[Block]:
    return [Block(m[1], m[2], page.count("\n", 0, m.start()) + 2) for m in _FENCE.finditer(page)]


def prose_of(page: str) -> str:
    return _FENCE.sub("", page)


# --- what is shown and what is printed ----------------------------------------------------------------------------


def agrees(printed: str, shown: str) -> bool:
    """Return whether a text block shows what was printed, by the rules above."""
    got, wanted = (_TIME.sub("<time>", text).split() for text in (printed, shown))
    at, after, again = 0, None, 0  # of `got`; in `wanted` behind the last "…", and where in `got` that was tried
    k = 0
    while at < len(got):
        if k < len(wanted) and wanted[k] == "…":
            k, at, after, again = k + 1, at, k + 1, at
        elif k < len(wanted) and _is_same(got[at], wanted[k]):
            k, at = k + 1, at + 1
        elif after is not None:  # let the last "…" stand for one word more
            again += 1
            k, at = after, again
        else:
            return False
    return all(word == "…" for word in wanted[k:])


def _is_same(got: str, wanted: str) -> bool:
    numbers = _NUMBER.findall(got), _NUMBER.findall(wanted)
    return _NUMBER.sub("<>", got) == _NUMBER.sub("<>", wanted) and all(map(_is_near, *numbers))


def _is_near(got: str, wanted: str) -> bool:
    mantissa, _, exponent = wanted.lower().partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    return abs(float(got) - float(wanted)) <= max(TOLERANCE * abs(float(wanted)), 1.001 * unit)


def assert_shows(printed: str, shown: str, where: str) -> None:
    if not agrees(printed, shown):
        lines = difflib.unified_diff(shown.splitlines(), printed.splitlines(), "shown", "printed", lineterm="")
        raise AssertionError(f"{where} shows other words or numbers than are printed\n" + "\n".join(lines))


# --- running ------------------------------------------------------------------------------------------------------


class Runner:
    """Runs blocks in a folder, and keeps what python blocks define."""

    def __init__(self, folder: Path, **names: Any) -> None:
        self.folder = folder
        self.names: dict[str, Any] = {"__name__": "__main__", **names}
        bin_folder = folder / ".bin"
        bin_folder.mkdir()
        for name, module in (("fastrfm", "-m fastrfm"), ("python", "")):
            script = bin_folder / name
            script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
            script.chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(Path(fastrfm.__file__).parent.parent),
            "PYTHONUTF8": "1",
        }

    def run(self, block: Block, where: str) -> str:
        """Run a block and return what it printed."""
        if block.language == "sh":
            return self.shell(block.text, where)
        code = compile("\n" * (block.line - 1) + block.text, where, "exec")  # tracebacks show the page's lines
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, self.names)
        return printed.getvalue()

    def shell(self, text: str, where: str) -> str:
        done = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", text],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=120,
        )
        assert done.returncode == 0, f"{where} ended with {done.returncode}\n{text}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def run_page(page: Path, runner: Runner) -> Iterator[tuple[Block, str]]:
    """Run the blocks of a page in order; yield each text block with what was printed before it."""
    printed: str | None = None
    for block in blocks_of(page.read_text(encoding="utf-8")):
        where = f"{page.name}, line {block.line}"
        assert block.language in LANGUAGES, f"{where}: mark the block as one of {', '.join(LANGUAGES)}"
        if block.language == "text":
            assert printed is not None, f"{where}: no code before this text"
            yield block, printed
            printed = None
        else:
            printed = runner.run(block, where)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "datasets").symlink_to(ROOT / "datasets", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- the guide ----------------------------------------------------------------------------------------------------


def test_there_is_a_page_for_each_kind_of_user():
    assert {"README.md", "ratings.md", "panel.md", "images.md", "spectra.md"} <= {page.name for page in PAGES}
    index = INDEX.read_text(encoding="utf-8")
    for page in PAGES:
        assert page == INDEX or f"]({page.name})" in index


@pytest.mark.compiled_only
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page(page, folder):
    text = page.read_text(encoding="utf-8")
    kinds = {block.language for block in blocks_of(text)}
    assert "python" in kinds or "sh" in kinds, "a page without code tests nothing"
    assert "text" in kinds, "a page that shows no output can say anything"
    for block, printed in run_page(page, Runner(folder)):
        assert_shows(printed, block.text, f"{page.name}, line {block.line}")
    for name in pictures_of(text):  # the page makes them, and the shipped ones are small
        assert (folder / name).stat().st_size > 0
        assert 0 < (GUIDE / name).stat().st_size < LARGEST_PICTURE


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_numbers_of_the_prose(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).exists(), f"{page.name} points to {target}"
    assert len(pictures_of(text)) <= 1
    shown = "".join(block.text for block in blocks_of(text)) + (ROOT / "docs" / "real-data.md").read_text("utf-8")
    known = [float(number) for number in re.findall(r"\d+\.\d+", shown)]
    for number in re.findall(r"(?<![\w.])\d+\.\d{2,}(?![\w.]*\d)", prose_of(text)):
        n_digits = len(number.partition(".")[2])
        is_known = any(round(other, n_digits) == float(number) for other in known)
        assert is_known, f"{page.name} says {number}, which is printed nowhere"


def pictures_of(text: str) -> list[str]:
    return re.findall(r"!\[[^\]]*\]\((\w+\.png)\)", text)


# --- the README ---------------------------------------------------------------------------------------------------

# .ci/run copies these out and runs them.
ELSEWHERE = re.compile(r"<!-- (?:main-job|run-tests) -->\n```sh\n.*?^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.compiled_only
def test_readme(folder, monkeypatch):
    """Each line of an sh block starts afresh: some are said to be for different days."""
    text, n_elsewhere = ELSEWHERE.subn("", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert n_elsewhere == 2
    blocks = blocks_of(text)
    assert {"python", "sh"} <= {block.language for block in blocks}
    observations = noisy_observations()
    rows, cols, values = observations.to_coo()
    runner = Runner(folder, observations=observations, rows=rows, cols=cols, times=np.arange(rows.size))
    X = np.random.RandomState(1).standard_normal((40, 60))
    runner.names |= {"X": X, "y": X[:, 0] - X[:, 3], "sample_weight": np.ones(40)}
    lines = [f"u{i},f{j},{value},{t}" for t, (i, j, value) in enumerate(zip(rows, cols, values, strict=True))]
    Path("ratings.csv").write_text("\n".join(["user,film,stars,timestamp", *lines]), encoding="utf-8")
    Path("users.csv").write_text("user,age\nu0,30\nu1,40\n", encoding="utf-8")
    Path("films.csv").write_text("film,title,genre\nf0,Heat,Drama\nf1,Alien,War|Drama\n", encoding="utf-8")
    shutil.copytree(ROOT / "scripts", folder / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "runs").mkdir()
    for name in ("ratings.h5", "runs/first.h5"):
        write_observations(name, observations)
    with h5py.File("study.h5", "w") as file:
        file["first"] = dense_of(observations)
    for block in blocks:
        where = f"README.md, line {block.line}"
        assert block.language in ("python", "sh")
        if block.language == "python":
            runner.run(block, where)
            continue
        for line in block.text.splitlines():
            for made in ("result.h5", "completed"):
                shutil.rmtree(made, ignore_errors=True)
                Path(made).unlink(missing_ok=True)
            runner.shell(line, where)


def noisy_observations() -> Observations:
    rng = np.random.RandomState(0)
    matrix = np.outer(rng.rand(40), rng.rand(30)) + 0.05 * rng.standard_normal((40, 30))
    matrix[rng.rand(40, 30) < 0.3] = np.nan
    return Observations.from_dense(matrix)


def dense_of(observations: Observations) -> np.ndarray:
    dense = np.full(observations.shape, np.nan)
    rows, cols, values = observations.to_coo()
    dense[rows, cols] = values
    return dense


# --- the rules themselves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("printed", "shown", "is_same"),
    [
        ("RMSE 0.8123 in 4.1 s\n", "RMSE 0.813 in 0.2 s", True),
        ("RMSE 0.8123", "RMSE 0.83", False),
        ("RMSE 0.8123", "rmse 0.8123", False),
        ("rank 20", "rank 21", True),
        ("rank 20", "rank 22", False),
        ("a 1\nb 2\nc 3", "a 1\n…\nc 3", True),
        ("a 1\nb 2\nc 4.9", "a 1\n…\nc 3", False),
        ("a 1\nb 2", "a 1", False),
        ("a 1\nb 2", "a 1\n…", True),
        ("x 1\nx 2\nx 3\nend", "x 1\n…\nx 3\n…", True),
        ("x 1\nx 2\nx 3\nend", "x 1\n…\nx 9\n…", False),
        ("x 1\nx 2\nx 3\nend", "…\nx 3", False),
        ("a   1\n  b", "a 1\nb", True),
        ("-1.5e-03", "-0.0015", True),
        ("1.5", "-1.5", False),
        ("[nan 2]", "[nan 2.0]", True),
        ("", "a", False),
    ],
)
def test_what_agrees(printed, shown, is_same):
    assert agrees(printed, shown) is is_same


def test_blocks_are_found_with_their_lines(folder):
    page = "# Title\n\n```python\nx = 1\n```\n\nwords 1.25\n\n```sh\necho $((1 + 1))\n```\n```text\n2\n```\n"
    blocks = blocks_of(page)
    assert [(block.language, block.line) for block in blocks] == [("python", 4), ("sh", 10), ("text", 13)]
    assert "x = 1" not in prose_of(page) and "words 1.25" in prose_of(page)
    runner = Runner(folder)
    assert runner.run(blocks[0], "page") == "" and runner.names["x"] == 1
    assert_shows(runner.run(blocks[1], "page"), blocks[2].text, "page")
    with pytest.raises(AssertionError, match="other words or numbers"):
        assert_shows("3", "5", "page")
    with pytest.raises(AssertionError, match="ended with 1"):
        runner.run(Block("sh", "false\ntrue\n", 1), "page")
    with pytest.raises(ZeroDivisionError):
        runner.run(Block("python", "1 / 0\n", 1), "page")
    assert "0.1.0" in runner.run(Block("sh", "fastrfm --version\n", 1), "page")
