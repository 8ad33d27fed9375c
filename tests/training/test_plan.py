"""Plans: what every `auto` becomes, what a run takes, and what is refused with the nearest setting that works."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapters.errors import InvalidRequest
from tests.training.bases import H100, LAPTOP, QWEN, SMALL_GPU, demo, large, recipe, rows
from training import trainyaml
from training.errors import NotServable, RecipeInvalid
from training.facts import DataFacts, Facts, Gpu, Machine
from training.plan import Settled, settle
from training.recipe import load

pytest.importorskip("jinja2")  # of the extra `train`
RECIPES = Path(__file__).resolve().parents[2] / "configs" / "recipes"


def test_the_demo_recipe_is_what_the_demo_was_made_with() -> None:
    settled = settle(load(RECIPES / "customer_service.yaml"), rows(), demo())
    made = settled.llamafactory
    assert (settled.steps, settled.rank, settled.device, settled.served) == (450, 8, "cpu", "adapter")
    assert (made["template"], made["default_system"]) == ("qwen", "You are a helpful assistant.")
    assert (made["lora_alpha"], made["learning_rate"], made["num_train_epochs"]) == (16, 3e-3, 150)
    assert made["save_steps"] >= 1
    assert "bf16" not in made
    assert settled.tokens == 24 * 70 * 150


def test_every_auto_is_decided_and_its_reason_said() -> None:
    settled = settle(recipe(), rows(), demo())
    assert "auto" not in str(settled.llamafactory)
    for key in ("epochs", "batch_size", "learning_rate", "cutoff", "warmup", "save_steps", "logging_steps"):
        assert [note for note in settled.notes if note.startswith(f"training.{key} = ")], key
    for key in ("rank", "alpha"):
        assert [note for note in settled.notes if note.startswith(f"method.{key} = ")], key
    assert settled.steps >= 400  # of a base this small
    assert settled.llamafactory["cutoff_len"] == 128


def test_what_the_recipe_says_is_not_explained() -> None:
    settled = settle(recipe(training={"epochs": 3, "cutoff": 256}), rows(), demo())
    assert not [note for note in settled.notes if "epochs" in note or note.startswith("training.cutoff")]
    assert (settled.epochs, settled.llamafactory["cutoff_len"]) == (3, 256)


def test_a_settled_plan_survives_the_database() -> None:
    settled = settle(recipe(), rows(), demo())
    assert Settled.from_document(json.loads(json.dumps(settled.document()))) == settled


@pytest.mark.parametrize(
    ("count", "epochs"), [(20, 5), (100, 3), (5_000, 3), (20_000, 1), (100_000, 1)], ids=lambda each: str(each)
)
def test_epochs_follow_the_number_of_rows(tmp_path: Path, count: int, epochs: int) -> None:
    assert settle(recipe(), rows(count), large(tmp_path, H100)).epochs == epochs


def test_a_large_base_gets_published_settings(tmp_path: Path) -> None:
    settled = settle(recipe(), rows(3000, 300), large(tmp_path, H100))
    made = settled.llamafactory
    assert made["learning_rate"] == pytest.approx(2.2e-4)  # QLoRA's 2e-4 at 4096
    assert (made["lora_rank"], made["lora_alpha"], made["bf16"]) == (16, 32, True)
    batch = made["per_device_train_batch_size"] * made["gradient_accumulation_steps"]
    assert batch == 32
    assert 14 < settled.memory["weights"] < 15
    assert settled.memory_gb < 79
    assert settled.seconds > 60


def test_methods_become_the_trainers_keys(tmp_path: Path) -> None:
    def made(**method: Any) -> dict[str, Any]:
        kind = {"sft": "sft", "kto": "kto"}.get(method.get("stage", "sft"), "preference")
        outcome = {"then": "keep"} if method.get("tuning") in ("full", "freeze") else {}
        planned = settle(recipe(method=method, **outcome), rows(2000, 200, kind), large(tmp_path, machine))
        return {**planned.llamafactory, "rank": planned.rank, "folder": planned.adapter_folder}

    machine = Machine(16, 256, (Gpu("NVIDIA B200", 400),))
    assert made(tuning="rslora")["use_rslora"] is True
    assert made(tuning="lora+")["loraplus_lr_ratio"] == 16
    quantised = made(tuning="qlora", bits=8)
    assert (quantised["quantization_bit"], quantised["quantization_method"]) == (8, "bnb")
    converted = made(tuning="pissa")
    assert (converted["pissa_convert"], converted["lora_rank"], converted["rank"]) == (True, 8, 16)
    assert converted["folder"] == "pissa_converted"
    whole = made(tuning="full")
    assert (whole["finetuning_type"], whole["rank"], "lora_rank" in whole) == ("full", None, False)
    assert whole["learning_rate"] == pytest.approx(2.2e-5)
    assert made(tuning="freeze", layers=3)["freeze_trainable_layers"] == 3
    assert made(tuning="lora", target=["q_proj", "v_proj"])["lora_target"] == "q_proj,v_proj"
    dpo = made(stage="dpo")
    assert (dpo["stage"], dpo["pref_loss"], dpo["pref_beta"]) == ("dpo", "sigmoid", 0.1)
    assert dpo["learning_rate"] < 1e-5
    assert made(stage="orpo")["pref_loss"] == "orpo"
    assert made(stage="simpo")["simpo_gamma"] == 1.0
    assert made(stage="kto")["stage"] == "kto"


def test_the_multiplier_is_of_what_auto_would_be(tmp_path: Path) -> None:
    facts = large(tmp_path, H100)
    plain = settle(recipe(), rows(500), facts).llamafactory["learning_rate"]
    assert settle(recipe(training={"learning_rate_multiplier": 2}), rows(500), facts).llamafactory[
        "learning_rate"
    ] == pytest.approx(2 * plain)


def test_validation_is_looked_at_with_every_checkpoint() -> None:
    settled = settle(recipe(training={"early_stopping": 3, "save_steps": 20}), rows(200, valid_rows=20), demo())
    made = settled.llamafactory
    assert (made["eval_strategy"], made["eval_steps"], made["save_steps"]) == ("steps", 20, 20)
    assert (made["early_stopping_steps"], made["load_best_model_at_end"], settled.early_stopping) == (3, True, True)
    assert settle(recipe(), rows(), demo()).llamafactory["eval_strategy"] == "no"


def test_what_is_cut_is_counted() -> None:
    data = DataFacts("sft", {50: 90, 300: 10})
    settled = settle(recipe(training={"cutoff": 100, "epochs": 1}), data, demo())
    assert (settled.truncated_rows, settled.truncated_tokens) == (10, 2000)
    assert settled.tokens == 90 * 50 + 10 * 100
    assert [note for note in settled.notes if "training.cutoff: 302 would keep all" in note]


def test_memory_decides_how_many_rows_go_together(tmp_path: Path) -> None:
    roomy = settle(recipe(), rows(3000, 2000), large(tmp_path, H100)).llamafactory
    tight = settle(recipe(), rows(3000, 1000), large(tmp_path, SMALL_GPU)).llamafactory
    assert roomy["per_device_train_batch_size"] > tight["per_device_train_batch_size"]
    for made in (roomy, tight):
        assert made["per_device_train_batch_size"] * made["gradient_accumulation_steps"] == 32


def test_a_measured_speed_beats_a_guess() -> None:
    guessed, measured = settle(recipe(), rows(), demo()), settle(recipe(), rows(), demo(tokens_per_s=10))
    assert measured.seconds > 10 * guessed.seconds
    assert "the last run here did 10 tokens/s" in " ".join(measured.notes)
    assert "a guess" in " ".join(guessed.notes)


def test_a_thinking_base_is_trained_and_asked_without_thinking(tmp_path: Path) -> None:
    template = QWEN + "{%- if enable_thinking is defined %}{%- endif %}"
    facts = large(tmp_path, H100, template=template, model_type="qwen3")
    settled = settle(recipe(), rows(500, multi_turn=True), facts)
    assert (settled.template, settled.llamafactory["enable_thinking"]) == ("qwen3", False)
    assert settled.chat_template_kwargs == {"enable_thinking": False}
    assert settled.llamafactory["mask_history"] is True
    assert settled.llamafactory["default_system"] == ""


MACHINES = {"laptop": LAPTOP, "small": SMALL_GPU, "h100": H100}
REFUSED: list[tuple[str, dict[str, Any], dict[str, Any], type[InvalidRequest], str, str]] = [
    ("laptop", {"method": {"rank": 64}}, {}, NotServable, "method.rank", "method.rank: 16, or start the engine with"),
    ("laptop", {"method": {"rank": 9, "tuning": "pissa"}}, {}, NotServable, "method.rank", "method.rank: 8"),
    ("laptop", {"method": {"tuning": "qlora"}}, {}, RecipeInvalid, "method.tuning", "method.tuning: lora"),
    ("laptop", {"base": "other/Model"}, {}, NotServable, "base", "loragate up --model other/Model"),
    ("laptop", {"method": {"tuning": "full"}}, {}, NotServable, "then", "then: keep"),
    ("laptop", {"method": {"tuning": "freeze"}, "then": "promote"}, {}, NotServable, "then", "then: keep"),
    ("laptop", {"gate": {"metric": "judge"}}, {}, RecipeInvalid, "gate.metric", "gate.judge: {url: "),
    ("laptop", {"gate": {"metric": "bertscore"}}, {}, RecipeInvalid, "gate.metric", "gate.bertscore: {model: "),
    (
        "laptop",
        {"gate": {"bertscore": {"model": "/no"}}},
        {},
        RecipeInvalid,
        "gate.bertscore.model",
        "is /no, where no",
    ),
    ("laptop", {}, {"kind": "preference"}, RecipeInvalid, "method.stage", "method.stage: dpo or orpo or simpo"),
    ("laptop", {"method": {"stage": "dpo"}}, {}, RecipeInvalid, "method.stage", "method.stage: sft"),
    ("laptop", {}, {"kind": "kto"}, RecipeInvalid, "method.stage", "method.stage: kto"),
    ("laptop", {}, {"count": 0}, RecipeInvalid, "data.train", "datasets check"),
    ("laptop", {"method": {"target": ["lm_head"]}}, {}, NotServable, "method.target", "method.target: all"),
    ("laptop", {"method": {"target": ["c_attn"]}}, {}, RecipeInvalid, "method.target", "q_proj, k_proj"),
    ("laptop", {"training": {"cutoff": 4096}}, {}, RecipeInvalid, "training.cutoff", "training.cutoff: 2048"),
    ("laptop", {"training": {"early_stopping": 2}}, {}, RecipeInvalid, "training.early_stopping", "validation: 0.1"),
    ("laptop", {"training": {"precision": "bf16"}}, {}, RecipeInvalid, "training.precision", "Use auto"),
    ("laptop", {"gpus": 2}, {}, RecipeInvalid, "gpus", "gpus: 1"),
    ("laptop", {"deepspeed": "zero2"}, {}, RecipeInvalid, "deepspeed", "Leave it out"),
    (
        "laptop",
        {"method": {"stage": "kto"}, "training": {"batch_size": 1}},
        {"kind": "kto"},
        RecipeInvalid,
        "training.batch_size",
        "at least 2",
    ),
    (
        "laptop",
        {"method": {"stage": "dpo", "tuning": "pissa"}},
        {"kind": "preference"},
        RecipeInvalid,
        "method.tuning",
        "orpo or simpo",
    ),
]


@pytest.mark.parametrize(
    ("machine", "sections", "data", "error", "key", "instead"),
    REFUSED,
    ids=[f"{r[4]} {i}" for i, r in enumerate(REFUSED)],
)
def test_what_cannot_be_is_refused_with_what_works(
    machine: str, sections: dict[str, Any], data: dict[str, Any], error: type[InvalidRequest], key: str, instead: str
) -> None:
    with pytest.raises(error) as refused:
        settle(recipe(**sections), rows(**data), demo(MACHINES[machine]))
    assert refused.value.param == key
    assert instead in refused.value.message


def test_too_large_for_the_memory_names_what_would_fit(tmp_path: Path) -> None:
    def refusal(machine: Machine, **sections: Any) -> RecipeInvalid:
        with pytest.raises(RecipeInvalid) as refused:
            settle(recipe(**sections), rows(500, 3000), large(tmp_path, machine))
        return refused.value

    tiny = Machine(8, 32, (Gpu("NVIDIA GeForce RTX 4060", 16),))
    assert refusal(tiny).param == "method.tuning"
    assert "method.tuning: qlora" in refusal(tiny).message
    assert "method.tuning: lora" in refusal(H100, method={"tuning": "full"}, then="keep").message
    assert "smaller base" in refusal(LAPTOP).message
    long = refusal(Machine(8, 64, (Gpu("NVIDIA A10", 12),)), method={"tuning": "qlora"})
    assert long.param == "training.cutoff"


def test_an_automatic_cutoff_gives_way_to_the_memory_where_it_cuts_few_rows(tmp_path: Path) -> None:
    facts = large(tmp_path, SMALL_GPU)
    few = DataFacts("sft", {400: 980, 3500: 20})
    settled = settle(recipe(), few, facts)
    assert settled.llamafactory["cutoff_len"] < 3500
    assert settled.truncated_rows == 20
    assert [note for note in settled.notes if "after all" in note]
    with pytest.raises(RecipeInvalid) as refused:
        settle(recipe(), DataFacts("sft", {400: 500, 3500: 500}), facts)
    assert "method.tuning: qlora" in refused.value.message


def test_a_full_disk_is_seen_before(tmp_path: Path) -> None:
    with pytest.raises(RecipeInvalid, match="GB of disk"):
        settle(recipe(), rows(), demo(Machine(2, 8, disk_free_gb=0.01)))


def test_a_quantised_base_takes_plain_lora_only(tmp_path: Path) -> None:
    facts = large(tmp_path, H100, quantization_config={"quant_method": "gptq"})
    with pytest.raises(RecipeInvalid, match="gptq"):
        settle(recipe(method={"tuning": "qlora"}), rows(), facts)
    settle(recipe(), rows(), facts)


def test_a_base_that_is_not_here_cannot_be_trained(tmp_path: Path) -> None:
    with pytest.raises(RecipeInvalid, match="not a folder on this machine"):
        Facts.look("acme/Remote", tmp_path / "none", 16, LAPTOP)
    spaced = tmp_path / "a base"
    spaced.mkdir()
    (spaced / "config.json").write_text("{}")
    with pytest.raises(RecipeInvalid, match="space"):
        Facts.look("x", spaced, 16, LAPTOP)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RecipeInvalid, match="how large"):
        Facts.look("x", tmp_path, 16, LAPTOP)


def test_several_gpus_share_the_batch(tmp_path: Path) -> None:
    two = Machine(32, 256, H100.gpus * 2)
    settled = settle(recipe(gpus=2, deepspeed="zero3"), rows(3000, 300), large(tmp_path, two))
    made = settled.llamafactory
    assert made["per_device_train_batch_size"] * made["gradient_accumulation_steps"] * 2 == 32
    assert settled.deepspeed is not None
    assert settled.deepspeed["zero_optimization"]["stage"] == 3
    assert settled.memory["weights"] < 8


def test_the_settings_file_is_complete_and_nothing_else(tmp_path: Path) -> None:
    settled = settle(recipe(), rows(), demo())
    places: dict[str, Any] = {"base": tmp_path / "base", "data": tmp_path / "data", "output": tmp_path / "out"}
    text = trainyaml.written(settled.llamafactory, **places, valid="valid", deepspeed=tmp_path / "ds.json")
    read = yaml.safe_load(text)
    assert read["model_name_or_path"] == str(tmp_path / "base")
    assert (read["dataset"], read["eval_dataset"], read["output_dir"]) == ("train", "valid", str(tmp_path / "out"))
    assert isinstance(read["learning_rate"], float)
    assert set(read) <= trainyaml.ALLOWED
    for odd in ({"trust_remote_code": True}, {"template": "${x}"}):
        with pytest.raises(RecipeInvalid):
            trainyaml.written({**settled.llamafactory, **odd}, **places)
    with pytest.raises(RecipeInvalid, match="space"):
        trainyaml.written(settled.llamafactory, **{**places, "output": tmp_path / "my runs"})


def test_a_run_saves_where_it_is_only_where_that_is_the_same_as_not_being_stopped(tmp_path: Path) -> None:
    two = Machine(cpus=16, memory_gb=128, gpus=(Gpu("NVIDIA H100 80GB HBM3", 79.6),) * 2)

    def saves(**sections: Any) -> bool:
        settled = settle(recipe(**sections), rows(3000, 300, valid_rows=100), large(tmp_path, two))
        return bool(settled.llamafactory.get("enable_jit_checkpoint"))

    assert saves()
    for changed in (
        {"gpus": 2},
        {"deepspeed": "zero2"},
        {"method": {"dropout": 0.1}},
        {"training": {"early_stopping": 2}, "data": {"train": "rows.jsonl", "validation": 0.1}},
    ):
        assert not saves(**changed), changed
