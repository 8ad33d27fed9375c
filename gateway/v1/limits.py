"""Ceilings per key and per model: requests and tokens per minute, concurrency, tokens per UTC day.

Pure arithmetic on the caller's clock. A request reserves its worst case before any work and is settled
with what it really used, exactly once; a bucket may go below zero by one settlement and is then repaid.
Must not know HTTP or where limits are kept.
"""

from __future__ import annotations

import math

from gateway.errors import QuotaExceeded, RateLimited
from gateway.v1.snapshot import NO_LIMITS, Limits

DAY_S = 86_400
MAX_RETRY_AFTER_S = 120  # official SDKs do not retry at all beyond it


class Bucket:
    """Tokens that refill evenly: `capacity` a minute, at most `capacity` at once."""

    __slots__ = ("at", "capacity", "level", "rate")

    def __init__(self, capacity: int, now: float) -> None:
        self.capacity = capacity
        self.rate = capacity / 60.0  # per second
        self.level = float(capacity)
        self.at = now

    def refill(self, now: float) -> float:
        """Bring the level up to `now` and return it; a clock that steps back refills nothing."""
        if now > self.at:
            level = self.level + (now - self.at) * self.rate
            self.level = level if level < self.capacity else float(self.capacity)
            self.at = now
        return self.level

    def wait_for(self, amount: float) -> float:
        """Seconds until `amount` can be taken."""
        return max(0.0, (amount - self.level) / self.rate)

    def resize(self, capacity: int, now: float) -> None:
        """A changed ceiling keeps the share that was used."""
        level = self.refill(now) * capacity / self.capacity
        self.capacity, self.rate, self.level = capacity, capacity / 60.0, level


class Account:
    """What one key or one model has used of its limits."""

    __slots__ = ("active", "day", "day_tokens", "label", "limits", "requests", "tokens")

    def __init__(self, label: str, limits: Limits, now: float) -> None:
        self.label = label  # "this key" or "model x": how messages name it
        self.limits = NO_LIMITS
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        self.active = 0
        self.day = 0
        self.day_tokens = 0
        self.adopt(limits, now)

    def adopt(self, limits: Limits, now: float) -> None:
        """Take over changed limits without forgetting what was used."""
        self.requests = _resized(self.requests, limits.rpm, now)
        self.tokens = _resized(self.tokens, limits.tpm, now)
        self.limits = limits

    def refuse(self, tokens: int, now: float, day: int) -> None:
        """Raise if `tokens` may not start now; concurrency first, so a refused request costs nothing."""
        limits = self.limits
        if limits.concurrency is not None and self.active >= limits.concurrency:
            raise RateLimited(
                f"{limits.concurrency} requests of {self.label} are already being answered. "
                "Wait for one to end, or ask the operator for more concurrency.",
                retry_after_s=1,
            )
        if self.requests is not None and self.requests.refill(now) < 1:
            raise _limited(f"{self.label} is limited to {limits.rpm} requests a minute", self.requests.wait_for(1))
        if self.tokens is not None:
            if tokens > self.tokens.capacity:
                raise QuotaExceeded(
                    f"This request may use {tokens} tokens, more than the {limits.tpm} a minute that {self.label} "
                    "has. Lower max_tokens or shorten the prompt.",
                    retryable=False,
                )
            if self.tokens.refill(now) < tokens:
                raise _limited(f"{self.label} is limited to {limits.tpm} tokens a minute", self.tokens.wait_for(tokens))
        today = self.day_tokens if day == self.day else 0
        if limits.daily_tokens is not None and today + tokens > limits.daily_tokens:
            raise QuotaExceeded(
                f"{self.label} has used up its {limits.daily_tokens} tokens of today (UTC), or would with this "
                "request. Try again tomorrow, or ask the operator for a larger budget.",
                retryable=False,
            )

    def take(self, tokens: int, day: int) -> None:
        self.active += 1
        if self.requests is not None:
            self.requests.level -= 1
        if self.tokens is not None:
            self.tokens.level -= tokens
        if day != self.day:
            self.day, self.day_tokens = day, 0
        self.day_tokens += tokens  # with or without a daily budget: give_back does not ask

    def give_back(self, reserved: int, used: int, day: int, request: bool) -> None:
        """End one request: the difference between reserved and used returns (or is owed)."""
        self.active -= 1
        if self.tokens is not None:
            self.tokens.level = min(self.tokens.level + reserved - used, float(self.tokens.capacity))
        if request and self.requests is not None:
            self.requests.level = min(self.requests.level + 1, float(self.requests.capacity))
        if day == self.day:
            self.day_tokens += used - reserved


class Reservation:
    """The right to do one request. `settle` or `cancel` ends it; whichever comes second does nothing."""

    __slots__ = ("_accounts", "_day", "_open", "tokens")

    def __init__(self, accounts: tuple[Account, ...], tokens: int, day: int) -> None:
        self._accounts = accounts
        self._day = day
        self._open = True
        self.tokens = tokens

    def settle(self, used: int) -> None:
        """The request is over and used `used` tokens, prompt and answer together."""
        self._end(used, request=False)

    def cancel(self) -> None:
        """Nothing was done for it (the engine was never reached): tokens and the request itself return."""
        self._end(0, request=True)

    def headers(self, now: float) -> bytes:
        """OpenAI's x-ratelimit-* header lines, of whichever of key and model has less left; b"" without limits."""
        return _headers(self._accounts, now) if self._accounts else b""

    def _end(self, used: int, *, request: bool) -> None:
        if self._open:
            self._open = False
            for account in self._accounts:
                account.give_back(self.tokens, used, self._day, request)


class Ledger:
    """All accounts of this process; an account exists from its first limited request on."""

    def __init__(self) -> None:
        self._accounts: dict[tuple[str, str], Account] = {}

    def reserve(
        self, key: str, key_limits: Limits, model: str, model_limits: Limits, tokens: int, now: float, wall: float
    ) -> Reservation:
        """Take one request and `tokens` from key and model, both or neither; RateLimited or QuotaExceeded.

        now: monotonic seconds, for rates; wall: unix seconds, for the day.
        """
        day = int(wall // DAY_S)
        accounts: tuple[Account, ...] = ()
        if key_limits is not NO_LIMITS:
            accounts = (self._account("key", key, key_limits, now),)
        if model_limits is not NO_LIMITS:
            accounts = (*accounts, self._account("model", model, model_limits, now))
        for account in accounts:
            account.refuse(tokens, now, day)
        for account in accounts:
            account.take(tokens, day)
        return Reservation(accounts, tokens, day)

    def restore(self, kind: str, name: str, limits: Limits, day_tokens: int, now: float, wall: float) -> None:
        """After a restart: `name` ("key" or "model") has used `day_tokens` today already."""
        account = self._account(kind, name, limits, now)
        account.day, account.day_tokens = int(wall // DAY_S), day_tokens

    def headers(self, key: str, model: str, now: float) -> bytes:
        """The rate header lines of a request that was refused; an admitted one has Reservation.headers."""
        found = (self._accounts.get(("key", key)), self._accounts.get(("model", model)))
        return _headers(tuple(account for account in found if account is not None), now)

    def _account(self, kind: str, name: str, limits: Limits, now: float) -> Account:
        account = self._accounts.get((kind, name))
        if account is None:
            label = "This key" if kind == "key" else f"Model {name}"
            account = self._accounts[kind, name] = Account(label, limits, now)
        elif account.limits is not limits:
            account.adopt(limits, now)
        return account


def _resized(bucket: Bucket | None, capacity: int | None, now: float) -> Bucket | None:
    if capacity is None:
        return None
    if bucket is None:
        return Bucket(capacity, now)
    if bucket.capacity != capacity:
        bucket.resize(capacity, now)
    return bucket


def _limited(what: str, wait_s: float) -> RateLimited:
    seconds = min(max(1, math.ceil(wait_s)), MAX_RETRY_AFTER_S)
    return RateLimited(f"{what}. Try again in {seconds} s.", retry_after_s=seconds)


def _headers(accounts: tuple[Account, ...], now: float) -> bytes:
    requests: Bucket | None = None
    tokens: Bucket | None = None
    for account in accounts:
        requests = _tighter(requests, account.requests, now)
        tokens = _tighter(tokens, account.tokens, now)
    lines = b"" if requests is None else _REQUESTS % _left(requests)
    return lines if tokens is None else lines + _TOKENS % _left(tokens)


def _tighter(one: Bucket | None, other: Bucket | None, now: float) -> Bucket | None:
    if other is None:
        return one
    return other if other.refill(now) < (one.level if one is not None else math.inf) else one


_REQUESTS, _TOKENS = (
    b"x-ratelimit-limit-%b: %%d\r\nx-ratelimit-remaining-%b: %%d\r\nx-ratelimit-reset-%b: %%b\r\n" % (kind, kind, kind)
    for kind in (b"requests", b"tokens")
)


def _left(bucket: Bucket) -> tuple[int, int, bytes]:
    """The limit, what remains of it (refilled just now), and the span until it is full again."""
    level = bucket.level
    return bucket.capacity, int(level) if level > 0 else 0, duration((bucket.capacity - level) / bucket.rate)


def duration(seconds: float) -> bytes:
    """OpenAI's way to write a span: 120ms, 6s, 6m0s, 1h0m0s."""
    if seconds < 1:
        return b"%dms" % math.ceil(seconds * 1000)
    whole = math.ceil(seconds)
    if whole < 60:
        return b"%ds" % whole
    if whole < 3600:
        return b"%dm%ds" % divmod(whole, 60)
    return b"%dh%dm%ds" % (whole // 3600, whole % 3600 // 60, whole % 60)
