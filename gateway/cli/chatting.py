"""`loragate jobs chat`: a checkpoint of a job that has not ended, asked. Must not know how it comes to answer."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import click

from gateway.cli import output
from gateway.cli.client import AdminClient, Place, Refused, home, segment
from gateway.cli.inference import inference_key, public_url
from gateway.cli.jobs import PATH
from gateway.cli.session import Session

REGISTER_S = 1800.0  # gigabytes may have to be copied, checked and loaded
ANSWER_S = 300.0
QUESTION = "Say hello in one sentence."

Document = dict[str, Any]


def chatted(gateway: Session, job_id: str, step: int | None, say: str | None, url: str | None) -> None:
    """The model's name and how to ask it; with `say` its answer."""
    path = f"{PATH}/{segment(job_id)}/previews"
    made = gateway.call("POST", path, body={"step": step}, timeout_s=REGISTER_S)
    public = (url or public_url(gateway)).rstrip("/").removesuffix("/v1")
    if say is None:
        gateway.show(made, lambda found: _how(found, public, home(os.environ, gateway.data_dir) / "demo.key"))
        return
    if not gateway.as_json:
        click.echo(f"Step {made['step']} of {output.text(job_id)}, {output.text(made['model'])}:", err=True)
    with inference_key(gateway, "jobs chat", made["model"]) as key:
        client = AdminClient(Place(public, key, "a key of its own"))  # the same envelope on both ports
        answer = client.call("POST", "/v1/chat/completions", body=_asked(made, say), timeout_s=ANSWER_S)
    gateway.show({"preview": made, "answer": answer}, lambda found: click.echo(_said(found["answer"])))


def ended(gateway: Session, job_id: str) -> None:
    """None of the job's checkpoints answers any more."""
    gone = gateway.call("DELETE", f"{PATH}/{segment(job_id)}/previews")
    gateway.show(gone, _gone)


def _asked(made: Document, say: str) -> Document:
    kwargs = made["chat_template_kwargs"]
    body = {"model": made["model"], "messages": [{"role": "user", "content": say}]}
    return {**body, "chat_template_kwargs": kwargs} if kwargs else body


def _said(answer: Document) -> str:
    try:
        return str(answer["choices"][0]["message"]["content"])
    except (KeyError, IndexError, TypeError):
        raise Refused("The answer is not a chat completion. Name the gateway's public port with --url.") from None


def _how(made: Document, public: str, key: Path) -> None:
    bearer = f"$(cat {shlex.quote(str(key))})" if key.is_file() else "$LORAGATE_KEY"
    body = shlex.quote(json.dumps(_asked(made, QUESTION), ensure_ascii=False))
    job = output.text(made["job"])
    click.echo(f"Step {made['step']} of {job} answers as {output.text(made['model'])}")
    click.echo(f"until the job ends, or `loragate jobs chat {job} --end`.\n")
    click.echo(f"curl {public}/v1/chat/completions \\")
    click.echo(f'  -H "Authorization: Bearer {bearer}" -H "Content-Type: application/json" \\')
    click.echo(f"  -d {body}")


def _gone(page: Document) -> None:
    if not page["data"]:
        click.echo("None of its checkpoints could be asked.")
    for each in page["data"]:
        click.echo(f"{output.text(each['model'])} answers no more.")
