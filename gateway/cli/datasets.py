"""`loragate datasets check|convert|split`: training data looked at and made ready, on this machine, without a gateway.

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
from gateway.cli.progress import Bar, bar

if TYPE_CHECKING:
    from training.data.reading import Data
    from training.data.report import Report
    from training.data.row import Row
    from training.data.tokens import Tokenizer

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)
ROLES = ("instruction", "input", "output", "system", "history", "messages", "chosen", "rejected", "label", "tools")


@dataclass(frozen=True, slots=True)
class Asked:
    """What all three commands are told about a file."""

    file: Path
    columns: Mapping[str, str]
    form: str | None
    base: str | None
    cutoff: int | None
    drop: tuple[str, ...]
    near_rows: int
    max_dropped: float
    as_json: bool

    def open(self, file: Path) -> Data:
        from training.data.reading import open_data

        return open_data(file, columns=self.columns, form=self.form)

    def tokenizer(self) -> Tokenizer | None:
        if self.base is None:
            return None
        from training.data.tokens import Tokenizer
        from training.demo import DEMO

        return Tokenizer.of(DEMO / "base" if self.base == "demo" else Path(self.base))

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


def _mapping(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = [pair for value in values for pair in value.split(",") if pair]
    if not all("=" in pair for pair in pairs):
        raise click.BadParameter("write role=column, such as instruction=question.")
    return {role.strip(): column.strip() for role, _, column in (pair.partition("=") for pair in pairs)}


def asked(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command FILE and what can be said about it, as an Asked."""

    @click.argument("file", type=FILE)
    @click.option("--columns", callback=_mapping, multiple=True, help="role=column, e.g. instruction=question.")
    @click.option("--form", help="openai, sharegpt, alpaca, qa, openai-preference, dpo or kto. [default: guessed]")
    @click.option("--base", help="Folder of the base model, to count tokens; `demo`: the demo's.")
    @click.option("--cutoff", type=click.IntRange(8), help="Tokens of a row that are trained on; needs --base.")
    @click.option("--drop", multiple=True, metavar="WARNING", help="Leave out rows with it too, e.g. duplicate.")
    @click.option("--near-rows", type=click.IntRange(0), default=50_000, show_default=True, help="Compared; 4 kB each.")
    @click.option("--max-dropped", type=click.FloatRange(0, 1), default=0.05, show_default=True, help="Share of rows.")
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
    @functools.wraps(command)
    def run(**kwargs: Any) -> None:
        said = {name: kwargs.pop(name) for name in ("file", "form", "base", "cutoff", "drop", "near_rows")}
        said |= {name: kwargs.pop(name) for name in ("max_dropped", "as_json")}
        columns = kwargs.pop("columns")
        columns |= {role: column for role in ROLES if (column := kwargs.pop(f"{role}_col")) is not None}
        if said["cutoff"] is not None and said["base"] is None:
            raise click.UsageError("--cutoff counts tokens: name the base with --base FOLDER.")
        command(Asked(columns=columns, **said), **kwargs)

    for role in reversed(ROLES):
        run = click.option(f"--{role}-col", metavar="COLUMN", help=f"Column with the {role}.")(run)
    return run


@click.group()
def datasets() -> None:
    """Training data: what is wrong with it, and files that are ready to train on.

    Reads CSV, TSV, JSON, JSONL and Parquet, in the forms of Alpaca, ShareGPT, OpenAI (chat and preference), DPO, KTO
    and plain question and answer. Runs on this machine; no gateway is needed.

    Example: loragate datasets check chats.csv --instruction-col question --output-col answer
    """


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
        _write(report, (json.dumps(document, ensure_ascii=False, indent=2) + "\n").encode())
    if picture is not None:
        _write(picture, _picture(looked))
    if told.as_json:
        output.document(document)
    else:
        _say(looked.text())
    _end(refused)


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
        _end(refused)
    files = _written(data, looked, folder, parts)
    _write(folder / "report.json", (json.dumps(looked.document(), ensure_ascii=False, indent=2) + "\n").encode())
    left_out = _left_out(looked, folder / "dropped.jsonl")
    if told.as_json:
        document = {"folder": str(folder), "files": files, "mask_history": looked.mask_history, "dropped": left_out}
        output.document({**document, "report": looked.document()})
        return
    _say(looked.text())
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
    from training.data.writing import write, write_info

    entries, files = {}, []
    for name, wanted in parts.items():
        with bar() as shown:
            rows = kept(data, looked, functools.partial(_tell, shown, name, data.size_bytes))
            try:
                made = write(filter(wanted, rows), folder, name, mask_history=looked.mask_history)
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


def _write(target: Path, body: bytes) -> None:
    try:
        target.write_bytes(body)
    except OSError as exc:
        raise InvalidRequest(f"{target} cannot be written: {exc.strerror or exc}.") from None


def _say(text: str) -> None:
    """Lines for people: nothing from the data moves the cursor."""
    for line in text.splitlines():
        click.echo("".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in line))


def _end(refused: str | None) -> None:
    """Exit 1 with the sentence, after the answer was shown."""
    if refused is not None:
        click.echo(f"Error: {refused}", err=True)
        raise click.exceptions.Exit(1)
