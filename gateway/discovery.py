"""Engines given by a name: it is looked up every few seconds, and every address is a replica of its own.

Owns what the names last said: an answer that fails or is empty changes nothing. Must not know what a replica is.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from gateway.settings import Engine

log = logging.getLogger("loragate.discovery")

LOOKUP_S = 5.0  # a lookup that takes longer goes on, but nobody waits for it
HURRY_S = 1.0  # between two lookups while no engine is ready
DNS = "dns"

Resolve = Callable[[str], Sequence[str]]  # host → its addresses, from a thread of its own; OSError
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Member:
    """One replica that there should be. Two with equal URLs are the same engine; the first one counts."""

    url: str  # with the address in it, where it was looked up
    engine: Engine
    address: str | None = None  # None: its URL was given as it is


def getaddrinfo(host: str) -> Sequence[str]:
    """A and AAAA, as this machine resolves names; OSError."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]


class Discovery:
    """One loop per name. follow: told of all members when they are others; hurry: whether nothing is ready."""

    def __init__(
        self,
        engines: Iterable[Engine],
        *,
        resolve: Resolve,
        interval_s: float,
        follow: Callable[[Sequence[Member]], None],
        hurry: Callable[[], bool],
    ) -> None:
        self._resolve = resolve
        self._interval_s = interval_s
        self._follow = follow
        self._hurry = hurry
        self._given: list[Member | _Name] = [
            _Name(engine) if engine.discover == DNS else Member(engine.url, engine) for engine in engines
        ]
        self._names = [name for name in self._given if isinstance(name, _Name)]
        self._tasks: list[asyncio.Task[None]] = []

    async def first(self) -> None:
        """Look all names up once, for at most LOOKUP_S, and tell whatever is known."""
        await asyncio.gather(*(self._look(name) for name in self._names))
        self._tell()

    async def __aenter__(self) -> Discovery:
        self._tasks = [asyncio.create_task(self._watch(name), name=f"discover {name.host}") for name in self._names]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def wake(self) -> None:
        """An engine is gone: look now instead of at the next beat."""
        for name in self._names:
            name.woken.set()

    def reasons(self) -> list[str]:
        """Why there may be fewer replicas than there should be."""
        return [f"{name.engine.url} could not be looked up: {name.trouble}" for name in self._names if name.trouble]

    def document(self) -> list[dict[str, Any]]:
        """The part `discovery` of /admin/v1/status."""
        return [
            {"url": name.engine.url, "addresses": list(name.addresses), "reason": name.trouble or None}
            for name in self._names
        ]

    async def _watch(self, name: _Name) -> None:
        while True:
            interval_s = min(self._interval_s, HURRY_S) if self._hurry() else self._interval_s
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await name.woken.wait()
                    await asyncio.sleep(min(interval_s, HURRY_S) / 4)  # many may find the same one gone
            name.woken.clear()
            if await self._look(name):
                self._tell()

    async def _look(self, name: _Name) -> bool:
        """Whether it says something else than before."""
        if name.answer is None:  # else the last one still hangs: one thread per name, whatever happens
            name.answer = _on_thread(self._resolve, name.host)
        done, _ = await asyncio.wait([name.answer], timeout=LOOKUP_S)
        if not done:
            name.note(f"no answer within {LOOKUP_S:g} s")
            return False
        found, name.answer = name.answer.result(), None
        if isinstance(found, str):
            name.note(found)
            return False
        name.note("")
        before, name.addresses = name.addresses, found
        return found != before

    def _tell(self) -> None:
        members: dict[tuple[str, str, int, str], Member] = {}
        for given in self._given:
            for member in given.members() if isinstance(given, _Name) else [given]:
                members.setdefault(_place(member.url), member)
        self._follow(list(members.values()))


class _Name:
    """One name and what it said last."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.host = urlsplit(engine.url).hostname or ""
        self.addresses: tuple[str, ...] = ()
        self.trouble = ""  # why the last lookup gave nothing
        self.answer: asyncio.Future[tuple[str, ...] | str] | None = None
        self.woken = asyncio.Event()

    def members(self) -> Iterable[Member]:
        parts = urlsplit(self.engine.url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        for address in self.addresses:
            shown = f"[{address}]" if ":" in address else address
            yield Member(f"{parts.scheme}://{shown}:{port}{parts.path}", self.engine, address)

    def note(self, trouble: str) -> None:
        if trouble and trouble != self.trouble:
            log.warning("%s could not be looked up, %d addresses stay: %s", self.host, len(self.addresses), trouble)
        elif self.trouble and not trouble:
            log.info("%s is looked up again", self.host)
        self.trouble = trouble


def _on_thread(resolve: Resolve, host: str) -> asyncio.Future[tuple[str, ...] | str]:
    """Its addresses, or why there are none. A daemon thread: nothing waits for it when the process ends.

    Not the loop's own threads: there are six on two cores, and a name server that hangs would take one each time.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[tuple[str, ...] | str] = loop.create_future()

    def settle(found: tuple[str, ...] | str) -> None:
        if not future.done():
            future.set_result(found)

    def look() -> None:
        try:
            found: tuple[str, ...] | str = _clean(resolve(host)) or "it has no address"
        except (OSError, UnicodeError) as error:  # UnicodeError: a label of more than 63 characters
            found = getattr(error, "strerror", None) or type(error).__name__
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants to know any more
            loop.call_soon_threadsafe(settle, found)

    threading.Thread(target=look, name=f"resolve {host}", daemon=True).start()
    return future


def _clean(texts: Sequence[str]) -> tuple[str, ...]:
    """Each address once and in a fixed order: IPv4 first. 0.0.0.0 is how filters say no; a zone fits into no URL."""
    found: set[Address] = set()
    for text in texts:
        with contextlib.suppress(ValueError):
            address: Address = ipaddress.ip_address(text)
            if isinstance(address, ipaddress.IPv6Address):
                address = address.ipv4_mapped or address
            if not address.is_unspecified and not address.is_multicast and "%" not in str(address):
                found.add(address)
    return tuple(map(str, sorted(found, key=lambda address: (address.version, int(address)))))


def _place(url: str) -> tuple[str, str, int, str]:
    """What makes two URLs the same engine."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80), parts.path
