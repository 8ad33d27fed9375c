"""`NAME`, `NAME@VERSION` and folders as commands take them, and a version's files brought here, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from adapters import intake
from adapters.errors import InvalidName
from adapters.folder import CONFIG, WEIGHTS
from adapters.names import check_public_name, check_version
from gateway.cli.client import Refused, segment
from gateway.cli.progress import bar
from gateway.cli.session import Session

ADAPTERS = "/admin/v1/adapters"
ANY_RANK = 512


@dataclass(frozen=True, slots=True)
class Chosen:
    """One version of the gateway. lineage: its manifest, None where nobody said how it was made."""

    name: str
    version: str
    created_at: int
    lineage: dict[str, Any] | None

    @property
    def label(self) -> str:
        return f"{self.name}@{self.version}"


def as_folder(text: str) -> Path | None:
    """A folder of this machine is written with a slash, or as `.`; all else is a name."""
    if text in (".", "..") or os.sep in text:
        return Path(text).expanduser().absolute()
    return None


def choose(gateway: Session, text: str) -> Chosen:
    """`NAME` (its live version, else its newest) or `NAME@VERSION`. Refused."""
    name, at, digits = text.partition("@")
    try:
        check_public_name(name)
        wanted = check_version(digits) if at else None
    except InvalidName as error:
        raise Refused(f"{text} is no adapter: {error.message}") from None
    found = gateway.call("GET", f"{ADAPTERS}/{segment(name)}")
    versions = {each["version"]: each for each in found["versions"]}
    if wanted is None:
        wanted = found["live"] or next(iter(versions), None)  # newest first
    if wanted is None or wanted not in versions:
        raise Refused(f"{name} has no version {wanted or 'yet'}. `loragate adapters show {name}` lists what there is.")
    return Chosen(name, wanted, int(versions[wanted]["created_at"]), _lineage(gateway, name, wanted))


@contextmanager
def brought(gateway: Session, chosen: Chosen) -> Iterator[Path]:
    """A folder with the two files of a version, which goes away at the end; checked against the version's digits."""
    with TemporaryDirectory(prefix="loragate-export-") as scratch:
        folder = Path(scratch) / "adapter"
        folder.mkdir()
        for file in (CONFIG, WEIGHTS):
            path = f"{ADAPTERS}/{segment(chosen.name)}/versions/{chosen.version}/files/{file}"
            with bar() as shown, (folder / file).open("wb") as sink:
                gateway.download(path, sink, lambda done, total: shown.show("fetching", done, total))
        got = intake.check(folder, None, ANY_RANK).version
        if got != chosen.version:
            raise Refused(f"What the gateway sent is version {got}, not {chosen.version}. Look at its store's disk.")
        yield folder


def _lineage(gateway: Session, name: str, version: str) -> dict[str, Any] | None:
    try:
        found = gateway.call("GET", f"{ADAPTERS}/{segment(name)}/versions/{version}/lineage")
    except Refused as refusal:
        error = refusal.document.get("error") or {}
        if error.get("code") in ("not_found", "unknown_url"):  # nobody said, or a gateway of before
            return None
        raise
    return found or None
