"""The folder of everything that was fetched, and how it is laid out:

    index.json                       what is here, and what the service no longer had
    jobs/<job id>/job.json           as the service said it, with checkpoints.json and events.json beside it
    files/<file id>.about.json       what the service says of a file
    files/<file id>.jsonl|.csv       its bytes

Must not know the service. Ids come from elsewhere: what is not plainly one never becomes part of a path.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.errors import InvalidRequest, StorageFull

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{2,127}")
_SUFFIXES = (".jsonl", ".csv", ".json")


@dataclass(frozen=True, slots=True)
class Folder:
    root: Path

    @property
    def index(self) -> Path:
        return self.root / "index.json"

    def job(self, job_id: str) -> Path:
        return self.root / "jobs" / checked(job_id)

    def about(self, file_id: str) -> Path:
        return self.root / "files" / f"{checked(file_id)}.about.json"

    def place(self, file_id: str, filename: str, suffix: str) -> Path:
        """Where the bytes of a file go. suffix: what it has where its name has none that is known."""
        found = Path(filename).suffix.lower()
        return self.root / "files" / (checked(file_id) + (found if found in _SUFFIXES else suffix))

    def bytes_of(self, file_id: str) -> Path | None:
        """The bytes of a file, where they are here."""
        places = (self.root / "files" / (checked(file_id) + suffix) for suffix in _SUFFIXES)
        return next((place for place in places if place.is_file()), None)

    def jobs(self) -> Iterator[dict[str, Any]]:
        """Every job that was fetched, oldest first. InvalidRequest where this is no such folder."""
        found = []
        for path in (self.root / "jobs").glob("*/job.json"):
            job = read(path)
            if job is not None and _ID.fullmatch(str(job.get("id"))):
                found.append(job)
        if not found:
            raise InvalidRequest(f"{self.root} holds no fetched jobs. Run `loragate migrate fetch --to {self.root}`.")
        yield from sorted(found, key=lambda job: (str(job.get("created_at")), job["id"]))


def checked(text: object) -> str:
    """An id as part of a path; InvalidRequest."""
    if not isinstance(text, str) or not _ID.fullmatch(text):
        raise InvalidRequest(
            "The service named a job or a file by something that is no id. Nothing was written for it."
        )
    return text


def read(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is none, or half of one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Whole or not at all; readable by its owner only, because it says what somebody trains on. StorageFull."""
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(text.encode("utf-8", "backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as exc:
        raise StorageFull(f"{path} cannot be written: {exc.strerror}. Free some space, then run this again.") from None
