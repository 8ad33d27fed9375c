"""What a fake engine has in memory: copies of weights, kept by last use and read again where they are missing.

As vLLM 0.32.0 does it (tried): names are another list, an unload forgets the name alone; a copy stays until newer ones
push it out; one that a request needs and that was pushed out is read again from its folder in the middle of a step, and
if the folder is gone the whole engine dies. Knows files and numbers, no sockets and no answers.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

WEIGHTS = "adapter_model.safetensors"


class EngineDied(Exception):
    """Raised inside a step: everything that runs fails, the process ends."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """One load of one folder. Loaded again it is another one, whatever its name."""

    number: int
    name: str
    path: str


@dataclass(slots=True)
class Slots:
    """`count` adapters may run at once; the copies of the `copies` last used ones are in memory."""

    count: int
    copies: int
    known: dict[str, Loaded] = field(default_factory=dict)  # name -> its last load
    memory: dict[int, str] = field(default_factory=dict)  # number -> digest of the weights, the longest unused first
    running: Counter[Loaded] = field(default_factory=Counter)  # -> requests in the batch
    waiting: Counter[Loaded] = field(default_factory=Counter)  # -> requests that wait for a slot
    reads: int = 0  # of weights in the middle of a step
    most: int = 0  # adapters in flight at once, those that waited included
    _number: int = 0

    def load(self, name: str, path: str) -> None:
        """What /v1/load_lora_adapter does after its checks: it takes a slot even from what runs, if it has to."""
        self._number += 1
        made = self.known[name] = Loaded(self._number, name, path)
        self.step()
        self._read(made)
        self.step()

    def find(self, name: str, path: str) -> Loaded:
        """The last load of a listed name (one that a test has written into the list has had none)."""
        found = self.known.get(name)
        if found is None or found.path != path:
            self._number += 1
            found = self.known[name] = Loaded(self._number, name, path)
        return found

    def may_run(self, loaded: Loaded) -> bool:
        """A batch has at most `count` adapters; requests for others wait."""
        return loaded in self.running or len(self.running) < self.count

    def came(self, loaded: Loaded) -> None:
        self.waiting[loaded] += 1
        self.most = max(self.most, len(self.running.keys() | self.waiting.keys()))

    def left(self, loaded: Loaded) -> None:
        _less(self.waiting, loaded)

    def begin(self, loaded: Loaded) -> str:
        """It is in the batch from here on; the digest of the weights that compute for it."""
        self.running[loaded] += 1
        self.step()
        return self.memory[loaded.number]

    def end(self, loaded: Loaded) -> None:
        _less(self.running, loaded)

    def step(self) -> None:
        """One of the steps that an engine makes all the time: what runs is used, and read again where it has to be.

        It dies of two loads of one name in one batch: unloaded and loaded again while a request of before runs.
        """
        names = [loaded.name for loaded in self.running]
        if len(set(names)) < len(names):
            raise EngineDied(f"two loads of one name in one batch: {sorted(names)}")
        for loaded in self.running:
            if loaded.number not in self.memory:
                self.reads += 1
                if not (Path(loaded.path) / WEIGHTS).is_file():
                    raise EngineDied(f"{loaded.name} is read again in the middle of a step, and {loaded.path} is gone")
                self._read(loaded)
            self.memory[loaded.number] = self.memory.pop(loaded.number)

    def clear(self) -> None:
        """The process is gone."""
        self.known.clear()
        self.memory.clear()
        self.running.clear()
        self.waiting.clear()

    def _read(self, loaded: Loaded) -> None:
        self.memory[loaded.number] = digest(Path(loaded.path))
        while len(self.memory) > self.copies:
            del self.memory[next(iter(self.memory))]


def digest(folder: Path) -> str:
    """8 hex digits of the numbers of a folder's weights, whatever its header says and however it is named."""
    try:
        data = (folder / WEIGHTS).read_bytes()
    except FileNotFoundError:  # in .bin or .pt, which nobody here compares
        return "unknown"
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()[:8]


def _less(counted: Counter[Loaded], loaded: Loaded) -> None:
    counted[loaded] -= 1
    if counted[loaded] <= 0:
        del counted[loaded]
