"""How a SOURCE gets to the gateway: as a path or URL that the gateway opens itself, or sent from here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adapters.errors import AdapterRejected
from adapters.sources.source import is_loopback
from adapters.verdict import findings_of
from gateway.cli.client import Refused
from gateway.cli.packing import form
from gateway.cli.progress import bar, watched
from gateway.cli.session import Session

CHECK = "/check"  # where nothing is stored or loaded
FETCH_TIMEOUT_S = 6 * 3600.0  # of the whole: the gateway gives up on a source that stands still
ANSWER_TIMEOUT_S = 1800.0  # unpacking, checking and loading gigabytes of weights into several engines


def send(gateway: Session, path: str, source: str, fields: Mapping[str, Any], *, upload: bool) -> dict[str, Any]:
    """POST `source` with `fields` to `path`; the gateway's answer. Refused, Unreachable.

    What is on this machine is sent along where the gateway is on another one, or where `upload` says so.
    """
    if "://" in source:
        if upload:
            raise Refused("--upload sends what is on this machine. Leave it out for a URL: the gateway fetches it.")
        return _told(gateway, path, source, fields)
    # os.path, which answers False where Path.exists raises: a name too long, a folder that only the gateway may enter.
    here = Path(os.path.expanduser(source))
    exists = os.path.exists(here)
    if upload or (exists and not is_loopback(gateway.host)):
        if not exists:
            raise Refused(f"There is no folder or archive {source} here.")
        return _sent(gateway, path, here.absolute(), fields)
    if not exists and not here.is_absolute():
        raise Refused(
            f"There is no folder {source} here. Name a folder, or give its whole path on the gateway's machine."
        )
    return _told(gateway, path, str(here.absolute()), fields)


def _told(gateway: Session, path: str, source: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    with (
        bar(loads=not path.endswith(CHECK)) as shown,
        watched(lambda: gateway.call("GET", "/admin/v1/intakes"), fields.get("name"), shown),
    ):
        return gateway.call("POST", path, body={"source": source, **fields}, timeout_s=FETCH_TIMEOUT_S)


def _sent(gateway: Session, path: str, here: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    texts = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in fields.items()}
    with bar(loads=not path.endswith(CHECK)) as shown:
        done, total = 0, 1

        def sent(count: int) -> None:
            nonlocal done
            done += count
            if done < total:
                shown.show("receiving", done, total)
            else:
                shown.show("checking", 0, None)

        try:
            with form(here, texts, sent) as content:
                total = content.length
                return gateway.call("POST", path, content=content, timeout_s=ANSWER_TIMEOUT_S)
        except AdapterRejected as error:
            raise Refused(error.message, _refusal(error, path)) from None


def _refusal(error: AdapterRejected, path: str) -> dict[str, Any]:
    """What the gateway would answer there."""
    told = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    if not path.endswith(CHECK):
        return {"error": told}
    return {"error": told, "ok": False, "findings": [asdict(each) for each in findings_of(error)]}
