"""The fleet's hard hour, shortened: 24 adapters, two engines of 4 slots, versions that change, an engine killed.

Says what happened; what is good enough is for those who call `soak` to say.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import openai

from tests.e2e import fleet_adapters
from tests.e2e.fleet_adapters import Fleet
from tests.e2e.fleet_engine import Replica, replicas
from tests.e2e.fleet_gateway import Gateway, Refused, gateway
from tests.e2e.fleet_traffic import BASE, MAX_TOKENS, Answered, Callers, Ledger
from tests.e2e.fleet_truth import Truth

PERCENT = 30
RECONCILED_S = 60.0
COMMAND_S = 60.0


@dataclass
class Soak:
    """What was seen. Times in seconds."""

    ledger: Ledger
    seconds: float = 0.0
    killed_at: float = 0.0
    died_at: float = 0.0  # some milliseconds later
    swaps: list[float] = field(default_factory=list)  # promote and rollback, from the command to its answer
    refused: list[str] = field(default_factory=list)  # commands that had to be given again, with the reason
    canary_mixed: list[str] = field(default_factory=list)  # users who saw both versions during the canary
    canary_share: float = 0.0
    canary_stood: bool = False  # nothing ended it meanwhile
    engine_back: float = 0.0  # from kill -9 to the engine's own readiness
    gateway_back: float = 0.0  # from there until the gateway routes to it
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def cut(self) -> list[Answered]:
        """Failures that were under way when the engine was killed."""
        return [each for each in self.ledger.failed if each.began <= self.died_at and each.ended >= self.killed_at]

    @property
    def failed(self) -> list[Answered]:
        """The others: there should be none."""
        cut = self.cut
        return [each for each in self.ledger.failed if each not in cut]


@dataclass
class Operator:
    """Commands to the gateway, each told to the truth and timed."""

    gateway: Gateway
    soak: Soak
    digits: dict[str, dict[int, str]]  # public name → number → 12 hex digits

    async def promote(self, name: str, number: int) -> None:
        await self._swap(name, number, lambda: self._ask(name, "promote", version=self.digits[name][number]))

    async def rollback(self, name: str, number: int) -> None:
        await self._swap(name, number, lambda: self._ask(name, "rollback"))

    async def canary(self, name: str, number: int, seconds: float, callers: Callers) -> None:
        """Start one and let it run for so long, and until every user has met it; then the version goes live."""
        ledger = self.soak.ledger
        with ledger.truth.changing(name, 1, number):
            await self._ask(name, "canary", version=self.digits[name][number], percent=PERCENT)
        start = time.monotonic()
        await asyncio.sleep(seconds)
        await callers.every_user(name)
        mixed, share = ledger.shares(name, start, time.monotonic())
        self.soak.canary_mixed, self.soak.canary_share = mixed, share
        self.soak.canary_stood = (await self.gateway.ask("GET", f"adapters/{name}"))["canary"] is not None
        await self.promote(name, number)

    async def _swap(self, name: str, number: int, command: Callable[[], Awaitable[object]]) -> None:
        """Until it is done: a command that meets the engine's death is refused, with the old version live."""
        with self.soak.ledger.truth.changing(name, number):
            async with asyncio.timeout(COMMAND_S):
                while True:
                    began = time.monotonic()
                    try:
                        await command()
                    except Refused as refused:
                        self.soak.refused.append(f"{began - self.soak.killed_at:.1f} s after the kill: {refused}")
                        await asyncio.sleep(0.5)
                    else:
                        break
        self.soak.swaps.append(time.monotonic() - began)

    async def _ask(self, name: str, verb: str, **body: object) -> object:
        return await self.gateway.ask("POST", f"adapters/{name}/{verb}", **body)


async def soak(
    python: Path,
    fleet: Fleet,
    directory: Path,
    *,
    seconds: float,
    callers: int,
    seed: int = 1,
    say: Callable[[str], None],
) -> Soak:
    """The whole of it: about `seconds` of traffic, longer where the killed engine takes longer to come back."""
    async with replicas(python, directory, 2) as engines:
        base_says = await _base_answers(engines[0])
        say("Both engines answer")
        async with gateway(engines, directory / "gateway") as running:
            operator = await _registered(running, fleet, base_says)
            say("All adapters are registered and live")
            await _hour(operator, engines, seconds=seconds, callers=callers, seed=seed, say=say)
            operator.soak.metrics = await running.metrics()
            return operator.soak


async def _hour(
    operator: Operator, engines: list[Replica], *, seconds: float, callers: int, seed: int, say: Callable[[str], None]
) -> None:
    found, began = operator.soak, time.monotonic()
    async with _calling(operator.gateway, found.ledger, callers, seed) as calling:
        await asyncio.sleep(seconds * 0.05)
        await operator.promote("fleet-01", 2)
        await asyncio.sleep(seconds * 0.05)
        await operator.rollback("fleet-01", 1)
        await asyncio.sleep(seconds * 0.05)
        say("Promoted and rolled back; a canary begins")
        await operator.canary("fleet-02", 2, seconds * 0.2, calling)
        say("The canary is live; one engine is killed")
        back = asyncio.create_task(_killed(operator.gateway, engines[1], found))
        try:
            while time.monotonic() - began < seconds or not back.done():
                for name in ("fleet-03", "fleet-04"):
                    await operator.promote(name, 2)
                    await asyncio.sleep(max(seconds * 0.02, 2))
                    await operator.rollback(name, 1)
                    await asyncio.sleep(max(seconds * 0.02, 2))
        finally:
            await back
    found.seconds = time.monotonic() - began


@asynccontextmanager
async def _calling(running: Gateway, ledger: Ledger, callers: int, seed: int) -> AsyncIterator[Callers]:
    async with (
        openai.AsyncOpenAI(base_url=running.url, api_key=running.key, timeout=100, max_retries=0) as client,
        Callers(client, ledger, time.monotonic, seed).running(callers) as calling,
    ):
        yield calling


async def _killed(running: Gateway, engine: Replica, found: Soak) -> None:
    """kill -9, the same again on the same port, and how long it takes until the gateway routes to it."""
    found.killed_at = time.monotonic()
    engine.kill()
    found.died_at = time.monotonic()
    await asyncio.to_thread(engine.sweep)
    engine.start()
    await engine.ready()
    ready = time.monotonic()
    found.engine_back = ready - found.killed_at
    async with asyncio.timeout(RECONCILED_S):
        while not await running.is_ready(engine):
            await asyncio.sleep(0.05)
    found.gateway_back = time.monotonic() - ready


async def _registered(running: Gateway, fleet: Fleet, base_says: dict[tuple[str, bool], str]) -> Operator:
    """Every adapter live with version 1, every version 2 registered."""
    truth, digits = Truth(time.monotonic), dict[str, dict[int, str]]()
    for name, number in fleet_adapters.versions():
        made = await running.register(fleet.folder(name, number), name, promote=number == 1)
        digits.setdefault(name, {})[number] = made
        if number == 1:
            truth.is_now(name, 1)
    numbers = {name: {version: number for number, version in known.items()} for name, known in digits.items()}
    return Operator(running, Soak(Ledger(truth, numbers, base_says)), digits)


async def _base_answers(engine: Replica) -> dict[tuple[str, bool], str]:
    """What the base says to every prompt, asked of an engine that has never seen an adapter."""
    said = {}
    headers = {"authorization": f"Bearer {engine.key}"}
    async with httpx.AsyncClient(base_url=f"{engine.url}/v1", headers=headers, timeout=100, trust_env=False) as http:
        for prompt in fleet_adapters.prompts():
            fixed = {"model": BASE, "temperature": 0, "max_tokens": MAX_TOKENS}
            chat = await http.post(
                "/chat/completions", json={**fixed, "messages": [{"role": "user", "content": prompt}]}
            )
            bare = await http.post("/completions", json={**fixed, "prompt": prompt + "\n"})
            said[prompt, True] = chat.json()["choices"][0]["message"]["content"]
            said[prompt, False] = bare.json()["choices"][0]["text"]
    return said
