"""What the data plane knows: one immutable Snapshot of keys, models and limits, swapped whole.

Built by gateway/refresh.py from the database; read by every request. Must not know where it comes from.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Limits:
    """Ceilings of one key or one model; None means no ceiling."""

    rpm: int | None = None  # requests per minute
    tpm: int | None = None  # tokens per minute, prompt and answer together
    concurrency: int | None = None  # requests being answered at once
    daily_tokens: int | None = None  # tokens per UTC day


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Credential:
    """One digest that opens a key; a rotated key has two until the old one's grace ends."""

    digest: bytes = field(repr=False)  # keyed digest of the whole token, 32 bytes
    valid_until: float | None = None  # unix seconds


@dataclass(frozen=True, slots=True)
class Key:
    """An API key as the data plane sees it. Revoked keys are not in the snapshot at all."""

    id: str
    credentials: tuple[Credential, ...]
    scopes: frozenset[str] = frozenset({"inference"})
    models: frozenset[str] | None = None  # public names this key may ask for; None: all
    limits: Limits = NO_LIMITS
    expires_at: float | None = None  # unix seconds


@dataclass(frozen=True, slots=True)
class Target:
    """What a public name resolves to: one set of weights in the engine."""

    name: str  # public name (or the base's id): what limits, metrics and usage are kept under
    engine_name: str  # the only text that reaches the engine as `model`
    version: str | None  # 12 hex digits; None for the base
    limits: Limits = NO_LIMITS
    created: int = 0  # unix seconds, for /v1/models
    canary: Target | None = None  # of a public name: what answers a share of its callers instead (split.py)
    canary_percent: float = 0.0
    thinking: bool | None = None  # what its requests say of thinking where callers say nothing: as it was trained

    @property
    def answer_name(self) -> str:
        """What answered, as callers see it: `name@<12 hex>`, or the base's id."""
        return self.name if self.version is None else f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a request may look at. `serial` grows by one with every swap."""

    serial: int
    base: str | None  # public id of the served base model; None until an engine has said
    keys: Mapping[str, Key] = field(repr=False)  # by key id
    models: Mapping[str, Target] = field(repr=False)  # listed public names, base included → live target
    versions: Mapping[str, Target] = field(repr=False)  # `name@<12 hex>` → that version's target
    canaries: Mapping[str, Target] = field(default_factory=dict, repr=False)  # those of `models` with a canary

    def without(self, names: Collection[str]) -> frozenset[str]:
        """Which of `names` have no version here; none while it is not known which have."""
        missing = frozenset(name for name in names if name not in self.models)
        if not missing or self.base is None:
            return frozenset()
        return missing - {target.name for target in self.versions.values()}


EMPTY = Snapshot(serial=0, base=None, keys={}, models={}, versions={})
