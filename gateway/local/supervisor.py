"""Keeps one engine process alive: started, watched until ready, restarted with back-off, ended with its whole tree.

Held, it runs none until it is released. Knows a process that answers /health and /v1/models; must not know how its
command line came about, nor adapters.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import httpx

from gateway.local import pidfile
from gateway.local.engine import Launch
from gateway.local.enginelog import EngineLog
from gateway.local.errors import EngineRefused
from gateway.local.process import end_tree, kill_tree

BACKOFF_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
ATTEMPTS = 2  # starts that may end before the engine ever answered: a second try forgives a chance fault
PROBE_TIMEOUT_S = 5.0
STARTING_GRACE_S = 0.5  # of an engine that never answered: Ctrl-C during a start took 10 s


class State(StrEnum):
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"
    PAUSED = "paused"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Status:
    """What the engine is doing, why, since when (the clock's seconds), and how often it was restarted."""

    state: State
    reason: str
    since: float
    pid: int | None = None
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds: between two probes, of grace at the end, ready before the back-off is forgotten."""

    poll_s: float = 0.25
    grace_s: float = 10.0
    stable_s: float = 60.0
    backoff_s: tuple[float, ...] = BACKOFF_S


class Supervisor:
    """One engine. `run` it in a task; `ready` waits for it; cancelling `run` ends the engine."""

    def __init__(
        self, launch: Launch, log: EngineLog, pid_file: Path, *, clock: Callable[[], float], pace: Pace | None = None
    ) -> None:
        self._launch = launch
        self._log = log
        self._pid_file = pid_file
        self._clock = clock
        self._pace = pace or Pace()
        self._since_byte = 0
        self._ever_ready = False
        self._settled = asyncio.Event()  # ready or failed
        self._held = ""  # why no engine is to run
        self._hold = asyncio.Event()
        self._release = asyncio.Event()
        self._over = False
        self.last_end = ""  # how the engine ended last, for a person
        self.status = Status(State.STARTING, "not started yet", clock())

    def states(self) -> list[dict[str, Any]]:
        """This engine for /readyz and `loragate status`: plain JSON values."""
        status = self.status
        return [
            {
                "url": self._launch.url,
                "state": status.state.value,
                "model": self._launch.base,
                "reason": status.reason or None,
                "since": round(status.since, 3),
                "pid": status.pid,
                "restarts": status.restarts,
            }
        ]

    def stage(self) -> str:
        """What the engine says it is doing, by its own log; may be empty."""
        return self._log.stage(self._since_byte)

    async def ready(self) -> None:
        """Return once the engine answers; EngineRefused when it will not."""
        await self._settled.wait()
        if self.status.state is State.FAILED:
            raise EngineRefused(self.status.reason)

    def hold(self, reason: str) -> None:
        """From now on no engine runs, until `release`."""
        self._held = reason
        self._release.clear()
        self._hold.set()

    async def held(self) -> None:
        """Return once nothing of the engine runs, or it was released meanwhile."""
        while self._held and not self._over and self.status.state is not State.PAUSED:  # noqa: ASYNC110  # two events
            await asyncio.sleep(self._pace.poll_s)

    def release(self) -> None:
        """The engine is started again, and is ready when it is."""
        self._held = ""
        self._hold.clear()
        self._release.set()
        if self.status.state is State.PAUSED:
            self._set(State.STARTING, "the engine is starting")

    async def run(self) -> None:
        """Until cancelled, or until the engine refuses to start (then the state is `failed`, with the reason)."""
        failures = 0
        try:
            while True:
                await self._until_released()
                ready_s, code = await self._once()
                if code is None:
                    continue
                if not self._ever_ready and (verdict := self._refusal(failures + 1, code)):
                    self._set(State.FAILED, verdict)
                    return
                failures = 0 if ready_s > self._pace.stable_s else failures + 1
                pause = self._pace.backoff_s[min(failures, len(self._pace.backoff_s)) - 1] if failures else 0.0
                self.last_end = _ended(code)
                self._set(State.RESTARTING, f"{self.last_end}; started again in {pause:.0f} s", restarted=True)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._hold.wait(), pause)
        except OSError as exc:
            self._set(State.FAILED, f"The engine cannot be started: {exc.strerror or exc}: {self._launch.argv[0]}.")
        finally:
            if self.status.state is not State.FAILED:
                self._set(State.STOPPED, "stopped by loragate")
            self._over = True
            self._settled.set()

    def kill(self) -> None:
        """End the engine this instant, without grace: for a second Ctrl-C."""
        if self.status.pid is not None:
            kill_tree(self.status.pid)

    async def _until_released(self) -> None:
        while self._held:
            self._set(State.PAUSED, self._held)
            await self._release.wait()

    async def _once(self) -> tuple[float, int | None]:
        """One life of the engine: seconds that it was ready, and its exit code; None: ended by us, to be held."""
        self._log.cap()
        self._since_byte = self._log.size()
        child = await self._spawn()
        became_ready: float | None = None
        try:
            probe = asyncio.create_task(self._until_ready())
            exit_ = asyncio.create_task(child.wait())
            hold = asyncio.create_task(self._hold.wait())
            try:
                await asyncio.wait((probe, exit_, hold), return_when=asyncio.FIRST_COMPLETED)
                if probe.done():
                    probe.result()
                    became_ready = self._clock()
                    self._ever_ready = True
                    self._set(State.READY, "", pid=child.pid)
                    self._settled.set()
                    await asyncio.wait((exit_, hold), return_when=asyncio.FIRST_COMPLETED)
                code = exit_.result() if exit_.done() else None
            finally:
                for task in (probe, exit_, hold):
                    task.cancel()
                await asyncio.gather(probe, exit_, hold, return_exceptions=True)
            return (0.0 if became_ready is None else self._clock() - became_ready), code
        finally:  # also when the leader died by itself: its workers may live on
            await self._end(child)

    async def _spawn(self) -> asyncio.subprocess.Process:
        output = self._log.open()
        try:
            child = await asyncio.create_subprocess_exec(
                *self._launch.argv,
                env=dict(self._launch.env),
                cwd=self._launch.cwd,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        finally:
            os.close(output)
        pidfile.write(self._pid_file, child.pid, self._launch.port)
        self._set(State.STARTING, "the engine is starting", pid=child.pid)
        return child

    async def _end(self, child: asyncio.subprocess.Process) -> None:
        grace = self._pace.grace_s if child.returncode is None else 0.0
        if self.status.state is State.STARTING:  # nothing to finish, and vLLM hears no SIGTERM while it loads
            grace = min(grace, STARTING_GRACE_S)
        try:
            await end_tree(child.pid, grace_s=grace)
            await child.wait()
        finally:
            if child.returncode is None:  # cancelled a second time: no grace
                kill_tree(child.pid)
            self._pid_file.unlink(missing_ok=True)

    async def _until_ready(self) -> None:
        headers = {"authorization": f"Bearer {self._launch.api_key}"}
        async with httpx.AsyncClient(base_url=self._launch.url, timeout=PROBE_TIMEOUT_S, trust_env=False) as client:
            while True:
                with contextlib.suppress(httpx.HTTPError, ValueError, KeyError, TypeError):
                    if (await client.get("/health")).status_code == 200:
                        models = (await client.get("/v1/models", headers=headers)).json()["data"]
                        if any(model["id"] == self._launch.base for model in models):
                            return
                await asyncio.sleep(self._pace.poll_s)

    def _refusal(self, attempt: int, code: int) -> str | None:
        """The verdict over a start that ended before the engine answered; None: try once more."""
        error = self._log.last_error(self._since_byte)
        if attempt < ATTEMPTS and not self._log.decided(self._since_byte):
            return None
        said = f"vLLM's last error: {error}" if error else f"vLLM {_ended(code)} without a word"
        return f"The engine does not start with {self._launch.base}. {said.rstrip('.')}. Its log is {self._log.path}."

    def _set(self, state: State, reason: str, *, pid: int | None = None, restarted: bool = False) -> None:
        restarts = self.status.restarts + (1 if restarted else 0)
        self.status = Status(state, reason, self._clock(), pid, restarts)


def _ended(code: int) -> str:
    if code == -9:
        return "ended by signal 9 (out of memory, or killed)"
    return f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
