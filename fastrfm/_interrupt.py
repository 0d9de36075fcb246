"""Ctrl-C at a safe place: between two row blocks, never inside a kernel, its compilation or a library's callback.

``solvers.completion`` and ``conversion`` hold ``deferred`` while they work; ``observations`` calls ``check`` before it
hands out a row block. A KeyboardInterrupt that strikes inside a callback from compiled code can be lost or leave that
code broken. ``ending_on_sigterm`` lets a command that has files to remove end by SIGTERM in the same way.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_asked = 0  # the signal that came, if any


@contextmanager
def deferred() -> Iterator[None]:
    """Hold the first Ctrl-C until :func:`check` or the end of the block; a second one strikes at once.

    Inside :func:`ending_on_sigterm` SIGTERM is held alike. Does nothing outside the main thread, or where the program
    handles SIGINT in its own way.
    """
    global _asked
    is_ours = threading.current_thread() is threading.main_thread()
    if not is_ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def ask(number: int, frame: object) -> None:
        global _asked
        if _asked:
            _strike(number)
        _asked = number

    signal.signal(signal.SIGINT, ask)
    holds_sigterm = signal.getsignal(signal.SIGTERM) is _end
    if holds_sigterm:
        signal.signal(signal.SIGTERM, ask)
    try:
        yield
        check()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if holds_sigterm:
            signal.signal(signal.SIGTERM, _end)
        _asked = 0


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Let SIGTERM raise SystemExit with code 143, so that what is under way is cleaned up; main thread only."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def check() -> None:
    """Raise what the signal stands for that came since :func:`deferred` began, if one did."""
    if _asked and threading.current_thread() is threading.main_thread():
        _strike(_asked)


def _strike(number: int) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def _end(number: int, frame: object) -> None:
    _strike(number)
