"""Model cards: the front matter that the hub reads, and what is said to people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.training.fake_environment import fake_environment
from tests.training.finished_job import finished
from training.modelcard import card


@pytest.fixture
def manifest(tmp_path: Path) -> dict[str, Any]:
    return finished(tmp_path / "data", fake_environment(tmp_path / "environment")).manifest()


def front(text: str) -> dict[str, Any]:
    _, fields, _ = text.split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(fields)
    return found


def test_the_front_matter_is_what_the_hub_reads(manifest: dict[str, Any]) -> None:
    fields = front(card(manifest, base_model="Qwen/Qwen3-0.6B", license_id="apache-2.0"))
    assert (fields["base_model"], fields["base_model_relation"]) == ("Qwen/Qwen3-0.6B", "adapter")
    assert (fields["library_name"], fields["license"]) == ("peft", "apache-2.0")
    assert {"lora", "llama-factory"} <= set(fields["tags"])
    (result,) = fields["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "exact_match", "value": 0.75, "name": "exact_match"}]


def test_a_base_that_is_only_a_folder_is_not_given_as_a_hub_id(manifest: dict[str, Any]) -> None:
    text = card(manifest)
    assert "base_model" not in front(text), "the hub refuses a card whose base it cannot find"
    assert "A LoRA adapter for `tiny`" in text


def test_people_read_how_it_was_made(manifest: dict[str, Any]) -> None:
    text = card(manifest)
    for words in (
        "6 rows in `train.jsonl`, 6 steps, 1,234 tokens",
        "| `learning_rate` | `0.001` |",
        "Better than the base by 0.5.",
        "| candidate | 0.75 |",
        manifest["digest"],
        "llamafactory 0.9.5",
        "2027-01-15 08:00 UTC",
    ):
        assert words in text


def test_a_model_card_of_a_merged_model_says_how_it_was_checked(manifest: dict[str, Any]) -> None:
    text = card(manifest, merged={"sentence": "28 weights differ."})
    assert front(text)["library_name"] == "transformers"
    assert "28 weights differ." in text
    assert "vllm serve . --served-model-name customer-service" in text


def test_what_nobody_said_is_not_made_up() -> None:
    text = card({"name": "a:b", "version": "0123456789ab", "base": {"id": None}, "rank": 8})
    assert "Nobody said how this version was made" in text
    assert "a base model that is not recorded" in text
    assert "Evaluation" not in text


def test_text_from_elsewhere_stays_text(manifest: dict[str, Any]) -> None:
    manifest["evaluation"]["summary"]["verdict"] = "yes`\n# No\n---\n"
    manifest["settings"]["template"] = "a|b"
    text = card(manifest)
    assert "\n# No" not in text
    assert "a\\|b" in text
