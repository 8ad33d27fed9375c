"""Daily budgets survive a restart: what keys and models used today is in the database, and goes back into the ledger.

Must not know how requests are counted.
"""

from __future__ import annotations

from adapters import store as adapter_store
from adapters.db import Database
from adapters.types import Ceilings
from gateway.assembly import effective
from gateway.refresh import configured
from gateway.settings import ModelLimits
from gateway.usage import UsageRecorder, utc_day
from gateway.v1.proxy import Proxy


async def restore(proxy: Proxy, db: Database, recorder: UsageRecorder) -> None:
    """Before the first request. The database is asked for adapters: no engine may have said yet what their base is."""
    wall = proxy.wall()
    totals = await recorder.daily_totals(utc_day(wall))
    now = proxy.clock()
    for key_id, tokens in totals.keys.items():
        key = proxy.snapshot.keys.get(key_id)
        if key is not None and key.limits.daily_tokens is not None:
            proxy.ledger.restore("key", key_id, key.limits, tokens, now, wall)
    own = await db.read(adapter_store.ceilings)
    settings = proxy.settings.model_limits
    for name in own.keys() | settings.keys():
        limits = effective(own.get(name, Ceilings()), configured(settings.get(name, ModelLimits())))
        if limits.daily_tokens is not None and name in totals.models:
            proxy.ledger.restore("model", name, limits, totals.models[name], now, wall)
