"""One upload as multipart/form-data: its small fields in memory, its one file straight to disk, as it comes.

Must not know what is in the file, or what becomes of it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack

from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header
from starlette.requests import Request

from adapters.errors import InvalidRequest
from gateway.errors import RequestTimeout, RequestTooLarge, UnsupportedMedia, UnsupportedParameter
from training.files import MAX_FILE_BYTES, Files
from training.incoming import Incoming

MAX_FORM_BYTES = MAX_FILE_BYTES + 1024 * 1024  # the file, and what is around it
MAX_FIELD_BYTES = 1024
MAX_PARTS = 8
MAX_NAME = 255  # characters
FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")
_ODD = re.compile(r"[^\w .()+,=@~-]")  # in a file's name: shown to people, sent in headers


class Form:
    """Reads one form; what it began is undone with `stack`.

    owner: the key whose file it will be. early: told the fields that came before the file; may refuse them.
    idle_timeout_s: without a byte; there is no deadline for all of it.
    """

    def __init__(
        self,
        files: Files,
        owner: str,
        stack: AsyncExitStack,
        *,
        early: Callable[[Mapping[str, str]], object],
        idle_timeout_s: float,
    ) -> None:
        self._files = files
        self._early = early
        self._owner = owner
        self._stack = stack
        self._idle_timeout_s = idle_timeout_s
        self._part = ""
        self._value = bytearray()
        self._incoming: Incoming | None = None
        self.fields: dict[str, str] = {}

    async def read(self, request: Request) -> Incoming:
        """All of it: the file, on disk. InvalidRequest, RequestTooLarge, RequestTimeout; ClientDisconnect."""
        try:
            with PushMultipartParser(_boundary(request), max_segment_count=MAX_PARTS) as parser:
                async for chunk in self._chunks(request):
                    for event in parser.parse(chunk):
                        await self._take(event)
        except MultipartError:
            raise InvalidRequest("The body is not multipart/form-data, or it ends in the middle.") from None
        if self._incoming is None:
            raise InvalidRequest("'file' is a required property", param="file")
        return self._incoming

    async def _take(self, event: MultipartSegment | bytes | bytearray | None) -> None:
        if isinstance(event, MultipartSegment):
            await self._begin(event)
        elif event is None:
            self._end()
        elif self._part == "file" and self._incoming is not None:
            await self._incoming.write(bytes(event))
        else:
            self._value += event
            if len(self._value) > MAX_FIELD_BYTES:
                raise RequestTooLarge(f"A field of the form is larger than {MAX_FIELD_BYTES} bytes.")

    async def _begin(self, part: MultipartSegment) -> None:
        self._part, self._value = part.name or "", bytearray()
        if self._part in self.fields or (self._part == "file" and self._incoming is not None):
            raise InvalidRequest("The form has the same part twice.")
        if self._part == "file":
            self._early(self.fields)
            receiving = self._files.receiving(file_name(part.filename), self.fields.get("purpose", ""), self._owner)
            self._incoming = await self._stack.enter_async_context(receiving)
        elif self._part not in FIELDS:
            raise UnsupportedParameter(f"A file is sent with {', '.join(FIELDS)} and file, and with nothing else.")

    def _end(self) -> None:
        if self._part != "file":
            try:
                self.fields[self._part] = self._value.decode()
            except UnicodeDecodeError:
                raise InvalidRequest("A field of the form is not UTF-8.", param=self._part) from None

    async def _chunks(self, request: Request) -> AsyncIterator[bytes]:
        received, stream = 0, request.stream().__aiter__()
        while True:
            try:
                async with asyncio.timeout(self._idle_timeout_s):
                    chunk = await anext(stream, None)
            except TimeoutError:
                raise RequestTimeout(f"No byte of the file arrived for {self._idle_timeout_s:.0f} s.") from None
            if chunk is None:
                return
            received += len(chunk)
            if received > MAX_FORM_BYTES:
                raise RequestTooLarge(f"The file is larger than {MAX_FILE_BYTES} bytes. Split it.", param="file")
            if chunk:
                yield chunk


def file_name(given: str | None) -> str:
    """A file's name without its folders, in characters that may stand in a header and on a terminal."""
    last = (given or "").replace("\\", "/").rpartition("/")[2]
    return _ODD.sub("_", last)[:MAX_NAME] or "upload.jsonl"


def _boundary(request: Request) -> str:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = str(options.get("boundary", ""))
    if kind != "multipart/form-data" or not 0 < len(boundary) <= 200 or not boundary.isprintable():
        raise UnsupportedMedia("Send the file as multipart/form-data, with the fields `purpose` and `file`.")
    return boundary
