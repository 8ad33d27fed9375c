"""Every setting, frozen and checked as a whole: configs/gateway.yaml, then LORAGATE__SECTION__KEY, then flags.

Unknown keys are errors that name the key. Other LORAGATE_* variables are never settings (Kubernetes injects
LORAGATE_PORT for a Service called loragate). Must not open anything but the file it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml
from platformdirs import user_data_path
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from adapters.errors import InvalidRequest

PREFIX = "LORAGATE__"
DEFAULTS = Path(__file__).resolve().parent.parent / "configs" / "gateway.yaml"


class InvalidSettings(InvalidRequest):
    code = "invalid_settings"


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Listen(Section):
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)


class AdminListen(Section):
    host: str = "127.0.0.1"
    port: int = Field(default=8001, ge=0, le=65535)
    allow_remote: bool = False  # a non-loopback host is refused without it


class MetricsListen(Section):
    host: str = "127.0.0.1"
    port: int | None = None  # None: /metrics lives on the admin port only


class Engine(Section):
    url: str
    discover: Literal["dns"] | None = None  # the host is a name, and each of its addresses an engine
    api_key: SecretStr | None = None
    adapter_dir: Path | None = None  # the adapter store as that engine sees it; None: same path as ours
    max_loras: int | None = Field(default=None, ge=1)  # its flag of that name; None: it is asked
    max_cpu_loras: int | None = Field(default=None, ge=1)  # its flag of that name; None: as many as max_loras

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        """`dns+http://host:8000` says both in one word, for flags."""
        if isinstance(given, Mapping) and str(given.get("url")).startswith("dns+"):
            return {"discover": "dns", **given, "url": given["url"].removeprefix("dns+")}
        return given

    @field_validator("url")
    @classmethod
    def _plain(cls, url: str) -> str:
        """The engine's own address: `/v1`, which clients have to add, is taken off again."""
        url = url.rstrip("/").removesuffix("/v1")
        try:
            parts = urlsplit(url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port beyond 65535, half an IPv6 address
            good = False
        if not good or not url.isascii() or not url.isprintable() or any(c in url for c in " @?#"):
            raise ValueError("an engine's URL looks like http://10.0.0.5:8000, without user and query")
        return url


class Receive(Section):
    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    max_header_bytes: int = 32 * 1024
    max_headers: int = 100
    max_body_bytes: int = 8 * 1024 * 1024
    keepalive_s: float = 75.0
    write_idle_timeout_s: float = 30.0  # a client that reads nothing for so long is cut
    max_connections: int = 4096


class Upstream(Section):
    connect_timeout_s: float = 5.0
    first_byte_timeout_s: float = 120.0
    answer_timeout_s: float = 600.0  # of a whole answer: its head comes when all is generated; the SDKs wait as long
    idle_timeout_s: float = 60.0
    keepalive_s: float = 4.0  # below uvicorn's 5 s, so that the engine seldom closes under us
    max_connections: int = 2048
    max_answer_bytes: int = 64 * 1024 * 1024
    max_event_bytes: int = 4 * 1024 * 1024


class Adapters(Section):
    max_lora_rank: int = Field(default=16, ge=1)  # the engines' --max-lora-rank: their API does not tell it
    load_timeout_s: float = 30.0  # how long a request waits for its adapter before 503 model_loading
    max_waiting: int = Field(default=256, ge=1)  # requests that may wait for one adapter at once
    proof: bool = True  # ask every engine to show that it answers with what it loaded


class Admission(Section):
    max_in_flight: int = 1024
    max_queue: int = 256
    queue_timeout_s: float = 5.0


class FleetBounds(Section):
    resolve_s: float = Field(default=5.0, ge=0.01)  # between two lookups of the names of engines
    drain_s: float = Field(default=600.0, ge=0)  # requests may run on for so long where an engine has left


class Health(Section):
    probe_interval_s: float = 2.0
    probe_timeout_s: float = 10.0
    eject_after: int = 5  # consecutive failures
    eject_s: float = 30.0  # times the number of ejections in a row
    max_eject_s: float = 300.0


class Drain(Section):
    delay_s: float = 0.0  # between "not ready" and the end of accepting; ~15 behind a load balancer
    timeout_s: float = 30.0


class RequestCaps(Section):
    """Bounds of request fields; see docs/fields.md for what each one guards."""

    max_tokens: int = 131_072
    n: int = 16
    logprobs: int = 20
    stop: int = 16
    messages: int = 4096
    tools: int = 256
    depth: int = 64


class ModelLimits(Section):
    rpm: int | None = Field(default=None, ge=1)
    tpm: int | None = Field(default=None, ge=1)
    concurrency: int | None = Field(default=None, ge=1)
    daily_tokens: int | None = Field(default=None, ge=1)


class UsageRecords(Section):
    flush_s: float = 0.8  # with the write itself below the second that a kill may cost
    max_pending: int = 100_000  # (key, model, day) rows waiting; beyond it the oldest are flushed at once


class Training(Section):
    """Files and jobs of /v1; what a worker does is the worker's."""

    organization: str = Field(default="", pattern=r"^[A-Za-z0-9._-]{0,32}$")  # the <org> of ft:<base>:<org>:…
    base_names: tuple[str, ...] = ()  # other names for the served base, as jobs ask for it: gpt-4o-mini-2024-07-18
    key_bytes_max: int = Field(default=8 * 1024**3, ge=1)  # what all files of one key may take
    key_jobs_max: int = Field(default=16, ge=1)  # unfinished jobs of one key


class FeedbackBounds(Section):
    """What POST /v1/feedback takes, of keys with the scope feedback or training."""

    keep_days: float = Field(default=365.0, ge=0)  # 0: for ever
    max_body_bytes: int = Field(default=64 * 1024, ge=1024)
    max_per_key: int = Field(default=10_000, ge=0)
    per_minute: int = Field(default=120, ge=1)  # of one key


class Log(Section):
    level: str = "info"
    requests: bool = False  # one line per inference request


class Settings(Section):
    data_dir: Path
    public: Listen = Listen()
    admin: AdminListen = AdminListen()
    metrics: MetricsListen = MetricsListen()
    database_url: str | None = None  # None: SQLite in the data directory
    engines: tuple[Engine, ...] = ()
    receive: Receive = Receive()
    adapters: Adapters = Adapters()
    upstream: Upstream = Upstream()
    admission: Admission = Admission()
    fleet: FleetBounds = FleetBounds()
    health: Health = Health()
    drain: Drain = Drain()
    caps: RequestCaps = RequestCaps()
    model_limits: dict[str, ModelLimits] = {}
    usage: UsageRecords = UsageRecords()
    training: Training = Training()
    feedback: FeedbackBounds = FeedbackBounds()
    log: Log = Log()

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir / 'loragate.db'}"

    @property
    def adapter_store(self) -> Path:
        return self.data_dir / "adapters"


def data_dir(environ: Mapping[str, str], flag: Path | None = None) -> Path:
    """--data-dir, else LORAGATE_HOME, else the platform's user data directory."""
    if flag is not None:
        return flag.absolute()
    home = environ.get("LORAGATE_HOME")
    return Path(home).absolute() if home else user_data_path("loragate")


def load(environ: Mapping[str, str], *, file: Path | None = None, flags: Mapping[str, Any] | None = None) -> Settings:
    """Merge the shipped defaults, `file`, the environment and `flags` (nested, None leaves out); InvalidSettings."""
    merged: dict[str, Any] = {}
    for source in (DEFAULTS, file):
        if source is not None:
            _merge(merged, _read(source))
    _merge(merged, _from_environ(environ))
    _merge(merged, flags or {})
    merged["data_dir"] = data_dir(environ, Path(merged["data_dir"]) if merged.get("data_dir") else None)
    try:
        return Settings.model_validate(merged)
    except ValidationError as exc:
        first = exc.errors(include_input=False, include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        said = f"Setting {key}: {first['msg'].removeprefix('Value error, ')}."
        if first["type"] == "extra_forbidden":
            said = f"There is no setting {key}."
        raise InvalidSettings(f"{said} configs/gateway.yaml shows every one.") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise InvalidSettings(f"Cannot read the settings file {path}: {exc.strerror}.") from None
    except yaml.YAMLError as exc:
        raise InvalidSettings(f"The settings file {path} is not YAML: {exc}") from None
    if document is not None and not isinstance(document, dict):
        raise InvalidSettings(f"The settings file {path} must be a mapping of sections.")
    return document or {}


def _from_environ(environ: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in sorted(environ):
        if not name.startswith(PREFIX):
            continue
        *sections, key = name[len(PREFIX) :].lower().split("__")
        place = found
        for section in sections:
            place = place.setdefault(section, {})
        try:
            place[key] = yaml.safe_load(environ[name])
        except yaml.YAMLError:
            place[key] = environ[name]
    return found


def _merge(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        elif isinstance(value, Mapping):
            into[key] = {}
            _merge(into[key], value)
        elif value is not None:
            into[key] = value
