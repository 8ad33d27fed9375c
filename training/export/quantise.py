"""A merged model quantised: GPTQ by LLaMA-Factory's export where a GPU is; for AWQ, which tool and how.

Must not merge: a quantised base cannot be merged into, so that comes first.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from adapters.errors import InvalidRequest, ServiceError
from training.export.merge import need_room
from training.interpreter import Interpreter

BITS = (2, 3, 4, 8)
NEEDS = ("gptqmodel", "optimum")
SAMPLES, TOKENS = 128, 1024  # LLaMA-Factory's own; a sample must be longer than TOKENS tokens
LETTERS = TOKENS * 8  # more than TOKENS tokens of any usual text
TEMPLATE = "empty"  # only prompts are read, as they are


class CannotQuantise(ServiceError):
    """What it needs is not here; the message says what, and what to do instead."""

    code = "cannot_quantise"


def check(gpus: int, packages: Mapping[str, str]) -> None:
    """CannotQuantise where GPTQ cannot be done here."""
    if not gpus:
        raise CannotQuantise(
            "GPTQ needs an NVIDIA GPU, and this machine has none. Run this command where one is; the merged model "
            "(`loragate export merged`) can be copied there. vLLM also quantises while it loads: add "
            "`--quantization fp8` to its command on a GPU of 2022 or later."
        )
    missing = [name for name in NEEDS if name not in packages]
    if missing:
        raise CannotQuantise(
            f"LLaMA-Factory's GPTQ needs {' and '.join(missing)}, which its environment does not have: they are built "
            "for one CUDA. Make an environment of your own with llamafactory, gptqmodel>=2.0 and optimum>=1.24, and "
            "name its interpreter in LORAGATE_TRAINING_PYTHON."
        )


def gptq(
    python: Interpreter,
    model: Path,
    data: Path,
    target: Path,
    *,
    bits: int = 4,
    show: Callable[[int, int], None] = lambda done, in_all: None,
) -> Path:
    """The model in `model` quantised into `target`, which must not be there yet, calibrated on `data` (JSONL or text).

    Blocking; tens of minutes for a large model. CannotQuantise, ChildFailed, InvalidRequest, StorageFull.
    """
    need_room(target.parent, sum(file.stat().st_size for file in model.glob("*.safetensors")))
    fresh = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        calibration = fresh / "calibration.jsonl"
        samples = calibrate(data, calibration)
        asked = settings(model, calibration, fresh / "model", bits, min(samples, SAMPLES))
        file = fresh / "export.yaml"
        file.write_text(yaml.safe_dump(asked, sort_keys=False), encoding="utf-8")
        python.run([python.llamafactory, "export", str(file)], fresh, show)
        _check_made(fresh / "model")
        for each in (fresh / "model").iterdir():
            each.chmod(0o644)
        (fresh / "model").chmod(0o755)
        os.replace(fresh / "model", target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return target


def settings(model: Path, calibration: Path, out: Path, bits: int, samples: int) -> dict[str, Any]:
    """LLaMA-Factory's keys for its `export`."""
    if bits not in BITS:
        raise InvalidRequest(f"GPTQ takes {', '.join(map(str, BITS))} bits, and {bits} is none of them.", param="bits")
    for path in (model, out):
        if " " in str(path):
            raise InvalidRequest(f"{path} has a space in it, which LLaMA-Factory does not take. Name another folder.")
    return {
        "model_name_or_path": str(model),
        "template": TEMPLATE,
        "export_dir": str(out),
        "export_device": "auto",
        "export_quantization_bit": bits,
        "export_quantization_dataset": str(calibration),
        "export_quantization_nsamples": samples,
        "export_quantization_maxlen": TOKENS,
    }


def calibrate(data: Path, out: Path) -> int:
    """Rows of `data` joined to texts that are long enough, as LLaMA-Factory wants them; how many. InvalidRequest."""
    made, size, piece = 0, 0, list[str]()
    with out.open("w", encoding="utf-8") as written:
        while made < SAMPLES:  # the data once more from its beginning, until there are enough
            text = ""
            for text in _texts(data):
                piece.append(text)
                size += len(text)
                if size >= LETTERS:
                    written.write(json.dumps({"text": "\n\n".join(piece)}, ensure_ascii=False) + "\n")
                    made, size, piece = made + 1, 0, []
                if made == SAMPLES:
                    break
            if not text:
                raise InvalidRequest(f"{data} holds no text to calibrate on: one row a line, JSON or plain.")
    return made


def awq(model: str, data: str, out: str) -> str:
    """A program for AWQ. LLaMA-Factory 0.9.5 only reads such models; llm-compressor makes them, and is kept."""
    return _AWQ.format(model=model, data=data, out=out)


_AWQ = """\
# In an environment of its own, on a machine with a GPU:  pip install llmcompressor && python awq.py
from datasets import load_dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.awq import AWQModifier
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({model!r}, torch_dtype="auto")
tokenizer = AutoTokenizer.from_pretrained({model!r})
rows = load_dataset("json", data_files={data!r}, split="train")
rows = rows.map(lambda row: {{"text": tokenizer.apply_chat_template(row["messages"], tokenize=False)}})
recipe = AWQModifier(targets=["Linear"], scheme="W4A16_ASYM", ignore=["lm_head"])
oneshot(model=model, dataset=rows, recipe=recipe, max_seq_length=2048, num_calibration_samples=min(256, len(rows)))
model.save_pretrained({out!r}, save_compressed=True)
tokenizer.save_pretrained({out!r})
"""


def _texts(data: Path) -> Iterator[str]:
    """The text of every line: all strings of a JSON row in their order, or the line."""
    try:
        with data.open(encoding="utf-8") as opened:
            for line in opened:
                try:
                    found = "\n".join(_strings(json.loads(line)))
                except (ValueError, RecursionError):
                    found = line.strip()
                if found:
                    yield found
    except (OSError, UnicodeDecodeError):
        raise InvalidRequest(f"{data} cannot be read as text. Name a JSONL or text file.") from None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in ("role", "from"):
                yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _check_made(model: Path) -> None:
    """LLaMA-Factory's exit code says little: the result must say itself that it is quantised."""
    try:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = {}
    if not config.get("quantization_config") or not any(model.glob("*.safetensors")):
        raise CannotQuantise(
            "LLaMA-Factory ended without a word, and what it wrote is not a quantised model. Nothing was kept."
        )
