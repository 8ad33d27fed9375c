"""The bounded queue in front of the engines."""

from __future__ import annotations

import asyncio

import pytest

from gateway.errors import Overloaded
from gateway.v1.admission import Admission


def nothing() -> None:
    pass


async def test_a_place_given_back_goes_to_the_first_in_the_queue() -> None:
    admission = Admission(1, 2, 5.0, asyncio.get_running_loop())
    woken: list[str] = []
    assert admission.enter(nothing, 0.0) is None
    first = admission.enter(lambda: woken.append("first"), 0.0)
    second = admission.enter(lambda: woken.append("second"), 0.0)
    with pytest.raises(Overloaded):
        admission.enter(nothing, 0.0)
    admission.leave()
    await asyncio.sleep(0)
    assert first is not None
    assert second is not None
    assert (woken, first.admitted, second.admitted, admission.in_flight) == (["first"], True, False, 1)
    admission.leave()
    await asyncio.sleep(0)
    admission.leave()
    assert (woken, admission.in_flight) == (["first", "second"], 0)


async def test_whoever_is_just_being_given_a_place_still_counts_as_waiting() -> None:
    """For that turn of the loop nothing else knows that its weights are wanted."""
    admission = Admission(1, 2, 5.0, asyncio.get_running_loop())
    admission.enter(nothing, 0.0)
    seen: list[bool] = []
    ticket = admission.enter(lambda: seen.append(admission.has_queue()), 0.0)
    admission.leave()
    assert admission.has_queue()
    await asyncio.sleep(0)
    assert ticket is not None
    assert ticket.admitted
    assert seen == [True]
    assert not admission.has_queue()


async def test_who_waits_too_long_is_let_go_and_takes_no_place() -> None:
    admission = Admission(1, 2, 5.0, asyncio.get_running_loop())
    admission.enter(nothing, 0.0)
    ticket = admission.enter(nothing, 0.0)
    assert ticket is not None
    admission.sweep(4.9)
    assert not ticket.expired
    admission.sweep(5.0)
    assert ticket.expired
    admission.leave()
    await asyncio.sleep(0)
    assert (ticket.admitted, admission.in_flight) == (False, 0)


async def test_who_leaves_the_queue_or_leaves_while_being_admitted_loses_no_place() -> None:
    admission = Admission(1, 3, 5.0, asyncio.get_running_loop())
    admission.enter(nothing, 0.0)
    gone, going, stays = (admission.enter(nothing, 0.0) for _ in range(3))
    assert gone is not None
    assert going is not None
    assert stays is not None
    gone.left = True
    admission.leave()  # hands the place to `going`, through the loop
    going.left = True
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (stays.admitted, admission.in_flight) == (True, 1)
    admission.leave()
    assert admission.in_flight == 0
