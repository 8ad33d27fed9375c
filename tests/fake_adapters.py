"""The fake engine's adapters: loading, unloading and the filesystem resolver, with vLLM 0.32.0's answers (recorded).

Knows folders and names, no sockets. Also writes small true adapter folders for tests.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fake_answers import dump, problem
from tests.fake_slots import Loaded, Slots
from tests.fake_wire import Reply

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def write_adapter(folder: Path, *, rank: int = 8, base: str = "demo-base", seed: int = 0) -> Path:
    """Make `folder` a LoRA adapter that the checks here and any safetensors reader accept; `seed`: other weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "bias": "none",
    }
    config |= {"r": rank, "lora_alpha": 2 * rank, "lora_dropout": 0.0, "target_modules": ["q_proj"]}
    (folder / CONFIG).write_text(json.dumps(config))
    name, width = "base_model.model.model.layers.0.self_attn.q_proj", 16
    header, data = {}, b""
    for part, shape in (("lora_A", [rank, width]), ("lora_B", [width, rank])):
        numbers = struct.pack(f"<{rank * width}f", *((seed + at % 7) / 8 for at in range(rank * width)))
        offsets = [len(data), len(data) + len(numbers)]
        header[f"{name}.{part}.weight"] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        data += numbers
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(head)) + head + data)
    return folder


@dataclass(slots=True)
class Adapters:
    """What one engine process has loaded. Nothing of it survives a restart."""

    bases: list[str]
    model_path: str
    max_lora_rank: int
    folder: Path | None
    slots: Slots
    loaded: dict[str, str] = field(default_factory=dict)  # the list of names, which says nothing of slots
    loads: list[str] = field(default_factory=list)

    def find(self, name: Any) -> Loaded | None:
        """The load that a request for `name` uses; None for the base and for what there is not."""
        if not isinstance(name, str) or not isinstance(self.resolve(name), str) or name not in self.loaded:
            return None
        return self.slots.find(name, self.loaded[name])

    def forget(self) -> None:
        """The process is gone."""
        self.loaded.clear()
        self.slots.clear()

    def resolve(self, name: str | None) -> str | Reply:
        """The name that the answer will carry, loading lazily as the filesystem resolver does; else 404 or 400."""
        if not name or name in self.bases:
            return self.bases[0]
        if name in self.loaded:
            return name
        # vLLM joins the name to the folder as it is, `../` included: kept, so that a gateway that lets client text
        # through is caught by its tests.
        if self.folder is not None and self._belongs(path := self.folder / name):
            if self._failure(path) is not None:
                return problem(f"LoRA adapter '{name}' was found but could not be loaded.")
            self.slots.load(name, str(path))
            self.loaded[name] = str(path)
            return name
        aliases = ", ".join(self.bases)
        message = f"The model `{name}` does not exist. Valid aliases: {aliases}."
        return problem(message, "NotFoundError", 404, "model")

    def load(self, body: Any) -> Reply:
        """POST /v1/load_lora_adapter; every call with a name is counted in `loads`."""
        if missing := [key for key in ("lora_name", "lora_path") if key not in body]:
            return missing_fields(missing, len(body))
        name, path = body["lora_name"], body["lora_path"]
        self.loads.append(name)
        if not name or not path:
            return problem("Both 'lora_name' and 'lora_path' must be provided.", "InvalidUserInput")
        if name in self.bases:
            return problem(f"The lora adapter '{name}' conflicts with a served base model.", "InvalidUserInput")
        if name in self.loaded and not body.get("load_inplace"):
            return problem(
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
                "'load_inplace' to True.",
                "InvalidUserInput",
            )
        if not (Path(path) / CONFIG).is_file():
            return problem(f"Loading lora {name} failed: No adapter found for {path}", "NotFoundError", 404)
        if (failure := self._failure(Path(path))) is not None:
            return problem(
                f"Call to add_lora method failed: Worker failed with error '{failure}', please check the stack trace "
                "above for the root cause",
                "InternalServerError",
                500,
            )
        self.slots.load(name, path)
        self.loaded[name] = path
        text = f"Success: LoRA adapter '{name}' added successfully."
        return Reply(body=text.encode(), content_type=None)

    def unload(self, body: Any) -> Reply:
        """POST /v1/unload_lora_adapter."""
        if "lora_name" not in body:
            return missing_fields(["lora_name"], len(body))
        name = body["lora_name"]
        if not name:
            return problem("'lora_name' needs to be provided to unload a LoRA adapter.", "InvalidUserInput")
        if name not in self.loaded:
            return problem(f"The lora adapter '{name}' cannot be found.", "NotFoundError", 404)
        del self.loaded[name]
        return Reply(body=f"Success: LoRA adapter '{name}' removed successfully.".encode(), content_type=None)

    def models(self, created: int, max_model_len: int) -> Reply:
        """GET /v1/models: bases with their length, adapters with their folder as `root`."""
        rows: list[tuple[Any, ...]] = [(name, self.model_path, None, max_model_len) for name in self.bases]
        rows += [(name, path, self.bases[0], None) for name, path in self.loaded.items()]
        cards = []
        for at, (name, root, parent, length) in enumerate(rows):
            flags = {"allow_create_engine": False, "allow_sampling": True, "allow_logprobs": True}
            flags |= {"allow_search_indices": False, "allow_view": True, "allow_fine_tuning": False}
            permission = {"id": f"modelperm-{at:016x}", "object": "model_permission", "created": created, **flags}
            permission |= {"organization": "*", "group": None, "is_blocking": False}
            card = {"id": name, "object": "model", "created": created, "owned_by": "vllm", "root": root}
            cards.append(card | {"parent": parent, "max_model_len": length, "permission": [permission]})
        return Reply(body=dump({"object": "list", "data": cards}))

    def _belongs(self, path: Path) -> bool:
        if not (path / CONFIG).is_file():
            return False
        config = json.loads((path / CONFIG).read_text())
        return bool(config["peft_type"] == "LORA" and config["base_model_name_or_path"] == self.model_path)

    def _failure(self, path: Path) -> str | None:
        """Why the worker cannot load the folder, in its words; rank first, then weights."""
        rank = json.loads((path / CONFIG).read_text()).get("r", 8)
        if rank > self.max_lora_rank:
            return f"LoRA rank {rank} is greater than max_lora_rank {self.max_lora_rank}."
        if not any((path / name).is_file() for name in (WEIGHTS, "adapter_model.bin", "adapter_model.pt")):
            return f"{path} doesn't contain tensors"
        return None


def missing_fields(names: list[str], count: int) -> Reply:
    """FastAPI's answer to a body of `count` fields without the required `names`, as vLLM renders it."""
    rest = f"'msg': 'Field required', 'input': '<dict of {count} items>'"
    lines = [f"{len(names)} validation error{'s' if len(names) > 1 else ''}:"]
    lines += [f"  {{'type': 'missing', 'loc': 'body.{name}', {rest}}}" for name in names]
    return problem("\n".join(lines), "Bad Request", 400, f"body.{names[0]}")
