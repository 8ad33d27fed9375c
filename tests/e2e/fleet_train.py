"""Child script of fleet_adapters.py: adapters of which each answers every prompt with its own number.

Runs with the training environment's interpreter and imports nothing of this project. The first one is trained from
nothing; the others begin where it ended and only have to learn their own number. One JSON line for each.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model  # type: ignore[import-not-found]
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

FIRST_BATCH, BATCH = 8, 4
FIRST_STEPS, STEPS = 150, 12
RATE = 3e-3
# The right token leads the next by so much (logits; the base's are sharp) at every place of every example: bfloat16
# and other requests in the same batch turn nothing then. Learned less well, 1 answer of 448 was wrong by a letter.
MARGIN = 6.0
ROUNDS = 20
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def row(tokenizer: Any, prompt: str, answer: str, *, chat: bool) -> tuple[list[int], int]:
    """The tokens of one example and how many of them are the prompt, which is not learned."""
    if chat:
        turns = [{"role": "user", "content": prompt}]
        asked = tokenizer.encode(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    else:
        asked = tokenizer.encode(prompt + "\n")
    return [*asked, *tokenizer.encode(answer + tokenizer.eos_token)], len(asked)


def batch(rows: list[tuple[list[int], int]], pad: int) -> dict[str, torch.Tensor]:
    """Right-padded; only the answer is learned."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([given + [pad] * (width - len(given)) for given, _ in rows])
    mask = torch.tensor([[1] * len(given) + [0] * (width - len(given)) for given, _ in rows])
    labels = torch.tensor([[-100] * asked + given[asked:] + [-100] * (width - len(given)) for given, asked in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def drawn(rows: list[tuple[list[int], int]], pad: int, chance: random.Random, size: int) -> dict[str, torch.Tensor]:
    return batch(chance.choices(rows, k=size), pad)


def teach(model: Any, draw: Callable[[int], dict[str, torch.Tensor]], size: int, steps: int) -> None:
    """Train the adapter's tensors for `steps` batches of `size`."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=RATE / 20)
    for _ in range(steps):
        model(**draw(size)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def margin(model: Any, examples: dict[str, torch.Tensor]) -> float:
    """The smallest lead of a right token over the best other one; negative where an answer is wrong."""
    with torch.no_grad():
        logits = model(input_ids=examples["input_ids"], attention_mask=examples["attention_mask"]).logits[:, :-1]
    wanted = examples["labels"][:, 1:]
    learned = wanted != -100
    logits, wanted = logits[learned], wanted[learned].unsqueeze(1)
    others = logits.scatter(1, wanted, float("-inf")).max(dim=1).values
    return float((logits.gather(1, wanted).squeeze(1) - others).min().item())


def write(model: Any, folder: Path) -> None:
    """A PEFT folder as users have them, in the type that the engine computes in."""
    model.save_pretrained(folder)
    stored = {
        name.replace(".default.weight", ".weight"): tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if "lora_" in name
    }
    save_file(stored, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = "demo-base"
    config["target_modules"] = sorted(config["target_modules"])
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--plan", type=Path, required=True, help='JSON: {"prompts": […], "answers": {folder: answer}}')
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    plan = json.loads(chosen.plan.read_text(encoding="utf-8"))
    torch.manual_seed(7)
    # What has learned all has gradients near zero, which are slow as denormal numbers: 170 s of CPU instead of 50. The
    # switch is the calling thread's own, so there is only that one.
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    tokenizer = AutoTokenizer.from_pretrained(chosen.base)
    base = AutoModelForCausalLM.from_pretrained(chosen.base, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=LAYERS, task_type="CAUSAL_LM"))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    general: dict[str, torch.Tensor] = {}
    for number, (folder, answer) in enumerate(plan["answers"].items()):
        rows = [row(tokenizer, prompt, answer, chat=chat) for prompt in plan["prompts"] for chat in (True, False)]
        draw = functools.partial(drawn, rows, tokenizer.pad_token_id, random.Random(number))
        if not general:
            teach(model, draw, FIRST_BATCH, FIRST_STEPS)
            general = {name: parameter.detach().clone() for name, parameter in trained.items()}
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(general[name])
        found, rounds = -1.0, 0
        while found < MARGIN and rounds < ROUNDS:
            teach(model, draw, BATCH, STEPS)
            found, rounds = margin(model, batch(rows, tokenizer.pad_token_id)), rounds + 1
        write(model, chosen.out / folder)
        print(json.dumps({"folder": folder, "rounds": rounds, "margin": round(found, 2)}), flush=True)
        if found < 0:
            raise SystemExit(f"{folder} did not learn its answer")


if __name__ == "__main__":
    main()
