"""What a waiting person sees: on a terminal one line that is rewritten, elsewhere a line now and then."""

from __future__ import annotations

import io

from gateway.local.display import Display, columns_of, roughly, spell


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_every_five_seconds_with_what_how_far_how_long_and_an_estimate() -> None:
    stream, clock = io.StringIO(), Clock()
    display = Display(stream, clock=clock, terminal=False)
    for second in range(11):
        clock.now = 100.0 + second
        display.show("Starting vLLM", f"step {second}", 30.0 - second)
    display.end("ready")
    assert stream.getvalue().splitlines() == [
        "Starting vLLM: step 0, 0 s, about 30 s left",
        "Starting vLLM: step 5, 5 s, about 25 s left",
        "Starting vLLM: step 10, 10 s, about 20 s left",
        "Starting vLLM: ready, 10 s",
    ]


def test_a_terminal_gets_one_line_rewritten() -> None:
    stream, clock = io.StringIO(), Clock()
    display = Display(stream, clock=clock, terminal=True)
    display.show("A", "1")
    clock.now += 1
    display.show("A", "2", -4.0)
    display.say("a word between")
    display.show("B")
    display.end()
    display.end()
    written = stream.getvalue()
    assert written.count("\n") == 3
    assert "\r\x1b[2KA: 2, 1 s" in written
    assert "left" not in written, "an estimate that has passed is not shown"


def test_a_line_is_never_wider_than_the_terminal() -> None:
    """A line that wraps cannot be rewritten: at 80 columns an installation scrolled the screen twice a second."""
    clock = Clock()

    def shown(width: int) -> str:
        stream = io.StringIO()
        display = Display(stream, clock=clock, terminal=True, columns=lambda: width)
        clock.now = 100.0
        display.show("Installing vLLM for CPUs")
        clock.now += 147.0
        display.show("Installing vLLM for CPUs", "101 of 148 packages", 301.0, also="245 MB")
        return stream.getvalue().rpartition("\r\x1b[2K")[2]

    whole = "Installing vLLM for CPUs: 101 of 148 packages, 245 MB, 2 min 27 s, about 5 min left"
    assert shown(120) == whole
    assert shown(len(whole) + 1) == whole
    assert shown(80) == whole.replace(", 245 MB", "")
    assert shown(60) == "Installing vLLM for CPUs: 101 of 148 packages, 2 min 27 s"
    assert shown(20) == whole[:19]


def test_a_stream_that_is_no_terminal_has_a_width_all_the_same() -> None:
    assert columns_of(io.StringIO()) == 80


def test_an_estimate_claims_no_more_than_it_knows() -> None:
    assert [roughly(8.4), roughly(119), roughly(119.6), roughly(3000)] == ["8 s", "119 s", "2 min", "50 min"]


def test_spell() -> None:
    assert [spell(8.4), spell(119), spell(200)] == ["8 s", "119 s", "3 min 20 s"]
