"""`loragate up`: everything on this machine, started in order, shown, guided to the first answer, and ended whole.

Owns the order and the signals before and after the gateway serves; while it serves they are the gateway's.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

from gateway.local import demo, pidfile, plan, welcome, worker
from gateway.local.adminclient import AdminClient, admin_url, public_url
from gateway.local.display import Display
from gateway.local.enginelog import EngineLog
from gateway.local.gatewaylog import to_file
from gateway.local.locks import hold
from gateway.local.places import Places
from gateway.local.plan import Options, Plan
from gateway.local.supervisor import Pace, State, Supervisor
from gateway.local.timings import Timings
from gateway.settings import Settings

WATCH_S = 0.5
HINT_S = 8.0  # an engine that runs is found within the probes' two seconds
PATIENCE_S = 1.0  # of somebody who has pressed Ctrl-C
SIGNALS = (signal.SIGINT, signal.SIGTERM)
TRY_FIRST = "customer-service"


class Serve(Protocol):
    """The gateway, until a signal or `stop`: gateway.server.serve."""

    def __call__(
        self,
        settings: Settings,
        *,
        local_engine: Supervisor | None = None,
        on_started: Callable[[Any], Awaitable[None]] | None = None,
        stop: asyncio.Event | None = None,
    ) -> Awaitable[None]: ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What `up` is given: the gateway to run, where to write, the caller's environment, the wall clock."""

    serve: Serve
    display: Display
    out: TextIO
    environ: Mapping[str, str]
    clock: Callable[[], float]
    command: Callable[[str], str] = "loragate {}".format  # how a command is said at the caller's shell
    pace: Pace | None = None


async def up(options: Options, around: Surroundings) -> None:
    """Return after a signal with nothing left running. ServiceError with a sentence when it cannot go on."""
    places = Places(options.settings.data_dir)
    places.prepare()
    taken = (
        f"loragate already runs here (process {{pid}}) with the data directory {places.data}. "
        "Stop it first, or start a second one with another --data-dir and other ports."
    )
    with hold(places.lock, taken):
        orphan = await pidfile.end_orphan(places.engine_pid)
        if orphan is not None:
            around.display.say(f"Ended the engine (process {orphan}) that an earlier run had left behind.")
        settings = plan.with_ports(options.settings)
        with _cancelled_by_signals() as cancelled:
            try:
                made = await plan.make(
                    Options(settings, options.model, options.vllm_flags),
                    places,
                    environ=around.environ,
                    display=around.display,
                    clock=around.clock,
                )
            except asyncio.CancelledError:
                if not cancelled():
                    raise
                around.display.end("stopped")
                return
        with to_file(places.gateway_log, settings.log.level):
            await _run(made, places, around)


async def _run(made: Plan, places: Places, around: Surroundings) -> None:
    """The gateway at once, the engine beside it, and the guide until the first answer is possible."""
    stop, started = asyncio.Event(), asyncio.Event()
    async with _engine(made, places, around) as supervisor, worker.beside(places, around.environ, started):

        async def on_started(_: Any) -> None:
            started.set()

        serving = asyncio.ensure_future(
            around.serve(
                made.settings,
                local_engine=supervisor,
                on_started=on_started,
                stop=stop,
            )
        )
        guide = asyncio.create_task(_guide(made, places, around, supervisor, started))
        farewell = asyncio.create_task(_farewell(made, around.display, stop, guide, serving))
        try:
            await asyncio.wait((serving, guide), return_when=asyncio.FIRST_COMPLETED)
            if _broke(guide):
                stop.set()
            await serving
        finally:
            guide.cancel()
            stop.set()
            results = await asyncio.gather(guide, serving, return_exceptions=True)
            farewell.cancel()
            await asyncio.gather(farewell, return_exceptions=True)
            around.display.end("stopped")
        if isinstance(results[0], Exception):
            raise results[0]


async def _farewell(
    made: Plan, display: Display, stop: asyncio.Event, guide: asyncio.Task[None], serving: asyncio.Future[None]
) -> None:
    """Ctrl-C is heard at once, and a stop that takes longer says why."""
    await stop.wait()
    if serving.done() or _broke(guide):
        return  # nobody asked for it: whoever called us says what went wrong
    if not guide.done():
        guide.cancel()
        await asyncio.gather(guide, return_exceptions=True)
        display.end("stopped")
    display.say("Stopping.")
    await asyncio.sleep(PATIENCE_S)
    drain = made.settings.drain
    display.say(
        f"Answers on their way have {drain.delay_s + drain.timeout_s:.0f} s to end. Ctrl-C again cuts them off."
    )


def _broke(task: asyncio.Task[None]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is not None


@contextlib.asynccontextmanager
async def _engine(made: Plan, places: Places, around: Surroundings) -> AsyncIterator[Supervisor | None]:
    """The supervised engine for the block; at its end it is ended, and a signal meanwhile ends it at once."""
    if made.launch is None:
        yield None
        return
    supervisor = Supervisor(
        made.launch, EngineLog(places.engine_log), places.engine_pid, clock=around.clock, pace=around.pace
    )
    running = asyncio.create_task(supervisor.run())
    try:
        yield supervisor
    finally:
        with _on_signals(supervisor.kill):
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def _guide(
    made: Plan, places: Places, around: Surroundings, supervisor: Supervisor | None, started: asyncio.Event
) -> None:
    """Wait for the engine, fill a fresh gateway, print what to paste. CannotStart, EngineRefused."""
    await started.wait()
    if supervisor is not None and made.launch is not None:
        await _until_engine(supervisor, places, around, f"engine-start:{made.launch.base}")
    async with AdminClient(made.settings, places.admin_key) as client:
        await _until_ready(client, around, waited_for=made.launch is None)
        around.display.end("ready")
        if made.demo:
            await demo.register(client, places, around.display)
        key = await demo.ensure_key(client, places)
        models = sorted(await client.models(key) or [], key=lambda name: name != TRY_FIRST)
    question = (demo.question(models[0]) if made.demo and models else None) or "Say hello in one sentence."
    around.out.write(
        welcome.text(
            public_url(made.settings),
            admin_url(made.settings),
            places,
            models=models,
            question=question,
            demo=made.demo,
            local_engine=made.launch is not None,
            command=around.command,
            home=around.environ.get("HOME"),
        )
    )
    around.out.flush()
    if supervisor is not None:
        await _tell_restarts(supervisor, around.display)


async def _tell_restarts(supervisor: Supervisor, display: Display) -> None:
    """For as long as it serves: an engine that ended says why on the terminal too, not only in the log."""
    told, back = supervisor.status.restarts, True
    while True:
        status = supervisor.status
        if status.restarts != told:
            told, back = status.restarts, False
            display.say(f"vLLM {supervisor.last_end} and is started again. Its log says more.")
        elif back and status.state is State.PAUSED:
            back = False
            display.say(f"vLLM was ended: {status.reason}.")
        elif not back and status.state is State.READY:
            back = True
            display.say("vLLM is ready again.")
        await asyncio.sleep(WATCH_S)


async def _until_ready(client: AdminClient, around: Surroundings, *, waited_for: bool) -> None:
    """`waited_for`: the engine is not ours, so it may come later, or never: the person decides."""
    began, told = around.clock(), not waited_for
    while reasons := await client.reasons():
        summary, _, detail = reasons[0].partition(": ")
        if not told and around.clock() - began > HINT_S:
            told = True
            around.display.say(f"{(detail or summary).rstrip('.')}{'' if detail.endswith('?') else '.'}")
            around.display.say("It is asked again until it is ready. Ctrl-C ends that.")
        around.display.show("Waiting for the gateway to be ready", summary)
        await asyncio.sleep(WATCH_S)


async def _until_engine(supervisor: Supervisor, places: Places, around: Surroundings, timing: str) -> None:
    timings, began = Timings(places.timings), around.clock()
    expected = timings.last(timing)
    ready = asyncio.create_task(supervisor.ready())
    try:
        while not ready.done():
            left = expected - (around.clock() - began) if expected else None
            status = supervisor.status
            waits = status.state in (State.RESTARTING, State.PAUSED)
            far = status.reason if waits else supervisor.stage() or "loading its libraries"
            around.display.show("Starting vLLM", far, left)
            await asyncio.wait((ready,), timeout=WATCH_S)
        ready.result()
    except asyncio.CancelledError:
        around.display.end("stopped")
        raise
    except BaseException:
        around.display.end("failed")
        raise
    finally:
        ready.cancel()
    around.display.end("ready")
    timings.keep(timing, around.clock() - began)


@contextlib.contextmanager
def _cancelled_by_signals() -> Iterator[Callable[[], bool]]:
    """For the block a signal cancels this task; the value tells whether one did."""
    task = asyncio.current_task()
    hits: list[int] = []

    def on_signal() -> None:
        hits.append(1)
        if task is not None:
            task.cancel()

    with _on_signals(on_signal):
        yield lambda: bool(hits)
    if hits and task is not None:
        task.uncancel()


@contextlib.contextmanager
def _on_signals(call: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    try:
        for number in SIGNALS:
            loop.add_signal_handler(number, call)
    except (ValueError, RuntimeError, NotImplementedError):  # not the main thread: whoever runs us cancels us
        yield
        return
    try:
        yield
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
