"""A whole gateway over a few fake engines, what it was told and what must therefore be true; the machine's moves.

Knows what each name may answer with at any moment. Must not know in which order things are tried.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from adapters import store
from adapters.types import ReplicaState as Seen
from gateway.v1.routing import ReplicaState
from tests.fake_slots import digest
from tests.fake_vllm import FakeVLLM
from tests.gateway.plane import CHAT, ask, events
from tests.gateway.running import Running, running
from tests.gateway.tiny_lora import tiny_lora

ADAPTERS = "/admin/v1/adapters"
BASE, OTHER_BASE = "demo-base", "other-base"
NEVER_JUDGED = {"min_requests": 10**6}
PATIENCE_S = 4.0  # then what stands still is let go, so that an operator's move gets its room


@dataclass
class Name:
    """What one public name was told to be. `canary` without a share: which callers get it is another test's matter."""

    live: str | None = None
    previous: str | None = None
    canary: str | None = None
    versions: dict[str, Path] = field(default_factory=dict)  # 12 digits -> source folder
    pinned: set[str] = field(default_factory=set)
    unloaded: set[str] = field(default_factory=set)
    history: list[tuple[str, str]] = field(default_factory=list)  # what, version

    def allowed(self) -> set[str]:
        """What may answer now."""
        return {version for version in (self.live, self.canary) if version is not None}

    def point(self, version: str, what: str) -> None:
        if self.live == version:
            return
        if self.canary not in (None, version):
            self.history.append(("canary ended", str(self.canary)))
        self.canary = None
        self.live, self.previous = version, self.live
        self.unloaded.discard(version)
        self.history.append((what, version))


@dataclass
class Held:
    """A stream that stands still in its middle."""

    name: str
    version: str  # as its head says
    said: str
    gate: asyncio.Event
    answer: httpx.Response
    stack: AsyncExitStack
    cut: bool = False  # its engine or its gateway went away


class World:
    def __init__(self, slots: Sequence[int]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.root = Path(self._folder.name)
        self.data = self.root / "data"
        self.engines = [FakeVLLM(BASE, count, shows_weights=True) for count in slots]
        self.gates: dict[str, asyncio.Event] = {}
        for engine in self.engines:
            engine.gates = self.gates
        self.up = [True] * len(slots)
        self.names: dict[str, Name] = {}
        self.gone: dict[str, Name] = {}  # removed, with their history
        self.held: list[Held] = []
        self.foreign: list[set[str]] = [set() for _ in slots]
        self.settled = True  # the gateway has seen which engines are there
        self._seeds: dict[int, str] = {}
        self._numbers = itertools.count(1)
        self._stack = AsyncExitStack()
        self._gateway_stack = AsyncExitStack()

    # life

    async def open(self) -> None:
        for engine in self.engines:
            await self._stack.enter_async_context(engine)
        await self.open_gateway()

    async def open_gateway(self) -> None:
        enter = self._gateway_stack.enter_async_context
        self.gateway: Running = await enter(
            running(
                self.data,
                self.engines,
                ready=False,
                drain={"timeout_s": 0.1},
                adapters={"load_timeout_s": PATIENCE_S},
                health={"probe_interval_s": 0.05, "eject_s": 0.2, "max_eject_s": 0.2},
            )
        )
        self.admin: httpx.AsyncClient = await enter(self.gateway.admin())
        self.http: httpx.AsyncClient = await enter(await self.gateway.http())
        await self.settle()

    async def restart_gateway(self) -> None:
        for held in self.held:
            held.cut = True
        closing = asyncio.create_task(self._gateway_stack.aclose())
        for held in list(self.held):
            await self.let_go(held)
        await closing
        self._gateway_stack = AsyncExitStack()
        await self.open_gateway()

    async def close(self) -> None:
        for gate in self.gates.values():
            gate.set()
        for held in self.held:
            await held.stack.aclose()
        await self._gateway_stack.aclose()
        await self._stack.aclose()
        self._folder.cleanup()

    # what is there

    @property
    def ready(self) -> list[int]:
        """Engines that can answer: up, with the right base."""
        return [at for at, engine in enumerate(self.engines) if self.up[at] and engine.adapters.bases[0] == BASE]

    def right(self) -> list[bool]:
        """Which engines serve the base that everything was made for; without anything, it is that of the first one."""
        return [engine.adapters.bases[0] == BASE for engine in self.engines]

    def engine_name(self, name: str, version: str) -> str:
        return f"{name.replace(':', '-')}@{version}"

    def crowded(self) -> bool:
        """Whether there may be no room for one more adapter on any engine."""
        pinned = sum(len(name.pinned) for name in self.names.values())
        held = len({self.engine_name(h.name, h.version) for h in self.held})
        return all(pinned + held + len(self.foreign[at]) >= self.engines[at].slots.count for at in self.ready)

    async def settle(self) -> None:
        """Until the gateway has seen which engines are there, and what they serve."""
        gateway = self.gateway.started.gateway
        reconciler, fleet = gateway.adapters._reconciler, gateway.proxy.fleet

        def right() -> bool:
            for at, replica in enumerate(fleet.replicas):
                view = reconciler.residency[replica.url]
                if (at in self.ready) != (replica.state is ReplicaState.READY and view.state is Seen.READY):
                    return False
            return gateway.health.ready()[0] or not self.ready

        for engine in self.engines:
            await reconciler.tick(engine.url)
        await self.until(right, "the gateway to see its engines")
        self.settled = True

    async def until(self, true: Callable[[], bool], what: str, seconds: float = 30) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not true():
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise AssertionError(f"waited in vain for {what}") from None

    # operators' moves: the answer, and what is true once it is there

    async def move(self, method: str, path: str, **request: Any) -> httpx.Response:
        """One call of the admin API; where it waits for room, what stands still is let go."""
        task = asyncio.create_task(self.admin.request(method, ADAPTERS + path, **request))
        done, _ = await asyncio.wait({task}, timeout=PATIENCE_S)
        if not done:
            for held in list(self.held):
                await self.let_go(held)
        async with asyncio.timeout(30):
            answer = await task
        assert str(self.root) not in answer.text or method == "GET" or answer.status_code < 300, answer.text
        return answer

    def may_fail(self, answer: httpx.Response) -> None:
        """An operator's move is refused by an engine only where engines came and went."""
        assert answer.status_code in (502, 503), (answer.status_code, answer.text)
        assert not self.settled or not self.ready, answer.text

    async def register(self, name: str, seed: int, promote: bool) -> None:
        folder = self.root / "sources" / str(seed)
        if not folder.exists():
            tiny_lora(folder, seed)
        body = {"source": str(folder), "name": name, "promote": promote}
        answer = await self.move("POST", "", json=body)
        refused = answer.status_code != 201
        if refused:
            assert promote
            self.may_fail(answer)
            answer = await self.admin.get(f"{ADAPTERS}/{name}")
        shown = answer.json()
        it = self.names.setdefault(name, Name(history=self.gone.pop(name, Name()).history))
        there = {version["version"] for version in shown["versions"]}
        version = self._seeds.setdefault(seed, next(iter(there - it.versions.keys()), ""))
        if version not in it.versions:
            it.history.append(("registered", version))
            it.versions[version] = folder
        if promote and not refused:
            it.point(version, "promoted")
        self.compare(name, shown)

    def compare(self, name: str, shown: dict[str, Any]) -> None:
        """The registry says what it was told."""
        it = self.names[name]
        canary = shown["canary"]["version"] if shown["canary"] else None
        told = (it.live, it.previous, it.canary, set(it.versions))
        assert (shown["live"], shown["previous"], canary, {v["version"] for v in shown["versions"]}) == told

    async def promote(self, name: str, version: str) -> None:
        answer = await self.move("POST", f"/{name}/promote", json={"version": version})
        if answer.status_code == 200:
            self.names[name].point(version, "promoted")
            self.compare(name, answer.json())
        else:
            self.may_fail(answer)

    async def rollback(self, name: str) -> None:
        it = self.names[name]
        answer = await self.move("POST", f"/{name}/rollback")
        if it.previous is None:
            assert answer.status_code == 409, answer.text
        elif answer.status_code == 200:
            it.point(it.previous, "rolled back")
            self.compare(name, answer.json())
        else:
            self.may_fail(answer)

    async def canary(self, name: str, version: str, percent: float) -> None:
        it = self.names[name]
        body = {"version": version, "percent": percent, "rules": NEVER_JUDGED}
        answer = await self.move("POST", f"/{name}/canary", json=body)
        if it.live in (None, version):
            assert answer.status_code == 409, answer.text
        elif answer.status_code == 200:
            it.canary = version
            it.unloaded.discard(version)
            it.history.append((f"canary {percent:g} %", version))
            self.compare(name, answer.json())
        else:
            self.may_fail(answer)

    async def end_canary(self, name: str) -> None:
        it = self.names[name]
        answer = await self.move("POST", f"/{name}/canary", json={"percent": 0})
        assert answer.status_code == (409 if it.canary is None else 200), answer.text
        if it.canary is not None:
            it.history.append(("canary ended", it.canary))
            it.canary = None

    async def pin(self, name: str, version: str) -> None:
        it = self.names[name]
        answer = await self.move("POST", f"/{name}/load", json={"version": version})
        pinned = {self.engine_name(n, v) for n, other in self.names.items() for v in other.pinned}
        others = pinned - {self.engine_name(name, version)}
        if answer.status_code == 409:
            assert "must stay for all others" in answer.text
            assert len(others) + 1 > min(engine.slots.count for engine in self.engines) - 1
            return
        # 502, 503: it stays wanted all the same
        if version not in it.pinned:
            it.pinned.add(version)
            it.unloaded.discard(version)
            it.history.append(("kept loaded", version))
        if self.settled:
            assert len(others) + 1 <= min(self.engines[at].slots.count for at in self.ready or [0]) - 1
        if answer.status_code != 200:
            self.may_fail(answer)

    async def unload(self, name: str, version: str) -> None:
        it = self.names[name]
        answer = await self.move("POST", f"/{name}/unload", json={"version": version})
        if version in it.allowed():
            assert answer.status_code == (200 if version in it.pinned else 409), answer.text
            if version in it.pinned:
                it.pinned.discard(version)
                it.history.append(("kept no longer", version))
            return
        it.pinned.discard(version)
        if version not in it.unloaded:
            it.unloaded.add(version)
            it.history.append(("unloaded", version))
        if answer.status_code != 200:
            self.may_fail(answer)

    async def remove(self, name: str, version: str | None) -> None:
        it = self.names[name]
        answer = await self.move("DELETE", f"/{name}", params={} if version is None else {"version": version})
        if version is not None and version in it.allowed():
            assert answer.status_code == 409, answer.text
            return
        assert answer.status_code == 200, answer.text
        for each in list(it.versions) if version is None else [version]:
            it.history.append(("removed", each))
            del it.versions[each]
            it.pinned.discard(each)
            it.unloaded.discard(each)
        if version is None:
            self.gone[name] = self.names.pop(name)
        elif it.previous == version:
            it.previous = None

    # callers

    def check(self, model: str, answered: str, text: str, said: str, allowed: set[str]) -> None:
        """The version that the head names is allowed, and its weights are those that computed."""
        name, _, version = answered.partition("@")
        assert name == model.partition("@")[0]
        assert version in allowed, f"{answered} answered, allowed: {allowed}"
        folder = next(it.versions[version] for it in self._everything() if version in it.versions)
        assert text == f"{self.engine_name(name, version)}#{digest(folder)}#{BASE}: {said}"

    def _everything(self) -> list[Name]:
        seeds = Name(versions={version: self.root / "sources" / str(seed) for seed, version in self._seeds.items()})
        return [*self.names.values(), seeds]

    async def ask(
        self, model: str, allowed: set[str], stream: bool = False, user: str = "u", refused: Sequence[int] = ()
    ) -> int:
        """One request; its status. Whatever comes is right, or an error that says what is the matter.

        refused: statuses that need no other reason.
        """
        said = f"said {next(self._numbers)}"
        answer = await self.http.post(CHAT, json=ask(CHAT, said, model=model, stream=stream, user=user))
        if answer.status_code == 200:
            text, broken = spoken(answer, answer.content)
            if broken:  # its engine went away meanwhile
                assert not self.settled, answer.text
            else:
                self.check(model, answer.headers["x-loragate-model"], text, said, allowed)
        elif answer.status_code not in refused:
            self.refused(answer)
        return answer.status_code

    def refused(self, answer: httpx.Response) -> None:
        """Why a request for a live model may be refused."""
        code = answer.json()["error"]["code"]
        assert answer.status_code in (502, 503), answer.text
        if code == "model_loading":
            assert answer.headers["retry-after"]
            # Unseen restarts of all that had it: a look at another engine in between may bring an old view back once.
            assert self.crowded() or not self.ready or not self.settled, f"there is room: {answer.text}"
        else:
            assert code in ("no_engine_ready", "upstream_unreachable", "upstream_disconnected"), answer.text
            assert not self.ready or not self.settled, answer.text

    async def ask_base(self) -> None:
        answer = await self.http.post(CHAT, json=ask(CHAT, "x", model=BASE))
        if answer.status_code == 200:
            assert answer.json()["choices"][0]["message"]["content"] == f"{BASE}: x"
        else:
            assert not self.ready or not self.settled, answer.text

    async def hold(self, name: str) -> None:
        word = f"word-{next(self._numbers)}-"
        gate = self.gates[word] = asyncio.Event()
        said, allowed, stack = f"{word} is said", self.names[name].allowed(), AsyncExitStack()
        body = ask(CHAT, said, model=name, stream=True, user=word)
        answer = await stack.enter_async_context(self.http.stream("POST", CHAT, json=body))
        if answer.status_code != 200:
            await answer.aread()
            await stack.aclose()
            self.refused(answer)
            return
        version = answer.headers["x-loragate-model"].partition("@")[2]
        assert version in allowed, f"{version} answers, allowed: {allowed}"
        self.held.append(Held(name, version, said, gate, answer, stack))

    async def let_go(self, held: Held) -> None:
        """A stream goes on: it is whole and right, or it visibly breaks where its engine went away."""
        self.held.remove(held)
        held.gate.set()
        try:
            body = await held.answer.aread()
        except httpx.TransportError:
            assert held.cut, "broken, and nobody had gone away"
            return
        finally:
            await held.stack.aclose()
            self.gates.pop(held.said.split()[0], None)
        text, broken = spoken(held.answer, body)
        if broken:
            assert held.cut, body
        else:
            self.check(held.name, f"{held.name}@{held.version}", text, held.said, {held.version})

    async def leave(self, held: Held) -> None:
        self.held.remove(held)
        await held.stack.aclose()
        held.gate.set()
        self.gates.pop(held.said.split()[0], None)

    # engines

    def unsettle(self, at: int) -> None:
        """Whatever stands still may be on that one."""
        self.settled = False
        for held in self.held:
            held.cut = True

    async def kill(self, at: int) -> None:
        self.unsettle(at)
        self.up[at] = False
        self.foreign[at].clear()
        await self.engines[at].stop()

    async def start(self, at: int, base: str = BASE) -> None:
        self.unsettle(at)
        engine = self.engines[at]
        await engine.stop()
        self.foreign[at].clear()
        engine.adapters.bases[0] = engine.adapters.model_path = base
        self.up[at] = True
        await engine.start()

    async def cut_off(self, at: int) -> None:
        """It can be reached no more, and loses nothing."""
        self.unsettle(at)
        self.up[at] = False
        self.engines[at]._refuse()

    async def reconnect(self, at: int) -> None:
        self.unsettle(at)
        self.up[at] = True
        await self.engines[at].start()

    def load_foreign(self, at: int) -> None:
        """Somebody else loads something there."""
        name = f"theirs-{next(self._numbers)}"
        folder = self.root / "theirs" / name
        tiny_lora(folder, 100)
        engine = self.engines[at]
        engine.slots.load(name, str(folder))
        engine.loaded[name] = str(folder)
        self.foreign[at].add(name)

    # what is always true, and what is true in the end

    def look(self) -> None:
        for engine in self.engines:
            assert not engine.deaths, engine.deaths
            assert engine.slots.most <= engine.slots.count, "more adapters in flight than slots"

    async def finish(self) -> None:
        """All goes on and comes to rest: then nothing is left over, and every name answers on every engine."""
        for held in list(self.held):
            await self.let_go(held)
        for at, engine in enumerate(self.engines):
            if not self.up[at] or engine.adapters.bases[0] != BASE:
                await self.start(at)
        await self.settle()
        self.look()
        for name, it in self.names.items():
            if it.live is not None:
                assert await self.ask(name, it.allowed()) == 200
            for version in it.versions:
                assert await self.ask(f"{name}@{version}", {version}) == 200
        await self.until(lambda: not self.left_over(), "rest", 10) if self.left_over() else None
        await self._history()
        await self._disk_and_lists()

    def left_over(self) -> dict[str, Any]:
        gateway = self.gateway.started.gateway
        proxy, adapters = gateway.proxy, gateway.adapters
        loader: Any = adapters._swap._traffic
        fleet = proxy.fleet.replicas
        found = {
            "in flight": proxy.admission.in_flight,
            "outstanding": sum(replica.outstanding for replica in fleet),
            "busy": [replica.busy for replica in fleet if replica.busy],
            "draining": [replica.draining for replica in fleet if replica.draining],
            "calls": sum(replica.upstream.in_flight for replica in fleet),
            "waiting": loader._waiting,
            "wanting": dict(loader._wanting),
            "searches": loader._loads,
            "guards": dict(adapters._reconciler._guards),
            "swaps": adapters._swap._tasks,
            "freed": proxy.fleet.freed,
        }
        return {what: it for what, it in found.items() if it}

    async def _history(self) -> None:
        for name, it in [*self.names.items(), *self.gone.items()]:
            told: list[tuple[str, str]] = []
            page: dict[str, Any] = {"has_more": True, "data": []}
            while page["has_more"]:
                query = {"limit": 100} | ({"before": page["data"][-1]["id"]} if page["data"] else {})
                page = (await self.admin.get(f"{ADAPTERS}/{name}/history", params=query)).json()
                told += [(event["what"], event["version"]) for event in page["data"]]
            found, expected = _one_by_one(told[::-1]), _one_by_one(it.history)
            assert found == expected, f"history of {name}:\n{found}\nexpected:\n{expected}"

    async def _disk_and_lists(self) -> None:
        reconciler = self.gateway.started.gateway.adapters._reconciler
        known = await self.gateway.started.gateway.adapters._db.read(store.known)
        shelf = self.data / "adapters"
        assert set(os.listdir(shelf) if shelf.exists() else []) == known
        for engine, foreign in zip(self.engines, self.foreign, strict=True):
            await reconciler.tick(engine.url)
            ours = engine.loaded.keys() - foreign
            assert ours <= known, "something removed is listed still"
            assert foreign <= engine.loaded.keys(), "somebody else's adapter was put out"


def _one_by_one(history: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What goes together goes in any order."""
    found: list[tuple[str, str]] = []
    for what, group in itertools.groupby(history, lambda event: event[0]):
        together = list(group)
        found += sorted(together) if what == "removed" else together
    return found


def spoken(answer: httpx.Response, body: bytes) -> tuple[str, bool]:
    """What was said, and whether it broke off visibly; a quiet end fails."""
    if answer.headers["content-type"].startswith("application/json"):
        document = json.loads(body)
        assert document["model"] == answer.headers["x-loragate-model"]
        return document["choices"][0]["message"]["content"], False
    found = [data for _, data in events(body)]
    if any(isinstance(data, dict) and "error" in data for data in found):
        return "", True
    assert found[-1] == "[DONE]", body
    chunks = [data for data in found[:-1] if data["choices"]]
    assert {chunk["model"] for chunk in chunks} == {answer.headers["x-loragate-model"]}
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks), False
