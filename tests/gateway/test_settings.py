"""Settings: who wins, what is refused with which sentence, and engine URLs as people type them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.settings import DEFAULTS, InvalidSettings, Settings, load


def settings(environ: dict[str, str] | None = None, file: Path | None = None, **flags: Any) -> Settings:
    return load({"LORAGATE_HOME": "/data", **(environ or {})}, file=file, flags=flags)


def test_flags_win_over_variables_over_files_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("public: {port: 1000}\nadmin: {port: 1001}\ndrain: {timeout_s: 7}\n")
    environ = {"LORAGATE__PUBLIC__PORT": "2000", "LORAGATE__ADMIN__PORT": "2001", "LORAGATE_PORT": "tcp://10.0.0.1:80"}
    found = settings(environ, file, public={"port": 3000, "host": None})
    assert (found.public.port, found.admin.port, found.drain.timeout_s) == (3000, 2001, 7)
    assert (found.public.host, found.data_dir) == ("127.0.0.1", Path("/data"))


def test_the_shipped_file_says_what_the_code_says() -> None:
    assert load({"LORAGATE_HOME": "/data"}) == Settings(data_dir=Path("/data"))
    assert DEFAULTS.name == "gateway.yaml"


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"LORAGATE__PUBLIC__PROT": "1"}, "There is no setting public.prot. configs/gateway.yaml shows every one."),
        ({"LORAGATE__PUBLIC__PORT": "70000"}, "Setting public.port: Input should be less than or equal to 65535."),
        ({"LORAGATE__PUBLIC__PORT": "many"}, "Setting public.port: Input should be a valid integer"),
        ({"LORAGATE__ENGINES": "[{url: nonsense}]"}, "Setting engines.0.url: an engine's URL looks like http://10."),
    ],
)
def test_a_mistake_is_named_in_a_sentence(environ: dict[str, str], sentence: str) -> None:
    with pytest.raises(InvalidSettings) as refusal:
        settings(environ)
    assert refusal.value.message.startswith(sentence)


@pytest.mark.parametrize(
    "typed", ["http://10.0.0.5:8000", "http://10.0.0.5:8000/", "http://10.0.0.5:8000/v1", "http://10.0.0.5:8000/v1/"]
)
def test_an_engines_url_may_end_as_clients_write_it(typed: str) -> None:
    assert settings(engines=[{"url": typed}]).engines[0].url == "http://10.0.0.5:8000"


NO_HOST = ("10.0.0.5:8000", "nonsense", "", "ftp://a", "http://", "http://a:99999", "http://a:0", "http://[::1")
MORE_THAN_A_HOST = ("http://a b", "http://me:pw@a", "http://a/?x=1", "http://a/#x", "http://ä", "http://a\r\nx: y")


@pytest.mark.parametrize("typed", [*NO_HOST, *MORE_THAN_A_HOST])
def test_what_is_no_engines_url(typed: str) -> None:
    with pytest.raises(InvalidSettings, match=r"engines\.0\.url: an engine's URL"):
        settings(engines=[{"url": typed}])
