"""Which engines the gateway has now: they join and leave here, on both planes in one step.

What leaves gets nothing new, and its connections close after the last request that runs there. Only where nothing else
is ready does it stay, for as long as it answers. Must not know where members come from.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adapters.engine import EngineClient
from adapters.reconcile import Reconciler
from gateway.discovery import Member
from gateway.metrics import Metrics
from gateway.v1.routing import EXPECT_S, Fleet, Replica, ReplicaState
from gateway.v1.upstream import Fault, Upstream

log = logging.getLogger("loragate.roster")

POLL_S = 0.25
LAST_WORDS_S = 5.0  # what was cut at the deadline has told its caller by then


@dataclass(eq=False, slots=True)
class _Seat:
    member: Member
    replica: Replica
    client: EngineClient
    wanted: bool = True  # False: it leaves as soon as another is ready
    closing: bool = False  # its connections are being cut
    drain: asyncio.Task[None] | None = None


class Roster:
    """drain_s: how long requests may run on where an engine has left.

    followers: called when the fleet's replicas are others.
    """

    def __init__(
        self,
        fleet: Fleet,
        reconciler: Reconciler,
        metrics: Metrics,
        *,
        upstream: Callable[[Member], Upstream],
        client: Callable[[Member], EngineClient],
        clock: Callable[[], float],
        drain_s: float,
    ) -> None:
        self._fleet = fleet
        self._reconciler = reconciler
        self._metrics = metrics
        self._upstream = upstream
        self._client = client
        self._clock = clock
        self._drain_s = drain_s
        self._seats: dict[str, _Seat] = {}
        self._leaving: list[_Seat] = []
        self._running = False
        self.followers: list[Callable[[], None]] = []

    async def aclose(self) -> None:
        """Close every connection."""
        drains = [seat.drain for seat in self._leaving if seat.drain is not None]
        for drain in drains:
            drain.cancel()
        await asyncio.gather(*drains, return_exceptions=True)
        seats = (*self._seats.values(), *self._leaving)
        await asyncio.gather(*(seat.replica.upstream.aclose() for seat in seats))

    def follow(self, members: Sequence[Member]) -> None:
        """From now on these are the engines that there should be. URLs are unique in them."""
        wanted = {member.url: member for member in members}
        before = self._fleet.replicas
        for url, seat in tuple(self._seats.items()):
            seat.wanted = wanted.get(url) == seat.member
            if not seat.wanted and url in wanted:
                self._leave(seat)  # the same address by another name: another key, perhaps
        for url, member in wanted.items():
            if url not in self._seats:
                self._join(member)
        if self._running and not self._fleet.any_ready():
            self._fleet.expected_until = self._clock() + EXPECT_S
        self._running = True
        self.settle()
        if self._fleet.replicas is not before:
            self._tell()

    def settle(self) -> None:
        """Those that should not be there any more leave, but not the last one that answers."""
        going = [seat for seat in self._seats.values() if not seat.wanted]
        others = any(seat.wanted and seat.replica.state is ReplicaState.READY for seat in self._seats.values())
        before = self._fleet.replicas
        for seat in going:
            if others or seat.replica.state is not ReplicaState.READY:
                self._leave(seat)
            else:
                seat.replica.reason = "its name no longer points here; it serves until another engine is ready"
        for seat in self._seats.values():
            if seat.wanted and seat.replica.state is ReplicaState.READY:
                seat.replica.reason = ""
        if self._fleet.replicas is not before:
            self._tell()

    def leaving(self) -> list[tuple[str, int]]:
        """URL and requests that still run, of what has left."""
        return [(seat.member.url, seat.replica.outstanding) for seat in self._leaving]

    def _tell(self) -> None:
        for follower in self.followers:
            follower()

    def _join(self, member: Member) -> None:
        seat = self._back(member)
        if seat is None:
            seat = _Seat(member, Replica(member.url, self._upstream(member)), self._client(member))
            seat.replica.passing = member.address is not None
        replica = seat.replica
        replica.joined_at = self._clock() if self._running else 0.0
        self._seats[member.url] = seat
        self._reconciler.join(seat.client)
        self._fleet.replicas = (*self._fleet.replicas, replica)
        if self._running:
            log.info("engine %s joins", member.url)

    def _back(self, member: Member) -> _Seat | None:
        """It left a moment ago and requests still run there: what is known of those stays true."""
        seat = next((seat for seat in self._leaving if seat.member == member and not seat.closing), None)
        if seat is None or seat.drain is None:
            return None
        seat.drain.cancel()
        seat.drain, seat.wanted = None, True
        self._forget(seat)
        replica = seat.replica
        replica.state, replica.reason = ReplicaState.STARTING, "it has come back"
        replica.failures = replica.ejections = 0
        return seat

    def _leave(self, seat: _Seat) -> None:
        url, replica = seat.member.url, seat.replica
        log.info("engine %s leaves with %d requests running", url, replica.outstanding)
        del self._seats[url]
        self._fleet.replicas = tuple(other for other in self._fleet.replicas if other is not replica)
        self._fleet.leaving = (*self._fleet.leaving, replica)
        replica.resident = frozenset()
        self._leaving.append(seat)
        self._reconciler.leave(url)
        seat.drain = asyncio.create_task(self._drain(seat), name=f"drain {url}")

    async def _drain(self, seat: _Seat) -> None:
        replica = seat.replica
        await _until_idle(replica, self._drain_s)
        seat.closing = True
        if replica.outstanding:
            log.warning("%d requests still ran on engine %s, which has left", replica.outstanding, replica.url)
        await replica.upstream.aclose(Fault.CUT, "the engine has left, and the time for what ran there is over")
        await _until_idle(replica, LAST_WORDS_S)
        self._forget(seat)
        if not any(other.url == replica.url for other in (*self._fleet.replicas, *self._fleet.leaving)):
            self._metrics.forget_replica(replica.url)

    def _forget(self, seat: _Seat) -> None:
        self._leaving.remove(seat)
        self._fleet.leaving = tuple(other for other in self._fleet.leaving if other is not seat.replica)


async def _until_idle(replica: Replica, longest_s: float) -> None:
    for _ in range(int(longest_s / POLL_S)):
        if not replica.outstanding:
            return
        await asyncio.sleep(POLL_S)
