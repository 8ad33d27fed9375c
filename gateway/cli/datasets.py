"""`loragate datasets`: training data looked at and made ready, on this machine. check, convert and split are here.

Words and files only: what is right and wrong with data is training/data's.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapters.errors import InvalidRequest
from gateway.cli import output
from gateway.cli.augmenting import augment
from gateway.cli.datafile import FILE, FOLDER, Described, described, end, say, write
from gateway.cli.filtering import filter_
from gateway.cli.mixing import mix
from gateway.cli.progress import Bar, bar

if TYPE_CHECKING:
    from training.data.reading import Data
    from training.data.report import Report
    from training.data.row import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked(Described):
    """What check, convert and split are told about a file."""

    cutoff: int | None
    drop: tuple[str, ...]
    near_rows: int
    max_dropped: float

    def look(self, data: Data, validation: Data | None = None) -> Report:
        """The check itself, with a bar on stderr."""
        from training.data.check import check

        with bar() as shown:
            return check(
                data,
                tokens=self.tokenizer(),
                cutoff=self.cutoff,
                validation=validation,
                on_progress=lambda done, total: shown.show(f"Checking {data.path.name}", done, total),
                drop=self.drop,
                near_rows=self.near_rows,
            )


def asked(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command FILE and what can be said about it, as an Asked."""

    @described
    @click.option("--cutoff", type=click.IntRange(8), help="Tokens of a row that are trained on; needs --base.")
    @click.option("--drop", multiple=True, metavar="WARNING", help="Leave out rows with it too, e.g. duplicate.")
    @click.option("--near-rows", type=click.IntRange(0), default=50_000, show_default=True, help="Compared; 4 kB each.")
    @click.option("--max-dropped", type=click.FloatRange(0, 1), default=0.05, show_default=True, help="Share of rows.")
    @functools.wraps(command)
    def run(about: dict[str, Any], **kwargs: Any) -> None:
        said = {name: kwargs.pop(name) for name in ("cutoff", "drop", "near_rows", "max_dropped")}
        if said["cutoff"] is not None and about["base"] is None:
            raise click.UsageError("--cutoff counts tokens: name the base with --base FOLDER.")
        command(Asked(**about, **said), **kwargs)

    return run


@click.group()
def datasets() -> None:
    """Training data: what is wrong with it, and files that are ready to train on.

    Reads CSV, TSV, JSON, JSONL and Parquet, in the forms of Alpaca, ShareGPT, OpenAI (chat and preference), DPO, KTO
    and plain question and answer. Runs on this machine; only augment asks a model.

    Example: loragate datasets check chats.csv --instruction-col question --output-col answer
    """


datasets.add_command(mix)
datasets.add_command(filter_)
datasets.add_command(augment)


@datasets.command(
    short_help="Say what is wrong with a file, row by row.",
    epilog="Example: loragate datasets check chats.jsonl --base demo --cutoff 2048 --picture lengths.png",
)
@asked
@click.option("--validation", type=FILE, help="Look for rows of this file in FILE.")
@click.option("--report", type=FILE, help="Write the findings to this file, as JSON.")
@click.option("--picture", type=FILE, help="Write how long rows are to this file, as PNG.")
def check(told: Asked, validation: Path | None, report: Path | None, picture: Path | None) -> None:
    """Look at every row of FILE: broken rows by their line, duplicates, secrets, lengths.

    Exit 1 where more than --max-dropped of the rows cannot be trained on.
    """
    looked = told.look(told.open(told.file), told.open(validation) if validation is not None else None)
    refused = looked.refused(told.max_dropped)
    document = {**looked.document(), "refused": refused}
    if report is not None:
        write(report, (json.dumps(document, ensure_ascii=False, indent=2) + "\n").encode())
    if picture is not None:
        write(picture, _picture(looked))
    if told.as_json:
        output.document(document)
    else:
        say(looked.text())
    end(refused)


@datasets.command(
    short_help="Write a file that LLaMA-Factory trains on.",
    epilog="Example: loragate datasets convert chats.csv --to ready --name train",
)
@asked
@click.option("--to", "folder", type=FOLDER, required=True, help="Folder to fill.")
@click.option("--name", default="train", show_default=True, help="Name of the data set, and of its file.")
@click.option("--force", is_flag=True, help="Write over what is there.")
def convert(told: Asked, folder: Path, name: str, force: bool) -> None:
    """Write the good rows of FILE into a folder, with dataset_info.json, a report, and what was left out and why."""
    _make(told, folder, {name: None}, force)


@datasets.command(
    short_help="Convert, and hold rows out for validation.",
    epilog="Example: loragate datasets split chats.jsonl --to ready --share 0.1",
)
@asked
@click.option("--to", "folder", type=FOLDER, required=True, help="Folder to fill with train.jsonl and valid.jsonl.")
@click.option("--share", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.1, show_default=True)
@click.option("--seed", type=int, default=42, show_default=True, help="Another seed holds out other rows.")
@click.option("--force", is_flag=True, help="Write over what is there.")
def split(told: Asked, folder: Path, share: float, seed: int, force: bool) -> None:
    """Like convert, but a share of the questions goes to valid.jsonl.

    Rows that ask the same stay together, and a row stays on its side when the file grows.
    """
    from training.data.split import is_side

    sides = {"train": False, "valid": True}
    _make(told, folder, {name: functools.partial(is_side, share, seed, side) for name, side in sides.items()}, force)


def _make(told: Asked, folder: Path, parts: Mapping[str, Callable[[Row], bool] | None], force: bool) -> None:
    """Check FILE, and write each part of its good rows to a file of its own. name → which rows; None: all."""
    _may_write(told.file, folder, parts, force)
    data = told.open(told.file)
    looked = told.look(data)
    refused = looked.refused(told.max_dropped)
    if refused is not None:
        if told.as_json:
            output.document({**looked.document(), "refused": refused})
        end(refused)
    files = _written(data, looked, folder, parts)
    write(folder / "report.json", (json.dumps(looked.document(), ensure_ascii=False, indent=2) + "\n").encode())
    left_out = _left_out(looked, folder / "dropped.jsonl")
    if told.as_json:
        document = {"folder": str(folder), "files": files, "mask_history": looked.mask_history, "dropped": left_out}
        output.document({**document, "report": looked.document()})
        return
    say(looked.text())
    for each in files:
        click.echo(f"{each['file']}: {each['rows']:,} rows")
    if left_out:
        click.echo(f"{folder / 'dropped.jsonl'}: {left_out:,} rows, each with why it was left out")
    if looked.mask_history:
        click.echo("Train it with mask_history: true, because each row is one answer to learn.")


def _may_write(source: Path, folder: Path, names: Iterable[str], force: bool) -> None:
    for name in names:
        target = folder / f"{name}.jsonl"
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) or name == "dropped":
            raise InvalidRequest(f"{name!r} is no name for a data set. Use letters, digits, dashes and underscores.")
        if target.exists() and source.exists() and target.samefile(source):
            raise InvalidRequest(f"{target} is the file itself. Name another folder with --to.")
        if not force and target.exists():
            raise InvalidRequest(f"{target} is there already. Name another folder, or say --force.")


def _written(
    data: Data, looked: Report, folder: Path, parts: Mapping[str, Callable[[Row], bool] | None]
) -> list[dict[str, Any]]:
    from training.data.check import kept
    from training.data.writing import write as write_rows
    from training.data.writing import write_info

    entries, files = {}, []
    for name, wanted in parts.items():
        with bar() as shown:
            rows = kept(data, looked, functools.partial(_tell, shown, name, data.size_bytes))
            try:
                made = write_rows(filter(wanted, rows), folder, name, mask_history=looked.mask_history)
            except OSError as exc:
                raise InvalidRequest(f"{folder} cannot be written to: {exc.strerror or exc}.") from None
        entries[name] = made.entry
        files.append({"name": name, "file": str(made.file), "rows": made.rows, "sha256": made.digest})
    write_info(folder, entries)
    return files


def _tell(shown: Bar, name: str, size: int, done: int) -> None:
    shown.show(f"Writing {name}", min(done, size), size)


def _left_out(looked: Report, target: Path) -> int:
    """Write which rows were left out and why; how many."""
    target.unlink(missing_ok=True)
    if not len(looked.dropped):
        return 0
    messages = {(finding.row, finding.kind): finding.message for finding in looked.findings}
    with target.open("w", encoding="utf-8") as file:
        for number, kind in looked.dropped.items():
            told = {"row": number, "kind": kind, "message": messages.get((number, kind))}
            file.write(json.dumps(told, ensure_ascii=False) + "\n")
    return len(looked.dropped)


def _picture(looked: Report) -> bytes:
    from training.data.lengths import picture

    counted = looked.tokens
    spread = counted.spread if counted is not None else looked.characters
    if spread is None:
        raise InvalidRequest("There is no row whose length could be shown. Leave out --picture.")
    unit = "tokens in a row" if counted is not None else "characters in a row"
    title = f"{looked.name}: {looked.rows_kept:,} rows"
    return picture(spread, title=title, unit=unit, cutoff=counted.cutoff if counted is not None else None)
