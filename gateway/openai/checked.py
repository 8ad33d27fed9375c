"""What an uploaded file is refused for, found where it holds up nobody: a large one is read by a process of its own.

Run as `python -m gateway.openai.checked FILE` it is that process. What is right is training/data/upload.py's matter.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE
from contextlib import suppress
from pathlib import Path

from adapters.errors import ServiceError
from training.data.upload import check_upload

IN_PROCESS_BYTES = 256 * 1024  # some milliseconds; what is larger would hold the interpreter that streams need
DEADLINE_S = 600.0
ROOT = Path(__file__).resolve().parents[2]


class UploadChecks:
    """At most two files are read at once."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(2)

    async def __call__(self, path: Path) -> str | None:
        """Why the file is refused; None where nothing speaks against it. ServiceError."""
        async with self._turns:
            if await asyncio.to_thread(os.path.getsize, path) <= IN_PROCESS_BYTES:
                return (await asyncio.to_thread(check_upload, path))[0]
            return await _elsewhere(path)


async def _elsewhere(path: Path) -> str | None:
    argv = (sys.executable, "-m", "gateway.openai.checked", str(path))
    env = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    child = await asyncio.create_subprocess_exec(*argv, env=env, cwd=path.parent, stdin=DEVNULL, stdout=PIPE)
    try:
        async with asyncio.timeout(DEADLINE_S):
            said, _ = await child.communicate()
        problem = json.loads(said)["problem"]
    except (TimeoutError, ValueError, KeyError):
        raise ServiceError("The file could not be checked; the gateway's log says why. Upload it again.") from None
    finally:
        with suppress(ProcessLookupError):
            child.kill()
        await child.wait()
    return None if problem is None else str(problem)


def main(path: str) -> None:
    """The process: one document on stdout."""
    with suppress(OSError):
        os.nice(10)
    problem, examples = check_upload(Path(path))
    sys.stdout.write(json.dumps({"problem": problem, "examples": examples}))


if __name__ == "__main__":
    main(sys.argv[1])
