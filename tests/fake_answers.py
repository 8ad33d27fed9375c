"""What the fake engine says, in the exact shapes of vLLM 0.32.0 (recorded from a real one): chat, completions,
embeddings and the error envelope. Knows no sockets; `fake_events.py` has the Responses and Messages shapes.

The text is always "<model>: <last user text>", a token is a whitespace-separated word, so a test can tell which
adapter answered and predict every count. (Real vLLM also counts the end-of-sequence token; this does not.) Logprobs of
/v1/completions follow from the model's name, the text so far and nothing else.
"""

from __future__ import annotations

import base64
import json
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests import fake_scores, fake_tokens
from tests.fake_wire import JSON, SSE, Reply

FINGERPRINT = "vllm-0.32.0-c0245e0d"
DONE = b"data: [DONE]\n\n"
Body = dict[str, Any]


def dump(value: Any) -> bytes:
    """JSON as pydantic writes it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def problem(message: str, kind: str = "BadRequestError", status: int = 400, param: str | None = None) -> Reply:
    """vLLM's error envelope; memory addresses and common paths are hidden as vLLM hides them."""
    message = re.sub(r"/(?:home|usr|opt|var|tmp|root|lib|mnt|srv)(?:/[\w.\-]+)+", "<path>", message)
    return Reply(status, dump({"error": {"message": message, "type": kind, "param": param, "code": status}}))


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that passed the model check: `model` is what the answer's `model` field will say."""

    body: Body
    model: str
    id: str
    created: int
    max_model_len: int
    fails_after: int | None = None  # events before the engine fails while generating
    speaker: str = ""  # whose weights answer, where the engine lies about them
    model_path: str = ""
    says: Mapping[str, str] = field(default_factory=dict)  # what it was told to say: last user text -> answer
    sure: float = fake_scores.PLAIN  # log-probability of every token of a prompt

    @property
    def voice(self) -> str:
        """The name whose weights make the text and its logprobs."""
        return self.speaker or self.model

    @property
    def stream(self) -> bool:
        return bool(self.body.get("stream"))


def text_of(content: Any) -> str:
    """The text of a message's content: a string, or parts with a `text`."""
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict) and "text" in part)
    return content if isinstance(content, str) else ""


@dataclass(frozen=True, slots=True)
class Draft:
    """What was generated for one choice: `words` joined are the text; with `tool` the words are its arguments."""

    words: list[str]
    finish: str
    stop_reason: str | None
    prompt_tokens: int
    tool: str | None = None

    @property
    def text(self) -> str:
        return "".join(self.words)

    def usage(self, made: int) -> Body:
        """Order of keys as on the wire."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + made,
            "completion_tokens": made,
        }


def draft(
    said: str,
    prompt: str,
    model: str,
    *,
    limit: int | None,
    stop: Any,
    tools: list[Body],
    chosen: Any,
    says: str | None = None,
) -> Draft:
    """Decide the answer: a tool call when there are tools to call, else the text, cut by `stop` and `limit`."""
    count = len(prompt.split())
    if tools and chosen != "none":
        named = chosen.get("function", chosen).get("name") if isinstance(chosen, dict) else None
        tool = next((tool for tool in tools if tool["name"] == named), tools[0])
        words = re.findall(r"\s*\S+", json.dumps(_arguments(tool.get("parameters") or {})))
        # As in OpenAI's API: "tool_calls" where the model chose, "stop" where the caller named the tool.
        return Draft(words, "stop" if named else "tool_calls", None, count, tool["name"])
    text, finish, reason = f"{model}: {said}" if says is None else says, "stop", None
    for mark in [stop] if isinstance(stop, str) else stop or []:
        if mark in text:
            text, reason = text[: text.index(mark)], mark
    words = re.findall(r"\s*\S+", text)
    if limit is not None and len(words) > limit:
        words, finish, reason = words[:limit], "length", None
    return Draft(words, finish, reason, count)


def _arguments(schema: Body) -> Body:
    """The first value that each property allows: always the same call for the same tool."""
    plain = {"integer": 1, "number": 1.5, "boolean": True, "array": [], "object": {}}
    found = schema.get("properties") or {}
    return {name: (rule.get("enum") or [plain.get(rule.get("type"), "text")])[0] for name, rule in found.items()}


def refusal(ask: Ask, prompt_tokens: int, limit: int | None) -> Reply | None:
    """vLLM's own checks of lengths, or None. `limit` is the caller's max_tokens."""
    most = ask.max_model_len
    if prompt_tokens > most:
        return problem(
            f"This model's maximum context length is {most} tokens. However, your prompt contains at least "
            f"{most + 1} input tokens, which exceeds this limit even without any output tokens. Please reduce the "
            f"length of the input prompt. (parameter=input_tokens, value={most + 1})",
            param="input_tokens",
        )
    if limit is not None and limit > most:
        return problem(
            f"max_tokens={limit} cannot be greater than max_model_len={most}. Please request fewer output tokens. "
            f"(parameter=max_tokens, value={limit})",
            param="max_tokens",
        )
    if limit is not None and limit < 1:
        message = f"max_tokens must be at least 1, got {limit}. (parameter=max_tokens, value={limit})"
        return problem(message, param="max_tokens")
    return None


def engine_failed() -> Reply:
    """The engine failed while generating, and nothing was sent yet."""
    return problem("Internal server error", "InternalServerError", 500)


def streamed(events: list[bytes], fails_after: int | None) -> Reply:
    """Chat and completions: a failure is an error event in the 200, and [DONE] comes all the same."""
    if fails_after is not None:
        error = {"message": "Internal server error", "type": "InternalServerError", "param": None, "code": 500}
        # json.dumps with its spaces here, pydantic without them elsewhere: so it is in vLLM.
        events = [*events[:fails_after], b"data: " + json.dumps({"error": error}).encode() + b"\n\n", DONE]
    return Reply(content_type=SSE, events=events)


def _data(value: Body) -> bytes:
    return b"data: " + dump(value) + b"\n\n"


def _options(body: Body) -> tuple[bool, bool]:
    options = body.get("stream_options") or {}
    usage = bool(options.get("include_usage"))
    return usage, usage and bool(options.get("continuous_usage_stats"))


def chat(ask: Ask) -> Reply:
    """/v1/chat/completions."""
    body = ask.body
    messages = body.get("messages") or []
    if not messages:
        return problem("Cannot apply chat template to an empty conversation. Provide at least one message.")
    said = next((text_of(m.get("content")) for m in reversed(messages) if m.get("role") == "user"), "")
    prompt = " ".join(text_of(m.get("content")) for m in messages)
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    if (wrong := refusal(ask, len(prompt.split()), limit)) is not None:
        return wrong
    # After a tool's result comes text, so that an agent's loop ends.
    tools = [] if messages[-1].get("role") == "tool" else [t["function"] for t in body.get("tools") or []]
    stop, chosen = body.get("stop"), body.get("tool_choice")
    told = ask.says.get(said)
    made = draft(said, prompt, ask.voice, limit=limit, stop=stop, tools=tools, chosen=chosen, says=told)
    if ask.stream:
        return streamed(_chat_events(ask, made), ask.fails_after)
    return engine_failed() if ask.fails_after is not None else _chat_whole(ask, made)


def _tool_id(ask: Ask) -> str:
    return "chatcmpl-tool-" + ask.id[-16:]


def _chat_logprobs(body: Body, words: list[str]) -> Body | None:
    if not body.get("logprobs"):
        return None
    entries: list[Body] = []
    for word in words:
        one = {"token": word, "logprob": -0.5, "bytes": list(word.encode())}
        others = [{"token": f"{word}{i}", "logprob": -1.5 - i, "bytes": list(f"{word}{i}".encode())} for i in range(20)]
        entries.append({**one, "top_logprobs": [one, *others][: body.get("top_logprobs") or 0]})
    return {"content": entries}


def _chat_whole(ask: Ask, made: Draft) -> Reply:
    count = ask.body.get("n") or 1
    message: Body = {"role": "assistant", "content": made.text, "refusal": None, "annotations": None, "audio": None}
    message["function_call"] = None
    if made.tool is not None:
        message["content"] = None if made.finish == "tool_calls" else ""
        function = {"name": made.tool, "arguments": made.text}
        message["tool_calls"] = [{"id": _tool_id(ask), "type": "function", "function": function}]
    message["reasoning"] = None
    choice = {"message": message, "logprobs": _chat_logprobs(ask.body, made.words), "finish_reason": made.finish}
    choice |= {"stop_reason": made.stop_reason, "token_ids": None, "routed_experts": None}
    details = {"prompt_tokens_details": None, "completion_tokens_details": None}
    answer: Body = {"id": ask.id, "object": "chat.completion", "created": ask.created, "model": ask.model}
    answer |= {"choices": [{"index": i, **choice} for i in range(count)], "service_tier": None}
    answer |= {"system_fingerprint": FINGERPRINT, "usage": made.usage(count * len(made.words)) | details}
    answer |= {"prompt_logprobs": None, "prompt_token_ids": _prompt_ids(ask), "prompt_text": None}
    answer |= dict.fromkeys(("kv_transfer_params", "ec_transfer_params", "metrics"))
    return Reply(body=dump(answer))


def _prompt_ids(ask: Ask) -> list[int] | None:
    if not ask.body.get("return_token_ids"):
        return None
    messages = ask.body["messages"]
    texts = [text_of(message.get("content")) for message in messages]
    return fake_scores.ids(fake_scores.rendered(messages, texts, ask.body))


def _chat_deltas(ask: Ask, made: Draft) -> list[tuple[Body, list[str]]]:
    """(delta, its tokens) in order; a natural stop has a last delta without text."""
    if made.tool is None:
        return [({"content": w}, [w]) for w in made.words] + ([({"content": ""}, [])] if made.finish == "stop" else [])
    opening = {"id": _tool_id(ask), "type": "function", "index": 0, "function": {"name": made.tool}}
    parts = [({"content": None, "tool_calls": [opening]}, list[str]())]
    for word in made.words:
        parts.append(({"content": None, "tool_calls": [{"index": 0, "function": {"arguments": word}}]}, [word]))
    return [*parts, ({}, [])]


def _chat_events(ask: Ask, made: Draft) -> list[bytes]:
    usage, continuous = _options(ask.body)
    count = ask.body.get("n") or 1
    head = {"id": ask.id, "object": "chat.completion.chunk", "created": ask.created, "model": ask.model}

    def so_far(tokens: int) -> Body:
        return {"usage": made.usage(tokens) | {"completion_tokens_details": None}} if continuous else {}

    def piece(index: int, delta: Body, logprobs: Body | None, finish: str | None) -> Body:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        if finish is not None:
            choice["stop_reason"] = made.stop_reason
        return head | {"choices": [choice | {"token_ids": None}]}

    events = []
    for index in range(count):
        first = {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        blank = {"prompt_token_ids": None, "prompt_text": None}
        events.append(_data(head | {"choices": [first]} | so_far(0) | blank))
    deltas, tokens = _chat_deltas(ask, made), 0
    for at, (delta, words) in enumerate(deltas):
        tokens += len(words)
        last = at == len(deltas) - 1
        for index in range(count):
            logprobs = _chat_logprobs(ask.body, words) if words else None
            event = piece(index, delta, logprobs, made.finish if last else None)
            if last and not usage:
                event["system_fingerprint"] = FINGERPRINT
            events.append(_data(event | so_far(tokens)))
    if usage:
        end = {"choices": [], "usage": made.usage(count * tokens), "system_fingerprint": FINGERPRINT}
        events.append(_data(head | end))
    return [*events, DONE]


def completions(ask: Ask) -> Reply:
    """/v1/completions: `n` choices for every prompt, numbered through."""
    body, given = ask.body, ask.body.get("prompt")
    prompts = given if isinstance(given, list) and given and isinstance(given[0], str) else [given]
    limit = body.get("max_tokens", 16)
    made: list[Draft] = []
    for prompt in prompts:
        said = prompt if isinstance(prompt, str) else " ".join(map(str, prompt or []))
        if (wrong := refusal(ask, len(said.split()), limit)) is not None:
            return wrong
        made += [draft(said, said, ask.voice, limit=limit, stop=body.get("stop"), tools=[], chosen=None)] * (
            body.get("n") or 1
        )
    total = {"prompt_tokens": sum(d.prompt_tokens for d in made) // (body.get("n") or 1)}
    total["completion_tokens"] = sum(len(d.words) for d in made)
    if ask.stream:
        return streamed(_completion_events(ask, made, total), ask.fails_after)
    if ask.fails_after is not None:
        return engine_failed()
    choices = [_completion_choice(ask, index, one) for index, one in enumerate(made)]
    answer: Body = {"id": ask.id, "object": "text_completion", "created": ask.created, "model": ask.model}
    answer |= {"choices": choices, "service_tier": None, "system_fingerprint": FINGERPRINT, "usage": _summed(total)}
    answer["usage"] |= {"prompt_tokens_details": None, "completion_tokens_details": None}
    return Reply(body=dump(answer | dict.fromkeys(("kv_transfer_params", "ec_transfer_params", "metrics"))))


def _summed(total: Body) -> Body:
    prompt, made = total["prompt_tokens"], total["completion_tokens"]
    return {"prompt_tokens": prompt, "total_tokens": prompt + made, "completion_tokens": made}


def _completion_logprobs(ask: Ask, words: list[str], before: str = "") -> Body | None:
    asked = ask.body.get("logprobs")
    if asked is None or not words:
        return None
    texts = [before + "".join(words[:at]) for at in range(len(words))]
    own = [-(zlib.crc32(f"{ask.voice}|{text}".encode()) % 1000) / 1000 for text in texts]
    as_ids = bool(ask.body.get("return_tokens_as_token_ids"))
    tops = []
    for word, first in zip(words, own, strict=True):
        others = {_shown(f"{word}{i}", as_ids): round(first - 1 - i, 3) for i in range(asked - 1)}
        tops.append({_shown(word, as_ids): first} | others)
    tokens = [_shown(word, as_ids) for word in words]
    offsets = [len(text) for text in texts]
    return {"text_offset": offsets, "token_logprobs": own, "tokens": tokens, "top_logprobs": tops}


def _shown(word: str, as_id: bool) -> str:
    return f"token_id:{zlib.crc32(word.encode())}" if as_id else word


def _completion_choice(ask: Ask, index: int, one: Draft) -> Body:
    echo = text_of(ask.body.get("prompt")) if ask.body.get("echo") else ""
    choice: Body = {"index": index, "text": echo + one.text, "logprobs": _completion_logprobs(ask, one.words)}
    choice |= {"finish_reason": one.finish, "stop_reason": one.stop_reason, "token_ids": None}
    given = ask.body.get("prompt")
    tokens = fake_scores.ids(given) if isinstance(given, str) else given
    asked = isinstance(tokens, list) and bool(tokens) and isinstance(tokens[0], int)
    logprobs = ask.body.get("prompt_logprobs") is not None and asked
    choice |= {"prompt_logprobs": fake_scores.prompt_logprobs(tokens or [], ask.sure) if logprobs else None}
    choice |= {"prompt_token_ids": tokens if asked and ask.body.get("return_token_ids") else None}
    return choice | {"routed_experts": None}


def _completion_events(ask: Ask, made: list[Draft], total: Body) -> list[bytes]:
    usage, continuous = _options(ask.body)
    head = {"id": ask.id, "object": "text_completion", "created": ask.created, "model": ask.model}
    events = []
    for at in range(max(len(one.words) + (one.finish == "stop") for one in made)):
        for index, one in enumerate(made):
            if at >= len(one.words) + (one.finish == "stop"):
                continue
            words = one.words[at : at + 1]
            last = at == len(one.words) + (one.finish == "stop") - 1
            logprobs = _completion_logprobs(ask, words, "".join(one.words[:at]))
            choice: Body = {"index": index, "text": "".join(words), "logprobs": logprobs}
            choice |= {"finish_reason": one.finish if last else None, "stop_reason": one.stop_reason if last else None}
            event = head | {"choices": [choice | {"prompt_token_ids": None, "token_ids": None}]}
            if last and not usage:
                event["system_fingerprint"] = FINGERPRINT
            done = min(at + 1, len(one.words))
            events.append(_data(event | ({"usage": one.usage(done)} if continuous else {})))
    if usage:
        events.append(_data(head | {"choices": [], "usage": _summed(total), "system_fingerprint": FINGERPRINT}))
    return [*events, DONE]


def embeddings(ask: Ask) -> Reply:
    """/v1/embeddings: vectors of 8 numbers made from the text and the model, as floats or base64 float32."""
    given = ask.body.get("input")
    inputs = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    if any(one in ("", None, []) for one in inputs):
        return problem("The decoder prompt cannot be empty")
    if (asked := ask.body.get("dimensions")) is not None:
        return problem(
            f"Model '{ask.model}' does not support Matryoshka embeddings; dimensions must be unset "
            f"(received dimensions={asked})."
        )
    data, count = [], 0
    for index, one in enumerate(inputs):
        said = one if isinstance(one, str) else " ".join(map(str, one))
        count += len(said.split())
        if (wrong := refusal(ask, len(said.split()), None)) is not None:
            return wrong
        # Halves and quarters are exact in float32, so both encodings give equal numbers.
        vector = [((sum(f"{ask.voice}{said}".encode()) * (at + 3)) % 64 - 32) / 64 for at in range(8)]
        coded: Any = vector
        if ask.body.get("encoding_format") == "base64":
            coded = base64.b64encode(struct.pack("<8f", *vector)).decode()
        data.append({"index": index, "object": "embedding", "embedding": coded})
    answer = {"id": ask.id, "object": "list", "created": ask.created, "model": ask.model, "data": data}
    usage = {"prompt_tokens": count, "total_tokens": count, "completion_tokens": 0}
    answer["usage"] = usage | {"prompt_tokens_details": None, "completion_tokens_details": None}
    return engine_failed() if ask.fails_after is not None else Reply(body=dump(answer), content_type=JSON)


def tokenize(ask: Ask) -> Reply:
    """/tokenize: by the base's own tokenizer and chat template where `--model` is a folder with them."""
    messages = ask.body.get("messages")
    if messages is None:
        tokens: list[int] | None = fake_tokens.of_text(ask.model_path, str(ask.body.get("prompt") or ""))
    elif messages:
        kwargs = ask.body.get("chat_template_kwargs") or {}
        tokens = fake_tokens.of_chat(ask.model_path, messages, ask.body.get("tools"), kwargs)
    else:
        return problem("Cannot apply chat template to an empty conversation. Provide at least one message.")
    if tokens is None:
        return problem("The chat template refuses this conversation.")
    answer = {"count": len(tokens), "max_model_len": ask.max_model_len, "tokens": tokens, "token_strs": None}
    return Reply(body=dump(answer))
