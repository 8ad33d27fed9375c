"""/admin/v1/usage and /admin/v1/status over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.gateway.admin_room import AdminRoom, admin_room, status


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[AdminRoom]:
    async with admin_room(tmp_path) as opened:
        yield opened


async def test_usage_includes_the_last_second(room: AdminRoom) -> None:
    room.recorder.record("k1", "base", 10, 5)
    room.recorder.record("k1", "customer-service", 1, 2)
    page = (await room.root_client.get("/admin/v1/usage")).json()
    assert page["has_more"] is False
    assert [(row["key"], row["model"], row["requests"], row["total_tokens"]) for row in page["data"]] == [
        ("k1", "base", 1, 15),
        ("k1", "customer-service", 1, 3),
    ]
    room.recorder.record("k1", "base", 1, 0)
    total = (await room.root_client.get("/admin/v1/usage?group_by=none&model=base")).json()["data"]
    assert total == [
        {
            "key": None,
            "model": None,
            "day": None,
            "requests": 2,
            "prompt_tokens": 11,
            "completion_tokens": 5,
            "total_tokens": 16,
        }
    ]


async def test_usage_by_day_and_page(room: AdminRoom) -> None:
    for number in range(3):
        room.recorder.record(f"k{number}", "base", 1, 1)
    day = (await room.root_client.get("/admin/v1/usage?group_by=day")).json()["data"][0]["day"]
    for since, count in ((day, 3), ("2999-01-01", 0)):
        assert len((await room.root_client.get(f"/admin/v1/usage?since={since}")).json()["data"]) == count
    first = (await room.root_client.get("/admin/v1/usage?limit=2")).json()
    rest = (await room.root_client.get("/admin/v1/usage?limit=2&after=2")).json()
    assert [row["key"] for row in first["data"] + rest["data"]] == ["k0", "k1", "k2"]
    assert (first["has_more"], rest["has_more"]) == (True, False)


async def test_bad_questions_are_400(room: AdminRoom) -> None:
    bad = ("since=yesterday", "group_by=secret", "group_by=", "key='--", "model=..%2Fx", "limit=0", "after=-1", "x=1")
    for query in bad:
        assert (await room.root_client.get(f"/admin/v1/usage?{query}")).status_code == 400, query


async def test_status_is_passed_on(room: AdminRoom) -> None:
    assert (await room.root_client.get("/admin/v1/status")).json() == status()
