"""Streams that a real vLLM 0.32.0 wrote, byte for byte, and what they say in numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gateway.v1.dialect import BY_PATH, Dialect

FOLDER = Path(__file__).with_name("streams")


@dataclass(frozen=True, slots=True)
class Recorded:
    name: str
    path: str  # of the route
    prompt_tokens: int
    completion_tokens: int
    deltas: int  # events with content, the finishing one included

    @property
    def data(self) -> bytes:
        return (FOLDER / f"{self.name}.sse").read_bytes()

    @property
    def dialect(self) -> Dialect:
        return BY_PATH[self.path]


CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
STREAMS = (
    Recorded("chat_continuous", CHAT, 19, 3, 3),
    Recorded("chat_two_answers", CHAT, 19, 6, 3),
    Recorded("chat_plain", CHAT, 0, 3, 3),  # no usage was asked for: the deltas are all there is
    Recorded("completions_continuous", COMPLETIONS, 5, 3, 3),
    Recorded("responses", "/v1/responses", 19, 3, 2),
    Recorded("responses_tool", "/v1/responses", 19, 90, 1),
    Recorded("messages", "/v1/messages", 19, 3, 2),
)
