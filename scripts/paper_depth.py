"""A claim of the paper: a stationary point of a network of depth L is one of lin-RFM with L = 1 / (1 − 2α).

Both ways. A network with weight decay is trained until its gradient vanishes; one step of lin-RFM at ε = 0 with each α
is then to leave its matrix (vector) where it is for α = (L − 1) / (2L), and for that one alone. And the answer of
lin-RFM, taken apart into balanced factors, is to have no gradient in the network of that depth alone.
"""

from __future__ import annotations

from functools import cache, reduce
from pathlib import Path

import numpy as np
import pandas
from completion_page import table
from paper_records import Claim, Row, drawing, in_order, quartiles, unconverged_is_fine
from scipy.optimize import minimize

from fastrfm import Observations, SparseRegression, complete

DEPTHS = (2, 3, 4)
KINDS = ("matrix", "diagonal")
RIDGE = {"matrix": 0.3, "diagonal": 0.5}
APART = 100.0  # times as large as with the right power: change and gradient with another one
_SHAPE, _RANK, _SHARE, _NOISE = (24, 20), 2, 0.6, 0.1
_SAMPLES, _FEATURES = 40, 60
_ZERO = 1e-6  # of the largest singular value: what smoothing leaves of the residual is below


def power_of(depth: int) -> float:
    """Return the α that goes with a depth."""
    return (depth - 1) / (2.0 * depth)


# --- problems and objectives --------------------------------------------------------------------------------------


@cache
def _matrix_problem(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return noisy values and which of them are observed."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((_SHAPE[0], _RANK)) @ rng.standard_normal((_RANK, _SHAPE[1]))
    return values + _NOISE * rng.standard_normal(_SHAPE), rng.random(_SHAPE) < _SHARE


@cache
def _sparse_problem(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    matrix, coef = rng.standard_normal((_SAMPLES, _FEATURES)), np.zeros(_FEATURES)
    coef[rng.choice(_FEATURES, 4, replace=False)] = 1.0 + rng.random(4)
    return matrix, matrix @ coef + _NOISE * rng.standard_normal(_SAMPLES)


def _matrix_gradient(estimate: np.ndarray, seed: int) -> np.ndarray:
    values, is_seen = _matrix_problem(seed)
    return np.where(is_seen, estimate - values, 0.0)


def _sparse_gradient(coef: np.ndarray, seed: int) -> np.ndarray:
    matrix, target = _sparse_problem(seed)
    return np.asarray(matrix.T @ (matrix @ coef - target))


def _misfit(kind: str, estimate: np.ndarray, seed: int) -> float:
    if kind == "matrix":
        return 0.5 * float(np.sum(_matrix_gradient(estimate, seed) ** 2))
    matrix, target = _sparse_problem(seed)
    return 0.5 * float(np.sum((matrix @ estimate - target) ** 2))


def network_gradients(kind: str, factors: list[np.ndarray], seed: int) -> list[np.ndarray]:
    """Return the gradients of misfit + ½ ridge Σ ‖W_l‖² for a matrix W_1 W_2 … or a vector w_1 ∘ w_2 …"""
    if kind == "diagonal":
        outer = _sparse_gradient(reduce(np.multiply, factors), seed)
        others = [reduce(np.multiply, factors[:k] + factors[k + 1 :]) for k in range(len(factors))]
        return [outer * other + RIDGE[kind] * factor for other, factor in zip(others, factors, strict=True)]
    outer = _matrix_gradient(reduce(np.matmul, factors), seed)
    before, after = [np.eye(_SHAPE[0])], [np.eye(_SHAPE[1])]
    for factor in factors[:-1]:
        before.append(before[-1] @ factor)
    for factor in factors[:0:-1]:
        after.insert(0, factor @ after[0])
    return [
        left.T @ outer @ right.T + RIDGE[kind] * factor
        for left, right, factor in zip(before, after, factors, strict=True)
    ]


def train(kind: str, depth: int, seed: int) -> tuple[np.ndarray, float]:
    """Return what a network with weight decay ends at, and the largest element of its gradient there."""
    rng = np.random.default_rng(1000 + seed)
    if kind == "matrix":
        n_rows, n_cols = _SHAPE
        width = min(_SHAPE)
        shapes: list[tuple[int, ...]] = [(n_rows, width), *[(width, width)] * (depth - 2), (width, n_cols)]
    else:
        shapes = [(_FEATURES,)] * depth
    sizes = np.cumsum([0, *[int(np.prod(shape)) for shape in shapes]])

    def apart(flat: np.ndarray) -> list[np.ndarray]:
        return [flat[sizes[k] : sizes[k + 1]].reshape(shape) for k, shape in enumerate(shapes)]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        factors = apart(flat)
        product = reduce(np.matmul if kind == "matrix" else np.multiply, factors)
        value = _misfit(kind, product, seed) + 0.5 * RIDGE[kind] * float(flat @ flat)
        return value, np.concatenate([each.ravel() for each in network_gradients(kind, factors, seed)])

    scale = 1.0 / np.sqrt(min(_SHAPE)) if kind == "matrix" else 1.0
    start = scale * rng.standard_normal(int(sizes[-1]))
    tight = {"maxiter": 50_000, "maxfun": 100_000, "gtol": 1e-12, "ftol": 0.0, "maxcor": 30}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=tight)
    product = reduce(np.matmul if kind == "matrix" else np.multiply, apart(found.x))
    return product, float(np.abs(found.jac).max())


# --- lin-RFM ------------------------------------------------------------------------------------------------------


def lin_rfm_step(kind: str, estimate: np.ndarray, agop_power: float, seed: int) -> np.ndarray:
    """Return the next estimate, at ε = 0."""
    ridge = RIDGE[kind]
    if kind == "diagonal":
        matrix, target = _sparse_problem(seed)
        kernel = np.abs(estimate) ** (4.0 * agop_power)
        system = (matrix * kernel) @ matrix.T + ridge * np.eye(_SAMPLES)
        return np.asarray(kernel * (matrix.T @ np.linalg.solve(system, target)))
    values, is_seen = _matrix_problem(seed)
    _, sizes, vectors = np.linalg.svd(estimate, full_matrices=False)
    gram = (vectors.T * sizes ** (4.0 * agop_power)) @ vectors
    out = np.zeros_like(estimate)
    for i, seen in enumerate(is_seen):
        system = gram[np.ix_(seen, seen)] + ridge * np.eye(int(seen.sum()))
        out[i] = np.linalg.solve(system, values[i, seen]) @ gram[seen]
    return out


def lin_rfm_answer(kind: str, agop_power: float, seed: int) -> list[np.ndarray]:
    """Return left vectors, sizes and right vectors of what fastrfm ends at; of a vector, signs and sizes."""
    with unconverged_is_fine():
        if kind == "diagonal":
            matrix, target = _sparse_problem(seed)
            model = SparseRegression(RIDGE[kind], agop_power=agop_power, fit_intercept=False, tol=1e-12)
            coef = model.fit(matrix, target).coef_
            return [np.sign(coef), np.abs(coef)]
        values, is_seen = _matrix_problem(seed)
        observations = Observations.from_dense(np.where(is_seen, values, np.nan))
        # One-sided iteration moves the row space too slowly for this: 20 000 iterations leave a gradient of 0.1.
        found = complete(observations, method="two-sided", ridge=RIDGE[kind], agop_power=agop_power, tol=1e-8)
    left, sizes, right = np.linalg.svd(found.to_dense(), full_matrices=False)
    return [left, np.where(sizes > _ZERO * sizes[0], sizes, 0.0), right]


def balanced_factors(kind: str, parts: list[np.ndarray], depth: int) -> list[np.ndarray]:
    """Return the factors of least norm whose product the parts are."""
    if kind == "diagonal":
        signs, sizes = parts
        root = sizes ** (1.0 / depth)
        return [signs * root, *[root] * (depth - 1)]
    left, sizes, right = parts
    root = sizes ** (1.0 / depth)
    return [left * root, *[np.diag(root)] * (depth - 2), root[:, None] * right]


# --- the claim ----------------------------------------------------------------------------------------------------


def _settings(is_quick: bool) -> list[Row]:
    depths, n_seeds = ((2, 3), 1) if is_quick else (DEPTHS, 10)
    return [
        {"kind": kind, "depth": depth, "seed": seed} for seed in range(n_seeds) for kind in KINDS for depth in depths
    ]


def _measure(setting: Row) -> list[Row]:
    kind, depth, seed = setting["kind"], setting["depth"], setting["seed"]
    estimate, gradient = train(kind, depth, seed)
    norm = float(np.linalg.norm(estimate))
    parts = lin_rfm_answer(kind, power_of(depth), seed)
    rows = []
    for other in DEPTHS:
        moved = lin_rfm_step(kind, estimate, power_of(other), seed) - estimate
        factors = balanced_factors(kind, parts, other)
        slopes = network_gradients(kind, factors, seed)
        decay = np.sqrt(sum(float(np.sum((RIDGE[kind] * factor) ** 2)) for factor in factors))
        slope = np.sqrt(sum(float(np.sum(each**2)) for each in slopes)) / decay if decay else float("nan")
        rows.append(
            {
                "other_depth": other,
                "change": float(np.linalg.norm(moved)) / norm if norm else float("nan"),
                "slope": float(slope),
                "gradient": gradient,
                "rank": int(np.count_nonzero(parts[1])),
            }
        )
    return rows


def _report(rows: pandas.DataFrame, path: Path) -> str:
    kinds, depths = in_order(rows["kind"]), in_order(rows["depth"])
    middles = {
        (measured, *key): quartiles(group[measured])
        for measured in ("change", "slope")
        for key, group in rows.groupby(["kind", "depth", "other_depth"])
    }
    others = sorted(in_order(rows["other_depth"]))
    with drawing(path, len(kinds)) as axes:
        for each, kind in zip(np.atleast_1d(axes), kinds, strict=True):
            width = 0.8 / len(depths)
            for k, depth in enumerate(depths):
                found = [middles["change", kind, depth, other] for other in others]
                places = np.arange(len(others)) + (k - (len(depths) - 1) / 2) * width
                bars = [[f[1] - f[0] for f in found], [f[2] - f[1] for f in found]]
                each.bar(places, [f[1] for f in found], width, yerr=bars, capsize=2, label=f"network of depth {depth}")
            labels = [f"α = {power_of(other):.3g}" for other in others]
            each.set_xticks(range(len(others)), labels)
            each.set(yscale="log", ylabel="change by a step of lin-RFM", title=kind)
    is_same = rows["depth"] == rows["other_depth"]
    right = rows[is_same][["change", "slope"]].max()
    wrong = rows[~is_same][["change", "slope"]].min()
    parts = [
        f"{'**Reproduced.**' if (APART * right < wrong).all() else '**Not reproduced everywhere.**'} "
        f"With the α that goes with the depth the largest change is {right['change']:.1e} and the largest gradient "
        f"{right['slope']:.1e}; with another α the least are {wrong['change']:.1e} and {wrong['slope']:.1e}.\n"
    ]
    for kind in kinds:
        lines = [
            [str(depth), f"{power_of(depth):.4g}"]
            + [f"{middles[name, kind, depth, other][1]:.1e}" for name in ("change", "slope") for other in others]
            for depth in depths
        ]
        head = ["depth L", "its α", *[f"change, α = {power_of(other):.3g}" for other in others]]
        head += [f"gradient, depth {other}" for other in others]
        parts.append(f"### {kind.capitalize()}\n\n{table(head, lines)}")
    return "\n".join(parts)


DEPTH = Claim(
    name="depth",
    title="A power stands for a depth: L = 1 / (1 − 2α)",
    statement=(
        "Stationary points of deep linear (diagonal) networks of depth L with weight decay are fixed points of lin-RFM "
        "with α = (L − 1) / (2L), the decay as the ridge, and the other way round. Measured: the relative change of a "
        "trained network's matrix (vector) by one step of lin-RFM with each α; and the gradient, relative to the decay "
        "alone, of networks of each depth at lin-RFM's answer for that α in balanced factors. "
        f"{_SHAPE[0]} × {_SHAPE[1]} matrices of rank {_RANK} with noise, {_SAMPLES} samples of {_FEATURES} features; "
        "medians over seeds, quartiles in the plot."
    ),
    settings=_settings,
    measure=_measure,
    report=_report,
)
