"""Encoding in several processes: the same result, in the same order, as in one."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from swift_core.batching.encode import CHUNK, Encoder, EncodeReport
from swift_core.batching.tokens import is_plain, pack
from swift_core.errors import DataError
from swift_core.protocols import EncodedSample, Sample

_encoder: Encoder | None = None


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
        processes: how many processes share the work; no more are started than there are chunks.

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
    # Fresh processes: a fork of one that has threads (torch, tokenizers) can hang.
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each process is one thread of the work
    try:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_start, initargs=(encoder,)) as pool:
            yield from _in_order(pool, parts, ahead=2 * processes)
    except BrokenProcessPool as error:
        raise DataError(
            "a process that encodes rows died",
            fix="use fewer with --dataset_num_proc (memory may be short); a script needs `if __name__ == '__main__':` around its start",
        ) from error
    finally:
        os.environ.pop("TOKENIZERS_PARALLELISM")
        if before is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def _in_order(pool: ProcessPoolExecutor, parts: Sequence[Sequence[Sample]], *, ahead: int) -> Iterator[Chunk]:
    waiting: deque[Future[Chunk]] = deque()
    try:
        for part in parts:
            waiting.append(pool.submit(_work, part))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _start(encoder: Encoder) -> None:
    global _encoder
    _encoder = encoder


def _work(samples: Sequence[Sample]) -> Chunk:
    assert _encoder is not None
    return _chunk(_encoder, samples)


def _chunk(encoder: Encoder, samples: Sequence[Sample]) -> Chunk:
    encoded, report = encoder.encode(samples)
    if all(map(is_plain, encoded)):
        return Chunk(pack(encoded), [], report)
    return Chunk(None, encoded, report)
