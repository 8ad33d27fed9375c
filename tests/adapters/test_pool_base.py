"""Which base a pool has after a start: the one that the live adapters were made for, whoever answers first."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.db import Database
from adapters.types import ReplicaState
from tests.adapters.conftest import Clock, rigged
from tests.adapters.folders import write
from tests.fake_vllm import FakeVLLM

READY, REFUSED = ReplicaState.READY, ReplicaState.REFUSED


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("right_first", [True, False])
async def test_a_wrong_engine_that_answers_first_does_not_take_the_pool(
    db: Database, tmp_path: Path, clock: Clock, right_first: bool, live: bool
) -> None:
    async with rigged(db, tmp_path / "adapters", clock, FakeVLLM()) as rig:
        await rig.service.register(write(tmp_path / "a"), "a", promote=live)
    right, wrong = FakeVLLM(), FakeVLLM("other-base")
    engines = (right, wrong) if right_first else (wrong, right)
    async with rigged(db, tmp_path / "adapters", clock, *engines) as rig:
        assert rig.reconciler.base is not None
        assert rig.reconciler.base.id == "demo-base"
        states = {engine.url: rig.reconciler.residency[engine.url].state for engine in engines}
        assert states == {right.url: READY, wrong.url: REFUSED}
        assert not wrong.loads


async def test_where_nobody_serves_what_they_were_made_for_the_first_that_answers_counts(
    db: Database, tmp_path: Path, clock: Clock
) -> None:
    async with rigged(db, tmp_path / "adapters", clock, FakeVLLM()) as rig:
        await rig.service.register(write(tmp_path / "a"), "a", promote=True)
    others = (FakeVLLM("new-base"), FakeVLLM("other-base"))
    async with rigged(db, tmp_path / "adapters", clock, *others) as rig:
        assert rig.reconciler.base is not None
        assert rig.reconciler.base.id == "new-base"
        assert [rig.reconciler.residency[engine.url].state for engine in others] == [READY, REFUSED]


async def test_a_wrong_engine_does_not_take_the_pool_while_a_right_one_is_away(
    db: Database, tmp_path: Path, clock: Clock
) -> None:
    right, wrong = FakeVLLM(), FakeVLLM("other-base")
    async with rigged(db, tmp_path / "adapters", clock, right, wrong) as rig:
        await right.stop()
        for engine in (right, wrong):
            await rig.reconciler.tick(engine.url)
        assert rig.reconciler.residency[wrong.url].state is REFUSED
        await right.start()
        for engine in (right, wrong):
            await rig.reconciler.tick(engine.url)
        assert [rig.reconciler.residency[engine.url].state for engine in (right, wrong)] == [READY, REFUSED]
