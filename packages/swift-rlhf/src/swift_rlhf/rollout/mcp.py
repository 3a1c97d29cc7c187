"""Tools of servers that speak the Model Context Protocol: a command over its pipes, or an address over HTTP."""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import shlex
import subprocess
import threading
import urllib.request
from typing import Any, Protocol

from swift_core.errors import EngineError

from swift_rlhf.threads import in_thread

PROTOCOL = "2025-06-18"


class _Line(Protocol):
    def ask(self, message: dict[str, Any], timeout: float) -> dict[str, Any] | None: ...

    def close(self) -> None: ...


class McpServer:
    """A server of tools.

    Args:
        where: a command, or an http address.
        timeout: seconds that an answer may take.

    Raises:
        EngineError: when it does not answer.
    """

    def __init__(self, where: str, *, timeout: float = 30.0) -> None:
        self._where, self._timeout = where, timeout
        self._numbers = itertools.count(1)
        self._line: _Line = _Http(where) if where.startswith(("http://", "https://")) else _Pipe(where)
        about = {"protocolVersion": PROTOCOL, "capabilities": {}, "clientInfo": {"name": "swift", "version": "1"}}
        self.ask("initialize", about)
        self._line.ask({"jsonrpc": "2.0", "method": "notifications/initialized"}, timeout)

    def tools(self) -> list[McpTool]:
        """Return the tools of the server.

        Raises:
            EngineError: when it does not answer.
        """
        found: list[McpTool] = []
        cursor: str | None = None
        while True:
            page = self.ask("tools/list", {"cursor": cursor} if cursor else {})
            found += [McpTool(self, tool) for tool in page.get("tools", [])]
            cursor = page.get("nextCursor")
            if not cursor:
                return found

    def ask(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the result of a request.

        Raises:
            EngineError: when the server fails, ends or takes too long.
        """
        message = {"jsonrpc": "2.0", "id": next(self._numbers), "method": method, "params": parameters}
        fix = "check that the server runs by itself, or raise --tool_timeout"
        try:
            reply = self._line.ask(message, self._timeout)
        except (OSError, ValueError, TimeoutError, queue.Empty) as error:
            what = f"took longer than {self._timeout:g} s" if isinstance(error, TimeoutError | queue.Empty) else f"{error}"
            raise EngineError(f"tool server {self._where}: {method}: {what or type(error).__name__}", fix=fix) from error
        if reply is None or "error" in reply:
            raise EngineError(f"tool server {self._where}: {method}: {(reply or {}).get('error', 'no answer')}", fix=fix)
        return dict(reply.get("result") or {})

    def close(self) -> None:
        """End the server where it is our own process."""
        self._line.close()


class McpTool:
    """A tool of a server.

    Args:
        server: that runs it.
        described: as the server lists it.
    """

    def __init__(self, server: McpServer, described: dict[str, Any]) -> None:
        self._server = server
        self.name = str(described["name"])
        parameters = described.get("inputSchema") or {"type": "object", "properties": {}}
        function = {"name": self.name, "description": described.get("description") or "", "parameters": parameters}
        self.schema: dict[str, Any] = {"type": "function", "function": function}

    async def call(self, arguments: dict[str, Any]) -> str:
        """Return the texts of the result.

        Raises:
            EngineError: when the server fails, or says that the tool did.
        """
        result = await in_thread(lambda: self._server.ask("tools/call", {"name": self.name, "arguments": arguments}))
        texts = [part.get("text", "") if part.get("type") == "text" else json.dumps(part) for part in result.get("content", [])]
        if result.get("isError"):
            raise EngineError("\n".join(texts) or "the tool failed")
        return "\n".join(texts)

    def close(self) -> None:
        """End the server."""
        self._server.close()


class _Pipe:
    """JSON lines over the pipes of a process of our own."""

    def __init__(self, command: str) -> None:
        try:
            self._process = subprocess.Popen(shlex.split(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except (OSError, ValueError) as error:
            raise EngineError(
                f"tool server {command!r} does not start: {error}", fix="a command such as mcp:python my_server.py"
            ) from error
        self._waiting: dict[int, queue.Queue[dict[str, Any]]] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._read, name="tools", daemon=True).start()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            with contextlib.suppress(ValueError):  # what a server prints besides its answers
                reply = json.loads(line)
                waiting = self._waiting.pop(reply["id"], None) if isinstance(reply, dict) and "id" in reply else None
                if waiting is not None:
                    waiting.put(reply)
        for waiting in list(self._waiting.values()):
            waiting.put({"error": f"the process has ended with code {self._process.wait()}"})

    def ask(self, message: dict[str, Any], timeout: float) -> dict[str, Any] | None:
        reply: queue.Queue[dict[str, Any]] = queue.Queue()
        if "id" in message:
            self._waiting[message["id"]] = reply
        if self._process.poll() is not None:
            raise OSError(f"the process has ended with code {self._process.returncode}")
        with self._lock:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        return reply.get(timeout=timeout) if "id" in message else None

    def close(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
            self._process.wait()


class _Http:
    """A request for each message; an answer is JSON, or the last event of a stream."""

    def __init__(self, url: str) -> None:
        self._url, self._session = url, ""

    def ask(self, message: dict[str, Any], timeout: float) -> dict[str, Any] | None:
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream", "MCP-Protocol-Version": PROTOCOL}
        if self._session:
            headers["Mcp-Session-Id"] = self._session
        request = urllib.request.Request(self._url, json.dumps(message).encode(), headers)
        with urllib.request.urlopen(request, timeout=timeout) as response:
            self._session = response.headers.get("Mcp-Session-Id") or self._session
            text = response.read().decode()
            streamed = "event-stream" in (response.headers.get("Content-Type") or "")
        if "id" not in message or not text.strip():
            return None
        if not streamed:
            return json.loads(text)
        events = [json.loads(line[5:]) for line in text.splitlines() if line.startswith("data:") and line[5:].strip()]
        return next((event for event in reversed(events) if event.get("id") == message["id"]), None)

    def close(self) -> None:
        """Have nothing to close."""


__all__ = ["McpServer", "McpTool"]
