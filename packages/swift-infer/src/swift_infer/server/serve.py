"""`swift deploy`: the port, the model, the server, the end."""

from __future__ import annotations

import errno
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from swift_core.errors import LaunchError
from swift_core.protocols import Engine, TextEngine

from swift_infer.config import LOOPBACK, DeployConfig, RolloutConfig, ServerSection
from swift_infer.server.app import create_app

_BACKLOG = 2048


def serve(config: DeployConfig, build_engine: Callable[[], Engine | TextEngine]) -> int:
    """Load the model and answer requests until SIGTERM or SIGINT, then let running requests finish.

    Raises:
        LaunchError: when the port cannot be used.
        SwiftError: when the model cannot be loaded.
    """
    settings = config.server
    listener = open_port(settings.host, settings.port)
    try:
        engine = build_engine()
    except BaseException:
        listener.close()
        raise
    try:
        context_length = getattr(engine, "context_length", None)
        rollout = config.rollout if isinstance(config, RolloutConfig) else None
        app = create_app(engine, settings, config.generation.as_request(), context_length=context_length, rollout=rollout)
        _listen(listener, settings)
        _announce(listener, settings, app.state.model_name)
        with _quiet_signals():
            Draining(app, engine, settings).run(sockets=[listener])
        return 1 if app.state.gateway.dead else 0
    finally:
        listener.close()
        engine.close()


def open_port(host: str, port: int) -> socket.socket:
    """Return a bound socket that does not listen yet: clients are refused rather than kept waiting while the model loads.

    Raises:
        LaunchError: when the address does not exist or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise LaunchError(f"--host {host}: there is no such address ({error})", fix="--host 127.0.0.1") from error
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _port_error(host, port, error) from error
    return listener


def _listen(listener: socket.socket, settings: ServerSection) -> None:
    try:
        listener.listen(_BACKLOG)
    except OSError as error:
        raise _port_error(settings.host, settings.port, error) from error


def _port_error(host: str, port: int, error: OSError) -> LaunchError:
    if error.errno == errno.EADDRINUSE:
        return LaunchError(
            f"port {port} on {host} is in use by another program", fix="stop it, choose another --port, or --port 0 for a free one"
        )
    if error.errno == errno.EACCES:
        return LaunchError(f"port {port} needs rights that this user does not have", fix="choose a --port above 1023")
    return LaunchError(f"cannot listen on {host} port {port}: {error.strerror}", fix="choose another --host or --port")


def _announce(listener: socket.socket, settings: ServerSection, name: str) -> None:
    port = listener.getsockname()[1]
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    scheme = "https" if settings.ssl_certfile else "http"
    sys.stderr.write(f"serving {name!r} at {scheme}://{host}:{port}/v1 ({'with' if settings.api_key else 'without'} a key); Ctrl-C stops\n")
    if settings.api_key is None and settings.host not in LOOPBACK:
        sys.stderr.write("warning: everyone who can reach this address can use the model\n")
    sys.stderr.flush()


class Draining(uvicorn.Server):
    """A server that, asked to stop, takes nothing new, lets running requests finish for a while, and stops at once when asked again.

    It also stops when the engine has died.

    Args:
        app: made by `create_app`.
        engine: told to end what still runs after that while.
        settings: how long, and how the server listens.
    """

    def __init__(self, app: Any, engine: Any, settings: ServerSection) -> None:
        logging.getLogger("swift_infer").setLevel(settings.log_level.upper())
        super().__init__(
            uvicorn.Config(
                app,
                log_level=settings.log_level,
                timeout_graceful_shutdown=2,
                server_header=False,
                ssl_certfile=settings.ssl_certfile,
                ssl_keyfile=settings.ssl_keyfile,
            )
        )
        self._gateway, self._admission = app.state.gateway, app.state.admission
        self._engine, self._seconds = engine, settings.shutdown_timeout
        self._deadline = 0.0

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Begin to drain, or stop at once when that has begun."""
        if self._gateway.draining:
            self.should_exit = self.force_exit = True
            return
        self._gateway.draining = True
        self._deadline = time.monotonic() + self._seconds

    async def on_tick(self, counter: int) -> bool:
        """Look every tenth of a second whether it is time to stop."""
        if self._gateway.dead:
            self.should_exit = True
        if self._gateway.draining and not self.should_exit:
            busy = self._admission.running or self._admission.waiting
            late = time.monotonic() >= self._deadline
            if busy and late and hasattr(self._engine, "abort"):
                self._engine.abort()
            self.should_exit = late or not busy
        return await super().on_tick(counter)


@contextmanager
def _quiet_signals() -> Iterator[None]:
    """Make a drained server an ordinary end: uvicorn raises the signal that stopped it once more when it is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
