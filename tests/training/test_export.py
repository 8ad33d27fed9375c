"""Bundles, merges, quantised models and how each is served: files and rules; the real merge is in tests/e2e."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapters import intake
from adapters.errors import AdapterRejected, InvalidRequest, StorageFull
from tests.gateway.tiny_lora import tiny_lora
from tests.training.fake_environment import fake_environment, measures
from tests.training.finished_job import base_model, finished
from training import lineage
from training.demo import DEMO
from training.export import bundle, merge, quantise, serving
from training.export.merge import NotMerged
from training.export.quantise import CannotQuantise
from training.interpreter import ChildFailed, Interpreter

GOOD: dict[str, Any] = {
    "stored": "bfloat16",
    "tensors": 3,
    "changed": ["model.layers.0.self_attn.q_proj.weight"],
    "targets": ["model.layers.0.self_attn.q_proj"],
    "prompts": 8,
    "positions": 100,
    "largest_logit": 20.0,
    "off_adapter": 0.2,
    "off_base": 9.0,
    "adapter_off_base": 9.1,
    "same_choice": 0.99,
}


def test_a_bundle_is_an_adapter_again(tmp_path: Path) -> None:
    done = finished(tmp_path / "data", fake_environment(tmp_path / "environment"))
    manifest = lineage.read(done.folder) or {}
    folder = bundle.write(done.folder / "adapter", manifest, tmp_path / "out", base_model="Qwen/Qwen3-0.6B")
    here = {file.name for file in folder.iterdir()}
    assert here == {"adapter_config.json", "adapter_model.safetensors", "README.md", "manifest.json"}
    assert intake.check(folder, None, 16).version == manifest["version"]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "Qwen/Qwen3-0.6B"
    assert lineage.read(folder) == manifest
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_the_same_bundle_is_the_same_archive(tmp_path: Path) -> None:
    lora = tiny_lora(tmp_path / "lora")
    manifest = bundle.unknown("a:b", lora, 1_800_000_000)
    first = bundle.write(lora, manifest, tmp_path / "one.tar.gz")
    assert first.read_bytes() == bundle.write(lora, manifest, tmp_path / "two.tgz").read_bytes()
    with tarfile.open(first) as tar:
        assert next((each.name, each.uid, each.uname) for each in tar) == ("a-b/README.md", 0, "")
        assert len(tar.getnames()) == 4


def test_nothing_is_written_over(tmp_path: Path) -> None:
    lora = tiny_lora(tmp_path / "lora")
    taken = tmp_path / "taken.tar.gz"
    taken.write_text("mine")
    with pytest.raises(InvalidRequest, match="is there already"):
        bundle.write(lora, bundle.unknown("a", lora, 0), taken)
    with pytest.raises(InvalidRequest, match="is there already"):
        bundle.free(lora)
    (tmp_path / "empty").mkdir()
    assert bundle.write(lora, bundle.unknown("a", lora, 0), tmp_path / "empty").is_dir()
    assert taken.read_text() == "mine"


def test_a_merge_writes_a_model_with_the_base_s_own_files(tmp_path: Path) -> None:
    python, base = fake_environment(tmp_path / "environment"), base_model(tmp_path / "base")
    (base / "README.md").write_text("the base's card")
    measures(python, **GOOD)
    made = merge.merge(
        Interpreter(python),
        base,
        tiny_lora(tmp_path / "lora"),
        tmp_path / "merged",
        papers=lambda merged: {"README.md": merged.sentence},
    )
    assert (made.off, made.tolerance) == (0.01, 0.05)
    files = {file.name for file in (tmp_path / "merged").iterdir()}
    assert files == {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors", "README.md"}
    assert (tmp_path / "merged" / "config.json").read_bytes() == (base / "config.json").read_bytes()
    assert "1 weights differ" in (tmp_path / "merged" / "README.md").read_text()


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"changed": []}, "1 of 1 modules of the adapter left the base's weights as they were"),
        ({"off_adapter": 1.5}, r"logits are 7\.50% of the largest one apart, and 5\.00% are allowed"),
        ({"off_adapter": float("nan")}, "does not answer as the adapter on its base does"),
        ({"off_adapter": 0.9, "off_base": 0.8}, "nearer to the base"),
        ({"stored": "float32"}, r"0\.01% are allowed"),
    ],
)
def test_a_merge_that_is_none_is_refused_and_leaves_nothing(
    tmp_path: Path, figures: dict[str, Any], words: str
) -> None:
    python, base = fake_environment(tmp_path / "environment"), base_model(tmp_path / "base")
    measures(python, **{**GOOD, **figures})
    with pytest.raises(NotMerged, match=words):
        merge.merge(Interpreter(python), base, tiny_lora(tmp_path / "lora"), tmp_path / "out" / "merged")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_merge_that_fails_says_its_last_words(tmp_path: Path) -> None:
    python, base = fake_environment(tmp_path / "environment"), base_model(tmp_path / "base")
    with pytest.raises(ChildFailed, match="RuntimeError: the fake was told to fail"):
        merge.merge(Interpreter(python), base, tiny_lora(tmp_path / "lora"), tmp_path / "out" / "merged")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_cannot_be_merged_into_is_refused_at_once(tmp_path: Path) -> None:
    lora, base = tiny_lora(tmp_path / "lora"), base_model(tmp_path / "base")
    with pytest.raises(InvalidRequest, match="holds no base model"):
        merge.check_base(tmp_path, lora)
    with pytest.raises(AdapterRejected):
        merge.check_base(DEMO / "base", lora)
    (base / "config.json").write_text('{"quantization_config": {"quant_method": "awq"}}')
    with pytest.raises(InvalidRequest, match="nothing can be merged into quantised weights"):
        merge.check_base(base, lora)
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").unlink()
    with pytest.raises(InvalidRequest, match=r"no \*\.safetensors"):
        merge.check_base(base, lora)
    with pytest.raises(StorageFull, match="Free some space"):
        merge.need_room(tmp_path, 10**18)


def test_an_adapter_is_served_beside_its_base(tmp_path: Path) -> None:
    lora = tiny_lora(tmp_path / "lora")
    manifest = {**bundle.unknown("cs", lora, 0), "chat_template_kwargs": {"enable_thinking": False}}
    folder = bundle.write(lora, {**manifest, "base": {"id": "tiny"}}, tmp_path / "out dir")
    found = serving.serving(folder)
    assert found.argv[:6] == ("vllm", "serve", "tiny", "--enable-lora", "--max-lora-rank", "8")
    assert f"cs={folder}" in found.argv
    assert """--default-chat-template-kwargs '{"enable_thinking": false}'""" in found.command
    assert f"'cs={folder}'" in found.command, "a path with a space is one word"
    assert "only the name of the base" in found.notes[0]
    named = serving.serving(folder, base="Qwen/Qwen3-0.6B", name="support")
    assert (named.model, named.argv[2], len(named.notes)) == ("support", "Qwen/Qwen3-0.6B", 1)


def test_a_model_is_served_by_itself(tmp_path: Path) -> None:
    base = base_model(tmp_path / "merged")
    lineage.write(base, {"schema": 1, "name": "cs"})
    assert serving.serving(base).argv == ("vllm", "serve", str(base), "--served-model-name", "cs")
    (base / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    assert any("quantised (gptq)" in note for note in serving.serving(base).notes)
    with pytest.raises(InvalidRequest, match="neither an adapter"):
        serving.serving(tmp_path)


def test_gptq_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(CannotQuantise, match="needs an NVIDIA GPU"):
        quantise.check(0, {})
    with pytest.raises(CannotQuantise, match="needs gptqmodel, which"):
        quantise.check(1, {"optimum": "1.24"})
    quantise.check(1, {"optimum": "1.24", "gptqmodel": "2.0"})


def test_calibration_rows_are_long_enough(tmp_path: Path) -> None:
    data, out = tmp_path / "rows.jsonl", tmp_path / "calibration.jsonl"
    row = {"messages": [{"role": "user", "content": "问 " * 20}, {"role": "assistant", "content": "yes"}]}
    data.write_text(json.dumps(row) + "\nplain text\n", encoding="utf-8")
    assert quantise.calibrate(data, out) == quantise.SAMPLES
    texts = [json.loads(line)["text"] for line in out.read_text(encoding="utf-8").splitlines()]
    assert min(map(len, texts)) >= quantise.LETTERS
    assert "user" not in texts[0]
    data.write_text("\n")
    with pytest.raises(InvalidRequest, match="no text to calibrate on"):
        quantise.calibrate(data, out)


def test_the_settings_of_a_gptq_export(tmp_path: Path) -> None:
    found = quantise.settings(tmp_path / "m", tmp_path / "c.jsonl", tmp_path / "o", 4, 128)
    assert found["export_quantization_bit"] == 4
    assert yaml.safe_load(yaml.safe_dump(found)) == found
    with pytest.raises(InvalidRequest, match="5 is none of them"):
        quantise.settings(tmp_path / "m", tmp_path / "c", tmp_path / "o", 5, 128)
    with pytest.raises(InvalidRequest, match="has a space"):
        quantise.settings(tmp_path / "m m", tmp_path / "c", tmp_path / "o", 4, 128)


def test_the_program_for_awq_is_python() -> None:
    compile(quantise.awq("/models/it's", "/data/rows.jsonl", "/out"), "awq.py", "exec")
