"""/admin/v1/render through a real gateway and the fake engine with the demo's own tokenizer; and lineage over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.adapters.packing import of_folder
from tests.fake_vllm import FakeVLLM
from tests.gateway.admin_room import admin_room
from tests.gateway.running import running
from tests.gateway.tiny_lora import tiny_lora

BASE = Path(__file__).resolve().parents[2] / "configs" / "demo" / "base"
RENDER, ADAPTERS = "/admin/v1/render", "/admin/v1/adapters"
ASKED = [{"role": "user", "content": "Where is my order?"}]


async def test_a_conversation_is_numbered_as_the_engine_would(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    async with (
        FakeVLLM(model_path=str(BASE)) as engine,
        running(tmp_path, [engine]) as gateway,
        gateway.admin() as http,
    ):
        answer = await http.post(RENDER, json={"messages": ASKED, "chat_template_kwargs": {"enable_thinking": False}})
        assert answer.status_code == 200, answer.text
        status = (await http.get("/admin/v1/status")).json()
        sent = engine.inferences[-1].json()
    tokenizer = tokenizers.Tokenizer.from_file(str(BASE / "tokenizer.json"))
    shown = tokenizer.decode(answer.json()["tokens"], skip_special_tokens=False)
    assert shown.replace(" ", "").endswith("<|im_start|>user\nWhereismyorder?<|im_end|>\n<|im_start|>assistant\n")
    assert (sent["model"], sent["chat_template_kwargs"]) == ("demo-base", {"enable_thinking": False})
    assert (status["base_root"], status["max_lora_rank"]) == (str(BASE), 16)


async def test_what_cannot_be_rendered_is_said(tmp_path: Path) -> None:
    async with FakeVLLM() as engine, running(tmp_path, [engine]) as gateway, gateway.admin() as http:
        bodies: list[dict[str, Any]] = [{"messages": []}, {"messages": ASKED, "model": "x"}, {"messages": "hello"}]
        for body in bodies:
            assert (await http.post(RENDER, json=body)).status_code == 400, body
        await engine.stop()
        async with await gateway.http() as public:
            assert (await public.post(RENDER, json={"messages": ASKED})).status_code == 404
        away = await http.post(RENDER, json={"messages": ASKED})
    assert away.status_code in (502, 503)
    assert away.json()["error"]["code"] in ("engine_unreachable", "unavailable")


async def test_how_a_version_was_made_can_be_read_back(tmp_path: Path) -> None:
    made = {"seed": 7, "data": {"sha256": "ab" * 32}, "note": "Größe ½"}
    async with admin_room(tmp_path) as room:
        source = str(tiny_lora(room.home / "lora", 1))
        http = room.root_client
        answer = await http.post(ADAPTERS, json={"source": source, "name": "cs", "lineage": made})
        assert answer.status_code == 201, answer.text
        (version,) = answer.json()["versions"]
        assert version["lineage"] is True
        read = await http.get(f"{ADAPTERS}/cs/versions/{version['version']}/lineage")
        assert (read.status_code, read.json()) == (200, made)
        unknown = await http.get(f"{ADAPTERS}/cs/versions/{'0' * 12}/lineage")
        assert unknown.status_code == 404
        other = str(tiny_lora(room.home / "other", 2))
        plain = (await http.post(ADAPTERS, json={"source": other, "name": "cs"})).json()["versions"][0]["version"]
        nobody = await http.get(f"{ADAPTERS}/cs/versions/{plain}/lineage")
        assert (nobody.status_code, "Nobody said" in nobody.text) == (404, True)


@pytest.mark.parametrize("body", ['{"a": NaN}', "[1]", '"x"', "3"])
async def test_lineage_is_a_json_object(tmp_path: Path, body: str) -> None:
    async with admin_room(tmp_path) as room:
        source = str(tiny_lora(room.home / "lora", 1))
        text = f'{{"source": "{source}", "name": "cs", "lineage": {body}}}'
        answer = await room.root_client.post(ADAPTERS, content=text, headers={"content-type": "application/json"})
        assert answer.status_code == 400, answer.text
        assert "lineage" in answer.json()["error"]["message"]


async def test_a_version_is_asked_as_it_was_trained(tmp_path: Path) -> None:
    """Callers need not know that a base thinks and its adapter was trained without; others are left alone."""
    lineage = {"chat_template_kwargs": {"enable_thinking": False}}
    async with FakeVLLM() as engine, running(tmp_path / "data", [engine]) as gateway, gateway.admin() as admin:
        for name, more in (("trained", {"lineage": lineage}), ("plain", {})):
            source = str(tiny_lora(tmp_path / name, len(name)))
            made = await admin.post(ADAPTERS, json={"source": source, "name": name, "promote": True, **more})
            assert made.status_code == 201, made.text
            assert made.json()["versions"][0]["thinking"] is (False if more else None)
        async with await gateway.openai() as client:
            for name in ("trained", "plain", "demo-base"):
                await client.chat.completions.create(model=name, messages=[{"role": "user", "content": "hello"}])
        said = [seen.json().get("chat_template_kwargs") for seen in engine.inferences if "messages" in seen.json()]
        assert said[-3:] == [{"enable_thinking": False}, None, None]


async def test_an_upload_brings_its_lineage_as_text(tmp_path: Path) -> None:
    async with admin_room(tmp_path) as room:
        tiny_lora(room.home / "lora", 1)
        archive = of_folder(room.home / "lora", top="out/")
        fields = {"name": "cs", "lineage": '{"seed": 7}'}
        answer = await room.root_client.post(ADAPTERS, data=fields, files={"file": ("a.tar.gz", archive)})
        assert answer.status_code == 201, answer.text
        (version,) = answer.json()["versions"]
        read = await room.root_client.get(f"{ADAPTERS}/cs/versions/{version['version']}/lineage")
        assert read.json() == {"seed": 7}
        odd = {"name": "cs", "lineage": "seed 7"}
        refused = await room.root_client.post(ADAPTERS, data=odd, files={"file": ("a.tar.gz", archive)})
        assert refused.status_code == 400
