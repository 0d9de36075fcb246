"""Observations: every way in against a dense twin, and every refusal."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from samples import SHAPES, assert_canonical, make_dense, to_dense, triples

from fastrfm.errors import InputError
from fastrfm.observations import Observations

# --- making -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_every_constructor_gives_the_same(shape):
    dense = make_dense(shape)
    rows, cols, values = triples(dense)
    order = np.random.RandomState(1).permutation(rows.size)
    shuffled = rows[order], cols[order], values[order]
    coo = sp.coo_matrix((shuffled[2], shuffled[:2]), shape=shape)
    indptr = np.concatenate(([0], np.cumsum(np.bincount(rows, minlength=shape[0]))))
    made = [
        Observations.from_dense(dense),
        Observations.from_coo(*shuffled, shape),
        Observations.from_scipy(coo),
        Observations.from_scipy(coo.tocsr()),
        Observations.from_scipy(coo.tocsc()),
        Observations.from_scipy(sp.csr_array(coo)),
        Observations.from_scipy(sp.coo_array(coo)),
        Observations.from_csr(indptr, cols, values, shape),
        Observations.from_csr(indptr.astype(np.int32), cols.astype(np.uint32), values, shape),
    ]
    for obs in made:
        assert_canonical(obs)
        assert obs.shape == shape
        np.testing.assert_array_equal(to_dense(obs), dense)


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(
        np.float64,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=8),
        elements=st.one_of(st.just(np.nan), st.just(0.0), st.floats(-1e300, 1e300)),
    )
)
def test_dense_round_trip(dense):
    if np.isnan(dense).all():
        with pytest.raises(InputError, match="no observations"):
            Observations.from_dense(dense)
    else:
        obs = Observations.from_dense(dense)
        np.testing.assert_array_equal(to_dense(obs), dense)
        np.testing.assert_array_equal(to_dense(obs.transposed()), dense.T)


def test_stored_zeros_are_observations():
    matrix = sp.csr_matrix((np.array([0.0, 2.0, 0.0]), np.array([0, 2, 1]), np.array([0, 2, 3])), shape=(2, 3))
    for given_matrix in (matrix, matrix.tocsc(), matrix.tocoo()):
        assert Observations.from_scipy(given_matrix).n_observed == 3
    assert Observations.from_dense([[0, 0], [0, 1]]).n_observed == 4
    assert Observations.from_coo([0], [0], [0.0]).values.tolist() == [0.0]


@pytest.mark.parametrize("index_dtype", [np.int8, np.int32, np.int64, np.uint8, np.uint32, np.uint64])
def test_unsorted_columns_are_sorted(index_dtype):
    indptr, indices = np.array([0, 3, 3, 5], index_dtype), np.array([4, 0, 2, 1, 0], index_dtype)
    obs = Observations.from_csr(indptr, indices, [4.0, 0.5, 2.0, 1.0, 10.0], (3, 5))
    assert obs.indices.tolist() == [0, 2, 4, 0, 1]
    assert obs.values.tolist() == [0.5, 2.0, 4.0, 10.0, 1.0]
    assert obs.row_counts.tolist() == [3, 0, 2]


def test_value_dtypes():
    assert Observations.from_dense(np.ones((2, 2), np.float32)).dtype == np.float32
    assert Observations.from_dense(np.ones((2, 2), np.float16)).dtype == np.float64
    assert Observations.from_dense(np.ones((2, 2), ">f8")).values.dtype.isnative
    assert Observations.from_dense([[1, 2], [3, 4]]).values.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert Observations.from_coo([0], [1], np.array([2.0], np.float32)).dtype == np.float32
    assert Observations.from_scipy(sp.csr_matrix(np.eye(2, dtype=np.int16))).dtype == np.float64
    assert Observations.from_coo([0.0, 1.0], [1.0, 0.0], [1, 2]).n_observed == 2  # whole floats are positions


def test_masked_entries_are_missing():
    matrix = np.ma.masked_array([[1, 2], [3, 4]], mask=[[False, True], [False, False]])
    np.testing.assert_array_equal(to_dense(Observations.from_dense(matrix)), [[1.0, np.nan], [3.0, 4.0]])
    single = np.ma.masked_array(np.ones((1, 2), np.float32), mask=[[True, False]])
    assert Observations.from_dense(single).dtype == np.float32


def test_shape_of_triples():
    assert Observations.from_coo([2, 0], [1, 4], [1.0, 2.0]).shape == (3, 5)
    obs = Observations.from_coo([2], [1], [1.0], (6, 9))
    assert obs.shape == (6, 9)
    assert obs.row_counts.tolist() == [0, 0, 1, 0, 0, 0]
    assert obs.col_counts.tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("layout", ["F", "strided", "reversed", "readonly"])
def test_memory_layout_does_not_matter(layout):
    dense = make_dense((6, 5))
    wide = np.full((12, 10), 7.0)
    wide[::2, ::2] = dense
    readonly = dense.copy()
    readonly.flags.writeable = False
    matrix = {
        "F": np.asfortranarray(dense),
        "strided": wide[::2, ::2],
        "reversed": dense[::-1, ::-1].copy()[::-1, ::-1],
        "readonly": readonly,
    }[layout]
    obs = Observations.from_dense(matrix)
    np.testing.assert_array_equal(to_dense(obs), dense)
    assert obs.values.flags.c_contiguous and obs.values.flags.writeable


def test_callers_arrays_are_neither_changed_nor_held():
    rows, cols, values = np.array([1, 0, 1]), np.array([1, 0, 0]), np.array([3.0, 1.0, 2.0])
    indptr, indices, data = np.array([0, 1, 3]), np.array([0, 1, 0], np.int32), np.array([1.0, 3.0, 2.0])
    dense = np.array([[1.0, np.nan], [2.0, 3.0]])
    matrix = sp.csr_matrix((data, indices, indptr), shape=(2, 2))
    arrays = [rows, cols, values, indptr, indices, data, dense, matrix.data, matrix.indices, matrix.indptr]
    before = [array.copy() for array in arrays]
    made = [
        Observations.from_coo(rows, cols, values, (2, 2)),
        Observations.from_csr(indptr, indices, data, (2, 2)),
        Observations.from_dense(dense),
        Observations.from_scipy(matrix),
        Observations.from_csr(np.array([0, 1, 3]), np.array([0, 0, 1], np.int32), values, (2, 2)),
    ]
    for array, old in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, old)
    for obs in made:
        for own in (obs.indptr, obs.indices, obs.values):
            assert not any(np.shares_memory(own, array) for array in arrays)


def test_readonly_sparse_input():
    parts = [np.array([0, 2, 3]), np.array([1, 0, 0], np.int32), np.array([1.0, 2.0, 3.0])]
    for part in parts:
        part.flags.writeable = False
    obs = Observations.from_csr(*parts, (2, 2))
    assert obs.values.tolist() == [2.0, 1.0, 3.0]
    obs = Observations.from_coo(np.repeat([0, 1], [2, 1]), parts[1], parts[2])
    assert obs.values.tolist() == [2.0, 1.0, 3.0]


def test_names():
    obs = Observations.from_dense([[1.0, 2.0]], row_names=[7], col_names=np.array(["a", "ü"]))
    assert obs.row_names.tolist() == ["7"] and obs.col_names.tolist() == ["a", "ü"]
    swapped = obs.transposed()
    assert swapped.row_names.tolist() == ["a", "ü"] and swapped.col_names.tolist() == ["7"]
    unsorted = Observations.from_coo([0, 0], [1, 0], [1.0, 2.0], row_names=["r"], col_names=["a", "b"])
    assert unsorted.col_names.tolist() == ["a", "b"]
    with pytest.raises(InputError, match="col_names must hold 2 names, got 1"):
        Observations.from_dense([[1.0, 2.0]], col_names=["a"])


# --- refusing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "cols", "values", "shape", "message"),
    [
        ([0, 1, 0], [1, 1, 1], [1, 2, 3], None, r"1 duplicated observations, the first at row 0, column 1 \(entries 0"),
        ([0, 3], [0, 0], [1, 2], (3, 1), r"row number 3 \(entry 1\) is outside 0…2"),
        ([0, 0], [0, -1], [1, 2], (3, 2), r"column number -1 \(entry 1\) is outside 0…1"),
        ([0], [0], [np.nan], None, "must be finite, got nan at row 0, column 0"),
        ([1, 0], [0, 2], [1, -np.inf], None, "must be finite, got -inf at row 0, column 2"),
        ([], [], [], None, "no observations"),
        ([], [], [], (2, 2), "no observations"),
        ([0], [0, 1], [1], None, "equally long"),
        ([[0]], [[0]], [[1.0]], None, "1-D"),
        ([0.5], [0], [1], None, "rows must be whole numbers"),
        ([np.inf], [0], [1], None, "rows must be whole numbers"),
        ([np.nan], [0], [1], None, "rows must be whole numbers"),
        ([1e300], [0], [1], None, "rows must be whole numbers"),
        ([True], [0], [1], None, "rows must be whole numbers"),
        (["a"], [0], [1], None, "rows must be whole numbers"),
        ([0], [0], ["x"], None, "values must be numbers"),
        ([0], [0], [1j], None, "must be real"),
        ([0], [0], [1.0], (0, 3), "the matrix is empty"),
        ([0], [0], [1.0], (2, -1), "the matrix is empty"),
        ([0], [0], [1.0], (2,), "shape must be two whole numbers"),
        ([0], [0], [1.0], 5, "shape must be two whole numbers"),
        ([0], [0], [1.0], (2.5, 2), "shape must be two whole numbers"),
    ],
)
def test_bad_triples(rows, cols, values, shape, message):
    with pytest.raises(InputError, match=message):
        Observations.from_coo(rows, cols, values, shape)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.full((2, 2), np.nan), "no observations"),
        (np.array([[1.0, np.inf]]), "must be finite, got inf at row 0, column 1"),
        (np.ones(3), "2 dimensions .* got 1"),
        (np.ones((2, 2, 2)), "got 3"),
        (np.ones((0, 3)), "the matrix is empty"),
        (np.ones((3, 0)), "the matrix is empty"),
        ([[1, 2], [3]], "must be numbers"),
        ([["a"]], "must be numbers"),
        ([[1j]], "must be real"),
        (None, "2 dimensions|must be numbers"),
    ],
)
def test_bad_dense(matrix, message):
    with pytest.raises(InputError, match=message):
        Observations.from_dense(matrix)


@pytest.mark.parametrize(
    ("indptr", "indices", "message"),
    [
        ([0, 2], [0, 1], "n_rows \\+ 1 = 3 entries"),
        ([1, 2, 2], [0, 1], "must rise"),
        ([0, 1, 1], [0, 1], "must rise"),
        ([0, 3, 2], [0, 1], "must rise"),
        (np.array([0, 3, 2], np.uint64), [0, 1], "must rise"),
        ([0, 1, 2], [0, 2], r"column number 2 \(entry 1\) is outside 0…1"),
        ([0, 2, 2], [1, 1], "duplicated"),
        (np.array([0, 2, 2], np.uint32), np.array([1, 1], np.uint32), "duplicated"),
        ([0, 1, 2], [0], "equally long"),
        ([0, 0.5, 2], [0, 1], "indptr must be whole numbers"),
        ([0, 1, 2], np.array([0, 2**64 - 1], np.uint64), "is outside"),
    ],
)
def test_bad_compressed_rows(indptr, indices, message):
    with pytest.raises(InputError, match=message):
        Observations.from_csr(indptr, indices, [1.0, 2.0], (2, 2))


def test_bad_scipy():
    with pytest.raises(InputError, match=r"wants a 2-D scipy\.sparse matrix, got ndarray"):
        Observations.from_scipy(np.eye(2))
    with pytest.raises(InputError, match="no observations"):
        Observations.from_scipy(sp.csr_matrix((2, 2)))
    with pytest.raises(InputError, match="duplicated"):
        Observations.from_scipy(sp.coo_matrix(([1.0, 2.0], ([0, 0], [1, 1])), shape=(2, 2)))
    twice = sp.csr_matrix((np.array([1.0, 2.0]), np.array([1, 1]), np.array([0, 2, 2])), shape=(2, 2))
    with pytest.raises(InputError, match="duplicated"):
        Observations.from_scipy(twice)
    assert twice.nnz == 2  # not merged behind the caller's back
