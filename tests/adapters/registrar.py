"""A process that registers, promotes and removes adapters until it is killed, and says what was acknowledged.

`python -m tests.adapters.registrar DATA`: for each line on stdin it forks one worker (imports are paid once),
prints `pid N`, and `over` when that worker is dead. Workers print `done NAME VERSION` and `gone NAME VERSION`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time
from pathlib import Path

from adapters.db import Database
from adapters.reconcile import Reconciler
from adapters.service import AdapterService
from adapters.shelf import Shelf
from tests.adapters.folders import Tensors, bf16, numbers, write

NAMES = ("a", "b:c")


def say(text: str) -> None:
    """One line, unbuffered: what is said was done."""
    os.write(1, f"{text}\n".encode())


def _content(number: int) -> Tensors:
    """A LoRA that no other number gives: the number's bits choose between two values of lora_B."""
    unique = b"".join(bf16(1.5 if number >> bit & 1 else 0.5) for bit in range(32))
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    a, b = f"{module}.lora_A.weight", f"{module}.lora_B.weight"
    return [(a, "BF16", [8, 4096], numbers(8 * 4096)), (b, "BF16", [4, 8], unique)]


async def work(data: Path, seed: int) -> None:
    """Register a new version under each name in turn; every third time remove the oldest that is not needed."""
    db = Database.open(f"sqlite:///{data / 'loragate.db'}")
    db.migrate()
    service = AdapterService(db, Shelf(data / "adapters"), Reconciler(db, [], clock=time.time), clock=time.time)
    await service.recover()
    for at in itertools.count():
        name = NAMES[at % 2]
        folder = await asyncio.to_thread(write, data / f"source-{seed}", None, _content(seed * 10_000 + at))
        made = await service.register(folder, name, promote=True)
        say(f"done {name} {made.live}")
        if at % 3 == 2:
            spare = [each for each in made.versions if each.version not in (made.live, made.previous)]
            for each in spare[-1:]:
                await service.remove(name, each.version)
                say(f"gone {name} {each.version}")


def main() -> None:
    data = Path(sys.argv[1])
    for seed, _ in enumerate(sys.stdin):
        pid = os.fork()
        if pid == 0:
            asyncio.run(work(data, seed))
        say(f"pid {pid}")
        os.waitpid(pid, 0)
        say("over")


if __name__ == "__main__":
    main()
