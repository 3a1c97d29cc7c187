"""Copies of the running process that may be killed, and groups of them that talk as ranks do: no import is paid twice."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState

from swift_core.errors import SwiftError


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended.

    Attributes:
        code: exit code; negative: the signal that ended it.
        value: what its work returned, as JSON has it; None when it did not return.
        output: what it wrote to standard output and standard error.
    """

    code: int
    value: Any
    output: str


def in_children(
    works: Sequence[Callable[[], Any]],
    *,
    environments: Sequence[Mapping[str, str]] = (),
    timeout: float = 60.0,
    meanwhile: Callable[[Sequence[int]], None] | None = None,
) -> list[Ended]:
    """Do each work in a copy of this process, at the same time.

    An error of ours ends a child with its exit code, any other one with 1 and a traceback in its output.

    Args:
        works: what to do; JSON must be able to hold what they return.
        environments: variables for each of them.
        timeout: seconds after which all that still run are killed.
        meanwhile: called with the process ids once they run.
    """
    context = get_context("fork")
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / str(number) for number in range(len(works))]
        processes: list[Any] = []
        for number, (work, folder) in enumerate(zip(works, folders, strict=True)):
            folder.mkdir()
            process = context.Process(target=_run, args=(work, folder, dict(environments[number]) if environments else {}), daemon=False)
            process.start()
            processes.append(process)
        if meanwhile is not None:
            meanwhile([process.pid for process in processes])
        for process in processes:
            if not wait([process.sentinel], timeout):
                for each in processes:
                    each.kill()
        for process in processes:
            process.join()
        return [Ended(process.exitcode, *_result(folder)) for process, folder in zip(processes, folders, strict=True)]


def in_ranks(work: Callable[[int], Any], *, size: int = 2, timeout: float = 60.0, **more: Any) -> list[Ended]:
    """Do a work in `size` copies of this process that find one another as the ranks of a job; it is given its rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environments = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    works = [lambda rank=rank: work(rank) for rank in range(size)]
    return in_children(works, environments=environments, timeout=timeout, **more)


def _result(folder: Path) -> tuple[Any, str]:
    file = folder / "value.json"
    return json.loads(file.read_text("utf-8")) if file.is_file() else None, (folder / "output").read_text("utf-8", errors="replace")


def _run(work: Callable[[], Any], folder: Path, environment: Mapping[str, str]) -> None:
    output = os.open(folder / "output", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
    for number, usual in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        signal.signal(number, usual)
    os.environ.update(environment)
    torch.set_num_threads(1)  # the threads of the process that was copied are not there
    if environment:  # it is another rank than the process that was copied
        AcceleratorState._reset_state()
        PartialState._reset_state()
    code = 0
    try:
        value = work()
        (folder / "value.json").write_text(json.dumps(value), encoding="utf-8")
    except SwiftError as error:
        code = error.exit_code
        sys.stderr.write(f"error: {error}\n")
    except BaseException:  # noqa: BLE001 - whatever it is, the one who started this process reads it
        code = 1
        traceback.print_exc()
    # Nothing of the process that was copied is to be finished twice.
    os._exit(code)
