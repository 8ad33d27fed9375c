"""One greedy completion from an engine: which request asks for it, and what each kind of answer means.

Must not know what the answer is compared with. What an engine says may repeat the prompt: never logged, never shown.
"""

from __future__ import annotations

from adapters.engine import EngineClient
from adapters.errors import EngineError
from adapters.utterance import NoLogprobs, Utterance, read

ALTERNATIVES = 2  # the choice and its runner-up


class CannotCompare(EngineError):
    """This engine will never say what a proof needs; nothing is wrong with it."""

    code = "engine_cannot_compare"


async def ask(client: EngineClient, model: str, prompt: str, *, tokens: int, salt: str) -> Utterance | None:
    """What `model` (a name of the engine's list) says in `tokens` tokens; None: the prompt is too long for this engine.

    salt: 1 to 128 hex digits; answers under one salt share no prefix cache with anybody else's.
    EngineError, EngineUnreachable, CannotCompare.
    """
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "seed": 0,
        # A model's own generation_config.json may name others, and they would choose for it.
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logprobs": ALTERNATIVES,
        # Two tokens may have one text, and half of a character has none that can be compared.
        "return_tokens_as_token_ids": True,
        # Without it what is computed here would stay in the cache under the adapter's name, and after a load that
        # went wrong and was repeated real requests would go on from it.
        "cache_salt": salt,
    }
    status, text = await client.complete(body)
    if status == 200:
        try:
            return read(prompt, text, tokens)
        except NoLogprobs:
            raise _without_logprobs(client) from None
        except ValueError:
            raise EngineError(
                f"Engine {client.url} answers {model} with something that is no completion, or no finite number. "
                "Its log may say why."
            ) from None
    if status == 400 and "input_tokens" in text:
        return None
    raise _refused(client, model, status, text.lower())


def _without_logprobs(client: EngineClient) -> CannotCompare:
    return CannotCompare(
        f"Engine {client.url} gives no logprobs, so what it says cannot be compared. Start it with --max-logprobs "
        f"{ALTERNATIVES} or more."
    )


def _refused(client: EngineClient, model: str, status: int, lower: str) -> EngineError:
    if status in (405, 501) or (status == 404 and '"detail"' in lower) or "not support completions" in lower:
        return CannotCompare(f"Engine {client.url} does not generate text, so there is nothing to compare.")
    if status == 400 and "logprobs" in lower:
        return _without_logprobs(client)
    if status in (401, 403):
        return EngineError(f"Engine {client.url} refuses our key. Set engines[].api_key to the one it started with.")
    if status == 404:
        return EngineError(f"Engine {client.url} does not know {model}, though it said that it had loaded it.")
    return EngineError(f"Engine {client.url} answers {status} when {model} is asked; its log says why.")
