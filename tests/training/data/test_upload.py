"""Files of purpose fine-tune by OpenAI's rules, with OpenAI's sentences."""

# ruff: noqa: E501 - one case a line

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.training.data.corpus import chat, good, lines, write
from training.data.upload import check_upload

ASKED, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}
PREFERENCE = {
    "input": {"messages": [ASKED]},
    "preferred_output": [ANSWER],
    "non_preferred_output": [{**ANSWER, "content": "No."}],
}
NOT_JSONL = "Expected file to have JSONL format, where every line is a valid JSON dictionary."


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        ("[1]", f'{NOT_JSONL} Line 2 is not a dictionary (HINT: line starts with: "[1]...").'),
        ("hello", f'{NOT_JSONL} Line 2 is not a dictionary (HINT: line starts with: "hel...").'),
        (
            '{"messages": [}',
            "Invalid file format. Example 2 cannot be parsed. Error: line contains invalid json: Expecting value: line 1 column 15 (char 14) (line 2)",
        ),
        ({"prompt": "a"}, 'Invalid file format. Example 2 is missing key "messages".'),
        ({**good(), "metadata": {}}, 'Invalid file format. Example 2 contains an extra "metadata".'),
        (
            {"messages": [{"content": "Hi"}, ANSWER]},
            "Invalid file format. Example 2, message 1 Discriminator 'role' is missing in value",
        ),
        (
            {"messages": [{**ASKED, "mood": "good"}, ANSWER]},
            'Invalid file format. Example 2, message 1 contains an extra "mood".',
        ),
        (
            {"messages": [{"role": "user"}, ANSWER]},
            'Invalid file format. Example 2, message 1 is missing key "content".',
        ),
        (chat(("user", "Hi")), "Invalid file format. Example 2, the last message must be from the assistant."),
        (
            {"messages": [ASKED, {**ANSWER, "weight": 2}]},
            'Invalid file format. Example 2, message 2 has a "weight" that is not 0 or 1 of an assistant.',
        ),
        (
            {"messages": []},
            'Invalid file format. Example 2 has no "messages": a list with at least one message is needed.',
        ),
        (PREFERENCE, "Invalid file format. Example 2 is a preference example, and earlier ones are not."),
    ],
)
def test_the_first_bad_example_is_told(second: Any, sentence: str, tmp_path: Path) -> None:
    assert check_upload(write(tmp_path, "a", lines(good(), second, good()))) == (sentence, 1)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"preferred_output": []}, '"preferred_output" must be a list of one assistant message'),
        ({"preferred_output": [ASKED]}, '"preferred_output" must be from the assistant'),
        ({"input": "Hi"}, '"input" is not a dictionary'),
        ({"input": {"messages": []}}, '"input" has no "messages"'),
        ({"note": 1}, 'contains an extra "note"'),
    ],
)
def test_preference_examples_have_rules_of_their_own(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    problem, _ = check_upload(write(tmp_path, "a", lines({**PREFERENCE, **change})))
    assert sentence in (problem or "")
    missing = {name: value for name, value in PREFERENCE.items() if name != "preferred_output"}
    assert (
        check_upload(write(tmp_path, "a", lines(missing)))[0]
        == 'Invalid file format. Example 1 is missing key "preferred_output".'
    )


def test_good_files_are_counted(tmp_path: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    tools = {
        "messages": [
            ASKED,
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "x"},
            {**ANSWER, "weight": 1},
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "parallel_tool_calls": False,
    }
    assert check_upload(write(tmp_path, "a", b"\xef\xbb\xbf" + lines(good(1), tools, "", good(2)))) == (None, 3)
    assert check_upload(write(tmp_path, "a", lines(PREFERENCE, PREFERENCE))) == (None, 2)


def test_no_examples_no_utf8_and_no_file_are_told(tmp_path: Path) -> None:
    assert "has no examples" in (check_upload(write(tmp_path, "a", b"\n\n"))[0] or "")
    assert "not UTF-8" in (check_upload(write(tmp_path, "a", '{"a": "ü"}'.encode("cp1252")))[0] or "")
    assert "cannot be read" in (check_upload(tmp_path / "missing")[0] or "")
    assert "16 MiB" in (check_upload(write(tmp_path, "a", b"{" + b" " * (17 << 20)))[0] or "")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.sampled_from(["user", "assistant"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["messages", "role", "content", "weight", "input", "preferred_output", "tool_calls"]),
            inner,
            max_size=4,
        )
    ),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(JSON, max_size=4))
def test_any_json_is_judged(rows: list[Any], tmp_path: Path) -> None:
    problem, examples = check_upload(write(tmp_path, "a", "".join(json.dumps(row) + "\n" for row in rows).encode()))
    assert problem is None or problem.startswith(("Invalid file format. ", NOT_JSONL))
    assert 0 <= examples <= len(rows)


def test_the_gateway_process_loads_no_library_of_the_extra() -> None:
    heavy = ("numpy", "pyarrow", "tokenizers", "jinja2.sandbox", "datasketch", "py3langid", "matplotlib")
    code = f"import sys, training.data.upload, training.data.check, gateway.cli.datasets; print([n for n in {heavy} if n in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True).stdout
    assert shown.strip() == "[]"
