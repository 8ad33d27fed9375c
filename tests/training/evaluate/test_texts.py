"""How answers are compared with the right ones, in two languages and in tool calls."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.row import Row, Turn
from training.evaluate.exact import exact
from training.evaluate.example import Example, Skipped, canonical, example_of, sample, script_of
from training.evaluate.overlap import Overlap, words


def row(number: int, *turns: Turn, **more: object) -> Row:
    return Row(number, turns, **more)  # type: ignore[arg-type]


def pair(number: int, question: str = "Why?", answer: str = "Because.") -> Row:
    return row(number, Turn("user", question), Turn("assistant", answer))


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("Track it.", "Track it.", True),
        (" Track\n it. ", "Track it.", True),
        ("ＡＢＣ１２３", "ABC123", True),  # full-width
        ("café", "cafe\u0301", True),
        ("track it.", "Track it.", False),  # case counts: in code it is another name
        ("Track it", "Track it.", False),
        ("", "Track it.", False),
    ],
)
def test_exact_is_the_same_text_but_for_encoding_and_space(answer: str, reference: str, same: bool) -> None:
    assert exact(answer, reference) == float(same)


def test_words_of_both_scripts_count() -> None:
    assert words("Open 设置, then Wi-Fi!") == ["open", "设", "置", ",", "then", "wi", "-", "fi", "!"]


def test_chinese_answers_are_not_dropped() -> None:
    overlap = Overlap()
    assert overlap.rouge_l("打开设置。", "打开设置。") == 1.0
    assert 0.3 < overlap.rouge_l("打开门。", "打开设置。") < 1.0
    assert overlap.bleu("打开设置，选择安全。", "打开设置，选择安全。") == pytest.approx(1.0)
    assert overlap.chrf("打开设置。", "打开设置。") == pytest.approx(1.0)
    assert overlap.rouge_l("", "打开设置。") == 0.0


def test_the_three_metrics_order_right_near_and_wrong() -> None:
    overlap, right = Overlap(), "Open My orders and click Track to see the parcel."
    for metric in (overlap.rouge_l, overlap.bleu, overlap.chrf):
        near, wrong = metric("Open My orders and click the parcel.", right), metric("Interest is paid.", right)
        assert metric(right, right) == pytest.approx(1.0)
        assert 0 <= wrong < near < 1


def test_a_corpus_is_scored_per_script_with_its_signature() -> None:
    found = Overlap().corpus([("打开设置。", "打开设置。"), ("Track it now please.", "Track it now please.")])
    assert [(each.script, each.rows) for each in found] == [("spaced", 1), ("zh", 1)]
    assert "tok:13a" in found[0].bleu_signature
    assert "tok:zh" in found[1].bleu_signature
    assert "version:" in found[0].chrf_signature


@given(st.text(max_size=40))
def test_any_text_is_like_itself(text: str) -> None:
    assert exact(text, text) == 1.0
    if words(text):
        assert Overlap().rouge_l(text, text) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("text", "script"),
    [("Hello", "spaced"), ("打开设置", "zh"), ("設定を開く", "unspaced"), ("설정 열기", "spaced"), ("42", "spaced")],
)
def test_which_words_a_text_has(text: str, script: str) -> None:
    assert script_of(text) == script


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (row(3, Turn("user", "Why?")), "does not end with an answer"),
        (row(3, Turn("assistant", "Hello.")), "nothing is asked"),
        (row(3, Turn("system", "Be kind."), Turn("assistant", "Hello.")), "nothing is asked"),
        (row(3, Turn("user", "Why?"), Turn("assistant", " ")), "empty"),
        (row(3, Turn("user", "Why?"), Turn("assistant", "Bad."), label=False), "bad one"),
        (row(3, Turn("user", "Why?"), Turn("assistant", "Old.", trained=False)), "not to be learned"),
        (row(3, Turn("user", "Why?"), Turn("assistant", "", calls="{")), "cannot be read"),
    ],
)
def test_a_row_without_a_right_answer_is_skipped_with_the_reason(given: Row, why: str) -> None:
    found = example_of(given)
    assert isinstance(found, Skipped)
    assert found.number == 3
    assert why in found.reason


def test_the_whole_history_is_sent_and_the_last_answer_is_the_reference() -> None:
    turns = [Turn("system", "Be kind."), Turn("user", "Hi"), Turn("assistant", "Hello."), Turn("user", "Why?")]
    found = example_of(row(1, *turns, Turn("assistant", "Because."), rejected=Turn("assistant", "No.")))
    assert isinstance(found, Example)
    assert [message["role"] for message in found.messages] == ["system", "user", "assistant", "user"]
    assert (found.question, found.reference, found.calls) == ("Why?", "Because.", False)


def test_tool_calls_are_compared_by_name_and_arguments() -> None:
    call = {"id": "x", "type": "function", "function": {"name": "weather", "arguments": '{"b": 1, "a": "柏林"}'}}
    turns = [Turn("user", "Weather?"), Turn("assistant", "", calls=json.dumps([call]))]
    found = example_of(row(1, *turns, tools=json.dumps([{"name": "weather", "parameters": {}}])))
    assert isinstance(found, Example)
    assert found.calls
    assert found.tools[0]["type"] == "function"
    assert found.reference == canonical([{"name": "weather", "arguments": {"a": "柏林", "b": 1}}])


def test_results_of_tools_name_the_call_that_they_answer() -> None:
    calls = json.dumps([{"name": "one", "arguments": {}}, {"name": "two", "arguments": {}}])
    turns = [Turn("user", "Go"), Turn("assistant", "", calls=calls), Turn("tool", "1"), Turn("tool", "2")]
    found = example_of(row(1, *turns, Turn("assistant", "Done.")))
    assert isinstance(found, Example)
    ids = [call["id"] for call in found.messages[1]["tool_calls"]]
    assert [found.messages[2]["tool_call_id"], found.messages[3]["tool_call_id"]] == ids


def test_a_sample_does_not_depend_on_the_order_and_stays_when_rows_are_added() -> None:
    rows = [pair(number, f"Question {number}?") for number in range(1, 101)]
    drawn = sample(rows, most=10, seed=1)
    again = sample(list(reversed(rows)), most=10, seed=1)
    assert [each.key for each in drawn.examples] == [each.key for each in again.examples]
    assert (len(drawn.examples), drawn.left_out, drawn.rows) == (10, 90, 100)
    assert drawn.digest != sample(rows, most=10, seed=2).digest
    more = sample([*rows, *(pair(number, f"New {number}?") for number in range(101, 111))], most=10, seed=1)
    assert len({each.key for each in more.examples} & {each.key for each in drawn.examples}) >= 7


def test_the_same_row_twice_counts_once() -> None:
    drawn = sample([pair(1), pair(2), pair(3, answer="Else.")], most=10, seed=1)
    assert [each.number for each in drawn.examples] == [1, 3]
    assert drawn.skipped == (Skipped(2, "the same as row 1"),)
