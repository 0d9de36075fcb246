"""Ctrl-C at a safe place: between two row blocks, never inside a kernel, its compilation or a library's callback.

``solvers.completion`` holds ``deferred`` while it works; ``observations`` calls ``check`` before it hands out a row
block. A KeyboardInterrupt that strikes inside a callback from compiled code can be lost or leave that code broken.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_is_asked = False


@contextmanager
def deferred() -> Iterator[None]:
    """Hold the first Ctrl-C until :func:`check` or the end of the block; a second one strikes at once.

    Does nothing outside the main thread, or where the program handles SIGINT in its own way.
    """
    global _is_asked
    is_ours = threading.current_thread() is threading.main_thread()
    if not is_ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def ask(number: int, frame: object) -> None:
        global _is_asked
        if _is_asked:
            raise KeyboardInterrupt
        _is_asked = True

    signal.signal(signal.SIGINT, ask)
    try:
        yield
        check()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _is_asked = False


def check() -> None:
    """Raise KeyboardInterrupt if Ctrl-C was pressed since :func:`deferred` began."""
    if _is_asked and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt
