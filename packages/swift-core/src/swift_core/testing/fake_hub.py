"""A hub on 127.0.0.1 that speaks as much of the Hugging Face and ModelScope protocols as downloads and uploads need."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(slots=True)
class Fault:
    """A failure for requests whose path contains `part`.

    Attributes:
        part: text that the path and query must contain.
        status: HTTP status to answer with; 0 sends half of the file and closes the connection.
        times: how many requests fail before the rest succeed.
        headers: extra headers of the answer.
    """

    part: str
    status: int
    times: int = 10**9
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(slots=True)
class FakeHub:
    """The content and the log of a running server.

    Attributes:
        url: endpoint, such as `http://127.0.0.1:1234`.
        repos: (kind, id) -> file name -> bytes, at the branches of `revisions`.
        revisions: names that exist in every repository.
        private: (kind, id) of repositories that were made private.
        commits: messages of the uploads.
        token: when set, every request must carry it.
        faults: failures, the first that matches is used.
        log: method and path of every request.
    """

    url: str = ""
    repos: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict[tuple[str, str], dict[str, bytes]])
    revisions: set[str] = field(default_factory=lambda: {"main", "master", COMMIT})
    private: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    commits: list[str] = field(default_factory=list[str])
    blobs: dict[str, bytes] = field(default_factory=dict[str, bytes])
    token: str | None = None
    faults: list[Fault] = field(default_factory=list[Fault])
    log: list[str] = field(default_factory=list[str])
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault(self, method: str, target: str) -> Fault | None:
        """Return the failure to play for a request and count it; a file is cut only where it is sent."""
        with self.lock:
            for fault in self.faults:
                if fault.part in target and fault.times > 0 and (fault.status or method == "GET"):
                    fault.times -= 1
                    return fault
        return None


@contextmanager
def serve() -> Generator[FakeHub]:
    """Run a fake hub on a free port of 127.0.0.1 for the length of the block."""
    hub = FakeHub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    state: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._receive()

    def do_PUT(self) -> None:
        self._receive()

    def _receive(self) -> None:
        """Take what an upload sends: repositories, blobs by their SHA-256, commits."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.state.log.append(f"{self.command} {self.path}")
        fault = self.state.fault(self.command, self.path)
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if fault is not None:
            self._send(fault.status, b'{"error": "fault"}', dict(fault.headers))
        elif parts[0] == "blobs":
            self.state.blobs[parts[1]] = body
            self._json({"Code": 200})
        elif self.state.token and self.state.token not in (self.headers.get("Authorization", "") + self.headers.get("Cookie", "")):
            self._send(401, b'{"error": "Unauthorized"}', {})
        elif parts[-2:] == ["objects", "batch"]:
            self._lfs(json.loads(body)["objects"], "Data" if parts[0] == "api" else None)
        elif parts[:2] == ["api", "v1"]:
            self._modelscope_write(parts[2:], json.loads(body))
        else:
            self._huggingface_write(parts, body)

    def _lfs(self, objects: list[dict[str, Any]], envelope: str | None) -> None:
        wanted = [
            {**each, "actions": {"upload": {"href": f"{self.state.url}/blobs/{each['oid']}"}}}
            for each in objects
            if each["oid"] not in self.state.blobs
        ]
        answer: dict[str, Any] = {"transfer": "basic", "objects": wanted}
        self._json({"Code": 200, "Success": True, envelope: answer} if envelope else answer)

    def _huggingface_write(self, parts: list[str], body: bytes) -> None:
        if parts[:3] == ["api", "repos", "create"]:
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self._make(repo, private=bool(asked.get("private") or asked.get("visibility") == "private"))
            self._json({"url": f"{self.state.url}/{repo}"})
        elif parts[1:] == ["validate-yaml"]:
            self._json({"errors": [], "warnings": []})
        elif parts[4] == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "lfs" if _is_blob(name) else "regular", "shouldIgnore": False} for name in names]
            self._json({"files": modes})
        else:
            files = self.state.repos[("model", "/".join(parts[2:4]))]
            for line in body.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "header":
                    self.state.commits.append(value["summary"])
                elif entry["key"] == "lfsFile":
                    files[value["path"]] = self.state.blobs[value["oid"]]
                elif entry["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
            self._json({"commitUrl": f"{self.state.url}/{'/'.join(parts[2:4])}/commit/{COMMIT}", "commitOid": COMMIT})

    def _modelscope_write(self, parts: list[str], asked: dict[str, Any]) -> None:
        if parts == ["models"]:
            self._make(f"{asked['Path']}/{asked['Name']}", private=asked.get("Visibility") == 1)
        else:
            files = self.state.repos[("model", "/".join(parts[2:4]))]
            self.state.commits.append(asked["commit_message"])
            for action in asked["actions"]:
                large = action["type"] == "lfs"
                files[action["path"]] = self.state.blobs[action["sha256"]] if large else base64.b64decode(action["content"])
        self._json({"Code": 200, "Success": True, "Data": {}})

    def _make(self, repo: str, *, private: bool) -> None:
        self.state.repos.setdefault(("model", repo), {})
        if private:
            self.state.private.add(("model", repo))

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet: `FakeHub.log` has it all."""

    def _answer(self) -> None:
        self.state.log.append(f"{self.command} {self.path}")
        fault = self.state.fault(self.command, self.path)
        if fault is not None and fault.status:
            self._send(fault.status, b'{"error": "fault"}', dict(fault.headers))
        elif self.state.token and self.state.token not in (self.headers.get("Authorization", "") + self.headers.get("Cookie", "")):
            self._send(401, b'{"error": "Unauthorized"}', {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif urlsplit(self.path).path.startswith("/api/v1/"):
            self._modelscope(cut=fault is not None)
        else:
            self._huggingface(cut=fault is not None)

    def _huggingface(self, *, cut: bool) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        api = parts[0] == "api"
        parts = parts[1:] if api else parts
        kind = "dataset" if parts[0] == "datasets" else "model"
        if parts[0] in ("datasets", "models"):
            parts = parts[1:]
        files = self.state.repos.get((kind, "/".join(parts[:2])))
        action, revision, rest = (*parts[2:4], *[""] * (2 - len(parts[2:4])), "/".join(parts[4:]))
        if files is None:
            self._send(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        elif revision and revision not in self.state.revisions:
            self._send(404, b'{"error": "Invalid rev id"}', {"X-Error-Code": "RevisionNotFound"})
        elif api and action == "tree":
            entries = [{"type": "file", "path": name, "size": len(data), "oid": _git_id(data)} for name, data in files.items()]
            self._json(entries)
        elif api:
            self._json({"id": "/".join(parts[:2]), "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]})
        elif action == "resolve" and rest in files:
            self._file(files[rest], {"X-Repo-Commit": COMMIT, "ETag": f'"{_git_id(files[rest])}"'}, cut=cut)
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

    def _modelscope(self, *, cut: bool) -> None:
        address = urlsplit(self.path)
        parts, query = address.path.strip("/").split("/")[2:], parse_qs(address.query)
        kind = parts[0].removesuffix("s")
        files = self.state.repos.get((kind, "/".join(parts[1:3])))
        action = "/".join(parts[3:])
        if files is None or query.get("Revision", ["master"])[0] not in self.state.revisions:
            self._send(404, b'{"Code": 10010205001, "Message": "not found", "Success": false}', {})
        elif action in ("repo/files", "repo/tree"):
            entries = [
                {"Path": name, "Name": name, "Type": "blob", "Size": len(data), "Sha256": hashlib.sha256(data).hexdigest()}
                for name, data in files.items()
            ]
            self._json({"Code": 200, "Success": True, "Data": {"Files": entries, "TotalCount": len(entries)}, "TotalCount": len(entries)})
        elif action == "repo" and query["FilePath"][0] in files:
            self._file(files[query["FilePath"][0]], {}, cut=cut)
        else:
            self._send(404, b'{"Code": 404, "Success": false}', {})

    def _file(self, data: bytes, headers: dict[str, str], *, cut: bool) -> None:
        start, status = 0, 200
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes="):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last or len(data) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            data, status = data[start : end + 1], 206
        self._send(status, data, {"Accept-Ranges": "bytes", **headers}, cut=cut and self.command == "GET")

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], *, cut: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True


def _git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _is_blob(name: str) -> bool:
    return name.endswith((".safetensors", ".gguf"))
