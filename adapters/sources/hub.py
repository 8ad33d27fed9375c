"""A Hugging Face hub, as far as an adapter needs it: which commit a revision is, which files it has, where they are.

The token comes from HF_TOKEN and another hub from HF_ENDPOINT, the names that Hugging Face's own library takes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from adapters import folder
from adapters.errors import AdapterRejected
from adapters.http import httpx
from adapters.sources.progress import Progress
from adapters.sources.source import Hub, SourceRefused, SourceUnavailable, is_loopback
from adapters.sources.transfer import FIRST_PAUSE_S, FIRST_TRIES, Broken
from adapters.sources.web import WebFile, broken, get

ENDPOINT = "https://huggingface.co"
RENAMES = 3  # of a repository, or of its owner
MAX_LISTING_BYTES = 16 * 1024 * 1024
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Commit:
    """A revision, resolved: 40 hex digits, and the paths of all files."""

    id: str
    files: frozenset[str]


@dataclass(frozen=True, slots=True)
class HubClient:
    """environ: where HF_TOKEN and HF_ENDPOINT are looked up."""

    environ: Mapping[str, str]

    def resolve(self, hub: Hub, progress: Progress, first_pause_s: float = FIRST_PAUSE_S) -> Commit:
        """The commit that `hub` means now; SourceRefused, SourceUnavailable."""
        url = f"{self._endpoint()}/api/models/{hub.repo}/revision/{quote(hub.revision or 'main', safe='')}"
        for attempt in range(FIRST_TRIES):
            try:
                return self._asked(url, hub, RENAMES, progress)
            except Broken as broken:
                if attempt == FIRST_TRIES - 1:
                    raise SourceUnavailable(
                        f"{hub.shown} could not be fetched: {broken.why}. Try again later."
                    ) from None
                progress.pause(max(broken.wait_s, first_pause_s * 2**attempt))
        raise AssertionError("unreachable")

    def file(self, hub: Hub, commit: Commit, name: str) -> WebFile:
        """One file of the adapter at `commit`."""
        path = f"{hub.folder}/{name}" if hub.folder else name
        url = f"{self._endpoint()}/{hub.repo}/resolve/{commit.id}/{quote(path)}"
        return WebFile(url, f"{hub.at(commit.id)}/{name}", self._headers(), linked=True)

    def _asked(self, url: str, hub: Hub, renames: int, progress: Progress) -> Commit:
        try:
            with get(url, self._headers(), progress) as response:
                status = response.status_code
                if status in (408, 429) or status >= 500:
                    raise Broken(f"the hub answers {status}")
                renamed = response.headers.get("location", "") if status in (301, 302, 307, 308) else ""
                if renamed.startswith("/") and not renamed.startswith("//") and renames:  # on the hub itself
                    return self._asked(urljoin(url, renamed), hub, renames - 1, progress)
                if status != 200:
                    raise self._refusal(status, hub, response.headers.get("x-error-code", ""))
                text = bytearray()
                for piece in response.iter_bytes():
                    text += piece
                    if len(text) > MAX_LISTING_BYTES:
                        raise SourceRefused(f"{hub.shown} has more files than any adapter.")
        except httpx.TransportError as exc:
            raise broken(exc, hub.shown) from None
        return _commit(bytes(text), hub)

    def _refusal(self, status: int, hub: Hub, code: str) -> SourceRefused:
        if code == "GatedRepo":
            return SourceRefused(f"{hub.repo} is gated. Accept its terms on the hub, and set HF_TOKEN for the gateway.")
        if code == "RevisionNotFound":
            return SourceRefused(f"{hub.repo} has no revision {hub.revision}. Name a branch, a tag or a commit.")
        if status in (401, 403, 404):
            how = "Check what HF_TOKEN may read" if "HF_TOKEN" in self.environ else "If it is private, set HF_TOKEN"
            return SourceRefused(
                f"The hub shows no repository {hub.repo} (it answers {status}). Check the name. {how} for the gateway."
            )
        return SourceRefused(f"The hub answers {status} for {hub.shown}. Check its name and its revision.")

    def _endpoint(self) -> str:
        endpoint = self.environ.get("HF_ENDPOINT", "").rstrip("/") or ENDPOINT
        parts = urlsplit(endpoint)
        if parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname)):
            return endpoint
        raise SourceRefused("HF_ENDPOINT must be an https:// URL: anyone on the way could change the weights.")

    def _headers(self) -> dict[str, str]:
        token = self.environ.get("HF_TOKEN", "").strip()
        return {"authorization": f"Bearer {token}"} if token else {}


def check_files(hub: Hub, commit: Commit) -> None:
    """AdapterRejected, where the repository's folder holds no adapter; what else it has is never fetched."""
    prefix = f"{hub.folder}/" if hub.folder else ""
    here = {path[len(prefix) :].split("/")[0] for path in commit.files if path.startswith(prefix)}
    place = PurePosixPath(hub.repo, hub.folder)
    if {folder.CONFIG, folder.WEIGHTS} <= here:
        folder.check_kind(place, here)
        return
    folder.check_names(place, here - {""})
    raise AdapterRejected(f"{hub.shown} has no adapter.", reason="not_an_adapter")  # check_names has said it better


def _commit(text: bytes, hub: Hub) -> Commit:
    try:
        answer: Any = json.loads(text)
        commit = answer["sha"]
        files = frozenset(str(file["rfilename"]) for file in answer.get("siblings") or ())
    except (ValueError, KeyError, TypeError, RecursionError):
        commit, files = "", frozenset()
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise SourceRefused(f"What answers for {hub.shown} is no hub: it names no commit. Check HF_ENDPOINT.")
    return Commit(commit, files)
