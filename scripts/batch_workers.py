"""Worker processes that take one job at a time; any of them may die, and the jobs of the others go on.

Flow: ``complete_many`` -> ``Workers.answers`` -> a process started by "spawn" (kernels do not survive a fork) -> the
answer, or what ``when_lost`` makes of a death. Processes are used again; a dead one is replaced. Handlers of signals
only note them, here and in the workers: an exception raised by one is lost where it strikes inside a destructor. This
process looks while it waits for answers, and passes on one SIGINT, which ``fastrfm.complete`` meets between two row
blocks, so that no file is left half written. Workers whose parent was killed stop by themselves. Not here: jobs.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from fastrfm._interrupt import check, deferred

Job = TypeVar("Job")
Answer = TypeVar("Answer")
STOPS = (signal.SIGINT, signal.SIGTERM)
_GRACE = 5.0  # seconds to end in after being asked to


class Workers(Generic[Job, Answer]):
    """Up to `n_workers` processes that call `work`, a function of some module or a partial of one.

    `when_lost` is called here with a job whose worker died and the reason in words, and returns the answer instead.
    `stop` ends the wait for answers. Work that takes long is to call ``fastrfm._interrupt.check`` now and then.
    """

    def __init__(
        self, work: Callable[[Job], Answer], n_workers: int, *, when_lost: Callable[[Job, str], Answer], stop: Stop
    ) -> None:
        self._work = work
        self._n_workers = n_workers
        self._when_lost = when_lost
        self._stop = stop
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
        """Yield the position of each job and its answer, in the order in which they are ready.

        Raises
        ------
        KeyboardInterrupt
            With the signal's name, once `stop` was asked for.
        """
        waiting = deque(range(len(jobs)))
        while waiting or self._busy:
            while waiting and len(self._busy) < self._n_workers:
                position = waiting.popleft()
                self._give(position, jobs[position])
            ready = connection.wait([*self._busy, self._stop.fileno()])
            self._stop.check()
            for pipe in ready:
                yield self._take(pipe, jobs)
                self._stop.check()

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
    # Out of the terminal's group: Ctrl-C there reaches the parent alone, who passes it on. It would strike twice
    # otherwise, and the second time inside a kernel.
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with suppress(EOFError, KeyboardInterrupt, ConnectionError), deferred():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        threading.Thread(target=_follow_parent, daemon=True).start()
        while True:
            job = pipe.recv()
            check()
            pipe.send(work(job))


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


class Stop:
    """SIGINT and SIGTERM as something to wait for, beside others, and to look at; the first one counts."""

    def __enter__(self) -> Stop:
        self._name = ""
        self._ears, self._mouth = os.pipe()
        self._before = {each: signal.signal(each, self._note) for each in STOPS}
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)
        os.close(self._ears)
        os.close(self._mouth)

    def _note(self, number: int, frame: object) -> None:
        if not self._name:
            self._name = signal.Signals(number).name
            os.write(self._mouth, b"!")

    def fileno(self) -> int:
        """Return what becomes readable once a signal came."""
        return self._ears

    def check(self) -> None:
        """Raise KeyboardInterrupt with the signal's name, if one came."""
        if self._name:
            raise KeyboardInterrupt(self._name)
