"""Reference methods that lin-RFM is compared with, each as its paper has it, compiled and tuned.

They share the package's kernels, observations and results, and stop on observed data alone. The names load on first
use. Layer: above ``estimators``; ``scripts/reproduce_paper.py`` uses them, nothing in the package does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastrfm.baselines.deep_diagonal import DiagonalNetworkResult as DiagonalNetworkResult
    from fastrfm.baselines.deep_diagonal import deep_diagonal_network as deep_diagonal_network
    from fastrfm.baselines.deep_linear import deep_linear_network as deep_linear_network
    from fastrfm.baselines.harmonic_mean import hm_irls as hm_irls
    from fastrfm.baselines.nuclear import nuclear_norm as nuclear_norm
    from fastrfm.baselines.nuclear import nuclear_norm_path as nuclear_norm_path
    from fastrfm.baselines.reweighted import irls as irls
    from fastrfm.baselines.search import search_deep_diagonal_network as search_deep_diagonal_network
    from fastrfm.baselines.search import search_deep_linear_network as search_deep_linear_network

_HOMES = {
    "DiagonalNetworkResult": "fastrfm.baselines.deep_diagonal",
    "deep_diagonal_network": "fastrfm.baselines.deep_diagonal",
    "deep_linear_network": "fastrfm.baselines.deep_linear",
    "hm_irls": "fastrfm.baselines.harmonic_mean",
    "irls": "fastrfm.baselines.reweighted",
    "nuclear_norm": "fastrfm.baselines.nuclear",
    "nuclear_norm_path": "fastrfm.baselines.nuclear",
    "search_deep_diagonal_network": "fastrfm.baselines.search",
    "search_deep_linear_network": "fastrfm.baselines.search",
}

__all__ = [
    "DiagonalNetworkResult",
    "deep_diagonal_network",
    "deep_linear_network",
    "hm_irls",
    "irls",
    "nuclear_norm",
    "nuclear_norm_path",
    "search_deep_diagonal_network",
    "search_deep_linear_network",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fastrfm.baselines' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
