"""Intake: real trainer folders are taken, hostile and unservable ones refused with a stable reason and a sentence."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import AdapterRejected
from adapters.intake import Checked, check
from adapters.served import BaseInfo, described
from tests.adapters.corpus import CONFIGS, EMBEDDING, FOLDERS, WEIGHTS, Q, W, add
from tests.adapters.folders import CONFIG, PREFIX, Tensors, pair, usual, weights, write, write_base

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo" / "adapters"


@pytest.fixture
def base(tmp_path: Path) -> BaseInfo:
    return described("demo-base", str(write_base(tmp_path / "demo-base")))


def _reason(folder: Path, base: BaseInfo | None, max_lora_rank: int = 16) -> str:
    before = sorted(os.listdir(folder)) if folder.is_dir() else None
    taken: list[bytes] = []
    with pytest.raises(AdapterRejected) as caught:
        check(folder, base, max_lora_rank, taken.append)
    message = caught.value.message
    # A sentence that says what is wrong, then one that says what to do.
    assert re.search(r"[.] [A-Z].*[.]$", message), message
    assert message.isprintable(), ascii(message)
    assert before is None or sorted(os.listdir(folder)) == before
    return caught.value.reason


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_that_are_refused(tmp_path: Path, base: BaseInfo, case: str) -> None:
    spoil, reason = FOLDERS[case]
    folder = write(tmp_path / "adapter")
    spoil(folder)
    assert _reason(folder, base) == reason


def test_a_path_that_is_no_folder(tmp_path: Path, base: BaseInfo) -> None:
    assert _reason(tmp_path / "missing", base) == "not_found"
    with pytest.raises(AdapterRejected, match=r"on the gateway's machine.*--upload"):  # which may be in a container
        check(tmp_path / "missing", base, 16)
    assert _reason(Path("relative"), base) == "not_found"
    (tmp_path / "file").touch()
    with pytest.raises(AdapterRejected, match="not a folder"):
        check(tmp_path / "file", base, 16)


def test_pissa_backup_is_told_by_its_name(tmp_path: Path, base: BaseInfo) -> None:
    assert _reason(write(tmp_path / "pissa_backup"), base) == "pissa_backup"


def test_a_checkpoint_below_is_named_as_the_nearest(tmp_path: Path, base: BaseInfo) -> None:
    for step in (80, 900, 1000):
        (tmp_path / "out" / f"checkpoint-{step}").mkdir(parents=True)
        with pytest.raises(AdapterRejected, match=f"checkpoint-{step}[.]$"):
            check(tmp_path / "out", base, 16)


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_that_are_refused(tmp_path: Path, base: BaseInfo, case: str) -> None:
    keys, reason = CONFIGS[case]
    assert _reason(write(tmp_path / "adapter", keys), base) == reason


@pytest.mark.parametrize("key", ["r", "lora_alpha", "target_modules"])
def test_a_config_without_a_needed_key(tmp_path: Path, base: BaseInfo, key: str) -> None:
    assert _reason(write(tmp_path / "adapter", without=[key]), base) == "config_incomplete"


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_are_refused(tmp_path: Path, base: BaseInfo, case: str) -> None:
    tensors, reason = WEIGHTS[case]
    assert _reason(write(tmp_path / "adapter", tensors=tensors), base) == reason


def test_a_rank_above_the_engines_names_the_flag(tmp_path: Path, base: BaseInfo) -> None:
    folder = write(tmp_path / "adapter", {"r": 20}, usual(20))
    with pytest.raises(AdapterRejected, match="--max-lora-rank 32") as caught:
        check(folder, base, 16)
    assert caught.value.reason == "rank_too_large"
    with pytest.raises(AdapterRejected, match="rank 20"):
        check(folder, None, 16)
    assert check(folder, base, 32).rank == 20


def test_an_unknown_base_is_told_by_its_name(tmp_path: Path, base: BaseInfo) -> None:
    folder = write(tmp_path / "adapter")
    assert _reason(folder, BaseInfo("Qwen2.5-7B")) == "base_mismatch"
    (unchecked,) = check(folder, BaseInfo("org/Demo-Base"), 16).warnings
    assert "not compared" in unchecked
    found = check(folder, None, 16)
    assert (found.base, len(found.warnings)) == ("/runs/demo-base", 1)
    unnamed = write(tmp_path / "unnamed", {"base_model_name_or_path": ""})
    assert check(unnamed, base, 16).warnings == ()


def test_a_file_swapped_while_it_is_taken_cannot_slip_through(tmp_path: Path, base: BaseInfo) -> None:
    """Whatever is written into the source after the first byte was taken: what was taken is what was judged."""
    wide = described("demo-base", str(write_base(tmp_path / "wide", hidden_size=8192)))
    tensors = pair(Q, 8192, 8192)
    folder, copy = write(tmp_path / "adapter", tensors=tensors), write(tmp_path / "copy")
    outcomes = []
    for value in (b"\x80\x3f", b"\xff\x7f"):  # 1.0, NaN
        (folder / W).write_bytes(weights(tensors))
        taken: list[bytes] = []

        def take(data: bytes, taken: list[bytes] = taken, value: bytes = value) -> None:
            taken.append(data)
            with (folder / W).open("r+b") as file:
                file.seek(-4096, os.SEEK_END)
                file.write(value * 2048)

        try:
            digest = check(folder, wide, 16, take).digest
        except AdapterRejected as exc:
            outcomes.append(exc.reason)
        else:
            (copy / W).write_bytes(b"".join(taken))
            outcomes.append("same" if check(copy, wide, 16).digest == digest else "differs")
    assert outcomes == ["same", "not_finite"]


# --- what is taken ---


SIDE_FILES = re.split(
    r"\s+",
    "README.md all_results.json train_results.json trainer_state.json trainer_log.jsonl training_args.bin "
    "training_loss.png tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json merges.txt "
    "vocab.json chat_template.jinja optimizer.pt scheduler.pt rng_state.pth .gitattributes "
    # DeepSpeed puts the script beside every global_step…; FSDP and accelerate have names of their own.
    "zero_to_fp32.py latest rng_state_0.pth optimizer.bin scheduler.bin sampler.bin random_states_0.pkl "
    "pytorch_model_fsdp.bin",
)


def test_a_trainers_whole_output_folder_is_taken(tmp_path: Path, base: BaseInfo) -> None:
    folder = write(tmp_path / "adapter")
    for name in SIDE_FILES:
        add(folder, name)
    for name in ("checkpoint-40", "runs", "pissa_converted", "global_step40", "optimizer_0", "pytorch_model_fsdp_0"):
        (folder / name).mkdir()
    (folder / "tokenizer.model").symlink_to("/etc/passwd")  # never opened
    found = check(folder, base, 16)
    assert (found.rank, found.size_bytes, found.warnings) == (8, len(weights(usual())), ())


def _taken(
    tmp_path: Path, base: BaseInfo, name: str, config: dict[str, Any], tensors: Tensors | None = None
) -> Checked:
    return check(write(tmp_path / name, config, tensors), base, 16)


def test_the_same_meaning_is_the_same_version(tmp_path: Path, base: BaseInfo) -> None:
    first = _taken(tmp_path, base, "a", {})
    same: list[dict[str, Any]] = [
        {"base_model_name_or_path": "other/demo-base", "lora_dropout": 0.1, "peft_version": "0.17.0"},
        {"target_modules": r".*\.(q|v)_proj"},
        {"target_modules": "all-linear", "lora_alpha": 16.0, "revision": "main"},
        {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 16}},
        {"init_lora_weights": "gaussian", "eva_config": {"rho": 2.0}, "brand_new_key": None, "newer": {}},
    ]
    for at, config in enumerate(same):
        assert _taken(tmp_path, base, f"same{at}", config).digest == first.digest, config
    assert _taken(tmp_path, base, "turned", {}, list(reversed(usual()))).digest == first.digest
    other: list[dict[str, Any]] = [{"lora_alpha": 8}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 4}}]
    digests = {_taken(tmp_path, base, f"other{at}", config).digest for at, config in enumerate(other)}
    assert len(digests | {first.digest}) == 4


def test_a_config_without_a_task_is_taken_as_peft_writes_it(tmp_path: Path, base: BaseInfo) -> None:
    """Then it names the model's class and its module, which nobody here imports and which is not written on."""
    first, tables = _taken(tmp_path, base, "a", {}), list[dict[str, Any]]()
    tables.append({"base_model_class": "Qwen2ForCausalLM", "parent_library": "transformers.models.qwen2.modeling"})
    tables.append({**tables[0], "base_model_class": "Qwen2_5_VLForConditionalGeneration", "unsloth_fixed": True})
    for at, table in enumerate(tables):
        found = _taken(tmp_path, base, f"mapped{at}", {"task_type": None, "auto_mapping": table})
        assert (found.digest, "auto_mapping" in found.config) == (first.digest, False)
    odd: list[dict[str, Any]] = [
        {**tables[0], "base_model_class": "Qwen2ForSequenceClassification"},
        {**tables[0], "parent_library": "os"},
        {**tables[0], "parent_library": "transformers.models.\x1b[2J"},
        {**tables[0], "trust_remote_code": True},
        {"unsloth_fixed": True, "base_model_class": "Qwen2ForCausalLM"},
    ]
    for at, table in enumerate(odd):
        assert _reason(write(tmp_path / f"odd{at}", {"auto_mapping": table}), base) == "auto_mapping"


@pytest.mark.parametrize(
    "named",
    [
        "/home/ann/.cache/modelscope/hub/models/Qwen/Qwen2___5-7B-Instruct",
        "/home/ann/.cache/modelscope/hub/Qwen/Qwen2___5-7B-Instruct/",
        "/home/ann/.cache/huggingface/hub/models--Qwen--Qwen2.5-7B-Instruct/snapshots/a09a35458c702b33eeacc393d103063234e8bc28",
        "/data/models--Qwen--Qwen2.5-7B-Instruct",
    ],
)
def test_a_base_is_known_by_where_the_two_hubs_caches_put_it(tmp_path: Path, named: str) -> None:
    """Trainers write the path that they loaded it from; an engine elsewhere shows only a name to compare with."""
    folder = write(tmp_path / "a", {"base_model_name_or_path": named})
    for served in (BaseInfo("Qwen2.5-7B-Instruct"), BaseInfo("qwen", "Qwen/Qwen2.5-7B-Instruct"), BaseInfo(named)):
        assert [each.reason for each in check(folder, served, 16).findings] == ["shapes_unchecked"]
    assert _reason(folder, BaseInfo("Qwen2.5-7B")) == "base_mismatch"


def test_patterns_become_one_entry_per_module(tmp_path: Path, base: BaseInfo) -> None:
    tensors = pair(f"{PREFIX}0.self_attn.q_proj", 32, 32, 4) + pair(f"{PREFIX}1.self_attn.q_proj", 32, 32, 16)
    config = {"rank_pattern": {"layers.0.self_attn.q_proj": 4, "q_proj": 16}, "alpha_pattern": {"q_proj": 2}}
    found = _taken(tmp_path, base, "a", config, tensors)
    assert found.rank == 16
    # No module has the config's rank of 8: vLLM measures `r` against --max-lora-rank all the same.
    assert found.config["r"] == 16
    assert found.config["rank_pattern"] == {"^model.layers.0.self_attn.q_proj": 4}
    assert found.config["alpha_pattern"] == {
        "^model.layers.0.self_attn.q_proj": 2,
        "^model.layers.1.self_attn.q_proj": 2,
    }
    assert found.config["target_modules"] == ["q_proj"]


def test_embeddings_are_taken_where_vllm_takes_them(tmp_path: Path, base: BaseInfo) -> None:
    """vLLM 0.32: `embedding_modules` of LlamaForCausalLM, none of Qwen2ForCausalLM, which answers a load with 500."""
    folder = write(tmp_path / "a", {}, [*usual(), *EMBEDDING])
    llama = described("demo-base", str(write_base(tmp_path / "llama" / "demo-base", model_type="llama")))
    assert check(folder, llama, 16).rank == 8
    assert _reason(folder, base) == "embedding_lora"


def test_an_untrained_adapter_and_another_bases_name_are_warnings(tmp_path: Path, base: BaseInfo) -> None:
    tensors: Tensors = [
        (name, dtype, shape, bytes(len(data)) if "lora_B" in name else data) for name, dtype, shape, data in usual()
    ]
    found = _taken(tmp_path, base, "a", {"base_model_name_or_path": "Qwen/Other"}, tensors)
    assert ["never trained" in found.warnings[1], "Qwen/Other" in found.warnings[0]] == [True, True]


def test_the_written_config_holds_only_what_we_chose(tmp_path: Path, base: BaseInfo) -> None:
    found = _taken(tmp_path, base, "a", {"revision": "x", "eva_config": {"rho": 1}})
    assert set(found.config) <= set(CONFIG)
    assert json.loads(json.dumps(found.config)) == found.config
    assert "eva_config" not in found.config
    assert "base_model_name_or_path" not in found.config


@pytest.mark.parametrize("folder", sorted(DEMO.glob("*/")), ids=lambda folder: folder.name)
def test_adapters_made_by_the_real_trainer_are_taken(folder: Path) -> None:
    found = check(folder, described("demo-base", str(DEMO.parent / "base")), 16)
    assert found.warnings == ()
    assert found.rank <= 16
