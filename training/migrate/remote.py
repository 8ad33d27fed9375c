"""Any OpenAI-compatible service as this kit calls it: OpenAI's own, and this gateway. Waits when it is told to wait.

The key goes to that service and nowhere else, and into no message. Must not know what is asked for or why.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit

from adapters.errors import InvalidRequest, ServiceError, StorageFull
from adapters.http import httpx

ATTEMPTS = 6
LONGEST_WAIT_S = 120.0
PAGE = 100  # OpenAI's own bound
TIMEOUT_S = 300.0  # of one answer
_AGAIN = frozenset({408, 409, 429, 500, 502, 503, 504})

Sleep = Callable[[float], Awaitable[Any]]
T = TypeVar("T")


class RemoteRefused(ServiceError):
    """The other service said no. answered: its HTTP status, None where nothing answered; reason: its own code."""

    status: ClassVar[int] = 502
    code = "remote_refused"

    def __init__(
        self, message: str, *, answered: int | None = None, reason: str = "", param: str | None = None
    ) -> None:
        super().__init__(message, param=param)
        self.answered = answered
        self.reason = reason


class Remote:
    """One service. base_url: with `/v1`, as its SDKs take it. key: empty for none. who: how messages name the key."""

    def __init__(
        self, http: httpx.AsyncClient, base_url: str, key: str, *, who: str, sleep: Sleep = asyncio.sleep
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._http = http
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self.met = False  # whether it has ever answered
        self._who = who
        self._sleep = sleep

    async def get(self, path: str, **query: Any) -> dict[str, Any]:
        """RemoteRefused."""
        asked = {name: value for name, value in query.items() if value is not None}
        return await self._again(lambda: self._json("GET", path, params=asked))

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """RemoteRefused."""
        return await self._again(lambda: self._json("POST", path, json=body))

    async def pages(self, path: str) -> AsyncIterator[dict[str, Any]]:
        """Every item of a list, page by page; RemoteRefused."""
        after: str | None = None
        while True:
            page = await self.get(path, limit=PAGE, after=after)
            items = page.get("data")
            if not isinstance(items, list):
                raise RemoteRefused(f"{self.base_url} answered {path} with something that is no list.")
            found = [item for item in items if isinstance(item, dict) and isinstance(item.get("id"), str)]
            for item in found:
                yield item
            if not page.get("has_more") or not found or found[-1]["id"] == after:
                return  # the last: a service that does not know `after` would go round for ever
            after = found[-1]["id"]

    async def download(self, path: str, to: Path) -> int:
        """The bytes at `path` into the file `to`, whole or not at all; how many. RemoteRefused, StorageFull."""
        return await self._again(lambda: self._download(path, to))

    async def _again(self, ask: Callable[[], Awaitable[T]]) -> T:
        """`ask`, as often as the service says that it may help, with the waits that it names."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await ask()
            except _Later as later:
                if attempt == ATTEMPTS:
                    raise later.error from None
                wait_s = later.wait_s if later.wait_s is not None else min(0.5 * 2.0**attempt, 30.0)
            await self._sleep(min(wait_s, LONGEST_WAIT_S))
        raise AssertionError  # the loop returns or raises

    async def _json(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        try:
            answer = await self._http.request(method, self.base_url + path, headers=self._headers, **more)
        except httpx.HTTPError as exc:
            if isinstance(exc, (httpx.ConnectError, httpx.ConnectTimeout)) and not self.met:
                raise self._away(exc) from None  # a wrong address: nobody shall wait half a minute to be told
            raise _Later(self._away(exc)) from None
        self.met = True
        if answer.status_code >= 400:
            raise self._refused(answer)
        document = _document(answer)
        if document is None:
            raise RemoteRefused(f"{self.base_url} answered with something that is no JSON. Is this its API's address?")
        return document

    async def _download(self, path: str, to: Path) -> int:
        part = to.with_name(f".{to.name}.part")
        try:
            async with self._http.stream("GET", self.base_url + path, headers=self._headers) as answer:
                if answer.status_code >= 400:
                    await answer.aread()
                    raise self._refused(answer)
                count = await _write(answer, part)
            os.replace(part, to)
        except httpx.HTTPError as exc:
            raise _Later(self._away(exc)) from None
        except OSError as exc:
            raise StorageFull(
                f"{to} cannot be written: {exc.strerror}. Free some space, then run this again."
            ) from None
        finally:
            part.unlink(missing_ok=True)
        return count

    def _away(self, exc: httpx.HTTPError) -> RemoteRefused:
        return RemoteRefused(
            f"{self.base_url} does not answer ({type(exc).__name__}). Check the address and this machine's network; "
            "what is done stays, run this again."
        )

    def _refused(self, answer: httpx.Response) -> Exception:
        status = answer.status_code
        error = (_document(answer) or {}).get("error")
        said = error if isinstance(error, dict) else {}
        reason = str(said.get("code") or "")
        words = "".join(c for c in str(said.get("message") or "") if c.isprintable())[:300]
        if status == 401:
            message = f"{self.base_url} does not accept {self._who}."  # its own words may repeat part of the key
        else:
            message = f"{self.base_url} answered {status}" + (f": {words}" if words else ".")
        param = said.get("param") if isinstance(said.get("param"), str) else None
        refused = RemoteRefused(message, answered=status, reason=reason, param=param)
        if status not in _AGAIN or reason == "insufficient_quota" or answer.headers.get("x-should-retry") == "false":
            return refused
        return _Later(refused, _wait(answer.headers))


class _Later(Exception):
    """It may help to ask again. wait_s: after so long, None where nobody said."""

    def __init__(self, error: RemoteRefused, wait_s: float | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.wait_s = wait_s


@asynccontextmanager
async def open_remote(
    base_url: str, key: str, *, who: str, inside: bool = False, sleep: Sleep = asyncio.sleep
) -> AsyncIterator[Remote]:
    """inside: the operator's own network, where no proxy is used (HTTPS_PROXY) and http:// is taken. InvalidRequest for
    what is no address.
    """
    secure = _checked(base_url, inside)
    async with httpx.AsyncClient(
        verify=httpx.create_ssl_context() if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        trust_env=not inside,
        follow_redirects=False,
        timeout=httpx.Timeout(TIMEOUT_S, connect=15.0),
    ) as http:
        yield Remote(http, base_url, key, who=who, sleep=sleep)


def _checked(base_url: str, inside: bool) -> bool:
    """Whether it is https; a key never goes to the outside in the clear."""
    try:
        parts = urlsplit(base_url)
        host = parts.hostname or ""
        good = parts.scheme in ("http", "https") and bool(host) and parts.port != 0 and base_url.isprintable()
    except ValueError:
        good, host, parts = False, "", urlsplit("")
    if not good:
        base_url = "".join(c for c in base_url[:200] if c.isprintable())
        raise InvalidRequest(f"{base_url} is no address such as https://api.openai.com/v1.", param="base_url")
    if parts.scheme == "http" and not inside and not _is_loopback(host):
        raise InvalidRequest(
            f"{base_url} is not encrypted, and the key would be sent in the clear. Use https://.", param="base_url"
        )
    return parts.scheme == "https"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _document(answer: httpx.Response) -> dict[str, Any] | None:
    try:
        found = answer.json()
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _wait(headers: httpx.Headers) -> float | None:
    """Seconds of Retry-After (whole seconds there; OpenAI also sends milliseconds)."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * unit)
        except (KeyError, ValueError):
            continue
    return None


async def _write(answer: httpx.Response, part: Path) -> int:
    count = 0
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        async for chunk in answer.aiter_bytes():
            await asyncio.to_thread(file.write, chunk)
            count += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return count
