"""The gate's rules as tables: what passes, what does not, and that the sentence has the figures."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given as given_any
from hypothesis import settings
from hypothesis import strategies as st

from tests.training.evaluate.figures import evaluation, failed, forgotten, line, lines
from training.errors import RecipeInvalid
from training.evaluate.example import Skipped
from training.evaluate.gate import Rules, Verdict, gate

RIGHT, WRONG = [1.0] * 24, [0.0] * 24
BETTER = lines(candidate=RIGHT, base=WRONG)


def refusals(verdict: Verdict) -> list[str]:
    return [finding.rule for finding in verdict.findings if not finding.passed]


@pytest.mark.parametrize(
    ("candidate", "base", "min_gain", "refused"),
    [
        (RIGHT, WRONG, 0.5, False),
        (RIGHT, RIGHT, 0.0, False),  # no gain was asked for
        (RIGHT, RIGHT, 0.1, True),
        (WRONG, RIGHT, 0.0, True),
        ([1.0] * 3 + [0.0] * 21, WRONG, 0.05, True),  # 0.125 is enough, and may be chance
        ([1.0] * 12 + [0.0] * 12, WRONG, 0.05, False),
        ([1.0] * 12 + [0.0] * 12, WRONG, 0.9, True),
    ],
)
def test_a_gain_over_the_base_must_be_large_enough_and_no_chance(
    candidate: list[float], base: list[float], min_gain: float, refused: bool
) -> None:
    verdict = gate(evaluation(lines(candidate=candidate, base=base)), Rules("exact", min_gain=min_gain))
    assert ("min_gain" in refusals(verdict)) is refused
    assert verdict.passed is not refused


@pytest.mark.parametrize(
    ("candidate", "live", "tolerance", "refused"),
    [
        (RIGHT, RIGHT, None, False),
        (RIGHT, WRONG, None, False),
        (WRONG, RIGHT, None, True),
        ([1.0] * 23 + [0.0], RIGHT, None, True),  # one of 24 lost: more may be
        ([1.0] * 23 + [0.0], RIGHT, 0.2, False),
        ([1.0] * 12 + [0.0] * 12, [0.0] * 12 + [1.0] * 12, None, True),  # as good on average, and not shown to be
    ],
)
def test_no_worse_than_live_looks_at_the_lower_end(
    candidate: list[float], live: list[float], tolerance: float | None, refused: bool
) -> None:
    made = evaluation(lines(candidate=candidate, live=live, base=WRONG))
    verdict = gate(made, Rules("exact", min_gain=-1, tolerance=tolerance))
    assert ("no_worse_than_live" in refusals(verdict)) is refused


def test_without_a_live_version_nothing_is_compared_with_it() -> None:
    assert [finding.rule for finding in gate(evaluation(BETTER), Rules("exact")).findings] == [
        "min_rows",
        "answered",
        "min_gain",
    ]


@pytest.mark.parametrize(
    ("more", "rules", "refused"),
    [
        ({"forgetting": forgotten(0.1, 0.2, 0.3)}, {"max_forgetting": 0.5}, []),
        ({"forgetting": forgotten(0.1, 2.2, 0.3)}, {"max_forgetting": 0.5}, ["max_forgetting"]),
        ({"forgetting": "the engine gives no logprobs"}, {"max_forgetting": 0.5}, ["max_forgetting"]),
        ({"forgetting": None}, {"max_forgetting": 0.5}, ["max_forgetting"]),
        ({"forgetting": forgotten(9.0)}, {}, []),  # measured, told, and not asked for
        ({"guarded": lines(candidate=[1, 1], base=[1, 0])}, {"keep_rows": True}, []),
        ({"guarded": lines(candidate=[0, 1], base=[1, 0])}, {"keep_rows": True}, ["no_regression_on"]),
        ({"guarded": None}, {"keep_rows": True}, ["no_regression_on"]),
        ({"guarded": (), "guarded_failed": failed(1)}, {"keep_rows": True}, ["no_regression_on"]),
        ({"failed": failed(1)}, {}, []),
        ({"failed": failed(2)}, {}, ["answered"]),
        ({}, {"min_rows": 25}, ["min_rows"]),
        ({}, {"min_rows": 24}, []),
    ],
)
def test_every_other_rule(more: dict[str, Any], rules: dict[str, Any], refused: list[str]) -> None:
    assert refusals(gate(evaluation(BETTER, **more), Rules("exact", **rules))) == refused


def test_rows_that_must_not_get_worse_are_compared_with_the_live_version_where_there_is_one() -> None:
    guarded = (line(7, {"candidate": 0.0, "live": 1.0, "base": 0.0}),)
    made = evaluation(lines(candidate=RIGHT, live=RIGHT, base=WRONG), guarded=guarded)
    verdict = gate(made, Rules("exact", keep_rows=True))
    assert refusals(verdict) == ["no_regression_on"]
    assert "1 of 1 row that must not get worse than with the live version did (Exact match): row 7." in (
        verdict.sentence
    )


def test_a_small_fall_of_a_row_is_noise() -> None:
    guarded = (line(7, {"candidate": 0.97, "base": 1.0}, "rouge_l"),)
    made = evaluation(lines("rouge_l", candidate=RIGHT, base=WRONG), guarded=guarded)
    assert gate(made, Rules("rouge_l", keep_rows=True)).passed


def test_nothing_compared_is_a_no_with_every_reason() -> None:
    made = evaluation((), failed=failed(3), skipped=(Skipped(1, "its answer is empty"),))
    verdict = gate(made, Rules("exact", min_gain=0.1))
    assert refusals(verdict) == ["min_rows", "answered", "min_gain"]


def test_every_sentence_has_its_figures() -> None:
    made = evaluation(lines(candidate=[1.0] * 20 + [0.0] * 4, live=[1.0] * 18 + [0.0] * 6, base=WRONG))
    verdict = gate(made, Rules("exact", min_gain=0.1))
    assert verdict.sentences[0] == "24 rows compared; at least 5 needed."
    assert "0.833 against the base's 0.000, +0.833 on 24 rows (95% interval +0." in verdict.sentences[2]
    assert "a gain of at least 0.100 was asked for" in verdict.sentences[2]
    assert "0.833 against the live version's 0.750, +0.083 on 24 rows" in verdict.sentences[3]
    assert "may reach down to -0.020" in verdict.sentences[3]
    assert verdict.sentence.startswith("The gate said yes. ")
    assert any("Only 24 rows" in caution for caution in verdict.cautions)


def test_the_judge_can_be_the_metric() -> None:
    won = [line(at, {"candidate": 0.0, "base": 0.0}) for at in range(12)]
    made = evaluation(tuple(type(each)(each.example, each.answers, each.scores, {"base": 1}) for each in won))
    verdict = gate(made, Rules("judge", min_gain=0.2))
    assert verdict.passed
    assert "Judge: against the base +1.000 on 12 rows" in verdict.sentence


@pytest.mark.parametrize(
    ("given", "rules"),
    [
        ({}, Rules()),
        ({"metric": None, "min_gain": None}, Rules()),
        ({"metric": "exact_match", "min_gain": 0.3}, Rules("exact", min_gain=0.3)),
        ({"metric": "rouge-l", "max_forgetting": 0.5, "max_rows": 100}, Rules(max_forgetting=0.5)),
        ({"metric": "chrF", "no_regression_on": "kept.jsonl"}, Rules("chrf", keep_rows=True)),
        ({"metric": "perplexity", "judge": None}, Rules("likelihood")),
    ],
)
def test_rules_are_read_from_a_recipes_gate(given: dict[str, Any], rules: Rules) -> None:
    assert Rules.of(given) == rules


def test_an_unknown_metric_is_refused_by_name() -> None:
    with pytest.raises(RecipeInvalid, match=r"no metric beauty\. Use one of exact, ") as refused:
        Rules.of({"metric": "beauty"})
    assert refused.value.param == "gate.metric"


SCORES = st.lists(st.tuples(*[st.sampled_from([0.0, 0.5, 1.0])] * 3), min_size=5, max_size=24)


@given_any(SCORES, st.data())
@settings(max_examples=40)
def test_a_better_answer_never_turns_yes_into_no(scores: list[tuple[float, ...]], data: st.DataObject) -> None:
    mine, live, base = ([row[at] for row in scores] for at in range(3))
    at = data.draw(st.integers(0, len(mine) - 1))
    better = [*mine[:at], 1.0, *mine[at + 1 :]]
    rules = Rules("rouge_l", min_gain=0.1)
    before = gate(evaluation(lines("rouge_l", candidate=mine, live=live, base=base)), rules)
    after = gate(evaluation(lines("rouge_l", candidate=better, live=live, base=base)), rules)
    assert after.passed or not before.passed
