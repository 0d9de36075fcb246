"""Tests of device kernels in Numba's simulator, which a process has either for all kernels or for none.

``NUMBA_ENABLE_CUDASIM=1 python -m pytest tests/simulated`` runs them; ``tests/test_simulated.py`` does that in a
process of its own, and plain runs leave this folder out.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

if os.environ.get("NUMBA_ENABLE_CUDASIM", "0") in ("", "0"):
    collect_ignore_glob = ["test_*.py"]
else:
    from numba import cuda
    from numba.cuda.simulator import kernel as simulator_kernel

    # The simulator lets a module's `cuda` mean the running block while one of its functions runs. It takes that back
    # when the first thread leaves a device function of another file than the kernel's, under the feet of the others:
    # count the threads inside, and take it back when the last one leaves.
    _lock = threading.Lock()
    _inside: dict[int, list] = {}

    @contextmanager
    def _swapped_until_all_left(function, block_module) -> Iterator[None]:
        names = function.__globals__
        with _lock:
            entry = _inside.setdefault(id(names), [0, [name for name, value in names.items() if value is cuda]])
            entry[0] += 1
            names.update(dict.fromkeys(entry[1], block_module))
        try:
            yield
        finally:
            with _lock:
                entry[0] -= 1
                if entry[0] == 0:
                    names.update(dict.fromkeys(entry[1], cuda))
                    del _inside[id(names)]

    simulator_kernel.swapped_cuda_module = _swapped_until_all_left
