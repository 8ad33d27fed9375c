"""/v1/fine_tuning/jobs with the unmodified SDK; a worker's part is written into the database as a worker would."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from tests.fake_vllm import FakeVLLM
from tests.gateway.plane import error_of
from tests.gateway.running import Running, running
from tests.gateway.tiny_lora import tiny_lora
from tests.gateway.training_data import preferences, rows, worker
from training.recipe import parse
from training.types import JobState, Outcome, Phase, Problem, Progress

TRAINING = frozenset({"inference", "training"})
BASE = "demo-base"


async def upload(client: AsyncOpenAI, content: bytes | None = None) -> str:
    made = await client.files.create(file=("train.jsonl", content or rows()), purpose="fine-tune")
    return made.id


async def create(client: AsyncOpenAI, **more: Any) -> Any:
    more.setdefault("training_file", await upload(client))
    return await client.fine_tuning.jobs.create(**{"model": BASE, **more})


async def test_a_job_from_its_request_to_its_model(gateway: Running) -> None:
    async with (
        await gateway.openai(await gateway.key(scopes=TRAINING)) as client,
        worker(gateway.data_dir) as acting,
    ):
        file = await upload(client)
        job = await client.fine_tuning.jobs.create(
            model=BASE,
            training_file=file,
            suffix="My Support",
            seed=7,
            metadata={"team": "a"},
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
        )
        assert job.id.startswith("ftjob-")
        assert (job.object, job.status, job.model, job.training_file) == (
            "fine_tuning.job", "validating_files", BASE, file,
        )  # fmt: skip
        assert (job.seed, job.metadata, job.error, job.fine_tuned_model, job.finished_at) == (
            7, {"team": "a"}, None, None, None,
        )  # fmt: skip
        assert job.hyperparameters.n_epochs == 3
        assert job.hyperparameters.batch_size == "auto"
        assert (job.trained_tokens, job.estimated_finish, job.result_files, job.validation_file) == (
            None, None, [], None,
        )  # fmt: skip

        settled = {
            "llamafactory": {
                "num_train_epochs": 3.0, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4
            }
        }  # fmt: skip
        await acting.change(job.id, state=JobState.QUEUED, settled=settled)
        job = await client.fine_tuning.jobs.retrieve(job.id)
        assert (job.status, job.hyperparameters.batch_size) == ("queued", 8)
        assert job.hyperparameters.learning_rate_multiplier == 1.0

        await acting.take(job.id, phase=Phase.TRAINING, progress=Progress(step=3, steps=9, eta_s=60.0))
        job = await client.fine_tuning.jobs.retrieve(job.id)
        assert job.status == "running"
        assert job.estimated_finish is not None
        assert time.time() < job.estimated_finish < time.time() + 120

        result = {"model": "x@0123456789ab", "trained_tokens": 1234, "result_files": [file]}
        stored = await gateway.started.gateway.jobs.show(job.id)
        await acting.change(
            job.id, state=JobState.SUCCEEDED, outcome=Outcome.PROMOTED, result=result, finished_at=time.time()
        )
        job = await client.fine_tuning.jobs.retrieve(job.id)
        assert (job.status, job.trained_tokens, job.result_files) == ("succeeded", 1234, [file])
        assert job.fine_tuned_model == stored.name == f"ft:{BASE}::My-Support:{job.id[-8:]}"
        assert job.finished_at is not None
        assert job.estimated_finish is None


async def test_what_a_job_means_as_a_recipe(engine: FakeVLLM, tmp_path: Path) -> None:
    async with (
        running(tmp_path, [engine], training={"organization": "acme", "base_names": ["gpt-4o-mini"]}) as gateway,
        await gateway.openai(await gateway.key(scopes=TRAINING)) as client,
    ):
        train, valid = await upload(client, preferences()), await upload(client, preferences())
        dpo: Any = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.3, "learning_rate_multiplier": 2}}}
        integrations: Any = [{"type": "wandb", "wandb": {"project": "p", "tags": ["x"]}}, {"type": "tensorboard"}]
        job = await client.fine_tuning.jobs.create(
            model="gpt-4o-mini", training_file=train, validation_file=valid, method=dpo, integrations=integrations
        )
        assert job.model == "gpt-4o-mini"
        assert job.method is not None
        assert job.method.dpo is not None
        assert job.method.dpo.hyperparameters is not None
        assert job.method.dpo.hyperparameters.beta == 0.3
        assert job.integrations is not None
        assert job.integrations[0].wandb.project == "p"
        stored = await gateway.started.gateway.jobs.show(job.id)
        recipe = parse(stored.recipe)
        assert recipe.name == f"ft:{BASE}:acme::{job.id[-8:]}" == stored.name
        assert [each.file for each in recipe.data.train] == [train]
        assert recipe.data.validation == valid
        assert (recipe.method.stage, recipe.gate, recipe.then) == ("dpo", None, "promote")
        assert (recipe.training.beta, recipe.training.learning_rate_multiplier) == (0.3, 2.0)
        assert (recipe.training.epochs, recipe.training.batch_size) == ("auto", "auto")
        assert recipe.training.seed == job.seed
        assert recipe.report_to == ("tensorboard", "wandb")
        # As older clients ask: hyperparameters at the top.
        older = await client.fine_tuning.jobs.create(
            model=BASE, training_file=train, hyperparameters={"n_epochs": 2, "batch_size": "auto"}
        )
        assert older.hyperparameters.n_epochs == 2


async def test_every_state_has_its_word_and_every_failure_its_reason(gateway: Running) -> None:
    async with (
        await gateway.openai(await gateway.key(scopes=TRAINING)) as client,
        worker(gateway.data_dir) as acting,
    ):
        job = await create(client)
        for state, word in {
            JobState.VALIDATING: "validating_files", JobState.QUEUED: "queued", JobState.RUNNING: "running",
            JobState.PAUSED: "paused", JobState.SUCCEEDED: "succeeded", JobState.CANCELLED: "cancelled",
        }.items():  # fmt: skip
            await acting.change(job.id, state=state)
            shown: str = (await client.fine_tuning.jobs.retrieve(job.id)).status
            assert shown == word
        problem = Problem(
            "invalid_n_examples", "Training file has 5 example(s), but must have at least 10 examples", "training_file"
        )
        await acting.change(job.id, state=JobState.FAILED, error=problem, finished_at=time.time())
        failed = await client.fine_tuning.jobs.retrieve(job.id)
        assert failed.error is not None
        assert (failed.error.code, failed.error.message, failed.error.param) == (
            problem.code, problem.message, problem.param,
        )  # fmt: skip
        assert failed.fine_tuned_model is None
        for outcome, model in {
            Outcome.REGISTERED: "x@0123456789ab", Outcome.REJECTED: None, Outcome.CANARY: job.id, Outcome.PARTIAL: None
        }.items():  # fmt: skip
            result = {"model": "x@0123456789ab"}
            await acting.change(job.id, state=JobState.SUCCEEDED, outcome=outcome, result=result)
            found = (await client.fine_tuning.jobs.retrieve(job.id)).fine_tuned_model
            assert (found or "").endswith(job.id[-8:]) if outcome is Outcome.CANARY else found == model


async def test_cancel_pause_and_resume(gateway: Running) -> None:
    async with (
        await gateway.openai(await gateway.key(scopes=TRAINING)) as client,
        worker(gateway.data_dir) as acting,
    ):
        jobs = client.fine_tuning.jobs
        job = await create(client)
        assert str((await jobs.pause(job.id)).status) == "paused"  # the SDK's type does not know it
        with pytest.raises(openai.BadRequestError, match="it is paused") as refused:
            await jobs.pause(job.id)
        assert refused.value.code == "invalid_job_state"
        assert refused.value.response.headers["x-should-retry"] == "false"
        assert (await jobs.resume(job.id)).status == "validating_files"
        with pytest.raises(openai.BadRequestError, match="cannot be resumed: it is validating"):
            await jobs.resume(job.id)
        await acting.take(job.id)
        assert (await jobs.cancel(job.id)).status == "running"  # until its worker has ended it
        await acting.change(job.id, state=JobState.CANCELLED, worker=None, finished_at=time.time())
        with pytest.raises(openai.BadRequestError, match="Job has already been cancelled: ftjob-"):
            await jobs.cancel(job.id)
        done = await create(client)
        await acting.change(done.id, state=JobState.SUCCEEDED, finished_at=time.time())
        for call in (jobs.cancel, jobs.pause, jobs.resume):
            with pytest.raises(openai.BadRequestError, match="Job has already succeeded"):
                await call(done.id)


async def test_lists_have_pages_and_may_be_asked_by_metadata(gateway: Running) -> None:
    async with await gateway.openai(await gateway.key(scopes=TRAINING)) as client:
        file = await upload(client)
        ids = [(await create(client, training_file=file, metadata={"n": str(i % 2)})).id for i in range(5)]
        assert [job.id async for job in client.fine_tuning.jobs.list(limit=2)] == ids[::-1]
        odd = client.fine_tuning.jobs.list(metadata={"n": "1"}, limit=1)
        assert [job.id async for job in odd] == [ids[3], ids[1]]
        assert [job async for job in client.fine_tuning.jobs.list(metadata={"n": "7"})] == []
        with pytest.raises(openai.BadRequestError):
            await client.fine_tuning.jobs.list(after="ftjob-nothing")
        with pytest.raises(openai.BadRequestError):
            await client.fine_tuning.jobs.list(limit=1000)


async def test_events_and_checkpoints_have_pages(gateway: Running) -> None:
    async with (
        await gateway.openai(await gateway.key(scopes=TRAINING)) as client,
        worker(gateway.data_dir) as acting,
    ):
        jobs = client.fine_tuning.jobs
        job = await create(client)
        for step in range(1, 6):
            data = {"step": step, "total_steps": 5, "train_loss": 1 / step}
            await acting.tell(job.id, f"Step {step}/5: training loss={1 / step:.2f}", kind="metrics", data=data)
        await acting.tell(job.id, "The loss rises", level="warn")
        events = [event async for event in jobs.list_events(job.id, limit=3)]
        assert [event.message for event in events][-2:] == [
            "Validating the data and the settings", f"Created fine-tuning job: {job.id}",
        ]  # fmt: skip
        assert len({event.id for event in events}) == len(events) == 8
        assert (events[0].level, events[0].type, events[0].object) == ("warn", "message", "fine_tuning.job.event")
        assert events[1].type == "metrics"
        assert events[1].data == {"step": 5, "total_steps": 5, "train_loss": 0.2}
        with pytest.raises(openai.BadRequestError):
            await jobs.list_events(job.id, after="nothing")

        for step in (10, 20, 30):
            await acting.keep(job.id, step, train_loss=1 / step, valid_loss=0.5)
        found = [each async for each in jobs.checkpoints.list(job.id, limit=1)]
        assert [each.step_number for each in found] == [30, 20, 10]
        assert found[0].object == "fine_tuning.job.checkpoint"
        assert found[0].fine_tuning_job_id == job.id
        assert found[0].fine_tuned_model_checkpoint == f"ft:{BASE}:::{job.id[-8:]}:ckpt-step-30"
        assert (found[0].metrics.step, found[0].metrics.valid_loss) == (30, 0.5)
        with pytest.raises(openai.BadRequestError):
            await jobs.checkpoints.list(job.id, after="ftckpt_nothing")


async def test_events_are_streamed_until_the_job_has_ended(gateway: Running) -> None:
    key = await gateway.key(scopes=TRAINING)
    async with await gateway.openai(key) as client, worker(gateway.data_dir) as acting, await gateway.http(key) as http:
        job = await create(client)
        path = f"/v1/fine_tuning/jobs/{job.id}/events"
        lines: list[str] = []
        async with http.stream("GET", path, params={"stream": "true"}) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["x-request-id"]
            async for line in answer.aiter_lines():
                lines.append(line)
                if "Validating the data" in line:
                    await acting.tell(job.id, "Half of it is done")
                if "Half of it" in line:
                    await acting.change(job.id, state=JobState.SUCCEEDED, finished_at=time.time())
                    await acting.tell(job.id, "The job has successfully completed")
        data = [line[6:] for line in lines if line.startswith("data: ")]
        assert data[-1] == "[DONE]"
        events = [json.loads(each) for each in data[:-1]]
        assert [each["message"] for each in events][-2:] == ["Half of it is done", "The job has successfully completed"]
        # Again, from the last but one.
        async with http.stream(
            "GET", path, params={"stream": "true"}, headers={"last-event-id": events[-2]["id"]}
        ) as answer:
            again = [line[6:] async for line in answer.aiter_lines() if line.startswith("data: ")]
        assert again == data[-2:]


async def test_a_follower_that_leaves_is_forgotten_and_a_drain_ends_the_others(
    engine: FakeVLLM, tmp_path: Path
) -> None:
    last: list[str] = []
    async with running(tmp_path, [engine]) as gateway:
        key = await gateway.key(scopes=TRAINING)
        async with await gateway.openai(key) as client, await gateway.http(key) as http:
            job = await create(client)
            path = f"/v1/fine_tuning/jobs/{job.id}/events"
            async with http.stream("GET", path, params={"stream": "true"}) as answer:
                await anext(answer.aiter_lines())

            async def follow(seen: asyncio.Event) -> None:
                async with http.stream("GET", path, params={"stream": "true"}) as answer:
                    async for line in answer.aiter_lines():
                        last.append(line)
                        seen.set()

            seen = asyncio.Event()
            following = asyncio.create_task(follow(seen))
            await seen.wait()
            gateway.stop.set()
            await following
    assert "shutting_down" in [line for line in last if line][-1]


async def test_two_keys_do_not_see_each_others_jobs_and_an_admin_sees_both(gateway: Running) -> None:
    keys = [await gateway.key(name, scopes=TRAINING) for name in "ab"]
    async with await gateway.openai(keys[0]) as a, await gateway.openai(keys[1]) as b:
        job = await create(a)
        assert [each async for each in b.fine_tuning.jobs.list()] == []
        jobs = b.fine_tuning.jobs
        for call in (jobs.retrieve, jobs.cancel, jobs.pause, jobs.resume, jobs.list_events, jobs.checkpoints.list):
            with pytest.raises(openai.NotFoundError) as refused:
                await call(job.id)
            assert refused.value.body == {
                "message": f"Could not find fine tune: {job.id}", "type": "invalid_request_error",
                "param": "fine_tune_id", "code": "fine_tune_not_found",
            }  # fmt: skip
        with pytest.raises(openai.BadRequestError):
            await b.fine_tuning.jobs.list(after=job.id)
        with pytest.raises(openai.BadRequestError, match="invalid training_file: file-") as foreign:
            await create(b, training_file=job.training_file)
        assert foreign.value.param == "training_file"
        async with await gateway.openai(await gateway.key(scopes=frozenset({"admin"}))) as admin:
            assert [each.id async for each in admin.fine_tuning.jobs.list()] == [job.id]
            assert (await admin.fine_tuning.jobs.cancel(job.id)).status == "cancelled"


async def test_a_key_has_so_many_unfinished_jobs_and_no_more(engine: FakeVLLM, tmp_path: Path) -> None:
    async with (
        running(tmp_path, [engine], training={"key_jobs_max": 2}) as gateway,
        await gateway.openai(await gateway.key(scopes=TRAINING)) as client,
    ):
        file = await upload(client)
        first, _ = [await create(client, training_file=file) for _ in range(2)]
        with pytest.raises(openai.RateLimitError, match="2 jobs that have not ended") as refused:
            await create(client, training_file=file)
        assert refused.value.code == "insufficient_quota"
        assert refused.value.response.headers["x-should-retry"] == "false"
        await client.fine_tuning.jobs.cancel(first.id)
        await create(client, training_file=file)


SFT = {"type": "supervised"}
WRONG: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "no model": ({"model": None}, "model", "invalid_value"),
    "another model": ({"model": "gpt-4o"}, "model", "model_not_available"),
    "no file": ({"training_file": None}, "training_file", "invalid_value"),
    "a file that is not there": ({"training_file": "file-nothing"}, "training_file", "invalid_file"),
    "a validation file that is not there": ({"validation_file": "file-nothing"}, "validation_file", "invalid_file"),
    "an unknown field": ({"epochs": 3}, "epochs", "unsupported_parameter"),
    "an unknown field with an odd name": ({"a b": 3}, None, "unsupported_parameter"),
    "an unknown hyperparameter": ({"hyperparameters": {"lr": 3}}, "hyperparameters.lr", "unsupported_parameter"),
    "too many epochs": ({"hyperparameters": {"n_epochs": 51}}, "hyperparameters.n_epochs", "invalid_value"),
    "no epochs": ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", "invalid_value"),
    "half an epoch": ({"hyperparameters": {"n_epochs": 0.5}}, "hyperparameters.n_epochs", "invalid_value"),
    "true": ({"hyperparameters": {"batch_size": True}}, "hyperparameters.batch_size", "invalid_value"),
    "a large batch": ({"hyperparameters": {"batch_size": 257}}, "hyperparameters.batch_size", "invalid_value"),
    "no rate": (
        {"hyperparameters": {"learning_rate_multiplier": 0}},
        "hyperparameters.learning_rate_multiplier", "invalid_value",
    ),
    "beta of supervised": ({"hyperparameters": {"beta": 0.1}}, "hyperparameters.beta", "invalid_value"),
    "beta too large": (
        {"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 2.5}}}},
        "method.dpo.hyperparameters.beta", "invalid_value",
    ),
    "no method": ({"method": {"type": "magic"}}, "method.type", "invalid_value"),
    "reinforcement": ({"method": {"type": "reinforcement", "reinforcement": {}}}, "method.type", "invalid_value"),
    "a method's neighbour": ({"method": {**SFT, "dpo": {}}}, "method.dpo", "invalid_value"),
    "a long suffix": ({"suffix": "a" * 65}, "suffix", "invalid_value"),
    "an empty suffix": ({"suffix": ""}, "suffix", "invalid_value"),
    "a negative seed": ({"seed": -1}, "seed", "invalid_value"),
    "a large seed": ({"seed": 2**31}, "seed", "invalid_value"),
    "a seed in words": ({"seed": "7"}, "seed", "invalid_value"),
    "another tracker": ({"integrations": [{"type": "comet"}]}, "integrations.0.type", "invalid_value"),
    "much metadata": ({"metadata": {str(i): "" for i in range(17)}}, "metadata", "invalid_value"),
    "metadata that is no text": ({"metadata": {"a": 1}}, "metadata.a", "invalid_value"),
    "long metadata": ({"metadata": {"a": "x" * 513}}, "metadata.a", "invalid_value"),
}  # fmt: skip


async def test_every_wrong_request_names_its_field(gateway: Running) -> None:
    key = await gateway.key(scopes=TRAINING)
    async with await gateway.openai(key) as client, await gateway.http(key) as http:
        file = await upload(client)
        for name, (change, param, code) in WRONG.items():
            body = {"model": BASE, "training_file": file, **change}
            body = {field: value for field, value in body.items() if value is not None}
            answer = await http.post("/v1/fine_tuning/jobs", json=body)
            assert answer.status_code == 400, (name, answer.text)
            error = error_of("/v1/fine_tuning/jobs", answer.json())
            assert (error["param"], error["code"]) == (param, code), (name, error)
            assert "lambda" not in error["message"], error
            assert error["message"].endswith((".", "file-nothing")), error
        same = await http.post(
            "/v1/fine_tuning/jobs", json={"model": BASE, "training_file": file, "validation_file": file}
        )
        assert same.status_code == 400
        for content in (b"", b"[]", b"{", b'{"a":' * 100):
            answer = await http.post("/v1/fine_tuning/jobs", content=content)
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == "invalid_json"
        assert (await http.get("/v1/fine_tuning/jobs")).json()["data"] == []


async def test_what_is_not_done_here_says_so(gateway: Running) -> None:
    key = await gateway.key(scopes=TRAINING)
    async with await gateway.openai(key) as client, await gateway.http(key) as http:
        with pytest.raises(openai.NotFoundError, match="Permissions of checkpoints"):
            await client.fine_tuning.checkpoints.permissions.list("ft:x:ckpt-step-3")
        with pytest.raises(openai.NotFoundError, match="reinforcement"):
            await client.fine_tuning.alpha.graders.validate(
                grader={"type": "string_check", "name": "a", "input": "a", "operation": "eq", "reference": "a"}
            )
        job = await create(client)
        assert (await http.post(f"/v1/fine_tuning/jobs/{job.id}/explode")).status_code == 404
        for path, allow in {"/v1/fine_tuning/jobs": {"GET", "POST"}, f"/v1/fine_tuning/jobs/{job.id}": {"GET"}}.items():
            answer = await http.request("PATCH", path)
            assert answer.status_code == 405
            assert {*answer.headers["allow"].split(", ")} - {"HEAD"} == allow


async def test_without_the_scope_or_an_engine_no_job_is_made(gateway: Running, tmp_path: Path) -> None:
    async with await gateway.openai() as client:
        for call in (
            lambda: client.fine_tuning.jobs.list(),
            lambda: client.fine_tuning.jobs.create(model=BASE, training_file="file-1"),
            lambda: client.fine_tuning.jobs.cancel("ftjob-1"),
        ):
            with pytest.raises(openai.PermissionDeniedError, match="training"):
                await call()
    async with running(tmp_path / "other", []) as alone:
        key = await alone.key(scopes=TRAINING)
        async with await alone.openai(key) as client:
            with pytest.raises(openai.InternalServerError, match="No engine is ready"):
                await create(client)


async def test_a_fine_tuned_model_and_a_restricted_key_are_no_start(gateway: Running) -> None:
    key = await gateway.key(scopes=TRAINING, models=frozenset({"something"}))
    async with await gateway.openai(key) as client:
        with pytest.raises(openai.BadRequestError, match="not available for fine-tuning"):
            await create(client)


async def test_the_name_leaves_room_for_its_checkpoints(tmp_path: Path) -> None:
    base = "b" * 120
    async with (
        FakeVLLM(base=base) as engine,
        running(tmp_path, [engine], training={"organization": "o" * 32}) as gateway,
        await gateway.openai(await gateway.key(scopes=TRAINING)) as client,
    ):
        job = await create(client, model=base, suffix="s" * 64)
        name = (await gateway.started.gateway.jobs.show(job.id)).name
        assert len(f"{name}:ckpt-step-1000000") <= 128
        assert "s" * 64 in name


async def test_the_result_answers_is_no_start_for_another_job_and_goes_when_its_owner_says(gateway: Running) -> None:
    key = await gateway.key(scopes=TRAINING)
    async with await gateway.openai(key) as client, worker(gateway.data_dir) as acting, gateway.admin() as admin:
        job = await create(client, suffix="support")
        stored = await gateway.started.gateway.jobs.show(job.id)
        source = str(tiny_lora(gateway.data_dir / "trained"))
        for name in (stored.name, f"{stored.name}:ckpt-step-10"):  # what a worker does in the end
            body = {"source": source, "name": name, "promote": True, "owner": stored.owner}
            assert (await admin.post("/admin/v1/adapters", json=body)).status_code == 201
        await acting.change(job.id, state=JobState.SUCCEEDED, outcome=Outcome.PROMOTED, finished_at=time.time())
        model = (await client.fine_tuning.jobs.retrieve(job.id)).fine_tuned_model
        assert model is not None
        for name in (model, f"{model}:ckpt-step-10"):
            answer = await client.chat.completions.create(model=name, messages=[{"role": "user", "content": "hi"}])
            assert answer.model.startswith(f"{name}@")
        with pytest.raises(openai.BadRequestError, match="it is fine-tuned already"):
            await create(client, model=model)
        async with await gateway.openai(await gateway.key(scopes=TRAINING)) as other:
            with pytest.raises(openai.PermissionDeniedError):
                await other.models.delete(model)
        assert (await client.models.delete(model)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve(model)
