"""The adjoint sweep on a device equals the processor's, and continues what earlier blocks left."""

from __future__ import annotations

import numpy as np
import pytest
from numba import cuda

from fastrfm import _cuda
from fastrfm.kernels import adjoint as host
from fastrfm.kernels.cuda import adjoint as device

TOLERANCE = {np.float32: 2e-6, np.float64: 1e-14}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize(
    ("counts", "k", "b"), [([0], 1, 1), ([0, 3, 7, 0, 1, 5, 2], 0, 3), ([7, 1], 1, 1), ([5, 7, 0, 1, 2, 6], 4, 9)]
)
def test_adjoint_columns(counts, k, b, is_weighted, dtype):
    rng = np.random.default_rng(k)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    index_type = np.int64 if b == 9 else np.int32
    indices = np.concatenate([*(np.sort(rng.permutation(7)[:n]) for n in counts), []]).astype(index_type)
    values = rng.standard_normal(indices.size).astype(np.float32)
    weights = np.exp(rng.standard_normal(indices.size)) if is_weighted else np.empty(0)
    coefficients, basis = rng.standard_normal((7, k + 2)), rng.standard_normal((len(counts), k + 1))
    directions, expected = rng.standard_normal((7, b)), rng.standard_normal((len(counts), b))
    out = cuda.to_device(expected.astype(dtype))
    entries = np.array([0, len(counts)]), indptr, indices, values, weights
    device.add_adjoint_columns(
        *entries, coefficients.astype(dtype), basis.astype(dtype), k, 0.6, directions.astype(dtype), out
    )
    host.add_adjoint_columns(*entries, coefficients, basis, k, 0.6, directions, expected)
    np.testing.assert_allclose(out.copy_to_host(), expected, rtol=0, atol=TOLERANCE[dtype] * np.abs(expected).max())


def test_columns_longer_than_a_chunk_do_not_depend_on_row_blocks():
    rng = np.random.default_rng(0)
    coefficients, basis = rng.standard_normal((70, 3)), rng.standard_normal((1, 3))
    directions, values = rng.standard_normal((70, 5)), rng.standard_normal(70)
    expected, whole, parts = np.zeros((1, 5)), np.zeros((1, 5)), np.zeros((1, 5))

    def add(kernel, first, stop, out):
        rows = np.arange(stop - first)
        kernel.add_adjoint_columns(
            np.array([0, 1]), np.array([0, stop - first]), rows, values[first:stop], np.empty(0),
            coefficients[first:stop], basis, 3, 0.8, directions[first:stop], out,
        )  # fmt: skip

    add(host, 0, 70, expected)
    add(device, 0, 70, whole)
    for first, stop in ((0, 11), (11, 43), (43, 70)):
        add(device, first, stop, parts)
    np.testing.assert_allclose(whole, expected, rtol=1e-12)
    np.testing.assert_allclose(parts, whole, rtol=1e-14)


def test_shared_memory_suffices():
    for k in (0, 1, 64, 320, 1000):
        shape = device.add_adjoint_columns.launch(*[np.zeros(1)] * 7, k, 1.0, None, np.zeros((1, 1)))
        assert shape.n_blocks == 0 and shape.shared_bytes + 124 * 8 <= _cuda.MOST_SHARED_BYTES
