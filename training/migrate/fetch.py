"""Everything of fine-tuning jobs that a service has, copied into a folder. Only reads there; deletes nothing anywhere.

Run again, it fetches what is new and what is missing. A file that the service no longer has is said, not an error.
Must not know HTTP.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adapters.errors import InvalidRequest
from training.migrate import folder as files
from training.migrate.folder import Folder
from training.migrate.remote import Remote, RemoteRefused

FINAL = frozenset({"succeeded", "failed", "cancelled"})
TRAINING, VALIDATION, RESULT = "training", "validation", "result"
_NO_MORE = frozenset({400, 403, 404, 410})

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Missing:
    """A file that a job names and the service does not give."""

    job: str
    file: str
    what: str  # training, validation, result
    why: str


@dataclass(frozen=True, slots=True)
class Fetched:
    """jobs, files: ids of all that is here now; fresh: how many files this run brought."""

    folder: str
    jobs: tuple[str, ...]
    files: tuple[str, ...]
    fresh: int
    bytes: int
    missing: tuple[Missing, ...]

    def document(self) -> dict[str, Any]:
        return asdict(self)


async def fetch(remote: Remote, root: Path, *, now: float, tell: Tell) -> Fetched:
    """Copy jobs, their files, checkpoints and events into `root`; RemoteRefused, StorageFull."""
    folder = Folder(root)
    jobs: list[str] = []
    wanted: dict[str, tuple[str, str]] = {}  # file → job, what
    async for job in remote.pages("/fine_tuning/jobs"):
        jobs.append(files.checked(job["id"]))
        tell(f"{job['id']}  {job.get('status')}  {job.get('fine_tuned_model') or job.get('model')}")
        await _job(remote, folder, job)
        for what, file_id in _files(job):
            wanted.setdefault(file_id, (job["id"], what))
    here: list[str] = []
    missing: list[Missing] = []
    fresh = size = 0
    for file_id, (job_id, what) in wanted.items():
        try:
            got = await _file(remote, folder, file_id, what)
        except RemoteRefused as refused:
            if refused.answered not in _NO_MORE:
                raise
            missing.append(Missing(job_id, file_id, what, refused.message))
            continue
        here.append(file_id)
        if got is not None:
            fresh, size = fresh + 1, size + got
            tell(f"{file_id}  {what} file, {got} bytes")
    made = Fetched(str(root), tuple(jobs), tuple(here), fresh, size, tuple(missing))
    files.write(folder.index, {"fetched_at": int(now), "base_url": remote.base_url, **made.document()})
    return made


async def _job(remote: Remote, folder: Folder, job: Mapping[str, Any]) -> None:
    place = folder.job(job["id"])
    known = files.read(place / "job.json")
    if known is not None and known.get("status") in FINAL:
        return  # written last: what belongs to it is here
    for name in ("checkpoints", "events"):
        try:
            items = [item async for item in remote.pages(f"/fine_tuning/jobs/{job['id']}/{name}")]
        except RemoteRefused as refused:
            if refused.answered not in _NO_MORE:
                raise
            items = []  # jobs from before there were checkpoints have none
        files.write(place / f"{name}.json", {"data": items})
    files.write(place / "job.json", job)


async def _file(remote: Remote, folder: Folder, file_id: str, what: str) -> int | None:
    """How many bytes came; None where they were here. RemoteRefused."""
    if folder.bytes_of(file_id) is not None and folder.about(file_id).is_file():
        return None
    about = await remote.get(f"/files/{files.checked(file_id)}")
    suffix = ".csv" if what == RESULT else ".jsonl"
    place = folder.place(file_id, str(about.get("filename") or ""), suffix)
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    size = await remote.download(f"/files/{file_id}/content", place)
    if what == RESULT:
        await asyncio.to_thread(_plain, place)
    files.write(folder.about(file_id), about)
    return size


def _plain(place: Path) -> None:
    """OpenAI hands out its result tables in base64; where this is one, the table itself."""
    raw = place.read_bytes()
    try:
        text = base64.b64decode(raw.strip(), validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        return
    if text.startswith("step,"):
        files.write_text(place, text)


def _files(job: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = [(TRAINING, job.get("training_file")), (VALIDATION, job.get("validation_file"))]
    results = job.get("result_files")
    found += [(RESULT, each) for each in (results if isinstance(results, list) else [])]
    named = [(what, file_id) for what, file_id in found if file_id]
    for _, file_id in named:
        if not isinstance(file_id, str):
            raise InvalidRequest(f"The job {job.get('id')} names a file by something that is no id.")
    return [(what, str(file_id)) for what, file_id in named]
