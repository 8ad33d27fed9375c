"""A fake of OpenAI's service that is a real HTTP server: files, fine-tuning jobs and chat, as documented.

`async with FakeOpenAI() as service: … service.url, service.seen, service.faults`. A model in `gone` was shut down.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Mapping
from typing import Any, Self

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

KEY = "sk-fake-0123456789"
MODEL = "ft:gpt-4o-mini-2024-07-18:acme:shop:AbCdEf12"
CHECKPOINT = f"{MODEL}:ckpt-step-10"
TABLE = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n1,2.5,0.4,,\n2,1.5,0.6,,\n"


class FakeOpenAI:
    """faults: answers to the next chat requests in place of a completion: status, headers, error; or a whole response.

    says: the words of a completion to a request; without it, what was asked is repeated. finish: why it ends.
    """

    def __init__(self) -> None:
        self.jobs: list[dict[str, Any]] = []  # newest first, as the service lists them
        self.files: dict[str, tuple[dict[str, Any], bytes]] = {}
        self.checkpoints: dict[str, list[dict[str, Any]]] = {}
        self.gone: set[str] = set()
        self.faults: list[tuple[int, Mapping[str, str], dict[str, Any]] | Response] = []
        self.says: Callable[[dict[str, Any]], str] | None = None
        self.finish = "stop"
        self.open = False  # to anybody, without a key
        self.keys: list[str | None] = []  # of chat, as they were sent
        self.greedy_refused = False
        self.filtered = "bomb"  # a prompt with this word is refused
        self.seen: list[tuple[str, str]] = []  # method, path with query
        self.asked: list[dict[str, Any]] = []  # bodies of chat
        self.busiest = 0  # chat requests at once
        self.gate: asyncio.Event | None = None  # chat waits for it
        self.answers_before_gate = 0
        self._now = 0
        self.url = ""

    async def __aenter__(self) -> Self:
        v1 = [
            Route("/v1/fine_tuning/jobs", self._list_jobs),
            Route("/v1/fine_tuning/jobs/{job}/checkpoints", self._list_checkpoints),
            Route("/v1/fine_tuning/jobs/{job}/events", self._list_events),
            Route("/v1/files/{file}", self._about),
            Route("/v1/files/{file}/content", self._content),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
        ]
        self._server = uvicorn.Server(
            uvicorn.Config(Starlette(routes=v1), port=0, lifespan="off", log_config=None, ws="none")
        )
        self._serving = asyncio.create_task(self._server.serve())
        while not self._server.started:  # uvicorn has no event for it
            await asyncio.sleep(0.005)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.should_exit = True
        await self._serving

    # what there is

    def file(self, file_id: str, content: bytes, filename: str, purpose: str = "fine-tune") -> str:
        about = {"id": file_id, "object": "file", "bytes": len(content), "created_at": 1721764800}
        self.files[file_id] = (about | {"filename": filename, "purpose": purpose, "status": "processed"}, content)
        return file_id

    def job(self, number: int, **changes: Any) -> dict[str, Any]:
        """A succeeded supervised job; the newest of all."""
        job = {
            "object": "fine_tuning.job",
            "id": f"ftjob-{number:024d}",
            "model": "gpt-4o-mini-2024-07-18",
            "created_at": 1721764800 + number,
            "finished_at": 1721765800 + number,
            "fine_tuned_model": MODEL.replace("AbCdEf12", f"AbCdEf{number:02d}"),
            "organization_id": "org-123",
            "result_files": [],
            "status": "succeeded",
            "validation_file": None,
            "training_file": "file-train",
            "hyperparameters": {"n_epochs": 3, "batch_size": 1, "learning_rate_multiplier": 1.8},
            "trained_tokens": 5049,
            "error": None,
            "user_provided_suffix": "shop",
            "seed": 683058546,
            "integrations": [],
            "metadata": None,
            "estimated_finish": None,
            "method": {
                "type": "supervised",
                "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 1, "learning_rate_multiplier": 1.8}},
            },
            **changes,
        }
        self.jobs.insert(0, job)
        return job

    def result(self, file_id: str) -> str:
        """A result table, in base64 as the service hands it out."""
        return self.file(file_id, base64.b64encode(TABLE.encode()), "step_metrics.csv", "fine-tune-results")

    # routes

    def _stranger(self, request: Request) -> Response | None:
        self.seen.append((request.method, request.url.path + (f"?{request.url.query}" if request.url.query else "")))
        if self.open or request.headers.get("authorization") == f"Bearer {KEY}":
            return None
        return problem(401, "Incorrect API key provided: sk-wr**ng.", "invalid_api_key", kind="invalid_request_error")

    async def _list_jobs(self, request: Request) -> Response:
        return self._stranger(request) or page(request, self.jobs)

    async def _list_checkpoints(self, request: Request) -> Response:
        return self._stranger(request) or page(request, self.checkpoints.get(request.path_params["job"], []))

    async def _list_events(self, request: Request) -> Response:
        event = {"object": "fine_tuning.job.event", "id": "ftevent-1", "created_at": 1721764800, "level": "info"}
        event |= {"message": "The job has successfully completed", "type": "message", "data": {}}
        return self._stranger(request) or page(request, [event])

    async def _about(self, request: Request) -> Response:
        refused = self._stranger(request)
        if refused is not None:
            return refused
        found = self.files.get(request.path_params["file"])
        if found is None:
            return problem(404, f"No such File object: {request.path_params['file']}", None, param="id")
        return JSONResponse(found[0])

    async def _content(self, request: Request) -> Response:
        refused = self._stranger(request)
        if refused is not None:
            return refused
        found = self.files.get(request.path_params["file"])
        if found is None:
            return problem(404, f"No such File object: {request.path_params['file']}", None, param="id")
        return Response(found[1], media_type="application/octet-stream")

    async def _chat(self, request: Request) -> Response:
        self.keys.append(request.headers.get("authorization"))
        refused = self._stranger(request)
        if refused is not None:
            return refused
        body = await request.json()
        self.asked.append(body)
        self._now += 1
        self.busiest = max(self.busiest, self._now)
        try:
            if self.gate is not None and len(self.asked) > self.answers_before_gate:
                await self.gate.wait()
            return self._completion(body)
        finally:
            self._now -= 1

    def _completion(self, body: dict[str, Any]) -> Response:
        if self.faults:
            fault = self.faults.pop(0)
            if isinstance(fault, Response):
                return fault
            status, headers, error = fault
            return JSONResponse({"error": error}, status, dict(headers))
        if body["model"] in self.gone or not body["model"].startswith("ft:"):
            said = f"The model `{body['model']}` does not exist or you do not have access to it."
            return problem(404, said, "model_not_found")
        if self.greedy_refused and "temperature" in body:
            said = "Unsupported value: 'temperature' does not support 0 with this model."
            return problem(400, said, "unsupported_value", param="temperature")
        if any("weight" in message for message in body["messages"]):
            return problem(400, "Unknown parameter: 'messages[0].weight'.", "unknown_parameter", param="messages")
        asked = str(body["messages"][-1]["content"])
        if self.filtered in asked:
            return problem(400, "Invalid prompt: it was flagged.", "invalid_prompt")
        message: dict[str, Any] = {"role": "assistant", "content": f"demo: {asked}", "refusal": None}
        if self.says is not None:
            message["content"] = self.says(body)
        if body.get("tools"):
            call = {"name": body["tools"][0]["function"]["name"], "arguments": '{"q":1}'}
            message |= {"content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": call}]}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.finish}
        usage = {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17}
        about = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1721764800, "model": body["model"]}
        return JSONResponse(about | {"choices": [choice], "usage": usage})


def problem(
    status: int, message: str, code: str | None, *, param: str | None = None, kind: str = "invalid_request_error"
) -> Response:
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": code}}, status)


def page(request: Request, items: list[dict[str, Any]]) -> Response:
    """At most `limit` items behind `after`."""
    limit, after = int(request.query_params.get("limit", "20")), request.query_params.get("after")
    if not 1 <= limit <= 100:
        return problem(400, "limit must be between 1 and 100", "invalid_value", param="limit")
    ids = [item["id"] for item in items]
    rest = items[ids.index(after) + 1 :] if after in ids else items
    return JSONResponse({"object": "list", "data": rest[:limit], "has_more": len(rest) > limit})
