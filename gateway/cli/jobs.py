"""`loragate jobs …`: list, show, watch, cancel, pause, resume, prioritise, chat; events and the trainer's log."""

from __future__ import annotations

from typing import Any

import click

from gateway.cli import output
from gateway.cli.client import segment
from gateway.cli.session import Session, session

PATH = "/admin/v1/jobs"
STATES = ("validating", "queued", "running", "paused", "succeeded", "failed", "cancelled")
COLUMNS = ("ID", "NAME", "STATE", "STEP", "LOSS", "LEFT", "OWNER", "CREATED")


@click.group()
def jobs() -> None:
    """Training jobs: what waits, what runs, what became of it.

    Example: loragate jobs watch ftjob-2Xc4yVq9LmPz7RkD1nWbT8sH
    """


@jobs.command("list", epilog="Example: loragate jobs list --state running --state queued")
@click.option("--state", "states", multiple=True, type=click.Choice(STATES), help="Only these; repeatable.")
@click.option("--after", help="Id of the last job already seen.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
@session
def list_jobs(gateway: Session, states: tuple[str, ...], after: str | None, limit: int) -> None:
    """Everybody's jobs, the newest first."""
    query = {"state": list(states) or None, "after": after, "limit": limit}
    gateway.show(gateway.call("GET", PATH, query=query), _listed)


@jobs.command(epilog="Example: loragate jobs show ftjob-2Xc4yVq9LmPz7RkD1nWbT8sH")
@click.argument("job_id", metavar="ID")
@session
def show(gateway: Session, job_id: str) -> None:
    """One job: its newest figures, and what became of it."""
    gateway.show(gateway.call("GET", f"{PATH}/{segment(job_id)}"), shown)


@jobs.command(epilog="Example: loragate jobs watch ftjob-2Xc4yVq9LmPz7RkD1nWbT8sH")
@click.argument("job_id", metavar="ID")
@session
def watch(gateway: Session, job_id: str) -> None:
    """Follow a job to its end: step, loss, learning rate, tokens per second, and how long it will take.

    One live line on a terminal, plain lines elsewhere. Exit code 0 if it succeeded, 1 if it failed or was cancelled.
    Ctrl-C ends the watching, not the job.
    """
    from gateway.cli.watching import watched

    watched(gateway, job_id, shown)


@jobs.command(epilog="Example: loragate jobs cancel ftjob-2Xc4yVq9LmPz7RkD1nWbT8sH --keep")
@click.argument("job_id", metavar="ID")
@click.option(
    "--keep", is_flag=True, help="Leave what was trained so far in the job's folder; it is registered nowhere."
)
@session
def cancel(gateway: Session, job_id: str, keep: bool) -> None:
    """End a job for good."""
    gateway.show(gateway.call("POST", f"{PATH}/{segment(job_id)}/cancel", body={"keep": keep}), _changed)


@jobs.command(epilog="Example: loragate jobs pause ftjob-2Xc4yVq9LmPz7RkD1nWbT8sH")
@click.argument("job_id", metavar="ID")
@session
def pause(gateway: Session, job_id: str) -> None:
    """Stop a job at a whole checkpoint, to go on from there."""
    gateway.show(gateway.call("POST", f"{PATH}/{segment(job_id)}/pause"), _changed)


@jobs.command(epilog="Example: loragate jobs resume ftjob-2Xc4yVq9LmPz7RkD1nWbT8sH")
@click.argument("job_id", metavar="ID")
@session
def resume(gateway: Session, job_id: str) -> None:
    """Let a paused job queue again."""
    gateway.show(gateway.call("POST", f"{PATH}/{segment(job_id)}/resume"), _changed)


@jobs.command(epilog="Example: loragate jobs prioritise ftjob-2Xc4yVq9LmPz7RkD1nWbT8sH 10")
@click.argument("job_id", metavar="ID")
@click.argument("priority", type=click.IntRange(-100, 100))
@session
def prioritise(gateway: Session, job_id: str, priority: int) -> None:
    """Let a job that waits come sooner (or, after `--`, with a number below 0, later)."""
    answer = gateway.call("POST", f"{PATH}/{segment(job_id)}/priority", body={"priority": priority})
    gateway.show(answer, _changed)


@jobs.command(epilog="Example: loragate jobs events ftjob-2Xc4yVq9LmPz7RkD1nWbT8sH")
@click.argument("job_id", metavar="ID")
@click.option("--after", type=click.IntRange(min=0), default=0, help="Number of the last event already seen.")
@click.option("--limit", type=click.IntRange(1, 1000), default=1000, show_default=True)
@session
def events(gateway: Session, job_id: str, after: int, limit: int) -> None:
    """What happened to a job, the oldest first."""
    answer = gateway.call("GET", f"{PATH}/{segment(job_id)}/events", query={"after": after, "limit": limit})
    gateway.show(answer, _told)


@jobs.command(epilog='Example: loragate jobs chat ftjob-2Xc4yVq9LmPz7RkD1nWbT8sH --say "Where is my parcel?"')
@click.argument("job_id", metavar="ID")
@click.option("--step", type=click.IntRange(1), help="Of the checkpoint.  [default: the newest whole one]")
@click.option("--say", help="Ask this, and print the answer.")
@click.option("--end", is_flag=True, help="None of its checkpoints can be asked any more; the job goes on.")
@click.option("--url", help="The gateway's public port; else LORAGATE_URL, else this machine's.")
@session
def chat(gateway: Session, job_id: str, step: int | None, say: str | None, end: bool, url: str | None) -> None:
    """Ask a checkpoint of a job that runs or is paused.

    It becomes a model of its own until the job ends, which no application meets by itself: its name is printed, and a
    command that asks it. The run is not disturbed.
    """
    from gateway.cli.chatting import chatted, ended

    if not end:
        chatted(gateway, job_id, step, say, url)
        return
    if step is not None or say is not None:
        raise click.UsageError("--end goes without --step and --say.")
    ended(gateway, job_id)


@jobs.command(epilog="Example: loragate jobs log ftjob-2Xc4yVq9LmPz7RkD1nWbT8sH --bytes 100000")
@click.argument("job_id", metavar="ID")
@click.option("--bytes", "amount", type=click.IntRange(1, 1024 * 1024), default=16 * 1024, show_default=True)
@click.option("--follow", "-f", is_flag=True, help="Go on until the job has ended.")
@session
def log(gateway: Session, job_id: str, amount: int, follow: bool) -> None:
    """The end of what the trainer printed."""
    from gateway.cli.watching import followed, printed

    answer = gateway.call("GET", f"{PATH}/{segment(job_id)}/log", query={"bytes": amount})
    if not follow or gateway.as_json:
        gateway.show(answer, lambda found: printed(found["text"]))
        return
    followed(gateway, job_id, answer)


def _listed(page: dict[str, Any]) -> None:
    items = page["data"]
    if items:
        output.table(COLUMNS, [_row(job) for job in items])
    output.more(items, page["has_more"], items[-1]["id"] if items else None)


def _row(job: dict[str, Any]) -> tuple[object, ...]:
    progress = job["progress"] or {}
    running = job["state"] == "running"
    loss = progress.get("loss")
    return (
        job["id"],
        job["name"],
        state(job),
        steps(progress),
        f"{loss:.4g}" if loss is not None else None,
        span(progress.get("eta_s")) if running else None,
        job["owner"] or "operator",
        output.moment(job["created_at"]),
    )


def shown(job: dict[str, Any]) -> None:
    progress, result, error = job["progress"] or {}, job["result"] or {}, job["error"] or {}
    tried = ", ".join(f"{name}={value}" for name, value in (error.get("try_this") or {}).items())
    running = job["state"] == "running"
    output.pairs(
        [
            ("id", job["id"]),
            ("name", job["name"]),
            ("state", state(job)),
            ("progress", line(progress, running) or None),
            ("outcome", job["outcome"]),
            ("model", result.get("public_name") if job["outcome"] in ("promoted", "canary") else result.get("model")),
            ("verdict", result.get("verdict")),
            ("error", error.get("message")),
            ("try", f"--set {tried}" if tried else None),
            ("owner", job["owner"] or "operator"),
            ("priority", job["priority"]),
            ("created", output.moment(job["created_at"])),
            ("started", output.moment(job["started_at"])),
            ("finished", output.moment(job["finished_at"])),
        ]
    )


def _changed(job: dict[str, Any]) -> None:
    click.echo(f"{output.text(job['id'])} is {state(job)}.")


def _told(page: dict[str, Any]) -> None:
    items = page["data"]
    if items:
        rows = [(each["id"], output.moment(each["at"]), each["level"], each["message"]) for each in items]
        output.table(("EVENT", "WHEN", "LEVEL", "WHAT"), rows)
    output.more(items, page["has_more"], items[-1]["id"] if items else None)


def state(job: dict[str, Any]) -> str:
    """`running (training)`, and what was asked of it meanwhile."""
    said = str(job["state"])
    if job["phase"] and said == "running":
        said += f" ({job['phase']})"
    if job["wish"]:
        said += f", asked to {job['wish']}"
    return said


def steps(progress: dict[str, Any]) -> str | None:
    """`120/640`."""
    if not progress.get("step"):
        return None
    return f"{progress['step']}/{progress['steps']}" if progress.get("steps") else str(progress["step"])


def line(progress: dict[str, Any], running: bool) -> str:
    """`step 120/640, 19 %, loss 0.4321, learning rate 1e-04, 3,210 tokens/s, 2 min 10 s left`, as far as is known."""
    done, of = progress.get("step"), progress.get("steps")
    parts = [f"step {steps(progress)}"] if done else []
    parts += [f"{100 * done / of:.0f} %"] if done and of else []
    for name, words, form in (
        ("loss", "loss", ".4g"),
        ("valid_loss", "validation loss", ".4g"),
        ("learning_rate", "learning rate", ".2e"),
        ("grad_norm", "gradient", ".3g"),
    ):
        if progress.get(name) is not None:
            parts.append(f"{words} {progress[name]:{form}}")
    if progress.get("tokens_per_s"):
        parts.append(f"{progress['tokens_per_s']:,.0f} tokens/s")
    if running and progress.get("eta_s") is not None:
        parts.append(f"{span(progress['eta_s'])} left")
    return ", ".join(parts)


def span(seconds: object) -> str | None:
    """Seconds as a person says them: `45 s`, `2 min 10 s`, `3 h 5 min`, `2 d 4 h`."""
    if not isinstance(seconds, int | float):
        return None
    left = round(seconds)
    for size, unit, inner, below in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if left >= size:
            rest = left % size // inner
            return f"{left // size} {unit}" + (f" {rest} {below}" if rest else "")
    return f"{left} s"
