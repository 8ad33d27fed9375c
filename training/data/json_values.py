"""The values of a JSON file one by one: the items of a list, or objects one after the other, never the whole file.

Finds where each value begins and ends, and leaves its parsing to others. Must not know what the values mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from training.data.finding import Finding, found

MAX_RECORD = 16 << 20
CHUNK = 1 << 20
# A whole string, a string that the buffer ends in (cut), or a bracket.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|(?P<cut>\\?\Z))|(?P<open>[{\[])|(?P<close>[}\]])', re.DOTALL)
_BETWEEN = re.compile(rb"[\s,]*+")
_SCALAR = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[^\s,\[\]{}"]++')


@dataclass(frozen=True, slots=True)
class Piece:
    """The text of one value: its place among the values, and the line of the file where it begins."""

    place: int
    line: int
    text: bytes


def broken(text: bytes, exc: ValueError, number: int, where: str = "") -> Finding:
    """What is wrong with a text that is no JSON; never with the text itself in it."""
    if "UTF-8" in str(exc):
        return found("encoding", f"{not_utf8(text)}{where}", number)
    reason = re.sub(r": line \d+ column \d+ \(char (\d+)\)$", r" at character \1", str(exc))
    return found("broken_json", f"Not valid JSON: {reason[:200]}.{where}", number)


def not_utf8(text: bytes) -> str:
    """The sentence for bytes that are not UTF-8, with what they may be."""
    try:
        text.decode()
    except UnicodeDecodeError as exc:
        at = f"byte {text[exc.start]:#04x} at position {exc.start}"
    else:
        return "A character is written as half of a pair. Save the file as UTF-8."
    try:
        text.decode("gb18030")
        guess = "GB18030"
    except UnicodeDecodeError:
        guess = "CP1252"
    return f"Not UTF-8 ({at}). Save the file as UTF-8, perhaps with: iconv -f {guess} -t UTF-8."


class _Window:
    """The part of the file that is looked at; grows at its end, shrinks at its start."""

    def __init__(self, file: BinaryIO, on_read: Callable[[], None] | None) -> None:
        self._file, self._on_read = file, on_read
        self.text, self.at, self.ended = b"", 0, False
        self._line, self._counted = 1, 0  # the line in which text[_counted] stands

    def more(self) -> bool:
        """Read on; False at the end of the file."""
        chunk = self._file.read(CHUNK)
        if not chunk:
            self.ended = True
            return False
        if self._on_read is not None:
            self._on_read()
        self.line()
        self.text, self.at, self._counted = self.text[self.at :] + chunk, 0, 0
        return True

    def line(self) -> int:
        """The line of the file where the window stands."""
        self._line += self.text.count(b"\n", self._counted, self.at)
        self._counted = self.at
        return self._line

    def skip(self) -> bytes:
        """Pass over what stands between values; the byte behind it, nothing at the end of the file."""
        while True:
            between = _BETWEEN.match(self.text, self.at)
            self.at = between.end() if between else self.at
            if self.at < len(self.text):
                return self.text[self.at : self.at + 1]
            if not self.more():
                return b""


def values(file: BinaryIO, on_read: Callable[[], None] | None = None) -> Iterator[Piece | Finding]:
    """Each value of `file`, in order. A value that never ends is a finding, and the last."""
    window = _Window(file, on_read)
    try:
        in_list = window.skip() == b"["
        window.at += in_list
        place = 0
        while (first := window.skip()) and not (in_list and first == b"]"):
            place += 1
            line = window.line()
            if first in (b"]", b"}"):
                yield found("cut_off", f"Line {line} closes a bracket that was never opened; no more was read.", place)
                return
            end = _end(window, first)
            if end is None:
                yield _endless(place, line, window.ended)
                return
            yield Piece(place, line, window.text[window.at : end])
            window.at = end
        if in_list and first != b"]":
            yield found("cut_off", "The list is never closed by ]. Was the file cut off?", place + 1)
        elif in_list:
            window.at += 1
            if window.skip():
                line = window.line()
                yield found("cut_off", f"The list ends before line {line}, and what follows was not read.", place + 1)
    except UnicodeError:
        yield found("encoding", "The file is not the encoding that it begins with. Save it as UTF-8.", 1)


def _end(window: _Window, first: bytes) -> int | None:
    """Where the value at window.at ends, reading on until it does; None where it does not."""
    if first not in (b"{", b"["):
        return _scalar_end(window)
    depth, position = 0, window.at
    while True:
        token = _TOKEN.search(window.text, position)
        if token is None or token["cut"] is not None:
            position = (token.start() if token else len(window.text)) - window.at
            if len(window.text) - window.at > MAX_RECORD or not window.more():
                return None
            continue
        position = token.end()
        depth += (token["open"] is not None) - (token["close"] is not None)
        if depth == 0:
            return position if position - window.at <= MAX_RECORD else None


def _scalar_end(window: _Window) -> int | None:
    while True:
        token = _SCALAR.match(window.text, window.at)
        if token is not None and token.end() < len(window.text):
            return token.end()
        if len(window.text) - window.at > MAX_RECORD:
            return None
        if not window.more():
            return None if token is None else token.end()


def _endless(place: int, line: int, ended: bool) -> Finding:
    if ended:
        reason = f"The record of line {line} never ends: a quote or a bracket is missing, or the file is cut."
    else:
        reason = f"The record of line {line} is over 16 MiB, so nothing from here on was read."
    return found("cut_off", f"{reason} One record a line (JSONL) keeps what is good.", place)
