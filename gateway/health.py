"""Whether a request would succeed now, and why not: the truth behind /readyz, /livez and `loragate status`.

Reads what others keep; must not ask an engine or the database itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gateway.v1.proxy import Proxy
from gateway.v1.routing import Replica, ReplicaState

LIVE = {"alive": True}


class Health:
    """engine_states: what supervises engines on this machine says about them. unfound: names without addresses."""

    def __init__(
        self,
        proxy: Proxy,
        registry_trouble: Callable[[], str | None],
        engine_states: Callable[[], list[dict[str, Any]]],
        unfound: Callable[[], list[str]],
    ) -> None:
        self._proxy = proxy
        self._registry_trouble = registry_trouble
        self._engine_states = engine_states
        self._unfound = unfound
        self.draining = False

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """True and the body of /readyz: {"ready", "reasons", "replicas"}."""
        reasons = self._reasons()
        replicas = [
            {
                "url": replica.url,
                "state": replica.state.value,
                "model": self._proxy.snapshot.base if replica.state is ReplicaState.READY else None,
                "reason": self._why_not(replica) or None,
            }
            for replica in self._proxy.fleet.replicas
        ]
        return not reasons, {"ready": not reasons, "reasons": reasons, "replicas": replicas}

    def _why_not(self, replica: Replica) -> str:
        """Why it is not ready: who supervises it knows that it crashed, where we only see a refused connection."""
        if replica.state is not ReplicaState.READY:
            for engine in self._engine_states():
                if engine["url"] == replica.url and engine["reason"]:
                    return str(engine["reason"])
        return replica.reason

    def _reasons(self) -> list[str]:
        reasons = []
        fleet, snapshot = self._proxy.fleet, self._proxy.snapshot
        if self.draining:
            reasons.append("the gateway is shutting down")
        trouble = self._registry_trouble()
        if trouble is not None:
            reasons.append(trouble)
        if self._proxy.paused:
            reasons.append(self._proxy.paused)
        elif not fleet.replicas:
            reasons += self._unfound() or ["no engine is configured; start with --engine URL"]
        elif not fleet.any_ready():
            reasons += [f"engine {r.url} is {r.state.value}: {self._why_not(r)}" for r in fleet.replicas]
            reasons += self._unfound()
        elif snapshot.base is None:
            reasons.append("the engine has not said which base model it serves")
        return reasons
