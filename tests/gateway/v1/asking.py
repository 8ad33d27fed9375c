"""Asking the checker the way the proxy does: shared by the tests of the allow-lists."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from adapters.errors import InvalidRequest
from gateway.settings import RequestCaps
from gateway.v1.dialect import BY_PATH, prepare
from gateway.v1.fields import Checked, check

CAPS = RequestCaps()
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
RESPONSES, MESSAGES, COUNT = "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"
USER = {"role": "user", "content": "hello"}
MINIMAL: dict[str, dict[str, Any]] = {
    CHAT: {"model": "m", "messages": [USER]},
    COMPLETIONS: {"model": "m", "prompt": "hello"},
    EMBEDDINGS: {"model": "m", "input": "hello"},
    RESPONSES: {"model": "m", "input": "hello"},
    MESSAGES: {"model": "m", "messages": [USER], "max_tokens": 8},
    COUNT: {"model": "m", "messages": [USER]},
}
every_route = pytest.mark.parametrize("path", MINIMAL)


def run(path: str, /, **fields: Any) -> Checked:
    return check(BY_PATH[path].fields, {**copy.deepcopy(MINIMAL[path]), **fields}, CAPS)


def refusal(path: str, /, **fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        run(path, **fields)
    return caught.value


def sent(path: str, /, **fields: Any) -> dict[str, Any]:
    """What the engine gets."""
    body: dict[str, Any] = json.loads(prepare(BY_PATH[path], run(path, **fields), "engine"))
    return body
