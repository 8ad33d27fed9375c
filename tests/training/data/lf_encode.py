"""Run by the training environment: what LLaMA-Factory makes of a folder of data, as one line of JSON on stdout.

argv: base folder, data folder, name, stage, mask_history (0 or 1), template.
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    base, folder, name, stage, mask_history, template = sys.argv[1:]
    model_args, data_args, training_args, _, _ = get_train_args(
        {
            "model_name_or_path": base,
            "stage": stage,
            "do_train": True,
            "finetuning_type": "lora",
            "dataset_dir": folder,
            "dataset": name,
            "template": template,
            "default_system": "You are a helpful assistant.",
            "mask_history": mask_history == "1",
            "cutoff_len": 4096,
            "output_dir": f"{folder}/out",
            "report_to": "none",
            "overwrite_cache": True,
        }
    )
    loaded = load_tokenizer(model_args)
    made = get_template_and_fix_tokenizer(loaded["tokenizer"], data_args)
    kind = "rm" if stage == "dpo" else stage
    rows = get_dataset(made, model_args, data_args, training_args, stage=kind, **loaded)["train_dataset"]
    ids, labels = ("chosen_input_ids", "chosen_labels") if kind == "rm" else ("input_ids", "labels")
    shown = [[len(row[ids]), sum(label != -100 for label in row[labels])] for row in rows]
    texts = [loaded["tokenizer"].decode(row[ids]) for row in rows]
    print(json.dumps({"rows": shown, "texts": texts}))


if __name__ == "__main__":
    main()
