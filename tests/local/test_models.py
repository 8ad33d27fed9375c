"""The base model: what is accepted, the sentence for what is not, and the stable link."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from adapters.errors import ServiceError
from gateway.local import models
from gateway.local.display import Display
from gateway.local.errors import ModelInvalid
from gateway.local.models import Model
from gateway.local.places import Places


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "My Model (v2)"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["Qwen2ForCausalLM"]}))
    (folder / "model.safetensors").touch()
    (folder / "tokenizer.json").touch()
    return folder


def test_a_folder_gives_its_last_segment_as_the_public_id(base: Path) -> None:
    assert models.local_model(base) == Model("My-Model-v2", base)


@pytest.mark.parametrize(
    ("break_", "says"),
    [
        ("missing", "There is no model at .*hub id"),
        ("file", "is a file.*Give --model the folder"),
        ("no config", "has no config.json"),
        ("bad config", "cannot be read"),
        ("list config", "is not a model's configuration"),
        ("no architecture", "names no architecture"),
        ("adapter", "is an adapter.*loragate adapters register"),
        ("no weights", "holds no weights"),
        ("no tokenizer", "holds no tokenizer"),
    ],
)
def test_a_wrong_path_is_told_in_a_sentence(base: Path, break_: str, says: str) -> None:
    path = base
    match break_:
        case "missing":
            path = base / "nowhere"
        case "file":
            path = base / "config.json"
        case "no config":
            (base / "config.json").unlink()
        case "bad config":
            (base / "config.json").write_text("{")
        case "list config":
            (base / "config.json").write_text("[]")
        case "no architecture":
            (base / "config.json").write_text("{}")
        case "adapter":
            (base / "adapter_config.json").touch()
        case "no weights":
            (base / "model.safetensors").unlink()
        case "no tokenizer":
            (base / "tokenizer.json").unlink()
    with pytest.raises(ModelInvalid, match=says):
        models.local_model(path)


def test_the_link_is_swapped_and_never_replaces_what_is_not_ours(places: Places, base: Path, tmp_path: Path) -> None:
    place = models.link(places, Model("m", base))
    assert place == places.models / "m"
    assert place.resolve() == base
    other = tmp_path / "other"
    other.mkdir()
    assert models.link(places, Model("m", other)).resolve() == other
    assert [path.name for path in places.models.iterdir()] == ["m"]
    (places.models / "own").mkdir()
    with pytest.raises(ModelInvalid, match="not a link of loragate's"):
        models.link(places, Model("own", base))


@pytest.mark.parametrize(
    ("name", "hub"),
    [("Qwen/Qwen2.5-0.5B", True), ("./model", False), ("/abs/model", False), ("a/b/c", False), ("model", False)],
)
def test_hub_ids_are_told_from_paths(name: str, hub: bool) -> None:
    assert models.is_hub_id(name) is hub


@pytest.mark.parametrize(
    ("segment", "expected"), [("a@b/c", "a-b-c"), ("..", "base"), ("中文", "base"), ("Qwen2.5-0.5B", "Qwen2.5-0.5B")]
)
def test_base_ids_are_legal_public_names(segment: str, expected: str) -> None:
    assert models.base_id(segment) == expected


def client(modules: Path, body: str) -> None:
    modules.mkdir()
    (modules / "huggingface_hub.py").write_text(f"def snapshot_download(name, allow_patterns):\n    {body}\n")


async def fetch(places: Places, display: Display, modules: Path, body: str) -> Model:
    """Download with a hub client whose `snapshot_download` does `body`."""
    client(modules, body)
    environ = {"PYTHONPATH": str(modules), "LORAGATE_ADMIN_KEY": "not for children"}
    return await models.download("Org/Some-Model", Path(sys.executable), places, environ=environ, display=display)


async def test_a_hub_model_is_fetched_by_the_engine_environments_client(
    places: Places, display: Display, base: Path, tmp_path: Path
) -> None:
    body = "import os; assert 'LORAGATE_ADMIN_KEY' not in os.environ; print('Fetching 3 files: 33%|x'); "
    body += f"return {str(base)!r}"
    assert await fetch(places, display, tmp_path / "modules", body) == Model("Some-Model", base)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        ("GatedRepoError: 403 Client Error", "gated, private or misspelt.*HF_TOKEN"),
        ("RepositoryNotFoundError: 404 Client Error", "The hub has no model Org/Some-Model"),
        ("[Errno 28] No space left on device", "disk filled up"),
        ("cannot reach the hub", "could not be downloaded: OSError: cannot reach the hub.*HF_ENDPOINT"),
    ],
)
async def test_a_download_that_fails_is_told(
    places: Places, display: Display, tmp_path: Path, error: str, says: str
) -> None:
    with pytest.raises(ServiceError, match=says):
        await fetch(places, display, tmp_path / "modules", f"raise OSError({error!r})")
