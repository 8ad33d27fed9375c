"""Fills a data directory with adapters and keys through the product's own stores, as no HTTP call could in time.

Knows the stores' functions and the folder layout of the adapter store; the weights are empty safetensors files.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from pathlib import Path

import sqlalchemy as sa

from adapters import store as adapter_store
from adapters.db import Database
from adapters.types import Version, VersionState
from bench.gateway_process import PLENTY
from bench.mock_engine import MODEL
from gateway import keyfiles, tokens
from gateway import store as key_store
from gateway.settings import Settings
from gateway.v1.snapshot import Limits

EMPTY_WEIGHTS = (2).to_bytes(8, "little") + b"{}"
CONFIG = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "base_model_name_or_path": MODEL}
LIMITS = Limits(PLENTY, PLENTY, 4096, None)


def fill(data_dir: Path, adapters: int, keys: int, used: int) -> list[tuple[str, str]]:
    """Write that many promoted adapters and keys; returns `used` pairs of (token, public model name).

    The pairs are of the adapters promoted last: those are what a gateway keeps loaded when not all can be.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    settings = Settings(data_dir=data_dir)
    database = Database.open(settings.database)
    try:
        database.migrate()
        pepper = keyfiles.pepper(data_dir, os.urandom, keys_exist=False)
        keyfiles.admin_key(data_dir, os.urandom)
        versions = [_version(number) for number in range(adapters)]
        for version in versions:
            _write_files(settings.adapter_store, version)

        def write(conn: sa.Connection) -> list[str]:
            for version in versions:
                adapter_store.add(conn, version)
                adapter_store.point(conn, version.name, version.version, version.created_at, "promoted", by="operator")
            return [_add_key(conn, pepper, number) for number in range(keys)]

        issued = asyncio.run(database.write(write))
    finally:
        database.close()
    step = max(keys // used, 1)
    names = [version.name for version in versions[-used:]]
    return list(zip(issued[::step][:used], names, strict=False))


def _add_key(conn: sa.Connection, pepper: bytes, number: int) -> str:
    minted = tokens.mint(os.urandom)
    grant = key_store.Grant(f"bench-{number}", frozenset({"inference"}), None, LIMITS, None)
    digest = tokens.digest(pepper, minted.token.encode())
    key_store.add_key(conn, key_store.ApiKey(minted.id, grant, digest, time.time()))
    return minted.token


def _version(number: int) -> Version:
    digest = hashlib.sha256(b"%d" % number).hexdigest()
    name = f"adapter-{number:05d}"
    return Version(
        name=name,
        version=digest[:12],
        digest=digest,
        engine_name=f"{name}@{digest[:12]}",
        base=MODEL,
        rank=8,
        size_bytes=len(EMPTY_WEIGHTS),
        source="bench",
        notes="",
        created_at=time.time() - 100_000 + number,
        state=VersionState.READY,
    )


def _write_files(store: Path, version: Version) -> None:
    """The folder that the adapter store would have."""
    folder = store / version.engine_name
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    (folder / "adapter_model.safetensors").write_bytes(EMPTY_WEIGHTS)
