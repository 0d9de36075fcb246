"""The adjoint sweep on a device equals the processor's."""

from __future__ import annotations

import numpy as np
import pytest
from blocks_of_rows import assert_near, compressed, parts_of

from fastrfm._cuda import fetch, put
from fastrfm.kernels import adjoint as host
from fastrfm.kernels.cuda import adjoint as device


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("k", "b"), [(0, 2), (1, 1), (3, 5)])
def test_adjoint_columns(k, b, weighted, dtype):
    entries = compressed([3, 0, 9, 1, 4, 2, 7], 10, weighted=weighted, index_dtype=np.int64 if k == 1 else np.int32)
    rng = np.random.default_rng(1)
    coefficients, basis = rng.standard_normal((10, k + 1)), rng.standard_normal((7, k + 1))
    directions, out = rng.standard_normal((10, b)), rng.standard_normal((7, b))
    held = put(out.astype(dtype))
    arguments = [part.astype(dtype) for part in (coefficients, basis)]
    device.add_adjoint_columns(*parts_of(entries), *map(put, arguments), k, 0.4, put(directions.astype(dtype)), held)
    host.add_adjoint_columns(*parts_of(entries), coefficients, basis, k, 0.4, directions, out)
    assert_near(fetch(held), out, dtype)
