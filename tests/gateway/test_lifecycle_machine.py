"""Versions come, go, are tried and taken back while engines and gateway die and return, in any order: whatever answers
is what the name allowed when the request was admitted, computed by exactly those weights.

LORAGATE_TEST_LIFECYCLES=N tries N random orders instead of the few that are the same in every run.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.gateway.lifecycle_world import OTHER_BASE, World

LONG = int(os.environ.get("LORAGATE_TEST_LIFECYCLES", "0"))
NAMES = st.sampled_from(["a", "b", "c:x", "c-x", "d"])  # two of them share what engines call them
SEEDS = st.integers(1, 6)
INDEX = st.integers(0, 63)


class Lifecycle(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.world: World | None = None
        self.sound = True

    def do(self, work: Coroutine[Any, Any, Any]) -> None:
        async def limited() -> None:
            async with asyncio.timeout(90):
                await work

        self.sound = False  # until it has gone well
        self.runner.run(limited())
        self.sound = True

    @property
    def there(self) -> World:
        assert self.world is not None
        return self.world

    def teardown(self) -> None:
        try:
            if self.world is not None and self.sound:
                self.do(self.there.finish())
        finally:
            try:
                if self.world is not None:
                    if not self.sound:  # one failure is enough
                        for engine in self.world.engines:
                            engine.deaths.clear()
                    self.runner.run(self.world.close())
            finally:
                self.runner.close()

    @initialize(slots=st.sampled_from([(2, 3), (3, 3), (4, 2), (2, 2, 2), (4, 4, 2)]), count=st.integers(0, 4))
    def begin(self, slots: tuple[int, ...], count: int) -> None:
        async def opened() -> None:
            self.world = World(slots)
            await self.world.open()
            for at in range(count):
                await self.world.register(["a", "b", "c:x", "c-x"][at], at + 1, promote=True)

        self.do(opened())

    # what is drawn is an index into what there is

    def name(self, at: int, live: bool = False) -> str | None:
        found = [name for name, it in self.there.names.items() if it.live is not None or not live]
        return sorted(found)[at % len(found)] if found else None

    def version(self, name: str, at: int) -> str:
        found = sorted(self.there.names[name].versions)
        return found[at % len(found)]

    # operators

    @rule(name=NAMES, seed=SEEDS, promote=st.booleans())
    def register(self, name: str, seed: int, promote: bool) -> None:
        self.do(self.there.register(name, seed, promote))

    @rule(at=INDEX, which=INDEX)
    def promote(self, at: int, which: int) -> None:
        if name := self.with_versions(at):
            self.do(self.there.promote(name, self.version(name, which)))

    @rule(at=INDEX)
    def rollback(self, at: int) -> None:
        if name := self.name(at):
            self.do(self.there.rollback(name))

    @rule(at=INDEX, which=INDEX, percent=st.sampled_from([10, 50, 100]))
    def canary(self, at: int, which: int, percent: int) -> None:
        if name := self.with_versions(at):
            self.do(self.there.canary(name, self.version(name, which), percent))

    @rule(at=INDEX)
    def end_canary(self, at: int) -> None:
        if name := self.name(at):
            self.do(self.there.end_canary(name))

    @rule(at=INDEX, which=INDEX)
    def pin(self, at: int, which: int) -> None:
        if name := self.with_versions(at):
            self.do(self.there.pin(name, self.version(name, which)))

    @rule(at=INDEX, which=INDEX)
    def unload(self, at: int, which: int) -> None:
        if name := self.with_versions(at):
            self.do(self.there.unload(name, self.version(name, which)))

    @rule(at=INDEX, which=INDEX)
    def remove_version(self, at: int, which: int) -> None:
        if name := self.with_versions(at):
            self.do(self.there.remove(name, self.version(name, which)))

    @rule(at=INDEX)
    def remove(self, at: int) -> None:
        if name := self.name(at):
            self.do(self.there.remove(name, None))

    def with_versions(self, at: int) -> str | None:
        found = sorted(name for name, it in self.there.names.items() if it.versions)
        return found[at % len(found)] if found else None

    # callers

    @rule(at=INDEX, stream=st.booleans(), user=st.sampled_from("abcdefgh"))
    def ask(self, at: int, stream: bool, user: str) -> None:
        if name := self.name(at, live=True):
            self.do(self.there.ask(name, self.there.names[name].allowed(), stream, user))

    @rule(at=INDEX, which=INDEX)
    def ask_for_a_version(self, at: int, which: int) -> None:
        if name := self.with_versions(at):
            version = self.version(name, which)
            self.do(self.there.ask(f"{name}@{version}", {version}))

    @rule()
    def ask_base(self) -> None:
        self.do(self.there.ask_base())

    @rule(count=st.integers(2, 24))
    def storm(self, count: int) -> None:
        """All names at once, live and by version."""

        async def together() -> None:
            models = [(name, it.allowed()) for name, it in self.there.names.items() if it.live is not None]
            models += [(f"{name}@{v}", {v}) for name, it in self.there.names.items() for v in it.versions]
            asked = [self.there.ask(*models[at % len(models)], at % 2 > 0, f"u{at}") for at in range(count) if models]
            await asyncio.gather(*asked)

        self.do(together())

    @rule(at=INDEX, which=INDEX, count=st.integers(1, 8))
    def promote_under_traffic(self, at: int, which: int, count: int) -> None:
        name = self.name(at, live=True)
        if name is None:
            return
        it, version = self.there.names[name], self.version(name, which)

        async def together() -> None:
            allowed, moved = it.allowed(), asyncio.Event()

            async def caller(at: int) -> None:
                while not moved.is_set():
                    await self.there.ask(name, allowed | {version}, at % 2 > 0, f"u{at}")

            callers = [asyncio.create_task(caller(at)) for at in range(count)]
            await self.there.promote(name, version)
            moved.set()
            await self.there.ask(name, it.allowed())  # acknowledged: not one more with what was before
            await asyncio.gather(*callers)

        self.do(together())

    # Nothing is a precondition: what hypothesis draws must not depend on what servers did meanwhile.
    @rule(at=INDEX)
    def hold(self, at: int) -> None:
        if len(self.there.held) < 3 and (name := self.name(at, live=True)):
            self.do(self.there.hold(name))

    @rule(at=INDEX, leave=st.booleans())
    def let_go(self, at: int, leave: bool) -> None:
        if self.there.held:
            held = self.there.held[at % len(self.there.held)]
            self.do(self.there.leave(held) if leave else self.there.let_go(held))

    # engines and the gateway

    @rule(at=INDEX, noticed=st.booleans())
    def kill_or_start(self, at: int, noticed: bool) -> None:
        at %= len(self.there.engines)
        others = [each for each in self.there.ready if each != at]
        if not self.there.up[at]:
            self.do(self.there.start(at))
        elif others:
            self.do(self.there.kill(at))
        if noticed:
            self.do(self.there.settle())

    @rule(at=INDEX, noticed=st.booleans())
    def restart(self, at: int, noticed: bool) -> None:
        self.do(self.there.start(at % len(self.there.engines)))
        if noticed:
            self.do(self.there.settle())

    @rule(at=INDEX, noticed=st.booleans())
    def cut_off_or_reconnect(self, at: int, noticed: bool) -> None:
        at %= len(self.there.engines)
        if not self.there.up[at]:
            self.do(self.there.reconnect(at))
        elif [each for each in self.there.ready if each != at]:
            self.do(self.there.cut_off(at))
        if noticed:
            self.do(self.there.settle())

    @rule(at=INDEX, noticed=st.booleans())
    def another_base(self, at: int, noticed: bool) -> None:
        at %= len(self.there.engines)
        if [each for each in self.there.ready if each != at]:
            # Not two of them between two looks: that is taken for a pool that has changed its base.
            self.do(self.there.settle())
            self.do(self.there.start(at, OTHER_BASE))
            if noticed:
                self.do(self.there.settle())

    @rule(at=INDEX)
    def load_foreign(self, at: int) -> None:
        at %= len(self.there.engines)
        if self.there.up[at] and not self.there.foreign[at] and self.there.engines[at].slots.count > 2:
            self.there.load_foreign(at)

    @rule()
    def restart_gateway(self) -> None:
        if any(it.versions for it in self.there.names.values()) or all(self.there.right()):
            self.do(self.there.restart_gateway())

    @invariant()
    def no_engine_died(self) -> None:
        if self.world is not None:
            self.world.look()


@pytest.mark.timeout(0 if LONG else 120)
def test_whatever_happens_the_answer_is_what_the_name_allowed() -> None:
    chosen = settings(
        max_examples=LONG or 6,
        stateful_step_count=60 if LONG else 35,
        derandomize=not LONG,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # what takes real servers cannot be shrunk in reasonable time
        suppress_health_check=list(HealthCheck),
        print_blob=False,
        verbosity=Verbosity.verbose if LONG else Verbosity.normal,
    )
    run_state_machine_as_test(Lifecycle, settings=chosen)
