"""Tokens as the base counts them: its own tokenizer and chat template, and what is learned of a row."""

# ruff: noqa: E501 - one case a line

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings

from tests.training.data.rows import conversations, preferences
from training.data.row import Row, Turn
from training.data.tokens import TemplateRefused, Tokenizer
from training.demo import DEMO
from training.errors import DataRejected

BASE = Tokenizer.of(DEMO / "base")
TURNS = (Turn("user", "Where is my order?"), Turn("assistant", "Open My orders."))


def base_with(template: str, folder: Path) -> Path:
    """The demo's base with another chat template."""
    shutil.copytree(DEMO / "base", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def test_prompt_and_answer_are_what_the_template_makes_of_them() -> None:
    prompt = BASE.length(BASE.render(TURNS[:1], ask=True))
    answer = BASE.length("Open My orders.<|im_end|>\n")
    assert BASE.count(Row(1, TURNS)) == (prompt, answer)
    assert prompt > BASE.length("Where is my order?")  # the system prompt that the template adds counts


@settings(max_examples=20, deadline=None)
@given(conversations(weights=True))
def test_what_is_read_and_what_is_learned_are_all_of_it(row: Row) -> None:
    prompt, learned = BASE.count(row)
    assert prompt > 0
    assert learned > 0
    whole = BASE.length(BASE.render(row.turns, row.tools))
    assert prompt + learned >= whole
    assert BASE.count_many([row, row]) == [(prompt, learned)] * 2


@settings(max_examples=15, deadline=None)
@given(preferences())
def test_of_two_answers_the_longer_counts(row: Row) -> None:
    assert row.rejected is not None
    better, worse = Row(1, row.turns, row.tools), Row(1, (*row.turns[:-1], row.rejected), row.tools)
    prompt = BASE.length(BASE.render(row.turns[:-1], row.tools, ask=True))
    wholes = [BASE.length(BASE.render(each.turns, each.tools)) for each in (better, worse)]
    assert sum(BASE.count(row)) >= max(wholes)
    assert BASE.count(row)[0] == prompt


def test_every_answer_counts_unless_it_weighs_nothing() -> None:
    both = (*TURNS, Turn("user", "And then?"), Turn("assistant", "Click Track."))
    last = (TURNS[0], Turn("assistant", "Open My orders.", trained=False), *both[2:])
    first, second = BASE.length("Open My orders.<|im_end|>\n"), BASE.length("Click Track.<|im_end|>\n")
    assert BASE.count(Row(1, both))[1] == first + second
    assert BASE.count(Row(1, last))[1] == second
    assert sum(BASE.count(Row(1, both))) == sum(BASE.count(Row(1, last)))


def test_a_template_that_refuses_is_told_in_its_own_words(tmp_path: Path) -> None:
    base = Tokenizer.of(base_with("{{ raise_exception('No system prompts here') }}", tmp_path / "base"))
    with pytest.raises(TemplateRefused, match="No system prompts here"):
        base.count(Row(1, TURNS))


@pytest.mark.parametrize(
    "template",
    [
        "{%- for m in messages %}{% generation %}{{ m.content | trim }}{% endgeneration %}{%- endfor %}",
        "{{ strftime_now('%Y') }}{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
        "{{ messages | tojson(indent=2) }}{{ bos_token }}{{ eos_token }}",
    ],
)
def test_templates_have_what_transformers_gives_them(template: str, tmp_path: Path) -> None:
    assert Tokenizer.of(base_with(template, tmp_path / "base")).count(Row(1, TURNS))[1] > 0


@pytest.mark.parametrize(
    "template", ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{% for x in range(9**9) %}{% endfor %}"]
)
def test_a_hostile_template_reaches_nothing(template: str, tmp_path: Path) -> None:
    with pytest.raises(TemplateRefused):
        Tokenizer.of(base_with(template, tmp_path / "base")).count(Row(1, TURNS))


def test_a_folder_that_is_no_chat_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataRejected, match=r"no tokenizer\.json"):
        Tokenizer.of(tmp_path)
    base = base_with("", tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    with pytest.raises(DataRejected, match="no chat template"):
        Tokenizer.of(base)
    config = json.loads((base / "tokenizer_config.json").read_text())
    named = [{"name": "default", "template": "{{ messages[0].content }}"}, {"name": "rag", "template": "x"}]
    (base / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": named}))
    assert Tokenizer.of(base).template_text == "{{ messages[0].content }}"
    (base / "tokenizer.json").write_text("{")
    with pytest.raises(DataRejected, match="cannot be read"):
        Tokenizer.of(base)
