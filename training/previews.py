"""A checkpoint of a job that has not ended, asked through the engine: an adapter of its own, gone when the job ends.

Its name is the job's own, so that nothing can put it live where the job's adapter answers. It is written down before it
is registered: whatever a crash leaves, the next sweep finds. Must not know HTTP doors, workers or trainers.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from adapters import intake
from adapters.db import Database
from adapters.errors import Conflict, NotFound, ServiceError, StorageFull
from adapters.folder import CONFIG, WEIGHTS
from adapters.service import OPERATOR, AdapterService
from training import store_jobs as store
from training.errors import JobNotFound, NotServable
from training.ids import checkpoint_name
from training.places import Places
from training.run.checkpoints import STATE, Found, look, present, weights_wrong
from training.types import Job

MOST = 4  # of one job at once
ANY_RANK = 512  # the registration judges what the engines take; here only the content's name is wanted
_OVER = "Job {0} {1}. `loragate jobs show {0}` says what of it can be asked."
_NOW = "has ended in this moment"
_STOPPED = "Somebody has ended {0} in this moment. Ask for it again, if it is still wanted."
_AGAIN = 3  # looks at checkpoints that a trainer writes and deletes meanwhile


@dataclass(frozen=True, slots=True)
class Preview:
    """chat_template_kwargs: what every request to it needs, as it is trained so."""

    job: str
    step: int
    version: str  # 12 hex digits
    created_at: float  # unix seconds
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its public name, which answers nobody: only `model` does."""
        return checkpoint_name(self.job, self.step)

    @property
    def model(self) -> str:
        """What a request asks for."""
        return f"{self.name}@{self.version}"


class Previews:
    """One per gateway; others may be on the same database and data directory. clock: unix seconds."""

    def __init__(self, db: Database, adapters: AdapterService, places: Places, *, clock: Callable[[], float]) -> None:
        self._db = db
        self._adapters = adapters
        self._root = places.previews
        self._places = places
        self._clock = clock
        self._one_at_a_time = asyncio.Lock()

    async def serve(self, job_id: str, step: int | None = None, *, by: str = OPERATOR) -> Preview:
        """Register the checkpoint of `step` (None: the newest whole one) for as long as the job has not ended.

        JobNotFound; NotServable for what no engine takes before its training is over; Conflict where the job has ended
        or has no such checkpoint; what registering raises.
        """
        async with self._one_at_a_time:
            job = await self._job(job_id)
            _check(job)
            copied = self._root / job_id / f".{secrets.token_hex(8)}"
            try:
                found = await asyncio.to_thread(_copied, self._places.output(job_id), step, copied)
                made = await self._written(job, found, copied, by)
                await self._register(job, made, copied, by)
            except (ServiceError, OSError):
                if (await self._job(job_id)).is_final:  # another gateway has swept it from under us
                    raise Conflict(_OVER.format(job_id, _NOW)) from None
                raise
            finally:
                await asyncio.to_thread(shutil.rmtree, copied, ignore_errors=True)
            await self._still_wanted(made, by)
            return made

    async def list(self, job_id: str) -> tuple[Preview, ...]:
        """Those of a job, the newest step first. JobNotFound."""
        await self._job(job_id)
        return await asyncio.to_thread(_known, self._root / job_id)

    async def end(self, job_id: str, *, by: str = OPERATOR) -> tuple[Preview, ...]:
        """Remove those of a job; what went. JobNotFound."""
        await self._job(job_id)
        async with self._one_at_a_time:
            return await self._end(job_id, by)

    async def sweep(self) -> None:
        """Remove those whose jobs have ended or are not known (any more)."""
        for job_id in await asyncio.to_thread(_jobs, self._root):
            async with self._one_at_a_time:
                try:
                    over = (await self._job(job_id)).is_final
                except JobNotFound:
                    over = True
                if over:
                    await self._end(job_id, "gateway")

    async def _job(self, job_id: str) -> Job:
        return await self._db.read(lambda conn: store.find(conn, job_id))

    async def _written(self, job: Job, step: int, copied: Path, by: str) -> Preview:
        """The record, before anything of it exists elsewhere. Conflict."""
        version = (await asyncio.to_thread(intake.check, copied, None, ANY_RANK)).version
        kwargs = (job.settled or {}).get("chat_template_kwargs") or {}
        made = Preview(job.id, step, version, self._clock(), dict(kwargs))
        known = await asyncio.to_thread(_known, self._root / job.id)
        for each in known:
            if each.step == step and each.version != version:  # trained a second time, to other weights
                await self._remove(each, by)
        if len([each for each in known if each.step != step]) >= MOST:
            raise Conflict(
                f"{MOST} checkpoints of job {job.id} can be asked already. "
                f"`loragate jobs chat {job.id} --end` ends that."
            )
        if await self._foreign(made):
            raise Conflict(f"There is an adapter {made.name} already, and it is none of this job's. Remove it first.")
        await asyncio.to_thread(_write, self._root / job.id, made)
        return made

    async def _register(self, job: Job, made: Preview, copied: Path, by: str) -> None:
        """As any adapter. Where it is refused nothing stays."""
        notes = f"Step {made.step} of {job.id}, which has not ended"
        source = str(self._places.output(job.id) / f"checkpoint-{made.step}")
        try:
            await self._adapters.register(copied, made.name, notes=notes, source=source, owner=job.owner, by=by)
        except NotFound:
            raise Conflict(_STOPPED.format(made.model)) from None
        except Exception:
            await self._remove(made, by)
            raise
        text = f"The checkpoint of step {made.step} can be asked as {made.model}"
        await self._db.write(lambda conn: store.tell(conn, job.id, self._clock(), text))

    async def _still_wanted(self, made: Preview, by: str) -> None:
        """Conflict where the job, or the wish, has ended while it was registered."""
        over = (await self._job(made.job)).is_final
        if over or made.step not in {each.step for each in await asyncio.to_thread(_known, self._root / made.job)}:
            await self._remove(made, by)
            raise Conflict(_OVER.format(made.job, _NOW) if over else _STOPPED.format(made.model))

    async def _end(self, job_id: str, by: str) -> tuple[Preview, ...]:
        gone = await asyncio.to_thread(_known, self._root / job_id)
        for each in gone:
            await self._remove(each, by)
        await asyncio.to_thread(shutil.rmtree, self._root / job_id, ignore_errors=True)
        return gone

    async def _remove(self, made: Preview, by: str) -> None:
        """The adapter first, the record last. What somebody else registered under the name, and put live, stays."""
        with suppress(NotFound, Conflict):
            only = made.version if await self._foreign(made) else None
            await self._adapters.remove(made.name, only, by=by, why=f"a preview of {made.job}, which is over")
        await asyncio.to_thread((self._root / made.job / f"{made.step}.json").unlink, missing_ok=True)

    async def _foreign(self, made: Preview) -> bool:
        """Whether the name has versions that are no previews."""
        try:
            there = {each.version for each in (await self._adapters.show(made.name)).versions}
        except NotFound:
            return False
        known = await asyncio.to_thread(_known, self._root / made.job)
        return bool(there - {made.version} - {each.version for each in known if each.step == made.step})


def _check(job: Job) -> None:
    """Conflict, NotServable for what can have no preview."""
    if job.is_final:
        raise Conflict(
            f"Job {job.id} is {job.state.value} already. `loragate jobs show {job.id}` says what can be asked."
        )
    settled = job.settled or {}
    if settled.get("served", "adapter") != "adapter":
        raise NotServable("This job trains a model of its own. An engine can be started with it once it has ended.")
    if settled.get("adapter_folder", ".") != ".":
        raise NotServable(
            "This job trains PiSSA, which becomes an adapter when its training ends: until then no engine takes it. "
            "Wait for its end, or train with method.tuning: lora."
        )


def _copied(output: Path, step: int | None, target: Path) -> int:
    """Copy the two files of a whole checkpoint, unchanged meanwhile, into `target`; its step. Conflict, StorageFull.

    Copied, not linked: a trainer that goes on from an earlier step writes into the same files again.
    """
    for _ in range(_AGAIN):
        there = present(output)
        for number in sorted(there, reverse=True) if step is None else [step] * (step in there):
            with suppress(FileNotFoundError):
                before = _marks(there[number])
                if isinstance(look(there[number]), Found):
                    _copy(there[number], target)
                    if _marks(there[number]) == before and _reads(target):
                        return number
    whole = [str(number) for number, folder in present(output).items() if isinstance(look(folder), Found)]
    if step is not None and whole:
        raise Conflict(f"There is no whole checkpoint of step {step} now. There are those of step {', '.join(whole)}.")
    raise Conflict(
        "The job has no whole checkpoint here: none is written before training.save_steps steps, and none is seen "
        "where its worker is on another machine. `loragate jobs watch` shows how far it is."
    )


def _copy(folder: Path, target: Path) -> None:
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(folder / name, target / name)
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise StorageFull(f"The checkpoint cannot be copied: {exc.strerror}. Free some space, then try again.") from exc


def _reads(copied: Path) -> bool:
    """Whether a file was being written as it was copied, within one tick of the clock."""
    try:
        return isinstance(json.loads((copied / CONFIG).read_text("utf-8")), dict) and not weights_wrong(
            copied / WEIGHTS
        )
    except ValueError:
        return False


def _marks(folder: Path) -> list[tuple[int, int, int]]:
    """What a write changes. FileNotFoundError."""
    found = [(folder / name).stat() for name in (CONFIG, WEIGHTS, STATE)]
    return [(each.st_ino, each.st_size, each.st_mtime_ns) for each in found]


def _jobs(root: Path) -> list[str]:
    return sorted(folder.name for folder in root.iterdir()) if root.is_dir() else []


def _known(folder: Path) -> tuple[Preview, ...]:
    """Those of one job, the newest step first; a record that cannot be read is none."""
    found = []
    for file in folder.glob("*.json"):
        with suppress(OSError, ValueError, TypeError):
            found.append(Preview(**json.loads(file.read_text(encoding="utf-8"))))
    return tuple(sorted(found, key=lambda each: -each.step))


def _write(folder: Path, made: Preview) -> None:
    """Whole or not at all."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = folder / f".{made.step}.new"
    fresh.write_text(json.dumps(asdict(made)) + "\n", encoding="utf-8")
    os.replace(fresh, folder / f"{made.step}.json")
