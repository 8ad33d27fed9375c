"""Which template is chosen for which chat template, and which system message goes with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.bases import H100, QWEN, demo, large
from training.template import choose, render

pytest.importorskip("jinja2")  # of the extra `train`
DEFAULT = "{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\nYou are Ada.<|im_end|>\n' }}{%- endif %}"
LLAMA = (
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nToday: 26 Jul\n\n<|eot_id|>' }}{%- for m in messages %}"
    "{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content + '<|eot_id|>' }}{%- endfor %}"
)
GEMMA = "{%- for m in messages %}{{- '<start_of_turn>' + m.role + '\n' + m.content + '<end_of_turn>\n' }}{%- endfor %}"

CASES = [
    ("qwen2", DEFAULT + QWEN, "qwen", "You are Ada."),
    ("qwen2", QWEN, "qwen", ""),
    ("qwen3", QWEN, "qwen3_nothink", ""),
    ("other", QWEN, "chatml", ""),
    ("llama", LLAMA, "llama3", "Today: 26 Jul\n\n"),
    ("gemma3_text", GEMMA, "gemma3", None),
    ("gemma2", GEMMA, "gemma2", None),
    ("odd", "{{ raise_exception('no') }}<|im_start|>", "chatml", None),
    ("odd", "{{ messages[0].content }}", None, None),
]


@pytest.mark.parametrize(
    ("family", "text", "name", "system"), CASES, ids=[f"{c[0]} {c[2]} {i}" for i, c in enumerate(CASES)]
)
def test_the_chat_template_decides(
    tmp_path: Path, family: str, text: str, name: str | None, system: str | None
) -> None:
    chosen = choose(large(tmp_path, H100, template=text, model_type=family).base)
    assert (chosen.name, chosen.system) == (name, system)
    assert chosen.reason


def test_the_recipe_decides_where_it_says_so(tmp_path: Path) -> None:
    base = large(tmp_path, H100, template=DEFAULT + QWEN).base
    chosen = choose(base, "chatml")
    assert (chosen.name, chosen.system, "recipe says so" in chosen.reason) == ("chatml", "You are Ada.", True)


def test_a_template_is_a_sandboxed_program(tmp_path: Path) -> None:
    base = large(tmp_path, H100, template="{{ ''.__class__.__mro__[1].__subclasses__() }}<|im_start|>").base
    assert render(base, [{"role": "user", "content": "x"}]) is None
    assert choose(demo().base).system == "You are a helpful assistant."
