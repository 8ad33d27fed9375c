"""/v1/feedback: what a caller says about an answer, of keys that may; and DELETE for whoever sent it.

Only keys with the scope `feedback` or `training` may: what they send becomes training data, so an operator says who is
trusted with that. Must not know where it is kept. What is sent is neither logged nor repeated in a refusal.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from adapters.errors import InvalidRequest, NotFound, ServiceError
from gateway.errors import Forbidden, RateLimited, RequestTooLarge, UnsupportedMedia, UnsupportedParameter
from gateway.settings import FeedbackBounds
from gateway.v1 import wire
from gateway.v1.limits import Bucket
from gateway.v1.proxy import Proxy
from gateway.v1.routing import resolve
from gateway.v1.snapshot import Key
from training.feedback import FeedbackService
from training.store_feedback import Feedback

SCOPES = frozenset({"feedback", "training"})
PREFIX = "fb-"
MAX_DEPTH = 32
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")

Answer = Callable[[int, bytes], Response]  # status, JSON body


def _text(value: object) -> object:
    """OpenAI's list of text parts as one text."""
    if not isinstance(value, list):
        return value
    texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in value]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError("only text can be trained on: send a text, or a list of text parts")
    return "".join(str(text) for text in texts)


Text = Annotated[str, BeforeValidator(_text)]


class Function(BaseModel):
    name: str = Field(min_length=1, max_length=64)
    arguments: str


class Call(BaseModel):
    id: str | None = Field(None, max_length=128)
    type: Literal["function"] = "function"
    function: Function


class Message(BaseModel):
    """As in chat completions; what an answer's message has beside these (`refusal`, `annotations`, …) is left out."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | None = None
    tool_calls: list[Call] | None = Field(None, max_length=64)
    tool_call_id: str | None = Field(None, max_length=128)

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if not (self.content or "").strip() and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("a message needs content")
        return self


class Said(BaseModel):
    """The body. messages: the conversation before the answer."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1, max_length=141)
    messages: list[Message] = Field(min_length=1, max_length=256)
    tools: list[dict[str, Any]] | None = Field(None, max_length=128)
    answer: Text | None = None
    correction: Text | None = None
    rating: Literal["good", "bad"] | None = None
    note: str | None = Field(None, max_length=2000)
    user: str | None = Field(None, max_length=256)

    @model_validator(mode="after")
    def _is_of_use(self) -> Said:
        if self.messages[-1].role not in ("user", "tool"):
            raise ValueError("`messages` ends with what was asked (role user or tool); the answer goes into `answer`")
        if self.correction is None and self.rating is None:
            raise ValueError("send `correction` (the right answer) or `rating` (good or bad)")
        if self.correction is not None and not self.correction.strip():
            raise ValueError("`correction` is empty")
        if self.correction is None and not (self.answer or "").strip():
            raise ValueError("a `rating` needs the `answer` that it is about")
        if self.correction is not None and self.rating == "good":
            raise ValueError("an answer that is good needs no `correction`: send one of both")
        return self


class FeedbackRoutes:
    """monotonic: seconds, for what a key may send in a minute."""

    def __init__(
        self,
        proxy: Proxy,
        feedback: FeedbackService,
        bounds: FeedbackBounds,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._proxy = proxy
        self._feedback = feedback
        self._bounds = bounds
        self._monotonic = monotonic
        self._buckets: dict[str, Bucket] = {}  # by key: as many as there are keys with the scope

    def router(self, answer: Answer) -> APIRouter:
        """answer: makes the response, with what every one of this port has."""
        router = APIRouter()

        async def add(request: Request) -> Response:
            key = self._caller(request)
            self._count(key)
            return answer(200, await self.add(key, await self._body(request)))

        async def remove(feedback_id: str, request: Request) -> Response:
            return answer(200, await self.remove(self._caller(request), feedback_id))

        router.add_api_route("/v1/feedback", add, methods=["POST"], response_model=None)
        router.add_api_route("/v1/feedback/{feedback_id}", remove, methods=["DELETE"], response_model=None)
        return router

    async def add(self, key: Key, raw: bytes) -> bytes:
        """Keep it; ModelNotFound where the key may not use the model, InvalidRequest, FeedbackFull."""
        said = _read(raw)
        target = resolve(self._proxy.snapshot, key, said.model)
        # Only `name@version` says which version answered: a public name may have moved since, or have a canary.
        version = target.version if "@" in said.model else None
        body = said.model_dump(exclude={"model"}, exclude_none=True)
        return wire.encode(_view(await self._feedback.add(key.id, target.name, version, body)))

    async def remove(self, key: Key, feedback_id: str) -> bytes:
        """Forget what this key sent; NotFound, also for what another one did."""
        gone = await self._feedback.remove(number_of(feedback_id), key.id)
        return wire.encode({"id": f"{PREFIX}{gone.id}", "object": "feedback", "deleted": True})

    async def _body(self, request: Request) -> bytes:
        kinds = request.headers.getlist("content-type")
        if len(kinds) != 1 or kinds[0].split(";")[0].strip().lower() != "application/json":
            raise UnsupportedMedia("Send the body as JSON, with `Content-Type: application/json`.")
        raw = await request.body()  # the connection bounds it, too
        if len(raw) > self._bounds.max_body_bytes:
            raise RequestTooLarge(
                f"Feedback is at most {self._bounds.max_body_bytes} bytes. Leave out the beginning of the conversation."
            )
        return raw

    def _caller(self, request: Request) -> Key:
        proxy = self._proxy
        key = proxy.auth.identify(dict(request.scope["headers"]), proxy.snapshot.keys, proxy.wall())
        if not SCOPES & key.scopes:
            raise Forbidden(
                "This key may not send feedback, because it may become training data. "
                "An operator allows it with the scope `feedback`.",
                retryable=False,
            )
        return key

    def _count(self, key: Key) -> None:
        now = self._monotonic()
        bucket = self._buckets.get(key.id)
        if bucket is None:
            bucket = self._buckets[key.id] = Bucket(self._bounds.per_minute, now)
        if bucket.refill(now) < 1:
            wait_s = max(1, math.ceil(bucket.wait_for(1)))
            raise RateLimited(
                f"This key sends more than {self._bounds.per_minute} pieces of feedback a minute. Try again later.",
                retry_after_s=wait_s,
            )
        bucket.level -= 1


def number_of(feedback_id: str) -> int:
    """`fb-12` → 12; NotFound for what is no id."""
    digits = feedback_id.removeprefix(PREFIX)
    if not (feedback_id.startswith(PREFIX) and digits.isascii() and digits.isdigit() and 0 < len(digits) < 10):
        raise NotFound("There is no feedback with this id.", param="id")
    return int(digits)


def _view(made: Feedback) -> dict[str, Any]:
    """What was kept, without the words."""
    return {
        "id": f"{PREFIX}{made.id}",
        "object": "feedback",
        "created_at": int(made.at),
        "model": made.model,
        "version": made.version,
    }


def _read(raw: bytes) -> Said:
    try:
        return Said.model_validate(wire.parse(raw, MAX_DEPTH))
    except ValidationError as error:
        raise _refusal(error) from None


def _refusal(error: ValidationError) -> ServiceError:
    """The first problem: where, and which rule; never what was sent."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    parts = [str(part) for part in first["loc"]]
    field = ".".join(parts) if parts and all(_FIELD.fullmatch(p) or p.isdigit() for p in parts) else None
    named = f" `{field}`" if field else ""
    if first["type"] == "extra_forbidden":
        return UnsupportedParameter(f"Unknown parameter{named}. docs/feedback.md lists what is taken.", param=field)
    if first["type"] == "missing":
        return InvalidRequest(f"The parameter{named} is required.", param=field)
    rule = str(first["msg"]).removeprefix("Value error, ")
    about = f"Invalid value for{named}: " if named else ""
    return InvalidRequest(f"{about}{rule if about else rule[:1].upper() + rule[1:]}.", param=field)
