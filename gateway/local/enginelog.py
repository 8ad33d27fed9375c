"""The engine's log file: capped, read for the stage of a start, and for the last error in its own words.

Knows how vLLM words its log; what follows from a line is decided elsewhere.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

CAP_BYTES = 20_000_000
TAIL_BYTES = 128 * 1024
MESSAGE_CHARS = 400

_DECORATION = re.compile(
    r"\x1b\[[0-9;]*m|^\([^)]*pid=\d+\)\s*|^(?:INFO|WARNING|ERROR|CRITICAL)\s+\d\d-\d\d \d\d:\d\d:\d\d\s+\[[^\]]*\]\s*"
)
# An exception's last line, or an argument parser's. The lines that only point at another line are left out.
_ERROR = re.compile(r"^(?:[\w.]+\.)?\w*(?:Error|Exception|Interrupt)\b(?:: |$)|^[\w.]+: error: |^OSError|^Killed")
_POINTER = re.compile(
    r"(?:Engine core|WorkerProc) initialization failed|See root cause above|EngineDeadError"
    r"|^SystemExit|^KeyboardInterrupt"
)
_VALUE = "Value error, "
_DECIDED = re.compile(
    r"^(?:[\w.]+\.)?(?:ValueError|ValidationError|NotImplementedError|SafetensorError)\b|^[\w.]+: error: "
)
# What an argument parser and a worker process put around the one thing that a person can use.
_WRAPPED = re.compile(
    r"^[\w.]+: error: (.*)$|^RuntimeError: Worker failed with error '(.*)', please check the stack.*$"
)
_STAGES = (
    (re.compile(r"Application startup complete|Started server process|Starting vLLM server"), "opening the API"),
    (re.compile(r"Warming up|Dynamo bytecode|Compiling a graph|[Cc]apturing CUDA graph"), "warming up"),
    (re.compile(r"KV cache|init engine"), "reserving memory for the cache"),
    (re.compile(r"[Ll]oading (?:model )?weights|Starting to load model|Loading safetensors"), "loading the weights"),
    (re.compile(r"Initializing a V1 LLM engine|EngineCore"), "starting the engine core"),
    (
        re.compile(r"vLLM API server version|non-default args|Resolved architecture"),
        "reading the model's configuration",
    ),
)


@dataclass(frozen=True, slots=True)
class EngineLog:
    """One log file, appended to by the engine, `.1` beside it being the one before."""

    path: Path
    cap_bytes: int = CAP_BYTES

    def cap(self) -> None:
        """Move a file beyond the cap aside: called between two processes, never while one writes."""
        if self.size() > self.cap_bytes:
            os.replace(self.path, self.path.with_name(self.path.name + ".1"))

    def open(self) -> int:
        """A descriptor to append with; the caller closes it."""
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def size(self) -> int:
        """Bytes written so far: the place where a start's own lines begin."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def lines(self, since: int) -> list[str]:
        """The last lines written after byte `since`, without colours, process names and time stamps."""
        try:
            with self.path.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(since if since <= end else 0, end - TAIL_BYTES))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return []
        return [line for raw in text.splitlines() if (line := plain(raw))]

    def stage(self, since: int) -> str:
        """What the engine is doing, by the last line that says so; empty before any does."""
        for line in reversed(self.lines(since)):
            for pattern, stage in _STAGES:
                if pattern.search(line):
                    return stage
        return ""

    def last_error(self, since: int) -> str:
        """The engine's own last error line, else its last line, at most 400 characters; may be empty."""
        lines = self.lines(since)
        for index in range(len(lines) - 1, -1, -1):
            line = lines[index]
            if line.startswith(_VALUE):
                return readable(line.removeprefix(_VALUE).split(" [type=")[0])
            if _ERROR.search(line) and not _POINTER.search(line):
                # pydantic puts the reason below: "1 validation error for X", the field, the message
                reason = lines[index + 1 : index + 3] if "validation error" in line else []
                return readable(": ".join((line, *reason)))
        return readable(lines[-1]) if lines else ""

    def decided(self, since: int) -> bool:
        """Whether the same error would come again however often the engine is started."""
        return any(line.startswith(_VALUE) or _DECIDED.search(line) for line in self.lines(since))


def readable(error: str) -> str:
    """An error without what surrounds it in a terminal, of at most 400 characters and, if long, whole sentences."""
    error = _WRAPPED.sub(lambda found: found[1] or found[2], error)
    if len(error) <= MESSAGE_CHARS:
        return error
    whole, end, _ = error[:MESSAGE_CHARS].rpartition(". ")
    return f"{whole}." if end else error[:MESSAGE_CHARS]


def plain(raw: str) -> str:
    """A log line without its decoration."""
    line, before = raw.strip(), ""
    while line != before:
        before, line = line, _DECORATION.sub("", line).strip()
    return line
