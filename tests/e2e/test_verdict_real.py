"""The verdict against vLLM's own reader: what is taken here it reads to the bit; what it takes in silence is known.

No engine is started: its Python reads folders with its own classes. When the pinned vLLM changes its mind, this fails.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapters.intake import check
from adapters.served import described
from tests.adapters.corpus import CONFIGS, WEIGHTS
from tests.adapters.folders import PREFIX, Tensors, pair, weights, write, write_base

READER = Path(__file__).with_name("read_adapters.py")
SIZES = {"q_proj": (32, 32), "v_proj": (32, 16), "o_proj": (32, 32)}

# vLLM 0.32 reads these and says nothing. Refused here all the same: the answers would be wrong, or the key is a way in.
SILENT = {
    *(
        "LoftQ config",
        "LoftQ's table with a LoRA's start",
        "CorDA cache, a pickle",
        "LoRA-GA",
        "classification head",
        "new tokens",
    ),
    *("experts", "arrow", "code by name", "megatron", "megatron's import", "tokenizer", "tokenizer in a repository"),
    *(
        "other method",
        "classifier",
        "GPT-2 layout",
        "tied",
        "other rank than tensors",
        "base by address",
        "unknown key",
    ),
    *("weights a smaller base's width", "weights a layer far beyond", "weights a module in the wrong place"),
    *("weights NaN", "weights weights of 3e38", "weights the prefix twice", "weights with and without the prefix"),
    "weights a layer with a zero before",
}
# It refuses these too, but only when an engine loads them, and in its own words.
LOUD = {
    *(
        "DoRA",
        "PiSSA",
        "OLoRA",
        "CorDA",
        "LoftQ",
        "bias",
        "LoRA bias",
        "aLoRA",
        "QALoRA",
        "BD-LoRA",
        "layer replication",
    ),
    *("whole modules", "rank 0", "rank 513", "weights a layer norm", "weights LoRA on the head of qwen2"),
    *("weights a whole embedding", "weights a value head", "weights new tokens", "weights a bias"),
}


def _read(engine_python: Path, folders: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    environ = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}
    command = [str(engine_python), "-I", str(READER), *map(str, folders.values())]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=True)
    table = json.loads(done.stdout.splitlines()[-1])
    return {case: table[str(folder)] for case, folder in folders.items()}


def _made(seed: int) -> tuple[dict[str, Any], Tensors]:
    """An adapter of any ranks, alphas and number types."""
    dice = random.Random(seed)
    ranks: dict[str, int] = {}
    tensors: Tensors = []
    for layer in range(dice.choice([2, 40])):
        for name in dice.sample(sorted(SIZES), dice.randint(1, 3)):
            module = f"{layer}.self_attn.{name}"
            ranks[f"layers.{module}"] = dice.choice([1, 4, 8, 8, 12, 16])
            tensors += pair(PREFIX + module, *SIZES[name], ranks[f"layers.{module}"], dice.randrange(9))
    dice.shuffle(tensors)
    alphas = {key: dice.choice([1, 2.5, 16]) for key in ranks if dice.random() < 0.5}
    config = {"r": 8, "use_rslora": dice.random() < 0.5, "rank_pattern": ranks, "alpha_pattern": alphas}
    return config, tensors


def test_what_is_taken_is_read_to_the_bit(engine_python: Path, tmp_path: Path) -> None:
    base = described("demo-base", str(write_base(tmp_path / "demo-base", num_hidden_layers=40)))
    folders, expected = {}, {}
    for seed in range(20):
        config, tensors = _made(seed)
        found = check(write(tmp_path / f"from{seed}", config, tensors), base, 16)
        folder = tmp_path / f"to{seed}"
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps(dict(found.config)))
        (folder / "adapter_model.safetensors").write_bytes(weights(tensors))
        folders[str(seed)] = folder
        expected[str(seed)] = {"modules": _modules(config, tensors), "bits": _bits(tensors)}
    assert _read(engine_python, folders) == expected


def _modules(config: dict[str, Any], tensors: Tensors) -> dict[str, list[float]]:
    """Rank and scaling by PEFT's own definition, from the config before we rewrote it."""
    modules: dict[str, list[float]] = {}
    for name, _, shape, _ in tensors:
        module, _, half = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        rank = config["rank_pattern"][module.removeprefix("model.")]
        alpha = config["alpha_pattern"].get(module.removeprefix("model."), 16)
        entry = modules.setdefault(module, [rank, alpha / (math.sqrt(rank) if config["use_rslora"] else rank), 0, 0])
        entry[2 if half == "lora_A" else 3] = shape[1] if half == "lora_A" else shape[0]
    return modules


def _bits(tensors: Tensors) -> str:
    digest = hashlib.sha256()
    for name, _, shape, data in sorted(tensors):
        digest.update(json.dumps([name, shape, hashlib.sha256(data).hexdigest()]).encode())
    return digest.hexdigest()


def test_what_vllm_refuses_and_what_it_takes_in_silence(engine_python: Path, tmp_path: Path) -> None:
    cases = {case: keys for case, (keys, _) in CONFIGS.items() if not case.startswith("method ")}
    configs = {case: write(tmp_path / f"c{at}", keys) for at, (case, keys) in enumerate(cases.items())}
    folders = {
        f"weights {case}": write(tmp_path / f"w{at}", tensors=WEIGHTS[case][0]) for at, case in enumerate(WEIGHTS)
    }
    read = _read(engine_python, {**configs, **folders})
    refused = {case for case, found in read.items() if "error" in found}
    assert refused & SILENT == set()
    assert refused >= LOUD
    twice = read["weights two names for one module"]["modules"]
    assert len(twice) == len(read["code by name"]["modules"]), "two names of a file are one module to vLLM"
