"""`loragate migrate compare`: golden answers against a real gateway, with the fake engine behind it."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import InvalidRequest
from tests.fake_vllm import FakeVLLM
from tests.gateway.running import Running, running
from tests.gateway.tiny_lora import tiny_lora
from tests.training.test_migrate import loragate
from training.migrate.asking import Asker
from training.migrate.compare import Comparison, NothingToCompare, compare
from training.migrate.golden import golden_line, read_golden, read_prompts
from training.migrate.remote import RemoteRefused, open_remote
from training.migrate.report import markdown, sentences

OLD = "ft:gpt-4o-mini-2024-07-18:acme:shop:AbCdEf12"
NEW = OLD  # the name is kept: client code does not change


@pytest.fixture
async def gateway(engine: FakeVLLM, tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path / "data", [engine]) as up:
        yield up


async def register(gateway: Running, name: str) -> str:
    body = {"source": str(tiny_lora(gateway.data_dir.parent / "lora", 1)), "name": name, "promote": True}
    async with gateway.admin() as admin:
        made = await admin.post("/admin/v1/adapters", json=body)
    assert made.status_code == 201, made.text
    return str(made.json()["live"])


def record(place: Path, answers: dict[str, str]) -> Path:
    """A golden file: question → the old model's answer."""
    prompts = place.with_suffix(".prompts")
    prompts.write_text("".join(json.dumps({"prompt": question}) + "\n" for question in answers))
    lines = [
        golden_line(prompt, {"content": answers[prompt.messages[0]["content"]]}, {"model": OLD})
        for prompt in read_prompts(prompts)[0]
    ]
    place.write_text("".join(lines))
    return place


async def asked(gateway: Running, golden: Path, model: str, **key: Any) -> Comparison:
    token = await gateway.key(**key)
    async with open_remote(f"{gateway.url}/v1", token, who="this key", inside=True) as remote:
        asker = Asker(remote, model, most_tokens=64, clock=lambda: 0.0)
        return await compare(asker, read_golden(golden), at_once=2, done=lambda done, total: None)


async def test_what_agrees_and_what_does_not(gateway: Running, tmp_path: Path) -> None:
    live = await register(gateway, NEW)
    async with await gateway.openai() as client:
        said = await client.chat.completions.create(model=NEW, messages=[{"role": "user", "content": "One?"}])
    right = said.choices[0].message.content or ""
    golden = record(tmp_path / "golden.jsonl", {"One?": right, "Two?": "Nothing like it \x1b[2J\n# at all"})
    found = await asked(gateway, golden, NEW)
    assert (found.rows, found.answered, found.figures["exact"].mean) == (2, 2, 0.5)
    assert found.answered_by == {f"{NEW}@{live}": 2}
    assert [(row.row, row.question) for row in found.worst] == [(2, "Two?")]
    assert found.caution is not None
    shown = markdown(found)
    assert "\x1b" not in shown
    assert "\n    # at all" in shown, "somebody's text is never a heading of ours"
    assert sentences(found)[0].startswith(f"{NEW} says the same as {OLD} on 50% of 2 questions")
    assert json.loads(json.dumps(found.document()))["worst"][0]["golden"].startswith("Nothing")


async def test_what_cannot_be_compared(gateway: Running, tmp_path: Path) -> None:
    golden = record(tmp_path / "golden.jsonl", {"One?": "1"})
    with pytest.raises(RemoteRefused, match="has no model nothing"):
        await asked(gateway, golden, "nothing")
    with pytest.raises(RemoteRefused, match="answered 403"):
        await asked(gateway, golden, "demo-base", scopes=frozenset({"training"}))
    picture = [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]
    golden.write_text(golden.read_text().replace('"One?"', json.dumps(picture)))
    with pytest.raises(NothingToCompare, match="answered none of 1 questions"):
        await asked(gateway, golden, "demo-base")
    golden.write_text('{"messages": []}\n')
    with pytest.raises(InvalidRequest, match="no golden row"):
        read_golden(golden)


async def test_compare_as_a_command(gateway: Running, tmp_path: Path) -> None:
    await register(gateway, NEW)
    record(tmp_path / "golden.jsonl", {"One?": "1", "Two?": "2"})
    argv = ("migrate", "compare", "--golden", "golden.jsonl", "--model", NEW, "--base-url", f"{gateway.url}/v1")
    environ = {"LORAGATE_HOME": str(gateway.data_dir), "LORAGATE_ADMIN_URL": gateway.admin_url}
    code, shown, told = await loragate(tmp_path, *argv, "--to", "agreement", key=None, **environ)
    assert (code, shown.split(" says ")[0]) == (0, NEW), told
    report = json.loads((tmp_path / "agreement" / "agreement.json").read_text())
    assert (report["old"], report["answered"]) == (OLD, 2)
    assert "# " in (tmp_path / "agreement" / "agreement.md").read_text()
    code, shown, told = await loragate(tmp_path, *argv, "--json", key=None, **environ)
    assert (code, json.loads(shown)["rows"]) == (0, 2), told
    async with gateway.admin() as admin:
        keys = (await admin.get("/admin/v1/keys")).json()["data"]
    made = [key for key in keys if key["name"] == "loragate migrate compare"]
    assert [(key["models"], key["revoked_at"] is not None) for key in made] == [([NEW], True)] * 2
    own = await gateway.key()
    code, _, told = await loragate(tmp_path, *argv, key=None, LORAGATE_API_KEY=own, LORAGATE_HOME=os.devnull)
    assert code == 0, told
