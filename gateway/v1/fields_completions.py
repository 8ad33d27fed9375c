"""The allow-lists of /v1/completions and /v1/embeddings: both take plain prompts."""

from __future__ import annotations

from gateway.v1.fields import MAX_ANSWERS, Table
from gateway.v1.fields_rules import MAX_TOKEN_ID, boolean, ignored, integer, one_of, only, prompts
from gateway.v1.fields_sampling import GENERATION, MODEL, STRUCTURED_OUTPUTS

MAX_EMBEDDING_INPUTS = 2048  # OpenAI's own bound

COMPLETIONS = Table(
    fields={
        **GENERATION,
        "model": MODEL,
        "prompt": prompts(MAX_ANSWERS),
        "echo": boolean,
        "logprobs": integer(0, "logprobs"),
        "max_tokens": integer(0, "max_tokens"),  # 0: only the prompt's own logprobs
        "structured_outputs": STRUCTURED_OUTPUTS,
        "suffix": only(""),
        "user": ignored,
    },
    required=("model", "prompt"),
    answer_tokens=("max_tokens",),
    prompts="prompt",
)

EMBEDDINGS = Table(
    fields={
        "model": MODEL,
        "input": prompts(MAX_EMBEDDING_INPUTS),
        "dimensions": integer(1, 65_536),
        "encoding_format": one_of("float", "base64"),
        "user": ignored,
        "add_special_tokens": boolean,
        "truncate_prompt_tokens": integer(-1, MAX_TOKEN_ID),
        "truncation_side": one_of("left", "right"),
    },
    required=("model", "input"),
)
