"""A claim of the paper: lin-RFM completes from fewer entries than the nuclear norm and deep linear networks."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from completion_page import table
from completion_problems import make_problem
from paper_records import (
    Claim,
    Row,
    draw_success,
    drawing,
    in_order,
    sorted_by_method,
    success_table,
    unconverged_is_fine,
)

from fastrfm import CompletionResult, Observations, complete
from fastrfm.baselines import irls, nuclear_norm_path, search_deep_linear_network

POWERS = {"¼": 0.25, "⅓": 1.0 / 3.0, "⅜": 0.375, "½": 0.5, "1": 1.0}
LIMIT = 1e-3  # of the mean square of the hidden entries: the level of the paper's own experiments
RANKS = {20: 1, 100: 3, 500: 5}
ENTRIES = {
    20: (120, 240),
    100: (800, 1000, 1200, 1500, 1800, 2200, 2700, 3300),
    500: (6500, 8000, 10_000, 12_500, 16_000, 20_000, 26_000),
}
SEEDS = {20: 1, 100: 20, 500: 5}
NETWORK_SECONDS = {20: 2.0, 100: 60.0, 500: 900.0}  # for the whole search of one depth on one instance
NUCLEAR_SECONDS = {20: 2.0, 100: 60.0, 500: 300.0}  # for the whole path
ITERATIONS = {20: 300, 100: 10_000, 500: 5000}
FORMS = {20: "dense", 100: "dense", 500: "factored"}  # of one-sided lin-RFM: the same answers, at 500² sooner
_FALL, _STEPS, _LEAST = 1.01, 1800, 1e-7  # of ε of IRLS

Method = Callable[[Observations, int, int], CompletionResult]


def _lin_rfm(observations: Observations, size: int, seed: int, *, agop_power: float) -> CompletionResult:
    return complete(
        observations,
        method=FORMS[size],
        agop_power=agop_power,
        tol=1e-4,
        max_iter=ITERATIONS[size],
        random_state=seed,
    )


def _default(observations: Observations, size: int, seed: int) -> CompletionResult:
    return complete(observations, random_state=seed)


def _irls(observations: Observations, size: int, seed: int, *, schatten_p: float) -> CompletionResult:
    # The slower ε falls, the more is recovered: factors 1.05 and 1.02 do worse. At lin-RFM's ε it would be lin-RFM.
    smoothing = observations.norm * np.maximum(_FALL ** -np.arange(1.0, _STEPS), _LEAST)
    return irls(observations, schatten_p=schatten_p, smoothing=smoothing, tol=1e-4)


def _nuclear(observations: Observations, size: int, seed: int) -> CompletionResult:
    result, _ = nuclear_norm_path(observations, max_seconds=NUCLEAR_SECONDS[size], random_state=seed)
    return result


def _network(observations: Observations, size: int, seed: int, *, depth: int) -> CompletionResult:
    seconds = NETWORK_SECONDS[size]
    quicker: dict[str, Any] = {"dtype": "float32", "steps": (1.5,)} if size >= 500 else {}
    result, _ = search_deep_linear_network(
        observations, depths=(depth,), max_seconds=seconds, random_state=seed, **quicker
    )
    return result


METHODS: dict[str, Method] = {
    **{f"lin-RFM α = {name}": partial(_lin_rfm, agop_power=power) for name, power in POWERS.items()},
    "lin-RFM, two-sided (the default)": _default,
    "IRLS p = 1": partial(_irls, schatten_p=1.0),
    "IRLS p = 0": partial(_irls, schatten_p=0.0),
    "nuclear norm (soft-impute)": _nuclear,
    **{f"deep linear network, depth {depth}": partial(_network, depth=depth) for depth in (2, 3, 4)},
}


def _settings(is_quick: bool) -> list[Row]:
    sizes = (20,) if is_quick else (100, 500)
    return [
        {"n": n, "method": method, "n_observed": n_observed, "seed": seed}
        for seed in range(max(SEEDS[n] for n in sizes))
        for n in sizes
        if seed < SEEDS[n]
        for method in METHODS
        for n_observed in ENTRIES[n]
    ]


def _measure(setting: Row) -> list[Row]:
    n, seed = setting["n"], setting["seed"]
    problem = make_problem(n, n, RANKS[n], setting["n_observed"], seed)
    start = time.perf_counter()
    with unconverged_is_fine():
        result = METHODS[setting["method"]](problem.observations, n, seed)
    seconds = time.perf_counter() - start
    truth = problem.left @ problem.right.T
    is_hidden = np.ones(truth.shape, dtype=bool)
    rows, cols, _ = problem.observations.to_coo()
    is_hidden[rows, cols] = False
    misfit = float(np.mean((result.to_dense() - truth)[is_hidden] ** 2) / np.mean(truth[is_hidden] ** 2))
    return [
        {
            "error": float(np.sqrt(misfit)),
            "is_recovered": misfit < LIMIT,
            "seconds": seconds,
            "n_iter": result.n_iter,
            "stop_reason": result.stop_reason,
        }
    ]


def _report(rows: pandas.DataFrame, path: Path) -> str:
    rows = sorted_by_method(rows, METHODS)
    sizes = sorted(in_order(rows["n"]))
    with drawing(path, len(sizes)) as axes:
        for each, n in zip(np.atleast_1d(axes), sizes, strict=True):
            freedom = RANKS[n] * (2 * n - RANKS[n])
            draw_success(each, rows[rows["n"] == n], "n_observed", "observed entries")
            each.set_title(f"{n} × {n}, rank {RANKS[n]}: {freedom} degrees of freedom", fontsize=9)
    parts = []
    for n in sizes:
        mine = rows[rows["n"] == n]
        head, lines = success_table(mine, "n_observed", "")
        parts.append(f"### {n} × {n}, rank {RANKS[n]}\n\n{_verdict(mine)}\n\n{table(head, lines)}")
    return "\n".join(parts)


def fewest_entries(rows: pandas.DataFrame, method: str, place: str) -> float:
    """Return the least number of observations from which on a method recovers at least half of the instances."""
    shares = rows[rows["method"] == method].groupby(place)["is_recovered"].mean()
    failing = shares.index[shares < 0.5]
    good = shares.index if failing.empty else shares.index[shares.index > failing.max()]
    return float(good.min()) if len(good) else float("inf")


def compare(rows: pandas.DataFrame, place: str, ours: list[str], others: dict[str, list[str]]) -> str:
    """Return in words what share the best of ours recovers, over all numbers of observations, and the best of others.

    `others` has lists of methods under the name that they go by. Shares are over the numbers at which all of them were
    measured.
    """
    present = {name: methods for name, methods in {"ours": ours, **others}.items() if methods}
    missing = [name for name in others if name not in present]
    shares = rows.groupby(["method", place])["is_recovered"].mean().unstack()
    common = shares.columns[np.logical_and.reduce([shares.loc[m].notna().all() for m in present.values()])]
    means = shares[common].mean(axis=1)

    def best(methods: list[str]) -> str:
        return max(methods, key=lambda method: (means[method], -fewest_entries(rows, method, place)))

    if missing or not len(common):
        return f"**Not measured beside: {', '.join(missing) or 'all of the others'}.**"
    found = {name: best(methods) for name, methods in present.items()}
    gaps = [means[found["ours"]] - means[found[name]] for name in others]
    verdict = "Reproduced" if min(gaps) > 0.0 else "Not reproduced" if min(gaps) < 0.0 else "Not decided"
    said = []
    for name, method in found.items():
        at = fewest_entries(rows, method, place)
        half = f"half of them from {at:g} on" if np.isfinite(at) else "never half of them"
        said.append(f"{name}: {method} {100 * means[method]:.0f} % ({half})")
    where = "these numbers" if len(common) == shares.shape[1] else f"{', '.join(map(str, common))}"
    return f"**{verdict}.** Share of the instances recovered, over {where} of observations: {'; '.join(said)}."


def _verdict(rows: pandas.DataFrame) -> str:
    present: list[Any] = in_order(rows["method"])
    ours = [method for method in present if method.startswith("lin-RFM α")]
    others = {
        "nuclear norm": [method for method in present if method.startswith("nuclear")],
        "best network": [method for method in present if method.startswith("deep")],
    }
    return compare(rows, "n_observed", ours, others)


COMPLETION = Claim(
    name="completion",
    title="Low-rank matrices are recovered from fewer entries than by deep linear networks",
    statement=(
        "Uniformly observed entries of exact low-rank matrices (Haar factors, equal singular values). Recovered means: "
        f"the mean squared error over the hidden entries is below {LIMIT:g} of their mean square. The same instances "
        "for all; nothing sees hidden entries. Deep linear networks: gradient descent from small initialisation until "
        "the training loss is met; step and initialisation searched for every instance and depth on held-out "
        f"observations, for {NETWORK_SECONDS[100]:g} s at 100² and {NETWORK_SECONDS[500]:g} s at 500², there in "
        "float32 and with the larger step alone. IRLS has a slow geometric schedule of ε (at the ε of lin-RFM it is "
        "lin-RFM, see above); the nuclear norm's weight is chosen on held-out observations. One-sided lin-RFM is in "
        "its dense form at 100², factored at 500²."
    ),
    settings=_settings,
    measure=_measure,
    report=_report,
)
