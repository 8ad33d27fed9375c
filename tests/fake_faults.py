"""The faults that the fake engine can be told to have, and how each of them looks in bytes.

Knows the wire, nothing of models: it takes the answer that would have been given and spoils it.
"""

from __future__ import annotations

import asyncio
import gzip
from dataclasses import dataclass, replace
from enum import Enum, auto

from tests.fake_wire import SSE, Connection, Reply, chunk

_PIECE = 65536
_HTML = (
    b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n<center><h1>502 Bad Gateway</h1></center>\r\n"
    b"<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
)


class Fault(Enum):
    """What goes wrong. `after` = events sent whole before it does (answers without stream: half of the body)."""

    REFUSE = auto()  # the listener closes at once, live connections drop; engine.start() ends it
    RESET = auto()  # RST before a byte
    CLOSE_BEFORE_HEAD = auto()  # FIN before a byte
    CLOSE_AFTER_HEAD = auto()
    CUT_MID_STREAM = auto()  # the connection ends inside the body
    QUIET_END = auto()  # a well-formed end of the body, the terminator missing
    HALF_EVENT = auto()  # the same, inside an event
    ERROR_EVENT = auto()  # the engine fails while generating, as vLLM shows it on that route
    STALL_BEFORE_HEAD = auto()
    STALL_BEFORE_FIRST = auto()  # the head, then nothing
    STALL_BETWEEN = auto()
    HTML_502 = auto()
    NOT_JSON = auto()
    WRONG_CONTENT_TYPE = auto()  # the right answer as text/html
    HUGE_LINE = auto()  # one line of `size` bytes
    HUGE_BODY = auto()  # `size` bytes of body, or of events
    HUGE_HEAD = auto()  # one header of `size` bytes (1 MiB unless told)
    REDIRECT = auto()  # 302 to `location`
    STATUS = auto()  # `status` and `body` (vLLM's envelope where none is given)
    GZIP = auto()  # compressed though nobody asked
    SLOW = auto()  # `delay` seconds before every event, or before the whole
    SLICED = auto()  # right, but in TCP pieces of 7 bytes and chunks that end inside events
    NOT_HTTP = auto()  # the port speaks something else
    EARLY_HINTS = auto()  # right, after two 1xx heads
    KEEP_ALIVE_COMMENTS = auto()  # right, with `: keep-alive` before every event (--sse-keep-alive-interval)


@dataclass(slots=True)
class Scripted:
    """One entry of a script: a fault, what it applies to, and its measure."""

    fault: Fault
    times: int | None
    path: str | None
    model: str | None
    after: int
    status: int
    body: bytes | None
    headers: list[tuple[str, str]]
    delay: float
    size: int
    location: str
    undone: bool = False  # what was asked for is not done

    def matches(self, path: str, model: str | None, *, inference: bool) -> bool:
        """Without a path only inference requests are spoilt; with one, exactly that path."""
        return (inference if self.path is None else path == self.path) and self.model in (None, model)


async def misbehave(connection: Connection, reply: Reply, what: Scripted, *, keep_alive: bool) -> None:
    """Answer `reply`, spoilt as `what` says; returns when nothing more will be sent."""
    match what.fault:
        case Fault.RESET:
            connection.reset()
        case Fault.CLOSE_BEFORE_HEAD:
            connection.abort()
        case Fault.STALL_BEFORE_HEAD:
            await asyncio.Event().wait()
        case Fault.NOT_HTTP:
            await connection.send(b"SSH-2.0-OpenSSH_9.2p1\r\n")
            connection.transport.close()
        case Fault.EARLY_HINTS:
            await connection.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n")
            await connection.reply(reply, keep_alive=keep_alive)
        case Fault.SLICED:
            await _sliced(connection, reply, keep_alive)
        case Fault.SLOW:
            if reply.events is None:
                await asyncio.sleep(what.delay)
            await connection.reply(reply, keep_alive=keep_alive, delay=what.delay)
        case Fault.HUGE_LINE | Fault.HUGE_BODY:
            await _huge(connection, reply, what, keep_alive)
        case fault if fault in _REPLACED:
            await connection.reply(_replaced(reply, what), keep_alive=keep_alive)
        case _:
            await _broken(connection, reply, what, keep_alive)


_REPLACED = {
    Fault.HTML_502,
    Fault.NOT_JSON,
    Fault.WRONG_CONTENT_TYPE,
    Fault.HUGE_HEAD,
    Fault.REDIRECT,
    Fault.STATUS,
    Fault.GZIP,
    Fault.KEEP_ALIVE_COMMENTS,
    Fault.ERROR_EVENT,
}


def _replaced(reply: Reply, what: Scripted) -> Reply:
    """Another answer, itself well-formed HTTP."""
    match what.fault:
        case Fault.HTML_502:
            return Reply(502, _HTML, "text/html", headers=[])
        case Fault.NOT_JSON:
            events = None if reply.events is None else [b"data: this is not JSON\n\n"]
            return replace(reply, body=b"this is not JSON", events=events)
        case Fault.WRONG_CONTENT_TYPE:
            return replace(reply, content_type="text/html")
        case Fault.HUGE_HEAD:
            return replace(reply, headers=[("x-huge", "x" * (what.size or 1 << 20))])
        case Fault.REDIRECT:
            return Reply(302, b"", None, headers=[("location", what.location)])
        case Fault.STATUS:
            return Reply(what.status, what.body or b"", headers=what.headers)
        case Fault.GZIP:
            events = None if reply.events is None else [gzip.compress(b"".join(reply.events))]
            return replace(reply, body=gzip.compress(reply.body), events=events, headers=[("content-encoding", "gzip")])
        case Fault.KEEP_ALIVE_COMMENTS if reply.events is not None:
            return replace(reply, events=[part for event in reply.events for part in (b": keep-alive\n\n", event)])
        case _:  # ERROR_EVENT: the answer was already made with the engine's failure in it
            return reply


async def _sliced(connection: Connection, reply: Reply, keep_alive: bool) -> None:
    """Every byte right, no boundary where one would like it."""
    if reply.events is None:
        wire = reply.head(keep_alive=keep_alive, length=len(reply.body)) + reply.body
    else:
        body = b"".join(reply.events)
        parts = [chunk(body[at : at + 11]) for at in range(0, len(body), 11)]
        wire = reply.head(keep_alive=keep_alive) + b"".join(parts) + chunk(b"")
    for at in range(0, len(wire), 7):
        await connection.send(wire[at : at + 7])
    _ended(connection, keep_alive)


async def _huge(connection: Connection, reply: Reply, what: Scripted, keep_alive: bool) -> None:
    size = what.size or 16 << 20
    if reply.events is None:
        await connection.send(reply.head(keep_alive=keep_alive, length=size))
        await connection.send(b'{"id":"')
        for at in range(7, size - 2, _PIECE):
            await connection.send(b"x" * min(_PIECE, size - 2 - at))
        await connection.send(b'"}')
        return _ended(connection, keep_alive)
    await connection.send(reply.head(keep_alive=keep_alive))
    piece = b"x" * _PIECE
    if what.fault is Fault.HUGE_LINE:
        await connection.send(chunk(b"data: "))
    else:
        piece = reply.events[len(reply.events) // 2] * (_PIECE // 256)
    for _ in range(0, size, len(piece)):
        await connection.send(chunk(piece))
    await connection.send(chunk(b"\n\n" if what.fault is Fault.HUGE_LINE else reply.events[-1]) + chunk(b""))
    return _ended(connection, keep_alive)


async def _broken(connection: Connection, reply: Reply, what: Scripted, keep_alive: bool) -> None:
    """A right head, then a body that does not come to its right end."""
    if reply.events is None:
        whole, half = len(reply.body), reply.body[: len(reply.body) // 2]
        chunked = what.fault in (Fault.QUIET_END, Fault.HALF_EVENT)
        pieces = [chunk(half) if chunked else half]
        head = reply.head(keep_alive=keep_alive, length=None if chunked else whole)
        begun = half
    else:
        head = replace(reply, content_type=SSE).head(keep_alive=keep_alive)
        pieces = [chunk(event) for event in reply.events[: what.after]]
        begun = reply.events[min(what.after, len(reply.events) - 1)]
    await connection.send(head)
    if what.fault is Fault.STALL_BEFORE_FIRST:
        await asyncio.Event().wait()
    if what.fault is Fault.CLOSE_AFTER_HEAD:
        return connection.abort()
    for piece in pieces:
        await connection.send(piece)
    match what.fault:
        case Fault.CUT_MID_STREAM:
            connection.abort()
        case Fault.STALL_BETWEEN:
            await asyncio.Event().wait()
        case Fault.HALF_EVENT if reply.events is not None:
            await connection.send(chunk(begun[: len(begun) // 2]) + chunk(b""))
            _ended(connection, keep_alive)
        case _:
            await connection.send(chunk(b""))
            _ended(connection, keep_alive)
    return None


def _ended(connection: Connection, keep_alive: bool) -> None:
    if not keep_alive:
        connection.transport.close()
