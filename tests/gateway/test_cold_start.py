"""A gateway that starts before its engines: nobody is told that a model does not exist which does."""

from __future__ import annotations

from pathlib import Path

from tests.fake_vllm import FakeVLLM
from tests.gateway.plane import CHAT, ask, error_of
from tests.gateway.running import running
from tests.gateway.tiny_lora import tiny_lora


async def test_a_live_model_is_not_unknown_while_no_engine_has_said_what_it_serves(tmp_path: Path) -> None:
    async with FakeVLLM() as engine:
        async with running(tmp_path / "data", [engine]) as gateway, gateway.admin() as admin:
            body = {"source": str(tiny_lora(tmp_path / "lora")), "name": "support", "promote": True}
            assert (await admin.post("/admin/v1/adapters", json=body)).status_code == 201
        await engine.stop()
        async with running(tmp_path / "data", [engine], ready=False) as gateway, await gateway.http() as http:
            for model in ("support", "demo-base"):
                refused = await http.post(CHAT, json=ask(CHAT, model=model))
                assert (refused.status_code, error_of(CHAT, refused.json())["code"]) == (503, "no_engine_ready")
                assert refused.headers["retry-after"] == "5"
            await engine.start()
            await gateway.until_ready()
            assert (await http.post(CHAT, json=ask(CHAT, model="support"))).status_code == 200
            assert (await http.post(CHAT, json=ask(CHAT, model="nothing"))).status_code == 404
