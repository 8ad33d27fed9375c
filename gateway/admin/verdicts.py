"""What a look at an adapter says, as JSON: all findings at once, each with what would make it work.

An adapter that would be refused is a 400 here as it is at registration, so that whoever looks at the status alone is
told; its body has the findings beside the error. Must not know services.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

from adapters.errors import AdapterRejected
from adapters.intake import Checked
from adapters.verdict import Finding, findings_of
from gateway.render import render


class FindingView(BaseModel):
    """`reason` is one stable word; docs/adapters-check.md lists them."""

    severity: Literal["refuse", "warn"] = Field(description="refuse: it is not registered; warn: it is")
    reason: str
    message: str
    nearest: str = Field(description="what would make it work, with the flag or setting")


class MemoryView(BaseModel):
    """In an engine, in bytes at 16 bits a number."""

    adapter_bytes: int
    slot_bytes: int | None = Field(description="one of the engine's --max-loras; null: the base's sizes are not known")
    max_lora_rank: int


class CheckView(BaseModel):
    """An adapter that can be served; one that cannot is a 400 with `ok` false, its findings, and the error."""

    ok: Literal[True]
    version: str
    rank: int
    size_bytes: int
    base: str | None
    warnings: list[str]
    findings: list[FindingView]
    memory: MemoryView


class CheckRefusedView(BaseModel):
    """The first refusal as an error, and all there is to say."""

    error: dict[str, str | None]
    ok: Literal[False]
    findings: list[FindingView] = Field(description="refusals first, in the order in which they were met")


def taken(found: Checked) -> CheckView:
    """The answer for an adapter that can be served."""
    return CheckView(
        ok=True,
        version=found.version,
        rank=found.rank,
        size_bytes=found.size_bytes,
        base=found.base,
        warnings=[*found.warnings],
        findings=_views(found.findings),
        memory=MemoryView(
            adapter_bytes=found.memory.adapter_bytes,
            slot_bytes=found.memory.slot_bytes,
            max_lora_rank=found.memory.max_lora_rank,
        ),
    )


def refused(error: AdapterRejected) -> JSONResponse:
    """The answer for one that cannot."""
    status, _, body = render(error)
    findings = [view.model_dump() for view in _views(findings_of(error))]
    return JSONResponse({**json.loads(body), "ok": False, "findings": findings}, status)


def _views(findings: Iterable[Finding]) -> list[FindingView]:
    return [
        FindingView(severity=each.severity.value, reason=each.reason, message=each.message, nearest=each.nearest)
        for each in findings
    ]
