"""An environment of its own for each peer, made once from pins under the cache directory.

Knows pip and venv; knows nothing of how a peer is started. Index settings are the user's own (pip's configuration).
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

PINS = Path(__file__).with_name("environments")


class NoEnvironment(Exception):
    """An environment could not be made; the message carries pip's last line."""


def environment(name: str, cache: Path) -> Path:
    """The bin directory of the environment pinned by environments/<name>.txt, made if missing. Raises NoEnvironment."""
    pins = PINS / f"{name}.txt"
    digest = hashlib.sha256(pins.read_bytes() + sys.version.encode()).hexdigest()[:10]
    home = cache / f"{name}-{digest}"
    if not (home / ".complete").exists():
        print(
            f"Making the environment of {name} (once; LiteLLM's takes about a minute and 700 MB) ...", file=sys.stderr
        )
        shutil.rmtree(home, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(home)], name)
        _run([str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--requirement", str(pins)], name)
        (home / ".complete").touch()
    return home / "bin"


def _run(command: list[str], name: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        raise NoEnvironment(f"The environment of {name} could not be made: {said[-1]}")
