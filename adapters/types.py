"""The nouns of this room as frozen values: adapters, their versions, where each version is loaded.

Must not know SQL, files or HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class VersionState(StrEnum):
    """What a version is for its adapter. Derived from the registry row, never stored twice."""

    LIVE = "live"  # the public name answers with it
    CANARY = "canary"  # the public name answers some callers with it
    PREVIOUS = "previous"  # rollback goes here; kept loaded
    READY = "ready"  # stored, answers only to name@version
    DAMAGED = "damaged"  # its files are gone from the store: register it again


class PlacementState(StrEnum):
    """What one engine says about one version."""

    RESIDENT = "resident"  # in its slots
    STANDBY = "standby"  # known to the engine, which reads the weights again when they are asked for
    LOADING = "loading"
    FAILED = "failed"  # `reason` says why; tried again with back-off while it is wanted
    ABSENT = "absent"
    UNKNOWN = "unknown"  # the engine cannot be asked now


class ReplicaState(StrEnum):
    """Whether an engine may be given work."""

    READY = "ready"
    UNREACHABLE = "unreachable"
    REFUSED = "refused"  # it serves another base than the rest of its pool


@dataclass(frozen=True, slots=True)
class Placement:
    """One version on one engine."""

    url: str
    state: PlacementState
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Version:
    """One immutable set of weights under one public name."""

    name: str
    version: str  # 12 hex digits: the beginning of `digest`
    digest: str  # 64 hex digits over tensors and semantic config
    engine_name: str
    base: str | None  # public id of the base it was checked against; None: no engine was known then
    rank: int  # largest rank of any module
    size_bytes: int  # of the weights file
    source: str
    notes: str
    created_at: float  # unix seconds
    state: VersionState
    checksums: str | None = None  # JSON: file → sha256 as it came
    pinned: bool = False  # an operator asked for it to stay loaded
    has_lineage: bool = False  # it is known how it was made
    thinking: bool | None = None  # what its requests say of thinking where callers say nothing: as it was trained
    registered_by: str | None = None  # as Event.by; known only where the history was asked
    replicas: tuple[Placement, ...] = ()


@dataclass(frozen=True, slots=True)
class Rules:
    """When a canary ends by itself, measured against the live version in the same time."""

    min_requests: int = 50  # of each arm, before anything is decided
    max_error_increase: float = 0.02  # share of requests that fail, canary less live
    max_latency_ratio: float = 1.5  # canary ÷ live
    max_finish_change: float = 0.15  # share of answers that end for another reason than live ones


@dataclass(frozen=True, slots=True)
class Canary:
    """The version that a share of callers is answered with."""

    version: str
    percent: float  # of callers, 0 < percent ≤ 100
    since: float  # unix seconds
    rules: Rules


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Limits of one adapter, for all its callers together; None: those of the settings."""

    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    daily_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Adapter:
    """A public name, the versions behind it, and which of them answers."""

    name: str
    live: str | None
    previous: str | None
    versions: tuple[Version, ...]  # newest first
    created_at: float
    updated_at: float
    canary: Canary | None = None
    owner: str | None = None  # id of the key it was made with; None: an operator's
    ceilings: Ceilings = Ceilings()


@dataclass(frozen=True, slots=True)
class Event:
    """One line of an adapter's history."""

    id: int
    at: float  # unix seconds
    what: str
    name: str
    version: str | None
    by: str | None  # key id, "operator", or "gateway" for what it did by itself
    why: str


@dataclass(frozen=True, slots=True)
class Served:
    """The little that routing needs of a version; 10,000 of them are read at once."""

    name: str
    version: str
    engine_name: str
    base: str | None
    live: bool
    created_at: float
    canary_percent: float | None = None  # set on the version that is the canary
    ceilings: Ceilings = Ceilings()
    thinking: bool | None = None


@dataclass(frozen=True, slots=True)
class WantedVersion:
    """A version that should be loaded, as far as engines are concerned."""

    engine_name: str
    base: str | None  # the base it was checked against
    pinned: bool  # an operator asked for it: never put out for another


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """What one engine serves, as last seen. Swapped whole, never changed."""

    url: str
    state: ReplicaState
    reason: str = ""  # why it is not ready
    base: str | None = None  # public id of its base model
    root: str | None = None  # its --model string
    max_model_len: int | None = None  # tokens
    resident: frozenset[str] = frozenset()  # engine names counted as in its slots
    listed: frozenset[str] = frozenset()  # engine names it knows, ours and foreign
    loading: frozenset[str] = frozenset()
    failed: Mapping[str, str] = field(default_factory=dict)  # engine name → reason
    foreign: frozenset[str] = frozenset()  # listed, but not in the registry
    slots: int | None = None  # adapters it computes with at once; None: it does not say
    capacity: int | None = None  # adapters it holds; None: no bound is known
    pinned: frozenset[str] = frozenset()
    evictions: int = 0  # adapters put out for others since the gateway began
    settled: bool = True  # False: it came while the gateway ran, and its first turn is not over

    @property
    def reachable(self) -> bool:
        return self.state is not ReplicaState.UNREACHABLE

    def placement(self, engine_name: str) -> Placement:
        """Where `engine_name` stands on this engine."""
        if not self.reachable:
            return Placement(self.url, PlacementState.UNKNOWN, self.reason)
        if engine_name in self.resident:
            return Placement(self.url, PlacementState.RESIDENT)
        if engine_name in self.loading:
            return Placement(self.url, PlacementState.LOADING)
        if engine_name in self.listed:
            return Placement(self.url, PlacementState.STANDBY)
        if engine_name in self.failed:
            return Placement(self.url, PlacementState.FAILED, self.failed[engine_name])
        return Placement(self.url, PlacementState.ABSENT, self.reason)
