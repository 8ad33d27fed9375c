"""The store of weights: one immutable folder per version, named as the engine names it, exactly two files each.

A local engine's resolver reads the same folders. Must not know the registry: whoever sweeps says what is known.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from adapters.errors import ServiceError, StorageFull
from adapters.folder import CONFIG, WEIGHTS
from adapters.names import is_engine_name

_DRAFT = ".draft-"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Shelf:
    """The folder `<data>/adapters`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, engine_name: str) -> Path:
        """Where the files of a version are, or would be."""
        if not is_engine_name(engine_name):
            raise ValueError(engine_name)  # a bug: only names.engine_name makes these
        return self.root / engine_name

    def draft(self) -> Draft:
        """Begin a new folder beside the final ones; StorageFull."""
        with _disk():
            self.root.mkdir(parents=True, exist_ok=True, mode=0o755)
            return Draft(self)

    def holds(self, engine_name: str) -> bool:
        """Whether both files of a version are there."""
        return _whole(str(self.path(engine_name)))

    def remove(self, engine_name: str, is_known: Callable[[str], bool]) -> None:
        """Delete the files of a version; nothing happens where there are none.

        `is_known` is asked while the folder is locked: a registration of the same content that came meanwhile keeps it.
        """
        folder = self.path(engine_name)
        doomed = self.root / f"{_DRAFT}{secrets.token_hex(8)}"
        with _disk():
            try:
                lock = _lock(folder)
            except FileNotFoundError:
                return
            try:
                if is_known(engine_name):
                    return
                folder.rename(doomed)  # gone at once and whole; a crash leaves a draft, which the sweep finds
                _sync_directory(self.root)
                shutil.rmtree(doomed, ignore_errors=True)
            except FileNotFoundError:  # a sweep was first
                return
            finally:
                os.close(lock)

    def missing(self, engine_names: Collection[str]) -> frozenset[str]:
        """Which of `engine_names` lack their files."""
        root = str(self.root)
        return frozenset(name for name in engine_names if not _whole(f"{root}/{name}"))

    def sweep(self, known: Collection[str], is_known: Callable[[str], bool]) -> tuple[str, ...]:
        """Delete what a crash left: unfinished drafts, and finished folders that no row names. Returns their names.

        A folder that a registration is working on is locked by it, and left alone. `known` saves asking for each
        folder; `is_known` is asked while the lock is held, so a row committed meanwhile is seen.
        """
        swept = []
        for name in sorted(os.listdir(self.root)) if self.root.is_dir() else ():
            if not name.startswith(_DRAFT) and (not is_engine_name(name) or name in known):
                continue
            with _locked(self.root / name) as mine:
                if mine and (name.startswith(_DRAFT) or not is_known(name)):
                    shutil.rmtree(self.root / name, ignore_errors=True)
                    swept.append(name)
        return tuple(swept)


class Draft:
    """A folder being filled. Locked until `close`, so that no sweep takes it before its row is committed."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._folder = shelf.root / f"{_DRAFT}{secrets.token_hex(8)}"
        self._folder.mkdir(mode=0o755)
        self._locks = [_lock(self._folder)]
        try:
            # Unbuffered: what comes is large, and a buffer that cannot be written fails once more when it is closed.
            self._weights = (self._folder / WEIGHTS).open("xb", buffering=0)
        except OSError:
            self._forget()
            raise

    def __enter__(self) -> Draft:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, data: bytes) -> None:
        """Append to the weights; StorageFull."""
        with _disk():
            view = memoryview(data)
            while view:  # a disk that is nearly full takes a part, and refuses the rest
                view = view[self._weights.write(view) :]

    def place(self, engine_name: str, config: Mapping[str, Any], base: str | None) -> None:
        """Finish the folder, sync it to disk and give it its name; StorageFull.

        Where the name is taken, the content is the same by construction: then only its two files are replaced,
        each in one step, which also mends a damaged folder.
        """
        table = {**config, "base_model_name_or_path": base}
        with _disk():
            _finish(self._weights)
            with (self._folder / CONFIG).open("xb") as file:
                file.write(json.dumps(table, indent=2, sort_keys=True).encode() + b"\n")
                _finish(file)
            self._folder.chmod(0o755)
            _sync_directory(self._folder)
            self._settle(self._shelf.path(engine_name))
            _sync_directory(self._shelf.root)

    def _settle(self, final: Path) -> None:
        while True:
            try:
                self._folder.rename(final)
                return
            except OSError as exc:
                if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            try:
                self._locks.append(_lock(final))
                for name in (CONFIG, WEIGHTS):
                    (self._folder / name).replace(final / name)
            except FileNotFoundError:  # a sweep took it just now: the name is free
                continue
            _sync_directory(final)
            return

    def close(self) -> None:
        """Throw away what was not placed and release the lock; may be repeated."""
        self._weights.close()
        self._forget()

    def _forget(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)  # gone already where it was placed
        while self._locks:
            os.close(self._locks.pop())


def _whole(folder: str) -> bool:
    # Strings, not Paths: a start asks for 10,000, and it halves their time.
    return os.path.isfile(f"{folder}/{CONFIG}") and os.path.isfile(f"{folder}/{WEIGHTS}")


def _lock(folder: Path) -> int:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)


@contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno in _FULL:
            raise StorageFull("The disk of the adapter store is full. Free space, then register again.") from None
        raise ServiceError(f"The adapter store cannot be written ({exc.strerror}). Check who owns it.") from exc


def _finish(file: Any) -> None:
    """Readable by the engine's user, and on disk before any row names it."""
    file.flush()
    os.fchmod(file.fileno(), 0o644)
    os.fsync(file.fileno())


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
