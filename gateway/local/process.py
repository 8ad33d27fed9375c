"""Child processes and their whole trees: run one to its end, or end one with everything that it started.

A killed parent leaves grandchildren behind, and a first process that does not reap leaves zombies: so trees are
found by session as well as by parent, and a zombie counts as gone. Must not know what the processes are for.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

TAIL_LINES = 200
KILL_WAIT_S = 10.0  # a process in an uninterruptible disk wait may outlive SIGKILL for a while
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Outcome:
    """Exit code (negative: the signal that ended it) and the last lines of what it printed."""

    code: int
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


async def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path | None = None,
    on_line: Callable[[str], None] | None = None,
) -> Outcome:
    """Run a child to its end, its lines given to `on_line`; cancelled, the child's whole tree is ended first.

    OSError when the program cannot be started.
    """
    child = await asyncio.create_subprocess_exec(
        *argv,
        env=dict(env),
        cwd=cwd,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
        limit=1 << 20,
    )
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    try:
        output = child.stdout or asyncio.StreamReader()  # always there with PIPE; typed as if it were not
        async for raw in output:
            line = raw.decode("utf-8", "replace").rstrip()
            tail.append(line)
            if on_line is not None:
                on_line(line)
        return Outcome(await child.wait(), tuple(tail))
    finally:
        if child.returncode is None:
            kill_tree(child.pid)
            await child.wait()


def tree(leader: int, *, created: float | None = None) -> list[psutil.Process]:
    """The living processes of `leader`'s tree: itself, its descendants, and its session where it leads one.

    `created` is the leader's start time: a later process that got the same number is then left alone.
    """
    found: dict[int, psutil.Process] = {}
    try:
        head = psutil.Process(leader)
        if created is not None and abs(head.create_time() - created) > 0.5:
            return []
        found = {process.pid: process for process in (head, *head.children(recursive=True))}
    except psutil.NoSuchProcess:
        pass
    for process in psutil.process_iter():
        if process.pid not in found and _in_session(process, leader, created):
            found[process.pid] = process
    return [process for process in found.values() if alive(process)]


def _in_session(process: psutil.Process, leader: int, created: float | None) -> bool:
    try:
        return os.getsid(process.pid) == leader and (created is None or process.create_time() >= created - 0.5)
    except (ProcessLookupError, PermissionError, psutil.Error):
        return False


def alive(process: psutil.Process) -> bool:
    """Running and not a zombie; a process that may not be looked at counts as alive."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def kill_tree(leader: int, *, created: float | None = None) -> None:
    """SIGKILL to every process of the tree, now; again for those that were being born meanwhile."""
    for _ in range(3):
        members = tree(leader, created=created)
        if not members:
            return
        _signal(members, signal.SIGKILL)


async def end_tree(leader: int, *, created: float | None = None, grace_s: float) -> bool:
    """SIGTERM, then SIGKILL to what is left after `grace_s`. True when nothing of the tree lives any more.

    The leader is asked first, for it ends its own workers in order; they are asked themselves once it is gone, or
    has not managed in half of the grace.
    """
    loop = asyncio.get_running_loop()
    began, asked = loop.time(), set[int]()
    members = tree(leader, created=created)
    while members:
        spent = loop.time() - began
        if spent > grace_s + KILL_WAIT_S:
            return False
        if spent >= grace_s:
            _signal(members, signal.SIGKILL)
        else:
            lead = [process for process in members if process.pid == leader and spent < grace_s / 2]
            _signal([process for process in lead or members if process.pid not in asked], signal.SIGTERM)
            asked.update(process.pid for process in lead or members)
        await asyncio.sleep(POLL_S)
        members = _left(members, leader, created)
    return True


def _left(members: Sequence[psutil.Process], leader: int, created: float | None) -> list[psutil.Process]:
    known = {process.pid: process for process in (*members, *tree(leader, created=created))}
    return [process for process in known.values() if alive(process)]


def _signal(members: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in members:
        try:
            process.send_signal(number)  # psutil checks the start time first: a reused number is not hit
        except psutil.Error:
            continue
