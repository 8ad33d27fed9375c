"""A file's rows, more of them made: which are taken, several at once, until all are made, or the budget is spent.

Must not know endpoints, or how it is shown. What is asked and answered is never logged.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from training.augment.asking import Asker, NotMade, NotNow, Spent
from training.augment.journal import Job, Journal
from training.augment.judging import Judge
from training.augment.making import MORE, REQUESTS, Manner, make, unfit
from training.data import rules
from training.data.finding import Finding
from training.data.languages import Languages
from training.data.mixing import amount, taken
from training.data.reading import Data
from training.data.row import Row
from training.errors import DataRejected

IN_A_ROW = 3  # requests that fail one after the other, as often as each is tried: then the service is out of order
OnProgress = Callable[[str, int, int], None]  # what, done, in all


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for. share: of the rows; most: rows at most; count: how many are made of each."""

    share: float = 1.0
    most: int | None = None
    count: int = 1
    seed: int = 42
    most_tokens: int = 1024


@dataclass(frozen=True, slots=True)
class Surveyed:
    """A file before anything is asked. rows: that something can be made of; left: reason → rows; home: the language."""

    rows_in: int
    rows: int
    parents: int
    left: Counter[str] = field(default_factory=Counter)
    home: str = "en"


@dataclass(slots=True)
class Augmented:
    """What a run did. there: jobs that were done before; failed: that may be had later; left: not come to."""

    jobs: int
    there: int = 0
    made: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    spent: Spent = field(default_factory=Spent)
    rows: int = 0  # in the file, with those of earlier runs
    stopped: str | None = None  # why it ended before all was done: budget, interrupted
    problem: str | None = None  # what the service said to the last one that failed

    @property
    def left(self) -> int:
        return self.jobs - self.there - self.made - sum(self.refused.values()) - self.failed

    def document(self) -> dict[str, Any]:
        return {
            "jobs": self.jobs,
            "done_before": self.there,
            "made": self.made,
            "refused": dict(self.refused.most_common()),
            "failed": self.failed,
            "left": self.left,
            "problem": self.problem,
            "stopped": self.stopped,
            "rows": self.rows,
            "requests": self.spent.requests,
            "prompt_tokens": self.spent.prompt_tokens,
            "completion_tokens": self.spent.completion_tokens,
        }


def survey(data: Data, how: str, wanted: Wanted, judge: Judge | None, on_progress: OnProgress | None) -> Surveyed:
    """Read the file once: what can be made of it. DataRejected where that is nothing.

    judge: learns what is asked already.
    """
    if how == MORE and data.trains != "sft":
        raise DataRejected(
            f"{data.path.name} holds {'pairs of answers' if data.trains == 'preference' else 'answers with a label'}, "
            f"and of those no new ones can be made up: nobody would have judged them. Use --how paraphrase."
        )
    left: Counter[str] = Counter()
    rows_in = rows = 0
    languages = Languages()
    size = data.size_bytes
    tell = None if on_progress is None else lambda done: on_progress(f"Reading {data.path.name}", min(done, size), size)
    for item in data.rows(tell):
        if isinstance(item, Finding):
            if item.kind == "cut_off":
                raise DataRejected(f"{data.path.name} could not be read to its end; row {item.row}: {item.message}")
            rows_in += item.row is not None
            left["cannot be trained on"] += item.row is not None
            continue
        rows_in += 1
        if judge is not None:
            judge.remember(item)
        why = _why_not(item, how, wanted)
        if why is not None:
            left[why] += 1
            continue
        rows += 1
        languages.add(item)
    if not rows:
        most = "".join(f" {count:,} of {rows_in:,} rows: {why}." for why, count in left.most_common(1))
        raise DataRejected(f"Of no row of {data.path.name} another one can be made by {how}.{most}")
    parents = amount(rows, wanted.share, wanted.most)
    if not parents:
        raise DataRejected(f"No row is taken: the share is too small for {rows:,} rows. Raise it.")
    home = next((name for name in languages.counts() if name != "?"), "en")
    return Surveyed(rows_in, rows, parents, +left, home)


def jobs(data: Data, how: str, wanted: Wanted, surveyed: Surveyed) -> Iterator[Job]:
    """What is to be made, in the file's order; the same for the same seed."""
    good = (row for row in data.rows() if isinstance(row, Row) and _why_not(row, how, wanted) is None)
    for row in taken(good, surveyed.rows, surveyed.parents, wanted.seed):
        for variant in range(1, wanted.count + 1):
            yield Job(row, variant)


def _why_not(row: Row, how: str, wanted: Wanted) -> str | None:
    return "cannot be trained on" if rules.fault(row) is not None else unfit(row, how, wanted.most_tokens)


class Augmenting:
    """One run. stop: may be called while it runs; what is asked already is still waited for and kept."""

    def __init__(self, asker: Asker, manner: Manner, journal: Journal, judge: Judge, total: int) -> None:
        self._asker, self._manner, self._journal, self._judge = asker, manner, journal, judge
        self.found = Augmented(total, spent=asker.spent)
        self._in_a_row = 0

    def stop(self, why: str = "interrupted") -> None:
        self.found.stopped = self.found.stopped or why

    async def run(self, wanted: Iterator[Job], at_once: int, done: Callable[[int, int], None]) -> Augmented:
        """RemoteRefused where no request would be answered, StorageFull; what came until then is on disk."""
        for row in self._journal.questions():
            self._judge.remember(row, made=True)
        self._done = done
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(at_once):
                    group.create_task(self._work(wanted))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        self.found.rows = self._journal.rows
        return self.found

    async def _work(self, wanted: Iterator[Job]) -> None:
        found = self.found
        while found.stopped is None:
            job = self._next(wanted)
            if job is None:
                return
            try:
                made = await make(self._asker, job.parent, self._manner, job.variant)
                self._judge.refuse(made.row, job.parent, self._manner, made.text)
            except NotMade as why:
                self._in_a_row = 0
                self._journal.refused(job, why)
                found.refused[why.kind] += 1
            except NotNow as failed:
                found.failed += 1
                self._in_a_row += 1
                found.problem = failed.error.message
                if self._in_a_row >= IN_A_ROW:
                    raise failed.error from None
            else:
                self._in_a_row = 0
                self._journal.made(job, made)
                self._judge.remember(made.row, made=True)
                found.made += 1
            self._tell()

    def _next(self, wanted: Iterator[Job]) -> Job | None:
        """The next one that nobody has done or does; None where there is none, or no budget for it."""
        for job in wanted:
            if job.identity() in self._journal.done:
                self.found.there += 1
                self._tell()
            elif self._asker.promise(REQUESTS[self._manner.how]):
                self._journal.done.add(job.identity())
                return job
            else:
                self.stop("budget")
                return None
        return None

    def _tell(self) -> None:
        self._done(self.found.jobs - self.found.left, self.found.jobs)
