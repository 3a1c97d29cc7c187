"""Starting one worker process for each device when NPROC_PER_NODE asks for it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from swift_core.errors import LaunchError
from swift_core.launch.bonds import EXIT_FILE, end_with_parent, recorded_exit


def relaunch_if_distributed(words: Sequence[str], environment: Mapping[str, str] | None = None) -> int | None:
    """Start torchrun with the same words when `NPROC_PER_NODE` or `NNODES` says so.

    Returns:
        the exit code of the job, or None when this process is to do the work itself: nothing was asked for, or it is a
        worker already.
    """
    env = dict(os.environ if environment is None else environment)
    if "LOCAL_RANK" in env or not ({"NPROC_PER_NODE", "NNODES"} & env.keys()):
        return None
    processes = _positive(env, "NPROC_PER_NODE", 1)
    nodes = _positive(env, "NNODES", 1)
    if processes == 1 and nodes == 1:
        return None
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", *_rendezvous(env, nodes)]
    command += ["-m", "swift_core", *words]
    # Each worker would take all cores for itself and slow the others down.
    env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    # A stopped job may have a large checkpoint to write; where a worker is dead, torchrun ends the others after 30 seconds itself.
    env.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")
    return _run(command, env)


def _rendezvous(env: Mapping[str, str], nodes: int) -> list[str]:
    if nodes == 1:
        port = env.get("MASTER_PORT") or str(_free_port())
        return ["--nnodes=1", "--master_addr=127.0.0.1", f"--master_port={port}"]
    missing = [name for name in ("NODE_RANK", "MASTER_ADDR") if name not in env]
    if missing:
        raise LaunchError(
            f"NNODES={nodes} needs {' and '.join(missing)}", fix="export NODE_RANK=0..NNODES-1 and MASTER_ADDR=<address of node 0>"
        )
    return [
        f"--nnodes={nodes}",
        f"--node_rank={env['NODE_RANK']}",
        f"--master_addr={env['MASTER_ADDR']}",
        f"--master_port={env.get('MASTER_PORT', '29500')}",
    ]


def _positive(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name) or str(default)
    if not text.isdigit() or int(text) < 1:
        raise LaunchError(f"{name}={text!r} is not a positive whole number", fix=f"export {name}=2")
    return int(text)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run(command: Sequence[str], env: Mapping[str, str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        env = {**env, EXIT_FILE: str(Path(folder) / "exit_code")}
        # In a session of its own: what a terminal sends to all its processes would reach the workers twice.
        process = subprocess.Popen(command, env=env, start_new_session=True, preexec_fn=end_with_parent)
        received: list[int] = []

        def forward(number: int, frame: FrameType | None) -> None:
            received.append(number)
            if len(received) == 1:
                process.send_signal(number)
            else:
                process.kill()  # the workers are told that it is gone, and take that as the second signal

        previous = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
            previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, forward)
        try:
            code = process.wait()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        if code == 0:
            return 0
        recorded = recorded_exit(env)
        if recorded is not None:
            return recorded
        return 128 + received[0] if received else code if code > 0 else 128 - code
