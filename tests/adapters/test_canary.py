"""What ends a canary and what does not, from counts alone."""

from __future__ import annotations

import math

from adapters.canary import Shape, Slot, compare, judge, look_due, measures, standing, typical
from adapters.types import Rules

RULES = Rules()


def slots(
    live: int, live_failed: int, canary: int, canary_failed: int, *, groups: int = 8, times: int = 1
) -> list[Slot]:
    """`times` equal slots; the canary's failures go round its groups of callers."""
    found = []
    for _ in range(times):
        by_group: dict[int, int] = {}
        for n in range(canary_failed):
            by_group[n % groups] = by_group.get(n % groups, 0) + 1
        found.append(Slot(live, live_failed, canary, by_group))
    return found


def finishing(groups: int = 10, **reasons: int) -> Shape:
    """Every group of callers has as many answers of each reason."""
    return Shape({(group, reason): count for reason, count in reasons.items() for group in range(groups)})


def timed(seconds: float, measure: tuple[str, int] = ("first", 0), groups: int = 10, each: int = 20) -> Shape:
    """Groups of callers around `seconds`, some a little slower, some a little faster."""
    logs = [math.log(seconds) + (0.1 if group % 2 else -0.1) for group in range(groups)]
    return Shape({}, {(group, measure): (each, each * log) for group, log in enumerate(logs)})


GOOD = finishing(stop=20)


def test_failures_end_it_in_a_sentence() -> None:
    verdict = judge(slots(720, 3, 80, 12), GOOD, GOOD, RULES, 1)
    assert verdict is not None
    assert verdict.reason == "errors"
    assert verdict.sentence == "12 of 80 canary requests failed (15 %), 3 of 720 live ones (0.42 %)"


def test_failures_that_do_not_end_it() -> None:
    assert judge(slots(720, 3, 49, 40), GOOD, GOOD, RULES, 1) is None, "fewer than min_requests"
    assert judge(slots(720, 108, 80, 12), GOOD, GOOD, RULES, 1) is None, "the live version fails as often"
    assert judge(slots(720, 0, 80, 2), GOOD, GOOD, RULES, 1) is None, "two are chance"
    assert judge(slots(90_000, 90, 10_000, 190), GOOD, GOOD, RULES, 1) is None, "no chance, and within the rule"
    assert judge(slots(720, 3, 80, 12), GOOD, GOOD, Rules(max_error_increase=0.2), 1) is None
    assert judge([*slots(10, 10, 60, 60), *slots(700, 3, 80, 1)], GOOD, GOOD, RULES, 1) is None, "an outage of both"


def test_the_more_looks_the_stricter() -> None:
    looks = [judge(slots(720, 3, 80, 8), GOOD, GOOD, RULES, look) is not None for look in (1, 1000)]
    assert looks == [True, False]
    assert judge(slots(720, 3, 80, 70), GOOD, GOOD, RULES, 1000) is not None


def test_a_good_day_does_not_hide_what_goes_wrong_now() -> None:
    day = slots(90, 0, 90, 0, times=88)
    verdict = judge([*day, *slots(90, 0, 90, 15, times=2)], GOOD, GOOD, RULES, 100)
    assert verdict is not None
    assert verdict.sentence == "30 of the last 990 canary requests failed (3 %), 0 of 990 live ones (0 %)"
    assert judge([*day, *slots(90, 0, 90, 2, times=2)], GOOD, GOOD, RULES, 100) is None


def test_one_caller_alone_does_not_end_it_while_others_are_served() -> None:
    assert judge(slots(720, 3, 80, 12, groups=1), GOOD, GOOD, RULES, 1) is None
    few = finishing(3, stop=20)
    assert judge(slots(720, 3, 80, 12, groups=1), GOOD, few, RULES, 1) is not None, "there are hardly any others"


def test_without_live_requests_only_a_wreck_is_ended() -> None:
    assert judge(slots(0, 0, 80, 30), GOOD, GOOD, RULES, 1) is None
    assert judge(slots(10, 9, 80, 70), GOOD, GOOD, RULES, 1) is None, "as far as one sees it fails for all"
    verdict = judge(slots(3, 0, 80, 70), GOOD, GOOD, RULES, 1)
    assert verdict is not None
    assert verdict.sentence == "70 of 80 canary requests failed (88 %); 3 live ones are too few to compare with"


def test_one_caller_alone_does_not_end_what_nearly_all_have() -> None:
    """Retries of a request that breaks the engine are most of a young canary's traffic."""
    noisy = slots(5, 0, 100, 60, groups=1)
    assert judge(noisy, GOOD, GOOD, RULES, 1) is None
    assert judge(noisy, GOOD, finishing(2, stop=20), RULES, 1) is not None, "there are hardly any others"
    others_too = Slot(5, 0, 100, {0: 60, **dict.fromkeys(range(1, 9), 4)})
    assert judge([others_too], GOOD, GOOD, RULES, 1) is not None, "32 of the other 40 failed, too"


def test_other_finish_reasons_end_it() -> None:
    quiet = slots(720, 3, 100, 0)
    verdict = judge(quiet, finishing(stop=70, length=2), finishing(stop=6, length=4), RULES, 1)
    assert verdict is not None
    assert verdict.reason == "finish_reasons"
    assert verdict.sentence == "40 % of 100 canary answers ended with length, 2.8 % of 720 live ones"
    assert judge(quiet, finishing(stop=70, length=2), finishing(stop=9, length=1), RULES, 1) is None, "within the rule"
    assert (
        judge(quiet, finishing(stop=70, length=2), finishing(stop=6, length=4), Rules(max_finish_change=0.5), 1) is None
    )
    assert judge(quiet, finishing(stop=72), finishing(stop=4), RULES, 1) is None, (
        "40 answers are fewer than min_requests"
    )


def test_finish_reasons_of_few_callers_say_more_of_callers_than_of_versions() -> None:
    quiet = slots(720, 3, 100, 0)
    one = finishing(1, stop=60, length=40)
    assert judge(quiet, finishing(stop=70, length=2), one, RULES, 1) is None
    mostly_one = Shape({(0, "length"): 60, **{(group, "stop"): 4 for group in range(1, 10)}})
    assert judge(quiet, finishing(stop=70, length=2), mostly_one, RULES, 1) is None, (
        "one caller of ten makes most of it"
    )
    bunched = Shape({(group, "length" if group < 4 else "stop"): 10 for group in range(10)})
    assert judge(quiet, finishing(stop=70, length=2), bunched, RULES, 1) is None, "four callers of ten always had it so"


def test_slowness_ends_it() -> None:
    quiet = slots(720, 3, 100, 0)
    verdict = judge(quiet, timed(0.2), timed(0.42), RULES, 1)
    assert verdict is not None
    assert verdict.reason == "latency"
    assert verdict.sentence == "The time to the first token is 2.1 times that of the live version"
    assert judge(quiet, timed(0.2), timed(0.28), RULES, 1) is None, "within the rule"
    assert judge(quiet, timed(0.2), timed(0.42, groups=1, each=200), RULES, 1) is None, "one caller"
    assert judge(quiet, timed(0.2), timed(0.42, each=4), RULES, 1) is None, "fewer than min_requests"


def test_longer_answers_are_not_slow_ones() -> None:
    short, long = ("whole", 3), ("whole", 8)
    live = Shape({}, {**timed(0.2, short).seconds, **timed(4.0, long, each=5).seconds})
    canary = Shape({}, {**timed(0.2, short, each=5).seconds, **timed(4.0, long).seconds})
    found = compare(live, canary, "whole")
    assert found is not None
    assert abs(found.ratio - 1) < 1e-9
    assert (typical(canary, "whole") or 0) > 3 * (typical(live, "whole") or 0)
    slower = compare(live, Shape({}, timed(8.0, long).seconds), "whole")
    assert slower is not None
    assert abs(slower.ratio - 2) < 1e-9
    assert compare(live, Shape(), "whole") is None


def test_what_one_answer_tells_of_speed() -> None:
    assert dict(measures(0.25, 1.25, 101, stream=True)) == {("first", 0): math.log(0.25), ("pace", 0): math.log(0.01)}
    assert [measure for measure, _ in measures(0.25, 0.26, 3, stream=True)] == [("first", 0)], "too short for a pace"
    assert list(measures(0.0, 2.0, 100, stream=False)) == [(("whole", 7), math.log(2.0))]


def test_looks_are_spaced_and_the_standing_is_said() -> None:
    assert not look_due(49, 49, RULES)
    assert look_due(50, 50, RULES)
    assert not look_due(4, 54, RULES)
    assert look_due(6, 56, RULES)
    assert look_due(25, 9000, RULES)
    assert standing(slots(700, 0, 12, 0), RULES, 0) == "nothing is compared yet: 12 of 50 canary requests"
    assert standing(slots(12, 0, 700, 0), RULES, 0) == "nothing is compared yet: 12 of 50 live requests"
    assert standing(slots(700, 0, 80, 0), RULES, 1) == "compared once, no rule is broken"
    assert standing(slots(700, 0, 80, 0), RULES, 5) == "compared 5 times, no rule is broken"
