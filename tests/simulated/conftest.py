"""Tests of device kernels in Numba's simulator, which a process has either for all kernels or for none.

``NUMBA_ENABLE_CUDASIM=1 python -m pytest tests/simulated`` runs them; ``tests/test_simulated.py`` does that in a
process of its own, and plain runs leave this folder out.

The simulator runs the threads of a block as threads of Python, and polls for those that wait for each other: at
Python's usual 5 ms between two of them every wait takes as long, at 10 µs a test takes a tenth of the time. Two places
in the simulator are not made for threads that come that close; they are mended here.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from contextlib import contextmanager


def _mend_simulator():
    import numpy as np
    from numba import cuda, types
    from numba.cuda.simulator import kernel
    from numba.cuda.simulator.kernelapi import FakeCUDAShared
    from numba.np.numpy_support import as_dtype

    lock, depths = threading.Lock(), Counter()
    dynamic_array = FakeCUDAShared.array

    def array(self, shape, dtype):
        """Make one shared array for a line of a kernel and a block: two threads at once would make two."""
        if shape == 0:
            return dynamic_array(self, shape, dtype)
        caller = sys._getframe(1)
        place = caller.f_code.co_filename, caller.f_lineno
        with lock:
            if place not in self._allocations:
                self._allocations[place] = np.empty(shape, as_dtype(dtype) if isinstance(dtype, types.Type) else dtype)
            return self._allocations[place]

    @contextmanager
    def swapped_cuda_module(function, fake):
        """Let a function see the simulated device until the last thread has left it, not the first that came."""
        names = function.__globals__
        with lock:
            depths[id(names)] += 1
            names.update({name: fake for name, value in names.items() if value is cuda})
        try:
            yield
        finally:
            with lock:
                depths[id(names)] -= 1
                if depths[id(names)] == 0:
                    names.update({name: cuda for name, value in names.items() if value is fake})

    FakeCUDAShared.array, kernel.swapped_cuda_module = array, swapped_cuda_module
    sys.setswitchinterval(1e-5)


if os.environ.get("NUMBA_ENABLE_CUDASIM", "0") in ("", "0"):
    collect_ignore_glob = ["test_*.py"]
else:
    _mend_simulator()
