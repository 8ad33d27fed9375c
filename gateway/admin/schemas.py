"""The JSON of the admin API, both ways. Unknown keys are errors. Times are unix seconds.

Must not know services: routes turn these into grants and queries.
"""

from __future__ import annotations

import json
from datetime import date, datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from adapters.errors import InvalidName
from adapters.names import check_public_name

T = TypeVar("T")


def _text(moment: object) -> object:
    """Only text is tried as ISO 8601: pydantic takes a number for seconds or milliseconds, as its size suggests."""
    if not isinstance(moment, str):
        raise ValueError("give unix seconds, or a time such as 2026-12-31T00:00:00Z")
    return moment


NAME = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$"
KEY_ID = r"^[A-Za-z0-9]{1,64}$"
VERSION = r"^[0-9a-f]{12}$"
JOB_ID = r"^ftjob-[0-9A-Za-z]{1,64}$"
SOURCE = r"^[^\x00-\x1f\x7f]+$"
GROUPS = r"^(none|(key|model|day)(,(key|model|day)){0,2})$"
IN_WORDS = {  # what a refusal says in place of the pattern
    NAME: "it is not a public name, such as customer-service (a version of it is given apart)",
    KEY_ID: "it is not a key's id",
    JOB_ID: "it is not a job's id, such as ftjob-2Xc4yVq9LmPz7RkD1nWbT8sH",
    VERSION: "it is not the 12 hex digits of a version",
    SOURCE: "it has characters that no path and no URL has",
    GROUPS: "it is neither none nor some of key, model, day with commas between them",
}

Scope = Literal["inference", "feedback", "training", "admin"]
Ceiling = Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)]
DailyTokens = Annotated[int, Field(strict=True, ge=1, le=2**53 - 1)]
# Strict: `true` is no number. An ISO 8601 time is taken too, with its zone.
Moment = Annotated[int, Field(strict=True, ge=0, le=253_402_300_799)] | Annotated[datetime, BeforeValidator(_text)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Listed(BaseModel, Generic[T]):
    """Every list: ask again with `after` while there is more."""

    data: list[T]
    has_more: bool


class Paging(Strict):
    after: str | None = Field(None, max_length=128, description="id (or name) of the last item already seen")
    limit: int = Field(100, ge=1, le=1000)


class _KeyFields(Strict):
    @field_validator("models", check_fields=False)
    @classmethod
    def _public_names(cls, models: list[str] | None) -> list[str] | None:
        for name in models or ():
            try:
                check_public_name(name)
            except InvalidName:
                raise ValueError("a model is named by its public name, such as customer-service") from None
        return models

    @field_validator("expires_at", check_fields=False)
    @classmethod
    def _with_zone(cls, moment: int | datetime | None) -> int | datetime | None:
        if isinstance(moment, datetime) and moment.tzinfo is None:
            raise ValueError("a time needs its zone, such as 2026-12-31T00:00:00Z")
        return moment


class KeyCreate(_KeyFields):
    name: str = Field(min_length=1, max_length=128)
    scopes: list[Scope] = Field(["inference"], min_length=1, max_length=8)
    models: list[str] | None = Field(None, min_length=1, max_length=1000, description="public names; null: all")
    rpm: Ceiling | None = Field(None, description="requests per minute")
    tpm: Ceiling | None = Field(None, description="tokens per minute")
    concurrency: Ceiling | None = None
    daily_tokens: DailyTokens | None = Field(None, description="tokens per UTC day")
    expires_at: Moment | None = None


class KeyChange(_KeyFields):
    """What is left out stays; null takes a limit, an expiry or the list of models away."""

    name: str = Field("", min_length=1, max_length=128)
    scopes: list[Scope] = Field(["inference"], min_length=1, max_length=8)
    models: list[str] | None = Field(None, min_length=1, max_length=1000)
    rpm: Ceiling | None = None
    tpm: Ceiling | None = None
    concurrency: Ceiling | None = None
    daily_tokens: DailyTokens | None = None
    expires_at: Moment | None = None


class KeyRotate(Strict):
    grace_s: int = Field(3600, strict=True, ge=0, le=30 * 86_400, description="how long the old token stays good")


class KeyView(BaseModel):
    id: str
    name: str
    scopes: list[str]
    models: list[str] | None
    rpm: int | None
    tpm: int | None
    concurrency: int | None
    daily_tokens: int | None
    expires_at: int | None
    created_at: int
    revoked_at: int | None


class KeyIssued(KeyView):
    """At creation and rotation only: the token can never be shown again."""

    key: str


class UsagePaging(Strict):
    since: date | None = Field(None, description="first UTC day, YYYY-MM-DD")
    until: date | None = Field(None, description="last UTC day, included")
    key: str | None = Field(None, pattern=KEY_ID, description="a key's id")
    model: str | None = Field(None, pattern=NAME)
    group_by: str = Field(
        "key,model,day",
        pattern=GROUPS,
        description="comma-separated key, model, day; or none for one sum",
    )
    after: int = Field(0, ge=0, le=10**9, description="how many rows were already seen")
    limit: int = Field(1000, ge=1, le=10_000)


class UsageView(BaseModel):
    """null: not grouped by it."""

    key: str | None
    model: str | None
    day: str | None
    requests: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


def _object(given: object) -> object:
    """A form has only texts. NaN is no JSON, and could not be read back."""
    try:
        found = json.loads(given) if isinstance(given, str) else given
        json.dumps(found, allow_nan=False)
    except (ValueError, RecursionError):
        raise ValueError("it is not a JSON object") from None
    return found


VersionDigits = Annotated[str, Field(pattern=VERSION, description="12 hex digits")]
Source = Annotated[
    str,
    Field(
        min_length=1,
        max_length=4096,
        pattern=SOURCE,
        description="an adapter in PEFT's format: the absolute path of a folder or an archive (.tar.gz, .zip) on the "
        "gateway's machine, hf://owner/repo@revision/folder, an object of s3 or gs, or the https URL of an archive",
    ),
]


class AdapterRegister(Strict):
    source: Source
    name: str = Field(min_length=1, max_length=128, description="the public name")
    promote: bool = Field(False, strict=True, description="answer with it at once")
    notes: str = Field("", max_length=4096)
    owner: str | None = Field(None, pattern=KEY_ID, description="of a new adapter: id of the key that may delete it")
    lineage: Annotated[dict[str, Any] | None, BeforeValidator(_object)] = Field(
        None, description="how a new version was made, any JSON object (as text in a form); kept with the version"
    )


class AdapterSource(Strict):
    source: Source


class Rendering(Strict):
    """A conversation, as /v1/chat/completions takes it."""

    messages: list[dict[str, Any]] = Field(min_length=1, max_length=4096)
    tools: list[dict[str, Any]] | None = Field(None, max_length=256)
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="enable_thinking and the like")


class RenderedView(BaseModel):
    tokens: list[int] = Field(description="the prompt, as the base's tokenizer numbers it")


class IntakeView(BaseModel):
    """An adapter on its way in. bytes_total: null where the source does not say."""

    id: str
    name: str | None
    source: str
    phase: str
    bytes_done: int
    bytes_total: int | None
    started_at: int


Why = Annotated[str, Field(max_length=1024, description="kept in the adapter's history")]


class VersionChosen(Strict):
    version: VersionDigits
    why: Why = ""


class VersionOrLive(Strict):
    version: VersionDigits | None = Field(None, description="12 hex digits; left out: the live one")
    why: Why = ""


class LimitsChange(Strict):
    """Limits of one adapter for all its callers together: what is left out stays, null is the settings' value again."""

    rpm: Ceiling | None = Field(None, description="requests per minute")
    tpm: Ceiling | None = Field(None, description="tokens per minute")
    concurrency: Ceiling | None = None
    daily_tokens: DailyTokens | None = Field(None, description="tokens per UTC day")
    why: Why = ""


class RulesChosen(Strict):
    """When a canary ends by itself; what is left out is as it is by default."""

    min_requests: int = Field(50, strict=True, ge=1, le=10**6, description="of each arm, before anything is compared")
    max_error_increase: float = Field(
        0.02, strict=True, ge=0, le=1, description="share of failed requests, canary less live"
    )
    max_latency_ratio: float = Field(1.5, strict=True, ge=1, le=1000, description="canary ÷ live")
    max_finish_change: float = Field(
        0.15, strict=True, ge=0, le=1, description="share of answers that end for another reason"
    )


class CanaryChosen(Strict):
    version: VersionDigits | None = Field(
        None, description="12 hex digits; only where `percent` is 0 it may be left out"
    )
    percent: float = Field(strict=True, ge=0, le=100, description="of callers; 0 ends the canary")
    rules: RulesChosen = RulesChosen()
    why: Why = ""


class OnlyWhy(Strict):
    """A reason, an empty body, or none."""

    why: Why = ""


class RemovedVersion(Strict):
    version: VersionDigits | None = Field(None, description="12 hex digits; left out: the whole adapter")
    why: Why = ""


class HistoryPaging(Strict):
    before: int | None = Field(None, ge=1, le=2**53, description="id of the last event already seen")
    limit: int = Field(100, ge=1, le=1000)


class EventView(BaseModel):
    """by: id of the key that asked for it, `operator` for admin.key, `gateway` for what a gateway did by itself."""

    id: int
    at: int
    what: str
    version: str | None
    by: str | None
    why: str


class RemovedView(BaseModel):
    name: str
    removed: list[str]


class PlacementView(BaseModel):
    url: str
    state: str
    reason: str | None


class VersionView(BaseModel):
    version: str
    state: str
    pinned: bool
    created_at: int
    source: str
    notes: str
    size_bytes: int
    rank: int
    registered_by: str | None = Field(description="as `by` of the history")
    checksums: dict[str, str] | None = Field(description="file → sha256, as it came; null for a folder")
    lineage: bool = Field(description="whether it is known how it was made")
    thinking: bool | None = Field(description="`enable_thinking` of requests that leave it out; null: the base's own")
    replicas: list[PlacementView]


class ArmView(BaseModel):
    """One arm of a canary, as this gateway has seen it since it counts. Times are geometric means of recent answers."""

    requests: int = Field(description="that an engine answered, well or badly")
    errors: int = Field(description="of these: 5xx and broken streams that are the engine's or the weights' fault")
    left: int = Field(description="callers that went before the end")
    refused: int = Field(description="callers' own mistakes, limits, load")
    completion_tokens: int
    finish_reasons: dict[str, int]
    first_token_s: float | None
    per_token_s: float | None
    whole_answer_s: float | None


class RulesView(BaseModel):
    min_requests: int
    max_error_increase: float
    max_latency_ratio: float
    max_finish_change: float


class CanaryView(BaseModel):
    version: str
    percent: float
    since: int
    rules: RulesView
    live: ArmView
    canary: ArmView
    standing: str = Field(description="how far the comparing has come")


class LimitsView(BaseModel):
    """null: as the settings say."""

    rpm: int | None
    tpm: int | None
    concurrency: int | None
    daily_tokens: int | None


class AdapterView(BaseModel):
    name: str
    live: str | None
    previous: str | None
    canary: CanaryView | None
    owner: str | None = Field(description="id of the key that may delete it on the public port; null: operators only")
    limits: LimitsView
    versions: list[VersionView]
