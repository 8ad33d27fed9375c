"""Run by the engine's own Python: reads adapter folders as vLLM's worker does, less the model they would go into.

argv: folders. Prints one JSON table: folder → {"error"}, or {"modules": {name: [rank, scaling, inputs, outputs]}} and
"bits", a digest of all numbers.
"""

from __future__ import annotations

import hashlib
import json
import sys

# Of Qwen2ForCausalLM, as its engine names them when it refuses others.
EXPECTED = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def read(folder: str) -> dict[str, object]:
    """As WorkerLoRAManager._load_adapter."""
    import torch
    from safetensors import safe_open
    from vllm.config.lora import LoRAConfig
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper

    helper = PEFTHelper.from_local_dir(folder, 2048)
    helper.validate_legal(LoRAConfig(max_lora_rank=16))
    lora = LoRAModel.from_local_checkpoint(
        folder, EXPECTED, helper, lora_model_id=1, device="cpu", model_vocab_size=100
    )
    digest = hashlib.sha256()
    with safe_open(f"{folder}/adapter_model.safetensors", framework="pt") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            raw = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            digest.update(json.dumps([name, list(tensor.shape), hashlib.sha256(raw).hexdigest()]).encode())
    modules = {
        name: [each.rank, each.scaling, each.lora_a.shape[1], each.lora_b.shape[0]] for name, each in lora.loras.items()
    }
    return {"modules": modules, "bits": digest.hexdigest()}


def main() -> None:
    """Every folder on its own."""
    table: dict[str, object] = {}
    for folder in sys.argv[1:]:
        try:
            table[folder] = read(folder)
        except Exception as error:
            table[folder] = {"error": f"{type(error).__name__}: {error}"[:300]}
    print(json.dumps(table))


if __name__ == "__main__":
    main()
