"""A penalty in proportion to how many entries rows and columns have: the matrix scaled, its weights scaled back.

With Z = diag(a) X diag(b), a_i = n_i^(γ/2) and b_j the same of columns, a penalty of Z's spectrum is one of X's that
grows with the counts; for the nuclear norm ½ Σ n_i^γ ‖u_i‖² + ½ Σ n_j^γ ‖v_j‖². At γ = 1 that is the weighted-λ
regularisation of ALS (Zhou et al., 2008) and the weighted trace norm (Srebro and Salakhutdinov, 2010). The entries of Z
are a_i b_j y_ij with weights w_ij / (a_i b_j)². Flow: ``selection.Variant`` scales and takes back.
"""

from __future__ import annotations

import numpy as np

from fastrfm.blocks import RowBlocks
from fastrfm.observations import Observations


def count_scales(observations: RowBlocks, count_power: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a, (n_rows, 1), and b, (n_cols, 1), float64, such that the weights keep their sum.

    A row or column without entries is taken to have one: nothing is known of it anyway.
    """
    rows, cols = (np.maximum(counts, 1.0) for counts in (observations.row_counts, observations.col_counts))
    a, b = rows ** (0.5 * count_power), cols ** (0.5 * count_power)
    total = 0.0
    for block in observations.row_blocks():
        weights = block.by_row.weights if observations.is_weighted else 1.0
        total += float(np.sum(weights / np.square(a[block.entry_rows()] * b[block.by_row.indices])))
    common = np.sqrt(total / observations.row_weights.sum())
    return a[:, None] * np.sqrt(common), b[:, None] * np.sqrt(common)


def rescaled(observations: Observations, row_scales: np.ndarray, col_scales: np.ndarray) -> Observations:
    """Return the entries times the scales of their row and column, float64, with weights that undo it."""
    rows, cols, values = observations.to_coo()
    scale = row_scales[rows, 0] * col_scales[cols, 0]
    weights = observations.entry_weights / np.square(scale)
    return observations.with_values(values * scale).with_weights(weights)
