"""Which weights a name means, and which replica answers: the least busy one that has them.

Owns what requests teach about replicas (outstanding, failures, ejection) and what adapters are in flight where: never
more at once than an engine has slots. What probes and the reconciler
learn is written here from outside. Must not know sockets, bodies or limits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from enum import StrEnum

from gateway.errors import ModelNotFound, UpstreamUnavailable
from gateway.settings import Health
from gateway.v1.snapshot import Key, Snapshot, Target
from gateway.v1.upstream import Upstream

log = logging.getLogger("loragate.routing")

NO_BOUND = 2**31
EXPECT_S = 15.0  # a fleet whose addresses all change has others by then: looked up every second, ready in a few


class ReplicaState(StrEnum):
    STARTING = "starting"  # not yet seen to answer
    READY = "ready"
    EJECTED = "ejected"  # answers failed; a probe on the data path brings it back
    UNREACHABLE = "unreachable"
    REFUSED = "refused"  # serves another base than its pool


class Replica:
    """One engine as the data plane sees it."""

    __slots__ = (
        "blamed", "busy", "draining", "ejected_until", "ejections", "failures", "joined_at", "outstanding", "passing",
        "reason", "resident", "slots", "state", "upstream", "url", "used",
    )  # fmt: skip

    def __init__(self, url: str, upstream: Upstream) -> None:
        self.url = url
        self.upstream = upstream
        self.state = ReplicaState.STARTING
        self.reason = "the engine has not answered yet"
        self.resident: frozenset[str] = frozenset()  # engine names it has loaded
        self.slots = NO_BOUND  # adapters that it computes with at once
        self.busy: dict[str, int] = {}  # engine name → requests in flight; at most `slots` names
        self.used: dict[str, None] = {}  # engine names that were busy, in the order in which they became idle
        self.draining = ""  # gets no new requests: others starve for its slot
        self.outstanding = 0
        self.failures = 0  # in a row
        self.blamed: set[str] = set()  # whose requests those were: engine names, "" for the engine itself
        self.ejections = 0  # in a row
        self.ejected_until = 0.0
        self.joined_at = 0.0  # the clock's seconds; 0: it was there from the beginning
        self.passing = False  # its address was looked up: what takes no connection has probably gone

    def has(self, target: Target) -> bool:
        """Whether a request for `target` may be sent now."""
        name = target.engine_name
        if target.version is None:
            return True
        return name in self.resident and name != self.draining and (name in self.busy or len(self.busy) < self.slots)


class Fleet:
    """All replicas of the one base model."""

    def __init__(self, replicas: Sequence[Replica], health: Health) -> None:
        self.replicas = tuple(replicas)  # swapped whole
        self.leaving: tuple[Replica, ...] = ()  # get nothing new; what runs there is not over
        self.expected_until = 0.0  # until then one who finds no replica ready waits for one
        self.changed: Callable[[], None] | None = None  # told when a probe makes a replica ready, or no more
        self._health = health
        self._turn = 0  # equal replicas take turns
        self.asked: dict[str, int] = {}  # engine name → requests sent, taken away by whoever measures demand
        self.freed: Callable[[Replica], None] | None = None  # told of every name that becomes idle

    def pick(self, target: Target, not_this: Replica | None = None) -> Replica | None:
        """The ready replica with the fewest requests outstanding that has `target` loaded; None if there is none."""
        best: Replica | None = None
        replicas = self.replicas
        count = len(replicas)
        self._turn = turn = (self._turn + 1) % count if count else 0
        for i in range(count):
            replica = replicas[(turn + i) % count]
            if (
                replica.state is ReplicaState.READY
                and replica is not not_this
                and (best is None or replica.outstanding < best.outstanding)
                and replica.has(target)
            ):
                best = replica
        return best

    def take(self, replica: Replica, target: Target) -> None:
        """A request for `target` goes to `replica`."""
        replica.outstanding += 1
        if target.version is not None:
            name = target.engine_name
            replica.busy[name] = replica.busy.get(name, 0) + 1
            self.asked[name] = self.asked.get(name, 0) + 1

    def give_back(self, replica: Replica, target: Target) -> None:
        """It has ended there, in whatever way."""
        replica.outstanding -= 1
        if target.version is None:
            return
        name = target.engine_name
        left = replica.busy[name] - 1
        if left:
            replica.busy[name] = left
            return
        del replica.busy[name]
        replica.used.pop(name, None)
        replica.used[name] = None  # vLLM's own order: by the end of the last request (tried)
        if self.freed is not None:
            self.freed(replica)

    def any_ready(self) -> bool:
        return any(replica.state is ReplicaState.READY for replica in self.replicas)

    def succeeded(self, replica: Replica) -> None:
        if replica.failures:
            replica.failures = 0
            replica.blamed.clear()
        replica.ejections = 0

    def failed(self, replica: Replica, reason: str, now: float, adapter: str = "") -> None:
        """A transport fault or 5xx; never called for a caller's own mistake (4xx).

        adapter: whose weights may be to blame, where the engine did answer: one alone does not eject an engine.
        """
        replica.failures += 1
        replica.blamed.add(adapter)
        if replica.failures < self._health.eject_after or replica.state is not ReplicaState.READY:
            return
        if adapter and len(replica.blamed) == 1:
            return
        replica.ejections += 1
        pause = min(self._health.eject_s * replica.ejections, self._health.max_eject_s)
        replica.state, replica.ejected_until = ReplicaState.EJECTED, now + pause
        replica.reason = f"{replica.failures} failures in a row, the last: {reason}"
        log.warning("engine %s gets no requests for %.0f s: %s", replica.url, pause, replica.reason)

    def refused(self, replica: Replica, since: float, now: float) -> bool:
        """It took no connection, so nothing was sent; True: others may, ask again for a request of `since`."""
        others = any(other is not replica and other.state is ReplicaState.READY for other in self.replicas)
        if not (replica.passing or others) or now > since + EXPECT_S:
            return False
        self.probed(replica, "it takes no connection", now)
        return self.any_ready() or now < self.expected_until

    def probed(self, replica: Replica, reason: str | None, now: float) -> None:
        """What a probe on the data path found: None for an answer, else why not."""
        was_ready = replica.state is ReplicaState.READY
        if reason is not None:
            if replica.state is not ReplicaState.EJECTED:
                started = replica.state is not ReplicaState.STARTING
                if was_ready:
                    log.warning("engine %s does not answer: %s", replica.url, reason)
                replica.state = ReplicaState.UNREACHABLE if started else ReplicaState.STARTING
            replica.reason = reason
        elif replica.state is ReplicaState.EJECTED and now < replica.ejected_until and self.any_ready():
            return  # others can do the work: let it rest
        elif not was_ready:
            replica.state, replica.reason, replica.failures = ReplicaState.READY, "", 0
            replica.blamed.clear()
            log.info("engine %s is ready", replica.url)
        if replica.passing and was_ready and not self.any_ready():
            self.expected_until = now + EXPECT_S
        if self.changed is not None and was_ready is not (replica.state is ReplicaState.READY):
            self.changed()


def resolve(snapshot: Snapshot, key: Key, model: str) -> Target:
    """The weights that `model` means for this key: a listed name, or `name@<12 hex>`; ModelNotFound.

    A model that the key may not see is answered like one that does not exist. UpstreamUnavailable until an engine has
    said what it serves: before that nothing is known to exist or not to, and nobody tries again after a 404.
    """
    target = snapshot.models.get(model) or snapshot.versions.get(model)
    if target is None and snapshot.base is None:
        raise UpstreamUnavailable("No engine is ready. GET /readyz says why.", retry_after_s=5)
    if target is None or (key.models is not None and target.name not in key.models):
        raise ModelNotFound(
            f"The model `{model[:128]}` does not exist or this key may not use it. GET /v1/models lists what it may.",
            param="model",
        )
    return target
