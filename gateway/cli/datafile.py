"""A file of training data as commands are told about it, and the words in which all of them answer.

Must not know what a command does with it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapters.errors import InvalidRequest

if TYPE_CHECKING:
    from training.data.reading import Data
    from training.data.tokens import Tokenizer

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)
ROLES = ("instruction", "input", "output", "system", "history", "messages", "chosen", "rejected", "label", "tools")


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """One file, what its columns are, and the base that counts its tokens."""

    file: Path
    columns: Mapping[str, str]
    form: str | None
    base: str | None
    as_json: bool

    def open(self, file: Path) -> Data:
        from training.data.reading import open_data

        return open_data(file, columns=self.columns, form=self.form)

    def tokenizer(self) -> Tokenizer | None:
        return tokenizer(self.base)


def tokenizer(base: str | None) -> Tokenizer | None:
    """The one of the folder `base`; `demo`: the demo's. DataRejected."""
    if base is None:
        return None
    from training.data.tokens import Tokenizer
    from training.demo import DEMO

    return Tokenizer.of(DEMO / "base" if base == "demo" else Path(base))


def mapping(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """role=column,role=column of an option that may be repeated."""
    pairs = [pair for value in values for pair in value.split(",") if pair]
    if not all("=" in pair for pair in pairs):
        raise click.BadParameter("write role=column, such as instruction=question.")
    return {role.strip(): column.strip() for role, _, column in (pair.partition("=") for pair in pairs)}


def described(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command FILE and what can be said about it, as keywords of a Described in `about`."""

    @click.argument("file", type=FILE)
    @click.option("--columns", callback=mapping, multiple=True, help="role=column, e.g. instruction=question.")
    @click.option("--form", help="openai, sharegpt, alpaca, qa, openai-preference, dpo or kto. [default: guessed]")
    @click.option("--base", help="Folder of the base model, to count tokens; `demo`: the demo's.")
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
    @functools.wraps(command)
    def run(**kwargs: Any) -> None:
        about = {name: kwargs.pop(name) for name in ("file", "columns", "form", "base", "as_json")}
        about["columns"] |= {role: column for role in ROLES if (column := kwargs.pop(f"{role}_col")) is not None}
        command(about, **kwargs)

    for role in reversed(ROLES):
        run = click.option(f"--{role}-col", metavar="COLUMN", help=f"Column with the {role}.")(run)
    return run


def write(target: Path, body: bytes) -> None:
    """All of a small file; InvalidRequest."""
    try:
        target.write_bytes(body)
    except OSError as exc:
        raise InvalidRequest(f"{target} cannot be written: {exc.strerror or exc}.") from None


def say(text: str) -> None:
    """Lines for people: nothing from the data moves the cursor."""
    for line in text.splitlines():
        click.echo("".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in line))


def end(refused: str | None) -> None:
    """Exit 1 with the sentence, after the answer was shown."""
    if refused is not None:
        click.echo(f"Error: {refused}", err=True)
        raise click.exceptions.Exit(1)
