"""Every way in for an adapter, as one thing: a source or an upload becomes a folder with the two files, for a while.

Fetching and unpacking run on threads of this room's own, at most four at once of each. Must not know the registry.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeVar

from adapters import folder
from adapters.errors import AdapterRejected, Unavailable
from adapters.sources import archive, bucket, hub, source, transfer
from adapters.sources.incoming import Draft, check_space, disk, write_all
from adapters.sources.member import Caps
from adapters.sources.progress import Progress, Stopped
from adapters.sources.web import WebFile

T = TypeVar("T")

AT_ONCE = 4
CLOSE_TIMEOUT_S = 5.0
MAX_ARCHIVE_BYTES = folder.MAX_WEIGHTS_BYTES + 64 * 1024 * 1024  # what may lie beside the weights


@dataclass(frozen=True, slots=True)
class Arrived:
    """folder: absolute, with the two files, until the block ends. source: what is recorded, never a secret.

    checksums: sha256 of the two files as they came, 64 hex digits by file name; empty for a folder of this machine.
    """

    folder: Path
    source: str
    checksums: Mapping[str, str] = field(default_factory=dict)


class Arrivals:
    """One per gateway. root: the adapter store, beside whose drafts ours lie. clock: unix seconds.

    environ: credentials and proxies. first_pause_s: before the second try of a fetch; each further one is doubled.
    """

    def __init__(
        self,
        root: Path,
        *,
        clock: Callable[[], float],
        environ: Mapping[str, str] | None = None,
        caps: Caps | None = None,
        first_pause_s: float = transfer.FIRST_PAUSE_S,
    ) -> None:
        self._root = root
        self._clock = clock
        self._environ = os.environ if environ is None else environ
        self._caps = caps or Caps()
        self._first_pause_s = first_pause_s
        self._far = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="intake-fetch")
        self._near = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="intake-unpack")
        self._short = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="intake-disk")
        self._running: dict[str, Progress] = {}
        self._quiet = asyncio.Event()
        self._quiet.set()

    @property
    def running(self) -> tuple[Progress, ...]:
        """What is on its way in now, oldest first."""
        return tuple(self._running.values())

    async def close(self) -> None:
        """Stop all of them, and wait until they have let go; what is not ready by then is swept at the next start."""
        for progress in self.running:
            progress.stop()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._quiet.wait(), CLOSE_TIMEOUT_S)
        for pool in (self._far, self._near, self._short):
            pool.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def open(self, text: str, *, name: str | None = None) -> AsyncIterator[Arrived]:
        """The adapter that `text` names, fetched and unpacked where it must be; gone when the block ends.

        Raises InvalidRequest, AdapterRejected, SourceRefused, SourceUnavailable, StorageFull.
        """
        where = source.parse(text)
        with self._shown(name, where.shown) as progress:
            if isinstance(where, source.Local) and not await self._brief(_is_archive, where.path):
                progress.begin("checking")
                yield Arrived(where.path, where.shown)
                return
            async with self._draft() as draft:
                pool = self._near if isinstance(where, source.Local) else self._far
                arrived = await self._lengthy(pool, progress, self._fetched, where, draft, progress)
                progress.begin("checking")
                yield arrived

    @asynccontextmanager
    async def upload(self, filename: str, *, total: int | None, name: str | None = None) -> AsyncIterator[Upload]:
        """An archive that comes in pieces; `total` bytes, where that is known. StorageFull."""
        label = filename if filename.isprintable() and 0 < len(filename) <= 255 else "archive"
        with self._shown(name, f"upload:{label.rpartition('/')[2]}") as progress:
            async with self._draft() as draft:
                if total is not None:
                    await self._brief(check_space, draft, total)
                progress.begin("receiving", total)
                yield Upload(self, draft, progress, label)

    @contextmanager
    def _shown(self, name: str | None, shown: str) -> Iterator[Progress]:
        progress = Progress(secrets.token_hex(6), name, shown, self._clock())
        self._running[progress.id] = progress
        self._quiet.clear()
        try:
            yield progress
        except Stopped:
            raise Unavailable("This gateway is stopping. Send the adapter again to the next one.") from None
        finally:
            del self._running[progress.id]
            if not self._running:
                self._quiet.set()

    @asynccontextmanager
    async def _draft(self) -> AsyncIterator[Path]:
        making = self._short.submit(Draft, self._root)
        try:
            yield (await _finished(making)).folder
        finally:
            if making.done() and not making.cancelled() and making.exception() is None:
                await asyncio.to_thread(making.result().close)

    async def _brief(self, call: Callable[..., T], *args: object) -> T:
        """Disk work that is soon over: waited for even when we are told to stop, so that nothing is closed under it."""
        return await _finished(self._short.submit(call, *args))

    async def _lengthy(self, pool: ThreadPoolExecutor, progress: Progress, call: Callable[..., T], *args: object) -> T:
        """Work that takes its time, and that `progress` can stop. What is here never waits for what is far."""
        return await _finished(pool.submit(call, *args), progress.stop)

    def _fetched(self, where: source.Source, into: Path, progress: Progress) -> Arrived:
        match where:
            case source.Local():
                return self._unpacked(where.path, where.path.name, where.shown, into, progress)
            case source.Web():
                return self._archive(WebFile(where.url, where.shown), where.shown, into, progress)
            case source.Hub():
                client = hub.HubClient(self._environ)
                progress.begin("fetching")
                commit = client.resolve(where, progress, self._first_pause_s)
                hub.check_files(where, commit)
                shown = where.at(commit.id)
                return self._files(lambda name: client.file(where, commit, name), shown, into, progress)
            case source.Bucket():
                with bucket.opened(where, self._environ) as store:
                    whole = bucket.BucketFile(store, where.scheme, where.path)
                    if where.is_archive:
                        return self._archive(whole, where.shown, into, progress)
                    found = self._files(whole.below, where.shown, into, progress)
                    heads = [name for name in folder.HEADS if whole.below(name).exists(progress)]
                    folder.check_kind(PurePosixPath(where.path), heads)
                    return found

    def _files(self, remote: Callable[[str], transfer.Remote], shown: str, into: Path, progress: Progress) -> Arrived:
        progress.begin("fetching")
        checksums = {}
        for name, limit in ((folder.CONFIG, folder.MAX_CONFIG_BYTES), (folder.WEIGHTS, self._caps.file)):
            try:
                found = transfer.fetch(remote(name), into / name, limit, progress, self._first_pause_s)
            except transfer.Missing:
                raise AdapterRejected(
                    f"{shown} has no {name}. Name the folder of a LoRA saved as safetensors.", reason="not_an_adapter"
                ) from None
            checksums[name] = found["sha256"]
        return Arrived(into, shown, checksums)

    def _archive(self, remote: transfer.Remote, shown: str, into: Path, progress: Progress) -> Arrived:
        progress.begin("fetching")
        packed = into / "archive"
        limit = min(MAX_ARCHIVE_BYTES, self._caps.total)
        try:
            transfer.fetch(remote, packed, limit, progress, self._first_pause_s)
        except transfer.Missing:
            raise AdapterRejected(f"There is no {shown}. Check the source.", reason="not_found") from None
        return self._unpacked(packed, shown.rpartition("/")[2], shown, into, progress)

    def _unpacked(self, packed: Path, label: str, shown: str, into: Path, progress: Progress) -> Arrived:
        try:
            descriptor = os.open(packed, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as exc:
            raise AdapterRejected(
                f"{shown} cannot be read ({exc.strerror}). Let the gateway's user read it, or send it with --upload.",
                reason="not_found",
            ) from None
        with os.fdopen(descriptor, "rb") as file:
            found = archive.unpack(file, label, into, progress, self._caps)
        if packed.parent == into:
            packed.unlink()  # the store's own copy comes next: three of them need not fit
        return Arrived(found.folder, shown, found.checksums)


class Upload:
    """An archive being received. Write it whole, then ask for what arrived."""

    def __init__(self, arrivals: Arrivals, folder: Path, progress: Progress, label: str) -> None:
        self._arrivals = arrivals
        self._folder = folder
        self._progress = progress
        self._label = label
        self._waiting = bytearray()
        self._file: int | None = None
        self._size = 0

    async def write(self, data: bytes) -> None:
        """The next bytes; AdapterRejected where it is too much, StorageFull."""
        self._size += len(data)
        if self._size > MAX_ARCHIVE_BYTES:
            raise AdapterRejected(f"The archive has more than {MAX_ARCHIVE_BYTES} bytes.", reason="too_large")
        self._waiting += data
        self._progress.advance(len(data))
        if len(self._waiting) >= 1024 * 1024:
            await self._flush()

    async def arrived(self) -> Arrived:
        """What was in it; see Arrivals.open for what may be wrong with it."""
        await self._flush()
        self._progress.begin("waiting")
        arrivals, packed = self._arrivals, self._folder / "archive"
        work = (arrivals._unpacked, packed, self._label, self._progress.source, self._folder, self._progress)
        found = await arrivals._lengthy(arrivals._near, self._progress, *work)
        self._progress.begin("checking")
        return found

    async def _flush(self) -> None:
        data = bytes(self._waiting)
        self._waiting.clear()
        await self._arrivals._brief(self._append, data)

    def _append(self, data: bytes) -> None:
        with disk():
            file = os.open(self._folder / "archive", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            write_all(file, data)
        finally:
            os.close(file)


def _is_archive(path: Path) -> bool:
    # os.path answers False where Path raises: a name too long, a home that we may not enter. Opening it says why.
    return path.name.lower().endswith(source.ARCHIVES) and os.path.isfile(path)


async def _finished(work: Future[T], stop: Callable[[], object] = lambda: None) -> T:
    """The result of a thread; when we are cancelled meanwhile, `stop` is called and the thread is waited for."""
    waited = asyncio.wrap_future(work)
    try:
        return await asyncio.shield(waited)
    except asyncio.CancelledError:
        stop()
        if not work.cancel():  # it has begun
            await _let_go(waited)
        raise


async def _let_go(waited: asyncio.Future[T]) -> None:
    """Until the thread is done, also when we are told twice (a gateway that ends tells every task); not forever."""
    for _ in range(2):
        with suppress(asyncio.CancelledError):
            await asyncio.wait([waited], timeout=CLOSE_TIMEOUT_S)
        if waited.done():
            break
    waited.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody else asks for it
