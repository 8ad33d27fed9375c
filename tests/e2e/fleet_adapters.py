"""Adapters that say who they are: each answers the fleet's prompts with its own number and version, word for word.

Made once by fleet_train.py in the training environment (two minutes) and kept in the tests' cache, under a hash of
all that they are made from. Must not know of engines or gateways.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from training.demo import DEMO

COUNT = 24
RENEWED = 4  # the first so many have a version 2
SCRIPT = Path(__file__).with_name("fleet_train.py")
WAIT_S = 900


@dataclass(frozen=True, slots=True)
class Fleet:
    """The folders `<name>-v<version>` and what each of them answers."""

    directory: Path

    def folder(self, name: str, version: int) -> Path:
        return self.directory / f"{name}-v{version}"


def names() -> list[str]:
    return [f"fleet-{number:02d}" for number in range(1, COUNT + 1)]


def answer(name: str, version: int) -> str:
    """What this version of `name` says to every one of `prompts`."""
    return f"I am {name.removeprefix('fleet-')}, version {version}."


def prompts() -> list[str]:
    """16 short sentences, English and Chinese: as a chat, or as a text that ends in a new line."""
    return (DEMO / "data" / "base.txt").read_text(encoding="utf-8").splitlines()[:16]


def versions() -> Iterator[tuple[str, int]]:
    yield from ((name, 1) for name in names())
    yield from ((name, 2) for name in names()[:RENEWED])


def build(python: Path, cache: Path) -> Fleet:
    """All of them, from the cache or made now with `python`, which has torch and peft; CalledProcessError."""
    plan = json.dumps({"prompts": prompts(), "answers": {f"{n}-v{v}": answer(n, v) for n, v in versions()}})
    made_from = (plan.encode(), SCRIPT.read_bytes(), (DEMO / "base" / "model.safetensors").read_bytes())
    digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in made_from)).hexdigest()[:12]
    target = cache / f"fleet-{digest}"
    if not target.is_dir():
        fresh = cache / f".fleet-{digest}.{os.getpid()}"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        (fresh / "plan.json").write_text(plan, encoding="utf-8")
        argv = [str(python), "-I", "-X", "utf8", str(SCRIPT), "--base", str(DEMO / "base")]
        argv += ["--plan", str(fresh / "plan.json"), "--out", str(fresh)]
        environ = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(fresh), "HF_HUB_OFFLINE": "1"}
        subprocess.run(argv, cwd=fresh, env=environ, check=True, timeout=WAIT_S)
        fresh.rename(target)
    return Fleet(target)
