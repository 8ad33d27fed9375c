"""Which of LLaMA-Factory's templates writes what the base's chat template writes, and what has to be said to both.

Chosen by what the chat template puts around a message; that the tokens are really equal is training/parity.py's to
show. Must not know recipes or engines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from training.base import Base
from training.extras import need

PROBE = "loragate-probe"


@dataclass(frozen=True, slots=True)
class Template:
    """name: None leaves it to LLaMA-Factory, which reads the chat template itself. system: its `default_system`.

    thinking: its `enable_thinking`; kwargs: the `chat_template_kwargs` that every request to the adapter needs.
    """

    name: str | None
    reason: str
    system: str | None = None
    thinking: bool | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def by_answer(self) -> bool:
        """Whether each answer has to be a row of its own: the chat template shows earlier answers without thinking.

        LLaMA-Factory leaves their empty thinking in, except where only the last answer is trained (mask_history).
        """
        return self.thinking is not None


@dataclass(frozen=True, slots=True)
class _Family:
    """What marks a chat template, and what stands around its system message."""

    mark: str
    name: str
    before: str | None = None
    after: str = ""


_FAMILIES = (
    _Family("<|im_sep|>", "phi4", "<|im_start|>system<|im_sep|>", "<|im_end|>"),
    _Family("<|im_start|>", "chatml", "<|im_start|>system\n", "<|im_end|>"),
    _Family("<|start_header_id|>", "llama3", "<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
    _Family("<start_of_turn>", "gemma"),
    _Family("[SYSTEM_PROMPT]", "mistral_small", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
    _Family("[INST]", "mistral"),
)
_BY_MODEL = {"gemma2": "gemma2", "gemma3": "gemma3", "gemma3_text": "gemma3", "gemma3n": "gemma3n"}


def choose(base: Base, asked: str | None = None) -> Template:
    """The template for `base`; `asked`: by the recipe. ExtraMissing where templates cannot be rendered here."""
    text = base.chat_template
    if text is None:
        return Template(asked or "default", "the base has no chat template of its own")
    family = next((each for each in _FAMILIES if each.mark in text), None)
    system = _system(base, family) if family is not None and family.before is not None else None
    said = _said(system)
    if "enable_thinking" in text and asked in (None, "qwen3"):
        reason = f"its chat template is Qwen 3's, trained and asked without thinking{said}"
        return Template("qwen3", reason, system, False, {"enable_thinking": False})
    if asked is not None:
        return Template(asked, f"the recipe says so{said}", system)
    if family is None:
        return Template(None, "LLaMA-Factory reads the base's own chat template")
    return Template(_name(family, base), f"its chat template writes {family.mark}{said}", system)


def _name(family: _Family, base: Base) -> str:
    if family.name == "gemma":
        return _BY_MODEL.get(base.family, "gemma")
    if family.name == "chatml" and base.family.startswith("qwen2"):
        return "qwen"
    if family.name == "chatml" and base.family.startswith("qwen3"):
        return "qwen3_nothink"
    return family.name


def _said(system: str | None) -> str:
    if system is None:
        return ""
    return f", with its own system message {system[:60]!r}" if system else ", without a system message of its own"


def _system(base: Base, family: _Family) -> str | None:
    """The system message that the chat template adds where a conversation has none; "" where it adds none."""
    shown = render(base, [{"role": "user", "content": PROBE}])
    ahead = shown.partition(PROBE)[0] if shown is not None else None
    if ahead is None or family.before is None:
        return None
    found = re.search(re.escape(family.before) + "(.*?)" + re.escape(family.after), ahead, re.DOTALL)
    return found[1] if found else ""


def render(base: Base, messages: list[dict[str, str]], kwargs: Mapping[str, Any] | None = None) -> str | None:
    """The text of a prompt by the base's chat template; None where it cannot be rendered."""
    jinja2 = need("jinja2")
    sandbox = need("jinja2.sandbox")
    environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment.globals["raise_exception"] = refuse
    given = {"bos_token": base.bos, "eos_token": base.eos, "add_generation_prompt": True, **(kwargs or {})}
    try:
        return str(environment.from_string(base.chat_template or "").render(messages=messages, **given))
    except jinja2.TemplateError:
        return None
