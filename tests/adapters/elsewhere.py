"""A real server that adapters come from: the web with ranges, a hub, an object store; it can break off and lie."""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

DATE = "Mon, 23 Nov 2026 10:00:00 GMT"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Fault:
    """What happens to one request. after: send so many bytes of the body, then cut, or (hang) say nothing more."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    after: int | None = None
    hang: bool = False


@dataclass
class Asked:
    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Elsewhere:
    """files: path → bytes. Faults are used up in order, one a request for a file."""

    files: dict[str, bytes] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    ranges: bool = True
    tags: bool = True
    dated: bool = False  # only the time of the last change, and that not with a part, as RFC 9110 (15.3.7) has it
    lengths: bool = True
    extra: dict[str, str] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    refusals: dict[str, int] = field(default_factory=dict)  # path → status, also of HEAD
    commits: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    digests: dict[str, str] = field(default_factory=dict)  # path → what the hub says in x-linked-etag
    linked: dict[str, dict[str, str]] = field(default_factory=dict)  # what it said of them when it redirected to them
    token: str | None = None
    port: int = 0
    tls: bool = False
    hanging: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}" if self.tls else f"http://127.0.0.1:{self.port}"

    def etag(self, data: bytes) -> str:
        return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    here: Elsewhere

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        here = self.here
        path = unquote(self.path.partition("?")[0])
        here.asked.append(Asked(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        if path in here.refusals:
            self._plain(here.refusals[path], {})
        elif path in here.redirects:
            self._plain(302, {"Location": here.redirects[path]})
        elif path.startswith("/api/models/"):
            self._hub(path)
        elif found := re.fullmatch(r"(/[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(found[1], found[2], found[3])
        elif self.command == "GET" and here.faults and here.faults[0].status:
            fault = here.faults.pop(0)
            self._plain(fault.status, fault.headers)
        elif path not in here.files:
            self._plain(404, {"Content-Type": "application/xml"}, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            self._file(here.files[path], here.linked.get(path, {}))

    def _file(self, data: bytes, linked: dict[str, str]) -> None:
        here = self.here
        fault = here.faults.pop(0) if here.faults and self.command == "GET" else Fault()
        tag = DATE if here.dated else here.etag(data)
        status, part, headers = 200, data, {"ETag": tag} if here.tags and not here.dated else {}
        asked = self.headers.get("Range")
        if_range = self.headers.get("If-Range", tag)
        if asked and here.ranges and if_range == tag:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last) if last else len(data) - 1, len(data) - 1)
            if begin >= len(data):
                self._plain(416, {})
                return
            status, part = 206, data[begin : end + 1]
            headers["Content-Range"] = f"bytes {begin}-{end}/{len(data)}"
        if here.tags and not (here.dated and status == 206):
            headers["Last-Modified"] = DATE
        if here.lengths:
            headers["Content-Length"] = str(len(part))
        else:
            headers["Connection"] = "close"
            self.close_connection = True
        self._head(status, headers | linked | here.extra)
        if self.command == "HEAD":
            return
        self.wfile.write(part if fault.after is None else part[: fault.after])
        if fault.hang:
            self.wfile.flush()
            here.hanging.set()
            here.released.wait(30)
        if fault.after is not None:
            self.close_connection = True

    def _hub(self, path: str) -> None:
        found = re.fullmatch(r"/api/models(/[^/]+/[^/]+)/revision/(.+)", path)
        files = [name[len(found[1]) + 1 :] for name in self.here.files if found and name.startswith(found[1] + "/")]
        stranger = self.here.token and self.headers.get("Authorization") != f"Bearer {self.here.token}"
        if stranger or not files or not found:
            self._plain(401, {"X-Error-Code": "RepoNotFound"})
        elif found[2] not in self.here.commits and found[2] not in self.here.commits.values():
            self._plain(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            sha = self.here.commits.get(found[2], found[2])
            answer = {"id": found[1].strip("/"), "sha": sha, "siblings": [{"rfilename": name} for name in files]}
            self._plain(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def _resolve(self, repo: str, commit: str, name: str) -> None:
        data = self.here.files.get(f"{repo}/{name}")
        commit = self.here.commits.get(commit, commit)
        if data is None or commit not in self.here.commits.values():
            self._plain(404, {"X-Error-Code": "EntryNotFound"})
            return
        large = name.endswith(".safetensors")
        digest = (
            hashlib.sha256(data).hexdigest() if large else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        )
        linked = {"X-Linked-Etag": f'"{self.here.digests.get(name, digest)}"', "X-Linked-Size": str(len(data))}
        linked["X-Repo-Commit"] = commit
        self.here.linked[f"{repo}/{name}"] = linked
        self._plain(302, {"Location": f"{repo}/{name}", **linked})

    def _plain(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self._head(status, {**headers, "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that leaves in the middle is part of the tests


@contextmanager
def elsewhere(tls: ssl.SSLContext | None = None) -> Iterator[Elsewhere]:
    """A server of its own on a free port."""
    here = Elsewhere(tls=tls is not None)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"here": here, "timeout": 10}))
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    here.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield here
    finally:
        here.released.set()
        server.shutdown()
        thread.join()
        server.socket.close()
