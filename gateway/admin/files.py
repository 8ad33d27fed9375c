"""/admin/v1/adapters/{name}/versions/{version}/files/{file}: the two files of a version, as the store has them.

Opened before the answer begins: a version that is removed meanwhile is still sent whole. Must not know what is in them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Annotated, BinaryIO, Literal

from fastapi import APIRouter, Depends, Path
from starlette.background import BackgroundTask
from starlette.responses import StreamingResponse

from adapters.errors import Conflict
from adapters.service import AdapterService
from gateway.admin.access import admin

PIECE = 1 << 20
Name = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$")]
Version12 = Annotated[str, Path(pattern=r"^[0-9a-f]{12}$", description="12 hex digits")]
File = Literal["adapter_config.json", "adapter_model.safetensors"]


class FileRoutes:
    def __init__(self, adapters: AdapterService) -> None:
        self._adapters = adapters

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/admin/v1/adapters", dependencies=[Depends(admin)], tags=["adapters"])
        router.add_api_route(
            "/{name}/versions/{version}/files/{file}",
            self.file,
            methods=["GET"],
            response_class=StreamingResponse,
            responses={200: {"content": {"application/octet-stream": {}}, "description": "the file"}},
        )
        return router

    async def file(self, name: Name, version: Version12, file: File) -> StreamingResponse:
        """One of the two files of a version."""
        path = await self._adapters.file(name, version, file)
        try:
            opened = await asyncio.to_thread(path.open, "rb")
        except OSError:
            raise Conflict(f"The files of {name}@{version} are gone. Register the same folder again.") from None
        length = os.fstat(opened.fileno()).st_size
        headers = {"content-length": str(length), "content-disposition": f'attachment; filename="{file}"'}
        kind = "application/json" if file.endswith(".json") else "application/octet-stream"
        closed = BackgroundTask(opened.close)
        return StreamingResponse(_pieces(opened), headers=headers, media_type=kind, background=closed)


async def _pieces(opened: BinaryIO) -> AsyncIterator[bytes]:
    with opened:  # also where the caller left
        while piece := await asyncio.to_thread(opened.read, PIECE):
            yield piece
