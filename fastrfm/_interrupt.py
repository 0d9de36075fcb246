"""Ctrl-C at a safe place: between two row blocks, never inside a kernel, its compilation or a library's callback.

``solvers.completion`` holds ``deferred`` while it works; ``observations`` calls ``check`` before it hands out a row
block. A KeyboardInterrupt that strikes inside a callback from compiled code can be lost or leave that code broken.
``terminating``, around a whole command, lets SIGTERM take the same way, so that no file aside stays behind.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

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


@contextmanager
def terminating() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C would, at a safe place and with files aside removed, as exit status 143.

    Does nothing outside the main thread, or where the program handles SIGTERM in its own way.
    """
    is_ours = threading.current_thread() is threading.main_thread()
    if not is_ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    is_ended = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal is_ended
        is_ended = True
        on_ctrl_c = signal.getsignal(signal.SIGINT)
        if not callable(on_ctrl_c):  # ignored, as in a shell's background job
            raise KeyboardInterrupt
        on_ctrl_c(signal.SIGINT, frame)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt:
        if is_ended:
            raise SystemExit(128 + signal.SIGTERM) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
