"""A fleet of real engines under mixed traffic while versions change and one is killed: no answer is wrong.

`python -m bench fleet` is the same for five minutes, with figures.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from platformdirs import user_cache_path

from bench.fleet import report
from tests.e2e import fleet_adapters
from tests.e2e.fleet_adapters import Fleet
from tests.e2e.fleet_soak import PERCENT, soak

pytestmark = [pytest.mark.engine, pytest.mark.trainer, pytest.mark.timeout(600)]
SECONDS = 45
CALLERS = 8


@pytest.fixture(scope="module")
def fleet(training_python: Path) -> Fleet:
    cache = Path(os.environ.get("LORAGATE_TEST_CACHE") or user_cache_path("loragate-tests"))
    return fleet_adapters.build(training_python, cache)


async def test_a_fleet_never_answers_with_the_wrong_weights(engine_python: Path, fleet: Fleet, tmp_path: Path) -> None:
    found = await soak(engine_python, fleet, tmp_path, seconds=SECONDS, callers=CALLERS, say=print)
    said = report(found)
    assert found.ledger.wrong == [], said
    assert found.failed == [], said
    assert len(found.cut) <= CALLERS, said
    assert found.canary_mixed == [], said
    assert 0 < found.canary_share < 2 * PERCENT / 100, said
    assert found.canary_stood, said
    assert len(found.swaps) >= 6, said
    answered = {each.answered_by.partition("@")[0] for each in found.ledger.answers if not each.error}
    assert len(answered) > 20, said  # of 24 and the base: more than all slots together
    print(said)
