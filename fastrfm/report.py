"""A completion as one html page: what was fitted, how well, how its options were chosen, with plots.

The page holds everything (plots as base64 PNG) and refers to nothing outside, has no scripts, and reads on a phone
and on paper. Whatever comes from the data, such as names, is escaped. Flow: ``CompletionResult`` -> ``plots`` -> page.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np

from fastrfm.atomic import PathLike, writing
from fastrfm.blocks import RowBlocks
from fastrfm.plots import draw, kinds_for, png_of, require_matplotlib, rmse_errors
from fastrfm.results import CompletionResult, Selection
from fastrfm.words import count, shape_in_words, share_in_words, stop_in_words

_MOST_FITS = 100  # rows of the table of the search
_WORST = 10
_TAKEN = ("agop-power", "ridge", "offsets", "implicit")  # what a search decides
_PANEL = (5.2, 4.0)  # inches: small, so that its letters are large enough on a phone
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 60rem; margin: 0 auto;
       padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
th[scope=row] { font-weight: 600; }
td { overflow-wrap: break-word; }
.numbers td { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.numbers th { text-align: right; vertical-align: bottom; }
.numbers .name { text-align: left; white-space: normal; }
.chosen td { font-weight: 700; background: #fff6c2; }
figure { margin: 1.5rem 0; overflow-x: auto; }
figure img { width: 100%; max-width: 42rem; height: auto; }
figure.pair img { max-width: none; min-width: 40rem; }
figcaption { color: #555; font-size: .9rem; }
@media print {
  body { max-width: none; padding: 0; font-size: 11pt; }
  figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; }
  .wide, figure { overflow-x: visible; }
  figure img, figure.pair img { min-width: 0; width: auto; max-width: 100%; max-height: 9.5cm; }
  .numbers { font-size: 9pt; }
  .chosen td { print-color-adjust: exact; }
}
"""
_CAPTIONS = {
    "convergence": "How the iterations went. The smoothing ε falls; once it is low enough, the run ends when the "
    "estimated distance to the limit is below the dotted line.",
    "spectrum": "Singular values of the completed matrix. Their squares are the eigenvalues of the average gradient "
    "outer product (AGOP). A steep fall marks the rank that the data show.",
    "selection": "Error on entries that no fit of the search saw, against the weight of the penalty. Bars are one "
    "standard error; the star is the fit whose options were taken.",
    "held-out": "What the chosen fit predicts for entries it did not see, against what was observed there. Points on "
    "the dashed line are exact.",
    "gaps": "The observations with their holes, and the estimate, in the same colours.",
}


def write_report(
    path: PathLike,
    result: CompletionResult,
    *,
    title: str = "Completed matrix",
    observations: RowBlocks | None = None,
    force: bool = False,
) -> None:
    """Write a report, see :func:`report_html`, aside and rename it.

    Raises
    ------
    InputError, MissingPackageError
        As :func:`report_html`.
    OutputExistsError, WriteError
        See :func:`fastrfm.atomic.writing`; what was at `path` before is then untouched.
    """
    page = report_html(result, title=title, observations=observations)
    with writing(path, force) as aside:
        aside.write_text(page, encoding="utf-8", errors="backslashreplace")


def report_html(
    result: CompletionResult, *, title: str = "Completed matrix", observations: RowBlocks | None = None
) -> str:
    """Return a self-contained html page about a completion.

    Parameters
    ----------
    result : CompletionResult
    title : str
        Heading, as plain text.
    observations : Observations or StoredObservations, optional
        What was completed: adds the plot of the matrix before and after.

    Raises
    ------
    InputError
        If the observations have another shape than the result.
    MissingPackageError
        If matplotlib is not installed.
    """
    require_matplotlib()
    parts = [f"<h1>{escape(title)}</h1>", "<h2>What was fitted</h2>", _facts_table(_facts(result, observations))]
    parts += ["<h2>Options</h2>", _facts_table(_options(result)), "<h2>How the options were chosen</h2>"]
    if result.selection is None:
        parts.append("<p>The options were given; none was chosen by held-out entries.</p>")
    else:
        parts += [_search_in_words(result.selection), _search_table(result.selection), *_worst(result)]
    parts.append("<h2>Plots</h2>")
    parts += [_figure(result, kind, observations) for kind in kinds_for(result, observations)]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


# --- what was fitted ----------------------------------------------------------------------------------------------


def _facts(result: CompletionResult, observations: RowBlocks | None) -> Iterable[tuple[str, Any]]:
    yield "shape", shape_in_words(result.shape)
    for noun, names in (("rows", result.row_names), ("columns", result.col_names)):
        if names is not None:
            yield noun, ", ".join(map(str, names[:3])) + (", …" if names.size > 3 else "")
    if observations is not None:
        yield "observed", share_in_words(observations.n_observed, observations.shape)
    yield "fitted", share_in_words(result.n_observed, result.shape)
    yield (
        "without observations",
        f"{count(result.n_empty_rows, 'row')}, {count(result.n_empty_cols, 'column')}",
    )
    yield "method", result.options.get("method", "not recorded")
    yield "rank found", result.rank
    yield "iterations", f"{result.n_iter} in {result.seconds:.3g} s"
    yield "stopped", stop_in_words(result)
    yield "RMSE on fitted entries", f"{result.masked_rmse:.6g}"
    if result.selection is not None:
        error = rmse_errors(result.selection)[result.selection.chosen]
        within = f" ± {error:.2g}" if error > 0.0 else ""
        n_held_out = result.selection.rows.size
        yield "RMSE on held-out entries", f"{result.selection.rmse:.6g}{within}, on {n_held_out} entries"
    if result.bounds is not None:
        yield "predictions lie between", f"{result.bounds[0]:g} and {result.bounds[1]:g}"


def _options(result: CompletionResult) -> Iterable[tuple[str, Any]]:
    for name, value in result.options.items():
        if name != "method":
            yield name.replace("_", "-"), _in_words(value)


def _in_words(value: Any) -> str:
    if value is None:
        return "not given"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _facts_table(facts: Iterable[tuple[str, Any]]) -> str:
    rows = (f'<tr><th scope="row">{escape(label)}</th><td>{escape(str(value))}</td></tr>' for label, value in facts)
    return '<div class="wide"><table>\n' + "\n".join(rows) + "\n</table></div>"


# --- how the options were chosen ----------------------------------------------------------------------------------


def _search_in_words(selection: Selection) -> str:
    chosen = ", ".join(f"{label} {cells[selection.chosen]}" for label, cells in _columns(selection) if label in _TAKEN)
    return (
        f"<p>{count(selection.fits['rmse'].size, 'fit')} did not see {selection.rows.size} of the entries and were "
        f"compared by their error there. Taken: {escape(chosen)}.</p>"
    )


def _columns(selection: Selection) -> Iterable[tuple[str, list[str]]]:
    """Yield heading and cells of what the search recorded, with the standard error as that of the RMSE."""
    fits = selection.fits
    known = {"agop_power": "agop-power", "ridge": "ridge", "offsets": "offsets", "implicit": "implicit"}
    known |= {"rank": "rank", "rmse": "held-out RMSE", "standard_error": "std. error"}
    known |= {"n_iter": "iterations", "seconds": "seconds"}
    for name, label in known.items():
        if name in fits:
            values = rmse_errors(selection) if name == "standard_error" else fits[name]
            digits = 2 if name == "standard_error" else 6 if name == "rmse" else 4
            yield (
                label,
                [f"{value:.{digits}g}" if isinstance(value, float) else _in_words(value) for value in values.tolist()],
            )


def _search_table(selection: Selection) -> str:
    columns = list(_columns(selection))
    order = range(selection.fits["rmse"].size)
    shown, left_out = list(order)[:_MOST_FITS], max(len(order) - _MOST_FITS, 0)
    if selection.chosen not in shown:
        shown.append(selection.chosen)
    rows = [
        (["chosen" if i == selection.chosen else "", *(cells[i] for _, cells in columns)], i == selection.chosen)
        for i in shown
    ]
    note = f"<p>The first {_MOST_FITS} fits and the chosen one; the result file holds all.</p>" if left_out else ""
    return _numbers_table(["", *(label for label, _ in columns)], rows) + note


def _worst(result: CompletionResult) -> Iterable[str]:
    """Yield a table of the held-out entries that the chosen fit missed by most."""
    selection = result.selection
    if selection is None or not selection.rows.size:
        return
    missed = selection.predicted - selection.values
    order = np.argsort(-np.abs(missed), kind="stable")[:_WORST]
    rows = [
        (
            [
                _name(result.row_names, selection.rows[k]),
                _name(result.col_names, selection.cols[k]),
                *(f"{numbers[k]:.4g}" for numbers in (selection.values, selection.predicted, missed)),
            ],
            False,
        )
        for k in order
    ]
    yield "<h2>Held-out entries missed by most</h2>"
    yield _numbers_table(["row", "column", "observed", "predicted", "difference"], rows, n_names=2)


def _name(names: np.ndarray | None, position: Any) -> str:
    return str(position) if names is None else str(names[position])


def _numbers_table(heads: Sequence[str], rows: Sequence[tuple[list[str], bool]], *, n_names: int = 1) -> str:
    def cells(tag: str, texts: Sequence[str]) -> str:
        kinds = (' class="name"' if k < n_names else "" for k in range(len(texts)))
        return "".join(f"<{tag}{kind}>{escape(text)}</{tag}>" for kind, text in zip(kinds, texts, strict=True))

    mark = ' class="chosen"'
    lines = [f"<tr>{cells('th', heads)}</tr>"]
    for texts, is_chosen in rows:
        lines.append(f"<tr{mark if is_chosen else ''}>{cells('td', texts)}</tr>")
    return '<div class="wide"><table class="numbers">\n' + "\n".join(lines) + "\n</table></div>"


def _figure(result: CompletionResult, kind: str, observations: RowBlocks | None) -> str:
    figure, mark = draw(result, kind, observations), ' class="pair"'
    if kind != "gaps":
        figure.set_size_inches(*_PANEL)
        mark = ""
    code = b64encode(png_of(figure)).decode("ascii")
    caption = escape(_CAPTIONS[kind])
    return (
        f'<figure{mark}><img alt="Plot: {kind}. {caption}" src="data:image/png;base64,{code}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
