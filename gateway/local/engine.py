"""How vLLM is started on this machine: its command line and its environment, and nothing else.

The key goes by environment, where `ps` does not show it. Must not start anything: that is the supervisor's.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gateway.local.errors import CannotStart
from gateway.local.hardware import GIB, Hardware
from gateway.local.models import Model
from gateway.local.places import Places

PLUGIN = Path(__file__).resolve().parent / "engine_plugin"  # nothing else may lie there: the engine imports from it
# Flags that carry what the gateway relies on; everything else after `--` goes to vLLM, and there the last one wins.
OWNED = ("--model", "--served-model-name", "--host", "--port", "--uds", "--api-key", "--root-path", "--enable-lora")
MAX_LORA_RANK = 16  # vLLM's own default
MAX_LORAS = 4  # adapters it computes with at once
OWNED_PREFIXES = ("--ssl-", "--no-enable-lora")
# What a child may know of the caller's environment. No token, cloud credential or setting of ours is among them.
ALLOWED = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TMP", "TEMP"}
    | {"LD_LIBRARY_PATH", "LD_PRELOAD", "CUDA_HOME", "CUDA_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"}
    | {"HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR"}
)
ALLOWED_PREFIXES = ("LC_", "VLLM_", "OMP_", "KMP_", "MKL_", "NCCL_", "NVIDIA_", "TORCH", "PYTORCH_", "TRITON_", "GLOO_")


@dataclass(frozen=True, slots=True)
class Launch:
    """One engine process to be: everything that the supervisor needs. The key stays out of `repr`."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    cwd: Path
    url: str
    port: int
    base: str
    api_key: str = field(repr=False)


def need_flags(flags: Sequence[str]) -> None:
    """CannotStart for a flag that would take something away that the gateway relies on, or words that are no flags."""
    if flags and not flags[0].startswith("-"):  # vLLM would take it for a model's name, and serve --model all the same
        raise CannotStart(
            f"{flags[0]} is not a flag for vLLM. A model is named with --model {shlex.quote(flags[0])}; "
            "what goes to vLLM begins with a flag, after --."
        )
    for flag in flags:
        name = flag.split("=", 1)[0].replace("_", "-")
        if name in OWNED or name.startswith(OWNED_PREFIXES):
            raise CannotStart(
                f"{name} cannot be given to vLLM: loragate sets it itself. Use loragate's own --model, --host and "
                "--port, or start vLLM yourself and name it with --engine URL."
            )


def launch(
    python: Path,
    model: Model,
    *,
    link: Path,
    places: Places,
    hardware: Hardware,
    port: int,
    api_key: str,
    environ: Mapping[str, str],
    flags: Sequence[str] = (),
) -> Launch:
    """The engine on 127.0.0.1:`port` serving `link`; `flags` come last and so win. CannotStart for a flag of ours."""
    need_flags(flags)
    argv = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(link)]
    argv += ["--served-model-name", model.id, "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--enable-lora", "--max-loras", str(MAX_LORAS), "--max-lora-rank", str(MAX_LORA_RANK)]
    if not hardware.gpus:
        argv += ["--dtype", "bfloat16", "--enforce-eager"]
    env = child_environ(environ, places, hardware, demo=model.demo)
    env["VLLM_API_KEY"] = api_key
    return Launch((*argv, *flags), env, places.data, f"http://127.0.0.1:{port}", port, model.id, api_key)


def number(flags: Sequence[str], wanted: str, default: int) -> int:
    """What an engine started with `flags` takes for the flag `wanted`; CannotStart where it is no number above 0."""
    found = str(default)
    for flag, following in zip(flags, (*flags[1:], ""), strict=False):  # no flags: nothing to pair
        name, _, value = flag.partition("=")
        if name == wanted:
            found = value or following
    if not (found.isascii() and found.isdigit() and int(found)):
        raise CannotStart(f"{wanted} takes a number above 0, such as {wanted} {default}.")
    return int(found)


def child_environ(environ: Mapping[str, str], places: Places, hardware: Hardware, *, demo: bool) -> dict[str, str]:
    """What is allowed from the caller's environment; then defaults the caller may change; then what must be so."""
    env = {name: value for name, value in environ.items() if name in ALLOWED or name.startswith(ALLOWED_PREFIXES)}
    if not hardware.gpus:
        # The demo's cache needs 1 GiB at most; a user's model may have a quarter of the memory, 32 GiB at most.
        cache = 1 if demo else min(max(hardware.memory // GIB // 4, 1), 32)
        env.setdefault("VLLM_CPU_KVCACHE_SPACE", str(cache))
        env.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        if demo:  # too small for threads: on 2 busy cores 160 tokens/s with two of them, 900 with one
            env.setdefault("OMP_NUM_THREADS", "1")
    env.setdefault("VLLM_MAX_STOP_STRINGS", "16")  # as many as the gateway lets through (settings.caps.stop)
    ours = ["lora_filesystem_resolver"]
    if not hardware.gpus:
        ours.append("loragate_cpu_lora")
        env["PYTHONPATH"] = str(PLUGIN)
    theirs = [name for name in env.get("VLLM_PLUGINS", "").split(",") if name and name not in ours]
    env["VLLM_PLUGINS"] = ",".join((*ours, *theirs))
    env["VLLM_LORA_RESOLVER_CACHE_DIR"] = str(places.adapters)
    env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    env["VLLM_NO_USAGE_STATS"] = "1"
    env["HF_HUB_OFFLINE"] = "1"
    env["PYTHONUNBUFFERED"] = "1"  # the log is read for the stage of a start
    return env
