"""What the bench writes is what the product reads: its keys open, its adapters are served, its files are there."""

from __future__ import annotations

import asyncio
from pathlib import Path

from adapters import store as adapter_store
from adapters.db import Database
from bench.fill import fill
from gateway import keyfiles, tokens
from gateway import store as key_store
from gateway.settings import Settings


async def test_filled_directory_is_read_by_the_products_own_stores(tmp_path: Path) -> None:
    pairs = await asyncio.to_thread(fill, tmp_path, 6, 8, 3)
    settings = Settings(data_dir=tmp_path)
    database = Database.open(settings.database)
    try:
        served = await database.read(lambda conn: tuple(adapter_store.served(conn)))
        keys = await database.read(lambda conn: {key.id: key for key in key_store.live_keys(conn, 0.0)})
    finally:
        database.close()
    assert (len(served), len(keys), len(pairs)) == (6, 8, 3)
    assert all(version.live for version in served)
    assert {version.engine_name for version in served} == {path.name for path in settings.adapter_store.iterdir()}
    pepper = keyfiles.pepper(tmp_path, lambda size: b"", keys_exist=True)
    for token, model in pairs:
        key = tokens.verify(token.encode(), keys, pepper, 0.0)
        assert key is not None
        assert key.limits.rpm
        assert model in {version.name for version in served}
