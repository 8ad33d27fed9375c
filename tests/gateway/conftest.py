"""The running gateway as a fixture."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fake_vllm import FakeVLLM
from tests.gateway.running import Running, running


@pytest.fixture
async def gateway(engine: FakeVLLM, tmp_path: Path) -> AsyncIterator[Running]:
    """A gateway in front of one fake engine that serves `demo-base`."""
    async with running(tmp_path, [engine]) as up:
        yield up
