"""What happens to a job, as it happens, for whoever follows it over HTTP: past events first, then each new one.

The worker is another process, so the database is asked once in a while. Must not know how an event is written down.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from gateway.errors import RateLimited, ShuttingDown
from training.service import JobService
from training.types import Job, JobEvent

POLL_S = 0.5
HEARTBEAT_S = 15.0  # what stands between may cut a silent stream after a minute
AT_MOST = 128  # followers at once
PAGE = 500

# An event, None for a heartbeat, and at the end the job
News = AsyncIterator[JobEvent | Job | None]


class Following:
    """leaving: whether this gateway is about to stop."""

    def __init__(
        self,
        jobs: JobService,
        leaving: Callable[[], bool],
        *,
        poll_s: float = POLL_S,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self._jobs = jobs
        self._leaving = leaving
        self._poll_s = poll_s
        self._heartbeat_s = heartbeat_s
        self._followers = 0

    async def follow(self, job_id: str, owner: str | None, after: int) -> News:
        """Everything behind the event `after`, until the job has ended. JobNotFound, RateLimited."""
        await self._jobs.show(job_id, owner)
        if self._followers >= AT_MOST:
            raise RateLimited("Too many streams of events are open. Close some, or ask for a list.", retry_after_s=10)
        return self._news(job_id, owner, after)

    async def _news(self, job_id: str, owner: str | None, after: int) -> News:
        """Ends with the job, or raises ShuttingDown, or JobNotFound where somebody deletes it meanwhile."""
        self._followers += 1
        said = time.monotonic()
        try:
            while True:
                job = await self._jobs.show(job_id, owner)  # first: what is told before the end is not missed
                found = await self._jobs.events(job_id, owner, after=after, limit=PAGE)
                for event in found:
                    after, said = event.id, time.monotonic()
                    yield event
                if len(found) == PAGE:
                    continue
                if job.is_final and not found:
                    yield job
                    return
                if self._leaving():
                    raise ShuttingDown(
                        "This gateway is shutting down. Ask again, from the last event.", retry_after_s=2
                    )
                if time.monotonic() - said > self._heartbeat_s:
                    said = time.monotonic()
                    yield None
                await asyncio.sleep(self._poll_s)
        finally:
            self._followers -= 1
