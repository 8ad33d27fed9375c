"""The admin API as the CLI calls it: where it is, with which key, and what its refusals mean for the exit code.

Standard library only: `loragate keys list` must start in a fraction of a second, and importing httpx takes 0.2 s.
"""

from __future__ import annotations

import http.client
import json
import select
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import quote, urlencode, urlsplit

import click

DEFAULT_URL = "http://127.0.0.1:8001"
URL_FILE = "admin.url"  # where a running gateway says which admin port it has
PUBLIC_URL_FILE = "public.url"
MAX_ANSWER_BYTES = 64 * 1024 * 1024


class Refused(click.ClickException):
    """The gateway said no. `document` is what --json shows."""

    exit_code = 1

    def __init__(self, message: str, document: dict[str, Any] | None = None, code: str = "refused") -> None:
        super().__init__(message)
        self.document = document or {"error": {"message": message, "type": "cli_error", "param": None, "code": code}}


class Unreachable(Refused):
    """Nothing answers where the gateway should be."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class Place:
    """Where the admin API is and the key for it; `source` says where the key came from."""

    url: str
    key: str | None = field(repr=False)
    source: str


def find(environ: Mapping[str, str], data_dir: Path | None, url: str | None) -> Place:
    """The gateway that this command means: flags, then LORAGATE_ADMIN_URL and _KEY, then the data directory."""
    folder = home(environ, data_dir)
    where = url or environ.get("LORAGATE_ADMIN_URL") or _line(folder / URL_FILE) or DEFAULT_URL
    if environ.get("LORAGATE_ADMIN_KEY"):
        return Place(where.rstrip("/"), environ["LORAGATE_ADMIN_KEY"].strip(), "LORAGATE_ADMIN_KEY")
    file = folder / "admin.key"
    return Place(where.rstrip("/"), _line(file), str(file))


def find_public(environ: Mapping[str, str], data_dir: Path | None) -> str | None:
    """The public address of this machine's gateway, as it says itself, or as LORAGATE_URL does; None for unknown."""
    return environ.get("LORAGATE_URL") or _line(home(environ, data_dir) / PUBLIC_URL_FILE)


class Streamed(Protocol):
    """A request body: its content type, its bytes, and how many they are in all."""

    @property
    def kind(self) -> str: ...
    @property
    def length(self) -> int: ...
    @property
    def pieces(self) -> Iterator[bytes]: ...


class _Json:
    kind = "application/json"

    def __init__(self, body: Mapping[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.length = len(text)
        self.pieces = iter((text,))


class _Answered(Exception):
    """The answer is there before all was sent."""


def _until_answered(pieces: Iterator[bytes], connection: http.client.HTTPConnection) -> Iterator[bytes]:
    """Send no gigabytes to a gateway that has refused them. (With TLS a socket may have bytes that are no answer.)"""
    plain = not isinstance(connection, http.client.HTTPSConnection)
    for piece in pieces:
        yield piece
        if plain and connection.sock is not None and select.select([connection.sock], [], [], 0)[0]:
            raise _Answered


class AdminClient:
    """One call at a time; no redirects, no proxies: the key goes where it is told and nowhere else."""

    def __init__(self, place: Place) -> None:
        self._place = place

    @property
    def host(self) -> str | None:
        """The machine that the gateway is on; None where the URL is none."""
        with suppress(ValueError):
            return urlsplit(self._place.url).hostname
        return None

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        content: Streamed | None = None,
        query: Mapping[str, Any] | None = None,
        timeout_s: float = 60.0,
    ) -> dict[str, Any]:
        """The answer's JSON; Unreachable (exit 3), Refused (exit 1). content: sent in place of a JSON body.

        timeout_s: without a byte in either direction.
        """
        asked = {name: value for name, value in (query or {}).items() if value is not None}
        target = path + ("?" + urlencode(asked, doseq=True) if asked else "")
        status, text = self._exchange(method, target, _Json(body) if body is not None else content, timeout_s)
        return self._judged(status, text)

    def download(
        self, path: str, sink: BinaryIO, on_bytes: Callable[[int, int], None], timeout_s: float = 60.0
    ) -> None:
        """A file's bytes into `sink`; on_bytes: how many are here, and are to be. Unreachable, Refused."""

        def receive(response: http.client.HTTPResponse) -> bytes:
            if response.status >= 400:
                return response.read(MAX_ANSWER_BYTES)
            done, total = 0, int(response.headers.get("content-length") or 0)
            while piece := response.read(1 << 20):
                try:
                    sink.write(piece)
                except OSError as error:
                    raise Refused(f"It cannot be written here: {error.strerror}.") from None
                done += len(piece)
                on_bytes(done, total)
            if done != total:
                raise Refused(f"The gateway at {self._place.url} broke off after {done} of {total} bytes. Try again.")
            return b"{}"

        self._judged(*self._exchange("GET", path, None, timeout_s, receive))

    def _judged(self, status: int, text: bytes) -> dict[str, Any]:
        try:
            document = json.loads(text)
        except ValueError:
            document = None
        if not isinstance(document, dict) or (status >= 400 and not isinstance(document.get("error"), dict)):
            raise Refused(f"What answers at {self._place.url} is not a loragate gateway (status {status}).")
        if status < 400:
            return document
        message = str(document["error"].get("message"))
        if document["error"].get("code") == "unknown_url":
            message = (
                f"{self._place.url} does not know what was asked for. Check the name, and that this is a gateway's "
                "admin port (8001 unless told otherwise) and not its public one."
            )
        elif status == 401 and self._place.key is None:
            message = (
                f"There is no admin key at {self._place.source}. Name the data directory, or set LORAGATE_ADMIN_KEY."
            )
        elif status == 401:
            message = f"The gateway at {self._place.url} does not accept the admin key from {self._place.source}."
        raise Refused(message, document)

    def _exchange(
        self,
        method: str,
        target: str,
        content: Streamed | None,
        timeout_s: float,
        receive: Callable[[http.client.HTTPResponse], bytes] = lambda response: response.read(MAX_ANSWER_BYTES),
    ) -> tuple[int, bytes]:
        headers = {"accept": "application/json"}
        if self._place.key is not None:
            headers["authorization"] = f"Bearer {self._place.key}"
        if content is not None:
            headers |= {"content-type": content.kind, "content-length": str(content.length)}
        connection = self._connection(timeout_s)
        try:
            # A gateway that has said no and hung up while we were sending: what it said is there to be read.
            with suppress(_Answered, BrokenPipeError, ConnectionResetError):
                pieces = _until_answered(content.pieces, connection) if content is not None else None
                connection.request(method, target, pieces, headers)
            response = connection.getresponse()
            return response.status, receive(response)
        except TimeoutError:
            raise Refused(f"The gateway at {self._place.url} did not answer within {timeout_s:.0f} s.") from None
        except (OSError, http.client.HTTPException):
            raise Unreachable(
                f"No gateway answers at {self._place.url}. "
                "Start one with `loragate up` (everything on this machine) or `loragate serve --engine URL`.",
                code="gateway_unreachable",
            ) from None
        except ValueError:  # http.client refuses header values with line breaks or beyond Latin-1
            raise Refused(f"The admin key from {self._place.source} is not one: it has odd characters.") from None
        finally:
            connection.close()

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        try:
            parts = urlsplit(self._place.url)
            host, port = parts.hostname, parts.port
            (host or "").encode("idna")  # what the resolver will do, too late for a sentence about the address
        except ValueError:
            host, port, parts = None, None, urlsplit("")
        if host is None or not host.isprintable() or " " in host or parts.scheme not in ("http", "https"):
            raise Refused(f"{self._place.url} is not an address such as {DEFAULT_URL}.")
        if parts.scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=timeout_s)
        return http.client.HTTPConnection(host, port, timeout=timeout_s)


def segment(text: str) -> str:
    """One path segment of a URL, whatever the text."""
    return quote(text, safe=":@")


def _line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"Cannot read {path}: {getattr(error, 'strerror', None) or 'it is not text'}.") from None


def home(environ: Mapping[str, str], flag: Path | None) -> Path:
    """The same rule as gateway.settings.data_dir, without importing pydantic."""
    if flag is not None:
        return flag.absolute()
    home = environ.get("LORAGATE_HOME")
    if home:
        return Path(home).absolute()
    from platformdirs import user_data_path

    return user_data_path("loragate")
