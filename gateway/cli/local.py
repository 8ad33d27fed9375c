"""`loragate up` and `loragate doctor`: their command lines only, the work is done in gateway/local."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import click

from gateway import settings as configuration
from gateway.local import doctor as examination
from gateway.local.display import Display
from gateway.local.plan import Options
from gateway.local.up import Surroundings
from gateway.local.up import up as run_up

MARKS = {"ok": "ok      ", "warning": "warning ", "problem": "PROBLEM "}


def _places(command: Any) -> Any:
    """The flags that both commands share."""
    for option in (
        click.option("--data-dir", type=click.Path(path_type=Path), help="Where everything is kept [LORAGATE_HOME]."),
        click.option("--admin-port", type=click.IntRange(0, 65535), help="Admin port [8001]."),
        click.option("--admin-host", help="Admin address [127.0.0.1]."),
        click.option("--port", type=click.IntRange(0, 65535), help="Public port [8000]."),
        click.option("--host", help="Public address [127.0.0.1]."),
    ):
        command = option(command)
    return command


@click.command()
@click.option("--model", help="A folder or a hub id (Qwen/Qwen2.5-0.5B-Instruct). Without it: the demo.")
@click.option("--engine", "engines", multiple=True, metavar="URL", help="A running vLLM; none is started. Repeatable.")
@_places
@click.option("--admin-allow-remote", is_flag=True, help="Let --admin-host be an address that others can reach.")
@click.argument("vllm_flags", nargs=-1, type=click.UNPROCESSED)
def up(
    model: str | None,
    engines: tuple[str, ...],
    host: str | None,
    port: int | None,
    admin_host: str | None,
    admin_port: int | None,
    data_dir: Path | None,
    admin_allow_remote: bool,
    vllm_flags: tuple[str, ...],
) -> None:
    """Start everything on this machine: the engine's environment, vLLM, the gateway. Ctrl-C stops it all.

    Everything after -- goes to vLLM. An engine environment of your own is named with the variable
    LORAGATE_ENGINE_PYTHON (its Python), one for training with LORAGATE_TRAINING_PYTHON.

    \b
    loragate up
    loragate up --model ./my-model -- --max-model-len 4096 --max-lora-rank 64
    loragate up --engine http://10.0.0.5:8000
    """
    flags = _flags(host, port, admin_host, admin_port, data_dir)
    flags["engines"] = [{"url": url} for url in engines] or None
    if admin_allow_remote:
        flags["admin"]["allow_remote"] = True
    settings = configuration.load(os.environ, flags=flags)
    where = f" --data-dir {shlex.quote(str(data_dir))}" if data_dir else ""
    _run(Options(settings, model, vllm_flags), lambda words: f"{_called()} {words}{where}")


@click.command()
@_places
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def doctor(
    host: str | None,
    port: int | None,
    admin_host: str | None,
    admin_port: int | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """What is on this machine, what is in the way of `loragate up`, and what to do about it.

    Exit code 1 when something prevents `loragate up`.

    \b
    loragate doctor
    loragate doctor --json
    """
    settings = configuration.load(os.environ, flags=_flags(host, port, admin_host, admin_port, data_dir))
    checks = []
    for check in examination.examine(settings, os.environ):
        checks.append(check)
        if not as_json:
            click.echo(f"{MARKS[check.state]} {check.name}: {check.found}")
            if check.advice:
                click.echo(f"          {check.advice}")
    report = examination.document(checks)
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False))
    if not report["ok"]:
        sys.exit(1)


def _flags(
    host: str | None, port: int | None, admin_host: str | None, admin_port: int | None, data_dir: Path | None
) -> dict[str, Any]:
    return {
        "public": {"host": host, "port": port},
        "admin": {"host": admin_host, "port": admin_port},
        "data_dir": str(data_dir.absolute()) if data_dir else None,
    }


def _called() -> str:
    """This program as the user can say it again: a path where it is not found by its name."""
    path = sys.argv[0]
    return path if Path(path).name == "loragate" and shutil.which("loragate") != path else "loragate"


def _rewritable(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") not in (None, "", "dumb")


def _run(options: Options, command: Callable[[str], str]) -> None:
    from gateway import server  # here: `doctor` must work where the gateway itself does not

    around = Surroundings(
        serve=server.serve_and_settle,
        display=Display(sys.stderr, clock=time.monotonic, terminal=_rewritable(sys.stderr)),
        out=sys.stdout,
        environ=os.environ,
        clock=time.time,
        command=command,
    )
    with asyncio.Runner(loop_factory=server.loop_factory()) as runner:
        runner.run(run_up(options, around))
