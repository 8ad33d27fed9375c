"""vLLM's log as it really is: the stage of a start, the error that matters, the cap."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.local.enginelog import EngineLog

WORKER = "(Worker pid=13311) INFO 11-23 05:35:55 "
CORE = "(EngineCore pid=13282) INFO 11-23 05:35:45 "
API = "(APIServer pid=13156) INFO 11-23 05:35:39 "


@pytest.mark.parametrize(
    ("lines", "stage"),
    [
        ([], ""),
        (["Triton is installed, but doesn't include CPU backend."], ""),
        ([API + "[model.py:733] Resolved architecture: Qwen2ForCausalLM"], "reading the model's configuration"),
        ([CORE + "[core.py:133] Initializing a V1 LLM engine (v0.32.0) with config:"], "starting the engine core"),
        ([WORKER + "[cpu_model_runner.py:68] Starting to load model /m...", "nothing told"], "loading the weights"),
        ([CORE + "[kv_cache_utils.py:2327] CPU KV cache size: 1,048,576 tokens"], "reserving memory for the cache"),
        ([API + "[entry.py:140] Starting vLLM server on http://127.0.0.1:1"], "opening the API"),
    ],
)
def test_the_stage_is_the_last_line_that_tells(tmp_path: Path, lines: list[str], stage: str) -> None:
    log = EngineLog(tmp_path / "engine.log")
    log.path.write_text("\n".join(lines))
    assert log.stage(0) == stage


@pytest.mark.parametrize(
    ("text", "error", "decided"),
    [
        (
            "Traceback (most recent call last):\npydantic_core._pydantic_core.ValidationError: 1 validation error for "
            "ModelConfig\n  Value error, type `nosuch` is not recognized [type=value_error, input_value=Args]\n"
            "    For further information visit https://errors.pydantic.dev/",
            "type `nosuch` is not recognized",
            True,
        ),
        (
            "(EngineCore pid=2) ERROR 11-23 05:27:16 [core.py:1208] RuntimeError: cannot allocate memory\n"
            "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.",
            "RuntimeError: cannot allocate memory",
            False,
        ),
        (
            "(Worker pid=3) ERROR 11-23 09:07:56 [multiproc_executor.py:953] safetensors._safetensors_rust."
            "SafetensorError: Error while deserializing header: incomplete metadata, file not fully covered\n"
            "(EngineCore pid=2) ERROR 11-23 09:07:59 [core.py:1510] Exception: WorkerProc initialization failed due to "
            "an exception in a background process. See stack trace for root cause.\n"
            "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.",
            "safetensors._safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata, "
            "file not fully covered",
            True,
        ),
        (
            "usage: api_server.py [-h]\napi_server.py: error: unrecognized arguments: --no-such-flag 3",
            "unrecognized arguments: --no-such-flag 3",
            True,
        ),
        (
            "(EngineCore pid=2) ERROR 11-23 05:27:16 [core.py:1208] RuntimeError: Worker failed with error 'Available "
            "memory on node 0 is less than 4 GiB.', please check the stack trace above for the root cause",
            "Available memory on node 0 is less than 4 GiB.",
            False,
        ),
        (
            f"  Value error, It is too long. {'Use less of it. ' * 30}[type=value_error]",
            f"It is too long. {'Use less of it. ' * 24}".rstrip(),
            True,
        ),
        (f"ValueError: {'x' * 500}", f"ValueError: {'x' * 388}", True),
        ("only a word", "only a word", False),
        ("", "", False),
    ],
)
def test_the_error_that_matters(tmp_path: Path, text: str, error: str, decided: bool) -> None:
    log = EngineLog(tmp_path / "engine.log")
    log.path.write_text(text)
    assert (log.last_error(0), log.decided(0)) == (error, decided)


def test_an_earlier_starts_lines_are_not_this_ones(tmp_path: Path) -> None:
    log = EngineLog(tmp_path / "engine.log")
    log.path.write_text("ValueError: of yesterday\n")
    since = log.size()
    assert log.last_error(since) == ""
    descriptor = log.open()
    os.write(descriptor, b"OSError: of today\n")
    os.close(descriptor)
    assert log.last_error(since) == "OSError: of today"


def test_a_log_beyond_the_cap_is_moved_aside_once(tmp_path: Path) -> None:
    log = EngineLog(tmp_path / "engine.log", cap_bytes=10)
    log.path.write_text("short")
    log.cap()
    assert log.path.exists()
    log.path.write_text("longer than that")
    log.cap()
    assert not log.path.exists()
    assert (tmp_path / "engine.log.1").read_text() == "longer than that"
