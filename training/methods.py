"""The methods: what each is to LLaMA-Factory 0.9.5, and what vLLM 0.32 can serve of it. A table, and its refusals.

Everything here was run or read there. Must not know recipes' other keys, data or machines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from training.errors import NotServable


@dataclass(frozen=True, slots=True)
class Tuning:
    """Which weights are trained. adapter: whether the result is one that an engine loads beside its base.

    grows: the served rank is so many times the trained one. folder: where in the output the adapter lies.
    """

    keys: Mapping[str, Any]
    served: str
    adapter: bool = True
    grows: int = 1
    folder: str = "."


@dataclass(frozen=True, slots=True)
class Stage:
    """What is learned from. data: the kind of rows it needs; reference: whether a second copy judges (full only)."""

    keys: Mapping[str, Any]
    data: str
    summary: str
    beta: float | None = None
    gamma: float | None = None
    reference: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)


_LORA = {"finetuning_type": "lora"}
_AS_ADAPTER = "yes, as an adapter"
_AS_MODEL = "as a model of its own (`then: keep`, then `--model`), never as an adapter"

TUNINGS: Mapping[str, Tuning] = {
    "lora": Tuning(_LORA, _AS_ADAPTER),
    "rslora": Tuning({**_LORA, "use_rslora": True}, _AS_ADAPTER),
    "lora+": Tuning(_LORA, _AS_ADAPTER),
    "qlora": Tuning({**_LORA, "quantization_method": "bnb"}, "yes, as an adapter on the base in 16 bits"),
    "pissa": Tuning(
        {**_LORA, "pissa_init": True, "pissa_iter": 16, "pissa_convert": True},
        "yes, converted to an adapter of twice the rank",
        grows=2,
        folder="pissa_converted",
    ),
    "full": Tuning({"finetuning_type": "full"}, _AS_MODEL, adapter=False),
    "freeze": Tuning({"finetuning_type": "freeze"}, _AS_MODEL, adapter=False),
}

STAGES: Mapping[str, Stage] = {
    "sft": Stage({"stage": "sft"}, "sft", "the answers themselves"),
    "dpo": Stage(
        {"stage": "dpo", "pref_loss": "sigmoid"}, "preference", "pairs of a better and a worse answer", 0.1, None, True
    ),
    "orpo": Stage({"stage": "dpo", "pref_loss": "orpo"}, "preference", "pairs, and the better answer itself", 0.1),
    "simpo": Stage({"stage": "dpo", "pref_loss": "simpo"}, "preference", "pairs, by answer length", 2.0, 1.0),
    "kto": Stage({"stage": "kto"}, "kto", "answers that were liked or not, one by one", 0.1, None, True),
}
KINDS = {"sft": "conversations", "preference": "pairs of answers", "kto": "answers with a label"}

_LORA_INSTEAD = "Use method.tuning: lora, rslora or lora+."
# tuning → why not. Names that other trainers and many tutorials use.
_REFUSED_TUNINGS = {
    "adalora": f"LLaMA-Factory 0.9.5 has no AdaLoRA (its finetuning_type ends in an assertion). {_LORA_INSTEAD}",
    "dora": f"vLLM 0.32 does not serve DoRA: it has no place for the magnitudes. {_LORA_INSTEAD}",
    "qdora": "vLLM 0.32 does not serve DoRA, quantised or not. Use method.tuning: qlora.",
    "oft": f"vLLM 0.32 serves LoRA only, and OFT is not one. {_LORA_INSTEAD}",
    "qoft": "vLLM 0.32 serves LoRA only, and OFT is not one. Use method.tuning: qlora.",
    "boft": f"vLLM 0.32 serves LoRA only, and LLaMA-Factory trains no BOFT. {_LORA_INSTEAD}",
    "loha": f"vLLM 0.32 serves LoRA only. {_LORA_INSTEAD}",
    "lokr": f"vLLM 0.32 serves LoRA only. {_LORA_INSTEAD}",
    "ia3": f"vLLM 0.32 serves LoRA only. {_LORA_INSTEAD}",
    "vera": f"vLLM 0.32 serves LoRA only. {_LORA_INSTEAD}",
    "prefix": f"vLLM 0.32 serves no learned tokens. {_LORA_INSTEAD}",
    "prompt": f"vLLM 0.32 serves no learned tokens. {_LORA_INSTEAD}",
    "loftq": "LoftQ changes the base while it trains, so its adapter fits no base that is served. Use qlora.",
    "olora": f"OLoRA changes the base while it trains, so its adapter fits no base that is served. {_LORA_INSTEAD}",
    "corda": f"CorDA changes the base while it trains, so its adapter fits no base that is served. {_LORA_INSTEAD}",
}
_REFUSED_STAGES = {
    "rm": "A reward model's adapter would load and its value head be ignored (tried): it answers nonsense. Use dpo.",
    "ppo": "PPO needs a reward model in the trainer and is not run here. Use method.stage: dpo, orpo, simpo or kto.",
    "grpo": "LLaMA-Factory 0.9.5 has no GRPO. Use method.stage: dpo, orpo, simpo or kto.",
    "pt": "Pre-training wants plain text, which is not read here. Use method.stage: sft.",
}
_SAVED = (
    "It would write whole modules beside the adapter (modules_to_save), which vLLM refuses. Leave it out, or train "
    "with method.tuning: full and then: keep."
)
# key of `method` → why not, unless it is off
_REFUSED_KEYS = {
    "modules_to_save": _SAVED,
    "additional_target": _SAVED,
    "resize_vocab": _SAVED,
    "add_tokens": _SAVED,
    "use_dora": _REFUSED_TUNINGS["dora"],
    "bias": "vLLM has no biases of adapters. Leave it out.",
}


def refuse(document: Mapping[str, Any]) -> None:
    """NotServable for a method that is known and whose result could not be served, before anything else is checked."""
    method = document.get("method")
    if not isinstance(method, Mapping):
        return
    for key, table in (("tuning", _REFUSED_TUNINGS), ("stage", _REFUSED_STAGES)):
        asked = method.get(key)
        if isinstance(asked, str) and asked.lower() in table:
            raise NotServable(f"`method.{key}` is {asked}. {table[asked.lower()]}", param=f"method.{key}")
    for key, why in _REFUSED_KEYS.items():
        if method.get(key) not in (None, False, "none", [], ""):
            raise NotServable(f"`method.{key}` is set. {why}", param=f"method.{key}")
    if method.get("pissa_convert") is False:
        raise NotServable(
            "`method.pissa_convert` is off. PiSSA changes the base while it trains, so vLLM refuses what is not "
            "converted. Use method.tuning: pissa, which always converts.",
            param="method.pissa_convert",
        )
