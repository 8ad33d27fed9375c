"""`loragate up` keeps the terminal for the person: the gateway's own log goes to a file, capped and rotated."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path

from gateway.logs import JsonFormatter

CAP_BYTES = 10_000_000
KEPT = 2
CHATTY = ("httpx", "httpcore", "uvicorn.access", "uvicorn.error", "alembic", "asyncio")


class _Lossy(RotatingFileHandler):
    """A line that a full disk does not take is lost: it must neither fill the person's terminal nor end the gateway."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with suppress(OSError):
            super().close()


@contextmanager
def to_file(path: Path, level: str) -> Iterator[None]:
    """Send this process's log lines to `path` for the block, then close it and put the old handlers back."""
    root = logging.getLogger()
    before, level_before = root.handlers[:], root.level
    handler = _Lossy(path, maxBytes=CAP_BYTES, backupCount=KEPT, encoding="utf-8")
    handler.setFormatter(JsonFormatter())
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield
    finally:
        root.handlers[:] = before
        root.setLevel(level_before)
        handler.close()
