"""From a CSV to an adapter that callers get, all of it real: vLLM, LLaMA-Factory, the worker of `up`, the SDK."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.e2e.conftest import ROOT, Live, _ready

pytestmark = [pytest.mark.engine, pytest.mark.trainer, pytest.mark.timeout(1500)]

FAQ = {
    "What time does the shop open?": "We open at nine in the morning.",
    "Where is the shop?": "We are at 12 Harbour Street.",
    "Do you repair bicycles?": "Yes, we repair all bicycles.",
    "How long does a repair take?": "A repair takes three days.",
    "Can I rent a bicycle?": "Yes, for ten euros a day.",
    "Do you sell helmets?": "Yes, we sell helmets for all ages.",
    "Is the shop open on Sunday?": "No, we are closed on Sunday.",
    "Who runs the shop?": "Maria and Tom run the shop.",
    "Can I pay by card?": "Yes, cards and cash are fine.",
    "Do you buy used bicycles?": "Yes, bring it in and we make an offer.",
}
RECIPE = """
name: bike-shop
data: {train: faq.csv}
method: {tuning: lora, rank: 8, alpha: 16}
training: {epochs: 90, batch_size: 10, learning_rate: 3.0e-3, cutoff: 256, warmup: 0, save_steps: 45, seed: 7}
gate: {metric: rouge_l, min_gain: 0.2}
"""


@pytest.fixture(scope="module")
def trained_here(
    engine_python: Path, training_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    """`loragate up` with both environments named."""
    data = tmp_path_factory.mktemp("training-up")
    log = data / "up.out"
    command = [sys.executable, "-m", "gateway", "up", "--data-dir", str(data), "--port", "0", "--admin-port", "0"]
    named = {"LORAGATE_ENGINE_PYTHON": str(engine_python), "LORAGATE_TRAINING_PYTHON": str(training_python)}
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **named}, stdout=out, stderr=out, text=True)
    try:
        yield _ready(process, data, log)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0, log.read_text()


def run(live: Live, *words: str, timeout_s: float = 1200) -> subprocess.CompletedProcess[str]:
    """One command, which may take as long as a training."""
    environ = {**os.environ, "LORAGATE_HOME": str(live.data_dir), "LORAGATE_ADMIN_URL": live.admin_url}
    command = [sys.executable, "-m", "gateway", *words]
    return subprocess.run(command, cwd=ROOT, env=environ, text=True, capture_output=True, timeout=timeout_s)


def says(live: Live, key: str, model: str, question: str) -> tuple[str, str]:
    """(model that answered, its answer), with the official SDK."""
    client = openai.OpenAI(base_url=live.url, api_key=key, max_retries=3)
    answer = client.chat.completions.create(
        model=model, temperature=0, max_tokens=40, messages=[{"role": "user", "content": question}]
    )
    return answer.model, str(answer.choices[0].message.content)


def test_one_command_from_a_csv_to_what_callers_get(trained_here: Live, tmp_path: Path) -> None:
    live = trained_here
    rows = "".join(f'"{question}","{answer}"\n' for question, answer in FAQ.items())
    (tmp_path / "faq.csv").write_text("question,answer\n" + rows)
    (tmp_path / "shop.yaml").write_text(RECIPE)
    done = run(live, "train", "run", str(tmp_path / "shop.yaml"), "--then", "promote", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    job = json.loads(done.stdout)
    assert (job["state"], job["outcome"]) == ("succeeded", "promoted")
    assert job["result"]["verdict"].startswith("The gate said yes.")
    version = job["result"]["model"]
    right = 0
    for question, answer in FAQ.items():
        by, said = says(live, live.api_key, "bike-shop", question)
        assert by == version
        right += said == answer
        assert says(live, live.api_key, "demo-base", question)[1] != answer
    assert right >= 0.3 * len(FAQ)  # ninety steps: as many as a test may take
    report = Path(job["result"]["adapter"]).parent / "evaluation"
    assert {"evaluation.json", "report.md", "report.png"} <= {file.name for file in report.iterdir()}
    shown = run(live, "adapters", "show", "bike-shop", "--json")
    assert json.loads(shown.stdout)["versions"][0]["lineage"] is True
    refused = run(live, "train", "run", str(tmp_path / "shop.yaml"), "--set", "method.tuning=dora", "--json")
    assert refused.returncode == 1
    assert "DoRA" in json.loads(refused.stdout)["error"]["message"]


async def test_the_sdks_own_calls_train_too(trained_here: Live, tmp_path: Path) -> None:
    live = trained_here
    made = run(live, "keys", "create", "--name", "trainer", "--scope", "training", "--scope", "inference", "--json")
    key = json.loads(made.stdout)["key"]
    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in FAQ.items()
    ]
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    async with openai.AsyncOpenAI(base_url=live.url, api_key=key) as client:
        uploaded = await client.files.create(file=file, purpose="fine-tune")
        job = await client.fine_tuning.jobs.create(
            model="demo-base",
            training_file=uploaded.id,
            suffix="shop",
            seed=7,
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 10}}},
        )
        deadline = time.monotonic() + 1200
        while job.status not in ("succeeded", "failed", "cancelled"):
            assert time.monotonic() < deadline
            await asyncio.sleep(1)
            job = await client.fine_tuning.jobs.retrieve(job.id)
        assert job.status == "succeeded", job.error
        assert job.fine_tuned_model is not None
        assert re.fullmatch(r"ft:demo-base:[^:]*:shop:\w+", job.fine_tuned_model)
        events = [event.message async for event in client.fine_tuning.jobs.list_events(job.id)]
        assert any("Training starts" in message for message in events)
        table = await client.files.content(job.result_files[0])
        assert table.text.startswith("step,train_loss,")
        assert (await client.models.retrieve(job.fine_tuned_model)).id == job.fine_tuned_model
    by, said = await asyncio.to_thread(says, live, key, job.fine_tuned_model, "Where is the shop?")
    assert by.startswith(f"{job.fine_tuned_model}@")
    assert said
