"""The fake engine's Responses and Messages answers, in the exact shapes of vLLM 0.32.0 (recorded from a real one).

Knows no sockets. An engine that fails in the middle shows itself differently on each route: a Responses stream just
breaks off (vLLM's own error event does not pass its own validation), a Messages stream gets an `event: error`.
"""

from __future__ import annotations

import json
from typing import Any

from tests.fake_answers import Ask, Body, Draft, draft, dump, engine_failed, problem, refusal, text_of
from tests.fake_wire import SSE, Reply


def _event(body: Body) -> bytes:
    return b"event: " + str(body["type"]).encode() + b"\ndata: " + dump(body) + b"\n\n"


def responses(ask: Ask) -> Reply:
    """/v1/responses."""
    body = ask.body
    if (previous := body.get("previous_response_id")) is not None:
        return problem(f"Response with id '{previous}' not found.", "invalid_request_error", 404, "response_id")
    given = body.get("input")
    items: list[Any] = [{"role": "user", "content": given}] if isinstance(given, str) else list(given or [])
    said = next((text_of(one.get("content")) for one in reversed(items) if one.get("role") == "user"), "")
    prompt = " ".join([body.get("instructions") or "", *(text_of(one.get("content")) for one in items)])
    limit = body.get("max_output_tokens")
    if (wrong := refusal(ask, len(prompt.split()), limit)) is not None:
        return wrong
    answered = items and items[-1].get("type") == "function_call_output"
    tools = [] if answered else [tool for tool in body.get("tools") or [] if tool.get("type") == "function"]
    made = draft(said, prompt, ask.voice, limit=limit, stop=None, tools=tools, chosen=body.get("tool_choice"))
    if not ask.stream:
        done = _response(ask, made, [_item(ask, made, "completed")])
        return engine_failed() if ask.fails_after is not None else Reply(body=dump(done))
    events = _response_events(ask, made)
    if ask.fails_after is None:
        return Reply(content_type=SSE, events=events)
    return Reply(content_type=SSE, events=events[: max(2, ask.fails_after)], broken=True)


def _response(ask: Ask, made: Draft, output: list[Body] | None) -> Body:
    """The response object; `output` None while it is in progress."""
    body, done = ask.body, output is not None
    cut = done and made.finish == "length"
    taken: Body = {
        "cached_tokens": 0,
        "cache_write_tokens": 0,
        "input_tokens_per_turn": [],
        "cached_tokens_per_turn": [],
    }
    given: Body = {"reasoning_tokens": 0, "tool_output_tokens": 0}
    given |= {"output_tokens_per_turn": [], "tool_output_tokens_per_turn": []}
    usage: Body = {"input_tokens": made.prompt_tokens, "input_tokens_details": taken}
    usage |= {"output_tokens": len(made.words), "output_tokens_details": given}
    usage["total_tokens"] = made.prompt_tokens + len(made.words)
    blank = dict.fromkeys(("allowed_callers", "async", "defer_loading", "description", "output_schema"))
    order = ("name", "parameters", "strict", "type")
    tools = [{key: tool.get(key) for key in order} | blank for tool in body.get("tools") or []]
    return {
        "id": ask.id,
        "created_at": ask.created,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": body.get("instructions"),
        "metadata": body.get("metadata"),
        "model": ask.model,
        "object": "response",
        "output": output or [],
        "parallel_tool_calls": body.get("parallel_tool_calls", True),
        "temperature": float(body.get("temperature", 1.0)),
        "tool_choice": body.get("tool_choice", "auto" if tools else "none"),
        "tools": tools,
        "top_p": float(body.get("top_p", 1.0)),
        "background": False,
        "max_output_tokens": body.get("max_output_tokens", ask.max_model_len - made.prompt_tokens),
        "max_tool_calls": None,
        "previous_response_id": None,
        "prompt": None,
        "reasoning": None,
        "service_tier": "auto",
        "status": ("incomplete" if cut else "completed") if done else "in_progress",
        "text": body.get("text"),
        "top_logprobs": None,
        "truncation": "disabled",
        "usage": usage if done else None,
        "user": None,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        **dict.fromkeys(("kv_transfer_params", "ec_transfer_params", "input_messages", "output_messages")),
    }


def _item(ask: Ask, made: Draft, status: str) -> Body:
    """The one output item: a message or a function call, empty while in progress."""
    done = status == "completed"
    if made.tool is not None:
        item: Body = {
            "arguments": made.text if done else "",
            "call_id": "chatcmpl-tool-" + ask.id[-16:],
            "name": made.tool,
        }
        item |= {"type": "function_call", "id": "fc_" + ask.id[-16:]}
        return item | dict.fromkeys(("async", "caller", "namespace")) | {"status": status}
    part: Body = {"annotations": [], "text": made.text, "type": "output_text", "logprobs": None}
    item = {"id": "msg_" + ask.id[-16:], "content": [part] if done else [], "role": "assistant", "status": status}
    return item | {"type": "message", "phase": None}


def _response_events(ask: Ask, made: Draft) -> list[bytes]:
    item = _item(ask, made, "completed")
    where = {"item_id": item["id"], "output_index": 0}
    steps: list[Body] = [{"response": _response(ask, made, None), "type": "response.created"}]
    steps.append({"response": _response(ask, made, None), "type": "response.in_progress"})
    steps.append({"item": _item(ask, made, "in_progress"), "output_index": 0, "type": "response.output_item.added"})
    if made.tool is not None:
        kind = "response.function_call_arguments"
        steps += [{"delta": word, **where, "type": f"{kind}.delta"} for word in made.words]
        steps.append({"arguments": made.text, **where, "type": f"{kind}.done", "name": made.tool})
    else:
        empty = {"annotations": [], "text": "", "type": "output_text", "logprobs": []}
        steps.append({"content_index": 0, **where, "part": empty, "type": "response.content_part.added"})
        message = {"item_id": item["id"], "logprobs": [], "output_index": 0}
        kind = "response.output_text"
        steps += [{"content_index": 0, "delta": word, **message, "type": f"{kind}.delta"} for word in made.words]
        steps.append({"content_index": 0, **message, "text": made.text, "type": f"{kind}.done"})
        part = item["content"][0]
        steps.append({"content_index": 0, **where, "part": part, "type": "response.content_part.done"})
    steps.append({"item": item, "output_index": 0, "type": "response.output_item.done"})
    # "completed" also where max_output_tokens cut it: vLLM has no response.incomplete.
    steps.append({"response": _response(ask, made, [item]), "type": "response.completed"})
    return [_event(_numbered(step, number)) for number, step in enumerate(steps)]


def _numbered(step: Body, number: int) -> Body:
    """With its sequence number where pydantic's field order has it."""
    late = ("text", "type", "name")
    early = {key: value for key, value in step.items() if key not in late}
    return early | {"sequence_number": number} | {key: step[key] for key in late if key in step}


def messages(ask: Ask) -> Reply:
    """/v1/messages: errors of the engine in Anthropic's envelope, errors of validation in OpenAI's, as in vLLM."""
    body = ask.body
    prompt, said = _prompt(body)
    if (wrong := refusal(ask, len(prompt.split()), body.get("max_tokens"))) is not None:
        return anthropic(wrong)
    last = (body.get("messages") or [{}])[-1].get("content")
    answered = isinstance(last, list) and any(part.get("type") == "tool_result" for part in last)
    tools = [] if answered else [{"parameters": t.get("input_schema"), **t} for t in body.get("tools") or []]
    chosen = body.get("tool_choice") or {}
    named = {"name": chosen["name"]} if chosen.get("type") == "tool" else chosen.get("type")
    made = draft(
        said,
        prompt,
        ask.voice,
        limit=body.get("max_tokens"),
        stop=body.get("stop_sequences"),
        tools=tools,
        chosen=named,
    )
    if ask.stream:
        return _message_stream(ask, made)
    return anthropic(engine_failed()) if ask.fails_after is not None else Reply(body=dump(_message(ask, made)))


def count_tokens(ask: Ask) -> Reply:
    """/v1/messages/count_tokens."""
    count = len(_prompt(ask.body)[0].split())
    return Reply(body=dump({"input_tokens": count, "context_management": {"original_input_tokens": count}}))


def anthropic(reply: Reply) -> Reply:
    """The same error in Anthropic's envelope (type kept as vLLM names it, no code, no param)."""
    error = json.loads(reply.body)["error"]
    return Reply(reply.status, dump({"type": "error", "error": {"type": error["type"], "message": error["message"]}}))


def _prompt(body: Body) -> tuple[str, str]:
    """(the whole prompt, the last user text)."""
    said = [text_of(one.get("content")) for one in body.get("messages") or [] if one.get("role") == "user"]
    texts = [text_of(body.get("system")), *(text_of(one.get("content")) for one in body.get("messages") or [])]
    return " ".join(texts), said[-1] if said else ""


def _stop_reason(made: Draft) -> str:
    if made.tool is not None:
        return "tool_use"
    if made.finish == "length":
        return "max_tokens"
    return "stop_sequence" if made.stop_reason is not None else "end_turn"


def _message(ask: Ask, made: Draft) -> Body:
    """Without a stream null fields are left out, `stop_sequence` too."""
    content: Body = {"type": "text", "text": made.text}
    if made.tool is not None:
        content = {"type": "tool_use", "id": "chatcmpl-tool-" + ask.id[-16:], "name": made.tool}
        content["input"] = json.loads(made.text)
    answer = {"id": ask.id, "type": "message", "role": "assistant", "content": [content], "model": ask.model}
    answer |= {"stop_reason": _stop_reason(made)}
    answer |= {} if made.stop_reason is None else {"stop_sequence": made.stop_reason}
    return answer | {"usage": {"input_tokens": made.prompt_tokens, "output_tokens": len(made.words)}}


def _message_stream(ask: Ask, made: Draft) -> Reply:
    usage = {"input_tokens": made.prompt_tokens, "output_tokens": 0}
    head = {"id": ask.id, "type": "message", "role": "assistant", "content": [], "model": ask.model}
    steps: list[Body] = [
        {"type": "message_start", "message": head | {"stop_reason": None, "stop_sequence": None, "usage": usage}}
    ]
    block: Body = {"type": "text", "text": ""}
    deltas = [{"type": "text_delta", "text": word} for word in made.words]
    if made.tool is not None:
        block = {"type": "tool_use", "id": "chatcmpl-tool-" + ask.id[-16:], "name": made.tool, "input": {}}
        deltas = [{"type": "input_json_delta", "partial_json": word} for word in made.words]
    steps.append({"type": "content_block_start", "content_block": block, "index": 0})
    steps += [{"type": "content_block_delta", "delta": delta, "index": 0} for delta in deltas]
    steps.append({"type": "content_block_stop", "index": 0})
    end = {"stop_reason": _stop_reason(made), "stop_sequence": made.stop_reason}
    steps.append({"type": "message_delta", "delta": end, "usage": usage | {"output_tokens": len(made.words)}})
    steps.append({"type": "message_stop"})
    if ask.fails_after is not None:
        # vLLM reads its own error event as a chat chunk, which it is not: this text is what then comes out.
        text = "2 validation errors for ChatCompletionStreamResponse\nmodel\n  Field required [type=missing]"
        steps = steps[: ask.fails_after]
        steps.append({"type": "error", "error": {"type": "internal_error", "message": text}})
    return Reply(content_type=SSE, events=[_event(step) for step in steps])
