"""A file behind an http(s) URL, from any byte on: ranges only of what has not changed, redirects only to where
the first URL could have led, credentials only to where they belong.

(fsspec's http reads a whole file into memory where a server ignores ranges, and follows redirects from https to http.)
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

from adapters.http import httpx
from adapters.sources.progress import Progress
from adapters.sources.source import SourceRefused, is_loopback
from adapters.sources.transfer import Body, Broken, Missing

REDIRECTS = 8
CONNECT_TIMEOUT_S = 15.0
IDLE_TIMEOUT_S = 60.0  # without a byte
LONGEST_WAIT_S = 60.0  # of what a server may ask for with Retry-After
_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class WebFile:
    """url: may be signed, so only `label` is shown. headers: for the URL's own origin. linked: it is a hub's, whose

    redirects say the size and the checksum of what they lead to.
    """

    url: str = field(repr=False)
    label: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    linked: bool = False

    @contextmanager
    def open(self, at: int, tag: str | None, progress: Progress) -> Iterator[Body]:
        """See transfer.Remote."""
        asked = {"accept-encoding": "identity"}
        if at and tag is not None:
            asked |= {"range": f"bytes={at}-", "if-range": tag}
        try:
            with _answer(self.url, {**self.headers, **asked}, self.linked, progress) as (response, linked):
                _check(response, self.label)
                # A part without a tag of its own is of the same file: the server has compared it (RFC 9110, 15.3.7).
                same = tag if response.status_code == 206 and "if-range" in asked else None
                yield _body(response, linked, same)
        except (httpx.TransportError, httpx.DecodingError) as exc:
            raise broken(exc, self.label) from None
        except httpx.InvalidURL:
            raise SourceRefused(f"{self.label} leads to what is no URL.") from None


def http(url: str) -> httpx.Client:
    """A client with the proxies and certificates that the environment names; none of them for this machine."""
    parts = urlsplit(url)
    timeout = httpx.Timeout(IDLE_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    if is_loopback(parts.hostname):
        # Without TLS no authority is trusted: to read all there are takes 30 ms.
        plain = parts.scheme == "http"
        trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if plain else httpx.create_ssl_context()
        return httpx.Client(trust_env=False, timeout=timeout, verify=trust)
    return httpx.Client(timeout=timeout)


@contextmanager
def get(url: str, headers: Mapping[str, str], progress: Progress) -> Iterator[httpx.Response]:
    """The answer to one GET. `progress` wakes whoever waits for it or for its body; only to connect is waited for."""
    line = _Line(progress)
    with (
        progress.interruptible(line.shut),
        http(url) as client,
        client.stream("GET", url, headers=headers, extensions={"trace": line.follow}) as response,
    ):
        yield response


class _Line:
    """The connection of one request, from when there is one."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._stream: Any = None

    def follow(self, event: str, info: Mapping[str, Any]) -> None:
        """What httpcore tells of a request's steps."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._stream = info["return_value"]
            self._progress.check()  # told while there was nothing to shut

    def shut(self) -> None:
        """Wake the thread that waits for bytes; from any thread."""
        sock = self._stream.get_extra_info("socket") if self._stream is not None else None
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


@contextmanager
def _answer(
    url: str, headers: Mapping[str, str], linked: bool, progress: Progress
) -> Iterator[tuple[httpx.Response, dict[str, str]]]:
    """The last answer of a chain of redirects, and what a hub said on the way."""
    said: dict[str, str] = {}
    own = urlsplit(url)
    for _ in range(REDIRECTS):
        here = urlsplit(url)
        same = (here.scheme, here.netloc) == (own.scheme, own.netloc)
        sent = {name: value for name, value in headers.items() if same or name != "authorization"}
        with get(url, sent, progress) as response:
            if linked and same:
                said |= {name: value for name, value in response.headers.items() if name in ("etag", "x-linked-etag")}
            if response.status_code not in (301, 302, 303, 307, 308):
                yield response, said
                return
            url = urljoin(url, response.headers.get("location", ""))
        _check_target(own.scheme, url)
    raise SourceRefused("This URL redirects in a circle. Give the address that it should lead to.")


def _check_target(scheme: str, url: str) -> None:
    target = urlsplit(url)
    if target.scheme == "https" or (target.scheme == scheme == "http" and is_loopback(target.hostname)):
        return
    raise SourceRefused("This URL redirects to one without https, where anyone on the way could change the weights.")


def _check(response: httpx.Response, label: str) -> None:
    status = response.status_code
    if status in (200, 206):
        if response.headers.get("content-encoding", "identity") not in ("identity", ""):
            raise SourceRefused(f"{label} is sent in a compressed form of the server's own, which cannot be resumed.")
        return
    if status in (404, 410):
        raise Missing
    if status == 416:
        raise Broken("the file became shorter meanwhile", afresh=True)
    if status in _AGAIN:
        wait = response.headers.get("retry-after", "")
        raise Broken(f"the server answers {status}", min(float(wait), LONGEST_WAIT_S) if wait.isdecimal() else 0.0)
    if status in (401, 403):
        raise SourceRefused(f"{label} may not be read (the server answers {status}). Check the credentials or the URL.")
    raise SourceRefused(f"{label} cannot be read: the server answers {status}. Check the URL.")


def _body(response: httpx.Response, linked: Mapping[str, str], same: str | None) -> Body:
    start, size = 0, None
    length = response.headers.get("content-length", "")
    if response.status_code == 206:
        found = _RANGE.fullmatch(response.headers.get("content-range", ""))
        if found is None:
            raise Broken("the server sends a part without saying which")
        start, size = int(found[1]), int(found[2]) if found[2] != "*" else None
    elif length.isdecimal():
        size = int(length)
    return Body(start, size, _tag(response.headers) or same, response.iter_raw(), _stated(linked))


def _tag(headers: Mapping[str, str]) -> str | None:
    """What If-Range takes: a strong ETag, else the time of the last change."""
    etag = headers.get("etag", "")
    if etag.startswith('"'):
        return etag
    return headers.get("last-modified") or None


def _stated(linked: Mapping[str, str]) -> dict[str, str]:
    """A hub's ETag is the sha256 of a large file, and git's own sha1 of a small one."""
    etag = (linked.get("x-linked-etag") or linked.get("etag") or "").removeprefix("W/").strip('"')
    if re.fullmatch(r"[0-9a-f]{64}", etag):
        return {"sha256": etag}
    return {"git": etag} if re.fullmatch(r"[0-9a-f]{40}", etag) else {}


def broken(error: Exception, label: str) -> Broken | SourceRefused:
    """What a connection's failure means."""
    if isinstance(error, httpx.TimeoutException):
        return Broken("the server does not answer in time")
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return SourceRefused(
            f"{label}: the certificate of its server is not trusted here. Check the host, or name the file of your "
            "authority in SSL_CERT_FILE for the gateway."
        )
    if isinstance(error, httpx.ConnectError):
        return Broken("its server cannot be reached")
    return Broken("the connection broke")
