"""The vLLM command that serves what was exported: an adapter beside its base, or a model of its own.

Must not start anything. What a folder is, is read from its own files.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.errors import InvalidRequest
from adapters.folder import CONFIG, WEIGHTS
from training import lineage

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has slots of
BASE = "BASE"  # where nobody says where the base is


@dataclass(frozen=True, slots=True)
class Serving:
    """kind: adapter or model; model: what clients ask for; notes: sentences."""

    kind: str
    model: str
    argv: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def command(self) -> str:
        return shlex.join(self.argv)

    def document(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "model": self.model,
            "command": self.command,
            "argv": list(self.argv),
            "notes": list(self.notes),
        }


def serving(folder: Path, base: str | None = None, name: str | None = None) -> Serving:
    """How vLLM serves `folder`. base: the base's folder or hub id; name: for clients. InvalidRequest."""
    whole = folder.absolute()
    manifest = lineage.read(whole) or {}
    manifest = manifest if lineage.is_manifest(manifest) else {"name": manifest.get("name")}
    config = _table(whole / CONFIG)
    model = name or str(manifest.get("name") or "") or whole.name
    if config is not None and (whole / WEIGHTS).is_file():
        return adapter(str(whole), config, manifest, base, model)
    described = _table(whole / "config.json")
    if described is not None and any(whole.glob("*.safetensors")):
        return _model(whole, described, manifest, model)
    raise InvalidRequest(
        f"{folder} is neither an adapter ({CONFIG}, {WEIGHTS}) nor a model (config.json, *.safetensors)."
    )


def adapter(folder: str, config: dict[str, Any], manifest: dict[str, Any], base: str | None, model: str) -> Serving:
    """An adapter that lies in `folder`, beside its base."""
    named = base or str(config.get("base_model_name_or_path") or "") or BASE
    ranks = [int(config.get("r") or manifest.get("rank") or 16)]
    pattern = config.get("rank_pattern")
    if isinstance(pattern, dict):
        ranks += [value for value in pattern.values() if isinstance(value, int)]
    slot = next((rank for rank in RANKS if rank >= max(ranks)), RANKS[-1])
    argv = ["vllm", "serve", named, "--enable-lora", "--max-lora-rank", str(slot)]
    argv += ["--lora-modules", f"{model}={folder}", *_kwargs(manifest)]
    notes = []
    if base is None and not Path(named).is_absolute() and "/" not in named:
        notes.append(f"{named} is only the name of the base: put its folder or hub id there, or name it with --base.")
    notes.append("The gateway does all of this by itself: `loragate adapters register FOLDER --name NAME --promote`.")
    return Serving("adapter", model, tuple(argv), tuple(notes))


def _model(folder: Path, config: dict[str, Any], manifest: dict[str, Any], model: str) -> Serving:
    argv = ["vllm", "serve", str(folder), "--served-model-name", model, *_kwargs(manifest)]
    quantised = config.get("quantization_config")
    notes = ["It is a model of its own, and takes as much memory as its base: an adapter shares the base with others."]
    if isinstance(quantised, dict):
        notes.append(f"vLLM sees from its config that it is quantised ({quantised.get('quant_method')}).")
    notes.append(
        "Behind a gateway: add `--port 8100`, then `loragate serve --engine http://127.0.0.1:8100`; "
        f"callers ask for {model}."
    )
    return Serving("model", model, tuple(argv), tuple(notes))


def _kwargs(manifest: dict[str, Any]) -> list[str]:
    """What the template was told in training, for callers that do not say it themselves."""
    kwargs = manifest.get("chat_template_kwargs")
    return ["--default-chat-template-kwargs", json.dumps(kwargs, sort_keys=True)] if kwargs else []


def _table(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
