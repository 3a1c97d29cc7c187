"""vLLM as a server in a process of its own, in a Python environment of its own if need be: started, asked over HTTP, stopped."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from swift_core.errors import EngineError
from swift_core.models.loading import resolve_model_folder

from swift_infer.adapter_names import named_adapters
from swift_infer.config import EngineConfig
from swift_infer.engines.client import InferClient
from swift_infer.engines.processors import display_name

_TAIL = 20
_STOP_SECONDS = 20.0


class ServerProcess:
    """A child that serves HTTP.

    Args:
        command: program and arguments.
        url: address that answers with status 200 once the server is ready.
        env: further environment variables.
        timeout: most seconds until it is ready.

    Raises:
        EngineError: with the end of its log, when it dies or is not ready in time.
    """

    def __init__(self, command: Sequence[str], *, url: str, env: Mapping[str, str] | None = None, timeout: float = 900.0) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="swift-server-")
        self.log = Path(self._folder.name) / "server.log"
        with self.log.open("wb") as file:
            # A session of its own: its workers are reached through it, and Ctrl-C here is not theirs.
            self._child = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        try:
            self._wait(url, time.monotonic() + timeout)
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        """Return the pid of the child."""
        return self._child.pid

    @property
    def error(self) -> BaseException | None:
        """Return why the child has ended by itself, or None."""
        code = self._child.poll()
        return None if code is None else EngineError(f"the server has ended with exit code {code}", fix=self.tail())

    def tail(self) -> str:
        """Return the end of the child's log."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:]) if self.log.exists() else ""

    def stop(self) -> None:
        """End the child and what it has started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._child.poll() is not None:
                break
            os.killpg(self._child.pid, number)
            try:
                self._child.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                continue
        self._folder.cleanup()

    def _wait(self, url: str, deadline: float) -> None:
        while time.monotonic() < deadline:
            if self._child.poll() is not None:
                raise EngineError(f"the server has ended with exit code {self._child.returncode} before it was ready:\n{self.tail()}")
            try:
                if httpx.get(url, timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        raise EngineError(f"the server is not ready in time:\n{self.tail()}", fix="raise start_timeout in --engine_kwargs")


class VllmServerEngine(InferClient):
    """Answers requests through `vllm serve` in a child process.

    Args:
        config: what to serve; its `engine_kwargs` are flags of `vllm serve`, and `python` (of the environment that has vLLM; this one by
            default), `start_timeout` and `env`.

    Raises:
        EngineError: when the server does not start.
    """

    name = "vllm_server"

    def __init__(self, config: EngineConfig) -> None:
        port, key = free_port(), secrets.token_urlsafe(24)
        settings = dict(config.engine_kwargs)
        python, timeout = str(settings.pop("python", sys.executable)), float(settings.pop("start_timeout", 900.0))
        # The key goes by the environment: arguments can be read by all users of the machine.
        env = {"VLLM_API_KEY": key, **settings.pop("env", {})}
        command = serve_command(python, config, port, settings)
        self.server = ServerProcess(command, url=f"http://127.0.0.1:{port}/health", env=env, timeout=timeout)
        try:
            name = display_name(config.loading)
            super().__init__(
                f"http://127.0.0.1:{port}/v1", model=name, api_key=key, max_batch_size=config.max_batch_size, system=config.chat.system
            )
        except BaseException:
            self.server.stop()
            raise
        self.adapters = list(named_adapters(config.loading))

    @property
    def error(self) -> BaseException | None:
        """Return why the server has ended by itself, or None."""
        return self.server.error

    def close(self) -> None:
        """End the server."""
        super().close()
        self.server.stop()


def serve_command(python: str, config: EngineConfig, port: int, settings: Mapping[str, Any]) -> list[str]:
    """Return the command line of `vllm serve`."""
    loading = config.loading
    flags: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": port,
        "served_model_name": display_name(loading),
        "max_num_seqs": config.max_batch_size,
        "dtype": str(loading.torch_dtype or "auto").removeprefix("torch."),
        "max_model_len": config.chat.max_length,
        "trust_remote_code": loading.trust_remote_code,
        **settings,
    }
    command = [python, "-m", "vllm.entrypoints.cli.main", "serve", str(resolve_model_folder(loading))]
    for name, value in flags.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            command.append(flag)
        elif value is not None and value is not False:
            # One word with "=": a value that begins with dashes stays a value.
            command.append(f"{flag}={json.dumps(value) if isinstance(value, dict | list) else value}")
    adapters = named_adapters(loading)
    if adapters:
        command += ["--enable-lora", "--lora-modules", *(f"{name}={folder}" for name, folder in adapters.items())]
    return command


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def build_engine(config: EngineConfig) -> VllmServerEngine:
    """Return an engine over a server that is started for it."""
    return VllmServerEngine(config)
