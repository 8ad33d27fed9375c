"""`loragate datasets mix`: several files become one, by weights and caps. Words and files only: training/data mixes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.cli import output
from gateway.cli.datafile import FILE, tokenizer
from gateway.cli.progress import bar

if TYPE_CHECKING:
    from training.data.mixture import Part, Source

_NAMED = re.compile(r"(?P<name>[^\W_][\w.-]{0,63})=(?P<file>.+)", re.DOTALL)
SHOWN = 3  # rows that could not be used, of each source


@dataclass(frozen=True, slots=True)
class Named:
    """One FILE of the command line. said: the name was, and is not the file's own."""

    name: str
    file: Path
    said: bool


def _named(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[Named, ...]:
    """FILE, or NAME=FILE; a FILE without a name has its own, without the ending."""
    found = []
    for value in values:
        said = None if Path(value).exists() else _NAMED.fullmatch(value)
        file = Path(said["file"] if said else value)
        if file.is_dir():
            raise click.BadParameter(f"{value!r} is a folder. Name a file of rows.")
        found.append(Named(said["name"] if said else file.stem, file, said is not None))
    return tuple(found)


def _by_name(kind: Callable[[str], Any], right: str) -> Callable[..., dict[str, Any]]:
    """NAME=VALUE of an option that may be repeated."""

    def read(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for value in values:
            name, _equals, said = value.rpartition("=")
            try:
                if not name:
                    raise ValueError
                found[name] = kind(said)
            except (ValueError, OverflowError):
                raise click.BadParameter(f"{value!r}: write {right}.") from None
        return found

    return read


def _weight(said: str) -> float:
    weight = float(said)
    if not 0 < weight <= 1000:  # the recipe's own bounds; not a number is neither
        raise ValueError
    return weight


def _cap(said: str) -> int:
    cap = int(said)
    if not 1 <= cap <= 10**9:
        raise ValueError
    return cap


def _columns(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """NAME:role=column, or role=column for every source that has none of its own (under the empty name)."""
    found: dict[str, dict[str, str]] = {}
    for value in values:
        before, equals, _after = value.partition("=")
        name, colon, _role = before.rpartition(":")
        for pair in value[len(name) + 1 if colon else 0 :].split(","):
            role, equals, column = pair.partition("=")
            if not equals:
                raise click.BadParameter(f"{value!r}: write shop:instruction=question, or instruction=question.")
            found.setdefault(name, {})[role.strip()] = column.strip()
    return found


@click.command(
    short_help="Make one file of several, by weights and caps.",
    epilog="Example: loragate datasets mix shop.csv faq=a/train.jsonl --weight shop=2 --cap faq=5000 --to mixed.jsonl",
)
@click.argument("sources", metavar="[NAME=]FILE...", nargs=-1, required=True, callback=_named)
@click.option(
    "--weight",
    "weights",
    multiple=True,
    metavar="NAME=NUMBER",
    callback=_by_name(_weight, "NAME=NUMBER, the number above 0 and at most 1000"),
    help="How often each row is taken; 0.5: half of the rows. [default: 1]",
)
@click.option(
    "--cap",
    "caps",
    multiple=True,
    metavar="NAME=ROWS",
    callback=_by_name(_cap, "NAME=ROWS, the rows a whole number from 1"),
    help="The most rows of all files of that name.",
)
@click.option("--rows", type=click.IntRange(1), help="The most rows in all; each source gives its share.")
@click.option("--seed", type=click.IntRange(0), default=42, show_default=True, help="Another seed takes other rows.")
@click.option("--to", "to", type=FILE, required=True, help="The file to write: JSONL, in OpenAI's form.")
@click.option(
    "--columns", callback=_columns, multiple=True, metavar="[NAME:]ROLE=COLUMN", help="E.g. shop:instruction=Question."
)
@click.option(
    "--form", "forms", multiple=True, callback=_by_name(str, "NAME=FORM"), metavar="NAME=FORM", help="E.g. shop=qa."
)
@click.option("--base", help="Folder of the base, to leave out rows that its template refuses; `demo`: the demo's.")
@click.option(
    "--max-dropped", type=click.FloatRange(0, 1), default=0.05, show_default=True, help="Share of a file's rows."
)
@click.option("--force", is_flag=True, help="Write over what is there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def mix(
    sources: tuple[Named, ...],
    weights: Mapping[str, float],
    caps: Mapping[str, int],
    rows: int | None,
    seed: int,
    to: Path,
    columns: Mapping[str, Mapping[str, str]],
    forms: Mapping[str, str],
    base: str | None,
    max_dropped: float,
    force: bool,
    as_json: bool,
) -> None:
    """Take rows of each FILE, as often as its weight says and as many as its cap allows, into one file.

    A FILE is known by its name without the ending, or by the NAME before it; files of one NAME are one type of rows,
    under one cap. The rows are those that a recipe with these weights, caps and seed would train on. Each row tells
    its source; what cannot be trained on is left out, with its number and the reason.
    """
    from training.data.mixture import look, mix
    from training.data.target import check_target

    left_out = to.with_name(f"{to.stem}.removed.jsonl")
    _known(sources, {"--weight": weights, "--cap": caps, "--form": forms, "--columns": set(columns) - {""}})
    check_target(to, [each.file for each in sources], force=force, beside=(left_out,))
    opened = [_opened(each, weights, caps, columns, forms) for each in sources]
    with bar() as shown:
        parts = look(opened, tokens=tokenizer(base), max_dropped=max_dropped, most=rows, on_progress=shown.show)
        written = mix(parts, to, left_out, seed=seed, on_progress=shown.show)
    dropped = sum(len(part.report.dropped) for part in parts)
    if as_json:
        made = {"object": "dataset.mixture", "file": str(to), "rows": written, "seed": seed}
        beside = {"removed": dropped, "removed_file": str(left_out) if dropped else None}
        output.document({**made, **beside, "sources": [part.document(written) for part in parts]})
    else:
        _show(parts, written, to, left_out if dropped else None)


def _known(sources: tuple[Named, ...], said: Mapping[str, Any]) -> None:
    """Every name that an option has is one of a source, and no two files have one by accident."""
    names = [each.name for each in sources]
    for option, given in said.items():
        unknown = next((name for name in given if name not in names), None)
        if unknown is not None:
            raise click.UsageError(
                f"{option} names {unknown!r}, and the sources are {', '.join(dict.fromkeys(names))}."
            )
    files = [each.file.resolve() for each in sources]
    twice = next((each for place, each in enumerate(sources) if files[place] in files[:place]), None)
    if twice is not None:
        raise click.UsageError(f"{twice.file} is named twice. Name it once, and give it a --weight.")
    alike = next((each for each in sources if not each.said and names.count(each.name) > 1), None)
    if alike is not None:
        raise click.UsageError(
            f"Several files would be called {alike.name!r}. Give each a name, such as old={alike.file}, or one name "
            "to all if they are one type of rows."
        )


def _opened(
    each: Named,
    weights: Mapping[str, float],
    caps: Mapping[str, int],
    columns: Mapping[str, Mapping[str, str]],
    forms: Mapping[str, str],
) -> Source:
    from training.data.mixture import Source
    from training.data.reading import open_data

    own = columns.get(each.name, columns.get("", {}))
    data = open_data(each.file, columns=own, form=forms.get(each.name))
    return Source(each.name, data, weights.get(each.name, 1.0), caps.get(each.name))


def _show(parts: tuple[Part, ...], written: int, to: Path, left_out: Path | None) -> None:
    rows = [
        (
            part.source.name,
            part.source.data.path,
            f"{part.report.rows_in:,}",
            f"{part.report.rows_kept:,}",
            f"{part.wanted:,}",
            f"{part.wanted / written:.1%}",
        )
        for part in parts
    ]
    output.table(("SOURCE", "FILE", "ROWS", "GOOD", "TAKEN", "SHARE"), rows)
    click.echo(f"{output.text(to)}: {written:,} rows")
    for part in parts:
        errors = [each for each in part.report.findings if each.level == "error" and each.row is not None]
        for each in errors[:SHOWN]:
            click.echo(f"{part.source.name} row {each.row} is left out: {output.text(each.message)}", err=True)
    if left_out is not None:
        click.echo(f"{output.text(left_out)}: every row that was left out, and why", err=True)
