"""The rows of a recipe: its files opened and checked, each row as often as asked for, on its side of the split.

The one place that decides which rows are trained and which are held out: a plan counts these, a job writes these.
Needs the extra `train`. Must not know the base, jobs or where anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from training.data.check import check, kept
from training.data.mixing import amount, taken
from training.data.reading import Data, open_data
from training.data.report import Report
from training.data.row import SYSTEM, Row, Turn
from training.data.split import is_held_out
from training.data.tokens import Tokenizer
from training.errors import DataRejected
from training.recipe import FILE_ID, Recipe, Source

OnProgress = Callable[[int, int], None]  # bytes done, bytes in all, of one file


@dataclass(frozen=True, slots=True)
class Checked:
    """One file, and what was found in it."""

    data: Data
    report: Report
    source: Source

    def taken(self, seed: int) -> Iterator[Row]:
        """Its good rows, as often as the source says."""
        rows = self.report.rows_kept
        return taken(kept(self.data, self.report), rows, amount(rows, self.source.weight, self.source.cap), seed)


@dataclass(frozen=True, slots=True)
class Gathered:
    """files: what is trained on; validation: a file of its own for that, if the recipe names one."""

    recipe: Recipe
    files: tuple[Checked, ...]
    validation: Checked | None

    @property
    def kind(self) -> str:
        """sft, preference or kto."""
        return self.files[0].data.trains

    @property
    def mask_history(self) -> bool:
        """Whether some answers are not to be learned, so that each other one becomes a row that ends with it."""
        return any(each.report.mask_history for each in self.files)

    @property
    def reports(self) -> tuple[Report, ...]:
        return tuple(each.report for each in self.files)

    @property
    def size_bytes(self) -> int:
        return sum(each.data.size_bytes for each in self.files)

    @property
    def dropped(self) -> int:
        return sum(each.report.rows_in - each.report.rows_kept for each in self.files)

    def trained(self) -> Iterator[Row]:
        """The rows that are trained, in order."""
        return self._side(held_out=False)

    def held_out(self) -> Iterator[Row]:
        """The rows that are not trained, to see how well others were learned; none where the recipe holds none out."""
        if self.validation is not None:
            return map(self._with_system, kept(self.validation.data, self.validation.report))
        return self._side(held_out=True)

    def _side(self, held_out: bool) -> Iterator[Row]:
        share, seed = self.recipe.data.validation, self.recipe.training.seed
        for each in self.files:
            for row in each.taken(seed):
                whole = self._with_system(row)
                if (isinstance(share, float) and is_held_out(whole, share, seed)) == held_out:
                    yield whole

    def _with_system(self, row: Row) -> Row:
        system = self.recipe.data.system
        if system is None or row.system is not None:
            return row
        return replace(row, turns=(Turn(SYSTEM, system), *row.turns))


def gather(
    recipe: Recipe,
    tokens: Tokenizer,
    *,
    locate: Callable[[str], Path] = Path,
    on_progress: OnProgress | None = None,
    near_rows: int = 0,
) -> Gathered:
    """Open and check all files of `recipe`; DataRejected where they cannot be trained on, or too much of them.

    locate: a path or a file's id → the file; near_rows: how many rows are compared for near-duplicates.
    """
    name = recipe.data.validation
    validation = None
    if isinstance(name, str):
        data = _opened(recipe, name, locate)
        report = check(data, tokens=tokens, near_rows=0)
        validation = Checked(data, report, Source(file=name))
        _refuse(report, recipe, "data.validation")
    files: list[Checked] = []
    for source in recipe.data.train:
        data = _opened(recipe, source.file, locate)
        held_out = validation.data if validation is not None else None
        report = check(data, tokens=tokens, validation=held_out, on_progress=on_progress, near_rows=near_rows)
        _refuse(report, recipe, "data.train")
        files.append(Checked(data, report, source))
    _of_one_kind([*files, *([validation] if validation is not None else [])])
    return Gathered(recipe, tuple(files), validation)


def _refuse(report: Report, recipe: Recipe, param: str) -> None:
    refusal = report.refused(recipe.data.max_dropped)
    if refusal is not None:
        raise DataRejected(refusal, param=param)


def _of_one_kind(files: Sequence[Checked]) -> None:
    first = files[0].data.trains
    other = next((each.data for each in files if each.data.trains != first), None)
    if other is not None:
        raise DataRejected(
            f"{other.path.name} holds other rows ({other.trains}) than {files[0].data.path.name} ({first}). Train on "
            "one kind at a time.",
            param="data.train",
        )


def _opened(recipe: Recipe, name: str, locate: Callable[[str], Path]) -> Data:
    path = locate(name)
    if not path.is_file():
        own = FILE_ID.fullmatch(name) is None
        hint = "Paths count from the recipe's own folder" if own else "Plan where the gateway runs, or upload it"
        raise DataRejected(f"There is no file {name}. {hint}.", param="data")
    return open_data(path, columns=recipe.data.columns, form=recipe.data.form)
