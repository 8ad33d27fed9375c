"""What was made and what was refused, on disk as it comes, so that nothing is paid for twice.

Two files: made rows, which are training data, and refused ones beside it. One run at a time. Must not know models.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import orjson

from adapters.errors import Conflict, InvalidRequest, StorageFull
from training.augment.asking import NotMade
from training.augment.making import Made, Manner
from training.data.openai_form import line
from training.data.row import Row, Turn, content_hash
from training.data.target import fresh


@dataclass(frozen=True, slots=True)
class Job:
    """One row that shall be made. variant: from 1."""

    parent: Row
    variant: int

    def identity(self) -> str:
        """Of what is in the parent, wherever it stands: the same job in any file."""
        return hashlib.blake2b(content_hash(self.parent) + b":%d" % self.variant, digest_size=10).hexdigest()


class Journal:
    """Opened with `with`. to: the made rows; refused: the others."""

    def __init__(self, to: Path, refused: Path, manner: Manner) -> None:
        self._to, self._refused, self._manner = to, refused, manner
        self._files: list[BinaryIO] = []
        self._owned = False
        self.done: set[str] = set()  # identities of jobs
        self.rows = 0  # made rows in the file

    def __enter__(self) -> Self:
        """InvalidRequest where a file is somebody else's, Conflict where another run writes it, StorageFull."""
        try:
            while not self._opened():  # a run that ended just now has put other files in their place
                self._close()
            self._owned = True
            for path in (self._to, self._refused):
                for about in self._read(path):
                    self.done.add(str(about["id"]))
                    self.rows += path is self._to
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    def questions(self) -> Iterator[Row]:
        """The made rows as far as what they ask goes."""
        with self._to.open("rb") as file:
            for raw in file:
                shown = orjson.loads(raw)
                messages = shown["messages"] if "messages" in shown else shown["input"]["messages"]
                yield Row(0, tuple(Turn(each["role"], each["content"]) for each in messages))

    def made(self, job: Job, made: Made) -> None:
        """Keep a row."""
        self._append(0, line(made.row, {"made": self._about(job)}))
        self._note(job)
        self.rows += 1

    def refused(self, job: Job, why: NotMade) -> None:
        """Keep what was no good, and why."""
        words = why.text.encode("utf-8", "replace").decode()
        about = {"made": self._about(job), "kind": why.kind, "message": why.message, "text": words}
        self._append(1, orjson.dumps(about) + b"\n")
        self._note(job)

    def order(self) -> None:
        """Both files by row and variant, whenever the answers came; a file without lines goes. StorageFull."""
        for file in self._files:
            os.fsync(file.fileno())
        for path in (self._to, self._refused):
            places: list[tuple[int, int, int, int]] = []
            at = 0
            with path.open("rb") as lines:
                for raw in lines:
                    about = orjson.loads(raw)["made"]
                    places.append((about["row"], about["variant"], at, len(raw)))
                    at += len(raw)
                ordered = sorted(places)
                if not ordered:
                    path.unlink()
                elif ordered != places:
                    with fresh(path) as sorted_file:
                        for _, _, start, length in ordered:
                            lines.seek(start)
                            sorted_file.write(lines.read(length))

    def _about(self, job: Job) -> dict[str, Any]:
        about = {"how": self._manner.how, "by": self._manner.model, "row": job.parent.number, "variant": job.variant}
        return about | ({"via": self._manner.via} if self._manner.via else {}) | {"id": job.identity()}

    def _note(self, job: Job) -> None:
        self.done.add(job.identity())

    def _append(self, place: int, text: bytes) -> None:
        """One line, out of this process at once: what was paid for is not lost with it."""
        file = self._files[place]
        try:
            file.write(text)
            file.flush()
        except OSError as exc:
            message = f"{file.name} cannot be written: {exc.strerror}. Free some space, then run this again."
            raise StorageFull(message) from None

    def _opened(self) -> bool:
        """Open and lock both; False where they are not those of that name any more."""
        self._files = [_appending(self._to), _appending(self._refused)]
        try:
            fcntl.flock(self._files[0].fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Conflict(f"Another run writes {self._to}. Wait for it, or name another file with --to.") from None
        pairs = zip(self._files, (self._to, self._refused), strict=True)
        return all(_is(file, path) for file, path in pairs)

    def _read(self, path: Path) -> Iterator[Mapping[str, Any]]:
        """How each line was made. Half a line at the end, which is what a crash leaves, is cut off."""
        good = 0
        with path.open("r+b") as file:
            for number, raw in enumerate(file, 1):
                if not raw.endswith(b"\n"):
                    file.truncate(good)
                    return
                about = _about(raw)
                if about is None:
                    raise InvalidRequest(
                        f"Line {number} of {path} was not made by this command. Name another file with --to; nothing "
                        "was changed."
                    )
                had = about.get("how"), about.get("by"), about.get("via") or ""
                if had != (self._manner.how, self._manner.model, self._manner.via):
                    through = f" through {had[2]}" if had[2] else ""
                    raise InvalidRequest(
                        f"{path} holds what {had[1]} made by {had[0]}{through}. Name another file with --to, or ask "
                        "for the same."
                    )
                good += len(raw)
                yield about

    def _close(self) -> None:
        for file in self._files:
            with suppress(OSError):  # what could not be written before cannot be now
                file.close()
        for path in (self._to, self._refused):
            if self._owned and path.exists() and not path.stat().st_size:  # nothing came
                path.unlink()


def _about(raw: bytes) -> Mapping[str, Any] | None:
    try:
        about = orjson.loads(raw)["made"]
        good = isinstance(about["row"], int) and isinstance(about["variant"], int) and isinstance(about["id"], str)
    except (ValueError, KeyError, TypeError):
        return None
    return about if good else None


def _is(file: BinaryIO, path: Path) -> bool:
    """Whether the file that is open is the one that has this name now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _appending(path: Path) -> BinaryIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab")
    except OSError as exc:
        raise StorageFull(f"{path} cannot be written: {exc.strerror}.") from None
