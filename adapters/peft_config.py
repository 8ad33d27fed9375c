"""What an adapter_config.json may say: an allow-list with types, and the sentence for what cannot be served.

PEFT's keys up to 0.18 and vLLM 0.32's refusals; the file we store is written anew from what passed here.
Must not know tensors or files.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from adapters.verdict import Findings, Rejected

MAX_RANK = 512  # vLLM's largest max_lora_rank
# They change the adapter's start, not the base. lora_ga does: PEFT takes its start out of the base while it trains, and
# leaves the base alone when it loads what was saved (layer.py, lora_ga_init); vLLM 0.32 takes it without a word.
_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica")
# What trainers write, and what `written` below makes of many.
_PATTERN_KEY = re.compile(
    r"\^?(?!\.)(?!.*\.\.)[A-Za-z0-9_.]{1,512}(?<!\.)|\^\([A-Za-z0-9_.]+(\|[A-Za-z0-9_.]+)*\)", re.ASCII
)
_MAPPED = re.compile(r"transformers(_modules)?(\.\w+)+:\w+(ForCausalLM|ForConditionalGeneration|LMHeadModel)", re.ASCII)
# vLLM 0.32 tries every pattern on every module, one after the other, while all requests wait; from 500 patterns on it
# also compiles each anew. Measured: 560 modules of a 70B model, each with its own rank and alpha, 18 s; as one pattern
# for each value 0.2 s, and 1.5 s for 2,000 modules.
MANY_PATTERNS = 64
MAX_PATTERNS = 2000


class Pattern:
    """A table of PEFT's that gives some modules a number of their own."""

    def __init__(self, table: Mapping[str, float]) -> None:
        self._values: dict[str, float] = {}
        for key, value in table.items():
            names = [f"^{name}" for name in key[2:-1].split("|")] if key.startswith("^(") else [key]
            for name in names:
                self._values.setdefault(name, value)
        self._places = {key: place for place, key in enumerate(self._values)}

    def of(self, module: str, default: float) -> float:
        """PEFT's rule: a key names a module in full or from a dot on, `^` in full only; the earliest key wins.

        Looked up by suffix (depth of the name), not by trying every key: both tables can be long.
        """
        if not self._values:
            return default
        starts = (0, *(at + 1 for at, letter in enumerate(module) if letter == "."))
        hits = [key for key in ("^" + module, *(module[start:] for start in starts)) if key in self._values]
        return self._values[min(hits, key=self._places.__getitem__)] if hits else default


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """The part of an adapter_config.json that changes what the adapter does, and the base it names."""

    r: int
    lora_alpha: float
    use_rslora: bool
    rank_pattern: Pattern
    alpha_pattern: Pattern
    base: str | None

    def rank_of(self, module: str) -> int:
        """The rank PEFT gave `module` (its name without base_model.model.)."""
        return int(self.rank_pattern.of(module, self.r))

    def alpha_of(self, module: str) -> float:
        """The alpha PEFT gave `module`."""
        return self.alpha_pattern.of(module, self.lora_alpha)


def parse(raw: bytes, findings: Findings) -> LoraConfig | None:
    """Check `raw` key by key into `findings`: what cannot be served, and what would do instead.

    None where the modules' ranks are not known. Raises Rejected where it is no LoRA's config at all: then its other
    keys mean other things.
    """
    document = _document(raw)
    method = document.get("peft_type")
    if method != "LORA":
        raise _rejected("not_lora", f"peft_type is {_shown(method)}", _instead_of(method))
    _check_init(document.get("init_lora_weights", True), findings)
    for key, value in document.items():
        rule = _RULES.get(key)
        if rule is None:
            if not _empty(value):
                _refuse(findings, "unknown_key", f"it sets {key[:60]!r}, which is not known to be safe", _REMOVE)
        elif not rule.accepts(value):
            _refuse(findings, rule.reason, f"{key} is {_shown(value)}", rule.nearest, key)
    for key in ("r", "lora_alpha", "target_modules"):
        if document.get(key) is None:
            _refuse(findings, "config_incomplete", f"{key} is missing", "Copy the config that training wrote.", key)
    return _lora(document)


def _lora(document: Mapping[str, Any]) -> LoraConfig | None:
    """What of it is sound; the rest is refused already, and the tensors are still to be judged."""

    def sound(key: str) -> Any:
        return document.get(key) if _RULES[key].accepts(document.get(key)) else None

    rank = sound("r")
    if rank is None or not _RULES["rank_pattern"].accepts(document.get("rank_pattern")):
        return None
    return LoraConfig(
        r=rank,
        lora_alpha=sound("lora_alpha") or 1,
        use_rslora=bool(sound("use_rslora")),
        rank_pattern=Pattern(sound("rank_pattern") or {}),
        alpha_pattern=Pattern(sound("alpha_pattern") or {}),
        base=sound("base_model_name_or_path"),
    )


def normalised(config: LoraConfig, modules: list[str]) -> dict[str, Any]:
    """The config we store, less the base: plain target modules, and patterns that name each module exactly once.

    Two folders that mean the same give the same table, whatever patterns they used to say it.
    """
    used = {name: config.rank_of(name) for name in modules}
    # vLLM measures `r` against its --max-lora-rank also where every module has a rank of its own (peft_helper.py).
    rank = config.r if config.r in used.values() else max(used.values())
    ranks = {f"^{name}": each for name, each in used.items() if each != rank}
    alpha_of = {name: config.alpha_of(name) for name in modules}
    alphas = {f"^{name}": _plain(each) for name, each in alpha_of.items() if each != config.lora_alpha}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _plain(config.lora_alpha),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "target_modules": sorted({name.rpartition(".")[2] for name in modules}),
        "use_dora": False,
        "use_rslora": config.use_rslora,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
    }


def semantic(table: Mapping[str, Any]) -> str:
    """The keys of a normalised config that change answers, as text for the digest."""
    keys = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules")
    return json.dumps({key: table[key] for key in keys}, sort_keys=True, ensure_ascii=True)


def written(table: Mapping[str, Any]) -> dict[str, Any]:
    """A normalised config as the engine gets it: long tables of patterns as one pattern for each number in them."""
    return {**table, **{key: _joined(table[key]) for key in ("rank_pattern", "alpha_pattern")}}


def _joined(pattern: Mapping[str, float]) -> Mapping[str, float]:
    if len(pattern) <= MANY_PATTERNS:
        return pattern
    names: dict[float, list[str]] = {}
    for key, value in pattern.items():
        names.setdefault(value, []).append(key.removeprefix("^"))
    return {f"^({'|'.join(each)})": value for value, each in names.items()}


def check_patterns(table: Mapping[str, Any], findings: Findings) -> None:
    """Refuse a normalised config that would hold up an engine for long."""
    count = max(len(table["rank_pattern"]), len(table["alpha_pattern"]))
    if count > MAX_PATTERNS:
        what = f"{count} modules have a rank or alpha of their own, which would stop the engine for minutes"
        _refuse(findings, "too_many_patterns", what, "Train with one rank and alpha for most modules.")


@dataclass(frozen=True, slots=True)
class _Rule:
    accepts: Callable[[Any], bool]
    reason: str
    nearest: str


def _text(value: Any) -> bool:
    return value is None or (isinstance(value, str) and len(value) <= 4096)


def _flag(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _empty(value: Any) -> bool:
    return value is None or value is False or value == [] or value == {}


def _table(value: Any) -> bool:
    return value is None or isinstance(value, dict)


def _number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e6 and math.isfinite(value)


def _positive(value: Any) -> bool:
    return _number(value) and value > 0


def _rank(value: Any) -> bool:
    return type(value) is int and 0 < value <= MAX_RANK


def _texts(value: Any) -> bool:
    if value is None or _text(value):
        return True
    return isinstance(value, list) and len(value) <= 10_000 and all(isinstance(x, str) and len(x) <= 512 for x in value)


def _numbers_or_texts(value: Any) -> bool:
    if value is None or type(value) is int:
        return True
    return isinstance(value, list) and all(type(each) is int for each in value)


def _pattern(each: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def accepts(value: Any) -> bool:
        if value is None:
            return True
        if not isinstance(value, dict) or len(value) > 20_000:
            return False
        return all(_PATTERN_KEY.fullmatch(key) is not None and each(number) for key, number in value.items())

    return accepts


def _mapping(value: Any) -> bool:
    """Empty, or what PEFT writes where no task_type was given. It is dropped: nothing is imported."""
    if _empty(value):
        return True
    if not isinstance(value, dict) or not {*value} <= {"base_model_class", "parent_library", "unsloth_fixed"}:
        return False
    kind, module = value.get("base_model_class"), value.get("parent_library")
    return isinstance(kind, str) and isinstance(module, str) and _MAPPED.fullmatch(f"{module}:{kind}") is not None


def _local_or_hub(value: Any) -> bool:
    # It is shown to people: no control characters, and no half of a surrogate pair, which no answer can hold.
    return value is None or (_text(value) and "://" not in value and value.isprintable())


_CANNOT = "adapter_config.json cannot be served: {}."
_REMOVE = "Remove that key if training works without it."
_TYPE = "Save the adapter again with PEFT; this key has a value it never writes."
_PLAIN = "Name the modules in full; other patterns are not run here."
_MERGE = "Train again without it, or merge the adapter into the base and serve that with --model."
_NO_FLAG = f"vLLM does not serve it. {_MERGE}"
_CONVERTED = "Register the folder pissa_converted beside it (pissa_convert: true in LLaMA-Factory)."
_CONVERT = (
    "Convert it with PEFT (save_pretrained with path_initial_model_for_weight_conversion) and register the result, "
    "without that key."
)
_LOFTQ = "It fits only the base that LoftQ quantised. Train again with init_lora_weights: true, QLoRA included."
_WRITES = "Only adapters that write text (CAUSAL_LM) are served."
# PEFT 0.18's methods that end in other weights, and those that do not touch weights.
_MERGEABLE = re.compile(
    "ADALORA|BOFT|BONE|C3A|DELORA|FOURIERFT|HRA|IA3|LN_TUNING|LOHA|LOKR|MISS|OFT|OSF|RANDLORA|ROAD|SHIRA|VBLORA|VERA"
    "|WAVEFT"
)
_SOFT_PROMPTS = re.compile("ADAPTION_PROMPT|CPT|(MULTITASK_)?PROMPT_TUNING|PREFIX_TUNING|P_TUNING")

# key → which values are fine. What is fine and not in `LoraConfig` is dropped: it matters in training only.
_RULES: Mapping[str, _Rule] = {
    "peft_type": _Rule(_text, "not_lora", _TYPE),
    "task_type": _Rule(lambda value: value in (None, "CAUSAL_LM"), "task_type", _WRITES),
    "base_model_name_or_path": _Rule(
        _local_or_hub, "base_mismatch", "Name the base by a plain hub id or path, not by address."
    ),
    "r": _Rule(_rank, "rank", f"A rank is a whole number from 1 to {MAX_RANK}."),
    "lora_alpha": _Rule(_positive, "config_type", "Use a positive number for lora_alpha."),
    "target_modules": _Rule(_texts, "config_type", _TYPE),
    "exclude_modules": _Rule(_texts, "config_type", _TYPE),
    "layers_to_transform": _Rule(_numbers_or_texts, "config_type", _TYPE),
    "layers_pattern": _Rule(_texts, "config_type", _TYPE),
    "rank_pattern": _Rule(_pattern(_rank), "pattern", _PLAIN),
    "alpha_pattern": _Rule(_pattern(_positive), "pattern", _PLAIN),
    "use_rslora": _Rule(_flag, "config_type", _TYPE),
    "inference_mode": _Rule(_flag, "config_type", _TYPE),
    "fan_in_fan_out": _Rule(_empty, "fan_in_fan_out", "It is for GPT-2's layout, which vLLM does not serve with LoRA."),
    "ensure_weight_tying": _Rule(_empty, "weight_tying", _NO_FLAG),
    "lora_dropout": _Rule(_number, "config_type", _TYPE),
    "init_lora_weights": _Rule(lambda value: _flag(value) or isinstance(value, str), "config_type", _TYPE),
    "eva_config": _Rule(_table, "config_type", _TYPE),
    "lora_ga_config": _Rule(_table, "config_type", _TYPE),
    "peft_version": _Rule(_text, "config_type", _TYPE),
    "revision": _Rule(_text, "config_type", _TYPE),
    "qalora_group_size": _Rule(_number, "config_type", _TYPE),
    "megatron_core": _Rule(lambda value: value in (None, "megatron.core"), "megatron", "Set megatron_core to null."),
    "megatron_config": _Rule(_empty, "megatron", "Save the adapter without megatron_config."),
    "auto_mapping": _Rule(_mapping, "auto_mapping", "It would import code by name. Remove that key, or set task_type."),
    "tokenizer_name_or_path": _Rule(_empty, "tokenizer", "The base's tokenizer is used. Remove that key."),
    "modules_to_save": _Rule(
        _empty, "modules_to_save", "Train without additional_target and resize_vocab, or serve a merged model."
    ),
    "trainable_token_indices": _Rule(_empty, "trainable_tokens", "Train without new tokens, or serve a merged model."),
    "bias": _Rule(
        lambda value: value in (None, "none"), "bias", "vLLM has no biases of adapters. Train with bias: none."
    ),
    "use_dora": _Rule(_empty, "dora", "vLLM has no DoRA. Train with use_dora: false, or serve a merged model."),
    "lora_bias": _Rule(_empty, "lora_bias", _NO_FLAG),
    "use_qalora": _Rule(_empty, "qalora", _NO_FLAG),
    "use_bdlora": _Rule(_empty, "bdlora", _NO_FLAG),
    "alora_invocation_tokens": _Rule(_empty, "alora", _NO_FLAG),
    "layer_replication": _Rule(_empty, "layer_replication", _NO_FLAG),
    "target_parameters": _Rule(_empty, "target_parameters", f"LoRA on fused experts is not served here. {_MERGE}"),
    "arrow_config": _Rule(_empty, "arrow", _NO_FLAG),
    "loftq_config": _Rule(_empty, "init_changes_base", _LOFTQ),
    "corda_config": _Rule(_empty, "init_changes_base", _CONVERT),
    "runtime_config": _Rule(_table, "config_type", _TYPE),
}


def _check_init(value: Any, findings: Findings) -> None:
    if not isinstance(value, str) or value.lower() in _PLAIN_INITS:
        return
    key = "init_lora_weights"
    if value.lower().startswith("pissa"):
        _refuse(findings, "pissa_unconverted", "PiSSA changed the base while it trained", _CONVERTED, key)
    else:
        what = f"{key} {_shown(value)} changed the base while it trained"
        _refuse(findings, "init_changes_base", what, _LOFTQ if value.lower() == "loftq" else _CONVERT, key)


def _instead_of(method: Any) -> str:
    named = method if isinstance(method, str) else ""
    if _SOFT_PROMPTS.fullmatch(named):
        return "It learns tokens instead of weights, which vLLM does not serve. Train with finetuning_type: lora."
    if _MERGEABLE.fullmatch(named):
        return "vLLM serves LoRA only. Train with finetuning_type: lora, or merge it and serve that with --model."
    return "Train with finetuning_type: lora."


def _document(raw: bytes) -> dict[str, Any]:
    try:
        document = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise _rejected("config_json", "it is not valid JSON", "Save the adapter again with PEFT.") from None
    if not isinstance(document, dict):
        raise _rejected("config_json", "it is not a table", "Save the adapter again with PEFT.")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("duplicate key")
    return table


def _no_constant(text: str) -> NoReturn:
    raise ValueError(text)


def _plain(number: float) -> float | int:
    return int(number) if float(number).is_integer() else number


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 80 else text[:77] + "..."


def _refuse(findings: Findings, reason: str, what: str, nearest: str, key: str = "") -> None:
    findings.refuse(reason, _CANNOT.format(what), nearest, key)


def _rejected(reason: str, what: str, nearest: str) -> Rejected:
    return Rejected(_CANNOT.format(what), nearest, reason=reason)
