"""Any good row, for tests that try many: conversations as the trainer takes them, with tools, weights and preferences."""

# ruff: noqa: E501 - one case a line

from __future__ import annotations

import json

from hypothesis import strategies as st

from training.data.row import Row, Turn

# Few letters, and those that matter to readers of JSON, of templates, and of the trainer's marks.
TEXT = st.text('ab "\\\n{}<|>,.é雨\u2028😀', min_size=1, max_size=12).filter(lambda text: text.strip())
NAME = st.sampled_from(["weather", "f", "a_b"])
VALUES: st.SearchStrategy[object] = TEXT | st.sampled_from(
    [None, True, 0, -1, 2**53, 1.5, [], {}, [1, {"a": "b"}], "</tool_call><tool_call>{{idx}}"]
)
CALLS = st.lists(
    st.fixed_dictionaries({"name": NAME, "arguments": st.dictionaries(NAME, VALUES, max_size=3)}),
    min_size=1,
    max_size=2,
).map(lambda calls: json.dumps([{"name": c["name"], "arguments": c["arguments"]} for c in calls], ensure_ascii=False))
TOOLS = st.none() | st.lists(st.fixed_dictionaries({"name": NAME}), min_size=1, max_size=2).map(json.dumps)


@st.composite
def exchanges(draw: st.DrawFn, weights: bool = False) -> tuple[Turn, ...]:
    """A question and its answer, perhaps with a call of tools in between."""
    turns = [Turn("user", draw(TEXT))]
    if draw(st.booleans()):
        turns += [Turn("assistant", draw(TEXT | st.just("")), draw(CALLS)), Turn("tool", draw(TEXT))]
    trained = draw(st.booleans()) if weights else True
    return (*turns, Turn("assistant", draw(TEXT), trained=trained))


@st.composite
def conversations(draw: st.DrawFn, weights: bool = False) -> Row:
    """One supervised row."""
    system = (Turn("system", draw(TEXT)),) if draw(st.booleans()) else ()
    turns = [turn for each in draw(st.lists(exchanges(weights), min_size=1, max_size=3)) for turn in each]
    if not any(turn.trained for turn in turns if turn.role == "assistant"):
        turns[-1] = Turn("assistant", turns[-1].content)
    return Row(1, (*system, *turns), draw(TOOLS))


@st.composite
def preferences(draw: st.DrawFn) -> Row:
    row = draw(conversations())
    worse = draw(TEXT.filter(lambda text: text != row.turns[-1].content))
    return Row(1, row.turns, row.tools, rejected=Turn("assistant", worse))


@st.composite
def judged(draw: st.DrawFn) -> Row:
    row = draw(conversations())
    return Row(1, row.turns, row.tools, label=draw(st.booleans()))
