"""Judges an adapter folder before any engine is touched, and hands its checked bytes on.

Order: folder, config, header, fit (cheap, nothing copied yet), then one pass over the weights. Must not know
where the bytes go.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters import folder, modules, peft_config, safetensors
from adapters.errors import AdapterRejected
from adapters.names import SHORT
from adapters.served import BaseInfo


@dataclass(frozen=True, slots=True)
class Checked:
    """An adapter that can be served."""

    digest: str  # 64 hex digits over the tensors and the semantic config
    rank: int
    size_bytes: int
    config: Mapping[str, Any]  # normalised, less the base
    base: str | None  # what its own config names
    warnings: tuple[str, ...]  # sentences for the operator; none of them forbids serving

    @property
    def version(self) -> str:
        return self.digest[:SHORT]


def check(
    source: Path,
    base: BaseInfo | None,
    max_lora_rank: int,
    sink: Callable[[bytes], object] | None = None,
) -> Checked:
    """Check the folder `source` (absolute) for `base`; `sink` gets every byte of the weights, once, as checked.

    Blocking: about 1 s per 500 MB. Raises AdapterRejected; whoever owns the sink throws away what it got.
    """
    with folder.opened(source) as found:
        config = peft_config.parse(found.config)
        header = safetensors.read_header(found.weights, found.weights_bytes)
        lora = modules.pairs(header.tensors, config)
        warnings = []
        if base is not None:
            modules.check_fit(lora, base, max_lora_rank)
            warnings += _compare_base(config.base, base)
        else:
            modules.check_fit(lora, BaseInfo(""), max_lora_rank)
        contents = safetensors.scan(found.weights, header, sink)
    outputs = {tensor.name for tensor in header.tensors if tensor.name.endswith(("lora_B.weight", "lora_embedding_B"))}
    if outputs <= contents.zeros:
        warnings.append("Every lora_B is zero: this adapter was never trained and answers like the base.")
    table = peft_config.normalised(config, [pair.module for pair in lora])
    digest = hashlib.sha256(f"{contents.digest}\n{peft_config.semantic(table)}".encode()).hexdigest()
    rank = max(pair.rank for pair in lora)
    return Checked(digest, rank, found.weights_bytes, table, config.base, tuple(warnings))


def _compare_base(named: str | None, base: BaseInfo) -> list[str]:
    """Names of a base differ between machines (paths, hub ids), so shapes decide where they are known."""
    if not named or named == base.root or _last(named) in (_last(base.id), _last(base.root or base.id)):
        return []
    if base.shape is not None:
        return [f"It was trained on {named[:120]}; the served base {base.id} has the same shapes, so it was accepted."]
    raise AdapterRejected(
        f"This adapter was trained on {named[:120]}, and {base.id} is served. If they are the same model, set "
        f"base_model_name_or_path in adapter_config.json to {base.id} and register it again.",
        reason="base_mismatch",
    )


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].casefold()
