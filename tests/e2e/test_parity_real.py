"""Template parity for real: LLaMA-Factory's own template code against vLLM's /tokenize, through the admin API."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import ROOT, Live
from tests.fake_tokens import of_chat
from tests.training.bases import DEMO, demo, recipe, rows
from training import parity
from training.conversation import Conversation
from training.errors import NotServable
from training.plan import settle

pytestmark = [pytest.mark.engine, pytest.mark.trainer, pytest.mark.timeout(600)]
pytest.importorskip("tokenizers")  # of the extra `train`


def conversations() -> list[Conversation]:
    """One as it is, one with a system message, one of two turns."""
    lines = (DEMO / "data" / "customer-service.jsonl").read_text(encoding="utf-8").splitlines()
    first, second, third = (tuple(json.loads(line)["messages"]) for line in lines[:3])
    return [
        Conversation(first),
        Conversation(({"role": "system", "content": "Be brief. Größe ½ 尺寸"}, *second)),
        Conversation((*third, *first)),
    ]


@pytest.fixture
async def render(live_gateway: Live) -> AsyncIterator[parity.Render]:
    key = (live_gateway.data_dir / "admin.key").read_text().strip()
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=live_gateway.admin_url, headers=headers, trust_env=False, timeout=60) as http:

        async def ask(
            messages: Sequence[Mapping[str, Any]],
            tools: Sequence[Mapping[str, Any]] | None,
            chat_template_kwargs: Mapping[str, Any] | None,
        ) -> Sequence[int]:
            body = {"messages": list(messages), "tools": tools, "chat_template_kwargs": chat_template_kwargs}
            answer = await http.post("/admin/v1/render", json=body)
            assert answer.status_code == 200, answer.text
            found: list[int] = answer.json()["tokens"]
            return found

        yield ask


async def test_the_trainer_makes_the_engines_tokens_and_not_those_of_another_template(
    render: parity.Render, training_python: Path, tmp_path: Path
) -> None:
    base = DEMO / "base"
    found = await parity.check(
        conversations(), settle(recipe(), rows(), demo()), base, training_python, render, tmp_path / "same"
    )
    assert (found.rows, found.equal) == (3, True)
    assert found.tokens > 100
    other = settle(recipe(template="llama3"), rows(), demo())
    with pytest.raises(NotServable, match="3 of 3 rows"):
        await parity.check(conversations(), other, base, training_python, render, tmp_path / "other")


async def test_the_fake_engine_numbers_as_the_real_one_does(render: parity.Render) -> None:
    for each in conversations():
        assert list(await render(each.asked, None, None)) == of_chat(str(DEMO / "base"), each.asked, None, {})


def test_a_plan_compares_by_itself(live_gateway: Live, training_python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAGATE_TRAINING_PYTHON", str(training_python))
    made = live_gateway.loragate("train", "plan", str(ROOT / "configs" / "recipes" / "customer_service.yaml"), "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["parity"].startswith("Trainer and engine make the same")
