"""Names: what is let in, and that an engine name says exactly one thing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import InvalidName
from adapters.names import check_public_name, check_version, engine_name, is_engine_name

VERSION = "0123456789ab"


@pytest.mark.parametrize("name", ["a", "customer-service", "ft:qwen:acme::x1", "A.b_c", "0", "x" * 128])
def test_usual_names_are_let_in(name: str) -> None:
    assert check_public_name(name) == name
    assert is_engine_name(engine_name(name, VERSION))


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "a\\b", "a@b", "a b", "a\n", "\na", "-a", ":a", "_a", "x" * 129, "ä", "a\x00", "٣"],
)
def test_everything_else_is_refused(name: str) -> None:
    with pytest.raises(InvalidName):
        check_public_name(name)
    with pytest.raises(InvalidName):
        engine_name(name, VERSION)


@pytest.mark.parametrize(
    "version", ["", "0123456789a", "0123456789abc", "0123456789AB", "0123456789ag", "../../../../"]
)
def test_a_version_is_twelve_hex_digits(version: str) -> None:
    with pytest.raises(InvalidName):
        check_version(version)


def test_the_engine_name_has_no_colon_and_ends_with_the_version() -> None:
    assert engine_name("ft:qwen:acme::x1", VERSION) == f"ft-qwen-acme--x1@{VERSION}"


@given(st.text(max_size=40))
def test_an_engine_name_is_never_a_public_name(text: str) -> None:
    if is_engine_name(text):
        with pytest.raises(InvalidName):
            check_public_name(text)
