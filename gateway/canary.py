"""What the two arms of each canary did lately, and the loop that ends a canary which breaks its rules.

Each gateway judges what it has seen itself; whoever ends a canary first has ended it for all. Counts live in memory
only: a gateway that starts anew begins to count anew. Must not know bodies, sockets or how arms are compared.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from adapters import canary as statistics
from adapters.canary import GROUPS, MEASURES, Shape, Slot, Verdict, judge, look_due, measures
from adapters.errors import ServiceError
from adapters.types import Adapter, Canary, Rules
from gateway.metrics import Metrics, add
from gateway.v1.snapshot import Snapshot
from gateway.v1.split import Part

log = logging.getLogger("loragate.canary")

JUDGE_S = 1.0
SLOT_S = 10.0
SLOT_REQUESTS = 10  # of each arm, before a slot is full: with little traffic slots are longer
SLOT_MAX_S = 900.0
SLOTS = 90  # 15 minutes, or longer with little traffic: what went before is forgotten
BY = "gateway"

# Codes of what went wrong with the engine or the weights. Not: callers' mistakes, limits, load, an engine that is not
# there at all (it is not there for the live version either), and this gateway's own stop.
FAULTS = frozenset(
    {
        "model_loading",
        "upstream_disconnected",
        "upstream_error",
        "upstream_load_failed",
        "upstream_protocol_error",
        "upstream_timeout",
    }
)


class Adapters(Protocol):
    """The little of adapters.service that judging needs."""

    async def show(self, name: str) -> Adapter: ...
    async def end_canary(self, name: str, *, by: str, why: str, only: str | None, since: float | None) -> bool: ...


@dataclass(slots=True)
class Arm:
    """Everything that one arm did since counting began, for people; `recent` and `before` are what is judged."""

    outcomes: Counter[str] = field(default_factory=Counter)
    finish: Counter[str] = field(default_factory=Counter)
    completion_tokens: int = 0
    recent: Shape = field(default_factory=Shape)
    before: Shape = field(default_factory=Shape)

    def shape(self) -> Shape:
        return self.before.plus(self.recent)

    def figures(self) -> dict[str, Any]:
        """As the admin API shows them. Times in seconds."""
        shape = self.shape()
        seconds = {measure: statistics.typical(shape, measure) for measure in MEASURES}
        return {
            "requests": self.outcomes["ok"] + self.outcomes["error"],
            "errors": self.outcomes["error"],
            "left": self.outcomes["left"],
            "refused": self.outcomes["refused"],
            "completion_tokens": self.completion_tokens,
            "finish_reasons": dict(sorted(self.finish.items())),
            "first_token_s": seconds["first"],
            "per_token_s": seconds["pace"],
            "whole_answer_s": seconds["whole"],
        }


class Trial:
    """One canary as this gateway has seen it."""

    def __init__(self, version: str, now: float) -> None:
        self.version = version
        self.since: float | None = None  # as the registry says; another one is another canary
        self.rules = Rules()
        self.known_at = -1  # serial of the snapshot for which `since` and `rules` were read
        self._arms = Arm(), Arm()  # live, canary
        self._slots: deque[Slot] = deque([Slot()], SLOTS)
        self._slot_began = now
        self._slots_made = 0
        self._looked_at = 0  # canary requests at the last look
        self._looks = 0

    def record(self, part: Part, outcome: str, seconds: float, tokens: int, now: float, *, stream: bool) -> None:
        """One request that is over. Only those that the engine answered, well or badly, are compared."""
        arm = self._arms[part.chosen]
        arm.outcomes[outcome] += 1
        if outcome not in ("ok", "error"):
            return
        slot = self._slot(now)
        group = part.group % GROUPS
        failed = outcome == "error"
        if part.chosen:
            slot.canary += 1
            if failed:
                slot.canary_failed[group] = slot.canary_failed.get(group, 0) + 1
        else:
            slot.live += 1
            slot.live_failed += failed
        if failed:
            return
        arm.completion_tokens += tokens
        shape = arm.recent
        if part.finish:
            arm.finish[part.finish] += 1
            key = (group, part.finish)
            shape.finish[key] = shape.finish.get(key, 0) + 1
        if part.waited:
            return
        for measure, logarithm in measures(part.first_s, seconds, tokens, stream=stream):
            count, total = shape.seconds.get((group, measure), (0, 0.0))
            shape.seconds[group, measure] = count + 1, total + logarithm

    def due(self) -> bool:
        """Whether there is enough new to look again."""
        return look_due(self._seen - self._looked_at, sum(slot.canary for slot in self._slots), self.rules)

    def look(self) -> Verdict | None:
        """Judge once; each look makes the next one stricter."""
        self._looks += 1
        self._looked_at = self._seen
        live, canary = self._arms
        return judge(list(self._slots), live.shape(), canary.shape(), self.rules, self._looks)

    def figures(self, rules: Rules) -> dict[str, Any]:
        """Both arms and how far the judging has come, as the admin API shows them."""
        live, canary = self._arms
        standing = statistics.standing(self._slots, rules, self._looks)
        return {"live": live.figures(), "canary": canary.figures(), "standing": standing}

    @property
    def _seen(self) -> int:
        outcomes = self._arms[1].outcomes
        return outcomes["ok"] + outcomes["error"]

    def _slot(self, now: float) -> Slot:
        """The one for now. What is older than all slots is forgotten: shapes go in two halves."""
        slot, age = self._slots[-1], now - self._slot_began
        full = age >= SLOT_S and min(slot.live, slot.canary) >= SLOT_REQUESTS
        if not full and age < SLOT_MAX_S:
            return slot
        slot = Slot()
        self._slots.append(slot)
        self._slot_began = now
        self._slots_made += 1
        if self._slots_made % (SLOTS // 2) == 0:
            for arm in self._arms:
                arm.before, arm.recent = arm.recent, Shape()
        return slot


class Canaries:
    """All canaries of one gateway. `observe` is called by requests, `follow` at every change of the registry."""

    def __init__(self, adapters: Adapters, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._adapters = adapters
        self._metrics = metrics
        self._clock = clock
        self._trials: dict[str, Trial] = {}
        self._serial = -1
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Canaries:
        self._task = asyncio.create_task(self._watch(), name="canaries")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def follow(self, snapshot: Snapshot) -> None:
        """From now on these canaries run, and no others."""
        self._serial = snapshot.serial
        running = {
            name: (target.canary.version or "", target.canary_percent)
            for name, target in snapshot.canaries.items()
            if target.canary is not None
        }
        for name, trial in list(self._trials.items()):
            if name not in running or running[name][0] != trial.version:
                del self._trials[name]
        now = self._clock()
        for name, (version, _) in running.items():
            if name not in self._trials:
                self._trials[name] = Trial(version, now)
        self._metrics.canaries.percent = {name: percent for name, (_, percent) in running.items()}

    def observe(self, part: Part, code: str, seconds: float, tokens: int, stream: bool) -> None:
        """A request that took part is over. code: its HTTP status, 499 for a caller that left."""
        name = part.target.name
        outcome = "refused"
        if code == "200":
            outcome = "ok"
        elif code == "499":
            outcome = "left"
        elif part.error in FAULTS:
            outcome = "error"
        self._metrics.canaries.add(name, "canary" if part.chosen else "live", outcome)
        trial = self._trials.get(name)
        if trial is not None and trial.version == part.canary:
            trial.record(part, outcome, seconds, tokens, self._clock(), stream=stream)

    def figures(self, name: str, canary: Canary) -> dict[str, Any]:
        """What this gateway has seen of both arms; zeros for a canary that no request has met yet."""
        trial = self._trials.get(name)
        if trial is None or trial.version != canary.version or trial.since not in (None, canary.since):
            trial = Trial(canary.version, self._clock())
        return trial.figures(canary.rules)

    async def judge_all(self) -> None:
        """Look at every canary of which there is enough news; what goes wrong with one is logged."""
        for name, trial in list(self._trials.items()):
            try:
                await self._judge(name, trial)
            except ServiceError as error:  # the registry is away: next second again
                log.warning("the canary of %s cannot be judged: %s", name, error.message)
            except Exception:  # the loop must live to judge the others
                log.exception("the canary of %s cannot be judged", name)
            await asyncio.sleep(0)  # a look takes 0.5 ms, at worst 5: requests go between two

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(JUDGE_S)
            await self.judge_all()

    async def _judge(self, name: str, trial: Trial) -> None:
        if trial.known_at != self._serial:
            await self._learn(name, trial)
        if self._trials.get(name) is not trial or trial.since is None or not trial.due():
            return
        verdict = trial.look()
        if verdict is None:
            return
        only, since = trial.version, trial.since
        if await self._adapters.end_canary(name, by=BY, why=verdict.sentence, only=only, since=since):
            log.warning("the canary %s@%s has ended: %s", name, trial.version, verdict.sentence)
            add(self._metrics.canaries.ended, verdict.reason)

    async def _learn(self, name: str, trial: Trial) -> None:
        """Its rules, and whether it is still the same canary."""
        serial = self._serial
        canary = (await self._adapters.show(name)).canary
        if canary is None or canary.version != trial.version:
            return  # over: the next snapshot says so
        if trial.since not in (None, canary.since):
            fresh = Trial(trial.version, self._clock())
            if self._trials.get(name) is trial:
                self._trials[name] = fresh
            trial = fresh
        trial.since, trial.rules, trial.known_at = canary.since, canary.rules, serial
