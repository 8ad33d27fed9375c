"""What `up` asks of its own gateway, over the same HTTP that operators use: ready, keys, adapters, models.

Knows the admin API's contract only; must not reach into the gateway that runs in this process.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from gateway.local.errors import CannotStart
from gateway.settings import Settings

REGISTER_TIMEOUT_S = 300.0  # a register waits for every engine to load the adapter


def reachable(host: str) -> str:
    """The address to reach a listener bound to `host` from this machine, ready for a URL."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"[{host}]" if ":" in host else host


def public_url(settings: Settings) -> str:
    return f"http://{reachable(settings.public.host)}:{settings.public.port}"


def admin_url(settings: Settings) -> str:
    return f"http://{reachable(settings.admin.host)}:{settings.admin.port}"


class AdminClient:
    """A connection to both ports of one running gateway; an async context manager."""

    def __init__(self, settings: Settings, admin_key: Path) -> None:
        self._key_file = admin_key
        self._admin = httpx.AsyncClient(base_url=admin_url(settings), timeout=30.0, trust_env=False)
        self._public = httpx.AsyncClient(base_url=public_url(settings), timeout=30.0, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._admin.aclose()
        await self._public.aclose()

    async def reasons(self) -> list[str]:
        """Why the gateway is not ready; empty when it is."""
        try:
            answer = await self._admin.get("/readyz")
            if answer.status_code == 200:
                return []
            return [str(reason) for reason in answer.json().get("reasons", [])] or [f"HTTP {answer.status_code}"]
        except (httpx.HTTPError, ValueError) as exc:
            return [str(exc) or type(exc).__name__]

    async def create_key(self, name: str) -> str:
        """A new inference key's text. CannotStart when the gateway refuses."""
        body = await self._ask("POST", "/admin/v1/keys", {"name": name})
        return str(body["key"])

    async def models(self, key: str) -> list[str] | None:
        """The public names that `key` may use; None when the key is not accepted."""
        answer = await self._public.get("/v1/models", headers={"authorization": f"Bearer {key}"})
        if answer.status_code == 401:
            return None
        return [str(model["id"]) for model in answer.json().get("data", [])]

    async def adapters(self) -> set[str]:
        """The names in the registry."""
        body = await self._ask("GET", "/admin/v1/adapters")
        return {str(adapter["name"]) for adapter in body["data"]}

    async def register(self, source: Path, name: str) -> None:
        """Register a local folder and put it live. CannotStart with the gateway's own words when it refuses."""
        await self._ask("POST", "/admin/v1/adapters", {"source": str(source), "name": name, "promote": True})

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        key = (await asyncio.to_thread(self._key_file.read_text, encoding="utf-8")).strip()
        answer = await self._admin.request(
            method, path, json=body, headers={"authorization": f"Bearer {key}"}, timeout=REGISTER_TIMEOUT_S
        )
        try:
            document = answer.json()
        except ValueError:
            document = {}
        if answer.is_success and isinstance(document, dict):
            return document
        message = document.get("error", {}).get("message") if isinstance(document, dict) else None
        raise CannotStart(f"The gateway refused {method} {path}: {message or f'HTTP {answer.status_code}'}")
