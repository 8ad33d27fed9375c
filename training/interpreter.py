"""The training environment as a program that is started: what it has, and child scripts that run in it.

A child gets a short list of variables (no keys, no database address), its own log, and never a shell. Must not know
what the children do.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from adapters.errors import ServiceError
from training.demo_child import Child, DemoFailed, last_words

HERE = Path(__file__).resolve().parent
KEPT = ("LANG", "TMPDIR", "SYSTEMROOT", "LD_LIBRARY_PATH", "CUDA_HOME", "OMP_NUM_THREADS", "NCCL_SOCKET_IFNAME")
FACTS_TIMEOUT_S = 300.0  # importing torch from a cold disk


class ChildFailed(ServiceError):
    """A program of the training environment ended badly; the message carries its last words."""

    code = "child_failed"


def _silent(done: int, in_all: int) -> None:
    return None


def beside_an_engine(gpus: str) -> dict[str, str]:
    """Variables of a run on the processor: one core is left to whatever serves.

    A small model's two threads on two cores, of which an engine used one, took ten times as long as one thread.
    """
    if gpus or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) - 1))}


@dataclass(slots=True)
class Interpreter:
    """python: the interpreter beside llamafactory-cli; gpus: CUDA_VISIBLE_DEVICES of what it runs, "" the processor."""

    python: Path
    gpus: str = ""
    more: Mapping[str, str] = field(default_factory=dict)  # variables beside the usual ones
    _facts: dict[str, Any] | None = None

    @property
    def llamafactory(self) -> str:
        return str(self.python.with_name("llamafactory-cli"))

    def environment(self, home: Path) -> dict[str, str]:
        """What a child sees; offline, and its caches in `home`."""
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        return kept | {
            "PATH": os.pathsep.join((str(self.python.parent), os.environ.get("PATH", os.defpath))),
            "HOME": str(home),
            "HF_HOME": str(home / "hf"),
            "HF_HUB_OFFLINE": "1",
            "PYTHONUTF8": "1",
            "CUDA_VISIBLE_DEVICES": self.gpus,
            **self.more,
        }

    def script(self, child: Path, *words: str) -> list[str]:
        """How a child script is started. `-I`: no module of its folder may shadow the child's own."""
        return [str(self.python), "-I", "-X", "utf8", str(child), *words]

    def run(
        self,
        argv: Sequence[str],
        folder: Path,
        show: Callable[[int, int], None] = _silent,
        progress: Path | None = None,
    ) -> None:
        """Wait for a child whose folder is `folder` (its log: run.log). ChildFailed.

        show: called with steps done and in all, from the JSON lines of `progress`, else of the log.
        """
        folder.mkdir(parents=True, exist_ok=True)
        try:
            Child(folder, self.environment(folder), show).run(argv, progress=progress)
        except DemoFailed as failed:
            raise ChildFailed(failed.message) from None
        except OSError as error:
            raise ChildFailed(f"{argv[0]} cannot be started: {error.strerror}.") from None

    async def answer(self, child: Path, request: Mapping[str, Any], folder: Path, timeout_s: float) -> dict[str, Any]:
        """What a child script answers to `request`, a file each in `folder`; ChildFailed.

        The child and all that it started are ended when this is cancelled.
        """
        name = child.stem.removesuffix("_child")
        asked, answered, log = (folder / f"{name}.{kind}" for kind in ("json", "answer.json", "log"))
        with _laid(asked, request, answered, log) as output:
            process = await asyncio.create_subprocess_exec(
                *self.script(child, str(asked), str(answered)),
                cwd=folder,
                env=self.environment(folder),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            async with asyncio.timeout(timeout_s):
                await process.wait()
        except TimeoutError:
            raise ChildFailed(f"it did not answer in {timeout_s:.0f} s. {log} may say why.") from None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        try:
            found: dict[str, Any] = json.loads(answered.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            words = f"it ended (exit {process.returncode}): {last_words(log)} {log} has all of it."
            raise ChildFailed(words) from None
        return found

    def facts(self) -> dict[str, Any]:
        """Python, packages, threads, instructions, GPUs; asked once. ChildFailed."""
        if self._facts is None:
            self._facts = self._ask()
        return self._facts

    def _ask(self) -> dict[str, Any]:
        argv = self.script(HERE / "interpreter_child.py")
        with tempfile.TemporaryDirectory(prefix="loragate-asked-") as home:
            try:
                done = subprocess.run(
                    argv,
                    env=self.environment(Path(home)),
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=FACTS_TIMEOUT_S,
                    check=True,
                )
                found: dict[str, Any] = json.loads(done.stdout)
            except (OSError, subprocess.SubprocessError, ValueError) as error:
                raise ChildFailed(
                    f"{self.python} does not say which packages it has ({type(error).__name__}). Name the interpreter "
                    "of an environment with LLaMA-Factory in LORAGATE_TRAINING_PYTHON."
                ) from None
        return found


def _laid(asked: Path, request: Mapping[str, Any], answered: Path, log: Path) -> BinaryIO:
    """Everything that the child reads is written; its log, open."""
    asked.parent.mkdir(parents=True, exist_ok=True)
    asked.write_text(json.dumps(request, ensure_ascii=False), encoding="utf-8")
    answered.unlink(missing_ok=True)
    return log.open("wb")
