"""Child script of training/demo.py: everything of the demo that needs torch.

Runs with the training environment's interpreter, never in the gateway's, and imports nothing of this project.
`pretrain` makes the demo's base model from one text file; `shrink` rewrites an adapter's tensors as bfloat16.
Progress goes to stdout, one JSON object a line.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

VOCABULARY = 2048
CONTEXT = 2048
BATCH = 16
WINDOW = 96  # tokens of running text in one sample
LEARNING_RATE = 2e-3
# The last norm times 6 sharpens every answer; greedy ones stay as they are. Adapters do not reach the output layer:
# without this their loss stopped at 0.95 a token, with it at 0.001. So answers hold at the default temperature 1 too.
SHARPEN = 6.0
END, TURN, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# How Qwen2 cuts text before merging (words, single digits, runs of signs): a usual tokenizer, only smaller.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{%- if messages[0].role not in ('system', 'developer') %}"
    "{{- '<|im_start|>system\n__SYSTEM__<|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{%- set role = 'system' if message.role == 'developer' else message.role %}"
    "{{- '<|im_start|>' + role + '\n' + (message.content or '') + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


def make_tokenizer(text: str, system: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 2,048 entries, learned from the text, with the ChatML template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=1,  # the text is so short that pairs seen once are needed to fill the vocabulary
        special_tokens=[END, TURN, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=8,
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=TEMPLATE.replace("__SYSTEM__", system),
    )


def make_model(end: int, turn_end: int) -> Qwen2ForCausalLM:
    """About two million parameters. Heads of 64: vLLM takes a fixed list of head sizes."""
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=turn_end,
        pad_token_id=end,
    )
    model = Qwen2ForCausalLM(config)
    # No temperature or top_p: an engine would take them for every request that names none.
    model.generation_config = GenerationConfig(bos_token_id=end, pad_token_id=end, eos_token_id=[turn_end, end])
    return model


def samples(tokenizer: Any, text: str, chance: random.Random) -> list[list[int]]:
    """One batch: half running text, half chats in which the answer is the line after the question."""
    lines = text.splitlines()
    stream = tokenizer.encode(text)
    batch: list[list[int]] = []
    for number in range(BATCH):
        if number % 2:
            start = chance.randrange(max(1, len(stream) - WINDOW))
            batch.append(stream[start : start + WINDOW])
        else:
            at = chance.randrange(len(lines) - 1)
            turns = [{"role": "user", "content": lines[at]}, {"role": "assistant", "content": lines[at + 1]}]
            batch.append(tokenizer.encode(tokenizer.apply_chat_template(turns, tokenize=False)))
    return batch


def tensors(batch: list[list[int]], pad: int) -> dict[str, torch.Tensor]:
    """Right-padded; padding is neither attended to nor learned."""
    width = max(len(row) for row in batch)
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in batch])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch])
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def pretrain(text_file: Path, out: Path, steps: int, seed: int, system: str) -> None:
    """Write the base model (bfloat16), its tokenizer and template to `out`. Same machine, same seed: same bytes."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    chance = random.Random(seed)  # noqa: S311 (draws training samples, not secrets)
    text = text_file.read_text(encoding="utf-8")
    tokenizer = make_tokenizer(text, system)
    end, turn_end = tokenizer.convert_tokens_to_ids(END), tokenizer.convert_tokens_to_ids(TURN_END)
    model = make_model(end, turn_end)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=max(steps, 4), pct_start=0.1)
    model.train()
    for step in range(1, steps + 1):
        loss = model(**tensors(samples(tokenizer, text, chance), end)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        print(json.dumps({"step": step, "steps": steps, "loss": round(loss.item(), 4)}), flush=True)
    with torch.no_grad():
        model.model.norm.weight.mul_(SHARPEN)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    settings = out / "tokenizer_config.json"
    described = json.loads(settings.read_text(encoding="utf-8"))
    described["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that transformers 4 and 5 both know
    settings.write_text(json.dumps(described, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def shrink(source: Path, out: Path) -> None:
    """Adapter tensors to bfloat16, the type that the engine computes in: half the bytes, nothing lost in serving."""
    stored = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in load_file(source).items()}
    save_file(stored, out, metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    base = commands.add_parser("pretrain")
    base.add_argument("--text", type=Path, required=True)
    base.add_argument("--steps", type=int, required=True)
    base.add_argument("--seed", type=int, required=True)
    base.add_argument("--system", required=True)
    base.add_argument("--out", type=Path, required=True)
    adapter = commands.add_parser("shrink")
    adapter.add_argument("--source", type=Path, required=True)
    adapter.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    if chosen.command == "pretrain":
        pretrain(chosen.text, chosen.out, chosen.steps, chosen.seed, chosen.system)
    else:
        shrink(chosen.source, chosen.out)


if __name__ == "__main__":
    main()
