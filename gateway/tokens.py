"""API tokens: their format, their digest and the one check that admits them. Pure: no files, no database, no clock.

    lg-<id, 12>-<secret, 43><checksum, 6>      base62; 65 bytes in all

The checksum lets a mistyped or truncated token be refused offline, and lets scanners recognise a leaked one.
Only a keyed digest of the whole token is ever stored.
"""

from __future__ import annotations

import hashlib
import hmac
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gateway.v1.snapshot import Credential, Key

PREFIX = b"lg-"
ID_LENGTH = 12  # 71 bits: two keys never meet
SECRET_LENGTH = 43  # 62**43 > 2**256
CHECKSUM_LENGTH = 6  # 62**6 > 2**32
TOKEN_LENGTH = len(PREFIX) + ID_LENGTH + 1 + SECRET_LENGTH + CHECKSUM_LENGTH
ROOT_ID = "admin0000000"  # the id of <data>/admin.key; that key is never in the database

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# Two digits at a time: three look-ups instead of six divisions, 0.3 µs a request.
_PAIRS = tuple((a + b).encode() for a in _ALPHABET for b in _ALPHABET)
_ID_END = len(PREFIX) + ID_LENGTH
_BODY_END = TOKEN_LENGTH - CHECKSUM_LENGTH
_NOBODY = (Credential(bytes(32)), Credential(bytes(32)))  # what an unknown id is compared with


@dataclass(frozen=True, slots=True)
class Minted:
    """A new token. `token` is shown to its owner once and is in no repr."""

    id: str
    token: str = field(repr=False)


def mint(random_bytes: Callable[[int], bytes], key_id: str | None = None) -> Minted:
    """Make a token with 256 random bits, for a new id or (rotation) for an existing one."""
    if key_id is None:
        # 16 bytes for 71 bits: the bias of the remainder is below 2**-56.
        key_id = _base62(int.from_bytes(random_bytes(16)) % 62**ID_LENGTH, ID_LENGTH)
    body = PREFIX + key_id.encode("ascii") + b"-" + _base62(int.from_bytes(random_bytes(32)), SECRET_LENGTH).encode()
    return Minted(key_id, (body + checksum(body)).decode("ascii"))


def checksum(body: bytes) -> bytes:
    """CRC32 of everything before it, as six base62 digits."""
    high, low = divmod(zlib.crc32(body), 3844)
    return _PAIRS[high // 3844] + _PAIRS[high % 3844] + _PAIRS[low]


def parse(token: bytes) -> str | None:
    """The key id of a well-formed token, else None. Takes any bytes of any length and looks at 65 at most."""
    if len(token) != TOKEN_LENGTH or token[:3] != PREFIX or token[_ID_END] != 0x2D:
        return None
    if token[_BODY_END:] != checksum(token[:_BODY_END]):
        return None
    key_id = token[3:_ID_END]
    # bytes.isalnum() is ASCII only: nothing but base62 becomes a look-up key.
    return key_id.decode("ascii") if key_id.isalnum() else None


def digest(pepper: bytes, token: bytes) -> bytes:
    """What is stored of a token: blake2b-256 keyed with the pepper (256 random bits need no slow hash)."""
    return hashlib.blake2b(token, digest_size=32, key=pepper).digest()


def verify(token: bytes, keys: Mapping[str, Key], pepper: bytes, now: float) -> Key | None:
    """The live key that `token` opens, or None; `now` in unix seconds. Never raises, whatever the bytes.

    Malformed, unknown, expired and wrong tokens all cost the same: one checksum at most, one digest, two comparisons.
    """
    key_id = parse(token)
    key = keys.get(key_id) if key_id is not None else None
    presented = digest(pepper, token[:TOKEN_LENGTH])
    credentials = key.credentials if key is not None else _NOBODY
    current = credentials[0]
    previous = credentials[1] if len(credentials) > 1 else _NOBODY[1]
    opened_by = None
    if hmac.compare_digest(presented, current.digest):
        opened_by = current
    if hmac.compare_digest(presented, previous.digest):
        opened_by = previous
    if key is None or opened_by is None:
        return None
    if opened_by.valid_until is not None and now >= opened_by.valid_until:
        return None
    if key.expires_at is not None and now >= key.expires_at:
        return None
    return key


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
