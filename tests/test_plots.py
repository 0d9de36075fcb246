"""Plots: that what is drawn is what the result holds, on axes of no global state, and what cannot be drawn says so."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from samples import make_result

from fastrfm import matrix_plots, plots
from fastrfm.errors import InputError, MissingPackageError, OutputExistsError
from fastrfm.observations import Observations
from fastrfm.results import CompletionResult, Selection

FITS = {
    "agop_power": np.array([0.25, 0.25, 0.25, 0.5, 0.5]),
    "ridge": np.array([10.0, 3.0, 1.0, 0.5, 0.2]),
    "rmse": np.array([0.9, 0.8, 1.0, 0.85, 0.95]),
    "standard_error": np.array([0.09, 0.08, np.nan, 0.017, 0.019]),
    "offsets": np.ones(5, dtype=bool),
    "implicit": np.zeros(5, dtype=np.int64),
}


def chosen_result(n_held_out=40, **fits):
    rng = np.random.default_rng(3)
    values = rng.normal(size=n_held_out)
    places = rng.integers(3, size=n_held_out), rng.integers(4, size=n_held_out)
    selection = Selection({**FITS, **fits}, 1, *places, values, values + 0.1 * rng.normal(size=n_held_out))
    return replace(make_result(tol=1e-3), selection=selection)


def random_result(shape, seed=0, k=2):
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=(shape[0], k)), rng.normal(size=(shape[1], k))
    return replace(make_result(with_offsets=False, names=False), left=left, right=right)


def with_holes(result, share=0.3, seed=1):
    dense = result.to_dense()
    dense[np.random.default_rng(seed).random(dense.shape) >= share] = np.nan
    return Observations.from_dense(dense)


def line_named(axes, label):
    return next(line for line in axes.get_lines() if line.get_label().startswith(label))


def render(axes):
    """Draw for real: what is wrong with ticks, fonts and layouts shows only then."""
    assert plots.png_of(axes.figure).startswith(b"\x89PNG")


# --- convergence --------------------------------------------------------------------------------------------------


def test_convergence_shows_the_history():
    result = make_result(tol=1e-3)
    axes = plots.plot_convergence(result)
    assert axes.get_yscale() == "log" and axes.get_xlabel() == "iteration"
    for name, label in (("masked_rmse", "RMSE"), ("smoothing", "smoothing"), ("error_estimate", "estimated")):
        line = line_named(axes, label)
        wanted = np.where(np.isfinite(result.history[name]), result.history[name], np.nan)
        np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
        np.testing.assert_array_equal(line.get_ydata(), wanted)
    assert line_named(axes, "tol = 0.001").get_ydata()[0] == 1e-3
    (right,) = (other for other in axes.figure.axes if other is not axes)
    np.testing.assert_array_equal(right.get_lines()[0].get_ydata(), [np.nan, 2, 2])
    assert "rank" in right.get_ylabel() and len(axes.get_legend().get_texts()) == 5
    render(axes)


def test_convergence_of_a_bare_history_and_of_zeros():
    bare = {"change": np.array([1.0, 0.0]), "seconds": np.array([0.1, 0.2])}
    axes = plots.plot_convergence(replace(make_result(), history=bare))
    np.testing.assert_array_equal(line_named(axes, "change").get_ydata(), [1.0, np.nan])
    assert len(axes.figure.axes) == 1
    render(axes)
    with pytest.raises(InputError, match="no iterations"):
        plots.plot_convergence(replace(make_result(), history={name: np.zeros(0) for name in bare}))


# --- spectrum -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("values", "scale"), [([3.0, 1.0], "linear"), ([3.0, 0.01], "log"), ([3.0, 0.0], "linear")])
def test_spectrum_shows_singular_values_and_their_squares(values, scale):
    axes = plots.plot_spectrum(replace(make_result(), singular_values=np.array(values)))
    (line,) = axes.get_lines()
    assert line.get_ydata().tolist() == values and line.get_xdata().tolist() == [1, 2]
    assert axes.get_yscale() == scale and "data's unit" in axes.get_ylabel()
    render(axes)
    (right,) = axes.child_axes
    assert "AGOP, σ²" in right.get_ylabel()
    np.testing.assert_allclose(right.get_ylim(), np.square(axes.get_ylim()))


def test_no_spectrum_of_rank_0():
    with pytest.raises(InputError, match="rank 0"):
        plots.plot_spectrum(replace(make_result(), rank=0, singular_values=np.zeros(0)))


# --- selection ----------------------------------------------------------------------------------------------------


def test_selection_shows_each_path_and_marks_the_chosen_fit():
    axes = plots.plot_selection(chosen_result())
    low, high = (box.lines[0] for box in axes.containers)
    assert [box.get_label() for box in axes.containers] == ["agop-power 0.25", "agop-power 0.5"]
    assert low.get_xdata().tolist() == [1.0, 3.0, 10.0] and low.get_ydata().tolist() == [1.0, 0.8, 0.9]
    assert high.get_xdata().tolist() == [0.2, 0.5] and high.get_ydata().tolist() == [0.95, 0.85]
    star = line_named(axes, "chosen: ridge 3")
    assert (star.get_xdata().tolist(), star.get_ydata().tolist()) == ([3.0], [0.8])
    assert axes.get_xscale() == "log"
    # Half the standard error of the square over the root: 0.09 / (2 * 0.9) for the fit at ridge 10.
    ends = axes.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([end[1, 1] - end[0, 1] for end in ends], [0.0, 0.1, 0.1])
    render(axes)


def test_selection_tells_settings_apart_and_finds_room_for_ridge_0():
    fits = {"offsets": np.array([True, True, False, True, True]), "implicit": np.array([0, 20, 0, 0, 0])}
    axes = plots.plot_selection(chosen_result(ridge=np.array([10.0, 3.0, 0.0, 0.5, 0.2]), **fits))
    assert [box.get_label() for box in axes.containers] == [
        "agop-power 0.25, with offsets, implicit 0",
        "agop-power 0.25, with offsets, implicit 20",
        "agop-power 0.25, no offsets, implicit 0",
        "agop-power 0.5, with offsets, implicit 0",
    ]
    assert axes.get_xscale() == "symlog"
    render(axes)
    only = {name: FITS[name] for name in ("agop_power", "ridge", "rmse")}  # all that a file must have
    bare = chosen_result()
    axes = plots.plot_selection(replace(bare, selection=replace(bare.selection, fits=only)))
    assert len(axes.containers) == 2
    render(axes)


def test_selection_leaves_hopeless_fits_beyond_the_axis():
    axes = plots.plot_selection(chosen_result(rmse=np.array([3.3, 0.8, 1.0, 0.85, 2.9])))
    low, high = axes.get_ylim()
    assert low < 0.8 - 0.05 and 1.0 < high < 1.1  # with the bars of those that can be compared
    assert "2 of 5 fits beyond the axis" in [text.get_text() for text in axes.get_legend().get_texts()]
    assert plots.plot_selection(chosen_result()).get_ylim()[1] > 1.0
    exact = plots.plot_selection(chosen_result(rmse=np.array([3.3, 0.0, 1.0, 0.85, 2.9])))
    assert exact.get_ylim()[1] > 3.3
    render(axes)


def test_without_a_selection_there_is_none_to_plot():
    for function in (plots.plot_selection, plots.plot_held_out):
        with pytest.raises(InputError, match=r"no selection.*plot convergence"):
            function(make_result())


# --- held out -----------------------------------------------------------------------------------------------------


def test_held_out_entries_as_dots():
    result = chosen_result()
    axes = plots.plot_held_out(result)
    dots, identity = axes.get_lines()
    np.testing.assert_array_equal(dots.get_xdata(), result.selection.values)
    np.testing.assert_array_equal(dots.get_ydata(), result.selection.predicted)
    assert list(identity.get_xdata()) == list(identity.get_ydata()) == list(axes.get_xlim()) == list(axes.get_ylim())
    error = np.sqrt(np.mean((result.selection.predicted - result.selection.values) ** 2))
    assert axes.get_title() == f"40 held-out entries, RMSE {error:.4g}"
    render(axes)


def test_many_held_out_entries_as_counts():
    axes = plots.plot_held_out(chosen_result(5000))
    (cells,) = axes.collections
    assert cells.get_array().sum() == 5000 and len(axes.get_lines()) == 1
    render(axes)


def test_held_out_entries_of_ones_own():
    result = random_result((30, 20))
    held_out = with_holes(result)
    rows, cols, values = held_out.to_coo()
    axes = plots.plot_held_out(result, held_out=held_out)
    np.testing.assert_array_equal(axes.get_lines()[0].get_xdata(), values)
    np.testing.assert_array_equal(axes.get_lines()[0].get_ydata(), result.predict(rows, cols))
    with pytest.raises(InputError, match="holds no held-out entries"):
        plots.plot_held_out(chosen_result(0))


# --- gaps ---------------------------------------------------------------------------------------------------------


def test_gaps_show_the_matrix_before_and_after_in_the_same_colours():
    result = random_result((30, 20))
    observations = with_holes(result)
    before, after = plots.plot_gaps(result, observations)
    (seen,), (estimate,) = before.get_images(), after.get_images()
    rows, cols, values = observations.to_coo()
    np.testing.assert_array_equal(seen.get_array()[rows, cols], values)
    assert seen.get_array().mask.sum() == 600 - values.size
    np.testing.assert_allclose(estimate.get_array(), result.to_dense())
    assert seen.get_clim() == estimate.get_clim() and "gray: missing" in before.get_title()
    assert seen.get_extent() == [-0.5, 19.5, 29.5, -0.5]
    render(before)


@pytest.mark.parametrize("block_entries", [10, 1 << 20])
def test_gaps_of_a_large_matrix_take_rows_and_columns_evenly(monkeypatch, block_entries):
    monkeypatch.setattr("fastrfm.blocks.BLOCK_ENTRIES", block_entries)
    monkeypatch.setattr(matrix_plots, "N_SHOWN", 7)
    result = random_result((50, 20))
    observations = with_holes(result)
    before, after = plots.plot_gaps(result, observations)
    rows, cols = np.linspace(0, 49, 7).round().astype(int), np.linspace(0, 19, 7).round().astype(int)
    dense = np.full((50, 20), np.nan)
    at = observations.to_coo()
    dense[at[0], at[1]] = at[2]
    np.testing.assert_array_equal(before.get_images()[0].get_array().filled(np.nan), dense[np.ix_(rows, cols)])
    np.testing.assert_allclose(after.get_images()[0].get_array(), result.to_dense()[np.ix_(rows, cols)])
    for axes in (before, after):
        assert "7 of 50 rows and 7 of 20 columns, taken evenly" in axes.get_title()


def test_gaps_of_a_matrix_too_large_for_a_dense_answer():
    result = random_result((200_000, 100_000), k=1)
    observations = Observations.from_coo([0, 7], [0, 3], [1.0, 1.0], result.shape)
    before, after = plots.plot_gaps(result, observations)
    assert before.get_images()[0].get_array().shape == after.get_images()[0].get_array().shape == (300, 300)
    render(before)


def test_gaps_of_positive_values_that_differ_much_are_logarithmic():
    result = random_result((30, 20), k=1)
    result = replace(result, left=10.0 ** np.linspace(-3, 3, 30)[:, None], right=np.ones((20, 1)))
    observations = with_holes(result)
    result.left[4] = -1.0  # below anything observed: the lowest colour, no hole
    before, after = plots.plot_gaps(result, observations)
    assert before.get_images()[0].get_array().mask.sum() == 600 - observations.n_observed
    estimate = after.get_images()[0]
    assert estimate.norm(estimate.get_array()).mask.sum() == 0 and estimate.norm(10.0**0.103) == pytest.approx(
        0.5, abs=0.1
    )
    assert "logarithmic" in before.figure.axes[-1].get_ylabel()
    render(before)


def test_gaps_of_other_observations_or_axes_are_refused():
    result = random_result((30, 20))
    with pytest.raises(InputError, match=r"must have the result's shape \(30, 20\), got \(20, 30\)"):
        plots.plot_gaps(result, with_holes(random_result((20, 30))))
    with pytest.raises(InputError, match="axes must be two"):
        plots.plot_gaps(result, with_holes(result), Figure().add_subplot())


# --- images -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("largest", [1.0, 255.0, 300.0])
def test_a_gray_image_keeps_what_was_observed_and_fills_the_rest(largest):
    image = np.linspace(0.0, largest, 12).reshape(3, 4)
    image[1, 2] = np.nan
    result = random_result((3, 4))
    before, after = plots.plot_image(image, result)
    seen, filled = before.get_images()[0].get_array(), after.get_images()[0].get_array()
    assert seen[1, 2, 3] == 0.0 and seen[..., 3].sum() == 11 and (filled[..., 3] == 1.0).all()
    np.testing.assert_allclose(seen[0, :, 0], image[0] / largest)
    np.testing.assert_allclose(filled[1, 2], [*[np.clip(result.to_dense()[1, 2] / largest, 0, 1)] * 3, 1.0])
    assert "8.33 % of the pixels missing" in before.get_title()
    render(before)


def test_an_image_in_colour():
    image = np.random.default_rng(0).random((3, 4, 3))
    image[0, 0, 1] = np.nan
    results = [random_result((3, 4), seed) for seed in range(3)]
    before, after = plots.plot_image(image, results, limits=(-1, 2))
    assert before.get_images()[0].get_array()[0, 0, 3] == 0.0
    pixel = [(image[0, 0, 0] + 1) / 3, np.clip((results[1].to_dense()[0, 0] + 1) / 3, 0, 1), (image[0, 0, 2] + 1) / 3]
    np.testing.assert_allclose(after.get_images()[0].get_array()[0, 0, :3], pixel)


@pytest.mark.parametrize(
    ("shape", "n_results", "said"),
    [
        ((3, 4), 3, "three results complete an image of three channels"),
        ((3, 4, 3), 1, r"an image has shape \(n_rows, n_cols\) and one result"),
        ((3, 4), 2, "an image has shape"),
        ((4, 3), 1, r"must have the image's shape \(4, 3\), got \(3, 4\)"),
    ],
)
def test_images_that_do_not_match_are_refused(shape, n_results, said):
    with pytest.raises(InputError, match=said):
        plots.plot_image(np.zeros(shape), [random_result((3, 4))] * n_results)


def test_images_without_numbers_and_limits_that_fall_are_refused():
    for image in (np.full((3, 4), np.nan), np.full((3, 4), np.inf)):
        with pytest.raises(InputError, match="the image must hold numbers"):
            plots.plot_image(image, random_result((3, 4)))
    with pytest.raises(InputError, match="limits must be two numbers that rise"):
        plots.plot_image(np.zeros((3, 4)), random_result((3, 4)), limits=(1, 1))


# --- figures ------------------------------------------------------------------------------------------------------


def single_plots():
    return [plots.plot_convergence, plots.plot_spectrum, plots.plot_selection, plots.plot_held_out]


@pytest.mark.parametrize("function", single_plots())
def test_plots_take_axes(function):
    axes = Figure().add_subplot()
    assert function(chosen_result(), axes) is axes and axes.get_title() and axes.get_xlabel() and axes.get_ylabel()


def test_plotting_leaves_no_trace_in_pyplot():
    script = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "import test_plots as t\n"
        "for function in t.single_plots(): t.render(function(t.chosen_result()))\n"
        "assert 'matplotlib.pyplot' not in sys.modules, 'pyplot'\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_figure_of_everything():
    result = chosen_result()
    observations = Observations.from_dense(np.where(np.eye(3, 4) > 0, 1.0, np.nan))
    figure = plots.draw(result, "all", observations)
    titles = [axes.get_title() for axes in figure.axes]
    for words in ("Convergence", "Spectrum", "How the options", "40 held-out", "Observed", "Completed"):
        assert any(title.startswith(words) for title in titles), words
    assert plots.kinds_for(result, observations) == list(plots.PLOT_KINDS)
    assert plots.kinds_for(make_result()) == ["convergence", "spectrum"]
    with pytest.raises(InputError, match=r"kind must be one of convergence, .* got 'pie'"):
        plots.draw(result, "pie")
    nothing: CompletionResult = replace(
        make_result(), rank=0, singular_values=np.zeros(0), history={"change": np.zeros(0), "seconds": np.zeros(0)}
    )
    with pytest.raises(InputError, match="nothing to plot"):
        plots.draw(nothing)


def test_saving_the_same_figure_gives_the_same_file_and_keeps_what_is_there(tmp_path):
    figure = plots.draw(make_result())
    for suffix, start in (("png", b"\x89PNG"), ("PDF", b"%PDF"), ("svg", b"<?xml")):
        plots.save_figure(figure, tmp_path / f"a.{suffix}")
        assert (tmp_path / f"a.{suffix}").read_bytes().startswith(start)
    for name in ("b.png", "c.png"):
        plots.save_figure(plots.draw(make_result()), tmp_path / name)
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "c.png").read_bytes()
    with pytest.raises(OutputExistsError):
        plots.save_figure(figure, tmp_path / "b.png")
    with pytest.raises(InputError, match=r"written as \.png, \.svg or \.pdf"):
        plots.save_figure(figure, tmp_path / "b.jpg", force=True)


def test_a_missing_matplotlib_is_named_with_its_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for function in single_plots():
        with pytest.raises(MissingPackageError, match=r"pip install 'fastrfm\[plot\]'"):
            function(chosen_result())
