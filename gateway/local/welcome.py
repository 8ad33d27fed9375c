"""The text that `up` ends with: what to paste, where things are, how to stop. Text only."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from gateway.local.places import Places


def curl(url: str, key_file: Path, model: str, question: str) -> str:
    """A ready-to-paste command; the key itself is not in it."""
    body = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0}
    return (
        f"curl {url}/v1/chat/completions \\\n"
        f'  -H "Authorization: Bearer $(cat {shlex.quote(str(key_file))})" \\\n'
        f"  -H 'Content-Type: application/json' \\\n"
        f"  -d {shlex.quote(json.dumps(body, ensure_ascii=False))}"
    )


def snippet(url: str, key_file: Path, model: str, question: str) -> str:
    """The same with the official SDK."""
    return (
        "from openai import OpenAI  # pip install openai\n"
        f"client = OpenAI(base_url={f'{url}/v1'!r}, api_key=open({str(key_file)!r}).read().strip())\n"
        f"answer = client.chat.completions.create(model={model!r}, temperature=0,\n"
        f'    messages=[{{"role": "user", "content": {question!r}}}])\n'
        "print(answer.choices[0].message.content)"
    )


def text(
    url: str,
    admin: str,
    places: Places,
    *,
    models: Sequence[str],
    question: str,
    demo: bool,
    local_engine: bool,
    command: Callable[[str], str],
) -> str:
    """Everything, for a person who has just waited. `models` begins with the one to try.

    command: how words such as "status" are said at this person's shell.
    """
    model = models[0] if models else "MODEL"
    lines = ["", f"Ready: {url}/v1", "", "Try it:", "", curl(url, places.demo_key, model, question), ""]
    lines += ["or in Python:", "", snippet(url, places.demo_key, model, question), ""]
    none = f"none yet: {command('adapters register DIR --name NAME --promote')}"
    lines += [f"Models   {', '.join(models) or none}"]
    if demo:
        lines += ["         a demo of two million parameters: it shows the machinery, not intelligence"]
    lines += [f"Key      {places.demo_key}", f"Operate  {command('status')}, {command('adapters list')}"]
    lines += [f"Admin    {admin}/admin/v1 with the key in {places.admin_key}"]
    logs = [str(places.gateway_log)] + ([str(places.engine_log)] if local_engine else [])
    lines += [f"Logs     {', '.join(logs)}", "Stop     Ctrl-C", ""]
    return "\n".join(lines)
