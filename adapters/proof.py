"""Proof after load: whether an engine that says it loaded a version answers with that version's weights.

A few fixed prompts, asked greedily; what is said is compared token by token with the base, with the other engines and
with the trainer. Must not know the registry. No reason holds a word of a prompt or an answer.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from adapters.asking import CannotCompare, ask
from adapters.engine import EngineClient
from adapters.errors import EngineError
from adapters.utterance import Reference, Utterance, agree, decode, encode

__all__ = ["PROMPTS", "TOLERANCE", "Proof", "Reference", "Utterance", "Verdict", "decode", "encode", "hold", "prove"]

# Three subjects, two scripts, and each ends where any text may follow.
PROMPTS: tuple[str, ...] = (
    "Question: How can I help you today?\nAnswer:",
    "def main(argv):\n",
    "问：请介绍一下你自己。\n答：",
)
MAX_PROMPTS = 8
TOKENS = 16
TIMEOUT_S = 60.0  # all of it; a loaded engine may let a first token wait for tens of seconds
# The largest difference seen between the same weights was 0.17 from bfloat16 with AVX-512 to bfloat16 with AVX2, and
# 0.30 from bfloat16 to the trainer's float32 (docs/proof.md); bfloat16's steps are 0.125 wide for logits above 16. With
# 0.5 none of 1,215 pairs of the same weights fell out, and none of 1,458 pairs of different adapters passed.
TOLERANCE = 0.5
SAME = 1e-3  # below this nothing was added to the base: its own answer repeated is equal to the last digit


class Verdict(StrEnum):
    """What a proof found."""

    PASSED = "passed"
    NO_EFFECT = "no_effect"  # the adapter changes nothing: a warning
    FAILED = "failed"
    NOT_APPLICABLE = "not_applicable"  # the engine cannot be asked in this way


@dataclass(frozen=True, slots=True)
class Proof:
    """`reason` is one or two sentences for a person, empty where it passed; "it" is the engine.

    said: what the other engines can be held to. Empty unless it passed: an engine that answers like the base may have
    lost the weights, and would then fail every other one.
    """

    verdict: Verdict
    reason: str
    said: Reference = ()


async def prove(
    client: EngineClient,
    engine_name: str,
    base_id: str,
    *,
    reference: Reference = (),
    trained: Reference = (),
    tolerance: float = TOLERANCE,
    timeout_s: float = TIMEOUT_S,
    draw: Callable[[int], str] = secrets.token_hex,
) -> Proof:
    """Ask `client` for `engine_name` (loaded there) and, where needed, for its base; compare.

    reference: `said` of an earlier proof that passed. trained: what the trainer's own evaluation said.
    tolerance: how far two logprobs of the same weights may lie apart (natural logarithm). timeout_s: for all of it.
    EngineError, EngineUnreachable: no verdict, the engine did not answer as it must.
    """
    try:
        async with asyncio.timeout(timeout_s):
            asking = _Asking(client, engine_name, base_id, _prompts(reference, trained), draw(16))
            return await _compare(asking, reference, trained, tolerance)
    except CannotCompare as exc:
        return Proof(Verdict.NOT_APPLICABLE, exc.message)
    except TimeoutError:
        raise EngineError(
            f"Engine {client.url} loaded {engine_name} but does not answer in {timeout_s:g} s; its log may say why."
        ) from None


def hold(proof: Proof, reference: Reference, tolerance: float = TOLERANCE) -> Proof:
    """`proof`, which passed, held to what another engine said: both were asked at once, neither knew of the other."""
    wrong = _apart(proof.said, reference, tolerance, whole=True)
    return _failed("the other engines", wrong, len(proof.said), like_base=False) if wrong else proof


def _prompts(reference: Reference, trained: Reference) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one.prompt for one in trained or reference))[:MAX_PROMPTS] or PROMPTS


@dataclass(frozen=True, slots=True)
class _Asking:
    """Who is asked what, in one proof."""

    client: EngineClient
    engine_name: str
    base_id: str
    prompts: tuple[str, ...]
    salt: str

    async def say(self, *models: str) -> list[Reference]:
        """All prompts of all `models` at once; a prompt that the engine finds too long is left out."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [[group.create_task(self._ask(model, prompt)) for prompt in self.prompts] for model in models]
        except* EngineError as failures:
            first = failures.exceptions[0]
        else:
            return [tuple(said for task in of_one if (said := task.result()) is not None) for of_one in tasks]
        raise first

    async def _ask(self, model: str, prompt: str) -> Utterance | None:
        return await ask(self.client, model, prompt, tokens=TOKENS, salt=self.salt)


async def _compare(asking: _Asking, reference: Reference, trained: Reference, tolerance: float) -> Proof:
    others, trainer = _of(reference, asking.prompts), _of(trained, asking.prompts)
    # A reference differs from the base, or it would not have been kept: then the base need not be asked.
    said, *rest = await asking.say(asking.engine_name, *(() if others else (asking.base_id,)))
    base = rest[0] if rest else ()
    if not said:
        url = asking.client.url
        return Proof(Verdict.NOT_APPLICABLE, f"Every prompt of the proof is longer than engine {url} takes.")
    for who, standard, whole in (("the other engines", others, True), ("the trainer's evaluation", trainer, False)):
        wrong = _apart(said, standard, tolerance, whole=whole)
        if wrong:
            base = base or (await asking.say(asking.base_id))[0]
            return _failed(who, wrong, len(said), like_base=not _apart(said, base, tolerance, whole=True))
    if base and _equal(said, base):
        return Proof(Verdict.NO_EFFECT, "It answers exactly like the base model: the adapter changes nothing.")
    return Proof(Verdict.PASSED, "", said)


def _of(reference: Reference, prompts: tuple[str, ...]) -> Reference:
    return tuple(one for one in reference if one.prompt in prompts)


def _apart(said: Reference, standard: Reference, tolerance: float, *, whole: bool) -> int:
    """On how many prompts the two do not agree, of those that both know."""
    known = {one.prompt: one for one in standard}
    pairs = [(one, known[one.prompt]) for one in said if one.prompt in known]
    return sum(not agree(mine, theirs, tolerance, whole=whole) for mine, theirs in pairs)


def _equal(said: Reference, base: Reference) -> bool:
    return [one.tokens for one in said] == [one.tokens for one in base] and not _apart(said, base, SAME, whole=True)


def _failed(who: str, wrong: int, of: int, *, like_base: bool) -> Proof:
    if like_base:
        seen = f"It answers like the base model, unlike {who}: the weights are not applied there."
    else:
        seen = f"It answers unlike {who}, on {wrong} of {of} prompts."
    return Proof(Verdict.FAILED, f"{seen} It gets no traffic for this version; restart the engine if that stays so.")
