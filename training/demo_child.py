"""One child process of the demo's rebuild: started apart, logged to a file, its progress read, never left behind.

Knows nothing of what the child does; progress is any JSON line with the steps done and the steps in all.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapters.errors import ServiceError

POLL_S = 0.25
GRACE_S = 10.0


class DemoFailed(ServiceError):
    """A child process of the rebuild ended badly; the message carries its last words."""

    code = "demo_failed"


@dataclass(frozen=True, slots=True)
class Child:
    """Runs commands in `folder` with exactly `environment`; `show(done, in_all)` is called as steps are finished."""

    folder: Path
    environment: Mapping[str, str]
    show: Callable[[int, int], None]

    def run(self, argv: Sequence[str], progress: Path | None = None) -> None:
        """Wait for the command. `progress`: the file with its JSON lines, by default its own output.

        Raises DemoFailed where the exit code is not 0. The child's whole group is ended when we are interrupted.
        """
        log = self.folder / "run.log"
        # Output goes to a file: a pipe that nobody drains stops the trainer when it is full.
        with (
            log.open("wb") as output,
            subprocess.Popen(
                argv,
                cwd=self.folder,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            ) as process,
        ):
            try:
                self._watch(process, progress or log)
            finally:
                end_group(process)
        if process.returncode != 0:
            raise DemoFailed(
                f"{Path(argv[0]).name} ended with exit code {process.returncode}. Its last words: {last_words(log)}"
            )

    def _watch(self, process: subprocess.Popen[bytes], progress: Path) -> None:
        seen = (0, 0)
        running = True
        while running:
            try:
                process.wait(POLL_S)
                running = False
            except subprocess.TimeoutExpired:
                pass
            steps = last_steps(progress)
            if steps != seen:
                seen = steps
                self.show(*steps)


def last_steps(file: Path) -> tuple[int, int]:
    """(done, in all) of the last whole JSON line that says so; (0, 0) where there is none yet."""
    if not file.exists():
        return 0, 0
    whole, _, _ = file.read_text(encoding="utf-8", errors="replace").rpartition("\n")
    for line in reversed(whole.splitlines()):
        if not line.startswith("{"):
            continue
        try:
            fields = json.loads(line)
        except ValueError:
            continue
        done, in_all = fields.get("step", fields.get("current_steps")), fields.get("steps", fields.get("total_steps"))
        if isinstance(done, int) and isinstance(in_all, int):
            return done, in_all
    return 0, 0


def last_words(log: Path) -> str:
    """The last line with text in it, at most 300 characters."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "(nothing)")


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End the child and all that it started; nothing happens where it is gone already."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
