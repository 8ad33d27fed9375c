"""A fake engine that is a real server: vLLM 0.32.0's routes, answers and ways to fail, without a model.

In a test's loop: `async with FakeVLLM() as engine: ... engine.url, engine.requests, engine.script(Fault.RESET)`.
As a process: `python -m tests.fake_vllm --port 0 --model PATH` (unknown vLLM flags are accepted and ignored).
The shapes were recorded from a real engine; what differs on purpose: `fake_answers.py` says it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Self

from tests.fake_adapters import Adapters
from tests.fake_answers import problem
from tests.fake_faults import Fault, Scripted, misbehave
from tests.fake_routes import INFERENCE, Routes, parsed
from tests.fake_slots import EngineDied, Loaded, Slots
from tests.fake_wire import Connection, Reply, Seen
from tests.scripted_server import deaf

__all__ = ["FakeVLLM", "Fault", "Seen"]


class FakeVLLM:
    """One engine. `base` and `aliases` are its served names, `model_path` its `--model` (the base unless told).

    max_cpu_loras: copies of adapters that it keeps beside those in slots. shows_weights: what an adapter says begins
    with `<name>#<digest of the weights that computed it>#<model_path>` instead of the name alone.
    """

    def __init__(
        self,
        base: str = "demo-base",
        max_loras: int = 4,
        max_lora_rank: int = 16,
        adapter_dir: Path | None = None,
        api_key: str | None = None,
        *,
        max_cpu_loras: int = 0,
        shows_weights: bool = False,
        aliases: Sequence[str] = (),
        model_path: str | None = None,
        max_model_len: int = 4096,
        host: str = "127.0.0.1",
        port: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.slots = Slots(max_loras, max(max_loras, max_cpu_loras))
        self.adapters = Adapters([base, *aliases], model_path or base, max_lora_rank, adapter_dir, self.slots)
        self._routes = Routes(self.adapters, max_model_len, api_key, clock, shows_weights)
        self.deaths: list[str] = []  # why; who expects one clears it, any other fails the test
        self.gates: dict[str, asyncio.Event] = {}  # word in a request -> until when its answer stands still
        self.requests: list[Seen] = []
        self.live = self.accepted = self.aborted = 0
        self._host, self._port = host, port
        self._script: list[Scripted] = []
        self._hung = False
        self._server: asyncio.Server | None = None
        self._held: socket.socket | None = None
        self._connections: set[Connection] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._mistakes: list[BaseException] = []
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    # life

    async def __aenter__(self) -> Self:
        # Bound but not listening, so that the port stays ours (and refuses) while the engine is stopped.
        self._held = socket.socket()
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.bind((self._host, self._port))
        self._port = self._held.getsockname()[1]
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()
        if self._held is not None:
            self._held.close()
        if self._mistakes:
            raise self._mistakes[0]
        if self.deaths:
            raise AssertionError(f"the engine died: {self.deaths}")

    @property
    def url(self) -> str:
        """http://host:port, the same for the whole life."""
        return f"http://{self._host}:{self._port}"

    async def start(self) -> None:
        """Listen (again), healthy, with nothing loaded that was not loaded before."""
        self._hung = False
        if self._server is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(
                lambda: Connection(self._serve, self._opened, self._closed), self._host, self._port
            )

    async def stop(self) -> None:
        """The process is gone: the port refuses, connections drop, adapters are forgotten."""
        if self._server is not None:
            await deaf(self._server)
        self._refuse()
        while self._connections or self._ending:
            tasks = {c.task for c in self._connections if c.task is not None} | self._ending
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0)
        self.adapters.forget()

    async def restart(self) -> None:
        """Stop and start on the same port."""
        await self.stop()
        await self.start()

    def hang(self) -> None:
        """Accept and read, answer nothing, /health included, until start() or restart()."""
        self._hung = True

    async def close_idle(self) -> None:
        """Close the connections on which nothing is being answered (uvicorn does after 5 s)."""
        idle = {c for c in self._connections if not c.busy}
        for connection in idle:
            connection.transport.close()
        await self._until(lambda: not idle & self._connections)

    def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self._connections):
            connection.abort()

    # what tests read

    @property
    def loaded(self) -> dict[str, str]:
        """Engine name -> path of what is loaded now."""
        return self.adapters.loaded

    @property
    def loads(self) -> list[str]:
        """Names of all load calls, in order, refused ones too."""
        return self.adapters.loads

    @property
    def inferences(self) -> list[Seen]:
        """Only the inference requests of `requests`."""
        return [seen for seen in self.requests if seen.path in INFERENCE]

    @property
    def connections(self) -> int:
        """Connections open now (`accepted` counts all there ever were)."""
        return len(self._connections)

    async def idle(self) -> None:
        """Until no inference request is being worked on."""
        await self._until(lambda: self.live == 0)

    async def working(self, count: int) -> None:
        """Until at least `count` inference requests are being worked on."""
        await self._until(lambda: self.live >= count)

    async def seen(self, count: int) -> None:
        """Until at least `count` requests of any kind have arrived."""
        await self._until(lambda: len(self.requests) >= count)

    async def _until(self, true: Callable[[], bool]) -> None:
        if not true():
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append((true, future))
            await future

    def _note(self) -> None:
        for waiter in [waiter for waiter in self._waiters if waiter[0]()]:
            self._waiters.remove(waiter)
            if not waiter[1].done():
                waiter[1].set_result(None)

    # faults

    @property
    def lies(self) -> dict[str | None, str]:
        """Engine name (None: every adapter) -> whose weights answer for it, the base's or another adapter's.

        Loads say 200, lists and answers carry the name that was asked for; only what is said gives it away.
        """
        return self._routes.lies

    @property
    def says(self) -> dict[str, dict[str, str]]:
        """Engine name -> last user text -> what it answers to that in a chat."""
        return self._routes.says

    @property
    def sure(self) -> dict[str, float]:
        """Engine name -> log-probability of every token of a prompt."""
        return self._routes.sure

    def script(
        self,
        fault: Fault,
        *,
        times: int | None = 1,
        path: str | None = None,
        model: str | None = None,
        after: int = 2,
        status: int = 500,
        body: bytes | None = None,
        headers: Sequence[tuple[str, str]] = (),
        delay: float = 0.02,
        size: int = 0,
        location: str = "http://127.0.0.1:9/canary",
        undone: bool = False,
    ) -> None:
        """Spoil the next `times` matching requests (None: all of them); scripts are used up in order.

        `path` None means inference routes only. undone: what was asked for is not done either. What `after`, `status`,
        … do is said beside each `Fault`.
        """
        if fault is Fault.REFUSE:
            self._refuse()
            return
        if fault is Fault.STATUS and body is None:
            body = problem("The engine is busy.", "InternalServerError", status).body
        self._script.append(
            Scripted(fault, times, path, model, after, status, body, list(headers), delay, size, location, undone)
        )

    def heal(self) -> None:
        """Forget every script and stop hanging."""
        self._script.clear()
        self._hung = False

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Meanwhile no script spoils anything, and what is asked is not kept in `requests`."""
        script, self._script = self._script, []
        seen = len(self.requests)
        try:
            yield
        finally:
            self._script = script + self._script
            del self.requests[seen:]

    def _fault(self, path: str, model: str | None) -> Scripted | None:
        for entry in self._script:
            if entry.matches(path, model, inference=path in INFERENCE):
                if entry.times is not None:
                    entry.times -= 1
                    if entry.times <= 0:
                        self._script.remove(entry)
                return entry
        return None

    # connections

    def _opened(self, connection: Connection) -> None:
        self.accepted += 1
        self._connections.add(connection)

    def _closed(self, connection: Connection, task: asyncio.Task[None] | None) -> None:
        self._connections.discard(connection)
        self._note()
        if task is not None:
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _serve(self, connection: Connection, seen: Seen) -> None:
        self.requests.append(seen)
        inference = seen.path in INFERENCE
        self.live += inference
        self._note()
        try:
            await self._answer(connection, seen)
        except asyncio.CancelledError:
            self.aborted += inference
            raise
        except Exception as mistake:  # a bug of the fake itself must fail the test, not look like a fault
            self._mistakes.append(mistake)
            connection.abort()
        finally:
            self.live -= inference
            self._note()

    async def _answer(self, connection: Connection, seen: Seen) -> None:
        if self._hung:
            await asyncio.Event().wait()
        body = parsed(seen)
        model = body.get("model", body.get("lora_name")) if isinstance(body, dict) else None
        what = self._fault(seen.path, model)
        fails = what.after if what is not None and what.fault is Fault.ERROR_EVENT else None
        gate = next((gate for word, gate in self.gates.items() if word.encode() in seen.body), None)
        try:
            async with self._slot(model if seen.path in INFERENCE else None) as (used, weights):
                if what is not None and what.undone:
                    return await misbehave(connection, Reply(), what, keep_alive=seen.keep_alive)
                reply = self._routes.reply(seen, body, live=self.live, fails_after=fails, used=used, weights=weights)
                if what is None:
                    gate = gate if reply.status == 200 else None
                    await connection.reply(reply, keep_alive=seen.keep_alive, gate=gate)
                else:
                    await misbehave(connection, reply, what, keep_alive=seen.keep_alive)
        except EngineDied as why:
            self.deaths.append(str(why))
            self._refuse()
            self.adapters.forget()
            await asyncio.Event().wait()  # as everything else that ran, it is cut off

    @asynccontextmanager
    async def _slot(self, model: str | None) -> AsyncIterator[tuple[Loaded | None, str]]:
        """Wait for a place in the batch, and have it meanwhile: what computes, and the digest of its weights."""
        used = self.adapters.find(model)
        if used is None:
            yield None, ""
            return
        self.slots.came(used)
        try:
            while not self.slots.may_run(used):
                await self._until(lambda: self.slots.may_run(used))
        finally:
            self.slots.left(used)
        try:
            yield used, self.slots.begin(used)
        finally:
            self.slots.end(used)
            self._note()


# as a process


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fake_vllm", allow_abbrev=False)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--base", help="served name, where --served-model-name is not given")
    parser.add_argument("--model", help="path, as vLLM shows and compares it")
    parser.add_argument("--served-model-name", nargs="+", default=[])
    parser.add_argument("--api-key")
    parser.add_argument("--max-loras", type=int, default=4)
    parser.add_argument("--max-lora-rank", type=int, default=16)
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--start-delay", type=float, default=0.0, help="seconds before listening")
    parser.add_argument("--crash-after", type=float, help="seconds of serving before dying with exit 1")
    parser.add_argument("--refuse", help="print this as vLLM prints a refused model, exit 1")
    return parser.parse_known_args(argv)[0]


def _refused(message: str) -> int:
    """How vLLM ends when it does not take its model: a traceback whose telling line is not the last one."""
    lines = ["Traceback (most recent call last):", '  File "<frozen runpy>", line 198, in _run_module_as_main']
    lines.append("pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig")
    lines.append(f"  Value error, {message} [type=value_error, input_type=ArgsKwargs]")
    lines.append("    For further information visit https://errors.pydantic.dev/2.14/v/value_error")
    print("\n".join(lines), file=sys.stderr, flush=True)
    return 1


def _crashed() -> int:
    """How vLLM ends when its engine process dies: the cause in that process's own lines, above the last one."""
    core = "(EngineCore pid=2) ERROR 11-23 05:27:16 [core.py:1208]"
    lines = [f"{core} EngineCore encountered a fatal error.", f"{core} Traceback (most recent call last):"]
    lines.append(f"{core} RuntimeError: the fake engine was told to crash")
    lines.append("(APIServer pid=1) vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.")
    print("\n".join(lines), file=sys.stderr, flush=True)
    return 1


async def _run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    names = options.served_model_name or [options.base or options.model or "demo-base"]
    folder = environ.get("VLLM_LORA_RESOLVER_CACHE_DIR")
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await _wait(ended, options.start_delay)
    if ended.is_set():
        return 0
    engine = FakeVLLM(
        names[0],
        options.max_loras,
        options.max_lora_rank,
        Path(folder) if folder else None,
        options.api_key or environ.get("VLLM_API_KEY"),
        aliases=names[1:],
        model_path=options.model,
        max_model_len=options.max_model_len,
        host=options.host,
        port=options.port,
    )
    async with engine:
        print(engine.url, flush=True)
        print("INFO:     Application startup complete.", file=sys.stderr, flush=True)
        await _wait(ended, options.crash_after)
        return 0 if ended.is_set() else _crashed()


async def _wait(ended: asyncio.Event, seconds: float | None) -> None:
    """Until `ended`, at most `seconds` (None: for ever)."""
    try:
        await asyncio.wait_for(ended.wait(), seconds)
    except TimeoutError:
        return


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Serve until SIGTERM or SIGINT; the exit code."""
    options = _arguments(argv)
    return _refused(options.refuse) if options.refuse else asyncio.run(_run(options, environ))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
