"""The rows of a recipe measured for a plan: what DataFacts are made of, and a few rows for the parity check.

Writes nothing. Needs the extra `train`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training import parity
from training.conversation import Conversation, of_row
from training.data.row import ASSISTANT
from training.data.tokens import Tokenizer
from training.data.writing import by_answer as apart
from training.facts import DataFacts
from training.gathering import Gathered, OnProgress, gather
from training.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Measured:
    """samples: the first rows that are trained; reports: of each file, as training/data/report.py writes them."""

    facts: DataFacts
    samples: tuple[Conversation, ...]
    reports: tuple[dict[str, Any], ...]


def measure(
    recipe: Recipe,
    base: Path,
    *,
    locate: Callable[[str], Path] = Path,
    on_progress: OnProgress | None = None,
    kwargs: dict[str, Any] | None = None,
    by_answer: bool = False,
) -> Measured:
    """Read all of a recipe's data; DataRejected where it cannot be trained on, or too much of it.

    base: the folder whose tokenizer counts; locate: a path or a file's id → the file; kwargs: chat_template_kwargs;
    by_answer: each answer of a conversation becomes a row that ends with it, as `write(…, mask_history=True)` does.
    """
    tokens = Tokenizer.of(base, template_kwargs=kwargs or {})
    return measured(gather(recipe, tokens, locate=locate, on_progress=on_progress), tokens, by_answer=by_answer)


def measured(gathered: Gathered, tokens: Tokenizer, *, by_answer: bool = False) -> Measured:
    """The same of rows that are gathered already."""
    split = gathered.kind == "sft" and (by_answer or gathered.mask_history)
    lengths: Counter[int] = Counter()
    samples: list[Conversation] = []
    prompt_tokens = answer_tokens = 0
    multi_turn = False
    for row in gathered.trained():
        multi_turn |= sum(turn.role == ASSISTANT for turn in row.turns) > 1
        for each in apart(row) if split else (row,):
            prompt, answer = tokens.count(each)
            lengths[prompt + answer] += 1
            prompt_tokens, answer_tokens = prompt_tokens + prompt, answer_tokens + answer
            if len(samples) < parity.ROWS:
                samples.append(of_row(each))
    facts = DataFacts(
        kind=gathered.kind,
        lengths=dict(lengths),
        prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens,
        valid_rows=sum(1 for _ in gathered.held_out()),
        dropped=gathered.dropped,
        multi_turn=multi_turn,
        mask_history=gathered.mask_history or (by_answer and multi_turn),
        size_bytes=gathered.size_bytes,
    )
    return Measured(facts, tuple(samples), tuple(report.document() for report in gathered.reports))
