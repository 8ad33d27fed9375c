"""The fake engine's routes: which answer belongs to which request, and vLLM's refusals of wrong ones.

Knows no sockets and no faults: a request in, a reply out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests import fake_answers, fake_events
from tests.fake_adapters import Adapters, missing_fields
from tests.fake_answers import Ask, dump, problem
from tests.fake_scores import PLAIN
from tests.fake_slots import Loaded
from tests.fake_wire import Reply, Seen

INFERENCE: dict[str, tuple[str, Callable[[Ask], Reply]]] = {
    "/v1/chat/completions": ("chatcmpl", fake_answers.chat),
    "/v1/completions": ("cmpl", fake_answers.completions),
    "/v1/embeddings": ("embd", fake_answers.embeddings),
    "/v1/responses": ("resp", fake_events.responses),
    "/v1/messages": ("chatcmpl", fake_events.messages),
    "/v1/messages/count_tokens": ("count", fake_events.count_tokens),
    "/tokenize": ("tokenize", fake_answers.tokenize),
    "/invocations": ("cmpl", fake_answers.completions),
}
LORA = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
GETS = ("/health", "/ping", "/version", "/metrics", "/v1/models")


@dataclass(slots=True)
class Routes:
    """Everything that decides an answer, the load aside (that is passed in)."""

    adapters: Adapters
    max_model_len: int
    api_key: str | None
    clock: Callable[[], float]
    shows_weights: bool = False
    asked: int = 0
    lies: dict[str | None, str] = field(default_factory=dict)
    says: dict[str, dict[str, str]] = field(default_factory=dict)
    sure: dict[str, float] = field(default_factory=dict)

    def reply(
        self,
        seen: Seen,
        body: Any,
        *,
        live: int,
        fails_after: int | None,
        used: Loaded | None = None,
        weights: str = "",
    ) -> Reply:
        """The answer to `seen`; `body` is what `parsed` made of it.

        used: the adapter whose slot it has, listed still or not; weights: their digest.
        """
        # Only these prefixes are guarded: /tokenize and /invocations are open on a real engine too.
        guarded = seen.path.startswith(("/v1", "/v2", "/inference", "/cohere"))
        if self.api_key is not None and guarded and seen.header("authorization") != f"Bearer {self.api_key}":
            return Reply(401, b'{"error":"Unauthorized"}', headers=[])
        if seen.path in GETS:
            return self._get(seen.path, live) if seen.method == "GET" else _not_allowed("GET")
        if seen.path not in INFERENCE and seen.path not in LORA:
            return Reply(404, b'{"detail":"Not Found"}')
        if seen.method != "POST":
            return _not_allowed("POST")
        if isinstance(body, Reply):
            return body
        if seen.path in LORA:
            return self.adapters.load(body) if seen.path == LORA[0] else self.adapters.unload(body)
        return self._infer(seen, body, fails_after, used, weights)

    def _infer(
        self, seen: Seen, body: dict[str, Any], fails_after: int | None, used: Loaded | None, weights: str
    ) -> Reply:
        prefix, answer = INFERENCE[seen.path]
        if seen.path == "/invocations" and "messages" in body:
            prefix, answer = INFERENCE["/v1/chat/completions"]
        required = ("messages", "max_tokens") if seen.path == "/v1/messages" else ()
        if missing := [key for key in required if key not in body]:
            return missing_fields(missing, len(body))
        model = used.name if used is not None else self.adapters.resolve(body.get("model"))
        if isinstance(model, Reply) and model.status == 404 and seen.path == "/v1/embeddings":
            return problem(f"The model `{body['model']}` does not exist.", "NotFoundError", 404)
        if isinstance(model, Reply):
            return fake_events.anthropic(model) if seen.path.startswith("/v1/messages") else model
        self.asked += 1
        own = f"{self.asked:016x}"
        # vLLM takes the caller's X-Request-Id into the id, except on Responses.
        name = f"resp_{own}" if prefix == "resp" else f"{prefix}-{seen.header('x-request-id') or own}"
        speaker = self._speaker(model, weights)
        told, sure = self.says.get(model, {}), self.sure.get(model, PLAIN)
        now, path = int(self.clock()), self.adapters.model_path
        return answer(Ask(body, model, name, now, self.max_model_len, fails_after, speaker, path, told, sure))

    def _speaker(self, model: str, weights: str) -> str:
        adapter = model not in self.adapters.bases
        own = f"{model}#{weights}#{self.adapters.model_path}" if adapter and self.shows_weights else model
        return self.lies.get(model, self.lies.get(None, own) if adapter else own)

    def _get(self, path: str, live: int) -> Reply:
        match path:
            case "/version":
                return Reply(body=dump({"version": "0.32.0"}))
            case "/v1/models":
                return self.adapters.models(int(self.clock()), self.max_model_len)
            case "/metrics":
                text = self._metrics(live).encode()
                return Reply(body=text, content_type="text/plain; version=1.0.0; charset=utf-8")
            case _:
                return Reply(content_type=None)

    def _metrics(self, live: int) -> str:
        label = f'engine="0",model_name="{self.adapters.bases[0]}"'
        names = ",".join(self.adapters.loaded)
        slots = (
            "# HELP vllm:lora_requests_info Running stats on lora requests.\n"
            "# TYPE vllm:lora_requests_info gauge\n"
            f'vllm:lora_requests_info{{max_lora="{self.adapters.slots.count}",running_lora_adapters="{names}",'
            f'waiting_lora_adapters=""}} {self.clock()}\n'
        )
        return (
            "# HELP vllm:num_requests_running Number of requests in model execution batches.\n"
            "# TYPE vllm:num_requests_running gauge\n"
            f"vllm:num_requests_running{{{label}}} {float(live)}\n"
            "# HELP vllm:num_requests_waiting Number of requests waiting to be processed.\n"
            "# TYPE vllm:num_requests_waiting gauge\n"
            f"vllm:num_requests_waiting{{{label}}} 0.0\n"
        ) + (slots if self.asked else "")  # not before the first request of all (tried)


def _not_allowed(method: str) -> Reply:
    return Reply(405, b'{"detail":"Method Not Allowed"}', headers=[("allow", method), ("vary", "Origin")])


def parsed(seen: Seen) -> Any:
    """The body as an object, or vLLM's refusal of it."""
    kind = (seen.header("content-type") or "").lower().partition(";")[0]
    if seen.method != "POST":
        return {}
    if kind != "application/json":
        text = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
        return problem(text, "Bad Request")
    try:
        body = seen.json()
    except (ValueError, RecursionError) as wrong:
        where, why = f"body.{getattr(wrong, 'pos', 0)}", getattr(wrong, "msg", "Expecting value")
        text = f"{{'type': 'json_invalid', 'loc': '{where}', 'msg': 'JSON decode error', 'input': '<dict of 0 items>', "
        return problem(f"1 validation error:\n  {text}'ctx': {{'error': '{why}'}}}}", "Bad Request", 400, where)
    if not isinstance(body, dict):
        text = "{'type': 'model_attributes_type', 'loc': 'body', 'msg': 'Input should be a valid dictionary or object "
        return problem(f"1 validation error:\n  {text}to extract fields from'}}", "Bad Request", 400, "body")
    return body
