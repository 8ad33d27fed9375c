"""The base model that the local engine serves: the demo's, a folder of the user's, or one from the hub.

Decides the base's public id and keeps the stable link `<data>/models/<base id>`: vLLM compares that very string with
an adapter's recorded base. Checks what can be seen from outside; whether vLLM can serve it, vLLM says.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adapters.errors import StorageFull
from gateway.local.display import Display
from gateway.local.errors import ModelInvalid
from gateway.local.places import Places
from gateway.local.process import run

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo"
DEMO_ID = "demo-base"
_HUB = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "tekken.json", "vocab.json")
# What serving needs; the other formats of one repository (GGUF, ONNX, original checkpoints) would double the download.
_WANTED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken", "tokenizer*")
_DOWNLOAD = """
import sys
from huggingface_hub import snapshot_download
wanted = sys.argv[2:]
path = snapshot_download(sys.argv[1], allow_patterns=wanted)
print("path=" + path, flush=True)
"""


@dataclass(frozen=True, slots=True)
class Model:
    """A base on this disk and the id that callers see."""

    id: str
    path: Path
    demo: bool = False


def demo_model() -> Model:
    """The base that ships with the project; ModelInvalid when the installation lacks it."""
    folder = DEMO / "base"
    if not (folder / "config.json").is_file():
        raise ModelInvalid(
            f"The demo's base model is not in {folder}. Rebuild it with `make demo`, or name a model with --model."
        )
    return Model(DEMO_ID, folder, demo=True)


def is_hub_id(name: str) -> bool:
    """`organisation/name`, and no such file or folder here."""
    return _HUB.fullmatch(name) is not None and not Path(name).exists()


def local_model(path: Path) -> Model:
    """A folder that looks like a base model; ModelInvalid with what is wrong and what to name instead."""
    path = path.expanduser().absolute()
    if not path.exists():
        raise ModelInvalid(
            f"There is no model at {path}. Give --model a folder with config.json, or a hub id "
            "such as Qwen/Qwen2.5-0.5B-Instruct."
        )
    if not path.is_dir():
        raise ModelInvalid(f"{path} is a file. Give --model the folder that holds config.json and the weights.")
    if (path / "adapter_config.json").is_file():
        raise ModelInvalid(
            f"{path} is an adapter, not a base model. Start with its base, then "
            f"`loragate adapters register {path} --name NAME`."
        )
    config = _config(path)
    if "architectures" not in config and "model_type" not in config:
        raise ModelInvalid(f"{path / 'config.json'} names no architecture, so it is not a model's. Check the folder.")
    if not any(path.glob("*.safetensors")) and not any(path.glob("*.bin")):
        raise ModelInvalid(f"{path} holds no weights (*.safetensors). Was the download complete?")
    if not any((path / name).is_file() for name in _TOKENIZERS):
        raise ModelInvalid(f"{path} holds no tokenizer (tokenizer.json). Save the tokenizer there beside the weights.")
    return Model(base_id(path.name), path)


def base_id(segment: str) -> str:
    """The public id made of a last path segment: its letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", segment).strip("._-")[:128] or "base"


def link(places: Places, model: Model) -> Path:
    """Point `<data>/models/<id>` at the model, swapped whole; ModelInvalid when something else lies there."""
    place = places.models / model.id
    if place.exists() and not place.is_symlink():
        raise ModelInvalid(
            f"{place} is not a link of loragate's. Move it elsewhere, then name its new place with --model."
        )
    temporary = places.models / f".{model.id}.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(model.path.resolve())
    os.replace(temporary, place)
    return place


async def download(name: str, python: Path, places: Places, *, environ: Mapping[str, str], display: Display) -> Model:
    """Fetch a hub model with the engine environment's own client, to the hub's usual cache.

    A copy that is complete is found there without the network. ModelInvalid or StorageFull.
    """
    display.show(f"Getting {name} from the hub", "files already here are not fetched again")

    def watch(line: str) -> None:
        if line.startswith("Fetching ") or "%|" in line:
            display.show(f"Getting {name} from the hub", " ".join(line.split("\r")[-1].split())[:60])

    argv = [str(python), "-c", _DOWNLOAD, name, *_WANTED]
    env = {key: value for key, value in environ.items() if not key.startswith(("LORAGATE_", "VLLM_"))}
    outcome = await run(argv, env=env, cwd=places.data, on_line=watch)
    paths = [line.removeprefix("path=") for line in outcome.lines if line.startswith("path=")]
    if outcome.code == 0 and paths:
        display.end("here")
        found = local_model(Path(paths[-1]))
        return Model(base_id(name.rpartition("/")[2]), found.path)
    display.end("failed")
    raise _download_failure(name, outcome.text, outcome.lines, shutil.disk_usage(places.data).free)


def _download_failure(name: str, text: str, lines: tuple[str, ...], free: int) -> ModelInvalid | StorageFull:
    if "No space left" in text:
        return StorageFull(
            f"The disk filled up while {name} was being downloaded ({free / 1e9:.1f} GB free). Free some space."
        )
    if "GatedRepo" in text or "401 Client Error" in text or "403 Client Error" in text:
        return ModelInvalid(
            f"The hub does not let this user have {name}: it is gated, private or misspelt. Accept its terms there and "
            "set HF_TOKEN, or check the name."
        )
    if "RepositoryNotFound" in text or "404 Client Error" in text:
        return ModelInvalid(f"The hub has no model {name}. Check the name, or give --model a folder on this disk.")
    last = next((line for line in reversed(lines) if line.strip()), "no output").strip().partition(". ")[0]
    return ModelInvalid(
        f"{name} could not be downloaded: {last[:200]}. Check the network or HF_ENDPOINT, or give --model a folder."
    )


def _config(path: Path) -> dict[str, object]:
    try:
        document = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelInvalid(
            f"{path} has no config.json. Give --model the folder of a model in Hugging Face's form."
        ) from None
    except (OSError, ValueError) as exc:
        raise ModelInvalid(f"{path / 'config.json'} cannot be read: {exc}. Download or save the model again.") from None
    if not isinstance(document, dict):
        raise ModelInvalid(f"{path / 'config.json'} is not a model's configuration. Check the folder.")
    return document
