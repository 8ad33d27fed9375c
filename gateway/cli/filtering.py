"""`loragate datasets filter`: rows that are not good enough go, and are kept beside it. Words and files only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.cli import output
from gateway.cli.datafile import FILE, Described, described, say
from gateway.cli.progress import bar

if TYPE_CHECKING:
    from training.data.filtering import Filtered

LENGTH = click.IntRange(0)


@click.command(
    "filter",
    short_help="Remove rows by quality, length, language or content.",
    epilog="Example: loragate datasets filter chats.jsonl --min-quality 0.6 --language en --language zh "
    "--drop duplicate --to good.jsonl",
)
@described
@click.option("--min-quality", type=click.FloatRange(0, 1), help="The least score (docs/datasets.md).")
@click.option("--ignore", multiple=True, metavar="SIGN", help="Of quality, e.g. refusal; repeatable.")
@click.option("--min-row", type=LENGTH, metavar="N", help="The least length of a row: characters, with --base tokens.")
@click.option("--max-row", type=LENGTH, metavar="N", help="The greatest length of a row.")
@click.option("--min-answer", type=LENGTH, metavar="N", help="The least length of what is learned from a row.")
@click.option("--max-answer", type=LENGTH, metavar="N", help="The greatest length of what is learned.")
@click.option("--language", "languages", multiple=True, metavar="CODE", help="Keep only these, such as en; repeatable.")
@click.option("--drop", multiple=True, metavar="WARNING", help="Remove rows with it, e.g. duplicate; repeatable.")
@click.option("--near-rows", type=click.IntRange(0), default=50_000, show_default=True, help="Compared; 4 kB each.")
@click.option("--to", "to", type=FILE, help="The file to write: JSONL, in OpenAI's form.")
@click.option("--dry-run", is_flag=True, help="Only say how many rows would go, and why.")
@click.option("--force", is_flag=True, help="Write over what is there.")
def filter_(about: dict[str, Any], to: Path | None, dry_run: bool, force: bool, **said: Any) -> None:
    """Write the rows of FILE that are within all limits to one file, and those that go to another one beside it.

    Rows that go are in NAME.removed.jsonl, each with its number and every reason, and can be read as data again. Rows
    that could not be trained on go as well. A row whose language cannot be told stays.
    """
    from training.data.filtering import Limits, filtered
    from training.data.target import check_target

    told = Described(**about)
    if dry_run == (to is not None):
        raise click.UsageError("Say where the rows go with --to FILE, or --dry-run to write nothing.")
    limits = Limits(
        **{name: said[name] for name in ("min_quality", "min_row", "max_row", "min_answer", "max_answer", "near_rows")},
        languages=frozenset(each.strip().lower() for each in said["languages"]),
        drop=frozenset(said["drop"]),
        ignored=frozenset(said["ignore"]),
    )
    if "control_token" in limits.drop and told.base is None:
        raise click.UsageError("Control tokens are a base's own: name the base with --base FOLDER.")
    removed = None if to is None else to.with_name(f"{to.stem}.removed.jsonl")
    if to is not None and removed is not None:
        check_target(to, [told.file], force=force, beside=(removed,))
    data = told.open(told.file)
    with bar() as shown:
        found = filtered(
            data,
            limits,
            tokens=told.tokenizer(),
            to=to,
            removed=removed,
            on_progress=lambda done, total: shown.show(f"Filtering {data.path.name}", done, total),
        )
    files = {"file": None if to is None else str(to), "removed_file": str(removed) if to and found.removed else None}
    if told.as_json:
        output.document({"object": "dataset.filtered", "source": str(told.file), **files, **found.document()})
    else:
        say(_text(found, dry_run))
        for name, rows in ((files["file"], found.kept), (files["removed_file"], found.removed)):
            if name is not None:
                click.echo(f"{output.text(name)}: {rows:,} rows")


def _text(found: Filtered, dry_run: bool) -> str:
    would = "would be " if dry_run else ""
    lines = [f"Rows: {found.rows_in:,} read, {found.kept:,} {would}kept, {found.removed:,} {would}removed"]
    for kind, rows in found.reasons.most_common():
        lines.append(f"{kind}: {rows:,} rows")
        lines += [f"    row {number}: {message}" for number, message in found.first[kind]]
    if found.unused:
        lines.append(f"Columns that are not read, and not written: {', '.join(found.unused[:12])}")
    if found.unsure:
        lines.append(f"{found.unsure:,} rows are too short to tell their language, and stay")
    if found.scores:
        spread = ", ".join(f"{tenth / 10:.1f}: {found.scores[tenth]:,}" for tenth in sorted(found.scores))
        lines.append(f"Scores (from → rows): {spread}")
    return "\n".join(lines)
