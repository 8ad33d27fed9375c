"""/docs and /openapi.json, both behind the admin key: one page without scripts, styles or fonts from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.responses import HTMLResponse, JSONResponse

from gateway.admin.access import admin

POLICY = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'", "cache-control": "no-store"}
STYLE = "body{font:15px/1.5 system-ui;margin:2rem auto;max-width:60rem}code,pre{background:#8882}h2{margin-top:2rem}"


class DocRoutes:
    def __init__(self, app: FastAPI) -> None:
        self._app = app

    def router(self) -> APIRouter:
        router = APIRouter(dependencies=[Depends(admin)], include_in_schema=False)
        router.add_api_route("/openapi.json", self.openapi, methods=["GET"])
        router.add_api_route("/docs", self.page, methods=["GET"])
        return router

    async def openapi(self) -> JSONResponse:
        return JSONResponse(self._app.openapi())

    async def page(self) -> HTMLResponse:
        return HTMLResponse("".join(_page(self._app.openapi())), headers=POLICY)


def _page(document: dict[str, Any]) -> Iterator[str]:
    info = document["info"]
    yield f"<!doctype html><meta charset=utf-8><title>{escape(info['title'])}</title><style>{STYLE}</style>"
    yield f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])}</p>"
    schemas = document.get("components", {}).get("schemas", {})
    for path, methods in sorted(document["paths"].items()):
        for method, operation in methods.items():
            yield f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
            yield f"<p>{escape(operation.get('description', operation.get('summary', '')))}</p><ul>"
            for parameter in operation.get("parameters", ()):
                yield _field(parameter["name"], parameter["schema"], parameter.get("required", False))
            yield from _body(operation, schemas)
            yield "</ul>"


def _body(operation: dict[str, Any], schemas: dict[str, Any]) -> Iterator[str]:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    schema = schemas.get(content.get("schema", {}).get("$ref", "").rpartition("/")[2], {})
    for name, field in schema.get("properties", {}).items():
        yield _field(name, field, name in schema.get("required", ()))


def _field(name: str, schema: dict[str, Any], required: bool) -> str:
    kinds = " or ".join(str(option["type"]) for option in schema.get("anyOf", [schema]) if "type" in option)
    notes = escape(schema.get("description", ""))
    return f"<li><code>{escape(name)}</code> {escape(kinds)}{', required' if required else ''} {notes}</li>"
