"""The running gateway as a fixture."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fake_vllm import FakeVLLM

if TYPE_CHECKING:
    from tests.gateway.running import Running


@pytest.fixture
async def gateway(engine: FakeVLLM, tmp_path: Path) -> AsyncIterator[Running]:
    """A gateway in front of one fake engine that serves `demo-base`."""
    from tests.gateway.running import running  # here: the process that only hands out tests loads this file, too

    async with running(tmp_path, [engine]) as up:
        yield up
