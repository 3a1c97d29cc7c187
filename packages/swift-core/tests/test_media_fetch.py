"""The fetcher of media: reach, redirects and limits, against a server on this machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from swift_core.data.fetch import FetchLimits, fetch, is_public, shown
from swift_core.errors import DataError

OPEN = FetchLimits(max_bytes=1000, timeout=5, allow_private=True)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server: Any = self.server
        server.hits += 1
        path = self.path
        if path.startswith("/redirect?"):
            self.send_response(302)
            self.send_header("Location", path.partition("?")[2])
            self.end_headers()
            return
        self.send_response(404 if path == "/missing" else 200)
        if path == "/gzip":
            self.send_header("Content-Encoding", "gzip")
        if path == "/announced":
            self.send_header("Content-Length", "1000000")
        if path == "/short":
            self.send_header("Content-Length", "50")
        self.end_headers()
        try:
            if path == "/endless":
                while True:
                    self.wfile.write(b"x" * 4096)
            if path == "/slow":
                while not server.stop.wait(0.02):
                    self.wfile.write(b"x")
                    self.wfile.flush()
            self.wfile.write(b"hello")
        except OSError:
            return

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def server() -> Iterator[Any]:
    made: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads = True
    made.hits = 0
    made.stop = threading.Event()
    made.url = f"http://127.0.0.1:{made.server_port}"
    thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield made
    made.stop.set()
    made.shutdown()
    made.server_close()


def test_a_body_comes_back(server: Any) -> None:
    assert fetch(f"{server.url}/a.png?x=1", OPEN) == b"hello"


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:{port}/",
        "http://localhost:{port}/",
        "http://[::1]:{port}/",
        "http://0.0.0.0:{port}/",
        "http://2130706433:{port}/",
        "http://0x7f000001:{port}/",
        "http://0177.0.0.1:{port}/",
        "http://127.1:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://a@127.0.0.1:{port}/",
        "http://example.com\\@127.0.0.1:{port}/",
        "http://127.0.0.1:{port}\\@example.com/",
        "http://１２７.0.0.1:{port}/",
        "http://127。0。0。1:{port}/",
        "http://127.0.0.1:{port}/\r\nX: y",
        "http://127.0.0.1:0/",
        "http:///path",
        "http://[127.0.0.1/",
        "ftp://127.0.0.1:{port}/",
        "gopher://127.0.0.1:{port}/",
        "file:///etc/passwd",
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.1/",
        "http://100.64.0.1/",
        "http://[fc00::1]/",
        "http://[64:ff9b::7f00:1]/",
    ],
)
def test_addresses_inside_are_refused_without_a_connection(server: Any, address: str) -> None:
    with pytest.raises(DataError):
        fetch(address.format(port=server.server_port), FetchLimits(timeout=5))
    assert server.hits == 0


@pytest.mark.parametrize("answers", [["93.184.216.34", "127.0.0.1"], ["127.0.0.1", "93.184.216.34"], ["not an address"], []])
def test_every_address_of_a_name_must_be_public(server: Any, answers: list[str]) -> None:
    with pytest.raises(DataError):
        fetch(f"http://example.com:{server.server_port}/", FetchLimits(timeout=5), resolve=lambda host, port: answers)
    assert server.hits == 0


def test_a_name_is_resolved_once_so_it_cannot_change_between_check_and_connection(server: Any) -> None:
    asked: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["10.0.0.1"]

    assert fetch(f"http://example.com:{server.server_port}/", OPEN, resolve=resolve) == b"hello"
    assert asked == ["example.com"]


def test_the_target_of_a_redirect_is_checked_like_the_first_address(server: Any) -> None:
    assert fetch(f"{server.url}/redirect?/a", OPEN) == b"hello"
    for target in ("file:///etc/passwd", "ftp://127.0.0.1/", "http://a@127.0.0.1/"):
        with pytest.raises(DataError, match=r"only http|user name"):
            fetch(f"{server.url}/redirect?{target}", OPEN)
    with pytest.raises(DataError, match="more than 3 redirects"):
        fetch(f"{server.url}/redirect?/redirect?/redirect?/redirect?/a", OPEN)


def test_a_redirect_from_a_public_host_to_a_private_one_is_refused() -> None:
    # The check of the target is the check of the first address: `is_public` decides, and nothing else.
    assert not is_public("192.168.0.1")
    assert not is_public("224.0.0.1")
    assert not is_public("2002:7f00:1::")
    assert is_public("2606:4700:4700::1111")


@pytest.mark.parametrize("path", ["/endless", "/announced"])
def test_a_body_ends_at_the_byte_limit(server: Any, path: str) -> None:
    with pytest.raises(DataError, match="larger than 1,000 bytes"):
        fetch(server.url + path, OPEN)


def test_a_server_that_drips_is_cut_off_at_the_deadline(server: Any) -> None:
    start = time.monotonic()
    with pytest.raises(DataError, match=r"longer than 0\.3 s"):
        fetch(f"{server.url}/slow", FetchLimits(timeout=0.3, allow_private=True))
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(("path", "reason"), [("/missing", "404"), ("/gzip", "compressed"), ("/short", "5 of 50 bytes")])
def test_other_failures_name_their_reason(server: Any, path: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        fetch(server.url + path, OPEN)


def test_messages_hide_what_may_be_secret() -> None:
    assert shown("https://user:word@example.com/a/b.png?sig=secret#x") == "https://example.com/a/b.png"
