"""Carries one job as far as it goes: its check, or its run from the start of the trainer to what became of the adapter.

What is asked of it meanwhile (`wish`) is obeyed within a turn. Cancelling its task leaves the trainer running and the
job as it is: the next worker goes on from what it finds. Must not know queues or other jobs.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from adapters.errors import DatabaseUnusable, ServiceError, Unavailable
from training.errors import TrainingFailed
from training.places import Places
from training.run import gpu, guards, process
from training.run.checkpoints import clear_final, newest_whole, present
from training.run.diagnosis import Diagnosis, diagnose, read_tail
from training.run.judgement import ADAPTER, Output, judge
from training.run.process import Attempt, Trainer
from training.run.record import Record
from training.run.room import LEASE_S, Room
from training.run.stopping import Grace, stop, sweep
from training.run.telling import Pace, Telling
from training.steps import Finished, Launch, Steps
from training.types import Job, JobState, Outcome, Phase, Problem, Wish

T = TypeVar("T")
TRIES = 3  # starts of the trainer from one and the same step
FREED = 5  # looks until what an engine held counts as free
LONGEST_STEP_S = 600.0  # a trainer that was asked to stop finishes its step: so much longer is waited at most
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Workshop:
    """What every job of one worker is carried with.

    away_s: until what is away (a gateway) is asked again; again_s: until a trainer that was killed is started again,
    as what killed it may be about to end this worker too; lease_s: for how long an engine stays away from one word to
    the next.
    """

    record: Record
    steps: Steps
    places: Places
    pace: Pace = field(default_factory=Pace)
    grace: Grace = field(default_factory=Grace)
    away_s: float = 5.0
    again_s: float = 2.0
    lease_s: float = LEASE_S


class Wished(Exception):
    """Somebody asked for something else; `wish` says what. None: it was taken back, or the worker wants it."""

    def __init__(self, wish: Wish | None) -> None:
        super().__init__()
        self.wish = wish


class Carrier:
    """device: the CUDA_VISIBLE_DEVICES of a run; "" for none."""

    def __init__(self, workshop: Workshop, job: Job, device: str = gpu.CPU) -> None:
        self._shop = workshop
        self._record = workshop.record
        self._job = job
        self._folder = workshop.places.job(job.id)
        self._tell = workshop.record.teller(job.id)
        self._woken = asyncio.Event()
        self._phase: Phase | None = None
        self._wish = job.wish
        self._requeue = False
        self._last: Problem | None = None
        self._trained = False
        self._device = device
        self._room = Room(workshop.steps, job, workshop.lease_s)

    @property
    def device(self) -> str | None:
        """What it occupies; None once its training is done: the next job need not wait for an evaluation beside it."""
        return None if self._trained else self._device

    @property
    def job_id(self) -> str:
        return self._job.id

    def wish(self, wish: Wish | None) -> None:
        """What is asked of the job now."""
        if wish is not self._wish:
            self._wish = wish
            self._woken.set()

    def give_up(self) -> None:
        """The worker ends: stop the trainer at a checkpoint, and let the job queue again."""
        self._requeue = True
        self._woken.set()

    async def check(self) -> None:
        """Data and settings, before any compute is spent."""
        await self._guarded(self._check(), JobState.VALIDATING)

    async def run(self) -> None:
        """The trainer, then the adapter."""
        await self._guarded(self._run(), JobState.QUEUED)

    async def _check(self) -> None:
        await asyncio.to_thread(self._folder.mkdir, mode=0o700, parents=True, exist_ok=True)

        def check() -> Coroutine[Any, Any, Mapping[str, Any]]:
            return self._shop.steps.check(self._job, self._folder, self._tell)

        settled = await self._patiently(check)
        await self._record.checked(self._job.id, settled)

    async def _run(self) -> None:
        if not await asyncio.to_thread(self._folder.is_dir):  # it was checked by a worker with other files
            await self._record.queued(self._job.id, JobState.VALIDATING, "Its files are not here: checked anew")
            return
        await self._record.started(self._job.id)
        if self._job.phase in (None, Phase.PREPARING, Phase.TRAINING):
            async with self._room:
                await self._train()
        attempt = await asyncio.to_thread(process.read, self._folder)
        # An engine that had to make room is needed to evaluate: nothing may take the room again before.
        self._trained = attempt is None or not attempt.alone
        await self._finish()

    async def _train(self) -> None:
        """Start, or go on, until every step is done; Wished, TrainingFailed."""
        launch = await self._launch()
        while True:
            trainer = await asyncio.to_thread(process.find, self._job.id, self._folder)
            attempt = await asyncio.to_thread(process.read, self._folder)
            code = None
            if trainer is not None:
                if trainer.attempt.alone:
                    self._room.hold()
                await self._tell("The trainer was found running, and is watched again")
                code = await self._watch(trainer, launch)
            elif attempt is None or attempt.over:
                self._obey()
                if attempt is not None and (await self._judged(launch)).wrong is None:
                    return  # paused, or the worker stopped, when all was done
                code = await self._watch(await self._start(launch, attempt), launch)
            else:  # it ended while nobody watched
                await sweep(self._job.id, self._shop.grace)
                await self._told((await self._telling(launch, attempt)).last())
            if await self._whole(launch, code):
                return

    async def _launch(self) -> Launch:
        """How the trainer is started and watched; Wished meanwhile, and then none goes on unwatched."""

        def launch() -> Coroutine[Any, Any, Launch]:
            return asyncio.to_thread(self._shop.steps.launch, self._job, self._folder)

        try:
            return await self._patiently(launch)
        except Wished:
            await sweep(self._job.id, self._shop.grace)
            raise

    async def _start(self, launch: Launch, before: Attempt | None) -> Trainer:
        problem = await self._refused()
        if problem is not None:
            raise TrainingFailed(problem)
        found, said = await asyncio.to_thread(newest_whole, launch.output, self._folder / "broken")
        for sentence in said:
            await self._tell(sentence, level="warn")
        step = found.step if found is not None else 0
        again = before is not None and before.from_step == step and not before.stopping
        tries = before.tries + 1 if before is not None and again else 1
        if tries > TRIES:
            problem = self._last or (await self._diagnosed(launch, None, before)).problem
            said_so = f"{problem.message} That happened {TRIES} times without progress beyond step {step}."
            raise TrainingFailed(replace(problem, message=said_so))
        await asyncio.to_thread(clear_final, launch.output)
        try:
            trainer = await asyncio.to_thread(
                process.spawn, launch, self._job.id, self._folder, self._device, step, tries, self._room.taken
            )
        except OSError as exc:
            why = exc.strerror or str(exc)
            words = f"The trainer {launch.argv[0]} cannot be started: {why}. `loragate doctor` says what is missing."
            raise TrainingFailed(Problem("cannot_start", words)) from None
        where = f"GPU {self._device}" if self._device else "the processor"
        words = f"Training starts on {where}" if before is None else f"Training goes on from step {step}, on {where}"
        await self._record.attempt(self._job.id, words)
        return trainer

    async def _watch(self, trainer: Trainer, launch: Launch) -> int | None:
        """Until the trainer has ended, by itself or because it was asked to; its exit code where one can know."""
        stopping: asyncio.Task[str] | None = None
        try:
            telling = await self._telling(launch, trainer.attempt)
            while await asyncio.to_thread(trainer.running):
                if stopping is None and (self._wish is not None or self._requeue):
                    trainer.attempt = replace(trainer.attempt, stopping=True)
                    await asyncio.to_thread(process.write, self._folder, trainer.attempt)
                    stopping = asyncio.create_task(self._stop(trainer, launch, telling))
                elif stopping is not None and stopping.done():  # it could not be ended: once more
                    _log.warning("the trainer of %s runs on after: %s", self._job.id, stopping)
                    stopping = None
                await self._told(telling.turn())
                await self._pause(self._shop.pace.look_s)
        except BaseException:
            trainer.leave()
            raise
        finally:
            if stopping is not None:
                await asyncio.gather(_ended(stopping), return_exceptions=True)
        await sweep(self._job.id, self._shop.grace)
        await self._told(telling.last())
        return trainer.code

    async def _told(self, words: Coroutine[Any, Any, None]) -> None:
        """A run is not ended by a fault in what is said about it."""
        try:
            await words
        except DatabaseUnusable:
            raise
        except Exception:
            _log.exception("what job %s does cannot be told", self._job.id)

    async def _stop(self, trainer: Trainer, launch: Launch, telling: Telling) -> str:
        """A run that is thrown away has nothing to save, nor has one to go on that has not told its first step."""
        to_go_on = self._wish in (Wish.PAUSE, None)
        saving = self._wish is Wish.CANCEL_AND_KEEP or (to_go_on and telling.step is not None)
        given = self._shop.grace
        patient = max(given.save_s, min(2 * (telling.step_s or 0.0), LONGEST_STEP_S))
        grace = replace(given, save_s=patient, saving_s=max(given.saving_s, patient))
        return await stop(trainer, self._job.id, launch.output, grace, saving=saving, to_go_on=to_go_on)

    async def _whole(self, launch: Launch, code: int | None) -> bool:
        """The trainer has ended: is all done? False: it goes on from a checkpoint. Wished, TrainingFailed."""
        attempt = await asyncio.to_thread(process.read, self._folder)
        stopped = attempt is not None and attempt.stopping
        wish = (await self._record.job(self._job.id)).wish
        if wish is not None or (self._requeue and stopped):
            await self._over(attempt)
            raise Wished(wish)
        output = await self._judged(launch)
        if output.wrong is None and code in (0, None):
            await self._over(attempt)
            if launch.steps is not None and output.steps is not None and output.steps < launch.steps:
                await self._tell(f"LLaMA-Factory did {output.steps} steps, {launch.steps} were planned.", level="warn")
            return True
        if not stopped:  # else: we ended it, and the wish was taken back since
            await self._explained(launch, code, attempt, output)
        await self._over(attempt)
        return False

    async def _explained(self, launch: Launch, code: int | None, attempt: Attempt | None, output: Output) -> None:
        """TrainingFailed where the same again would end the same way; else it is said, and tried again."""
        if output.ended and code in (0, None):
            if output.step != output.steps and self._given.get("enable_jit_checkpoint"):
                words = f"Something else told the trainer to end, at step {output.step} of {output.steps}."
                self._last = Problem("told_to_end", words)
                await self._tell(f"{words} It goes on from the checkpoint that it saved.", level="warn")
                await self._pause(self._shop.again_s)
                return
            if output.step != output.steps:
                words = f"Training stopped at step {output.step} of {output.steps}, and nobody here asked for it."
                raise TrainingFailed(Problem("stopped_early", f"{words} What was trained is kept."))
            words = f"The trainer did all its steps, but {output.wrong}. Its log, run.log, may say why."
            raise TrainingFailed(Problem("no_adapter", words))
        found = await self._diagnosed(launch, code, attempt)
        if found.sure:
            raise TrainingFailed(found.problem)
        self._last = found.problem
        await self._tell(f"{found.problem.message} It is started again.", level="warn")
        await self._pause(self._shop.again_s)

    async def _finish(self) -> None:
        """The adapter: a version, its evaluation, what it was trained for."""

        async def phase(phase: Phase) -> None:
            self._phase = phase
            await self._record.phase(self._job.id, phase)

        def finish() -> Coroutine[Any, Any, Finished]:
            return self._shop.steps.finish(self._job, self._folder, self._tell, phase)

        if self._job.phase in (None, Phase.PREPARING, Phase.TRAINING):
            await phase(Phase.REGISTERING)
        self._job = await self._record.job(self._job.id)
        finished = await self._patiently(finish)
        await self._record.succeeded(self._job.id, finished.outcome, finished.result)

    async def _patiently(self, begin: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What `begin` comes to; while something that it needs is away, it is begun again. Wished."""
        told = ""
        while True:
            try:
                return await self._unless_wished(begin())
            except Unavailable as exc:
                if exc.message != told:
                    told = exc.message
                    await self._tell(f"{told} It is tried again until it works.", level="warn")
            await self._pause(self._shop.away_s)

    async def _unless_wished(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                if self._phase is not Phase.PUTTING_LIVE:  # that is short, and half of it would be worse
                    self._obey()
                woken = asyncio.ensure_future(self._woken.wait())
                try:
                    await asyncio.wait((task, woken), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    await _ended(woken)
                self._woken.clear()
            return task.result()
        finally:
            await _ended(task)

    def _obey(self) -> None:
        """Wished where something else is asked."""
        if self._wish is not None or self._requeue:
            raise Wished(self._wish)

    async def _pause(self, seconds: float) -> None:
        """Until something is asked, at most so long."""
        try:
            await asyncio.wait_for(self._woken.wait(), seconds)
        except TimeoutError:
            return
        self._woken.clear()

    async def _guarded(self, work: Coroutine[Any, Any, None], back: JobState) -> None:
        """Every end of `work` becomes a state of the job. back: where it waits when it is nobody's again."""
        try:
            await work
        except Wished as wished:
            await self._obeyed(wished.wish, back)
        except TrainingFailed as exc:
            await self._failed(exc.problem)
        except DatabaseUnusable:
            raise  # nothing can be written about the job; its trainer goes on, and is found again
        except ServiceError as exc:
            await self._failed(Problem(exc.code, exc.message, exc.param))
        except OSError as exc:
            _log.exception("job %s cannot be carried on", self._job.id)
            words = (
                f"The data directory cannot be used: {exc.strerror or exc}. Free some space or mend it, and try again."
            )
            await self._failed(Problem("storage_failed", words))
        except Exception as exc:
            _log.exception("job %s ended in a fault of this program", self._job.id)
            words = f"A fault of this program ended the job ({type(exc).__name__}). The worker's log has the details."
            await self._failed(Problem("internal_error", words))

    async def _failed(self, problem: Problem) -> None:
        await sweep(self._job.id, self._shop.grace)  # where we fail, and not the trainer, it must not go on unwatched
        partial = await asyncio.to_thread(self._left)
        await self._record.failed(self._job.id, problem, Outcome.PARTIAL if partial else Outcome.NOTHING)

    async def _obeyed(self, wish: Wish | None, back: JobState) -> None:
        if wish is Wish.CANCEL:
            await asyncio.to_thread(shutil.rmtree, self._output, ignore_errors=True)
            await self._record.cancelled(self._job.id, Outcome.NOTHING)
        elif wish is Wish.CANCEL_AND_KEEP:
            partial = await asyncio.to_thread(self._left)
            await self._record.cancelled(self._job.id, Outcome.PARTIAL if partial else Outcome.NOTHING)
        elif wish is Wish.PAUSE:
            if not await self._record.paused(self._job.id, await self._where()):
                job = await self._record.job(self._job.id)  # taken back, or outdone, in this very moment
                await self._obeyed(job.wish if job.wish is not Wish.PAUSE else None, back)
        else:
            words = f"{await self._where()}, with the worker" if self._requeue else None
            await self._record.queued(self._job.id, back, words)

    async def _where(self) -> str:
        found, said = await asyncio.to_thread(newest_whole, self._output, self._folder / "broken")
        for sentence in said:
            await self._tell(sentence, level="warn")
        if found is not None:
            return f"Paused: it will go on from the checkpoint of step {found.step}"
        return "Paused: there is no checkpoint yet, so it will begin anew" if self._left() else "Paused"

    @property
    def _given(self) -> Mapping[str, Any]:
        """The trainer's settings."""
        return (self._job.settled or {}).get("llamafactory") or {}

    @property
    def _output(self) -> Path:
        return self._folder / "out"

    def _left(self) -> bool:
        """Whether anything of a training is on disk."""
        return (self._output / ADAPTER).exists() or bool(present(self._output))

    async def _refused(self) -> Problem | None:
        """Why it must not start now. Where memory is short and the recipe agrees, the engine beside makes room."""
        paused = await self._patiently(lambda: self._shop.steps.paused(self._job))
        problem = await asyncio.to_thread(self._refusal)
        if problem is None and not paused:
            return None
        if problem is not None and problem.code not in guards.MEMORY:
            return problem
        try:
            if not await self._patiently(self._room.take):
                return problem
        except ServiceError as exc:
            await self._tell(f"The engine was not stopped: {exc.message}", level="warn")
            return problem
        await self._tell("The engine that serves was stopped, and starts again when the training has ended")
        for _ in range(FREED):
            problem = await asyncio.to_thread(self._refusal)
            if problem is None:
                break
            await self._pause(self._shop.again_s)
        return problem

    def _refusal(self) -> Problem | None:
        gpus = gpu.look() if self._device else ()
        return guards.refusal(self._folder, self._job.settled or {}, self._device, gpus)

    async def _telling(self, launch: Launch, attempt: Attempt) -> Telling:
        picture = self._folder / "curve.png"
        return await Telling.open(
            self._record, self._job, launch.output, picture, self._shop.pace, attempt.from_step, attempt.device
        )

    async def _diagnosed(self, launch: Launch, code: int | None, attempt: Attempt | None) -> Diagnosis:
        log = await asyncio.to_thread(read_tail, launch.log, attempt.log_from if attempt is not None else 0)
        progress = (await self._record.job(self._job.id)).progress
        return diagnose(log, code, self._job.settled or {}, progress.step if progress is not None else None)

    async def _judged(self, launch: Launch) -> Output:
        early = self._given.get("early_stopping_steps") is not None
        return await asyncio.to_thread(judge, launch.output, early_stopping=early)

    async def _over(self, attempt: Attempt | None) -> None:
        if attempt is not None:
            await asyncio.to_thread(process.write, self._folder, replace(attempt, over=True))


async def _ended(task: asyncio.Future[Any]) -> None:
    """Cancelled, and waited for."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
