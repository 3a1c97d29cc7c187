"""The one place that opens connections to addresses from data: media named by URL, within limits of time, size and reach."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import SplitResult, urljoin, urlsplit

from swift_core.errors import DataError

Resolve = Callable[[str, int], list[str]]
"""Host and port to IP addresses."""

_CHUNK = 64 * 1024
_REDIRECTS = (301, 302, 303, 307, 308)
# Blocks that carry an IPv4 address inside, which the reach checks of `ipaddress` do not look at.
_EMBEDDING = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96")))


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """What a fetch may take.

    Attributes:
        max_bytes: longest body.
        timeout: seconds for everything together: all redirects, headers and the body.
        max_redirects: redirects to follow; each target is checked like the first address.
        allow_private: connect to this machine and to private networks too.
    """

    max_bytes: int = 64 * 2**20
    timeout: float = 20.0
    max_redirects: int = 3
    allow_private: bool = False


def resolve_host(host: str, port: int) -> list[str]:
    """Return the IP addresses of a host.

    Raises:
        OSError: when the name does not resolve.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def fetch(url: str, limits: FetchLimits | None = None, *, resolve: Resolve = resolve_host) -> bytes:
    """Return what an http(s) address holds.

    All addresses of the host must be public; the connection goes to the address that was checked, so a name cannot change
    its mind in between. Proxies from the environment are not used, for they would resolve the name again.

    Raises:
        DataError: when the address is refused, a limit is reached or the server answers with an error.
    """
    bounds = limits or FetchLimits()
    deadline = time.monotonic() + bounds.timeout
    for _ in range(bounds.max_redirects + 1):
        parts, port = _checked(url)
        address = _reachable(parts, port, bounds, resolve)
        try:
            body, target = _get(parts, port, address, bounds, deadline)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if time.monotonic() >= deadline:
                raise DataError(f"{shown(url)}: took longer than {bounds.timeout:g} s", fix=_TIME_FIX) from error
            raise DataError(f"{shown(url)}: cannot be fetched ({error or type(error).__name__})", fix=_FIX) from error
        if target is None:
            return body
        url = urljoin(url, target)
    raise DataError(f"{shown(url)}: more than {bounds.max_redirects} redirects", fix=_FIX)


_FIX = "check the address, or download the file and give its path"
_TIME_FIX = "raise --media_timeout, or download the file and give its path"


def shown(url: str) -> str:
    """Return an address for messages: without user, query and fragment, where secrets stand."""
    try:
        parts = urlsplit(url)
        text = f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"
    except ValueError:
        text = url.split("?")[0]
    return text if len(text) <= 120 else text[:117] + "..."


def _checked(url: str) -> tuple[SplitResult, int]:
    def refuse(reason: str) -> DataError:
        return DataError(f"{shown(url)}: {reason}", fix="give a plain http or https address")

    if not url.isascii() or any(char <= " " or char == "\x7f" or char == "\\" for char in url):
        raise refuse("the address has characters that do not belong into one")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise refuse(f"not an address ({error})") from error
    if parts.scheme not in ("http", "https"):
        raise refuse(f"{parts.scheme or 'no'} address; only http and https are fetched")
    if "@" in parts.netloc:
        raise refuse("the address holds a user name")
    if not parts.hostname or port == 0:
        raise refuse("the address names no host" if not parts.hostname else "there is no port 0")
    return parts, port or (443 if parts.scheme == "https" else 80)


def _reachable(parts: SplitResult, port: int, bounds: FetchLimits, resolve: Resolve) -> str:
    host = parts.hostname or ""
    try:
        addresses = resolve(host, port)
    except (OSError, UnicodeError) as error:
        raise DataError(f"{shown(parts.geturl())}: the host {host!r} is not known ({error})", fix=_FIX) from error
    if not addresses:
        raise DataError(f"{shown(parts.geturl())}: the host {host!r} has no address", fix=_FIX)
    private = [address for address in addresses if not is_public(address)]
    if private and not bounds.allow_private:
        raise DataError(
            f"{shown(parts.geturl())}: {host!r} is on this machine or in a private network, which is not fetched from",
            fix="give the file's path, or allow it with --media_allow_private true",
        )
    return addresses[0]


def is_public(address: str) -> bool:
    """Say whether an IP address is one of the public internet.

    >>> is_public("127.0.0.1"), is_public("::ffff:10.0.0.1"), is_public("93.184.216.34")
    (False, False, True)
    """
    try:
        found = ipaddress.ip_address(address.split("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return is_public(str(found.ipv4_mapped))
        if any(found in network for network in _EMBEDDING):
            return False
    return found.is_global and not (found.is_multicast or found.is_reserved or found.is_unspecified or found.is_loopback)


def _get(parts: SplitResult, port: int, address: str, bounds: FetchLimits, deadline: float) -> tuple[bytes, str | None]:
    """Return the body, or the target of a redirect."""
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError("no time is left")
    host = parts.hostname or ""
    plain = socket.create_connection((address, port), timeout=remaining)
    # A server that sends a byte now and then never runs into a socket timeout; the timer ends the connection whatever happens.
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), _cut, (plain,))
    timer.daemon = True
    timer.start()
    try:
        connection = http.client.HTTPConnection(host, port)
        if parts.scheme == "https":
            connection.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
        else:
            connection.sock = plain
        try:
            target = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
            name = f"[{host}]" if ":" in host else host
            default = port == (443 if parts.scheme == "https" else 80)
            headers = {"Host": name if default else f"{name}:{port}", "Accept-Encoding": "identity", "User-Agent": "swift"}
            connection.request("GET", target, headers=headers)
            return _answer(connection.getresponse(), bounds, deadline)
        finally:
            connection.close()
    finally:
        timer.cancel()
        plain.close()


def _cut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        connection.close()


def _answer(response: http.client.HTTPResponse, bounds: FetchLimits, deadline: float) -> tuple[bytes, str | None]:
    if response.status in _REDIRECTS:
        target = response.getheader("Location")
        if not target:
            raise ValueError(f"redirect {response.status} without a target")
        return b"", target
    if response.status != 200:
        raise ValueError(f"the server answers {response.status}")
    if response.getheader("Content-Encoding", "identity").lower() != "identity":
        raise ValueError("the server sends it compressed")
    too_long = f"it is larger than {bounds.max_bytes:,} bytes (--media_max_bytes)"
    announced = response.getheader("Content-Length")
    if announced is not None and announced.isdigit() and int(announced) > bounds.max_bytes:
        raise ValueError(too_long)
    body = bytearray()
    while chunk := cast("Any", response).read1(_CHUNK):
        body += chunk
        if len(body) > bounds.max_bytes:
            raise ValueError(too_long)
        if time.monotonic() >= deadline:
            raise TimeoutError("no time is left")
    if time.monotonic() >= deadline:
        raise TimeoutError("no time is left")
    if announced is not None and announced.isdigit() and int(announced) != len(body):
        raise ValueError(f"{len(body):,} of {announced} bytes came")
    return bytes(body), None
