"""The text that `up` ends with: what to paste, where things are, how to stop. Text only, within 80 columns.

Files in the reader's home folder are named with ~, as a shell takes it: a whole path would wrap.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from gateway.local.places import Places


def short(path: Path, home: str | None) -> str:
    """The path as a shell takes it, with ~ for the home folder."""
    if home and path != Path(home) and path.is_relative_to(home):
        return f"~/{shlex.quote(str(path.relative_to(home)))}"
    return shlex.quote(str(path))


def curl(url: str, key_file: str, model: str, question: str) -> str:
    """A ready-to-paste command; the key itself is not in it. `key_file` as a shell takes it."""
    said = json.dumps([{"role": "user", "content": question}], ensure_ascii=False)
    body = f'{{"model": {json.dumps(model)}, "temperature": 0, "messages":\n      {said}}}'
    return (
        f"curl {url}/v1/chat/completions \\\n"
        f'  -H "Authorization: Bearer $(cat {key_file})" \\\n'
        f"  -H 'Content-Type: application/json' \\\n"
        f"  -d {shlex.quote(body)}"
    )


def snippet(url: str, key_file: str, model: str, question: str) -> str:
    """The same with the official SDK. `key_file` as a person writes it, with ~."""
    return (
        "from openai import OpenAI  # pip install openai\n"
        "from pathlib import Path\n"
        f"key = Path({key_file!r}).expanduser().read_text().strip()\n"
        f"client = OpenAI(base_url={f'{url}/v1'!r}, api_key=key)\n"
        f"answer = client.chat.completions.create(model={model!r}, temperature=0,\n"
        f"    messages=[{{'role': 'user', 'content': {question!r}}}])\n"
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
    home: str | None = None,
) -> str:
    """Everything, for a person who has just waited. `models` begins with the one to try.

    command: how words such as "status" are said at this person's shell. home: this person's home folder.
    """
    model = models[0] if models else "MODEL"
    key = short(places.demo_key, home)
    lines = ["", f"Ready: {url}/v1", "", "Try it:", "", curl(url, key, model, question), ""]
    lines += ["or in Python:", "", snippet(url, "".join(shlex.split(key)), model, question), ""]
    none = f"none yet: {command('adapters register DIR --name NAME --promote')}"
    lines += [f"Models   {', '.join(models) or none}"]
    if demo:
        lines += ["         a demo of two million parameters: machinery, not intelligence"]
    lines += [f"Key      {key}", f"Operate  {command('status')}, {command('adapters list')}"]
    lines += [f"Admin    {admin}, key in {short(places.admin_key, home)}"]
    logs = "gateway.log, engine.log" if local_engine else "gateway.log"
    lines += [f"Logs     {short(places.gateway_log.parent, home)}: {logs}", "Stop     Ctrl-C", ""]
    return "\n".join(lines)
