"""The evaluation gate on real vLLM: an adapter that knows its subject passes, one that does not is refused."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Live
from training.data.row import Row, Turn
from training.demo import BASE_ID, DEMO
from training.evaluate import report
from training.evaluate.evaluation import BASE, CANDIDATE, Evaluation
from training.evaluate.forgetting import Forgetting
from training.evaluate.gate import Rules, gate
from training.evaluate.general import General, load
from training.evaluate.run import Ask, base_model, evaluate, live_version
from training.gatewayclient import Address, Gateway, open_gateway

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]  # some hundred requests, on a machine with other work
DATA = DEMO / "data" / "customer-service.jsonl"
RULES = Rules("exact", min_gain=0.5)


@pytest.fixture
async def gateway(live_gateway: Live) -> AsyncIterator[Gateway]:
    key = (live_gateway.data_dir / "admin.key").read_text().strip()
    address = Address(live_gateway.url.removesuffix("/v1"), live_gateway.admin_url, key)
    async with open_gateway(address) as opened:
        yield opened


def few() -> General:
    """A quarter of the general set: both languages, questions and texts."""
    whole = load()
    return General(whole.source, whole.digest, whole.pieces[::4])


def rows() -> list[Row]:
    """The demo's own questions about orders and parcels."""
    found = []
    for number, line in enumerate(DATA.read_text(encoding="utf-8").splitlines(), 1):
        turns = tuple(Turn(message["role"], message["content"]) for message in json.loads(line)["messages"])
        found.append(Row(number, turns))
    return found


async def evaluated(gateway: Gateway, name: str) -> Evaluation:
    version = await live_version(gateway, name)
    assert version is not None
    asked = Ask(
        name,
        version,
        await base_model(gateway),
        rows=rows(),
        guarded=rows()[:5],
        general=few(),
        data={"file": DATA.name},
    )
    return await evaluate(gateway, asked)


async def test_the_right_adapter_passes_and_says_why(gateway: Gateway, tmp_path: Path) -> None:
    found = await evaluated(gateway, "customer-service")
    assert found.models[BASE] == BASE_ID
    assert len(found.lines) == 24
    assert (found.mean(CANDIDATE, "exact"), found.mean(BASE, "exact")) == (1.0, 0.0)
    mine, bases = found.mean(CANDIDATE, "likelihood"), found.mean(BASE, "likelihood")
    assert mine is not None
    assert bases is not None
    assert mine > -0.1 > -1 > bases, "what it was taught it holds for certain, the base does not"
    assert isinstance(found.forgetting, Forgetting), found.forgetting
    assert found.forgetting.pieces == 12
    verdict = gate(found, Rules("exact", min_gain=0.5, keep_rows=True))
    assert verdict.passed, verdict.sentence
    assert "1.000 against the base's 0.000, +1.000 on 24 rows" in verdict.sentence
    files = report.write(found, RULES, verdict, tmp_path / "evaluation")
    assert "vllm-0" in files[1].read_text(encoding="utf-8")
    assert files[2].read_bytes().startswith(b"\x89PNG")


async def test_the_wrong_adapter_is_refused_with_the_figures(gateway: Gateway) -> None:
    found = await evaluated(gateway, "code-generation")
    assert found.mean(CANDIDATE, "exact") == 0.0
    verdict = gate(found, RULES)
    assert not verdict.passed
    assert verdict.sentence.startswith("The gate said no. Exact match: 0.000 against the base's 0.000")
    assert len(found.worst("exact")) == 20
