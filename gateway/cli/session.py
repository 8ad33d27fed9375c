"""What every client command has: --json, --data-dir, --admin-url, and one place where answers are shown.

With --json stdout carries exactly one document, also when the gateway refuses; all else goes to stderr.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Concatenate, ParamSpec

import click

from gateway.cli import output
from gateway.cli.client import AdminClient, Refused, Streamed, find

P = ParamSpec("P")


class Session:
    """One run of one command."""

    def __init__(self, client: AdminClient, as_json: bool, data_dir: Path | None = None) -> None:
        self._client = client
        self.as_json = as_json
        self.data_dir = data_dir  # as the flag says

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        content: Streamed | None = None,
        query: Mapping[str, Any] | None = None,
        timeout_s: float = 60.0,
    ) -> dict[str, Any]:
        """Ask the admin API; Refused and Unreachable end the command."""
        return self._client.call(method, path, body=body, content=content, query=query, timeout_s=timeout_s)

    def download(self, path: str, sink: BinaryIO, on_bytes: Callable[[int, int], None]) -> None:
        """A file of the admin API into `sink`; Refused and Unreachable end the command."""
        self._client.download(path, sink, on_bytes)

    @property
    def host(self) -> str | None:
        """The gateway's machine."""
        return self._client.host

    def show(self, document: dict[str, Any], for_people: Callable[[dict[str, Any]], None]) -> None:
        """The one document of --json, or what people read."""
        if self.as_json:
            output.document(document)
        else:
            for_people(document)


def session(command: Callable[Concatenate[Session, P], None]) -> Callable[P, None]:
    """Give a command its options and, as first argument, its Session."""

    @click.option("--json", "as_json", is_flag=True, help="Print the admin API's answer as one JSON document.")
    @click.option("--data-dir", type=click.Path(path_type=Path), help="Where the gateway keeps admin.key.")
    @click.option("--admin-url", help="Where the admin API is; else LORAGATE_ADMIN_URL, else this machine's.")
    @functools.wraps(command)
    def run(as_json: bool, data_dir: Path | None, admin_url: str | None, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            client = AdminClient(find(os.environ, data_dir, admin_url))
            command(Session(client, as_json, data_dir), *args, **kwargs)
        except Refused as refusal:
            if as_json:
                output.document(refusal.document)
            raise

    return run  # type: ignore[return-value]  # click calls it by keyword with the three options added
