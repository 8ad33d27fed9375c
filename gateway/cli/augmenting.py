"""`loragate datasets augment`: rows made from rows by another model. Words and keys; the rest: training/augment.

A key comes from a file or the environment, so that it stands in no shell history and in no list of processes.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from adapters.errors import InvalidRequest
from gateway.cli import output
from gateway.cli.client import Refused, Unreachable
from gateway.cli.counting import counting
from gateway.cli.datafile import FILE, mapping
from gateway.cli.inference import inference_key, plain_key, public_url
from gateway.cli.progress import bar
from gateway.cli.session import Session, session

if TYPE_CHECKING:
    from training.augment.judging import Judge
    from training.augment.making import Manner
    from training.augment.run import Augmented, Surveyed, Wanted
    from training.data.reading import Data

HOWS = ("paraphrase", "back-translation", "more-like-this")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where models are asked. who: how messages name the key."""

    url: str
    key: str = field(repr=False)
    who: str

    @property
    def inside(self) -> bool:
        """Of this machine or a private network, where http is as good as it gets; or nothing secret is sent."""
        if not self.url.startswith("http:"):
            return False
        try:
            return not self.key or ipaddress.ip_address(urlsplit(self.url).hostname or "").is_private
        except ValueError:
            return False


@click.command(
    short_help="Make more rows from rows, by another model.",
    epilog="Example: loragate datasets augment shop.csv --how paraphrase --model Qwen3-4B --count 2 --to made.jsonl",
)
@click.argument("file", type=FILE)
@click.option("--how", type=click.Choice(HOWS), required=True, help="In other words, by a detour, or new ones.")
@click.option("--model", required=True, help="A model of the endpoint.")
@click.option("--to", "to", type=FILE, required=True, help="The file of made rows; run again, it goes on.")
@click.option("--endpoint", metavar="URL", help="Any OpenAI-compatible API, with /v1. [default: this gateway]")
@click.option("--key-file", type=FILE, help="File that has the endpoint's key.")
@click.option("--key-env", metavar="NAME", help="Environment variable that has it.")
@click.option("--share", type=click.FloatRange(0, 1, min_open=True), default=1.0, help="Of the rows. [default: all]")
@click.option("--rows", type=click.IntRange(1), help="Of at most so many rows.")
@click.option("--count", type=click.IntRange(1, 20), default=1, show_default=True, help="Made of each row.")
@click.option("--via", metavar="CODE", help="Language of the detour. [default: en; de where the data are English]")
@click.option("--max-requests", type=click.IntRange(1), help="Of this run; run again to go on.")
@click.option("--max-tokens", type=click.IntRange(16, 131_072), default=1024, show_default=True, help="Of one answer.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="[default: 0.5 to 0.9, as --how needs it]")
@click.option("--at-once", type=click.IntRange(1, 64), default=4, show_default=True, help="Requests at once.")
@click.option(
    "--seed", type=click.IntRange(0, 2**31), default=42, show_default=True, help="Another one takes other rows."
)
@click.option("--near-rows", type=click.IntRange(0), default=50_000, show_default=True, help="Compared; 4 kB each.")
@click.option("--columns", callback=mapping, multiple=True, help="role=column, e.g. instruction=question.")
@click.option("--form", help="The form of FILE. [default: guessed]")
@click.option("--dry-run", is_flag=True, help="Only say how many requests it would be.")
@session
def augment(gateway: Session, /, file: Path, to: Path, columns: dict[str, str], form: str | None, **said: Any) -> None:
    """Make rows from the rows of FILE, and write them to a file of their own, each with its parent.

    paraphrase asks the same in other words; back-translation too, by way of another language; the answers stay what
    they are. more-like-this makes up new questions with answers: look at them before you train on them. What is no
    good is in NAME.refused.jsonl, each with the reason. Without --endpoint, this gateway's model is asked, with the
    key in LORAGATE_API_KEY, else one that is made for it.
    """
    from training.augment.judging import Judge
    from training.augment.making import REQUESTS, Manner
    from training.augment.run import Wanted, survey
    from training.data.reading import open_data
    from training.data.target import check_target

    refused = to.with_name(f"{to.stem}.refused.jsonl")
    check_target(to, [file], force=True, beside=(refused,))
    via = _via(said["how"], said["via"])
    _one_key(said)
    data = open_data(file, columns=columns, form=form)
    wanted = Wanted(said["share"], said["rows"], said["count"], said["seed"], said["max_tokens"])
    judge = None if said["dry_run"] else Judge(said["near_rows"])
    with bar() as shown:
        surveyed = survey(data, said["how"], wanted, judge, shown.show)
    if via is not None:
        via = via or ("de" if surveyed.home == "en" else "en")
    manner = Manner(said["how"], said["model"], via or "", surveyed.home)
    jobs = surveyed.parents * wanted.count
    _estimate(surveyed, jobs, jobs * REQUESTS[manner.how])
    about: dict[str, Any] = {"object": "dataset.augmented", "how": manner.how, "model": manner.model, "via": via}
    about |= {
        "source": str(file),
        "rows_in": surveyed.rows_in,
        "fit": surveyed.rows,
        "parents": surveyed.parents,
        "unfit": dict(surveyed.left),
    }
    if judge is None:
        gateway.show({**about, "jobs": jobs, "requests": jobs * REQUESTS[manner.how]}, lambda _: None)
        return
    found = _run(gateway, data, (to, refused), manner, wanted, surveyed, judge, said)
    files = {"file": str(to) if found.rows else None, "refused_file": str(refused) if refused.exists() else None}
    gateway.show({**about, **files, **found.document()}, lambda _: _show(found, to, refused))
    _end(found, to)


def _run(
    gateway: Session,
    data: Data,
    files: tuple[Path, Path],
    manner: Manner,
    wanted: Wanted,
    surveyed: Surveyed,
    judge: Judge,
    said: dict[str, Any],
) -> Augmented:
    from training.augment.journal import Journal
    from training.migrate.remote import RemoteRefused

    with Journal(*files, manner) as journal, _endpoint(gateway, said) as at:
        try:
            return asyncio.run(_augmented(at, data, journal, manner, wanted, surveyed, judge, said))
        except RemoteRefused as error:
            if error.answered is None:
                raise Unreachable(error.message, code="endpoint_unreachable") from None
            raise
        except KeyboardInterrupt:
            raise Refused(f"Stopped. {_kept(files[0])}", code="interrupted") from None


async def _augmented(
    at: Endpoint,
    data: Data,
    journal: Any,
    manner: Manner,
    wanted: Wanted,
    surveyed: Surveyed,
    judge: Judge,
    said: dict[str, Any],
) -> Augmented:
    from training.augment.asking import Asker
    from training.augment.run import Augmenting, jobs
    from training.migrate.remote import open_remote

    with counting(f"Asking {manner.model}") as done:
        async with open_remote(at.url, at.key, who=at.who, inside=at.inside) as remote:
            asker = Asker(
                remote,
                manner.model,
                most_tokens=said["max_tokens"],
                seed=wanted.seed,
                temperature=said["temperature"],
                most_requests=said["max_requests"],
            )
            augmenting = Augmenting(asker, manner, journal, judge, surveyed.parents * wanted.count)
            _stop_on_interrupt(augmenting.stop)
            todo = jobs(data, manner.how, wanted, surveyed)
            found = await augmenting.run(todo, said["at_once"], done)
    journal.order()
    return found


def _stop_on_interrupt(stop: Any) -> None:
    """The first Ctrl-C waits for what is asked already, and paid for; the second does not."""
    loop = asyncio.get_running_loop()

    def first() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        click.echo("Stopping when what was asked is answered. Ctrl-C again to stop at once.", err=True)
        stop()

    with suppress(
        NotImplementedError, RuntimeError, ValueError
    ):  # another system, or another thread: Ctrl-C ends it at once
        loop.add_signal_handler(signal.SIGINT, first)


@contextmanager
def _endpoint(gateway: Session, said: dict[str, Any]) -> Iterator[Endpoint]:
    url = said["endpoint"]
    if url is None:
        with inference_key(gateway, "loragate datasets augment", said["model"]) as key:
            yield Endpoint(public_url(gateway), key, "this key")
        return
    _no_secret(url)
    name, key = said["key_env"], ""
    who = "a request without a key: name one with --key-file or --key-env"
    if name is not None:
        key, who = os.environ.get(name, ""), f"the key in {name}"
        if not key.strip():
            raise InvalidRequest(f"There is nothing in the environment variable {name}. Set it to the endpoint's key.")
    elif said["key_file"] is not None:
        file = said["key_file"]
        try:
            key, who = file.read_text(encoding="utf-8").strip(), f"the key in {file}"
        except (OSError, UnicodeDecodeError) as exc:
            raise InvalidRequest(
                f"{file} cannot be read: {getattr(exc, 'strerror', None) or 'it is not text'}."
            ) from None
        if not key:
            raise InvalidRequest(f"{file} is empty. Put the endpoint's key into it.")
    yield Endpoint(url, plain_key(key, who.removeprefix("the key in ")), who)


def _no_secret(url: str) -> None:
    """An address is shown in messages, so it must hold nothing that is not to be shown."""
    try:
        parts = urlsplit(url)
        secret = parts.username is not None or parts.password is not None
    except ValueError:
        return  # no address: said later
    if secret or parts.query or parts.fragment:
        raise InvalidRequest(
            "The endpoint is an address alone, such as https://host/v1: without a name, a password, ? or #. A key "
            "comes from --key-file or --key-env."
        )


def _one_key(said: dict[str, Any]) -> None:
    if said["key_file"] is not None and said["key_env"] is not None:
        raise click.UsageError("Name one of --key-file and --key-env.")
    if said["endpoint"] is None and (said["key_file"] is not None or said["key_env"] is not None):
        raise click.UsageError("That key is for which service? Name it with --endpoint.")


def _via(how: str, code: str | None) -> str | None:
    """The detour that is asked for, "" for the usual one; None where there is no detour."""
    from training.augment.making import NAMES

    if how != "back-translation":
        if code is not None:
            raise click.UsageError("--via is for --how back-translation.")
        return None
    if code is not None and code not in NAMES:
        raise click.UsageError(f"There is no language {code!r} here. There are: {', '.join(NAMES)}.")
    return code or ""


def _estimate(surveyed: Surveyed, jobs: int, requests: int) -> None:
    click.echo(
        f"{surveyed.rows:,} of {surveyed.rows_in:,} rows can be used; {jobs:,} rows to make of {surveyed.parents:,}, "
        f"at most {requests:,} requests.",
        err=True,
    )
    for why, rows in surveyed.left.most_common():
        click.echo(f"Not used: {rows:,} rows; each {why}.", err=True)


def _show(found: Augmented, to: Path, refused: Path) -> None:
    from training.augment.judging import REASONS

    if found.rows:
        click.echo(f"{output.text(to)}: {found.rows:,} rows; {found.made:,} are new")
    if found.refused:
        click.echo(f"{output.text(refused)}: {sum(found.refused.values()):,} more are no good:")
    for kind, count in found.refused.most_common():
        click.echo(f"    {kind}: {count:,} × {REASONS.get(kind, kind)}")
    spent = asdict(found.spent)
    tokens = f"{spent['prompt_tokens']:,} tokens in, {spent['completion_tokens']:,} out"
    click.echo(f"{spent['requests']:,} requests, {tokens}", err=True)


def _end(found: Augmented, to: Path) -> None:
    """Say what is missing; exit 1 where that is not what was asked for."""
    if found.stopped == "budget":
        click.echo(f"--max-requests is reached, and {found.left:,} are left. Run this again to go on.", err=True)
    if found.stopped == "interrupted":
        click.echo(f"Error: Stopped, and {found.left:,} are left. {_kept(to)}", err=True)
    if found.failed:
        click.echo(f"Error: {found.failed:,} could not be had: {output.text(found.problem)} Run this again.", err=True)
    if not found.rows and found.stopped is None and not found.failed:
        click.echo("Error: Nothing that was made is any good. Try another model, or another --how.", err=True)
    if found.failed or found.stopped == "interrupted" or (not found.rows and found.stopped is None):
        raise click.exceptions.Exit(1)


def _kept(to: Path) -> str:
    return f"What was made is in {to}; run the same again to go on."
