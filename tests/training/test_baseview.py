"""The folder that a run loads its base from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from training.baseview import lay_out, origin


def base(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", **config}))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def dtype(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text()).get("dtype")


@pytest.mark.parametrize(
    ("settings", "wanted"), [({}, "float32"), ({"bf16": True}, "bfloat16"), ({"fp16": True}, "float16")]
)
@pytest.mark.parametrize("stored", [{"dtype": "int8"}, {"torch_dtype": "int8"}, {}])
def test_it_is_loaded_in_the_precision_of_the_plan(
    tmp_path: Path, settings: dict[str, Any], wanted: str, stored: dict[str, str]
) -> None:
    original = base(tmp_path / "base", **stored)
    made = lay_out(original, tmp_path / "view", settings)
    config = json.loads((made / "config.json").read_text())
    assert {config[name] for name in ("dtype", "torch_dtype") if name in config} == {wanted}
    assert (made / "model.safetensors").read_bytes() == b"weights"
    assert origin(made) == original
    assert json.loads((original / "config.json").read_text()) == {"model_type": "qwen2", **stored}


def test_a_part_has_it_too(tmp_path: Path) -> None:
    original = base(tmp_path / "base", dtype="bfloat16", text_config={"dtype": "bfloat16", "hidden_size": 8})
    config = json.loads((lay_out(original, tmp_path / "view", {}) / "config.json").read_text())
    assert config["text_config"] == {"dtype": "float32", "hidden_size": 8}


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        ({"dtype": "bfloat16"}, {"bf16": True}),
        ({"dtype": "bfloat16", "quantization_config": {"quant_method": "gptq"}}, {}),
        ({"dtype": "bfloat16"}, {"fp16": True, "quantization_bit": 4}),
    ],
)
def test_what_is_as_wanted_or_quantised_is_loaded_itself(
    tmp_path: Path, config: dict[str, Any], settings: dict[str, Any]
) -> None:
    original = base(tmp_path / "base", **config)
    assert lay_out(original, tmp_path / "view", settings) == original
    assert not (tmp_path / "view").exists()
    assert origin(original) == original


def test_made_again_it_follows_the_base(tmp_path: Path) -> None:
    lay_out(base(tmp_path / "one", dtype="bfloat16"), tmp_path / "view", {})
    other = base(tmp_path / "other", dtype="bfloat16")
    (other / "tokenizer.json").write_text("{}")
    made = lay_out(other, tmp_path / "view", {})
    assert (made / "tokenizer.json").exists()
    assert origin(made) == other
