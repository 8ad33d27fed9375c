"""The base model as a folder on this machine: its sizes, its chat template, how it is stored. Reads headers only.

Must not know recipes. adapters/served.py knows the shapes of the families that adapters are checked against.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.served import Shape, described
from training.errors import RecipeInvalid

MAX_HEADER_BYTES = 100 * 1024 * 1024
_DTYPE_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1}


@dataclass(frozen=True, slots=True)
class Base:
    """One base model. context: the most tokens it takes; quantised: how, where it already is (gptq, awq, …).

    shape: None for families whose modules are not known here. chat_template: None where it has none.
    """

    id: str
    folder: Path
    family: str
    parameters: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int
    context: int
    size_bytes: int
    quantised: str | None = None
    chat_template: str | None = None
    bos: str = ""
    eos: str = ""
    shape: Shape | None = None

    @property
    def short(self) -> str:
        """The last segment of its id."""
        return self.id.rpartition("/")[2]

    def modules(self) -> tuple[str, ...]:
        """The linear modules of a layer that LoRA can be on; empty where they are not known."""
        return tuple(name.rpartition(".")[2] for name in self.shape.in_layer()) if self.shape is not None else ()

    def lora_parameters(self, rank: int, target: tuple[str, ...] = ("all",)) -> int:
        """How many numbers an adapter of that rank has."""
        every = target == ("all",)
        if self.shape is not None:
            sizes = self.shape.in_layer() | (self.shape.outside() if not every else {})
            widths = sum(
                sum(pair) * (self.layers if name in self.shape.in_layer() else 1)
                for name, pair in sizes.items()
                if every or name.rpartition(".")[2] in target
            )
        else:  # as a decoder of Llama's kind
            widths = self.layers * (8 * self.hidden + 3 * (self.hidden + self.intermediate))
        return rank * widths


def read_base(base_id: str, folder: Path) -> Base:
    """The model in `folder`; RecipeInvalid where there is none that can be trained."""
    config = _table(folder / "config.json")
    if config is None:
        raise RecipeInvalid(
            f"The base {base_id} is not a folder on this machine ({folder} has no config.json). Training needs its "
            "weights here: serve a local folder with --model, or name one with --base.",
            param="base",
        )
    if any(odd in str(folder) for odd in (" ", "${")):
        raise RecipeInvalid(
            f"The base's folder {folder} has a space or ${{ in its path, at which the trainer splits its command "
            "line. Move it, or put a link without them in front of it.",
            param="base",
        )
    nested = config.get("text_config")
    inner: dict[str, Any] = nested if isinstance(nested, dict) else config
    parameters, size = _weights(folder)
    tokenizer = _table(folder / "tokenizer_config.json") or {}
    try:
        return Base(
            id=base_id,
            folder=folder,
            family=str(config.get("model_type", "")),
            parameters=parameters,
            hidden=int(inner["hidden_size"]),
            intermediate=int(inner.get("intermediate_size") or 4 * int(inner["hidden_size"])),
            layers=int(inner["num_hidden_layers"]),
            heads=int(inner.get("num_attention_heads") or 1),
            vocabulary=int(inner["vocab_size"]),
            context=int(inner.get("max_position_embeddings") or 2048),
            size_bytes=size,
            quantised=_quantised(config),
            chat_template=_chat_template(folder, tokenizer),
            bos=_token(tokenizer.get("bos_token")),
            eos=_token(tokenizer.get("eos_token")),
            shape=described(base_id, str(folder.absolute())).shape,
        )
    except (KeyError, TypeError, ValueError):
        raise RecipeInvalid(
            f"The config.json of {base_id} does not say how large the model is, so nothing can be planned for it. "
            "Only decoders that write text can be trained here.",
            param="base",
        ) from None


def _weights(folder: Path) -> tuple[int, int]:
    """(numbers, bytes) of all weight files."""
    numbers = size = 0
    for file in sorted(folder.glob("*.safetensors")):
        size += file.stat().st_size
        numbers += _numbers(file)
    if not size:
        size = sum(file.stat().st_size for file in folder.glob("pytorch_model*.bin"))
        numbers = size // 2
    return numbers, size


def _numbers(file: Path) -> int:
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(min(length, MAX_HEADER_BYTES)))
        return sum(math.prod(each["shape"]) for name, each in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise RecipeInvalid(f"{file.name} of the base is damaged. Download the model again.", param="base") from None


def _quantised(config: dict[str, Any]) -> str | None:
    found = config.get("quantization_config")
    return str(found.get("quant_method") or "quantised") if isinstance(found, dict) else None


def _chat_template(folder: Path, tokenizer: dict[str, Any]) -> str | None:
    """As transformers looks for it: a file of its own, then tokenizer_config.json."""
    try:
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        found = tokenizer.get("chat_template")
    if isinstance(found, list):
        found = next((each.get("template") for each in found if each.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def _token(given: Any) -> str:
    return str(given.get("content", "")) if isinstance(given, dict) else given if isinstance(given, str) else ""


def _table(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
