"""Run in the training environment: F1 of BERTScore for pairs of texts, with an encoder that lies in a folder.

As Zhang et al. (2020) define it, without idf weights and without rescaling: every token of one text is matched to the
most similar token of the other by the cosine of their vectors; precision over the answer, recall over the reference.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

BATCH = 32


def main(request: dict[str, Any]) -> dict[str, Any]:
    """request: model (a folder), layer (of hidden states; null: the last), pairs of (answer, reference)."""
    tokenizer = AutoTokenizer.from_pretrained(request["model"])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModel.from_pretrained(request["model"], dtype=torch.float32).to(device).eval()
    longest = min(int(getattr(model.config, "max_position_embeddings", 512)), 4096)
    layer = -1 if request["layer"] is None else int(request["layer"])
    texts = sorted({text for pair in request["pairs"] for text in pair if text.strip()}, key=len)
    vectors: dict[str, torch.Tensor] = {}
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        given = tokenizer(
            batch,
            padding=True,
            truncation=True,
            max_length=longest - 2,
            return_tensors="pt",
            return_special_tokens_mask=True,
        )
        special = given.pop("special_tokens_mask").bool()
        with torch.no_grad():
            states = model(**given.to(device), output_hidden_states=True).hidden_states[layer].cpu()
        kept = given["attention_mask"].cpu().bool() & ~special
        for text, state, mask in zip(batch, states, kept, strict=True):
            vectors[text] = torch.nn.functional.normalize(state[mask], dim=-1)
    return {"f1": [_f1(vectors.get(answer), vectors.get(reference)) for answer, reference in request["pairs"]]}


def _f1(answer: torch.Tensor | None, reference: torch.Tensor | None) -> float:
    """1 where both texts are empty, 0 where one of them is."""
    if answer is None or reference is None or not len(answer) or not len(reference):
        return float(answer is None and reference is None)
    similar = answer @ reference.T
    precision, recall = float(similar.max(dim=1).values.mean()), float(similar.max(dim=0).values.mean())
    return max(0.0, 2 * precision * recall / (precision + recall)) if precision + recall > 0 else 0.0


if __name__ == "__main__":
    answered = main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(answered), encoding="utf-8")
