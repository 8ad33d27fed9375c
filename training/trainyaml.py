"""The trainer's settings file: keys from an allow-list, no references, no spaces in a path. The only writer of one.

LLaMA-Factory 0.9.5 takes YAML only (its JSON reader is broken), resolves `${…}` by OmegaConf, and splits its own
command line at spaces when it starts more than one process.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from training.errors import RecipeInvalid

PATHS = frozenset({"model_name_or_path", "dataset_dir", "output_dir", "deepspeed"})
ALLOWED = PATHS | {
    # what and how
    *("stage", "do_train", "finetuning_type", "dataset", "eval_dataset", "template", "default_system"),
    *("enable_thinking", "mask_history", "cutoff_len", "packing", "preprocessing_num_workers", "overwrite_cache"),
    # LoRA, QLoRA, PiSSA, freeze
    *("lora_rank", "lora_alpha", "lora_dropout", "lora_target", "use_rslora", "loraplus_lr_ratio"),
    *(
        "pissa_init",
        "pissa_iter",
        "pissa_convert",
        "quantization_bit",
        "quantization_method",
        "freeze_trainable_layers",
    ),
    # preferences
    *("pref_loss", "pref_beta", "simpo_gamma"),
    # steps
    *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "learning_rate"),
    *("lr_scheduler_type", "num_train_epochs", "max_steps", "warmup_steps", "weight_decay", "bf16", "fp16", "seed"),
    *("data_seed", "ddp_timeout"),
    # what is written when
    *("logging_steps", "logging_first_step", "save_strategy", "save_steps", "save_total_limit", "eval_strategy"),
    "enable_jit_checkpoint",
    *(
        "eval_steps",
        "load_best_model_at_end",
        "early_stopping_steps",
        "include_num_input_tokens_seen",
        "plot_loss",
        "compute_accuracy",
    ),
    *("report_to", "run_name"),
}


def checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings; RecipeInvalid for a key that is not allowed, a reference, or a path with a space."""
    for key, value in settings.items():
        if key not in ALLOWED:
            raise RecipeInvalid(f"`{key}` is no setting that is given to the trainer here. Leave it out.", param=key)
        if isinstance(value, str) and "${" in value:
            raise RecipeInvalid(f"`{key}` holds ${{, which the trainer reads as a reference. Write it out.", param=key)
        if key in PATHS and any(space.isspace() for space in str(value)):
            raise RecipeInvalid(
                f"`{key}` is {value}, with a space, at which the trainer splits its command line. Use another folder.",
                param=key,
            )
    return dict(settings)


def written(
    settings: Mapping[str, Any],
    *,
    base: Path,
    data: Path,
    output: Path,
    train: str = "train",
    valid: str | None = None,
    deepspeed: Path | None = None,
) -> str:
    """The file's text: the settled settings, and where everything lies. valid: a validation set's name."""
    whole = {"model_name_or_path": str(base), "dataset_dir": str(data), "dataset": train, **settings}
    if valid is not None:
        whole["eval_dataset"] = valid
    if deepspeed is not None:
        whole["deepspeed"] = str(deepspeed)
    whole["output_dir"] = str(output)
    return yaml.safe_dump(checked(whole), sort_keys=False, allow_unicode=True)


def deepspeed_document(stage: str) -> dict[str, Any]:
    """DeepSpeed's settings for zero2 or zero3, with what the trainer knows left to it."""
    zero: dict[str, Any] = {"stage": 2, "overlap_comm": True, "contiguous_gradients": True, "reduce_scatter": True}
    if stage == "zero3":
        zero = {"stage": 3, "overlap_comm": True, "contiguous_gradients": True}
        zero |= {"stage3_gather_16bit_weights_on_model_save": True}
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "zero_optimization": zero,
    }
