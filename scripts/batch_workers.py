"""Worker processes that take one job at a time; any of them may die, and the jobs of the others go on.

Flow: ``complete_many`` -> ``Workers.answers`` -> a process started by "spawn" (kernels do not survive a fork) -> the
answer, or what ``when_lost`` makes of a death. Processes are used again; a dead one is replaced. Stopping is passed on
as one SIGINT, which ``fastrfm.complete`` meets between two row blocks, so that no file is left half written; workers
whose parent was killed stop by themselves. Not here: what a job is.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

Job = TypeVar("Job")
Answer = TypeVar("Answer")
STOPS = (signal.SIGINT, signal.SIGTERM)
_GRACE = 5.0  # seconds to end in after being asked to


class Workers(Generic[Job, Answer]):
    """Up to `n_workers` processes that call `work`, a function of some module or a partial of one.

    `when_lost` is called here with a job whose worker died and the reason in words, and returns the answer instead.
    """

    def __init__(
        self, work: Callable[[Job], Answer], n_workers: int, *, when_lost: Callable[[Job, str], Answer]
    ) -> None:
        self._work = work
        self._n_workers = n_workers
        self._when_lost = when_lost
        self._idle: list[tuple[Connection, BaseProcess]] = []
        self._busy: dict[Connection, tuple[BaseProcess, int]] = {}

    def __enter__(self) -> Workers[Job, Answer]:
        return self

    def __exit__(self, *_: object) -> None:
        idle = [process for _, process in self._idle]
        busy = [process for process, _ in self._busy.values()]
        for process in busy:
            with suppress(ProcessLookupError):
                os.kill(int(process.pid or 0), signal.SIGINT)
        for pipe, _process in self._idle:
            pipe.close()  # which ends an idle worker
        deadline = time.monotonic() + _GRACE
        for process in idle + busy:
            _end(process, deadline - time.monotonic())

    def answers(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Answer]]:
        """Yield the position of each job and its answer, in the order in which they are ready."""
        waiting = deque(range(len(jobs)))
        while waiting or self._busy:
            while waiting and len(self._busy) < self._n_workers:
                position = waiting.popleft()
                self._give(position, jobs[position])
            for pipe in connection.wait(list(self._busy)):
                yield self._take(pipe, jobs)

    def _give(self, position: int, job: Job) -> None:
        self._idle = [worker for worker in self._idle if worker[1].is_alive()]
        pipe, process = self._idle.pop() if self._idle else self._start()
        self._busy[pipe] = process, position
        with suppress(OSError):  # a worker that is dead by now shows when its answer is read
            pipe.send(job)

    def _take(self, pipe: Any, jobs: Sequence[Job]) -> tuple[int, Answer]:
        process, position = self._busy[pipe]
        try:
            answer: Answer = pipe.recv()
        except (EOFError, OSError):
            _end(process, _GRACE)
            answer = self._when_lost(jobs[position], _death_in_words(process.exitcode))
            pipe.close()
        else:
            self._idle.append((pipe, process))
        del self._busy[pipe]
        return position, answer

    def _start(self) -> tuple[Connection, BaseProcess]:
        context = multiprocessing.get_context("spawn")
        mine, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._work), daemon=True)
        resource_tracker.ensure_running()  # starting it with the first process would lift the block below
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # inherited: a worker begins deaf to Ctrl-C
        try:
            process.start()
            theirs.close()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return mine, process


def _serve(pipe: Connection, work: Callable[[Any], Any]) -> None:
    """Answer jobs until the parent closes the pipe, asks to stop or is gone."""
    try:
        # Out of the terminal's group: Ctrl-C there reaches the parent alone, who passes it on. It would strike twice
        # otherwise, and the second time inside a kernel.
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        threading.Thread(target=_follow_parent, daemon=True).start()
        while True:
            pipe.send(work(pipe.recv()))
    except (EOFError, KeyboardInterrupt, ConnectionError):
        return


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(_GRACE)
        os._exit(1)


def _end(process: BaseProcess, seconds: float) -> None:
    process.join(max(seconds, 0.0))
    if process.is_alive():
        process.kill()
        process.join()


def _death_in_words(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"its worker process ended with exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    why = ": killed by hand, or memory ran out: try fewer --workers" if name == "SIGKILL" else ""
    return f"its worker process was ended by {name}{why}"


@contextmanager
def stoppable() -> Iterator[None]:
    """Make SIGTERM a KeyboardInterrupt as Ctrl-C is, each with the signal's name; only the first one strikes."""

    def stop(number: int, frame: object) -> None:
        for each in STOPS:
            signal.signal(each, signal.SIG_IGN)  # cleaning up is not to be interrupted
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {each: signal.signal(each, stop) for each in STOPS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
