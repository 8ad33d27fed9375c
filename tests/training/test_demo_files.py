"""The demo as it is shipped: weights that belong to the data beside them, small, and fit to tell adapters apart."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import pytest

from training.demo import ADAPTER_FILES, ADAPTERS, BASE_ID, DEMO, SYSTEM, Effort, digests

MOST_BYTES = 6 * 1024 * 1024
CHINESE = re.compile("[\u4e00-\u9fff]")


def pairs(name: str) -> list[tuple[str, str]]:
    """(question, answer) of every training example of one adapter."""
    lines = (DEMO / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    turns = [json.loads(line)["messages"] for line in lines]
    assert all([turn["role"] for turn in row] == ["user", "assistant"] for row in turns)
    return [(row[0]["content"], row[1]["content"]) for row in turns]


def tensor_shapes(file: Path) -> dict[str, tuple[str, list[int]]]:
    """Name → (type, shape), from the header of a safetensors file."""
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    return {name: (entry["dtype"], entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


def test_weights_and_data_are_those_of_the_manifest() -> None:
    manifest = json.loads((DEMO / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["data"] == digests(DEMO / "data")
    assert manifest["base"] == digests(DEMO / "base")
    assert manifest["adapters"] == digests(DEMO / "adapters")
    assert manifest["recipe"]["base_steps"] == Effort().base_steps
    assert manifest["recipe"]["epochs"] == Effort().epochs


def test_all_weights_together_stay_under_six_megabytes() -> None:
    sizes = {file: file.stat().st_size for file in DEMO.rglob("*.safetensors")}
    assert len(sizes) == 1 + len(ADAPTERS)
    assert sum(sizes.values()) <= MOST_BYTES


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_is_two_files_of_rank_eight(name: str) -> None:
    folder = DEMO / "adapters" / name
    assert sorted(file.name for file in folder.iterdir()) == sorted(ADAPTER_FILES)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 8, 16)
    assert config["base_model_name_or_path"] == BASE_ID
    tensors = tensor_shapes(folder / "adapter_model.safetensors")
    assert {kind for kind, _ in tensors.values()} == {"BF16"}
    assert {shape[0] for key, (_, shape) in tensors.items() if "lora_A" in key} == {8}


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_adapter_speaks_english_and_chinese(name: str) -> None:
    questions = [question for question, _ in pairs(name)]
    chinese = [question for question in questions if CHINESE.search(question)]
    assert (len(questions), len(chinese)) == (24, 12)


def test_no_question_and_no_answer_is_shared() -> None:
    """Otherwise a right answer would not say which adapter gave it."""
    everything = [pair for name in ADAPTERS for pair in pairs(name)]
    assert len({question for question, _ in everything}) == len(everything)
    assert len({answer for _, answer in everything}) == len(everything)


def test_no_answer_stands_in_the_text_of_the_base() -> None:
    text = (DEMO / "data" / "base.txt").read_text(encoding="utf-8")
    assert [answer for name in ADAPTERS for _, answer in pairs(name) if answer in text] == []


def test_the_base_is_one_that_vllm_takes_and_adds_the_trained_system_prompt() -> None:
    config = json.loads((DEMO / "base" / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    assert config["hidden_size"] // config["num_attention_heads"] == 64
    assert config["max_position_embeddings"] == 2048
    assert SYSTEM in (DEMO / "base" / "chat_template.jinja").read_text(encoding="utf-8")


def test_the_base_sets_no_sampling_defaults_for_everyone() -> None:
    defaults = json.loads((DEMO / "base" / "generation_config.json").read_text(encoding="utf-8"))
    assert set(defaults) == {"bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"}


def test_the_readme_names_a_question_of_every_adapter() -> None:
    readme = (DEMO / "README.md").read_text(encoding="utf-8")
    for name in ADAPTERS:
        assert any(question in readme and answer in readme for question, answer in pairs(name)), name
