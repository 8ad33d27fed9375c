"""`loragate export …` and `train rerun` as child processes against a real gateway over the fake engine."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from adapters import intake
from gateway.cli.client import AdminClient, Place, Refused
from tests.gateway.running import Running
from tests.gateway.tiny_lora import tiny_lora
from tests.training.fake_environment import fake_environment, measures
from tests.training.finished_job import base_model, finished
from tests.training.test_export import GOOD
from training import lineage

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "from gateway.cli import COMMANDS, main; COMMANDS['rerun'] = ('gateway.cli.rerun', 'rerun', ''); main()"


async def run(gateway: Running, *words: str, command: tuple[str, ...] = ("-m", "gateway"), **environ: str) -> Any:
    """(exit code, document or text, stderr)."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("LORAGATE")}
    env |= {"LORAGATE_HOME": str(gateway.data_dir), "LORAGATE_ADMIN_URL": gateway.admin_url, "PYTHONPATH": str(ROOT)}
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, *command, *words),
        cwd=gateway.data_dir,
        env=env | environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await child.communicate()
    text = stdout.decode()
    return child.returncode, json.loads(text) if "--json" in words else text, stderr.decode()


async def again(gateway: Running, python: Path, *words: str) -> Any:
    return await run(gateway, "rerun", *words, command=("-c", COMMAND), LORAGATE_TRAINING_PYTHON=str(python))


async def registered(gateway: Running, seed: int = 1, **more: Any) -> str:
    """A version of customer-service, live; its digits."""
    folder = tiny_lora(gateway.data_dir / f"lora-{seed}", seed)
    made = await gateway.started.gateway.adapters.register(folder, "customer-service", promote=True, **more)
    assert made.live is not None
    return made.live


async def test_what_is_exported_can_be_registered_again(gateway: Running, tmp_path: Path) -> None:
    old, live = await registered(gateway, 1), await registered(gateway, 2)
    archive = tmp_path / "cs.tar.gz"
    code, made, _ = await run(gateway, "export", "adapter", "customer-service", "--to", str(archive), "--json")
    assert (code, made["version"], made["path"], made["bytes"]) == (0, live, str(archive), archive.stat().st_size)
    assert made["lineage"] is False
    assert "Nobody said how this version was made" in made["notes"][0]
    code, again, _ = await run(gateway, "adapters", "register", str(archive), "--name", "copy", "--json")
    assert (code, again["versions"][0]["version"]) == (0, live)
    pinned = f"customer-service@{old}"
    code, out, stderr = await run(gateway, "export", "adapter", pinned, "--to", str(tmp_path / "folder"))
    assert (code, out.strip()) == (0, str(tmp_path / "folder")), stderr
    assert intake.check(tmp_path / "folder", None, 16).version == old


async def test_the_lineage_that_the_gateway_knows_goes_along(gateway: Running, tmp_path: Path) -> None:
    told = {"schema": 1, "name": "customer-service", "job": "ftjob-one", "base": {"id": "demo-base", "files": {}}}
    live = await registered(gateway, lineage=json.dumps(told))
    target = str(tmp_path / "out")
    code, made, _ = await run(gateway, "export", "adapter", "customer-service", "--to", target, "--json")
    assert (code, made["lineage"], made["notes"]) == (0, True, [])
    document = lineage.read(tmp_path / "out") or {}
    assert (document["job"], document["version"]) == ("ftjob-one", live)


async def test_what_others_said_is_kept_as_they_said_it(gateway: Running, tmp_path: Path) -> None:
    live = await registered(gateway, lineage=json.dumps({"base": "mine", "made_by": "ada"}))
    code, _, stderr = await run(gateway, "export", "adapter", "customer-service", "--to", str(tmp_path / "out"))
    assert code == 0, stderr
    document = lineage.read(tmp_path / "out") or {}
    assert document["told"] == {"base": "mine", "made_by": "ada"}
    assert document["version"] == live


@pytest.mark.parametrize("length", ["1000", "5", None])
async def test_a_download_that_is_cut_off_is_no_file(length: str | None) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        said = f"content-length: {length}\r\n" if length else ""
        writer.write(f"HTTP/1.1 200 OK\r\n{said}connection: close\r\n\r\nhello".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        place = Place(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "key", "a test")
        sink = io.BytesIO()
        fetch = asyncio.to_thread(AdminClient(place).download, "/file", sink, lambda done, total: None)
        if length == "5":
            await fetch
            assert sink.getvalue() == b"hello"
        else:
            with pytest.raises(Refused, match="broke off after 5 of"):
                await fetch


async def test_refusals_are_one_sentence(gateway: Running, tmp_path: Path) -> None:
    await registered(gateway)
    target = str(tmp_path / "out")
    for words, said in (
        (("adapter", "nobody", "--to", target), "nobody"),
        (("adapter", "customer-service@newest", "--to", target), "12 hex digits"),
        (("adapter", f"customer-service@{'0' * 12}", "--to", target), "has no version"),
        (("adapter", "customer-service", "--to", str(tmp_path)), "is there already"),
        (("merged", "customer-service", "--to", target), "Name its folder with --base"),
        (("serve", "./nothing"), "neither an adapter"),
    ):
        code, answer, stderr = await run(gateway, "export", *words, "--json")
        assert (code, said in answer["error"]["message"]) == (1, True), (words, answer, stderr)
    assert not (tmp_path / "out").exists()


async def test_merged_by_name(gateway: Running, tmp_path: Path) -> None:
    live = await registered(gateway)
    python, base = fake_environment(tmp_path / "environment"), base_model(tmp_path / "base")
    measures(python, **GOOD)
    words = ("export", "merged", "customer-service", "--base", str(base), "--to", str(tmp_path / "out"), "--json")
    code, made, stderr = await run(gateway, *words, LORAGATE_TRAINING_PYTHON=str(python))
    assert (code, made["version"], made["verification"]["modules"]) == (0, live, 1), stderr
    assert "only the sizes of the base were compared" in made["notes"][0]
    assert "the logits" not in stderr
    assert (lineage.read(tmp_path / "out") or {})["merged"]["off"] == 0.01
    code, text, _ = await run(gateway, "export", "serve", str(tmp_path / "out"))
    assert text.strip() == f"vllm serve {tmp_path / 'out'} --served-model-name customer-service"


async def test_merged_into_another_base_than_it_was_trained_on(gateway: Running, tmp_path: Path) -> None:
    python = fake_environment(tmp_path / "environment")
    measures(python, **GOOD)
    done = finished(tmp_path / "jobs", python)
    lineage.write(done.folder / "adapter", lineage.read(done.folder) or {})
    other = base_model(tmp_path / "other")
    (other / "model.safetensors").write_bytes(b"others")
    words = ("export", "merged", str(done.folder / "adapter"), "--to", str(tmp_path / "out"), "--json", "--base")
    where = str(python)
    code, refused, _ = await run(gateway, *words, str(other), LORAGATE_TRAINING_PYTHON=where)
    assert (code, "are not those that it was trained on" in refused["error"]["message"]) == (1, True)
    code, made, _ = await run(gateway, *words, str(done.base), LORAGATE_TRAINING_PYTHON=where)
    assert (code, len(made["notes"])) == (0, 1)


async def test_how_a_name_is_served(gateway: Running) -> None:
    live = await registered(gateway)
    code, made, _ = await run(gateway, "export", "serve", "customer-service", "--json")
    assert code == 0
    assert made["argv"][:6] == ["vllm", "serve", "demo-base", "--enable-lora", "--max-lora-rank", "8"]
    assert f"loragate export adapter customer-service@{live} --to ./customer-service" in made["notes"][0]


async def test_quantising_says_what_is_missing_or_which_tool(gateway: Running, tmp_path: Path) -> None:
    base, rows = base_model(tmp_path / "base"), tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    words = (str(base), "--data", str(rows), "--to", str(tmp_path / "out"), "--json")
    code, refused, _ = await run(gateway, "export", "gptq", *words, PATH=str(tmp_path))  # no nvidia-smi there
    assert (code, refused["error"]["code"]) == (1, "cannot_quantise")
    code, told, _ = await run(gateway, "export", "awq", *words)
    assert (code, told["tool"]) == (0, "llmcompressor")


async def test_a_rerun_finds_its_job_by_version(gateway: Running, tmp_path: Path) -> None:
    python = fake_environment(tmp_path / "environment")
    done = finished(gateway.data_dir, python)
    await gateway.started.gateway.adapters.register(done.folder / "adapter", "customer-service", promote=True)
    version = (lineage.read(done.folder) or {})["version"]
    for asked in ("customer-service", f"customer-service@{version}", "ftjob-one", str(done.folder)):
        code, text, stderr = await again(gateway, python, asked, "--verify")
        assert (code, text.startswith("The weights are byte-equal")) == (0, True), (asked, stderr)
    kept = str(tmp_path / "kept")
    code, made, _ = await again(gateway, python, "ftjob-one", "--to", kept, "--json")
    assert (code, made["path"], made["verdict"]["equal"]) == (0, kept, True)
    assert (Path(kept) / "adapter_model.safetensors").is_file()


async def test_a_rerun_that_differs_is_exit_1(gateway: Running, tmp_path: Path) -> None:
    python = fake_environment(tmp_path / "environment")
    done = finished(gateway.data_dir, python)
    file = done.folder / "data" / "train.jsonl"
    file.write_text(file.read_text().replace("question 2", "question two"))
    code, refused, _ = await again(gateway, python, "ftjob-one", "--verify", "--json")
    assert (code, "not be the same training" in refused["error"]["message"]) == (1, True)
    code, told, stderr = await again(gateway, python, "ftjob-one", "--verify", "--anyway", "--json")
    assert (code, told["verdict"]["first"]["step"], told["error"]["code"]) == (1, 3, "not_reproduced")
    assert "Not as it was: data.train.jsonl" in stderr
    code, _, stderr = await again(gateway, python, "ftjob-one")
    assert (code, "--verify" in stderr) == (2, True)
    code, refused, _ = await again(gateway, python, "other", "--verify", "--json")
    assert code == 1
    code, refused, _ = await again(gateway, python, f"other@{'0' * 12}", "--verify", "--json")
    assert "No job on this machine made" in refused["error"]["message"]
