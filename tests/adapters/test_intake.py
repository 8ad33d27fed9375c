"""Intake: real trainer folders are taken, hostile and unservable ones refused with a stable reason and a sentence."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import AdapterRejected
from adapters.folder import MAX_ENTRIES
from adapters.intake import Checked, check
from adapters.served import BaseInfo, described
from tests.adapters.folders import CONFIG, PREFIX, Tensors, numbers, pair, usual, weights, write, write_base

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


# --- folders that are refused for what lies in them ---


def _link(folder: Path, name: str) -> None:
    (folder / name).rename(folder.parent / "elsewhere")
    (folder / name).symlink_to(folder.parent / "elsewhere")


def _replace(folder: Path, name: str, make: Callable[[Path], object]) -> None:
    (folder / name).unlink()
    make(folder / name)


def _drop(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).unlink()
    return folder


def _add(folder: Path, name: str) -> Path:
    (folder / name).write_bytes(b"x")
    return folder


def _crowd(folder: Path) -> None:
    for at in range(MAX_ENTRIES):
        (folder / f"{at}.txt").touch()


W, C = "adapter_model.safetensors", "adapter_config.json"
FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda f: _drop(f, W, C), "not_an_adapter"),
    "no weights": (lambda f: _drop(f, W), "not_an_adapter"),
    "no config": (lambda f: _drop(f, C), "not_an_adapter"),
    "whole model": (lambda f: _add(_drop(f, W, C), "model-00001-of-00002.safetensors"), "not_an_adapter"),
    "pickle instead": (lambda f: _add(_drop(f, W), "adapter_model.bin"), "pickle_weights"),
    "pickle beside": (lambda f: _add(f, "adapter_model.bin"), "pickle_weights"),
    "pt beside": (lambda f: _add(f, "adapter_model.pt"), "pickle_weights"),
    "other pickle": (lambda f: _add(f, "extra.pkl"), "pickle_weights"),
    "odd pickle instead": (lambda f: _add(_drop(f, W), "lora.pth"), "pickle_weights"),
    "code": (lambda f: _add(f, "modeling_custom.py"), "unexpected_file"),
    "library": (lambda f: _add(f, "kernel.so"), "unexpected_file"),
    "name with a newline": (lambda f: _add(f, "x\ny"), "unexpected_file"),
    "no weights, an odd checkpoint": (
        lambda f: os.mkdir(os.fsencode(_drop(f, W)) + b"/checkpoint-\xff\x1b[2J"),
        "not_an_adapter",
    ),
    "other weights": (lambda f: _add(f, "second.safetensors"), "unexpected_file"),
    "reward model": (lambda f: _add(f, "value_head.safetensors"), "reward_model"),
    "weights are a link": (lambda f: _link(f, W), "symlink"),
    "config is a link": (lambda f: _link(f, C), "symlink"),
    "config links to /etc/passwd": (lambda f: _replace(f, C, lambda p: p.symlink_to("/etc/passwd")), "symlink"),
    "dangling link": (lambda f: _replace(f, W, lambda p: p.symlink_to("nowhere")), "symlink"),
    "weights are a folder": (lambda f: _replace(f, W, Path.mkdir), "not_a_file"),
    "weights are a pipe": (lambda f: _replace(f, W, os.mkfifo), "not_a_file"),
    "config is a pipe": (lambda f: _replace(f, C, os.mkfifo), "not_a_file"),
    "config of 2 MiB": (lambda f: (f / C).write_bytes(b" " * 2**21), "too_large"),
    "sparse weights of 9 GiB": (lambda f: os.truncate(f / W, 9 * 2**30), "too_large"),
    "too many entries": (_crowd, "unexpected_file"),
    "config cut": (lambda f: os.truncate(f / C, 100), "config_json"),
    "config a list": (lambda f: (f / C).write_text("[]"), "config_json"),
    "config with a key twice": (lambda f: (f / C).write_text('{"r": 8, "r": 16}'), "config_json"),
    "config with NaN": (lambda f: (f / C).write_text('{"r": NaN}'), "config_json"),
    "config nested deep": (lambda f: (f / C).write_text('{"a":' * 50_000), "config_json"),
    "config not UTF-8": (lambda f: (f / C).write_bytes(b'{"a": "\xff"}'), "config_json"),
    "weights cut": (lambda f: os.truncate(f / W, (f / W).stat().st_size - 1), "safetensors_truncated"),
    "weights are HTML": (lambda f: (f / W).write_bytes(b"<!DOCTYPE html>" * 9), "safetensors_header"),
    "weights are a git-lfs pointer": (lambda f: (f / W).write_text("version https://git-lfs"), "safetensors_header"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_that_are_refused(tmp_path: Path, base: BaseInfo, case: str) -> None:
    spoil, reason = FOLDERS[case]
    folder = write(tmp_path / "adapter")
    spoil(folder)
    assert _reason(folder, base) == reason


def test_a_path_that_is_no_folder(tmp_path: Path, base: BaseInfo) -> None:
    assert _reason(tmp_path / "missing", base) == "not_found"
    assert _reason(Path("relative"), base) == "not_found"
    (tmp_path / "file").touch()
    with pytest.raises(AdapterRejected, match="not a folder"):
        check(tmp_path / "file", base, 16)


def test_pissa_backup_is_told_by_its_name(tmp_path: Path, base: BaseInfo) -> None:
    assert _reason(write(tmp_path / "pissa_backup"), base) == "pissa_backup"


def test_a_checkpoint_below_is_named_as_the_nearest(tmp_path: Path, base: BaseInfo) -> None:
    (tmp_path / "out" / "checkpoint-80").mkdir(parents=True)
    with pytest.raises(AdapterRejected, match="checkpoint-80"):
        check(tmp_path / "out", base, 16)


# --- configs that are refused, one per key ---

CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "other method": ({"peft_type": "OFT"}, "not_lora"),
    "no method": ({"peft_type": None}, "not_lora"),
    "DoRA": ({"use_dora": True}, "dora"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "pissa_unconverted"),
    "PiSSA fast": ({"init_lora_weights": "pissa_niter_16"}, "pissa_unconverted"),
    "OLoRA": ({"init_lora_weights": "olora"}, "init_changes_base"),
    "CorDA": ({"init_lora_weights": "corda"}, "init_changes_base"),
    "LoftQ": ({"init_lora_weights": "loftq"}, "init_changes_base"),
    "init a number": ({"init_lora_weights": 3}, "config_type"),
    "LoftQ config": ({"loftq_config": {"loftq_bits": 4}}, "init_changes_base"),
    "CorDA cache, a pickle": ({"corda_config": {"cache_file": "/tmp/x"}}, "init_changes_base"),
    "whole modules": ({"modules_to_save": ["embed_tokens"]}, "modules_to_save"),
    "classification head": ({"modules_to_save": ["score"]}, "modules_to_save"),
    "new tokens": ({"trainable_token_indices": [1]}, "trainable_tokens"),
    "bias": ({"bias": "all"}, "bias"),
    "LoRA bias": ({"lora_bias": True}, "lora_bias"),
    "aLoRA": ({"alora_invocation_tokens": [1]}, "alora"),
    "layer replication": ({"layer_replication": [[0, 1]]}, "layer_replication"),
    "QALoRA": ({"use_qalora": True}, "qalora"),
    "BD-LoRA": ({"use_bdlora": {"nblocks": 2}}, "bdlora"),
    "experts": ({"target_parameters": ["experts.down"]}, "target_parameters"),
    "arrow": ({"arrow_config": {"k": 1}}, "arrow"),
    "code by name": ({"auto_mapping": {"parent_library": "os"}}, "auto_mapping"),
    "megatron": ({"megatron_config": {"a": 1}}, "megatron"),
    "megatron's import": ({"megatron_core": "os.path"}, "megatron"),
    "tokenizer": ({"tokenizer_name_or_path": "evil/repo"}, "tokenizer"),
    "unknown key": ({"load_from": "http://x"}, "unknown_key"),
    "classifier": ({"task_type": "SEQ_CLS"}, "task_type"),
    "base by address": ({"base_model_name_or_path": "https://x/y"}, "base_mismatch"),
    "base that moves the cursor": ({"base_model_name_or_path": "\x1b]0;x\x07"}, "base_mismatch"),
    "base that is no text": ({"base_model_name_or_path": "\ud800"}, "base_mismatch"),
    "rank 0": ({"r": 0}, "rank"),
    "rank 513": ({"r": 513}, "rank"),
    "rank true": ({"r": True}, "rank"),
    "rank a text": ({"r": "8"}, "rank"),
    "alpha 0": ({"lora_alpha": 0}, "config_type"),
    "alpha endless": ({"lora_alpha": 1e300}, "config_type"),
    "flag a text": ({"use_rslora": "yes"}, "config_type"),
    "targets a number": ({"target_modules": 3}, "config_type"),
    "pattern that backtracks": ({"rank_pattern": {"(a+)+$": 8}}, "pattern"),
    "pattern of a text": ({"rank_pattern": {"q_proj": "8"}}, "pattern"),
    "alpha pattern negative": ({"alpha_pattern": {"q_proj": -1}}, "pattern"),
    "GPT-2 layout": ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    "tied": ({"ensure_weight_tying": True}, "weight_tying"),
    "other rank than tensors": ({"r": 4}, "rank_mismatch"),
    "pattern unlike tensors": ({"rank_pattern": {"q_proj": 4}}, "rank_mismatch"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_that_are_refused(tmp_path: Path, base: BaseInfo, case: str) -> None:
    keys, reason = CONFIGS[case]
    assert _reason(write(tmp_path / "adapter", keys), base) == reason


@pytest.mark.parametrize("key", ["r", "lora_alpha", "target_modules"])
def test_a_config_without_a_needed_key(tmp_path: Path, base: BaseInfo, key: str) -> None:
    assert _reason(write(tmp_path / "adapter", without=[key]), base) == "config_incomplete"


# --- weights that are refused ---

Q = f"{PREFIX}0.self_attn.q_proj"
WEIGHTS: dict[str, tuple[Tensors, str]] = {
    "a whole module": ([*usual(), (f"{Q}.weight", "BF16", [1], numbers(1))], "tensor_name"),
    "DoRA's magnitude": ([*usual(), (f"{Q}.lora_magnitude_vector", "BF16", [1], numbers(1))], "dora"),
    "a bias": ([*usual(), (f"{Q}.lora_B.bias", "BF16", [1], numbers(1))], "bias"),
    "without PEFT's prefix": (pair("model.layers.0.self_attn.q_proj", 32, 32), "tensor_name"),
    "dots in a row": (pair("base_model.model.model..q_proj", 32, 32), "tensor_name"),
    "half an embedding name": ([(f"{Q}.lora_embedding_A.weight", "BF16", [8, 2], numbers(16))], "tensor_name"),
    "only A": (usual()[:1], "tensor_pair"),
    "three dimensions": ([(f"{Q}.lora_A.weight", "BF16", [8, 2, 2], numbers(32))], "tensor_shape"),
    "another width": (pair(Q, 48, 32), "base_mismatch"),
    "another height": (pair(Q, 32, 48), "base_mismatch"),
    "a layer too many": (pair(f"{PREFIX}2.self_attn.q_proj", 32, 32), "base_mismatch"),
    "another vocabulary": (pair("base_model.model.lm_head", 32, 101), "vocabulary_resized"),
    "an unknown module": (pair(f"{PREFIX}0.self_attn.c_attn", 32, 96), "unknown_module"),
    "only a base layer": (
        [("base_model.model.model.embed_tokens.base_layer.weight", "BF16", [100, 1], numbers(100))],
        "no_lora_tensors",
    ),
    "NaN": ([*usual()[:-1], (*usual()[-1][:3], b"\xff" * len(usual()[-1][3]))], "not_finite"),
}


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
    "vocab.json chat_template.jinja optimizer.pt scheduler.pt rng_state.pth .gitattributes",
)


def test_a_trainers_whole_output_folder_is_taken(tmp_path: Path, base: BaseInfo) -> None:
    folder = write(tmp_path / "adapter")
    for name in SIDE_FILES:
        _add(folder, name)
    for name in ("checkpoint-40", "runs", "pissa_converted"):
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


EMBEDDING: Tensors = [
    ("base_model.model.model.embed_tokens.lora_embedding_A", "BF16", [8, 100], numbers(800)),
    ("base_model.model.model.embed_tokens.lora_embedding_B", "BF16", [32, 8], numbers(256)),
]


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
