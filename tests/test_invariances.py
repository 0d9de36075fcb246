"""What must not change a result: unit, order of rows and columns, side, row blocks, hidden entries, precision."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import low_rank_problem, observe

from fastrfm import blocks as module
from fastrfm.errors import NotConvergedWarning
from fastrfm.observations import Observations
from fastrfm.results import CompletionResult
from fastrfm.solvers.completion import complete

METHODS = pytest.mark.parametrize("method", ["dense", "factored"])
FEW = settings(max_examples=6, deadline=None, derandomize=True)


def quietly(observations: Observations, **options) -> CompletionResult:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)
        return complete(observations, **options)


def assert_same_bits(one: CompletionResult, other: CompletionResult) -> None:
    for name in ("left", "right", "singular_values"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for name, values in one.history.items():
        if name != "seconds":
            np.testing.assert_array_equal(values, other.history[name])
    assert (one.rank, one.stop_reason) == (other.rank, other.stop_reason)


@METHODS
@given(
    exponent=st.integers(-30, 30),
    power=st.sampled_from([0.25, 0.375, 0.5, 1.0]),
    ridge=st.sampled_from([0.0, 0.25]),
    seed=st.integers(0, 3),
)
@FEW
def test_scaling_by_a_power_of_two_scales_the_estimate(method, exponent, power, ridge, seed):
    problem = low_rank_problem(14, 10, 2, oversampling=2.0, seed=seed)
    scale = 2.0**exponent
    options = {"method": method, "agop_power": power, "max_iter": 25, "tol": 0.0}
    one = quietly(problem.observations, ridge=ridge, **options)
    # lambda has the unit of K = G^(2 alpha), which is the data's to the power 4 alpha.
    other = quietly(observe(scale * problem.truth, problem.mask), ridge=ridge * scale ** (4 * power), **options)
    np.testing.assert_allclose(other.to_dense(), scale * one.to_dense(), atol=1e-9 * scale)
    np.testing.assert_allclose(other.history["smoothing"], scale * one.history["smoothing"], rtol=1e-6)


@METHODS
def test_scaling_at_the_simplest_power_keeps_every_bit(method):
    problem = low_rank_problem(14, 10, 2, oversampling=2.0, seed=1)
    one = quietly(problem.observations, method=method, max_iter=25)
    other = quietly(observe(1024.0 * problem.truth, problem.mask), method=method, max_iter=25)
    np.testing.assert_array_equal(other.left, 1024.0 * one.left)
    np.testing.assert_array_equal(other.right, one.right)
    np.testing.assert_array_equal(other.history["change"], one.history["change"])


@pytest.mark.compiled_only
@METHODS
@given(scale=st.floats(1e-6, 1e6), sign=st.sampled_from([1.0, -1.0]), offsets=st.booleans())
@FEW
def test_scaling_by_any_number_scales_the_estimate(method, scale, sign, offsets):
    problem = low_rank_problem(30, 24, 2, oversampling=4.0, seed=2)
    one = quietly(problem.observations, method=method, offsets=offsets, ridge=0.1)
    other = quietly(
        observe(sign * scale * problem.truth, problem.mask), method=method, offsets=offsets, ridge=0.1 * scale**2
    )
    np.testing.assert_allclose(other.to_dense(), sign * scale * one.to_dense(), atol=1e-5 * scale)
    assert other.n_iter == one.n_iter


@pytest.mark.compiled_only
@METHODS
@given(seed=st.integers(0, 1000))
@FEW
def test_permuting_rows_and_columns_commutes(method, seed):
    problem = low_rank_problem(30, 24, 2, oversampling=4.0, seed=3)
    rng = np.random.RandomState(seed)
    rows, cols = rng.permutation(30), rng.permutation(24)
    permuted = observe(problem.truth[np.ix_(rows, cols)], problem.mask[np.ix_(rows, cols)])
    one, other = complete(problem.observations, method=method), complete(permuted, method=method)
    np.testing.assert_allclose(other.to_dense(), one.to_dense()[np.ix_(rows, cols)], atol=1e-6)


@pytest.mark.compiled_only
@METHODS
@pytest.mark.parametrize("shape", [(30, 24), (24, 30), (26, 26)])
def test_transposing_transposes(method, shape):
    problem = low_rank_problem(*shape, 2, oversampling=4.0, seed=4)
    one = complete(problem.observations, method=method)
    other = complete(observe(problem.truth.T, problem.mask.T), method=method)
    np.testing.assert_allclose(other.to_dense(), one.to_dense().T, atol=1e-6 if shape[0] == shape[1] else 1e-11)


@METHODS
@pytest.mark.parametrize("entries", [1, 50, 200])
@pytest.mark.parametrize("ridge", [0.0, 0.2])
@pytest.mark.parametrize(
    "shape",
    [(40, 24), (24, 40), pytest.param((700, 30), marks=pytest.mark.compiled_only)],  # 700: several slabs
)
def test_row_blocks_change_no_bit(monkeypatch, method, entries, ridge, shape):
    problem = low_rank_problem(*shape, 2, oversampling=5.0 if shape[0] == 700 else 2.5, seed=5)
    noisy = problem.truth + 0.01 * np.random.RandomState(0).standard_normal(shape)
    options = {"method": method, "ridge": ridge, "max_iter": 12, "offsets": ridge > 0.0}
    whole = quietly(observe(noisy, problem.mask), **options)
    monkeypatch.setattr(module, "BLOCK_ENTRIES", entries)
    blocked = observe(noisy, problem.mask)
    assert len(list(blocked.row_blocks())) > 1
    found = quietly(blocked, **options)
    assert_same_bits(found, whole)
    assert found.masked_rmse == whole.masked_rmse


@METHODS
@pytest.mark.parametrize("offsets", [False, True])
def test_hidden_entries_have_no_influence(method, offsets):
    problem = low_rank_problem(24, 30, 2, oversampling=2.0, seed=6)
    rng = np.random.RandomState(1)
    other_truth = np.where(problem.mask, problem.truth, 1e6 * rng.standard_normal(problem.mask.shape))
    one = quietly(problem.observations, method=method, offsets=offsets, max_iter=60)
    other = quietly(observe(other_truth, problem.mask), method=method, offsets=offsets, max_iter=60)
    assert_same_bits(one, other)
    assert one.masked_rmse == other.masked_rmse


# Largest relative difference that float32 storage may make: to the completion of the rounded values held as float64
# (storage alone: nothing), and to that of the values before rounding.
PRECISION = [
    # method, ridge, against the rounded values, against the exact ones
    ("dense", 0.0, 0.0, 3e-5),
    ("dense", 0.2, 0.0, 1e-5),
    ("factored", 0.0, 0.0, 3e-5),
    ("factored", 0.2, 0.0, 1e-5),
]


@pytest.mark.compiled_only
@pytest.mark.parametrize(("method", "ridge", "to_rounded", "to_exact"), PRECISION)
def test_float32_storage_costs_no_more_than_its_rounding(method, ridge, to_rounded, to_exact):
    problem = low_rank_problem(30, 24, 2, oversampling=4.0, seed=7)
    single = problem.truth.astype(np.float32)
    options = {"method": method, "ridge": ridge, "tol": 1e-5}
    found = quietly(observe(single, problem.mask), **options)
    assert found.left.dtype == found.right.dtype == np.float64
    norm = np.linalg.norm(problem.truth)
    for values, bound in ((single.astype(np.float64), to_rounded), (problem.truth, to_exact)):
        wanted = quietly(observe(values, problem.mask), **options)
        assert np.linalg.norm(found.to_dense() - wanted.to_dense()) <= bound * norm


@METHODS
def test_the_order_of_triples_does_not_matter(method):
    problem = low_rank_problem(14, 12, 2, oversampling=2.0, seed=8)
    rows, cols = np.nonzero(problem.mask)
    order = np.random.RandomState(0).permutation(rows.size)
    shuffled = Observations.from_coo(rows[order], cols[order], problem.truth[rows, cols][order], problem.truth.shape)
    options = {"method": method, "max_iter": 15}
    assert_same_bits(quietly(shuffled, **options), quietly(problem.observations, **options))
