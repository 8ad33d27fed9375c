"""Adapters that are refused, each with its reason: folders, configs key by key, weights tensor by tensor."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adapters.folder import MAX_ENTRIES
from tests.adapters.folders import PREFIX, Tensors, bf16, numbers, packed, pair, usual

# --- folders that are refused for what lies in them ---


def _link(folder: Path, name: str) -> None:
    (folder / name).rename(folder.parent / "elsewhere")
    (folder / name).symlink_to(folder.parent / "elsewhere")


def _replace(folder: Path, name: str, make: Callable[[Path], object]) -> None:
    (folder / name).unlink()
    make(folder / name)


def drop(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).unlink()
    return folder


def add(folder: Path, name: str) -> Path:
    (folder / name).write_bytes(b"x")
    return folder


def _crowd(folder: Path) -> None:
    for at in range(MAX_ENTRIES):
        (folder / f"{at}.txt").touch()


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = os.open(path.parent, os.O_RDONLY)  # a socket's path has at most 108 bytes
        try:
            made.bind(f"/proc/self/fd/{here}/{path.name}")
        finally:
            os.close(here)


def _keys(count: int) -> str:
    return "{" + ",".join(f'"{at:x}":1' for at in range(count)) + ',"peft_type":"LORA"}'


def _long(inner: bytes) -> bytes:
    return packed(b'{"a":' + inner, b"")


def _hole(folder: Path) -> None:
    (folder / W).write_bytes((2**24 - 1).to_bytes(8, "little") + b"{")
    os.truncate(folder / W, 7 * 2**30)


W, C = "adapter_model.safetensors", "adapter_config.json"
FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda f: drop(f, W, C), "not_an_adapter"),
    "no weights": (lambda f: drop(f, W), "not_an_adapter"),
    "no config": (lambda f: drop(f, C), "not_an_adapter"),
    "whole model": (lambda f: add(drop(f, W, C), "model-00001-of-00002.safetensors"), "not_an_adapter"),
    "pickle instead": (lambda f: add(drop(f, W), "adapter_model.bin"), "pickle_weights"),
    "pickle beside": (lambda f: add(f, "adapter_model.bin"), "pickle_weights"),
    "pt beside": (lambda f: add(f, "adapter_model.pt"), "pickle_weights"),
    "other pickle": (lambda f: add(f, "extra.pkl"), "pickle_weights"),
    "odd pickle instead": (lambda f: add(drop(f, W), "lora.pth"), "pickle_weights"),
    "code": (lambda f: add(f, "modeling_custom.py"), "unexpected_file"),
    "library": (lambda f: add(f, "kernel.so"), "unexpected_file"),
    "name with a newline": (lambda f: add(f, "x\ny"), "unexpected_file"),
    "no weights, an odd checkpoint": (
        lambda f: os.mkdir(os.fsencode(drop(f, W)) + b"/checkpoint-\xff\x1b[2J"),
        "not_an_adapter",
    ),
    "config in capitals beside": (lambda f: add(f, "ADAPTER_CONFIG.JSON"), "unexpected_file"),
    "weights in capitals beside": (lambda f: add(f, "Adapter_Model.safetensors"), "unexpected_file"),
    "config in capitals instead": (lambda f: (f / C).rename(f / "Adapter_Config.json"), "not_an_adapter"),
    "config in look-alike letters": (lambda f: (f / C).rename(f / "\u0430dapter_config.json"), "not_an_adapter"),
    "weights with a blank behind": (lambda f: (f / W).rename(f / f"{W} "), "not_an_adapter"),
    "name that turns the line round": (lambda f: add(f, "\u202egpj.exe"), "unexpected_file"),
    "pickle in capitals": (lambda f: add(f, "ADAPTER_MODEL.BIN"), "unexpected_file"),
    "config is a socket's place": (lambda f: _replace(f, C, _socket), "not_a_file"),
    "config of 100,000 keys": (lambda f: (f / C).write_text(_keys(100_000)), "unknown_key"),
    "config of 1,000,000 keys": (lambda f: (f / C).write_text(_keys(1_000_000)), "too_large"),
    "header of nothing but brackets": (lambda f: (f / W).write_bytes(_long(b"[" * 2**20)), "safetensors_header"),
    "header that ends in a hole of 7 GiB": (_hole, "safetensors_header"),
    "other weights": (lambda f: add(f, "second.safetensors"), "unexpected_file"),
    "reward model": (lambda f: add(f, "value_head.safetensors"), "reward_model"),
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


# --- configs that are refused, one per key ---

# PEFT 0.18.1's PeftType, less LORA.
METHODS = (
    *("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADALORA", "BOFT", "ADAPTION_PROMPT"),
    *("IA3", "LOHA", "LOKR", "OFT", "POLY", "LN_TUNING", "VERA", "FOURIERFT", "XLORA", "HRA", "VBLORA", "CPT", "BONE"),
    *("MISS", "RANDLORA", "ROAD", "TRAINABLE_TOKENS", "SHIRA", "C3A", "WAVEFT", "OSF", "DELORA"),
)
CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "other method": ({"peft_type": "OFT"}, "not_lora"),
    "no method": ({"peft_type": None}, "not_lora"),
    **{f"method {each}": ({"peft_type": each}, "not_lora") for each in METHODS},
    "method in small letters": ({"peft_type": "lora"}, "not_lora"),
    "method a list": ({"peft_type": ["LORA"]}, "not_lora"),
    "DoRA": ({"use_dora": True}, "dora"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "pissa_unconverted"),
    "PiSSA fast": ({"init_lora_weights": "pissa_niter_16"}, "pissa_unconverted"),
    "OLoRA": ({"init_lora_weights": "olora"}, "init_changes_base"),
    "CorDA": ({"init_lora_weights": "corda"}, "init_changes_base"),
    "LoRA-GA": ({"init_lora_weights": "lora_ga", "lora_ga_config": {"direction": "ArB2r"}}, "init_changes_base"),
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
    "DoRA by a number": ({"use_dora": 1}, "dora"),
    "LoftQ's table with a LoRA's start": ({"init_lora_weights": True, "loftq_config": {"a": 1}}, "init_changes_base"),
    "bias of LoRA only": ({"bias": "lora_only"}, "bias"),
    "bias true": ({"bias": True}, "bias"),
    "new tokens by layer": ({"trainable_token_indices": {"embed_tokens": [1]}}, "trainable_tokens"),
    "tokenizer in a repository": ({"tokenizer_name_or_path": "../../etc"}, "tokenizer"),
    "template": ({"chat_template": "{{ cycler.__init__.__globals__ }}"}, "unknown_key"),
    "code from a repository": ({"auto_map": {"AutoModel": "evil--x.py"}}, "unknown_key"),
    "token classifier": ({"task_type": "TOKEN_CLS"}, "task_type"),
    "revision a number": ({"revision": 3}, "config_type"),
    "EVA's table a list": ({"eva_config": [1]}, "config_type"),
    "LoRA-GA's table a text": ({"lora_ga_config": "x"}, "config_type"),
    "layers by fractions": ({"layers_to_transform": [0.5]}, "config_type"),
    "excluded by a number": ({"exclude_modules": 3}, "config_type"),
    "dropout negative": ({"lora_dropout": -1}, "config_type"),
    "alpha a text": ({"lora_alpha": "16"}, "config_type"),
    "alpha true": ({"lora_alpha": True}, "config_type"),
    "rank of 2^70": ({"r": 2**70}, "rank"),
    "rank pattern of 0": ({"rank_pattern": {"q_proj": 0}}, "pattern"),
    "rank pattern beyond": ({"rank_pattern": {"q_proj": 513}}, "pattern"),
    "rank pattern a list": ({"rank_pattern": [8]}, "pattern"),
    "base of 5,000 letters": ({"base_model_name_or_path": "x" * 5000}, "base_mismatch"),
    "base a list": ({"base_model_name_or_path": ["x"]}, "base_mismatch"),
    "inference mode a text": ({"inference_mode": "yes"}, "config_type"),
    "a key that turns the line round": ({"\u202ekey": 1}, "unknown_key"),
    "a key of half a letter": ({"\ud800": 1}, "unknown_key"),
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
    # To PEFT a dot stands for any letter: these are layers 10 to 19, and all.
    "pattern with a gap": ({"alpha_pattern": {"layers.1..self_attn.q_proj": 8}}, "pattern"),
    "pattern that begins with a dot": ({"alpha_pattern": {".q_proj": 8}}, "pattern"),
    "pattern of a text": ({"rank_pattern": {"q_proj": "8"}}, "pattern"),
    "alpha pattern negative": ({"alpha_pattern": {"q_proj": -1}}, "pattern"),
    "GPT-2 layout": ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    "tied": ({"ensure_weight_tying": True}, "weight_tying"),
    "other rank than tensors": ({"r": 4}, "rank_mismatch"),
    "pattern unlike tensors": ({"rank_pattern": {"q_proj": 4}}, "rank_mismatch"),
}


# --- weights that are refused ---

Q = f"{PREFIX}0.self_attn.q_proj"
WEIGHTS: dict[str, tuple[Tensors, str]] = {
    "a whole module": ([*usual(), (f"{Q}.weight", "BF16", [1], numbers(1))], "tensor_name"),
    "DoRA's magnitude": ([*usual(), (f"{Q}.lora_magnitude_vector", "BF16", [1], numbers(1))], "dora"),
    "a bias": ([*usual(), (f"{Q}.lora_B.bias", "BF16", [1], numbers(1))], "bias"),
    "without PEFT's prefix": (pair("model.layers.0.self_attn.q_proj", 32, 32), "tensor_name"),
    "dots in a row": (pair("base_model.model.model..q_proj", 32, 32), "tensor_name"),
    "half an embedding name": ([(f"{Q}.lora_embedding_A.weight", "BF16", [8, 2], numbers(16))], "tensor_name"),
    # vLLM 0.32 takes the prefix out twice (lora/utils.py, parse_fine_tuned_lora_name): both names are one module there.
    "the prefix twice": (pair(f"base_model.model.{Q}", 32, 32), "tensor_name"),
    "two names for one module": ([*usual(), *pair(f"base_model.model.{Q}", 32, 32, seed=3)], "tensor_name"),
    "with and without the prefix": (
        [*usual(), *pair("model.layers.0.self_attn.q_proj", 32, 32, seed=3)],
        "tensor_name",
    ),
    "a layer with a zero before": (pair(f"{PREFIX}00.self_attn.q_proj", 32, 32), "tensor_name"),
    "the adapter's name left in": (
        [(f"{Q}.lora_{half}.default.weight", "BF16", [8, 32], numbers(256)) for half in "AB"],
        "tensor_name",
    ),
    "AdaLoRA's": ([*usual(), (f"{Q}.lora_E", "BF16", [8, 1], numbers(8))], "tensor_name"),
    "LoKr's": ([(f"{Q}.lokr_w1", "BF16", [8, 8], numbers(64))], "tensor_name"),
    "VeRA's": ([(f"{Q}.vera_lambda_b", "BF16", [8], numbers(8))], "tensor_name"),
    "for pictures": ([("lora_unet_mid.lora_down.weight", "BF16", [8, 8], numbers(64))], "tensor_name"),
    "a value head": ([*usual(), ("v_head.summary.weight", "BF16", [1, 32], numbers(32))], "reward_model"),
    "a classifier": ([*usual(), ("base_model.model.score.weight", "BF16", [1, 32], numbers(32))], "reward_model"),
    "new tokens": (
        [*usual(), ("base_model.model.model.embed_tokens.trainable_tokens_delta", "BF16", [1, 32], numbers(32))],
        "trainable_tokens",
    ),
    "a whole embedding": (
        [*usual(), ("base_model.model.model.embed_tokens.weight", "BF16", [100, 1], numbers(100))],
        "embedding_weights",
    ),
    "a larger embedding": (
        [*usual(), ("base_model.model.model.embed_tokens.weight", "BF16", [101, 1], numbers(101))],
        "vocabulary_resized",
    ),
    "a larger base layer": (
        [*usual(), ("base_model.model.lm_head.base_layer.weight", "BF16", [101, 1], numbers(101))],
        "vocabulary_resized",
    ),
    "linear and embedding at once": (
        [*usual(), (f"{Q}.lora_embedding_A", "BF16", [8, 32], numbers(256))],
        "tensor_pair",
    ),
    # vLLM 0.32 takes these without a word, and answers nonsense or as the base (tried).
    "a smaller base's width": (pair(Q, 16, 32), "base_mismatch"),
    "a smaller base's height": (pair(Q, 32, 16), "base_mismatch"),
    "a smaller vocabulary": (pair("base_model.model.lm_head", 32, 95), "vocabulary_resized"),
    "a layer far beyond": (pair(f"{PREFIX}99.self_attn.q_proj", 32, 32), "base_mismatch"),
    "a module in the wrong place": (pair(f"{PREFIX}0.mlp.q_proj", 32, 32), "unknown_module"),
    "a layer of another list": (pair("base_model.model.layers.0.self_attn.q_proj", 32, 32), "unknown_module"),
    # It refuses these (ValueError, "expected target modules in").
    "a layer norm": (pair(f"{PREFIX}0.input_layernorm", 32, 32), "unknown_module"),
    "fused query, key and value": (pair(f"{PREFIX}0.self_attn.qkv_proj", 32, 64), "unknown_module"),
    "LoRA on the head of qwen2": (pair("base_model.model.lm_head", 32, 100), "embedding_lora"),
    "weights of 3e38": ([*usual()[:-1], (*usual()[-1][:3], bf16(3e38) * 128)], "out_of_range"),
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


EMBEDDING: Tensors = [
    ("base_model.model.model.embed_tokens.lora_embedding_A", "BF16", [8, 100], numbers(800)),
    ("base_model.model.model.embed_tokens.lora_embedding_B", "BF16", [32, 8], numbers(256)),
]
