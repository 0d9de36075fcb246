"""Neither the number of threads nor the process that compiled a kernel changes a bit of what it gives."""

from __future__ import annotations

import warnings

import numba
import numpy as np
import pytest
from digests import check_bits_do_not_depend_on_compiling, check_bits_do_not_depend_on_threads
from problems import low_rank_problem
from threadpoolctl import threadpool_info

from fastrfm._numba import available_threads, blas_threads, check_thread_count, thread_limit
from fastrfm.errors import InputError, NotConvergedWarning
from fastrfm.kernels.gram import accumulate_gram
from fastrfm.solvers.completion import complete

METHODS = pytest.mark.parametrize("method", ["dense", "factored"])


@METHODS
def test_one_thread_and_all_give_the_same_bits(method):
    problem = low_rank_problem(40, 24, 2, oversampling=2.5, seed=0)
    found = []
    for n_threads in (1, available_threads(), None):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotConvergedWarning)
            found.append(complete(problem.observations, method=method, max_iter=15, n_threads=n_threads))
    for other in found[1:]:
        np.testing.assert_array_equal(other.left, found[0].left)
        np.testing.assert_array_equal(other.right, found[0].right)
        np.testing.assert_array_equal(other.history["change"], found[0].history["change"])


@pytest.mark.compiled_only
def test_one_to_four_threads_give_the_same_bits():
    check_bits_do_not_depend_on_threads(
        {
            f"{method}-{power}": {"method": method, "agop_power": power, "max_iter": 8, "offsets": power != 0.5}
            for method in ("dense", "factored")
            for power in (0.5, 0.375)
        }
    )


@pytest.mark.compiled_only
def test_compiling_and_loading_processes_give_the_same_bits(tmp_path):
    options = {"ridge": 0.3, "max_iter": 5, "offsets": True}
    cases = {
        f"{method}{'-weighted' * is_weighted}": {"method": method, "is_weighted": is_weighted, **options}
        for method in ("dense", "factored", "two-sided")
        for is_weighted in (False, True)
        if not (is_weighted and method == "two-sided")
    }
    check_bits_do_not_depend_on_compiling(cases, tmp_path)


@pytest.mark.parametrize(
    ("n_rows", "n_cols"), [(1, 1), (256, 3), (300, 31), (500, 97), (256, 130), (1111, 200), (4096, 64), (700, 513)]
)
def test_gram_bits_do_not_depend_on_blas_threads(monkeypatch, n_rows, n_cols):
    rows = np.random.RandomState(n_cols).standard_normal((n_rows, n_cols))
    found = []
    for n_threads in (1, 2, 3, 4):
        # What blas_threads() asks for; a machine with fewer cores still runs that many BLAS threads.
        monkeypatch.setattr(numba, "get_num_threads", lambda n_threads=n_threads: n_threads)
        gram = np.zeros((n_cols, n_cols))
        accumulate_gram(rows, gram)
        accumulate_gram(rows[: n_rows // 2], gram)
        found.append(gram)
    for gram in found[1:]:
        np.testing.assert_array_equal(gram, found[0])


def blas_counts() -> list[int]:
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


def test_thread_limit_holds_inside_and_is_lifted_after():
    before, blas_before = numba.get_num_threads(), blas_counts()
    with thread_limit(1):
        assert numba.get_num_threads() == 1
        assert set(blas_counts()) == {1}
    with pytest.raises(KeyError), thread_limit(1):
        raise KeyError
    assert numba.get_num_threads() == before
    assert blas_counts() == blas_before


def test_thread_counts_are_checked():
    assert check_thread_count(None) == available_threads()
    assert check_thread_count(1) == 1
    assert check_thread_count(np.int64(1)) == 1  # type: ignore[arg-type]
    for bad in (0, -1, 1.5, True, available_threads() + 1):
        with pytest.raises(InputError, match="n_threads must be a whole number"):
            check_thread_count(bad)  # type: ignore[arg-type]


def test_limits_of_several_python_threads_overlap_without_trace():
    def blas() -> set[int]:
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    before = blas()
    one, other = thread_limit(available_threads()), thread_limit(available_threads())
    one.__enter__()
    other.__enter__()
    with blas_threads():
        assert blas() == {1}  # the other holder relies on it
    one.__exit__(None, None, None)
    assert blas() == {1}
    other.__exit__(None, None, None)
    assert blas() == before
