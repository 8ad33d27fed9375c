"""The folder of a job before its run: data checked and written, the plan settled, the trainer's settings file.

Everything that can be refused is refused here, before compute is spent. Needs the extra `train`. Must not know queues,
HTTP or what becomes of the adapter.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from training import baseview, template, trainyaml
from training.data.reading import open_data
from training.data.report import Report
from training.data.row import Row
from training.data.tokens import Tokenizer
from training.data.writing import Written, write, write_info
from training.errors import DataRejected
from training.facts import Facts
from training.gathering import Gathered, gather
from training.measure import Measured, measured
from training.plan import Settled, settle
from training.recipe import Recipe

DATA, TRAIN, VALID, GUARDED = "data", "train", "valid", "guarded"
SETTINGS, DEEPSPEED, OUTPUT, BASE = "train.yaml", "deepspeed.json", "out", "base"
NEAR_ROWS = 50_000


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was decided, the rows' reports, a few rows for the parity check, and the files that were written."""

    settled: Settled
    reports: tuple[Report, ...]
    measured: Measured
    written: tuple[Written, ...]


def prepare(recipe: Recipe, facts: Facts, folder: Path, locate: Callable[[str], Path]) -> Prepared:
    """Fill `folder`; DataRejected, RecipeInvalid, NotServable. Begun again it writes the same again.

    locate: a path or a file's id → the file.
    """
    chosen = template.choose(facts.base, recipe.template)
    tokens = Tokenizer.of(facts.base.folder, template_kwargs=dict(chosen.kwargs))
    gathered = gather(recipe, tokens, locate=locate, near_rows=NEAR_ROWS)
    found = measured(gathered, tokens, by_answer=chosen.by_answer)
    settled = settle(recipe, found.facts, facts)
    data = folder / DATA
    written = _written(gathered, found, data)
    _guarded(recipe, data, locate)
    reports = [report.document() for report in gathered.reports]
    (data / "report.json").write_text(json.dumps(reports, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    _settings(settled, facts, folder, has_validation=len(written) > 1)
    return Prepared(settled, gathered.reports, found, written)


def rows_of(file: Path) -> list[Row]:
    """The rows of a file that was written here; none where it is not there."""
    if not file.exists():
        return []
    return [item for item in open_data(file).rows() if isinstance(item, Row)]


def _written(gathered: Gathered, found: Measured, data: Path) -> tuple[Written, ...]:
    alone = found.facts.mask_history
    train = write(gathered.trained(), data, TRAIN, mask_history=alone)
    files = [train]
    (data / f"{VALID}.jsonl").unlink(missing_ok=True)
    if found.facts.valid_rows:
        files.append(write(gathered.held_out(), data, VALID, mask_history=alone))
    write_info(data, {each.file.stem: each.entry for each in files})
    return tuple(files)


def _guarded(recipe: Recipe, data: Path, locate: Callable[[str], Path]) -> None:
    """A copy of the rows that must not get worse: their file may be another one by the time that they are asked."""
    target = data / f"{GUARDED}.jsonl"
    target.unlink(missing_ok=True)
    name = recipe.gate.no_regression_on if recipe.gate is not None else None
    if name is None:
        return
    path = locate(name)
    if not path.is_file():
        raise DataRejected(f"There is no file {name}. Name the rows that must not get worse.", param="gate")
    write((item for item in open_data(path).rows() if isinstance(item, Row)), data, GUARDED)


def _settings(settled: Settled, facts: Facts, folder: Path, *, has_validation: bool) -> None:
    deepspeed = None
    if settled.deepspeed is not None:
        deepspeed = folder / DEEPSPEED
        deepspeed.write_text(json.dumps(dict(settled.deepspeed), indent=2), encoding="utf-8")
    text = trainyaml.written(
        settled.llamafactory,
        base=baseview.lay_out(facts.base.folder, folder / BASE, settled.llamafactory),
        data=folder / DATA,
        output=folder / OUTPUT,
        train=TRAIN,
        valid=VALID if has_validation else None,
        deepspeed=deepspeed,
    )
    (folder / SETTINGS).write_text(text, encoding="utf-8")
