"""Pictures and sounds: only inside the request, only of listed types; nothing is ever fetched."""

from __future__ import annotations

import base64
import copy
from typing import Any

import pytest

from adapters.errors import InvalidRequest
from gateway.errors import RemoteMediaDisabled
from gateway.v1.fields_rules import MAX_MEDIA_CHARS
from tests.gateway.v1.asking import CHAT, MESSAGES, RESPONSES, refusal, sent

PNG = "data:image/png;base64," + base64.b64encode(b"not really").decode()

REMOTE = [
    "http://169.254.169.254/latest/meta-data/", "https://example.com/x.png", "http://127.0.0.1:8000/x", "http://[::1]/",
    "http://[::ffff:127.0.0.1]/", "file:///etc/passwd", "http:\\\\evil", "//evil/x.png", "ftp://x/y", "/etc/passwd",
    "DATA:image/png;base64,AAAA", " data:image/png;base64,AAAA", "gopher://x", "http://2130706433/", "s3://a/b", "",
]  # fmt: skip


def with_image(path: str, url: Any) -> dict[str, Any]:
    if path == CHAT:
        return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}
    return {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]}


@pytest.mark.parametrize("url", REMOTE)
@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_nothing_is_fetched(path: str, url: str) -> None:
    error = refusal(path, **with_image(path, url))
    assert type(error) is RemoteMediaDisabled
    assert error.code == "remote_media_disabled"
    assert url == "" or url not in error.message


def test_nothing_is_fetched_for_anthropic() -> None:
    block = {"type": "image", "source": {"type": "url", "url": "http://127.0.0.1/x"}}
    tool_result = {"type": "tool_result", "tool_use_id": "x", "content": [block]}
    for content in ([block], [tool_result]):
        assert type(refusal(MESSAGES, messages=[{"role": "user", "content": content}])) is RemoteMediaDisabled


@pytest.mark.parametrize(
    "part",
    [
        {"image_url": "http://x"},
        {"type": "image_url", "image_url": "http://x"},
        {"type": "image_url", "image_url": {"url": PNG}, "uuid": "x"},
        {"type": "text", "text": "x", "image_url": {"url": "http://x"}},
        {"type": None, "image_url": {"url": "http://x"}},
        {"type": ["image_url"], "image_url": {"url": "http://x"}},
        {"type": "video_url", "video_url": {"url": "http://x"}},
        {"type": "audio_url", "audio_url": {"url": "http://x"}},
        {"type": "image_embeds", "image_embeds": "AAAA"},
        {"type": "image_pil", "image_pil": "x"},
        {"type": "prompt_embeds", "data": "AAAA"},
        {"type": "file", "file": {"file_data": "x"}},
        {"type": "input_audio", "input_audio": {"data": "http://x", "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "../x"}},
        "a bare string",
    ],
)
def test_other_parts_are_refused(part: Any) -> None:
    refusal(CHAT, messages=[{"role": "user", "content": [part]}])


@pytest.mark.parametrize(
    "url",
    [
        "data:text/html;base64,AAAA",
        "data:image/svg+xml;base64,AAAA",
        "data:image/png,raw",
        "data:image/png;base64,",
        "data:image/png;base64,not base64!",
        "data:image/png;base64,\N{SNOWMAN}",
        "data:image/png;charset=x;base64,AAAA",
        "data:image/png;base64," + "A" * (MAX_MEDIA_CHARS + 4),
    ],
)
def test_data_urls_are_checked(url: str) -> None:
    assert type(refusal(CHAT, **with_image(CHAT, url))) is InvalidRequest


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_a_picture_inside_the_request(path: str) -> None:
    fields = with_image(path, PNG)
    name = next(iter(fields))
    assert sent(path, **copy.deepcopy(fields))[name] == fields[name]
