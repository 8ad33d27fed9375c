"""The demo's weights can be made again with real LLaMA-Factory: the whole way, with a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.demo import ADAPTER_FILES, DEMO, main

pytestmark = [pytest.mark.trainer, pytest.mark.timeout(400)]


def test_a_quick_rebuild_makes_servable_files(training_python: Path, tmp_path: Path) -> None:
    way = ["--training-python", str(training_python), "--out", str(tmp_path), "--quick"]
    assert main([*way, "--only", "base", "--only", "financial-qa"]) == 0
    shapes = (tmp_path / "base" / "config.json", DEMO / "base" / "config.json")
    made, shipped = (json.loads(file.read_text(encoding="utf-8")) for file in shapes)
    assert made == shipped
    adapter = tmp_path / "adapters" / "financial-qa"
    assert sorted(file.name for file in adapter.iterdir()) == sorted(ADAPTER_FILES)
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["base_model_name_or_path"]) == (8, "demo-base")
    sizes = [
        (folder / "financial-qa" / ADAPTER_FILES[1]).stat().st_size for folder in (adapter.parent, DEMO / "adapters")
    ]
    assert sizes[0] == sizes[1]
    assert set(json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))["adapters"]) == {
        f"financial-qa/{name}" for name in ADAPTER_FILES
    }
