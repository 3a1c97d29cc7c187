"""What binds a launcher and its workers: signals go down once, exit codes come up, and no child outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from swift_core.launch import launcher
from swift_core.launch.bonds import EXIT_FILE, end_with_parent, record_exit, recorded_exit
from swift_core.testing.children import in_children

# Stands for torchrun: tells that it is there, then waits for a signal.
AGENT = """
import os, signal, sys
from swift_core.launch.bonds import EXIT_FILE, record_exit
def leave(number, frame):
    record_exit(os.environ[EXIT_FILE], 128 + number)
    sys.exit(1)
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, leave)
os.write(int(sys.argv[1]), b"x")
signal.pause()
"""


def test_the_first_failure_is_the_one_that_counts(tmp_path: Path) -> None:
    file = str(tmp_path / "code")
    assert recorded_exit({EXIT_FILE: file}) is None
    for code in (0, 3, 1):
        record_exit(file, code)
    assert recorded_exit({EXIT_FILE: file}) == 3
    record_exit(str(tmp_path / "gone" / "code"), 1)


@pytest.mark.parametrize(
    ("text", "code"), [("raise SystemExit(0)", 0), ("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)]
)
def test_an_exit_code_that_nobody_wrote_down_is_the_agents(text: str, code: int) -> None:
    assert launcher._run([sys.executable, "-c", text], dict(os.environ)) == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_reaches_the_workers_and_its_code_comes_back(number: signal.Signals) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)

    def launch() -> int:
        usual = subprocess.Popen
        subprocess.Popen = lambda *words, **more: usual(*words, close_fds=False, **more)  # pyright: ignore[reportAttributeAccessIssue]
        return launcher._run([sys.executable, "-c", AGENT, str(writer)], dict(os.environ))

    def strike(pids: Sequence[int]) -> None:
        assert os.read(reader, 1) == b"x"
        os.kill(pids[0], number)

    (ended,) = in_children([launch], meanwhile=strike)
    assert ended.value == 128 + number, ended.output


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a process that its parent is gone")
def test_a_worker_whose_parent_was_killed_gets_sigterm() -> None:
    reader, writer = os.pipe()

    def parent() -> None:
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, lambda number, frame: (os.write(writer, b"told"), os._exit(0)))
            end_with_parent()
            os.write(writer, b"ready")
            threading.Event().wait(60)
            os._exit(1)
        threading.Event().wait(60)

    def strike(pids: Sequence[int]) -> None:
        assert os.read(reader, 5) == b"ready"
        os.kill(pids[0], signal.SIGKILL)

    (ended,) = in_children([parent], meanwhile=strike)
    assert ended.code == -signal.SIGKILL
    assert os.read(reader, 4) == b"told"
