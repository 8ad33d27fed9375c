"""What `loragate adapters check` shows to people: the verdict, then every finding with what would make it work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from gateway.cli import output
from gateway.cli.client import Refused
from gateway.cli.session import Session


def show(gateway: Session, ask: Callable[[], dict[str, Any]]) -> None:
    """Ask and show; of a refusal all findings go to stdout, and the first is what the command fails with."""
    try:
        answer = ask()
    except Refused as refusal:
        findings = refusal.document.get("findings")
        if isinstance(findings, list) and not gateway.as_json:
            _list(findings)
        raise
    gateway.show(answer, _shown)


def _shown(report: dict[str, Any]) -> None:
    memory = report["memory"]
    slot = memory["slot_bytes"]
    of_slot = f" of a slot of {output.size(slot)} (--max-lora-rank {memory['max_lora_rank']})" if slot else ""
    output.pairs(
        [
            ("verdict", "it can be served"),
            ("version", report["version"]),
            ("rank", report["rank"]),
            ("size", output.size(report["size_bytes"])),
            ("memory", f"{output.size(memory['adapter_bytes'])}{of_slot}"),
            ("trained on", report["base"]),
        ]
    )
    _list(report["findings"])


def _list(findings: list[dict[str, Any]]) -> None:
    for each in findings:
        sentence = f"{each['message']} {each['nearest']}".strip()
        click.echo(f"{each['severity']:<6}  {output.text(each['reason'])}: {output.text(sentence)}")
