"""Whether a canary is worse than the live version: from the counts of both and the rules to a verdict in a sentence.

A rule is broken when the figures are beyond what it allows and chance alone does not explain that the canary is worse
at all. docs/canary.md says what is compared and why so. Pure; must not know requests, time or the registry.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from adapters.chance import even_groups, failures, spread_of_mean, students_tail
from adapters.types import Rules

# How likely a canary as good as the live version may be ended by mistake, over all looks of its life: 0.5 %. Errors
# weigh most. Look number k spends 1 / (2.62 k^1.5) of each, which over any number of looks adds up to less than one.
ERRORS_BY_CHANCE = 0.002
FINISH_BY_CHANCE = 0.0015
LATENCY_BY_CHANCE = 0.0015

GROUPS = 32  # callers are put into so many groups by a hash: enough for a distribution, and few enough to keep
FEW_CALLERS = 4  # groups from which on one alone cannot end a canary by its failures
LOOK_AT_GROWTH = 0.1  # look again once there are a tenth more requests, or half of what a rule asks for

ENDS = ("errors", "finish_reasons", "latency")  # what a verdict's reason may be
REASONS = ("stop", "length", "tool_calls", "content_filter", "other")
MEASURES = {
    "first": "The time to the first token",
    "pace": "The time per further token of streams",
    "whole": "The time of whole answers of the same length",
}
Measure = tuple[str, int]  # a key of MEASURES, and a stratum: only within one are two answers comparable


@dataclass(slots=True)
class Slot:
    """Some consecutive seconds of both arms. Failures of the canary by group of callers."""

    live: int = 0
    live_failed: int = 0
    canary: int = 0
    canary_failed: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class Shape:
    """What the good answers of one arm were like, by group of callers."""

    finish: dict[tuple[int, str], int] = field(default_factory=dict)  # group, reason → answers
    seconds: dict[tuple[int, Measure], tuple[int, float]] = field(default_factory=dict)  # → answers, sum of ln seconds

    def plus(self, other: Shape) -> Shape:
        """Both together, as a new one."""
        finish, seconds = dict(self.finish), dict(self.seconds)
        for key, count in other.finish.items():
            finish[key] = finish.get(key, 0) + count
        for at, (count, total) in other.seconds.items():
            before = seconds.get(at, (0, 0.0))
            seconds[at] = before[0] + count, before[1] + total
        return Shape(finish, seconds)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a canary must end. reason: one of ENDS."""

    reason: str
    sentence: str


def look_due(new: int, within: int, rules: Rules) -> bool:
    """Whether to look again at a canary with `within` requests in its slots, `new` of them since the last look."""
    return within >= rules.min_requests and new >= max(1.0, min(LOOK_AT_GROWTH * within, rules.min_requests / 2))


def judge(slots: Sequence[Slot], live: Shape, canary: Shape, rules: Rules, look: int) -> Verdict | None:
    """The first rule that the canary breaks, None for none. look: 1 for the first time it is asked, then 2, 3, …"""
    part = 1 / (2.62 * look**1.5)
    mine, theirs = sum(slot.canary for slot in slots), sum(slot.live for slot in slots)
    if mine < rules.min_requests:
        return None
    if theirs < rules.min_requests:
        return _alone(slots, canary)
    return (
        _errors(slots, canary, rules, ERRORS_BY_CHANCE * part)
        or _finish(live, canary, rules, FINISH_BY_CHANCE * part)
        or _latency(live, canary, rules, LATENCY_BY_CHANCE * part)
    )


def standing(slots: Sequence[Slot], rules: Rules, looks: int) -> str:
    """How far the judging has come, for people."""
    mine, theirs = sum(slot.canary for slot in slots), sum(slot.live for slot in slots)
    for count, arm in ((mine, "canary"), (theirs, "live")):
        if count < rules.min_requests:
            return f"nothing is compared yet: {count} of {rules.min_requests} {arm} requests"
    times = "once" if looks == 1 else f"{looks} times"
    return f"compared {times}, no rule is broken"


# Errors --------------------------------------------------------------------------------------------------


def _counts(slots: Sequence[Slot], left_out: int | None = None) -> list[tuple[int, int, int, int]]:
    """Requests and failures of live, then canary, without the canary's failures of one group."""
    return [
        (slot.live, slot.live_failed, slot.canary - lost, sum(slot.canary_failed.values()) - lost)
        for slot in slots
        for lost in [0 if left_out is None else slot.canary_failed.get(left_out, 0)]
        if slot.live + slot.canary > lost
    ]


def _sums(counts: list[tuple[int, int, int, int]]) -> tuple[int, int, int, int]:
    theirs, failed, mine, mine_failed = zip(*counts, strict=True) if counts else ((), (), (), ())
    return sum(theirs), sum(failed), sum(mine), sum(mine_failed)


def _errors(slots: Sequence[Slot], shape: Shape, rules: Rules, chance: float) -> Verdict | None:
    """More failures than the live version has in the same seconds, and not of one caller alone.

    Looked for in all slots, in the later half, the last quarter and so on, as long as there are enough requests: what
    went well for long must not thin out what goes wrong now. Each of them has half the chance of the one before.
    """
    size = len(slots)
    while size:
        latest = slots[-size:]
        counts = _counts(latest)
        chance /= 2
        theirs, failed, mine, mine_failed = _sums(counts)
        if min(theirs, mine) < rules.min_requests:
            return None
        if _too_many(counts, rules, chance) and not _one_caller(latest, shape, rules, chance):
            return Verdict(
                "errors",
                f"{mine_failed} of {'' if latest == slots else 'the last '}{mine} canary requests failed "
                f"({_percent(mine_failed / mine)}), {failed} of {theirs} live ones ({_percent(failed / theirs)})",
            )
        size //= 2
    return None


def _one_caller(slots: Sequence[Slot], shape: Shape, rules: Rules, chance: float) -> bool:
    """Whether there are others, and nothing is left to say against the canary without the one that fails most."""
    worst = _worst(slots, shape)
    return worst is not None and not _too_many(_counts(slots, worst), rules, chance)


def _worst(slots: Sequence[Slot], shape: Shape) -> int | None:
    """The group of callers with the most failures; None where there are hardly any others."""
    by_group: dict[int, int] = {}
    for slot in slots:
        for group, count in slot.canary_failed.items():
            by_group[group] = by_group.get(group, 0) + count
    if len(by_group.keys() | {group for group, _ in shape.finish}) < FEW_CALLERS:
        return None
    return max(by_group, key=lambda group: by_group[group])


def _too_many(counts: list[tuple[int, int, int, int]], rules: Rules, chance: float) -> bool:
    theirs, failed, mine, mine_failed = _sums(counts)
    if not mine or mine_failed / mine - failed / theirs <= rules.max_error_increase:
        return False
    return failures(counts) <= chance


def _alone(slots: Sequence[Slot], shape: Shape) -> Verdict | None:
    """Nearly all callers have the canary: there is nothing to compare with, so only a wreck is ended."""
    theirs, theirs_failed, mine, failed = _sums(_counts(slots))
    if 2 * failed <= mine or (theirs and 2 * theirs_failed > theirs):
        return None
    worst = _worst(slots, shape)
    if worst is not None:
        _, _, others, others_failed = _sums(_counts(slots, worst))
        if 2 * others_failed <= others:
            return None
    return Verdict(
        "errors",
        f"{failed} of {mine} canary requests failed ({_percent(failed / mine)}); "
        f"{theirs} live ones are too few to compare with",
    )


# Finish reasons -------------------------------------------------------------------------------------------


def _finish(live: Shape, canary: Shape, rules: Rules, chance: float) -> Verdict | None:
    """Answers that end for another reason: more of them cut off at the limit, no more tool calls, and so on."""
    arms = _by_group(live), _by_group(canary)
    totals = [sum(sum(reasons.values()) for reasons in arm.values()) for arm in arms]
    freedom = min(even_groups([sum(reasons.values()) for reasons in arm.values()]) for arm in arms) - 1
    if min(totals) < rules.min_requests or freedom < 1:
        return None
    shares_of = {reason: tuple(_share(arm, reason) for arm in arms) for reason in REASONS}
    for reason, shares in sorted(shares_of.items(), key=lambda item: item[1][0] - item[1][1]):  # what grew most, first
        difference = abs(shares[1] - shares[0])
        if difference <= rules.max_finish_change:
            continue
        pooled = (shares[0] * totals[0] + shares[1] * totals[1]) / sum(totals)
        least = pooled * (1 - pooled) * (1 / totals[0] + 1 / totals[1])  # were all requests independent
        spread = sum(_spread_of_share(*each, reason) for each in zip(arms, shares, totals, strict=True))
        t = difference / math.sqrt(max(spread, least))
        if students_tail(t, freedom) * 2 * len(REASONS) <= chance:
            return Verdict(
                "finish_reasons",
                f"{_percent(shares[1])} of {totals[1]} canary answers ended with {reason}, "
                f"{_percent(shares[0])} of {totals[0]} live ones",
            )
    return None


def _by_group(shape: Shape) -> dict[int, dict[str, int]]:
    groups: dict[int, dict[str, int]] = {}
    for (group, reason), count in shape.finish.items():
        groups.setdefault(group, {})[reason] = count
    return groups


def _share(arm: Mapping[int, Mapping[str, int]], reason: str) -> float:
    return sum(of.get(reason, 0) for of in arm.values()) / sum(sum(of.values()) for of in arm.values())


def _spread_of_share(arm: Mapping[int, Mapping[str, int]], share: float, total: int, reason: str) -> float:
    return spread_of_mean([(of.get(reason, 0) - share * sum(of.values())) / total for of in arm.values()])


# Latency --------------------------------------------------------------------------------------------------


def _latency(live: Shape, canary: Shape, rules: Rules, chance: float) -> Verdict | None:
    """Slower by a factor, between geometric means: a few very slow answers of either arm do not decide."""
    for measure, words in MEASURES.items():
        found = compare(live, canary, measure)
        if found is None or found.answers < rules.min_requests or found.ratio <= rules.max_latency_ratio:
            continue
        if students_tail(found.t, found.freedom) * len(MEASURES) <= chance:
            return Verdict("latency", f"{words} is {found.ratio:.1f} times that of the live version")
    return None


@dataclass(frozen=True, slots=True)
class Comparison:
    """One measure of both arms. ratio: canary ÷ live; answers: of the arm that has fewer."""

    ratio: float
    t: float
    freedom: int
    answers: int


def compare(live: Shape, canary: Shape, measure: str) -> Comparison | None:
    """The canary's times against the live ones, each stratum with its like; None where nothing can be compared."""
    arms = [_strata(shape, measure) for shape in (live, canary)]
    strata = [stratum for stratum in arms[0] if stratum in arms[1]]
    sizes = [{s: sum(n for n, _ in arm[s].values()) for s in strata} for arm in arms]
    means = [
        {s: sum(t for _, t in arm[s].values()) / size[s] for s in strata} for arm, size in zip(arms, sizes, strict=True)
    ]
    weights = {s: sizes[0][s] * sizes[1][s] / (sizes[0][s] + sizes[1][s]) for s in strata}
    groups = [_answers(arm, strata) for arm in arms]
    freedom = min(even_groups(list(its.values())) for its in groups) - 1
    if freedom < 1:
        return None
    whole = sum(weights.values())
    difference = sum(weights[s] * (means[1][s] - means[0][s]) for s in strata) / whole
    variance = 0.0
    for arm, size, mean, its in zip(arms, sizes, means, groups, strict=True):
        errors = dict.fromkeys(its, 0.0)
        for s in strata:
            for group, (count, total) in arm[s].items():
                errors[group] += weights[s] / whole / size[s] * (total - count * mean[s])
        variance += spread_of_mean([*errors.values()])
    t = difference / math.sqrt(variance) if variance else math.copysign(math.inf, difference)
    answers = min(sum(size.values()) for size in sizes)
    return Comparison(math.exp(difference), t, freedom, answers)


def typical(shape: Shape, measure: str) -> float | None:
    """The geometric mean of a measure in seconds; None without any."""
    found = [value for (_, (name, _)), value in shape.seconds.items() if name == measure]
    count = sum(n for n, _ in found)
    return math.exp(sum(total for _, total in found) / count) if count else None


def _strata(shape: Shape, measure: str) -> dict[int, dict[int, tuple[int, float]]]:
    """stratum → group → answers, sum of ln seconds"""
    strata: dict[int, dict[int, tuple[int, float]]] = {}
    for (group, (name, stratum)), value in shape.seconds.items():
        if name == measure:
            strata.setdefault(stratum, {})[group] = value
    return strata


def _answers(arm: Mapping[int, Mapping[int, tuple[int, float]]], strata: Sequence[int]) -> dict[int, int]:
    """group → answers in all strata"""
    found: dict[int, int] = {}
    for stratum in strata:
        for group, (count, _) in arm[stratum].items():
            found[group] = found.get(group, 0) + count
    return found


def _percent(share: float) -> str:
    """Two digits that mean something: 0.4 %, 15 %."""
    percent = 100 * share
    return f"{percent:.2g} %" if percent < 99.5 else "100 %"


def measures(first_s: float, seconds: float, tokens: int, *, stream: bool) -> Iterator[tuple[Measure, float]]:
    """What one good answer tells of speed: (measure, ln seconds).

    Streams: the time to the first token, and the time of each further one. Whole answers show neither, and their time
    grows with their length, which is the model's own choice: so only answers of about the same length (strata of a
    factor of 2) are compared, and a canary that says more is not taken for a slow one.
    """
    if stream:
        if first_s > 0:
            yield ("first", 0), math.log(first_s)
        if tokens >= 8 and seconds > first_s > 0:
            yield ("pace", 0), math.log((seconds - first_s) / (tokens - 1))
    elif seconds > 0:
        yield ("whole", tokens.bit_length()), math.log(seconds)
