"""Marker ``compiled_only``: tests too large for Python loops are skipped under ``NUMBA_DISABLE_JIT=1``."""

from __future__ import annotations

import numba
import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "compiled_only: too large for NUMBA_DISABLE_JIT=1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not numba.config.DISABLE_JIT:
        return
    from fastrfm.solvers import selection

    selection._LIMIT_WORK = 0.0  # fits to a limit take some thousand iterations: too many for Python loops
    skip = pytest.mark.skip(reason="too large without compilation")
    for item in items:
        if item.get_closest_marker("compiled_only"):
            item.add_marker(skip)
