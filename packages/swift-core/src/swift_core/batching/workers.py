"""Encoding in several processes: the same result, in the same order, as in one."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, cast

import torch

from swift_core.batching.encode import CHUNK, Encoder, EncodeReport
from swift_core.batching.tokens import is_plain, pack
from swift_core.errors import DataError
from swift_core.protocols import EncodedSample, Sample


@dataclass(frozen=True, slots=True)
class Chunk:
    """Encoded samples that belong together.

    Attributes:
        arrays: the samples as flat arrays, where these can hold them.
        samples: the samples themselves, where they cannot.
        report: what became of the rows.
    """

    arrays: dict[str, Any] | None
    samples: list[EncodedSample]
    report: EncodeReport


def encode_chunks(samples: Sequence[Sample], encoder: Encoder, *, processes: int = 1) -> Iterator[Chunk]:
    """Yield the samples chunk by chunk, in order.

    Args:
        samples: rows as read.
        encoder: encodes them.
        processes: how many processes share the work; no more are started than there are chunks. Until the first of them
            is ready, this one encodes as well.

    Raises:
        TemplateError: for a row that cannot be rendered, as the encoder's policy says.
        DataError: when a process dies.
    """
    parts = [samples[start : start + CHUNK] for start in range(0, len(samples), CHUNK)]
    processes = min(processes, len(parts))
    if processes < 2:
        for part in parts:
            yield _chunk(encoder, part)
        return
    workers = _start(processes, encoder, parts)
    try:
        yield from _in_order(workers, encoder, parts)
    finally:
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.join()
            worker.connection.close()


@dataclass(slots=True, eq=False)
class _Worker:
    """A process that encodes.

    Attributes:
        process: the process.
        connection: what is said to it and by it.
        encoder: what to send it first, and
        parts: the rows to send; both None where it has them already.
        ready: it can be given parts.
        has: numbers of the parts it is to encode.
    """

    process: Any
    connection: Connection
    encoder: Encoder | None
    parts: Sequence[Sequence[Sample]] | None
    ready: bool = False
    has: set[int] = field(default_factory=set[int])

    @property
    def takes_more(self) -> bool:
        """Say whether it can be given a part.

        A number is so short that it can wait until the process is free; rows could fill the connection while the process
        fills it from the other end.
        """
        return self.ready and len(self.has) < (2 if self.parts is None else 1)

    def give(self, number: int) -> None:
        """Let it encode a part."""
        self.has.add(number)
        self._send(number if self.parts is None else (number, self.parts[number]))

    def _send(self, message: Any) -> None:
        try:
            self.connection.send(message)
        except OSError as error:
            raise _died() from error

    def answer(self) -> tuple[int, Chunk | Exception] | None:
        """Return the number of a part and what became of it, or None for a process that is still starting."""
        try:
            message = self.connection.recv()
        except (EOFError, OSError) as error:
            raise _died() from error
        if message is not None:
            self.has.discard(message[0])
        elif self.encoder is not None:
            # Only now: a fresh process reads what is larger than a pipe holds after it has loaded its modules.
            self._send(self.encoder)
            self.encoder = None
        else:
            self.ready = True
        return message


def _died() -> DataError:
    return DataError(
        "a process that encodes rows died",
        fix="use fewer with --dataset_num_proc (memory may be short); a script needs `if __name__ == '__main__':` around its start",
    )


def _start(processes: int, encoder: Encoder, parts: Sequence[Sequence[Sample]]) -> list[_Worker]:
    """Start processes: copies of this one, which hold the rows already, or fresh ones, which get them part by part."""
    copies = forks_safely()
    context: Any = get_context("fork" if copies else "spawn")
    workers: list[_Worker] = []
    with _one_thread_each():
        for _ in range(processes):
            ours, theirs = context.Pipe()
            others = [worker.connection for worker in workers] + [ours] if copies else []
            given = (encoder, parts) if copies else (None, None)
            process = context.Process(target=_serve, args=(theirs, others, *given), daemon=True)
            process.start()
            theirs.close()
            workers.append(_Worker(process, ours, *((None, None) if copies else (encoder, parts))))
    return workers


def forks_safely() -> bool:
    """Say whether a copy of this process can work: nothing that must not be copied runs in it.

    A copy has the memory of this process but only the calling thread, so locks that other Python threads hold stay locked
    in it, and CUDA cannot be used from it. On macOS the system's own libraries do not allow it.
    """
    return sys.platform == "linux" and threading.active_count() == 1 and not torch.cuda.is_initialized()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Keep the tokenizer library from starting threads in the processes started meanwhile: each is one thread of the work."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        os.environ.pop("TOKENIZERS_PARALLELISM")
        if before is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def _in_order(workers: Sequence[_Worker], encoder: Encoder, parts: Sequence[Sequence[Sample]]) -> Iterator[Chunk]:
    """Hand the parts out, and yield what became of them in their order."""
    by_connection: dict[Any, _Worker] = {worker.connection: worker for worker in workers}
    done: dict[int, Chunk | Exception] = {}
    given = wanted = 0
    while wanted < len(parts):
        alone = given < len(parts) and not any(worker.ready for worker in workers)
        if alone:
            done[given] = _tried(encoder, parts[given])
            given += 1
        for connection in wait(list(by_connection), timeout=0 if alone else None):
            answer = by_connection[connection].answer()
            if answer is not None:
                done[answer[0]] = answer[1]
        following: list[Chunk | Exception] = []
        while wanted in done:
            following.append(done.pop(wanted))
            wanted += 1
        for worker in workers:
            # What is done ahead of the part that is next has to be held. Counted from the one that is next now, so that nobody is
            # waited for who has nothing to do.
            while worker.takes_more and given < min(len(parts), wanted + 4 * len(workers)):
                worker.give(given)
                given += 1
        for found in following:
            if isinstance(found, Exception):
                raise found
            yield found


def _serve(connection: Connection, others: Sequence[Connection], encoder: Encoder | None, parts: Sequence[Sequence[Sample]] | None) -> None:
    """Encode the parts that are asked for until nobody asks any more."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal; the first one ends the others
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()  # what was there before needs no look, which would also copy its memory
    for other in others:  # a copy holds the ends of its parent too, and would not hear that this is gone
        other.close()
    try:
        if encoder is None:
            connection.send(None)
            encoder = connection.recv()
        connection.send(None)
        while True:
            asked: Any = connection.recv()
            number, part = (asked, parts[asked]) if parts is not None else asked
            connection.send((number, _tried(cast(Encoder, encoder), part)))
    except (EOFError, BrokenPipeError):
        return


def _tried(encoder: Encoder, samples: Sequence[Sample]) -> Chunk | Exception:
    try:
        return _chunk(encoder, samples)
    except Exception as error:  # noqa: BLE001 - raised again in its place in the order, by the process that asked
        return error


def _chunk(encoder: Encoder, samples: Sequence[Sample]) -> Chunk:
    encoded, report = encoder.encode(samples)
    if all(map(is_plain, encoded)):
        return Chunk(pack(encoded), [], report)
    return Chunk(None, encoded, report)
