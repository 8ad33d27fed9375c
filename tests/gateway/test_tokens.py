"""The token format and `verify`: every wrong token is refused, with the same work, whatever its bytes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import tokens
from gateway.tokens import ROOT_ID, TOKEN_LENGTH, checksum, digest, mint, parse, verify
from gateway.v1.snapshot import Credential, Key

PEPPER = bytes(range(32))
NOW = 1_800_000_000.0
WORK = ("parse", "checksum", "digest", "compare_digest")


def counted(counter: list[int]) -> Callable[[int], bytes]:
    def random_bytes(n: int) -> bytes:
        counter[0] += 1
        return counter[0].to_bytes(n)

    return random_bytes


def issued(**changes: object) -> tuple[bytes, Key]:
    minted = mint(os.urandom)
    token = minted.token.encode()
    key = Key(minted.id, (Credential(digest(PEPPER, token)),))
    return token, replace(key, **changes)  # type: ignore[arg-type]


def test_a_token_has_the_documented_shape() -> None:
    minted = mint(counted([0]))
    assert len(minted.token) == TOKEN_LENGTH == 65
    prefix, key_id, rest = minted.token.split("-")
    assert (prefix, len(key_id), len(rest)) == ("lg", 12, 49)
    assert minted.token.replace("-", "").isalnum()
    assert parse(minted.token.encode()) == minted.id == key_id


def test_the_secret_carries_all_256_bits() -> None:
    top = mint(lambda n: b"\xff" * n).token
    assert len(top) == TOKEN_LENGTH
    assert top[16:59] != mint(lambda n: b"\xff" * (n - 1) + b"\xfe").token[16:59]


def test_a_token_is_not_in_its_repr() -> None:
    minted = mint(os.urandom)
    assert minted.token not in repr(minted)
    assert minted.token[16:30] not in repr(minted)


@pytest.mark.parametrize("place", range(TOKEN_LENGTH))
def test_any_single_wrong_character_is_noticed_offline(place: int) -> None:
    token = bytearray(mint(os.urandom).token.encode())
    token[place] = ord("x") if token[place] != ord("x") else ord("y")
    assert parse(bytes(token)) is None


@given(st.binary(max_size=200))
def test_parse_and_verify_take_any_bytes(noise: bytes) -> None:
    assert parse(noise) is None
    assert verify(noise, {}, PEPPER, NOW) is None


@pytest.mark.parametrize(
    "token",
    [b"", b"lg-", b"\x00" * 65, "lg-ключ".encode(), b"lg-" + b"a" * (1 << 20), b"\xff" * 65, b"Bearer x", b"-" * 65],
)
def test_malformed_tokens_open_nothing(token: bytes) -> None:
    _, key = issued()
    assert verify(token, {key.id: key}, PEPPER, NOW) is None


def test_a_right_checksum_over_a_strange_id_is_no_id() -> None:
    body = b"lg-" + b"\x00' OR 1=1--"[:12].ljust(12, b"!") + b"-" + b"a" * 43
    assert parse(body + checksum(body)) is None


def test_the_right_token_opens_its_key_and_no_other() -> None:
    token, key = issued()
    other_token, other = issued()
    keys = {key.id: key, other.id: other}
    assert verify(token, keys, PEPPER, NOW) is key
    assert verify(other_token, keys, PEPPER, NOW) is other
    assert verify(token, {other.id: other}, PEPPER, NOW) is None


def test_another_installations_pepper_opens_nothing() -> None:
    token, key = issued()
    assert verify(token, {key.id: key}, bytes(32), NOW) is None


def test_the_id_alone_is_not_enough() -> None:
    """Two tokens of one id: same first 16 characters, another secret."""
    token, key = issued()
    forged = mint(os.urandom, key.id).token.encode()
    assert forged[:16] == token[:16]
    assert verify(forged, {key.id: key}, PEPPER, NOW) is None


def test_the_digest_is_no_credential() -> None:
    _, key = issued()
    assert verify(key.credentials[0].digest, {key.id: key}, PEPPER, NOW) is None


def test_a_key_ends_at_its_expiry() -> None:
    token, key = issued(expires_at=NOW)
    assert verify(token, {key.id: key}, PEPPER, NOW - 0.001) is key
    assert verify(token, {key.id: key}, PEPPER, NOW) is None


def test_a_rotated_key_takes_both_tokens_until_the_grace_ends() -> None:
    old_token, old = issued()
    new_token = mint(os.urandom, old.id).token.encode()
    key = replace(old, credentials=(Credential(digest(PEPPER, new_token)), Credential(old.credentials[0].digest, NOW)))
    keys = {key.id: key}
    assert verify(old_token, keys, PEPPER, NOW - 1) is key
    assert verify(old_token, keys, PEPPER, NOW) is None
    assert verify(new_token, keys, PEPPER, NOW + 1) is key


def test_no_digest_is_shown_by_repr() -> None:
    _, key = issued()
    assert repr(key.credentials[0].digest) not in repr(key)


def work(token: bytes, keys: dict[str, Key]) -> list[str]:
    """The names of the steps, comparisons included, that one `verify` takes, in order."""
    seen: list[str] = []

    def profile(frame: FrameType, event: str, arg: object) -> None:
        if event == "call":
            seen.append(frame.f_code.co_name)
        elif event == "c_call" and getattr(arg, "__name__", "") == "compare_digest":
            seen.append("compare_digest")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        verify(token, keys, PEPPER, NOW)
    finally:
        sys.setprofile(before)
    return [name for name in seen if name in WORK]  # not what the garbage collector calls


@pytest.mark.skipif(tokens.__file__.endswith(".so"), reason="compiled: calls cannot be counted with sys.setprofile")
def test_known_unknown_wrong_and_expired_tokens_cost_the_same_work() -> None:
    token, key = issued()
    expired_token, expired = issued(expires_at=NOW - 1)
    keys = {key.id: key, expired.id: expired}
    known = work(token, keys)
    assert known.count("digest") == 1
    assert known.count("compare_digest") == 2
    assert work(issued()[0], keys) == known, "an id that does not exist"
    assert work(mint(os.urandom, key.id).token.encode(), keys) == known, "a wrong secret"
    assert work(expired_token, keys) == known, "an expired key"
    for noise in (b"", b"x" * (1 << 20), b"sk-abc"):
        assert set(work(noise, keys)) <= set(known)
        assert work(noise, keys).count("digest") == 1, "a malformed token"


def test_the_root_id_is_one_that_keys_cannot_get_by_chance() -> None:
    assert len(ROOT_ID) == 12
    assert parse(mint(os.urandom, ROOT_ID).token.encode()) == ROOT_ID
