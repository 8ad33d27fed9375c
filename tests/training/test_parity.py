"""The trainer's tokens against the engine's: what is sent to the child, and what is made of what it says.

The child here is a real process that stands in for the training environment; LLaMA-Factory's own is in tests/e2e.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.training.bases import demo, recipe, rows
from training import parity
from training.conversation import Conversation, for_trainer, of_row
from training.errors import NotServable
from training.plan import settle

pytest.importorskip("jinja2")  # of the extra `train`
ASKED = Conversation(({"role": "user", "content": "a b c"}, {"role": "assistant", "content": "d"}))

# Argv: -I -X utf8 SCRIPT REQUEST ANSWER. Numbers the words of the last question; says what it was started with.
STAND_IN = """
import json, os, sys
request = json.load(open(sys.argv[-2]))
rows = []
for row, served in zip(request["rows"], request["served"]):
    tokens = [len(word) for word in row["messages"][-2]["content"].split()]
    same = tokens == served
    difference = None if same else {"at": 1, "trained": "a X", "served": "a b"}
    rows.append({"tokens": tokens, "ends": ENDS, "difference": difference})
json.dump(dict(os.environ), open("environ.json", "w"))
json.dump({"rows": rows, "added": ADDED}, open(sys.argv[-1], "w"))
"""


def stand_in(folder: Path, body: str = STAND_IN, ends: bool = True, added: int = 0) -> Path:
    """An interpreter that does only this."""
    script = folder / "stand_in.py"
    script.write_text(body.replace("ENDS", str(ends)).replace("ADDED", str(added)))
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
    python.chmod(0o755)
    return python


async def engine(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    chat_template_kwargs: Mapping[str, Any] | None,
) -> Sequence[int]:
    return [len(word) for word in str(messages[-1]["content"]).split()]


async def other_engine(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    chat_template_kwargs: Mapping[str, Any] | None,
) -> Sequence[int]:
    return [9, *await engine(messages, tools, chat_template_kwargs)]


async def compared(folder: Path, python: Path, render: parity.Render = engine) -> parity.Parity:
    settled = settle(recipe(), rows(), demo())
    return await parity.check([ASKED] * 5, settled, demo().base.folder, python, render, folder / "parity")


async def test_equal_tokens_are_said_with_their_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAGATE_ADMIN_KEY", "secret")
    found = await compared(tmp_path, stand_in(tmp_path))
    assert (found.rows, found.tokens, found.equal) == (3, 9, True)
    assert found.sentence == "Trainer and engine make the same 9 tokens of 3 rows."
    environ = json.loads((tmp_path / "parity" / "environ.json").read_text())
    assert "LORAGATE_ADMIN_KEY" not in environ
    assert (environ["HF_HUB_OFFLINE"], environ["CUDA_VISIBLE_DEVICES"]) == ("1", "")


async def test_other_tokens_refuse_the_run_and_show_where(tmp_path: Path) -> None:
    with pytest.raises(NotServable) as refused:
        await compared(tmp_path, stand_in(tmp_path), other_engine)
    assert refused.value.param == "template"
    assert "3 of 3 rows" in refused.value.message
    assert "trained on 'a X', served as 'a b'" in refused.value.message


@pytest.mark.parametrize(
    ("ends", "added", "said"), [(False, 0, "never stop"), (True, 2, "needs 2 tokens that the base does not have")]
)
async def test_a_template_of_another_base_is_refused(tmp_path: Path, ends: bool, added: int, said: str) -> None:
    with pytest.raises(NotServable, match=said):
        await compared(tmp_path, stand_in(tmp_path, ends=ends, added=added))


async def test_a_trainer_that_fails_is_not_a_refusal(tmp_path: Path) -> None:
    broken = stand_in(tmp_path, "import sys; sys.exit('No module named llamafactory')")
    with pytest.raises(parity.ParityUnknown, match=r"exit 1\): .*No module named llamafactory"):
        await compared(tmp_path, broken)


async def test_whoever_leaves_leaves_nothing_running(tmp_path: Path) -> None:
    body = "import os, time\nopen('started', 'w').write(str(os.getpid()))\ntime.sleep(600)"
    task = asyncio.create_task(compared(tmp_path, stand_in(tmp_path, body)))
    started = tmp_path / "parity" / "started"
    while not (started.exists() and started.read_text()):
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not psutil.pid_exists(int(started.read_text()))


@dataclass(frozen=True)
class Turn:
    role: str
    content: str
    calls: str | None = None


@dataclass(frozen=True)
class Row:
    turns: Sequence[Turn]
    tools: str | None = None


def test_a_row_with_tools_is_both_forms_of_itself() -> None:
    turns = (
        Turn("system", "Be kind."),
        Turn("user", "Weather?"),
        Turn("assistant", "", '[{"name": "weather", "arguments": {"city": "Oslo"}}]'),
        Turn("tool", "rain"),
        Turn("assistant", "It rains."),
    )
    tools = '[{"type": "function", "function": {"name": "weather", "parameters": {}}}]'
    conversation = of_row(Row(turns, tools))
    call = conversation.messages[2]["tool_calls"][0]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("weather", {"city": "Oslo"})
    assert conversation.messages[3]["tool_call_id"] == call["id"]
    assert len(conversation.asked) == 4
    trained = for_trainer(conversation)
    assert trained["system"] == "Be kind."
    assert [each["role"] for each in trained["messages"]] == ["user", "function", "observation", "assistant"]
    assert json.loads(trained["messages"][1]["content"]) == [{"name": "weather", "arguments": {"city": "Oslo"}}]
    assert json.loads(trained["tools"])[0]["name"] == "weather"


def test_a_system_message_is_put_in_front_of_rows_without_one() -> None:
    row = Row((Turn("user", "a"), Turn("assistant", "b")))
    assert [each["role"] for each in of_row(row, "Be kind.").messages] == ["system", "user", "assistant"]
    with_own = of_row(Row((Turn("system", "Own."), *row.turns)), "Be kind.")
    assert [each["content"] for each in with_own.messages] == ["Own.", "a", "b"]
