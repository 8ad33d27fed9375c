"""Fixtures for every room: the fake engine, and the check that a test leaves no asyncio task behind."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator

import pytest

from tests.fake_vllm import FakeVLLM


@pytest.fixture
async def engine() -> AsyncIterator[FakeVLLM]:
    """One running fake engine that serves `demo-base`."""
    async with FakeVLLM() as running:
        yield running


@pytest.fixture
async def no_task_left() -> AsyncIterator[None]:
    """Fail when tasks outlive the test and its fixtures (the loop would cancel them without a word)."""
    before = asyncio.all_tasks()
    yield
    left = {task for task in asyncio.all_tasks() - before if task is not asyncio.current_task()}
    if left:  # those in their last steps (a client's generator being closed) may end; the others never would
        _, left = await asyncio.wait(left, timeout=1)
    assert not left, f"tasks left running: {left}"


@pytest.fixture(autouse=True)
def _no_task_left(request: pytest.FixtureRequest) -> None:
    """For async tests only: a sync test needs no loop. Asked for first, so it is checked last."""
    if inspect.iscoroutinefunction(getattr(request.node, "obj", None)):
        request.getfixturevalue("no_task_left")
