"""A key and a prompt as canaries through every way to fail: neither is in a log, an error body, a metric or a repr."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fake_vllm import FakeVLLM, Fault
from tests.gateway.child import caller, serving
from tests.gateway.plane import CHAT, MESSAGES, ROUTES, STREAMS, ask, at_rest, counted, events, quiet
from tests.gateway.running import Running
from tests.gateway.tiny_lora import tiny_lora

PROMPT = "CANARYPROMPT-4f1d"
JSON = {"content-type": "application/json"}
FAULTS = [fault for fault in Fault if fault not in (Fault.REFUSE, Fault.HUGE_BODY, Fault.SLOW)]


# How an engine repeats what it was given (shapes of vLLM 0.32); the key it never sees.
ECHOES = (
    f"max_tokens must be at least 1, got {PROMPT}. (parameter=prompt, value={PROMPT})",
    f"1 validation error:\n  {{'type': 'string_type', 'loc': ('body', 'stop'), 'input': '{PROMPT}'}}",
    f"Failed to apply the chat template at /srv/models/{PROMPT}/x.jinja",
)


def echo(at: int) -> bytes:
    error = {"message": ECHOES[at % len(ECHOES)], "param": f"{PROMPT} ", "type": PROMPT, "code": PROMPT}
    return json.dumps({"error": error}).encode()


async def bad_bodies(path: str) -> AsyncIterator[bytes]:
    """Requests that are refused for themselves, the prompt somewhere in each."""
    right = json.dumps(ask(path, PROMPT))
    yield right[:-2].encode()
    yield right.encode() + b"\xff"
    yield f'["{PROMPT}"]'.encode()
    yield right.replace("{", '{"seed":123456789012345678901234567890,', 1).encode()
    for fields in (
        {"chat_template": PROMPT},
        {"temperature": PROMPT},
        {"stop": {PROMPT: PROMPT}},
        {"messages": PROMPT},
        {"messages": [{"role": PROMPT, "content": PROMPT}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": f"http://{PROMPT}"}}]}]},
        {"tools": [{"type": PROMPT}]},
        {"tool_choice": PROMPT},
        {"input": {PROMPT: 1}},
        {"prompt": [PROMPT, 1]},
        {"response_format": {"type": PROMPT}},
        {"metadata": {PROMPT: PROMPT}, "temperature": 99},
        {"max_tokens": 10**9, "user": PROMPT},
    ):
        yield json.dumps(ask(path, PROMPT, **fields)).encode()


async def misuse(http: httpx.AsyncClient, engine: FakeVLLM, key: str, routes: Sequence[str] = ROUTES) -> list[bytes]:
    """Everything that can go wrong with a request; the error answers."""
    seen: list[bytes] = []

    def note(answer: httpx.Response) -> None:
        shown = answer.content
        if answer.status_code == 200:
            last = events(shown)[-1][1] if "event-stream" in answer.headers["content-type"] else {}
            shown = json.dumps(last).encode() if isinstance(last, dict) and last.get("error") else b""
        seen.append(shown + repr(answer.headers.multi_items()).encode())

    for path in routes:
        async for body in bad_bodies(path):
            note(await http.post(path, content=body, headers=JSON))
        for at, status in enumerate((400, 400, 400, 422, 401, 404, 413, 429, 500, 503)):
            engine.script(Fault.STATUS, times=2, path=path, status=status, body=echo(at))
            note(await http.post(path, json=ask(path, PROMPT)))
            engine.heal()
        note(await http.post(path, json=ask(path, PROMPT, model="nobody")))
        await http.post(path, json=ask(path, model=PROMPT))  # who asks for it is told so, nobody else
        for wrong in (f"Bearer {key[:-1]}", f"Basic {key}", key, f"Bearer {key} {PROMPT}"):
            note(await http.post(path, json=ask(path, PROMPT), headers={"authorization": wrong}))
        note(await http.post(f"{path}?api_key={key}&q={PROMPT}", json=ask(path, PROMPT), headers={"authorization": ""}))
        note(await http.post(f"{path}/{key}", json=ask(path, PROMPT)))
        note(await http.post(path, content=PROMPT.encode() * 10_000, headers={"content-encoding": "gzip"}))
    for fault in FAULTS:
        for stream in (False, True):
            path = STREAMS[(FAULTS.index(fault) + stream) % len(STREAMS)]
            engine.script(fault, times=None, path=path, body=echo(0), location=f"http://{PROMPT}/")
            with contextlib.suppress(httpx.RemoteProtocolError):
                note(await http.post(path, json=ask(path, PROMPT, stream=stream)))
            engine.heal()
    engine.script(Fault.STALL_BEFORE_HEAD)
    leaver = asyncio.create_task(http.post(CHAT, json=ask(CHAT, PROMPT)))
    await engine.working(1)
    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)
    await engine.idle()
    for request in engine.requests:
        assert key.encode() not in request.body
        assert not [value for _, value in request.headers if key[16:] in value]
    return seen


def clean(what: str, text: str | bytes, *canaries: str) -> None:
    data = text if isinstance(text, str) else text.decode(errors="replace")
    for canary in canaries:
        at = data.find(canary)
        assert at < 0, f"{what}: {data[max(0, at - 300) : at + 100]}"


def secrets_of(key: str) -> tuple[str, str]:
    """The secret part of a key, and a prompt: the id of a key may be shown."""
    return key[16:], PROMPT


def files_of(home: Path) -> dict[str, bytes]:
    """All that was written, the one file whose purpose is a key left out."""
    return {file.name: file.read_bytes() for file in home.rglob("*") if file.is_file() and file.name != "admin.key"}


async def test_no_secret_and_no_prompt_in_anything_that_is_kept(
    engine: FakeVLLM, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, Any] = {
        "upstream": {"first_byte_timeout_s": 0.1, "answer_timeout_s": 0.1, "idle_timeout_s": 0.1},
        "health": {"eject_after": 10_000},
        "log": {"requests": True},
    }
    with caplog.at_level(logging.DEBUG):
        for chatty in ("httpx", "httpcore", "asyncio", "aiosqlite"):  # the test's own client
            caplog.set_level(logging.WARNING, chatty)
        async with quiet(tmp_path, [engine], **settings) as gateway:
            key = await counted(gateway)
            async with await gateway.http(key) as http:
                for answer in await misuse(http, engine, key):
                    clean("an error answer", answer, *secrets_of(key))
            await at_rest(gateway)
            await check_what_is_shown(gateway, key)
    clean("the log", caplog.text + repr([vars(record) for record in caplog.records]), *secrets_of(key))
    for name, content in files_of(tmp_path).items():
        clean(name, content, *secrets_of(key))


async def check_what_is_shown(gateway: Running, key: str) -> None:
    inside = gateway.started.gateway
    root = gateway.admin_key
    shown: dict[str, str | bytes] = {
        "snapshot": repr(inside.proxy.snapshot),
        "keys": repr(list(inside.proxy.snapshot.keys.values())),
        "settings": repr(inside.settings),
        "gateway": repr(inside),
        "key service": repr(vars(inside.keys)),
    }
    async with gateway.admin() as admin:
        for path in ("/metrics", "/readyz", "/admin/v1/keys", "/admin/v1/status", "/admin/v1/usage", "/openapi.json"):
            shown[path] = (await admin.get(path)).content
    for what, text in shown.items():
        clean(what, text, *secrets_of(key), root[16:])
        if what not in ("key service", "gateway"):
            clean(what, text, repr(inside.keys.pepper))


async def test_nor_in_what_the_process_prints(engine: FakeVLLM, tmp_path: Path) -> None:
    environ = {
        "LORAGATE__LOG__LEVEL": "debug",
        "LORAGATE__LOG__REQUESTS": "true",
        "LORAGATE__UPSTREAM__FIRST_BYTE_TIMEOUT_S": "0.1",
        "LORAGATE__UPSTREAM__ANSWER_TIMEOUT_S": "0.1",
        "LORAGATE__UPSTREAM__IDLE_TIMEOUT_S": "0.1",
        "LORAGATE__HEALTH__EJECT_AFTER": "10000",
        "LORAGATE__HEALTH__PROBE_INTERVAL_S": "0.5",
    }
    async with serving(tmp_path, engine, **environ) as child:
        async with caller(child) as http:
            for answer in await misuse(http, engine, child.key, (CHAT, MESSAGES)):
                clean("an error answer", answer, *secrets_of(child.key))
        root = (tmp_path / "admin.key").read_text().strip()
        headers = {"authorization": f"Bearer {root}"}
        async with httpx.AsyncClient(base_url=child.admin_url, headers=headers, trust_env=False, timeout=30) as admin:
            wrong: list[dict[str, Any]] = [{"name": PROMPT * 100}, {"name": "x", "scopes": [PROMPT]}]
            wrong += [{PROMPT: PROMPT}, {"name": "x", "rpm": PROMPT}]
            for grant in wrong:
                made = await admin.post("/admin/v1/keys", json=grant)
                assert made.status_code in (400, 422), made.text
            engine.script(Fault.STATUS, path="/v1/load_lora_adapter", status=400)
            lora = {"source": str(tiny_lora(tmp_path / "lora")), "name": "cs", "notes": PROMPT}
            await admin.post("/admin/v1/adapters", json=lora)
            refused = await admin.get("/admin/v1/keys", headers={"authorization": f"Bearer {child.key}"})
            assert refused.status_code == 403
            clean("a refusal of the admin port", refused.content, *secrets_of(child.key))
        child.process.terminate()
        assert await child.process.wait() == 0
    printed = (tmp_path / "printed").read_bytes()
    for line in printed.splitlines():
        assert json.loads(line).keys() >= {"time", "level", "logger", "message"}, line
    assert b"load of cs@" in printed, "what is worth a line does get there"
    assert b"Traceback" not in printed
    clean("the log", printed, *secrets_of(child.key), root[16:])
