"""vLLM's command line and environment: exactly what the design says, and nothing secret where it can be seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gateway.local import engine
from gateway.local.engine import Launch
from gateway.local.errors import CannotStart
from gateway.local.hardware import Gpu, Hardware
from gateway.local.models import Model
from gateway.local.places import Places
from tests.local.conftest import ROOT

CPU = Hardware("Linux", "x86_64", (2, 36), 2, 16 << 30, (), (), True)
GPU = replace(CPU, gpus=(Gpu("NVIDIA H200", 143771, "580.1"),))


def launch(
    places: Places, hardware: Hardware = CPU, environ: dict[str, str] | None = None, demo: bool = True, *flags: str
) -> Launch:
    return engine.launch(
        Path("/env/bin/python"),
        Model("demo-base", Path("/m"), demo=demo),
        link=places.models / "demo-base",
        places=places,
        hardware=hardware,
        port=1234,
        api_key="engine-secret",
        environ=environ or {},
        flags=flags,
    )


def test_the_command_line_on_a_cpu(places: Places) -> None:
    expected = "/env/bin/python -m vllm.entrypoints.openai.api_server --model {link} --served-model-name demo-base "
    expected += (
        "--host 127.0.0.1 --port 1234 --enable-lora --max-loras 4 --max-lora-rank 16 --dtype bfloat16 --enforce-eager"
    )
    assert " ".join(launch(places).argv) == expected.format(link=places.models / "demo-base")


def test_a_gpu_keeps_vllms_own_types_and_graphs(places: Places) -> None:
    started = launch(places, GPU)
    assert "--enforce-eager" not in started.argv
    assert "--dtype" not in started.argv
    assert not [name for name in started.env if name.startswith("VLLM_CPU")]
    assert (started.env["VLLM_PLUGINS"], "PYTHONPATH" in started.env) == ("lora_filesystem_resolver", False)


def test_the_environment_is_ours_and_little_of_the_callers(places: Places) -> None:
    environ = {
        "PATH": "/bin",
        "HOME": "/home/me",
        "LC_ALL": "C.UTF-8",
        "OPENAI_API_KEY": "sk-leak",
        "HF_TOKEN": "hf-leak",
        "AWS_SECRET_ACCESS_KEY": "leak",
        "LORAGATE_ADMIN_KEY": "leak",
        "HTTP_PROXY": "http://leak",
        "VLLM_CPU_OMP_THREADS_BIND": "0-3",
        "VLLM_PLUGINS": "mine,lora_filesystem_resolver",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0",
    }
    assert launch(places, CPU, environ).env == {
        "PATH": "/bin",
        "HOME": "/home/me",
        "LC_ALL": "C.UTF-8",
        "VLLM_CPU_OMP_THREADS_BIND": "0-3",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT / "gateway" / "local" / "engine_plugin"),
        "VLLM_PLUGINS": "lora_filesystem_resolver,loragate_cpu_lora,mine",
        "VLLM_LORA_RESOLVER_CACHE_DIR": str(places.adapters),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_MAX_STOP_STRINGS": "16",
        "VLLM_API_KEY": "engine-secret",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }


def test_a_users_model_gets_a_quarter_of_the_memory_for_its_cache(places: Places) -> None:
    assert launch(places, CPU, None, False).env["VLLM_CPU_KVCACHE_SPACE"] == "4"


def test_only_the_demo_is_held_to_one_thread(places: Places) -> None:
    assert "OMP_NUM_THREADS" not in launch(places, CPU, None, False).env
    assert launch(places, CPU, {"OMP_NUM_THREADS": "3"}).env["OMP_NUM_THREADS"] == "3"


def test_the_engines_key_is_in_no_argument_and_no_repr(places: Places) -> None:
    started = launch(places)
    assert "engine-secret" not in " ".join(started.argv)
    assert "engine-secret" not in repr(started)


def test_flags_for_vllm_come_last_so_that_they_win(places: Places) -> None:
    assert launch(places, CPU, None, True, "--max-lora-rank", "64").argv[-2:] == ("--max-lora-rank", "64")


@pytest.mark.parametrize("flag", ["--port=1", "--model", "--api_key", "--ssl-keyfile", "--served-model-name", "--uds"])
def test_flags_that_the_gateway_relies_on_are_refused(places: Places, flag: str) -> None:
    with pytest.raises(CannotStart, match="cannot be given to vLLM"):
        launch(places, CPU, None, True, flag)


def test_the_rank_that_the_engine_takes_is_the_rank_that_adapters_may_have() -> None:
    rank = "--max-lora-rank"
    assert engine.number((), rank, 16) == 16
    assert engine.number(("--max-loras", "8", rank, "64"), rank, 16) == 64
    assert engine.number(("--max-lora-rank=32",), rank, 16) == 32
    for nonsense in ((rank,), (rank, "0"), (rank, "\u0663"), (rank, "many")):
        with pytest.raises(CannotStart, match="takes a number above 0, such as --max-lora-rank 16"):
            engine.number(nonsense, rank, 16)


@pytest.mark.parametrize("words", [("./my-model",), ("my-model", "--max-model-len", "4096")])
def test_a_model_named_without_its_flag_is_not_passed_over(words: tuple[str, ...]) -> None:
    with pytest.raises(CannotStart, match=rf"is not a flag for vLLM\. A model is named with --model {words[0]};"):
        engine.need_flags(words)
    engine.need_flags(("--max-model-len", "4096"))
