"""Child script, run by the training environment: an adapter merged into its base, saved, read back, and compared.

    python -I -X utf8 merge_child.py REQUEST.json ANSWER.json

Says figures; whether they are good enough is its parent's to say. Progress: one JSON object a line.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel  # type: ignore[import-not-found]
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

STEPS = 6


def merge(request: dict[str, Any]) -> dict[str, Any]:
    """Merge in the precision that was asked for, save as the base is stored, and compare what was saved."""
    base, out = Path(request["base"]), Path(request["out"])
    precision = getattr(torch, request["precision"])
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompts = [tokenizer(text, return_tensors="pt").input_ids for text in texts(tokenizer, request["prompts"])]
    said(1, "reading the base")
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    stored = model.dtype
    model = model.to(precision).eval()
    plain = [logits(model, prompt) for prompt in prompts]
    said(2, "putting the adapter on it")
    model = PeftModel.from_pretrained(model, request["adapter"], autocast_adapter_dtype=False).to(precision).eval()
    targets = sorted({name for name, _ in targeted(model)})
    wanted = [logits(model, prompt) for prompt in prompts]
    said(3, "merging")
    merged = model.merge_and_unload(safe_merge=True)  # NaN in the sum is an error
    said(4, "writing the merged model")
    merged.to(stored).save_pretrained(out)
    del model, merged
    gc.collect()
    said(5, "reading it back")
    changed, tensors = differing(base, out)
    again = AutoModelForCausalLM.from_pretrained(out, dtype="auto").to(precision).eval()
    got = [logits(again, prompt) for prompt in prompts]
    said(6, "comparing")
    return {
        "stored": str(stored).removeprefix("torch."),
        "tensors": tensors,
        "changed": changed,
        "targets": targets,
        "prompts": len(prompts),
        "positions": sum(prompt.shape[-1] for prompt in prompts),
        "largest_logit": largest(wanted),
        "off_adapter": apart(got, wanted),
        "off_base": apart(got, plain),
        "adapter_off_base": apart(wanted, plain),
        "same_choice": agreeing(got, wanted),
    }


def texts(tokenizer: Any, prompts: list[str]) -> list[str]:
    """Every prompt as text and, where the base has a chat template, as a user's turn."""
    if not tokenizer.chat_template:
        return prompts
    turns = [[{"role": "user", "content": each}] for each in prompts]
    return prompts + [tokenizer.apply_chat_template(t, tokenize=False, add_generation_prompt=True) for t in turns]


def logits(model: Any, prompt: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=prompt).logits[0].float()


def targeted(model: Any) -> list[tuple[str, Any]]:
    """The modules that the adapter changes, by their names in the base."""
    found = [(name.removeprefix("base_model.model."), module) for name, module in model.named_modules()]
    parts = ("lora_A", "lora_embedding_A")
    return [(name, module) for name, module in found if any(len(getattr(module, part, ())) for part in parts)]


def differing(base: Path, out: Path) -> tuple[list[str], int]:
    """Which tensors of the merged files are not the base's, and how many there are."""
    ours, theirs = index(out), index(base)
    changed = [name for name, file in ours.items() if not equal(name, file, theirs.get(name))]
    return sorted(changed), len(ours)


def index(folder: Path) -> dict[str, Path]:
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            found.update(dict.fromkeys(opened.keys(), file))
    return found


def equal(name: str, mine: Path, other: Path | None) -> bool:
    if other is None:
        return False
    with safe_open(mine, framework="pt") as one, safe_open(other, framework="pt") as two:
        return bool(torch.equal(one.get_tensor(name), two.get_tensor(name)))


def largest(found: list[Any]) -> float:
    return max(float(each.abs().max()) for each in found)


def apart(one: list[Any], other: list[Any]) -> float:
    """The largest difference of any logit."""
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def agreeing(one: list[Any], other: list[Any]) -> float:
    """The share of positions at which both would write the same token."""
    same = [(a.argmax(-1) == b.argmax(-1)).float() for a, b in zip(one, other, strict=True)]
    return float(torch.cat(same).mean())


def said(step: int, what: str) -> None:
    print(json.dumps({"step": step, "steps": STEPS, "what": what}), flush=True)


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(json.dumps(merge(asked)), encoding="utf-8")
