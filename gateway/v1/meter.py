"""What passes through: whole events on, usage noted, engine errors held back, the end of a stream judged.

Pure state machines over answer bytes. A chat chunk is looked at with a handful of byte searches and never
parsed: inside a JSON string every quote has a backslash before it, so `"usage":{` can only be a key.
Must not know sockets, time or who is asking.
"""

from __future__ import annotations

import re
from typing import Any, Protocol

import orjson

from gateway.v1.dialect import Dialect
from gateway.v1.wire import encode, model_field

_CHUNK = b'data: {"id":'  # how every chunk of an engine begins; all else is parsed
_USAGE = b',"usage":{'
_CHAT_USAGE = _USAGE + b'"prompt_tokens":'  # the engine's own: what a model says is in strings there
_NUMBER = re.compile(rb'"(\w+_tokens)":(\d{1,15})')
_EMPTY = (b'"content":""', b'"text":""', b'"delta":{}')  # a chunk without content
_SMALL_ANSWER = 16 * 1024  # bytes; parsing it whole is cheaper than being clever (1 µs per KB)
_TAIL = 64 * 1024  # bytes at the end of a large answer in which its usage stands
_MOST_TOKENS = 2**40  # a larger count is no count: written down, it would close a key for good


class Meter(Protocol):
    """What an exchange passes bytes through."""

    stopped: bool  # nothing more will be passed on

    def feed(self, data: bytes) -> bytes: ...


class StreamMeter:
    """One event stream. Only whole events are passed on, so an error event can be put in at any time.

    strip_usage: the caller did not ask for the last usage chunk; strip_continuous: nor for usage in every chunk.
    max_event_bytes: a longer event ends the stream. rename: the engine's and the public name of the model.
    """

    __slots__ = (
        "_dialect", "_max", "_named", "_noted", "_pending", "_rename", "_strip_continuous", "_strip_usage", "_usage",
        "deltas", "exact", "fault", "finish", "has_usage", "saw_terminator", "started", "stopped",
    )  # fmt: skip

    def __init__(
        self,
        dialect: Dialect,
        *,
        strip_usage: bool,
        strip_continuous: bool,
        max_event_bytes: int,
        rename: tuple[bytes, bytes] | None = None,
    ) -> None:
        self._dialect = dialect
        self._named = dialect.named_events
        self._strip_usage = strip_usage and dialect.injects_usage
        self._strip_continuous = strip_continuous and dialect.injects_usage
        self._max = max_event_bytes
        self._rename = _fields_of(rename)
        self._pending = bytearray()  # the beginning of an event
        self._usage = b""  # the last usage object, parsed when somebody asks
        self.exact = False  # it is that of the whole answer, not of one chunk's choice
        self._noted: dict[str, Any] = {}  # the same, parsed
        self.deltas = 0  # events that carried generated content
        self.has_usage = False
        self.saw_terminator = False
        self.started = False  # the first content has passed
        self.stopped = False  # nothing more will be passed on
        self.fault: str | None = None  # "engine_error", "oversized_event"
        self.finish = ""  # why the answer ended, where somebody watches

    # Bytes ---------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> bytes:
        """The bytes to pass on now. Never raises: what is wrong is in `fault`."""
        if self.stopped:
            return b""
        if not self._pending and data.endswith(b"\n\n") and len(data) <= self._max:  # most often exactly one event
            if not self._named:
                if data.count(b"\n") == 2:
                    return self._chunk(data)
            elif data.find(b"\n\n") == len(data) - 2 and b"\r" not in data:
                return self._event(data)
        return self._assemble(data)

    def end(self) -> str | None:
        """The upstream body ended whole: None if the stream did too, else how it broke."""
        if self.saw_terminator:
            return None
        if self.fault is not None:
            return self.fault
        return "half_event" if self._pending.strip() else "quiet_end"

    def _assemble(self, data: bytes) -> bytes:
        """Bytes that are not exactly one event: several, or parts. An event ends with an empty line (LF or CR LF)."""
        buffer = self._pending
        search = max(len(buffer) - 2, 0)
        buffer += data
        carriage_returns = b"\r" in buffer
        out: list[bytes] = []
        start = 0
        while not self.stopped:
            end = _event_end(buffer, search, carriage_returns)
            if (end if end > 0 else len(buffer)) - start > self._max:
                self._fail("oversized_event")
            elif end < 0:
                break
            else:
                event = bytes(buffer[start:end])
                out.append(self._event(event) if self._named else self._chunk(event))
            start = search = end
        if self.stopped:
            buffer.clear()
        else:
            del buffer[:start]
        return b"".join(out)

    def _fail(self, fault: str) -> bytes:
        self.fault = fault
        self.stopped = True
        return b""

    # Events --------------------------------------------------------------------------------------------

    def _chunk(self, event: bytes) -> bytes:
        """One event of a chat or completions stream."""
        if not event.startswith(_CHUNK) or event.find(b'"error":') > 0:
            return self._parsed(event)
        at = event.rfind(_USAGE)
        if at > 0:
            # Usage holds numbers and objects of numbers: no string in it can hide a brace.
            end = event.find(b"}", at)
            if event.find(b"{", at + len(_USAGE), end) > 0:  # details inside: then it must be the last field
                if event.find(b"},", at) > 0 or not event.endswith(b"}}}\n\n"):
                    return self._parsed(event)
                end = len(event) - 4
            self._usage = event[at + len(_USAGE) - 1 : end + 1]
            self.has_usage = True
            if event.endswith(b'"choices":[]', 0, at):
                self.exact = True
                return b"" if self._strip_usage else self._renamed(event)
            if self._strip_continuous:
                event = event[:at] + event[end + 1 :]
        self._count(event)
        return event if self._rename is None else event.replace(*self._rename, 1)

    def _count(self, event: bytes) -> None:
        """A chunk of an answer; the first ones only say "assistant"."""
        if self.started:
            self.deltas += 1
        elif not any(empty in event for empty in _EMPTY):
            self.started = True
            self.deltas = 1

    def _event(self, event: bytes) -> bytes:
        """One event of a stream that names its types."""
        line = event.find(b"\n")
        name = event[7:line].rstrip(b"\r") if event.startswith(b"event: ") else b""
        if name.endswith(self._dialect.delta_suffix):
            self.started = True
            self.deltas += 1
            return event
        return self._parsed(event)

    def _parsed(self, event: bytes) -> bytes:
        """Any other event, read in full: an engine's error, the terminator, usage, comments, odd spellings."""
        dialect = self._dialect
        name, data = _fields(event)
        if not data:
            return event if name not in dialect.failures else self._fail("engine_error")
        if not self._named and data in dialect.terminators:
            return self._whole(event)
        try:
            payload = orjson.loads(data)
        except orjson.JSONDecodeError:
            payload = None
        if type(payload) is not dict:
            return self._fail("engine_error")
        name = name or str(payload.get("type", "")).encode()
        if payload.get("error") or payload.get("object") == "error" or name in dialect.failures:
            return self._fail("engine_error")
        if self._named:
            return self._parsed_event(event, name, payload)
        return self._parsed_chunk(event, payload)

    def _parsed_event(self, event: bytes, name: bytes, payload: dict[str, Any]) -> bytes:
        dialect = self._dialect
        if name in dialect.usage_events:
            holder = payload.get(dialect.wrapper)
            usage = (holder if type(holder) is dict else payload).get("usage")
            self._note(usage, name in dialect.terminators or name == dialect.usage_events[-1])
        if name in dialect.terminators:
            return self._whole(event)
        if name.endswith(dialect.delta_suffix):
            self.started = True
            self.deltas += 1
        return self._renamed(event)

    def _parsed_chunk(self, event: bytes, payload: dict[str, Any]) -> bytes:
        """A chunk that is spelled unusually; where something is cut out of it, it is written anew."""
        last = payload.get("choices") == []
        if type(payload.get("usage")) is dict:
            self._note(payload["usage"], last)
            if last and self._strip_usage:
                return b""
            if not last and self._strip_continuous:
                del payload["usage"]
                event = b"data: %b\n\n" % encode(payload)
        if not last:
            self._count(event)
        return self._renamed(event)

    def _renamed(self, event: bytes) -> bytes:
        return event if self._rename is None else event.replace(*self._rename, 1)

    def _whole(self, event: bytes) -> bytes:
        self.saw_terminator = self.stopped = True
        return self._renamed(event)

    # Usage ---------------------------------------------------------------------------------------------

    def _note(self, usage: Any, exact: bool) -> None:
        if type(usage) is dict:
            self._noted = {**self._noted, **usage}  # Anthropic's last event may leave out what its first one said
            self._usage = b""
            self.has_usage = True
            self.exact = exact

    def _numbers(self) -> tuple[int, int]:
        if self._usage:
            try:
                self._noted = orjson.loads(self._usage)
            except orjson.JSONDecodeError:
                self.has_usage = False
            self._usage = b""
        found = _numbers(self._dialect, self._noted)
        if found is None:
            self.has_usage = False
            return 0, 0
        return found

    @property
    def prompt_tokens(self) -> int:
        return self._numbers()[0]

    @property
    def completion_tokens(self) -> int:
        """As the engine said of the whole answer; before it did, the last chunk's number or the deltas counted.

        A chunk speaks of its own choice only, so with n > 1 the deltas may be more.
        """
        completion = self._numbers()[1]
        return completion if self.exact else max(completion, self.deltas)


class WatchedMeter(StreamMeter):
    """A StreamMeter that also notes why the answer ended, for requests that take part in a canary."""

    __slots__ = ()

    def feed(self, data: bytes) -> bytes:
        out = super().feed(data)  # whole events only: no word is cut
        if out:
            self.finish = finish_of(self._dialect, out) or self.finish
        return out


class BodyMeter:
    """One large JSON answer that passes through in pieces; only its tail is kept.

    max_bytes: a longer answer is stopped. rename: the engine's and the public name of the model, changed where
    one piece holds the whole field, as the first always does: it is at least what the gateway held back.
    """

    __slots__ = ("_dialect", "_left", "_rename", "_tail", "_usage", "stopped")

    def __init__(self, dialect: Dialect, max_bytes: int, rename: tuple[bytes, bytes] | None = None) -> None:
        self._dialect = dialect
        self._left = max_bytes
        self._rename = _fields_of(rename)
        self._tail = b""
        self._usage = b""  # what follows its key, where that has left the tail: prompt_logprobs come after it
        self.stopped = False

    def feed(self, data: bytes) -> bytes:
        """The bytes to pass on now."""
        self._left -= len(data)
        if self.stopped or self._left < 0:
            self.stopped = True
            return b""
        seen = self._tail + data
        at = seen.rfind(_CHAT_USAGE) if self._dialect.injects_usage else -1
        if at >= 0:
            self._usage = seen[at + len(_USAGE) - 1 : at + 1024]
        self._tail = seen[-_TAIL:]
        return data if self._rename is None else data.replace(*self._rename, 1)

    def usage(self) -> tuple[int, int] | None:
        found = _usage_in_tail(self._dialect, self._tail)
        if found is None and self._usage:
            flat = _NUMBER.findall(self._usage.partition(b"}")[0])
            found = _numbers(self._dialect, {name.decode(): int(count) for name, count in flat})
        return found


_FINISH = {
    b"stop": "stop", b"end_turn": "stop", b"stop_sequence": "stop",
    b"length": "length", b"max_tokens": "length",
    b"tool_calls": "tool_calls", b"function_call": "tool_calls", b"tool_use": "tool_calls",
    b"content_filter": "content_filter", b"refusal": "content_filter",
}  # fmt: skip


def finish_of(dialect: Dialect, data: bytes) -> str:
    """Why an answer ended, in OpenAI's words ("other" for a new one); "" where these bytes do not say."""
    if dialect.ends_with:
        at = data.rfind(dialect.ends_with)
        start = at + len(dialect.ends_with)
        return _FINISH.get(data[start : data.find(b'"', start)], "other") if at >= 0 else ""
    for needle, reason in dialect.ends_where:
        if needle in data:
            return reason
    return ""


def usage_of(dialect: Dialect, body: bytes) -> tuple[int, int] | None:
    """Prompt and completion tokens of a whole answer; None if it does not say or is not JSON.

    An answer above 16 KB is not parsed whole where its usage stands in the tail.
    """
    if len(body) > _SMALL_ANSWER and body[:1] == b"{":
        found = _usage_in_tail(dialect, body[-_TAIL:])
        if found is not None:
            return found
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if type(answer) is not dict:
        return None
    if not dialect.prompt_keys:  # a count of tokens: nothing was generated, nothing is charged
        return (0, 0) if type(answer.get("input_tokens")) is int else None
    return _numbers(dialect, answer.get("usage"))


def _usage_in_tail(dialect: Dialect, tail: bytes) -> tuple[int, int] | None:
    """Usage of an answer of which only the end is there.

    `{` plus everything from the key on is a JSON object if and only if the key stands at the top level: one
    level deeper and there is a bracket too many. So a `usage` in a tool's arguments cannot be taken for it.
    """
    at = tail.rfind(b'"usage":{')
    if at < 1 or tail[at - 1] not in b",{":
        return None
    try:
        return _numbers(dialect, orjson.loads(b"{" + tail[at:])["usage"])
    except orjson.JSONDecodeError:
        return None


def _numbers(dialect: Dialect, usage: Any) -> tuple[int, int] | None:
    if type(usage) is not dict:
        return None
    prompt = [usage[key] for key in dialect.prompt_keys if usage.get(key) is not None]
    completion = usage.get(dialect.completion_key) or 0
    if not prompt or any(type(count) is not int or not 0 <= count < _MOST_TOKENS for count in (*prompt, completion)):
        return None
    return sum(prompt), completion


def _fields_of(rename: tuple[bytes, bytes] | None) -> tuple[bytes, bytes] | None:
    return None if rename is None else (model_field(rename[0].decode()), model_field(rename[1].decode()))


def _event_end(buffer: bytearray, search: int, carriage_returns: bool) -> int:
    """Where the first event that ends at or after `search` ends, -1 if none does."""
    end = buffer.find(b"\n\n", search)
    end = -1 if end < 0 else end + 2
    if carriage_returns:
        other = buffer.find(b"\n\r\n", search)
        if other >= 0 and (end < 0 or other + 3 < end):
            return other + 3
    return end


def _fields(event: bytes) -> tuple[bytes, bytes]:
    """An event's type and data, by the rules of server-sent events."""
    name, data = b"", []
    for line in event.splitlines():
        field, _, value = line.partition(b":")
        if field == b"event":
            name = value.removeprefix(b" ")
        elif field == b"data":
            data.append(value.removeprefix(b" "))
    return name, b"\n".join(data)
