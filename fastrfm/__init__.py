"""Low-rank matrix completion by linear recursive feature machines (lin-RFM), compiled.

The public names load on first use, so that ``import fastrfm`` and ``fastrfm --help`` cost little.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastrfm.estimators import MatrixCompletion as MatrixCompletion
    from fastrfm.low_rank_regression import LowRankRegression as LowRankRegression
    from fastrfm.measurements import RankOneMeasurements as RankOneMeasurements
    from fastrfm.observations import Observations as Observations
    from fastrfm.options import AUTOMATIC as AUTOMATIC
    from fastrfm.results import CompletionResult as CompletionResult
    from fastrfm.results import Offsets as Offsets
    from fastrfm.solvers.completion import complete as complete
    from fastrfm.sparse_cross_validation import SparseRegressionCV as SparseRegressionCV
    from fastrfm.sparse_regression import SparseRegression as SparseRegression
    from fastrfm.sparse_regression import sparse_regression_path as sparse_regression_path
    from fastrfm.splits import split_by_group as split_by_group
    from fastrfm.splits import split_by_time as split_by_time
    from fastrfm.store import open_observations as open_observations
    from fastrfm.store import read_result as read_result
    from fastrfm.store import write_observations as write_observations
    from fastrfm.store import write_result as write_result
    from fastrfm.uncertainty import prediction_intervals as prediction_intervals
    from fastrfm.uncertainty import standard_errors as standard_errors

__version__ = "0.1.0"

_HOMES = {
    "AUTOMATIC": "fastrfm.options",
    "CompletionResult": "fastrfm.results",
    "LowRankRegression": "fastrfm.low_rank_regression",
    "MatrixCompletion": "fastrfm.estimators",
    "Observations": "fastrfm.observations",
    "Offsets": "fastrfm.results",
    "RankOneMeasurements": "fastrfm.measurements",
    "SparseRegression": "fastrfm.sparse_regression",
    "SparseRegressionCV": "fastrfm.sparse_cross_validation",
    "complete": "fastrfm.solvers.completion",
    "open_observations": "fastrfm.store",
    "prediction_intervals": "fastrfm.uncertainty",
    "read_result": "fastrfm.store",
    "sparse_regression_path": "fastrfm.sparse_regression",
    "split_by_group": "fastrfm.splits",
    "split_by_time": "fastrfm.splits",
    "standard_errors": "fastrfm.uncertainty",
    "write_observations": "fastrfm.store",
    "write_result": "fastrfm.store",
}

__all__ = [
    "AUTOMATIC",
    "CompletionResult",
    "LowRankRegression",
    "MatrixCompletion",
    "Observations",
    "Offsets",
    "RankOneMeasurements",
    "SparseRegression",
    "SparseRegressionCV",
    "complete",
    "open_observations",
    "prediction_intervals",
    "read_result",
    "sparse_regression_path",
    "split_by_group",
    "split_by_time",
    "standard_errors",
    "write_observations",
    "write_result",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fastrfm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
