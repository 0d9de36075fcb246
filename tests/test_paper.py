"""What ``scripts/reproduce_paper.py`` builds on: kept rows, intervals, verdicts, and the mathematics of depth."""

from __future__ import annotations

from functools import reduce
from pathlib import Path

import numpy as np
import pandas
import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


@pytest.fixture(autouse=True)
def scripts_are_found(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)


def test_rows_are_kept_and_not_measured_again(tmp_path):
    from paper_records import Records

    records = Records(tmp_path / "rows.csv")
    records.add({"method": "a, b", "n": 10, "seed": 0}, [{"error": 0.5}, {"error": float("inf")}])
    records.add({"method": "c", "n": 10, "seed": 1}, [{"error": 1e-300}])
    again = Records(tmp_path / "rows.csv")
    assert again.has({"method": "a, b", "n": 10, "seed": 0}) and again.has({"method": "c", "n": 10, "seed": 1})
    assert not again.has({"method": "c", "n": 10, "seed": 0}) and not again.has({"method": "c", "n": 1, "seed": 1})
    assert again.frame()["error"].tolist() == [0.5, np.inf, 1e-300]
    before = (tmp_path / "rows.csv").read_bytes()
    for rows in ([], [{"other": 1}], [{"error": 1, "other": 1}]):
        with pytest.raises(ValueError, match="columns"):
            again.add({"method": "d", "n": 1, "seed": 0}, rows)
    assert (tmp_path / "rows.csv").read_bytes() == before


def test_a_run_that_was_stopped_goes_on(tmp_path):
    from paper_records import Claim
    from reproduce_paper import measure

    measured = []

    def note(setting):
        measured.append(setting["seed"])
        return [{"error": 0.0}]

    claim = Claim("some", "", "", lambda _quick: [{"seed": seed} for seed in range(4)], note, lambda *_: "")
    assert measure(claim, tmp_path, True, 2, float("inf")) == 0 and measured == [0, 1]
    assert measure(claim, tmp_path, True, None, -float("inf")) == 2 and measured == [0, 1]
    assert measure(claim, tmp_path, True, None, float("inf")) == 0 and measured == [0, 1, 2, 3]


def test_interval_of_a_share():
    from paper_records import success_interval

    # Wilson's bounds solve |p - share| = 1.96 sqrt(p (1 - p) / n).
    for found, n in ((0, 10), (3, 10), (10, 10), (1, 1)):
        for bound in success_interval(found, n):
            share = found / n
            gap = 1.96 * np.sqrt(bound * (1 - bound) / n)
            assert abs(bound - share) == pytest.approx(gap, abs=1e-9) or bound == pytest.approx(share, abs=1e-9)


def test_verdicts_follow_the_rows():
    from paper_completion import compare, fewest_entries

    def rows(method, shares):
        return [
            {"method": method, "n": n, "is_recovered": k < round(4 * share)}
            for n, share in shares.items()
            for k in range(4)
        ]

    ours = rows("ours", {10: 0.0, 20: 0.75, 30: 1.0})
    flickering = rows("theirs", {10: 0.75, 20: 0.25, 30: 0.5})
    never = rows("never", {10: 0.0, 20: 0.0, 30: 0.25})
    frame = pandas.DataFrame(ours + flickering + never)
    assert [fewest_entries(frame, name, "n") for name in ("ours", "theirs", "never")] == [20, 30, np.inf]
    said = compare(frame, "n", ["ours"], {"A": ["theirs"], "B": ["never"]})
    assert said.startswith("**Reproduced.**") and "over these numbers" in said
    assert "ours: ours 58 % (half of them from 20 on)" in said
    assert "A: theirs 50 % (half of them from 30 on); B: never 8 % (never half of them)" in said
    assert compare(frame, "n", ["theirs"], {"A": ["ours"]}).startswith("**Not reproduced.**")
    assert compare(frame, "n", ["ours"], {"A": ["theirs"], "B": []}) == "**Not measured beside: B.**"
    # Only what was measured of both counts: at 30 alone they are even, whatever they did elsewhere.
    partly = frame[(frame["method"] != "theirs") | (frame["n"] == 30)].copy()
    partly.loc[partly["method"] == "theirs", "is_recovered"] = True
    said = compare(partly, "n", ["ours"], {"A": ["theirs"]})
    assert said.startswith("**Not decided.**") and "over 30 of observations" in said


@pytest.mark.parametrize("kind", ["matrix", "diagonal"])
@pytest.mark.parametrize("depth", [2, 3, 4])
def test_gradients_of_networks(kind, depth):
    import paper_depth as paper

    rng = np.random.default_rng(0)
    width = min(paper._SHAPE)
    shapes = [(paper._SHAPE[0], width), *[(width, width)] * (depth - 2), (width, paper._SHAPE[1])]
    if kind == "diagonal":
        shapes = [(paper._FEATURES,)] * depth
    factors = [0.3 * rng.standard_normal(shape) for shape in shapes]
    along = [rng.standard_normal(shape) for shape in shapes]

    def objective(t):
        moved = [factor + t * step for factor, step in zip(factors, along, strict=True)]
        product = reduce(np.matmul if kind == "matrix" else np.multiply, moved)
        decay = 0.5 * paper.RIDGE[kind] * sum(float(np.sum(factor**2)) for factor in moved)
        return paper._misfit(kind, product, 0) + decay

    slope = (objective(1e-5) - objective(-1e-5)) / 2e-5
    gradients = paper.network_gradients(kind, factors, 0)
    exact = sum(float(np.sum(g * step)) for g, step in zip(gradients, along, strict=True))
    assert slope == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_factors_are_balanced(depth):
    import paper_depth as paper

    rng = np.random.default_rng(1)
    parts = list(np.linalg.svd(rng.standard_normal(paper._SHAPE), full_matrices=False))
    factors = paper.balanced_factors("matrix", parts, depth)
    np.testing.assert_allclose(reduce(np.matmul, factors), (parts[0] * parts[1]) @ parts[2], atol=1e-12)
    norms = [np.sum(factor**2) for factor in factors]
    np.testing.assert_allclose(norms, np.sum(parts[1] ** (2.0 / depth)))
    signs, sizes = np.array([1.0, -1.0, 1.0]), np.array([2.0, 0.5, 0.0])
    product = reduce(np.multiply, paper.balanced_factors("diagonal", [signs, sizes], depth))
    np.testing.assert_allclose(product, signs * sizes)
