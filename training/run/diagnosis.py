"""Why a trainer ended badly, read from its log: one sentence, and settings of the recipe to try instead. Pure.

`sure`: the same again would end the same way, so nobody should try. What has no such cause was interrupted.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.types import Problem

TAIL = 256 * 1024  # bytes of the log that are looked at
_NOISE = re.compile(r"ChildFailedError|elastic")  # torchrun's own report about its workers is nobody's cause
_RAISED = re.compile(r"^(?:\[rank\d+\]: ?)?([\w.]*(?:Error|Exception|Interrupt|Warning)): ?(.*)$")


@dataclass(frozen=True, slots=True)
class Diagnosis:
    problem: Problem
    sure: bool


def read_tail(log: Path, begin: int = 0) -> str:
    """The end of a log, of what was written behind `begin`."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(min(begin, size), size - TAIL))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def diagnose(log: str, code: int | None, settled: Mapping[str, Any], step: int | None = None) -> Diagnosis:
    """code: its exit code, negative for a signal, None where nobody knows; step: the last that was seen."""
    where = f" after step {step}" if step else " before its first step"
    for pattern, explain in _CAUSES:
        found = pattern.search(log)
        if found is not None:
            return Diagnosis(explain(found, settled, where), True)
    if code == -signal.SIGKILL:
        return Diagnosis(
            Problem(
                "killed",
                f"The trainer was killed (signal 9){where}: most often the machine had no memory left for it. "
                "Free some, or choose smaller settings.",
                try_this=smaller(settled),
            ),
            False,
        )
    words = last_error(log)
    if words is not None and code not in (-signal.SIGTERM, -signal.SIGINT):
        return Diagnosis(Problem("trainer_failed", f"The trainer failed{where}: {words}"), True)
    return Diagnosis(Problem("interrupted", f"The trainer ended{where}, {_how(code)}, without saying why."), False)


def last_error(log: str) -> str | None:
    """The last exception that the log shows, on one line and not too long."""
    for line in reversed(log.splitlines()):
        if _NOISE.search(line):
            continue
        raised = _RAISED.match(line)
        if raised:
            return f"{raised[1].rpartition('.')[2]}: {raised[2][:300]}".rstrip(": ")
    return None


def smaller(settled: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that need less memory: half the batch, then half the length, then four bits."""
    given = _llamafactory(settled)
    batch, cutoff = given.get("per_device_train_batch_size"), given.get("cutoff_len")
    if isinstance(batch, int) and batch > 1:
        return {"training.batch_size": batch // 2}
    if isinstance(cutoff, int) and cutoff > 512:
        return {"training.cutoff": max(512, cutoff // 2)}
    if given.get("finetuning_type") == "lora" and "quantization_bit" not in given:
        return {"method.tuning": "qlora"}
    return {"method.rank": 8} if isinstance(rank := given.get("lora_rank"), int) and rank > 8 else {}


def slower(settled: Mapping[str, Any]) -> dict[str, Any]:
    """A third of the learning rate."""
    rate = _llamafactory(settled).get("learning_rate")
    return {"training.learning_rate": float(f"{rate / 3:.2g}")} if isinstance(rate, int | float) else {}


def _llamafactory(settled: Mapping[str, Any]) -> Mapping[str, Any]:
    given = settled.get("llamafactory")
    return given if isinstance(given, Mapping) else {}


def _how(code: int | None) -> str:
    if code is None:
        return "while no worker watched"
    if code < 0:
        try:
            return f"by the signal {signal.Signals(-code).name}"
        except ValueError:
            return f"by signal {-code}"
    return f"with exit code {code}"


Explain = Callable[[re.Match[str], Mapping[str, Any], str], Problem]


def _gpu_memory(_: re.Match[str], settled: Mapping[str, Any], where: str) -> Problem:
    return Problem(
        "out_of_gpu_memory",
        f"The GPU had not enough memory{where}. Train with smaller settings, or on a GPU that nothing else uses.",
        try_this=smaller(settled),
    )


def _host_memory(_: re.Match[str], settled: Mapping[str, Any], where: str) -> Problem:
    return Problem(
        "out_of_memory",
        f"The machine had not enough memory{where}. Free some, or train with smaller settings.",
        try_this=smaller(settled),
    )


def _nan(_: re.Match[str], settled: Mapping[str, Any], where: str) -> Problem:
    return Problem(
        "diverged",
        f"The numbers became NaN or infinite{where}: the run diverged. Train with a lower learning rate.",
        try_this=slower(settled),
    )


def _no_rows(_: re.Match[str], settled: Mapping[str, Any], where: str) -> Problem:
    return Problem(
        "no_valid_rows",
        "LLaMA-Factory found no row that it can train on. `loragate datasets check` says what is wrong with each.",
        param="training_file",
    )


def _disk(_: re.Match[str], settled: Mapping[str, Any], where: str) -> Problem:
    return Problem(
        "disk_full",
        f"The disk became full{where}. Free some space in the data directory, or save less often, and run it again.",
        try_this={"training.save_steps": steps} if (steps := _rarer(settled)) else {},
    )


def _rarer(settled: Mapping[str, Any]) -> int | None:
    every = _llamafactory(settled).get("save_steps")
    return every * 4 if isinstance(every, int) else None


def _dependency(found: re.Match[str], settled: Mapping[str, Any], where: str) -> Problem:
    name = next(group for group in found.groups() if group)
    return Problem(
        "dependency_missing",
        f"The training environment lacks the Python package {name[:80]}, which these settings need. Install it there, "
        "or choose settings that need it not.",
    )


def _setting(found: re.Match[str], settled: Mapping[str, Any], where: str) -> Problem:
    keys = found[1][:200]
    return Problem("bad_setting", f"LLaMA-Factory does not know these settings: {keys}. Leave them out.", param=keys)


def _template(found: re.Match[str], settled: Mapping[str, Any], where: str) -> Problem:
    return Problem(
        "template_unknown",
        f"LLaMA-Factory has no chat template called {found[1][:80]}. Name one that fits the base model.",
        param="template",
    )


def _port(_: re.Match[str], settled: Mapping[str, Any], where: str) -> Problem:
    return Problem(
        "port_in_use",
        "The port through which the trainer's processes meet is in use. Set another MASTER_PORT, or run it again "
        "when the other run has ended.",
    )


def _base(found: re.Match[str], settled: Mapping[str, Any], where: str) -> Problem:
    return Problem("base_missing", f"The base model cannot be read: {found[0][:200]}. Check its folder.", param="base")


def _stage(_: re.Match[str], settled: Mapping[str, Any], where: str) -> Problem:
    return Problem(
        "wrong_stage",
        "The data does not fit the stage: dpo, orpo and simpo need preferred and rejected answers, kto needs labels, "
        "sft plain conversations. Choose the stage that fits.",
        param="method.stage",
    )


_CAUSES: tuple[tuple[re.Pattern[str], Explain], ...] = tuple(
    (re.compile(pattern, re.MULTILINE), explain)
    for pattern, explain in (
        (r"CUDA out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED|HIP out of memory", _gpu_memory),
        (r"No space left on device|Errno 28\b|Disk quota exceeded|PytorchStreamWriter failed writing", _disk),
        (r"Cannot allocate memory|DefaultCPUAllocator: (?:not enough|can't allocate)|^MemoryError", _host_memory),
        (r"Cannot find valid samples|num_samples=0|The train dataset is empty", _no_rows),
        (r"Some keys are not used by the HfArgumentParser: \[?([^\]\n]+)", _setting),
        (r"Template (\S+) does not exist", _template),
        (r"EADDRINUSE|[Aa]ddress already in use", _port),
        (
            r"^ModuleNotFoundError: No module named '?([\w.]+)|^\S*Error: The '([^']+)' distribution was not found"
            r"|^\S*Error: .*pip install ['`]?([\w.\-]+)"
            r"|^ImportError: .*?`?([\w.\-]+)`? (?:is not installed|is required)",
            _dependency,
        ),
        (r"The dataset is not applicable in the current training stage", _stage),
        (r"(?:Error|Exception).*(?:does not appear to have a file named|is not a valid model identifier).*", _base),
        (r"\b(?:nan|NaN|infinite|inf)\b.{0,40}(?:loss|grad|logits)|probability tensor contains either", _nan),
        (r"(?:loss|grad\w*|logits).{0,40}\b(?:is|are|became|contains?) (?:nan|NaN|inf|infinite)\b", _nan),
    )
)
