"""An adapter as something that can be handed on: its two files, a model card and its manifest, as a folder or .tar.gz.

Written whole or not at all, and never over something else. Must not know where the files came from.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapters import intake
from adapters.errors import InvalidRequest
from adapters.folder import CONFIG, WEIGHTS
from training import lineage, modelcard

ANY_RANK = 512
ARCHIVES = (".tar.gz", ".tgz")


def unknown(name: str, adapter: Path, created: int) -> dict[str, Any]:
    """What can be said of an adapter that nobody said anything about. AdapterRejected."""
    checked = intake.check(adapter.absolute(), None, ANY_RANK)
    return {
        "schema": lineage.SCHEMA,
        "name": name,
        "version": checked.version,
        "digest": checked.digest,
        "rank": checked.rank,
        "created": created,
        "job": None,
        "base": {"id": (checked.base or "").rstrip("/").rpartition("/")[2] or None, "files": {}},
        "served": "adapter",
    }


def free(target: Path) -> Path:
    """`target`, absolute; InvalidRequest where something is there already."""
    whole = target.expanduser().absolute()
    if whole.is_dir() and not any(whole.iterdir()):
        return whole
    if whole.exists() or whole.is_symlink():
        raise InvalidRequest(f"{target} is there already, and nothing is written over. Name another, or move it away.")
    return whole


def write(
    adapter: Path,
    manifest: Mapping[str, Any],
    target: Path,
    *,
    base_model: str | None = None,
    license_id: str | None = None,
) -> Path:
    """The bundle at `target`: an archive where its name says so, else a folder. InvalidRequest, OSError."""
    final = free(target)
    final.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}."))
    try:
        made = fill(scratch / "bundle", adapter, manifest, base_model, license_id)
        if final.name.endswith(ARCHIVES):
            made = _packed(made, scratch / "packed", _word(manifest), int(manifest.get("created") or 0))
        os.replace(made, final)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return final


def fill(
    folder: Path, adapter: Path, manifest: Mapping[str, Any], base_model: str | None, license_id: str | None
) -> Path:
    """The four files in `folder`. The config names the base as others know it, not as it lay on this machine."""
    folder.mkdir()
    folder.chmod(0o755)
    config = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    named = (manifest.get("base") or {}).get("id")
    config["base_model_name_or_path"] = modelcard.hub_id(manifest, base_model) or named
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    shutil.copyfile(adapter / WEIGHTS, folder / WEIGHTS)
    text = modelcard.card(manifest, base_model=base_model, license_id=license_id)
    (folder / modelcard.FILE).write_text(text, encoding="utf-8")
    (folder / lineage.FILE).write_text(lineage.dumped(manifest), encoding="utf-8")
    return folder


def _packed(folder: Path, archive: Path, name: str, at: int) -> Path:
    """The same content is the same bytes: nobody's name, one time, sorted."""
    with (
        archive.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=at) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for file in sorted(folder.iterdir()):
            entry = tarfile.TarInfo(f"{name}/{file.name}")
            entry.size, entry.mtime, entry.mode = file.stat().st_size, at, 0o644
            with file.open("rb") as opened:
                tar.addfile(entry, opened)
    archive.chmod(0o644)
    return archive


def _word(manifest: Mapping[str, Any]) -> str:
    return str(manifest.get("name") or "adapter").replace(":", "-")
