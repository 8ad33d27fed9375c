"""One document that tells an operator how things stand: `loragate status`, GET /admin/v1/status.

Reads what others keep. Must not ask an engine.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from adapters.service import AdapterService
from gateway.capacity import Capacity
from gateway.engines import Engines
from gateway.health import Health
from gateway.settings import Settings
from gateway.usage import UsageRecorder
from gateway.v1.proxy import Proxy


class Status:
    def __init__(
        self,
        settings: Settings,
        proxy: Proxy,
        health: Health,
        adapters: AdapterService,
        recorder: UsageRecorder,
        wall: Callable[[], float],
        engine_states: Callable[[], list[dict[str, Any]]],
        capacity: Capacity,
        engines: Engines,
    ) -> None:
        self._settings = settings
        self._proxy = proxy
        self._health = health
        self._adapters = adapters
        self._recorder = recorder
        self._wall = wall
        self._started = wall()
        self._engine_states = engine_states
        self._capacity = capacity
        self._engines = engines

    def document(self) -> dict[str, Any]:
        """The body of /admin/v1/status."""
        ready, body = self._health.ready()
        snapshot, fleet = self._proxy.snapshot, self._proxy.fleet
        outstanding = {replica.url: replica for replica in fleet.replicas}
        for replica in body["replicas"]:
            live = outstanding[replica["url"]]
            replica |= {"outstanding": live.outstanding, "adapters": len(live.resident), "failures": live.failures}
        return {
            "version": _version(),
            "ready": ready,
            "reasons": body["reasons"],
            "uptime_s": round(self._wall() - self._started, 1),
            "base": snapshot.base,
            "base_root": self._adapters.base_root,
            "max_lora_rank": self._settings.adapters.max_lora_rank,
            "models": len(snapshot.models),
            "keys": len(snapshot.keys),
            "in_flight": self._proxy.admission.in_flight,
            "adapters": dict(self.adapter_counts()),
            "capacity": self._capacity.document(),
            "replicas": body["replicas"],
            "leaving": [{"url": url, "outstanding": count} for url, count in self._engines.roster.leaving()],
            "discovery": self._engines.discovery.document(),
            "engines": self._engine_states(),
            "usage_dropped": self._recorder.dropped,
            "data_dir": str(self._settings.data_dir),
        }

    def adapter_counts(self) -> dict[str, int]:
        """Versions by what they are here: live, stored, resident in an engine, failed in one."""
        snapshot = self._proxy.snapshot
        live = len(snapshot.models) - (1 if snapshot.base is not None else 0)
        resident: set[str] = set()
        for replica in self._proxy.fleet.replicas:
            resident |= replica.resident
        failed = self._capacity.failed()
        return {"live": live, "stored": len(snapshot.versions), "resident": len(resident), "failed": failed}


def _version() -> str:
    """Of the installed package; a gateway that runs from its source has none."""
    try:
        return version("loragate")
    except PackageNotFoundError:
        return "source"
