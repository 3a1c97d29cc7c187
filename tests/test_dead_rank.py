"""A run of two processes of which one dies: the job ends soon, with an error, and says which one it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from swift_core.testing.tiny import make_tiny_model

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the worker in /proc")]

LIMIT = 30.0


def worker(rank: int, word: str) -> int:
    """Return the process of a rank whose command line has a word."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # gone, or another user's
            continue
        if word.encode() in words and f"LOCAL_RANK={rank}".encode() in variables:
            return int(folder.name)
    raise AssertionError(f"no process of rank {rank}")


def test_a_killed_rank_ends_the_job_in_time(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model")
    out = str(tmp_path / "run")
    words = ["sft", "--model", str(model), "--dataset", "self-cognition", "--model_name", "A", "--model_author", "B"]
    words += ["--tuner_type", "full", "--use_cpu", "--max_steps", "4000", "--logging_steps", "1", "--report_to", "none"]
    words += ["--max_length", "64", "--output_dir", out, "--add_version", "false"]
    inherited = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "RANK", "WORLD_SIZE")}
    env = {**inherited, "NPROC_PER_NODE": "2", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "swift_core", *words], env=env, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines: list[str] = []
    killed = 0.0
    for line in process.stderr:
        lines.append(line)
        if line.startswith("step 2/"):
            killed = time.monotonic()
            os.kill(worker(1, out), signal.SIGKILL)
    code = process.wait(timeout=LIMIT)
    text = "".join(lines)
    assert killed, text
    assert time.monotonic() - killed < LIMIT
    assert code != 0
    assert "Signal 9 (SIGKILL)" in text, text[-3000:]
