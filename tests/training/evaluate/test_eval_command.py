"""`loragate eval` as a child process against a whole gateway."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.training.gateways import World, world

ROOT = Path(__file__).resolve().parents[3]
PAIRS = {f"Question {at}?": f"The answer is {at}." for at in range(1, 9)}


@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


async def loragate(up: World, *argv: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("LORAGATE")}
    env |= {"LORAGATE_HOME": str(up.running.data_dir), "LORAGATE_ADMIN_URL": up.running.admin_url}
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "eval", *argv, "--url", up.running.url),
        cwd=up.folder,
        env={**env, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await child.communicate()
    assert child.returncode is not None
    return child.returncode, stdout.decode(), stderr.decode()


def data(up: World) -> str:
    lines = [
        json.dumps({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]})
        for asked, said in PAIRS.items()
    ]
    (up.folder / "held-out.jsonl").write_text("\n".join(lines))
    return "held-out.jsonl"


async def test_a_good_version_passes_and_a_bad_one_ends_with_1(up: World) -> None:
    good, bad = await up.version("shop", 1), await up.version("shop", 2)
    up.engine.says[f"shop@{good}"] = PAIRS
    rules = ("--data", data(up), "--metric", "exact", "--min-gain", "0.5")
    code, stdout, stderr = await loragate(up, "shop", good, *rules, "--out", "report", "--json", "--no-general")
    assert (code, stderr) == (0, "")
    document = json.loads(stdout)
    assert document["verdict"]["passed"] is True
    assert document["scores"]["candidate"]["exact"] == 1.0
    assert document["about"]["data"]["file"] == "held-out.jsonl"
    assert [Path(file).name for file in document["files"]] == ["evaluation.json", "report.md", "report.png"]
    code, stdout, _ = await loragate(up, "shop", f"shop@{bad}", *rules)
    assert code == 1
    assert "refused  Exact match: 0.000 against the base's 0.000" in stdout


ROW = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}'


@pytest.mark.parametrize(
    ("lines", "argv", "said"),
    [
        (f'{ROW}\n{{"prompt": "x"}}', ["shop"], "Row 2 of held-out.jsonl cannot be asked: "),
        ('{"text": "x"}', ["shop"], "held-out.jsonl"),
        ("", ["shop"], "held-out.jsonl"),
        (ROW, ["nobody"], "There is no adapter nobody."),
        (ROW, ["shop", "--metric", "beauty"], "There is no metric beauty. Use one of exact"),
    ],
)
async def test_what_cannot_be_is_one_sentence(up: World, lines: str, argv: list[str], said: str) -> None:
    await up.version("shop", 1)
    (up.folder / "held-out.jsonl").write_text(lines)
    code, stdout, stderr = await loragate(up, *argv, "--data", "held-out.jsonl")
    assert (code, stdout) == (1, "")
    assert said in stderr
