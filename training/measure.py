"""The data of a recipe, read once for a plan: what DataFacts are made of, and a few rows for the parity check.

Writes nothing. What a job trains on is checked and written by its pipeline; the same rules decide what is kept here.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from training import parity
from training.conversation import Conversation, of_row
from training.errors import DataRejected
from training.facts import DataFacts
from training.recipe import FILE_ID, Recipe, Source

OnProgress = Callable[[int, int], None]  # bytes done, bytes in all, of one file


@dataclass(frozen=True, slots=True)
class Measured:
    """samples: the first rows that are kept; reports: of each file, as training/data/report.py writes them."""

    facts: DataFacts
    samples: tuple[Conversation, ...]
    reports: tuple[dict[str, Any], ...]


@dataclass(slots=True)
class _Sum:
    kind: str = "sft"
    lengths: Counter[int] = field(default_factory=Counter)
    prompt: int = 0
    answer: int = 0
    valid: int = 0
    dropped: int = 0
    multi_turn: bool = False
    mask_history: bool = False
    size: int = 0


def measure(
    recipe: Recipe,
    base: Path,
    *,
    locate: Callable[[str], Path] = Path,
    on_progress: OnProgress | None = None,
    kwargs: dict[str, Any] | None = None,
    by_answer: bool = False,
) -> Measured:
    """Read all of `data`; DataRejected where it cannot be trained on, or too much of it.

    base: the folder whose tokenizer counts; locate: a path or a file's id → the file; kwargs: chat_template_kwargs;
    by_answer: each answer of a conversation becomes a row that ends with it, as `write(…, mask_history=True)` does.
    """
    reading, checking = _module("reading"), _module("check")
    tokens = _module("tokens").Tokenizer.of(base, template_kwargs=kwargs or {})
    found, samples, reports = _Sum(), list[Conversation](), list[dict[str, Any]]()
    validation = _opened(recipe, reading, recipe.data.validation, locate)
    for source in recipe.data.train:
        data = _opened(recipe, reading, source.file, locate)
        report = checking.check(data, tokens=tokens, validation=validation, on_progress=on_progress, near_rows=0)
        refusal = report.refused(recipe.data.max_dropped)
        if refusal is not None:
            raise DataRejected(refusal, param="data.train")
        if reports and data.trains != found.kind:
            raise DataRejected(
                f"{data.path.name} holds other rows ({data.trains}) than the files before it ({found.kind}). Train on "
                "one kind at a time.",
                param="data.train",
            )
        found.kind, found.size = data.trains, found.size + data.size_bytes
        found.dropped += report.rows_in - report.rows_kept
        apart = data.trains == "sft" and (by_answer or report.mask_history)
        found.mask_history |= report.mask_history
        reports.append(report.document())
        for row in _taken(checking.kept(data, report), source):
            found.multi_turn |= sum(turn.role == "assistant" for turn in row.turns) > 1
            for each in _module("writing").by_answer(row) if apart else (row,):
                _count(found, each, recipe, tokens, samples)
    if validation is not None:
        found.valid = sum(1 for item in validation.rows() if hasattr(item, "turns"))
    found.mask_history |= by_answer and found.multi_turn
    return Measured(_facts(found), tuple(samples), tuple(reports))


def _count(found: _Sum, row: Any, recipe: Recipe, tokens: Any, samples: list[Conversation]) -> None:
    if recipe.data.system is not None and row.system is None:
        row = replace(row, turns=(_module("row").Turn("system", recipe.data.system), *row.turns))
    share = recipe.data.validation
    if isinstance(share, float) and _module("split").is_held_out(row, share, recipe.training.seed):
        found.valid += 1
        return
    prompt, answer = tokens.count(row)
    found.lengths[prompt + answer] += 1
    found.prompt, found.answer = found.prompt + prompt, found.answer + answer
    if len(samples) < parity.ROWS:
        samples.append(of_row(row))


def _facts(found: _Sum) -> DataFacts:
    return DataFacts(
        kind=found.kind,
        lengths=dict(found.lengths),
        prompt_tokens=found.prompt,
        answer_tokens=found.answer,
        valid_rows=found.valid,
        dropped=found.dropped,
        multi_turn=found.multi_turn,
        mask_history=found.mask_history,
        size_bytes=found.size,
    )


def _taken(rows: Iterator[Any], source: Source) -> Iterator[Any]:
    """Each row `weight` times, as evenly as whole rows allow, and not more than `cap` in all."""
    given = 0
    for at, row in enumerate(rows, 1):
        while given < int(at * source.weight + 1e-9):
            if source.cap is not None and given >= source.cap:
                return
            given += 1
            yield row


def _opened(recipe: Recipe, reading: Any, name: Any, locate: Callable[[str], Path]) -> Any:
    """An opened file; None for a share, or nothing."""
    if not isinstance(name, str):
        return None
    path = locate(name)
    if not path.is_file():
        own = FILE_ID.fullmatch(name) is None
        hint = "Paths count from the recipe's own folder" if own else "Plan where the gateway runs, or upload it"
        raise DataRejected(f"There is no file {name}. {hint}.", param="data")
    return reading.open_data(path, columns=recipe.data.columns, form=recipe.data.form)


def _module(name: str) -> Any:
    """A module of training/data, whose libraries come with the extra `train`."""
    return importlib.import_module(f"training.data.{name}")
