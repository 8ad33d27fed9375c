"""A vLLM plugin for the CPU engine: tokens of the base model stay untouched beside those of adapters.

Runs in the engine's environment and processes, never in ours. vLLM marks such tokens with the adapter index -1; the
CPU operators of 0.32 (vllm-project/vllm#48421) take that for the last slot, so that once every slot is taken the base
answers with an adapter's weights mixed in. Does nothing where the operators are right.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

OPERATORS = ("bgmv_expand", "bgmv_expand_slice")  # every LoRA product ends in one of them


def register() -> None:
    """Called by vLLM in each of its processes, more than once perhaps."""
    from vllm.lora.ops import torch_ops
    from vllm.lora.ops.torch_ops import lora_ops

    if not _adds_to_base_tokens(lora_ops.bgmv_expand):
        return
    users = [lora_ops, torch_ops, sys.modules.get("vllm.lora.punica_wrapper.punica_cpu")]
    for name in OPERATORS:
        fixed = _skipping_base_tokens(getattr(lora_ops, name))
        for user in users:
            if user is not None:
                setattr(user, name, fixed)


def _adds_to_base_tokens(expand: Callable[..., None]) -> bool:
    import torch

    out = torch.zeros(1, 1)
    expand(torch.ones(1, 1), torch.ones(1, 1, 1), out, torch.tensor([-1]), True)
    return bool(out.any())


def _skipping_base_tokens(expand: Callable[..., None]) -> Callable[..., None]:
    import torch

    def skipping(
        inputs: Any, lora_b_weights: Any, output_tensor: Any, lora_indices_tensor: Any, *more: Any, **named: Any
    ) -> None:
        """What goes into the product is zero for base tokens, and so is what comes out."""
        kept = torch.where(lora_indices_tensor.unsqueeze(1) < 0, torch.zeros_like(inputs[:1]), inputs)
        expand(kept, lora_b_weights, output_tensor, lora_indices_tensor, *more, **named)

    return skipping
