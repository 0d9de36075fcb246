"""Every operation on tall matrices gives on a device what it gives on the processor."""

from __future__ import annotations

import numpy as np
import pytest

from fastrfm.arrays import HOST, HostArrays
from fastrfm.device_arrays import DeviceArrays
from fastrfm.factors import tall_qr
from fastrfm.kernels.residual import predict_pairs

rng = np.random.default_rng(0)
A, B, WIDE = rng.standard_normal((11, 3)), rng.standard_normal((11, 2)), rng.standard_normal((11, 5))
SMALL, FACTORS = rng.standard_normal((3, 2)), np.array([2.0, -1.0, 0.5])


@pytest.fixture(scope="module")
def device():
    return DeviceArrays()


def in_place(name, *more):
    def work(arrays: HostArrays, matrix):
        held = arrays.put(matrix.copy())
        getattr(arrays, name)(
            held, *(arrays.put(part) if isinstance(part, np.ndarray) and part.shape[0] == 11 else part for part in more)
        )
        return held

    return work


CASES = {
    "inner": lambda arrays, a: arrays.inner(arrays.put(a), arrays.put(B)),
    "inner with nothing": lambda arrays, a: arrays.inner(arrays.put(a), arrays.put(B[:, :0])),
    "product": lambda arrays, a: arrays.product(arrays.put(a), SMALL),
    "add_product": lambda arrays, a: in_place("add_product", B, rng_free(2, 3))(arrays, a),
    "transform": in_place("transform", np.arange(9.0).reshape(3, 3)),
    "replace": in_place("replace", WIDE[:, :3].copy()),
    "add": in_place("add", WIDE[:, 1:4].copy(), FACTORS),
    "add all": in_place("add", WIDE[:, 1:4].copy(), -2.0),
    "scale": in_place("scale", FACTORS),
    "scaled": lambda arrays, a: arrays.scaled(arrays.put(a), FACTORS),
    "copy": lambda arrays, a: arrays.copy(arrays.put(a)),
    "columns": lambda arrays, a: arrays.columns(arrays.put(a), 1, 3),
    "no columns": lambda arrays, a: arrays.columns(arrays.put(a), 3, 3),
    "first": lambda arrays, a: arrays.first(arrays.put(a), 7),
    "narrowed": lambda arrays, a: arrays.narrowed(arrays.put(a), 2),
    "widened": lambda arrays, a: arrays.widened(arrays.put(a), 5),
    "padded": lambda arrays, a: arrays.padded(arrays.put(a)),
    "beside": lambda arrays, a: arrays.beside(arrays.put(a), arrays.put(B)),
    "beside nothing": lambda arrays, a: arrays.beside(arrays.put(a[:, :0].copy()), arrays.put(B)),
    "sum_of": lambda arrays, a: arrays.sum_of(arrays.put(np.stack([a, 2.0 * a, -0.5 * a]))),
    "norm": lambda arrays, a: arrays.norm(arrays.put(a)),
    "lengths": lambda arrays, a: arrays.lengths(arrays.put(a)),
    "total": lambda arrays, a: arrays.total(arrays.put(a.ravel())),
    "square_sum": lambda arrays, a: arrays.square_sum(arrays.put(a.ravel()), arrays.put(np.zeros(0))),
    "weighted": lambda arrays, a: arrays.square_sum(arrays.put(a.ravel()), arrays.put(np.linspace(0.5, 2.0, a.size))),
    "trace": lambda arrays, a: arrays.trace(arrays.put(a[:3].copy())),
    "zeros": lambda arrays, a: arrays.zeros(2, 3),
    "qr": lambda arrays, a: tall_qr(arrays.put(a), arrays=arrays)[0],
    "qr of dependent columns": lambda arrays, a: tall_qr(arrays.put(np.column_stack([a, a])), arrays=arrays)[1][:3],
    "qr in place": lambda arrays, a: tall_qr(arrays.put(a.copy()), overwrite=True, arrays=arrays)[1],
}


def rng_free(*shape):
    return np.linspace(-1.0, 1.0, int(np.prod(shape))).reshape(shape)


@pytest.mark.parametrize("name", CASES)
def test_operation(name, device):
    work = CASES[name]
    found = work(device, A)
    found = found if isinstance(found, float) else device.fetch(found)
    np.testing.assert_allclose(found, work(HOST, A), rtol=0, atol=1e-13)


def test_what_is_put_is_a_copy(device):
    matrix = A.copy()
    device.scale(device.put(matrix), 2.0)
    np.testing.assert_array_equal(matrix, A)


def test_twins_are_found_by_name(device):
    assert device.twin(predict_pairs).function.__module__ == "fastrfm.kernels.cuda.residual"
    assert HOST.twin(predict_pairs) is predict_pairs
