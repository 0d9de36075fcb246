"""Row blocks of all the awkward kinds: empty rows, one entry, fewer and more entries than directions."""

from __future__ import annotations

import numpy as np

from fastrfm.blocks import Compressed

TOLERANCE = {np.float32: 2e-5, np.float64: 1e-12}


def compressed(counts, n_other, *, weighted=False, index_dtype=np.int32, value_dtype=np.float64, seed=0) -> Compressed:
    """Return random entries, `counts` of them in each group, at ascending positions below n_other."""
    rng = np.random.default_rng(seed)
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    indices = [np.sort(rng.choice(n_other, n, replace=False)) for n in counts]
    indices = np.concatenate([*indices, []]).astype(index_dtype)
    values = rng.standard_normal(indices.size).astype(value_dtype)
    weights = rng.uniform(0.2, 3.0, indices.size) if weighted else np.zeros(0)
    return Compressed(indptr, indices, values, weights)


def parts_of(entries: Compressed) -> tuple[np.ndarray, ...]:
    """Return what kernels take: bounds, indptr, indices, values, weights."""
    return entries.bounds, entries.indptr, entries.indices, entries.values, entries.weights


def assert_near(found, expected, dtype, size=None) -> None:
    """Compare with the tolerance of the number type, relative to the largest element expected."""
    size = max(np.abs(expected).max(initial=0.0), 1e-300) if size is None else size
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[dtype] * size)
