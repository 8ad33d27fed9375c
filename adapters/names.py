"""The one place for names: what a public name may look like, and what the engine calls one version of it.

Must not know the registry: whether a name is taken, or equals the base's, is the service's question.
"""

from __future__ import annotations

import re

from adapters.errors import InvalidName

SHORT = 12  # hex digits of the content digest that stand for a version
_PUBLIC = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}", re.ASCII)
_VERSION = re.compile(r"[0-9a-f]{12}", re.ASCII)
_ENGINE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}@[0-9a-f]{12}", re.ASCII)


def check_public_name(name: str) -> str:
    """Return `name` unchanged when it may be used as a public model name; raises InvalidName."""
    if not _PUBLIC.fullmatch(name):
        raise InvalidName(
            "A name is 1 to 128 letters, digits, '.', '_', '-' or ':' and begins with a letter or digit, "
            "such as customer-service or ft:qwen:acme:support:v1.",
            param="name",
        )
    return name


def check_version(version: str) -> str:
    """Return `version` unchanged when it is 12 lower-case hex digits; raises InvalidName."""
    if not _VERSION.fullmatch(version):
        raise InvalidName("A version is its 12 hex digits, as `loragate adapters show` prints them.", param="version")
    return version


def engine_name(public: str, version: str) -> str:
    """What the engine and the store call `version` of `public`: never reused, because the content names it."""
    return f"{check_public_name(public).replace(':', '-')}@{check_version(version)}"


def is_engine_name(text: str) -> bool:
    """Whether `text` has the shape that only `engine_name` makes (no public name holds an '@')."""
    return _ENGINE.fullmatch(text) is not None
