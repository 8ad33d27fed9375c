"""This gateway as a peer: its command line, its settings for the bench, and a first key through its admin API.

Knows only the public contract (flags, environment, HTTP), so that the bench measures what users run.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
PLENTY = 10**9  # limits that are kept and counted on every request but never reached


def program() -> list[str]:
    """`loragate` as `make up` installed it (compiled where it could be); without one, of the checkout."""
    installed = Path(sys.executable).with_name("loragate")
    return [str(installed)] if installed.exists() else [sys.executable, "-m", "gateway"]


def program_environ() -> dict[str, str]:
    """What `program` needs to be found."""
    return {} if len(program()) == 1 else {"PYTHONPATH": str(CHECKOUT)}


def gateway_command(engine: int, port: int, admin: int, data_dir: Path) -> list[str]:
    command = [*program(), "serve", "--engine", f"http://127.0.0.1:{engine}"]
    return [*command, "--port", str(port), "--admin-port", str(admin), "--data-dir", str(data_dir)]


def gateway_environ(model: str) -> dict[str, str]:
    """Limits of the model too, so that both levels of every limiter do their work."""
    limits = {model: {"rpm": PLENTY, "tpm": PLENTY, "concurrency": 4096, "daily_tokens": 10**15}}
    return {"LORAGATE__MODEL_LIMITS": json.dumps(limits), **program_environ()}


def create_key(admin: int, data_dir: Path) -> str:
    """An inference key with limits, made as an operator would."""
    asked = {"name": "bench", "rpm": PLENTY, "tpm": PLENTY, "concurrency": 4096}
    headers = {
        "authorization": f"Bearer {(data_dir / 'admin.key').read_text().strip()}",
        "content-type": "application/json",
    }
    url = f"http://127.0.0.1:{admin}/admin/v1/keys"
    request = urllib.request.Request(url, json.dumps(asked).encode(), headers, method="POST")
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
        return str(json.load(answer)["key"])
