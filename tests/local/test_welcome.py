"""The text that `up` ends with: short enough for a terminal, and right as it is pasted."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from gateway.local import welcome
from gateway.local.places import Places

URL, ADMIN = "http://127.0.0.1:8000", "http://127.0.0.1:8001"
QUESTION = "How do I reset my password?"
MODELS = ["customer-service", "demo-base", "code-generation", "financial-qa"]


def text(data: Path, home: str | None, question: str = QUESTION) -> str:
    return welcome.text(
        URL,
        ADMIN,
        Places(data),
        models=MODELS,
        question=question,
        demo=True,
        local_engine=True,
        command=".venv/bin/loragate {}".format,
        home=home,
    )


def test_nothing_wraps_at_80_columns_where_the_data_lie_in_the_home_folder() -> None:
    for home in ("/root", "/home/somebody-with-a-rather-long-name-for-a-user"):
        said = text(Path(home) / ".local/share/loragate", home)
        assert max(len(line) for line in said.splitlines()) <= 80, said


def test_files_are_named_as_a_shell_takes_them() -> None:
    assert welcome.short(Path("/home/a/x y/k"), "/home/a") == "~/'x y/k'"
    assert welcome.short(Path("/home/ab/k"), "/home/a") == "/home/ab/k"
    assert welcome.short(Path("/data/x y"), None) == "'/data/x y'"
    assert welcome.short(Path("/data/k"), "") == "/data/k"


def test_odd_paths_and_questions_stay_whole(tmp_path: Path) -> None:
    question = """It's "5 %" of 中文?"""
    said = text(tmp_path / "it's here", str(tmp_path), question)
    command = said[said.index("curl ") : said.index("or in Python")]
    (tmp_path / "it's here").mkdir()
    (tmp_path / "it's here" / "demo.key").write_text("lg-key\n")
    shell = ["sh", "-c", 'curl() { printf "%s\\0" "$@"; }; ' + command]
    done = subprocess.run(shell, env={"PATH": os.defpath, "HOME": str(tmp_path)}, capture_output=True, check=True)
    words = done.stdout.decode().split("\0")
    assert "Authorization: Bearer lg-key" in words
    body = json.loads(words[words.index("-d") + 1])
    assert body == {"model": MODELS[0], "temperature": 0, "messages": [{"role": "user", "content": question}]}
    compile(said[said.index("from openai") : said.index("Models  ")], "snippet", "exec")
    assert repr("~/it's here/demo.key") in said
