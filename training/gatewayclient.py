"""A gateway as this room uses it: its admin API, and `/v1` with the admin's key. The only HTTP client of the worker.

Waits where the gateway says so, for a bounded time. Must not know what is asked, or what the answers are for.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import tempfile
import time
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from adapters import intake
from adapters.errors import ServiceError
from adapters.http import httpx, open_http
from adapters.sources.source import is_loopback
from training.errors import GatewayAway

ADAPTERS = "/admin/v1/adapters"
PATIENCE_S = 300.0  # of waiting that the gateway itself asked for, per call: an adapter may have to be loaded
BUSY = frozenset({429, 503})  # it says when to come back
FLEETING = frozenset({502, 504})  # an engine failed: once more may meet another one
DROPPED = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)  # it was there a moment ago
REPEATS = 2
ANSWER_TIMEOUT_S = 300.0
PAUSE_TIMEOUT_S = 120.0  # answers on their way come to their end first
LOAD_TIMEOUT_S = 1800.0  # checking, copying and loading gigabytes of weights into several engines
ANY_RANK = 512  # the gateway judges what its engine can take; here only the content's name is wanted
OWN_KEY, OWN_KEY_S = "training", 86_400  # the name and life of the key that it makes where the admin's opens no /v1
FILES = ("adapter_config.json", "adapter_model.safetensors")


class GatewayRefused(ServiceError):
    """The gateway answered, and said no. `answered` is its status, `said` its error's code."""

    status, code = 502, "gateway_refused"

    def __init__(self, message: str, *, answered: int, said: str = "", param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.answered = answered
        self.said = said


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of `/v1`: its document, the version that answered, and how long it took without our own waiting."""

    document: Mapping[str, Any]
    served: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Address:
    """Where a gateway is. key: of an administrator."""

    url: str  # of the public port, without /v1
    admin_url: str
    key: str = field(repr=False)


class Gateway:
    """sleep, clock: how waiting is done and time is taken; wall: unix seconds.

    Where the admin's key does not open `/v1`, it makes itself a key for inference; `close` revokes that.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        address: Address,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.perf_counter,
        wall: Callable[[], float] = time.time,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._http = http
        self._public = address.url.rstrip("/").removesuffix("/v1")
        self._admin = address.admin_url.rstrip("/")
        self._key = self._inference_key = address.key
        self._own_key: str | None = None  # id of the key that it made
        self._making_key = asyncio.Lock()
        self._sleep = sleep
        self._clock = clock
        self._wall = wall
        self._patience_s = patience_s

    async def close(self) -> None:
        """Revoke the key that it made, if it did."""
        if self._own_key is not None:
            gone, self._own_key, self._inference_key = self._own_key, None, self._key
            await self._ask_admin("DELETE", f"/admin/v1/keys/{gone}")

    # what there is

    async def status(self) -> dict[str, Any]:
        """GET /admin/v1/status."""
        return await self._ask_admin("GET", "/admin/v1/status")

    async def adapter(self, name: str) -> dict[str, Any] | None:
        """An adapter with its versions, as the admin API shows it; None where there is none of that name."""
        try:
            return await self._ask_admin("GET", _path(name))
        except GatewayRefused as refused:
            if refused.answered == 404:
                return None
            raise

    # what is changed

    async def register(
        self,
        folder: Path,
        name: str,
        *,
        notes: str = "",
        lineage: Mapping[str, Any] | None = None,
        owner: str | None = None,
        upload: bool | None = None,
    ) -> str:
        """Store `folder` as a version of `name`; its 12 digits. The same content is the same version. AdapterRejected.

        owner: id of the key that may delete a new adapter; upload: send the files along; None: where the gateway is on
        another machine.
        """
        here = _absolute(folder)
        version = (await asyncio.to_thread(intake.check, here, None, ANY_RANK)).version
        fields: dict[str, Any] = {"name": name, "notes": notes}
        if lineage is not None:
            fields["lineage"] = lineage
        if owner is not None:
            fields["owner"] = owner
        if upload if upload is not None else not is_loopback(urlsplit(self._admin).hostname):
            made = await self._send(here, fields)
        else:
            made = await self._ask_admin("POST", ADAPTERS, {"source": str(here), **fields}, LOAD_TIMEOUT_S)
        if version not in {each["version"] for each in made["versions"]}:
            raise GatewayRefused(
                f"The gateway registered {name}, but as another version than {version}: the files changed meanwhile, "
                "or it runs another release than this worker. Register the folder again.",
                answered=201,
            )
        return version

    async def promote(self, name: str, version: str, why: str = "") -> dict[str, Any]:
        """Let the public name answer with `version`."""
        return await self._change(name, "promote", {"version": version, "why": why})

    async def canary(self, name: str, version: str, percent: float, why: str = "") -> dict[str, Any]:
        """Let `version` answer a share of the callers."""
        return await self._change(name, "canary", {"version": version, "percent": percent, "why": why})

    async def pause_engine(self, job: str, seconds: float) -> None:
        """Have the engine of the gateway's machine stopped for a run: for so long, unless it is said again."""
        await self._ask_admin("POST", "/admin/v1/engine/pause", {"job": job, "seconds": seconds}, PAUSE_TIMEOUT_S)

    async def resume_engine(self, job: str) -> None:
        """The run needs its memory no longer."""
        await self._ask_admin("POST", "/admin/v1/engine/resume", {"job": job})

    # what is asked

    async def chat(self, body: Mapping[str, Any]) -> Reply:
        """POST /v1/chat/completions, not streamed."""
        return await self._infer("/v1/chat/completions", body)

    async def completions(self, body: Mapping[str, Any]) -> Reply:
        """POST /v1/completions, not streamed; `prompt` may be token ids."""
        return await self._infer("/v1/completions", body)

    async def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> tuple[int, ...]:
        """The token ids that the engine's own template makes of a conversation."""
        body: dict[str, Any] = {"messages": list(messages)}
        if tools:
            body["tools"] = list(tools)
        if chat_template_kwargs:
            body["chat_template_kwargs"] = dict(chat_template_kwargs)
        answer = await self._ask_admin("POST", "/admin/v1/render", body)
        return tuple(int(token) for token in answer["tokens"])

    # how

    async def _change(self, name: str, verb: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return await self._ask_admin("POST", f"{_path(name)}/{verb}", body, LOAD_TIMEOUT_S)

    async def _infer(self, path: str, body: Mapping[str, Any]) -> Reply:
        url, used = self._public + path, self._inference_key
        try:
            answer, seconds = await self._call("POST", url, ANSWER_TIMEOUT_S, _json(body), used)
        except GatewayRefused as refused:
            if refused.answered not in (401, 403) or (self._own_key is not None and used == self._inference_key):
                raise
            answer, seconds = await self._call("POST", url, ANSWER_TIMEOUT_S, _json(body), await self._make_key())
        document = _document(answer, self._public)
        return Reply(document, answer.headers.get("x-loragate-model") or str(document.get("model", "")), seconds)

    async def _make_key(self) -> str:
        """A key for inference, made once: it ends by itself should nobody revoke it."""
        async with self._making_key:
            if self._own_key is None:
                body = {"name": OWN_KEY, "scopes": ["inference"], "expires_at": int(self._wall()) + OWN_KEY_S}
                made = await self._ask_admin("POST", "/admin/v1/keys", body)
                self._own_key, self._inference_key = made["id"], made["key"]
        return self._inference_key

    async def _ask_admin(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, timeout_s: float = 60.0
    ) -> dict[str, Any]:
        answer, _ = await self._call(method, self._admin + path, timeout_s, _json(body))
        return _document(answer, self._admin)

    async def _send(self, folder: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
        with tempfile.TemporaryFile() as packed:
            await asyncio.to_thread(_pack, folder, packed)

            def form() -> dict[str, Any]:
                packed.seek(0)
                return {"data": texts, "files": {"file": ("adapter.zip", packed, "application/zip")}}

            answer, _ = await self._call("POST", self._admin + ADAPTERS, LOAD_TIMEOUT_S, form)
        return _document(answer, self._admin)

    async def _call(
        self, method: str, url: str, timeout_s: float, content: Callable[[], Mapping[str, Any]], key: str | None = None
    ) -> tuple[httpx.Response, float]:
        """The answer and its seconds; GatewayAway, GatewayRefused. content: httpx's, made anew for every try."""
        waited, repeats = 0.0, 0
        headers = {"authorization": f"Bearer {key or self._key}"}
        while True:
            began = self._clock()
            try:
                answer = await self._http.request(method, url, headers=headers, timeout=timeout_s, **content())
            except httpx.TransportError as error:
                if not isinstance(error, DROPPED) or repeats >= REPEATS:
                    raise _away(url, error) from None
                await self._sleep(1.0)  # every call may be made twice: the same content is the same version
                repeats += 1
                continue
            if answer.status_code < 400:
                return answer, self._clock() - began
            wait = _wait(answer, repeats)
            if wait is None:
                raise _refusal(answer, url)
            if waited + wait > self._patience_s:
                raise GatewayAway(
                    f"The gateway at {_origin(url)} has been too busy for {waited:.0f} s: {_message(answer)} "
                    "Try again when it has less to do.",
                    retry_after_s=60,
                )
            await self._sleep(wait)
            waited += wait
            repeats += 1


@asynccontextmanager
async def open_gateway(address: Address) -> AsyncIterator[Gateway]:
    """A client of its own for one gateway."""
    secure = any(url.startswith("https:") for url in (address.url, address.admin_url))
    async with open_http(ssl.create_default_context() if secure else None) as http:
        gateway = Gateway(http, address)
        try:
            yield gateway
        finally:
            with suppress(GatewayAway, GatewayRefused):  # its key ends by itself
                await gateway.close()


def _wait(answer: httpx.Response, repeats: int) -> float | None:
    """Seconds until it may be asked again; None where that cannot help."""
    if answer.headers.get("x-should-retry", "").lower() == "false":
        return None
    if answer.status_code in BUSY:
        said = answer.headers.get("retry-after", "")
        return float(min(max(int(said), 1), 120)) if said.isdigit() else 2.0
    if answer.status_code in FLEETING and repeats < REPEATS:
        return 1.0
    return None


def _document(answer: httpx.Response, url: str) -> dict[str, Any]:
    try:
        document = answer.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise GatewayRefused(
            f"What answers at {_origin(url)} is not a loragate gateway. Name the gateway's own address.",
            answered=answer.status_code,
        )
    return document


def _refusal(answer: httpx.Response, url: str) -> GatewayRefused:
    error = _error(answer)
    message = _message(answer)
    if answer.status_code == 401:
        message = f"The gateway at {_origin(url)} does not accept this key. Use its admin key."
    said = str(error.get("code") or "")
    return GatewayRefused(message, answered=answer.status_code, said=said, param=error.get("param"))


def _error(answer: httpx.Response) -> dict[str, Any]:
    try:
        error = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}


def _message(answer: httpx.Response) -> str:
    return str(_error(answer).get("message") or f"it answers {answer.status_code} without saying why.")


def _away(url: str, error: Exception) -> GatewayAway:
    return GatewayAway(
        f"The gateway at {_origin(url)} does not answer ({type(error).__name__}). Start it, or name the right address.",
        retry_after_s=10,
    )


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _json(body: Mapping[str, Any] | None) -> Callable[[], Mapping[str, Any]]:
    return lambda: {} if body is None else {"json": dict(body)}


def _path(name: str) -> str:
    return f"{ADAPTERS}/{quote(name, safe=':@')}"


def _absolute(folder: Path) -> Path:
    return folder.absolute()


def _pack(folder: Path, target: Any) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name in FILES:
            archive.write(folder / name, name)
