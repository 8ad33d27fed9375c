"""A job followed from a terminal: one live line there, plain lines elsewhere; and its log, as it grows.

Asks again and again, so a gateway that restarts meanwhile is found again. Must not know how a job is changed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import click

from gateway.cli import output
from gateway.cli.client import Refused, Unreachable, segment
from gateway.cli.jobs import PATH, line, state
from gateway.cli.session import Session

POLL_S = 1.0
PATIENCE_S = 120.0  # a gateway that does not answer may be restarting
PLAIN_EVERY_S = 10.0  # between two lines of figures where every line stays
FINAL = ("succeeded", "failed", "cancelled")

Document = dict[str, Any]


class Screen(Protocol):
    def say(self, text: str) -> None: ...
    def figures(self, text: str) -> None: ...


def watched(gateway: Session, job_id: str, shown: Callable[[Document], None]) -> None:
    """Until the job has ended; Refused where it did not succeed. shown: how its end is printed."""
    screen: AbstractContextManager[Screen] = _silent() if gateway.as_json else _screen()
    try:
        with screen as at:
            job = _follow(gateway, job_id, at)
    except KeyboardInterrupt:
        raise Refused(f"No longer watched. The job goes on: `loragate jobs watch {job_id}` comes back to it.") from None
    gateway.show(job, shown)
    if job["state"] == "succeeded" and job["outcome"] != "rejected":
        return
    verdict = (job["result"] or {}).get("verdict") if job["state"] == "succeeded" else None
    why = verdict or (job["error"] or {}).get("message") or f"The job was {job['state']}."
    if gateway.as_json:  # its one document is out
        click.echo(why, err=True)
        raise SystemExit(1)
    raise Refused(why)


def followed(gateway: Session, job_id: str, answer: Document) -> None:
    """The log from `answer` on, until the job has ended."""
    path = f"{PATH}/{segment(job_id)}"
    try:
        while True:
            printed(answer["text"])
            ended = not answer["text"] and _asked(gateway, path)["state"] in FINAL
            if ended:
                return
            if not answer["text"]:
                time.sleep(POLL_S)
            query = {"offset": answer["next_offset"], "bytes": 256 * 1024}
            answer = _asked(gateway, f"{path}/log", query)
    except KeyboardInterrupt:
        return


def printed(text: str) -> None:
    """What a trainer printed: its lines, and nothing that moves the cursor."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    click.echo("\n".join("".join(c for c in each if c.isprintable() or c == "\t") for each in lines), nl=False)


def _follow(gateway: Session, job_id: str, screen: Screen) -> Document:
    path, after, was = f"{PATH}/{segment(job_id)}", 0, ""
    while True:
        job = _asked(gateway, path, say=screen.say)
        page = _asked(gateway, f"{path}/events", {"after": after, "limit": 1000}, say=screen.say)
        for event in page["data"]:
            after = event["id"]
            if event["kind"] != "metrics":
                level = "" if event["level"] == "info" else f"{event['level']}: "
                screen.say(output.text(f"{level}{event['message']}"))
        now = state(job)
        if now != was:
            was = now
            screen.say(f"The job is {now}.")
        shown = line(job["progress"] or {}, job["state"] == "running")
        if shown:
            screen.figures(shown)
        if page["has_more"] or (job["state"] in FINAL and page["data"]):
            continue  # what was told last may have come behind the end
        if job["state"] in FINAL:
            return job
        time.sleep(POLL_S)


def _asked(
    gateway: Session, path: str, query: Document | None = None, *, say: Callable[[str], None] | None = None
) -> Document:
    """The answer; a gateway that is away for a while is waited for. Unreachable, Refused."""
    since: float | None = None
    while True:
        try:
            return gateway.call("GET", path, query=query)
        except Unreachable:
            now = time.monotonic()
            if since is None and say is not None:
                say("The gateway does not answer now; the job does not need it. Waiting for it.")
            since = since if since is not None else now
            if now - since > PATIENCE_S:
                raise
            time.sleep(POLL_S)


class _Plain:
    """Lines that stay: the figures only now and then."""

    def __init__(self) -> None:
        self._last = ""
        self._at = float("-inf")

    def say(self, text: str) -> None:
        click.echo(text)
        sys.stdout.flush()

    def figures(self, text: str) -> None:
        now = time.monotonic()
        if text != self._last and now - self._at >= PLAIN_EVERY_S:
            self._last, self._at = text, now
            self.say(text)


class _Live:
    """One line that changes in place, what happens above it."""

    def __init__(self, live: Any, text: Callable[[str], Any]) -> None:
        self._live = live
        self._text = text

    def say(self, text: str) -> None:
        self._live.console.print(self._text(text))

    def figures(self, text: str) -> None:
        self._live.update(self._text(text))


class _Silent:
    def say(self, text: str) -> None:
        pass

    def figures(self, text: str) -> None:
        pass


@contextmanager
def _silent() -> Iterator[Screen]:
    yield _Silent()


@contextmanager
def _screen() -> Iterator[Screen]:
    if not sys.stdout.isatty():
        yield _Plain()
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(markup=False, highlight=False, emoji=False)
    with Live(Text(""), console=console, refresh_per_second=4, transient=True) as live:
        yield _Live(live, Text)
