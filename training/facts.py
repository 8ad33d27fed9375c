"""What a plan is made from, as frozen values: the data, the base, the machine. Must not know recipes or how anything
is decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from training.base import Base, read_base

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    memory_gb: float


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it is trained; memory and disk in GiB. disk_free_gb: of the data directory, None where not asked."""

    cpus: int
    memory_gb: float
    gpus: tuple[Gpu, ...] = ()
    disk_free_gb: float | None = None


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What a plan needs to know of the rows that are trained, the validation rows taken off.

    kind: sft, preference or kto (training/methods.py); lengths: tokens of a row, prompt and answer (the longer one of a
    pair), as the base counts them → how many rows have so many; dropped: rows that were refused; multi_turn: whether
    any row has more than one answer; mask_history: whether the rows were written so that only the last one counts.
    """

    kind: str
    lengths: Mapping[int, int]
    prompt_tokens: int = 0
    answer_tokens: int = 0
    valid_rows: int = 0
    dropped: int = 0
    multi_turn: bool = False
    mask_history: bool = False
    size_bytes: int = 0

    @property
    def rows(self) -> int:
        return sum(self.lengths.values())

    @property
    def longest(self) -> int:
        return max(self.lengths, default=0)

    @property
    def tokens(self) -> int:
        """Of one epoch, nothing cut."""
        return sum(length * count for length, count in self.lengths.items())

    def percentile(self, share: float) -> int:
        """So many tokens, or fewer, have `share` (0-1) of the rows."""
        wanted, seen = share * self.rows, 0
        for length in sorted(self.lengths):
            seen += self.lengths[length]
            if seen >= wanted:
                return length
        return 0

    def cut_at(self, cutoff: int) -> tuple[int, int]:
        """How many rows a cutoff shortens, and how many tokens it takes off in all."""
        over = [(length, count) for length, count in self.lengths.items() if length > cutoff]
        return sum(count for _, count in over), sum((length - cutoff) * count for length, count in over)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the gateway and the machine are. tokens_per_s: as the last run on this base and machine went, if known."""

    base: Base
    max_lora_rank: int
    hardware: Machine
    tokens_per_s: float | None = None
    names: frozenset[str] = field(default_factory=frozenset)  # other names that the base goes by

    @classmethod
    def look(
        cls,
        base_id: str,
        base_folder: Path,
        max_lora_rank: int,
        hardware: Machine,
        tokens_per_s: float | None = None,
    ) -> Self:
        """Read the base's folder too; RecipeInvalid where it is none."""
        return cls(read_base(base_id, base_folder), max_lora_rank, hardware, tokens_per_s)
