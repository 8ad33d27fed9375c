"""The package indexes that pip is configured with, and whether they answer. Credentials in a URL are never shown."""

from __future__ import annotations

import re
import ssl
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import httpx

TIMEOUT_S = 5.0
_DEFAULT = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
_SETTING = re.compile(r"^[^.]+\.\.?(?P<name>[\w-]+)='(?P<value>.*)'$")


@dataclass(frozen=True, slots=True)
class Index:
    """One place that pip looks at. `problem` is empty when it answers."""

    shown: str
    problem: str


def configured(environ: Mapping[str, str]) -> tuple[list[str], str | None]:
    """Indexes and find-links folders in pip's order, and its certificate file. Empty when pip cannot be asked."""
    settings: dict[str, str] = {}
    for line in _ask(["-m", "pip", "config", "list"], environ):  # the environment's lines come first and win
        found = _SETTING.match(line)
        if found:
            settings.setdefault(found["name"], found["value"].replace("\\n", " "))
    places = settings.get("index-url", "").split()
    if not places and settings.get("no-index", "false").lower() not in ("1", "true", "yes", "on"):
        places = _ask(["-c", _DEFAULT], environ)[:1]
    places += settings.get("extra-index-url", "").split() + settings.get("find-links", "").split()
    return list(dict.fromkeys(places)), settings.get("cert")


def check(environ: Mapping[str, str]) -> list[Index]:
    """Ask each configured place once, five seconds at most each."""
    places, certificate = configured(environ)
    try:
        context = ssl.create_default_context(cafile=certificate or None)
    except OSError:
        context = ssl.create_default_context()
    with httpx.Client(verify=context, timeout=TIMEOUT_S, follow_redirects=True) as client:
        return [Index(redacted(place), _problem(client, place)) for place in places]


def redacted(url: str) -> str:
    """The address without user name and password."""
    parts = urlsplit(url)
    if parts.username is None and parts.password is None:
        return url
    return urlunsplit(parts._replace(netloc=f"***@{parts.netloc.rpartition('@')[2]}"))


def _problem(client: httpx.Client, place: str) -> str:
    if not place.startswith(("http://", "https://")):
        folder = Path(urlsplit(place).path if place.startswith("file:") else place)
        return "" if folder.exists() else "there is no such folder"
    try:
        # One small page every index has: the list of all packages can be tens of megabytes.
        status = client.head(f"{place.rstrip('/')}/pip/").status_code
    except httpx.HTTPError as exc:
        return type(exc).__name__
    # 404 and 405 are answers too: a small index without pip, or one that knows no HEAD.
    return "" if status < 400 or status in (404, 405) else f"HTTP {status}"


def _ask(arguments: list[str], environ: Mapping[str, str]) -> list[str]:
    try:
        answer = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, timeout=30, check=False, env=dict(environ)
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return answer.stdout.splitlines() if answer.returncode == 0 else []
