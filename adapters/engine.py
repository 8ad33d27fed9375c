"""The only caller of an engine's model list, load and unload. vLLM's answers become yes, or one clean sentence.

Must not know which adapters are wanted. An engine's own text is logged, never shown: it holds paths.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from adapters.errors import EngineError, InvalidRequest
from adapters.http import httpx
from adapters.names import is_engine_name

PROBE_TIMEOUT_S = 5.0
LOAD_TIMEOUT_S = 120.0  # a 70B's rank-128 adapter from a cold disk takes tens of seconds
COMPLETE_TIMEOUT_S = 60.0  # behind a full queue it takes tens of seconds
SLACK_S = 1.0  # before an answer that comes piece by piece is given up: one that does not come at all says so first
MAX_ANSWER_BYTES = 64 * 1024 * 1024  # 10,000 model cards are 5 MB
MAX_COMPLETION_BYTES = 1024 * 1024  # of a few tokens, with their alternatives
FALLBACK_SLOTS = 4  # of an engine that does not tell: fewer than it has only costs loads
_MAX_LORAS = re.compile(r'^vllm:lora_requests_info\{[^}\n]*max_lora="([1-9][0-9]{0,4})"', re.MULTILINE)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineModel:
    """One entry of an engine's model list."""

    id: str
    root: str | None  # the base's --model string, or an adapter's path
    parent: str | None  # None: a base model
    max_model_len: int | None  # tokens


class EngineUnreachable(EngineError):
    """No answer at all: refused, reset, not connected in time."""

    code = "engine_unreachable"


class EngineClient:
    """One engine. `adapter_dir` is the adapter store as that engine sees it; absolute.

    slots: its --max-loras, None to ask it. held: its --max-cpu-loras, where that is more than the slots.
    name: host[:port] that requests and certificate are about, where `url` has an address instead.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None,
        adapter_dir: Path,
        http: httpx.AsyncClient,
        *,
        slots: int | None = None,
        held: int | None = None,
        name: str | None = None,
        load_timeout_s: float = LOAD_TIMEOUT_S,
    ) -> None:
        self.url = url.rstrip("/")
        self._told = slots
        self._held = held
        self.slots = slots
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._extensions = {}
        if name is not None:
            self._headers["host"] = name
            self._extensions["sni_hostname"] = urlsplit(f"//{name}").hostname
        self._adapter_dir = adapter_dir
        self._http = http
        self._load_timeout_s = load_timeout_s

    def __repr__(self) -> str:
        return f"EngineClient({self.url})"

    def path(self, engine_name: str) -> str:
        """Where this engine finds a version: what it must show as the `root` of it."""
        return str(self._adapter_dir / engine_name)

    @property
    def capacity(self) -> int | None:
        """How many adapters it should hold at once; None until its slots are known."""
        return self.slots if self.slots is None or self._held is None else max(self.slots, self._held)

    async def learn_slots(self, base: str) -> None:
        """Find out how many adapters it computes with at once, once in its life. Never raises.

        vLLM 0.32 tells it in a metric that is there after the first request only (tried), so one token is asked for.
        """
        if self.slots is not None:
            return
        try:
            found = await self._max_loras()
            if found is None:
                await self.complete({"model": base, "prompt": "ok", "max_tokens": 1, "temperature": 0})
                found = await self._max_loras()
        except EngineError:
            return  # asked again at the next look
        self.slots = found or FALLBACK_SLOTS

    def forget_slots(self) -> None:
        """It may come back with others."""
        self.slots = self._told

    async def _max_loras(self) -> int | None:
        status, text = await self._ask("GET", "/metrics", None, PROBE_TIMEOUT_S)
        found = _MAX_LORAS.search(text) if status == 200 else None
        return int(found[1]) if found else None

    async def models(self) -> tuple[EngineModel, ...]:
        """The base models and the adapters this engine knows now; EngineError, EngineUnreachable."""
        status, text = await self._ask("GET", "/v1/models", None, PROBE_TIMEOUT_S)
        if status in (401, 403):
            raise EngineError(
                f"Engine {self.url} refuses our key. Set engines[].api_key to the one it was started with."
            )
        if status != 200:
            raise EngineError(f"Engine {self.url} answers {status} to /v1/models. Is it a vLLM server?")
        try:
            return tuple(_model(card) for card in json.loads(text)["data"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise EngineError(
                f"Engine {self.url} answers /v1/models with something else. Is it a vLLM server?"
            ) from None

    async def version(self) -> str | None:
        """The engine's version, None where it does not say; EngineUnreachable."""
        status, text = await self._ask("GET", "/version", None, PROBE_TIMEOUT_S)
        try:
            found = json.loads(text)["version"] if status == 200 else None
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        return found if isinstance(found, str) else None

    async def load(self, engine_name: str) -> None:
        """Load a version from the store; done when it returns, also where it was loaded before. EngineError."""
        if not is_engine_name(engine_name):
            raise ValueError(engine_name)  # a bug: the engine would take other text for a hub repository
        body = {"lora_name": engine_name, "lora_path": self.path(engine_name)}
        status, text = await self._ask("POST", "/v1/load_lora_adapter", body, self._load_timeout_s)
        # 400 "already" is a success because the name is made from the content. One that somebody else loaded from
        # another place shows itself in the model list, and the replica unloads it first.
        if status == 200 or (status == 400 and "already been loaded" in text):
            return
        _log.warning("engine %s: load of %s answered %d: %s", self.url, engine_name, status, text[:2000])
        raise EngineError(f"Engine {self.url} did not load {engine_name}: {self._explained(status, text)}")

    async def unload(self, engine_name: str) -> None:
        """Make the engine forget a version; done when it returns, also where it did not know it. EngineError."""
        body = {"lora_name": engine_name}
        status, text = await self._ask("POST", "/v1/unload_lora_adapter", body, self._load_timeout_s)
        if status == 200 or (status == 404 and "cannot be found" in text):
            return
        _log.warning("engine %s: unload of %s answered %d: %s", self.url, engine_name, status, text[:2000])
        raise EngineError(f"Engine {self.url} did not unload {engine_name}: {self._explained(status, text)}")

    async def complete(self, asked: Mapping[str, Any]) -> tuple[int, str]:
        """The status of /v1/completions and the engine's own text, which may repeat the prompt: not for people or logs.

        EngineError: too slow or too long. EngineUnreachable.
        """
        return await self._ask("POST", "/v1/completions", asked, COMPLETE_TIMEOUT_S, MAX_COMPLETION_BYTES)

    async def tokenize(self, asked: Mapping[str, Any]) -> tuple[int, ...]:
        """The token ids that the engine makes of a conversation by its chat template. InvalidRequest, EngineError.

        asked: as /tokenize takes it, with `model`, `messages`, and `tools` and `chat_template_kwargs` if there are any.
        """
        status, text = await self._ask("POST", "/tokenize", asked, COMPLETE_TIMEOUT_S)
        if 400 <= status < 500 and status not in (401, 403, 404, 405):
            raise InvalidRequest(
                "The engine's chat template does not take this conversation. A template may want roles in turns, or "
                "know no tools.",
                param="messages",
            )
        try:
            tokens = json.loads(text)["tokens"] if status == 200 else None
        except (ValueError, KeyError, TypeError, RecursionError):
            tokens = None
        if not isinstance(tokens, list) or not all(type(each) is int for each in tokens):
            raise EngineError(f"Engine {self.url} answers {status} to /tokenize. Is it a vLLM server?")
        return tuple(tokens)

    def _explained(self, status: int, text: str) -> str:
        lower = text.lower()
        if status == 404 and '"detail"' in lower:
            return "it has no runtime loading. Start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora."
        if status == 404:
            return (
                f"it does not see the files. Mount the adapter store at {self._adapter_dir} there, or set adapter_dir."
            )
        if "max_lora_rank" in lower:
            return "its rank is above the engine's. Start the engine with a larger --max-lora-rank."
        if "lora is not enabled" in lower:
            return "LoRA is off there. Start the engine with --enable-lora."
        if "target modules" in lower:
            return "it adapts modules that this engine's model does not have."
        if "out of memory" in lower:
            return "the engine is out of memory. Lower its --max-loras or --gpu-memory-utilization."
        return f"it answered {status}; its log says why."

    async def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float, most: int = MAX_ANSWER_BYTES
    ) -> tuple[int, str]:
        timeout = httpx.Timeout(timeout_s, connect=PROBE_TIMEOUT_S)
        try:
            async with (
                asyncio.timeout(timeout_s + SLACK_S),
                self._http.stream(
                    method,
                    self.url + path,
                    json=body,
                    headers=self._headers,
                    timeout=timeout,
                    extensions=self._extensions,
                ) as answer,
            ):
                text = bytearray()
                async for chunk in answer.aiter_bytes():
                    text += chunk
                    if len(text) > most:
                        raise EngineError(f"Engine {self.url} answers {path} with more than {most} bytes.")
                return answer.status_code, text.decode("utf-8", "replace")
        except (httpx.ReadTimeout, httpx.WriteTimeout, httpx.PoolTimeout, TimeoutError):
            raise EngineError(f"Engine {self.url} does not answer in {timeout_s:g} s; its log may say why.") from None
        except (httpx.TransportError, httpx.InvalidURL, httpx.DecodingError):
            raise EngineUnreachable(f"Engine {self.url} cannot be reached. Is it running there?") from None


def _model(card: dict[str, Any]) -> EngineModel:
    return EngineModel(
        id=str(card["id"]),
        root=_optional(card.get("root"), str),
        parent=_optional(card.get("parent"), str),
        max_model_len=_optional(card.get("max_model_len"), int),
    )


def _optional(value: Any, kind: type) -> Any:
    return value if isinstance(value, kind) else None
