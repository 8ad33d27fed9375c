"""A file that is being made: whole or not at all, beside what it replaces, whoever else makes it at the same time.

Must not know what is written.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from adapters.errors import InvalidRequest, StorageFull

BUFFER = 1 << 20


def check_target(target: Path, sources: Iterable[Path], *, force: bool, beside: Iterable[Path] = ()) -> None:
    """InvalidRequest where `target` is no .jsonl, is one of `sources`, or is there and `force` does not say write over.

    beside: files that are written with it.
    """
    if target.suffix.lower() != ".jsonl":
        raise InvalidRequest(f"{target} is written as JSONL. Give it a name that ends with .jsonl.", param="to")
    sources = tuple(sources)
    for made in (target, *beside):
        if made.is_dir():
            raise InvalidRequest(f"{made} is a folder. Name a file with --to.", param="to")
        if not made.exists():
            continue
        if any(source.exists() and made.samefile(source) for source in sources):
            raise InvalidRequest(f"{made} is read by this command. Name another file with --to.", param="to")
        if not force:
            raise InvalidRequest(f"{made} is there already. Name another file with --to, or say --force.", param="to")


@contextmanager
def fresh(target: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `target` once the block is done; gone where the block fails. StorageFull."""
    scratch = target.with_name(f".{target.name}.{secrets.token_hex(6)}.new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("xb", buffering=BUFFER) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(target)
    except OSError as exc:
        what = f" ({exc.filename})" if exc.filename not in (None, str(scratch)) else ""
        raise StorageFull(f"{target} could not be made: {exc.strerror or exc}{what}.") from None
    finally:
        with suppress(OSError):  # nor could it be made
            scratch.unlink(missing_ok=True)
