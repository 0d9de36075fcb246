"""Tests of device kernels in Numba's simulator, which a process has either for all kernels or for none.

``NUMBA_ENABLE_CUDASIM=1 python -m pytest tests/simulated`` runs them; ``tests/test_simulated.py`` does that in a
process of its own, and plain runs leave this folder out.
"""

from __future__ import annotations

import os

if os.environ.get("NUMBA_ENABLE_CUDASIM", "0") in ("", "0"):
    collect_ignore_glob = ["test_*.py"]
