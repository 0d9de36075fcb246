"""The tangent-space system of two-sided lin-RFM on a device: where the twins of ``kernels.tangent`` are found.

By idea: ``tangent_factors`` (the k x k systems of rows and columns), ``tangent_sweeps`` (what runs over the
observations) and ``tangent_steps`` (conjugate gradients).
"""

from __future__ import annotations

from fastrfm.kernels.cuda.tangent_factors import add_column_grams, factor_columns, factor_rows
from fastrfm.kernels.cuda.tangent_steps import (
    conjugate_gradients,
    finish_gradient,
    finish_step,
    start_conjugate_gradients,
)
from fastrfm.kernels.cuda.tangent_sweeps import eliminated_sweep, multiply_residual, multiply_residual_transposed
from fastrfm.kernels.tangent import factor_size

__all__ = [
    "add_column_grams",
    "conjugate_gradients",
    "eliminated_sweep",
    "factor_columns",
    "factor_rows",
    "factor_size",
    "finish_gradient",
    "finish_step",
    "multiply_residual",
    "multiply_residual_transposed",
    "start_conjugate_gradients",
]
