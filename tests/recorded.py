"""What a real vLLM 0.32.0 answered to a list of requests (`recorded_vllm.json`), and how to ask any engine the same.

The record keeps shapes, not values: key order, types, error texts, event names, header names. The fake engine is held
to it in `test_fake_vllm.py`; `replay` can be pointed at a real engine to see whether the record still holds.
"""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

from tests.fake_adapters import write_adapter

BASE = "tiny"
API_KEY = "recorded-key"
MAX_MODEL_LEN = 512
_LITERAL = {"type", "object", "role", "owned_by", "code", "detail", "version", "param"}


def rows() -> list[dict[str, Any]]:
    """The requests in their order (later ones depend on what earlier ones loaded), each with the recorded answer."""
    found: list[dict[str, Any]] = json.loads(Path(__file__).with_name("recorded_vllm.json").read_text())
    return found


def adapter_folder(root: Path, model_path: str) -> Path:
    """The adapter folders that the requests speak of."""
    for name, rank, base in (
        ("alpha@000000000001", 8, model_path),
        ("lazy@000000000002", 8, model_path),
        ("otherbase", 8, "/elsewhere"),
        ("big", 64, model_path),
        ("noweights", 8, model_path),
    ):
        write_adapter(root / name, rank=rank, base=base)
    (root / "noweights" / "adapter_model.safetensors").unlink()
    (root / "noconfig").mkdir()
    return root


def shape(value: Any, key: str = "") -> Any:
    """`value` without what may differ: strings and numbers become their type's name, equal neighbours one."""
    if isinstance(value, dict):
        return {name: shape(one, name) for name, one in value.items()}
    if isinstance(value, list):
        return _distinct([shape(one) for one in value])
    if isinstance(value, str) and key == "message":
        return re.sub(r"(<path>|\{adapters\}|/)[^\s']*", "<folder>", value)
    return value if key in _LITERAL else type(value).__name__


def answer_shape(content_type: str | None, body: bytes) -> Any:
    """The shape of a whole answer: of its JSON, of its events, or the text itself."""
    if content_type is not None and content_type.startswith("text/event-stream"):
        return _distinct([_event_shape(event) for event in body.decode().split("\n\n") if event])
    if content_type == "application/json":
        return shape(json.loads(body))
    return body.decode()


def _event_shape(event: str) -> list[Any]:
    lines = event.split("\n")
    return [shape(json.loads(line[6:])) if line.startswith("data: {") else line for line in lines]


def _distinct(items: list[Any]) -> list[Any]:
    # json, because dicts that differ in the order of their keys are equal to Python
    return [one for at, one in enumerate(items) if at == 0 or json.dumps(one) != json.dumps(items[at - 1])]


async def ask(port: int, row: dict[str, Any], folder: Path) -> tuple[int, list[str], str | None, bytes]:
    """Send one recorded request on a connection of its own: (status, header names, content type, body)."""
    payload = (row["payload"] or "").replace("{adapters}", str(folder)).replace("{folder}", folder.name)
    body = payload.replace("{long}", "hello " * 600).encode()
    lines = [f"{row['method']} {row['path']} HTTP/1.1", "Host: engine", "Connection: close"]
    lines += [f"Authorization: Bearer {API_KEY}"] if row["key"] else []
    lines += [f"Content-Type: {row['type']}", f"Content-Length: {len(body)}"] if row["method"] == "POST" else []
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        head, _, rest = (await reader.read(-1)).partition(b"\r\n\r\n")
    finally:
        writer.close()
        await writer.wait_closed()
    status, *fields = head.decode().split("\r\n")
    headers = dict(field.split(": ", 1) for field in fields)
    if "transfer-encoding" in headers:
        rest = dechunk(rest)
    return int(status.split()[1]), list(headers), headers.get("content-type"), rest


def dechunk(data: bytes) -> bytes:
    """The content of a complete chunked body; raises ValueError when it does not end as it should."""
    body = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        if int(size, 16) == 0:
            return body
        body, data = body + data[: int(size, 16)], data[int(size, 16) + 2 :]


async def replay(port: int, folder: Path) -> list[str]:
    """Ask everything; one line for each answer that is not as recorded."""
    wrong = []
    for row in rows():
        status, headers, content_type, body = await ask(port, row, folder)
        got = {"status": status, "headers": headers, "content_type": content_type}
        got["shape"] = answer_shape(content_type, body)
        for key, value in got.items():
            if json.dumps(value) != json.dumps(row[key]):
                wrong.append(f"{row['name']}: {key}\n  recorded {json.dumps(row[key])}\n  answered {json.dumps(value)}")
    return wrong
