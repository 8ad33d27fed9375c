"""All arms asked the same rows, and every answer scored: the part of an evaluation that takes time.

Must not know intervals, reports or gate rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from training.evaluate.asking import Answer, Manner, ask, each
from training.evaluate.bertscore import BertScore
from training.evaluate.evaluation import BASE, CANDIDATE, OTHERS, Line
from training.evaluate.exact import exact
from training.evaluate.example import Example, Skipped
from training.evaluate.judge import Judge, Judgement
from training.evaluate.likelihood import CannotTell, answer_tokens, likelihood
from training.evaluate.overlap import Overlap
from training.gatewayclient import Gateway

Done = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Judged:
    """What became of the judge's verdicts: pairs, those that depended on the order, and those without a verdict."""

    pairs: int = 0
    swayed: int = 0
    failed: int = 0


async def answers(
    gateway: Gateway, arms: Mapping[str, str], examples: Sequence[Example], manner: Manner, done: Done
) -> tuple[tuple[Line, ...], tuple[Skipped, ...]]:
    """Every example answered by every arm, and the examples that some arm did not answer. GatewayAway."""
    overlap = Overlap()
    # Arm after arm for each row, so that a busy minute of the engine meets all arms alike.
    asked = [(example, arm) for example in examples for arm in arms]

    async def one(pair: tuple[Example, str]) -> Answer:
        return await ask(gateway, arms[pair[1]], pair[0], manner)

    for model in arms.values() if examples else ():
        await ask(gateway, model, examples[0], manner)  # its load is no part of any answer's time
    given = await each(asked, one, manner.at_once, done)
    lines, failed = [], []
    for at, example in enumerate(examples):
        own: dict[str, Answer] = dict(zip(arms, given[at * len(arms) : (at + 1) * len(arms)], strict=True))
        problem = next((answer.problem for answer in own.values() if answer.problem is not None), None)
        if problem is not None:
            failed.append(Skipped(example.number, problem))
            continue
        lines.append(Line(example, own, {arm: score(overlap, answer.text, example) for arm, answer in own.items()}))
    return tuple(lines), tuple(failed)


def score(overlap: Overlap, answer: str, example: Example) -> dict[str, float]:
    """All metrics that need only texts."""
    return {
        "exact": exact(answer, example.reference),
        "rouge_l": overlap.rouge_l(answer, example.reference),
        "bleu": overlap.bleu(answer, example.reference),
        "chrf": overlap.chrf(answer, example.reference),
    }


async def with_likelihood(
    gateway: Gateway, arms: Mapping[str, str], lines: Sequence[Line], manner: Manner, done: Done
) -> tuple[tuple[Line, ...], str | None]:
    """Every line with the likelihood of its right answer, where all arms can tell; else why not. GatewayAway."""
    reasons: list[str] = []

    async def one(line: Line) -> Line:
        try:
            tokens = await answer_tokens(gateway, arms[BASE], line.example, manner)
            found = {arm: -(await likelihood(gateway, model, tokens)).loss for arm, model in arms.items()}
        except CannotTell as why:
            reasons.append(str(why))
            return line
        return replace(line, scores={arm: {**own, "likelihood": found[arm]} for arm, own in line.scores.items()})

    made = await each(lines, one, manner.at_once, done)
    if not reasons:
        return tuple(made), None
    commonest = max(set(reasons), key=reasons.count)
    return tuple(made), f"The likelihood of {len(reasons)} of {len(lines)} rows is not known: {commonest}."


async def with_bertscore(bertscore: BertScore, lines: Sequence[Line]) -> tuple[Line, ...]:
    """Every line with how alike each arm's answer is to the right one. ChildFailed."""
    pairs = [(answer.text, line.example.reference) for line in lines for answer in line.answers.values()]
    found = iter(await bertscore.scores(pairs))
    return tuple(
        replace(line, scores={arm: {**line.scores[arm], "bertscore": next(found)} for arm in line.answers})
        for line in lines
    )


async def with_judge(judge: Judge, lines: Sequence[Line], at_once: int, done: Done) -> tuple[tuple[Line, ...], Judged]:
    """Every line judged against every other arm; a pair without a verdict is left out, and counted."""

    async def one(line: Line) -> tuple[Line, list[Judgement]]:
        own = line.answers[CANDIDATE].text
        found = {
            other: await judge.compare(line.example, own, line.answers[other].text)
            for other in OTHERS
            if other in line.answers
        }
        kept = {other: each_.score for other, each_ in found.items() if not each_.failed}
        return replace(line, judged=kept), list(found.values())

    made = await each(lines, one, at_once, done)
    verdicts = [verdict for _, found in made for verdict in found]
    counts = Judged(len(verdicts), sum(v.swayed for v in verdicts), sum(v.failed for v in verdicts))
    return tuple(line for line, _ in made), counts
