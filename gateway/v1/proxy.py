"""The life of one inference request, top to bottom: who, what, how much, where, and the way back.

`answer` is a list of steps; each lives in the file that its name says. Owns what is released at the end,
whatever happened. Must not know SQL, sockets or where the snapshot comes from.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from adapters.errors import ServiceError
from gateway.errors import ModelLoading, Overloaded, ShuttingDown, UpstreamError, UpstreamTimeout
from gateway.errors import UpstreamUnavailable as UpstreamUnavailable
from gateway.metrics import NO_MODEL, Metrics, add
from gateway.settings import Settings
from gateway.v1 import fields, wire
from gateway.v1.admission import Admission, Ticket
from gateway.v1.auth import Authenticator
from gateway.v1.dialect import prepare
from gateway.v1.exchange import ClientGone, Exchange
from gateway.v1.flow import PAUSE
from gateway.v1.limits import Ledger, Reservation
from gateway.v1.meter import BodyMeter, StreamMeter, WatchedMeter, finish_of, usage_of
from gateway.v1.routing import Fleet, Replica, resolve
from gateway.v1.snapshot import EMPTY, Key, Snapshot, Target
from gateway.v1.split import Part, split
from gateway.v1.upstream import Fault

log = logging.getLogger("loragate.proxy")

BYTES_PER_TOKEN = 3  # a reservation's guess; English text has about 4, Chinese about 3
DEFAULT_ANSWER_TOKENS = 1024  # reserved where the caller names no max_tokens
HOLD_BYTES = 1024 * 1024  # a whole answer up to here is held, so that a broken one becomes a 502
LOST_MAX = 3  # replicas in a row that do not know what they should have: after restarts, in a fleet

UNSENT = frozenset({Fault.REFUSED, Fault.CONNECT_TIMEOUT})
TRY_ELSEWHERE = UNSENT | {Fault.RESET, Fault.CUT, Fault.PROTOCOL, Fault.POOL_FULL}
OUR_OWN = frozenset({Fault.POOL_FULL, Fault.CLOSED})  # no fault of the engine's

RecordUsage = Callable[[str, str, int, int], None]  # key id, public name, prompt tokens, completion tokens
Observe = Callable[[Part, str, float, int, bool], None]  # its part, code, seconds, completion tokens, streamed


@dataclass(slots=True)
class Work:
    """What one request has taken and must give back."""

    key: Key | None = None
    target: Target | None = None
    reservation: Reservation | None = None
    replica: Replica | None = None
    in_flight: bool = False
    sent: bool = False  # an engine has seen it
    prompt_guess: int = 0
    usage: tuple[int, int] | None = None  # prompt, completion: as the engine said
    part: Part | None = None  # in a canary, where the name asked for has one
    code: str = "500"


class Proxy:
    """What all requests of one process share."""

    def __init__(
        self,
        settings: Settings,
        fleet: Fleet,
        ledger: Ledger,
        admission: Admission,
        metrics: Metrics,
        record_usage: RecordUsage,
        ensure_loaded: Callable[[Target], Awaitable[None]],
        auth: Authenticator,
        clock: Callable[[], float],
        wall: Callable[[], float],
        new_request_id: Callable[[], bytes],
    ) -> None:
        self.settings = settings
        self.caps = settings.caps
        self.fleet = fleet
        self.ledger = ledger
        self.admission = admission
        self.metrics = metrics
        self.clock = clock
        self.wall = wall
        self.new_request_id = new_request_id
        self.hold_bytes = HOLD_BYTES
        self.snapshot: Snapshot = EMPTY
        self.fresh_until = float("inf")  # the clock's seconds: later than that one asks `catch_up` first
        self.catch_up: Callable[[], Awaitable[None]] | None = None
        self.draining = False
        self.paused = ""  # why no engine is to be asked
        self.observe: Observe | None = None  # told of every request that took part in a canary
        self._record_usage = record_usage
        self._ensure_loaded = ensure_loaded
        self.auth = auth

    async def answer(self, x: Exchange) -> None:
        """Everything that happens to one request. Ends with the answer written or the connection cut."""
        work = Work()
        try:
            if x.received > self.fresh_until and self.catch_up is not None:
                await self.catch_up()
            checked = self._admit_caller(x, work)
            ticket = self._enter(x, work)
            if ticket is not None:
                await self._queue(x, work, ticket)
            stream = checked.stream and x.dialect.streams
            await self._ask_engine(x, work, checked, stream)
            if stream:
                await self._pass_stream(x, work, checked)
            elif x.ended:
                self._pass_whole(x, work)
            else:
                await self._pass_large(x, work)
            work.code = "200"
        except ServiceError as error:
            self._refuse(x, work, error)
        except ClientGone:
            self.metrics.client_closed += 1
            work.code = "499"
        except Exception:
            log.exception("request %s failed inside the gateway", x.request_id.decode())
            self._refuse(x, work, ServiceError("The gateway failed on this request. The operator's log says more."))
        finally:
            self._close(x, work)

    # The way in ----------------------------------------------------------------------------------------

    def _admit_caller(self, x: Exchange, work: Work) -> fields.Checked:
        """Key, body, model, limits: all from memory, nothing waits."""
        if self.draining:
            raise ShuttingDown("This gateway is shutting down. Send the request again.", retry_after_s=1)
        snapshot, wall = self.snapshot, self.wall()
        key = work.key = self.auth.authenticate(x.headers, snapshot.keys, wall)
        if self.paused:
            raise ModelLoading(f"No model answers now: {self.paused}. Try again later.", retry_after_s=60)
        body = wire.parse(x.body, self.caps.depth)
        checked = fields.check(x.dialect.fields, body, self.caps)
        target = resolve(snapshot, key, checked.model)
        if target.canary is not None:
            work.part = split(target, target.canary, key.id, body)
            target = work.part.target
        work.target = target
        work.prompt_guess = len(x.body) // BYTES_PER_TOKEN + 1
        x.body = b""  # parsed: no need for it twice
        tokens = work.prompt_guess
        if x.dialect.generates:
            tokens += checked.n * (checked.max_tokens or DEFAULT_ANSWER_TOKENS)
        try:
            work.reservation = self.ledger.reserve(
                key.id, key.limits, target.name, target.limits, tokens, x.received, wall
            )
        except ServiceError as error:
            add(self.metrics.limited, error.code)
            raise
        return checked

    def _enter(self, x: Exchange, work: Work) -> Ticket | None:
        """A place in flight, or a ticket for the short queue."""
        try:
            ticket = self.admission.enter(x.flow.resume, x.received)
        except Overloaded:
            add(self.metrics.shed, "queue_full")
            raise
        work.in_flight = ticket is None
        return ticket

    async def _queue(self, x: Exchange, work: Work, ticket: Ticket) -> None:
        try:
            while not ticket.admitted and not ticket.expired:
                await PAUSE
        finally:
            work.in_flight = ticket.admitted
            ticket.left = not ticket.admitted
        if ticket.expired:
            add(self.metrics.shed, "queue_timeout")
            raise Overloaded("The gateway was too busy to start this request in time.", retry_after_s=2)
        self.metrics.queue_seconds.observe(self.clock() - x.received)

    # The engine ----------------------------------------------------------------------------------------

    async def _ask_engine(self, x: Exchange, work: Work, checked: fields.Checked, stream: bool) -> None:
        """Send it to a replica that has the weights; once more to another if nothing came back."""
        target = _target(work)
        body = prepare(x.dialect, checked, target.engine_name, target.thinking)
        tried: Replica | None = None
        lost = 0  # replicas that turned out not to have it
        while True:
            replica = self.fleet.pick(target, tried)
            if replica is None:
                if work.part is not None:
                    work.part.waited = True
                replica = await self._choose(target)
            self._send(x, work, replica, body, stream)
            while not x.settled:
                await PAUSE
            error = self._verdict(x, work, replica)
            if error is None:
                return
            self.fleet.give_back(replica, target)
            work.replica = None
            if isinstance(error, ModelLoading) and lost < min(len(self.fleet.replicas), LOST_MAX):
                lost += 1
                x.forget_answer()
                continue
            again = tried is None and self.fleet.pick(target, replica) is not None
            if x.fault in UNSENT and self.fleet.refused(replica, x.received, self.clock()):
                again = True
            if not again or not isinstance(error, _Elsewhere):
                raise error.public() if isinstance(error, _Elsewhere) else error
            tried = replica
            x.forget_answer()

    async def _choose(self, target: Target) -> Replica:
        """No ready replica has it, or only the one that just failed: have it loaded, or say why not."""
        fleet = self.fleet
        if not fleet.any_ready() and self.clock() >= fleet.expected_until:
            raise UpstreamUnavailable("No engine is ready. GET /readyz says why.", retry_after_s=5)
        for _ in range(2):  # what was loaded may have been put out again in between
            if fleet.pick(target) is None:
                await self._ensure_loaded(target)
            replica = fleet.pick(target)
            if replica is not None:
                return replica
        raise ModelLoading(f"The model `{target.name}` is being loaded. Try again shortly.", retry_after_s=2)

    def _send(self, x: Exchange, work: Work, replica: Replica, body: bytes, stream: bool) -> None:
        x.stream, work.replica = stream, replica
        self.fleet.take(replica, _target(work))
        begins_late = x.dialect.generates and not stream
        x.call = replica.upstream.post(x.dialect.path, body, x, x.request_id.decode(), begins_late)
        if not work.sent:
            self.metrics.overhead_seconds.observe(self.clock() - x.received)
        work.sent = True

    def _verdict(self, x: Exchange, work: Work, replica: Replica) -> ServiceError | None:
        """What the first news of an attempt mean, for the caller and for the replica's standing."""
        if x.fault is not None:
            if x.fault not in OUR_OWN:
                self._blame(replica, x.fault.value, x.fault_detail)
            if x.fault in TRY_ELSEWHERE:
                work.sent = x.fault in (Fault.RESET, Fault.CUT, Fault.PROTOCOL)
                return _Elsewhere(_CODES[x.fault])
            return _fault_error(x.fault)
        status = x.status
        if status == 200:
            wanted = b"text/event-stream" if x.stream else b"application/json"
            if x.header(b"content-type").startswith(wanted):
                return None
            self._blame(replica, "protocol", "unexpected content type")
            if x.call is not None:
                x.call.cancel()
            return _Elsewhere("upstream_protocol_error")
        if status == 429 or status == 503:
            return _Elsewhere("overloaded")
        if 400 <= status < 500:
            self.fleet.succeeded(replica)  # it answers: the mistake is the caller's
            target = _target(work)
            error = wire.from_engine_error(status, b"".join(x.parts), target.answer_name, target.engine_name)
            if isinstance(error, ModelLoading):
                replica.resident -= {target.engine_name}
            elif work.reservation is not None:
                work.reservation.settle(0)  # nothing was generated, yet it counts as a request
            work.sent = False
            return error
        self._blame(replica, f"http_{status}", f"HTTP {status}", _target(work))
        return _Elsewhere("upstream_protocol_error" if status < 400 else "upstream_error")

    def _blame(self, replica: Replica, kind: str, detail: str, weights: Target | None = None) -> None:
        add(self.metrics.upstream_errors, replica.url, kind)
        adapter = weights.engine_name if weights is not None and weights.version is not None else ""
        self.fleet.failed(replica, detail or kind, self.clock(), adapter)

    # The way back --------------------------------------------------------------------------------------

    def _pass_whole(self, x: Exchange, work: Work) -> None:
        """One JSON body that was held until it was whole."""
        target = _target(work)
        body = b"".join(x.parts)  # of one part, that part itself
        work.usage = usage_of(x.dialect, body)
        if work.usage is None and (x.dialect.generates or not wire.is_object(body)):
            self._blame(_replica(work), "protocol", "not the JSON it said it was")
            raise UpstreamError("The engine's answer was not valid. Try again.", code="upstream_protocol_error")
        self.fleet.succeeded(_replica(work))
        if work.part is not None:
            work.part.finish = finish_of(x.dialect, body)
        if target.engine_name != target.answer_name:
            body = wire.rename_model(body, target.engine_name, target.answer_name)
        x.write_whole(200, self._answer_lines(x, work), body)

    async def _pass_large(self, x: Exchange, work: Work) -> None:
        """One JSON body too large to hold: passed on as it comes, cut off visibly if it breaks."""
        lines = b"content-type: application/json\r\n" + self._answer_lines(x, work)
        meter = BodyMeter(x.dialect, self.settings.upstream.max_answer_bytes, _rename(_target(work)))
        x.start_passing(meter, lines)
        await x.passed_through()
        work.usage = meter.usage()
        if x.fault is not None or meter.stopped:
            add(self.metrics.stream_terminated, "upstream")
            raise UpstreamError("The engine's answer broke off.", code="upstream_disconnected")
        self.fleet.succeeded(_replica(work))
        x.end_passing(b"")

    async def _pass_stream(self, x: Exchange, work: Work, checked: fields.Checked) -> None:
        """Events, as they come. A stream never ends quietly: its terminator, or our error event."""
        meter = (StreamMeter if work.part is None else WatchedMeter)(
            x.dialect,
            strip_usage=not checked.wants_usage,
            strip_continuous=not checked.wants_continuous_usage,
            max_event_bytes=self.settings.upstream.max_event_bytes,
            rename=_rename(_target(work)),
        )
        checked.body.clear()  # a stream may live for minutes: what was asked need not
        first_s = self.clock() - x.received
        self.metrics.time_to_first_token.observe(first_s)
        if work.part is not None:
            work.part.first_s = first_s
        lines = (
            b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"
        )
        x.start_passing(meter, lines + self._answer_lines(x, work))
        try:
            await x.passed_through()
        finally:
            work.usage = _stream_usage(meter, work.prompt_guess, checked.n > 1 and x.dialect.fields.prompts is not None)
            if work.part is not None:
                work.part.finish = meter.finish
        reason = _broken(x, meter)
        if reason is None:
            self.fleet.succeeded(_replica(work))
            x.end_passing(b"")
            return
        if reason != "oversized_event":  # who asks for logprobs of a long prompt must not eject an engine
            self._blame(_replica(work), reason, reason, _target(work) if x.fault is None else None)
        add(self.metrics.stream_terminated, reason)
        raise UpstreamError(_STREAM_REASONS[reason], code=_STREAM_CODES.get(reason, "upstream_disconnected"))

    def _answer_lines(self, x: Exchange, work: Work) -> bytes:
        lines = b"x-loragate-model: %b\r\n" % _target(work).answer_name.encode()
        reservation = work.reservation
        return lines if reservation is None else lines + reservation.headers(self.clock())

    # The end -------------------------------------------------------------------------------------------

    def _refuse(self, x: Exchange, work: Work, error: ServiceError) -> None:
        """Tell the caller: as an HTTP answer, or as the last event of a stream that has begun."""
        work.code = str(error.status)
        if work.part is not None:
            work.part.error = error.code
        if not x.started:
            lines = wire.error_lines(error)
            if work.key is not None:
                model = work.target.name if work.target is not None else ""
                lines += self.ledger.headers(work.key.id, model, self.clock())
            x.write_whole(error.status, lines, x.dialect.error_body(error))
        elif isinstance(x.meter, StreamMeter):
            if isinstance(error, ShuttingDown):
                add(self.metrics.stream_terminated, "shutdown")
            x.end_passing(x.dialect.error_event(error))  # only whole events went out before it
        else:
            x.client.abort()

    def _close(self, x: Exchange, work: Work) -> None:
        """Everything taken goes back, exactly once, in whatever way the request ended."""
        if x.call is not None and not x.ended and x.fault is None:
            x.let_go(x.call)
        if work.replica is not None:
            self.fleet.give_back(work.replica, _target(work))
        if work.in_flight:
            self.admission.leave()
        metrics, key, target = self.metrics, work.key, work.target
        name = target.name if target is not None else NO_MODEL
        metrics.requests.add((x.dialect.name, name, work.code))
        seconds = self.clock() - x.received
        metrics.request_seconds.observe(seconds)
        if self.settings.log.requests:
            self._log(x, work, seconds)
        if work.part is not None and self.observe is not None:
            self.observe(work.part, work.code, seconds, work.usage[1] if work.usage is not None else 0, x.stream)
        if work.reservation is None or key is None or target is None:
            return
        if not work.sent:
            work.reservation.cancel()
            return
        prompt, completion = work.usage or self._unknown_usage(x, work)
        work.reservation.settle(prompt + completion)
        self._record_usage(key.id, name, prompt, completion)
        metrics.tokens.add((name, "prompt"), prompt)
        metrics.tokens.add((name, "completion"), completion)

    def _log(self, x: Exchange, work: Work, seconds: float) -> None:
        """One line per request, where the operator asked for it: who and what, never a key or a prompt."""
        target = work.target
        fields = {
            "request_id": x.request_id.decode(),
            "route": x.dialect.name,
            "key": work.key.id if work.key is not None else None,
            "model": target.answer_name if target is not None else None,
            "code": work.code,
            "seconds": round(seconds, 4),
            "usage": work.usage,
        }
        log.info("request", extra={"fields": fields})

    @staticmethod
    def _unknown_usage(x: Exchange, work: Work) -> tuple[int, int]:
        """The engine did not say. Of a whole answer that was on its way all was generated: the reservation stands.

        Of a stream that its caller left before it began, the prompt. A 5xx had nothing.
        """
        left = work.code == "499"
        if (left or x.meter is not None) and not x.stream and work.reservation is not None:
            return work.prompt_guess, work.reservation.tokens - work.prompt_guess
        return (work.prompt_guess, 0) if left or work.code == "200" else (0, 0)


class _Elsewhere(ServiceError):
    """Nothing has been shown to the caller: another replica may answer. `why` is the public code if none can."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def public(self) -> ServiceError:
        if self.why == "overloaded":
            return Overloaded("The engine has as many requests as it can take. Try again in a moment.", retry_after_s=2)
        return UpstreamError(_MESSAGES[self.why], code=self.why)


_CODES = {
    Fault.REFUSED: "upstream_unreachable",
    Fault.CONNECT_TIMEOUT: "upstream_unreachable",
    Fault.RESET: "upstream_disconnected",
    Fault.CUT: "upstream_disconnected",
    Fault.PROTOCOL: "upstream_protocol_error",
    Fault.POOL_FULL: "overloaded",
}
_MESSAGES = {
    "upstream_unreachable": "The engine could not be reached. Try again; the operator sees why in /readyz.",
    "upstream_disconnected": "The engine closed the connection before it answered. Try again.",
    "upstream_protocol_error": "The engine's answer was not valid. Try again.",
    "upstream_error": "The engine failed on this request. Try again; the engine's log says why.",
}
_STREAM_REASONS = {
    "upstream_cut": "The engine's connection was lost in the middle of the answer, which is not complete.",
    "upstream_stalled": "The engine sent nothing for too long in the middle of the answer, which is not complete.",
    "quiet_end": "The engine ended the answer without saying that it was complete.",
    "half_event": "The engine's answer ended in the middle of an event and is not complete.",
    "engine_error": "The engine reported an error in the middle of the answer, which is not complete.",
    "oversized_event": "The engine sent an event that is larger than allowed; the answer is not complete.",
}
_STREAM_CODES = {
    "upstream_stalled": "upstream_timeout",
    "engine_error": "upstream_error",
    "oversized_event": "upstream_protocol_error",
}


def _fault_error(fault: Fault) -> ServiceError:
    if fault is Fault.CLOSED:
        return ShuttingDown("This gateway is shutting down. Send the request again.", retry_after_s=1)
    if fault in (Fault.FIRST_BYTE_TIMEOUT, Fault.IDLE_TIMEOUT):
        return UpstreamTimeout("The engine did not answer in time. Try again, with a shorter request if you can.")
    return UpstreamError(_MESSAGES["upstream_disconnected"], code="upstream_disconnected")


def _broken(x: Exchange, meter: StreamMeter) -> str | None:
    """Why a stream is not whole, None if it is. A fault after the terminator took nothing from the caller."""
    if meter.fault is not None:
        return meter.fault
    if x.fault is not None and not meter.saw_terminator:
        return "upstream_stalled" if x.fault is Fault.IDLE_TIMEOUT else "upstream_cut"
    return meter.end()


def _rename(target: Target) -> tuple[bytes, bytes] | None:
    """The answer's `model` is the version's public name; most engine names are that already."""
    if target.engine_name == target.answer_name:
        return None
    return target.engine_name.encode(), target.answer_name.encode()


def _stream_usage(meter: StreamMeter, prompt_guess: int, many: bool) -> tuple[int, int]:
    """As the engine last said, else what was counted going by. many: a chunk speaks of one prompt of several."""
    prompt, completion = meter.prompt_tokens, meter.completion_tokens
    if not meter.has_usage:
        return prompt_guess, meter.deltas
    return max(prompt, prompt_guess) if many and not meter.exact else prompt, completion


def _target(work: Work) -> Target:
    assert work.target is not None  # noqa: S101  # set by _admit_caller, before anything that asks
    return work.target


def _replica(work: Work) -> Replica:
    assert work.replica is not None  # noqa: S101  # set by _send; _ask_engine returned, so the replica answered
    return work.replica
