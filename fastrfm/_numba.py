"""The one place that names Numba options: how kernels are compiled, cached and threaded.

Second layer: imports only ``errors``. Kernels use the decorators ``parallel_kernel`` and ``inner`` (parsers
``exact_kernel`` and ``exact_inner``); solvers wrap their loops in ``thread_limit``. Compilation is lazy (an
eager signature would start the OpenMP pool at import and break later forks). Not here: any arithmetic.

Environment: ``FASTRFM_CHECK_BOUNDS=1`` compiles every kernel serially with bounds checks (Numba ignores bounds
checks in parallel kernels). The disk cache does not see that switch: give it its own ``NUMBA_CACHE_DIR``.
"""

from __future__ import annotations

import operator
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numba
from threadpoolctl import ThreadpoolController

from fastrfm.errors import InputError

# Plain fastmath=True would also assume that no NaN or infinity exists, and delete our checks for them.
_FASTMATH = {"reassoc", "contract", "arcp", "nsz"}
CHECKS_BOUNDS = os.environ.get("FASTRFM_CHECK_BOUNDS", "") == "1"


def _compiled(function: Callable[..., Any], **options: Any) -> Any:
    options = {"error_model": "numpy", "fastmath": _FASTMATH, "nogil": True, "cache": True, **options}
    if CHECKS_BOUNDS:
        options.update(boundscheck=True, parallel=False)
    try:
        return numba.njit(**options)(function)
    except RuntimeError as error:
        # Neither the package's folder nor the home is writable: compile in every process instead of failing.
        if "cannot cache" not in str(error):
            raise
        return numba.njit(**{**options, "cache": False})(function)


def parallel_kernel(function: Callable[..., Any]) -> Any:
    """Compile `function` with ``prange`` loops run by threads."""
    return _compiled(function, parallel=True)


def inner(function: Callable[..., Any]) -> Any:
    """Compile `function` for use inside kernels of the same file."""
    return _compiled(function)


def exact_kernel(function: Callable[..., Any]) -> Any:
    """Compile as :func:`parallel_kernel`, every operation rounded as written: for parsers, not for sums."""
    return _compiled(function, parallel=True, fastmath=False)


def exact_inner(function: Callable[..., Any]) -> Any:
    """Compile as :func:`inner`, every operation rounded as written (a division stays one, a zero keeps its sign)."""
    return _compiled(function, fastmath=False)


@cache
def _blas() -> ThreadpoolController:
    # Scanning the loaded libraries costs milliseconds, entering a limit microseconds: scan once.
    import scipy.linalg  # noqa: F401  (loads scipy's own BLAS, which must be under control too)

    return ThreadpoolController()


def available_threads() -> int:
    """Return the largest thread count that kernels can use (``NUMBA_NUM_THREADS``, by default the cores)."""
    return int(vars(numba.config)["NUMBA_NUM_THREADS"])


def check_thread_count(n_threads: int | None) -> int:
    """Return the thread count to use: `n_threads`, or all that are available when it is None.

    Raises
    ------
    InputError
        If `n_threads` is not between 1 and :func:`available_threads`.
    """
    limit = available_threads()
    if n_threads is None:
        return limit
    try:
        is_good = not isinstance(n_threads, bool) and 1 <= operator.index(n_threads) <= limit
    except TypeError:
        is_good = False
    if not is_good:
        raise InputError(f"n_threads must be a whole number between 1 and {limit} (this machine), got {n_threads!r}")
    return int(n_threads)


class _BlasHold:
    """BLAS at one thread while anybody holds it; the limit is the process's, so holders are counted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_holders = 0
        self._limit: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._n_holders == 0:
                self._limit = _blas().limit(limits=1, user_api="blas")
            self._n_holders += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._n_holders -= 1
            if self._n_holders == 0:
                self._limit.restore_original_limits()

    @contextmanager
    def lifted(self, n_threads: int) -> Iterator[None]:
        """Let BLAS use `n_threads` threads, unless another holder relies on one."""
        if n_threads == 1 or not self._lock.acquire(blocking=False):
            yield
            return
        try:
            if self._n_holders > 1:
                yield
            else:
                with _blas().limit(limits=n_threads, user_api="blas"):
                    yield
        finally:
            self._lock.release()


_hold = _BlasHold()


@contextmanager
def thread_limit(n_threads: int) -> Iterator[None]:
    """Run kernels on `n_threads` threads and BLAS on one.

    LAPACK's results change in the last bits with the number of BLAS threads; with BLAS held at one thread the same
    input gives the same bits whatever `n_threads` is. :func:`blas_threads` lifts the limit where that is safe.
    Several Python threads may hold limits at once.
    """
    before = numba.get_num_threads()
    numba.set_num_threads(n_threads)
    try:
        with _hold:
            yield
    finally:
        numba.set_num_threads(before)


def current_threads() -> int:
    """Return the thread count that :func:`thread_limit` has set, or all where nobody has."""
    return int(numba.get_num_threads())


@contextmanager
def blas_threads() -> Iterator[None]:
    """Let BLAS use as many threads as the kernels do; only for calls whose bits do not depend on it (``dsyrk``)."""
    with _hold.lifted(current_threads()):
        yield
