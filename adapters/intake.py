"""Judges an adapter folder before any engine is touched, and hands its checked bytes on.

Order: folder, config, header, fit (cheap, nothing copied yet, all of it is told), then one pass over the weights where
nothing was refused so far. Must not know where the bytes go.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters import folder, modules, peft_config, safetensors
from adapters.errors import AdapterRejected
from adapters.modules import Pair
from adapters.names import SHORT
from adapters.served import BaseInfo
from adapters.verdict import Finding, Findings, rejection

_QUANTISED = re.compile(
    r"-(unsloth-)?bnb-[48]bit|-(gptq|awq)(-.*)?|-(int|fp|nvfp|mxfp)[48](-.*)?|-(quantized\.)?w\d+a\d+", re.IGNORECASE
)
_CACHED = re.compile(r"(?:.*/)?models--(?:[^/]*--)?([^/]+)(?:/snapshots/[0-9a-f]+)?")
_NUMBER_BYTES = 2  # in the engine, whatever the file has: vLLM serves float32 models in 16 bits unless told otherwise


@dataclass(frozen=True, slots=True)
class Memory:
    """What the adapter is in an engine, in bytes, at two bytes a number."""

    adapter_bytes: int
    slot_bytes: int | None  # one of the engine's --max-loras slots; None where the base's sizes are not known
    max_lora_rank: int


@dataclass(frozen=True, slots=True)
class Checked:
    """An adapter that can be served."""

    digest: str  # 64 hex digits over the tensors and the semantic config
    rank: int
    size_bytes: int
    config: Mapping[str, Any]  # normalised, less the base
    base: str | None  # what its own config names
    findings: tuple[Finding, ...]  # warnings; none of them forbids serving
    memory: Memory

    @property
    def version(self) -> str:
        return self.digest[:SHORT]

    @property
    def warnings(self) -> tuple[str, ...]:
        """The findings as sentences for the operator."""
        return tuple(each.sentence for each in self.findings)


def check(
    source: Path,
    base: BaseInfo | None,
    max_lora_rank: int,
    sink: Callable[[bytes], object] | None = None,
) -> Checked:
    """Check the folder `source` (absolute) for `base`; `sink` gets every byte of the weights, once, as checked.

    Blocking: about 1 s per 500 MB. Raises Rejected with all that was found; whoever owns the sink throws away what it
    got, which is nothing where the config or the header was refused.
    """
    findings = Findings()
    checked = None
    try:
        with folder.opened(source) as found:
            checked = _look(found, base, max_lora_rank, findings, sink)
    except AdapterRejected as error:
        findings.add(error)
    if checked is None:
        raise rejection(findings.all())
    return checked


def _look(
    found: folder.Folder,
    base: BaseInfo | None,
    max_lora_rank: int,
    findings: Findings,
    sink: Callable[[bytes], object] | None,
) -> Checked | None:
    """What the folder is; None where `findings` refuse it. AdapterRejected for what ends the look at once."""
    if found.refused is not None:
        findings.add(found.refused)
    config = peft_config.parse(found.config, findings)
    header = safetensors.read_header(found.weights, found.weights_bytes)
    lora = modules.pairs(header.tensors, config, base.shape if base is not None else None, findings)
    modules.check_fit(lora, base, max_lora_rank, findings)
    _compare_base(config.base if config is not None else None, base, findings)
    if findings.refused or config is None:
        return None
    table = peft_config.normalised(config, [pair.module for pair in lora])
    peft_config.check_patterns(table, findings)
    if findings.refused:
        return None
    contents = safetensors.scan(found.weights, header, sink)
    if all(contents.zeros & {*pair.tensors} for pair in lora):
        what = "One half of every module is zero: this adapter was never trained and answers like the base."
        findings.warn("untrained", what)
    digest = hashlib.sha256(f"{contents.digest}\n{peft_config.semantic(table)}".encode()).hexdigest()
    return Checked(
        digest=digest,
        rank=max(pair.rank for pair in lora),
        size_bytes=found.weights_bytes,
        config=peft_config.written(table),
        base=config.base,
        findings=findings.all(),
        memory=_memory(lora, base, max_lora_rank),
    )


def _memory(lora: Sequence[Pair], base: BaseInfo | None, max_lora_rank: int) -> Memory:
    numbers = sum(pair.rank * (pair.inputs + pair.outputs) for pair in lora)
    shape = base.shape if base is not None else None
    slot = shape.slot_bytes(max_lora_rank) if shape is not None else None
    return Memory(numbers * _NUMBER_BYTES, slot, max_lora_rank)


def _compare_base(named: str | None, base: BaseInfo | None, findings: Findings) -> None:
    """Names of a base differ between machines (paths, hub ids), so shapes decide where they are known."""
    if base is None:
        findings.warn(
            "base_unknown",
            "No engine has said yet which base it serves, so the adapter was not compared with any.",
            "Check it again when `loragate status` shows one that is ready.",
        )
        return
    if base.shape is None:
        findings.warn(
            "shapes_unchecked",
            f"The sizes of {base.id} are not known here, so the tensors were not compared with them.",
            "An adapter of a smaller base would load and answer nonsense: ask it something before you promote it.",
        )
    served = {_last(base.id), _last(base.root or base.id)}
    if not named or named == base.root or _last(named) in served:
        return
    if _plain(named) in {_plain(each) for each in served}:
        what = f"It was trained on {named[:120]}, a quantised copy of {base.id}, or the other way round."
        findings.warn("base_quantised", what, "Answers can differ slightly from those in training.")
    elif base.shape is not None:
        what = f"It was trained on {named[:120]}; the served base {base.id} has the same shapes, so it was accepted."
        findings.warn("base_renamed", what, "If it is not the same model, its answers will be nonsense.")
    else:
        findings.refuse(
            "base_mismatch",
            f"This adapter was trained on {named[:120]}, and {base.id} is served.",
            f"If they are the same model, set base_model_name_or_path in adapter_config.json to {base.id} and register "
            "it again.",
        )


def _last(name: str) -> str:
    """The last part of a hub id or path; in the caches of Hugging Face and ModelScope it has another form there."""
    plain = name.replace("\\", "/").rstrip("/")
    cached = _CACHED.fullmatch(plain)
    return (cached[1] if cached else plain.rpartition("/")[2]).replace("___", ".").casefold()


def _plain(name: str) -> str:
    """A base's name without what says how it was quantised."""
    return _QUANTISED.sub("", _last(name))
