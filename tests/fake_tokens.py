"""Token ids as the fake engine gives them: real ones where `--model` is a folder with a tokenizer, else of words."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any


def of_text(model_path: str, text: str) -> list[int]:
    """One number per token; without a tokenizer a word is one, always the same for the same word."""
    file = Path(model_path) / "tokenizer.json"
    if not file.is_file():
        return [zlib.crc32(word.encode()) % 50_000 for word in text.split()]
    from tokenizers import Tokenizer  # a package of the extra `train`: most tests need none

    found: list[int] = Tokenizer.from_file(str(file)).encode(text, add_special_tokens=False).ids
    return found


def of_chat(model_path: str, messages: list[Any], tools: Any, kwargs: dict[str, Any]) -> list[int] | None:
    """The prompt of a conversation; None where the template refuses it."""
    template = Path(model_path) / "chat_template.jinja"
    if not template.is_file():
        said = [f"{each.get('role')} {each.get('content') or ''}" for each in messages]
        return of_text(
            model_path, " ".join([*said, *sorted(map(str, kwargs.items())), *([str(tools)] if tools else [])])
        )
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    try:
        shown = environment.from_string(template.read_text()).render(
            messages=messages, tools=tools, add_generation_prompt=True, **kwargs
        )
    except TemplateError:
        return None
    return of_text(model_path, shown)
