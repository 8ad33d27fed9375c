"""README.md of a version, written from its manifest: the front matter that the Hugging Face hub reads, then for people.

Says only what the manifest says; what nobody said is left out or named as unknown. Must not know where it is put.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import yaml

FILE = "README.md"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_FIRST = ("finetuning_type", "stage", "template", "lora_rank", "lora_alpha", "lora_dropout", "lora_target")
_THEN = ("learning_rate", "lr_scheduler_type", "num_train_epochs", "max_steps", "per_device_train_batch_size")
_LAST = ("gradient_accumulation_steps", "warmup_steps", "cutoff_len", "bf16", "fp16", "seed")
_PACKAGES = ("llamafactory", "torch", "transformers", "peft", "trl", "accelerate", "safetensors")


def card(
    manifest: Mapping[str, Any],
    *,
    base_model: str | None = None,
    license_id: str | None = None,
    merged: Mapping[str, Any] | None = None,
) -> str:
    """The whole file. base_model: its id on the hub, where the manifest's is none; license_id: as the hub names it.

    merged: what the verification of a merged model found; None for an adapter.
    """
    parts = [_front(manifest, base_model, license_id, merged is not None), "", *_body(manifest, base_model, merged)]
    return "\n".join(parts) + "\n"


def hub_id(manifest: Mapping[str, Any], given: str | None = None) -> str | None:
    """`owner/name` of the base; None where only a folder's name is known: the hub refuses a card that names that."""
    return next((each for each in (given, _base(manifest)) if each and _HUB_ID.fullmatch(each)), None)


def _front(manifest: Mapping[str, Any], base_model: str | None, license_id: str | None, merged: bool) -> str:
    base = hub_id(manifest, base_model)
    tags = ["loragate", "text-generation"] if merged else ["loragate", "lora", "text-generation"]
    if manifest.get("job"):
        tags.append("llama-factory")
    fields: dict[str, Any] = {}
    if base is not None:
        fields |= {"base_model": base, "base_model_relation": "finetune" if merged else "adapter"}
    fields |= {
        "library_name": "transformers" if merged else "peft",
        "pipeline_tag": "text-generation",
        **({"license": license_id} if license_id else {}),
        "tags": tags,
    }
    index = _index(manifest)
    if index:
        fields["model-index"] = index
    return "---\n" + yaml.safe_dump(fields, sort_keys=False, allow_unicode=True) + "---"


def _index(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The scores as the hub shows them."""
    mine = _scores(manifest).get("candidate", {})
    if not mine:
        return []
    data = {"name": "held-out rows of its own data", "type": "private"}
    metrics = [{"type": name, "value": value, "name": name} for name, value in mine.items()]
    result = {"task": {"type": "text-generation"}, "dataset": data, "metrics": metrics}
    return [{"name": str(manifest.get("name") or "adapter"), "results": [result]}]


def _body(manifest: Mapping[str, Any], base_model: str | None, merged: Mapping[str, Any] | None) -> Iterator[str]:
    name, version = manifest.get("name") or "adapter", manifest.get("version")
    base = hub_id(manifest, base_model) or _base(manifest) or "a base model that is not recorded"
    yield f"# {_plain(name)}"
    yield ""
    if merged is None:
        yield f"A LoRA adapter for `{_plain(base)}`. It holds no base weights: serve it beside them."
    else:
        yield f"`{_plain(base)}` with the LoRA adapter `{_plain(name)}` merged into its weights: a model of its own."
    yield ""
    rank = f"rank {manifest['rank']}" if manifest.get("rank") else None
    facts = [f"version `{version}`" if version else None, rank, _parent(manifest), _when(manifest)]
    told = ", ".join(fact for fact in facts if fact)
    yield f"{told[:1].upper()}{told[1:]}."
    yield from ("", "## Use", "", *_use(manifest, merged is not None))
    if merged is not None:
        yield from ("", "## How the merge was checked", "", _plain(merged.get("sentence", "")))
    if not manifest.get("job"):
        yield from ("", "## Training", "", "Nobody said how this version was made: it was registered as files.")
        return
    yield from ("", "## Training", "", *_training(manifest))
    yield from ("", "## Evaluation", "", *_evaluation(manifest))
    yield from ("", "## Lineage", "", *_lineage(manifest))


def _use(manifest: Mapping[str, Any], merged: bool) -> Iterator[str]:
    yield "```sh"
    if merged:
        yield f"vllm serve . --served-model-name {_word(manifest.get('name'))}"
    else:
        yield f"loragate adapters register . --name {_word(manifest.get('name'))} --promote"
        yield "loragate export serve .     # or with vLLM alone: prints its command"
    yield "```"
    kwargs = manifest.get("chat_template_kwargs")
    if kwargs:
        yield ""
        yield f"It was trained with these `chat_template_kwargs`, and wants them in every request: `{_plain(kwargs)}`."


def _training(manifest: Mapping[str, Any]) -> Iterator[str]:
    plan, settings = manifest.get("plan") or {}, manifest.get("settings") or {}
    data = manifest.get("data") or {}
    rows = [f"{_count(each.get('rows'))} rows in `{name}`" for name, each in data.items() if name.endswith(".jsonl")]
    told = [*rows, f"{_count(plan['steps'])} steps" if plan.get("steps") else None]
    told.append(f"{_count(plan['tokens'])} tokens" if plan.get("tokens") else None)
    yield "With LLaMA-Factory: " + (", ".join(each for each in told if each) or "figures not recorded") + "."
    yield ""
    shown = [key for key in (*_FIRST, *_THEN, *_LAST) if key in settings]
    yield from _table(("setting", "value"), [(f"`{key}`", f"`{_plain(settings[key])}`") for key in shown])
    logged = [row for row in (manifest.get("log") or {}).get("losses", ()) if isinstance(row[1], int | float)]
    if logged:
        yield ""
        yield f"Training loss {logged[0][1]:.4f} at step {logged[0][0]}, {logged[-1][1]:.4f} at step {logged[-1][0]}."


def _evaluation(manifest: Mapping[str, Any]) -> Iterator[str]:
    summary = (manifest.get("evaluation") or {}).get("summary") or {}
    verdict = summary.get("verdict")
    sentence = verdict.get("sentence") if isinstance(verdict, Mapping) else verdict
    scores = _scores(manifest)
    if not scores and not sentence:
        yield "It was not evaluated."
        return
    if sentence:
        yield _plain(sentence)
        yield ""
    names = list(dict.fromkeys(name for each in scores.values() for name in each))
    if names:
        rows = [(arm, *(_number(each.get(name)) for name in names)) for arm, each in scores.items()]
        yield from _table(("model", *names), rows)


def _lineage(manifest: Mapping[str, Any]) -> Iterator[str]:
    packages, environment = manifest.get("packages") or {}, manifest.get("environment") or {}
    rows = [("adapter (tensors and settings)", f"`{manifest.get('digest')}`")] if manifest.get("digest") else []
    rows += [(f"data: `{name}`", f"`{each.get('sha256')}`") for name, each in (manifest.get("data") or {}).items()]
    rows += [
        (f"base: `{name}`", f"`{sha256}`") for name, sha256 in ((manifest.get("base") or {}).get("files") or {}).items()
    ]
    yield "`manifest.json` has all of it. sha256 of what went in and came out:"
    yield ""
    yield from _table(("", "sha256"), rows)
    yield ""
    python, seed = manifest.get("python"), manifest.get("seed")
    told = [
        f"Python {python}" if python else None,
        *(f"{name} {packages[name]}" for name in _PACKAGES if name in packages),
    ]
    told += [_plain(environment[key]) for key in ("system", "machine", "device") if environment.get(key)]
    told.append(f"seed {seed}" if seed is not None else None)
    yield ", ".join(each for each in told if each) + "."


def _scores(manifest: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """arm → metric → mean, where the summary has them."""
    found = ((manifest.get("evaluation") or {}).get("summary") or {}).get("scores")
    if not isinstance(found, Mapping):
        return {}
    return {
        str(arm): {str(name): value for name, value in each.items() if _is_number(value)}
        for arm, each in found.items()
        if isinstance(each, Mapping)
    }


def _base(manifest: Mapping[str, Any]) -> str | None:
    found = (manifest.get("base") or {}).get("id")
    return str(found) if found else None


def _parent(manifest: Mapping[str, Any]) -> str | None:
    return f"after `{manifest['parent']}`" if manifest.get("parent") else None


def _when(manifest: Mapping[str, Any]) -> str | None:
    made = manifest.get("created")
    return f"made {datetime.fromtimestamp(made, UTC):%Y-%m-%d %H:%M} UTC" if isinstance(made, int | float) else None


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "-"


def _word(name: Any) -> str:
    return re.sub(r"[^A-Za-z0-9._:-]", "-", str(name or "adapter"))


def _plain(value: Any) -> str:
    """One line without backticks: text from elsewhere stays text."""
    return " ".join(str(value).replace("`", "'").split())
