"""The demo's adapters and the demo's key: put into a fresh gateway once, left alone ever after.

Shows the machinery, not intelligence: the base has two million parameters.
"""

from __future__ import annotations

import json
from pathlib import Path

from gateway.local.adminclient import AdminClient
from gateway.local.display import Display
from gateway.local.models import DEMO
from gateway.local.places import Places, write_private

KEY_NAME = "demo"


def folders(demo: Path = DEMO) -> list[Path]:
    """The shipped adapters' folders, by name."""
    return sorted(path.parent for path in (demo / "adapters").glob("*/adapter_config.json"))


def question(name: str, demo: Path = DEMO) -> str | None:
    """The first training question of one adapter: one that it answers well."""
    try:
        with (demo / "data" / f"{name}.jsonl").open(encoding="utf-8") as file:
            return str(json.loads(file.readline())["messages"][0]["content"])
    except (OSError, ValueError, LookupError):
        return None


async def register(client: AdminClient, places: Places, display: Display, demo: Path = DEMO) -> None:
    """Register and promote what this data directory has never seen; an adapter that was removed stays removed."""
    seen = _seen(places.demo_stamp)
    present = await client.adapters()
    for folder in folders(demo):
        if folder.name not in seen and folder.name not in present:
            display.show("Registering the demo's adapters", folder.name)
            await client.register(folder, folder.name)
        seen.add(folder.name)
        write_private(places.demo_stamp, json.dumps(sorted(seen)))
    display.end()


async def ensure_key(client: AdminClient, places: Places) -> str:
    """The key in `demo.key`, made (0600) when there is none or the gateway does not know it any more."""
    try:
        key = places.demo_key.read_text(encoding="utf-8").strip()
    except OSError:
        key = ""
    if key and await client.models(key) is not None:
        return key
    key = await client.create_key(KEY_NAME)
    write_private(places.demo_key, f"{key}\n")
    return key


def _seen(stamp: Path) -> set[str]:
    try:
        return {str(name) for name in json.loads(stamp.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError):
        return set()
