"""The engine's thread: requests come in at any time and run together, a step at a time."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from swift_core.errors import EngineError, SwiftError
from swift_core.protocols import Running

from swift_infer.engines.lines import Job, Line

T = TypeVar("T")
Work = list[tuple[Job, Line]]

# Tokens of prompts that are computed between two steps.
_PREFILL = 4096

logger = logging.getLogger(__name__)


class Runner(Protocol):
    """What the thread does with a model."""

    def fits(self, job: Job, work: Work) -> bool:
        """Say whether a request can run beside others."""
        ...

    def begin(self, jobs: Sequence[Job]) -> Work:
        """Compute prompts, write the first token of every answer, and return the answers that go on."""
        ...

    def step(self, work: Work) -> None:
        """Write one token of each answer."""
        ...

    def leave(self, work: Work, kept: Sequence[int]) -> None:
        """Forget all rows but these."""
        ...

    def session(self) -> AbstractContextManager[None]:
        """Return what surrounds the time in which answers are written."""
        ...


@dataclass(frozen=True, slots=True)
class _Command:
    act: Callable[[], Any]
    running: Running
    done: Future[Any]


class Scheduler:
    """Runs requests on one thread of its own, which starts with the first one.

    Args:
        runner: has the model.
        max_rows: answers that are written at the same time.
        max_tokens: tokens whose keys may be held; a request that needs more runs alone.
    """

    def __init__(self, runner: Runner, *, max_rows: int, max_tokens: int | None = None) -> None:
        self._runner, self._max_rows, self._max_tokens = runner, max_rows, max_tokens
        self._change = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._commands: deque[_Command] = deque()
        self._work: Work = []
        self._thread: threading.Thread | None = None
        self._closed = False
        self._paused = False
        self.error: BaseException | None = None

    @property
    def running(self) -> int:
        """Return how many answers are being written."""
        return len(self._work)

    @property
    def waiting(self) -> int:
        """Return how many requests wait."""
        return len(self._waiting)

    @property
    def paused(self) -> bool:
        """Say whether nothing new begins."""
        return self._paused

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take requests.

        Raises:
            EngineError: when the scheduler is closed.
        """
        with self._change:
            self._check_open()
            self._waiting.extend(jobs)
            self._start()
            self._change.notify_all()

    def call(self, act: Callable[[], T], running: Running = "keep") -> T:
        """Do something with the model between two steps and return what it returns.

        Args:
            act: called in the engine's thread.
            running: what becomes of answers that are being written. While paused they stay as they are.

        Raises:
            EngineError: when the scheduler is closed.
        """
        if threading.current_thread() is self._thread:
            return act()
        done: Future[T] = Future()
        with self._change:
            self._check_open()
            self._commands.append(_Command(act, running, done))
            self._start()
            self._change.notify_all()
        return done.result()

    def pause(self, running: Running) -> None:
        """Begin nothing new; return once running answers have ended, were aborted or stand still."""

        def act() -> None:
            self._paused = True

        self.call(act, running)

    def resume(self) -> None:
        """Go on."""
        with self._change:
            self._paused = False
            self._change.notify_all()

    def abort(self, request_id: str | None) -> int:
        """Ask requests of that name, or all, to end; return how many answers are concerned."""
        with self._change:
            jobs = {id(job): job for job in [*self._waiting, *(job for job, _ in self._work)]}
            chosen = [job for job in jobs.values() if request_id is None or job.request_id == request_id]
            found = sum(len(job.open) for job in chosen)
            for job in chosen:
                job.abort()
            self._change.notify_all()
        return found

    def wake(self) -> None:
        """Look again at what was asked to end."""
        with self._change:
            self._change.notify_all()

    def close(self) -> None:
        """End everything and wait for the thread."""
        with self._change:
            self._closed = True
            for job in [*self._waiting, *(job for job, _ in self._work)]:
                job.abort()
            self._change.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _check_open(self) -> None:
        if self.error is not None:
            raise _dead() from self.error
        if self._closed:
            raise EngineError("the engine is closed", fix="make a new one")

    def _start(self) -> None:
        if self._thread is None:
            # A daemon: an engine that nobody closed does not keep the program from ending.
            self._thread = threading.Thread(target=self._main, name="swift-engine", daemon=True)
            self._thread.start()

    # ---- the engine's thread ---------------------------------------------------------------------------------------

    def _main(self) -> None:
        while True:
            with self._change:
                while not self._due():
                    self._change.wait()
                if self._closed and not self._work and not self._waiting:
                    self._refuse_commands()
                    return
            try:
                with self._runner.session():
                    while self._due() and self._round():
                        pass
            except Exception as error:
                # Whatever it was, nobody may wait for an answer that never comes.
                logger.exception("the engine's thread has died")
                self._die(error)
                return

    def _due(self) -> bool:
        ended = any(job.aborted for job in [*self._waiting, *(job for job, _ in self._work)])
        return self._closed or bool(self._commands) or ended or (not self._paused and bool(self._work or self._waiting))

    def _round(self) -> bool:
        """Do one step of everything; return False when the session is to end."""
        self._drop_aborted()
        self._obey()
        if self._paused or (self._closed and not self._work and not self._waiting):
            return False
        held = bool(self._commands)  # a command waits for the running answers: begin nothing new
        try:
            if not held:
                self._admit()
            if self._work:
                self._runner.step(self._work)
        except SwiftError as error:
            self._fail_running(error)
        self._leave()
        return bool(self._work) or (bool(self._waiting) and not held)

    def _drop_aborted(self) -> None:
        with self._change:
            gone = [job for job in self._waiting if job.aborted]
            if gone:
                self._waiting = deque(job for job in self._waiting if not job.aborted)
        for job in gone:
            job.close()
        for job, _ in self._work:
            if job.aborted:
                job.close()
        self._leave()

    def _obey(self) -> None:
        while self._commands:
            command = self._commands[0]
            if self._work and command.running == "wait" and not self._paused:
                return
            if command.running == "abort":
                for job, _ in self._work:
                    job.close()
                self._leave()
            with self._change:
                self._commands.popleft()
            try:
                command.done.set_result(command.act())
            except BaseException as error:  # noqa: BLE001  handed to the caller, who raises it
                command.done.set_exception(error)

    def _admit(self) -> None:
        jobs: list[Job] = []
        with self._change:
            rows, tokens = len(self._work), sum(job.room for job in {id(job): job for job, _ in self._work}.values())
            while self._waiting:
                job = self._waiting[0]
                rows, tokens = rows + len(job.lines), tokens + job.room
                alone = not self._work and not jobs
                if jobs and sum(len(other.prompt) for other in jobs) + len(job.prompt) > _PREFILL:
                    break  # others do not wait for more than that between two of their tokens
                over = rows > self._max_rows or (self._max_tokens is not None and tokens > self._max_tokens)
                if not alone and (over or not self._runner.fits(job, [*self._work, *((other, other.lines[0]) for other in jobs)])):
                    break
                jobs.append(self._waiting.popleft())
        if not jobs:
            return
        try:
            self._work += self._runner.begin(jobs)
        except SwiftError as error:
            for job in jobs:
                job.fail(error)
        except BaseException:
            with self._change:
                self._waiting.extendleft(reversed(jobs))  # they fail with all others
            raise

    def _leave(self) -> None:
        kept = [row for row, (_, line) in enumerate(self._work) if line.answer.finish_reason is None]
        if len(kept) < len(self._work):
            self._runner.leave(self._work, kept)
            self._work = [self._work[row] for row in kept]

    def _fail_running(self, error: SwiftError) -> None:
        for job, _ in self._work:
            job.fail(error)
            job.close()

    def _refuse_commands(self) -> None:
        for command in self._commands:
            command.done.set_exception(EngineError("the engine is closed", fix="make a new one"))
        self._commands.clear()

    def _die(self, error: BaseException) -> None:
        with self._change:
            self.error = error
            jobs = [*self._waiting, *(job for job, _ in self._work)]
            self._waiting.clear()
            self._work = []
            commands, self._commands = list(self._commands), deque()
        for job in jobs:
            job.fail(_dead())
        for command in commands:
            command.done.set_exception(error)


def _dead() -> EngineError:
    return EngineError("the engine has died; its log says why", fix="start it again")
