"""docs/theory.md: its links and names exist, and identities of the page hold in numbers."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest

from fastrfm.solvers.factored import feature_factors
from fastrfm.solvers.sparse_penalty import entry_threshold, least_size

PAGE = Path(__file__).parents[1] / "docs" / "theory.md"
TEXT = PAGE.read_text(encoding="utf-8")
_NAMED = re.compile(r"\]\((\.\./[^)\s]+\.py)\)((?:,?\s+`[\w.]+`)+)")


def definitions(path: Path) -> set[str]:
    """Return the functions and classes of a module, and methods as Class.method."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return names


def test_links_lead_somewhere():
    headings = {
        re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in re.findall(r"^#+ (.+)$", TEXT, re.M)
    }
    links = re.findall(r"\]\(([^)\s]+)\)", TEXT)
    assert len(links) > 20
    for link in links:
        assert link[1:] in headings if link.startswith("#") else (PAGE.parent / link).is_file(), link


def test_names_are_defined_where_the_page_says():
    named = _NAMED.findall(TEXT)
    # Every link into the package is followed by names.
    assert len(named) == len(re.findall(r"\]\(\.\./[^)\s]+\.py\)", TEXT))
    for link, names in named:
        missing = set(re.findall(r"`([\w.]+)`", names)) - definitions(PAGE.parent / link)
        assert not missing, (link, missing)


def schatten(sigma: np.ndarray, p: float, smoothing: float) -> float:
    if p == 0.0:
        return float(0.5 * np.log1p((sigma / smoothing) ** 2).sum())
    return float((((sigma**2 + smoothing**2) ** (p / 2.0) - smoothing**p) / p).sum())


@pytest.mark.parametrize("agop_power", [0.0, 0.25, 1.0 / 3.0, 0.375, 0.5, 1.0])
def test_slope_of_the_penalty(agop_power):
    p, smoothing, step = 2.0 - 4.0 * agop_power, 0.3, 1e-5
    for sigma in (0.1, 0.7, 2.0):
        high, low = (schatten(np.array([sigma + s]), p, smoothing) for s in (step, -step))
        slope = sigma * (sigma**2 + smoothing**2) ** (p / 2.0 - 1.0)
        assert (high - low) / (2.0 * step) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("agop_power", [0.25, 0.375, 0.5, 1.0])
def test_objective_falls_at_fixed_smoothing(agop_power):
    rng = np.random.default_rng(1)
    values, weights = rng.standard_normal((9, 6)), rng.uniform(0.2, 3.0, (9, 6))
    seen, p, smoothing, ridge = rng.random((9, 6)) < 0.6, 2.0 - 4.0 * agop_power, 0.2, 0.3
    estimate, objectives = rng.standard_normal((9, 6)), []
    for _ in range(12):
        eigenvalues, vectors = np.linalg.eigh(estimate.T @ estimate + smoothing**2 * np.eye(6))
        kernel = (vectors * eigenvalues ** (2.0 * agop_power)) @ vectors.T
        for i in range(9):
            cols = np.flatnonzero(seen[i])
            system = kernel[np.ix_(cols, cols)] + ridge * np.diag(1.0 / weights[i, cols])
            estimate[i] = np.linalg.solve(system, values[i, cols]) @ kernel[cols]
        misfit = 0.5 * float((weights * np.square(estimate - values))[seen].sum())
        objectives.append(misfit + ridge * schatten(np.linalg.svd(estimate, compute_uv=False), p, smoothing))
    assert np.all(np.diff(objectives) <= 1e-12 * np.abs(objectives[:-1]))
    assert objectives[-1] < objectives[0] - 1e-6


@pytest.mark.parametrize("ridge", [0.0, 0.4])
@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("n_seen", [3, 9])
def test_factored_row_step_is_the_dense_one(ridge, is_weighted, n_seen):
    rng = np.random.default_rng(2)
    agop_power, smoothing, sigma = 0.375, 0.2, np.array([3.0, 1.0, 0.5, 0.25])
    basis = np.linalg.qr(rng.standard_normal((12, 4)))[0]
    delta = smoothing ** (4.0 * agop_power)
    kernel = (basis * (sigma ** (4.0 * agop_power) - delta)) @ basis.T + delta * np.eye(12)
    cols, values = rng.permutation(12)[:n_seen], rng.standard_normal(n_seen)
    weights = rng.uniform(0.1, 5.0, n_seen) if is_weighted else np.ones(n_seen)
    system = kernel[np.ix_(cols, cols)] + ridge * np.diag(1.0 / weights)
    dense = np.linalg.solve(system, values) @ kernel[cols]

    features = feature_factors(sigma, basis, smoothing=smoothing, agop_power=agop_power, ridge=ridge)
    assert features.theta == pytest.approx(delta / (ridge + delta))
    omega, seen = weights / (1.0 - features.theta + features.theta * weights), basis[cols]
    row = np.linalg.solve(seen.T @ (omega[:, None] * seen) + np.diag(features.penalty), seen.T @ (omega * values))
    factored = basis @ row
    factored[cols] += features.theta * omega * (values - seen @ row)
    np.testing.assert_allclose(factored, dense, rtol=0.0, atol=1e-10)


def test_two_sided_covariance_is_the_sum_of_the_page():
    rng = np.random.default_rng(3)
    agop_power, smoothing, sigma = 0.375, 0.2, np.array([3.0, 1.0])
    left, right = (np.linalg.qr(rng.standard_normal((n, 2)))[0] for n in (5, 4))
    e, s = smoothing ** (2.0 * agop_power), sigma ** (2.0 * agop_power)
    u, v = ((vectors * (s - e)) @ vectors.T for vectors in (left, right))
    whole = np.kron(e * np.eye(5) + u, e * np.eye(4) + v)
    parts = e**2 * np.eye(20) + np.kron(u, e * np.eye(4) + v) + e * np.kron(np.eye(5), v)
    np.testing.assert_allclose(parts, whole, atol=1e-12)


def test_entry_rule_of_sparse_regression():
    p, ridge, norms = 0.5, 0.7, np.array([0.4, 2.0])
    size = (ridge * (1.0 - p) / norms) ** (1.0 / (2.0 - p))
    np.testing.assert_allclose(least_size(p, ridge, norms), size)
    np.testing.assert_allclose(entry_threshold(p, ridge, norms), norms * size + ridge * size ** (p - 1.0))
