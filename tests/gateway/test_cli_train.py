"""`loragate train plan` as a process: against a running gateway, without one, and what it says when it refuses."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fake_vllm import FakeVLLM
from tests.gateway.running import Running, running

pytest.importorskip("tokenizers")  # of the extra `train`
ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "configs" / "demo" / "base"
RECIPE = ROOT / "configs" / "recipes" / "customer_service.yaml"

# In place of the training environment's interpreter: finds the trainer's tokens equal to the engine's, or not.
STAND_IN = """#!{python}
import json, sys
request = json.load(open(sys.argv[-2]))
different = {{"at": 0, "trained": "A", "served": "B"}} if {differs} else None
rows = [{{"tokens": each, "ends": True, "difference": different}} for each in request["served"]]
json.dump({{"rows": rows, "added": 0}}, open(sys.argv[-1], "w"))
"""


@dataclass
class Ran:
    code: int | None
    stdout: str
    stderr: str

    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.stdout)
        return found


async def plan(home: Path, *argv: str, **environ: str) -> Ran:
    env = {name: value for name, value in os.environ.items() if not name.startswith("LORAGATE")}
    env |= {"LORAGATE_HOME": str(home), "PYTHONPATH": str(ROOT), **environ}
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "train", "plan", *argv),
        cwd=home,
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await child.communicate()
    return Ran(child.returncode, stdout.decode(), stderr.decode())


def stand_in(folder: Path, differs: bool) -> str:
    python = folder / f"python-{differs}"
    python.write_text(STAND_IN.format(python=sys.executable, differs=differs))
    python.chmod(0o755)
    return str(python)


async def asked(gateway: Running, *argv: str, **environ: str) -> Ran:
    return await plan(gateway.data_dir, str(RECIPE), *argv, LORAGATE_ADMIN_URL=gateway.admin_url, **environ)


async def test_a_plan_against_a_running_gateway(tmp_path: Path) -> None:
    engine = FakeVLLM(model_path=str(BASE))
    async with engine, running(tmp_path / "home", [engine]) as gateway:
        await gateway.until_ready()
        python = stand_in(tmp_path, differs=False)
        made = await asked(gateway, "--json", LORAGATE_TRAINING_PYTHON=python)
        assert made.code == 0, made.stderr
        document = made.document()
        refused = await asked(gateway, LORAGATE_TRAINING_PYTHON=stand_in(tmp_path, differs=True))
        without = await asked(gateway, "--no-parity", "--set", "method.rank=32")
    assert (document["base"], document["steps"], document["rows"]) == ("demo-base", 450, 24)
    assert "same" in document["parity"]
    assert document["data"][0]["rows_kept"] == 24
    assert (refused.code, "trained on 'A', served as 'B'" in refused.stderr) == (1, True)
    assert (without.code, "Use method.rank: 16" in without.stderr) == (1, True)


async def test_a_plan_without_a_gateway(tmp_path: Path) -> None:
    made = await plan(tmp_path, str(RECIPE), "--base", str(BASE), "--set", "training.epochs=auto")
    assert made.code == 0, made.stderr
    for said in ("24 trained, 0 left out", "steps", "GB", "adapter of rank 8", "- training.epochs = "):
        assert said in made.stdout, said
    large = await plan(tmp_path, str(RECIPE), "--base", str(BASE), "--max-lora-rank", "4", "--json")
    assert large.code == 1
    assert large.document()["error"]["code"] == "not_servable"
    nobody = await plan(tmp_path, str(RECIPE), LORAGATE_ADMIN_URL="http://127.0.0.1:9", LORAGATE_ADMIN_KEY="x")
    assert nobody.code == 3
