"""Child script, run by the training environment: the tokens that LLaMA-Factory makes of given conversations.

    python -I -X utf8 parity_child.py REQUEST.json ANSWER.json

Uses its own template code, as a run would. Must not train, and reads nothing but the base's tokenizer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

CONTEXT = 12  # tokens shown on either side of a difference


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """For each row the prompt's tokens, whether the answer ends as generation does, and where the engine's differ."""
    from llamafactory.data.template import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments, ModelArguments
    from llamafactory.model import load_tokenizer

    settings = request["settings"]
    tokenizer = load_tokenizer(ModelArguments(model_name_or_path=request["base"]))["tokenizer"]
    known = len(tokenizer)
    keys = ("template", "default_system", "enable_thinking", "mask_history")
    arguments = DataArguments(**{key: settings[key] for key in keys if key in settings})
    template = get_template_and_fix_tokenizer(tokenizer, arguments)
    stops = set(template.get_stop_token_ids(tokenizer))
    rows = []
    for row, served in zip(request["rows"], request["served"], strict=True):
        prompt, told = encode(template, tokenizer, row, settings)
        rows.append(
            {
                "tokens": prompt,
                "ends": bool(stops & set(told)) or template.efficient_eos,
                "difference": difference(tokenizer, prompt, served),
            }
        )
    return {"rows": rows, "added": len(tokenizer) - known}


def encode(template: Any, tokenizer: Any, row: dict[str, Any], settings: dict[str, Any]) -> tuple[list[int], list[int]]:
    """(everything before the last answer, the last answer), as the stage's own processor makes them."""
    system, tools = row["system"], row["tools"]
    if settings.get("stage", "sft") != "sft":
        prompt, told = template.encode_oneturn(tokenizer, row["messages"], system, tools)
        return list(prompt), list(told)
    alone = bool(settings.get("mask_history")) and not template.preserve_thinking
    pairs = template.encode_multiturn(tokenizer, row["messages"], system, tools, alone)
    before = [token for source, target in pairs[:-1] for token in (*source, *target)]
    return [*before, *pairs[-1][0]], list(pairs[-1][1])


def difference(tokenizer: Any, trained: list[int], served: list[int]) -> dict[str, Any] | None:
    """Where they part, and the text there; None where they are equal."""
    if trained == served:
        return None
    at = next((i for i, (one, other) in enumerate(zip(trained, served, strict=False)) if one != other), None)
    at = min(len(trained), len(served)) if at is None else at
    begin = max(0, at - CONTEXT)
    texts = [tokenizer.decode(ids[begin : at + CONTEXT], skip_special_tokens=False) for ids in (trained, served)]
    return {"at": at, "trained": texts[0], "served": texts[1]}


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(json.dumps(answer(asked)), encoding="utf-8")
