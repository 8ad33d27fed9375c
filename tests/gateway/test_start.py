"""What a start costs is mostly what it imports and keeps: a gateway process holds nothing that it never uses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Megabytes each, and none is used by a gateway with SQLite whose schema is there.
NEVER = ("rich", "pygments", "httpx._main", "sqlalchemy.dialects.postgresql", "alembic", "mako", "openai", "numpy")


def _after(code: str) -> list[str]:
    script = f"import sys\n{code}\nimport json\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    modules: list[str] = json.loads(done.stdout)
    return modules


def test_the_gateway_process_imports_nothing_that_it_never_uses() -> None:
    modules = _after("import gateway.cli.serve, gateway.server")
    assert "fastapi" in modules, "the right process was looked at"
    assert "httpx" in modules
    assert [name for name in NEVER if name in modules] == []


def test_httpx_keeps_its_command_line_for_whoever_wants_it() -> None:
    assert "httpx._main" in _after("import adapters.http, httpx._main")


def test_a_client_command_imports_neither_web_framework_nor_database() -> None:
    modules = _after(
        "import gateway.cli, gateway.cli.keys, gateway.cli.adapters, gateway.cli.status, gateway.cli.usage"
    )
    assert "gateway.cli.client" in modules
    heavy = ("fastapi", "sqlalchemy", "httpx", "uvicorn", "pydantic", "asyncio")
    assert [name for name in heavy if name in modules] == []


def test_a_started_gateway_collects_garbage_again_and_leaves_what_it_consists_of_alone(tmp_path: Path) -> None:
    watch = """
import gc, os, signal, threading, time
def watch():
    while gc.get_freeze_count() < 50_000 or not gc.isenabled(): time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=watch, daemon=True).start()
from gateway.cli import main
main()
"""
    flags = ["serve", "--port", "0", "--admin-port", "0", "--data-dir", str(tmp_path)]
    subprocess.run([sys.executable, "-c", watch, *flags], cwd=ROOT, capture_output=True, timeout=60, check=True)
