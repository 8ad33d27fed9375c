"""Fixtures for every room: the fake engine, both databases, and the check that a test leaves no task behind."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests import databases, slow
from tests.databases import Postgres
from tests.fake_vllm import FakeVLLM

# Hypothesis would measure 200 ms per example by the clock; a machine under load proves nothing.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")


# Everything that imports and collection make stays to the end, half a second for each walk through it: so nothing is
# walked until all is there, and then only what tests leave behind (pytest itself asks for five full walks at the end).
gc.disable()


def pytest_configure() -> None:
    gc.freeze()  # the process that only hands out tests gets no further


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).as_posix() in slow.MODULES:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """For `-n auto`: two processes more than processors: tests of servers also wait (2 cores: 66 s, with one 75)."""
    return min((os.cpu_count() or 1) + 2, 9)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For `--dist loadgroup`: what needs PostgreSQL in one process, everything else wherever there is room."""
    if config.getoption("dist") != "loadgroup":
        return None
    from tests.sharing import Sharing

    return Sharing(config, log)


@pytest.fixture
async def engine() -> AsyncIterator[FakeVLLM]:
    """One running fake engine that serves `demo-base`."""
    async with FakeVLLM() as running:
        yield running


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A private PostgreSQL, where its programs are installed."""
    binaries = databases.postgres_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL's server is not installed here: the SQL is tried on SQLite only")
    with databases.postgres(binaries) as running:
        yield running


# In one group: of all processes of `-n`, one starts a cluster.
@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.xdist_group("postgresql"))])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of an empty database with the newest schema; the test runs once on each kind."""
    if request.param == "sqlite":
        yield databases.sqlite(tmp_path / "loragate.db")
        return
    server: Postgres = request.getfixturevalue("postgres")
    with server.database() as url:
        yield url


@pytest.fixture
async def no_task_left() -> AsyncIterator[None]:
    """Fail when tasks outlive the test and its fixtures (the loop would cancel them without a word)."""
    before = asyncio.all_tasks()
    yield
    left = {task for task in asyncio.all_tasks() - before if task is not asyncio.current_task()}
    if left:  # those in their last steps (a client's generator being closed) may end; the others never would
        _, left = await asyncio.wait(left, timeout=10)
    assert not left, f"tasks left running: {left}"


@pytest.fixture(autouse=True)
def _no_task_left(request: pytest.FixtureRequest) -> None:
    """For async tests only: a sync test needs no loop. Asked for first, so it is checked last."""
    if inspect.iscoroutinefunction(getattr(request.node, "obj", None)):
        request.getfixturevalue("no_task_left")
