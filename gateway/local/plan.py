"""What `up` settles before anything is served: the engine to start, or the engines that already run.

Long work (environment, download) is here, so that what comes after it starts within seconds.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from gateway.local import engine, hardware, models, platforms, ports
from gateway.local.display import Display
from gateway.local.engine import Launch
from gateway.local.environments import Environments
from gateway.local.errors import CannotStart
from gateway.local.models import Model
from gateway.local.pins import kinds
from gateway.local.places import Places
from gateway.settings import Engine, Settings


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line said. `settings.engines` not empty: those run already, none is started."""

    settings: Settings
    model: str | None = None
    vllm_flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """Settings with the engine in them, and how to start it (None: it runs already)."""

    settings: Settings
    launch: Launch | None
    demo: bool


def with_ports(settings: Settings) -> Settings:
    """Both ports known and free now; PortTaken names the flag. Port 0 becomes a free one."""
    public, admin = settings.public, settings.admin
    if public.port and public.port == admin.port and public.host == admin.host:
        raise CannotStart(f"Both ports are {public.port}. Give --port and --admin-port different numbers.")
    ports.need_free(public.host, public.port, "--port")
    ports.need_free(admin.host, admin.port, "--admin-port")
    update = {
        "public": public.model_copy(update={"port": public.port or ports.free_port()}),
        "admin": admin.model_copy(update={"port": admin.port or ports.free_port()}),
    }
    return settings.model_copy(update=update)


async def make(
    options: Options, places: Places, *, environ: Mapping[str, str], display: Display, clock: Callable[[], float]
) -> Plan:
    """Everything before the first process that serves. CannotStart and its kin, StorageFull."""
    if options.settings.engines:
        if options.model or options.vllm_flags:
            raise CannotStart(
                "--engine uses engines that already run, so --model and flags for vLLM have nothing to act on. "
                "Give one or the other."
            )
        return Plan(options.settings, None, demo=False)
    engine.need_flags(options.vllm_flags)
    rank = engine.number(options.vllm_flags, "--max-lora-rank", engine.MAX_LORA_RANK)
    slots = engine.number(options.vllm_flags, "--max-loras", engine.MAX_LORAS)
    held = engine.number(options.vllm_flags, "--max-cpu-loras", slots)
    chosen = None if options.model is not None and models.is_hub_id(options.model) else _local(options.model)
    machine = hardware.look(environ)
    kind = kinds()[_kind(machine, own=bool(environ.get("LORAGATE_ENGINE_PYTHON")))]
    python = await Environments(places, machine, environ, display, clock).ensure(kind)
    if chosen is None:
        chosen = await models.download(str(options.model), python, places, environ=environ, display=display)
    launch = engine.launch(
        python,
        chosen,
        link=models.link(places, chosen),
        places=places,
        hardware=machine,
        port=ports.free_port(),
        api_key=secrets.token_urlsafe(32),
        environ=environ,
        flags=options.vllm_flags,
    )
    key = SecretStr(launch.api_key)
    local = Engine(url=launch.url, api_key=key, max_loras=slots, max_cpu_loras=held)
    adapters = options.settings.adapters.model_copy(update={"max_lora_rank": rank})
    settings = options.settings.model_copy(update={"engines": (local,), "adapters": adapters})
    return Plan(settings, launch, chosen.demo)


def _kind(machine: hardware.Hardware, *, own: bool) -> str:
    if own:  # whoever made that environment knows what runs in it
        return "engine-cuda" if machine.gpus else "engine-cpu"
    platforms.need_platform(machine)
    return platforms.engine_kind(machine)


def _local(name: str | None) -> Model:
    return models.demo_model() if name is None else models.local_model(Path(name))
