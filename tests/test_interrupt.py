"""Ctrl-C waits for a safe place, and is never lost."""

from __future__ import annotations

import os
import signal
import threading

import numpy as np
import pytest

from fastrfm import Observations, complete
from fastrfm._interrupt import check, deferred


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_the_first_press_waits_for_the_check():
    reached = []
    with pytest.raises(KeyboardInterrupt), deferred():
        press()
        reached.append("after the press")
        check()
        reached.append("after the check")
    assert reached == ["after the press"]
    check()  # forgotten once raised
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_press_without_check_strikes_at_the_end():
    with pytest.raises(KeyboardInterrupt), deferred():
        press()


def test_the_second_press_strikes_at_once():
    reached = []
    with pytest.raises(KeyboardInterrupt), deferred():
        press()
        press()
        reached.append("after the second")
    assert reached == []


def test_a_handler_of_the_program_and_other_threads_are_left_alone():
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append("theirs"))
    try:
        with deferred():
            press()
            check()
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == ["theirs"]
    thread = threading.Thread(target=lambda: seen.append(deferred().__enter__()))
    thread.start()
    thread.join()
    assert seen == ["theirs", None]


@pytest.mark.parametrize("method", ["dense", "factored"])
def test_a_completion_stops_between_row_blocks(monkeypatch, method):
    monkeypatch.setattr("fastrfm.blocks.BLOCK_ENTRIES", 10)
    observations = Observations.from_dense(np.outer(np.arange(1.0, 30.0), np.arange(1.0, 9.0)))
    seen = []

    def third(iteration):
        seen.append(iteration.iteration)
        if iteration.iteration == 3:
            press()

    with pytest.raises(KeyboardInterrupt):
        complete(observations, method=method, tol=0.0, callback=third)
    assert seen == [1, 2, 3]
