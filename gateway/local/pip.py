"""One `pip install` as a child, watched: how many packages, how many bytes, and what a failure means.

The user's own pip configuration is used as it is; nothing here names an index unless it is told to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adapters.errors import ServiceError, StorageFull
from gateway.local.errors import CannotStart, PackagesMissing
from gateway.local.process import Outcome, run

# Settings that would put packages elsewhere than into the environment, or change how Python itself starts.
FOREIGN = ("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_REQUIRE_HASHES", "PYTHONPATH", "PYTHONHOME")
_MISSING = re.compile(r"No matching distribution found for ([\w.+\-\[\]]+(?:[=<>!~]=?[\w.+*]+)?)")
_SIZE = re.compile(r"\(([\d.]+) (bytes|kB|MB|GB)\)")
_UNITS = {"bytes": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}
_OFFLINE = re.compile(
    r"NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError|Max retries"
)
_CREDENTIALS = re.compile(r"(https?://)[^/@\s]+@")


@dataclass(slots=True)
class Watch:
    """Counts from pip's own lines; the installed count from the folders that appear while pip is silent."""

    packages: Path
    collected: int = 0
    ignored: int = 0  # requirements whose marker leaves this machine out
    bytes: float = 0.0
    installing: bool = False
    before: int = field(default=0)

    def line(self, line: str) -> None:
        if line.startswith(("Collecting ", "Requirement already satisfied")):
            self.collected += 1
        elif line.lstrip().startswith("Downloading ") and (size := _SIZE.search(line)):
            self.bytes += float(size[1]) * _UNITS[size[2]]
        elif line.startswith("Ignoring "):
            self.ignored += 1
        elif line.startswith("Installing collected packages"):
            self.installing = True

    def installed(self) -> int:
        return sum(1 for _ in self.packages.glob("*.dist-info")) - self.before


def watch(environment: Path) -> Watch:
    """Count from what a fresh environment holds already (pip itself)."""
    counts = Watch(next(environment.glob("lib/python*/site-packages")))
    counts.before = counts.installed()
    return counts


def child_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """The user's environment for pip: proxies, certificates and indexes stay; what leads astray does not."""
    kept = {name: value for name, value in environ.items() if name not in FOREIGN and not name.startswith("LORAGATE_")}
    return {
        **kept,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        "PIP_NO_COLOR": "1",
        "PYTHONUNBUFFERED": "1",
    }


async def install(
    python: Path,
    requirements: Sequence[str],
    *,
    environ: Mapping[str, str],
    index: str | None = None,
    on_line: Callable[[str], None] | None = None,
) -> Outcome:
    """`pip install --no-deps` of exactly these; `index` is asked beside the configured ones."""
    argv = [str(python), "-m", "pip", "install", "--no-deps", "--progress-bar", "off", *requirements]
    if index is not None:
        argv += ["--extra-index-url", index]
    return await run(argv, env=child_environ(environ), on_line=on_line)


def missing(outcome: Outcome) -> str | None:
    """The requirement that no index had, when that is why pip failed."""
    found = _MISSING.search(outcome.text)
    return found[1] if found else None


def failure(outcome: Outcome, title: str) -> ServiceError:
    """Why pip failed, for a person: no space, no network, no such package here, or pip's own last error."""
    text = _CREDENTIALS.sub(r"\1***@", outcome.text)
    if "No space left on device" in text or "Errno 28" in text:
        return StorageFull(f"The disk filled up while {title} was being installed. Free some space and start again.")
    if _OFFLINE.search(text):
        return PackagesMissing(
            f"{title} could not be installed: pip does not reach its package index. Check the network, the proxy "
            "(HTTPS_PROXY), or name an index that is reachable with PIP_INDEX_URL, then start again."
        )
    if (name := missing(outcome)) is not None:
        return PackagesMissing(
            f"{title} could not be installed: no index that pip is configured with has {name} for this Python and "
            "platform. Name one that has it with PIP_EXTRA_INDEX_URL or a folder of wheels with PIP_FIND_LINKS, or "
            "name an environment of your own (see loragate up --help)."
        )
    errors = [line for line in text.splitlines() if line.startswith(("ERROR", "error"))]
    last = (errors or text.splitlines() or ["no output"])[-1].removeprefix("ERROR:").strip()
    return CannotStart(f"{title} could not be installed, pip says: {last[:300]} Correct that and start again.")
