"""When two utterances agree, and what the registry's text of them may be."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.utterance import Utterance, agree, decode, encode

A = Utterance("p", ("a", "b", "c"), (-0.1, -0.2, -0.3), (("x", -3.0), ("y", -0.4), ("z", -5.0)))


def test_equal_tokens_agree_within_the_tolerance_and_not_beyond() -> None:
    near = Utterance("p", A.tokens, (-0.1, -0.6, -0.3), A.runners_up)
    assert agree(A, near, 0.5)
    assert not agree(A, near, 0.3)


def test_a_near_tie_is_agreement_and_ends_the_comparison() -> None:
    # Both hold b and y for almost equally likely; what comes after depends on the choice.
    parted = Utterance("p", ("a", "y", "q"), (-0.1, -0.25, -9.0), (("x", -3.0), ("b", -0.35), ("r", -9.0)))
    assert agree(A, parted, 0.2)
    assert agree(parted, A, 0.2)


@pytest.mark.parametrize(
    ("chosen", "second"),
    [
        ("w", ("b", -0.35)),  # three that are equally likely
        ("y", ("w", -0.35)),
        ("w", ("y", -0.35)),  # four
    ],
)
def test_a_tie_of_more_than_two_is_one_too(chosen: str, second: tuple[str, float]) -> None:
    parted = Utterance("p", ("a", chosen), (-0.1, -0.3), (("x", -3.0), second))
    assert agree(A, parted, 0.3)
    assert agree(parted, A, 0.3)


@pytest.mark.parametrize(
    ("chosen", "logprob", "second"),
    [
        ("w", -0.25, ("v", -0.35)),  # both hesitated, over other tokens
        ("y", -0.01, ("b", -4.0)),  # the other did not hesitate
        ("y", -0.25, ("b", -4.0)),
        ("y", -0.9, ("b", -0.91)),  # both hesitated over these two, which are not as likely to both
    ],
)
def test_a_parting_that_no_rounding_explains(chosen: str, logprob: float, second: tuple[str, float]) -> None:
    parted = Utterance("p", ("a", chosen), (-0.1, logprob), (("x", -3.0), second))
    assert not agree(A, parted, 0.3)
    assert not agree(parted, A, 0.3)


def test_one_that_was_sure_of_its_choice_did_not_part_at_a_tie() -> None:
    other = Utterance("p", ("w",), (-0.05,), (("a", -0.2),))  # where A took a without a second thought
    assert not agree(A, other, 0.3)
    assert not agree(other, A, 0.3)


def test_a_shorter_one_agrees_only_where_it_may_have_been_cut() -> None:
    short = Utterance("p", A.tokens[:2], A.logprobs[:2], A.runners_up[:2])
    assert not agree(A, short, 0.5)
    assert agree(A, short, 0.5, whole=False)
    assert agree(short, A, 0.5, whole=False)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
numbers = st.floats(-9999, 0)


@st.composite
def utterances(draw: st.DrawFn) -> Utterance:
    rows = draw(st.lists(st.tuples(texts, numbers, texts, numbers), max_size=16))
    return Utterance(
        draw(texts.filter(bool)),
        tuple(row[0] for row in rows),
        tuple(row[1] for row in rows),
        tuple((row[2], row[3]) for row in rows),
    )


@given(utterances(), utterances())
def test_agreement_has_no_sides(one: Utterance, other: Utterance) -> None:
    assert agree(one, one, 0)
    assert agree(one, other, 0.5) == agree(other, one, 0.5)


@given(st.lists(utterances(), max_size=4))
def test_what_is_kept_comes_back(reference: list[Utterance]) -> None:
    text = encode(tuple(reference))
    assert text.isascii()
    back = decode(text)
    assert len(back) == len(reference)
    assert all(agree(one, other, 1e-5) for one, other in zip(back, reference, strict=True))
    assert encode(back) == text


ROW = {"prompt": "p", "tokens": ["a"], "logprobs": [-1.0], "runners_up": [["b", -2.0]]}
ODD = [
    {"utterances": ROW},
    {"utterances": [ROW] * 65},
    {"utterances": [ROW | {"prompt": ""}]},
    {"utterances": [ROW | {"prompt": None}]},
    {"utterances": [ROW | {"prompt": "\ud800"}]},
    {"utterances": [ROW | {"tokens": "a"}]},
    {"utterances": [ROW | {"tokens": ["a", "b"]}]},
    {"utterances": [ROW | {"logprobs": [float("nan")]}]},
    {"utterances": [ROW | {"logprobs": [True]}]},
    {"utterances": [ROW | {"logprobs": ["-1"]}]},
    {"utterances": [ROW | {"runners_up": [["b"]]}]},
    {"utterances": [ROW | {"runners_up": [["b", -2.0, 0]]}]},
    {"utterances": [ROW | {"runners_up": ["b-"]}]},
    {"utterances": [{}]},
    {"utterances": [None]},
    {},
    [],
    None,
    "text",
    7,
]


@pytest.mark.parametrize("text", [*map(json.dumps, ODD), "", "{", "[" * 100_000, " " * (1024 * 1024 + 1)])
def test_anything_odd_is_a_value_error_that_repeats_nothing(text: str) -> None:
    with pytest.raises(ValueError, match="reference") as caught:
        decode(text)
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | texts,
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["utterances", "prompt", "tokens", "logprobs", "runners_up"]), inner)
        ),
    )
)
def test_any_json_is_decoded_or_refused(value: object) -> None:
    with contextlib.suppress(ValueError):
        assert all(isinstance(one, Utterance) for one in decode(json.dumps(value)))
